"""No attention: the plain encoder-decoder, the bottleneck that attention was invented for.

With ``context: none`` the only path from the source is the decoder's first state (Sutskever et al. 2014). With
``context: summary`` a fixed summary c = tanh(V [forward last; backward first]) is read at every step (Cho et al. 2014).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from s2s.interfaces import Attended, Attention, Memory
from s2s.settings import AttentionSettings
from s2s.tree import Tree


class NoContext(Attention):
    """Reads nothing: a context of width zero, and no weights."""

    context_size = 0

    def forward(self, query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        return Attended(memory.values.new_empty(query.size(0), query.size(1), 0), None), state


class Summary(Attention):
    """Reads the same summary of the whole sentence at every step; no weights."""

    def __init__(self, memory_size: int) -> None:
        super().__init__()
        self.context_size = memory_size
        self.project = nn.Linear(memory_size, memory_size)

    def prepare(self, memory: Memory) -> Memory:
        assert memory.final is not None, "see NoneSettings.reads_final"
        top = memory.final.hidden[:, -1]  # (B, M)
        return memory._replace(keys=torch.tanh(self.project(top)).unsqueeze(1))  # (B, 1, M)

    def forward(self, query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        return Attended(memory.keys.expand(-1, query.size(1), -1), None), state


class NoneSettings(AttentionSettings):
    """No attention (Sutskever 2014), or one fixed summary of the sentence at every step (Cho 2014)."""

    kind: Literal["none"]
    context: Literal["none", "summary"] = "none"
    """none: the source is seen only through the decoder's first state; summary: also at every step."""

    @property
    def reads_final(self) -> bool:
        return self.context == "summary"

    def refusal(self, wiring: str, input_feeding: bool) -> str | None:
        if wiring == "cgru" and self.context == "none":
            return "the second cell of a cgru reads nothing but the context; use context: summary, or another wiring"
        return None

    def refusal_as_head(self) -> str:
        return (
            "heads that read nothing leave a Transformer blind to its source: it has no first state through which "
            "attention none could tell it anything"
        )

    def build(self, query_size: int, memory_size: int) -> Attention:
        return NoContext() if self.context == "none" else Summary(memory_size)
