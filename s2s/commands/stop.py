"""INT, TERM and HUP end a command where it is, but never in the middle of a line of output."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from s2s.errors import Stopped


class Stop:
    """A context in which the first of these signals raises `Stopped`; the second is the system's to handle.

    Outside the main thread it changes nothing, and a signal that nohup ignores stays ignored.
    """

    def __init__(self, done: Callable[[], str]) -> None:
        """``done`` says how far the work has come, "after 7 lines"."""
        self.done = done
        self._before: dict[int, Any] = {}
        self._held = False
        self._came: int | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Whatever happens in this context is finished first."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._came is not None:
            raise self._stopped(self._came)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        if not self._held:
            raise self._stopped(number)
        self._came = number

    def _stopped(self, number: int) -> Stopped:
        return Stopped(number, f"stopped by {signal.Signals(number).name} {self.done()}")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
