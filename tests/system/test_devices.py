"""`s2s train --devices N` and torchrun itself: real launchers over real processes, killed, stopped, started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from harness import (
    COMMAND,
    Cli,
    assert_error,
    assert_same_run,
    digests,
    finish,
    losses,
    records,
    start,
    steps,
    train_arguments,
    wait_until,
)

from s2s.commands.launch import _ending

EACH = "batches.accumulate=1"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1",
            "-m", "s2s")  # fmt: skip


def process_of(launcher: subprocess.Popen[bytes], rank: int) -> int:
    """The number of the process of a rank that this launcher started; 0 where there is none."""
    for folder in Path("/proc").iterdir():
        try:
            mine = int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == launcher.pid
            if mine and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except (OSError, ValueError, IndexError):
            continue
    return 0


def is_alive(process: int) -> bool:
    """Whether there is such a process that does more than wait for its parent to take note of its end."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def updates(run: Path) -> int:
    """The updates that are recorded."""
    return len(losses(run)) if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size else 0


@pytest.mark.slow
@pytest.mark.fault("E1")
@pytest.mark.parametrize(("launcher", "rank"), [("torchrun", 1), ("devices", 1), ("devices", 0)])
def test_one_of_two_is_killed_and_both_go_on(
    project: Path, new_run: Path, finished: Path, launcher: str, rank: int
) -> None:
    """To the weights, moments, losses and scores of an undisturbed run; ``--overwrite`` holds for the first start."""
    old = "an older run"
    new_run.mkdir()
    (new_run / "run.json").write_text('{"id": "old"}')
    (new_run / old).touch()
    arguments = train_arguments(project, new_run, EACH, "--overwrite")
    if launcher == "torchrun":
        process = start(arguments, command=TORCHRUN)
    else:
        process = start([*arguments, "--devices", "2", "--max-restarts", "1"])
    wait_until(lambda: updates(new_run) >= 9, process)
    os.kill(process_of(process, rank), signal.SIGKILL)
    outcome = finish(process, timeout=400)
    assert outcome.code == 0, outcome
    assert "continuing from" in outcome.err and not (new_run / old).exists()
    assert_same_run(new_run, finished)


@pytest.mark.slow
@pytest.mark.fault("E1")
def test_killed_without_restarts(project: Path, new_run: Path) -> None:
    process = start([*train_arguments(project, new_run, EACH), "--devices", "2"])
    wait_until(lambda: updates(new_run) >= 9, process)
    os.kill(process_of(process, 1), signal.SIGKILL)
    outcome = finish(process, timeout=400)
    assert outcome.code == 6 and "Traceback" not in outcome.err, outcome
    assert "lost the others" in outcome.err or "process 1 was killed by SIGKILL" in outcome.err
    assert steps(new_run)[-1] >= 7


@pytest.mark.slow
@pytest.mark.fault("E2", "S11")
@pytest.mark.parametrize(
    ("number", "settings"), [(signal.SIGTERM, []), (signal.SIGINT, []), (signal.SIGUSR1, ["training.usr1=exit"])]
)
def test_a_signal_to_the_launcher_saves(
    project: Path, new_run: Path, finished: Path, cli: Cli, number: signal.Signals, settings: list[str]
) -> None:
    """It is passed on, told once, and the exit code is that of one process."""
    process = start([*train_arguments(project, new_run, EACH, *settings), "--devices", "2"])
    wait_until(lambda: updates(new_run) >= 3, process)
    process.send_signal(number)
    outcome = finish(process, timeout=400)
    last = steps(new_run)[-1]
    assert_error(outcome, 128 + number, f"stopped by {number.name} at step {last}; saved")
    assert "torch" not in outcome.err, "the launcher has nothing to add"
    assert len(losses(new_run)) == last < 40
    assert finish(start([*train_arguments(project, new_run, EACH), "--devices", "2"]), timeout=400).code == 0
    assert digests(new_run) == digests(finished)


@pytest.mark.slow
@pytest.mark.fault("E1", "S11")
@pytest.mark.parametrize(
    ("number", "code", "parts"),
    [
        (signal.SIGKILL, -9, ("process 0 of 2 lost the others", "goes on from the last checkpoint")),
        (signal.SIGQUIT, 131, ("stopped by SIGQUIT, without saving", "continue with the same command")),
    ],
)
def test_a_launcher_that_is_gone_leaves_no_process(
    project: Path, new_run: Path, number: signal.Signals, code: int, parts: Sequence[str]
) -> None:
    """Those of a killed one end at the next save, in words; SIGQUIT, which a terminal can send, ends them at once."""
    arguments = train_arguments(project, new_run, EACH, "training.max_updates=100000", "training.validate_every=100000")
    process = start([*arguments, "--devices", "2"])
    wait_until(lambda: updates(new_run) >= 9, process)
    ranks = [process_of(process, rank) for rank in (0, 1)]
    process.send_signal(number)
    outcome = finish(process)  # the end of what all of them may write
    assert outcome.code == code and all(part in outcome.err for part in parts), outcome
    assert "Traceback" not in outcome.err and "frame #" not in outcome.err
    end = time.monotonic() + 30
    while any(is_alive(rank) for rank in ranks):  # what they could write to is closed a moment before they are gone
        assert time.monotonic() < end, "a process is left"
        time.sleep(0.01)
    assert steps(new_run)[-1] >= 7


@pytest.mark.slow
def test_usr1_does_not_end_the_launcher(project: Path, new_run: Path, finished: Path) -> None:
    process = start([*train_arguments(project, new_run, EACH), "--devices", "2"])
    wait_until(lambda: updates(new_run) >= 3, process)
    process.send_signal(signal.SIGUSR1)
    outcome = finish(process, timeout=400)
    assert outcome.code == 0 and "USR1 does nothing here" in outcome.err, outcome
    assert_same_run(new_run, finished)


@pytest.mark.slow
@pytest.mark.fault("E6")
def test_torchrun_leaves_what_one_process_leaves(project: Path, new_run: Path, finished: Path) -> None:
    outcome = finish(start(train_arguments(project, new_run, EACH), command=TORCHRUN), timeout=400)
    assert outcome.code == 0, outcome
    assert outcome.err.count("done: 40/40 updates") == 1
    assert_same_run(new_run, finished)
    assert len(records(new_run)) == len(records(finished))


def test_options_that_do_not_fit(project: Path, new_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = train_arguments(project, new_run)
    assert_error(cli(*arguments, "--max-restarts", "1"), 2, "--max-restarts: belongs to --devices")
    assert_error(cli(*arguments, "--devices", "2", "model.droput=1"), 2, "droput")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_error(cli(*arguments, "--devices", "2"), 2, "--devices: a launcher started this process already")
    assert not new_run.exists()


def test_the_exit_code_of_the_launcher() -> None:
    """That of the process which failed first, who has said why; one that was killed could not."""
    ended = _ending(1, 143, "")
    assert (ended.code, ended.told) == (143, True)
    killed = _ending(1, -signal.SIGKILL, "see why")
    assert (killed.code, killed.told) == (6, False)
    assert "process 1 was killed by SIGKILL" in str(killed)


def test_help_names_the_options_without_torch() -> None:
    """Parsing needs no torch."""
    script = "import sys; from s2s import cli; cli.run(['train', '--help']); assert 'torch' not in sys.modules"
    found = subprocess.run([COMMAND[0], "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert "--devices" in found.stdout and "--max-restarts" in found.stdout
