"""Trains every recipe of configs/dates with several seeds and tabulates what came out; rows land as they are made.

    python scripts/compare_dates.py                    every recipe, seeds 1 to 3; what is there already is kept
    python scripts/compare_dates.py monotonic none --seeds 1
    python scripts/compare_dates.py --table            only write docs/results-dates.md from docs/results/dates

Needs the corpus: python scripts/get_dates.py. Exact match is on the test split, by greedy search; what is said of
attention is under the reference, in evaluation mode.
"""

from __future__ import annotations

import itertools
import statistics

import numpy as np
from comparison import ENTROPY, EXACT, PARAMETERS, Column, Comparison, Reading, Row

from s2s.analysis.alignment import entropy
from s2s.run import Trained

INTRODUCTION = """# Mechanism by mechanism on dates

Written by `python scripts/compare_dates.py --table` from the files in `docs/results/dates`. Dates as people write them
to ISO dates, character by character (`wednesday, may 29, 1974` to `1974-05-29`), 37,578 pairs to learn from; test
split, 2,000 dates, none of them in training; mean over seeds, with the lowest and highest where there are several. Each
recipe is a few lines over `configs/dates/base.yaml` (LSTMs of width 64, the encoder's in both directions; 1,500
updates, some minutes on one core).

Entropy is that of the weights, in nats. *First* and *last* are where the most read character of the first and of the
last step (the end of sentence) stands, 0 for the first and 1 for the last position of the source; *back* is the share
of steps whose most read character stands before that of the step before.

ISO dates turn round what these dates say: the year comes last and is written first. A mechanism that cannot go back
still can do it, since the encoder reads in both directions: what stands at one position can tell of the whole date.
`none` has only the decoder's first state to tell of it, which these few updates do not teach to hold ten characters:
its validation loss was still falling when training ended.
"""


def path_of_reading(trained: Trained, found: list[Reading]) -> Row:
    """Entropy, and where attention goes; empty without attention."""
    if not found:
        return {}
    back = steps = 0
    first, last = [], []
    for reading in found:
        read = [int(np.argmax(row)) for row in reading.weights if row.any()]  # a scan that found nothing reads nothing
        if read:
            end = reading.weights.shape[1] - 1
            first.append(read[0] / end)
            last.append(read[-1] / end)
            back += sum(now < before for before, now in itertools.pairwise(read))
            steps += len(read) - 1
    return {
        "entropy": statistics.fmean(value for reading in found for value in entropy(reading.weights).tolist()),
        "first": statistics.fmean(first),
        "last": statistics.fmean(last),
        "back": back / steps,
    }


DATES = Comparison(
    "dates",
    INTRODUCTION,
    (
        EXACT,
        ENTROPY,
        Column("first", lambda row: row.get("first"), ".2f"),
        Column("last", lambda row: row.get("last"), ".2f"),
        Column("back", lambda row: row.get("back"), ".3f"),
        Column("updates", lambda row: row["updates"], ",.0f", spread=False),
        PARAMETERS,
    ),
    path_of_reading,
)

if __name__ == "__main__":
    DATES.main(__doc__)
