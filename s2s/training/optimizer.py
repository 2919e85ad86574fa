"""From gradients to updates: the optimizers, and the learning rate as a pure function of the update number."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from s2s.settings import OptimizerSettings, ScheduleSettings

Positive = Annotated[float, Field(gt=0.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=0)]


class Schedule(ScheduleSettings):
    """A factor on ``optimizer.lr`` for every update."""

    by_the_end: ClassVar[bool] = False
    """Whether it is stretched to the last update."""

    @abstractmethod
    def factor(self, update: int, last: int, reductions: int) -> float:
        """The factor at ``update`` (1, 2, ...) of ``last``, after ``reductions`` fruitless stretches of validation."""


class Warm(Schedule):
    """A schedule whose first updates rise linearly."""

    warmup: Count = 0
    """Updates over which the rate rises linearly from zero."""

    def rising(self, update: int) -> float:
        """The warm-up's own factor."""
        return min(1.0, update / self.warmup) if self.warmup else 1.0


class Constant(Warm):
    """The same rate throughout."""

    kind: Literal["constant"]

    def factor(self, update: int, last: int, reductions: int) -> float:
        return self.rising(update)


class Noam(Schedule):
    """size^-0.5 min(n^-0.5, n warmup^-1.5): the rate of Vaswani et al. 2017, section 5.3, times ``lr``."""

    kind: Literal["noam"]
    size: Annotated[int, Field(ge=1)] = 512
    """The model's width in the formula."""
    warmup: Annotated[int, Field(ge=1)] = 4000
    """Updates until the peak."""

    def factor(self, update: int, last: int, reductions: int) -> float:
        return float(self.size**-0.5 * min(update**-0.5, update * self.warmup**-1.5))


class InverseSqrt(Schedule):
    """Linear to ``lr`` over the warm-up, then lr sqrt(warmup / n)."""

    kind: Literal["inverse_sqrt"]
    warmup: Annotated[int, Field(ge=1)] = 400
    """Updates until the peak."""

    def factor(self, update: int, last: int, reductions: int) -> float:
        return min(update / self.warmup, math.sqrt(self.warmup / update))


class Cosine(Warm):
    """Half a cosine from ``lr`` down to ``final`` of it at the last update."""

    by_the_end = True
    kind: Literal["cosine"]
    final: Share = 0.0
    """Where it ends, as a share of ``lr``."""

    def factor(self, update: int, last: int, reductions: int) -> float:
        if update <= self.warmup:
            return self.rising(update)
        passed = min(1.0, (update - self.warmup) / max(1, last - self.warmup))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * passed))


class Exponential(Warm):
    """Times ``decay`` at every ``every``-th update, counted from update ``after`` on."""

    kind: Literal["exponential"]
    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """The factor of one step."""
    every: Annotated[int, Field(ge=1)] = 1000
    """Updates between steps."""
    after: Count = 0
    """Updates before the first step is counted."""

    def factor(self, update: int, last: int, reductions: int) -> float:
        return float(self.rising(update) * self.decay ** (max(0, update - self.after) // self.every))


class Plateau(Warm):
    """Times ``decay`` whenever ``patience`` validations in a row brought nothing better."""

    kind: Literal["plateau"]
    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """The factor of one reduction."""
    patience: Annotated[int, Field(ge=1)] = 2
    """Fruitless validations before a reduction."""

    def factor(self, update: int, last: int, reductions: int) -> float:
        return float(self.rising(update) * self.decay**reductions)


class LuongDecay(Warm):
    """Halved ``times`` times, evenly, once the share ``after`` of all updates has passed.

    Luong's own: after half of the epochs, halve every epoch; TensorFlow NMT's luong234 is after 2/3, 4 times.
    """

    by_the_end = True
    kind: Literal["luong"]
    after: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Share of the updates before the first halving is counted."""
    times: Annotated[int, Field(ge=1)] = 5
    """Halvings until the end."""

    def factor(self, update: int, last: int, reductions: int) -> float:
        begin = int(last * self.after)
        stretch = max(1, (last - begin) // self.times)
        return float(self.rising(update) * 0.5 ** min(self.times, max(0, update - begin) // stretch))


AnySchedule = Annotated[
    Constant | Noam | InverseSqrt | Cosine | Exponential | Plateau | LuongDecay, Field(discriminator="kind")
]


class Optimizer(OptimizerSettings):
    """What every optimizer has."""

    lr: Positive
    """Learning rate, before the schedule's factor."""
    schedule: AnySchedule = Constant(kind="constant")
    """How the rate changes with the updates."""
    clip: Positive | None = 1.0
    """Largest L2 norm of the whole gradient; null: never clipped."""

    @abstractmethod
    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The torch optimizer over parameter groups."""

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Matrices decay and the rest does not (biases, norms, gains), where there is a weight decay."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        decay: float = getattr(self, "weight_decay", 0.0)
        matrices = [parameter for parameter in parameters if parameter.dim() > 1]
        others = [parameter for parameter in parameters if parameter.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = self.make([group for group in groups if group["params"]])
        # A fused step changes parameters without a word to autograd. Search keeps casts of them and asks by version.
        optimizer.register_step_post_hook(lambda *_: increment_version(parameters))
        return optimizer


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015); weight decay as an L2 term of the gradient."""

    kind: Literal["adam"]
    lr: Positive = 1e-3
    """Learning rate, before the schedule's factor."""
    beta1: Share = 0.9
    """Decay of the mean."""
    beta2: Share = 0.999
    """Decay of the square."""
    eps: Positive = 1e-8
    """Added to the root."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """L2 penalty on matrices."""

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.Adam(groups, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    kind: Literal["adamw"]  # type: ignore[assignment]
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Share of every matrix taken off per unit of learning rate."""

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)


class SGD(Optimizer):
    """Stochastic gradient descent; Luong et al. 2015 use it with lr 1 and clip 5.

    With ``nesterov`` it is Nesterov's accelerated gradient (Sutskever et al. 2013, section 2), which Gehring et al.
    2017 use with lr 0.25, momentum 0.99 and clip 0.1. The parameters held are those at which the next gradient is
    taken, weight + momentum · velocity; the velocity is kept in units of the rate, so a new rate is that of all of it.
    """

    kind: Literal["sgd"]
    lr: Positive = 1.0
    """Learning rate, before the schedule's factor."""
    momentum: Share = 0.0
    """Share of the last step that is kept."""
    nesterov: bool = False
    """Whether gradients are taken where the momentum will have led."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """L2 penalty on matrices."""

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, fused=True)
        if self.momentum:
            optimizer.register_step_pre_hook(_with_velocities)
        return optimizer

    @model_validator(mode="after")
    def _leads_somewhere(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov looks ahead along the momentum, which is 0: set momentum, or leave nesterov out")
        return self


def _with_velocities(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Before a step: every parameter without a velocity gets one of zero.

    The fused kernel wants all of them or none, but a part may get its first gradient later than others; and where the
    scaler of fp16 skips the first step, it leaves the new velocities without values.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if "momentum_buffer" not in optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


class Adadelta(Optimizer):
    """Adadelta (Zeiler 2012); Bahdanau et al. 2015 use it with rho 0.95, eps 1e-6 and clip 1."""

    kind: Literal["adadelta"]
    lr: Positive = 1.0
    """Learning rate, before the schedule's factor."""
    rho: Share = 0.95
    """Decay of the squares."""
    eps: Positive = 1e-6
    """Added to the roots."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """L2 penalty on matrices."""

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.Adadelta(groups, lr=self.lr, rho=self.rho, eps=self.eps)


AnyOptimizer = Annotated[Adam | AdamW | SGD | Adadelta, Field(discriminator="kind")]


def names(model: nn.Module) -> dict[int, str]:
    """The name of every parameter by its identity; a shared one has its first name."""
    return {id(parameter): name for name, parameter in model.named_parameters()}


def moments(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's whole state as flat tensors ``moment/parameter``, for a checkpoint."""
    known = names(model)
    return {
        f"{key}/{known[id(parameter)]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def unstepped(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """The names of parameters that the optimizer has not changed yet: all of them while its steps were skipped."""
    known = names(model)
    return [
        known[id(parameter)]
        for group in optimizer.param_groups
        for parameter in group["params"]
        if not optimizer.state.get(parameter)
    ]


def expected_moments(
    rule: Optimizer, optimizer: torch.optim.Optimizer, model: nn.Module, without: Collection[str] = ()
) -> dict[str, Tensor]:
    """Names, shapes and types of what `moments` gives, without values; of the parameters ``without`` there is nothing.

    What an optimizer keeps is read off one that took a step on a parameter of its own.
    """
    probe = nn.Parameter(torch.zeros(1, 1))
    probe.grad = torch.zeros_like(probe)
    stepped = rule.make([{"params": [probe], "weight_decay": 0.0}])
    stepped.step()
    known = names(model)
    return {
        f"{key}/{known[id(parameter)]}": torch.empty(
            parameter.shape if value.shape == probe.shape else value.shape, dtype=value.dtype, device="meta"
        )
        for group in optimizer.param_groups
        for parameter in group["params"]
        for key, value in stepped.state[probe].items()
        if isinstance(value, Tensor) and known[id(parameter)] not in without
    }


def restore(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put a checkpoint's moments back, each on the device where the optimizer keeps it."""
    known = names(model)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {known[id(parameter)]: number for number, parameter in enumerate(parameters)}
    by_number: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        moment, _, parameter = name.partition("/")
        by_number.setdefault(numbers[parameter], {})[moment] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": by_number})
