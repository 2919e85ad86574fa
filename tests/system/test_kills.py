"""kill -9 at random moments and at every named point of a save: the run goes on, to the same weights to the bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from harness import (
    Forked,
    Warm,
    assert_same_run,
    done,
    finish,
    start,
    steps,
    train_arguments,
    wait_until,
)

from s2s.checkpoint import load
from s2s.errors import CheckpointError

LONG = ("training.max_updates=240", "training.validate_every=40", "training.save_every=4")
POINTS = [
    f"checkpoint.{name}:kill9@2"
    for name in ("after_mkdir", "after_model", "after_optimizer", "after_state", "after_manifest", "before_rename",
                 "after_rename", "after_latest", "in_retention", "saved", "write")
]  # fmt: skip


def written(run: Path) -> int:
    """Bytes of the record of a run."""
    path = run / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def last(run: Path) -> int:
    """The step of the last whole record; 0 without one."""
    whole = (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1] if written(run) else []
    return int(json.loads(whole[-1])["step"]) if whole else 0


def wait_for_updates(run: Path, process: Forked, updates: int) -> float:
    """Wait until the process has recorded so many updates, or has ended; gives the time of the first."""
    before = written(run)
    while process.poll() is None and written(run) in (0, before):  # what no checkpoint knows goes first
        time.sleep(0.001)
    first, ready = last(run), time.monotonic()
    while process.poll() is None and last(run) < first + updates - 1:
        time.sleep(0.001)
    return ready


def valid(run: Path) -> list[int]:
    """The checkpoints that verify, ascending."""
    found = []
    for step in steps(run):
        try:
            found.append(load(run / "checkpoints" / f"step-{step:08d}").step)
        except CheckpointError as error:
            print(error)
    return found


@pytest.mark.fault("R1", "R7")
def test_five_kills_change_nothing(project: Path, new_run: Path, finished: Path) -> None:
    """Each in a new interpreter, at a random moment after a record was written."""
    generator = random.Random(0)
    for number in range(5):
        before = written(new_run)
        process = start(train_arguments(project, new_run))
        wait_until(lambda: written(new_run) not in (0, before), process)  # noqa: B023
        pause = generator.uniform(0, 0.1)
        time.sleep(pause)
        os.killpg(process.pid, signal.SIGKILL)
        outcome = finish(process)
        print(f"seed 0, kill {number} after {pause:.3f} s: {outcome}")  # shown if the test fails
        assert outcome.code == -signal.SIGKILL
    assert finish(start(train_arguments(project, new_run))).code == 0
    assert_same_run(new_run, finished)


@pytest.mark.slow
@pytest.mark.fault("R1", "R7")
@pytest.mark.parametrize(("config", "seed"), [("hard.yaml", 1), ("transformer.yaml", 2)])
def test_fifty_kills_change_nothing(project: Path, new_run: Path, warm: Warm, config: str, seed: int) -> None:
    """At any moment: one kill in five before training begins, the others up to ten updates and 0.1 s after it.

    A run that comes to its end between two kills is compared, and another one is begun.
    """
    reference = project / f"long-{config}"
    done(train_arguments(project, reference, *LONG, config=config))
    arguments = train_arguments(project, new_run, *LONG, config=config)
    generator = random.Random(seed)
    killed: list[int] = []
    ready = 0.5  # seconds from a start to its first record, as last seen
    while len(killed) < 50:
        early, updates, share = generator.random() < 0.2, generator.randint(1, 10), generator.random()
        process = warm.start(arguments)
        began = time.monotonic()
        if early:
            time.sleep(share * ready)
        else:
            ready = wait_for_updates(new_run, process, updates) - began
            time.sleep(0.1 * share)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        passed = time.monotonic() - began
        outcome = finish(process)
        print(f"seed {seed}, kill {len(killed)}: {passed:.3f} s after the start, at step {last(new_run)}; {outcome}")
        assert outcome.code in (0, -signal.SIGKILL), outcome
        if outcome.code:
            killed.append(last(new_run))
        else:
            assert_same_run(new_run, reference)
            shutil.rmtree(new_run)
    outcome = finish(warm.start(arguments))
    assert outcome.code == 0, outcome
    assert_same_run(new_run, reference)
    assert len(set(killed)) > 20, f"the kills did not spread over the run: {killed}"


@pytest.mark.slow
@pytest.mark.fault("R2", "R3")
def test_killed_at_every_point_of_a_save(project: Path, new_run: Path, finished: Path, warm: Warm) -> None:
    """The second save of every process dies at another point; also killed are the first update of all before and in its
    second batch, and the last of all."""
    arguments = train_arguments(project, new_run, "training.save_every=2", "training.keep_last=1")
    before = 0
    for points in ("batch:kill9@1", "batch:kill9@2", *POINTS, "batch:kill9@3"):
        outcome = finish(warm.start(arguments, points))
        assert outcome.code == -signal.SIGKILL, (points, outcome)
        there = valid(new_run) if points not in ("batch:kill9@1", "batch:kill9@2") else [0]
        assert there and there[-1] >= before, points
        before = there[-1]
    assert 20 < before < 40
    outcome = finish(warm.start(arguments, f"checkpoint.after_latest:kill9@{(40 - before) // 2 - 1}"))
    assert outcome.code == -signal.SIGKILL and valid(new_run)[-1] == 38  # one save before the end
    assert finish(warm.start(arguments)).code == 0
    assert_same_run(new_run, finished)


@pytest.mark.fault("R7")
def test_a_record_cut_off(project: Path, new_run: Path, finished: Path, warm: Warm) -> None:
    """What a crash leaves at the end of the record, half a line or lines of updates that no checkpoint knows, goes."""
    arguments = train_arguments(project, new_run)
    for rest in (b'{"step": 9, "loss"', b"\0\0\0\0", b'{"step": 23}', b'{"step": 31}\n{"step": 32}\n'):
        assert finish(warm.start(arguments, "batch:kill9@17")).code == -signal.SIGKILL
        with (new_run / "metrics.jsonl").open("ab") as file:
            file.write(rest)
    assert finish(warm.start(arguments)).code == 0
    assert_same_run(new_run, finished)
