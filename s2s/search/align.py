"""Word links from attention: what a model looks at while it is made to say a given translation.

At step t the decoder has read the token before and says token t, so row t of the weights belongs to token t (``shift``
0). Where the attention is asked by a state that has just read token t - 1, as in the wiring of Luong et al. 2015, it
may belong to that token instead (their footnote 14): ``shift`` 1 gives row t to token t - 1. Rows are shifted before
pieces become words. The row that belongs to no piece, and the column of EOS, are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np

from s2s.analysis.alignment import Link, Weights, given_weights, links_above, links_from_weights
from s2s.data.tokenizer import Tokenizer
from s2s.errors import CheckpointError
from s2s.interfaces import EOS
from s2s.search.score import Lines, Scored, Scorer

Level = Literal["word", "piece"]


class Aligned(NamedTuple):
    """The links of one pair; a pair that was not scored, or has a blank side, has none."""

    source: list[str]
    """Words, or pieces."""
    target: list[str]
    weights: Weights
    """(target, source): of a word, summed over the source's pieces and averaged over the target's."""
    links: set[Link]
    """(source, target), counted from 0."""


class Aligner:
    """Links by the largest weight of each target word or, with a ``threshold``, all that have so much weight."""

    def __init__(
        self, scorer: Scorer, *, level: Level = "word", shift: int = 0, threshold: float | None = None
    ) -> None:
        """``scorer`` keeps attention."""
        self.scorer, self.level, self.shift, self.threshold = scorer, level, shift, threshold

    def align(self, pairs: Iterable[Lines]) -> Iterator[Aligned]:
        """The links of every pair, in order. Raises CheckpointError where the model has no attention."""
        for scored in self.scorer.score(pairs):
            yield self._aligned(scored) if scored.target_ids else Aligned([], [], np.zeros((0, 0)), set())

    def _aligned(self, scored: Scored) -> Aligned:
        if scored.attention is None:
            raise CheckpointError("model", "has no attention, so it links nothing", "use a model with attention")
        source, columns = self._units(self.scorer.tokenizers.source, scored.source_ids, scored.source)
        target, rows = self._units(self.scorer.tokenizers.target, scored.target_ids, scored.target)
        weights = given_weights(scored.attention.double().numpy(), columns, rows, self.shift)
        links = links_from_weights(weights) if self.threshold is None else links_above(weights, self.threshold)
        return Aligned(source, target, weights, links)

    def _units(self, tokenizer: Tokenizer, ids: list[int], text: str) -> tuple[list[str], list[int]]:
        """The words or pieces of a side, and for each id with EOS the number of its unit, -1 for none."""
        if self.level == "piece":
            return tokenizer.pieces([index for index in ids if index != EOS]), [*range(len(ids) - 1), -1]
        return text.split(), tokenizer.words(ids)
