"""Any bytes as text: as many lines as line feeds, nothing that disturbs a terminal, no failure without its words."""

from __future__ import annotations

import gzip
import io
import unicodedata
from functools import cache
from pathlib import Path

import pytest
from fuzzing import fuzzed, lines_in
from hypothesis import strategies as st

from s2s.data.text import Invalid, PairCounts, TextCounts, printable_output, read_lines, read_pairs, read_stream
from s2s.data.tokenizer import SentencePieceSettings, Tokenizer, WhitespaceSettings, train
from s2s.errors import DataError

PIECES = [
    b"\n", b"\n\n", b"\r\n", b"\r", b" ", b"\t", b"\x0b", b"\x0c", b"\x1c", b"\x1e", b"\x1f", b"\x00", b"\x00\x00",
    b"\x1b[31m", b"\x07", b"\x7f", b"word", b"Haus", b"{", b"</s>", b"<pad>", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff",
    b"\x1f\x8b\x08", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xe2\x82", b"\xf5\x80\x80\x80", b"H\x00a\x00u\x00s\x00",
    *(
        text.encode()
        for text in (
            "\x80", "\x85", "\x9b", "\u2028", "\u2029", "\u00a0", "\u3000", "\ufeff", "\u200f\u05d0", "\u202e",
            "e\u0301", "\u0323\u0301", "\u1100\u1161", "\U0001f469\u200d\U0001f4bb", "\uffff", "\U0010ffff", "\u2581",
            "\u00e9", "\ufb01",
        )
    ),
]  # fmt: skip
"""What files contain that somebody once tripped over."""
TEXTS = st.lists(st.sampled_from(PIECES) | st.binary(max_size=6), max_size=24).map(b"".join)
SHORT = st.lists(st.sampled_from(PIECES), max_size=4).map(b"".join)
PAIRS = st.tuples(SHORT, SHORT) | st.lists(st.tuples(SHORT, SHORT), max_size=5).map(
    lambda pairs: (b"\n".join(pair[0] for pair in pairs), b"\n".join(pair[1] for pair in pairs))
)
"""Two texts, mostly with as many lines."""
INVALID = st.sampled_from(["error", "replace", "drop"])
BAD_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")


def assert_one_line(text: str) -> None:
    """Fit for a terminal and for a file of lines, encodable."""
    assert not any(unicodedata.category(character) in BAD_CATEGORIES for character in text)
    assert text.encode("utf-8").decode("utf-8") == text


def assert_line(line: str) -> None:
    """As every line is given: words with single spaces between them, in NFC."""
    assert_one_line(line)
    assert "  " not in line and line == line.strip()
    assert unicodedata.is_normalized("NFC", line)


def is_utf8(data: bytes) -> bool:
    """Whether the standard library reads it."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def may_refuse(data: bytes, invalid: Invalid) -> bool:
    """Whether there is any ground to refuse a text: bytes that are not UTF-8, the look of UTF-16 or of gzip."""
    return (
        (invalid == "error" and not is_utf8(data))
        or b"\0" in data
        or data[:2] in (b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b")
    )


def read(data: bytes, invalid: Invalid) -> tuple[list[str | None], TextCounts]:
    counts = TextCounts()
    return list(read_stream(io.BytesIO(data), counts=counts, invalid=invalid, where="x")), counts


@pytest.mark.fault("T1", "T4", "TX9", "TX10", "TX11")
@fuzzed(TEXTS, INVALID)
def test_as_many_lines_as_line_feeds(_: Path, data: bytes, invalid: Invalid) -> None:
    try:
        lines, counts = read(data, invalid)
    except DataError as error:
        assert error.code == 3 and may_refuse(data, invalid)
        assert_one_line(str(error))
        return
    assert len(lines) == counts.lines == lines_in(data)
    split = data.split(b"\n")[: len(lines)]
    given_up = [number for number, line in enumerate(lines) if line is None]
    assert given_up == [number for number, raw in enumerate(split) if invalid == "drop" and not is_utf8(raw)]
    assert counts.invalid_utf8 == sum(not is_utf8(raw) for raw in split)
    assert counts.blank == lines.count("")
    for line in lines:
        assert_line(line or "")


@pytest.mark.fault("TX16", "TX20")
@fuzzed(TEXTS)
def test_what_was_read_reads_back(_: Path, data: bytes) -> None:
    """Writing the lines and reading them again changes nothing, with and without the last line feed."""
    try:
        lines, _counts = read(b"first\n" + data, "replace")  # a byte order mark counts on the first line only
    except DataError:
        return
    written = "".join(f"{line}\n" for line in lines).encode()
    assert read(written, "error")[0] == lines
    assert read(written.removesuffix(b"\n"), "error")[0] == (lines if lines[-1] else lines[:-1])


@pytest.mark.fault("TX18", "TX19")
@fuzzed(TEXTS, st.integers(0, 30), st.none() | st.tuples(st.integers(0, 200), st.binary(max_size=3)))
def test_packed_text(folder: Path, data: bytes, split: int, damage: tuple[int, bytes] | None) -> None:
    """Two members of gzip give the lines of the text; whatever is done to them, lines or an error that says gzip."""
    packed = gzip.compress(data[:split]) + gzip.compress(data[split:])
    if damage is not None:
        start, patch = damage[0] % len(packed), damage[1]
        packed = packed[:start] + patch + packed[start + len(patch) :] if patch else packed[:start]
    path = folder / "text.gz"
    path.write_bytes(packed)
    counts = TextCounts()
    try:
        lines = list(read_lines(path, counts=counts, invalid="replace"))
    except DataError as error:
        assert error.code == 3
        assert "gzip" in error.what or may_refuse(data, "replace")
        return
    if damage is None or packed == gzip.compress(data[:split]) + gzip.compress(data[split:]):
        assert (lines, counts.lines) == (read(data, "replace")[0], lines_in(data))


@pytest.mark.fault("TX1", "TX3", "TX21")
@fuzzed(PAIRS, st.sampled_from(["replace", "drop"]), st.integers(1, 4))
def test_pairs_are_counted_or_refused(
    folder: Path, texts: tuple[bytes, bytes], invalid: Invalid, max_length: int
) -> None:
    source, target = texts
    paths = folder / "a", folder / "b"
    for path, data in zip(paths, (source, target), strict=True):
        path.write_bytes(data)
    counts = PairCounts()
    numbers = [lines_in(source), lines_in(target)]
    try:
        pairs = list(read_pairs(*paths, max_length=max_length, invalid=invalid, counts=counts))
    except DataError as error:
        if may_refuse(source, invalid) or may_refuse(target, invalid):
            return
        if numbers[0] != numbers[1]:
            assert f"{paths[0]} has {numbers[0]} lines, {paths[1]} {numbers[1]}" in str(error)
        else:
            assert "no pair is left" in str(error)
        return
    assert numbers == [counts.pairs] * 2
    assert counts.blank + counts.too_long + counts.invalid_dropped + counts.kept == counts.pairs
    assert len(pairs) == counts.kept > 0
    sides = [read(data, invalid)[0] for data in (source, target)]
    for pair in pairs:
        assert [pair.source, pair.target] == [side[pair.line - 1] for side in sides]
        assert all(len(text.split()) <= max_length for text in (pair.source, pair.target))


# --- pieces -----------------------------------------------------------------------------------------------------------

MODELS = ("bpe", "unigram", "char", "word", "whitespace")
CORPUS = [
    ("The old dog sees a man .", "Der alte Hund sieht einen Mann ."),
    ("ein \U0001f469 \ufffd \u05d0", "</s> <pad>"),
]


@cache
def tokenizer_of(model: str) -> Tokenizer:
    """Learned from a few words, some of them strange."""
    if model == "whitespace":
        return train(WhitespaceSettings(), CORPUS, lambda _: None).source
    settings = SentencePieceSettings.model_validate({"model": model, "vocabulary": 60})
    return train(settings, CORPUS, lambda _: None).source


@pytest.mark.fault("TX17", "T4")
@fuzzed(TEXTS, st.sampled_from(MODELS), st.lists(st.integers(0, 10**6), max_size=8))
def test_pieces_and_text(_: Path, data: bytes, model: str, numbers: list[int]) -> None:
    """No text gets the id of a control piece, and no ids give more than one harmless line."""
    tokenizer = tokenizer_of(model)
    try:
        lines, _counts = read(data, "replace")
    except DataError:
        return
    for line in lines:
        ids = tokenizer.encode(line or "")
        assert not set(ids) & {0, 1, 2}
        assert bool(ids) == bool(line)
        assert len(tokenizer.words(ids)) == len(ids)
        assert_one_line(printable_output(tokenizer.decode(ids)))
    ids = [number % tokenizer.size for number in numbers]
    text = tokenizer.decode(ids)
    assert_one_line(printable_output(text))
    assert max(tokenizer.words(ids), default=-1) + 1 == len(text.split())
    assert len(tokenizer.pieces(ids)) == len(ids)
