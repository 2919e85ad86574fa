"""What each mechanism tells of itself at a validation, against plain loops over its own equations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import Given, double, memory_of, random, redrawn
from formulas import Array, array, softmax
from pydantic import TypeAdapter
from torch import Tensor

from s2s.attention.local import LocalMonotonic, LocalPredictive
from s2s.attention.scores import General
from s2s.config import AnyAttention
from s2s.interfaces import Attended, Attention, Memory

LENGTHS, TARGETS, STEPS, M = (6, 4, 1), (5, 7, 2), 7, 3
WANT = frozenset({"trace", "weights"})


def build(**options: Any) -> Attention:
    """A kind by its settings, in float64, redrawn and in evaluation mode."""
    settings: Any = TypeAdapter(AnyAttention).validate_python(options)
    built: Attention = settings.build(5, M)
    return redrawn(built, 0.8)


def words_at(real: Tensor) -> Any:
    """As much of a `Gold` as is asked here: where there are right words (B, T)."""
    return SimpleNamespace(real=real)


@torch.no_grad()
def told(attention: Attention, query: Tensor | None = None) -> tuple[dict[str, float], Attended, Memory]:
    """The means of what is told over the real words, what was attended to, and the memory."""
    memory = attention.prepare(memory_of(random(len(LENGTHS), max(LENGTHS), M, seed=1), LENGTHS, WANT))
    query = 2 * random(len(LENGTHS), STEPS, 5) if query is None else query
    attended, _ = attention(query, memory, attention.start(memory))
    real = torch.arange(STEPS) < torch.tensor(TARGETS).unsqueeze(1)
    totals = attention.diagnostics(attended, memory, words_at(real))
    return {name: float(total / count) for name, (total, count) in totals.items()}, attended, memory


def words() -> list[tuple[int, int]]:
    """Every real target position (b, t)."""
    return [(b, t) for b, count in enumerate(TARGETS) for t in range(count)]


def scores_of(attention: Any, memory: Memory) -> Array:
    """The scores (B, T, S) for the queries of `told`."""
    with torch.no_grad():
        return array(attention.score(2 * random(len(LENGTHS), STEPS, 5), attention.score.keys(memory.values)))


# --- local ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["local-m", "local-p"])
@pytest.mark.parametrize("window", [1, 2, {"start": 2.0, "end": 1.0, "updates": 3}])
def test_mass_in_the_window_and_the_centre(kind: str, window: Any) -> None:
    attention = build(kind=kind, window=window)
    assert isinstance(attention, LocalMonotonic | LocalPredictive)
    found, attended, memory = told(attention)
    scores, reach = scores_of(attention, memory), window if isinstance(window, int) else 2
    masses, shares, steps = [], [], []
    for b, t in words():
        length, centre = LENGTHS[b], float(attended.trace["centre"][b, t])
        stands = min(max(int(np.floor(centre)), 1), length)
        everywhere = softmax(scores[b, t, :length])
        masses.append(sum(everywhere[s - 1] for s in range(1, length + 1) if stands - reach <= s <= stands + reach))
        shares.append(centre / length)
        if t > 0:
            steps.append(abs(centre - float(attended.trace["centre"][b, t - 1])))
    expected = {"in_window": np.mean(masses), "centre": np.mean(shares), "centre_step": np.mean(steps)}
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-12)
    assert 0 < found["in_window"] < 1


def test_a_predicted_position_that_stands_still() -> None:
    attention = build(kind="local-p", window=10)
    assert isinstance(attention, LocalPredictive)
    with torch.no_grad():
        attention.predicted.vector.zero_()
    found, _, _ = told(attention)
    assert found == pytest.approx({"in_window": 1.0, "centre": 0.5, "centre_step": 0.0})


def test_local_m_in_numbers() -> None:
    """Scores log (1, 2, 3, 4) at every step, a window of one position: 1/10, 2/10, 3/10, then the last, 4/10."""
    attention = LocalMonotonic(Given(double(1, 2, 3, 4).log()), "softmax", M, window=0)
    memory = attention.prepare(memory_of(random(1, 4, M), (4,), WANT))
    attended, _ = attention(random(1, 5, 5), memory, attention.start(memory))
    totals = attention.diagnostics(attended, memory, words_at(torch.ones(1, 5, dtype=torch.bool)))
    assert {name: (float(total), int(count)) for name, (total, count) in totals.items()} == {
        "in_window": (pytest.approx(0.1 + 0.2 + 0.3 + 0.4 + 0.4), 5),
        "centre": (pytest.approx((1 + 2 + 3 + 4 + 4) / 4), 5),
        "centre_step": (3.0, 4),
    }


@pytest.mark.parametrize("kind", ["local-m", "local-p"])
def test_nobody_asks_and_nothing_is_computed(kind: str) -> None:
    attention = build(kind=kind, window=1)
    memory = attention.prepare(memory_of(random(1, 4, M)))
    assert attention(random(1, 2, 5), memory, attention.start(memory))[0].trace == {}


# --- hard and latent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["reinforce", "gumbel", "enumerate"])
@pytest.mark.parametrize("evaluate", ["argmax", "sample", "marginal"])
def test_the_probability_of_the_position_that_was_read(estimator: str, evaluate: str) -> None:
    torch.manual_seed(3)
    attention = build(kind="hard", estimator=estimator, evaluate=evaluate)
    found, attended, memory = told(attention)
    if evaluate == "marginal":
        assert found == {}
        return
    scores, chances = scores_of(attention, memory), []
    for b, t in words():
        if estimator == "enumerate":
            assert attended.mixture is not None and attended.mixture.positions is not None
            place = int(attended.mixture.positions[b, t, 0])
        else:  # the row that the recurrence was fed tells where it is from
            same = [torch.equal(attended.context[b, t], memory.values[b, s]) for s in range(LENGTHS[b])]
            place = same.index(True)
        chances.append(softmax(scores[b, t, : LENGTHS[b]])[place])
    assert found == pytest.approx({"chosen": float(np.mean(chances))})
    best = float(np.mean([softmax(scores[b, t, : LENGTHS[b]]).max() for b, t in words()]))
    assert (found["chosen"] == pytest.approx(best)) == (evaluate == "argmax")


@pytest.mark.parametrize("renormalise", [False, True])
def test_the_weight_of_the_positions_that_are_summed_over(renormalise: bool) -> None:
    attention = build(kind="latent", k=2, renormalise=renormalise)
    found, _, memory = told(attention)
    scores = scores_of(attention, memory)
    kept = [sum(sorted(softmax(scores[b, t, : LENGTHS[b]]))[-2:]) for b, t in words()]
    assert found == pytest.approx({"kept": float(np.mean(kept))})
    assert told(build(kind="latent"))[0] == {}


def test_summing_over_more_positions_than_there_are_keeps_all() -> None:
    assert told(build(kind="latent", k=9))[0] == pytest.approx({"kept": 1.0})


# --- filters and coverage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("kind", ["global", "local-m"])
def test_the_mass_that_a_filter_left(kind: str, renormalise: bool) -> None:
    """A window that holds the sentence makes local-m the same."""
    window = {"window": 9} if kind == "local-m" else {}
    attention = build(kind=kind, filter={"kind": "topk", "k": 2, "renormalise": renormalise}, **window)
    found, _, memory = told(attention)
    scores = scores_of(attention, memory)
    kept = [sum(sorted(softmax(scores[b, t, : LENGTHS[b]]))[-2:]) for b, t in words()]
    assert found["kept"] == pytest.approx(float(np.mean(kept)))
    assert told(build(kind="global"))[0] == {}


def test_the_weight_on_words_that_were_read_already() -> None:
    inner = {"kind": "local-m", "window": 1, "score": "additive"}
    found, attended, _ = told(build(kind="coverage", inner=inner))
    assert attended.weights is not None
    weights, again = array(attended.weights), []
    for b, t in words():
        before = [sum(weights[b, u, s] for u in range(t)) for s in range(LENGTHS[b])]
        again.append(sum(min(weights[b, t, s], before[s]) for s in range(LENGTHS[b])))
    assert found["again"] == pytest.approx(float(np.mean(again)))
    assert {"in_window", "centre", "centre_step"} < set(found)


def test_a_kind_of_additive_score_has_no_more_to_tell() -> None:
    assert isinstance(build(kind="global", score="general").score, General)  # type: ignore[union-attr]
    for kind in ("monotonic", "mocha", "location-aware"):
        assert told(build(kind=kind))[0] == {}
