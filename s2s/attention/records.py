"""Records: what coverage tells the score of the past of each source position.

    sum         C_tj = cov_tj = sum_{t' < t} a_t'j                                                 See et al. 2017
    fertility   C_tj = cov_tj / Phi_j,   Phi_j = N sigma(u . h_j)                                  Tu et al. 2016
    neural      C_t+1,j = GRU(C_tj, [a_tj ; h_j ; q_t])                                            Tu et al. 2016

Phi_j is how many words a source word is expected to become, N at most. The GRU is the one
of `s2s.models.recurrence`, of few units for each position; q_t is the query that a_t answered.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from s2s.attention.normalise import wide
from s2s.interfaces import Memory
from s2s.settings import Settings, by_name
from s2s.tree import Tree


class Record(nn.Module, ABC):
    """Tells ``width`` numbers of each position."""

    width = 1

    def prepare(self, memory: Memory) -> Tree:
        """What is computed once per sentence."""
        return ()

    def start(self, memory: Memory) -> Tree:
        """What is kept before the first step."""
        return ()

    @abstractmethod
    def told(self, covered: Tensor, kept: Tree, prepared: Tree) -> Tensor:
        """C (B, S, width), given the sum of the weights so far (B, S)."""

    def after(self, kept: Tree, weights: Tensor, query: Tensor, prepared: Tree) -> Tree:
        """What is kept when a query (B, 1, H) has been answered with weights (B, S)."""
        return kept


class Sum(Record):
    """The weights so far, added up."""

    def told(self, covered: Tensor, kept: Tree, prepared: Tree) -> Tensor:
        return covered.unsqueeze(-1)


class Fertility(Record):
    """The same, of the words that the position is expected to become."""

    def __init__(self, memory_size: int, most: float) -> None:
        super().__init__()
        self.most, self.project = most, nn.Linear(memory_size, 1, bias=False)

    def prepare(self, memory: Memory) -> Tensor:
        """Phi (B, S, 1)."""
        return self.most * torch.sigmoid(wide(self.project(memory.values)))

    def told(self, covered: Tensor, kept: Tree, prepared: Tree) -> Tensor:
        told: Tensor = covered.unsqueeze(-1) / wide(prepared).clamp_min(1e-6)  # fp16 may have made a zero of it
        return told


class Neural(Record):
    """A few recurrent units for each position, the same ones everywhere."""

    def __init__(self, query_size: int, memory_size: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.weight, self.query = nn.Linear(1, 3 * width, bias=False), nn.Linear(query_size, 3 * width, bias=False)
        self.memory, self.past = nn.Linear(memory_size, 3 * width), nn.Linear(width, 3 * width)

    def prepare(self, memory: Memory) -> Tensor:
        """What h decides of the gates (B, S, 3 width)."""
        of_memory: Tensor = self.memory(memory.values)
        return of_memory

    def start(self, memory: Memory) -> Tensor:
        return torch.zeros_like(wide(memory.values[..., :1])).repeat(1, 1, self.width)

    def told(self, covered: Tensor, kept: Tree, prepared: Tree) -> Tensor:
        own: Tensor = kept
        return own

    def after(self, kept: Tree, weights: Tensor, query: Tensor, prepared: Tree) -> Tensor:
        by_input = wide(prepared + self.weight(weights.unsqueeze(-1)) + self.query(query))
        by_past = wide(self.past(kept))
        reset, keep = torch.sigmoid((by_input + by_past)[..., : 2 * self.width]).chunk(2, -1)
        new = torch.tanh(by_input[..., 2 * self.width :] + reset * by_past[..., 2 * self.width :])
        return torch.lerp(new, kept, keep)


class SumSettings(Settings):
    """The weights so far, added up (See 2017; Tu 2016 without fertility)."""

    kind: Literal["sum"]

    def build(self, query_size: int, memory_size: int) -> Sum:
        return Sum()


class FertilitySettings(Settings):
    """The weights so far, divided by how many words the position is expected to become (Tu 2016)."""

    kind: Literal["fertility"]
    most: Annotated[float, Field(gt=0)] = 2.0
    """Words that a position can become at most."""

    def build(self, query_size: int, memory_size: int) -> Fertility:
        return Fertility(memory_size, self.most)


class NeuralSettings(Settings):
    """Recurrent units for each position, that learn what to remember (Tu 2016)."""

    kind: Literal["neural"]
    size: Annotated[int, Field(ge=1)] = 10
    """How many."""

    def build(self, query_size: int, memory_size: int) -> Neural:
        return Neural(query_size, memory_size, self.size)


AnyRecord = Annotated[
    Annotated[SumSettings | FertilitySettings | NeuralSettings, Field(discriminator="kind")],
    BeforeValidator(by_name),
]
"""A record's name, or a mapping with its ``kind`` and options."""
