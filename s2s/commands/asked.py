"""What is asked of a translation beside its source: beginnings and phrases line by line, and for all lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar, cast

from s2s.data.parallel import require_equal_lines
from s2s.data.text import CONVERT, TextCounts, normalise, read_lines, read_raw_lines
from s2s.errors import DataError
from s2s.search.translate import Line

A = TypeVar("A")
B = TypeVar("B")


def asked_lines(
    lines: Iterable[str | None],
    where: str,
    prefix: Path | None = None,
    require: Path | None = None,
    *,
    conversation: bool = False,
) -> Iterator[Line]:
    """Each line with its line of the other files, which are read along: a beginning, and phrases between tabs.

    Raises DataError, at the end of the shorter file, with both numbers of lines where they differ; in a
    ``conversation``, whose next lines wait for answers, without counting those.
    """
    asked: Iterable[Line] = (Line(text or "") for text in lines)
    if prefix is not None:
        beginnings = read_lines(prefix, counts=TextCounts(), remedy=CONVERT, allow_pipe=True)
        pairs = _beside(asked, beginnings, where, prefix, conversation)
        asked = (line._replace(prefix=text or "") for line, text in pairs)
    if require is not None:
        both = _beside(asked, _phrase_lists(require), where, require, conversation)
        asked = (line._replace(required=own) for line, own in both)
    yield from asked


def read_phrases(path: Path) -> list[str]:
    """The phrases of a file, normalised, one a line; blank lines are none. Raises DataError."""
    return [line for line in read_lines(path, counts=TextCounts(), remedy=CONVERT, allow_pipe=True) if line]


def read_dictionary(path: Path) -> dict[str, str]:
    """WORD, tab, TRANSLATION on every line, normalised; of two entries for a word the first counts.

    Raises DataError for a line that is anything else; blank lines are nothing.
    """
    entries: dict[str, str] = {}
    for number, line in enumerate(read_raw_lines(path), start=1):
        fields = [normalise(field)[0] for field in line.removeprefix("\ufeff").split("\t")]
        if not any(fields):
            continue
        if len(fields) != 2 or not all(fields) or " " in fields[0]:
            raise DataError(f"{path}: line {number}", "is not a word, a tab and its translation", "write one of each")
        entries.setdefault(*fields)
    return entries


def _phrase_lists(path: Path) -> Iterator[tuple[str, ...]]:
    """The phrases of each line, normalised; of a blank line none. Raises DataError."""
    for line in read_raw_lines(path):
        phrases = (normalise(field)[0] for field in line.removeprefix("\ufeff").split("\t"))
        yield tuple(phrase for phrase in phrases if phrase)


def _beside(
    lines: Iterable[A], others: Iterable[B], where: str, path: Path, conversation: bool
) -> Iterator[tuple[A, B]]:
    """The lines of two files side by side. Raises DataError where one is shorter."""
    left, right, nothing = iter(lines), iter(others), object()
    taken = 0
    for line in left:
        other = next(right, nothing)
        if other is nothing:
            if conversation:
                raise DataError(where, f"has more lines than {path}, which has {taken}", "write a line for each")
            require_equal_lines((where, taken + 1 + _count(left)), (str(path), taken))
        taken += 1
        yield line, cast(B, other)
    require_equal_lines((where, taken), (str(path), taken + _count(right)))


def _count(lines: Iterator[object]) -> int:
    return sum(1 for _ in lines)
