"""`s2s mbr`: of lists of translations or samples, the translation that is most like the others."""

from __future__ import annotations

from pathlib import Path

from s2s.commands.output import results, write
from s2s.data.nbest import Form, NBest, read_nbest, written
from s2s.search.mbr import Utility, UtilityName, Weighting, expected_utilities, probabilities, sentence_utility


def mbr(
    nbest: Path,
    output: Path | None = None,
    *,
    utility: UtilityName = "chrf",
    weights: Weighting = "uniform",
    form: Form = "text",
    overwrite: bool = False,
) -> None:
    """Write one translation a line (``form`` text), or the lists ranked by expected utility, which is their score."""
    _, lists = read_nbest(nbest)
    measure = sentence_utility(utility)
    ranked = (_ranked(found, measure, weights) for found in lists)
    sink = results(output, overwrite, (nbest,))
    write(sink, (written(one, form) for one in ranked), ("comparing", "compared", "lists"))


def _ranked(found: NBest, utility: Utility, weighting: Weighting) -> NBest:
    counted = probabilities([one.score for one in found.hypotheses], weighting)
    return found.ranked(expected_utilities([one.text for one in found.hypotheses], counted, utility))
