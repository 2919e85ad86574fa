"""From the files a config names to tokenizers and encoded corpora, kept in a cache that is keyed by content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece
from pydantic import Field

from s2s.analysis.alignment import parse_links
from s2s.checkpoint import replace_file
from s2s.configfile import FilePath
from s2s.data import shards, tokenizer
from s2s.data.shards import Corpus, Example
from s2s.data.text import Invalid, Pair, PairCounts, TextCounts, read_lines, read_pairs, shared_pairs
from s2s.data.tokenizer import SamplingSettings, SentencePieceSettings, Tokenizers, WhitespaceSettings
from s2s.errors import CheckpointError, DataError
from s2s.settings import Settings

Notify = Callable[[str], None]
Fingerprint = dict[str, dict[str, Any]]


class PairFiles(Settings):
    """Two parallel texts, plain or gzip: line n of one is the translation of line n of the other."""

    source: FilePath
    """The text to translate from."""
    target: FilePath
    """The text to translate to."""
    links: FilePath | None = None
    """Word links in Pharaoh form (0-0 1-2: source word, target word), a line a pair; for guided attention."""


class DataSettings(Settings):
    """The texts to learn from and to measure on."""

    train: PairFiles
    """What the model learns from."""
    valid: PairFiles | None = None
    """What progress is measured on during training."""
    test: PairFiles | None = None
    """What `s2s eval` measures on."""
    max_length: int = Field(default=256, gt=0)
    """Pairs with more words or pieces than this on a side are left out, and counted."""
    invalid_utf8: Invalid = "error"
    """What to do with a line that is not UTF-8: refuse the file, put U+FFFD (replace), or leave out the pair (drop)."""
    cache: FilePath | None = None
    """Where encoded corpora are kept for the next run; null is a folder beside the run."""


class Prepared(NamedTuple):
    """All that training needs to know about its data."""

    tokenizers: Tokenizers
    sampling: SamplingSettings | None
    """How segmentations are drawn for training batches; None takes the best one."""
    train: Corpus
    valid: Corpus | None
    fingerprint: dict[str, Fingerprint]
    """{train, valid}: {source, target, links}: {sha256, bytes, lines} of the files as they were read."""


def prepare(
    settings: DataSettings,
    tokenizer_settings: SentencePieceSettings | WhitespaceSettings,
    cache: Path,
    notify: Notify,
    tokenizers: Tokenizers | None = None,
) -> Prepared:
    """Learn the tokenizers unless they are given, encode the corpora, and reuse whatever the cache has already.

    ``notify`` gets a summary and the warnings, one line each, the same ones when a corpus is reused. ``cache`` is used
    where the settings name no folder. Raises DataError for files that cannot be used, OSError where the cache cannot be
    written.
    """
    folder = Path(settings.cache) if settings.cache is not None else cache
    train_files = _Files("data", settings.train, settings)
    valid_files = None if settings.valid is None else _Files("valid", settings.valid, settings)
    if settings.test is not None:  # read only after training, when it is too late to learn that it is missing
        _Files("test", settings.test, settings)
    if tokenizers is None:
        tokenizers = _tokenizers(train_files, tokenizer_settings, folder, notify)
    train = _corpus(train_files, tokenizers, folder, notify)
    fingerprint = {"train": train_files.fingerprint(train)}
    valid = None
    if valid_files is not None:
        valid = _corpus(valid_files, tokenizers, folder, notify, train=(train_files, train))
        fingerprint["valid"] = valid_files.fingerprint(valid)
    sampling = tokenizer_settings.sampling if isinstance(tokenizer_settings, SentencePieceSettings) else None
    return Prepared(tokenizers, sampling, train, valid, fingerprint)


class _Files:
    """The files of one corpus, and what their content is."""

    def __init__(self, name: str, files: PairFiles, settings: DataSettings) -> None:
        self.name = name
        self.settings = settings
        self.paths = {side: Path(path) for side, path in files.model_dump().items() if path is not None}
        for path in self.paths.values():  # refuses what is missing or no regular file, with the usual words
            next(read_lines(path, counts=TextCounts(), invalid=settings.invalid_utf8), None)
        self.content = {side: _content(path) for side, path in self.paths.items()}

    def pairs(self, counts: PairCounts) -> Iterator[Pair]:
        """The usable pairs, read again at each call."""
        source, target = self.paths["source"], self.paths["target"]
        length, invalid = self.settings.max_length, self.settings.invalid_utf8
        return read_pairs(source, target, max_length=length, invalid=invalid, counts=counts, name=self.name)

    def require_unchanged(self) -> None:
        """Raises DataError if a file is not what it was at the start."""
        for side, path in self.paths.items():
            if _content(path) != self.content[side]:
                raise DataError(path, "changed while it was read", "start again")

    def fingerprint(self, corpus: Corpus) -> Fingerprint:
        """SHA-256, bytes and lines of each file."""
        return {side: content | {"lines": corpus.facts["lines"]} for side, content in self.content.items()}


def _content(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": os.fstat(file.fileno()).st_size}


def _key(*parts: object) -> str:
    """A name for whatever follows from these parts."""
    return hashlib.sha256(json.dumps([shards.FORMAT, *parts], sort_keys=True).encode()).hexdigest()[:32]


# --- tokenizers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Texts:
    """The texts of a corpus, which may be gone through more than once."""

    files: _Files

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((pair.source, pair.target) for pair in self.files.pairs(PairCounts()))


def _tokenizers(
    files: _Files, settings: SentencePieceSettings | WhitespaceSettings, cache: Path, notify: Notify
) -> Tokenizers:
    limits = (files.settings.max_length, files.settings.invalid_utf8)
    content = [files.content[side]["sha256"] for side in ("source", "target")]
    learned_from = settings.model_dump(exclude={"sampling"})
    folder = cache / f"tokenizer-{_key(content, limits, learned_from, sentencepiece.__version__)}"
    warnings = folder / "warnings.json"
    try:
        tokenizers = tokenizer.load(folder)
        for line in json.loads(warnings.read_bytes()):
            notify(line)
        return tokenizers
    except (CheckpointError, OSError, ValueError):
        pass  # not there yet, or damaged: learning it again gives the same
    lines: list[str] = []
    tokenizers = tokenizer.train(settings, _Texts(files), lines.append)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(warnings, json.dumps(lines).encode())
    tokenizer.save(tokenizers, folder)
    for line in lines:
        notify(line)
    return tokenizers


# --- corpora ----------------------------------------------------------------------------------------------------------


def _corpus(
    files: _Files,
    tokenizers: Tokenizers,
    cache: Path,
    notify: Notify,
    train: tuple[_Files, Corpus] | None = None,
) -> Corpus:
    """Encode a corpus or find it in the cache. ``train`` is the one that it should have no pair in common with."""
    limits = (files.settings.max_length, files.settings.invalid_utf8)
    others = None if train is None else train[0].content
    folder = cache / f"{files.name}-{_key(files.content, tokenizers.fingerprint, limits, others)}"
    corpus = _reopen(folder, notify)
    if corpus is None:
        counts = PairCounts()

        def facts() -> dict[str, Any]:
            notes = [counts.summary(), *counts.warnings()]
            if train is not None and (shared := _shared(train[1], files)):
                notes.append(f"{files.name}: {shared} pairs are in the training data too")
            files.require_unchanged()
            return {"lines": counts.pairs, "notes": notes}

        vocabulary = max(tokenizers.source.size, tokenizers.target.size)
        shards.write(folder, _encode(files, tokenizers, counts), vocabulary=vocabulary, facts=facts)
        corpus = shards.open_corpus(folder)
    for note in corpus.facts["notes"]:
        notify(note)
    return corpus


def _reopen(folder: Path, notify: Notify) -> Corpus | None:
    try:
        return shards.open_corpus(folder)
    except FileNotFoundError:
        return None
    except DataError as error:
        notify(f"{error.where}: {error.what}; the corpus is encoded again")
        shutil.rmtree(folder)
        return None


def _shared(train: Corpus, files: _Files) -> int:
    """How many pairs of the files are in the training corpus too."""
    known = (Pair(*train.text(index), line=train.line(index)) for index in range(len(train)))
    return shared_pairs(known, files.pairs(PairCounts()))


def _encode(files: _Files, tokenizers: Tokenizers, counts: PairCounts) -> Iterator[Example]:
    """The pairs with their ids, without those that have too many pieces. Raises DataError, also if none is left."""
    limit = files.settings.max_length
    links = _Links(files.paths["links"]) if "links" in files.paths else None
    for pair in files.pairs(counts):
        source, target = tokenizers.source.encode(pair.source), tokenizers.target.encode(pair.target)
        if max(len(source), len(target)) > limit:
            counts.too_long += 1
            counts.kept -= 1
        else:
            own = None if links is None else links.of(pair)
            yield Example(pair.source, pair.target, source, target, pair.line, own)
    if links is not None:
        links.require_lines(counts.pairs, files.paths["source"])


class _Links:
    """A file of word links, read in step with its pairs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counts = TextCounts()
        self._lines = read_lines(path, counts=self._counts)

    def of(self, pair: Pair) -> frozenset[tuple[int, int]]:
        """The links of a pair, sure and possible; pairs are asked for in order. Raises DataError."""
        text: str | None = None
        for _ in range(self._counts.lines, pair.line):
            text = next(self._lines, None)
        where = f"{self._path}: line {pair.line}"
        links = parse_links(text or "", where).possible
        words = pair.source.count(" ") + 1, pair.target.count(" ") + 1
        for source, target in sorted(links):
            if source >= words[0] or target >= words[1]:
                what = f"the link {source}-{target} is outside a pair of {words[0]} and {words[1]} words"
                raise DataError(where, what, "write source-target, counted from 0")
        return links

    def require_lines(self, expected: int, source: Path) -> None:
        """Raises DataError unless there is a line for each line of the corpus."""
        for _ in self._lines:
            pass
        if self._counts.lines != expected:
            raise DataError(self._path, f"has {self._counts.lines} lines, {source} has {expected}")
