"""An encoded corpus on disk, memory-mapped: ids of the best segmentation, normalised text, word links, line numbers.

A corpus is a folder. A column of rows of different lengths is two files: ``NAME.bin`` with the values of all rows, and
``NAME.starts.bin`` with the n + 1 positions (little-endian int64) between which the rows lie; a column of one number a
pair is one file. ``meta.json`` names every file with its size and SHA-256. Writing, joining and reading need constant
memory: an open corpus holds nothing but its maps.
"""

from __future__ import annotations

import itertools
import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from s2s.data.digests import describe
from s2s.data.text import pair_hash
from s2s.errors import DataError
from s2s.interfaces import EOS

FORMAT = 3
"""Changes whenever the same corpus would be written differently."""

Ids = NDArray[np.integer[Any]]

_IDS = ("source_ids", "target_ids")
_TEXTS = ("source_text", "target_text")
_ROWS = (*_IDS, *_TEXTS, "links")
_NUMBERS = {"lines": "<i8", "documents": "<i8", "source_lengths": "<i4", "target_lengths": "<i4", "hashes": "<u8"}
"""The columns of one number a pair."""
_META = "meta.json"
_FILES = {f"{name}{part}" for name in _ROWS for part in (".bin", ".starts.bin")} | {f"{name}.bin" for name in _NUMBERS}
_CHUNK = 1 << 20  # pairs that are looked at together
_BUCKET = 1 << 21  # pairs whose hashes are sorted together


class Example(NamedTuple):
    """One pair as it is written; ids without BOS and EOS."""

    source: str
    target: str
    source_ids: Sequence[int]
    target_ids: Sequence[int]
    line: int
    """The number of its line in the original files, from 1."""
    links: Iterable[tuple[int, int]] | None = None
    """(source word, target word) from 0; None in a corpus without links."""
    document: int = 0
    """The number of its document; it never falls from one pair to the next."""


class _Column:
    """Rows of values of one type, written one after the other."""

    def __init__(self, folder: Path, name: str, kind: str, files: ExitStack) -> None:
        self._kind = np.dtype(kind)
        self._values: BinaryIO = files.enter_context((folder / f"{name}.bin").open("wb"))
        self._starts: BinaryIO = files.enter_context((folder / f"{name}.starts.bin").open("wb"))
        self._count = 0
        self._starts.write(bytes(8))

    def add(self, row: Sequence[int] | bytes) -> None:
        self._values.write(row if isinstance(row, bytes) else np.array(row, self._kind).tobytes())
        self._count += len(row)
        self._starts.write(self._count.to_bytes(8, "little"))


def _kind(vocabulary: int) -> str:
    """The type of ids below ``vocabulary``."""
    return "<u2" if vocabulary <= 1 << 16 else "<i4"


def write(
    folder: Path, examples: Iterable[Example], *, vocabulary: int, facts: Callable[[], dict[str, Any]] = dict
) -> None:
    """Write a corpus; EOS is put at the end of both sides. The folder appears whole or not at all.

    ``vocabulary`` is the number of ids of the larger side. ``facts`` is asked, after the last example, for what is to
    be kept beside the corpus (JSON). If the folder exists already, it stays as it is. Raises OSError.
    """
    kind = _kind(vocabulary)
    with _appearing(folder) as temporary:
        pairs, has_links = _write_columns(temporary, examples, kind)
        _write_meta(temporary, {"pairs": pairs, "ids": kind, "links": has_links, "facts": facts()})


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the name of ``folder`` at the end of the context, unless there is one by then."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The name is new, so two processes may write the same corpus; the first one to finish wins.
    temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(8)}")
    temporary.mkdir()
    try:
        yield temporary
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / _META).exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_meta(folder: Path, meta: dict[str, Any]) -> None:
    files = {path.name: describe(path) for path in sorted(folder.iterdir())}
    text = json.dumps({"format": FORMAT} | meta | {"files": files}, indent=1) + "\n"
    (folder / _META).write_text(text, encoding="utf-8")


def _write_columns(folder: Path, examples: Iterable[Example], kind: str) -> tuple[int, bool]:
    """Write all but the description; how many pairs there are, and whether any came with links."""
    pairs, has_links = 0, False
    with ExitStack() as files:
        ids = [_Column(folder, name, kind, files) for name in _IDS]
        texts = [_Column(folder, name, "u1", files) for name in _TEXTS]
        links = _Column(folder, "links", "<i4", files)
        numbers = {name: files.enter_context((folder / f"{name}.bin").open("wb")) for name in _NUMBERS}
        for example in examples:
            pairs += 1
            has_links = has_links or example.links is not None
            ids[0].add([*example.source_ids, EOS])
            ids[1].add([*example.target_ids, EOS])
            texts[0].add(example.source.encode())
            texts[1].add(example.target.encode())
            links.add([word for link in sorted(example.links or ()) for word in link])
            numbers["lines"].write(example.line.to_bytes(8, "little"))
            numbers["documents"].write(example.document.to_bytes(8, "little"))
            numbers["source_lengths"].write((len(example.source_ids) + 1).to_bytes(4, "little"))
            numbers["target_lengths"].write((len(example.target_ids) + 1).to_bytes(4, "little"))
            numbers["hashes"].write(pair_hash(example.source, example.target).to_bytes(8, "little"))
    return pairs, has_links


# --- joining ----------------------------------------------------------------------------------------------------------


def join(
    folder: Path,
    parts: Sequence[Path],
    *,
    vocabulary: int,
    without: NDArray[np.bool_] | None = None,
    ended: Sequence[int] | None = None,
    facts: dict[str, Any],
) -> None:
    """Write the pairs of several corpora, one after the other, as one; ``without`` (n,) bool leaves pairs out.

    ``ended``: how many documents end in each part, whose first one goes on with the last of the part before. The result
    is that of `write` for the same examples. The parts were written for the same vocabulary, and are taken as they are,
    unchecked. Raises OSError.
    """
    kind = _kind(vocabulary)
    with _appearing(folder) as temporary:
        pairs, has_links = 0, False
        for corpus, kept in _parts(parts, without):
            pairs += len(corpus) if kept is None else int(kept.sum())
            has_links = has_links or corpus.has_links
        first = [*itertools.accumulate([0] * len(parts) if ended is None else ended, initial=0)]
        for name in _NUMBERS:
            with (temporary / f"{name}.bin").open("wb") as file:
                for (corpus, kept), before in zip(_parts(parts, without), first, strict=False):
                    column = corpus.column(name)
                    if name == "documents":
                        column = column + before
                    file.write((column if kept is None else column[kept]).tobytes())
        for name in _ROWS:
            _join_rows(temporary, name, parts, without)
        _write_meta(temporary, {"pairs": pairs, "ids": kind, "links": has_links, "facts": facts})


def _parts(
    parts: Sequence[Path], without: NDArray[np.bool_] | None
) -> Iterator[tuple[Corpus, NDArray[np.bool_] | None]]:
    """Each part with (n,) bool which of its pairs are kept, None if all are."""
    first = 0
    for path in parts:
        corpus = Corpus(path, json.loads((path / _META).read_bytes()))
        dropped = None if without is None else without[first : first + len(corpus)]
        first += len(corpus)
        yield corpus, None if dropped is None or not dropped.any() else ~dropped


def _join_rows(folder: Path, name: str, parts: Sequence[Path], without: NDArray[np.bool_] | None) -> None:
    count = 0
    with (folder / f"{name}.bin").open("wb") as values, (folder / f"{name}.starts.bin").open("wb") as starts:
        starts.write(bytes(8))
        for corpus, kept in _parts(parts, without):
            own_values, own_starts = corpus.rows(name)
            lengths = np.diff(own_starts)
            if kept is not None:
                own_values = own_values[np.repeat(kept, lengths)]
                lengths = lengths[kept]
            values.write(own_values.tobytes())
            starts.write((count + np.cumsum(lengths)).astype("<i8").tobytes())
            count += len(own_values)


def facts(part: Path) -> dict[str, Any]:
    """What was written beside a corpus, taken as it is."""
    found: dict[str, Any] = json.loads((part / _META).read_bytes())["facts"]
    return found


def hashes(parts: Sequence[Path]) -> Iterator[NDArray[np.uint64]]:
    """The eight bytes that stand for each pair, a part at a time."""
    return (np.fromfile(part / "hashes.bin", "<u8") for part in parts)


def repeated(parts: Sequence[Path]) -> NDArray[np.bool_]:
    """(n,) bool over the pairs of all parts: whether an earlier pair has the same hash.

    Takes a byte a pair, and some 100 MB for the pairs whose hashes fall into one bucket.
    """
    total = sum(len(column) for column in hashes(parts))
    result = np.zeros(total, np.bool_)
    buckets = -(-total // _BUCKET)
    for bucket in range(buckets):
        values, places, first = [], [], 0
        for column in hashes(parts):
            own = np.flatnonzero(column % np.uint64(buckets) == bucket)
            values.append(column[own])
            places.append(own + first)
            first += len(column)
        value, place = np.concatenate(values), np.concatenate(places)
        order = np.argsort(value, kind="stable")  # of equal ones the first stays first
        result[place[order[1:]][value[order[1:]] == value[order[:-1]]]] = True
    return result


def copies(parts: Sequence[Path], among: NDArray[np.bool_], tag: str | None) -> int:
    """Of the pairs of all parts ``among`` (n,) bool, how many have equal sides, the ``tag`` of the source left off."""
    front = "" if tag is None else f"{tag} "
    found = 0
    for corpus, rest in _parts(parts, among):
        if rest is not None:
            source, target = (np.diff(corpus.rows(name)[1]) for name in _TEXTS)
            alike = ~rest & (source == target + len(front.encode()))  # few, so that few are decoded
            texts = (corpus.text(int(index)) for index in np.flatnonzero(alike))
            found += sum(first.removeprefix(front) == second for first, second in texts)
    return found


# --- reading ----------------------------------------------------------------------------------------------------------


class Corpus:
    """Encoded pairs, numbered from 0; made by `open_corpus`."""

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self.facts: dict[str, Any] = meta["facts"]
        """What was written beside the corpus."""
        self.has_links: bool = meta["links"]
        """Whether word links came with the corpus."""
        self._length: int = meta["pairs"]
        kinds = dict.fromkeys(_IDS, meta["ids"]) | dict.fromkeys(_TEXTS, "u1") | {"links": "<i4"}
        self._rows = {
            name: (_map(folder / f"{name}.bin", kind), _map(folder / f"{name}.starts.bin", "<i8"))
            for name, kind in kinds.items()
        }
        self._numbers = {name: _map(folder / f"{name}.bin", kind) for name, kind in _NUMBERS.items()}
        self.source_lengths: NDArray[np.int32] = self._numbers["source_lengths"]
        """(n,) pieces of each source, EOS counted; mapped, not read."""
        self.target_lengths: NDArray[np.int32] = self._numbers["target_lengths"]
        """(n,) pieces of each target, EOS counted; mapped, not read."""

    def __len__(self) -> int:
        return self._length

    def _row(self, name: str, index: int) -> NDArray[Any]:
        values, starts = self._rows[name]
        start, end = starts[index : index + 2]
        return values[start:end]

    def pair(self, index: int) -> tuple[Ids, Ids]:
        """The ids of both sides, EOS at the end, as views of the file."""
        return self._row("source_ids", index), self._row("target_ids", index)

    def text(self, index: int) -> tuple[str, str]:
        """The normalised text of both sides."""
        source, target = (self._row(name, index).tobytes().decode() for name in _TEXTS)
        return source, target

    def links(self, index: int) -> NDArray[np.int32]:
        """(n, 2) word links, source word and target word from 0; none in a corpus without links."""
        return self._row("links", index).reshape(-1, 2)

    def line(self, index: int) -> int:
        """The number of the pair's line in the original files, from 1."""
        return int(self._numbers["lines"][index])

    def before(self, index: int, count: int) -> list[int]:
        """Up to ``count`` pairs that come before this one in its document, the nearest first."""
        documents = self._numbers["documents"][max(0, index - count) : index + 1]
        own = int((documents[:-1] == documents[-1]).sum())  # numbers never fall, so those of this document are last
        return list(range(index - 1, index - 1 - own, -1))

    def hashes(self) -> Iterator[NDArray[np.uint64]]:
        """The eight bytes that stand for each pair, some at a time."""
        column = self._numbers["hashes"]
        return (column[start : start + _CHUNK] for start in range(0, len(column), _CHUNK))

    def column(self, name: str) -> NDArray[Any]:
        """(n,) one of the columns of one number a pair."""
        return self._numbers[name]

    def rows(self, name: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The values of one of the other columns, and the n + 1 places between which its rows lie."""
        return self._rows[name]


def _map(path: Path, kind: str) -> NDArray[Any]:
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.empty(0, kind)
    # A plain view: the library's own class of maps takes ten times as long to look up a row.
    return np.memmap(path, kind, mode="r").view(np.ndarray)


def open_corpus(folder: Path, describe: Callable[[Path], dict[str, Any]] = describe) -> Corpus:
    """What `write` wrote, every byte checked by ``describe``, which gives the size and SHA-256 of a file.

    Raises FileNotFoundError if there is none, DataError if it is damaged.
    """
    try:
        text = (folder / _META).read_bytes()
    except FileNotFoundError:
        if any(folder.iterdir()):  # as a removal leaves it that was killed
            raise DataError(folder, "is damaged: its description is missing", "remove it") from None
        raise
    try:
        meta = json.loads(text)
        if meta["format"] != FORMAT:
            raise DataError(folder, "was written by another version of s2s", "remove it")
        if meta["files"].keys() != _FILES:
            raise DataError(folder, "is damaged: it names files that are not its own", "remove it")
        for name, description in meta["files"].items():
            # What is no regular file, such as a pipe, is not even opened: it could make us wait for ever.
            if not (folder / name).is_file() or describe(folder / name) != description:
                raise DataError(folder / name, "is damaged: its content is not what was written", "remove the folder")
        corpus = Corpus(folder, meta)
        if not _fits(corpus):
            raise DataError(folder, "is damaged: its description does not fit its columns", "remove it")
        return corpus
    except (
        ValueError, RecursionError, LookupError, TypeError, AttributeError, FileNotFoundError, NotADirectoryError
    ) as error:  # fmt: skip
        # Not other OSErrors: who is told of damage removes it, and a disk that does not answer has damaged nothing.
        raise DataError(folder, f"is damaged: {error}", "remove it") from error


def _fits(corpus: Corpus) -> bool:
    """Whether all columns have as many rows as the description says, which has no checksum itself."""
    rows = (len(starts) == len(corpus) + 1 and starts[-1] == len(values) for values, starts in map(corpus.rows, _ROWS))
    return all(rows) and all(len(corpus.column(name)) == len(corpus) for name in _NUMBERS)
