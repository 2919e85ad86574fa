"""Several corpora read as one: pairs are numbered through, in the order of the corpora."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2s.data.shards import Corpus, Ids


class Corpora:
    """The pairs of several corpora, with the same questions and answers as a `Corpus`."""

    def __init__(self, parts: Sequence[Corpus]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self.has_links = any(part.has_links for part in parts)
        """Whether word links came with one of the corpora; pairs of the others have none."""
        self.source_lengths = _Chained([part.source_lengths for part in parts], self._ends)
        """(n,) pieces of each source, EOS counted."""
        self.target_lengths = _Chained([part.target_lengths for part in parts], self._ends)
        """(n,) pieces of each target, EOS counted."""

    def __len__(self) -> int:
        return int(self._ends[-1])

    def part(self, index: int) -> int:
        """The number of the corpus that a pair is of, from 0."""
        return int(np.searchsorted(self._ends, index, side="right"))

    def _find(self, index: int) -> tuple[Corpus, int]:
        """The corpus of a pair, and the number of the pair in it."""
        which = self.part(index)
        return self._parts[which], index - int(self._ends[which - 1] if which else 0)

    def pair(self, index: int) -> tuple[Ids, Ids]:
        """See `Corpus.pair`."""
        corpus, own = self._find(index)
        return corpus.pair(own)

    def text(self, index: int) -> tuple[str, str]:
        """See `Corpus.text`."""
        corpus, own = self._find(index)
        return corpus.text(own)

    def links(self, index: int) -> NDArray[np.int32]:
        """See `Corpus.links`."""
        corpus, own = self._find(index)
        return corpus.links(own)

    def line(self, index: int) -> int:
        """The number of the pair's line in the files of its own corpus, from 1."""
        corpus, own = self._find(index)
        return corpus.line(own)

    def before(self, index: int, count: int) -> list[int]:
        """See `Corpus.before`; a document lies in one corpus."""
        corpus, own = self._find(index)
        return [index - own + pair for pair in corpus.before(own, count)]

    def hashes(self) -> Iterator[NDArray[np.uint64]]:
        """See `Corpus.hashes`."""
        for part in self._parts:
            yield from part.hashes()


AnyCorpus = Corpus | Corpora


class _Chained:
    """Columns one after the other; only what is looked up is read."""

    def __init__(self, columns: Sequence[NDArray[np.int32]], ends: NDArray[np.integer[Any]]) -> None:
        self._columns, self._ends = columns, ends

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, indices: NDArray[np.int64], /) -> NDArray[np.int32]:
        which = np.searchsorted(self._ends, indices, side="right")
        found = np.empty(len(indices), np.int32)
        for number, column in enumerate(self._columns):
            chosen = which == number
            first = self._ends[number - 1] if number else 0
            found[chosen] = column[indices[chosen] - first]
        return found


def shared_pairs(train: AnyCorpus, others: Iterable[NDArray[np.uint64]]) -> int:
    """How many different pairs with these hashes are in the training corpus too; only the hashes are held."""
    different = np.unique(np.concatenate([*others]))
    found = np.zeros(len(different), np.bool_)
    for hashes in train.hashes():
        found |= np.isin(different, hashes)
    return int(found.sum())
