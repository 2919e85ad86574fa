"""Oracles of distillation word by word: the cross entropy in plain loops, and a teacher that stays as it is."""

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
from s2s.training.objective import ObjectiveSettings, Rows, Sums, TrainingStep, cross_entropy

SOURCE, LENGTHS = torch.tensor([[4, 5, 6, 2], [5, 7, 2, 0]]), torch.tensor([4, 3])
TARGET = torch.tensor([[1, 4, 6, 5, 2], [1, 8, 2, 0, 0]])
REAL = TARGET[:, 1:] != PAD
WORDS = 9
KINDS: list[dict[str, Any]] = [
    {"kind": "global"},
    {"kind": "latent", "k": 2},
    {"kind": "hard", "estimator": {"kind": "enumerate"}},
    {"kind": "coverage", "inner": {"kind": "global", "score": "additive"}},
]


def model_of(attention: dict[str, Any], seed: int, **decoder: Any) -> Seq2Seq:
    options = {"size": 6, "attention": attention, **decoder}
    return redrawn(recurrent_model((WORDS, WORDS), {}, options), 0.8, seed).train()


def measured(model: Seq2Seq, teacher: Seq2Seq | None, weight: float = 0.3, **settings: Any) -> Sums:
    page = {"label_smoothing": 0.1, "teacher": {"run": "a", "weight": weight}, **settings}
    if teacher is None:
        del page["teacher"]
    step = TrainingStep(model, ObjectiveSettings.model_validate(page), teacher).train()
    result: Sums = step(SOURCE, LENGTHS, TARGET)
    return result


def scores(model: Seq2Seq) -> Tensor:
    """At the real positions (n, V)."""
    decoded, memory = model(SOURCE, LENGTHS, TARGET[:, :-1])
    return decoder_of(model).logits(decoded, memory, REAL).detach()


def by_loops(theirs: Tensor, own: Tensor) -> float:
    """-sum_v p_v log q_v of the softmaxes of two rows of scores, added over rows."""
    total = 0.0
    for one, other in zip(theirs.tolist(), own.tolist(), strict=True):
        p, q = ([math.exp(score) / sum(map(math.exp, row)) for score in row] for row in (one, other))
        total -= sum(a * math.log(b) for a, b in zip(p, q, strict=True))
    return total


@pytest.mark.parametrize("block", [1, 15, 10_000])
def test_the_cross_entropy_is_its_definition(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "_BLOCK", block)
    theirs, own = random(7, 4), random(7, 5, seed=1).requires_grad_()
    one, other = nn.Linear(4, 6).double(), nn.Linear(5, 6).double()
    found = cross_entropy(Rows(theirs, one), Rows(own, other), 6)
    assert found.item() == pytest.approx(by_loops(one(theirs), other(own)), abs=1e-10)
    assert torch.autograd.gradcheck(lambda own: cross_entropy(Rows(theirs, one), Rows(own, other), 6), (own,))


@pytest.mark.parametrize("attention", KINDS, ids=lambda attention: attention["kind"])
@pytest.mark.parametrize("teaching", KINDS[:2], ids=lambda attention: f"by-{attention['kind']}")
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_the_loss_is_shared(attention: dict[str, Any], teaching: dict[str, Any], weight: float) -> None:
    """(1 - weight) of all that it is without a teacher, and weight of the cross entropy; the likelihood stays."""
    model, teacher = model_of(attention, 2), model_of(teaching, 5, size=7)
    found, plain = measured(model, teacher, weight), measured(model, None)
    taught = weight * by_loops(scores(teacher), scores(model))
    assert found.parts["teacher"].item() == pytest.approx(taught, abs=1e-9)
    assert found.loss.item() == pytest.approx((1 - weight) * plain.loss.item() + taught, abs=1e-9)
    assert {name: found.parts[name].item() for name in plain.parts} == pytest.approx(
        {name: (1 - weight) * part.item() for name, part in plain.parts.items()}, abs=1e-9
    )
    assert found.nll.item() == pytest.approx(plain.nll.item(), abs=1e-10)


def test_a_teacher_is_no_part_of_what_is_trained() -> None:
    model, teacher = model_of({"kind": "global"}, 2), model_of({"kind": "global"}, 5, output_dropout=0.5)
    settings = ObjectiveSettings.model_validate({"teacher": {"run": "a"}})
    step = TrainingStep(model, settings, teacher).train()
    assert not teacher.training, "its dropout is off"
    assert {id(one) for one in step.parameters()} == {id(one) for one in model.parameters()}
    assert all(name.startswith("model.") for name in step.state_dict())
    step(SOURCE, LENGTHS, TARGET).loss.backward()
    assert all(one.grad is None for one in teacher.parameters())
    assert any(one.grad is not None and one.grad.any() for one in model.parameters())


def test_what_is_learned_is_what_the_teacher_predicts() -> None:
    """With nothing but the teacher, the gradient at the output bias is what one says less what the other says."""
    model, teacher = model_of({"kind": "global"}, 2), model_of({"kind": "global"}, 5)
    bias = decoder_of(model).output.bias
    (gradient,) = torch.autograd.grad(measured(model, teacher, 1.0).loss, bias)
    torch.testing.assert_close(gradient, (scores(model).softmax(-1) - scores(teacher).softmax(-1)).sum(0))


@torch.no_grad()
def test_a_validation_has_no_teacher_and_two_readings_have_the_same() -> None:
    model, teacher = model_of({"kind": "global"}, 2), model_of({"kind": "global"}, 5)
    settings = ObjectiveSettings.model_validate({"teacher": {"run": "a"}})
    step = TrainingStep(model, settings, teacher).eval()
    assert step(SOURCE, LENGTHS, TARGET).parts == {}
    once, twice = measured(model, teacher), measured(model, teacher, r_drop=2.0)
    assert float(twice.parts["teacher"]) == pytest.approx(float(once.parts["teacher"]), abs=1e-10)


def test_a_teacher_does_not_follow_own_words() -> None:
    with pytest.raises(ValueError, match="choose one"):
        ObjectiveSettings.model_validate({"teacher": {"run": "a"}, "scheduled_sampling": 0.1})
