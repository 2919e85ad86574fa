"""From the files a config names to tokenizers and encoded corpora, kept in a cache that is keyed by content."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import sentencepiece
from pydantic import Field, field_validator, model_validator

from s2s.checkpoint import replace_file
from s2s.configfile import FilePath, NewPath
from s2s.data import shards, tokenizer
from s2s.data.batches import Mixture, amounts
from s2s.data.corpora import AnyCorpus, Corpora, shared_pairs
from s2s.data.digests import Digests, signature
from s2s.data.encode import Rules, Work, encode
from s2s.data.shards import Corpus
from s2s.data.text import (
    Invalid,
    LineIndex,
    PairCounts,
    TextCounts,
    index_lines,
    last_line,
    normalise,
    read_lines,
    require_two_files,
    sample,
    usable_pairs,
)
from s2s.data.tokenizer import SamplingSettings, SentencePieceSettings, Tokenizers, WhitespaceSettings
from s2s.errors import CheckpointError, DataError
from s2s.evaluation.scores import LANGUAGE
from s2s.interfaces import UNK
from s2s.progress import Meter
from s2s.settings import MayChange, Settings

Notify = Callable[[str], None]
Fingerprint = dict[str, dict[str, Any]]

_WARNINGS = "warnings.json"
_PART = 1 << 16  # lines of a part; with another number shards.FORMAT changes, or a kill's old parts would be joined


class PairFiles(Settings):
    """Two parallel texts, plain or gzip: line n of one is the translation of line n of the other."""

    source: FilePath
    """The text to translate from."""
    target: FilePath
    """The text to translate to."""
    links: FilePath | None = None
    """Word links in Pharaoh form (0-0 1-2: source word, target word), a line a pair; for guided attention."""

    def paths(self) -> dict[str, Path]:
        """The files, by side."""
        return {side: Path(path) for side in ("source", "target", "links") if (path := getattr(self, side)) is not None}


class TrainFiles(PairFiles):
    """One of several corpora to learn from."""

    name: str | None = Field(default=None, min_length=1)
    """What to call it in messages; null: data.train and its number, from 0."""
    weight: float | None = Field(default=None, gt=0)
    """Its share of the pairs of an epoch, relative to the weights of the others; given for all corpora or for none."""
    tag: str | None = None
    """A word that is put in front of every source, such as <to-de>, and is one piece of the vocabulary: by it a model
    knows the language that is wanted, or the kind of text. Texts to translate, those of data.valid and data.test too,
    have it in front of each line."""

    @field_validator("tag")
    @classmethod
    def _tag_is_a_word(cls, tag: str | None) -> str | None:
        if tag is not None and (len(tag.split()) != 1 or normalise(tag)[0] != tag or "▁" in tag):
            raise ValueError(f"{tag!r} is not one word")
        return tag


class DataSettings(Settings):
    """The texts to learn from and to measure on."""

    train: Annotated[PairFiles | tuple[TrainFiles, ...], MayChange(contents=True)]
    """What the model learns from: a source and a target, or a list of such."""
    valid: Annotated[PairFiles | None, MayChange(contents=True)] = None
    """What progress is measured on during training."""
    test: Annotated[PairFiles | None, MayChange()] = None
    """What `s2s eval` measures on."""
    language: Annotated[str | None, Field(pattern=LANGUAGE), MayChange(scores=True, decides=True)] = None
    """The target language, such as de. Needed for zh, ja and ko: there words have no blanks between them, and BLEU cuts
    the text as sacreBLEU does for these; null cuts it as for others."""
    temperature: float | None = Field(default=None, gt=0)
    """Of several corpora each has a share of an epoch in proportion to its pairs to the power 1 / temperature: 1 is
    their own sizes, more evens them out. Null without weights: every pair once an epoch."""
    max_length: int = Field(default=256, gt=0)
    """Pairs with more words or pieces than this on a side, the tag among them, or 20 times as many characters, are left
    out, and counted."""
    max_ratio: float | None = Field(default=None, ge=1)
    """Training pairs with more pieces than this on one side for each piece on the other are left out, and counted."""
    drop_copies: bool = False
    """Leave out training pairs whose source equals the target, and count them."""
    drop_repeats: bool = False
    """Leave out training pairs that are equal to an earlier one of the same corpus, and count them. Equal is told by
    hashes of eight bytes."""
    invalid_utf8: Invalid = "error"
    """What to do with a line that is not UTF-8: refuse the file, put U+FFFD (replace), or leave out the pair (drop)."""
    cache: Annotated[NewPath | None, MayChange()] = None
    """Where encoded corpora are kept for the next run; null is a folder beside the run."""

    @property
    def corpora(self) -> tuple[PairFiles, ...]:
        """What the model learns from, as a list whether or not it is one."""
        return self.train if isinstance(self.train, tuple) else (self.train,)

    def files(self, key: str) -> PairFiles:
        """The files of a corpus by its key in `Prepared.fingerprint`, such as train, train.1 or valid."""
        name, _, number = key.partition(".")
        found: PairFiles = self.corpora[int(number or 0)] if name == "train" else getattr(self, name)
        return found

    @model_validator(mode="after")
    def _shares_are_clear(self) -> Self:
        if not self.corpora:
            raise ValueError("train: the list is empty")
        weighted = [isinstance(files, TrainFiles) and files.weight is not None for files in self.corpora]
        if any(weighted) and not all(weighted):
            raise ValueError("train: give every corpus a weight, or none")
        if any(weighted) and self.temperature is not None:
            raise ValueError("temperature: there are weights already; keep one of the two")
        return self


class Prepared(NamedTuple):
    """All that training needs to know about its data."""

    tokenizers: Tokenizers
    sampling: SamplingSettings | None
    """How segmentations are drawn for training batches; None takes the best one."""
    train: AnyCorpus
    valid: Corpus | None
    fingerprint: dict[str, Fingerprint]
    """By corpus (train or train.0, train.1, ...; valid): {source, target, links}: {sha256, bytes, lines} of the files
    as they were read."""
    mixture: Mixture | None
    """What share of an epoch each training corpus has; None takes every pair once."""
    counts: list[PairCounts]
    """What was read, dropped and kept of each corpus, those to learn from first."""


def prepare(
    settings: DataSettings,
    tokenizer_settings: SentencePieceSettings | WhitespaceSettings,
    cache: Path,
    notify: Notify,
    tokenizers: Tokenizers | None = None,
    jobs: int = 1,
) -> Prepared:
    """Learn the tokenizers unless they are given, encode the corpora, and reuse whatever the cache has already.

    ``notify`` gets a summary and the warnings, one line each, the same ones when a corpus is reused. ``cache`` is used
    where the settings name no folder. ``jobs`` processes encode; their number changes nothing else. Raises DataError
    for files that cannot be used, OSError where the cache cannot be written.
    """
    folder = Path(settings.cache) if settings.cache is not None else cache
    digests = Digests(folder)
    learned_from = [_Files(*names, files, settings, digests, True) for names, files in _named(settings)]
    measured_on = {
        key: _Files(key, key, files, settings, digests, False)
        for key, files in (("valid", settings.valid), ("test", settings.test))
        if files is not None
    }
    for few in measured_on.values():  # read after hours, when it is too late to learn what is wrong with them
        few.require_lines()
    digests.save()
    if tokenizers is None:
        tokenizers = _tokenizers(learned_from, tokenizer_settings, folder, digests, notify)
    for files in learned_from:
        files.require_tag(tokenizers)
    cached = _Cache(folder, tokenizers, notify, digests, jobs)
    parts, counts, fingerprint = [], [], {}
    for files in learned_from:
        corpus, own = cached.corpus(files)
        parts.append(corpus)
        counts.append(own)
        fingerprint[files.key] = files.fingerprint(own)
    train: AnyCorpus = Corpora(parts) if len(parts) > 1 else parts[0]
    valid = None
    if "valid" in measured_on:
        valid, own = cached.corpus(measured_on["valid"], (learned_from, train))
        counts.append(own)
        fingerprint["valid"] = measured_on["valid"].fingerprint(own)
    digests.save()
    sampling = tokenizer_settings.sampling if isinstance(tokenizer_settings, SentencePieceSettings) else None
    mixture = _mixture(settings, [len(part) for part in parts])
    if mixture is not None:
        _require_turns(mixture, [files.name for files in learned_from])
    return Prepared(tokenizers, sampling, train, valid, fingerprint, mixture, counts)


def _named(settings: DataSettings) -> Iterator[tuple[tuple[str, str], PairFiles]]:
    """The corpora to learn from, each with its key and its name in messages."""
    if not isinstance(settings.train, tuple):
        yield ("train", "data"), settings.train
        return
    for number, files in enumerate(settings.train):
        yield (f"train.{number}", files.name or f"data.train.{number}"), files


def _mixture(settings: DataSettings, sizes: Sequence[int]) -> Mixture | None:
    weights = [files.weight for files in settings.corpora if isinstance(files, TrainFiles) and files.weight is not None]
    if settings.temperature is not None:
        weights = [(size / max(sizes)) ** (1 / settings.temperature) for size in sizes]
    # In proportion to the largest, because a power or a sum may be more than a float can hold.
    weights = [weight / max(weights) for weight in weights]
    return Mixture(sizes, [weight / sum(weights) for weight in weights]) if weights else None


def _require_turns(mixture: Mixture, names: Sequence[str]) -> None:
    """Raises DataError for a corpus of which no epoch would have a pair."""
    for name, amount in zip(names, amounts(mixture), strict=True):
        if amount == 0:
            what = f"its share is less than one of the {sum(mixture.sizes):,} pairs of an epoch, so it is never read"
            todo = "raise its weight or data.temperature, or leave it out, and start anew in another --run-dir"
            raise DataError(name, what, todo)


class _Files:
    """The files of one corpus, and what their content is."""

    def __init__(
        self, key: str, name: str, files: PairFiles, settings: DataSettings, digests: Digests, filtered: bool
    ) -> None:
        self.key, self.name, self.paths = key, name, files.paths()
        for path in self.paths.values():  # refuses what is missing or no regular file, with the usual words
            next(read_lines(path, counts=TextCounts(), invalid=settings.invalid_utf8), None)
        require_two_files(self.paths["source"], self.paths["target"])
        self.signatures = {side: signature(path) for side, path in self.paths.items()}
        self.content = {side: digests(path) for side, path in self.paths.items()}
        self.rules = Rules(
            settings.max_length,
            settings.invalid_utf8,
            settings.max_ratio if filtered else None,
            filtered and settings.drop_copies,
            files.tag if isinstance(files, TrainFiles) else None,
        )
        self.drop_repeats = filtered and settings.drop_repeats

    @property
    def identity(self) -> list[Any]:
        """All that, with the vocabularies, decides what is kept and how it is written."""
        return [self.content, asdict(self.rules), self.drop_repeats]

    @cached_property
    def indexes(self) -> dict[str, LineIndex]:
        """Where the lines of each file are. Raises DataError where the files do not have the same number of them."""
        found = {side: index_lines(path, _PART) for side, path in self.paths.items()}
        source, target = found["source"], found["target"]
        if source.lines != target.lines:
            longer = "source" if source.lines > target.lines else "target"
            counts = PairCounts()
            for side in ("source", "target"):
                one: TextCounts = getattr(counts, side)
                one.where, one.lines = str(self.paths[side]), found[side].lines
            counts.require_equal_lines(last_line(self.paths[longer], found[longer]))
        if "links" in found and found["links"].lines != source.lines:
            what = f"has {found['links'].lines} lines, {self.paths['source']} has {source.lines}"
            raise DataError(self.paths["links"], what, "give one line of links for each pair")
        return found

    def require_lines(self) -> None:
        """Raises DataError where the files do not have the same number of lines, or none."""
        if not self.indexes["source"].lines:
            raise DataError(self.paths["source"], "is empty", "give a text to measure on")

    def texts(self, number: int) -> Iterator[tuple[str, str]]:
        """The usable pairs of so many lines, spread over the files, without tags; of a few lines there may be none.

        Raises DataError, also where no pair of the whole corpus is usable.
        """
        lines = self.indexes["source"].lines
        counts = PairCounts(name=self.name, max_length=self.rules.max_length)
        counts.source.where, counts.target.where = str(self.paths["source"]), str(self.paths["target"])
        source, target = (
            read_lines(self.paths[side], counts=one, invalid=self.rules.invalid, only=sample(lines, number))
            for side, one in (("source", counts.source), ("target", counts.target))
        )
        sides = zip(source, target, strict=False)
        for pair in usable_pairs(sides, sample(lines, number), counts):
            if not (self.rules.drop_copies and pair.source == pair.target):
                yield pair.source, pair.target
        if number >= lines:
            counts.pairs = counts.source.lines
            counts.require_some()

    def require_tag(self, tokenizers: Tokenizers) -> None:
        """Raises DataError unless the tag is one piece."""
        tag = self.rules.tag
        if tag is not None and (len(ids := tokenizers.source.encode(tag)) != 1 or ids == [UNK]):
            what = f"the tag {tag} is not a piece of the vocabulary"
            raise DataError(f"data.{self.key}", what, "learn a vocabulary with it: tags of data.train are pieces")

    def require_unchanged(self, digests: Digests) -> None:
        """Raises DataError if a file does not contain what it did at the start."""
        for side, path in self.paths.items():
            if digests(path) != self.content[side]:
                raise DataError(path, "changed while it was read", "start again")

    def fingerprint(self, counts: PairCounts) -> Fingerprint:
        """SHA-256, bytes and lines of each file."""
        return {side: content | {"lines": counts.pairs} for side, content in self.content.items()}


def _key(*parts: object) -> str:
    """A name for whatever follows from these parts."""
    return hashlib.sha256(json.dumps([shards.FORMAT, *parts], sort_keys=True).encode()).hexdigest()[:32]


# --- tokenizers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Texts:
    """The texts of corpora, which may be gone through more than once; of more than ``limit`` lines a sample."""

    corpora: Sequence[_Files]
    limit: int | None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        sizes = [files.indexes["source"].lines for files in self.corpora]
        limit = sum(sizes) if self.limit is None else min(self.limit, sum(sizes))
        for files, lines in zip(self.corpora, sizes, strict=True):
            yield from files.texts(max(1, limit * lines // max(1, sum(sizes))))


def _tokenizers(
    corpora: Sequence[_Files],
    settings: SentencePieceSettings | WhitespaceSettings,
    cache: Path,
    digests: Digests,
    notify: Notify,
) -> Tokenizers:
    rules = [asdict(files.rules) for files in corpora]
    content = [[files.content[side]["sha256"] for side in ("source", "target")] for files in corpora]
    learned_from = settings.model_dump(exclude={"sampling"})
    folder = cache / f"tokenizer-{_key(content, rules, learned_from, sentencepiece.__version__)}"
    found = _learned(folder)
    if found is None:
        with _alone(folder, notify):
            found = _learned(folder) or _learn(folder, corpora, settings, digests)
    tokenizers, warnings = found
    for line in warnings:
        notify(line)
    return tokenizers


def _learned(folder: Path) -> tuple[Tokenizers, list[str]] | None:
    """What was learned before, with the warnings; None where it is not there, or damaged: learning gives the same."""
    try:
        return tokenizer.load(folder), json.loads((folder / _WARNINGS).read_bytes())
    except (CheckpointError, OSError, ValueError):
        return None


def _learn(
    folder: Path, corpora: Sequence[_Files], settings: SentencePieceSettings | WhitespaceSettings, digests: Digests
) -> tuple[Tokenizers, list[str]]:
    lines: list[str] = []
    limit = settings.learn_from if isinstance(settings, SentencePieceSettings) else None
    tags = sorted({files.rules.tag for files in corpora if files.rules.tag is not None})
    tokenizers = tokenizer.train(settings, _Texts(corpora, limit), lines.append, tags)
    for files in corpora:
        files.require_unchanged(digests)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / _WARNINGS, json.dumps(lines).encode())
    tokenizer.save(tokenizers, folder)
    return tokenizers, lines


# --- corpora ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cache:
    """Where encoded corpora are kept, and how they get there."""

    folder: Path
    tokenizers: Tokenizers
    notify: Notify
    digests: Digests
    jobs: int

    def corpus(
        self, files: _Files, train: tuple[Sequence[_Files], AnyCorpus] | None = None
    ) -> tuple[Corpus, PairCounts]:
        """Encode a corpus or find it. ``train`` is what it should have no pair in common with."""
        others = None if train is None else [one.identity for one in train[0]]
        kind = "valid" if files.key == "valid" else "data"
        folder = self.folder / f"{kind}-{_key(files.identity, self.tokenizers.fingerprint, others)}"
        try:
            corpus, counts = self._open(folder, files)
        except (FileNotFoundError, DataError):
            with _alone(folder, self.notify):
                corpus, counts = self._reopen(folder, files) or self._make(folder, files, train)
        self._tidy(folder)
        for note in [counts.summary(), *counts.warnings()]:
            self.notify(note)
        if shared := corpus.facts.get("shared"):
            self.notify(f"{files.name}: {shared} pairs are in the training data too")
        return corpus, counts

    def _open(self, folder: Path, files: _Files) -> tuple[Corpus, PairCounts]:
        corpus = shards.open_corpus(folder, self.digests)
        return corpus, _counts(corpus.facts, files)

    def _reopen(self, folder: Path, files: _Files) -> tuple[Corpus, PairCounts] | None:
        """What another process has made meanwhile; a corpus that is damaged is removed."""
        try:
            return self._open(folder, files)
        except FileNotFoundError:
            return None
        except DataError as error:
            self.notify(f"{error.where}: {error.what}; the corpus is encoded again")
            shutil.rmtree(folder)
            return None

    def _tidy(self, folder: Path) -> None:
        """Remove what making a corpus has left, by a kill too, unless another process is making it just now."""
        left = [*self.folder.glob(f".{folder.name}-*"), *self.folder.glob(_parts_of(folder).name)]
        if left:
            with suppress(OSError), _lock_of(folder).open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for path in left:
                    shutil.rmtree(path)

    def _make(
        self, folder: Path, files: _Files, train: tuple[Sequence[_Files], AnyCorpus] | None
    ) -> tuple[Corpus, PairCounts]:
        parts = _parts_of(folder)
        work = Work(files.name, files.paths, files.indexes, files.signatures, files.rules, self.tokenizers, parts)
        try:
            self._make_parts(work)
            self._join(folder, work, files, None if train is None else train[1])
        except DataError:  # of files like these nothing can be made, so nobody will go on with the parts
            shutil.rmtree(parts, ignore_errors=True)
            raise
        return self._open(folder, files)

    def _make_parts(self, work: Work) -> None:
        """Make the parts that are not there yet."""
        missing = [part for part in range(work.parts) if not self._is_whole(work.path(part))]
        if len(missing) < work.parts:
            self.notify(f"{work.name}: {work.parts - len(missing)} of {work.parts} parts are there already")
        began, lines = time.monotonic(), sum(map(work.lines, missing))
        with Meter(f"encoding {work.name}", lines) as meter:

            def done(part: int) -> None:
                rate = (meter.done + work.lines(part)) / (time.monotonic() - began)
                meter.advance(work.lines(part), f"{rate:,.0f} lines/s")

            encode(work, missing, self.jobs, done)

    @staticmethod
    def _is_whole(part: Path) -> bool:
        """Whether a part is there from an earlier time; one that is damaged is removed."""
        try:
            shards.open_corpus(part)
            return True
        except FileNotFoundError:
            return False
        except DataError:
            shutil.rmtree(part)
            return False

    def _join(self, folder: Path, work: Work, files: _Files, train: AnyCorpus | None) -> None:
        """Make one corpus of all parts. Raises DataError if no pair is left, or a file has changed."""
        parts = [work.path(part) for part in range(work.parts)]
        counts = _counts({"counts": asdict(PairCounts(max_length=files.rules.max_length))}, files)
        ended = []
        for part in parts:
            own = _counts(shards.facts(part), files)
            counts.add(own)
            ended.append(own.source.blank)
        counts.require_some()
        repeats = shards.repeated(parts)
        counts.repeats = int(repeats.sum())
        without = None
        if files.drop_repeats:
            counts.copies -= shards.copies(parts, repeats, files.rules.tag)
            counts.kept, counts.repeated, counts.repeats, without = (
                counts.kept - counts.repeats,
                counts.repeats,
                0,
                repeats,
            )
        facts: dict[str, Any] = {"counts": asdict(counts)}
        if train is not None:
            facts["shared"] = shared_pairs(train, shards.hashes(parts))
        vocabulary = max(self.tokenizers.source.size, self.tokenizers.target.size)
        files.require_unchanged(self.digests)
        shards.join(folder, parts, vocabulary=vocabulary, without=without, ended=ended, facts=facts)


@contextmanager
def _alone(folder: Path, notify: Notify) -> Iterator[None]:
    """Of several processes that want the same thing one makes it, and the others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock_of(folder).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify(f"waiting for another process that prepares {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _parts_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.parts")


def _counts(facts: dict[str, Any], files: _Files) -> PairCounts:
    """What was counted, under the names that the files have now. Raises DataError if it is damaged."""
    try:
        own = facts["counts"]
        sides = {side: TextCounts(**own[side] | {"where": str(files.paths[side])}) for side in ("source", "target")}
        return PairCounts(**own | sides | {"name": files.name})
    except (LookupError, TypeError) as error:
        raise DataError(
            files.name, f"what was counted is damaged: {error}", "remove the folder of encoded corpora"
        ) from error
