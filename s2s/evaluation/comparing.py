"""Several systems, each trained with several seeds: means and spreads, and tests over sentences with the seeds pooled.

What a paired test says is about the choice of test sentences. Seeds are no sentences: the translations of one sentence
by all seeds stand or fall together, so they are one unit that is drawn or left out as a whole. How much a system moves
from seed to seed is told beside it, by its spread and by how many seeds it was better in.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from s2s.evaluation.scores import Measured
from s2s.evaluation.significance import Bootstrap, bootstrap_scores, paired_bootstrap


class Spread(NamedTuple):
    """What one number is over several seeds."""

    mean: float
    deviation: float | None
    """The sample standard deviation (n - 1); None of one value."""
    low: float
    high: float
    seeds: int


class Against(NamedTuple):
    """A system beside the baseline, over the seeds that both have."""

    seeds: list[int]
    better: int
    """Seeds in which the system has the better score."""
    difference: float
    """Mean over seeds of the system's score less the baseline's."""
    p: float
    """Of the paired bootstrap over sentences, the seeds pooled."""
    corrected: float
    """The same after Holm's correction for all systems that are compared with the baseline."""
    low: float
    """Of the middle 95 % of the differences on drawn test sets, of pooled scores."""
    high: float
    wins: float
    """Share of the drawn test sets on which the system is better, 0 to 1."""


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, min(values), max(values), len(values))


def pooled(seeds: Sequence[Measured]) -> Measured:
    """One system by one metric over all its seeds: what a sentence adds is the sum of what it adds in each."""
    first = seeds[0]
    rows = zip(*(one.sentences for one in seeds), strict=True)
    sums = [[math.fsum(column) for column in zip(*sentence, strict=True)] for sentence in rows]
    return Measured(first.name, first.signature, sums, first.value_of)


def holm(values: Sequence[float]) -> list[float]:
    """p-values of a family of tests so that few of those below a level are false (Holm 1979), in the same order.

    The k-th smallest of m, from 0, is multiplied by m - k; none comes out below one that was smaller, or above 1.
    """
    corrected, least = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        least = max(least, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = least
    return corrected


Seeds = dict[int, Measured]
"""A system by one metric, for each of its seeds."""


def against(systems: Sequence[Seeds], baseline: Seeds, samples: int, seed: int) -> list[Against | None]:
    """Each of ``systems`` beside the baseline; None where they have no seed in common."""
    common = [sorted(set(system) & set(baseline)) for system in systems]
    tests: list[Bootstrap | None] = [None] * len(systems)
    for seeds in {tuple(one) for one in common if one}:  # those of the same seeds are drawn once, and together
        places = [place for place, one in enumerate(common) if tuple(one) == seeds]
        other, *own = (pooled([system[one] for one in seeds]) for system in (baseline, *(systems[at] for at in places)))
        of_other, *of_own = bootstrap_scores([other, *own], samples, seed)
        for place, one, drawn in zip(places, own, of_own, strict=True):
            tests[place] = paired_bootstrap(one, other, drawn, of_other)
    corrected = iter(holm([test.p for test in tests if test is not None]))
    return [
        None if test is None else _beside(system, baseline, seeds, test, next(corrected))
        for system, seeds, test in zip(systems, common, tests, strict=True)
    ]


def _beside(system: Seeds, baseline: Seeds, seeds: list[int], test: Bootstrap, corrected: float) -> Against:
    gains = [system[one].score.value - baseline[one].score.value for one in seeds]
    better = sum(system[seeds[0]].better * gain > 0 for gain in gains)
    low, high = test.difference
    return Against(seeds, better, statistics.fmean(gains), test.p, corrected, low, high, test.wins)
