"""Which pairs make a batch, in which order, and the tensors of one: pure functions of lengths, seed and epoch.

The position within an epoch is the number of batches taken, so to resume is to plan the epoch again and skip.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from s2s.data.shards import Corpus, Ids
from s2s.data.tokenizer import SamplingSettings, Tokenizers
from s2s.interfaces import BOS, EOS, PAD
from s2s.settings import Settings

Lengths = NDArray[np.integer[Any]]
Indices = NDArray[np.int64]

_SOURCE_SHARE = 4  # padded source positions allowed for each target token
_BLOCK = 4096  # neighbours on disk that stay in one window


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
    pieces, or is zero. None in a corpus without links."""


# --- planning ---------------------------------------------------------------------------------------------------------


def plan_epoch(
    source_lengths: Lengths, target_lengths: Lengths, settings: BatchSettings, seed: int, epoch: int
) -> list[Indices]:
    """The batches of an epoch, each pair in exactly one; lengths (n,) with EOS counted, ``seed`` and ``epoch`` >= 0.

    Blocks of neighbouring pairs are permuted and pooled into windows. Within a window pairs are permuted, sorted by
    target and source length, and cut; the batches are shuffled.
    """
    generator = np.random.default_rng(np.random.SeedSequence([seed, epoch]))
    pairs = len(target_lengths)
    block = min(_BLOCK, settings.window)
    blocks = generator.permutation(-(-pairs // block))
    batches: list[Indices] = []
    for first in range(0, len(blocks), settings.window // block):
        starts = blocks[first : first + settings.window // block] * block
        pool = np.concatenate([np.arange(start, min(start + block, pairs)) for start in starts])
        cut = _cut(generator.permutation(pool), source_lengths, target_lengths, settings)
        batches += [cut[index] for index in generator.permutation(len(cut))]
    return batches


def valid_batches(source_lengths: Lengths, target_lengths: Lengths, settings: BatchSettings) -> list[Indices]:
    """All pairs in batches in the order of their lengths, for measuring."""
    return _cut(np.arange(len(target_lengths)), source_lengths, target_lengths, settings)


def group_updates(batches: Sequence[Indices], settings: BatchSettings, world: int = 1) -> list[list[Indices]]:
    """The batches of each update of an epoch: accumulate x world, fewer in the last; rank r takes [r::world]."""
    slots = settings.accumulate * world
    return [list(batches[first : first + slots]) for first in range(0, len(batches), slots)]


def _cut(pool: Indices, source_lengths: Lengths, target_lengths: Lengths, settings: BatchSettings) -> list[Indices]:
    """Sort by target, then source length, ties as they come, and cut.

    A batch closes before its real target tokens pass ``tokens`` or its padded source positions 4 x ``tokens``; a single
    pair over a limit is a batch of its own.
    """
    pool = pool[np.lexsort((source_lengths[pool], target_lengths[pool]))]
    sources = source_lengths[pool].astype(np.int64)
    tokens = np.concatenate([[0], np.cumsum(target_lengths[pool], dtype=np.int64)])
    batches: list[Indices] = []
    start = 0
    while start < len(pool):
        end = int(np.searchsorted(tokens, tokens[start] + settings.tokens, side="right")) - 1
        longest = np.maximum.accumulate(sources[start:end])
        padded = longest * np.arange(1, len(longest) + 1)  # source positions if the batch ended here; never falls
        end = start + int(np.searchsorted(padded, _SOURCE_SHARE * settings.tokens, side="right"))
        end = max(end, start + 1)
        batches.append(pool[start:end])
        start = end
    return batches


# --- tensors ----------------------------------------------------------------------------------------------------------


class Sampling(NamedTuple):
    """Draw segmentations, as a function of seed, epoch and the number of the pair."""

    settings: SamplingSettings
    seed: int
    epoch: int


def collate(corpus: Corpus, indices: Indices, tokenizers: Tokenizers, sampling: Sampling | None = None) -> Batch:
    """The tensors of the pairs ``indices``: the segmentation that the corpus holds, or one that is drawn now."""
    pairs = [int(index) for index in indices]
    rows = [corpus.pair(index) for index in pairs] if sampling is None else _draw(corpus, pairs, tokenizers, sampling)
    source, source_lengths = _pad([source for source, _ in rows])
    expected, target_lengths = _pad([target for _, target in rows])
    target = np.pad(expected, ((0, 0), (1, 0)), constant_values=BOS)  # (B, T + 1)
    links = None
    if corpus.has_links:
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
    )


def _draw(corpus: Corpus, pairs: Sequence[int], tokenizers: Tokenizers, sampling: Sampling) -> list[tuple[Ids, Ids]]:
    """A segmentation of both sides of each pair, EOS at the end."""
    rows: list[tuple[Ids, Ids]] = []
    for index in pairs:
        generator = random.Random(f"{sampling.seed} {sampling.epoch} {index}")  # of a text: the same in every process
        source, target = (
            np.array([*tokenizer.encode_sampled(text, sampling.settings, generator), EOS])
            for tokenizer, text in zip(tokenizers, corpus.text(index), strict=True)
        )
        rows.append((source, target))
    return rows


def _pad(rows: Sequence[Ids]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(B, longest) filled with PAD, and the lengths (B,)."""
    lengths = np.array([len(row) for row in rows], np.int64)
    padded = np.full((len(rows), lengths.max()), PAD, np.int64)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
    return padded, lengths


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
