"""Hard attention: every step reads one source position, z ~ alpha, instead of the mean over all.

    alpha = softmax(e),    maximise Jensen's bound  L = sum_t E_{z ~ alpha_t} log p(y_t | h_z)

Xu et al. 2015, section 4.1. Reading one position has no gradient, so how the scores learn is a part of its own: an
estimator. In evaluation the position is the likeliest one or a sample, or the readout is the mixture of all positions,
p(y_t) = sum_z alpha_tz p(y_t | h_z), and then the recurrence is fed the soft context, as in `latent`. With
``estimator: enumerate``, whose training feeds the soft context, evaluation always does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from s2s.analysis.diagnostics import summed
from s2s.attention.estimators import (
    AnyEstimator,
    EnumerateSettings,
    Estimator,
    Prior,
    choose,
    mean_context,
    row_context,
)
from s2s.attention.normalise import masked_log_softmax
from s2s.attention.scores import AnyScore, GeneralSettings, Score
from s2s.draws import gumbel_at
from s2s.interfaces import Attended, Attention, Gold, Memory, Mixture, Totals
from s2s.settings import AttentionSettings
from s2s.tree import Tree

Evaluate = Literal["argmax", "sample", "marginal"]


class HardState(NamedTuple):
    """What the steps of a sentence share."""

    drawn: Tensor | None
    """(B, ...) the estimator's draw, in training."""
    step: Tensor | None
    """(B,) int64 steps taken, in evaluation by samples."""


class Hard(Attention):
    """One position a step; ``weights`` are alpha, also where a single position was read."""

    def __init__(
        self, score: Score, estimator: Estimator, evaluate: Evaluate, entropy: float, memory_size: int
    ) -> None:
        super().__init__()
        self.score, self.estimator, self.evaluate, self.entropy = score, estimator, evaluate, entropy
        self.context_size, self.asks_gold, self.draws = memory_size, estimator.asks_gold, estimator.draws

    def prepare(self, memory: Memory) -> Memory:
        return memory._replace(keys=self.score.keys(memory.values))

    def start(self, memory: Memory) -> HardState:
        if self.training:
            return HardState(self.estimator.start(memory), None)
        if self.evaluate != "sample":
            return HardState(None, None)
        assert memory.number is not None, "a model in evaluation numbers its sentences"
        return HardState(None, torch.zeros_like(memory.number))

    def forward(self, query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        mask = memory.mask.unsqueeze(1)  # (B, 1, S)
        log_weights = masked_log_softmax(self.score(query, memory.keys), mask)  # (B, T, S)
        prior = Prior(log_weights, log_weights.exp(), mask)
        if self.training:
            context, trace = self.estimator.read(prior, memory, state.drawn)
            return Attended(context, prior.weights, None, {"log_weights": log_weights, **trace}), state
        attended = self._evaluated(prior, memory, state)
        if state.step is not None:
            state = state._replace(step=state.step + query.size(1))
        return attended, state

    def _evaluated(self, prior: Prior, memory: Memory, state: HardState) -> Attended:
        """What the recurrence is fed; with the mixture that is read out, where that is another thing."""
        if self.evaluate == "marginal":
            mean = mean_context(prior.weights, memory.values)
            return Attended(mean, prior.weights, Mixture(prior.log_weights))
        noise = None
        if state.step is not None:
            assert memory.number is not None
            noise = gumbel_at(memory.number, state.step, prior.log_weights)
        choice = choose(prior.log_weights, noise)  # (B, T)
        trace = {"choice": choice} if "trace" in memory.want else {}
        if not self.estimator.feeds_mean:
            return Attended(row_context(choice, memory.values), prior.weights, None, trace)
        only = choice.unsqueeze(-1)  # (B, T, 1): a mixture of one
        certain = torch.zeros_like(only, dtype=prior.log_weights.dtype)
        mean = mean_context(prior.weights, memory.values)
        return Attended(mean, prior.weights, Mixture(certain, only), trace)

    def penalties(self, attended: Attended, memory: Memory, gold: Gold) -> dict[str, Tensor]:
        if "log_weights" not in attended.trace:  # in evaluation nothing is learned
            return {}
        terms = self.estimator.penalties(attended, memory, gold)
        if self.entropy:
            assert attended.weights is not None
            logs = attended.trace["log_weights"].masked_fill(attended.weights == 0, 0.0)
            terms["entropy"] = self.entropy * (attended.weights * logs).sum(-1)
        return terms

    def statistics(self, attended: Attended, memory: Memory, gold: Gold) -> Totals:
        return self.estimator.statistics(attended, gold) if "log_weights" in attended.trace else {}

    def diagnostics(self, attended: Attended, memory: Memory, gold: Gold) -> Totals:
        """``chosen``: the probability of the position that was read."""
        if "choice" not in attended.trace:  # the mixture of all positions is read
            return {}
        assert attended.weights is not None
        chosen = attended.weights.gather(-1, attended.trace["choice"].unsqueeze(-1)).squeeze(-1)  # (B, T)
        return {"chosen": summed(chosen, gold.real)}

    def after_update(self, totals: Mapping[str, tuple[float, float]]) -> None:
        self.estimator.after_update(totals)

    def set_update(self, update: int) -> None:
        self.estimator.set_update(update)


class HardSettings(AttentionSettings):
    """Read one source position a step (Xu et al. 2015)."""

    kind: Literal["hard"]
    score: AnyScore = GeneralSettings(kind="general")
    """How a position is scored: dot, general, additive (concat), location or cosine."""
    estimator: AnyEstimator
    """How the scores learn: reinforce, gumbel or enumerate."""
    evaluate: Evaluate = "argmax"
    """What is read in evaluation and translation: the likeliest position, a sampled one, or the mixture of them all."""
    entropy: Annotated[float, Field(ge=0.0)] = 0.0
    """Bonus for the entropy of alpha, in the loss of every word; Xu et al. use 0.002. It keeps positions alive."""

    @property
    def bound(self) -> str | None:
        return "Jensen's bound, estimator: enumerate," if isinstance(self.estimator, EnumerateSettings) else None

    def refusal_as_head(self) -> str:
        return (
            "attention hard learns by what the right word would have got from another context, which only the readout "
            "of a recurrent decoder can tell, not a head in the middle of a Transformer"
        )

    def build(self, query_size: int, memory_size: int) -> Hard:
        score = self.score.build(query_size, memory_size)
        return Hard(score, self.estimator.build(), self.evaluate, self.entropy, memory_size)
