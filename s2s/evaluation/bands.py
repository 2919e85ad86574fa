"""Where a system is good: scores by bands of source length, and words by how often they were seen in training.

A corpus score by length is the score of the sentences whose source has so many words. Words in bands of frequency have
no BLEU, because an n-gram is in no band: what is sound there is how many of the words were found, as compare-mt (Neubig
et al. 2019) counts them. In each sentence a word is matched as often as it stands in both, hypothesis and reference.
Over all sentences, for the words of one band,

    precision = matched / in hypotheses      recall = matched / in references      F = 2 matched / (both together)

each undefined (None) where it would divide by zero. (compare-mt says 0 there.)
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from s2s.errors import UsageError
from s2s.evaluation.scores import Measured

LENGTHS = (10, 20, 30, 40, 50, 60)
"""Words of the source."""
FREQUENCIES = (1, 2, 5, 10, 100, 1000)
"""Times that a word was seen in training; the first band is of words that never were."""


class Bands:
    """Whole numbers from 0 in bands, by the least number of each band but the first: 10,20 is 0-9, 10-19 and 20+."""

    def __init__(self, edges: Sequence[int]) -> None:
        """Raises UsageError unless ``edges`` rise from 1 or more."""
        if not edges or edges[0] < 1 or any(one >= other for one, other in itertools.pairwise(edges)):
            text = ",".join(map(str, edges))
            raise UsageError("bands", f"{text!r} are no limits", "give rising whole numbers from 1, such as 10,20,30")
        self.edges = tuple(edges)

    @classmethod
    def parse(cls, text: str) -> Bands:
        """From ``10,20,30``. Raises UsageError for anything else."""
        parts = [part.strip() for part in text.split(",")]
        if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
            raise UsageError("bands", f"{text!r} are no limits", "give rising whole numbers from 1, such as 10,20,30")
        return cls([int(part) for part in parts])

    @property
    def labels(self) -> list[str]:
        """0-9, 10-19, ... 60+; a band of one number is that number."""
        starts, ends = (0, *self.edges[:-1]), (edge - 1 for edge in self.edges)
        bounded = [str(low) if low == high else f"{low}-{high}" for low, high in zip(starts, ends, strict=True)]
        return [*bounded, f"{self.edges[-1]}+"]

    def index(self, value: int) -> int:
        """The place of the band that holds ``value``."""
        return bisect_right(self.edges, value)


class LengthBand(NamedTuple):
    """The sentences of one band."""

    sentences: int
    value: float | None
    """Their corpus score; None without a sentence."""


class WordBand(NamedTuple):
    """The words of one band."""

    matched: int
    hypothesis: int
    """How many the hypotheses have."""
    reference: int
    """How many the references have."""

    @property
    def precision(self) -> float | None:
        """0 to 1."""
        return self.matched / self.hypothesis if self.hypothesis else None

    @property
    def recall(self) -> float | None:
        """0 to 1."""
        return self.matched / self.reference if self.reference else None

    @property
    def f(self) -> float | None:
        """The harmonic mean of precision and recall, 0 to 1."""
        both = self.hypothesis + self.reference
        return 2 * self.matched / both if both else None


def by_length(measured: Measured, lengths: Sequence[int], bands: Bands) -> list[LengthBand]:
    """The score of the sentences of each band; ``lengths`` are those of the sources, one a sentence."""
    members: list[list[Sequence[float]]] = [[] for _ in bands.labels]
    for length, sentence in zip(lengths, measured.sentences, strict=True):
        members[bands.index(length)].append(sentence)
    sums = [[math.fsum(column) for column in zip(*band, strict=True)] for band in members]
    return [
        LengthBand(len(band), measured.value_of(total) if band else None)
        for band, total in zip(members, sums, strict=True)
    ]


def by_frequency(
    hypotheses: Iterable[Sequence[str]], references: Iterable[Sequence[str]], frequency: Mapping[str, int], bands: Bands
) -> list[WordBand]:
    """The words of each band; the texts are in words, and a word that ``frequency`` does not have was never seen."""
    counts = [[0, 0, 0] for _ in bands.labels]
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        found, right = Counter(hypothesis), Counter(reference)
        for place, words in enumerate((found & right, found, right)):
            for word, count in words.items():
                counts[bands.index(frequency.get(word, 0))][place] += count
    return [WordBand(*band) for band in counts]


def count_words(lines: Iterable[Sequence[str]]) -> Counter[str]:
    """How often each word is in a text, given in words."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line)
    return counts
