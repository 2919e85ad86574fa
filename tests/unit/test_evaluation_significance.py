"""Intervals and p-values: plain loops over the same draws, all ways to swap, and differences worked out by hand."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import sacrebleu

from s2s.evaluation import Measured, judge, significance
from s2s.evaluation.significance import (
    Interval,
    approximate_randomisation,
    bootstrap_scores,
    interval,
    paired_bootstrap,
)

Lines = Sequence[str]
METRICS: dict[str, Callable[[Lines, Lines], float]] = {
    "bleu": lambda found, right: sacrebleu.corpus_bleu(found, [right]).score,
    "chrf": lambda found, right: sacrebleu.corpus_chrf(found, [right]).score,
    "ter": lambda found, right: sacrebleu.corpus_ter(found, [right]).score,
    "exact": lambda found, right: 100 * sum(map(str.__eq__, found, right)) / len(right),
}
"""The same scores without anything of s2s."""


def corpus(seed: int, sentences: int) -> tuple[list[str], list[str], list[str]]:
    """References, a system, and one that is a little worse; now and then a line is right as it stands."""
    draw = random.Random(seed)
    words = ["der", "die", "ein", "Hund", "Mann", "sieht", "kennt", "alte", "rote", "Baum", "."]

    def spoiled(line: str, rate: float) -> str:
        return " ".join(draw.choice(words) if draw.random() < rate else word for word in line.split())

    right = [" ".join(draw.choices(words, k=draw.randint(2, 9))) for _ in range(sentences)]
    return right, [spoiled(line, 0.2) for line in right], [spoiled(line, 0.3) for line in right]


def fixed(value: float, name: str = "bleu") -> Measured:
    """A system of one sentence whose score is this."""
    return Measured(name, "", [(value,)], lambda sums: sums[0])


@pytest.mark.parametrize("cells", [1, 1 << 22])
def test_bootstrap_is_a_plain_loop(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same test sets, drawn one by one; in small blocks as in one."""
    monkeypatch.setattr(significance, "_CELLS", cells)
    right, one, other = corpus(1, 15)
    systems = [one, other]
    measured = [judge(name, [right])(lines) for lines in systems for name in METRICS]
    found = bootstrap_scores(measured, 70, seed=3)
    drawn = np.random.default_rng(3).choice(15, size=(70, 15))
    expected = [
        [score([lines[i] for i in row], [right[i] for i in row]) for row in drawn.tolist()]
        for lines in systems
        for score in METRICS.values()
    ]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_the_interval_leaves_a_fortieth_on_each_side() -> None:
    scores = np.random.default_rng(0).permutation(1000).astype(float)
    assert interval(scores) == Interval(25, 974)  # 25 below, 25 above
    assert interval(np.arange(100.0)) == Interval(2, 97)


def test_bootstrap_p_by_hand() -> None:
    drawn, base = np.array([3.0, 1.0, 2.0, 0.0]), np.ones(4)
    # d = 2 0 1 -1, mean |d| = 1, so |d| - 1 = 1 -1 0 0, of which one is at least the observed 41 - 40 = 1.
    found = paired_bootstrap(fixed(41.0), fixed(40.0), drawn, base)
    assert found.p == pytest.approx(2 / 5)
    assert (found.wins, found.losses) == (2 / 4, 1 / 4)
    assert found.difference == Interval(-1, 2)
    worse = paired_bootstrap(fixed(41.0, "ter"), fixed(40.0, "ter"), drawn, base)
    assert worse == found._replace(wins=1 / 4, losses=2 / 4)  # errors: fewer are better
    # Nothing is as large as 1.5; three of four are as large as 0.
    assert paired_bootstrap(fixed(41.5), fixed(40.0), drawn, base).p == pytest.approx(1 / 5)
    assert paired_bootstrap(fixed(40.0), fixed(40.0), drawn, base).p == pytest.approx(4 / 5)


def every_swap(one: Lines, other: Lines, right: Lines, score: Callable[[Lines, Lines], float]) -> float:
    """The exact p-value: the share of all 2^n ways to swap whose difference is at least the observed one."""
    observed = abs(score(one, right) - score(other, right))
    count = 0
    for coins in itertools.product((False, True), repeat=len(right)):
        first = [b if coin else a for a, b, coin in zip(one, other, coins, strict=True)]
        second = [a if coin else b for a, b, coin in zip(one, other, coins, strict=True)]
        count += abs(score(first, right) - score(second, right)) > observed - 1e-7
    return count / 2 ** len(right)


@pytest.mark.parametrize("name", METRICS)
def test_randomisation_estimates_the_share_of_all_swaps(name: str) -> None:
    trials = 20_000
    for seed in (1, 2):
        right, one, other = corpus(seed, 8)
        exact = every_swap(one, other, right, METRICS[name])
        measure = judge(name, [right])
        (found,) = approximate_randomisation([measure(one)], [measure(other)], trials, seed=5)
        assert found == pytest.approx(exact, abs=4 * math.sqrt(0.25 / trials))
        assert exact > 0


@pytest.mark.parametrize("seed", [4, 5, 6])
def test_ties_count_though_rounding_parts_them(seed: int) -> None:
    """TER divides by the mean length of the references; thirds do not add up to the same number in any order."""
    right, one, other = corpus(seed, 8)
    references = [right, [f"{line} a" for line in right], [f"{line} b c d" for line in right]]

    def score(found: Lines, _: Lines) -> float:
        return sacrebleu.corpus_ter(found, references).score

    exact = every_swap(one, other, right, score)
    measure = judge("ter", references)
    (found,) = approximate_randomisation([measure(one)], [measure(other)], 20_000, seed=1)
    assert found == pytest.approx(exact, abs=4 * math.sqrt(0.25 / 20_000))


@pytest.mark.parametrize("name", METRICS)
def test_systems_that_do_not_differ(name: str) -> None:
    right, one, _ = corpus(4, 30)
    system, same = judge(name, [right])(one), judge(name, [right])(list(one))
    drawn = bootstrap_scores([system, same], 200)
    found = paired_bootstrap(system, same, drawn[0], drawn[1])
    assert (found.p, found.wins, found.losses, found.difference) == (1, 0, 0, (0, 0))
    assert approximate_randomisation([system], [same], 200) == [1]


def test_systems_that_differ_everywhere() -> None:
    right = [f"{n} b c d e f" for n in range(40)]
    good, bad = judge("bleu", [right])(right), judge("bleu", [right])(["x"] * 40)
    drawn = bootstrap_scores([good, bad], 200)
    found = paired_bootstrap(good, bad, drawn[0], drawn[1])
    assert (found.p, found.wins, found.losses) == (1 / 201, 1, 0)
    assert found.difference == pytest.approx((100, 100))
    assert approximate_randomisation([good], [bad], 200) == [1 / 201]


def test_coins_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """How much memory there is changes no p-value, and neither do the systems beside one."""
    right, one, other = corpus(6, 21)
    measure = judge("bleu", [right])
    systems = [measure(one), measure(right)]
    whole = approximate_randomisation(systems, [measure(other)] * 2, 300, seed=9)
    monkeypatch.setattr(significance, "_CELLS", 1)
    alone = [approximate_randomisation([system], [measure(other)], 300, seed=9)[0] for system in systems]
    assert whole == alone
    assert whole != approximate_randomisation(systems, [measure(other)] * 2, 300, seed=8)
