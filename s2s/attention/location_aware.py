"""Location-aware attention: the score sees where the last step looked, by a convolution over its weights.

    f_t  = F * a_{t-1}                                   k filters over the weights of the step before
    e_tj = v . tanh(W s_t + U h_j + V f_tj + b)
    a_t  = normalise(sharpness x e_t),                   c_t = sum_j a_tj h_j

Chorowski et al. 2015, section 2. The filters let a step say "a little further than the last time", which content alone
cannot where a word occurs twice. a_0 = 0: nothing was read before the first word. (Luong's score called location is
another thing: it looks at the decoder's state alone.)
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from s2s.attention.normalise import Normaliser, normalise, wide
from s2s.attention.scores import Additive
from s2s.interfaces import Attended, Attention, Memory
from s2s.products import of_rows
from s2s.settings import AttentionSettings
from s2s.tree import Tree


class LocationAware(Attention):
    """Soft attention over all positions whose additive score also reads the weights of the step before."""

    def __init__(self, score: Additive, memory_size: int, settings: LocationAwareSettings) -> None:
        super().__init__()
        self.score, self.context_size = score, memory_size
        self.sharpness, self.normaliser = settings.sharpness, settings.normaliser
        width = 2 * settings.reach + 1
        self.filters = nn.Conv1d(1, settings.filters, width, padding=settings.reach, bias=False)
        self.location = nn.Linear(settings.filters, score.vector.numel())  # V and b

    def prepare(self, memory: Memory) -> Memory:
        return memory._replace(keys=self.score.keys(memory.values))

    def start(self, memory: Memory) -> Tensor:
        return torch.zeros_like(wide(memory.values[..., 0]))  # (B, S)

    def forward(self, query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        mask, rows = memory.mask.unsqueeze(1), []  # (B, 1, S)
        for one in query.unsqueeze(2).unbind(1):  # (B, 1, H)
            seen = self.filters(state.unsqueeze(1)).transpose(1, 2)  # (B, S, filters)
            scores = wide(self.score(one, memory.keys + self.location(seen)))  # (B, 1, S)
            row = normalise(self.sharpness * scores, mask, self.normaliser)
            rows.append(row)
            state = row.squeeze(1)
        weights = torch.cat(rows, 1)  # (B, T, S)
        context = of_rows(weights, memory.values)  # (B, T, M)
        return Attended(context, weights), state


class LocationAwareSettings(AttentionSettings):
    """Attend to every position, seeing where the last step looked (Chorowski et al. 2015)."""

    kind: Literal["location-aware"]
    size: Annotated[int, Field(ge=1)] | None = None
    """Width of the layer inside the score; by default the query's."""
    filters: Annotated[int, Field(ge=1)] = 10
    """Filters of the convolution over the last weights."""
    reach: Annotated[int, Field(ge=1)] = 3
    """Positions to either side that a filter sees."""
    sharpness: Annotated[float, Field(gt=0.0)] = 1.0
    """Factor on the scores; above 1 the weights are sharper, below 1 flatter."""
    normaliser: Normaliser = "softmax"
    """Scores to weights: softmax, or sparsemax and entmax15, which give exact zeros."""

    def refusal_as_head(self) -> str:
        return (
            "attention location-aware scores with the weights of the step before, but the heads of a Transformer "
            "attend at all target positions at once"
        )

    def build(self, query_size: int, memory_size: int) -> LocationAware:
        size = self.size or query_size
        score = Additive(query_size, memory_size, size, normed=False, identity_source=False)
        return LocationAware(score, memory_size, self)
