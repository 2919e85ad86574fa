"""What a person sees while waiting: a progress bar on a terminal, plain lines elsewhere; all on standard error.

A closed or broken standard error never stops the work.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO, cast

from s2s.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


class _Unfailing:
    """A stream to a terminal that may be gone: what cannot be written is lost, and nobody is stopped by it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """The number of characters given, written or not."""
        with suppress(OSError, ValueError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """To the terminal, if it is there."""
        with suppress(OSError, ValueError):
            self.stream.flush()

    def isatty(self) -> bool:
        """Whether it was a terminal."""
        with suppress(OSError, ValueError):
            return self.stream.isatty()
        return False


_loudness = 2  # 0: nothing is shown, 1: warnings, 2: everything


@contextmanager
def silent(but_warnings: bool = False) -> Iterator[None]:
    """Whatever this process would show in this context is dropped, because another one says it or nobody asked."""
    global _loudness
    before, _loudness = _loudness, min(_loudness, int(but_warnings))
    try:
        yield
    finally:
        _loudness = before


def say(text: str) -> None:
    """One line on standard error, control characters made visible."""
    if _loudness > 1:
        _write(text)


def warn(text: str) -> None:
    """A warning line on standard error."""
    if _loudness > 0:
        _write(f"s2s: warning: {text}")


def _write(text: str) -> None:
    if sys.stderr is not None:
        stream = _Unfailing(sys.stderr)
        stream.write("\n".join(printable(line) for line in text.split("\n")) + "\n")
        stream.flush()


def on_terminal() -> bool:
    """Whether standard error is a terminal that can move its cursor."""
    try:
        return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") not in (None, "", "dumb")
    except (OSError, ValueError):
        return False


def terminal() -> Console:
    """Standard error for what moves; it never fails."""
    from rich.console import Console

    return Console(file=cast(TextIO, _Unfailing(sys.stderr)))


class Meter:
    """Progress of one long piece of work: ``total`` units, or unknown (None). Use as a context manager.

    On a terminal a bar moves; elsewhere a line is printed at most every ``every`` seconds.
    """

    def __init__(self, title: str, total: int | None, *, every: float = 10.0, quiet: bool = False) -> None:
        self.title, self.total, self.every, self.quiet = title, total, every, quiet or _loudness < 2
        self.done, self._last = 0, time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if not self.quiet and on_terminal():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=terminal(),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, units: int = 1, note: str = "") -> None:
        """``units`` more are done; ``note`` says what a bar or a line should add."""
        self.done += units
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=note)
        elif time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            of = f"/{self.total}" if self.total is not None else ""
            self.line(f"{self.title}: {self.done}{of}{f'  {note}' if note else ''}")

    def line(self, text: str) -> None:
        """A line that stays, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
        else:
            say(text)
