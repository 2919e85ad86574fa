"""Random translations: each word drawn from the model's distribution, sharpened and cut as the settings say.

A draw is a function of the seed, the sentence's number and part, the number of the draw and the step: the company of a
sentence, its place in the batch and how many draws are asked for change nothing. Philox, a counter-based generator
(Salmon et al. 2011), gives one uniform number per step, and the word is the one at which the cumulative distribution
passes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from s2s.search.choice import best_columns
from s2s.settings import Settings


class SamplingSettings(Settings):
    """How words are drawn."""

    temperature: float = Field(1.0, ge=1e-6, le=100)
    """Log-probabilities are divided by it: below 1 likely words become likelier, near 0 it is greedy search."""
    top_k: int = Field(0, ge=0, le=1_000_000)
    """Draw from this many most probable words only (Fan et al. 2018); 0: from all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the fewest most probable words that together have this probability (Holtzman et al. 2020), after
    temperature and top_k."""
    seed: int = Field(1, ge=0, lt=2**63)
    """Another seed draws other translations."""


def uniforms(seed: int, sentences: Sequence[tuple[int, int]], draws: int, longest: int, device: torch.device) -> Tensor:
    """(B * draws, longest) uniform numbers in [0, 1), float32: the draws of ``sentences[0]``, a number and a part of
    that sentence, and so on."""
    rows = [
        np.random.Philox(key=[seed, number], counter=[0, draw, part, 0]).random_raw(longest)
        for number, part in sentences
        for draw in range(draws)
    ]
    # The highest 24 bits are a float32 exactly; more would round some numbers up to 1.
    return torch.from_numpy(((np.stack(rows) >> np.uint64(40)) / 2**24).astype(np.float32)).to(device)


def drawn(totals: Tensor, uniform: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """The word at which each of ``uniform`` (n,) is passed: its total, NaN where there is any, and its id, (n, 1) each.

    ``totals`` (n, V) are log-probabilities up to a constant. Words stand in the order of their ids; where unlikely ones
    are cut off, in the order of their probabilities, ties by the lowest id.
    """
    peak = totals.amax(1, keepdim=True)
    scores = (totals - peak.masked_fill(peak == -torch.inf, 0.0)) / settings.temperature
    column = torch.arange(totals.size(1), device=totals.device).expand_as(totals)
    if settings.top_k or settings.top_p < 1:
        scores, column = best_columns(scores, settings.top_k or totals.size(1))
    probabilities = scores.softmax(1)
    if settings.top_p < 1:
        before = probabilities.cumsum(1) - probabilities
        probabilities = probabilities * (before < settings.top_p)
    passed = probabilities.cumsum(1)
    # A number below 1 of the mass stays below it, so that some word passes; a word of probability 0 never does.
    place = (passed <= uniform.unsqueeze(1) * passed[:, -1:]).sum(1, keepdim=True)
    word = column.gather(1, place)
    return torch.where(peak.isnan(), peak, totals.gather(1, word)), word
