"""Transformer encoder and decoder (Vaswani et al. 2017).

    attention(Q, K, V) = softmax(Q K^T / sqrt(d / heads)) V,  over several heads, then W_O
    feedforward(x) = W_2 relu(W_1 x + b_1) + b_2
    post-norm:  x = norm(x + dropout(f(x)))                                  the paper
    pre-norm:   x = x + dropout(f(norm(x))), and one norm more at the top    Chen et al. 2018

Products are written out: at sentence lengths they are faster on a CPU than the fused attention kernel, and the weights
are there when somebody wants to see them. The decoder's state is the keys and values of the words so far.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from s2s.interfaces import NOTHING, PAD, Decoded, Decoder, Encoder, Memory
from s2s.models.layers import Dropout, lengths_to_mask, sinusoids
from s2s.settings import DecoderSettings, EncoderSettings, Settings
from s2s.tree import Tree

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]


class KeysValues(NamedTuple):
    """Projected keys and values of one attention, each (B, heads, S, d / heads)."""

    keys: Tensor
    values: Tensor


class MultiHead(nn.Module):
    """Multi-head attention; queries (B, T, d) read keys and values made from (B, S, d)."""

    def __init__(self, size: int, memory_size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.query = nn.Parameter(torch.empty(size, size))
        self.key_value = nn.Parameter(torch.empty(2 * size, memory_size))
        self.query_bias = nn.Parameter(torch.zeros(size))
        self.key_value_bias = nn.Parameter(torch.zeros(2 * size))
        for block in (self.query, self.key_value[:size], self.key_value[size:]):
            nn.init.xavier_uniform_(block, gain=1 / math.sqrt(2))
        self.output = nn.Linear(size, size)
        self.dropout = Dropout(dropout)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), -1, self.size // self.heads).transpose(1, 2)

    def read(self, memory: Tensor) -> KeysValues:
        """Keys and values of ``memory`` (B, S, M)."""
        both = nn.functional.linear(memory, self.key_value, self.key_value_bias)
        return KeysValues(*(self._split(part) for part in both.chunk(2, -1)))

    def forward(self, x: Tensor, memory: KeysValues, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """What x (B, T, d) reads, (B, T, d), and the weights (B, heads, T, S); ``mask`` broadcasts to these."""
        query = self._split(nn.functional.linear(x, self.query, self.query_bias))
        return self._attend(query, memory, mask)

    def over_itself(self, x: Tensor, past: KeysValues | None, mask: Tensor | None) -> tuple[Tensor, KeysValues]:
        """Self-attention of x (B, T, d) over what came before and itself; also the new keys and values."""
        weight, bias = torch.cat([self.query, self.key_value]), torch.cat([self.query_bias, self.key_value_bias])
        query, keys, values = map(self._split, nn.functional.linear(x, weight, bias).chunk(3, -1))
        if past is not None:
            keys = torch.cat([past.keys, keys.to(past.keys.dtype)], 2)
            values = torch.cat([past.values, values.to(past.values.dtype)], 2)
        memory = KeysValues(keys, values)
        return self._attend(query, memory, mask)[0], memory

    def _attend(self, query: Tensor, memory: KeysValues, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        scores = query.to(memory.keys.dtype) @ memory.keys.transpose(-1, -2) * (self.size // self.heads) ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(-1, dtype=torch.float32 if scores.dtype != torch.float64 else None)
        context = self.dropout(weights.to(memory.values.dtype)) @ memory.values  # (B, heads, T, d / heads)
        return self.output(context.transpose(1, 2).flatten(2)), weights


class FeedForward(nn.Sequential):
    """W_2 f(W_1 x + b_1) + b_2."""

    def __init__(self, size: int, inner: int, activation: Literal["relu", "gelu"], dropout: float) -> None:
        function = nn.ReLU() if activation == "relu" else nn.GELU()
        super().__init__(nn.Linear(size, inner), function, Dropout(dropout), nn.Linear(inner, size))


class StackSettings(Settings):
    """What the Transformer's two stacks have in common."""

    layers: Annotated[int, Field(ge=1)] = 4
    """Layers, each with self-attention and a feed-forward part."""
    size: Annotated[int, Field(ge=2)] = 256
    """Width of every layer; equal to model.embedding."""
    heads: Annotated[int, Field(ge=1)] = 4
    """Heads of every attention; they share the width, so their number divides ``size``."""
    feedforward: Annotated[int, Field(ge=1)] = 1024
    """Width inside the feed-forward part."""
    norm: Literal["pre", "post"] = "pre"
    """Where layer normalisation stands: before each part, or after it as in the paper."""
    activation: Literal["relu", "gelu"] = "relu"
    """The function inside the feed-forward part."""
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    """How the model knows where a word stands."""
    max_positions: Annotated[int, Field(ge=1)] = 1024
    """Learned positions only: how many there are."""
    dropout: Rate | None = None
    """On embeddings and on the output of every part; by default model.dropout."""
    attention_dropout: Rate = 0.0
    """On attention weights."""
    activation_dropout: Rate = 0.0
    """Inside the feed-forward part."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.size % self.heads:
            raise ValueError(f"heads {self.heads} does not divide size {self.size}")
        return self


class Input(nn.Module):
    """Embedded words, scaled by sqrt(d), plus their positions, with dropout."""

    def __init__(self, settings: StackSettings, embedding: nn.Embedding, dropout: float) -> None:
        super().__init__()
        if embedding.embedding_dim != settings.size:
            raise ValueError(f"a Transformer of size {settings.size} needs model.embedding {settings.size}")
        self.embedding, self.size, self.dropout = embedding, settings.size, Dropout(dropout)
        self.learned = None
        if settings.positions == "learned":
            self.learned = nn.Embedding(settings.max_positions, settings.size)
            nn.init.normal_(self.learned.weight, 0.0, settings.size**-0.5)

    def forward(self, tokens: Tensor, first: int) -> Tensor:
        """(B, T) ids standing at positions first .. first + T - 1 to (B, T, d), zero where they are PAD."""
        x = self.embedding(tokens) * math.sqrt(self.size)
        if self.learned is None:
            x = x + sinusoids(first, tokens.size(1), self.size, x)
        else:
            last = self.learned.num_embeddings - 1
            x = x + self.learned(torch.arange(first, first + tokens.size(1), device=tokens.device).clamp(max=last))
        dropped: Tensor = self.dropout(x.masked_fill((tokens == PAD).unsqueeze(-1), 0.0))
        return dropped


class Layer(nn.Module):
    """One layer: self-attention, in a decoder attention to the source, and the feed-forward part."""

    def __init__(self, settings: StackSettings, memory_size: int | None, dropout: float) -> None:
        super().__init__()
        size, heads = settings.size, settings.heads
        self.pre = settings.norm == "pre"
        self.own = MultiHead(size, size, heads, settings.attention_dropout)
        self.across = None
        if memory_size is not None:
            self.across = MultiHead(size, memory_size, heads, settings.attention_dropout)
        self.feedforward = FeedForward(size, settings.feedforward, settings.activation, settings.activation_dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2 if memory_size is None else 3))
        self.dropout = Dropout(dropout)

    def _before(self, part: int, x: Tensor) -> Tensor:
        normed: Tensor = self.norms[part](x) if self.pre else x
        return normed

    @staticmethod
    def _across(across: MultiHead, x: Tensor, source: KeysValues, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Places that share a row of the source ask side by side, as if they were its steps."""
        rows = len(source.keys)
        if len(x) == rows:
            found: tuple[Tensor, Tensor] = across(x, source, mask)
            return found
        assert x.size(1) == 1, "places that share a memory go step by step"
        y, weights = across(x.view(rows, -1, x.size(2)), source, mask)  # (B, places, d), (B, heads, places, S)
        return y.flatten(0, 1).unsqueeze(1), weights.transpose(1, 2).flatten(0, 1).unsqueeze(2)

    def _after(self, part: int, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.dropout(y)
        normed: Tensor = x if self.pre else self.norms[part](x)
        return normed

    def forward(
        self,
        x: Tensor,
        past: KeysValues | None,
        mask: Tensor | None,
        source: KeysValues | None = None,
        source_mask: Tensor | None = None,
    ) -> tuple[Tensor, KeysValues, Tensor | None]:
        """(B, T, d) to (B, T, d), the keys and values so far, and the weights on the source (B, heads, T, S)."""
        y, past = self.own.over_itself(self._before(0, x), past, mask)
        x = self._after(0, x, y)
        weights = None
        if self.across is not None and source is not None:
            y, weights = self._across(self.across, self._before(1, x), source, source_mask)
            x = self._after(1, x, y)
        return self._after(-1, x, self.feedforward(self._before(-1, x))), past, weights


class TransformerEncoder(Encoder):
    """See `TransformerEncoderSettings`."""

    def __init__(self, settings: TransformerEncoderSettings, embedding: nn.Embedding, dropout: float) -> None:
        super().__init__()
        self.size = settings.size
        rate = dropout if settings.dropout is None else settings.dropout
        self.input = Input(settings, embedding, rate)
        self.layers = nn.ModuleList(Layer(settings, None, rate) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.size) if settings.norm == "pre" else None

    def forward(self, source: Tensor, lengths: Tensor) -> Memory:
        mask = lengths_to_mask(lengths, source.size(1))
        x = self.input(source.masked_fill(~mask, PAD), 0)
        readable = mask[:, None, None]  # (B, 1, 1, S)
        for layer in self.layers:
            x = layer(x, None, readable)[0]
        x = x if self.norm is None else self.norm(x)
        return Memory(x.masked_fill(~mask.unsqueeze(-1), 0.0), mask, lengths)


class TransformerDecoder(Decoder):
    """See `TransformerDecoderSettings`."""

    def __init__(
        self, settings: TransformerDecoderSettings, embedding: nn.Embedding, memory_size: int, dropout: float
    ) -> None:
        super().__init__()
        rate = dropout if settings.dropout is None else settings.dropout
        self.heads, self.size = settings.heads, settings.size
        self.input = Input(settings, embedding, rate)
        self.layers = nn.ModuleList(Layer(settings, memory_size, rate) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.size) if settings.norm == "pre" else None
        self.output = nn.Linear(settings.size, embedding.num_embeddings)

    def start(self, memory: Memory, want: frozenset[str] = NOTHING) -> tuple[Memory, Tree]:
        keys = tuple(layer.across.read(memory.values) for layer in self.layers)  # type: ignore[union-attr, operator]
        nothing = keys[0].keys[:, :, :0]
        return memory._replace(keys=keys, want=want), tuple(KeysValues(nothing, nothing) for _ in self.layers)

    def shares(self, state: Tree) -> bool:
        """Always: what a place said stands in its state, and the source is only read."""
        return True

    def forward(self, tokens: Tensor, memory: Memory, state: Tree) -> tuple[Decoded, Tree]:
        before, count = state[0].keys.size(2), tokens.size(1)
        x = self.input(tokens, before)
        causal = None
        if count > 1:
            causal = torch.ones(count, before + count, dtype=torch.bool, device=tokens.device).tril(before)
        readable = memory.mask[:, None, None]
        after, shown, apart = [], [], []
        for layer, past, source in zip(self.layers, state, memory.keys, strict=True):
            x, kept, weights = layer(x, past, causal, source, readable)
            after.append(kept)
            if "weights" in memory.want:
                shown.append(weights.mean(1))
            if "heads" in memory.want:
                apart.append(weights.transpose(1, 2))
        x = x if self.norm is None else self.norm(x)
        weights = torch.stack(shown).mean(0) if shown else None  # over heads and layers
        heads = torch.stack(apart, 2) if apart else None  # (B, T, layers, heads, S)
        return Decoded(x, weights=weights, heads=heads), tuple(after)


class TransformerEncoderSettings(StackSettings, EncoderSettings):
    """Layers of self-attention over the source (Vaswani 2017)."""

    kind: Literal["transformer"]

    def build(self, embedding: nn.Embedding, dropout: float, cells: bool) -> TransformerEncoder:
        return TransformerEncoder(self, embedding, dropout)


class TransformerDecoderSettings(StackSettings, DecoderSettings):
    """Layers of self-attention over the words so far and attention over the source (Vaswani 2017)."""

    kind: Literal["transformer"]

    @property
    def reads_cells(self) -> bool:
        """Whether the encoder's last cells are needed."""
        return False

    def build(self, embedding: nn.Embedding, encoder: Encoder, dropout: float, tied: bool) -> TransformerDecoder:
        """The decoder; ``tied``: its output matrix is the embedding's."""
        decoder = TransformerDecoder(self, embedding, encoder.size, dropout)
        if tied:
            decoder.output.weight = embedding.weight
        return decoder
