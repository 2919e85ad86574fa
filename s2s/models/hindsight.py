"""Hindsight: what is known of each target word once the whole target is, for mechanisms that learn from it.

    g_t = [forward g_t ; backward g_t],    two recurrent layers over the embedded right words y_1 .. y_T

Such a network infers where words came from in training (Deng et al. 2018); translation has no right words
and does without.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s2s.models.layers import backwards, lengths_to_mask, pick
from s2s.models.recurrence import CellKind, RecurrentLayer


class Hindsight(nn.Module):
    """Reads words of width E in both directions; ``size`` is the width of both together, an even number."""

    def __init__(self, cell: CellKind, embedding_size: int, size: int) -> None:
        super().__init__()
        self.forwards, self.backwards = (RecurrentLayer(cell, embedding_size, size // 2) for _ in range(2))

    def forward(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """Embedded words (B, T, E) of sentences with ``lengths`` (B,) to g (B, T, size), zero at padding."""
        mask = lengths_to_mask(lengths, embedded.size(1))
        turned = backwards(lengths, mask)
        there = self._read(self.forwards, embedded)
        back = pick(self._read(self.backwards, pick(embedded, turned)), turned)
        return torch.cat([there, back], -1).masked_fill(~mask.unsqueeze(-1), 0.0)

    @staticmethod
    def _read(layer: RecurrentLayer, x: Tensor) -> Tensor:
        return layer.run(x, layer.zeros(x.size(0), x))[0]
