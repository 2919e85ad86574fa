"""Normalisers: scores over source positions become weights, exactly zero where there is nothing to read."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normaliser = Literal["softmax", "sparsemax", "entmax15"]


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension of ``scores`` (..., S) where ``mask`` is True; float32 or wider.

    Masked entries are exactly 0, whatever stands there (NaN included), in the value and in the gradient. A row with
    nothing to read is all zeros: neither NaN nor a uniform leak over padding.
    """
    return masked_log_softmax(scores, mask).exp()


def masked_log_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Logarithm of `masked_softmax`: -inf at masked entries, without a NaN gradient there."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    readable = mask.any(-1, keepdim=True)
    # A row with nothing to read gets one finite row of its own, so that no NaN is born in the backward pass.
    scores = scores.masked_fill(~mask & readable, -torch.inf).masked_fill(~readable, 0.0)
    return scores.log_softmax(-1).masked_fill(~mask, -torch.inf)


def _sparse(scores: Tensor, mask: Tensor, kind: Literal["sparsemax", "entmax15"]) -> Tensor:
    from entmax import entmax15, sparsemax

    function = sparsemax if kind == "sparsemax" else entmax15
    mask = mask & (scores != -torch.inf)  # a score may say itself that a position cannot be read
    scores = scores if scores.dtype == torch.float64 else scores.float()
    readable = mask.any(-1, keepdim=True)
    # Far below every real score but finite: entmax subtracts the maximum and multiplies gradients by zero.
    lowest = scores.masked_fill(~mask, torch.inf).amin(-1, keepdim=True).masked_fill(~readable, 0.0).detach()
    scores = torch.where(mask, scores, lowest - 10.0)
    # A score that is not finite would end in an index error here; it comes out as NaN, for the loss to tell of it.
    lost = ~scores.isfinite().all(-1, keepdim=True)
    weights: Tensor = function(scores.masked_fill(lost, 0.0), dim=-1)
    return weights.masked_fill(lost, torch.nan).masked_fill(~mask, 0.0)


def normalise(scores: Tensor, mask: Tensor, kind: Normaliser) -> Tensor:
    """Weights (..., S) over the real positions: softmax, sparsemax (Martins 2016) or 1.5-entmax (Peters 2019)."""
    return masked_softmax(scores, mask) if kind == "softmax" else _sparse(scores, mask, kind)
