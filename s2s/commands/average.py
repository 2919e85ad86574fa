"""`s2s average`: one model whose weights are the mean of a run's last checkpoints."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

from s2s.checkpoint import Checkpoints, Snapshot, average, load_model, replace_file
from s2s.errors import UsageError
from s2s.progress import say
from s2s.run import Run, steps_of


def average_checkpoints(source: Path, output: Path, last: int) -> None:
    """Write the mean of the ``last`` newest checkpoints of a run as a run of its own that translates and is scored.

    Raises UsageError if there are not so many, or if ``output`` exists.
    """
    steps = steps_of(source)
    if len(steps) < last:
        what = f"has {len(steps)} checkpoints, not {last}"
        raise UsageError(source, what, "train with a larger training.keep_last, or average fewer")
    if output.exists():
        raise UsageError(output, "exists", "give another --output")
    chosen = [load_model(source, f"step-{step:08d}") for step in steps[-last:]]
    mean = average([one.snapshot.model for one in chosen])
    run, identity = Run(output), uuid.uuid4().hex
    output.mkdir(parents=True)
    replace_file(output / "run.json", json.dumps({"id": identity}).encode() + b"\n")
    shutil.copy(Run(source).config, run.config)
    shutil.copytree(Run(source).tokenizer, run.tokenizer)
    state = chosen[-1].snapshot.state | {"averaged": [one.step for one in chosen]}
    checkpoints = Checkpoints(output, identity, keep_last=1)
    checkpoints.save(chosen[-1].step, Snapshot(mean, {}, state), is_best=True)
    say(f"averaged updates {', '.join(str(one.step) for one in chosen)} into {output}")
