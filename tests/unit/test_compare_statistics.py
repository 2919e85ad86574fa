"""Statistics over seeds: spreads and corrections by hand, and a paired test with the seeds pooled, in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from s2s.evaluation import Measured
from s2s.evaluation.comparing import against, holm, pooled, spread


def system(*matches: float, name: str = "share") -> Measured:
    """Sentences that are right or wrong; the score is the share of right ones in per cent."""
    return Measured(name, "sig", [(match, 1.0) for match in matches], lambda sums: 100 * sums[0] / sums[1])


def test_a_spread_by_hand() -> None:
    found = spread([2.0, 4.0, 9.0])
    assert found.mean == 5.0
    assert found.deviation == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert (found.low, found.high, found.seeds) == (2.0, 9.0, 3)
    assert spread([3.0]) == (3.0, None, 3.0, 3.0, 1)


def test_pooling_adds_what_a_sentence_gives_in_every_seed() -> None:
    one = pooled([system(1, 0, 1), system(1, 1, 0), system(0, 0, 1)])
    assert [list(sentence) for sentence in one.sentences] == [[2, 3], [1, 3], [2, 3]]
    assert one.score.value == pytest.approx(100 * 5 / 9)


@pytest.mark.parametrize(
    ("given", "corrected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 x 0.005, 3 x 0.01, 2 x 0.03, and no less than that
        ([0.4, 0.6], [0.8, 0.8]),
        ([0.9, 0.8, 0.7], [1.0, 1.0, 1.0]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_the_correction_by_hand(given: list[float], corrected: list[float]) -> None:
    assert holm(given) == pytest.approx(corrected)


def test_a_system_beside_the_baseline_by_plain_loops() -> None:
    """Drawn test sets are of sentences, and of one that is drawn all seeds count."""
    random = np.random.default_rng(3)
    own = {seed: random.integers(2, size=12) for seed in (1, 2, 3)}
    other = {seed: random.integers(2, size=12) for seed in (2, 3, 4)}
    (found,) = against(
        [{seed: system(*row) for seed, row in own.items()}], {seed: system(*row) for seed, row in other.items()}, 200, 7
    )
    assert found is not None and found.seeds == [2, 3]
    gains = [100 * (own[seed].mean() - other[seed].mean()) for seed in (2, 3)]
    assert found.difference == pytest.approx(sum(gains) / 2)
    assert found.better == sum(gain > 0 for gain in gains)
    drawing, differences = np.random.default_rng(7), []
    for row in drawing.choice(12, size=(200, 12), replace=True):
        right = [sum(int(side[seed][n]) for seed in (2, 3) for n in row) for side in (own, other)]
        differences.append(100 * (right[0] - right[1]) / 24)
    sizes = [abs(one) for one in differences]
    center = sum(sizes) / len(sizes)
    observed = abs(found.difference)
    assert found.p == (1 + sum(size - center >= observed - 1e-9 for size in sizes)) / 201
    assert found.corrected == found.p
    assert found.wins == pytest.approx(sum(one > 1e-9 for one in differences) / 200)
    assert (found.low, found.high) == pytest.approx((sorted(differences)[5], sorted(differences)[-6]))


def test_without_a_common_seed_there_is_nothing_to_compare_and_nothing_to_correct_for() -> None:
    baseline = {1: system(0, 0, 0, 0, 0, 0)}
    found = against([{2: system(1, 1, 1, 1, 1, 1)}, {1: system(1, 1, 1, 1, 1, 0)}], baseline, 100, 7)
    assert found[0] is None
    assert found[1] is not None and found[1].corrected == found[1].p
    assert against([{1: system(1)}], {}, 100, 7) == [None]


def test_of_errors_fewer_are_better() -> None:
    found = against([{1: system(0, 1, 0, name="ter")}], {1: system(1, 1, 1, name="ter")}, 100, 7)
    assert found[0] is not None and found[0].difference < 0 and found[0].better == 1
