"""What the commands that look at given translations share: models that score, and what is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from s2s.commands.models import load, search_settings, together
from s2s.errors import CheckpointError
from s2s.progress import warn
from s2s.search.beam import length_penalty
from s2s.search.score import Force, Scored, Scorer, force_at_once, force_by_steps
from s2s.search.translate import gives_attention
from s2s.training.trainer import resolve_device

Normalise = Literal["search", "none", "average", "gnmt"]
"""The length penalty of scores; ``search``: the one in the run's settings of search."""


def scorer_of(
    models: Sequence[Path],
    *,
    checkpoint: str,
    device: str,
    batch_tokens: int | None = None,
    normalise: Normalise = "search",
    attention: bool = False,
) -> Scorer:
    """One model, or several as an ensemble, ready to score; the settings of search are those of the first.

    ``attention``: keep it. Raises CheckpointError where the model has none.
    """
    where = resolve_device(device)
    trained = [load(path, where, checkpoint) for path in models]
    changes = [] if normalise == "search" else [f"length_penalty={normalise}"]
    changes += [] if batch_tokens is None else [f"batch_tokens={batch_tokens}"]
    model = together(trained, models)
    if attention and not gives_attention(model, where):
        raise CheckpointError(models[0], "has no attention", "use a model with attention")
    force: Force = partial(force_by_steps, model)
    if len(trained) == 1:
        force = partial(force_at_once, trained[0].model)
    settings = search_settings(models[0], changes)
    if normalise == "search" and (settings.coverage_penalty or settings.repetition_penalty > 1):
        warn(f"{models[0]}: scores leave out its search.coverage_penalty and search.repetition_penalty")
    reads = model.sentences_before
    return Scorer(force, trained[0].tokenizers, settings, where, attention=attention, sentences_before=reads)


def score_of(scored: Scored, scorer: Scorer) -> float:
    """What a pair is given as its score: the log-probability over the length penalty."""
    return scored.log_probability / float(length_penalty(torch.tensor(scored.length), scorer.settings))


def tell_too_long(scorer: Scorer, what: str) -> None:
    """Warn of pairs that were too long to be scored."""
    if scorer.too_long:
        limit = f"search.max_source_length, {scorer.settings.max_source_length} pieces on a side"
        warn(f"{scorer.too_long} pairs are longer than {limit}, and {what}")
