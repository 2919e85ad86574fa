"""Signals that end a training in good order: the handler only notes them, and the loop looks.

The first INT, TERM or HUP lets the update in progress finish, then the state is saved and the exit code is 128 + its
number. A second INT ends the process at once; the last checkpoint stays. USR1 saves and goes on, or stops like the
others where that was asked for. Before the first update there is nothing to save and much to wait for, so a signal
ends the work where it stands: see `Signals.nothing_to_save`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

from s2s.errors import Stopped
from s2s.progress import say

_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE = 1.0  # seconds in which Python code sees a signal; a library that computes longer is not waited for


class Signals:
    """A context in which signals are noted; outside the main thread it changes nothing."""

    def __init__(self, usr1_stops: bool = False) -> None:
        self.stop: int | None = None
        """The signal that asked to stop, if any."""
        self.save = False
        """Whether a checkpoint was asked for."""
        self._stopping = (*_STOP, signal.SIGUSR1) if usr1_stops else _STOP
        self._before: dict[int, Any] = {}
        self._raises = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (*_STOP, signal.SIGUSR1):
                if signal.getsignal(number) != signal.SIG_IGN:  # a signal ignored by nohup stays ignored
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def nothing_to_save(self) -> Iterator[None]:
        """In this context a signal that asks to stop raises `Stopped` where the work stands.

        Python's handlers wait until a library returns, which for the learning of a vocabulary is minutes. So a thread
        watches too, and ends the process when a second later it is still there. Inside, every file must be written so
        that a kill does no harm.
        """
        if not self._before:
            yield
            return
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(reader, True)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        left = threading.Event()
        watch = threading.Thread(target=self._watch, args=(reader, left), name="signals", daemon=True)
        watch.start()
        try:
            self._raises = True
            if self.stop is not None:
                raise stopped(self.stop)
            yield
        finally:
            self._raises = False
            left.set()
            signal.set_wakeup_fd(before)
            os.close(writer)  # the thread reads to the end of it
            watch.join()
            os.close(reader)

    def _watch(self, reader: int, left: threading.Event) -> None:
        while received := os.read(reader, 1):  # the numbers of the signals, as the interpreter writes them
            if received[0] in self._stopping and not left.wait(_GRACE):
                say(f"s2s: error: {stopped(received[0])}")
                os._exit(128 + received[0])

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number not in self._stopping:
            self.save = True
        elif number == signal.SIGINT and self.stop == signal.SIGINT:
            with suppress(OSError, ValueError):  # it may be closed; without it that number may be another file's
                if sys.__stderr__ is not None:
                    os.write(sys.__stderr__.fileno(), b"s2s: stopped at once, without saving\n")
            os._exit(128 + signal.SIGINT)
        elif self.stop is None:
            self.stop = number
            if self._raises:
                raise stopped(number)


def stopped(number: int, where: str = "before the first update; nothing to save yet") -> Stopped:
    """What a command ends with after the signal ``number``."""
    return Stopped(number, f"stopped by {signal.Signals(number).name} {where}", "continue with the same command")


class Interrupted(Exception):
    """A validation was left because of a signal; it is done again on resume."""
