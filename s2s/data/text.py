"""Text in and out: the one place that turns bytes into normalised lines and pairs, and lines back into bytes.

A line ends at LF only. Every line becomes NFC with single spaces between words; nothing that comes in can change the
number of lines, disturb a terminal, or make the reader hold more than one line of bounded size.
"""

from __future__ import annotations

import enum
import gzip
import io
import itertools
import os
import re
import secrets
import stat
import unicodedata
import zlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, NamedTuple, Protocol, Self

from s2s.errors import DataError, S2SError, SystemRefused, UsageError, printable

Invalid = Literal["error", "replace", "drop"]
"""What to do with a line that is not UTF-8: refuse the file, put U+FFFD, or give up the line."""

LONGEST_LINE = 1 << 22
"""Bytes of a line that is still read: 4 MiB hold 1e6 characters of any script."""

CONVERT = "convert the file (iconv -f latin1 -t utf-8)"
REMEDY = f"{CONVERT} or set data.invalid_utf8: replace"
NOT_STRICT = f"{CONVERT} or leave out --strict"

# What str.split() takes for whitespace is no control character here, except U+001F, which ends no line anywhere.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f]")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SURROGATES = re.compile("[\ud800-\udfff]")

_GZIP = b"\x1f\x8b"  # how it starts
_SHORT_WORD = 1000  # characters; the library's ordering of combining marks takes quadratic time
_SNIFFED_LINES = 10  # lines in which UTF-16 without a byte order mark is looked for


def normalise(line: str) -> tuple[str, int]:
    """The line in NFC with single spaces between words, and how many control characters became spaces.

    Right-to-left marks, joiners and combining characters stay. The time is linear in the length of the line.
    """
    line, controls = _CONTROLS.subn(" ", line)
    words = line.split()
    line = " ".join(words)
    if line.isascii():
        return line, controls
    if len(line) > _SHORT_WORD:  # nothing composes across a space, so a long line is the sum of its words
        return " ".join(_compose(word) for word in words), controls
    return unicodedata.normalize("NFC", line), controls


def _compose(word: str) -> str:
    """NFC of a word of any length: a long one is put in canonical order first, which leaves no work to the library."""
    if len(word) <= _SHORT_WORD:
        return unicodedata.normalize("NFC", word)
    decomposed = (part for character in word for part in unicodedata.normalize("NFD", character))
    ordered: list[str] = []
    for _, run in itertools.groupby(decomposed, key=lambda part: unicodedata.combining(part) != 0):
        ordered.extend(sorted(run, key=unicodedata.combining))  # stable; the class of every base letter is 0
    return unicodedata.normalize("NFC", "".join(ordered))


def printable_output(text: str) -> str:
    """One line that is safe on a terminal and in a file: no control or line separator, always encodable as UTF-8."""
    return _SURROGATES.sub("\ufffd", _UNPRINTABLE.sub(" ", text))


# --- lines ------------------------------------------------------------------------------------------------------------


@dataclass
class TextCounts:
    """What was met in one file or stream; the reader fills it while the lines are taken."""

    where: str = ""
    """The name of the file in messages."""
    before: int = 0
    """Lines of the file that lie before the first one that is counted."""
    lines: int = 0
    blank: int = 0
    """Lines with nothing left after normalisation."""
    invalid_utf8: int = 0
    """Lines that are not UTF-8."""
    first_invalid: int | None = None
    """Number of the first such line, from 1."""
    oversized: int = 0
    """Lines over `LONGEST_LINE` bytes, which are given up."""
    controls: int = 0
    """Control characters replaced by spaces."""
    one_tab: int = 0
    """Lines with exactly one tab."""
    braces: int = 0
    """Lines that start with `{`."""

    @property
    def line(self) -> int:
        """The number in the file, from 1, of the line that was read last."""
        return self.before + self.lines

    def add(self, other: TextCounts) -> None:
        """Take in what was met in a later stretch of the same file."""
        self.where = self.where or other.where
        self.first_invalid = self.first_invalid or other.first_invalid
        for name in ("lines", "blank", "invalid_utf8", "oversized", "controls", "one_tab", "braces"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def warnings(self) -> list[str]:
        """What a reader of the output should know, one line each; for translation, where no line is dropped."""
        where = printable(self.where)
        found = []
        if self.invalid_utf8:
            found.append(f"{where}: {self.invalid_utf8} lines are not UTF-8, the first is line {self.first_invalid}")
        if self.oversized:
            found.append(f"{where}: {self.oversized} lines are longer than {LONGEST_LINE} bytes and were left out")
        if self.controls:
            found.append(f"{where}: {self.controls} control characters were replaced by spaces")
        return found


class LineSource(Protocol):
    """Anything with `readline`, such as an open binary file or `sys.stdin.buffer`."""

    def readline(self, size: int, /) -> bytes:
        """At most ``size`` bytes, up to and with the next LF; empty at the end."""


def read_lines(
    path: Path | str,
    *,
    counts: TextCounts,
    invalid: Invalid = "error",
    remedy: str = REMEDY,
    allow_pipe: bool = False,
    only: Iterable[int] | None = None,
) -> Iterator[str | None]:
    """The normalised lines of a file, plain or gzip, one by one; or ``only`` those of these numbers, ascending from 1.

    None stands for a line that was given up: invalid with ``invalid="drop"``, or over `LONGEST_LINE` bytes. What
    training reads must be a regular file, because it is read again; ``allow_pipe`` admits what can be read only once.
    Raises DataError, at the first line taken, if the file cannot be opened, and wherever it turns out to be broken.
    """
    path = Path(path)
    with _opened(path, allow_pipe) as stream:
        yield from read_stream(stream, counts=counts, invalid=invalid, remedy=remedy, where=str(path), only=only)


@contextmanager
def _opened(path: Path, allow_pipe: bool) -> Iterator[io.BufferedIOBase]:
    """A file's bytes, unpacked if they are gzip. Raises DataError if it cannot be opened."""
    _require_readable(path, allow_pipe)
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(path, f"cannot be opened: {error.strerror}") from error
    with file:
        zipped = file.peek(2).startswith(_GZIP)
        if path.suffix == ".gz" and not zipped:
            raise DataError(path, "ends in .gz but is not gzip", "fetch or compress the file again")
        with gzip.GzipFile(fileobj=file) if zipped else file as stream:
            yield stream


def read_raw_lines(path: Path | str, longest: int = LONGEST_LINE) -> Iterator[str]:
    """The lines of a file, plain or gzip, as scores compare them: nothing normalised, white space at the end left off.

    sacreBLEU reads its files so. Raises DataError as `read_lines`, for bytes that are not UTF-8, and for a line of more
    than ``longest`` bytes: none can be left out, or the others would no longer stand beside theirs.
    """
    counts = TextCounts()
    with _opened(Path(path), allow_pipe=True) as stream, _told_where(str(path), counts):
        while raw := stream.readline(longest + 1):
            counts.lines += 1
            if len(raw) > longest and not raw.endswith(b"\n"):
                what = f"line {counts.lines} is longer than {longest} bytes"
                raise DataError(path, what, "break it into lines, or name another file")
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                what = f"line {counts.lines}, byte {error.start + 1}: 0x{raw[error.start]:02x} is not UTF-8"
                raise DataError(path, what, "convert the file (iconv -f latin1 -t utf-8)") from None
            yield text.rstrip()


def read_stream(
    stream: LineSource,
    *,
    counts: TextCounts,
    invalid: Invalid = "replace",
    remedy: str = REMEDY,
    where: str = "standard input",
    only: Iterable[int] | None = None,
) -> Iterator[str | None]:
    """As `read_lines`, over an open binary stream; takes no line from it before it is asked for one."""
    counts.where = where
    wanted = itertools.count(1) if only is None else iter(only)
    number = next(wanted, None)
    with _told_where(where, counts):
        while number is not None and (raw := stream.readline(LONGEST_LINE + 1)):
            counts.lines += 1
            oversized = len(raw) > LONGEST_LINE and not raw.endswith(b"\n")
            if oversized:
                _skip_line(stream)
            if counts.lines == number:
                number = next(wanted, None)
                counts.oversized += oversized
                yield None if oversized else _decode(raw.removesuffix(b"\n"), counts, invalid, remedy)


@contextmanager
def _told_where(where: str, counts: TextCounts) -> Iterator[None]:
    """Faults of the file while it is read become DataErrors that say after which line."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        what = f"broken gzip data after line {counts.line}: {error}"
        raise DataError(where, what, "fetch or compress the file again") from error
    except OSError as error:
        raise DataError(where, f"cannot be read after line {counts.line}: {error.strerror}") from error


def _skip_line(stream: LineSource) -> None:
    """Leave the rest of the line behind without holding it."""
    while part := stream.readline(1 << 20):
        if part.endswith(b"\n"):
            return


def _decode(raw: bytes, counts: TextCounts, invalid: Invalid, remedy: str) -> str | None:
    """The normalised text of one line without its LF; what is noteworthy about it goes into ``counts``."""
    if counts.line <= _SNIFFED_LINES and _looks_like_utf16(raw, first=counts.line == 1):
        raise DataError(counts.where, "is UTF-16, not UTF-8", "convert it (iconv -f utf-16 -t utf-8)")
    if counts.line == 1 and raw.startswith(_GZIP):
        raise DataError(counts.where, "is packed with gzip", "unpack it first (gunzip)")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if invalid == "error":
            what = f"line {counts.line}, byte {error.start + 1}: 0x{raw[error.start]:02x} is not UTF-8"
            raise DataError(counts.where, what, remedy) from None
        counts.invalid_utf8 += 1
        counts.first_invalid = counts.first_invalid or counts.line
        if invalid == "drop":
            return None
        text = raw.decode("utf-8", errors="replace")
    if counts.line == 1:
        text = text.removeprefix("\ufeff")  # the byte order mark
    counts.one_tab += text.count("\t") == 1
    counts.braces += text.startswith("{")
    text, controls = normalise(text)
    counts.controls += controls
    counts.blank += not text
    return text


def _looks_like_utf16(raw: bytes, first: bool) -> bool:
    """Whether a line starts with the mark of UTF-16, or has NUL as every other byte and nowhere else."""
    if first and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    nulls = raw.count(0)
    # At least four of them: fewer may be stray bytes in UTF-8, which become spaces.
    return nulls >= 4 and any(len(lane) == nulls == lane.count(0) for lane in (raw[::2], raw[1::2]))


def _require_readable(path: Path, allow_pipe: bool) -> None:
    """Refuse what cannot be a text, before opening it: opening a pipe would wait for its writer."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise DataError(path, "no such file") from error
    except OSError as error:
        raise DataError(path, f"cannot be opened: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise DataError(path, f"cannot be opened: {error}") from error
    if stat.S_ISDIR(mode):
        raise DataError(path, "is a directory, not a text file")
    if stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
        raise DataError(path, "is a device or a socket, not a text file")
    if not stat.S_ISREG(mode) and not allow_pipe:
        raise DataError(path, "is a pipe or a device, which cannot be read twice", "write it to a file first")


# --- stretches of lines -----------------------------------------------------------------------------------------------


class LineIndex(NamedTuple):
    """Where the lines of a file are, so that several processes can read stretches of it."""

    lines: int
    stride: int
    """Lines of a stretch; the last one may have fewer."""
    starts: tuple[int, ...]
    """The byte at which each stretch begins, of what is in the file once it is unpacked."""


def index_lines(path: Path, stride: int) -> LineIndex:
    """Go through a file, plain or gzip, once. Raises DataError as `read_lines`."""
    counts, starts, place, ends_with_line = TextCounts(), [0], 0, True
    with _opened(path, allow_pipe=False) as stream, _told_where(str(path), counts):
        while chunk := stream.read(1 << 20):
            lines = chunk.count(b"\n")
            if counts.lines // stride != (counts.lines + lines) // stride:  # stretches begin in this chunk
                ends = (match.end() for match in re.finditer(b"\n", chunk))
                first = stride - 1 - counts.lines % stride
                starts += [place + end for end in itertools.islice(ends, first, None, stride)]
            counts.lines += lines
            place += len(chunk)
            ends_with_line = chunk.endswith(b"\n")
    if starts[-1] == place and place:
        starts.pop()
    return LineIndex(counts.lines + (not ends_with_line), stride, tuple(starts))


def last_line(path: Path, index: LineIndex) -> str | None:
    """The text of the last line of a file; None where there is none."""
    counts = TextCounts()
    with _opened(path, allow_pipe=False) as stream:
        stream.seek(index.starts[-1])
        lines = read_stream(stream, counts=counts, invalid="replace", where=str(path))
        return next(iter(deque(lines, maxlen=1)), None)


def sample(lines: int, number: int) -> Iterator[int]:
    """``number`` of the line numbers 1 to ``lines``, ascending, or all of them: one of each of so many equal stretches.

    Which one is a function of the two numbers and of the stretch, the same on every machine.
    """
    if number >= lines:
        yield from range(1, lines + 1)
        return
    for stretch in range(number):
        first, end = stretch * lines // number, (stretch + 1) * lines // number
        digest = blake2b(f"{lines} {number} {stretch}".encode(), digest_size=8).digest()
        yield first + 1 + int.from_bytes(digest, "little") % (end - first)


class StretchReader:
    """Reads stretches of a file's lines. Going forward costs nothing that a plain file would not; a packed one is
    unpacked up to the stretch, once if the stretches are asked for in ascending order."""

    def __init__(self, path: Path, index: LineIndex, invalid: Invalid = "error") -> None:
        self.path, self.index, self._invalid = path, index, invalid
        self._opened = _opened(path, allow_pipe=False)
        self._stream = self._opened.__enter__()

    def close(self) -> None:
        """Let go of the file."""
        self._opened.__exit__(None, None, None)

    def read(self, stretch: int, counts: TextCounts) -> Iterator[str | None]:
        """The lines of a stretch, numbered from 0, as `read_lines` gives them. Raises DataError likewise."""
        counts.before = stretch * self.index.stride
        with _told_where(str(self.path), counts):
            self._stream.seek(self.index.starts[stretch])
        lines = read_stream(self._stream, counts=counts, invalid=self._invalid, where=str(self.path))
        return itertools.islice(lines, self.index.stride)


# --- pairs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A sentence and its translation, normalised, and the number of their line, from 1."""

    source: str
    target: str
    line: int
    document: int = 0
    """How many blank source lines came before: sentences with the same number are of one document."""


def pair_hash(source: str, target: str) -> int:
    """Eight bytes that stand for a pair: the same in every process, equal for two pairs by chance once in 2^64."""
    # A line holds no LF, so two pairs never give one text.
    return int.from_bytes(blake2b(f"{source}\n{target}".encode(), digest_size=8).digest(), "little")


@dataclass
class PairCounts:
    """What was met in the two files of a corpus, and what was left out for which reason."""

    name: str = "data"
    max_length: int = 0
    pairs: int = 0
    blank: int = 0
    """Pairs dropped because a side is blank."""
    too_long: int = 0
    """Pairs dropped because a side is too long."""
    invalid_dropped: int = 0
    """Pairs dropped because a side is not UTF-8."""
    copied: int = 0
    """Pairs dropped because the sides are equal."""
    uneven: int = 0
    """Pairs dropped because one side is too long for the other."""
    repeated: int = 0
    """Pairs dropped because an earlier pair is the same."""
    invalid_replaced: int = 0
    """Lines of either side in which U+FFFD was put for what is not UTF-8."""
    kept: int = 0
    copies: int = 0
    """Kept pairs whose two sides are equal."""
    repeats: int = 0
    """Kept pairs that are the same as an earlier one."""
    source: TextCounts = field(default_factory=TextCounts)
    target: TextCounts = field(default_factory=TextCounts)

    def add(self, other: PairCounts) -> None:
        """Take in what was met in a later stretch of the same files."""
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.source.add(other.source)
        self.target.add(other.target)

    def drop(self, pair: Pair, reason: Literal["too_long", "copied", "uneven"]) -> None:
        """Leave out a pair that was counted as kept."""
        self.kept -= 1
        self.copies -= pair.source == pair.target
        setattr(self, reason, getattr(self, reason) + 1)

    def summary(self) -> str:
        """The line to print about a corpus before it is used."""
        return f"{self.name}: {self.facts()}"

    def facts(self) -> str:
        """What was read, dropped and kept; reasons that not every corpus knows are left out where they dropped none."""
        parts = [
            f"{self.pairs} pairs read",
            f"{self.blank} blank",
            f"{self.too_long} too long (> {self.max_length})",
            f"{self.source.controls + self.target.controls} control characters replaced",
        ]
        if self.invalid_dropped:
            parts.append(f"{self.invalid_dropped} with invalid UTF-8 dropped")
        if self.invalid_replaced:
            parts.append(f"{self.invalid_replaced} lines of invalid UTF-8 replaced")
        if self.copied:
            parts.append(f"{self.copied} with equal sides dropped")
        if self.uneven:
            parts.append(f"{self.uneven} of uneven length dropped")
        if self.repeated:
            parts.append(f"{self.repeated} repeated dropped")
        parts.append(f"{self.kept} kept")
        return ", ".join(parts)

    def warnings(self) -> list[str]:
        """What looks wrong with the corpus as a whole, one line each."""
        found = []
        if self.repeats > 0.5 * self.kept:
            found.append(f"{self.name}: {self.repeats / self.kept:.0%} of the {self.kept} pairs repeat an earlier pair")
        if self.copies > 0.1 * self.kept:
            found.append(f"{self.name}: the source equals the target in {self.copies} of the {self.kept} pairs")
        for side in (self.source, self.target):
            filled = side.lines - side.blank
            if filled and side.braces == filled:
                found.append(f"{printable(side.where)}: every line starts with {{; is it JSON, not plain text?")
            if filled and side.one_tab == filled:
                found.append(f"{printable(side.where)}: every line has one tab; is it a table, not plain text?")
        return found

    def require_equal_lines(self, extra: str | None) -> None:
        """Raises DataError if one file has more lines; ``extra`` is the last line of the longer one."""
        source, target = self.source, self.target
        if source.lines == target.lines:
            return
        if extra == "" and abs(source.lines - target.lines) == 1:
            todo = "one file ends with an extra blank line"
        else:
            todo = "line N of one file must translate line N of the other"
        what = f"{source.where} has {source.lines} lines, {target.where} {target.lines}"
        raise DataError("", what, todo)

    def require_some(self) -> None:
        """Raises DataError if no pair was kept."""
        if not self.kept:
            what = f"no pair is left of {self.source.where} and {self.target.where}: {self.facts()}"
            raise DataError(self.name, what, "give other files, or set what left them out otherwise")


_SUMMED = (
    "pairs", "blank", "too_long", "invalid_dropped", "copied", "uneven", "repeated", "invalid_replaced", "kept",
    "copies", "repeats",
)  # fmt: skip


class _End(enum.Enum):
    """The side of a pair that is not there: its file has ended."""

    END = enum.auto()


def read_pairs(
    source_path: Path | str,
    target_path: Path | str,
    *,
    max_length: int,
    invalid: Invalid = "error",
    remedy: str = REMEDY,
    counts: PairCounts,
    name: str = "data",
) -> Iterator[Pair]:
    """The usable pairs of two parallel files, in order; what is dropped is counted.

    A side is too long with more than ``max_length`` words or 20 times as many characters; the limit on subwords is
    applied where they are known. Take all pairs before using any: that the files do not match (DataError with both
    counts), or that no pair is left, is known only at the end. Raises UsageError if both paths are one file.
    """
    require_two_files(Path(source_path), Path(target_path))
    counts.name, counts.max_length = name, max_length
    sides = itertools.zip_longest(
        read_lines(source_path, counts=counts.source, invalid=invalid, remedy=remedy),
        read_lines(target_path, counts=counts.target, invalid=invalid, remedy=remedy),
        fillvalue=_End.END,
    )
    extra = yield from usable_pairs(sides, itertools.count(1), counts)
    counts.require_equal_lines(extra)
    counts.pairs = counts.source.lines
    if invalid == "replace":
        counts.invalid_replaced = counts.source.invalid_utf8 + counts.target.invalid_utf8
    counts.require_some()


def require_two_files(source: Path, target: Path) -> None:
    """Raises DataError for what cannot be read, UsageError if both paths are one file."""
    for path in (source, target):
        _require_readable(path, allow_pipe=False)
    if source.samefile(target):
        raise UsageError(target, "source and target are the same file", "give two files")


def usable_pairs(
    sides: Iterable[tuple[str | _End | None, str | _End | None]], numbers: Iterable[int], counts: PairCounts
) -> Generator[Pair, None, str | None]:
    """The pairs of lines, with their numbers, that are neither blank nor too long; what is dropped is counted.

    Documents are counted from the first of these lines. A pair that is dropped ends none, unless its source is blank.

    The result of the generator is the last line of the longer file.
    """
    extra: str | None = None
    oversized = documents = 0
    for line, (source, target) in zip(numbers, sides, strict=False):
        documents += source == ""  # what a model translates has no other side, so the source alone decides
        if source is _End.END:
            extra = None if target is _End.END else target
        elif target is _End.END:
            extra = source
        elif source is None or target is None:
            now = counts.source.oversized + counts.target.oversized
            if now > oversized:
                counts.too_long += 1
            else:
                counts.invalid_dropped += 1
            oversized = now
        elif not source or not target:
            counts.blank += 1
        elif _is_too_long(source, counts.max_length) or _is_too_long(target, counts.max_length):
            counts.too_long += 1
        else:
            counts.kept += 1
            counts.copies += source == target
            yield Pair(source, target, line, documents)
    return extra


def _is_too_long(text: str, max_length: int) -> bool:
    return len(text) > 20 * max_length or text.count(" ") >= max_length


# --- output -----------------------------------------------------------------------------------------------------------


class OutputFile:
    """A file, of text as a rule, that appears whole or not at all.

    Use as a context manager. Lines go to a temporary file in the same folder, which takes the name at the end. If the
    body or the writing fails, the target stays as it was, and what was written, if anything, is kept as
    ``NAME.partial``, named in the error. A pipe or a device, such as /dev/null, is written directly.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        overwrite: bool = False,
        inputs: Sequence[Path | str] = (),
        begun: tuple[str, int] | None = None,
        make_folder: bool = False,
    ) -> None:
        """Raises UsageError if the file is one of ``inputs``, through links too, or exists without ``overwrite``, or
        its folder does not.

        ``begun``: the `place` that another process with this output wrote to and did not finish, and the bytes of it
        that are good; it is gone on with. ``make_folder``: a folder that is not there is made when writing begins.
        What the system refuses, here and later, is SystemRefused.
        """
        self.path = Path(path)
        # A link stays, the file behind it is replaced; a pipe that has no name of its own is behind no path.
        self._target = Path(path) if _is_special(path) else Path(os.path.realpath(path))
        self._partial = self._target.with_name(f"{self._target.name}.partial")
        for other in inputs:
            if _is_same_file(self._target, other) or _is_same_file(self._partial, other):
                raise UsageError(path, "is the input too", "choose another output file")
        try:
            mode = self._target.stat().st_mode
        except (FileNotFoundError, NotADirectoryError) as error:
            if not make_folder and not self._target.parent.is_dir():
                raise self._no_folder() from error
            mode = stat.S_IFREG
        except OSError as error:
            raise self._refused(error) from error
        else:
            if stat.S_ISDIR(mode):
                raise UsageError(path, "is a directory", "give a file name")
            if stat.S_ISREG(mode) and not overwrite:
                raise self._exists()
        self._is_special, self._overwrite = not stat.S_ISREG(mode), overwrite
        self._begun, self._make_folder = None if begun is None else begun[1], make_folder
        name = f".s2s-{secrets.token_hex(8)}" if begun is None else begun[0]
        self._temporary = self._target if self._is_special else self._target.with_name(name)

    @property
    def place(self) -> tuple[str, int]:
        """The name, in its folder, of the file that is written to, and the bytes so far."""
        return self._temporary.name, 0 if self._is_special else self._file.tell()

    def __enter__(self) -> Self:
        # The mode of a new file is 0666 less the user's umask; tempfile would give 0600.
        flags = os.O_WRONLY if self._is_special else os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            if self._make_folder:
                self._target.parent.mkdir(parents=True, exist_ok=True)
            if self._begun is not None and not self._is_special:
                self._take_up(self._begun)
                return self
            self._file: BinaryIO = os.fdopen(os.open(self._temporary, flags, 0o666), "wb")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._no_folder() from error
        except OSError as error:
            raise self._refused(error) from error
        return self

    def _take_up(self, size: int) -> None:
        """Open what was begun, under either of its names, and forget what follows its good bytes."""
        if not self._temporary.exists() and size:
            if not self._partial.exists():
                raise SystemRefused(self.path, "what was written of it is gone", "begin again")
            self._partial.replace(self._temporary)
        self._file = os.fdopen(os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666), "wb")
        self._file.truncate(size)
        self._file.seek(size)

    def write_line(self, text: str) -> None:
        """Write one line of text, as `printable_output` gives it, and LF."""
        self.write(text.encode("utf-8") + b"\n")

    def write(self, data: bytes) -> None:
        """Write what is not lines of text, such as a picture."""
        try:
            self._file.write(data)
        except OSError as error:
            raise self._refused(error) from error

    def flush(self) -> None:
        """Hand every line written so far to the system."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._refused(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._keep_partial(error)
            return
        try:
            self._file.flush()
            if not self._is_special:
                os.fsync(self._file.fileno())
            self._file.close()
            if not self._is_special:
                if not self._overwrite and self._target.exists():  # since this began
                    raise self._exists()
                self._temporary.replace(self._target)
        except UsageError as exists:
            self._keep_partial(exists)
            raise
        except OSError as failure:
            refused = self._refused(failure)
            self._keep_partial(refused)
            raise refused from failure

    def _no_folder(self) -> UsageError:
        return UsageError(self.path, "its folder does not exist", "create it first")

    def _exists(self) -> UsageError:
        return UsageError(self.path, "exists already", "choose another name or add --overwrite")

    def _refused(self, error: OSError) -> SystemRefused:
        return SystemRefused(self.path, f"cannot be written: {error.strerror}")

    def _keep_partial(self, error: BaseException) -> None:
        """Close, leave what was written under its lasting name, and tell ``error`` where."""
        with suppress(OSError):  # there is already an error to report
            self._file.close()
        if self._is_special:
            return
        kept = self._temporary
        with suppress(OSError):
            if not kept.stat().st_size:  # nothing that is worth the place of what an earlier failure left there
                kept.unlink()
                return
            kept = kept.replace(self._partial)
        note = f"what was written is kept in {printable(kept)}"
        if isinstance(error, S2SError):  # the one line that users see; a bug shows its notes with the traceback
            error.todo = f"{error.todo}; {note}" if error.todo else note
            error.args = (f"{error}; {note}",)
        else:
            error.add_note(note)


def _is_special(path: Path | str) -> bool:
    """Whether it is there and neither a file nor a folder, but a pipe, a device or a socket."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):  # told where it is opened
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _is_same_file(path: Path, other: Path | str) -> bool:
    try:
        return path.samefile(other)
    except (OSError, ValueError):  # one of them does not exist
        return False
