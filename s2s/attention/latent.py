"""Latent attention: which position a word comes from is unknown, and training sums over all that it could be.

    alpha = softmax(e),    p(y_t) = sum_z alpha_tz p(y_t | h_z)

Exactly, as in IBM model 1 (Wu et al. 2018; Deng et al. 2018), or over the k likeliest positions (Shankar et al. 2018),
which is a lower bound unless it is renormalised. A mixture of outputs: soft attention reads one output from the mixture
of inputs instead. The recurrence is fed the soft context sum_z alpha_tz h_z, so no state depends on a z of the past and
the product over t is the likelihood of the sentence.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from s2s.analysis.diagnostics import from_trace
from s2s.attention.estimators import mean_context
from s2s.attention.normalise import masked_log_softmax
from s2s.attention.scores import AnyScore, GeneralSettings, Score
from s2s.interfaces import Attended, Attention, Gold, Memory, Mixture, Told, Totals
from s2s.settings import AttentionSettings
from s2s.tree import Tree


def likeliest(log_weights: Tensor, count: int | None, renormalise: bool) -> tuple[Mixture, Tensor]:
    """The mixture of the ``count`` likeliest positions of ``log_weights`` (B, T, S), of all where that is None.

    And the log-weights (B, T, N) of these positions as they were. Ties go to the lowest position.
    """
    if count is None or count >= log_weights.size(-1):
        return Mixture(log_weights), log_weights
    ordered, positions = log_weights.sort(dim=-1, descending=True, stable=True)
    kept = ordered[..., :count]  # (B, T, N)
    return Mixture(kept.log_softmax(-1) if renormalise else kept, positions[..., :count]), kept


def read_mixture(log_weights: Tensor, count: int | None, renormalise: bool, memory: Memory) -> Attended:
    """What is read of a prior with ``log_weights`` (B, T, S), summed over its ``count`` likeliest positions.

    The recurrence is fed the soft context of all. With a count ``kept``, the weight of these positions, can be traced.
    """
    mixture, kept = likeliest(log_weights, count, renormalise)
    weights = log_weights.exp()
    trace = {"kept": kept.exp().sum(-1)} if count is not None and "trace" in memory.want else {}
    return Attended(mean_context(weights, memory.values), weights, mixture, trace)


def posterior(log_weights: Tensor, count: int | None, told: Told, memory: Memory) -> Tensor:
    """log p(position | word) (B, 1, S) by Bayes' rule, from the prior's ``log_weights`` (B, 1, S).

    -inf where the prior is zero and at positions that are not among the ``count`` likeliest.
    """
    mixture, prior = likeliest(log_weights, count, renormalise=False)
    contexts, positions = memory.values.unsqueeze(1), mixture.positions  # (B, 1, S, M)
    if positions is not None:
        contexts = contexts.gather(2, positions.unsqueeze(-1).expand(-1, -1, -1, contexts.size(-1)))  # (B, 1, N, M)
    after = masked_log_softmax(prior + told(contexts), prior != -torch.inf)
    if positions is None:
        return after
    return torch.full_like(log_weights, -torch.inf).scatter(-1, positions, after)


class Latent(Attention):
    """A mixture of the ``count`` likeliest positions (None: of all); stateless, all T queries are attended at once."""

    def __init__(self, score: Score, count: int | None, renormalise: bool, memory_size: int) -> None:
        super().__init__()
        self.score, self.count, self.renormalise, self.context_size = score, count, renormalise, memory_size

    def prepare(self, memory: Memory) -> Memory:
        return memory._replace(keys=self.score.keys(memory.values))

    def prior(self, query: Tensor, memory: Memory) -> Tensor:
        """log alpha (B, T, S)."""
        return masked_log_softmax(self.score(query, memory.keys), memory.mask.unsqueeze(1))

    def read(self, log_weights: Tensor, memory: Memory) -> Attended:
        """The mixture; in evaluation always renormalised: what is measured and searched is a distribution."""
        return read_mixture(log_weights, self.count, self.renormalise or not self.training, memory)

    def forward(self, query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        return self.read(self.prior(query, memory), memory), state

    def diagnostics(self, attended: Attended, memory: Memory, gold: Gold) -> Totals:
        """With k, ``kept``: the weight of the positions that are summed over, before it is renormalised."""
        return from_trace(attended, gold.real, "kept")


class MarginalSettings(AttentionSettings):
    """What the kinds that sum over positions have in common."""

    score: AnyScore = GeneralSettings(kind="general")
    """How a position is scored: dot, general, additive (concat), location or cosine."""
    k: Annotated[int, Field(ge=1)] | None = None
    """Positions that are summed over, the likeliest ones; null: all, exactly. A word costs a readout for each."""
    renormalise: bool = False
    """With k: let the kept weights sum to one in training too, instead of minimising the bound that they are."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.renormalise and self.k is None:
            raise ValueError("renormalise belongs to k: the weights of all positions sum to one as they are")
        if self.renormalise and self.k == 1:
            raise ValueError(
                "renormalise: the weight of a single position would always be 1, and the score learn nothing; set k to "
                "2 or more, or leave it out"
            )
        return self

    def refusal_as_head(self) -> str:
        kind: str = self.kind  # type: ignore[attr-defined]
        return (
            f"attention {kind} gives a mixture of contexts that the readout of words joins; a head in the middle of a "
            "Transformer has no readout"
        )


class LatentSettings(MarginalSettings):
    """Sum the likelihood of a word over the positions that it could come from (Wu 2018; Deng 2018; Shankar 2018)."""

    kind: Literal["latent"]

    def build(self, query_size: int, memory_size: int) -> Latent:
        return Latent(self.score.build(query_size, memory_size), self.k, self.renormalise, memory_size)
