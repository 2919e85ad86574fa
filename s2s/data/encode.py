"""Encodes a corpus in parts, in this process or in several: a part is whole or absent, and the same whoever made it."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from s2s.analysis.alignment import parse_links
from s2s.data import shards
from s2s.data.digests import signature
from s2s.data.shards import Example
from s2s.data.text import Invalid, LineIndex, Pair, PairCounts, StretchReader, TextCounts, usable_pairs
from s2s.data.tokenizer import Tokenizers
from s2s.errors import DataError, SystemRefused
from s2s.failpoints import hit

Links = frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Rules:
    """Which pairs are taken, and how."""

    max_length: int
    invalid: Invalid
    max_ratio: float | None
    drop_copies: bool
    tag: str | None
    """What is put in front of every source."""


@dataclass(frozen=True)
class Work:
    """All that a process needs to know to encode any part of a corpus."""

    name: str
    paths: dict[str, Path]
    indexes: dict[str, LineIndex]
    """Where the parts begin in each file: a part is a stretch of lines."""
    signatures: dict[str, list[int]]
    """What the files were like when their content was found out."""
    rules: Rules
    tokenizers: Tokenizers
    folder: Path
    """Where the parts are written."""

    @property
    def parts(self) -> int:
        """How many there are."""
        return len(self.indexes["source"].starts)

    def lines(self, part: int) -> int:
        """How many lines a part is made of."""
        index = self.indexes["source"]
        return min(index.stride, index.lines - part * index.stride)

    def path(self, part: int) -> Path:
        """The folder of a part."""
        return self.folder / f"part-{part:06d}"

    def require_unchanged(self) -> None:
        """Raises DataError if a file is not what it was at the start."""
        for side, path in self.paths.items():
            if signature(path) != self.signatures[side]:
                raise DataError(path, "changed while it was read", "start again")


class Encoder:
    """Makes parts of a corpus; a file stays open from one part to the next."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._readers = {
            side: StretchReader(path, work.indexes[side], "error" if side == "links" else work.rules.invalid)
            for side, path in work.paths.items()
        }

    def close(self) -> None:
        """Let go of the files."""
        for reader in self._readers.values():
            reader.close()

    def __call__(self, part: int) -> None:
        """Write a part, with what was counted. Raises DataError, also where a file has changed, and OSError."""
        work = self._work
        counts = PairCounts(name=work.name, max_length=work.rules.max_length)

        def facts() -> dict[str, Any]:
            counts.pairs = counts.source.lines
            if work.rules.invalid == "replace":
                counts.invalid_replaced = counts.source.invalid_utf8 + counts.target.invalid_utf8
            work.require_unchanged()
            return {"counts": asdict(counts)}

        vocabulary = max(work.tokenizers.source.size, work.tokenizers.target.size)
        shards.write(work.path(part), self._examples(part, counts), vocabulary=vocabulary, facts=facts)
        hit("prepare.part")

    def _examples(self, part: int, counts: PairCounts) -> Iterator[Example]:
        """The pairs with their ids, without those that the rules leave out."""
        rules, (source_side, target_side) = self._work.rules, self._work.tokenizers
        first = part * self._work.indexes["source"].stride + 1
        sides = zip(
            self._readers["source"].read(part, counts.source),
            self._readers["target"].read(part, counts.target),
            strict=False,
        )
        links = _Links(self._readers["links"], part) if "links" in self._readers else None
        for pair in usable_pairs(sides, itertools.count(first), counts):
            if rules.drop_copies and pair.source == pair.target:
                counts.drop(pair, "copied")
                continue
            text = pair.source if rules.tag is None else f"{rules.tag} {pair.source}"
            source, target = source_side.encode(text), target_side.encode(pair.target)
            shorter, longer = sorted((len(source) - (rules.tag is not None), len(target)))
            if max(len(source), len(target)) > rules.max_length:
                counts.drop(pair, "too_long")
            elif rules.max_ratio is not None and longer > rules.max_ratio * shorter:
                counts.drop(pair, "uneven")
            else:
                own = None if links is None else _moved(links.of(pair), rules.tag)
                yield Example(text, pair.target, source, target, pair.line, own, pair.document)


def _moved(links: Links, tag: str | None) -> Links:
    """The links of a source that has a tag in front, which is a word of its own."""
    return links if tag is None else frozenset((source + 1, target) for source, target in links)


class _Links:
    """A file of word links, read in step with the pairs of a part."""

    def __init__(self, reader: StretchReader, part: int) -> None:
        self._path = reader.path
        self._counts = TextCounts()
        self._lines = reader.read(part, self._counts)

    def of(self, pair: Pair) -> Links:
        """The links of a pair, sure and possible; pairs are asked for in order. Raises DataError."""
        text: str | None = None
        for _ in range(self._counts.line, pair.line):
            text = next(self._lines, None)
        where = f"{self._path}: line {pair.line}"
        links = parse_links(text or "", where).possible
        words = pair.source.count(" ") + 1, pair.target.count(" ") + 1
        for source, target in sorted(links):
            if source >= words[0] or target >= words[1]:
                what = f"the link {source}-{target} is outside a pair of {words[0]} and {words[1]} words"
                raise DataError(where, what, "write source-target, counted from 0")
        return links


# --- processes --------------------------------------------------------------------------------------------------------


def encode(work: Work, parts: Sequence[int], jobs: int, done: Callable[[int], None]) -> None:
    """Make ``parts``, ascending, in ``jobs`` processes; ``done`` is told of each when it is there.

    Raises what `Encoder` raises for the first part that cannot be made, and SystemRefused if a process dies.
    """
    if min(jobs, len(parts)) > 1:
        with ExitStack() as stack:
            _share(work, parts, [stack.enter_context(_Worker(work)) for _ in range(min(jobs, len(parts)))], done)
    elif parts:
        encoder = Encoder(work)
        try:
            for part in parts:
                encoder(part)
                done(part)
        finally:
            encoder.close()


class _Worker:
    """A process that makes the parts that it is told of, and ends when nobody is left to tell it."""

    def __init__(self, work: Work) -> None:
        # Copies of a fresh interpreter, not of this one, on whose threads and locks a copy could not rely.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.connection, self._far_end = context.Pipe()
        self._process: BaseProcess = context.Process(target=_serve, args=(work, self._far_end), daemon=True)

    def __enter__(self) -> _Worker:
        self._process.start()
        self._far_end.close()  # only the process has it now, so its death is the end of the pipe
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.connection.close()
        if kind is not None:
            self._process.terminate()
        self._process.join()

    def ask(self, part: int) -> None:
        """Have a part made; that the process is no more is told by its `result`."""
        with suppress(BrokenPipeError):
            self.connection.send(part)

    def result(self) -> Exception | None:
        """What a part that was asked for ended with. Raises SystemRefused if the process is no more."""
        try:
            result: Exception | None = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            what = f"a process that encoded ended with code {self._process.exitcode}"
            raise SystemRefused("s2s prepare", what, "start again, with fewer --jobs if memory was short") from None
        return result


def _share(work: Work, parts: Sequence[int], workers: Sequence[_Worker], done: Callable[[int], None]) -> None:
    """Give each worker the next part when it has finished one; after a failure no new part is begun."""
    waiting, failures = iter(parts), dict[int, Exception]()
    busy: dict[Any, tuple[_Worker, int]] = {}

    def send(worker: _Worker) -> None:
        part = None if failures else next(waiting, None)
        if part is not None:
            worker.ask(part)
            busy[worker.connection] = worker, part

    for worker in workers:
        send(worker)
    while busy:
        for connection in wait(list(busy)):
            worker, part = busy.pop(connection)
            error = worker.result()
            if error is None:
                done(part)
            else:
                failures[part] = error
            send(worker)
    if failures:  # parts are begun in order, so no earlier one can fail any more
        raise failures[min(failures)]


def _serve(work: Work, connection: Connection) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it hears of it too
    encoder: Encoder | None = None
    while True:
        try:
            part = connection.recv()
        except EOFError:
            return
        result: Exception | None = None
        try:
            encoder = encoder or Encoder(work)
            encoder(part)
        except Exception as error:  # the process that asked is told, and raises it
            result = error
        with suppress(BrokenPipeError):  # that process is gone, as the next turn finds out
            connection.send(result)
