"""Text in and out: the matrix of things that files contain, pairs that do or do not match, and output files."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
import tracemalloc
import unicodedata
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2s.data import text as text_module
from s2s.data.text import (
    LONGEST_LINE,
    OutputFile,
    Pair,
    PairCounts,
    TextCounts,
    normalise,
    printable_output,
    read_lines,
    read_pairs,
    read_raw_lines,
    read_stream,
)
from s2s.errors import DataError, S2SError, Stopped, SystemRefused, UsageError

Invalid = Literal["error", "replace", "drop"]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def lines_of(content: bytes, invalid: Invalid = "error") -> tuple[list[str | None], TextCounts]:
    counts = TextCounts()
    return list(read_stream(io.BytesIO(content), counts=counts, invalid=invalid, where="x")), counts


def pairs_of(
    folder: Path, source: bytes, target: bytes, *, max_length: int = 256, invalid: Invalid = "error"
) -> tuple[list[Pair], PairCounts]:
    counts = PairCounts()
    paths = write(folder / "train.en", source), write(folder / "train.de", target)
    return list(read_pairs(*paths, max_length=max_length, invalid=invalid, counts=counts)), counts


# --- normalisation ----------------------------------------------------------------------------------------------------


@pytest.mark.fault("TX4", "TX6", "TX10", "TX11", "TX13", "TX14", "TX15", "TX16", "TX17")
@pytest.mark.parametrize(
    ("line", "expected", "controls"),
    [
        ("a  b", "a b", 0),
        (" \t\u00a0\u3000a\u2003\t b \r", "a b", 0),
        ("a\rb", "a b", 0),
        ("a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i", "a b c d e f g h i", 0),
        ("a\x00b\x07c\x1b[31md\x1fe\x7ff\x80g\x9bh", "a b c [31md e f g h", 7),
        ("\x00 \x00", "", 2),
        ("e\u0301 \u00e9 a\u0323\u0302", "\u00e9 \u00e9 \u1ead", 0),
        ("\u2026 \ufb01 \uff21", "\u2026 \ufb01 \uff21", 0),  # NFC, not NFKC
        ("\u200f\u05d0\u200e \u202ba\u202c", "\u200f\u05d0\u200e \u202ba\u202c", 0),
        ("\U0001f469\u200d\U0001f4bb \U0001f1e9\U0001f1ea", "\U0001f469\u200d\U0001f4bb \U0001f1e9\U0001f1ea", 0),
        ("<unk> </s> <pad>", "<unk> </s> <pad>", 0),
    ],
)
def test_normalise(line: str, expected: str, controls: int) -> None:
    assert normalise(line) == (expected, controls)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_normalise_twice_is_once_and_leaves_nothing_unprintable(line: str) -> None:
    once, _ = normalise(line)
    assert normalise(once) == (once, 0)
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in once)


@given(
    st.text(alphabet="ae \u0301\u0323\u0344\u0f71\u0f72\u0f73\u0338=\u1100\u1161\u11a8\uac00\u1ead\u00e9", max_size=60)
)
def test_the_way_of_long_lines_is_the_way_of_short_ones(line: str) -> None:
    expected = unicodedata.normalize("NFC", " ".join(line.split()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "_SHORT_WORD", 3)
        assert normalise(line)[0] == expected


@pytest.mark.fault("TX15")
@pytest.mark.parametrize("unit", ["\u0301\u0323", "\u0f73", "\u0323\u0301 e"], ids=["marks", "doubles", "words"])
def test_a_flood_of_combining_characters_takes_linear_time(unit: str) -> None:
    start = time.process_time()
    normalised, _ = normalise("a" + unit * 200_000)
    assert time.process_time() - start < 10  # the library alone needs minutes
    assert unicodedata.is_normalized("NFC", normalised[:500])


@pytest.mark.fault("T4")
@given(st.text())
def test_output_is_one_printable_line_of_utf8(text: str) -> None:
    shown = printable_output(text)
    assert len(shown) == len(text)
    assert len(shown.encode("utf-8").splitlines()) <= 1
    assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in shown)


@pytest.mark.fault("T4")
def test_output_replaces_what_is_not_printable_and_only_that() -> None:
    assert printable_output("a\tb\nc\x1b[0m\x7f\x85\u2028\u2029d") == "a b c [0m    d"
    assert printable_output("x\ud800y") == "x\ufffdy"
    assert printable_output("\u200f\u00e9 \U0001f469\u200d\U0001f4bb") == "\u200f\u00e9 \U0001f469\u200d\U0001f4bb"


# --- lines ------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("TX2", "TX5", "TX6", "TX7", "TX11")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"\n\n\n", ["", "", ""]),
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"a\r\nb\nc\r\n", ["a", "b", "c"]),
        (b"a\rb\n", ["a b"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),
        (b"\xef\xbb\xbf", [""]),
        (" \t\u00a0\u3000\n".encode(), [""]),
        ("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\n".encode(), ["a b c d e f g h i"]),
    ],
)
def test_lines_end_at_line_feeds_only(content: bytes, expected: list[str]) -> None:
    lines, counts = lines_of(content)
    assert lines == expected
    assert counts.lines == len(expected)
    assert counts.blank == expected.count("")


@pytest.mark.fault("TX5", "TX7")
def test_carriage_returns_and_the_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    plain = "ein  H\u00e4us\nzwei\n\n".encode()
    for content in (plain.replace(b"\n", b"\r\n"), codecs.BOM_UTF8 + plain, plain[:-1].replace(b"zwei", b"zwei\r")):
        lines, counts = lines_of(content)
        assert lines[:2] == ["ein H\u00e4us", "zwei"]
        assert counts.controls == 0


@pytest.mark.fault("TX10")
def test_controls_are_counted_and_gone() -> None:
    lines, counts = lines_of(b"a\x00b\x1b[2J\n\x7f\n\tc\n")
    assert lines == ["a b [2J", "", "c"]
    assert (counts.controls, counts.blank) == (3, 1)


INVALID = [
    (b"caf\xe9", 4, "0xe9"),
    (b"\xc0\xafx", 1, "0xc0"),  # overlong
    (b"ab\xed\xa0\x80", 3, "0xed"),  # a surrogate
    (b"x\xe2\x82", 2, "0xe2"),  # cut
    (b"\xf5", 1, "0xf5"),
]


@pytest.mark.fault("TX9")
@pytest.mark.parametrize(("line", "byte", "value"), INVALID)
def test_invalid_utf8_is_refused_with_its_place(tmp_path: Path, line: bytes, byte: int, value: str) -> None:
    path = write(tmp_path / "train.de", b"ok\n" * 6 + line)
    with pytest.raises(DataError) as caught:
        list(read_lines(path, counts=TextCounts()))
    assert str(caught.value) == (
        f"{path}: line 7, byte {byte}: {value} is not UTF-8; "
        "convert the file (iconv -f latin1 -t utf-8) or set data.invalid_utf8: replace"
    )
    assert caught.value.code == 3


@pytest.mark.fault("TX9")
@pytest.mark.parametrize(("line", "byte", "value"), INVALID)
def test_invalid_utf8_is_replaced_or_dropped_and_counted(line: bytes, byte: int, value: str) -> None:
    content = b"one\n" + line + b"\nthree\n" + line
    replaced, counts = lines_of(content, "replace")
    assert [replaced[0], replaced[2], len(replaced)] == ["one", "three", 4]
    assert "\ufffd" in str(replaced[1])
    assert (counts.lines, counts.invalid_utf8, counts.first_invalid) == (4, 2, 2)
    assert counts.warnings() == ["x: 2 lines are not UTF-8, the first is line 2"]
    dropped, counts = lines_of(content, "drop")
    assert dropped == ["one", None, "three", None]
    assert (counts.lines, counts.invalid_utf8) == (4, 2)


@pytest.mark.fault("TX7", "TX9")
def test_the_byte_order_mark_counts_in_the_byte_offset() -> None:
    with pytest.raises(DataError, match=r"line 1, byte 5: 0xff"):
        lines_of(b"\xef\xbb\xbfa\xff\n")


@pytest.mark.fault("TX8")
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["Guten Tag\nzwei\n", "\n\nGuten Tag\n", "Ja\nGuten Tag\n"])
@pytest.mark.parametrize("invalid", ["error", "replace", "drop"])
def test_utf16_is_refused_with_a_hint(encoding: str, text: str, invalid: Invalid) -> None:
    with pytest.raises(DataError, match=r"UTF-16.*iconv -f utf-16"):
        lines_of(text.encode(encoding), invalid)


@pytest.mark.fault("TX8", "TX10")
def test_stray_nulls_are_not_utf16() -> None:
    assert lines_of(b"a\x00b\x00c\x00\n\x00\x00\x00\x00\x00\x00\n")[0] == ["a b c", ""]


@given(st.binary(max_size=80), st.sampled_from(["error", "replace", "drop"]))
def test_any_bytes_give_their_lines_or_an_expected_error(content: bytes, invalid: Invalid) -> None:
    try:
        lines, counts = lines_of(content, invalid)
    except S2SError as error:
        assert error.code == 3
        return
    expected = content.count(b"\n") + (content != b"" and not content.endswith(b"\n"))
    assert len(lines) == counts.lines == expected
    assert (None in lines) == (invalid == "drop" and counts.invalid_utf8 > 0)


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\n\ufeff\x00", exclude_categories=["Cs"]))))
def test_valid_text_keeps_its_words(lines: list[str]) -> None:
    content = "".join(f"{line}\n" for line in lines).encode()
    assert [line and line.split() for line in lines_of(content, "replace")[0]] == [
        normalise(line)[0].split() or "" for line in lines
    ]


@pytest.mark.fault("M1", "TX12")
@pytest.mark.parametrize("zipped", [False, True])
def test_an_endless_line_is_given_up_in_bounded_memory(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "bomb"
    with gzip.open(path, "wb", compresslevel=1) if zipped else path.open("wb") as file:
        file.write(b"one\n")
        for _ in range(64):
            file.write(b"x" * (1 << 20))
        file.write(b"\nthree\n")
    counts = TextCounts()
    tracemalloc.start()
    lines = list(read_lines(path, counts=counts))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lines == ["one", None, "three"]
    assert (counts.lines, counts.oversized) == (3, 1)
    assert peak < 4 * LONGEST_LINE
    assert counts.warnings() == [f"{path}: 1 lines are longer than {LONGEST_LINE} bytes and were left out"]


def test_the_longest_line_is_read_and_one_byte_more_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "LONGEST_LINE", 4)
    assert lines_of(b"abcd\nabcde\nab\nabcde")[0] == ["abcd", None, "ab", None]
    assert lines_of(b"abcd")[0] == ["abcd"]


@pytest.mark.fault("TX12")
def test_a_million_characters_are_read() -> None:
    line = "\U0001f600" * 1_000_000
    assert lines_of(line.encode())[0] == [line]


def test_lines_come_one_by_one() -> None:
    read, write_end = os.pipe()
    with open(read, "rb") as reader, open(write_end, "wb", buffering=0) as writer:  # noqa: PTH123
        lines = read_stream(reader, counts=TextCounts())
        for line in ("eins", "zwei"):
            writer.write(f"{line}\n".encode())
            assert next(lines) == line  # would wait for ever if the reader wanted more than a line


# --- gzip -------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("TX18")
@pytest.mark.parametrize("name", ["train.gz", "train.en"])
@pytest.mark.parametrize(
    "content",
    [gzip.compress(b"a\nb\n"), gzip.compress(b"a\n") + gzip.compress(b"b"), gzip.compress(b"a\nb\n") + bytes(8)],
    ids=["one", "two members", "padded"],
)
def test_gzip_is_read_by_suffix_and_by_content(tmp_path: Path, name: str, content: bytes) -> None:
    assert list(read_lines(write(tmp_path / name, content), counts=TextCounts())) == ["a", "b"]


WHOLE = gzip.compress(b"a\n" + bytes(range(32, 127)) * 50 + b"\n")


@pytest.mark.fault("TX19")
@pytest.mark.parametrize(
    "content",
    [
        WHOLE[:-9],
        WHOLE[:-1],
        WHOLE[:5],
        WHOLE[:-8] + bytes([WHOLE[-8] ^ 1]) + WHOLE[-7:],
        WHOLE[:12] + b"\xff\xff\xff" + WHOLE[15:],
        WHOLE + b"garbage",
        WHOLE + WHOLE[:15],
    ],
    ids=["truncated", "short trailer", "header only", "checksum", "damaged", "trailing garbage", "second truncated"],
)
def test_broken_gzip_is_named(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "train.en.gz", content)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: broken gzip data after line [012]: ."):
        list(read_lines(path, counts=TextCounts()))


@pytest.mark.fault("TX18")
@pytest.mark.parametrize("invalid", ["error", "replace", "drop"])
def test_gzip_where_nothing_unpacks_it_is_refused(tmp_path: Path, invalid: Invalid) -> None:
    """On a stream, and inside gzip: it is no text that could be read with replacements."""
    with pytest.raises(DataError, match=r"^x: is packed with gzip; unpack it first \(gunzip\)") as caught:
        lines_of(WHOLE, invalid)
    assert caught.value.code == 3
    with pytest.raises(DataError, match="is packed with gzip"):
        list(read_lines(write(tmp_path / "twice.gz", gzip.compress(WHOLE)), counts=TextCounts(), invalid=invalid))


@pytest.mark.fault("TX18")
@pytest.mark.parametrize("content", [b"plain\n", b""])
def test_a_gzip_name_without_gzip_content_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"ends in \.gz but is not gzip"):
        list(read_lines(write(tmp_path / "train.gz", content), counts=TextCounts()))


# --- files that are none ----------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(read_lines(path, counts=TextCounts()))
    assert caught.value.code == 3
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.fault("TX25")
def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "is a directory, not a text file"
    assert refusal(tmp_path / "missing") == "no such file"
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "cannot be opened" in refusal(loop)
    assert "cannot be opened" in refusal(tmp_path / ("n" * 300))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert refusal(pipe) == "is a pipe or a device, which cannot be read twice; write it to a file first"


def test_a_nul_in_a_name_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be opened"):
        list(read_lines("a\0b", counts=TextCounts()))


@pytest.mark.fault("TX25")
def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        assert "socket" in refusal(Path("socket"))


@pytest.mark.fault("TX25")
@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "secret", b"a\n")
    path.chmod(0)
    assert "Permission denied" in refusal(path)


@pytest.mark.fault("TX25")
def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "secret", b"a\n")
    monkeypatch.setattr(Path, "open", refuse)
    assert refusal(path) == "cannot be opened: Permission denied"


@pytest.mark.fault("TX25")
def test_a_pipe_is_read_where_once_is_enough(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen([sys.executable, "-c", f"open({str(pipe)!r}, 'w').write('a\\nb')"]):
        assert list(read_lines(pipe, counts=TextCounts(), allow_pipe=True)) == ["a", "b"]


def test_an_error_while_reading_is_told() -> None:
    class Broken:
        def readline(self, size: int, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(DataError, match="disk: cannot be read after line 0: Input/output error"):
        list(read_stream(Broken(), counts=TextCounts(), where="disk"))


# --- pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("TX3", "TX4")
def test_pairs_and_their_summary(tmp_path: Path) -> None:
    pairs, counts = pairs_of(
        tmp_path, b"one\n\ntwo\x00\na b c d\nfive\nsix", b"eins\nzwei\nzwei\nx\n \t\nsechs\n", max_length=3
    )
    assert pairs == [Pair("one", "eins", 1), Pair("two", "zwei", 3, 1), Pair("six", "sechs", 6, 1)]
    assert counts.summary() == ("data: 6 pairs read, 2 blank, 1 too long (> 3), 1 control characters replaced, 3 kept")
    assert counts.warnings() == []


@pytest.mark.fault("TX12")
@pytest.mark.parametrize(
    ("side", "kept"), [("a b c", 1), ("a b c d", 0), ("x" * 60, 1), ("x" * 61, 0)], ids=["3", "4", "60", "61"]
)
def test_too_long_is_words_or_characters_of_either_side(tmp_path: Path, side: str, kept: int) -> None:
    for source, target in ((side, "ok"), ("ok", side)):
        _, counts = pairs_of(tmp_path, f"{source}\nx\n".encode(), f"{target}\ny\n".encode(), max_length=3)
        assert (counts.kept - 1, counts.too_long) == (kept, 1 - kept)


@pytest.mark.fault("TX12")
def test_an_oversized_line_is_a_pair_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "LONGEST_LINE", 8)
    pairs, counts = pairs_of(tmp_path, b"x" * 50 + b"\nb\n\xff\nd\n", b"a\nb\nc\nd\n", invalid="drop")
    assert [pair.line for pair in pairs] == [2, 4]
    assert (counts.too_long, counts.invalid_dropped, counts.kept, counts.pairs) == (1, 1, 2, 4)


@pytest.mark.fault("TX9")
def test_invalid_lines_drop_their_pair_or_are_replaced(tmp_path: Path) -> None:
    source, target = b"a\nb\xff\nc\n", b"x\ny\nz\xff\n"
    pairs, counts = pairs_of(tmp_path, source, target, invalid="drop")
    assert pairs == [Pair("a", "x", 1)]
    assert counts.summary().endswith("0 control characters replaced, 2 with invalid UTF-8 dropped, 1 kept")
    pairs, counts = pairs_of(tmp_path, source, target, invalid="replace")
    assert pairs[1:] == [Pair("b\ufffd", "y", 2), Pair("c", "z\ufffd", 3)]
    assert counts.summary().endswith("0 control characters replaced, 2 lines of invalid UTF-8 replaced, 3 kept")
    with pytest.raises(DataError, match=r"train\.en: line 2, byte 2: 0xff"):
        pairs_of(tmp_path, source, target)


@pytest.mark.fault("TX20")
def test_a_missing_last_line_feed_changes_nothing(tmp_path: Path) -> None:
    assert pairs_of(tmp_path, b"a\nb", b"x\ny\n")[0] == pairs_of(tmp_path, b"a\nb\n", b"x\ny")[0]


@pytest.mark.fault("TX1")
@pytest.mark.parametrize(("source", "target"), [(40, 41), (41, 40), (40, 45), (0, 3)])
def test_unequal_files_are_refused_with_both_counts(tmp_path: Path, source: int, target: int) -> None:
    with pytest.raises(DataError) as caught:
        pairs_of(tmp_path, b"a\n" * source, b"b\n" * target)
    assert str(caught.value) == (
        f"{tmp_path}/train.en has {source} lines, {tmp_path}/train.de {target}; "
        "line N of one file must translate line N of the other"
    )


@pytest.mark.fault("TX21")
@pytest.mark.parametrize(
    ("source", "target", "hinted"),
    [
        (b"a\nb\n\n", b"x\ny\n", True),
        (b"a\nb\n", b"x\ny\n \r\n", True),
        (b"a\nb\n\n\n", b"x\ny\n", False),
        (b"a\n\nb\n", b"x\ny\n", False),
    ],
)
def test_an_extra_blank_last_line_is_hinted_at(tmp_path: Path, source: bytes, target: bytes, hinted: bool) -> None:
    with pytest.raises(DataError) as caught:
        pairs_of(tmp_path, source, target)
    assert ("one file ends with an extra blank line" in str(caught.value)) == hinted


@pytest.mark.fault("TX2")
@pytest.mark.parametrize("content", [b"", b"\n\n", b" \n\xc2\xa0\n", b"a b c d e\n"])
def test_no_pair_left_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"^data: no pair is left .* pairs read, .*, 0 kept; give other files"):
        pairs_of(tmp_path, content, content, max_length=4)


@pytest.mark.fault("TX23")
@pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
def test_one_file_as_both_sides_is_refused(tmp_path: Path, link: str) -> None:
    path = write(tmp_path / "train.en", b"a\n")
    other = path if link == "same" else tmp_path / "train.de"
    if link == "symbolic":
        other.symlink_to(path)
    elif link == "hard":
        other.hardlink_to(path)
    with pytest.raises(UsageError, match="same file") as caught:
        list(read_pairs(path, other, max_length=9, counts=PairCounts()))
    assert caught.value.code == 2


@pytest.mark.fault("TX22")
def test_repeats_and_copies_are_warned_of(tmp_path: Path) -> None:
    _, counts = pairs_of(tmp_path, b"a\n" * 6 + b"b\nc\nd\ne\n", b"x\n" * 6 + b"b\nc\ny\nz\n")
    counts.repeats = 5
    assert counts.warnings() == ["data: the source equals the target in 2 of the 10 pairs"]  # repeats are 50 %
    _, counts = pairs_of(tmp_path, b"a\n" * 7 + b"b\nc\nd\n", b"x\n" * 7 + b"b\ny\nz\n")
    counts.repeats = 6
    assert counts.warnings() == ["data: 60% of the 10 pairs repeat an earlier pair"]  # copies are 10 %


@pytest.mark.fault("TX26")
def test_tables_and_json_by_mistake_are_hinted_at(tmp_path: Path) -> None:
    _, counts = pairs_of(tmp_path, b'{"a": 1}\n\n{"b": 2}\n', b"x\ty\nw\nz\tw\n")
    assert counts.warnings() == [f"{tmp_path}/train.en: every line starts with {{; is it JSON, not plain text?"]
    _, counts = pairs_of(tmp_path, b"{a\nb\n", b"x\ty\nz\tw\n")
    assert counts.warnings() == [f"{tmp_path}/train.de: every line has one tab; is it a table, not plain text?"]
    assert pairs_of(tmp_path, b"a\tb\nc\td\te\n", b"x\ty\nz\n")[1].warnings() == []


# --- output -----------------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_output_appears_whole_with_the_usual_mode(tmp_path: Path) -> None:
    path = tmp_path / "out"
    mask = os.umask(0o027)
    try:
        with OutputFile(path) as output:
            output.write_line("H\u00e4user")
            output.write_line("")
            output.flush()
            assert not path.exists()
    finally:
        os.umask(mask)
    assert path.read_bytes() == "H\u00e4user\n\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names(tmp_path) == ["out"]


@pytest.mark.fault("T6")
def test_an_existing_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "out", b"old\n")
    with pytest.raises(UsageError, match=r"exists already.*--overwrite") as caught, OutputFile(path):
        pass
    assert caught.value.code == 2
    assert path.read_bytes() == b"old\n"
    link = tmp_path / "link"
    link.symlink_to("out")
    with OutputFile(link, overwrite=True) as output:
        output.write_line("new")
        assert path.read_bytes() == b"old\n"
    assert path.read_bytes() == b"new\n"
    assert link.is_symlink()


@pytest.mark.fault("T6")
def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"exists already.*kept in .*out\.partial"),
        OutputFile(tmp_path / "out") as one,
    ):
        one.write_line("one")
        with OutputFile(tmp_path / "out") as other:
            other.write_line("other")
    assert (tmp_path / "out").read_bytes() == b"other\n" and (tmp_path / "out.partial").read_bytes() == b"one\n"


def test_no_output_into_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a directory"):
        OutputFile(tmp_path, overwrite=True)
    write(tmp_path / "file", b"")
    for folder in ("none", "file"):
        with pytest.raises(UsageError, match="folder does not exist"):  # before any work
            OutputFile(tmp_path / folder / "out")
    with pytest.raises(SystemRefused, match="too long"):
        OutputFile(tmp_path / ("n" * 300))


@pytest.mark.fault("T7")
@pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
def test_output_over_the_input_is_refused(tmp_path: Path, link: str) -> None:
    source = write(tmp_path / "in", b"text\n")
    path = source if link == "same" else tmp_path / "out"
    if link == "symbolic":
        path.symlink_to(source)
    elif link == "hard":
        path.hardlink_to(source)
    with pytest.raises(UsageError, match="is the input too"):
        OutputFile(path, overwrite=True, inputs=["elsewhere", source])
    assert source.read_bytes() == b"text\n"


@pytest.mark.fault("T7")
def test_an_input_that_a_failure_would_replace_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "out.partial", b"text\n")
    with pytest.raises(UsageError, match="is the input too"):
        OutputFile(tmp_path / "out", inputs=[source])


@pytest.mark.fault("T6")
@pytest.mark.parametrize(
    "error", [DataError("in", "broken", "mend it"), DataError("in", "broken"), Stopped(15, "broken")]
)
def test_an_error_keeps_the_target_and_names_the_partial_file(tmp_path: Path, error: S2SError) -> None:
    path = write(tmp_path / "out", b"old\n")
    with pytest.raises(type(error), match="broken") as caught, OutputFile(path, overwrite=True) as output:
        output.write_line("one")
        raise error
    assert str(caught.value).endswith(f"; what was written is kept in {path}.partial")
    assert caught.value.todo.endswith(f"kept in {path}.partial")
    assert path.read_bytes() == b"old\n"
    assert (tmp_path / "out.partial").read_bytes() == b"one\n"
    assert names(tmp_path) == ["out", "out.partial"]


@pytest.mark.fault("T6")
def test_an_error_before_the_first_line_leaves_what_an_earlier_one_kept(tmp_path: Path) -> None:
    earlier = write(tmp_path / "out.partial", b"hours of work\n")
    with pytest.raises(DataError) as caught, OutputFile(tmp_path / "out"):
        raise DataError("in", "broken")
    assert str(caught.value) == "in: broken"
    assert earlier.read_bytes() == b"hours of work\n" and names(tmp_path) == ["out.partial"]


def test_an_interrupt_keeps_what_was_written(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught, OutputFile(tmp_path / "out") as output:
        output.write_line("one")
        raise KeyboardInterrupt
    assert "out.partial" in caught.value.__notes__[0]
    assert names(tmp_path) == ["out.partial"]


def test_a_name_too_long_for_a_partial_file_keeps_the_temporary_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"kept in .*\.s2s-") as caught, OutputFile(tmp_path / ("n" * 255)) as output:
        output.write_line("one")
        raise DataError("in", "broken")
    (kept,) = tmp_path.iterdir()
    assert str(caught.value).endswith(str(kept))
    assert kept.read_bytes() == b"one\n"


@pytest.mark.fault("T6", "T8")
def test_a_file_that_may_not_grow_is_refused_by_the_system(tmp_path: Path) -> None:
    path = write(tmp_path / "out", b"old\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(SystemRefused) as caught, OutputFile(path, overwrite=True) as output:
            output.write_line("one")
            output.flush()
            resource.setrlimit(resource.RLIMIT_FSIZE, (4, limits[1]))
            for _ in range(100_000):
                output.write_line("more")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.code == 6
    assert str(caught.value) == (
        f"{path}: cannot be written: File too large; what was written is kept in {path}.partial"
    )
    assert path.read_bytes() == b"old\n"
    assert (tmp_path / "out.partial").read_bytes() == b"one\n"


@pytest.mark.fault("T8")
def test_a_disk_that_is_full_at_the_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(SystemRefused, match=r"No space left on device; .*out\.partial"),
        OutputFile(tmp_path / "out") as output,
    ):
        output.write_line("one")
    assert names(tmp_path) == ["out.partial"]


@pytest.mark.fault("T8")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("flush", [False, True])
def test_a_full_device_is_told(flush: bool) -> None:
    with pytest.raises(SystemRefused) as caught, OutputFile("/dev/full") as output:
        output.write_line("one")
        if flush:
            output.flush()
    assert str(caught.value) == "/dev/full: cannot be written: No space left on device"
    assert caught.value.code == 6
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_a_device_is_written_and_stays_one() -> None:
    with OutputFile("/dev/null") as output:
        output.write_line("one")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_reading_text_needs_no_torch() -> None:
    code = "import sys, s2s.data.text; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_pipe_without_a_name_is_written_to() -> None:
    """As `--output >(gzip > x)` gives one."""
    reading, writing = os.pipe()
    try:
        with OutputFile(f"/dev/fd/{writing}") as output:
            output.write_line("a")
        assert os.read(reading, 10) == b"a\n"
    finally:
        os.close(reading)
        os.close(writing)


def test_lines_that_must_all_be_there_are_not_read_without_end(tmp_path: Path) -> None:
    path = tmp_path / "lines.gz"
    with gzip.open(path, "wb") as file:
        file.write(b"a\n" + b"x" * 8 + b"\n" + b"x" * 9 + b"\n")
    assert list(read_raw_lines(path, longest=9)) == ["a", "x" * 8, "x" * 9]
    found = read_raw_lines(path, longest=8)
    assert [next(found), next(found)] == ["a", "x" * 8]
    with pytest.raises(DataError, match=r"lines.gz: line 3 is longer than 8 bytes; break it"):
        next(found)
    with gzip.open(path, "wb") as file:
        for _ in range(32):
            file.write(b"\0" * (1 << 20))
    tracemalloc.start()
    with pytest.raises(DataError, match="line 1 is longer than"):
        list(read_raw_lines(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * LONGEST_LINE
