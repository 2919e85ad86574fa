"""Coverage: a wrapper round another mechanism that remembers how much each word was attended to already.

    cov_t = sum_{t' < t} a_t'
    e_tj  = v . tanh(W s_t + U h_j + w C_tj)            the score of the mechanism inside, C = cov
    loss  = weight x sum_j min(a_tj, cov_tj)            at every target position, added to the likelihood's

See et al. 2017, section 2.3 (their bias b inside the tanh is the one of a normed score). The first term tells the
mechanism what it has read, the second punishes reading it again. w starts at zero, so that training begins with the
mechanism inside as it is. The paper adds the loss for the last hundredth of the updates, and finds that from the start
it is in the way: ``weight`` can be a ramp. What the score is told can be more than the sum (Tu et al. 2016, who have no
loss for it): see `s2s.attention.records`, where C is one number or several, and w a vector for each. Coverage joins the
keys, which are inside the tanh: every other mechanism whose score is additive can be wrapped, with its own state,
mixture and loss terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Generic, Literal, NamedTuple, Self, TypeVar

import torch
from pydantic import AfterValidator, model_validator
from torch import Tensor, nn

from s2s.analysis.diagnostics import from_trace
from s2s.attention.normalise import wide
from s2s.attention.records import AnyRecord, Record, SumSettings
from s2s.attention.scores import Additive, AdditiveSettings
from s2s.interfaces import Attended, Attention, Gold, Memory, Told, Totals
from s2s.schedules import Ramp, ends, value_at
from s2s.settings import AttentionSettings
from s2s.tree import Tree, join_time

A = TypeVar("A", bound=AttentionSettings)

REFUSED = {
    "none": "it has no weights that could be added up",
    "monotonic": "it never goes back to a word, so there is nothing to read twice",
    "mocha": "it never goes back past a chunk, so there is next to nothing to read twice",
    "location-aware": "its score reads the weights of the step before already",
    "hmm": "its jumps start from what the step before read already",
}
"""Kinds that coverage makes no sense round, and why."""


class CoverageState(NamedTuple):
    """Where coverage stands."""

    covered: Tensor
    """cov (B, S)."""
    kept: Tree
    """What the record keeps."""
    inner: Tree
    """The state of the mechanism inside."""


class Coverage(Attention):
    """``inner`` with a record in its additive score of width ``size``, and coverage in the loss with ``weight``."""

    def __init__(self, inner: Attention, record: Record, size: int, weight: float | Ramp) -> None:
        super().__init__()
        self.inner, self.record, self.schedule, self.weight = inner, record, weight, value_at(weight, 0)
        self.context_size, self.asks_gold, self.draws = inner.context_size, inner.asks_gold, inner.draws
        self.listens, self.hindsight = inner.listens, inner.hindsight
        self.vector = nn.Parameter(torch.zeros(record.width * size))  # one after the other: no matrix to be drawn anew

    def prepare(self, memory: Memory) -> Memory:
        prepared = self.inner.prepare(memory)
        return prepared._replace(keys=(prepared.keys, self.record.prepare(memory)))

    def _inside(self, memory: Memory) -> Memory:
        return memory._replace(keys=memory.keys[0])

    def start(self, memory: Memory) -> CoverageState:
        covered = torch.zeros_like(wide(memory.values[..., 0]))
        return CoverageState(covered, self.record.start(memory), self.inner.start(self._inside(memory)))

    def listen(self, told: Told, memory: Memory, state: CoverageState) -> tuple[Tensor | None, Tree]:
        context, inner = self.inner.listen(told, self._inside(memory), state.inner)
        return context, state._replace(inner=inner)

    def _of_record(self, told: Tensor) -> Tensor:
        """What C (B, S, width) adds inside the tanh, (B, S, A); sums are not rounded by autocast."""
        with torch.autocast(told.device.type, enabled=False):
            return told @ self.vector.view(told.size(-1), -1)

    def forward(self, query: Tensor, memory: Memory, state: CoverageState) -> tuple[Attended, Tree]:
        (plain, prepared), (covered, kept, inner) = memory.keys, state
        steps: list[Attended] = []
        for one in query.unsqueeze(2).unbind(1):  # (B, 1, H)
            keys = plain + self._of_record(self.record.told(covered, kept, prepared))  # (B, S, A)
            attended, inner = self.inner(one, memory._replace(keys=keys), inner)
            weights = attended.weights.squeeze(1)  # (B, S)
            again = torch.minimum(weights, covered).sum(-1, keepdim=True)  # (B, 1)
            steps.append(attended._replace(trace=attended.trace | {"again": again}))
            covered, kept = covered + weights, self.record.after(kept, weights, one, prepared)
        return join_time(steps), CoverageState(covered, kept, inner)

    def penalties(self, attended: Attended, memory: Memory, gold: Gold) -> dict[str, Tensor]:
        return self.inner.penalties(attended, self._inside(memory), gold) | {
            "coverage": self.weight * attended.trace["again"]
        }

    def statistics(self, attended: Attended, memory: Memory, gold: Gold) -> Totals:
        return self.inner.statistics(attended, self._inside(memory), gold)

    def diagnostics(self, attended: Attended, memory: Memory, gold: Gold) -> Totals:
        """Those of the mechanism inside, and ``again``: the weight on words that were read already."""
        inside = self.inner.diagnostics(attended, self._inside(memory), gold)
        return inside | from_trace(attended, gold.real, "again")

    def after_update(self, totals: Mapping[str, tuple[float, float]]) -> None:
        self.inner.after_update(totals)

    def set_update(self, update: int) -> None:
        self.weight = value_at(self.schedule, update)
        self.inner.set_update(update)


def _not_negative(value: float | Ramp) -> float | Ramp:
    if min(ends(value)) < 0:
        raise ValueError("must not be below 0, from start to end")
    return value


class CoverageSettings(AttentionSettings, Generic[A]):
    """Another mechanism that is told what it has read already, and punished for reading it again (See et al. 2017)."""

    kind: Literal["coverage"]
    inner: A
    """The mechanism; its score is additive."""
    weight: Annotated[float | Ramp, AfterValidator(_not_negative)] = 1.0
    """What reading again counts in the loss, beside the likelihood; a number, or a ramp."""
    record: AnyRecord = SumSettings(kind="sum")
    """What the score is told of the past of a position: sum, fertility or neural."""

    @property
    def reads_final(self) -> bool:
        return self.inner.reads_final

    @property
    def bound(self) -> str | None:
        return self.inner.bound

    def refusal(self, wiring: str, input_feeding: bool) -> str | None:
        return self.inner.refusal(wiring, input_feeding)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        kind: str = self.inner.kind  # type: ignore[attr-defined]
        if kind in REFUSED:
            raise ValueError(f"coverage makes no sense round kind: {kind}, for {REFUSED[kind]}")
        if not isinstance(getattr(self.inner, "score", None), AdditiveSettings):
            raise ValueError("coverage stands inside the tanh of the additive score; write inner: {score: additive}")
        return self

    def refusal_as_head(self) -> str:
        return (
            "coverage adds up the weights of all steps before, but the heads of a Transformer attend at all target "
            "positions at once"
        )

    def build(self, query_size: int, memory_size: int) -> Coverage:
        inner: Attention = self.inner.build(query_size, memory_size)  # type: ignore[attr-defined]
        (score,) = (module for module in inner.modules() if isinstance(module, Additive))
        record = self.record.build(query_size, memory_size)
        return Coverage(inner, record, score.vector.numel(), self.weight)
