"""One translation by several processes: blocks of lines that go out, answers that come back and are joined in order.

The first process reads the input and shows it to all, a window of `Translator.windows` a block: the same sentences are
searched together as by a process alone, so the answers are the same. Every process takes the next block that nobody has
taken, the first one too. One that has nothing left to take does the oldest unanswered block again: it may be that of a
process which is gone. Answers are lasting, so processes that a launcher starts again after a failure go on with them.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import dropwhile, islice
from typing import Any

from s2s.distributed import World
from s2s.errors import S2SError, Stopped
from s2s.failpoints import hit
from s2s.search.translate import Line, Taken

_AHEAD = 4  # blocks for every process that are read before their turn
_LOOK = 0.02  # seconds between two looks at what the others have done
_IDLE = 1.0  # seconds that a process waits for a block of its own before it does another's again

Numbered = tuple[int, Line, tuple[list[int], ...]]
"""A line with its number in the input, from 1, and the sentences before it, see `Taken.before`."""
Answer = list[str]
"""The lines of output for one line of input."""


class Blocks:
    """The blocks of one translation as one of its processes sees them."""

    def __init__(
        self,
        world: World,
        translate: Callable[[list[Numbered], Callable[[], None]], Iterator[Answer]],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """``translate`` answers the lines of a block, and calls what it is given between batches; that may raise.

        ``check`` is called between batches too, and may end the work.
        """
        self._world, self._translate, self._check = world, translate, check
        self._ticket = world.ticket("block")
        self._idle_since = time.monotonic()

    def serve(self) -> None:
        """Answer blocks until all have been joined: what every process but the first does."""
        while not self._world.has("end"):
            self._work()

    def answers(self, windows: Iterable[list[Taken]], skip: int = 0) -> Iterator[Answer]:
        """The answers to all lines after the first ``skip``, in order; what the first process does.

        An error in ``windows`` is raised when the lines before it are answered, but for a signal: that ends the work.
        """
        failures: list[Exception] = []
        blocks = enumerate(_until_failure(windows, failures))
        coming = dropwhile(lambda block: block[1][-1].number <= skip, blocks)
        shown: deque[tuple[int, int]] = deque()  # the numbers of a block and of its first line
        while True:
            for number, taken in islice(coming, _AHEAD * self._world.size - len(shown)):
                if not shown:
                    self._world.put("joined", str(number))
                self._show(number, taken)
                shown.append((number, taken[0].number))
            if not shown:
                break
            number, first = shown[0]
            answers = self._world.look(_answer(number), lasting=True)
            if answers is None:
                self._work()
                continue
            yield from json.loads(answers)[max(0, skip + 1 - first) :]
            shown.popleft()
            self._world.put("joined", str(number + 1))
            self._world.drop(_answer(number), lasting=True)
            self._world.drop(_block(number))
        if failures:
            raise failures[0]
        self._world.put("end", "all are joined")

    def _show(self, number: int, taken: list[Taken]) -> None:
        self._world.put(_block(number), json.dumps([(one.number, one.line, one.before) for one in taken]))

    def _joined(self) -> int:
        """The first block that is not in the output."""
        return int(self._world.look("joined") or 0)

    def _is_answered(self, number: int) -> bool:
        return self._world.has(_answer(number), lasting=True) or self._joined() > number

    def _work(self) -> None:
        """Answer one block, or wait a moment for one."""
        self._look_around()
        while self._is_answered(self._ticket):
            self._ticket = self._world.ticket("block")
        number, block = self._ticket, self._world.look(_block(self._ticket))
        if block is None and time.monotonic() - self._idle_since > _IDLE:
            number, block = self._oldest()
        if block is None:
            time.sleep(_LOOK)
            return
        self._answer(number, [_numbered(*one) for one in json.loads(block)])
        self._idle_since = time.monotonic()

    def _look_around(self) -> None:
        self._check()
        self._world.check_others()

    def _oldest(self) -> tuple[int, str | None]:
        """The first block that is shown and not answered; None instead of it where there is none."""
        number = self._joined()
        while (block := self._world.look(_block(number))) is not None and self._is_answered(number):
            number += 1
        return number, block

    def _answer(self, number: int, lines: list[Numbered]) -> None:
        def check() -> None:
            self._look_around()
            if self._is_answered(number):
                raise _Overtaken

        hit("block")
        try:
            answers = list(self._translate(lines, check))
        except _Overtaken:
            return
        if not self._is_answered(number):
            self._world.put(_answer(number), json.dumps(answers), lasting=True)


class _Overtaken(Exception):
    """Another process has answered the block meanwhile."""


def _until_failure(windows: Iterable[list[Taken]], failures: list[Exception]) -> Iterator[list[Taken]]:
    """The windows up to an error, which joins ``failures``."""
    try:
        yield from windows
    except Stopped:
        raise
    except (S2SError, OSError) as error:
        failures.append(error)


def _numbered(number: int, line: list[Any], before: list[list[int]]) -> Numbered:
    """As it was before it was shown."""
    text, prefix, required, begins = line
    return number, Line(text, prefix, tuple(required), begins), tuple(before)


def _block(number: int) -> str:
    return f"block/{number}"


def _answer(number: int) -> str:
    return f"answer/{number}"
