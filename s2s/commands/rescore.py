"""`s2s rescore`: lists of translations ranked again by models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from s2s.commands.models import require_models
from s2s.commands.output import results, write
from s2s.commands.pairs import Normalise, score_of, scorer_of, tell_too_long
from s2s.data.nbest import NBest, read_nbest, written
from s2s.data.parallel import require_equal_lines
from s2s.data.text import NOT_STRICT, Invalid, TextCounts, read_lines
from s2s.errors import UsageError
from s2s.progress import warn
from s2s.search.rescore import Judge, Rescorer


def rescore(
    models: Sequence[Path],
    nbest: Path,
    source: Path | None = None,
    output: Path | None = None,
    *,
    weights: Sequence[float] = (),
    given: float = 1.0,
    normalise: Normalise = "search",
    overwrite: bool = False,
    checkpoint: str = "best",
    device: str = "auto",
    batch_tokens: int | None = None,
    strict: bool = False,
) -> None:
    """Write the lists in the format that they came in, ranked by ``given`` x their scores + weights x the models'.

    ``weights``: one for each model, by default 1. ``source``: the lines that were translated; a list in JSON may say
    its own.
    """
    require_models(models)
    if weights and len(weights) != len(models):
        what = f"{len(weights)} weights for {len(models)} models"
        raise UsageError("--weight", what, "give one for each --model, in their order, or none")
    for name, value in (("--given", given), *(("--weight", weight) for weight in weights)):
        if not math.isfinite(value):
            raise UsageError(name, f"{value} is no weight", "give a finite number")
    form, lists = read_nbest(nbest)
    sink = results(output, overwrite, (nbest, source))
    judges = []
    for model, weight in zip(models, weights or [1.0] * len(models), strict=True):
        scorer = scorer_of(
            [model], checkpoint=checkpoint, device=device, batch_tokens=batch_tokens, normalise=normalise
        )
        if scorer.sentences_before:
            what = "reads the sentences before each, and a list of translations belongs to one sentence"
            raise UsageError(model, what, "rescore with models that read sentence by sentence")
        judges.append(Judge(scorer, partial(score_of, scorer=scorer), weight))
    counts, rescorer = TextCounts(), Rescorer(judges, given)
    ranked = rescorer.rescore(_with_sources(lists, nbest, source, counts, "error" if strict else "replace"))
    write(sink, (written(one, form) for one in ranked), ("rescoring", "rescored", "lists"))
    for warning in counts.warnings():
        warn(warning)
    for judge in judges:
        tell_too_long(judge.scorer, "could not be scored")
    if rescorer.left:
        warn(f"{rescorer.left} lists hold a translation that could not be scored, and stay as they were")


def _with_sources(
    lists: Iterator[NBest], nbest: Path, source: Path | None, counts: TextCounts, invalid: Invalid
) -> Iterator[tuple[NBest, str | None]]:
    """Every list with its source line. Raises UsageError where it has none, DataError for other numbers of lines."""
    if source is None:
        for found in lists:
            if found.source is None:
                raise UsageError(nbest, "does not say what was translated", "give --source FILE")
            yield found, found.source
        return
    lines = read_lines(source, counts=counts, invalid=invalid, remedy=NOT_STRICT, allow_pipe=True)
    last = 0
    for found in lists:
        line = next(lines, "")
        if counts.lines >= found.line:
            yield found, line
        last = found.line
    for _ in lines:
        pass
    require_equal_lines((str(source), counts.lines), (f"{nbest}, counted in lists,", last))
