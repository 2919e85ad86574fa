"""Oracles of R-Drop: the divergence in plain loops, its gradient, and a batch that is read twice."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fixtures import decoder_of, random, recurrent_model, redrawn
from torch import Tensor, nn

from s2s.interfaces import PAD
from s2s.models.seq2seq import Seq2Seq
from s2s.training import objective
from s2s.training.objective import ObjectiveSettings, Rows, Sums, TrainingStep, divergence

SOURCE, LENGTHS = torch.tensor([[4, 5, 6, 2], [5, 7, 2, 0]]), torch.tensor([4, 3])
TARGET = torch.tensor([[1, 4, 6, 5, 2], [1, 8, 2, 0, 0]])
WORDS = 9
ATTENTIONS = [
    {"kind": "global"},
    {"kind": "latent", "k": 2},
    {"kind": "coverage", "inner": {"kind": "global", "score": "additive"}},
]


def by_loops(first: Tensor, second: Tensor) -> float:
    """KL(P || Q) + KL(Q || P) of the softmaxes of two rows of scores, added over rows."""
    total = 0.0
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        p, q = ([math.exp(score) / sum(map(math.exp, row)) for score in row] for row in (one, other))
        total += sum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(p, q, strict=True))
    return total


def operands() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two features, matrix and bias."""
    inputs = random(7, 4), random(7, 4, seed=1), random(5, 4, seed=2), random(5, seed=3)
    return tuple(one.requires_grad_() for one in inputs)  # type: ignore[return-value]


@pytest.mark.parametrize("block", [1, 15, 10_000])
def test_the_divergence_is_its_definition(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, and in chunks of one and of three rows; gradients by finite differences."""
    monkeypatch.setattr(objective, "_BLOCK", block)
    first, second, weight, bias = inputs = operands()

    def whole(first: Tensor, second: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        output = nn.Linear(4, 5)
        del output.weight, output.bias
        output.weight, output.bias = weight, bias  # type: ignore[assignment]
        return divergence(Rows(first, output), Rows(second, output), 5)

    found = whole(*inputs)
    assert float(found.detach()) == pytest.approx(
        by_loops(first @ weight.T + bias, second @ weight.T + bias), abs=1e-10
    )
    assert torch.autograd.gradcheck(whole, inputs)


def model_of(attention: dict[str, Any], dropout: float) -> Seq2Seq:
    decoder = {"size": 6, "attention": attention, "output_dropout": dropout}
    return redrawn(recurrent_model((WORDS, WORDS), {}, decoder), 0.8).train()


def measured(model: Seq2Seq, weight: float) -> Sums:
    torch.manual_seed(5)
    result: Sums = TrainingStep(model, ObjectiveSettings(label_smoothing=0.1, r_drop=weight)).train()(
        SOURCE, LENGTHS, TARGET
    )
    return result


@pytest.mark.parametrize("attention", ATTENTIONS, ids=lambda attention: attention["kind"])
def test_a_batch_is_read_twice(attention: dict[str, Any]) -> None:
    """The mean of two plain losses under the same draws, and a quarter of both divergences."""
    model = model_of(attention, 0.5)
    found = measured(model, 3.0)
    torch.manual_seed(5)
    plain, readings, real = (
        TrainingStep(model, ObjectiveSettings(label_smoothing=0.1)).train(),
        [],
        TARGET[:, 1:] != PAD,
    )
    for _ in range(2):
        decoded, memory = model(SOURCE, LENGTHS, TARGET[:, :-1])
        logits = decoder_of(model).logits(decoded, memory, real)
        readings.append((plain.measure(decoded, memory, TARGET[:, 1:]), logits))
    (one, p), (other, q) = readings
    assert one.loss.item() != other.loss.item()
    apart = 3.0 / 4 * by_loops(p, q)
    assert apart > 0.01
    assert float(found.parts.pop("r_drop")) == pytest.approx(apart, abs=1e-10)
    assert found.loss.item() == pytest.approx((one.loss.item() + other.loss.item()) / 2 + apart, abs=1e-10)
    assert float(found.nll) == pytest.approx((float(one.nll) + float(other.nll)) / 2, abs=1e-10)
    assert int(found.tokens) == 6
    assert {name: float(part) for name, part in found.parts.items()} == pytest.approx(
        {name: float(part + other.parts[name]) / 2 for name, part in one.parts.items()}
    )


def test_its_gradient_is_that_of_finite_differences() -> None:
    model = model_of({"kind": "global"}, 0.5)
    weight = decoder_of(model).embedding.weight
    (gradient,) = torch.autograd.grad(measured(model, 3.0).loss, weight)
    with torch.no_grad():
        for place in ((4, 0), (6, 2), (8, 1)):
            weight[place] += 1e-5
            up = float(measured(model, 3.0).loss)
            weight[place] -= 2e-5
            down = float(measured(model, 3.0).loss)
            weight[place] += 1e-5
            assert float(gradient[place]) == pytest.approx((up - down) / 2e-5, rel=1e-6, abs=1e-8)


@torch.no_grad()
def test_without_dropout_there_is_nothing_to_bring_together() -> None:
    model = model_of({"kind": "global"}, 0.0)
    found, plain = measured(model, 3.0), measured(model, 0.0)
    assert float(found.parts["r_drop"]) == pytest.approx(0.0, abs=1e-12)
    assert found.loss.item() == pytest.approx(plain.loss.item(), abs=1e-12)
    assert plain.parts == {}


@torch.no_grad()
def test_a_validation_reads_once() -> None:
    model = model_of({"kind": "global"}, 0.5).eval()
    step = TrainingStep(model, ObjectiveSettings(r_drop=3.0)).eval()
    plain = TrainingStep(model, ObjectiveSettings()).eval()
    assert torch.equal(step(SOURCE, LENGTHS, TARGET).loss, plain(SOURCE, LENGTHS, TARGET).loss)


def test_statistics_are_of_both_readings() -> None:
    attention = {"kind": "hard", "estimator": {"kind": "reinforce", "baseline": "moving", "soft_mixing": 0.0}}
    model = model_of(attention, 0.5)
    found, plain = measured(model, 1.0).statistics, measured(model, 0.0).statistics
    assert {name: int(count) for name, (_, count) in plain.items()} == {"reward": 6}
    assert {name: int(count) for name, (_, count) in found.items()} == {"reward": 12}
