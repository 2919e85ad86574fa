"""Global attention: every source position is scored and the context is the weighted mean of them all.

    a = normalise(e),   c = sum_j a_j h_j

Bahdanau et al. 2015, section 3.1; Luong et al. 2015, section 3.1. Which of the two it is depends on the score and on
the decoder's wiring (who asks: the state before or after this word's step), not on this file.

With a filter, some of the weights are taken away before the mean (see `s2s.attention.normalise`).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from s2s.analysis.diagnostics import from_trace
from s2s.attention.normalise import AnyFilter, Normaliser, filtered, normalise
from s2s.attention.scores import AnyScore, GeneralSettings, Score
from s2s.interfaces import Attended, Attention, Gold, Memory, Totals
from s2s.products import of_rows
from s2s.settings import AttentionSettings
from s2s.tree import Tree


def read(weights: Tensor, memory: Memory, by: AnyFilter | None, trace: dict[str, Tensor]) -> Attended:
    """The memory's mean under the weights (B, T, S) that the filter leaves.

    A trace is given to those who want one; a filter's ``kept`` (B, T), the mass it left, joins it.
    """
    if by is not None:
        weights, kept = filtered(weights, by)
        trace = {**trace, "kept": kept}
    context = of_rows(weights, memory.values)  # (B, T, M)
    return Attended(context, weights, trace=trace if "trace" in memory.want else {})


class Global(Attention):
    """Soft attention over all positions; stateless, so all T queries are attended at once."""

    def __init__(self, score: Score, normaliser: Normaliser, memory_size: int, filter: AnyFilter | None = None) -> None:
        super().__init__()
        self.score, self.normaliser, self.filter, self.context_size = score, normaliser, filter, memory_size

    def prepare(self, memory: Memory) -> Memory:
        return memory._replace(keys=self.score.keys(memory.values))

    def forward(self, query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        scores = self.score(query, memory.keys)
        weights = normalise(scores, memory.mask.unsqueeze(1), self.normaliser)  # (B, T, S)
        return read(weights, memory, self.filter, {}), state

    def diagnostics(self, attended: Attended, memory: Memory, gold: Gold) -> Totals:
        """With a filter, ``kept``: the mass that it left, before any renormalising."""
        return from_trace(attended, gold.real, "kept")


class GlobalSettings(AttentionSettings):
    """Attend to every source position (Bahdanau 2015; Luong 2015)."""

    kind: Literal["global"]
    score: AnyScore = GeneralSettings(kind="general")
    """How a position is scored: dot, general, additive (concat), location or cosine."""
    normaliser: Normaliser = "softmax"
    """Scores to weights: softmax, or sparsemax and entmax15, which give exact zeros."""
    filter: AnyFilter | None = None
    """Weights that are taken away after normalising: all but the k largest (topk), or all below theta (threshold)."""

    def refusal_as_head(self) -> None:
        return None

    def build(self, query_size: int, memory_size: int) -> Global:
        return Global(self.score.build(query_size, memory_size), self.normaliser, memory_size, self.filter)
