"""Files beside the input: read along with it, line for line, and refused where they do not fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from s2s.commands.asked import asked_lines, read_dictionary, read_phrases
from s2s.errors import DataError
from s2s.search.translate import Line


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_lines_side_by_side(tmp_path: Path) -> None:
    prefix = write(tmp_path / "prefix", "\ufeffDer  Hund\n\nDie")
    require = write(tmp_path / "require", "\ufeffein\u00a0Mann\t\tsieht \r\n\t\nKo\u0308nig\n")
    assert list(asked_lines(["a", None, "c"], "in", prefix, require)) == [
        Line("a", "Der Hund", ("ein Mann", "sieht")),
        Line("", "", ()),
        Line("c", "Die", ("König",)),
    ]
    assert list(asked_lines(["a", "b", "c"], "in", prefix)) == [Line("a", "Der Hund"), Line("b"), Line("c", "Die")]
    assert list(asked_lines(iter(["a"]), "in")) == [Line("a")]


@pytest.mark.parametrize("lines", [0, 1, 2, 4, 9])
@pytest.mark.parametrize("option", ["prefix", "require"])
def test_unequal_numbers_of_lines(tmp_path: Path, lines: int, option: str) -> None:
    path = write(tmp_path / option, "x\n\ny\n")
    with pytest.raises(DataError, match=rf"^in has {lines} lines, {path} 3; line N") as caught:
        list(asked_lines(["a"] * lines, "in", **{option: path}))
    assert caught.value.code == 3


def test_no_line_is_taken_before_it_is_asked_for(tmp_path: Path) -> None:
    """A conversation waits for nothing but the line it answers."""

    def typed() -> Iterator[str]:
        yield "a"
        raise AssertionError("asked for the second line too soon")

    lines = asked_lines(typed(), "in", write(tmp_path / "prefix", "x\ny\n"), write(tmp_path / "require", "x\ny\n"))
    assert next(lines) == Line("a", "x", ("x",))


@pytest.mark.parametrize("option", ["prefix", "require"])
def test_in_a_conversation_no_line_is_waited_for_to_be_counted(tmp_path: Path, option: str) -> None:
    def typed() -> Iterator[str]:
        yield from ("a", "b")
        raise AssertionError("who types it waits for the answer to b")

    path = write(tmp_path / option, "x\n")
    lines = asked_lines(typed(), "in", **{option: path}, conversation=True)
    next(lines)
    with pytest.raises(DataError, match=rf"in: has more lines than {path}, which has 1"):
        next(lines)


def test_phrases(tmp_path: Path) -> None:
    assert read_phrases(write(tmp_path / "forbid", "\ufeffder  Hund\n\n \nKo\u0308nig")) == ["der Hund", "König"]
    assert read_phrases(write(tmp_path / "forbid", "")) == []
    with pytest.raises(
        DataError, match=r"line 2, byte 1: 0xff is not UTF-8; convert the file \(iconv -f latin1 -t utf-8\)$"
    ):
        read_phrases(write(tmp_path / "forbid", b"a\n\xff\n"))


def test_dictionaries(tmp_path: Path) -> None:
    text = "\ufeffHund\tdog\n\nNew\u00a0\tneu \r\nHund\thound\nPetz\tbrown  bear\n"
    expected = {"Hund": "dog", "New": "neu", "Petz": "brown bear"}
    assert read_dictionary(write(tmp_path / "words", text)) == expected


@pytest.mark.parametrize("line", ["Hund", "Hund\t", "\tdog", "Hund\tdog\tcat", "der Hund\tdog"])
def test_lines_that_are_no_entry(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "words", f"a\tb\n{line}\n")
    with pytest.raises(DataError, match=f"{path}: line 2: is not a word, a tab and its translation"):
        read_dictionary(path)
