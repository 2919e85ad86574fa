"""Signals: the update in progress is finished and saved, the exit code is 128 + n, and the same command goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import (
    UPDATES,
    Cli,
    Warm,
    assert_same_run,
    finish,
    losses,
    start,
    steps,
    train_arguments,
    validations,
    wait_until,
    write_project,
)

import s2s.commands.train
from s2s.training.signals import Signals
from s2s.training.trainer import Trainer


def begun(run: Path) -> bool:
    """Whether an update has been recorded."""
    path = run / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


@pytest.mark.fault("S1", "S3", "S5")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves(
    project: Path, new_run: Path, finished: Path, warm: Warm, cli: Cli, number: signal.Signals
) -> None:
    process = warm.start(train_arguments(project, new_run), "batch:sleep0.05@4+")  # or it might be over by then
    wait_until(lambda: begun(new_run), process)
    os.kill(process.pid, number)
    outcome = finish(process)
    assert outcome.code == 128 + number
    last = steps(new_run)[-1]
    assert 0 < last < UPDATES
    assert f"stopped by {number.name} at step {last}; saved {new_run}/checkpoints/step-{last:08d}" in outcome.err
    assert "Traceback" not in outcome.err
    assert losses(new_run)[-1][0] == last
    assert cli(*train_arguments(project, new_run)).code == 0
    assert_same_run(new_run, finished)


@pytest.mark.fault("S3")
def test_a_second_interrupt_ends_at_once(project: Path, new_run: Path, finished: Path, warm: Warm, cli: Cli) -> None:
    """The first one waits for the save, which is held up; the second does not, and the checkpoint before it is good."""
    process = warm.start(train_arguments(project, new_run), "checkpoint.after_state:sleep300@2")
    wait_until(lambda: steps(new_run) == [7] and any(new_run.glob("checkpoints/.tmp-*/state.json")), process)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    assert finish(process).code == 130
    assert steps(new_run) == [7]
    assert cli(*train_arguments(project, new_run)).code == 0
    assert_same_run(new_run, finished)


@pytest.mark.fault("S2")
@pytest.mark.parametrize("where", ["likelihood", "score_all"])
def test_a_signal_in_a_validation(
    project: Path, new_run: Path, finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Before its first batch it is left and done again on resume; after its last it is finished."""
    original = getattr(s2s.commands.train, where)

    def interrupted(*arguments: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(s2s.commands.train, where, interrupted)
        outcome = cli(*train_arguments(project, new_run))
    assert outcome.code == 143
    assert steps(new_run)[-1] == 10
    assert [step for step, _ in validations(new_run)] == ([] if where == "likelihood" else [10])
    assert cli(*train_arguments(project, new_run)).code == 0
    assert_same_run(new_run, finished)


@pytest.mark.fault("S2", "R7")
def test_a_validation_done_again_is_recorded_once(
    project: Path, new_run: Path, finished: Path, warm: Warm, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the validation of step 10, and killed between its record and the checkpoint that knows of it."""
    original = s2s.commands.train.likelihood

    def interrupted(*arguments: Any) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(s2s.commands.train, "likelihood", interrupted)
        assert cli(*train_arguments(project, new_run)).code == 143
    process = warm.start(train_arguments(project, new_run), "checkpoint.after_mkdir:kill9")
    assert finish(process).code == -signal.SIGKILL
    assert cli(*train_arguments(project, new_run)).code == 0
    assert_same_run(new_run, finished)


@pytest.mark.fault("S2")
def test_a_signal_before_the_first_update(
    project: Path, new_run: Path, finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.run

    def interrupted(trainer: Any) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", interrupted)
        outcome = cli(*train_arguments(project, new_run))
    assert outcome.code == 143
    assert "nothing to save yet" in outcome.err
    assert not (new_run / "checkpoints").exists()
    assert cli(*train_arguments(project, new_run)).code == 0
    assert_same_run(new_run, finished)


@pytest.mark.fault("S4")
def test_usr1_saves_and_goes_on(
    project: Path, new_run: Path, finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = s2s.commands.train.EpochData.batch
    saved: list[int] = []

    def asking(data: Any, *arguments: Any) -> Any:
        if len(saved) == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
        saved.extend(steps(new_run))
        return original(data, *arguments)

    monkeypatch.setattr(s2s.commands.train.EpochData, "batch", asking)
    assert cli(*train_arguments(project, new_run)).code == 0
    assert saved[0] == 1
    assert_same_run(new_run, finished)


@pytest.mark.fault("S4")
def test_usr1_may_end_the_run(project: Path, new_run: Path, finished: Path, warm: Warm, cli: Cli) -> None:
    """As a batch system asks that warns with USR1; the setting may change from one part of a run to the next."""
    arguments = train_arguments(project, new_run)
    outcome = finish(warm.start([*arguments, "training.usr1=exit"], "batch:sigusr1@11"))
    assert outcome.code == 138, outcome
    assert f"stopped by SIGUSR1 at step 6; saved {new_run}/checkpoints/step-00000006" in outcome.err
    assert steps(new_run) == [6]
    assert cli(*arguments).code == 0
    assert_same_run(new_run, finished)


@pytest.mark.fault("S5")
def test_nohup_is_respected(project: Path, new_run: Path, finished: Path) -> None:
    """A hang-up that is ignored at the start stays ignored."""
    process = start(train_arguments(project, new_run), preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_until(lambda: begun(new_run), process)
    process.send_signal(signal.SIGHUP)
    outcome = finish(process)
    assert outcome.code == 0, outcome
    assert_same_run(new_run, finished)


@pytest.mark.fault("S6")
def test_a_signal_to_the_whole_group(project: Path, new_run: Path, finished: Path, warm: Warm, cli: Cli) -> None:
    """Ctrl-C in a shell: one save, one line, no trace of anybody else who got it."""
    process = warm.start(train_arguments(project, new_run))
    wait_until(lambda: begun(new_run), process)
    os.killpg(process.pid, signal.SIGINT)
    outcome = finish(process)
    assert outcome.code == 130, outcome
    assert outcome.err.count("s2s: error: stopped by SIGINT at step ") == 1
    assert "Traceback" not in outcome.err and "leaked" not in outcome.err
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert cli(*train_arguments(project, new_run)).code == 0
    assert_same_run(new_run, finished)


@pytest.mark.fault("S7")
def test_in_a_thread_of_another_program(project: Path, new_run: Path, finished: Path) -> None:
    """Only the main thread may set handlers; elsewhere training works without."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    during: list[dict[signal.Signals, Any]] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            s2s.commands.train.train(project / "rnn.yaml", run_directory=new_run)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        during.append({number: signal.getsignal(number) for number in before})
        thread.join(0.05)
    assert failures == []
    assert during and all(handlers == before for handlers in during)
    assert_same_run(new_run, finished)


@pytest.mark.fault("S8")
@pytest.mark.parametrize("failing", [False, True])
def test_the_handlers_of_the_host_come_back(
    project: Path, new_run: Path, cli: Cli, failpoint: Callable[[str], None], failing: bool
) -> None:
    """After a training that ended and after one that failed."""

    def own(number: int, frame: object) -> None:
        raise AssertionError("nobody sent a signal")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.signal(number, own) for number in numbers}
    reader, writer = os.pipe2(os.O_NONBLOCK)
    descriptor = signal.set_wakeup_fd(writer)
    try:
        failpoint("loss:nan@1" if failing else "")
        outcome = cli(*train_arguments(project, new_run, "training.max_updates=1"))
        assert outcome.code == (5 if failing else 0)
        assert {signal.getsignal(number) for number in numbers} == {own}
        assert signal.set_wakeup_fd(descriptor) == writer
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
    assert "signals" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.slow
@pytest.mark.fault("S12")
def test_a_sleep(project: Path, new_run: Path, finished: Path, warm: Warm) -> None:
    """Stopped and woken again, as a laptop is: it goes on, and the time asleep disturbs nothing."""
    process = warm.start(train_arguments(project, new_run))
    wait_until(lambda: begun(new_run), process)
    for _ in range(3):
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1)
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.05)
    outcome = finish(process)
    assert outcome.code == 0, outcome
    assert_same_run(new_run, finished)


# --- before there is anything to save ---------------------------------------------------------------------------------

_BUSY = """
import contextlib, hashlib, sys
from s2s import cli
from s2s.errors import S2SError
from s2s.training.signals import Signals

try:
    with Signals() as signals, signals.nothing_to_save() if "{where}" == "before" else contextlib.nullcontext():
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"one call", b"that takes an hour and sees no signal", (1 << 31) - 1)
except S2SError as error:
    sys.exit(cli._fail(error))
"""


def busy(where: str) -> subprocess.Popen[bytes]:
    """A process in one long call into C, ``before`` the first update or ``after`` it."""
    command = [sys.executable, "-c", _BUSY.format(where=where)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.fault("S2")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_library_that_sees_no_signal(number: signal.Signals) -> None:
    """Python's handlers run when a call into C returns; whoever waits for the end of the process waits a second."""
    process = busy("before")
    process.send_signal(number)
    outcome = finish(process)
    assert outcome.code == 128 + number
    what = f"stopped by {number.name} before the first update; nothing to save yet; continue with the same command"
    assert outcome.err == f"s2s: error: {what}\n"


@pytest.mark.fault("S3")
def test_two_interrupts_of_a_library_that_sees_no_signal() -> None:
    """Python calls its handler once for both, when the library returns: an update is one call for most of its time."""
    process = busy("after")
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)  # so soon it is the same, from the terminal and from a wrapper
    time.sleep(1.5)  # more than is given before the first update
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    outcome = finish(process)
    assert (outcome.code, outcome.err) == (130, "s2s: stopped at once, without saving\n")


def project_of_rare_words(folder: Path) -> Path:
    """One with texts whose 600,000 different words keep SentencePiece busy."""
    project = write_project(folder)
    draw = random.Random(1)
    for suffix in ("en", "de"):
        words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=9)) for _ in range(300_000)]
        lines = (" ".join(words[place : place + 10]) for place in range(0, len(words), 10))
        (project / f"train.{suffix}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return project


@pytest.mark.fault("S2")
@pytest.mark.parametrize("pause", [0.0, 1.0])
def test_a_signal_while_a_vocabulary_is_learned(tmp_path: Path, warm: Warm, cli: Cli, pause: float) -> None:
    """The end comes long before it is learned."""
    project = project_of_rare_words(tmp_path / "project")
    arguments = train_arguments(project, tmp_path / "run", "tokenizer.model=unigram", "tokenizer.vocabulary=8000")
    process = warm.start(arguments)
    wait_until(lambda: (tmp_path / "run" / "run.json").exists(), process)
    time.sleep(pause)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    outcome = finish(process)
    print(f"ended {time.monotonic() - began:.1f} s after the signal")
    assert outcome.code == 143, outcome
    assert "stopped by SIGTERM before the first update; nothing to save yet" in outcome.err
    assert not list((tmp_path / ".cache").glob("tokenizer-*")), "the vocabulary was learned before the signal"
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.fault("S2")
def test_a_preparation_that_learns_a_vocabulary_is_stopped(tmp_path: Path, warm: Warm) -> None:
    project = project_of_rare_words(tmp_path / "project")
    arguments = ["prepare", "--config", str(project / "rnn.yaml"), "--run-dir", str(tmp_path / "run")]
    process = warm.start([*arguments, "tokenizer.model=unigram", "tokenizer.vocabulary=8000"])
    wait_until(lambda: (tmp_path / ".cache" / "digests.json").exists(), process)
    os.kill(process.pid, signal.SIGINT)
    outcome = finish(process)
    assert outcome.code == 130, outcome
    assert "stopped by SIGINT before all was prepared; what is finished is kept; continue with" in outcome.err
    assert not list((tmp_path / ".cache").glob("tokenizer-*")), "the vocabulary was learned before the signal"


@pytest.mark.fault("S3", "S9")
@pytest.mark.parametrize("broken", ["os.close(2)", "sys.__stderr__ = None; os.dup2(os.open('kept', os.O_RDWR), 2)"])
def test_a_second_interrupt_where_nobody_can_read(tmp_path: Path, broken: str) -> None:
    """It ends the process all the same, and what the number of standard error stands for now is left alone."""
    (tmp_path / "kept").touch()
    script = f"""
import os, signal, sys, time
from s2s.training.signals import Signals
signal.signal(signal.SIGINT, signal.default_int_handler)
with Signals():
    {broken}
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGINT)
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, timeout=60).returncode == 130
    assert (tmp_path / "kept").read_bytes() == b""


_FORKED = """
import os, signal, time
from s2s.training.signals import Signals

with Signals() as signals:
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(signals.stop or 0)
    print("ready", flush=True)
    while signals.stop is None:
        time.sleep(0.05)
    time.sleep(1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("went on", flush=True)
"""


@pytest.mark.fault("S6")
def test_an_interrupt_of_a_forked_process_is_its_own() -> None:
    """A program that calls us may fork: what its child is told is no second interrupt of the parent."""
    process = subprocess.Popen([sys.executable, "-c", _FORKED], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.5)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGINT)
    outcome = finish(process)
    assert (outcome.code, outcome.out) == (0, b"went on\n"), outcome.err


@pytest.mark.fault("S8")
def test_a_program_that_listens_hears_of_signals() -> None:
    """Whoever calls us may have asked the interpreter to be told, as an event loop does."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    before = signal.set_wakeup_fd(writer)
    try:
        with Signals():
            os.kill(os.getpid(), signal.SIGUSR1)
        assert os.read(reader, 9) == bytes([signal.SIGUSR1])
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


@pytest.mark.fault("S2")
def test_a_signal_that_came_before() -> None:
    """One that was noted on the way in ends the work that is about to begin."""
    from s2s.errors import Stopped

    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.stop == signal.SIGTERM
        with pytest.raises(Stopped) as caught, signals.nothing_to_save():
            raise AssertionError("the work was begun")
    assert caught.value.code == 143
