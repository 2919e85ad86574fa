"""A window that only moves forward: attention by place alone, for sources that are read in order.

    (a^, b^, k^) = W h_t + d,    K numbers each
    kappa_t = kappa_{t-1} + exp(k^),    s_t = exp(b^),    kappa_0 = 0
    a_tj = sum_k softmax(a^)_k (F((j + 1/2 - kappa_tk) / s_tk) - F((j - 1/2 - kappa_tk) / s_tk)),    F the sigmoid

The window of Graves 2013, section 5.1, written for handwriting, with the discretised mixture of logistics of Vasquez &
Lewis 2019 (MelNet) in the place of his Gaussians: a position gets the mass that lies between its edges, so the weights
are chances and what lies outside the source is lost. Positions j count from 1. The words of the source are not looked
at when the window moves.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from s2s.attention.normalise import wide
from s2s.interfaces import Attended, Attention, Memory
from s2s.products import of_rows
from s2s.settings import AttentionSettings
from s2s.tree import Tree


def window(shares: Tensor, scale: Tensor, kappa: Tensor, mask: Tensor) -> Tensor:
    """Weights (B, T, S) of K logistics, (B, T, K) each, and mask (B, S): zero at padding."""
    edges = torch.arange(mask.size(1) + 1, device=kappa.device, dtype=kappa.dtype) + 0.5  # S + 1 edges of S positions
    below = torch.sigmoid((edges - kappa.unsqueeze(-1)) / scale.unsqueeze(-1))  # (B, T, K, S + 1)
    weights = (shares.unsqueeze(-1) * below.diff(dim=-1)).sum(2)  # (B, T, S)
    return weights.masked_fill(~mask.unsqueeze(1), 0.0)


class Logistics(Attention):
    """See the equations above; the state is kappa (B, K)."""

    def __init__(self, query_size: int, memory_size: int, count: int) -> None:
        super().__init__()
        self.context_size, self.count = memory_size, count
        self.window = nn.Linear(query_size, 3 * count)
        nn.init.zeros_(self.window.bias)  # the window starts with one position a step, and scale one

    def start(self, memory: Memory) -> Tensor:
        return wide(memory.values.new_zeros(memory.values.size(0), self.count))

    def forward(self, query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        shares, scale, step = wide(self.window(query)).chunk(3, -1)  # (B, T, K)
        kappa = state.unsqueeze(1) + step.exp().cumsum(1)
        weights = window(shares.softmax(-1), scale.exp(), kappa, memory.mask)  # (B, T, S)
        return Attended(of_rows(weights, memory.values), weights), kappa[:, -1]


class LogisticsSettings(AttentionSettings):
    """A window that only moves forward, by the decoder's state alone (Graves 2013; Vasquez & Lewis 2019)."""

    kind: Literal["logistics"]
    count: Annotated[int, Field(ge=1, le=100)] = 5
    """K, the number of logistics that make up the window."""

    def refusal_as_head(self) -> str:
        return (
            "attention logistics moves on from where the step before stood, but the heads of a Transformer attend "
            "at all target positions at once"
        )

    def build(self, query_size: int, memory_size: int) -> Logistics:
        return Logistics(query_size, memory_size, self.count)
