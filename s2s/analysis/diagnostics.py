"""What attention does, in numbers: measured at every validation while the right words are given.

With a_ts the weight of source position s at target position t, both ends of sentence counted and padding nowhere:

    entropy         -sum_s a_ts log a_ts, in nats                               mean over target positions
    sharpness       max_s a_ts                                                  mean over target positions
    mass            sum_s a_ts, below 1 where a mechanism gives weight away     mean over target positions
    monotonicity    1 where the largest weight is not to the left of that of    mean over neighbours that have
                    the word before, else 0; ties go to the lowest position     any weight, both of them
    coverage        min(1, sum_t a_ts): how far it was read                     mean over source positions
    coverage_error  |1 - sum_t a_ts|: too little, or again and again            mean over source positions

What a mechanism knows of itself joins them (`s2s.interfaces.Attention.diagnostics`). Everything is a sum with its
count, so batches of any size weigh every position the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from s2s.interfaces import PAD, Attended, Decoded, Decoder, Memory, Totals


def summed(values: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """The sum, in float64, of ``values`` at the positions ``where``, of the same shape; and how many these are."""
    return values[where].double().sum(), where.sum()


def from_trace(attended: Attended, real: Tensor, *names: str) -> Totals:
    """Sums over the positions ``real`` (B, T) of those of these entries of the trace, (B, T), that are there."""
    return {name: summed(attended.trace[name], real) for name in names if name in attended.trace}


def of_weights(weights: Tensor, memory: Memory, real: Tensor) -> Totals:
    """What weights (B, T, S) say by themselves, over the target positions ``real`` (B, T); see the top of the file."""
    weights = weights.double().masked_fill(~real.unsqueeze(-1), 0.0)
    sharpest, place = weights.max(-1)  # (B, T)
    anywhere = sharpest > 0
    follows = anywhere[:, 1:] & anywhere[:, :-1]
    total = weights.sum(1)  # (B, S)
    return {
        "entropy": summed(torch.special.entr(weights).sum(-1), real),
        "sharpness": summed(sharpest, real),
        "mass": summed(weights.sum(-1), real),
        "monotonicity": summed(place[:, 1:] >= place[:, :-1], follows),
        "coverage": summed(total.clamp(max=1.0), memory.mask),
        "coverage_error": summed((1 - total).abs(), memory.mask),
    }


class Diagnostics:
    """The same, and what the mechanism adds, over the batches of a validation."""

    WANT = frozenset({"weights", "trace"})
    """What a forward pass that is looked at is asked for."""

    def __init__(self) -> None:
        self._totals: Totals = {}

    def add(self, decoder: Decoder, decoded: Decoded, memory: Memory, target: Tensor) -> None:
        """Take in a batch of right words ``target`` (B, T), PAD last; nothing where the mechanism has no weights."""
        if decoded.weights is None:
            return
        found = of_weights(decoded.weights, memory, target != PAD) | decoder.diagnostics(decoded, memory, target)
        for name, (total, count) in found.items():
            before = self._totals.get(name, (0.0, 0))
            self._totals[name] = total + before[0], count + before[1]

    def means(self) -> dict[str, float]:
        """Every sum divided by its count; without those that counted nothing."""
        return {name: float(total / count) for name, (total, count) in self._totals.items() if count}


class GradientMoments(NamedTuple):
    """What draws of a random gradient have in common, and how far they scatter; in float64, per parameter."""

    mean: list[Tensor]
    variance: list[float]
    """The trace of the covariance, without bias: sum |g - mean|^2 / (draws - 1)."""
    draws: int

    def spread(self) -> tuple[float, float]:
        """Over all parameters: the variance of a draw, and the squared length of the expected gradient.

        Neither has a bias: the variance that is left in the mean is taken from its square, which may so come out below
        zero where the gradient is lost in the noise.
        """
        variance = sum(self.variance)
        return variance, sum(float((one * one).sum()) for one in self.mean) - variance / self.draws


def gradient_moments(draw: Callable[[int], Sequence[Tensor]], draws: int) -> GradientMoments:
    """Mean and variance of ``draw(0) ... draw(draws - 1)``, each a gradient; at least two (Welford 1962)."""
    mean = [one.double() for one in draw(0)]
    squares = [0.0] * len(mean)
    for number in range(1, draws):
        for place, one in enumerate(draw(number)):
            away = one.double() - mean[place]
            mean[place] = mean[place] + away / (number + 1)
            squares[place] += float((away * (one - mean[place])).sum())
    return GradientMoments(mean, [square / (draws - 1) for square in squares], draws)
