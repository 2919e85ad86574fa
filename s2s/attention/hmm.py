"""First-order hidden Markov attention: where a word comes from depends on where the word before it came from.

    A_t(i, j) = softmax_j(e_tj + u_ti[j - i]),    u_ti = U [h_t ; h_i] + b,    alpha_0 = (1, 0, ..., 0)
    pi_t(j)    = sum_i alpha_{t-1}(i) A_t(i, j)                       before the word y_t is known
    p(y_t)     = sum_j pi_t(j) p(y_t | h_j)
    alpha_t(j) = pi_t(j) p(y_t | h_j) / p(y_t)                        after it

The forward recursion, which sums over all alignments exactly: prod_t p(y_t) = sum over z_1 ... z_T of
prod_t A_t(z_{t-1}, z_t) p(y_t | h_{z_t}) (Wu & Cotterell 2019; Vogel et al. 1996 are its ancestors). With
``monotone`` A_t(i, j) = 0 for j < i, and without jumps, u = 0, that is their model of order zero. The recurrence is fed
the soft context sum_j pi_t(j) h_j, so no state depends on a z of the past, only on words.

In the paper u is a softmax of its own over jumps inside a window, and e is left out of it; here both add up, and jumps
past the window share its ends, so that no position is out of reach: a German verb may stand ten words away.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from s2s.analysis.diagnostics import from_trace
from s2s.attention.latent import MarginalSettings, posterior, read_mixture
from s2s.attention.normalise import masked_softmax, wide
from s2s.attention.scores import Score
from s2s.interfaces import Attended, Attention, Gold, Memory, Told, Totals
from s2s.tree import Tree


class Jumps(nn.Module):
    """u: how well each distance from position i suits the query, distances past ``reach`` counting as the longest."""

    def __init__(self, reach: int, monotone: bool, query_size: int, memory_size: int) -> None:
        super().__init__()
        self.first, self.last = 0 if monotone else -reach, reach
        distances = self.last - self.first + 1
        self.query = nn.Linear(query_size, distances)
        self.source = nn.Linear(memory_size, distances, bias=False)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """u_i[j - i] (B, S, S), a row for each i, of a query (B, 1, H) and what `source` made of the memory."""
        of_distance: Tensor = self.query(query) + keys
        place = torch.arange(keys.size(1), device=keys.device)
        distance = (place - place.unsqueeze(1)).clamp(self.first, self.last) - self.first  # (S, S): from a row
        return of_distance.gather(-1, distance.expand(len(keys), -1, -1))


class HiddenMarkov(Attention):
    """A mixture of positions by the forward recursion.

    The state (B, 1, S) is the logarithm of where the decoder stands: pi_t, which `listen` turns into alpha_t.
    """

    listens = True

    def __init__(
        self, score: Score, jumps: Jumps | None, monotone: bool, count: int | None, renormalise: bool, memory_size: int
    ) -> None:
        super().__init__()
        self.score, self.jumps, self.monotone = score, jumps, monotone
        self.count, self.renormalise, self.context_size = count, renormalise, memory_size

    def prepare(self, memory: Memory) -> Memory:
        of_jumps = None if self.jumps is None else self.jumps.source(memory.values)
        return memory._replace(keys=(self.score.keys(memory.values), of_jumps))

    def start(self, memory: Memory) -> Tensor:
        before = torch.full_like(wide(memory.values[..., 0]), -torch.inf).unsqueeze(1)  # (B, 1, S)
        return before.index_fill(-1, torch.zeros(1, dtype=torch.int64, device=before.device), 0.0)

    def listen(self, told: Told, memory: Memory, state: Tree) -> tuple[None, Tensor]:
        return None, posterior(state, self.count, told, memory)

    def forward(self, query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        assert query.size(1) == 1, "who listens is asked one step at a time"
        moves = self.moves(query, memory)  # (B, S, S)
        weights = (state.exp().transpose(1, 2) * moves).sum(1, keepdim=True)  # (B, 1, S); autocast leaves this wide
        logs = _log(weights)
        return read_mixture(logs, self.count, self.renormalise or not self.training, memory), logs

    def moves(self, query: Tensor, memory: Memory) -> Tensor:
        """A_t (B, S, S) of a query (B, 1, H): a row for each position that the step begins at."""
        of_score, of_jumps = memory.keys
        scores = wide(self.score(query, of_score)).expand(-1, memory.mask.size(1), -1)  # (B, S, S)
        readable = memory.mask.unsqueeze(1) & (scores != -torch.inf)  # a score may say that a position is out of reach
        if self.jumps is not None:
            scores = scores + wide(self.jumps(query, of_jumps))
        return masked_softmax(scores, readable.triu() if self.monotone else readable)

    def diagnostics(self, attended: Attended, memory: Memory, gold: Gold) -> Totals:
        """As of `latent`: with k, the weight of the positions that are summed over."""
        return from_trace(attended, gold.real, "kept")


def _log(weights: Tensor) -> Tensor:
    """The logarithm, -inf of zero, where the gradient is zero too."""
    tiny = torch.finfo(weights.dtype).tiny
    return weights.clamp(min=tiny).log().masked_fill(weights < tiny, -torch.inf)


class HMMSettings(MarginalSettings):
    """Sum over all alignments in which a position depends on the one before (Wu & Cotterell 2019)."""

    kind: Literal["hmm"]
    monotone: bool = False
    """Never go back: a word comes from where the word before it came from, or from further on."""
    reach: Annotated[int, Field(ge=1)] | None = 5
    """Jumps of up to this many positions are told apart, longer ones count as the longest; null: jumps do not count,
    which only makes sense with monotone."""

    @model_validator(mode="after")
    def _is_first_order(self) -> Self:
        if self.reach is None and not self.monotone:
            raise ValueError("without reach and monotone nothing depends on the position before; write kind: latent")
        return self

    def build(self, query_size: int, memory_size: int) -> HiddenMarkov:
        score = self.score.build(query_size, memory_size)
        jumps = None if self.reach is None else Jumps(self.reach, self.monotone, query_size, memory_size)
        return HiddenMarkov(score, jumps, self.monotone, self.k, self.renormalise, memory_size)
