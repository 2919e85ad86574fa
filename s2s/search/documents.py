"""Which sentences stand before a line: those of its document, which a blank line ends, as far as a model reads them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from s2s.interfaces import EOS


class Document:
    """The sentences of a document so far; only the last ``sentences`` are held, of each at most ``longest`` pieces."""

    def __init__(self, sentences: int, longest: int) -> None:
        self._before: deque[list[int]] = deque(maxlen=sentences)
        self._longest = longest

    @property
    def before(self) -> tuple[list[int], ...]:
        """What a next sentence has before it, the nearest first; ids with EOS."""
        return tuple(reversed(self._before))

    def add(self, ids: Sequence[int]) -> None:
        """One more sentence, its ids without EOS."""
        self._before.append([*ids[: self._longest - 1], EOS])

    def end(self) -> None:
        """The next sentence begins another document."""
        self._before.clear()


def first_before(lines: Sequence[str], place: int, sentences: int) -> int:
    """The place of the first line that is read before the one at ``place``, or that place if there is none."""
    first = place
    while first > max(0, place - sentences) and lines[first - 1].strip():
        first -= 1
    return first
