"""Oracles of the filters top-k and threshold (O-F1 to O-F3), and of the cosine score."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import Given, attend, double, memory_of, random, weights_of
from formulas import array, softmax
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from s2s.attention.global_ import Global
from s2s.attention.local import LocalPredictive, Predicted
from s2s.attention.normalise import AnyFilter, Normaliser, filtered, masked_softmax, normalise
from s2s.attention.scores import AnyScore, Cosine, Dot, General
from s2s.config import AnyAttention
from s2s.interfaces import Memory

NORMALISERS: list[Normaliser] = ["softmax", "sparsemax", "entmax15"]
each_normaliser = pytest.mark.parametrize("normaliser", NORMALISERS)


def topk(k: int, renormalise: bool = True) -> Any:
    """The filter's settings."""
    return TypeAdapter(AnyFilter).validate_python({"kind": "topk", "k": k, "renormalise": renormalise})


def threshold(theta: float, renormalise: bool = True) -> Any:
    """The filter's settings."""
    return TypeAdapter(AnyFilter).validate_python({"kind": "threshold", "theta": theta, "renormalise": renormalise})


def traced(values: Tensor, lengths: tuple[int, ...] | None = None) -> Memory:
    """A memory whose reader wants the trace."""
    return memory_of(values, lengths, frozenset({"trace"}))


# --- filters ----------------------------------------------------------------------------------------------------------

ALPHA = (0.5, 0.3, 0.15, 0.05)


@pytest.mark.parametrize(
    "by, kept, context",
    [
        (topk(4), 1.0, 0.315),
        (topk(2, False), 0.8, 0.28),
        (topk(2), 0.8, 0.35),
        (threshold(0.1, False), 0.95, 0.295),
        (threshold(0.1), 0.95, 0.295 / 0.95),
        (threshold(0.6, False), 0.5, 0.1),  # the largest is always kept
        (threshold(0.6), 0.5, 0.2),
    ],
)
def test_fixture_of_four_positions(by: Any, kept: float, context: float) -> None:
    """Weights (.5, .3, .15, .05) over values (.2, .6, .1, .4)."""
    values = double(0.2, 0.6, 0.1, 0.4).view(1, 4, 1)
    weights, mass = filtered(double(*ALPHA), by)
    assert float(mass) == pytest.approx(kept, abs=1e-12)
    assert float(weights @ values[0, :, 0]) == pytest.approx(context, abs=1e-12)
    found = attend(Global(Given(double(*ALPHA).log()), "softmax", 1, by), values[:, :1], traced(values))
    assert float(found.trace["kept"]) == pytest.approx(kept, abs=1e-12)
    assert float(found.context) == pytest.approx(context, abs=1e-12)


@each_normaliser
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("all_of_it", [topk(5), topk(99), threshold(0.0)], ids=["k=S", "k>S", "theta=0"])
def test_of1_a_filter_that_keeps_all_is_the_identity(normaliser: Normaliser, renormalise: bool, all_of_it: Any) -> None:
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 0]).unsqueeze(1)
    weights = normalise(random(4, 5), mask, normaliser)
    found, kept = filtered(weights, all_of_it.model_copy(update={"renormalise": renormalise}))
    torch.testing.assert_close(found, weights, rtol=1e-14, atol=0)
    torch.testing.assert_close(kept, double(1, 1, 1, 0))


@each_normaliser
@pytest.mark.parametrize("by", [topk(1), topk(3), threshold(0.1), threshold(0.4), threshold(1.0)], ids=str)
def test_of2_renormalised_rows_sum_to_one(normaliser: Normaliser, by: Any) -> None:
    mask = torch.arange(6) < torch.tensor([6, 4, 2, 1, 0]).unsqueeze(1)
    weights = normalise(2 * random(5, 6), mask, normaliser)
    found, kept = filtered(weights, by)
    torch.testing.assert_close(found.sum(-1), double(1, 1, 1, 1, 0))
    assert (found[~mask] == 0).all() and (kept[:4] > 0).all() and kept[4] == 0
    bare, same = filtered(weights, by.model_copy(update={"renormalise": False}))
    torch.testing.assert_close(bare.sum(-1), same, rtol=0, atol=0)
    torch.testing.assert_close(found[:4], bare[:4] / kept[:4].unsqueeze(-1))
    assert ((bare == weights) | (bare == 0)).all()


def test_of3_the_best_alone_is_a_copy_and_teaches_the_score_nothing() -> None:
    score, values = General(4, 3, scaled=False).double(), random(2, 6, 3)
    query, memory = random(2, 5, 4, seed=1).requires_grad_(), traced(values, (6, 3))
    found = attend(Global(score, "softmax", 3, topk(1)), query, memory)
    scores = score(query, score.keys(memory.values)).masked_fill(~memory.mask.unsqueeze(1), -math.inf)
    for b, t in np.ndindex(2, 5):
        assert torch.equal(found.context[b, t], memory.values[b, int(scores[b, t].argmax())])
    torch.autograd.backward((found.context * random(2, 5, 3, seed=2)).sum())
    assert query.grad is not None and score.project.weight.grad is not None
    assert query.grad.abs().max() < 1e-12 and score.project.weight.grad.abs().max() < 1e-12


@pytest.mark.parametrize("by", [topk(3), threshold(0.15)], ids=str)
def test_renormalising_equals_masking_the_scores(by: Any) -> None:
    """In value and gradient; without it, neither."""
    mask = torch.arange(6) < torch.tensor([6, 6, 5]).unsqueeze(1)
    scores, wanted = random(3, 6).requires_grad_(), random(3, 6, seed=1)
    keeps = by.keeps(masked_softmax(scores.detach(), mask)) & mask
    assert (keeps.sum(-1) < mask.sum(-1)).all()
    results = []
    for weights in (
        filtered(masked_softmax(scores, mask), by)[0],
        masked_softmax(scores, keeps),
        filtered(masked_softmax(scores, mask), by.model_copy(update={"renormalise": False}))[0],
    ):
        results.append((weights.detach(), torch.autograd.grad((weights * wanted).sum(), scores)[0]))
    (found, gradient), (expected, of_expected), (bare, of_bare) = results
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, of_expected, rtol=1e-9, atol=1e-12)
    assert gradient[~keeps].abs().max() < 1e-12
    assert not torch.allclose(bare, expected)
    # Without renormalising a dropped score still counts, through the sum below the softmax: -a_j sum_i a_i g_i.
    for row, column in (mask & ~keeps).nonzero().tolist():
        own = softmax(array(scores)[row, : int(mask[row].sum())])
        kept = [place for place in range(len(own)) if keeps[row, place]]
        below = -own[column] * sum(own[place] * float(wanted[row, place]) for place in kept)
        assert float(of_bare[row, column]) == pytest.approx(below, abs=1e-12)


def test_of_equal_weights_the_first_are_kept() -> None:
    for by, expected in (
        (topk(2), [0.5, 0.5, 0, 0, 0, 0, 0, 0]),
        (threshold(0.2), [1, 0, 0, 0, 0, 0, 0, 0]),
        (threshold(0.125), [0.125] * 8),  # at least theta, not more than it
    ):
        assert filtered(torch.full((8,), 0.125), by)[0].tolist() == expected
    long = torch.zeros(3, 1000)
    long[:, 300:] = 1 / 700
    assert topk(5).keeps(long).nonzero()[:, 1].tolist() == [300, 301, 302, 303, 304] * 3


@each_normaliser
@pytest.mark.parametrize("by", [topk(2), topk(2, False), threshold(0.3), threshold(0.3, False)], ids=str)
def test_padding_changes_nothing(normaliser: Normaliser, by: Any) -> None:
    attention, query = Global(General(4, 3, scaled=False).double(), normaliser, 3, by), random(3, 5, 4, seed=1)
    values, lengths = random(3, 6, 3), (6, 3, 1)
    expected = attend(attention, query, traced(values, lengths))
    found = attend(attention, query, traced(torch.cat([values, values], 1), lengths))
    torch.testing.assert_close(found.context, expected.context, rtol=0, atol=1e-12)
    torch.testing.assert_close(weights_of(found)[..., :6], weights_of(expected), rtol=0, atol=1e-12)
    assert (weights_of(found)[..., 6:] == 0).all()
    for row, length in enumerate(lengths):
        alone = attend(attention, query[row : row + 1], traced(values[row : row + 1, :length]))
        torch.testing.assert_close(alone.context[0], expected.context[row], rtol=0, atol=1e-12)


@pytest.mark.parametrize("by", [topk(2), threshold(0.5)], ids=str)
def test_a_weight_that_is_not_a_number_is_not_hidden(by: Any) -> None:
    weights = torch.full((2, 4), 0.25)
    weights[0] = math.nan
    found, kept = filtered(weights, by)
    assert found[0].isnan().any() and kept[0].isnan() and found[1].isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("by", [topk(2, False), threshold(0.12, False)], ids=str)
def test_local_p_is_filtered_after_its_gaussian(by: Any) -> None:
    """The fixture of O-LP1: (.013611, .111146, .135755, .183250, .040888, 0), of which the best two stay."""
    predicted = Predicted(1, "paper").double()
    predicted.hidden.weight.fill_(1.0)
    predicted.vector.fill_(math.log(3.3 / 2.7))  # S sigma of it is 3.3
    scores = double(0.1, 0.4, -0.2, 0.3, 0.0, 0.5)
    attention = LocalPredictive(Given(scores), "softmax", 3, 2, predicted, "post", by)
    query = torch.full((1, 1, 1), 100.0, dtype=torch.float64)  # tanh of it is 1
    found = attend(attention, query, traced(random(1, 6, 3)))
    expected = double(0, 0, 0.135755, 0.183250, 0, 0)
    torch.testing.assert_close(weights_of(found)[0, 0], expected, rtol=0, atol=1e-6)
    assert float(found.trace["kept"]) == pytest.approx(0.319005, abs=2e-6)


@pytest.mark.parametrize("kind", ["global", "local-m", "local-p"])
def test_a_filter_is_a_setting_of_every_soft_kind(kind: str) -> None:
    for by, most in (({"kind": "topk", "k": 2}, 2), ({"kind": "threshold", "theta": 0.5, "renormalise": False}, 1)):
        settings: Any = TypeAdapter(AnyAttention).validate_python({"kind": kind, "filter": by})
        assert settings.filter.renormalise == by.get("renormalise", True)
        attention = settings.build(4, 3).double()
        memory = traced(random(1, 6, 3))
        found = attend(attention, 0.1 * random(1, 5, 4, seed=1), memory)
        assert ((weights_of(found) > 0).sum(-1) <= most).all() and found.trace["kept"].shape == (1, 5)
        plain = settings.model_copy(update={"filter": None}).build(4, 3).double()
        assert "kept" not in attend(plain, random(1, 5, 4, seed=1), memory).trace


@pytest.mark.parametrize(
    "by",
    [
        {"kind": "topk"},
        {"kind": "topk", "k": 0},
        {"kind": "threshold", "theta": 1.5},
        {"kind": "threshold", "theta": -0.1},
        {"kind": "threshold", "k": 3},
        "topk",
    ],
    ids=str,
)
def test_filters_without_a_meaning_are_refused(by: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(AnyAttention).validate_python({"kind": "global", "filter": by})


# --- cosine -----------------------------------------------------------------------------------------------------------


def cosine(query_size: int, memory_size: int, **options: Any) -> Cosine:
    """The score by its settings, in float64."""
    settings: Any = TypeAdapter(AnyScore).validate_python({"kind": "cosine", **options})
    built = settings.build(query_size, memory_size).double()
    assert isinstance(built, Cosine)
    return built


@torch.no_grad()
def test_cosine_fixture() -> None:
    """q = (1, -1) and rows (1, 0), (0, 1), (1, 1): cosines 1/sqrt 2, -1/sqrt 2 and 0, twice that as scores."""
    values = double(1, 0, 0, 1, 1, 1).view(1, 3, 2)
    attention = Global(cosine(2, 2, sharpness=2.0), "softmax", 2)
    found = weights_of(attend(attention, double(1, -1).view(1, 1, 2), traced(values)))
    torch.testing.assert_close(found[0, 0], double(0.767918, 0.045388, 0.186694), rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("memory_size", [4, 3])
def test_cosine_is_the_formula(memory_size: int) -> None:
    score, query, values = cosine(4, memory_size), random(2, 3, 4), random(2, 5, memory_size, seed=1)
    score.log_sharpness.fill_(0.7)
    assert (score.project is None) == (memory_size == 4)
    w = np.eye(4) if score.project is None else array(score.project.weight)
    found = score(query, score.keys(values))
    for b, t, s in np.ndindex(2, 3, 5):
        q, k = array(query[b, t]), w @ array(values[b, s])
        expected = math.exp(0.7) * (q @ k) / (math.sqrt(q @ q) * math.sqrt(k @ k))
        assert float(found[b, t, s]) == pytest.approx(expected, abs=1e-12)


@torch.no_grad()
def test_cosine_sees_directions_only_and_is_bounded_by_its_sharpness() -> None:
    score, query, values = cosine(4, 4, sharpness=3.0), random(2, 3, 4), random(2, 5, 4, seed=1)
    found = score(query, score.keys(values))
    torch.testing.assert_close(score(7 * query, score.keys(0.01 * values)), found)
    torch.testing.assert_close(score(query, score.keys(query))[:, range(3), range(3)], torch.full((2, 3), 3.0).double())
    assert found.abs().max() <= 3.0
    torch.testing.assert_close(score.log_sharpness.exp(), torch.tensor(3.0).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("memory_size", [4, 3])
def test_cosine_of_nothing_is_zero_without_a_gradient_that_is_not_a_number(memory_size: int) -> None:
    """Rows of padding and the first state of some decoders are exactly zero."""
    score = cosine(4, memory_size)
    query = torch.cat([torch.zeros(2, 1, 4).double(), random(2, 2, 4)], 1).requires_grad_()
    values = random(2, 5, memory_size, seed=1).requires_grad_()
    memory = traced(values, (5, 2))
    scores = score(query, score.keys(memory.values))
    assert (scores[:, 0] == 0).all() and (scores[1, :, 2:] == 0).all()
    torch.autograd.backward(attend(Global(score, "softmax", memory_size), query, memory).context.square().sum())
    for tensor in (query, values, *score.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.any()


@torch.no_grad()
def test_cosine_is_float32_under_autocast() -> None:
    score = cosine(4, 4, sharpness=10.0).float()
    query, values = random(2, 3, 4).float(), random(2, 5, 4, seed=1).float()
    expected = score(query, score.keys(values))
    with torch.autocast("cpu", torch.bfloat16):
        found = score(query, score.keys(values))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.2)


def test_dot_and_cosine_agree_on_unit_vectors() -> None:
    query, values = (torch.nn.functional.normalize(random(1, 4, 6, seed=seed), dim=-1) for seed in (0, 1))
    dot, score = Dot(6, 6, scaled=False), cosine(6, 6, sharpness=1.0)
    torch.testing.assert_close(score(query, score.keys(values)), dot(query, dot.keys(values)))
