"""Models by the paths that a user gives, also of a run that is still training, and their settings of search."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch

from s2s import config as configuration
from s2s.errors import CheckpointError, UsageError
from s2s.interfaces import Searchable
from s2s.models.ensemble import Ensemble
from s2s.run import Trained, load_trained, run_of
from s2s.search.beam import SearchSettings

_TRIES = 20
"""How often a checkpoint is looked for that a running training replaces meanwhile."""
_SHOWN = 10
"""Runs that a message lists."""


def require_models(models: Sequence[Path]) -> None:
    """Raises UsageError, which lists the runs that are there, where no model is given."""
    if not models:
        raise UsageError("--model", "none is given", runs_near(Path("runs")) or "give the directory of a run")


def load(path: Path, device: torch.device, which: str = "best") -> Trained:
    """As `load_trained`, and what a running training replaces under the reader's hands is looked for again.

    Where the path is no run, the error lists the runs that are there.
    """
    for _ in range(_TRIES):
        before = _named(path, which)
        try:
            trained = load_trained(path, device, which)
        except CheckpointError as error:
            if _named(path, which) != before:
                continue
            choices = runs_near(path)
            raise CheckpointError(error.where, error.what, choices) if choices else error from None
        # Between listing the checkpoints and reading the name of the best, that name may have changed.
        if _named(path, which) == before or f"step-{trained.update:08d}" in (before, _named(path, which)):
            return trained
    raise CheckpointError(path, "its checkpoints are replaced faster than they can be read", "give --checkpoint step-N")


def together(
    trained: Sequence[Trained], paths: Sequence[Path], average: Literal["probability", "log"] = "probability"
) -> Searchable:
    """One model, or an ensemble. Raises CheckpointError where vocabularies differ."""
    for other, path in zip(trained[1:], paths[1:], strict=True):
        if other.tokenizers.fingerprint != trained[0].tokenizers.fingerprint:
            raise CheckpointError(path, f"its vocabulary is not that of {paths[0]}", "ensembles share one vocabulary")
    return trained[0].model if len(trained) == 1 else Ensemble([one.model for one in trained], average)


def search_settings(path: Path, changes: Sequence[str]) -> SearchSettings:
    """The ``search`` section of the run at ``path`` with ``KEY=VALUE`` changes, checked as the file is.

    Raises ConfigError with every mistake.
    """
    return configuration.load(run_of(path).config, [f"search.{change}" for change in changes]).search


def runs_near(path: Path) -> str:
    """Which runs there are in this directory, or where it would be; nothing where it is a run itself."""
    with suppress(CheckpointError):
        run_of(path)
        return ""
    folder = path if path.is_dir() else path.parent
    with suppress(OSError):
        runs = sorted(child for child in folder.iterdir() if (child / "checkpoints").is_dir())
        more = f" and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN else ""
        return f"the runs here are {', '.join(map(str, runs[:_SHOWN]))}{more}" if runs else ""
    return ""


def _named(path: Path, which: str) -> str | None:
    """The checkpoint that a run's pointer names; None where ``which`` is no pointer of it."""
    with suppress(OSError, UnicodeDecodeError):
        return (path / which).read_text(encoding="ascii").strip()
    return None
