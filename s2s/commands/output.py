"""Where results go, a file or standard output, and how they are written as they come."""

from __future__ import annotations

import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NoReturn, Self

from s2s.commands.stop import Stop
from s2s.data.text import OutputFile
from s2s.errors import SystemRefused
from s2s.progress import Meter, say

_FLUSH = 1.0
"""Seconds after which finished lines are handed on."""


class Output:
    """Standard output as UTF-8 with plain line ends, whatever the locale says; used as `OutputFile` is."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing: standard output stays open."""

    def write_line(self, text: str) -> None:
        """One line."""
        with _refusals():
            self.stream.write(text.encode() + b"\n")

    def flush(self) -> None:
        """To the reader, now."""
        with _refusals():
            self.stream.flush()

    def check(self) -> None:
        """End as a write would where the reader of a pipe has gone: nothing is computed for nobody."""
        if nobody_reads(self.stream):
            end_silently()


def nobody_reads(stream: int | BinaryIO) -> bool:
    """Whether it is a pipe whose reader has gone."""
    poll = select.poll()
    poll.register(stream, 0)  # errors are told in any case
    return any(events & select.POLLERR for _, events in poll.poll(0))


def end_silently() -> NoReturn:
    """The reader of standard output has gone (``| head``): end without a word, by SIGPIPE, as other programs do.

    Until then the signal is ignored, as Python has it: a broken standard error ends nothing.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.raise_signal(signal.SIGPIPE)
    raise AssertionError("the signal ends the process")


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        end_silently()
    except OSError as error:
        raise SystemRefused("standard output", error.strerror, "make room, or give --output FILE") from error


Sink = Output | OutputFile


def standard_output() -> Output:
    """Raises SystemRefused where standard output is closed."""
    if sys.stdout is None:
        raise SystemRefused("standard output", "is closed", "give --output FILE")
    return Output(sys.stdout.buffer)


def answer(text: str) -> None:
    """Print what a command was asked for, text of any kind. Raises SystemRefused where it cannot be printed."""
    if sys.stdout is None:
        raise SystemRefused("standard output", "is closed")
    with _refusals():
        print(text, flush=True)


def results(output: Path | None, overwrite: bool, inputs: Sequence[Path | None]) -> Sink:
    """Where lines of results go: a file, which is none of ``inputs``, or by default standard output."""
    if output is None:
        return standard_output()
    return OutputFile(output, overwrite=overwrite, inputs=[path for path in inputs if path is not None])


def write(
    sink: Sink,
    items: Iterable[Iterable[str]],
    words: tuple[str, str, str],
    *,
    at_once: bool = False,
    conversation: bool = False,
    flushed: Callable[[int, bool], None] = lambda items, last: None,
) -> None:
    """Write the lines of every item as it comes, and tell the speed; ``words`` as ("scoring", "scored", "pairs").

    ``flushed`` hears before the first item and now and then how many items are out, and when no more will come.

    ``at_once``: somebody waits for every item, so it is handed on and no progress is shown; in a ``conversation`` the
    speed, which is that of the other side, is not told either. Raises Stopped where a signal ended it; what was
    finished is written.
    """
    title, finished, units = words
    began = last = time.monotonic()
    with (
        sink as out,
        Stop(lambda: f"after {meter.done} {units}") as stop,
        Meter(title, None, quiet=at_once or conversation) as meter,
    ):
        try:
            flushed(0, False)
            for lines in items:
                with stop.held():
                    for line in lines:
                        out.write_line(line)
                    now = time.monotonic()
                    meter.advance(note=f"{(meter.done + 1) / max(now - began, 1e-9):.1f} {units}/s")
                if at_once or conversation or now - last >= _FLUSH:
                    out.flush()
                    flushed(meter.done, False)
                    last = now
        finally:
            out.flush()
            flushed(meter.done, True)
    seconds = time.monotonic() - began
    if meter.done and not conversation:
        say(f"{finished} {meter.done} {units} in {seconds:.1f} s ({meter.done / seconds:.1f} {units}/s)")
