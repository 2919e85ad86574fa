"""Numbers about attention and about random gradients, against plain loops and numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from s2s.analysis.diagnostics import Diagnostics, GradientMoments, from_trace, gradient_moments, of_weights, summed
from s2s.interfaces import PAD, Attended, Decoded, Decoder, Memory, Totals
from s2s.tree import Tree


def memory_of(lengths: tuple[int, ...]) -> Memory:
    """A memory whose rows nobody reads."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return Memory(torch.zeros(*mask.shape, 1), mask, torch.tensor(lengths))


def real_of(counts: tuple[int, ...], steps: int) -> Tensor:
    """True at the first target positions of each sentence."""
    return torch.arange(steps) < torch.tensor(counts).unsqueeze(1)


def means(totals: Totals) -> dict[str, float]:
    """Every sum divided by its count."""
    return {name: float(total / count) for name, (total, count) in totals.items()}


def by_loops(weights: Any, sources: tuple[int, ...], targets: tuple[int, ...]) -> dict[str, list[float]]:
    """The terms of every mean, position by position."""
    found: dict[str, list[float]] = {
        name: [] for name in ("entropy", "sharpness", "mass", "monotonicity", "coverage", "coverage_error")
    }
    for b, (source, target) in enumerate(zip(sources, targets, strict=True)):
        places: list[int | None] = []
        for t in range(target):
            row = [float(weights[b][t][s]) for s in range(source)]
            found["entropy"].append(-sum(a * math.log(a) for a in row if a > 0))
            found["sharpness"].append(max(row))
            found["mass"].append(sum(row))
            places.append(row.index(max(row)) if max(row) > 0 else None)
        for before, now in itertools.pairwise(places):
            if before is not None and now is not None:
                found["monotonicity"].append(1.0 if now >= before else 0.0)
        for s in range(source):
            total = sum(float(weights[b][t][s]) for t in range(target))
            found["coverage"].append(min(1.0, total))
            found["coverage_error"].append(abs(1.0 - total))
    return found


def random_weights(sources: tuple[int, ...], steps: int, seed: int) -> Tensor:
    """Rows (B, T, S) of a random softmax over each source, those at the padding of the target too."""
    scores = 2 * torch.randn(len(sources), steps, max(sources), generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(~memory_of(sources).mask.unsqueeze(1), -torch.inf).softmax(-1)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_numbers_worked_out_by_hand() -> None:
    """Three words over two positions: a row that is certain, one that is not, and one that gives half away."""
    rows = torch.tensor([[[1.0, 0.0], [0.5, 0.5], [0.0, 0.5]]])
    found = means(of_weights(rows, memory_of((2,)), real_of((3,), 3)))
    assert found == pytest.approx(
        {
            "entropy": (0 + math.log(2) + 0.5 * math.log(2)) / 3,
            "sharpness": (1 + 0.5 + 0.5) / 3,
            "mass": 2.5 / 3,
            "monotonicity": 1.0,  # places 0, 0 (the lowest of two), 1
            "coverage": (1 + 1) / 2,  # totals 1.5 and 1
            "coverage_error": (0.5 + 0) / 2,
        }
    )


@pytest.mark.parametrize("seed", range(5))
def test_weights_in_loops(seed: int) -> None:
    sources, targets = (5, 3, 1), (2, 4, 1)
    weights = random_weights(sources, 4, seed)
    weights[1, 2] = 0.0  # nothing was read: no neighbour of it is in order or out of it
    weights[0] *= 0.7
    expected = by_loops(weights.tolist(), sources, targets)
    found = of_weights(weights, memory_of(sources), real_of(targets, 4))
    assert {name: int(count) for name, (_, count) in found.items()} == {n: len(v) for n, v in expected.items()}
    for name, values in expected.items():
        assert float(found[name][0]) == pytest.approx(sum(values), abs=1e-6), name
        assert found[name][0].dtype == torch.float64
    assert len(expected["monotonicity"]) == 1 + 1 + 0


def test_what_stands_in_the_padding_has_no_influence() -> None:
    weights = random_weights((4, 2), 3, 0)
    real = real_of((1, 3), 3)
    expected = means(of_weights(weights, memory_of((4, 2)), real))
    weights[~real] = torch.nan
    assert means(of_weights(weights, memory_of((4, 2)), real)) == expected


def test_reading_backwards_is_not_monotonic() -> None:
    eye = torch.eye(4).unsqueeze(0)
    for rows, expected in ((eye, 1.0), (eye.flip(1), 0.0), (eye[:, [0, 1, 0, 3]], 2 / 3)):
        found = of_weights(rows, memory_of((4,)), real_of((4,), 4))
        assert means(found)["monotonicity"] == pytest.approx(expected)


# --- over batches -----------------------------------------------------------------------------------------------------


class Telling(Decoder):
    """A decoder that tells one thing more, and decodes nothing."""

    def start(self, memory: Memory, want: frozenset[str] = frozenset()) -> tuple[Memory, Tree]:
        raise NotImplementedError

    def forward(self, tokens: Tensor, memory: Memory, state: Tree) -> tuple[Decoded, Tree]:
        raise NotImplementedError

    def shares(self, state: Tree) -> bool:
        raise NotImplementedError

    def diagnostics(self, decoded: Decoded, memory: Memory, target: Tensor) -> Totals:
        assert decoded.weights is not None
        return {"first": summed(decoded.weights[..., 0], target != PAD)}


def test_batches_are_added_before_they_are_divided() -> None:
    diagnostics, terms = Diagnostics(), []
    for sources, targets, seed in (((5, 3), (2, 4), 0), ((2,), (3,), 1)):
        weights = random_weights(sources, max(targets), seed)
        decoded = Decoded(torch.zeros(1), weights=weights)
        diagnostics.add(Telling(), decoded, memory_of(sources), real_of(targets, max(targets)).long())
        own = [float(weights[b, t, 0]) for b, count in enumerate(targets) for t in range(count)]
        terms.append(by_loops(weights.tolist(), sources, targets) | {"first": own})
    expected = {name: sum(terms[0][name] + terms[1][name]) / len(terms[0][name] + terms[1][name]) for name in terms[0]}
    found = diagnostics.means()
    assert found == pytest.approx(expected, abs=1e-6)
    assert all(type(value) is float for value in found.values())


def test_without_weights_there_is_nothing() -> None:
    diagnostics = Diagnostics()
    diagnostics.add(Telling(), Decoded(torch.zeros(1)), memory_of((3,)), real_of((2,), 2).long())
    assert diagnostics.means() == {}


def test_a_mean_over_nothing_is_left_out() -> None:
    """Sentences of one word have no neighbours."""
    diagnostics = Diagnostics()
    decoded = Decoded(torch.zeros(1), weights=random_weights((3,), 1, 0))
    diagnostics.add(Telling(), decoded, memory_of((3,)), real_of((1,), 1).long())
    assert "monotonicity" not in diagnostics.means() and "entropy" in diagnostics.means()


def test_of_a_trace_what_is_there_is_summed() -> None:
    attended = Attended(torch.zeros(1), None, trace={"kept": torch.tensor([[0.5, 0.25, 9.0]])})
    found = from_trace(attended, torch.tensor([[True, True, False]]), "kept", "missing")
    assert {name: (float(total), int(count)) for name, (total, count) in found.items()} == {"kept": (0.75, 2)}


# --- gradients --------------------------------------------------------------------------------------------------------


def test_the_moments_of_draws() -> None:
    """Against numpy: the mean, and the trace of the covariance matrix, of two parameters."""
    generator = np.random.default_rng(0)
    draws = 1000.0 + generator.normal(size=(30, 6))  # far from zero, where a sum of squares would lose digits
    found = gradient_moments(
        lambda number: [torch.from_numpy(draws[number, :4]).view(2, 2), torch.from_numpy(draws[number, 4:])], 30
    )
    assert found.draws == 30
    np.testing.assert_allclose(found.mean[0].numpy().ravel(), draws[:, :4].mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.mean[1].numpy(), draws[:, 4:].mean(0), rtol=1e-12)
    expected = [float(np.trace(np.cov(part.T))) for part in (draws[:, :4], draws[:, 4:])]
    np.testing.assert_allclose(found.variance, expected, rtol=1e-9)
    variance, square = found.spread()
    assert variance == pytest.approx(sum(expected))
    assert square == pytest.approx(float((draws.mean(0) ** 2).sum()) - sum(expected) / 30)


def test_the_spread_has_no_bias() -> None:
    """Every sequence of three draws out of four gradients: the mean of what is found is what is true."""
    gradients = [torch.tensor(one) for one in ([0.0, 1.0], [2.0, -1.0], [0.5, 0.5], [-3.0, 0.0])]
    points = np.array([one.tolist() for one in gradients])
    true = float(((points - points.mean(0)) ** 2).sum(1).mean()), float((points.mean(0) ** 2).sum())
    found = [
        gradient_moments(lambda number, chosen=chosen: [gradients[chosen[number]]], 3).spread()
        for chosen in itertools.product(range(4), repeat=3)
    ]
    assert np.mean(found, axis=0).tolist() == pytest.approx(true)
    assert min(square for _, square in found) < 0  # as documented: below zero where noise hides the gradient


def test_what_is_always_the_same_does_not_scatter() -> None:
    found = gradient_moments(lambda number: [torch.tensor([3.0, 4.0])], 5)
    assert isinstance(found, GradientMoments) and found.spread() == (0.0, 25.0)
