"""The trainings of a comparison, one after the other or several at once, each in a process of its own.

A process trains (or goes on training: the run knows where it stands), measures and writes the row. It ends, saving
first, when the process that started it is gone, so that nothing goes on unseen and the next start finds the run free.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple

import torch

from s2s.commands.comparison_rows import Asked, Files, measure, note_peak, require_finished, write_row
from s2s.commands.train import train
from s2s.errors import RunInUse, S2SError, SystemRefused, is_out_of_memory, out_of_memory
from s2s.failpoints import hit
from s2s.progress import say

_PATIENCE = 60.0
"""Seconds for which a run may still be in use: by the process of an earlier start, which saves before it ends."""


class Task(NamedTuple):
    """What one process is to do; plain values, because another process is told."""

    name: str
    facts: dict[str, object]
    """What the row begins with: name, seed, and what it is made from."""
    recipe: Path | None
    """None: the run is there already."""
    overrides: tuple[str, ...]
    run: Path
    asked: Asked
    files: Files
    log: Path
    threads: int
    device: str = "auto"
    """For measuring; training has its setting."""


class Ended(NamedTuple):
    """How a task ended: code 0, or an exit code of s2s with the reason."""

    task: Task
    code: int
    why: str = ""


# --- in the process that was called -----------------------------------------------------------------------------------


def work(tasks: Sequence[Task], jobs: int, devices: Sequence[str], on_end: Callable[[Ended], None]) -> None:
    """Do every task, ``jobs`` at a time; each takes one of the ``devices`` (GPUs, if there are any) in turn.

    However this is left, the processes are told to stop, and are waited for while they save.
    """
    waiting, running = deque(tasks), dict[int, _Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                slot = next(slot for slot in range(jobs) if slot not in running)
                device = devices[slot % len(devices)] if devices else None
                running[slot] = _Running(waiting.popleft(), device)
            connection.wait([one.process.sentinel for one in running.values()])
            for slot in [slot for slot, one in running.items() if not one.process.is_alive()]:
                on_end(running.pop(slot).ended())
    finally:
        for one in running.values():
            one.process.terminate()
        for one in running.values():
            one.process.join()


class _Running:
    """One process."""

    def __init__(self, task: Task, device: str | None) -> None:
        context = multiprocessing.get_context("spawn")  # threads and CUDA do not survive a fork
        self.task = task
        self._answer, theirs = context.Pipe(duplex=False)
        self.process: SpawnProcess = context.Process(target=_process, args=(task, device, theirs), name=task.name)
        self.process.start()
        theirs.close()

    def ended(self) -> Ended:
        """What the process told; one that could not tell was ended by the system."""
        self.process.join()
        code = self.process.exitcode
        try:
            answer: tuple[int, str] = self._answer.recv()
            return Ended(self.task, *answer)
        except EOFError:
            number = -(code or 0)
            why = f"ended by {signal.Signals(number).name}" if number > 0 else f"ended with code {code}"
            return Ended(self.task, 6, f"{why}; see {self.task.log}")
        finally:
            self._answer.close()


def visible_devices(count: int) -> list[str]:
    """The GPUs that processes can be given, as CUDA_VISIBLE_DEVICES names them; ``count`` are there."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(count)] if named is None else [one for one in named.split(",") if one]


# --- in the process of a task -----------------------------------------------------------------------------------------


def _process(task: Task, device: str | None, answer: connection.Connection) -> None:
    """Do the task, and answer with code and reason."""
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # before anything asks for a GPU
    _log_to(task.log)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    told = _done(task)
    with suppress(BrokenPipeError):  # nobody is left to hear it
        answer.send(told)


def _done(task: Task) -> tuple[int, str]:
    """Do the task; code and reason."""
    try:
        do(task)
    except S2SError as error:
        say(f"s2s: error: {error}")
        return error.code, str(error)
    except OSError as error:
        _trace()
        return 6, f"{error}; see {task.log}"
    except Exception as error:
        _trace()
        if is_out_of_memory(error):
            return SystemRefused.code, f"{out_of_memory()}; see {task.log}"
        return 1, f"{type(error).__name__}: {error}; this is a bug in s2s; see {task.log}"
    return 0, ""


def _trace() -> None:
    """Where it failed, into the log, if there is room on its disk."""
    with suppress(OSError):
        traceback.print_exc()


def do(task: Task) -> None:
    """Train where that is asked for, measure, and write the row. Raises whatever keeps the row from being right."""
    torch.set_num_threads(task.threads)
    if task.recipe is None:
        require_finished(task.run)
    else:
        _train(task, task.recipe)
    hit("compare.trained")
    row, details = measure(task.run, task.asked, task.device)
    hit("compare.measured")
    write_row(task.files, {**task.facts, **row}, details)


def _train(task: Task, recipe: Path) -> None:
    until, before = time.monotonic() + _PATIENCE, _steps(task.run)
    while True:
        try:
            train(recipe, task.overrides, task.run)
        except RunInUse:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            break
        finally:
            if _steps(task.run) != before:  # a run that was complete says nothing of what it needed
                note_peak(task.run)


def _steps(run: Path) -> set[str]:
    """The checkpoints of a run."""
    return {path.name for path in (run / "checkpoints").glob("step-*")}


def _log_to(path: Path) -> None:
    """Everything that is said goes to this file, after what earlier starts said."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def _end_with_parent() -> None:
    """When the process that started this one is gone, stop as after TERM: save, and end."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
