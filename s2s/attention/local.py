"""Local attention: only a window of the source is read at each target position (Luong et al. 2015, section 3.2).

    local-m   p_t = min(t, S)                             a = align
    local-p   p_t = S sigma(v . tanh(W h_t))              a_s = align_s exp(-(s - p_t)^2 / (2 sigma^2)), sigma = D / 2

    align = normalise(e) over the s with |s - c_t| <= D, 1 <= s <= S, and exactly zero elsewhere;  c = sum_s a_s h_s

Positions s and t are counted from 1, as in the paper. The window's centre c_t is p_t, in local-p rounded down and kept
within 1 .. S.

S counts all rows of the memory, and the last of them is the source's end of sentence: it can be a centre like any other
position, and the target's own end of sentence has somewhere to point. In the authors' code the memory has no such row
and its S none either; their predicted position is sigma(.) times one less than the length with the end of sentence,
plus 1, which is ``position: code`` with the S above.

D may be a ramp over the first updates: a wide window, in which the scores find what to look for, and then a narrow one.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from s2s.analysis.diagnostics import from_trace, summed
from s2s.attention.global_ import read
from s2s.attention.normalise import AnyFilter, Normaliser, normalise, renormalised, wide
from s2s.attention.scores import AnyScore, GeneralSettings, Score
from s2s.interfaces import Attended, Attention, Gold, Memory, Totals
from s2s.schedules import Ramp, ends, whole_at
from s2s.settings import AttentionSettings
from s2s.tree import Tree

Formula = Literal["paper", "code"]
Gauss = Literal["post", "pre", "renorm", "off"]
_WIDEST = 1_000_000


class _Local(Attention):
    """A score, a normaliser, a filter and a window; where the window stands is the two kinds' own."""

    window: int | Tensor
    """D. Of a ramp it is a buffer, for a translation reads the window that the checkpoint was trained with."""

    def __init__(
        self,
        score: Score,
        normaliser: Normaliser,
        memory_size: int,
        window: int | Ramp,
        filter: AnyFilter | None = None,
    ) -> None:
        super().__init__()
        self.score, self.normaliser, self.filter, self.context_size = score, normaliser, filter, memory_size
        self.schedule = window
        if isinstance(window, Ramp):
            self.register_buffer("window", torch.tensor(whole_at(window, 0)))
        else:
            self.window = window

    def set_update(self, update: int) -> None:
        if isinstance(self.window, Tensor):
            self.window.fill_(whole_at(self.schedule, update))

    def prepare(self, memory: Memory) -> Memory:
        return memory._replace(keys=self.score.keys(memory.values))

    def _inside(self, scores: Tensor, centre: Tensor, memory: Memory) -> Tensor:
        """True (B, T, S) where ``centre`` (B, T) lets it be read; a score of -inf says itself that it cannot be."""
        places = torch.arange(1, scores.size(-1) + 1, device=centre.device, dtype=centre.dtype)  # (S,)
        near = (places - centre.unsqueeze(-1)).abs() <= self.window  # (B, T, S)
        return near & memory.mask.unsqueeze(1) & (scores != -torch.inf)

    def _trace(self, centre: Tensor, scores: Tensor, inside: Tensor, memory: Memory) -> dict[str, Tensor]:
        """For who wants it: ``centre`` and ``window``, p_t and D, and ``in_window``, all (B, T).

        The last is the mass that the scores give the window: the part of the weights which would stand there if the
        same scores were normalised over the sentence.
        """
        if "trace" not in memory.want:
            return {}
        everywhere = normalise(scores, memory.mask.unsqueeze(1), self.normaliser)  # (B, T, S)
        window = torch.full_like(centre, int(self.window))
        return {"centre": centre, "window": window, "in_window": (everywhere * inside).sum(-1)}

    def diagnostics(self, attended: Attended, memory: Memory, gold: Gold) -> Totals:
        """``in_window``; with a filter ``kept``, the mass that it left; ``centre``, p_t / S; and how far that moves.

        ``centre_step`` is |p_t - p_{t-1}|: a predicted position that stands still has 0.
        """
        centre = attended.trace["centre"].double()  # (B, T)
        return from_trace(attended, gold.real, "in_window", "kept") | {
            "centre": summed(centre / memory.lengths.unsqueeze(1), gold.real),
            "centre_step": summed((centre[:, 1:] - centre[:, :-1]).abs(), gold.real[:, 1:]),
        }


class LocalMonotonic(_Local):
    """local-m: the window moves one position with every target word and stays at the end of the source.

    The authors' code has this last rule too; without it a target longer than S + D would find an empty window. The
    state is the number of target positions passed (B,).
    """

    def start(self, memory: Memory) -> Tensor:
        return torch.zeros_like(memory.lengths)

    def forward(self, query: Tensor, memory: Memory, state: Tensor) -> tuple[Attended, Tree]:
        scores = self.score(query, memory.keys)  # (B, T, S)
        place = state.unsqueeze(1) + torch.arange(1, query.size(1) + 1, device=state.device)  # (B, T)
        centre = torch.minimum(place, memory.lengths.unsqueeze(1))
        inside = self._inside(scores, centre, memory)
        weights = normalise(scores, inside, self.normaliser)
        return read(weights, memory, self.filter, self._trace(centre, scores, inside, memory)), place[:, -1]


class Predicted(nn.Module):
    """p_t = S sigma(v . tanh(W h_t)), in [0, S]; the released code's is (S - 1) sigma(.) + 1, in [1, S]."""

    def __init__(self, size: int, formula: Formula) -> None:
        super().__init__()
        self.hidden = nn.Linear(size, size, bias=False)
        self.vector = nn.Parameter(torch.empty(size).uniform_(-1, 1) * math.sqrt(3.0 / size))
        self.formula = formula

    def forward(self, query: Tensor, lengths: Tensor) -> Tensor:
        """Positions (B, T), counted from 1, in float32 or wider, of queries (B, T, H) to sentences of lengths (B,)."""
        share = torch.sigmoid((torch.tanh(wide(self.hidden(query))) * self.vector).sum(-1))  # (B, T)
        last = lengths.to(share.dtype).unsqueeze(1)
        return share * last if self.formula == "paper" else share * (last - 1) + 1


class LocalPredictive(_Local):
    """local-p: the centre is predicted from the query, and a Gaussian round it favours what is near.

    ``gauss: post`` is the paper's and does not renormalise, so the weights sum to less than one. W and v learn through
    the Gaussian alone, since the window moves by whole positions; where it is off nothing teaches them, and they are
    marked as not to be learned.
    """

    def __init__(
        self,
        score: Score,
        normaliser: Normaliser,
        memory_size: int,
        window: int | Ramp,
        predicted: Predicted,
        gauss: Gauss,
        filter: AnyFilter | None = None,
    ) -> None:
        super().__init__(score, normaliser, memory_size, window, filter)
        self.predicted, self.gauss = predicted.requires_grad_(gauss != "off"), gauss

    def forward(self, query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        scores = self.score(query, memory.keys)  # (B, T, S)
        position = self.predicted(query, memory.lengths)  # (B, T)
        centre = torch.minimum(position.detach().floor().clamp(min=1), memory.lengths.unsqueeze(1))
        inside = self._inside(scores, centre, memory)
        trace = self._trace(position, scores, inside, memory)
        if self.gauss == "pre":
            # Scores that are not read may be infinite, and 0 x infinity would reach the gradient of the position.
            scores = wide(scores).masked_fill(~inside, 0.0) * self._bell(position, scores.size(-1))
        weights = normalise(scores, inside, self.normaliser)
        if self.gauss in ("post", "renorm"):
            weights = weights * self._bell(position, scores.size(-1))
        if self.gauss == "renorm":
            weights = renormalised(weights)
        return read(weights, memory, self.filter, trace), state

    def _bell(self, position: Tensor, count: int) -> Tensor:
        """exp(-(s - p)^2 / (2 sigma^2)) with sigma = D / 2, for p (B, T) at every s in 1 .. count: (B, T, S)."""
        places = torch.arange(1, count + 1, device=position.device, dtype=position.dtype)
        return torch.exp(-0.5 * ((places - position.unsqueeze(-1)) / (self.window / 2)) ** 2)


def _fits(lowest: int) -> AfterValidator:
    """A window, or all of a ramp, is between ``lowest`` and `_WIDEST`."""

    def check(value: int | Ramp) -> int | Ramp:
        if min(ends(value)) < lowest or max(ends(value)) > _WIDEST:
            raise ValueError(f"must be between {lowest} and {_WIDEST}")
        return value

    return AfterValidator(check)


class LocalMonotonicSettings(AttentionSettings):
    """Attend to a window that moves one source position with every target word (local-m, Luong 2015)."""

    kind: Literal["local-m"]
    window: Annotated[Annotated[int, Field(ge=0, le=_WIDEST)] | Ramp, _fits(0)] = 10
    """D: positions read on either side of the centre; 0 reads the centre alone. A number, or a ramp, whose values are
    rounded."""
    score: AnyScore = GeneralSettings(kind="general")
    """How a position in the window is scored: dot, general, additive (concat), location or cosine."""
    normaliser: Normaliser = "softmax"
    """Scores in the window to weights: softmax, or sparsemax and entmax15, which give exact zeros."""
    filter: AnyFilter | None = None
    """Weights that are taken away after normalising: all but the k largest (topk), or all below theta (threshold)."""

    def refusal_as_head(self) -> None:
        return None

    def build(self, query_size: int, memory_size: int) -> LocalMonotonic:
        score = self.score.build(query_size, memory_size)
        return LocalMonotonic(score, self.normaliser, memory_size, self.window, self.filter)


class LocalPredictiveSettings(AttentionSettings):
    """Attend to a window round a predicted source position (local-p, Luong 2015)."""

    kind: Literal["local-p"]
    window: Annotated[Annotated[int, Field(ge=1, le=_WIDEST)] | Ramp, _fits(1)] = 10
    """D: positions read on either side of the centre; the Gaussian's standard deviation is D / 2. A number, or a ramp,
    whose values are rounded."""
    position: Formula = "paper"
    """The predicted position, given a share between 0 and 1: S times it (paper), or S - 1 times it, plus 1 (code)."""
    gauss: Gauss = "post"
    """Where the Gaussian joins: on the weights, which then sum to less than one (post, the paper), on them with
    renormalising (renorm), on the scores (pre, the authors' later code), or nowhere (off: the centre is then as first
    drawn, for comparison)."""
    score: AnyScore = GeneralSettings(kind="general")
    """How a position in the window is scored: dot, general, additive (concat), location or cosine."""
    normaliser: Normaliser = "softmax"
    """Scores in the window to weights: softmax, or sparsemax and entmax15, which give exact zeros."""
    filter: AnyFilter | None = None
    """Weights that are taken away last, after the Gaussian: all but the k largest (topk), or all below theta
    (threshold)."""

    def refusal_as_head(self) -> None:
        return None

    def build(self, query_size: int, memory_size: int) -> LocalPredictive:
        score, predicted = self.score.build(query_size, memory_size), Predicted(query_size, self.position)
        return LocalPredictive(
            score, self.normaliser, memory_size, self.window, predicted, self.gauss, filter=self.filter
        )
