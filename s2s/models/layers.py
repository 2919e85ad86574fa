"""Small parts that several models are made of: dropout, embeddings, positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from s2s.interfaces import PAD

T = TypeVar("T")
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
"""The share of values that dropout sets to zero."""


def dropout_mask(shape: torch.Size | tuple[int, ...], rate: float, like: Tensor) -> Tensor:
    """A mask of zeros and 1 / (1 - rate), of the type and device of ``like``.

    On a CPU drawing floats costs as much as a layer of a small Transformer, so masks are drawn 16 bits at a time; the
    rate is then exact to 1/65536.
    """
    if like.device.type != "cpu":
        return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1 - rate).div_(1 - rate)
    count = math.prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[:count].view(shape)
    dropped = min(round(rate * 65536), 65535)
    return (bits >= dropped - 32768).to(like.dtype).mul_(65536 / (65536 - dropped))


class Dropout(nn.Module):
    """Zeroes entries with probability ``rate`` in training and scales the rest by 1 / (1 - rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        return x * dropout_mask(x.shape, self.rate, x)


def embedding(vocabulary: int, size: int) -> nn.Embedding:
    """Vectors N(0, 1/size), so that a row has length about one; the row of PAD is zero and stays so."""
    table = nn.Embedding(vocabulary, size, padding_idx=PAD)
    with torch.no_grad():
        table.weight.normal_(0.0, size**-0.5)
        table.weight[PAD].zero_()
    return table


def sinusoids(first: int | Tensor, count: int, size: int, like: Tensor) -> Tensor:
    """Sines and cosines of places first .. first + count - 1, interleaved, (count, size) (Vaswani 2017, section 3.5).

    pe[2i] = sin(position / 10000^(2i/size)), pe[2i+1] = cos(the same). Firsts (B, 1) give (B, count, size).
    """
    position = (torch.arange(count, device=like.device) + first).float().unsqueeze(-1)
    rate = torch.exp(torch.arange(0, size, 2, device=like.device, dtype=torch.float32) * (-math.log(10000.0) / size))
    angle = position * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)[..., :size].to(like.dtype)


class Input(nn.Module):
    """Embedded words times ``scale``, plus what tells their places, with dropout.

    That is sinusoids where ``waves``, or ``learned`` vectors, the last of which all places behind it share; or nothing.
    ``before`` of them more are for places before 0, the first of which all places before it share.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        dropout: float,
        scale: float = 1.0,
        waves: bool = False,
        learned: int = 0,
        before: int = 0,
    ) -> None:
        super().__init__()
        self.embedding, self.scale, self.waves, self.dropout = embedding, scale, waves, Dropout(dropout)
        self.learned = nn.Embedding(before + learned, embedding.embedding_dim) if learned else None
        self.before = before
        if self.learned is not None:
            nn.init.normal_(self.learned.weight, 0.0, embedding.embedding_dim**-0.5)

    def forward(self, tokens: Tensor, first: int | Tensor) -> Tensor:
        """(B, T) ids standing at places first .. first + T - 1, or firsts (B, 1), to (B, T, d), zero where PAD."""
        return self.placed(self.embedding(tokens) * self.scale, first, tokens != PAD)

    def placed(self, x: Tensor, first: int | Tensor, mask: Tensor) -> Tensor:
        """The same of vectors x (B, T, d), zero but at ``mask`` (B, T); the first place is one for all, or (B, 1)."""
        if self.waves:
            x = x + sinusoids(first, x.size(1), x.size(-1), x)
        elif self.learned is not None:
            row = torch.arange(x.size(1), device=x.device) + first + self.before
            x = x + self.learned(row.clamp(0, self.learned.num_embeddings - 1))
        dropped: Tensor = self.dropout(x.masked_fill(~mask.unsqueeze(-1), 0.0))
        return dropped


def lengths_to_mask(lengths: Tensor, positions: int) -> Tensor:
    """(B,) lengths to (B, positions) bool, True at real positions."""
    return torch.arange(positions, device=lengths.device) < lengths.unsqueeze(1)


def pick(x: Tensor, places: Tensor) -> Tensor:
    """x (B, S, W) at the positions ``places`` (B, T) of each sentence: (B, T, W)."""
    return x.gather(1, places.unsqueeze(-1).expand(-1, -1, x.size(-1)))


def backwards(lengths: Tensor, mask: Tensor) -> Tensor:
    """The places (B, S) of sentences with ``lengths`` (B,) read from their ends, their padding staying where it is.

    ``mask`` (B, S) bool is `lengths_to_mask`. Picked twice, everything is where it was.
    """
    place = torch.arange(mask.size(1), device=mask.device)
    return torch.where(mask, lengths.unsqueeze(1) - 1 - place, place)


def recomputed(wanted: bool, function: Callable[..., T], *arguments: Any) -> T:
    """``function(*arguments)``; where ``wanted`` and there will be a gradient, what is computed inside is not kept.

    The backward pass computes it again from the arguments, with the same draws and in the same precision, so that
    values and gradients are the same to the bit: activation checkpointing (Chen et al. 2016, arXiv 1604.06174).
    """
    if not (wanted and torch.is_grad_enabled()):
        return function(*arguments)
    result: T = checkpoint(function, *arguments, use_reentrant=False)
    return result
