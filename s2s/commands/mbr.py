"""`s2s mbr`: of lists of translations or samples, the translation that is most like the others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from s2s.commands.pairs import results, write
from s2s.data.nbest import NBest, read_nbest, written
from s2s.data.text import printable_output
from s2s.search.mbr import Utility, UtilityName, Weighting, expected_utilities, probabilities, sentence_utility

Format = Literal["text", "tsv", "jsonl"]


def mbr(
    nbest: Path,
    output: Path | None = None,
    *,
    utility: UtilityName = "chrf",
    weights: Weighting = "uniform",
    kind: Format = "text",
    overwrite: bool = False,
) -> None:
    """Write one translation a line (``kind`` text), or the lists ranked by expected utility, which is their score."""
    _, lists = read_nbest(nbest)
    measure = sentence_utility(utility)
    ranked = (_ranked(found, measure, weights) for found in lists)
    sink = results(output, overwrite, (nbest,))
    write(sink, (_shown(one, kind) for one in ranked), ("comparing", "compared", "lists"))


def _shown(ranked: NBest, kind: Format) -> Iterable[str]:
    return [printable_output(ranked.hypotheses[0].text)] if kind == "text" else written(ranked, kind)


def _ranked(found: NBest, utility: Utility, weighting: Weighting) -> NBest:
    counted = probabilities([one.score for one in found.hypotheses], weighting)
    return found.ranked(expected_utilities([one.text for one in found.hypotheses], counted, utility))
