"""Variational attention: latent attention that learns from a guess, made in hindsight, of where each word came from.

    alpha_t = softmax(e_t)                                            the prior, from the words before
    q_tz = softmax_z(g_t . W h_z),   g = hindsight(y_1 .. y_T)        the guess, from all right words
    ELBO = sum_t  sum_z q_tz log p(y_t | h_z)  -  KL(q_t || alpha_t)  <=  sum_t log sum_z alpha_tz p(y_t | h_z)

Deng et al. 2018. Training climbs the ELBO, a bound that is the closer the closer q is to the posterior, and
is the likelihood itself where it is the posterior. The sum over q is exact, or estimated by one draw z ~ q:

    grad log p(y_t | h_z) + (log p(y_t | h_z) - b) grad log q_tz,     b = log p(y_t | sum_z alpha_tz h_z)

The soft baseline b is the paper's; the KL is exact either way. In evaluation q is gone and words are summed over the
prior, as in `latent`. The recurrence is always fed the soft context sum_z alpha_tz h_z, so no state depends on a z of
the past and the bound is one of the sentence. In training the readout reads the soft context too, and the terms that
are added turn its likelihood into the ELBO. (With label smoothing, the pull towards the uniform distribution is that on
the soft reading.)
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from s2s.analysis.diagnostics import summed
from s2s.attention.estimators import choose, mean_context, row_context
from s2s.attention.latent import Latent
from s2s.attention.normalise import masked_log_softmax
from s2s.attention.scores import AnyScore, General, GeneralSettings, Score
from s2s.draws import gumbel
from s2s.interfaces import Attended, Gold, Memory, Totals
from s2s.settings import AttentionSettings
from s2s.tree import Tree


def divergence(after: Tensor, before: Tensor) -> Tensor:
    """KL (...), in nats, of two distributions with logarithms (..., S); where ``after`` is -inf nothing is counted."""
    apart = (after - before).masked_fill(after == -torch.inf, 0.0)
    return (after.exp() * apart).sum(-1)


class Variational(Latent):
    """``inference`` scores the memory for what hindsight of width ``size`` tells; ``draws`` estimates by a sample."""

    asks_gold = True

    def __init__(self, score: Score, draws: bool, size: int, count: int | None, memory_size: int) -> None:
        super().__init__(score, count, True, memory_size)
        self.draws, self.hindsight = draws, size
        self.inference = General(size, memory_size, scaled=False)

    def forward(self, query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        log_weights = self.prior(query, memory)
        if self.training:
            weights = log_weights.exp()
            return Attended(mean_context(weights, memory.values), weights, None, {"prior": log_weights}), state
        attended = self.read(log_weights, memory)
        if "trace" in memory.want:
            attended = attended._replace(trace=attended.trace | {"prior": log_weights})
        return attended, state

    def inferred(self, attended: Attended, memory: Memory, gold: Gold) -> tuple[Tensor, Tensor]:
        """log q (B, T, S), -inf wherever the prior is; and KL(q || alpha) (B, T)."""
        prior = attended.trace["prior"]
        scores = self.inference(gold.hindsight(), self.inference.keys(memory.values))
        guess = masked_log_softmax(scores, prior != -torch.inf)
        return guess, divergence(guess, prior)

    def penalties(self, attended: Attended, memory: Memory, gold: Gold) -> dict[str, Tensor]:
        """``kl``; and ``guess``, what the likelihood loses or gains by reading under q instead of softly."""
        if attended.mixture is not None:  # in evaluation nothing is learned
            return {}
        guess, kl = self.inferred(attended, memory, gold)
        soft = gold()
        expected = self._sampled(guess, memory, gold, soft) if self.draws else self._expected(guess, memory, gold)
        return {"guess": soft - expected, "kl": kl}

    @staticmethod
    def _expected(guess: Tensor, memory: Memory, gold: Gold) -> Tensor:
        """sum_z q_z log p(right word | h_z), (B, T)."""
        return (guess.exp() * gold(memory.values.unsqueeze(1))).sum(-1)

    @staticmethod
    def _sampled(guess: Tensor, memory: Memory, gold: Gold, soft: Tensor) -> Tensor:
        """The same of one z ~ q, without bias; a term of value zero is added for a gradient without bias."""
        choice = choose(guess, gumbel(guess))  # (B, T)
        earned = gold(row_context(choice, memory.values))
        log_chosen = guess.gather(-1, choice.unsqueeze(-1)).squeeze(-1)
        return earned + (earned - soft).detach() * (log_chosen - log_chosen.detach())

    def diagnostics(self, attended: Attended, memory: Memory, gold: Gold) -> Totals:
        """``kl``; ``gap``, by how much the ELBO falls short of the likelihood, KL(q || posterior); with k, ``kept``."""
        guess, kl = self.inferred(attended, memory, gold)
        words = gold(memory.values.unsqueeze(1))  # (B, T, S)
        whole = (attended.trace["prior"] + words).logsumexp(-1)
        gap = whole - ((guess.exp() * words).sum(-1) - kl)
        own = {"kl": summed(kl, gold.real), "gap": summed(gap, gold.real)}
        return super().diagnostics(attended, memory, gold) | own


class VariationalSettings(AttentionSettings):
    """Learn where words come from by a bound that a guess from the whole target makes close (Deng et al. 2018)."""

    kind: Literal["variational"]
    score: AnyScore = GeneralSettings(kind="general")
    """How the prior scores a position: dot, general, additive (concat), location or cosine."""
    estimator: Literal["enumerate", "reinforce"] = "enumerate"
    """enumerate: the exact bound, a readout per source position; reinforce: one drawn position a word, measured against
    the soft reading."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Width of each of the two directions that read the right words in training; by default that of the decoder."""
    k: Annotated[int, Field(ge=1)] | None = None
    """Positions that evaluation and translation sum over, the likeliest ones, renormalised; null: all, exactly."""

    @property
    def bound(self) -> str:
        return "the evidence lower bound"

    def refusal_as_head(self) -> str:
        return (
            "attention variational gives a mixture of contexts that the readout of words joins; a head in the middle "
            "of a Transformer has no readout"
        )

    def build(self, query_size: int, memory_size: int) -> Variational:
        score, draws = self.score.build(query_size, memory_size), self.estimator == "reinforce"
        return Variational(score, draws, 2 * (self.size or query_size), self.k, memory_size)
