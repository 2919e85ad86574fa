"""Oracles of the loss: label smoothing by its definition, chunks, gradients by finite differences, sums and counts."""

from __future__ import annotations

import math

import pytest
import torch
from fixtures import random
from torch import Tensor, nn

from s2s.interfaces import PAD, Decoded, Decoder, Memory, Totals
from s2s.training import objective
from s2s.training.objective import ObjectiveSettings, TrainingStep, smoothed_loss


def operands(rows: int = 7, width: int = 4, words: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, matrix, bias and right words."""
    target = torch.randint(words, (rows,), generator=torch.Generator().manual_seed(4))
    inputs = (random(rows, width), random(words, width, seed=1), random(words, seed=2))
    return inputs[0].requires_grad_(), inputs[1].requires_grad_(), inputs[2].requires_grad_(), target


CHUNKS = [(1, 1), (20, 10), (15, 10), (10, 4_000_000), (4_000_000, 15), (4_000_000, 4_000_000)]
"""Scores that may stand in memory, and that go through the softmax, at once; a row of `operands` has 5, of 35."""
each_chunk = pytest.mark.parametrize("chunk", CHUNKS)


def cut(monkeypatch: pytest.MonkeyPatch, chunk: tuple[int, int]) -> None:
    """Have the loss formed in chunks of this size."""
    monkeypatch.setattr(objective, "_BLOCK", chunk[0])
    monkeypatch.setattr(objective, "_ROWS", chunk[1])


def by_loops(features: Tensor, weight: Tensor, bias: Tensor, target: Tensor, smoothing: float) -> tuple[float, float]:
    """-sum_v q(v) log p(v) over all rows, where q is (1 - e) on the right word and e / V on every word; and the NLL."""
    loss = nll = 0.0
    for row, right in enumerate(target.tolist()):
        scores = [sum(f * w for f, w in zip(features[row].tolist(), line.tolist(), strict=True)) for line in weight]
        scores = [score + b for score, b in zip(scores, bias.tolist(), strict=True)]
        total = sum(math.exp(score) for score in scores)
        logs = [math.log(math.exp(score) / total) for score in scores]
        nll -= logs[right]
        for word, log in enumerate(logs):
            q = smoothing / len(logs) + (1 - smoothing if word == right else 0.0)
            loss -= q * log
    return loss, nll


def test_label_smoothing_fixture() -> None:
    """p = (0.7, 0.1, 0.1, 0.1), e = 0.1, V = 4: mass e / V on all words gives 0.502618 (not 0.551266)."""
    bias = torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64).log()
    nothing = torch.zeros(1, 1, dtype=torch.float64)
    loss, nll = smoothed_loss(nothing, torch.zeros(4, 1, dtype=torch.float64), bias, torch.tensor([0]), 0.1)
    assert float(loss) == pytest.approx(0.502618, abs=1e-6)
    assert float(nll) == pytest.approx(-math.log(0.7), abs=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@each_chunk
def test_the_loss_is_its_definition(smoothing: float, chunk: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, chunk)
    inputs = operands()
    loss, nll = smoothed_loss(*inputs, smoothing)
    assert (float(loss), float(nll)) == pytest.approx(by_loops(*inputs, smoothing), abs=1e-10)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@each_chunk
def test_its_gradient_is_that_of_finite_differences(
    smoothing: float, chunk: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, chunk)
    features, weight, bias, target = operands()

    def scaled(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return 0.3 * smoothed_loss(features, weight, bias, target, smoothing)[0]  # as the division by tokens does

    assert torch.autograd.gradcheck(scaled, (features, weight, bias))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for chunk in ((4_000_000, 4_000_000), (35, 10)):
        cut(monkeypatch, chunk)
        features, weight, bias, target = operands(rows=50)
        loss, nll = smoothed_loss(features, weight, bias, target, 0.1)
        results.append((loss.detach(), nll, *torch.autograd.grad(loss, [features, weight, bias])))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole)


def test_only_what_needs_a_gradient_gets_one() -> None:
    features, weight, bias, target = operands()
    loss, nll = smoothed_loss(features.detach(), weight, bias.detach(), target, 0.1)
    assert loss.requires_grad and not nll.requires_grad
    (gradient,) = torch.autograd.grad(loss, [weight])
    (expected,) = torch.autograd.grad(smoothed_loss(features, weight, bias, target, 0.1)[0], [weight])
    torch.testing.assert_close(gradient, expected)


def test_low_precision_features_give_a_float32_loss_and_gradients() -> None:
    features, weight, bias, target = (part.detach() for part in operands(rows=40))
    exact, _ = smoothed_loss(features, weight, bias, target, 0.1)
    narrow, master = features.to(torch.bfloat16).requires_grad_(), weight.float().requires_grad_()
    loss, nll = smoothed_loss(narrow, master, bias.float(), target, 0.1)
    assert loss.dtype == nll.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=0.02, atol=0)
    by_features, by_weight = torch.autograd.grad(loss, [narrow, master])
    assert by_features.dtype == torch.bfloat16 and by_weight.dtype == torch.float32


def test_no_rows_cost_nothing() -> None:
    features, weight, bias, target = operands(rows=0)
    loss, nll = smoothed_loss(features, weight, bias, target, 0.1)
    assert float(loss.detach()) == float(nll) == 0.0
    (gradient,) = torch.autograd.grad(loss, [weight])
    assert not gradient.any()


# --- sums and counts --------------------------------------------------------------------------------------------------


class Words(Decoder):
    """Features from a table, and terms of a loss that are easy to add up."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.output = nn.Embedding(6, 3), nn.Linear(3, 6)

    def start(self, memory: Memory, want: frozenset[str] = frozenset()) -> tuple[Memory, tuple[()]]:
        return memory, ()

    def forward(self, tokens: Tensor, memory: Memory, state: tuple[()]) -> tuple[Decoded, tuple[()]]:
        return Decoded(self.table(tokens)), ()

    def shares(self, state: tuple[()]) -> bool:
        return True

    def penalties(self, decoded: Decoded, memory: Memory, target: Tensor) -> dict[str, Tensor]:
        return {"each": torch.full(target.shape, 0.5).double(), "sentence": 3 * torch.ones(len(target)).double()}

    def statistics(self, decoded: Decoded, memory: Memory, target: Tensor) -> Totals:
        return {"seen": (target.sum(), (target != PAD).sum())}


class Model(nn.Module):
    """Just enough of a model for `TrainingStep`."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Words()

    def forward(self, source: Tensor, lengths: Tensor, words: Tensor, *_: object) -> tuple[Decoded, Memory]:
        """Decode without looking at the source."""
        memory = Memory(source.double(), source != PAD, lengths)
        return self.decoder(words, memory, ())[0], memory


def test_a_batch_gives_sums_over_its_real_positions() -> None:
    torch.manual_seed(0)
    model = Model().double()
    target = torch.tensor([[1, 4, 5, 2], [1, 3, 2, 0]])
    sums = TrainingStep(model, ObjectiveSettings(label_smoothing=0.1))(target, torch.tensor([4, 3]), target)
    read, right = [1, 4, 5, 1, 3], torch.tensor([4, 5, 2, 3, 2])
    decoder = model.decoder
    loss, nll = by_loops(decoder.table.weight[read], decoder.output.weight, decoder.output.bias, right, 0.1)
    assert int(sums.tokens) == 5 and float(sums.nll) == pytest.approx(nll, abs=1e-10)
    assert {name: float(part) for name, part in sums.parts.items()} == {"each": 2.5, "sentence": 6.0}
    assert float(sums.loss.detach()) == pytest.approx(loss + 8.5, abs=1e-10)
    assert [int(part) for part in sums.statistics["seen"]] == [4 + 5 + 2 + 3 + 2, 5]
    assert not sums.nll.requires_grad and sums.loss.requires_grad
