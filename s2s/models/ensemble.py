"""Several models as one: each steps on its own, their next-word distributions are averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from s2s.interfaces import NOTHING, Before, Searchable
from s2s.tree import Tree


class Ensemble:
    """A `Searchable` of models with one vocabulary: mean probability, or mean log-probability made to sum to one."""

    def __init__(self, models: Sequence[Searchable], average: Literal["probability", "log"] = "probability") -> None:
        if not models:
            raise ValueError("an ensemble needs at least one model")
        self.models, self.average = list(models), average

    @property
    def sentences_before(self) -> int:
        """The most that one of the models reads."""
        return max(model.sentences_before for model in self.models)

    @property
    def same_age(self) -> bool:
        """Whether one of the models wants it."""
        return any(model.same_age for model in self.models)

    @property
    def grows(self) -> bool:
        """Whether that of one of the models does."""
        return any(model.grows for model in self.models)

    def start(
        self,
        source: Tensor,
        lengths: Tensor,
        want: frozenset[str] = NOTHING,
        places: int = 1,
        before: Before | None = None,
    ) -> tuple[Tree, Tree]:
        """Memories and states of all models, side by side."""
        started = [model.start(source, lengths, want, places, before) for model in self.models]
        return tuple(memory for memory, _ in started), tuple(state for _, state in started)

    def step(self, token: Tensor, memory: Tree, state: Tree) -> tuple[Tensor, Tensor | None, Tree]:
        """One step of every model; attention is the mean over those that have any."""
        parts = [model.step(token, m, s) for model, m, s in zip(self.models, memory, state, strict=True)]
        words = torch.stack([part[0] for part in parts])  # (models, B, V)
        if self.average == "probability":
            together = words.logsumexp(0) - math.log(len(parts))
        else:
            together = words.mean(0).log_softmax(-1)
        shown = [part[1] for part in parts if part[1] is not None]
        return together, torch.stack(shown).mean(0) if shown else None, tuple(part[2] for part in parts)
