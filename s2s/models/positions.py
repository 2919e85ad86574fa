"""What self-attention knows of where words stand, beside what joins the words themselves.

With i the place that asks, j the place that is read, d the width of a head and h = 1 .. heads:

    relative   e_ij = q_i . (k_j + a_r) / sqrt(d),   z_i = sum_j w_ij (v_j + b_r),   r = clip(j - i, -k, k)
    rotary     e_ij = (R_i q_i) . (R_j k_j) / sqrt(d)
    alibi      e_ij = q_i . k_j / sqrt(d) - m_h |i - j|,   m_h = 2^(-8 h / heads)

Shaw et al. 2018, section 3.2, the vectors a and b shared by the heads of a layer; Su et al. 2021, section 3.2.2, where
R_i turns the n-th pair of a vector's entries by the angle i 10000^(-2n / d), n = 0 .. d/2 - 1; Press et al. 2022,
section 3, who have decoders only: an encoder is told the distance to either side. All three depend on j - i alone.
"""

from __future__ import annotations

import math
from abc import ABC
from typing import Literal

import torch
from torch import Tensor, nn

from s2s.models.reach import View

PositionKind = Literal["sinusoidal", "learned", "relative", "rotary", "alibi"]


class Relation(nn.Module, ABC):
    """What a pair of places adds to self-attention; by itself nothing, since absolute positions join the words."""

    def turn(self, query: Tensor, keys: Tensor, first: int | Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, heads, T, d) and keys (B, groups, T, d) of places first .. first + T - 1; or firsts (B, 1)."""
        return query, keys

    def bias(self, query: Tensor, view: View) -> Tensor | None:
        """What joins the scores of queries (B, heads, ..., T, d), as ``view`` arranges them."""
        return None

    def values(self, weights: Tensor, view: View) -> Tensor | None:
        """What joins that which weights (B, heads, ..., T, S) read, (B, heads, ..., T, d)."""
        return None


class Absolute(Relation):
    """Nothing more than the words bring with them."""


class Relative(Relation):
    """Learned vectors for each distance up to ``reach``; ``ahead``: there are places behind the one that asks."""

    def __init__(self, width: int, reach: int, ahead: bool) -> None:
        super().__init__()
        self.lowest, self.highest = -reach, reach if ahead else 0
        rows = self.highest - self.lowest + 1
        self.of_keys = nn.Parameter(torch.randn(rows, width) * width**-0.5)
        self.of_values = nn.Parameter(torch.randn(rows, width) * width**-0.5)

    def _row(self, view: View, shape: torch.Size) -> Tensor:
        """The row of each pair of places, (..., T, S), for queries of this shape (..., T, d)."""
        return (view.distance.clamp(self.lowest, self.highest) - self.lowest).expand(*shape[:-1], -1)

    def bias(self, query: Tensor, view: View) -> Tensor:
        by_row = query @ self.of_keys.to(query.dtype).T * query.size(-1) ** -0.5  # (..., T, rows)
        found: Tensor = by_row.gather(-1, self._row(view, query.shape))
        return found

    def values(self, weights: Tensor, view: View) -> Tensor:
        none = weights.new_zeros(*weights.shape[:-1], len(self.of_values))
        by_row = none.scatter_add(-1, self._row(view, weights.shape), weights)
        read: Tensor = by_row @ self.of_values.to(weights.dtype)
        return read


class Rotary(Relation):
    """Queries and keys turned by angles that grow with their place, so that products see the difference."""

    def turn(self, query: Tensor, keys: Tensor, first: int | Tensor) -> tuple[Tensor, Tensor]:
        kind = torch.promote_types(query.dtype, torch.float32)
        width = query.size(-1)
        rate = torch.exp(torch.arange(0, width, 2, device=query.device, dtype=kind) * (-math.log(10000.0) / width))
        where = torch.arange(query.size(2), device=query.device, dtype=kind) + first
        angle = (where.unsqueeze(-1) * rate).unsqueeze(-3)  # (1, T, d / 2), or (B, 1, T, d / 2)
        by = torch.polar(torch.ones_like(angle), angle)
        return _turned(query, by), _turned(keys, by)


def _turned(x: Tensor, by: Tensor) -> Tensor:
    """Each pair of neighbours of x (..., T, d), turned: as complex numbers, times those of length one in ``by``."""
    pairs = torch.view_as_complex(x.to(by.real.dtype).view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * by).flatten(-2).to(x.dtype)


class Alibi(Relation):
    """A penalty that grows with the distance, by another slope for every head; nothing to learn."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.slopes = [2 ** (-8 * head / heads) for head in range(1, heads + 1)]

    def bias(self, query: Tensor, view: View) -> Tensor:
        kind = torch.promote_types(query.dtype, torch.float32)
        slopes = torch.tensor(self.slopes, dtype=kind, device=query.device)
        return -slopes.view(-1, *[1] * (query.dim() - 2)) * view.distance.abs()
