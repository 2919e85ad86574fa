"""Oracles of the normalisers: the masked softmax (O-M1 to O-M6), and sparsemax and 1.5-entmax (O-S1 to O-S3)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from fixtures import double, random

from s2s.attention.global_ import Global, GlobalSettings
from s2s.attention.normalise import Normaliser, masked_log_softmax, masked_softmax, normalise
from s2s.attention.scores import Dot
from s2s.interfaces import Memory

KINDS: list[Normaliser] = ["softmax", "sparsemax", "entmax15"]
each_kind = pytest.mark.parametrize("kind", KINDS)


MASK = torch.tensor([[True, True, True, True], [True, False, True, False], [False, True, False, False], [False] * 4])


# --- masks ------------------------------------------------------------------------------------------------------------


@each_kind
def test_om1_rows_sum_to_one_or_to_nothing(kind: Normaliser) -> None:
    total = normalise(random(4, 4), MASK, kind).sum(-1)
    torch.testing.assert_close(total, double(1, 1, 1, 0))
    assert total[3] == 0


@each_kind
@pytest.mark.parametrize("garbage", [0.0, 1e30, -1e30, math.inf, -math.inf, math.nan])
def test_om2_masked_entries_are_exactly_zero(kind: Normaliser, garbage: float) -> None:
    scores = random(4, 4)
    spoilt = scores.masked_fill(~MASK, garbage)
    found = normalise(spoilt, MASK, kind)
    assert (found[~MASK] == 0).all()
    torch.testing.assert_close(found, normalise(scores, MASK, kind), rtol=0, atol=1e-15)


def test_om2_masked_logarithms_are_minus_infinity() -> None:
    found = masked_log_softmax(random(4, 4), MASK)
    assert (found[~MASK] == -torch.inf).all() and (found[MASK] > -torch.inf).all()
    torch.testing.assert_close(found.exp(), masked_softmax(random(4, 4), MASK))


def test_softmax_is_exp_over_the_sum_of_the_real_ones() -> None:
    scores = random(4, 4)
    for row in range(3):
        real = [math.exp(scores[row, column]) if MASK[row, column] else 0.0 for column in range(4)]
        expected = double(*(value / sum(real) for value in real))
        torch.testing.assert_close(masked_softmax(scores, MASK)[row], expected)


@each_kind
@pytest.mark.parametrize("garbage", [1e30, math.inf, math.nan])
def test_om3_padding_changes_neither_weights_nor_gradients(kind: Normaliser, garbage: float) -> None:
    scores, want = random(2, 3), random(2, 3, seed=1)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    plain, padded = (
        scores.clone().requires_grad_(),
        torch.cat([scores, torch.full((2, 2), garbage)], 1).requires_grad_(),
    )
    weights = normalise(plain, mask, kind)
    wider = normalise(padded, torch.cat([mask, torch.zeros(2, 2, dtype=torch.bool)], 1), kind)
    torch.testing.assert_close(wider[:, :3], weights, rtol=0, atol=1e-15)
    torch.autograd.backward(((weights * want).sum(), (wider[:, :3] * want).sum()))
    assert plain.grad is not None and padded.grad is not None
    torch.testing.assert_close(padded.grad[:, :3], plain.grad, rtol=0, atol=1e-15)
    assert (padded.grad[:, 3:] == 0).all()


@each_kind
def test_om4_adding_a_constant_changes_nothing(kind: Normaliser) -> None:
    scores = random(4, 4)
    torch.testing.assert_close(normalise(scores + 123.0, MASK, kind), normalise(scores, MASK, kind))


@each_kind
def test_om5_a_row_with_nothing_to_read_does_not_poison_the_gradient(kind: Normaliser) -> None:
    weight = random(3, 4).requires_grad_()
    scores = random(4, 3, seed=1) @ weight
    torch.autograd.backward((normalise(scores, MASK, kind) * random(4, 4, seed=2)).sum())
    assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any()


@each_kind
def test_om6_permuting_the_source_permutes_weights_and_keeps_the_context(kind: Normaliser) -> None:
    attention = Global(Dot(5, 5, scaled=False), kind, 5)
    values, query = random(1, 4, 5), random(1, 2, 5, seed=1)
    order = torch.tensor([2, 0, 3, 1])
    results = []
    for memory_values in (values, values[:, order]):
        mask = torch.ones(1, 4, dtype=torch.bool)
        memory = attention.prepare(Memory(memory_values, mask, torch.tensor([4])))
        results.append(attention(query, memory, ())[0])
    assert results[0].weights is not None and results[1].weights is not None
    torch.testing.assert_close(results[1].weights, results[0].weights[..., order])
    torch.testing.assert_close(results[1].context, results[0].context)


@each_kind
def test_scores_of_half_precision_are_normalised_in_float32(kind: Normaliser) -> None:
    scores = random(2, 5).to(torch.bfloat16)
    found = normalise(scores, torch.ones(2, 5, dtype=torch.bool), kind)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, normalise(scores.double(), torch.ones(2, 5, dtype=torch.bool), kind).float())


# --- sparsemax and entmax ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scores, kind, expected",
    [
        ((-2, 0, 0.5), "softmax", (0.048611, 0.359188, 0.592201)),
        ((-2, 0, 0.5), "sparsemax", (0, 0.25, 0.75)),
        ((-2, 0, 0.5), "entmax15", (0, 0.326007, 0.673993)),
        ((1, 0.5, -0.5), "sparsemax", (0.75, 0.25, 0)),
        ((1, 0.5, -0.5), "entmax15", (0.671164, 0.324041, 0.004795)),
    ],
)
def test_os1_fixtures(scores: tuple[float, ...], kind: Normaliser, expected: tuple[float, ...]) -> None:
    found = normalise(double(*scores), torch.ones(3, dtype=torch.bool), kind)
    torch.testing.assert_close(found, double(*expected), rtol=0, atol=1e-6)
    assert [value == 0 for value in found.tolist()] == [value == 0 for value in expected]


def threshold(scores: list[float], kind: Normaliser) -> list[float]:
    """The weights by bisection on tau: sparsemax max(z - tau, 0), entmax15 max(z / 2 - tau, 0)^2, summing to one."""
    z = scores if kind == "sparsemax" else [score / 2 for score in scores]
    power = 1 if kind == "sparsemax" else 2
    low, high = min(z) - 1, max(z)
    for _ in range(200):
        tau = (low + high) / 2
        low, high = (tau, high) if sum(max(x - tau, 0) ** power for x in z) > 1 else (low, tau)
    return [max(x - low, 0) ** power for x in z]


@pytest.mark.parametrize("kind", ["sparsemax", "entmax15"])
def test_os1_the_threshold_makes_the_sum_one(kind: Normaliser) -> None:
    scores = random(20, 7) * 2
    mask = torch.rand(20, 7, generator=torch.Generator().manual_seed(1)) < 0.7
    mask[:, 0] = True
    found = normalise(scores, mask, kind)
    for row in range(20):
        expected = threshold(scores[row, mask[row]].tolist(), kind)
        torch.testing.assert_close(found[row, mask[row]], double(*expected), rtol=0, atol=1e-9)
    assert (found[mask] == 0).any()


@pytest.mark.parametrize("kind", ["sparsemax", "entmax15"])
def test_os2_properties(kind: Normaliser) -> None:
    scores, all_real = random(6) * 2, torch.ones(6, dtype=torch.bool)
    assert (normalise(1000 * scores, all_real, kind) == 1).sum() == 1
    assert normalise(1000 * scores, all_real, kind).argmax() == scores.argmax()
    torch.testing.assert_close(normalise(0 * scores, all_real, kind), torch.full((6,), 1 / 6, dtype=torch.float64))
    sizes = [int((normalise(scale * scores, all_real, kind) > 0).sum()) for scale in (0.01, 0.1, 0.5, 1, 2, 5)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 6 and sizes[-1] < 6
    order = scores.argsort()
    assert (normalise(scores, all_real, kind)[order].diff() >= 0).all()


@each_kind
def test_os3_gradients_off_the_kinks(kind: Normaliser) -> None:
    mask = torch.tensor([[True, True, True, True], [True, False, True, True], [True, True, False, False]])
    scores = double((1.0, 0.3, -0.2, -4.0), (0.1, 9.0, 0.4, -0.2), (0.2, 0.5, 0.0, 0.0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: normalise(x, mask, kind), (scores,))


def test_os3_the_gradient_of_sparsemax_is_centred_on_its_support() -> None:
    """g_i minus the mean of g over the support there, zero elsewhere: of (-2, 0, 0.5) the support is the last two."""
    scores = double(-2, 0, 0.5).requires_grad_()
    torch.autograd.backward(normalise(scores, torch.ones(3, dtype=torch.bool), "sparsemax"), double(7, 1, 5))
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, double(0, -2, 2))


@each_kind
def test_a_score_that_is_not_a_number_is_seen_in_the_weights(kind: Normaliser) -> None:
    """So that the loss is not finite and training stops with its own message, not with an index error in here."""
    scores = torch.zeros(2, 3)
    scores[0, 1] = math.nan
    found = normalise(scores, torch.ones(2, 3, dtype=torch.bool), kind)
    assert found[0].isnan().any() and found[1].isfinite().all()


@pytest.mark.parametrize("kind, longest", list(itertools.product(KINDS, (2, 4))))
def test_location_beyond_its_rows_has_no_weight(kind: Normaliser, longest: int) -> None:
    """Footnote 6 of Luong et al. 2015: positions past the last row get nothing, in any normaliser."""
    settings = GlobalSettings.model_validate(
        {"kind": "global", "score": {"kind": "location", "max_length": longest}, "normaliser": kind}
    )
    torch.manual_seed(0)
    attention = settings.build(5, 3).double()
    query, mask = random(2, 3, 5).requires_grad_(), torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    memory = attention.prepare(Memory(random(2, 6, 3), mask, torch.tensor([6, 3])))
    attended, _ = attention(query, memory, ())
    assert attended.weights is not None
    assert (attended.weights[..., longest:] == 0).all() and (attended.weights[1, :, 3:] == 0).all()
    torch.testing.assert_close(attended.weights.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    torch.autograd.backward(attended.context.sum())
    assert query.grad is not None and query.grad.isfinite().all()
