"""Monotonic attention: the source is read left to right, and a word that was passed is never read again.

Each step inspects the positions from the one where the last step stopped, in order, and stops at position j with
probability p_j (Raffel et al. 2017, section 2):

    e_ij = g v / |v| . tanh(W s_i + V h_j + b) + r,    p_ij = sigma(e_ij + noise in training)
    q_ij = (1 - p_i,j-1) q_i,j-1 + alpha_i-1,j,        alpha_ij = p_ij q_ij,        alpha_0 = (1, 0, ..., 0)
    c_i = sum_j alpha_ij h_j

alpha_i is the distribution of where step i stops, and training minimises the loss in expectation. What is missing to a
sum of 1 is the probability of having passed the last word without stopping: nothing is left to read then, in this step
and in all later ones. At test time the scan is carried out: it stops at the first e_ij > 0; where there is none, the
context is zero, for this word and the rest of the sentence, as the recursion says for a p of only zeros and ones.

MoChA (Chiu & Raffel 2018, section 2) lets step i, stopped at k, attend softly to the w words that end there, by a
second score u:

    beta_ij = sum_{k=j}^{j+w-1} alpha_ik exp(u_ij) / sum_{l=k-w+1}^{k} exp(u_il),        c_i = sum_j beta_ij h_j
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from s2s.attention.normalise import masked_softmax, wide
from s2s.attention.scores import Additive, Score
from s2s.interfaces import Attended, Attention, Memory
from s2s.products import of_rows
from s2s.settings import AttentionSettings
from s2s.tree import Tree


def expected(energies: Tensor, before: Tensor) -> Tensor:
    """Where T steps are expected to stop, alpha (B, T, S): energies (B, T, S), -inf at padding, and alpha_0 (B, S).

    Within a step q_j = (1 - p_{j-1}) q_{j-1} + alpha_j is solved by doubling: after n rounds q_j holds what came from
    the last 2^n positions. Only products and sums of probabilities, so it is exact where p is 1 or tiny; the closed
    form with cumulative products divides by numbers that vanish.
    """
    stop, go = torch.sigmoid(energies), torch.sigmoid(-energies)
    shares, reach = [pad(go[..., :-1], (1, 0))], 1  # of what stood 2^n positions before, the share that arrives
    while 2 * reach < energies.size(-1):
        shares.append(shares[-1] * pad(shares[-1][..., :-reach], (reach, 0)))
        reach *= 2
    alphas = []
    for step in range(energies.size(1)):
        arrived = before
        for n, share in enumerate(shares):
            arrived = arrived + share[:, step] * pad(arrived[:, : -(2**n)], (2**n, 0))
        before = stop[:, step] * arrived
        alphas.append(before)
    return torch.stack(alphas, 1)  # (B, T, S)


def scanned(energies: Tensor, before: Tensor) -> Tensor:
    """Where T steps stop, one-hot (B, T, S): at the first energy above zero from where the step before stopped.

    A step that finds none, and every step after it, has a row of zeros.
    """
    chosen, alphas = energies > 0, []
    for step in range(energies.size(1)):
        found = chosen[:, step] & (before.cumsum(-1) > 0.5)
        before = (found & (found.cumsum(-1) == 1)).to(before.dtype)
        alphas.append(before)
    return torch.stack(alphas, 1)  # (B, T, S)


def chunkwise(alphas: Tensor, scores: Tensor, mask: Tensor, window: int) -> Tensor:
    """beta (B, T, S) of alpha (B, T, S), scores u (B, T, S) and mask (B, S): each chunk ends where alpha stands."""
    width = min(window, scores.size(-1))
    chunks = pad(scores, (width - 1, 0)).unfold(-1, width, 1)  # (B, T, S, width): row k is k - width + 1 .. k
    inside = pad(mask, (width - 1, 0), value=False).unfold(-1, width, 1).unsqueeze(1)  # (B, 1, S, width)
    shares = alphas.unsqueeze(-1) * masked_softmax(chunks, inside)
    betas = shares[..., -1]
    for back in range(1, width):
        betas = betas + pad(shares[..., back:, width - 1 - back], (0, back))
    return betas


class Monotonic(Attention):
    """Hard monotonic attention trained in expectation; with ``chunk``, a second score, it is MoChA."""

    def __init__(
        self,
        energy: Additive,
        chunk: Score | None,
        window: int,
        memory_size: int,
        settings: LeftToRightSettings,
    ) -> None:
        super().__init__()
        self.energy, self.chunk, self.window, self.context_size = energy, chunk, window, memory_size
        self.offset, self.noise = nn.Parameter(torch.tensor(settings.offset)), settings.noise
        self.hard = settings.evaluate == "hard"

    def prepare(self, memory: Memory) -> Memory:
        of_chunk = None if self.chunk is None else self.chunk.keys(memory.values)
        return memory._replace(keys=(self.energy.keys(memory.values), of_chunk))

    def start(self, memory: Memory) -> Tensor:
        nowhere = torch.zeros_like(wide(memory.values[..., 0]))  # (B, S)
        return torch.cat([torch.ones_like(nowhere[:, :1]), nowhere[:, 1:]], 1)

    def forward(self, query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        keys, of_chunk = memory.keys
        mask = memory.mask.unsqueeze(1)  # (B, 1, S)
        energies = wide(self.energy(query, keys)) + self.offset
        if self.training and self.noise:
            energies = energies + self.noise * torch.randn_like(energies)
        energies = energies.masked_fill(~mask, -torch.inf)
        weights = scanned(energies, state) if self.hard and not self.training else expected(energies, state)
        state = weights[:, -1]
        if self.chunk is not None:
            weights = chunkwise(weights, wide(self.chunk(query, of_chunk)), memory.mask, self.window)
        context = of_rows(weights, memory.values)  # (B, T, M)
        return Attended(context, weights), state


class LeftToRightSettings(AttentionSettings):
    """What the two kinds have in common."""

    size: Annotated[int, Field(ge=1)] | None = None
    """Width of the layer inside every score; by default the query's."""
    offset: float = -4.0
    """Where the learned offset r of the energies starts; the further below zero, the later a step stops at first."""
    noise: Annotated[float, Field(ge=0.0)] = 1.0
    """Standard deviation of the noise on energies in training, which drives them clearly above or below zero."""
    evaluate: Literal["hard", "expected"] = "hard"
    """hard: in evaluation and translation the scan stops at the first energy above zero; expected: as in training."""

    def refusal_as_head(self) -> str:
        return (
            "attention that stops from left to right goes on from the step before, but the heads of a Transformer "
            "attend at all target positions at once"
        )

    def _score(self, query_size: int, memory_size: int, normed: bool) -> Additive:
        return Additive(query_size, memory_size, self.size or query_size, normed, identity_source=False)


class MonotonicSettings(LeftToRightSettings):
    """Read left to right, stopping at one word a step; trained in expectation (Raffel et al. 2017)."""

    kind: Literal["monotonic"]

    def build(self, query_size: int, memory_size: int) -> Monotonic:
        return Monotonic(self._score(query_size, memory_size, True), None, 1, memory_size, self)


class MochaSettings(LeftToRightSettings):
    """Monotonic, with soft attention over the last words before each stop (Chiu & Raffel 2018)."""

    kind: Literal["mocha"]
    window: Annotated[int, Field(ge=2)] = 4
    """Words that are attended to softly, the one where the step stopped being the last; 1 would be kind: monotonic."""

    def build(self, query_size: int, memory_size: int) -> Monotonic:
        energy, chunk = (self._score(query_size, memory_size, normed) for normed in (True, False))
        return Monotonic(energy, chunk, self.window, memory_size, self)
