"""Two texts line by line, where nothing may be dropped: as many pairs out as each file has lines."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

from s2s.data.text import NOT_STRICT, Invalid, TextCounts, read_lines
from s2s.errors import DataError


class Parallel:
    """The lines of two files side by side, normalised; None stands for a line that could not be read."""

    def __init__(self, source: Path, target: Path, invalid: Invalid = "replace") -> None:
        self.source, self.target, self.invalid = source, target, invalid
        self.counts = TextCounts(), TextCounts()

    def __iter__(self) -> Iterator[tuple[str | None, str | None]]:
        """The pairs, read as they are taken. Raises DataError as `read_lines`, and at the end of the shorter file."""
        first, second = (
            read_lines(path, counts=counts, invalid=self.invalid, remedy=NOT_STRICT, allow_pipe=True)
            for path, counts in zip((self.source, self.target), self.counts, strict=True)
        )
        for line in first:
            try:
                pair = line, next(second)
            except StopIteration:
                break
            yield pair
        for rest in (first, second):  # to say how many there are
            for _ in rest:
                pass
        require_equal_lines((str(self.source), self.counts[0].lines), (str(self.target), self.counts[1].lines))

    def check(self) -> int | None:
        """Go through files that can be read twice: better to hear of unequal ones now than in an hour.

        The number of pairs; None where it cannot be known before.
        """
        if not (self.source.is_file() and self.target.is_file()):
            return None
        first = Parallel(self.source, self.target, self.invalid)
        deque(first, maxlen=0)
        return first.counts[0].lines

    def warnings(self) -> list[str]:
        """What a reader of the results should know, one line each."""
        return [warning for counts in self.counts for warning in counts.warnings()]


def require_equal_lines(one: tuple[str, int], other: tuple[str, int]) -> None:
    """Raises DataError unless two files, each a name and a number of lines, are equally long."""
    if one[1] != other[1]:
        what = f"{one[0]} has {one[1]} lines, {other[0]} {other[1]}"
        raise DataError("", what, "line N of one file must belong to line N of the other")
