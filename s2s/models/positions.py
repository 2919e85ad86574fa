"""What self-attention knows of where words stand, beside what joins the words themselves."""

from __future__ import annotations

from abc import ABC

from torch import Tensor, nn

from s2s.models.reach import View


class Relation(nn.Module, ABC):
    """What a pair of places adds to self-attention; by itself nothing, since absolute positions join the words."""

    def turn(self, query: Tensor, keys: Tensor, first: int | Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, heads, T, d) and keys (B, groups, T, d) of the places that begin at ``first``: see `places`."""
        return query, keys

    def bias(self, query: Tensor, view: View) -> Tensor | None:
        """What joins the scores of queries (B, heads, ..., T, d), as ``view`` arranges them."""
        return None

    def values(self, weights: Tensor, view: View) -> Tensor | None:
        """What joins that which weights (B, heads, ..., T, S) read, (B, heads, ..., T, d)."""
        return None


class Absolute(Relation):
    """Nothing more than the words bring with them."""
