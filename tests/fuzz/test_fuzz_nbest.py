"""Any bytes as lists of translations: numbered from 1 without a gap, and read back when written; or a refusal."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fuzzing import fuzzed, lines_in
from hypothesis import strategies as st

from s2s.data.nbest import NBest, read_nbest, written
from s2s.errors import DataError, printable

# --- what might stand in such files -----------------------------------------------------------------------------------

FIELDS = st.sampled_from([
    "1", "2", "3", "0", "-1", "01", "1.5", "1e5", "1e999", "-inf", "inf", "nan", "-0.25", "9" * 30, "9" * 5000,
    "\u0663", "", " ", "Haus", "</s>", "\x1b[31m", "\x00", "\x85", "\u2028", "\u202e", "\U0001f469\u200d\U0001f4bb",
    "\r",
])  # fmt: skip
ROWS = st.lists(st.lists(FIELDS, min_size=2, max_size=5).map("\t".join), max_size=4).map("\n".join)
RANKED = st.lists(st.lists(FIELDS, min_size=1, max_size=3), max_size=3).map(
    lambda lists: "".join(
        f"{line}\t{rank}\t-0.5\t{text}\n" for line, own in enumerate(lists, 1) for rank, text in enumerate(own, 1)
    )
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False) | FIELDS,
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=4,
)
HYPOTHESES = st.fixed_dictionaries({"text": FIELDS, "score": st.none() | st.floats(-9, 9)}, optional={"tokens": VALUES})
LINES = st.fixed_dictionaries(
    {"source": FIELDS, "hypotheses": st.lists(HYPOTHESES, min_size=1, max_size=3) | VALUES}, optional={"more": VALUES}
)
LISTS = st.lists(LINES, max_size=3) | st.lists(LINES | VALUES, max_size=4)
PIECES = st.sampled_from(
    [b"{", b"}", b"[" * 2000, b'"', b"\\ud800", b"\n", b"\t", b"1e999", b"\xff", b"\x00", b"NaN", b'"line": 1,']
)


def as_json(lists: list[Any]) -> str:
    """A line for each, the right number in those that are objects; one number is larger than any machine's."""
    numbered = [{"line": line, **each} if isinstance(each, dict) else each for line, each in enumerate(lists, start=1)]
    return "\n".join(json.dumps(each).replace('"1e999"', "1e999") for each in numbered)


TEXTS = st.tuples(
    st.one_of(ROWS, RANKED, LISTS.map(as_json)).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.tuples(st.integers(0, 400), PIECES | st.binary(max_size=3)), max_size=2),
)


def damaged(data: bytes, insertions: list[tuple[int, bytes]]) -> bytes:
    for place, snippet in insertions:
        data = data[: place % (len(data) + 1)] + snippet + data[place % (len(data) + 1) :]
    return data


# --- what must hold ---------------------------------------------------------------------------------------------------


@pytest.mark.fault("T14")
@fuzzed(TEXTS)
def test_any_lists(folder: Path, text: tuple[bytes, list[tuple[int, bytes]]]) -> None:
    data = damaged(*text)
    path = folder / "lists"
    path.write_bytes(data)
    try:
        kind, lists = read_nbest(path)
        found = list(lists)
    except DataError as error:
        assert error.code == 3
        assert str(error) == printable(error)
        assert str(error).startswith(f"{path}: ")
        return
    assert [each.line for each in found] == list(range(1, len(found) + 1))
    hypotheses = [one for each in found for one in each.hypotheses]
    assert lines_in(data) == (len(found) if kind == "jsonl" else len(hypotheses))
    assert all(one.score == -math.inf or math.isfinite(one.score) for one in hypotheses)
    rows = [row for each in found for row in written(each, kind)]
    assert all(row == row.encode().decode() and row.isprintable() for row in (visible(row) for row in rows))
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    again = list(read_nbest(path)[1])
    assert again == found if kind == "jsonl" else [shape(each) for each in again] == [shape(each) for each in found]


def visible(row: str) -> str:
    """Without the tab between fields and what is no danger to a terminal although Python will not show it."""
    return "".join(character for character in row if character not in "\t\u202e\u200d\u00a0\u3000")


def shape(lists: NBest) -> tuple[int, list[str]]:
    """What a table keeps of any text; control characters become spaces, and those at the end are left off."""
    return lists.line, [f"{one.score:.6f}" for one in lists.hypotheses]
