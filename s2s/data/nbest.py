"""Lists of translations, one per source line, as `s2s translate` writes them: read strictly, and written again.

    tsv    a hypothesis per line:  LINE <TAB> RANK <TAB> SCORE <TAB> TEXT
    jsonl  a source line per line: {"line", "source", "hypotheses": [{"text", "score", ...}, ...]}

Lines are counted from 1 without a gap, ranks from 1 within a line. A score is a finite number or minus infinity:
``-inf`` in tsv, null in jsonl. What else a JSON object says is kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from s2s.data.text import LONGEST_LINE, printable_output, read_raw_lines
from s2s.errors import DataError
from s2s.strictjson import finite, json_line, strict_json, whole

ListForm = Literal["tsv", "jsonl"]
Form = Literal["text", "tsv", "jsonl"]
"""What lists are written as; text is the best translation alone."""

_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|-inf")
_POSITIVE = re.compile(r"[1-9][0-9]{0,17}")
_TODO = "give a file that s2s translate wrote with --n-best, in the format tsv or jsonl"


class Listed(NamedTuple):
    """One hypothesis."""

    text: str
    score: float
    more: dict[str, Any]
    """What else its JSON object says."""


class NBest(NamedTuple):
    """The hypotheses of one source line, in the order of the file, at least one."""

    line: int
    """Counted from 1."""
    source: str | None
    """None where the file does not say it."""
    hypotheses: list[Listed]
    more: dict[str, Any]
    """What else its JSON object says."""

    def ranked(self, scores: list[float]) -> NBest:
        """The same hypotheses with these scores, highest first, ties in the order that they had."""
        order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        return self._replace(hypotheses=[self.hypotheses[index]._replace(score=scores[index]) for index in order])


def read_nbest(path: Path) -> tuple[ListForm, Iterator[NBest]]:
    """The format, told by the first line, and the lists, read as they are taken.

    Raises DataError, at the list where it is, for anything that is not as described above.
    """
    lines = read_raw_lines(path, longest=64 * LONGEST_LINE)  # one has many translations
    first = next(lines, None)
    if first is None:
        return "tsv", iter(())
    numbered = enumerate(chain([first], lines), start=1)
    if first.startswith("{"):
        return "jsonl", (_from_json(text, number, f"{path}: line {number}") for number, text in numbered)
    return "tsv", _from_tsv(path, numbered)


def _from_tsv(path: Path, numbered: Iterator[tuple[int, str]]) -> Iterator[NBest]:
    line, found = 0, list[Listed]()
    for number, row in numbered:
        where = f"{path}: line {number}"
        fields = row.split("\t")
        if len(fields) == 3:  # an empty text: white space at the end of a line is left off by the reader
            fields.append("")
        if len(fields) != 4:
            raise DataError(where, f"has {len(fields)} fields and not 4, with a tab between", _TODO)
        own, rank = (_counted(name, text, where) for name, text in zip(("line", "rank"), fields[:2], strict=True))
        if (own, rank) == (line + 1, 1):
            if found:
                yield NBest(line, None, found, {})
            line, found = own, []
        elif line == 0 or (own, rank) != (line, len(found) + 1):
            expected = f"rank {len(found) + 1} of line {line} or " if line else ""
            raise DataError(where, f"is rank {rank} of line {own}, not {expected}rank 1 of line {line + 1}", _TODO)
        if not _NUMBER.fullmatch(fields[2]):
            raise DataError(where, f"{fields[2][:40]!r} is not a score", _TODO)
        score = -math.inf if fields[2] == "-inf" else _bounded(float(fields[2]), where)
        found.append(Listed(fields[3], score, {}))
    if found:
        yield NBest(line, None, found, {})


def _counted(name: str, text: str, where: str) -> int:
    if not _POSITIVE.fullmatch(text):
        raise DataError(where, f"{text[:40]!r} is not the number of a {name}", _TODO)
    return int(text)


def _from_json(text: str, number: int, where: str) -> NBest:
    try:
        found = strict_json(text)
    except ValueError as error:
        raise DataError(where, f"is not valid JSON: {error}", _TODO) from None
    more = found if isinstance(found, dict) else {}
    line, source, hypotheses = (more.pop(name, None) for name in ("line", "source", "hypotheses"))
    if type(line) is not int or not isinstance(source, str | None) or not isinstance(hypotheses, list):
        raise DataError(where, "is not an object with a line, its source and its hypotheses", _TODO)
    _require_whole(source or "", where)
    if line != number:
        raise DataError(where, f"says that it is line {line}", "the lists must stand in the order of their lines")
    if not hypotheses:
        raise DataError(where, "has no hypotheses", _TODO)
    return NBest(line, source, [_listed(one, where) for one in hypotheses], more)


def _listed(found: Any, where: str) -> Listed:
    more = dict(found) if isinstance(found, dict) else {}
    text, score = more.pop("text", None), more.pop("score", False)
    if not isinstance(text, str) or not (score is None or type(score) in (int, float)):
        raise DataError(where, "a hypothesis is not an object with a text and a score", _TODO)
    _require_whole(text, where)
    return Listed(text, -math.inf if score is None else _bounded(score, where), more)


def _require_whole(text: str, where: str) -> None:
    try:
        whole(text)
    except ValueError as error:
        raise DataError(where, str(error)) from None


def _bounded(score: int | float, where: str) -> float:
    """The score as a number of the machine. Raises DataError where it is too large for one."""
    if not abs(score) < 1e300:
        raise DataError(where, "a score is too large", _TODO)
    return float(score)


# --- output -----------------------------------------------------------------------------------------------------------


def written(lists: NBest, form: Form) -> Iterator[str]:
    """The lines that say ``lists`` in this form; control characters cannot get into them."""
    if form == "text":
        yield printable_output(lists.hypotheses[0].text)
    elif form == "tsv":
        for rank, one in enumerate(lists.hypotheses, start=1):
            yield f"{lists.line}\t{rank}\t{number(one.score)}\t{printable_output(one.text)}"
    else:
        yield json_line(
            {"line": lists.line}
            | ({} if lists.source is None else {"source": lists.source})
            | lists.more
            | {"hypotheses": [{"text": one.text, "score": finite(one.score)} | one.more for one in lists.hypotheses]}
        )


def number(value: float) -> str:
    """A score as a text file shows it: six decimals, ``-inf`` or ``nan``."""
    return f"{value:.6f}"
