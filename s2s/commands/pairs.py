"""What the commands that look at given translations share: models that score, and results written as they come."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Literal

from s2s.commands.models import load, search_settings
from s2s.commands.stop import Stop
from s2s.commands.translate import Output, standard_output, together
from s2s.data.text import OutputFile
from s2s.progress import Meter, say, warn
from s2s.search.beam import _penalty
from s2s.search.score import Force, Scored, Scorer, force_at_once, force_by_steps
from s2s.training.trainer import resolve_device

_FLUSH = 1.0
"""Seconds after which finished lines are handed on."""

Normalise = Literal["search", "none", "average", "gnmt"]
"""The length penalty of scores; ``search``: the one in the run's settings of search."""
Sink = AbstractContextManager[Output | OutputFile]


def scorer_of(
    models: Sequence[Path],
    *,
    checkpoint: str,
    device: str,
    batch_tokens: int | None = None,
    normalise: Normalise = "search",
    attention: bool = False,
) -> Scorer:
    """One model, or several as an ensemble, ready to score; the settings of search are those of the first."""
    where = resolve_device(device)
    trained = [load(path, where, checkpoint) for path in models]
    changes = [] if normalise == "search" else [f"length_penalty={normalise}"]
    changes += [] if batch_tokens is None else [f"batch_tokens={batch_tokens}"]
    model = together(trained, models)  # refuses models that do not share a vocabulary
    force: Force = partial(force_by_steps, model)
    if len(trained) == 1:
        force = partial(force_at_once, trained[0].model)
    settings = search_settings(models[0], changes)
    if normalise == "search" and (settings.coverage_penalty or settings.repetition_penalty > 1):
        warn(f"{models[0]}: scores leave out its search.coverage_penalty and search.repetition_penalty")
    return Scorer(force, trained[0].tokenizers, settings, where, attention=attention)


def score_of(scored: Scored, scorer: Scorer) -> float:
    """What a pair is given as its score: the log-probability over the length penalty."""
    return scored.log_probability / float(_penalty(scored.length, scorer.settings))


def results(output: Path | None, overwrite: bool, inputs: Sequence[Path | None]) -> Sink:
    """Where lines of results go: a file or, by default, standard output."""
    if output is None:
        return nullcontext(standard_output())
    return OutputFile(output, overwrite=overwrite, inputs=[path for path in inputs if path is not None])


def write(sink: Sink, items: Iterable[Iterable[str]], words: tuple[str, str, str]) -> None:
    """Write the lines of every item as it comes, and tell the speed; ``words`` as ("scoring", "scored", "pairs").

    Raises Stopped where a signal ended it; what was finished is written.
    """
    title, finished, units = words
    began = flushed = time.monotonic()
    with sink as out, Stop(lambda: f"after {meter.done} {units}") as stop, Meter(title, None) as meter:
        try:
            for lines in items:
                with stop.held():
                    for line in lines:
                        out.write_line(line)
                    meter.advance()
                if time.monotonic() - flushed >= _FLUSH:
                    out.flush()
                    flushed = time.monotonic()
        finally:
            out.flush()
    seconds = time.monotonic() - began
    if meter.done:
        say(f"{finished} {meter.done} {units} in {seconds:.1f} s ({meter.done / seconds:.1f} {units}/s)")


def tell_too_long(scorer: Scorer, what: str) -> None:
    """Warn of pairs that were too long to be scored."""
    if scorer.too_long:
        limit = f"search.max_source_length, {scorer.settings.max_source_length} pieces on a side"
        warn(f"{scorer.too_long} pairs are longer than {limit}, and {what}")
