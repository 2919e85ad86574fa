"""Which pairs make a batch, in which order, and the tensors of one: pure functions of lengths, seed and epoch.

The position within an epoch is the number of batches taken. An epoch is planned window by window as its batches are
asked for, so a training of a large corpus starts, or goes on in the middle of an epoch, without planning the whole.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from s2s.data.corpora import AnyCorpus
from s2s.data.shards import Ids
from s2s.data.tokenizer import SamplingSettings, Tokenizers
from s2s.interfaces import BOS, EOS, PAD, Before
from s2s.settings import Settings

Indices = NDArray[np.int64]
Item = TypeVar("Item", covariant=True)

_SOURCE_SHARE = 4  # padded source positions allowed for each target token
_BLOCK = 4096  # neighbours on disk that stay in one window
_OF_TURNS = 1  # tells the draws of `_turns` from those of `EpochPlan`


class BatchSettings(Settings):
    """How pairs are put together."""

    tokens: int = Field(default=2048, gt=0)
    """Real target tokens of a batch at most, the end of sentence counted; a longer pair is a batch of its own."""
    accumulate: int = Field(default=1, gt=0)
    """Batches whose gradients are added for one update."""
    window: int = Field(default=1_000_000, gt=0)
    """Pairs sorted by length together; a smaller corpus is sorted as a whole."""


class Batch(NamedTuple):
    """B pairs, in S source and T target positions."""

    source: Tensor
    """(B, S) int64, EOS at the end of each, then PAD."""
    source_lengths: Tensor
    """(B,) int64, EOS counted."""
    target: Tensor
    """(B, T + 1) int64: BOS, words, EOS, then PAD; ``target[:, :-1]`` is fed in, ``target[:, 1:]`` is expected."""
    target_lengths: Tensor
    """(B,) int64, EOS counted, BOS not."""
    pairs: list[int]
    """The numbers of the pairs in their corpus."""
    links: Tensor | None
    """(B, T, S) float32 word links carried to pieces: a row of an expected piece sums to 1 over its linked source
    pieces, or is zero. None in a corpus without links, and where nobody learns from them."""
    before: Before | None = None
    """The sentences before each, in their best segmentation; None where nobody reads them."""


# --- planning ---------------------------------------------------------------------------------------------------------


class Lengths(Protocol):
    """(n,) lengths, looked up for many pairs at once: an array, in memory or mapped, or what stands for several."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Indices, /) -> NDArray[np.integer[Any]]: ...


class Planned(Protocol[Item]):
    """A sequence whose items are made when they are asked for; a list is one too. IndexError after the last."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...

    def __iter__(self) -> Iterator[Item]: ...


class Mixture(NamedTuple):
    """Several corpora, whose pairs are numbered through, in other shares than those of their sizes."""

    sizes: Sequence[int]
    """Pairs of each."""
    shares: Sequence[float]
    """Of an epoch, which has as many pairs as all corpora together; they sum to 1."""


def plan_epoch(
    source_lengths: Lengths,
    target_lengths: Lengths,
    settings: BatchSettings,
    seed: int,
    epoch: int,
    mixture: Mixture | None = None,
) -> EpochPlan:
    """The batches of an epoch; lengths (n,) with EOS counted, ``seed`` and ``epoch`` >= 0.

    Each pair is in exactly one batch, or with a ``mixture`` as often as its corpus has turns: a corpus is gone through
    again and again, in an order drawn for each turn, and an epoch goes on where the one before it stopped.
    """
    block = min(_BLOCK, settings.window)
    if mixture is None:
        blocks = _blocks(0, len(target_lengths), block)
        pairs = np.full(len(blocks), block)  # the short one at the end counts as a whole one
    else:
        first = np.cumsum([0, *mixture.sizes])
        blocks = np.concatenate(
            [
                _turns(number, size, amount, block, seed, epoch) + first[number]
                for number, (size, amount) in enumerate(zip(mixture.sizes, amounts(mixture), strict=True))
            ]
        )
        pairs = blocks[:, 1] - blocks[:, 0]  # a tiny corpus has many blocks that are as tiny
    return EpochPlan(source_lengths, target_lengths, blocks, pairs, settings, seed, epoch)


def _blocks(start: int, end: int, block: int) -> Indices:
    """(n, 2) first pair and end of each block of neighbours that stays in one window."""
    starts = np.arange(start, end, block)
    return np.stack([starts, np.minimum(starts + block, end)], axis=1)


def amounts(mixture: Mixture) -> list[int]:
    """How many pairs of each corpus an epoch has: the largest remainders are rounded up, of equal ones the first."""
    exact = [share * sum(mixture.sizes) for share in mixture.shares]
    found = [int(amount) for amount in exact]
    by_remainder = sorted(range(len(exact)), key=lambda number: (found[number] - exact[number], number))
    for number in by_remainder[: sum(mixture.sizes) - sum(found)]:
        found[number] += 1
    return found


def _turns(corpus: int, size: int, amount: int, block: int, seed: int, epoch: int) -> Indices:
    """(n, 2) the stretches of a corpus of ``size`` pairs, numbered from 0, that an epoch of ``amount`` pairs takes."""
    taken: list[Indices] = []
    start, stop = epoch * amount, (epoch + 1) * amount  # counted over all turns
    for turn in range(start // size, -(-stop // size)):
        generator = np.random.default_rng(np.random.SeedSequence([seed, turn, corpus, _OF_TURNS]))
        blocks = generator.permutation(_blocks(0, size, block))
        ends = turn * size + np.cumsum(blocks[:, 1] - blocks[:, 0])
        begins = ends - (blocks[:, 1] - blocks[:, 0])
        blocks[:, 0] += np.maximum(start - begins, 0)
        blocks[:, 1] -= np.maximum(ends - stop, 0)
        taken.append(blocks[blocks[:, 0] < blocks[:, 1]])
    return np.concatenate([*taken, np.empty((0, 2), np.int64)])


class EpochPlan:
    """The batches of an epoch: blocks of neighbouring pairs (n, 2) are permuted and pooled into windows.

    Within a window pairs are permuted, sorted by target and source length, and cut; the batches are shuffled. One
    window is held at a time. How many batches another one has is told by its lengths alone, without their pairs.
    """

    def __init__(
        self,
        source_lengths: Lengths,
        target_lengths: Lengths,
        blocks: Indices,
        pairs: Indices,
        settings: BatchSettings,
        seed: int,
        epoch: int,
    ) -> None:
        """``pairs`` (n,): how many of a window's each block counts for."""
        self._lengths = source_lengths, target_lengths
        self._settings, self._counters = settings, [seed, epoch]
        order = np.random.default_rng(np.random.SeedSequence(self._counters)).permutation(len(blocks))
        self._blocks = len(blocks)
        full = settings.window - settings.window % min(_BLOCK, settings.window)
        windows = (np.cumsum(pairs[order]) - 1) // full
        self._windows = np.split(blocks[order], np.flatnonzero(np.diff(windows)) + 1) if len(order) else []
        self._ends: list[int] = []  # batches up to the end of each window, as far as they were counted
        self._held: tuple[int, list[Indices]] = -1, []

    def __len__(self) -> int:
        while len(self._ends) < len(self._windows):
            self._count_next()
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int, /) -> Indices:
        if index < 0:
            raise IndexError(index)
        while index >= (self._ends[-1] if self._ends else 0):
            if len(self._ends) == len(self._windows):
                raise IndexError(index)
            self._count_next()
        window = bisect(self._ends, index)
        if self._held[0] != window:
            self._held = window, self._batches(window)
        return self._held[1][index - (self._ends[window - 1] if window else 0)]

    def __iter__(self) -> Iterator[Indices]:
        return (self[index] for index in range(len(self)))

    def _pool(self, window: int) -> Indices:
        return np.concatenate([np.arange(start, end) for start, end in self._windows[window]])

    def _count_next(self) -> None:
        """One more window: the number of its batches depends on its sorted lengths, not on which pair has which."""
        window = len(self._ends)
        pool = self._pool(window)
        source, target = (lengths[pool].astype(np.int64) for lengths in self._lengths)
        both = np.sort(target << 32 | source)
        ends = _ends_of_batches(both & 0xFFFFFFFF, both >> 32, self._settings)
        self._ends.append((self._ends[-1] if self._ends else 0) + len(ends))

    def _batches(self, window: int) -> list[Indices]:
        """The batches of a window in their order; the first goes on with the generator that permuted the blocks."""
        counters = [*self._counters, window] if window else self._counters
        generator = np.random.default_rng(np.random.SeedSequence(counters))
        if not window:
            generator.permutation(self._blocks)
        cut = _cut(generator.permutation(self._pool(window)), *self._lengths, self._settings)
        return [cut[index] for index in generator.permutation(len(cut))]


def valid_batches(source_lengths: Lengths, target_lengths: Lengths, settings: BatchSettings) -> list[Indices]:
    """All pairs in batches in the order of their lengths, for measuring."""
    return _cut(np.arange(len(target_lengths)), source_lengths, target_lengths, settings)


def group_updates(batches: Planned[Indices], settings: BatchSettings, world: int = 1, taken: int = 0) -> Updates:
    """The batches of each update of an epoch: accumulate x world, fewer in the last; rank r takes [r::world].

    The first ``taken`` batches are left out.
    """
    return Updates(batches, settings.accumulate * world, taken)


class Updates:
    """Batches in groups of ``size``, made when they are asked for; the first ``taken`` are left out."""

    def __init__(self, batches: Planned[Indices], size: int, taken: int) -> None:
        self._batches, self._size, self._taken = batches, size, taken

    def __len__(self) -> int:
        return -(-(len(self._batches) - self._taken) // self._size)

    def __getitem__(self, index: int, /) -> list[Indices]:
        first = self._taken + index * self._size
        found = [self._batches[first]]  # IndexError after the last
        with suppress(IndexError):  # not by their number, for which all lengths would have to be read
            for number in range(first + 1, first + self._size):
                found.append(self._batches[number])
        return found

    def __iter__(self) -> Iterator[list[Indices]]:
        return (self[index] for index in range(len(self)))


def _cut(pool: Indices, source_lengths: Lengths, target_lengths: Lengths, settings: BatchSettings) -> list[Indices]:
    """Sort by target, then source length, ties as they come, and cut."""
    sources, targets = source_lengths[pool].astype(np.int64), target_lengths[pool].astype(np.int64)
    order = np.lexsort((sources, targets))
    pool = pool[order]
    ends = _ends_of_batches(sources[order], targets[order], settings)
    return [pool[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _ends_of_batches(sources: Indices, targets: Indices, settings: BatchSettings) -> list[int]:
    """Where the batches of pairs with these lengths, sorted, end.

    A batch closes before its real target tokens pass ``tokens`` or its padded source positions 4 x ``tokens``; a single
    pair over a limit is a batch of its own.
    """
    tokens = np.concatenate([[0], np.cumsum(targets)])
    ends: list[int] = []
    start = 0
    while start < len(sources):
        end = int(np.searchsorted(tokens, tokens[start] + settings.tokens, side="right")) - 1
        longest = np.maximum.accumulate(sources[start:end])
        padded = longest * np.arange(1, len(longest) + 1)  # source positions if the batch ended here; never falls
        end = start + int(np.searchsorted(padded, _SOURCE_SHARE * settings.tokens, side="right"))
        start = max(end, start + 1)
        ends.append(start)
    return ends


# --- tensors ----------------------------------------------------------------------------------------------------------


class Sampling(NamedTuple):
    """Draw segmentations, as a function of all this and the row: a pair that an epoch has twice is drawn for twice."""

    settings: SamplingSettings
    seed: int
    epoch: int
    position: int
    """Of the batch in the epoch."""


def collate(
    corpus: AnyCorpus,
    indices: Indices,
    tokenizers: Tokenizers,
    sampling: Sampling | None = None,
    sentences_before: int = 0,
    guided: bool = False,
) -> Batch:
    """The tensors of the pairs ``indices``: the segmentation that the corpus holds, or one that is drawn now.

    ``sentences_before``: how many sentences before each are given with it, as far as its document has them.
    ``guided``: with the word links of the pieces, if the corpus has any.
    """
    pairs = [int(index) for index in indices]
    rows = [corpus.pair(index) for index in pairs] if sampling is None else _draw(corpus, pairs, tokenizers, sampling)
    source, source_lengths = padded([source for source, _ in rows])
    expected, target_lengths = padded([target for _, target in rows])
    target = np.pad(expected, ((0, 0), (1, 0)), constant_values=BOS)  # (B, T + 1)
    links = None
    if guided and corpus.has_links:
        table = np.zeros((*expected.shape, source.shape[1]), np.float32)  # (B, T, S)
        for row, index in enumerate(pairs):
            source_words = tokenizers.source.words(source[row, : source_lengths[row]].tolist())
            target_words = tokenizers.target.words(expected[row, : target_lengths[row]].tolist())
            piece_links = _piece_links(corpus.links(index), source_words, target_words)
            table[row, : len(target_words), : len(source_words)] = piece_links
        links = torch.from_numpy(table)
    return Batch(
        source=torch.from_numpy(source),
        source_lengths=torch.from_numpy(source_lengths),
        target=torch.from_numpy(target),
        target_lengths=torch.from_numpy(target_lengths),
        pairs=pairs,
        links=links,
        before=sentences_of(
            [[corpus.pair(other)[0] for other in corpus.before(index, sentences_before)] for index in pairs],
            sentences_before,
        ),
    )


def sentences_of(rows: Sequence[Sequence[Sequence[int] | Ids]], count: int) -> Before | None:
    """The sentences before each of B sentences, the nearest first, at most ``count``; None if that is 0.

    They are ids with EOS at the end.
    """
    if not count:
        return None
    lengths = np.zeros((len(rows), count), np.int64)
    for row, sentences in enumerate(rows):
        lengths[row, : len(sentences)] = [len(ids) for ids in sentences]
    source = np.full((*lengths.shape, max(1, lengths.max())), PAD, np.int64)  # (B, K, P)
    for row, sentences in enumerate(rows):
        for place, ids in enumerate(sentences):
            source[row, place, : len(ids)] = ids
    return Before(torch.from_numpy(source), torch.from_numpy(lengths))


def _draw(corpus: AnyCorpus, pairs: Sequence[int], tokenizers: Tokenizers, sampling: Sampling) -> list[tuple[Ids, Ids]]:
    """A segmentation of both sides of each pair, EOS at the end."""
    rows: list[tuple[Ids, Ids]] = []
    for row, index in enumerate(pairs):
        place = f"{sampling.seed} {sampling.epoch} {sampling.position} {row}"
        generator = random.Random(place)  # of a text: the same in every process
        source, target = (
            np.array([*tokenizer.encode_sampled(text, sampling.settings, generator), EOS])
            for tokenizer, text in zip(tokenizers, corpus.text(index), strict=True)
        )
        rows.append((source, target))
    return rows


def padded(rows: Sequence[Ids] | Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of ids (B, longest) with PAD behind each, and their lengths (B,)."""
    lengths = np.array([len(row) for row in rows], np.int64)
    filled = np.full((len(rows), lengths.max()), PAD, np.int64)
    for number, row in enumerate(rows):
        filled[number, : lengths[number]] = row
    return filled, lengths


def _piece_links(
    links: NDArray[np.int32], source_words: Sequence[int], target_words: Sequence[int]
) -> NDArray[np.float32]:
    """(T, S) of the pieces of one pair: all pieces of linked words are linked, and each such row sums to 1."""
    # One more row and column, always zero, is where the word number -1 of a piece outside all words points.
    last_source, last_target = links.max(axis=0, initial=0)
    table = np.zeros((max(last_target, *target_words) + 2, max(last_source, *source_words) + 2), np.float32)
    table[links[:, 1], links[:, 0]] = 1
    pieces: NDArray[np.float32] = table[np.ix_(target_words, source_words)]  # (T, S)
    pieces /= np.maximum(pieces.sum(axis=1, keepdims=True), 1)
    return pieces
