"""Transformer encoder and decoder (Vaswani et al. 2017).

    attention(Q, K, V) = softmax(Q K^T / sqrt(d / heads)) V,  over several heads, then W_O
    feedforward(x) = W_2 relu(W_1 x + b_1) + b_2
    post-norm:  x = norm(x + dropout(f(x)))                                  the paper
    pre-norm:   x = x + dropout(f(norm(x))), and one norm more at the top    Chen et al. 2018

Attention and its heads are in `s2s.models.heads`, what they know of places in `s2s.models.positions`, how far they see
in `s2s.models.reach`. The decoder's state is the keys and values of the words so far, as far as they are still seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any, Generic, Literal, NamedTuple, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from s2s.interfaces import NOTHING, PAD, Decoded, Decoder, Encoder, Memory
from s2s.models.heads import Across, Lanes, Look, Mechanisms, MultiHead, SelfAttention
from s2s.models.layers import Dropout, Input, Rate, lengths_to_mask, recomputed
from s2s.models.positions import Absolute, Alibi, PositionKind, Relation, Relative, Rotary
from s2s.models.reach import AnySparse, Everywhere, KeysValues, Passed, Reach, WindowSettings
from s2s.products import Linear
from s2s.settings import AttentionSettings, DecoderSettings, EncoderSettings, Settings
from s2s.tree import Tree, leaves

A = TypeVar("A", bound=AttentionSettings)


class FeedForward(nn.Sequential):
    """W_2 f(W_1 x + b_1) + b_2."""

    def __init__(self, size: int, inner: int, activation: Literal["relu", "gelu"], dropout: float) -> None:
        function = nn.ReLU() if activation == "relu" else nn.GELU()
        super().__init__(Linear(size, inner), function, Dropout(dropout), Linear(inner, size))


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
    groups: Annotated[int, Field(ge=1)] | None = None
    """Groups of heads that share their keys and values (Ainslie 2023); their number divides ``heads``. By default every
    head has its own."""
    positions: PositionKind = "sinusoidal"
    """How the model knows where a word stands: sinusoidal or learned vectors join the words (Vaswani 2017); relative
    (Shaw 2018), rotary (Su 2021) and alibi (Press 2022) tell self-attention how far apart two words are."""
    max_positions: Annotated[int, Field(ge=1)] = 1024
    """Learned positions only: how many there are."""
    max_distance: Annotated[int, Field(ge=1)] = 16
    """Relative positions only: greater distances are taken for this one."""
    sparse: AnySparse | None = None
    """Which places self-attention leaves out: beyond a window, or but for every few. Its cost then grows with the
    window, not with the square of the length."""
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
        if self.heads % self.shared:
            raise ValueError(f"groups {self.shared} does not divide heads {self.heads}")
        if self.positions == "rotary" and self.size // self.heads % 2:
            raise ValueError(f"rotary positions turn pairs, but a head is {self.size // self.heads} wide, which is odd")
        seen = self.sparse.size if isinstance(self.sparse, WindowSettings) else self.max_distance
        if self.positions == "relative" and self.max_distance > seen:
            raise ValueError(
                f"max_distance {self.max_distance} is more than the window shows; set it to {seen} or less"
            )
        return self

    @property
    def shared(self) -> int:
        """How many heads have keys and values of their own."""
        return self.heads if self.groups is None else self.groups

    def relation(self, ahead: bool) -> Relation:
        """What self-attention knows of places; ``ahead``: it sees what is behind a word too."""
        if self.positions == "relative":
            return Relative(self.size // self.heads, self.max_distance, ahead)
        if self.positions == "rotary":
            return Rotary()
        return Alibi(self.heads) if self.positions == "alibi" else Absolute()

    def reaches(self, ahead: bool) -> tuple[Reach, ...]:
        """How far self-attention sees."""
        return (Everywhere(ahead),) if self.sparse is None else self.sparse.reaches(ahead)


def embedded(settings: StackSettings, embedding: nn.Embedding, dropout: float, both_sides: bool = False) -> Input:
    """Words times sqrt(d), and the positions that join them; ``both_sides``: there are places before 0 too.

    Raises ValueError where their width is not the stack's.
    """
    if embedding.embedding_dim != settings.size:
        raise ValueError(f"a Transformer of size {settings.size} needs model.embedding {settings.size}")
    learned = settings.max_positions if settings.positions == "learned" else 0
    before = learned if both_sides else 0
    return Input(embedding, dropout, math.sqrt(settings.size), settings.positions == "sinusoidal", learned, before)


class LayerPast(NamedTuple):
    """What one layer of a decoder remembers."""

    own: tuple[KeysValues, ...]
    """Of its own words, a part for each reach."""
    across: Tree
    """Of its attention to the source."""


class Layer(nn.Module):
    """One layer: self-attention, in a decoder attention to the source, and the feed-forward part."""

    def __init__(
        self, settings: StackSettings, across: Callable[[], Across] | None, ahead: bool, dropout: float
    ) -> None:
        super().__init__()
        size = settings.size
        self.pre = settings.norm == "pre"
        self.own = SelfAttention(
            size,
            settings.heads,
            settings.shared,
            settings.attention_dropout,
            settings.relation(ahead),
            settings.reaches(ahead),
        )
        self.across = None if across is None else across()
        self.feedforward = FeedForward(size, settings.feedforward, settings.activation, settings.activation_dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2 if across is None else 3))
        self.dropout = Dropout(dropout)
        self._compiled: Callable[[Tensor], Tensor] | None = None

    def compile_parts(self) -> None:
        """Have what does not depend on lengths compiled, for any number of sentences and words, when it is trained.

        Draws are those of the same layer uncompiled.
        """
        self._compiled = torch.compile(self._inner, dynamic=True, options={"fallback_random": True})

    def _before(self, part: int, x: Tensor) -> Tensor:
        normed: Tensor = self.norms[part](x) if self.pre else x
        return normed

    def _after(self, part: int, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.dropout(y)
        normed: Tensor = x if self.pre else self.norms[part](x)
        return normed

    def itself(
        self, x: Tensor, held: Iterable[KeysValues | None], look: Look, beside: Lanes = ()
    ) -> tuple[Tensor, tuple[KeysValues, ...], Tensor]:
        """Self-attention of x (B, T, d), what is held now, and the weights; see `SelfAttention`."""
        y, kept, weights = self.own(self._before(0, x), held, look, beside)
        return self._after(0, x, y), kept, weights

    def source(self, x: Tensor, memory: Memory, source: Tree, state: Tree) -> tuple[Tensor, Tensor, Tree]:
        """Attention of x (B, T, d) to the memory; the weights (B, heads, T, S), and its state.

        Places that share a row of the memory ask side by side, as if they were its steps.
        """
        assert self.across is not None
        rows, asking = len(memory.values), self._before(1, x)
        if len(x) == rows:
            y, weights, state = self.across(asking, memory, source, state)
            return self._after(1, x, y), weights, state
        assert x.size(1) == 1, "places that share a memory go step by step"
        y, weights, state = self.across(asking.view(rows, -1, x.size(2)), memory, source, state)
        weights = weights.transpose(1, 2).flatten(0, 1).unsqueeze(2)  # (B, heads, places, S) to (B places, heads, 1, S)
        return self._after(1, x, y.flatten(0, 1).unsqueeze(1)), weights, state

    def inner(self, x: Tensor) -> Tensor:
        """The feed-forward part of x (B, T, d)."""
        return self._inner(x) if self._compiled is None or not self.training else self._compiled(x)

    def _inner(self, x: Tensor) -> Tensor:
        return self._after(-1, x, self.feedforward(self._before(-1, x)))

    def alone(
        self, x: Tensor, held: Iterable[KeysValues | None], look: Look, beside: Lanes = ()
    ) -> tuple[Tensor, tuple[KeysValues, ...], Tensor]:
        """What a layer that attends to no memory makes of x (B, T, d), what is held now, and the weights."""
        x, kept, weights = self.itself(x, held, look, beside)
        return self.inner(x), kept, weights

    def encode(self, x: Tensor, look: Look) -> Tensor:
        """What an encoder makes of x (B, S, d)."""
        return self.alone(x, [None] * len(look.views), look)[0]

    def decode(
        self, x: Tensor, memory: Memory, source: Tree, past: LayerPast, look: Look
    ) -> tuple[Tensor, Tensor, LayerPast]:
        """What a decoder makes of x (B, T, d), the weights (B, heads, T, S), and what is remembered."""
        x, own, _ = self.itself(x, past.own, look)
        x, weights, across = self.source(x, memory, source, past.across)
        return self.inner(x), weights, LayerPast(own, across)


class TransformerEncoder(Encoder):
    """See `TransformerEncoderSettings`."""

    def __init__(self, settings: TransformerEncoderSettings, embedding: nn.Embedding, dropout: float) -> None:
        super().__init__()
        self.size = settings.size
        rate = dropout if settings.dropout is None else settings.dropout
        self.input = embedded(settings, embedding, rate)
        self.layers = nn.ModuleList(Layer(settings, None, True, rate) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.size) if settings.norm == "pre" else None
        self.reaches = settings.reaches(True)

    def compile_parts(self) -> None:
        for layer in self.layers:
            layer.compile_parts()  # type: ignore[operator]

    def forward(self, source: Tensor, lengths: Tensor) -> Memory:
        mask = lengths_to_mask(lengths, source.size(1))
        x = self.input(source.masked_fill(~mask, PAD), 0)
        views = tuple(reach.view(0, source.size(1), mask, source.device) for reach in self.reaches)
        for layer in self.layers:
            x = recomputed(self.recomputes, layer.encode, x, Look(0, 0, views))  # type: ignore[arg-type]
        x = x if self.norm is None else self.norm(x)
        return Memory(x.masked_fill(~mask.unsqueeze(-1), 0.0), mask, lengths)


class Past(NamedTuple):
    """What a decoder remembers; B rows."""

    passed: Tensor
    """(B,) how many words were read."""
    layers: tuple[LayerPast, ...]


class TransformerDecoder(Decoder):
    """See `TransformerDecoderSettings`."""

    def __init__(
        self, settings: TransformerDecoderSettings[Any], embedding: nn.Embedding, memory_size: int, dropout: float
    ) -> None:
        super().__init__()
        rate = dropout if settings.dropout is None else settings.dropout
        self.input = embedded(settings, embedding, rate)
        across = partial(settings.across, memory_size)
        self.layers = nn.ModuleList(Layer(settings, across, False, rate) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.size) if settings.norm == "pre" else None
        self.output = nn.Linear(settings.size, embedding.num_embeddings)
        self.reaches = settings.reaches(False)
        self.same_age = any(reach.same_age for reach in self.reaches)

    def compile_parts(self) -> None:
        for layer in self.layers:
            layer.compile_parts()  # type: ignore[operator]

    def start(self, memory: Memory, want: frozenset[str] = NOTHING) -> tuple[Memory, Past]:
        memory = memory._replace(want=want)
        sources, layers = [], []
        for layer in self.layers:
            assert isinstance(layer, Layer) and layer.across is not None
            source = layer.across.read(memory)
            sources.append(source)
            layers.append(LayerPast(layer.own.nothing(memory), layer.across.start(memory, source)))
        return memory._replace(keys=tuple(sources)), Past(torch.zeros_like(memory.lengths), tuple(layers))

    def shares(self, state: Past) -> bool:
        """Where attention to the source remembers nothing: what a place said stands in its own state."""
        return not leaves(tuple(layer.across for layer in state.layers))

    def forward(self, tokens: Tensor, memory: Memory, state: Past) -> tuple[Decoded, Past]:
        passed, count = Passed.of(state.passed, state.layers[0].own[0].keys.size(2)), tokens.size(1)
        x = self.input(tokens, passed.first)
        look = Look.after(passed, count, self.reaches, x.device)
        after, shown, apart = [], [], []
        for layer, past, source in zip(self.layers, state.layers, memory.keys, strict=True):
            given = (x, memory, source, past, look)
            x, weights, now = recomputed(self.recomputes, layer.decode, *given)  # type: ignore[arg-type]
            after.append(now)
            if "weights" in memory.want:
                shown.append(weights.mean(1))
            if "heads" in memory.want:
                apart.append(weights.transpose(1, 2))
        x = x if self.norm is None else self.norm(x)
        weights = torch.stack(shown).mean(0) if shown else None  # over heads and layers
        heads = torch.stack(apart, 2) if apart else None  # (B, T, layers, heads, S)
        return Decoded(x, weights=weights, heads=heads), Past(state.passed + count, tuple(after))

    def set_update(self, update: int) -> None:
        for layer in self.layers:
            layer.across.set_update(update)  # type: ignore[union-attr, operator]


class TransformerEncoderSettings(StackSettings, EncoderSettings):
    """Layers of self-attention over the source (Vaswani 2017)."""

    kind: Literal["transformer"]

    def build(self, embedding: nn.Embedding, dropout: float, cells: bool) -> TransformerEncoder:
        return TransformerEncoder(self, embedding, dropout)


class TransformerDecoderSettings(StackSettings, DecoderSettings, Generic[A]):
    """Layers of self-attention over the words so far and attention over the source (Vaswani 2017)."""

    kind: Literal["transformer"]
    attention: A | None = None
    """What stands in every head of the attention to the source, with parameters of its own; by default the paper's
    scaled products and their softmax. Its weights are not dropped."""

    @model_validator(mode="after")
    def _stands_in_heads(self) -> Self:
        reason = None if self.attention is None else self.attention.refusal_as_head()
        if reason:
            raise ValueError(reason)
        return self

    @property
    def reads_cells(self) -> bool:
        """Whether the encoder's last cells are needed."""
        return False

    def across(self, memory_size: int) -> Across:
        """One layer's attention to the source."""
        if self.attention is None:
            return MultiHead(self.size, memory_size, self.heads, self.shared, self.attention_dropout)
        build = self.attention.build  # type: ignore[attr-defined]
        return Mechanisms(self.size, memory_size, self.heads, self.shared, build)

    def build(self, embedding: nn.Embedding, encoder: Encoder, dropout: float, tied: bool) -> TransformerDecoder:
        """The decoder; ``tied``: its output matrix is the embedding's."""
        decoder = TransformerDecoder(self, embedding, encoder.size, dropout)
        if tied:
            decoder.output.weight = embedding.weight
        return decoder
