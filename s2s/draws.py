"""Draws: Gumbel noise from torch's generator, or as a function of what it is drawn for.

Evaluation draws in the second way, so that a sentence is read alike in any company, by search and when scored. The
mixing of numbers is SplitMix64 (Steele et al. 2014).
"""

from __future__ import annotations

import torch
from torch import Tensor


def gumbel(like: Tensor) -> Tensor:
    """-log(-log u), u ~ U(0, 1), in the shape and type of ``like``: log p plus this is largest at z ~ p."""
    return -torch.empty_like(like).exponential_().clamp_min(torch.finfo(like.dtype).tiny).log()


def gumbel_at(seeds: Tensor, first: Tensor, like: Tensor) -> Tensor:
    """The same for ``like`` (B, T, S) as a function of (seed, step, position) alone.

    Sentence b has ``seeds`` (B,) and is at step ``first`` (B,), both int64. So a sentence meets the same draws however
    its steps are split, its rows are reordered and its source is padded.
    """
    steps = first.unsqueeze(1) + torch.arange(like.size(1), device=like.device)  # (B, T)
    places = torch.arange(like.size(2), device=like.device)
    mixed = _mixed(_mixed(seeds.unsqueeze(1) + steps * _GOLDEN).unsqueeze(2) + places * _GOLDEN)  # (B, T, S)
    uniform = (_shifted(mixed, 12).double() + 0.5) * 2.0**-52  # never 0 and never 1
    return -(-uniform.log()).log().to(like.dtype)


def numbers_of(source: Tensor, lengths: Tensor) -> Tensor:
    """(B,) int64, a number of each sentence of ``source`` (B, S) that its first ``lengths`` (B,) words decide."""
    places = torch.arange(source.size(1), device=source.device)
    mixed = _mixed(_mixed(source * _GOLDEN) + (places + 1) * _GOLDEN)  # a word at another place is another number
    return _mixed(mixed.masked_fill(places >= lengths.unsqueeze(1), 0).sum(1))


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # constants of 64 bits, as signed integers have them
_FACTORS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


def _mixed(bits: Tensor) -> Tensor:
    for shift, factor in _FACTORS:
        bits = (bits ^ _shifted(bits, shift)) * factor
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """To the right, with zeros following (int64 would repeat its sign)."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
