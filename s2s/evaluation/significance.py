"""Could the difference between two systems be chance? Paired bootstrap and approximate randomisation.

Both ask how much a corpus score moves when the test set does, and need of a system only what each sentence adds to the
sums of the score (`Measured`). The definitions are those of Riezler and Maxwell (2005), figures 1 and 2, with their "at
least as large": systems that do not differ get p = 1. ``sacrebleu.significance`` counts "larger" instead, which gives
such systems the smallest p there is; apart from ties its p-values, draws and intervals are these.

    bootstrap      p = (1 + #{b: |d_b| - mean |d| >= |d_0|}) / (1 + B)    B test sets, n sentences drawn from n each
    randomisation  p = (1 + #{r: |d_r| >= |d_0|}) / (1 + R)               R times two translations swapped by coins

d is the score of the system less that of the baseline, d_0 on the test set as it is. ``wins`` is Koehn's (2004) number:
the share of the drawn test sets on which the system is better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from s2s.evaluation.scores import Measured

SEED = 12345
"""sacreBLEU's."""
SAMPLES, TRIALS = 1000, 10_000
CONFIDENCE = 0.95

_CELLS = 1 << 22
"""Numbers of a matrix of draws that is held at a time."""
_WORD = 32
"""Coins that one draw of the generator gives: blocks of so many rows draw what one matrix of all rows would."""
_TIE = 1e-9
"""Points of a score; differences closer than this are equal but for rounding."""

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """The middle 95 % of what was drawn."""

    low: float
    high: float


class Bootstrap(NamedTuple):
    """What the drawn test sets say of a system and its baseline."""

    p: float
    wins: float
    """Share of the drawn test sets on which the system is better, 0 to 1."""
    losses: float
    """Share on which it is worse."""
    difference: Interval
    """Of the system's score less the baseline's."""


def bootstrap_scores(measured: Sequence[Measured], samples: int = SAMPLES, seed: int = SEED) -> Floats:
    """The score of each of ``measured`` on the same ``samples`` drawn test sets: (len(measured), samples)."""
    blocks = [_scores(measured, drawn @ _columns(measured)) for drawn in _draws(_size(measured), samples, seed)]
    return np.concatenate(blocks, axis=1)


def interval(scores: Floats) -> Interval:
    """The 95 % percentile interval of drawn scores (samples,), at sacreBLEU's ranks."""
    ordered = np.sort(scores)
    cut = len(ordered) // 40
    return Interval(float(ordered[cut]), float(ordered[-1 - cut]))


def paired_bootstrap(system: Measured, baseline: Measured, drawn: Floats, drawn_baseline: Floats) -> Bootstrap:
    """Compare by the scores of both, each (samples,), on the same drawn test sets; see `bootstrap_scores`."""
    differences = drawn - drawn_baseline
    sizes = np.abs(differences)
    gains = system.better * differences
    return Bootstrap(
        _share(sizes - sizes.mean(), _difference(system, baseline)),
        float(np.mean(gains > _TIE)),
        float(np.mean(gains < -_TIE)),
        interval(differences),
    )


def approximate_randomisation(
    systems: Sequence[Measured], baselines: Sequence[Measured], trials: int = TRIALS, seed: int = SEED
) -> list[float]:
    """The p-value of each system against the baseline at the same place, by the same ``trials`` rounds of coins."""
    own, other = _columns(systems), _columns(baselines)
    blocks = []
    for coins in _coins(_size(systems), trials, seed):
        moved = coins @ (other - own)
        swapped = _scores(systems, own.sum(0) + moved) - _scores(baselines, other.sum(0) - moved)
        blocks.append(np.abs(swapped))
    differences = np.concatenate(blocks, axis=1)
    pairs = zip(systems, baselines, differences, strict=True)
    return [_share(sizes, _difference(system, baseline)) for system, baseline, sizes in pairs]


def _difference(system: Measured, baseline: Measured) -> float:
    return abs(system.score.value - baseline.score.value)


def _share(sizes: Floats, observed: float) -> float:
    """The share that is at least as large; what was observed counts as one of them, so that it is never 0."""
    return (int(np.sum(sizes >= observed - _TIE)) + 1) / (len(sizes) + 1)


def _size(measured: Sequence[Measured]) -> int:
    return len(measured[0].sentences)


def _columns(measured: Sequence[Measured]) -> Floats:
    """What every sentence adds, all of ``measured`` side by side: (sentences, columns)."""
    return np.hstack([np.asarray(one.sentences, dtype=np.float64) for one in measured])


def _scores(measured: Sequence[Measured], sums: Floats) -> Floats:
    """Rows of sums (rows, columns), in the order of `_columns`, to scores: (len(measured), rows)."""
    ends = np.cumsum([len(one.sentences[0]) for one in measured])[:-1]
    parts = zip(measured, np.split(sums, ends, axis=1), strict=True)
    return np.array([[one.value_of(row) for row in part.tolist()] for one, part in parts])


def _rows(total: int, sentences: int) -> Iterator[int]:
    """``total`` in blocks that fit into memory."""
    block = max(_CELLS // sentences // _WORD, 1) * _WORD
    while total > 0:
        yield min(block, total)
        total -= block


def _draws(sentences: int, samples: int, seed: int) -> Iterator[Floats]:
    """How often each sentence is in each drawn test set: blocks of (rows, sentences)."""
    random = np.random.default_rng(seed)
    for rows in _rows(samples, sentences):
        drawn = random.choice(sentences, size=(rows, sentences), replace=True)
        cells = drawn + sentences * np.arange(rows)[:, None]
        counts = np.bincount(cells.ravel(), minlength=rows * sentences)
        yield counts.reshape(rows, sentences).astype(np.float64)


def _coins(sentences: int, trials: int, seed: int) -> Iterator[Floats]:
    """1 where a sentence's translations are swapped: blocks of (rows, sentences)."""
    random = np.random.default_rng(seed)
    for rows in _rows(trials, sentences):
        yield random.integers(2, size=(rows, sentences), dtype=bool).astype(np.float64)
