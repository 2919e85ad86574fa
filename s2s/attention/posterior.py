"""Posterior attention: what a word says about where it came from is what the decoder goes on with.

    alpha = softmax(e),    p(y_t) = sum_z alpha_tz p(y_t | h_z)                           read from
    post_tz = alpha_tz p(y_t | h_z) / p(y_t),    c_t = sum_z post_tz h_z                  fed back

Shankar & Sarawagi 2019. The word is read from a mixture of outputs, as in `latent`; but that feeds back the
soft context of the prior alpha, what was thought before the word was known, and this the posterior's, by Bayes' rule
once it is. What is fed back is a function of the words, so the product over t is the likelihood of the sentence.

Only input feeding can do it, which makes h~_t = read(h_t, c_t) anew from the posterior's context when the word y_t is
read. The other wirings feed the context to the very step that the word comes from. The paper's couplings of one step's
prior with the posterior before it are left out: `hmm` does that exactly. With ``share`` below one the rest of what is
fed back is the prior's context: they mix half and half, for a posterior of few positions is too sparse.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from s2s.attention.estimators import mean_context
from s2s.attention.latent import Latent, MarginalSettings, posterior
from s2s.attention.normalise import wide
from s2s.attention.scores import Score
from s2s.interfaces import Attended, Memory, Told
from s2s.tree import Tree


class Posterior(Latent):
    """Its state (B, 1, S) is the logarithm of the last step's prior, -inf before the first."""

    listens = True

    def __init__(self, score: Score, share: float, count: int | None, renormalise: bool, memory_size: int) -> None:
        super().__init__(score, count, renormalise, memory_size)
        self.share = share

    def start(self, memory: Memory) -> Tensor:
        return torch.full_like(wide(memory.values[..., 0]), -torch.inf).unsqueeze(1)

    def listen(self, told: Told, memory: Memory, state: Tree) -> tuple[Tensor, Tree]:
        """Before the first word nothing was read: the context is zero then."""
        known = posterior(state, self.count, told, memory).exp()
        return mean_context(self.share * known + (1 - self.share) * state.exp(), memory.values), state

    def forward(self, query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        log_weights = self.prior(query, memory)
        return self.read(log_weights, memory), log_weights


class PosteriorSettings(MarginalSettings):
    """Feed back where the word came from, by Bayes' rule, instead of where it was looked for (Shankar 2019)."""

    kind: Literal["posterior"]
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """How much of what is fed back is the posterior's; the rest is the prior's (in the paper half)."""

    def refusal(self, wiring: str, input_feeding: bool) -> str | None:
        if wiring != "luong":
            return (
                f"attention posterior knows its context after the word, and wiring {wiring} feeds it before; use luong"
            )
        if not input_feeding:
            return "attention posterior differs from latent in what is fed back alone; turn input_feeding on"
        return None

    def build(self, query_size: int, memory_size: int) -> Posterior:
        return Posterior(self.score.build(query_size, memory_size), self.share, self.k, self.renormalise, memory_size)
