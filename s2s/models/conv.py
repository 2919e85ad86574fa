"""ConvS2S: convolutional encoder and decoder (Gehring et al. 2017, "Convolutional Sequence to Sequence Learning").

With e_j and g_i the embedded words of source and target and their places, S the source's length, k the kernel's width,
s = sqrt(1/2), and glu([p ; q]) = p sigmoid(q):

    encoder   x^0_j = A e_j + a
              x^l_j = s (glu(W [x^{l-1}_{j-(k-1)/2} ; ... ; x^{l-1}_{j+(k-1)/2}] + b) + x^{l-1}_j)
              z_j   = Z x^L_j + z_0
    decoder   y_i   = glu(W [x^{l-1}_{i-k+1} ; ... ; x^{l-1}_i] + b)
              a_i   = softmax over j of s (U y_i + u + g_i) . z_j
              c_i   = sqrt(S) sum_j a_ij (z_j + e_j)
              x^l_i = s (s (y_i + C c_i + c_0) + x^{l-1}_i)

Each layer has its own W, U and C; outside a sentence x is zero. Where the paper's equations have the residual x^{l-1}
join before attention, here it is behind, as in the authors' released code. Words are read from O x^L + o. The lengths
of sums are kept as in section 3.4, matrices begin as in 3.5, and all but those of words are normalised (section 4.2).

The decoder's state is the window of inputs that each layer's next step still reads: the last k - 1 of them.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from s2s.interfaces import NOTHING, PAD, Decoded, Decoder, Encoder, Memory
from s2s.models.layers import Dropout, Input, Rate, lengths_to_mask, recomputed
from s2s.products import linear
from s2s.settings import DecoderSettings, EncoderSettings, Settings

ROOT_HALF = math.sqrt(0.5)
"""What keeps the variance of a sum of two."""


class Normed(nn.Module):
    """W x + b, whose rows W_r = l_r v_r / |v_r| have learned lengths (Salimans & Kingma 2016).

    W is drawn from N(0, gain / inputs). What scales the rows scales what they give, since at a step of search there is
    less of that.
    """

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(outputs, inputs) * math.sqrt(gain / inputs))
        self.length = nn.Parameter(self.direction.detach().norm(dim=1))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        y: Tensor = linear(x, self.direction) * (self.length / self.direction.norm(dim=1)) + self.bias
        return y


class Convolution(nn.Module):
    """glu of a convolution over ``kernel`` places; its input has been dropped at ``dropout``."""

    def __init__(self, size: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.kernel = kernel
        self.gates = Normed(kernel * size, 2 * size, 4 * (1 - dropout))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T + kernel - 1, size), the margins included, to (B, T, size)."""
        count = x.size(1) - self.kernel + 1
        beside = torch.cat([x[:, place : place + count] for place in range(self.kernel)], -1)  # (B, T, kernel * size)
        return nn.functional.glu(self.gates(beside), -1)


class _Lessened(torch.autograd.Function):
    """Identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class ConvStackSettings(Settings):
    """What ConvS2S's two stacks have in common."""

    layers: Annotated[int, Field(ge=1)] = 4
    """Layers, each a convolution with gates and a residual connection."""
    size: Annotated[int, Field(ge=1)] = 256
    """Width of every layer; what the two sides give each other is as wide as model.embedding."""
    kernel: Annotated[int, Field(ge=1)] = 3
    """Places that a convolution reads: an encoder's stand round its own and are an odd number, a decoder's end with
    its own. A stack sees layers x (kernel - 1) + 1 places."""
    max_positions: Annotated[int, Field(ge=1)] = 1024
    """How many places have a learned vector of their own; those behind them share the last."""
    dropout: Rate | None = None
    """On embedded words, the input of every convolution and what words are read from; by default model.dropout."""


class ConvEncoder(Encoder):
    """See `ConvEncoderSettings`. Its memory is z, and e beside it."""

    def __init__(self, settings: ConvEncoderSettings, embedding: nn.Embedding, dropout: float) -> None:
        super().__init__()
        self.size = width = embedding.embedding_dim
        self.input = Input(embedding, dropout, learned=settings.max_positions)
        self.enter = Normed(width, settings.size, 1 - dropout)
        self.layers = nn.ModuleList(
            Convolution(settings.size, settings.kernel, dropout) for _ in range(settings.layers)
        )
        self.leave = Normed(settings.size, width)
        self.dropout = Dropout(dropout)

    def forward(self, source: Tensor, lengths: Tensor) -> Memory:
        mask = lengths_to_mask(lengths, source.size(1))
        behind = ~mask.unsqueeze(-1)
        embedded = self.input(source.masked_fill(~mask, PAD), 0)
        x = self.enter(embedded).masked_fill(behind, 0.0)
        for layer in self.layers:
            x = recomputed(self.recomputes, self._next, layer, x).masked_fill(behind, 0.0)
        return Memory(self.leave(x).masked_fill(behind, 0.0), mask, lengths, embedded=embedded)

    def _next(self, layer: Convolution, x: Tensor) -> Tensor:
        margin = (layer.kernel - 1) // 2
        y: Tensor = layer(nn.functional.pad(self.dropout(x), (0, 0, margin, margin)))
        return (y + x) * ROOT_HALF


class Source(NamedTuple):
    """What all layers read of a memory."""

    keys: Tensor
    """z (B, S, M)."""
    values: Tensor
    """sqrt(S) (z + e) (B, S, M)."""
    blocked: Tensor
    """(B, 1, S) bool, True at padding."""


class Layer(nn.Module):
    """One layer of the decoder: convolution, attention to the source, residual connection."""

    def __init__(self, size: int, kernel: int, width: int, dropout: float) -> None:
        super().__init__()
        self.convolution, self.dropout = Convolution(size, kernel, dropout), Dropout(dropout)
        self.ask, self.tell = Normed(size, width), Normed(width, size)

    def forward(self, x: Tensor, words: Tensor, source: Source, past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, size), the embedded words (B, T, M) and the window before them (B, kernel - 1, size).

        The next x, the weights (B, T, S), and the window now.
        """
        window = torch.cat([past, self.dropout(x)], 1)
        y = self.convolution(window)
        context, weights = self._attend((self.ask(y) + words) * ROOT_HALF, source)
        x = ((y + self.tell(context)) * ROOT_HALF + x) * ROOT_HALF
        return x, weights, window[:, x.size(1) :]

    def _attend(self, query: Tensor, source: Source) -> tuple[Tensor, Tensor]:
        """What queries (B, T, M) read, and the weights; places that share a row of the source ask side by side."""
        together = query.reshape(len(source.keys), -1, query.size(2))  # (B / places, places, M) where T is 1
        scores = together.to(source.keys.dtype) @ source.keys.mT
        exact = torch.float64 if scores.dtype == torch.float64 else torch.float32
        weights = scores.masked_fill(source.blocked, -torch.inf).softmax(-1, dtype=exact)
        context = weights.to(source.values.dtype) @ source.values
        return context.reshape(query.shape), weights.reshape(*query.shape[:2], -1)


class Past(NamedTuple):
    """What a decoder remembers; B rows."""

    passed: Tensor
    """(B,) how many words were read."""
    windows: tuple[Tensor, ...]
    """Of each layer the last inputs (B, kernel - 1, size), zero before the first word."""


class ConvDecoder(Decoder):
    """See `ConvDecoderSettings`."""

    same_age = False
    grows = False

    def __init__(self, settings: ConvDecoderSettings, embedding: nn.Embedding, dropout: float) -> None:
        super().__init__()
        width, self.window = embedding.embedding_dim, (settings.kernel - 1, settings.size)
        self.input = Input(embedding, dropout, learned=settings.max_positions)
        self.enter = Normed(width, settings.size, 1 - dropout)
        self.layers = nn.ModuleList(
            Layer(settings.size, settings.kernel, width, dropout) for _ in range(settings.layers)
        )
        self.leave, self.dropout = Normed(settings.size, width), Dropout(dropout)
        self.output = nn.Linear(width, embedding.num_embeddings)

    def start(self, memory: Memory, want: frozenset[str] = NOTHING) -> tuple[Memory, Past]:
        """Memory with keys and values, and empty windows.

        Every layer attends twice to what the encoder gives, as key and as value, and so many gradients come back: they
        are averaged, all but those of the embedded words (section 3.4; the released code has the factor 2).
        """
        z: Tensor = _Lessened.apply(memory.values, 1 / (2 * len(self.layers)))  # type: ignore[no-untyped-call]
        values = z if memory.embedded is None else z + memory.embedded
        length = memory.lengths.to(values.dtype).sqrt().view(-1, 1, 1)  # real words: padding has no part in the scale
        source = Source(z, values * length, ~memory.mask.unsqueeze(1))
        empty = memory.values.new_zeros(len(values), *self.window)
        state = Past(torch.zeros_like(memory.lengths), (empty,) * len(self.layers))
        return memory._replace(keys=source, want=want), state

    def shares(self, state: Past) -> bool:
        """Always: a place's state is what it read itself."""
        return True

    def forward(self, tokens: Tensor, memory: Memory, state: Past) -> tuple[Decoded, Past]:
        words = self.input(tokens, state.passed.unsqueeze(1))
        x, windows, shown = self.enter(words), [], []
        for layer, past in zip(self.layers, state.windows, strict=True):
            x, weights, window = recomputed(self.recomputes, layer, x, words, memory.keys, past)
            windows.append(window)
            shown.append(weights)
        together = torch.stack(shown, 2) if memory.want & {"weights", "heads"} else None  # (B, T, layers, S)
        after = Past(state.passed + tokens.size(1), tuple(windows))
        return Decoded(
            self.dropout(self.leave(x)),
            weights=None if together is None else together.mean(2),
            heads=together.unsqueeze(3) if together is not None and "heads" in memory.want else None,
        ), after


class ConvEncoderSettings(ConvStackSettings, EncoderSettings):
    """Layers of convolutions over the source (Gehring 2017)."""

    kind: Literal["conv"]

    @model_validator(mode="after")
    def _stands_round_its_place(self) -> Self:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} is even, but an encoder reads as many places before as behind")
        return self

    def build(self, embedding: nn.Embedding, dropout: float, cells: bool) -> ConvEncoder:
        return ConvEncoder(self, embedding, dropout if self.dropout is None else self.dropout)


class ConvDecoderSettings(ConvStackSettings, DecoderSettings):
    """Layers of convolutions over the words so far, each with attention to the source (Gehring 2017)."""

    kind: Literal["conv"]

    @property
    def reads_cells(self) -> bool:
        """Whether the encoder's last cells are needed."""
        return False

    def build(self, embedding: nn.Embedding, encoder: Encoder, dropout: float, tied: bool) -> ConvDecoder:
        """The decoder; ``tied``: its output matrix is the embedding's. ValueError where the memory is not as wide."""
        if encoder.size != embedding.embedding_dim:
            raise ValueError(
                f"decoder conv adds embedded words to what it compares with the source: model.embedding "
                f"{embedding.embedding_dim} must be the width of the memory, {encoder.size}"
            )
        decoder = ConvDecoder(self, embedding, dropout if self.dropout is None else self.dropout)
        if tied:
            decoder.output.weight = embedding.weight
        return decoder
