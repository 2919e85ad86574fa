"""Recurrent encoder: a stack of LSTM or GRU layers, each reading the sentence forwards and, if asked, backwards.

    h_j = [forward h_j ; backward h_j]                                     Bahdanau et al. 2015, section 3.2

The backward layer reads the sentence reversed within its own length, so padding has no part in either direction.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from s2s.interfaces import Encoder, Final, Leaves, Memory
from s2s.models.layers import Dropout, Rate, backwards, dropout_mask, lengths_to_mask, pick
from s2s.models.recurrence import CellKind, RecurrentLayer
from s2s.settings import EncoderSettings


class RNNEncoder(Encoder):
    """See `RNNEncoderSettings`. ``cells``: whether a decoder will start from the last LSTM cells as well."""

    def __init__(self, settings: RNNEncoderSettings, embedding: nn.Embedding, dropout: float, cells: bool) -> None:
        super().__init__()
        self.embedding, self.size = embedding, settings.size
        self.residual, self.reverse, self.cells = settings.residual, settings.reverse, cells and settings.cell == "lstm"
        self.recurrent_dropout = settings.recurrent_dropout
        directions = 2 if settings.bidirectional else 1
        self.leaves = Leaves(settings.layers, directions, self.cells)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                RecurrentLayer(
                    settings.cell, settings.size if n else embedding.embedding_dim, settings.size // directions
                )
                for _ in range(directions)
            )
            for n in range(settings.layers)
        )
        rate = dropout if settings.dropout is None else settings.dropout
        self.embedded = Dropout(rate if settings.embedding_dropout is None else settings.embedding_dropout)
        self.between, self.top = Dropout(rate), Dropout(rate)
        self.norm = nn.LayerNorm(settings.size) if settings.layer_norm else None

    def forward(self, source: Tensor, lengths: Tensor) -> Memory:
        """(B, S) ids and (B,) lengths to memory of width ``size``; `Memory.final` has every layer's last states."""
        mask = lengths_to_mask(lengths, source.size(1))
        turned = backwards(lengths, mask)
        x = self.embedding(source.masked_fill(~mask, 0))
        x = self.embedded(pick(x, turned) if self.reverse else x)
        hiddens: list[Tensor] = []
        cells: list[Tensor] = []
        for n, layers in enumerate(self.layers):
            inside = self.between(x) if n else x
            outputs, last, ends = [], [], []
            for layer, backward in zip(layers, (False, True), strict=False):  # type: ignore[call-overload]
                y, end = self._read(layer, pick(inside, turned) if backward else inside, lengths)
                outputs.append(pick(y, turned) if backward else y)
                last.append(pick(y, lengths.unsqueeze(1) - 1)[:, 0])
                if end is not None:
                    ends.append(end)
            y = torch.cat(outputs, -1)
            x = x + y if self.residual and n else y
            hiddens.append(torch.cat(last, -1))
            if ends:
                cells.append(torch.cat(ends, -1))
        x = x if self.norm is None else self.norm(x)
        x = self.top(pick(x, turned) if self.reverse else x)
        final = Final(torch.stack(hiddens, 1), torch.stack(cells, 1) if cells else None)
        return Memory(x.masked_fill(~mask.unsqueeze(-1), 0.0), mask, lengths, final)

    def _read(self, layer: RecurrentLayer, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """Outputs (B, S, width) of one layer in one direction and, where wanted, the cell (B, width) at each end."""
        state = layer.zeros(x.size(0), x)
        if self.training and self.recurrent_dropout:
            state = state._replace(mask=dropout_mask(state.hidden.shape, self.recurrent_dropout, state.hidden))
        if not self.cells:
            return layer.run(x, state)[0], None
        # The fused call only gives the cell behind the padding; who copies it needs it at each sentence's end.
        step, outputs, cells = layer.stepper(), [], []
        for gates in layer.gates(x).unbind(1):
            state = step(gates, None, state)
            outputs.append(state.hidden)
            cells.append(state.cell)
        ends = pick(torch.stack(cells, 1), lengths.unsqueeze(1) - 1)[:, 0]  # type: ignore[arg-type]
        return torch.stack(outputs, 1), ends


class RNNEncoderSettings(EncoderSettings):
    """LSTM or GRU layers over the source."""

    kind: Literal["rnn"]
    cell: CellKind = "lstm"
    """lstm or gru."""
    layers: Annotated[int, Field(ge=1)] = 1
    """Layers, each reading the output of the one below."""
    size: Annotated[int, Field(ge=1)] = 512
    """Width of the memory; a bidirectional encoder gives each direction half of it."""
    bidirectional: bool = True
    """Read backwards too."""
    residual: bool = False
    """Every layer but the first adds its input to its output."""
    layer_norm: bool = False
    """Normalise the memory (Caglayan et al. 2017 do, in the encoder only)."""
    reverse: bool = False
    """Read the source words in reverse order (Sutskever et al. 2014); the memory keeps their own order. Not for a
    bidirectional encoder, which reads them both ways."""
    dropout: Rate | None = None
    """Between layers and on the memory; by default model.dropout."""
    embedding_dropout: Rate | None = None
    """On the embedded words; by default the dropout of this encoder."""
    recurrent_dropout: Rate = 0.0
    """Variational: one mask per sentence on what each layer reads of its own past (Gal & Ghahramani 2016)."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.residual and self.layers == 1:
            raise ValueError("residual is of the layers above the first; set layers to 2 or more, or leave it out")
        if self.bidirectional and self.reverse:
            raise ValueError("a bidirectional encoder reads both ways; leave reverse out, or set bidirectional: false")
        if self.bidirectional and self.size % 2:
            raise ValueError(f"size {self.size} is odd, but a bidirectional encoder gives each direction half of it")
        return self

    def build(self, embedding: nn.Embedding, dropout: float, cells: bool) -> RNNEncoder:
        return RNNEncoder(self, embedding, dropout, cells)
