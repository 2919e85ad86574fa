"""From features to log-probabilities of words: of given ones, without keeping what all others have, or of all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from s2s.products import by_rows, cast_once

_SCORES = 2**20
"""Scores (rows x V) that are worked on at once: they stay in the cache."""


class _LogLikelihood(torch.autograd.Function):
    """Forward keeps one number a row, the logarithm of the softmax' sum; backward forms the scores again."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, words: Tensor) -> Tensor:
        wide = torch.float64 if features.dtype == torch.float64 else torch.float32
        matrix = weight.to(features.dtype)
        totals, found = (torch.empty(words.shape, dtype=wide, device=words.device) for _ in range(2))
        for part in _parts(features, matrix):
            scores = _scores(features[part], matrix, bias.to(wide))
            chosen = words[part, None]
            found[part] = scores.log_softmax(1).gather(1, chosen)[:, 0]
            totals[part] = scores.gather(1, chosen)[:, 0] - found[part]
        ctx.save_for_backward(features, weight, bias, words, totals)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Of -log p by the scores: the softmax, less 1 at the right word."""
        features, weight, bias, words, totals = ctx.saved_tensors
        matrix = weight.to(features.dtype)
        by_features, weighted = torch.empty_like(features), (features * -gradient.unsqueeze(1)).to(features.dtype)
        by_weight = torch.zeros(weight.shape, dtype=totals.dtype, device=weight.device)
        by_bias = torch.zeros(bias.shape, dtype=totals.dtype, device=bias.device)
        less = totals.new_full((), -1.0)
        for part in _parts(features, matrix):
            by_scores = _scores(features[part], matrix, bias.to(totals.dtype)).sub_(totals[part, None]).exp_()
            by_scores.scatter_add_(1, words[part, None], less.expand(words[part, None].shape))
            by_bias.addmv_(by_scores.t(), gradient[part], alpha=-1)
            narrow = by_scores.to(features.dtype)
            torch.mm(narrow, matrix, out=by_features[part])
            by_weight += narrow.t() @ weighted[part]
        by_features *= -gradient.unsqueeze(1)
        return by_features, by_weight.to(weight.dtype), by_bias.to(bias.dtype), None


def _scores(features: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """(n, V) in float32 or wider."""
    if features.dtype == bias.dtype:
        return torch.addmm(bias, features, matrix.t())
    narrow = by_rows(features, matrix)
    return narrow.to(bias.dtype).add_(bias)  # one mixed addition would take several times as long


def _parts(features: Tensor, matrix: Tensor) -> list[slice]:
    rows = max(1, _SCORES // matrix.size(0))
    return [slice(first, first + rows) for first in range(0, features.size(0), rows)]


def log_likelihood(features: Tensor, weight: Tensor, bias: Tensor, words: Tensor) -> Tensor:
    """log p of ``words`` (n,) under softmax(features weight^T + bias), in nats: (n,), float32 or wider.

    Features (n, D), weight (V, D), bias (V,). Products run in the type of ``features``, or autocast's. Never holds
    (n, V), neither forward nor for the backward pass.
    """
    features = _narrowed(features)
    with torch.autocast(features.device.type, enabled=False):
        found: Tensor = _LogLikelihood.apply(features, weight, bias, words)  # type: ignore[no-untyped-call]
    return found


@torch.no_grad()
def log_probabilities(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """log softmax(features weight^T + bias) of all words, in nats: (n, V), float32 or wider, without a gradient.

    Features (n, D), weight (V, D), bias (V,). Products run in the type of ``features``, or autocast's.
    """
    features = _narrowed(features)
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    with torch.autocast(features.device.type, enabled=False):
        return _scores(features, cast_once(weight, features.dtype), bias.to(wide)).log_softmax(1)


def _narrowed(features: Tensor) -> Tensor:
    """In the type of autocast's products, where it is on."""
    device = features.device.type
    if torch.is_autocast_enabled(device) and features.dtype != torch.float64:
        return features.to(torch.get_autocast_dtype(device))
    return features
