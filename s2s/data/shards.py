"""An encoded corpus on disk, memory-mapped: ids of the best segmentation, normalised text, word links, line numbers.

A corpus is a folder. A column of rows of different lengths is two files: ``NAME.bin`` with the values of all rows, and
``NAME.starts.bin`` with the n + 1 positions (little-endian int64) between which the rows lie. ``meta.json`` names every
file with its size and SHA-256. Writing needs constant memory; an open corpus holds 8 bytes a pair, its two lengths.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from s2s.errors import DataError
from s2s.interfaces import EOS

FORMAT = 1
"""Changes whenever the same corpus would be written differently."""

Ids = NDArray[np.integer[Any]]

_IDS = ("source_ids", "target_ids")
_TEXTS = ("source_text", "target_text")
_META = "meta.json"
_FILES = {f"{name}{part}" for name in (*_IDS, *_TEXTS, "links") for part in (".bin", ".starts.bin")} | {"lines.bin"}


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


def write(
    folder: Path, examples: Iterable[Example], *, vocabulary: int, facts: Callable[[], dict[str, Any]] = dict
) -> None:
    """Write a corpus; EOS is put at the end of both sides. The folder appears whole or not at all.

    ``vocabulary`` is the number of ids of the larger side. ``facts`` is asked, after the last example, for what is to
    be kept beside the corpus (JSON). If the folder exists already, it stays as it is. Raises OSError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The name is new, so two processes may write the same corpus; the first one to finish wins.
    temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(8)}")
    temporary.mkdir()
    try:
        kind = "<u2" if vocabulary <= 1 << 16 else "<i4"
        pairs, has_links = _write_columns(temporary, examples, kind)
        meta = {"format": FORMAT, "pairs": pairs, "ids": kind, "links": has_links, "facts": facts()}
        meta["files"] = {path.name: _describe(path) for path in sorted(temporary.iterdir())}
        (temporary / _META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / _META).exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_columns(folder: Path, examples: Iterable[Example], kind: str) -> tuple[int, bool]:
    """Write all but the description; how many pairs there are, and whether any came with links."""
    pairs, has_links = 0, False
    with ExitStack() as files:
        ids = [_Column(folder, name, kind, files) for name in _IDS]
        texts = [_Column(folder, name, "u1", files) for name in _TEXTS]
        links = _Column(folder, "links", "<i4", files)
        lines = files.enter_context((folder / "lines.bin").open("wb"))
        for example in examples:
            pairs += 1
            has_links = has_links or example.links is not None
            ids[0].add([*example.source_ids, EOS])
            ids[1].add([*example.target_ids, EOS])
            texts[0].add(example.source.encode())
            texts[1].add(example.target.encode())
            links.add([word for link in sorted(example.links or ()) for word in link])
            lines.write(example.line.to_bytes(8, "little"))
    return pairs, has_links


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


class Corpus:
    """Encoded pairs, numbered from 0; made by `open_corpus`."""

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self.facts: dict[str, Any] = meta["facts"]
        """What was written beside the corpus."""
        self.has_links: bool = meta["links"]
        """Whether word links came with the corpus."""
        self._length: int = meta["pairs"]
        kinds = dict.fromkeys(_IDS, meta["ids"]) | dict.fromkeys(_TEXTS, "u1") | {"links": "<i4"}
        self._values = {name: _map(folder / f"{name}.bin", kind) for name, kind in kinds.items()}
        self._starts = {name: _map(folder / f"{name}.starts.bin", "<i8") for name in kinds}
        self._lines = _map(folder / "lines.bin", "<i8")
        lengths = [np.diff(self._starts[name]).astype(np.int32) for name in _IDS]
        self.source_lengths: NDArray[np.int32] = lengths[0]
        """(n,) pieces of each source, EOS counted."""
        self.target_lengths: NDArray[np.int32] = lengths[1]
        """(n,) pieces of each target, EOS counted."""

    def __len__(self) -> int:
        return self._length

    def _row(self, name: str, index: int) -> NDArray[Any]:
        start, end = self._starts[name][index : index + 2]
        return self._values[name][start:end]

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
        return int(self._lines[index])


def _map(path: Path, kind: str) -> NDArray[Any]:
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.empty(0, kind)
    return np.memmap(path, kind, mode="r")


def open_corpus(folder: Path) -> Corpus:
    """What `write` wrote, every byte checked. Raises FileNotFoundError if there is none, DataError if it is damaged."""
    path = folder / _META
    text = path.read_bytes()
    try:
        meta = json.loads(text)
        if meta["format"] != FORMAT:
            raise DataError(folder, "was written by another version of s2s", "remove it")
        if meta["files"].keys() != _FILES:
            raise DataError(folder, "is damaged: it names files that are not its own", "remove it")
        for name, description in meta["files"].items():
            # What is no regular file, such as a pipe, is not even opened: it could make us wait for ever.
            if not (folder / name).is_file() or _describe(folder / name) != description:
                raise DataError(folder / name, "is damaged: its content is not what was written", "remove the folder")
        return Corpus(folder, meta)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError, OSError) as error:
        raise DataError(folder, f"is damaged: {error}", "remove it") from error
