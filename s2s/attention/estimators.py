"""Estimators: how hard attention learns where to look, although reading one position has no gradient of its own.

alpha is the prior over source positions z and l_z = log p(right word | h_z). All climb Jensen's bound of the
log-likelihood, sum_z alpha_z l_z <= log sum_z alpha_z p(right word | h_z) (Xu et al. 2015, section 4.1):

    reinforce   reads h_z, z ~ alpha, and follows  grad l_z + weight x (l_z - b) grad log alpha_z  (Williams 1992);
                b = 0 (none), a running mean of l (moving, Xu 2015), or l at the soft context (self, Deng et al. 2018)
    gumbel      y = softmax((log alpha + g) / temperature), g_j = -log(-log u_j), and reads sum_j y_j h_j; or, straight
                through, h_j of the largest y_j, with the gradient of that sum  (Jang et al. 2017; Maddison et al. 2017)
    enumerate   asks the readout about every position, and follows the gradient of the bound itself

The first is unbiased at ``weight: 1`` and noisy, the second biased and calm, the third exact at S readouts a word.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple, Self

import torch
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from torch import Tensor, nn

from s2s.attention.normalise import masked_softmax
from s2s.draws import gumbel
from s2s.interfaces import Attended, Gold, Memory, Totals
from s2s.products import of_rows
from s2s.schedules import Ramp, ends, is_probability, value_at
from s2s.settings import Settings, by_name

# --- positions and contexts -------------------------------------------------------------------------------------------


def choose(log_weights: Tensor, noise: Tensor | None = None) -> Tensor:
    """Positions (B, T) of the largest of ``log_weights`` (B, T, S), plus noise; the lowest where there are several."""
    return (log_weights if noise is None else log_weights + noise).argmax(-1)


def mean_context(weights: Tensor, values: Tensor) -> Tensor:
    """The soft context (B, T, M): rows of ``values`` (B, S, M) weighted by (B, T, S)."""
    return of_rows(weights, values)


def row_context(choice: Tensor, values: Tensor) -> Tensor:
    """The rows (B, T, M) of ``values`` (B, S, M) at the positions ``choice`` (B, T), exactly as they are."""
    return values.gather(1, choice.unsqueeze(-1).expand(-1, -1, values.size(-1)))


# --- estimators -------------------------------------------------------------------------------------------------------


class Prior(NamedTuple):
    """Where a step would look: a distribution over source positions, float32 or wider."""

    log_weights: Tensor
    """(B, T, S), -inf at padding."""
    weights: Tensor
    """(B, T, S), zero at padding."""
    mask: Tensor
    """(B, 1, S) bool, True at real positions."""


class Reading(NamedTuple):
    """What a step reads in training."""

    context: Tensor
    """(B, T, M)."""
    trace: dict[str, Tensor]
    """What the estimator's own penalties need, (B, T, ...)."""


class Estimator(nn.Module, ABC):
    """What hard attention reads in training, and the terms of the loss that teach it where to look."""

    asks_gold = False
    """See `s2s.interfaces.Attention`."""
    draws = False
    """See `s2s.interfaces.Attention`."""
    feeds_mean = False
    """True where training feeds the recurrence the soft context, so that evaluation does so too."""

    def start(self, memory: Memory) -> Tensor | None:
        """Draws (B, ...) shared by all steps of a sentence."""
        return None

    @abstractmethod
    def read(self, prior: Prior, memory: Memory, drawn: Tensor | None) -> Reading:
        """The contexts of T steps, given what `start` drew."""

    def penalties(self, attended: Attended, memory: Memory, gold: Gold) -> dict[str, Tensor]:
        """Terms of the loss beside -log p(right word | what was read); ``trace["log_weights"]`` is the prior's."""
        return {}

    def statistics(self, attended: Attended, gold: Gold) -> Totals:
        """See `s2s.interfaces.Attention.statistics`."""
        return {}

    def after_update(self, totals: Mapping[str, tuple[float, float]]) -> None:
        """See `s2s.interfaces.Attention.after_update`."""

    def set_update(self, update: int) -> None:
        """See `s2s.interfaces.Attention.set_update`."""


class Reinforce(Estimator):
    """Reads the row of a sampled position; rewards the sample with the likelihood of the right word.

    The loss -l_z - weight (l_z - b) log alpha_z, with l_z - b detached, has the bound's gradient in expectation for
    every b that does not depend on z. With the probability ``soft_mixing`` a sentence reads the soft context at all its
    steps instead (Xu 2015, section 4.1): a coin per sentence, (B,) bool, thrown in `start`.
    """

    draws = True
    mean: Tensor
    """The moving baseline: the running mean of l, a buffer that only `after_update` changes."""

    def __init__(self, settings: ReinforceSettings) -> None:
        super().__init__()
        self.baseline, self.reward = settings.baseline, settings.reward
        self.weight, self.decay, self.schedule = settings.weight, settings.decay, settings.soft_mixing
        self.asks_gold = self.baseline == "self"
        if self.baseline == "moving":
            self.register_buffer("mean", torch.zeros(()))
        self.set_update(0)

    def set_update(self, update: int) -> None:
        self.soft_mixing = value_at(self.schedule, update)

    def start(self, memory: Memory) -> Tensor | None:
        if self.soft_mixing == 0:
            return None
        return torch.rand(memory.values.size(0), device=memory.values.device) < self.soft_mixing

    def read(self, prior: Prior, memory: Memory, drawn: Tensor | None) -> Reading:
        choice = choose(prior.log_weights, gumbel(prior.log_weights))  # (B, T)
        context, sampled = row_context(choice, memory.values), torch.ones_like(choice, dtype=torch.bool)
        trace = {"choice": choice}
        if drawn is not None or self.baseline == "self":
            mean = mean_context(prior.weights, memory.values)
            if drawn is not None:
                context = torch.where(drawn.view(-1, 1, 1), mean, context)
                sampled = sampled & ~drawn.unsqueeze(1)
            if self.baseline == "self":
                trace["mean"] = mean.detach()
        return Reading(context, trace | {"sampled": sampled})

    def penalties(self, attended: Attended, memory: Memory, gold: Gold) -> dict[str, Tensor]:
        trace = attended.trace
        log_chosen = trace["log_weights"].gather(-1, trace["choice"].unsqueeze(-1)).squeeze(-1)  # (B, T)
        return {"reinforce": -self.weight * self._advantage(attended, gold) * log_chosen * trace["sampled"]}

    def _advantage(self, attended: Attended, gold: Gold) -> Tensor:
        """What a choice earned above the baseline, (B, T), a constant for the gradient; zero at padding."""
        earned = gold().detach()
        if self.baseline == "self":
            return earned - gold(attended.trace["mean"]).detach()
        if self.baseline == "moving":
            earned = earned - self.mean * gold.real  # padding earns nothing, also against a baseline
        return earned.flip(1).cumsum(1).flip(1) if self.reward == "rest" else earned

    def statistics(self, attended: Attended, gold: Gold) -> Totals:
        if self.baseline != "moving":
            return {}
        earned = gold().detach()
        counted = attended.trace["sampled"] & gold.real
        return {"reward": ((earned * counted).sum(), counted.sum())}

    def after_update(self, totals: Mapping[str, tuple[float, float]]) -> None:
        total, count = totals.get("reward", (0.0, 0.0))
        if count:
            with torch.no_grad():
                self.mean.mul_(self.decay).add_((1 - self.decay) * total / count)


class Gumbel(Estimator):
    """Reads a relaxed sample, a soft context that the temperature brings close to one row; or the row itself.

    Straight through: the weights are one-hot forward and the relaxed sample's backward, so what is read is a row of
    the memory to the last bit while the scores learn from the gradient of the relaxed sample.
    """

    draws = True

    def __init__(self, settings: GumbelSettings) -> None:
        super().__init__()
        self.straight_through, self.schedule = settings.straight_through, settings.temperature
        self.set_update(0)

    def set_update(self, update: int) -> None:
        self.temperature = value_at(self.schedule, update)

    def read(self, prior: Prior, memory: Memory, drawn: Tensor | None) -> Reading:
        noise = gumbel(prior.log_weights)
        weights = masked_softmax((prior.log_weights + noise) / self.temperature, prior.mask)  # (B, T, S)
        if self.straight_through:
            choice = choose(prior.log_weights, noise)
            chosen = nn.functional.one_hot(choice, weights.size(-1)).to(weights.dtype)
            weights = chosen + (weights - weights.detach())  # the bracket is exactly zero
        return Reading(mean_context(weights, memory.values), {})


class Enumerate(Estimator):
    """Asks the readout about every position: the loss is Jensen's bound, -sum_z alpha_z l_z, without a draw.

    The recurrence is fed the soft context, so the bound holds for the sentence: no state depends on a z of the past.
    The readout reads the soft context too, and the term that is added turns its likelihood into the bound. (With label
    smoothing, the pull towards the uniform distribution is that on the soft reading.)
    """

    asks_gold = True
    feeds_mean = True

    def read(self, prior: Prior, memory: Memory, drawn: Tensor | None) -> Reading:
        return Reading(mean_context(prior.weights, memory.values), {})

    def penalties(self, attended: Attended, memory: Memory, gold: Gold) -> dict[str, Tensor]:
        assert attended.weights is not None
        bound = (attended.weights * gold(memory.values.unsqueeze(1))).sum(-1)  # (B, T)
        return {"jensen": gold() - bound}


# --- settings ---------------------------------------------------------------------------------------------------------


def _positive(value: float | Ramp) -> float | Ramp:
    if min(ends(value)) <= 0:
        raise ValueError("must be above 0 from start to end")
    return value


class ReinforceSettings(Settings):
    """Sample a position and reward it with the likelihood of the right word (Williams 1992; Xu et al. 2015)."""

    kind: Literal["reinforce"]
    baseline: Literal["moving", "self", "none"] = "self"
    """What a reward is measured against: moving, a running mean; self, the reward of the soft context, word for word
    (Deng et al. 2018), at the price of one more readout; none."""
    weight: Annotated[float, Field(gt=0.0)] = 1.0
    """Factor on the gradient of the choice: 1 is unbiased, Xu et al. use 0.1."""
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Of the moving baseline: the share of it that an update keeps."""
    reward: Literal["word", "rest"] = "word"
    """What a choice earns: the likelihood of its own word; or of the rest of the sentence, which counts its effect on
    later words through what is fed back, with more noise."""
    soft_mixing: Annotated[float | Ramp, AfterValidator(is_probability)] = 0.5
    """Probability that a sentence is read softly instead of by samples; a number, or a ramp."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.reward == "rest" and self.baseline == "self":
            raise ValueError(
                "reward: rest needs baseline: moving or none; the baseline self knows a choice's own word only"
            )
        if self.baseline != "moving" and self.decay != type(self).model_fields["decay"].default:
            raise ValueError(f"decay belongs to baseline: moving; {self.baseline} keeps no mean")
        return self

    def build(self) -> Estimator:
        return Reinforce(self)


class GumbelSettings(Settings):
    """Perturb the scores and read a relaxed sample, or a row straight through (Jang 2017; Maddison 2017)."""

    kind: Literal["gumbel"]
    straight_through: bool = True
    """Read exactly one position, with the gradient of the relaxed sample; false: read the relaxed sample."""
    temperature: Annotated[float | Ramp, AfterValidator(_positive)] = 1.0
    """Of the relaxed sample, a number or a ramp: the lower, the closer to one position and the noisier the gradient."""

    def build(self) -> Estimator:
        return Gumbel(self)


class EnumerateSettings(Settings):
    """Ask about every position and follow the exact gradient of Jensen's bound; a readout per source position."""

    kind: Literal["enumerate"]

    def build(self) -> Estimator:
        return Enumerate()


AnyEstimator = Annotated[
    Annotated[ReinforceSettings | GumbelSettings | EnumerateSettings, Field(discriminator="kind")],
    BeforeValidator(by_name),
]
"""An estimator's name, or a mapping with its ``kind`` and options."""
