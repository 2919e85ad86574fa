"""One Transformer that reads the source and goes on with the target, and the encoder before it, which only embeds.

    [h_{-n} ... h_{-1} ; h_0 h_1 ...] = layers over [source words ; BOS, target words]

Liu et al. 2018, section 4.2.3, have no encoder, only this sequence; Raffel et al. 2020, section 3.2.1, let the words of
the prefix see each other in both directions. Zhang et al. 2022 find that translation wants this, and a loss of target
words alone, as it is here. The source's last word stands at place -1 and BOS at 0, so the places are those of one
sequence however long its source is, and padding, which is behind the source, counts for none.

What layers compute of the source is kept once per sentence; the state has keys and values of the words so far alone.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Literal, NamedTuple, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from s2s.interfaces import NOTHING, Decoded, Decoder, Encoder, Memory
from s2s.models.heads import Look
from s2s.models.layers import Input, lengths_to_mask, recomputed
from s2s.models.reach import Everywhere, KeysValues, Passed, View
from s2s.models.transformer import Layer, StackSettings, embedded
from s2s.settings import DecoderSettings, EncoderSettings


class EmbeddingEncoder(Encoder):
    """See `EmbeddingEncoderSettings`."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding, self.size = embedding, embedding.embedding_dim

    def forward(self, source: Tensor, lengths: Tensor) -> Memory:
        mask = lengths_to_mask(lengths, source.size(1))
        x = self.embedding(source) * math.sqrt(self.size)
        return Memory(x.masked_fill(~mask.unsqueeze(-1), 0.0), mask, lengths)


class Prefix(View):
    """Every query beside all of a source; ``rows`` of queries, of which those side by side may share a source."""

    def __init__(self, memory: Memory, rows: int, first: int | Tensor, count: int) -> None:
        """``first``: the place of the first query, or of each row's (rows, 1), the same where rows share a source."""
        self.mask, self.lengths, self.shared = memory.mask, memory.lengths, rows != len(memory.mask)
        if isinstance(first, Tensor):
            first = first.view(len(memory.mask), -1)[:, :1]
        self.asking = torch.arange(count, device=memory.mask.device) + first  # (T,) or (B, T)
        self.blocked = ~memory.mask[:, None, None]  # (B, 1, 1, S)

    @cached_property
    def distance(self) -> Tensor:  # (B, 1, T, S)
        place = torch.arange(self.mask.size(1), device=self.mask.device) - self.lengths.view(-1, 1, 1, 1)
        return place - self.asking.unsqueeze(-1).unsqueeze(-3)

    def ask(self, x: Tensor) -> Tensor:
        """Where rows share a source, T is 1 and they ask side by side: (rows, heads, 1, n) to (B, heads, places, n)."""
        return x.view(len(self.mask), -1, x.size(1), x.size(3)).transpose(1, 2) if self.shared else x

    def answer(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(0, 1).unsqueeze(2) if self.shared else x


class Past(NamedTuple):
    """What the words so far left; B rows."""

    passed: Tensor
    """(B,) how many words were read."""
    layers: tuple[KeysValues, ...]
    """Of each layer."""


class DecoderOnly(Decoder):
    """See `DecoderOnlySettings`."""

    same_age = False

    def __init__(self, settings: DecoderOnlySettings, words: Input, vocabulary: int, dropout: float) -> None:
        super().__init__()
        ahead = settings.source == "bidirectional"
        self.input = words
        self.layers = nn.ModuleList(Layer(settings, None, ahead, dropout) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.size) if settings.norm == "pre" else None
        self.output = nn.Linear(settings.size, vocabulary)
        self.of_source, self.of_words = Everywhere(ahead), Everywhere(False)

    def compile_parts(self) -> None:
        for layer in self.layers:
            layer.compile_parts()  # type: ignore[operator]

    def start(self, memory: Memory, want: frozenset[str] = NOTHING) -> tuple[Memory, Past]:
        first = -memory.lengths.unsqueeze(1)  # (B, 1)
        x = self.input.placed(memory.values, first, memory.mask)
        view = self.of_source.view(0, x.size(1), memory.mask, x.device)
        look, sources, layers = Look(first, 0, (view,)), list[KeysValues](), list[KeysValues]()
        for layer in self.layers:
            assert isinstance(layer, Layer)
            x, source, _ = recomputed(self.recomputes, layer.alone, x, [None], look)
            sources.extend(source)
            layers.extend(layer.own.nothing(memory))
        return memory._replace(keys=tuple(sources), want=want), Past(torch.zeros_like(memory.lengths), tuple(layers))

    def shares(self, state: Past) -> bool:
        """Always: what a place said stands in its own state."""
        return True

    def forward(self, tokens: Tensor, memory: Memory, state: Past) -> tuple[Decoded, Past]:
        passed, count = Passed.of(state.passed, state.layers[0].keys.size(2)), tokens.size(1)
        x = self.input(tokens, passed.first)
        look = Look.after(passed, count, [self.of_words], x.device)
        prefix, after, shown = Prefix(memory, len(tokens), passed.first, count), [], []
        for layer, source, past in zip(self.layers, memory.keys, state.layers, strict=True):
            given = (x, [past], look, [(source, prefix)])
            x, (words,), weights = recomputed(self.recomputes, layer.alone, *given)  # type: ignore[arg-type]
            after.append(words)
            if memory.want & {"weights", "heads"}:
                shown.append(weights[..., : memory.mask.size(1)].transpose(1, 2))
        x = x if self.norm is None else self.norm(x)
        heads = torch.stack(shown, 2) if shown else None  # (B, T, layers, heads, S)
        decoded = Decoded(
            x,
            weights=None if heads is None else heads.mean((2, 3)),
            heads=heads if "heads" in memory.want else None,
        )
        return decoded, Past(state.passed + count, tuple(after))


class EmbeddingEncoderSettings(EncoderSettings):
    """The source's words and no more, scaled as in a Transformer: for a decoder that makes of them what it needs."""

    kind: Literal["embedding"]

    def build(self, embedding: nn.Embedding, dropout: float, cells: bool) -> EmbeddingEncoder:
        return EmbeddingEncoder(embedding)


class DecoderOnlySettings(StackSettings, DecoderSettings):
    """One stack of self-attention over the source and the words so far (Liu 2018); its encoder is ``embedding``."""

    kind: Literal["decoder-only"]
    source: Literal["bidirectional", "causal"] = "bidirectional"
    """What source words see: each other (a prefix language model), or those before them (a language model)."""

    @model_validator(mode="after")
    def _sees_the_source(self) -> Self:
        if self.sparse is not None:
            raise ValueError(
                "sparse would hide the source, which stands before the words, from all of them but the first; it is "
                "for the kind transformer, whose attention to the source is apart"
            )
        return self

    @property
    def reads_cells(self) -> bool:
        """Whether the encoder's last cells are needed."""
        return False

    def build(self, embedding: nn.Embedding, encoder: Encoder, dropout: float, tied: bool) -> DecoderOnly:
        """The decoder; ``tied``: its output matrix is the embedding's. ValueError where the memory is not as wide."""
        if encoder.size != self.size:
            raise ValueError(
                f"kind decoder-only reads the memory as what stands before its words: its size {self.size} must be "
                f"that of the memory, {encoder.size}"
            )
        rate = dropout if self.dropout is None else self.dropout
        decoder = DecoderOnly(self, embedded(self, embedding, rate, both_sides=True), embedding.num_embeddings, rate)
        if tied:
            decoder.output.weight = embedding.weight
        return decoder
