"""Signals that end a training in good order: the handler only notes them, and the loop looks.

The first INT, TERM or HUP lets the update in progress finish, then the state is saved and the exit code is 128 + its
number. A second INT ends the process at once; the last checkpoint stays. USR1 saves and goes on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """A context in which signals are noted; outside the main thread it changes nothing."""

    def __init__(self) -> None:
        self.stop: int | None = None
        """The signal that asked to stop, if any."""
        self.save = False
        """Whether a checkpoint was asked for."""
        self._before: dict[int, Any] = {}

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

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.save = True
        elif number == signal.SIGINT and self.stop == signal.SIGINT:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"s2s: stopped at once, without saving\n")
            os._exit(128 + signal.SIGINT)
        elif self.stop is None:
            self.stop = number


class Interrupted(Exception):
    """A validation was left because of a signal; it is done again on resume."""
