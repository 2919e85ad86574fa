"""Signals that end a training in good order: the handler only notes them, and the loop looks.

The first INT, TERM or HUP lets the update in progress finish, then the state is saved and the exit code is 128 + its
number. A second INT ends the process at once, if it does not come in the same moment; the last checkpoint stays. USR1
saves and goes on, or stops like the others where that was asked for. Before the first update there is nothing to save
and much to wait for, so a signal ends the work where it stands: see `Signals.nothing_to_save`.

Python's handlers wait until a library returns, and are called once for all signals of a kind that came meanwhile. The
learning of a vocabulary takes minutes and an update may take seconds, so a thread watches too, and ends the process
where nobody may wait.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from s2s.errors import Stopped
from s2s.progress import say

_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE = 1.0  # seconds in which Python code sees a signal; a library that computes longer is not waited for
_SAME = 0.2  # seconds in which two interrupts are one: a wrapper may pass on what the terminal sends to all


class Signals:
    """A context in which signals are noted; outside the main thread it changes nothing."""

    def __init__(self, usr1_stops: bool = False) -> None:
        self.stop: int | None = None
        """The signal that asked to stop, if any."""
        self.save = False
        """Whether a checkpoint was asked for."""
        self._stopping = (*_STOP, signal.SIGUSR1) if usr1_stops else _STOP
        self._before: dict[int, Any] = {}
        self._watch: _Watch | None = None
        self.nothing_is_lost = False
        """Whether the work may end where it stands."""
        self.where = ""
        """How that is told."""

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (*_STOP, signal.SIGUSR1):
                if signal.getsignal(number) != signal.SIG_IGN:  # a signal ignored by nohup stays ignored
                    self._before[number] = signal.signal(number, self._note)
            self._watch = _Watch(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        finally:
            if self._watch is not None:
                self._watch.close()

    @contextmanager
    def nothing_to_save(self, where: str = "before the first update; nothing to save yet") -> Iterator[None]:
        """In this context a signal that asks to stop raises `Stopped` ``where`` the work stands.

        Or ends the process, when a second later a library has not returned. Inside, every file must be written so that
        a kill does no harm.
        """
        if not self._before:
            yield
            return
        try:
            self.nothing_is_lost, self.where = True, where
            if self.stop is not None:
                raise stopped(self.stop, where)
            yield
        finally:
            self.nothing_is_lost = False

    def stops(self, number: int) -> bool:
        """Whether the signal ``number`` asks to stop."""
        return number in self._stopping

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.stops(number):
            self.save = True
        elif self.stop is None:
            self.stop = number
            if self.nothing_is_lost:
                raise stopped(number, self.where)


class _Watch:
    """A thread that is told of every signal by the interpreter's own handler, while Python's handlers wait."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._reader, self._writer = os.pipe()  # no child inherits it; pipe2 is not everywhere
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)
        self._thread.start()
        _watches.add(self)

    def close(self) -> None:
        """End the thread, after what has come already."""
        _watches.discard(self)
        signal.set_wakeup_fd(self._before)
        os.close(self._writer)  # the thread reads to the end of it
        self._thread.join()
        os.close(self._reader)

    def _run(self) -> None:
        told = select.poll()
        told.register(self._reader, select.POLLIN)
        asked: tuple[int, float] | None = None  # the first signal that asked to stop, and until when it is waited for
        interrupted: float | None = None  # when the first interrupt came
        while True:
            left = None if asked is None else max(0.0, asked[1] - time.monotonic()) * 1000
            if not told.poll(left) and asked is not None:
                if self._signals.nothing_is_lost:
                    say(f"s2s: error: {stopped(asked[0], self._signals.where)}")
                    os._exit(128 + asked[0])
                asked = None
                continue
            received = os.read(self._reader, 1)  # the number of a signal
            if not received:
                return
            if self._before >= 0:  # of the program that called us
                with suppress(OSError):
                    os.write(self._before, received)
            number, now = received[0], time.monotonic()
            if number == signal.SIGINT:
                if interrupted is not None and now - interrupted > _SAME:
                    _end_at_once()
                interrupted = now if interrupted is None else interrupted
            if asked is None and self._signals.stops(number):
                asked = number, now + _GRACE


_watches = set[_Watch]()


def _leave_to_the_parent() -> None:
    """In a forked process: signals that it gets are not its parent's, whose pipe it has."""
    if _watches:
        _watches.clear()
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_leave_to_the_parent)


def _end_at_once() -> NoReturn:
    with suppress(OSError, ValueError):  # it may be closed; without it that number may be another file's
        if sys.__stderr__ is not None:
            os.write(sys.__stderr__.fileno(), b"s2s: stopped at once, without saving\n")
    os._exit(128 + signal.SIGINT)


def stopped(number: int, where: str) -> Stopped:
    """What a command ends with after the signal ``number``."""
    return Stopped(number, f"stopped by {signal.Signals(number).name} {where}", "continue with the same command")


class Interrupted(Exception):
    """A validation was left because of a signal; it is done again on resume."""
