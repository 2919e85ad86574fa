"""Normalisers and filters: scores over source positions become weights, exactly zero where nothing is to be read.

A filter takes weights away after the normaliser; what is left is still averaged, so this is soft attention:

    topk        a_j stays where it is one of the k largest
    threshold   a_j stays where a_j >= theta; the largest always stays

and with ``renormalise`` the rest is divided by its sum. Then the result is that of a softmax over the kept scores
alone, and only those get a gradient; without it the context shrinks by the mass that was taken away.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from s2s.settings import Settings

Normaliser = Literal["softmax", "sparsemax", "entmax15"]


def wide(values: Tensor) -> Tensor:
    """The same numbers in float32 or wider: what scores, weights and positions are computed in."""
    return values if values.dtype == torch.float64 else values.float()


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension of ``scores`` (..., S) where ``mask`` is True; float32 or wider.

    Masked entries are exactly 0, whatever stands there (NaN included), in the value and in the gradient. A row with
    nothing to read is all zeros: neither NaN nor a uniform leak over padding.
    """
    return masked_log_softmax(scores, mask).exp()


def masked_log_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Logarithm of `masked_softmax`: -inf at masked entries, without a NaN gradient there."""
    scores = wide(scores)
    readable = mask.any(-1, keepdim=True)
    # A row with nothing to read gets one finite row of its own, so that no NaN is born in the backward pass.
    scores = scores.masked_fill(~mask & readable, -torch.inf).masked_fill(~readable, 0.0)
    return scores.log_softmax(-1).masked_fill(~mask, -torch.inf)


def _sparse(scores: Tensor, mask: Tensor, kind: Literal["sparsemax", "entmax15"]) -> Tensor:
    from entmax import entmax15, sparsemax

    function = sparsemax if kind == "sparsemax" else entmax15
    mask = mask & (scores != -torch.inf)  # a score may say itself that a position cannot be read
    scores = wide(scores)
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


def renormalised(weights: Tensor) -> Tensor:
    """Weights (..., S) divided by their sum; a row of zeros stays one."""
    total = weights.sum(-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1.0)


class TopKSettings(Settings):
    """Read only the k positions with the largest weights; of equal ones the first."""

    kind: Literal["topk"]
    k: Annotated[int, Field(ge=1)]
    """Positions that are kept; with 1 and renormalise the score learns nothing, since the weight is always 1."""
    renormalise: bool = True
    """Make what is kept sum to one again."""

    def keeps(self, weights: Tensor) -> Tensor:
        """True (..., S) where a weight stays."""
        if self.k >= weights.size(-1):
            return torch.ones_like(weights, dtype=torch.bool)
        best = weights.sort(dim=-1, descending=True, stable=True).indices[..., : self.k]
        return torch.zeros_like(weights, dtype=torch.bool).scatter(-1, best, True)


class ThresholdSettings(Settings):
    """Read only positions whose weight is at least theta; the first of the largest is always kept."""

    kind: Literal["threshold"]
    theta: Annotated[float, Field(ge=0.0, le=1.0)]
    """The smallest weight that is kept."""
    renormalise: bool = True
    """Make what is kept sum to one again."""

    def keeps(self, weights: Tensor) -> Tensor:
        """True (..., S) where a weight stays."""
        return (weights >= self.theta).scatter(-1, weights.argmax(-1, keepdim=True), True)


AnyFilter = Annotated[TopKSettings | ThresholdSettings, Field(discriminator="kind")]
"""What is taken away from the weights after normalising."""


def filtered(weights: Tensor, by: AnyFilter) -> tuple[Tensor, Tensor]:
    """The weights (..., S) that a filter leaves, and the mass (...) it kept, before any renormalising."""
    left = weights.masked_fill(~by.keeps(weights.detach()), 0.0)
    return (renormalised(left) if by.renormalise else left), left.sum(-1)
