"""Any bytes as a file of word links: a set of links for each line, or one line that says which is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fuzzing import fuzzed, lines_in
from hypothesis import strategies as st

from s2s.analysis.alignment import format_links, read_links
from s2s.errors import DataError, printable

PIECES = [
    b"0-0", b"1-2", b"3p4", b"10-3", b"1-", b"-1", b"1--1", b"-", b"p", b" ", b"\t", b"\n", b"\n\n", b"\r\n", b"\r",
    b"\x0b", b"\x00", b"\x1b[31m", b"\xff", b"9" * 20, b"9" * 5000, b"0x1-0", b"1_0-2", b"\xef\xbb\xbf",
    *(text.encode() for text in ("\u0663-\u0663", "\u00b2-1", "\u2028", "\x85", "\u00a0", "1\u20132")),
]  # fmt: skip
MOSTLY_LINKS = st.sampled_from(PIECES) | st.sampled_from([b"0-0 ", b"1-2 ", b"3p4 ", b"\n"])
TEXTS = st.lists(MOSTLY_LINKS, max_size=16).map(b"".join) | st.binary(max_size=30)
LINKS = st.lists(st.sets(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=5), max_size=6)


@pytest.mark.fault("T4")
@fuzzed(TEXTS, st.integers(0, 1))
def test_any_file_of_links(folder: Path, data: bytes, first: int) -> None:
    path = folder / "links"
    path.write_bytes(data)
    try:
        found = read_links(path, first)
    except DataError as error:
        assert error.code == 3
        assert str(error) == printable(error)
        assert str(error).startswith(f"{path}: ")
        return
    assert len(found) == lines_in(data)
    for links, raw in zip(found, data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), strict=False):
        tokens = [re.split("[-p]", token) for token in raw.decode().split()]
        assert links.possible == {(int(source) - first, int(target) - first) for source, target in tokens}
        assert links.sure <= links.possible


@fuzzed(LINKS)
def test_links_read_back(folder: Path, sentences: list[set[tuple[int, int]]]) -> None:
    path = folder / "links"
    path.write_text("".join(f"{format_links(links)}\n" for links in sentences))
    assert [links.sure for links in read_links(path)] == sentences


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    """A carriage return within a line is white space, before a line feed too; a byte order mark is no link."""
    path = tmp_path / "links"
    path.write_bytes(b"\xef\xbb\xbf0-0\r1-1\r\n\r\n2-2")
    assert [links.sure for links in read_links(path)] == [{(0, 0), (1, 1)}, set(), {(2, 2)}]


def test_numbers_beyond_all_words_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "links"
    path.write_text(f"999999999-0\n{'9' * 5000}-0\n")
    with pytest.raises(DataError, match=f"^{path}: line 2: '9{{40}}' is not a link; write links as 0-0"):
        read_links(path)
