"""Files as people have them: every kind of text that can be tripped over, and how many lines each has."""

from __future__ import annotations

import codecs
import gzip
from typing import NamedTuple

GOOD = "The old dog sees a man."
SEPARATORS = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e"
"""What some programs take for the end of a line, and ours for a space."""
CONTROLS = "".join(
    chr(code) for code in (*range(0x09), *range(0x0E, 0x1C), 0x1F, *range(0x7F, 0x85), *range(0x86, 0xA0))
)
"""What becomes a space and is counted: C0 without the white space, DEL, and C1 without U+0085."""


class Case(NamedTuple):
    """A file's content and its number of lines, counted by hand; None where it must be refused, then with ``words``."""

    data: bytes
    lines: int | None
    row: str
    """The row of the fault catalogue."""
    words: str = ""
    valid: bool = True
    """Whether it is UTF-8, so that training takes it too."""


def text(content: str, lines: int, row: str) -> Case:
    """A case of valid UTF-8."""
    return Case(content.encode(), lines, row)


def invalid(content: bytes, lines: int) -> Case:
    return Case(content, lines, "TX9", valid=False)


_PACKED = gzip.compress(f"{GOOD}\n{GOOD}\n".encode() * 50)

PLAIN = {
    "plain": text(f"{GOOD}\n{GOOD}\n", 2, "T1"),
    "nothing": text("", 0, "TX2"),
    "one line feed": text("\n", 1, "TX2"),
    "only line feeds": text("\n\n\n\n", 4, "TX2"),
    "blank lines between": text(f"\n{GOOD}\n\n\n{GOOD}\n\n", 6, "TX3"),
    "white space lines": text(" \n\u00a0\n\u3000\n\t\n \u2003 \u00a0\n\u2028\n", 6, "TX4"),
    "carriage returns": text(f"{GOOD}\r\n\r\n{GOOD}\r\n", 3, "TX5"),
    "mixed line ends": text(f"{GOOD}\r\n{GOOD}\n{GOOD}\r\n", 3, "TX5"),
    "lone carriage returns": text("The\rold dog\r\rsees a man.\n\r\n", 2, "TX6"),
    "byte order mark": text(f"\ufeff{GOOD}\n{GOOD}\n", 2, "TX7"),
    "only a byte order mark": text("\ufeff", 1, "TX7"),
    "byte order mark inside": text(f"{GOOD}\n\ufeff{GOOD}\nThe\ufeff man.\n", 3, "TX7"),
    "Latin-1": invalid("Der König.\nfür\n".encode("latin-1"), 2),
    "overlong": invalid(b"\xc0\xafThe man.\n", 1),
    "surrogates": invalid(b"The \xed\xa0\x80\xed\xb0\x80 man.\nThe \xed\xbf\xbf man.\n", 2),
    "beyond Unicode": invalid(b"\xf4\x90\x80\x80\xff\xfe\n\xf8\x88\x80\x80\x80\n", 2),
    "cut at the end": invalid(b"The man.\nThe \xf0\x9f\x98", 2),
    "NUL": text("The\0old\0dog.\n\0\n\0\0\0\n", 3, "TX10"),
    "controls": text("".join(f"The{control}man.\n" for control in CONTROLS), len(CONTROLS), "TX10"),
    "escape sequences": text("\x1b[2J\x1b[31mThe man.\x1b]0;title\x07\n\x9b31m\n", 2, "TX10"),
    "separators": text("".join(f"The{sign}man.\n" for sign in SEPARATORS) + SEPARATORS + "\n", 9, "TX11"),
    "tabs": text("The\told\tdog.\n\t\n\tThe man.\t\n", 3, "TX13"),
    "right to left": text("\u200fשלום\u200e man.\n\u202bThe\u202c \u202aman\u202e.\n\u2067The\u2069\n", 3, "TX14"),
    "emoji": text("\U0001f469\u200d\U0001f4bb \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd\n\ufe0f\n\u200d\n", 3, "TX15"),
    "combining flood": text("A" + "\u0301\u0323" * 5000 + " man.\n\u0301\n", 2, "TX15"),
    "not assigned": text("\uffff \ufdd0 \U0010ffff \ue000 \U000e0041\n", 1, "TX15"),
    "decomposed": text("Ko\u0308nig, fu\u0308r \u1112\u1161\u11ab\n", 1, "TX16"),
    "control tokens": text("<unk> </s> <pad> <s>\n</s>\nThe </s> man.\n<s>\n", 4, "TX17"),
    "space sign": text("\u2581\nThe\u2581man\u2581.\n\u2581\u2581 \u2581\n", 3, "TX17"),
    "no last line feed": text(f"{GOOD}\n{GOOD}", 2, "TX20"),
    "a blank line more": text(f"{GOOD}\n\n", 2, "TX21"),
    "a table": text("The man.\tDer Mann.\nThe dog.\tDer Hund.\n", 2, "TX26"),
    "JSON lines": text('{"en": "The man."}\n{"en": "The \\u0000 dog.\\n"}\n', 2, "TX26"),
    "a long word": text("x" * 20_000 + "\nThe man.\n", 2, "TX12"),
    "a long line": text("The man sees. " * 2_000 + "\nThe man.\n", 2, "TX12"),
    "UTF-16": Case(f"{GOOD}\n".encode("utf-16"), None, "TX8", "is UTF-16, not UTF-8", valid=False),
    "UTF-16 without its mark": Case(f"{GOOD}\n".encode("utf-16-be"), None, "TX8", "is UTF-16, not UTF-8", valid=False),
    "UTF-16 with its mark alone": Case(codecs.BOM_UTF16_LE, None, "TX8", "is UTF-16, not UTF-8", valid=False),
}
"""The same on standard input and by name."""

PACKED = {
    "one member": Case(_PACKED, 100, "TX18"),
    "two members": Case(gzip.compress(b"The man.\nThe ") + gzip.compress(b"dog.\n"), 2, "TX18"),
    "truncated": Case(_PACKED[: len(_PACKED) // 2], None, "TX19", "broken gzip data after line "),
    "wrong checksum": Case(_PACKED[:-8] + bytes(4) + _PACKED[-4:], None, "TX19", "broken gzip data after line "),
    "garbage behind": Case(_PACKED + b"garbage", None, "TX19", "broken gzip data after line "),
}
"""Unpacked by name, with and without the suffix; refused on standard input."""
