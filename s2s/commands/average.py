"""`s2s average`: one model whose weights are the mean of a run's last, or best, checkpoints."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from s2s.checkpoint import Checkpoints, Snapshot, average, checkpoints_of, load_model, replace_file, require
from s2s.errors import UsageError
from s2s.progress import say, warn
from s2s.run import Run

_LAST = 5


def average_checkpoints(source: Path, output: Path, last: int | None = None, best: int | None = None) -> None:
    """Write the mean of some checkpoints of a run as a run of its own that translates and is scored.

    The ``last`` newest (by default 5), or the ``best`` by the run's own validation. Raises UsageError for both at once,
    if there are not so many, or if ``output`` exists.
    """
    if last is not None and best is not None:
        raise UsageError("average", "--last and --best were both given", "choose one")
    if output.exists():
        raise UsageError(output, "exists", "give another --output")
    found = checkpoints_of(source, warn)
    steps = _newest(source, found, last or _LAST) if best is None else _best(source, found, best)
    mean = average(load_model(found[step]).snapshot.model for step in steps)
    newest = load_model(found[steps[-1]])
    run, identity = Run(output), uuid.uuid4().hex
    output.mkdir(parents=True)
    try:
        replace_file(output / "run.json", json.dumps({"id": identity}).encode() + b"\n")
        shutil.copy(Run(source).config, run.config)
        shutil.copytree(Run(source).tokenizer, run.tokenizer)
        state = newest.snapshot.state | {"averaged": steps}
        checkpoints = Checkpoints(output, identity, keep_last=1)
        checkpoints.save(newest.step, Snapshot(mean, {}, state), is_best=True)
    except BaseException:  # half a run would be in the way of the next try
        shutil.rmtree(output, ignore_errors=True)
        raise
    say(f"averaged updates {', '.join(map(str, steps))} into {output}")


def _newest(source: Path, found: Mapping[int, Path], count: int) -> list[int]:
    """The newest updates that there are checkpoints of, ascending."""
    if len(found) < count:
        what = f"has {len(found)} checkpoints, not {count}"
        raise UsageError(source, what, "train with a larger training.keep_last, or average fewer")
    return list(found)[-count:]


def _best(source: Path, found: Mapping[int, Path], count: int) -> list[int]:
    """The updates of the checkpoints that were best when the run validated them, ascending; ties to the earlier."""
    scores = {step: _score(path) for step, path in found.items()}
    ranked = sorted((-score, step) for step, score in scores.items() if score is not None)
    if len(ranked) < count:
        what = f"has {len(ranked)} checkpoints that were validated, not {count}"
        raise UsageError(source, what, "train with a larger training.keep_best, or average fewer")
    return sorted(step for _, step in ranked[:count])


def _score(checkpoint: Path) -> float | None:
    """What a checkpoint's validation gave, higher being better; None where there was none."""
    own = require(load_model(checkpoint).snapshot.state, "checkpoint", dict)
    return None if own.get("score") is None else require(own, "score", float)
