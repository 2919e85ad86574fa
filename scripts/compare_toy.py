"""Trains every recipe of configs/toy with several seeds and tabulates what came out; rows land as they are made.

    python scripts/compare_toy.py                      every recipe, seeds 1 to 3; what is there already is kept
    python scripts/compare_toy.py bahdanau local-p --seeds 1
    python scripts/compare_toy.py --table              only write docs/results-toy.md from docs/results/toy

BLEU and exact match are on the test split; the alignment error rate (AER) against its gold word links comes from the
attention under the reference translation, pieces merged to words, one link per German word, with the rows taken as
they are (shift 0) and one later (shift 1); see docs/attention.md.
"""

from __future__ import annotations

import statistics

from comparison import BLEU, ENTROPY, EXACT, PARAMETERS, ROOT, SPEED, Column, Comparison, Reading, Row

from s2s.analysis.alignment import aer, entropy, links_from_weights, merge_words, read_links
from s2s.run import Trained

LINKS = ROOT / "data" / "toy" / "test.align"
INTRODUCTION = """# Mechanism by mechanism on the embedded corpus

Written by `python scripts/compare_toy.py --table` from the files in `docs/results/toy`. Test split, 300 sentences;
mean over seeds, with the lowest and highest where there are several. BLEU is sacreBLEU `{signature}`. AER is against
the gold links, with the reference given (shift 0 / shift 1: see docs/attention.md). Entropy is that of the weights over
pieces, in nats. Speed is of training with the threads that the file names, mostly on a machine that did other work:
take it as rough; `python scripts/bench/speed.py --mechanisms` measures speed alone.
"""


def alignment(trained: Trained, readings: list[Reading]) -> Row:
    """AER with both shifts, and the entropy, of attention under the reference translations; empty without attention."""
    if not readings:
        return {}
    predicted: dict[int, list[set[tuple[int, int]]]] = {0: [], 1: []}
    for source, target, weights in readings:
        source_words, target_words = trained.tokenizers.source.words(source), trained.tokenizers.target.words(target)
        for shift, rows in predicted.items():
            shown = weights[shift : shift + len(target)]
            rows.append(links_from_weights(merge_words(shown, source_words, target_words)))
    gold = read_links(LINKS)
    sure, possible = [one.sure for one in gold], [one.possible for one in gold]
    return {
        "entropy": statistics.fmean(value for reading in readings for value in entropy(reading.weights).tolist()),
        "aer": {str(shift): aer(sure, possible, rows).aer for shift, rows in predicted.items()},
    }


TOY = Comparison(
    "toy",
    INTRODUCTION,
    (
        BLEU,
        EXACT,
        Column("AER shift 0", lambda row: row["aer"]["0"] if "aer" in row else None, ".3f"),
        Column("AER shift 1", lambda row: row["aer"]["1"] if "aer" in row else None, ".3f"),
        ENTROPY,
        SPEED,
        PARAMETERS,
    ),
    alignment,
)


if __name__ == "__main__":
    TOY.main(__doc__)
