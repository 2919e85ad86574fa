"""Where a recurrent decoder starts: its first states from what the encoder left.

zero        s_0 = 0
last        s_0 = the encoder's last state of the same layer (and its cell), widths being equal
bridge      s_0 = tanh(W [forward h_S ; backward h_1]), a W of its own for each layer, and for an LSTM's cell
bahdanau    s_0 = tanh(W backward h_1)                              Bahdanau et al. 2015, appendix A.2.2
mean        s_0 = tanh(W mean_j h_j)                                Nematus (Sennrich et al. 2017)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from s2s.interfaces import Leaves, Memory
from s2s.models.recurrence import CellKind, LayerState

StartKind = Literal["zero", "last", "bridge", "bahdanau", "mean"]


class Start(nn.Module):
    """First states of ``layers`` layers of width ``size``."""

    def __init__(
        self, kind: StartKind, cell: CellKind, layers: int, size: int, memory_size: int, left: Leaves | None
    ) -> None:
        """``left``: what the encoder leaves. Raises ValueError where that is not what ``kind`` needs."""
        super().__init__()
        self.kind, self.cell, self.size, self.layers = kind, cell, size, layers
        if kind in ("last", "bridge", "bahdanau") and left is None:
            raise ValueError(f"start: {kind} needs last states, which only an rnn encoder leaves; use mean or zero")
        if kind == "bahdanau" and left is not None and left.directions == 1:
            raise ValueError("start: bahdanau reads the backward state, so the encoder must be bidirectional")
        if kind == "last" and left is not None:
            if size != memory_size:
                raise ValueError(f"start: last copies states: decoder.size {size} must be encoder.size {memory_size}")
            if left.layers != layers or left.cells != (cell == "lstm"):
                raise ValueError("start: last copies states: encoder and decoder need the same cell and layers")
        width = memory_size // 2 if kind == "bahdanau" else memory_size
        learned = kind in ("bridge", "bahdanau", "mean")
        self.hidden = nn.ModuleList(nn.Linear(width, size) for _ in range(layers if learned else 0))
        self.of_cell = nn.ModuleList(nn.Linear(width, size) for _ in range(layers if learned and cell == "lstm" else 0))

    def forward(self, memory: Memory) -> list[LayerState]:
        """A state for every layer."""
        if self.kind == "zero":
            zeros = memory.values.new_zeros(memory.values.size(0), self.size, dtype=self._dtype(memory))
            return [LayerState(zeros, zeros if self.cell == "lstm" else None) for _ in range(self.layers)]
        if self.kind == "last":
            return self._copy(memory)
        summaries = [self._summary(memory, n) for n in range(self.layers)]
        hidden = [
            torch.tanh(project(s)).to(self._dtype(memory)) for project, s in zip(self.hidden, summaries, strict=True)
        ]
        if self.cell == "gru":
            return [LayerState(h, None) for h in hidden]
        cells = [project(s).tanh().to(self._dtype(memory)) for project, s in zip(self.of_cell, summaries, strict=True)]
        return [LayerState(h, c) for h, c in zip(hidden, cells, strict=True)]

    @staticmethod
    def _dtype(memory: Memory) -> torch.dtype:
        """States are kept in float32, or float64 where the model is."""
        return torch.float64 if memory.values.dtype == torch.float64 else torch.float32

    def _summary(self, memory: Memory, layer: int) -> Tensor:
        """(B, width) that the first state of a layer is made of; layers beyond the encoder's read its top one."""
        if self.kind == "mean":
            return memory.values.sum(1) / memory.lengths.unsqueeze(1)
        assert memory.final is not None, "checked when this was built"
        hidden = memory.final.hidden[:, min(layer, memory.final.hidden.size(1) - 1)]
        return hidden[:, hidden.size(1) // 2 :] if self.kind == "bahdanau" else hidden

    def _copy(self, memory: Memory) -> list[LayerState]:
        final = memory.final
        assert final is not None, "checked when this was built"
        cells = [None] * self.layers if final.cell is None else list(final.cell.to(self._dtype(memory)).unbind(1))
        hidden = final.hidden.to(self._dtype(memory)).unbind(1)
        return [LayerState(h, c) for h, c in zip(hidden, cells, strict=True)]
