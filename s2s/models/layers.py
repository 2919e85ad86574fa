"""Small parts that several models are made of: dropout, embeddings, positions, and products whose gradient waits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from s2s.interfaces import PAD


def dropout_mask(shape: torch.Size | tuple[int, ...], rate: float, like: Tensor) -> Tensor:
    """A mask of zeros and 1 / (1 - rate), of the type and device of ``like``.

    On a CPU drawing floats costs as much as a layer of a small Transformer, so masks are drawn 16 bits at a time; the
    rate is then exact to 1/65536.
    """
    if like.device.type != "cpu":
        return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1 - rate).div_(1 - rate)
    count = math.prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[:count].view(shape)
    dropped = min(round(rate * 65536), 65535)
    return (bits >= dropped - 32768).to(like.dtype).mul_(65536 / (65536 - dropped))


class Dropout(nn.Module):
    """Zeroes entries with probability ``rate`` in training and scales the rest by 1 / (1 - rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        return x * dropout_mask(x.shape, self.rate, x)


def embedding(vocabulary: int, size: int) -> nn.Embedding:
    """Vectors N(0, 1/size), so that a row has length about one; the row of PAD is zero and stays so."""
    table = nn.Embedding(vocabulary, size, padding_idx=PAD)
    with torch.no_grad():
        table.weight.normal_(0.0, size**-0.5)
        table.weight[PAD].zero_()
    return table


def sinusoids(first: int, count: int, size: int, like: Tensor) -> Tensor:
    """Positions first .. first + count - 1 as (count, size) interleaved sines and cosines (Vaswani 2017, section 3.5).

    pe[2i] = sin(position / 10000^(2i/size)), pe[2i+1] = cos(the same).
    """
    position = torch.arange(first, first + count, device=like.device, dtype=torch.float32).unsqueeze(1)
    rate = torch.exp(torch.arange(0, size, 2, device=like.device, dtype=torch.float32) * (-math.log(10000.0) / size))
    angle = position * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :size].to(like.dtype)


class _Ledger:
    """The inputs and output gradients of every use of one weight, in the backward pass that is running."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self._pass: int | None = None

    def current(self) -> _Ledger:
        """This ledger, emptied of what an earlier backward pass over the same graph left."""
        now: int = torch._C._current_graph_task_id()
        if now != self._pass:
            self._pass, self.inputs, self.gradients = now, [], []
        return self


class _Collect(torch.autograd.Function):
    """Identity on a weight; its backward runs after all uses and forms their gradient in one product."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ledger: _Ledger) -> Tensor:
        ctx.ledger = ledger
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        ledger: _Ledger = ctx.ledger.current()
        if not ledger.inputs:
            return gradient, None
        total = torch.cat(ledger.gradients).t() @ torch.cat(ledger.inputs)
        ledger.inputs, ledger.gradients = [], []
        return total if gradient is None else total + gradient, None


class _Use(torch.autograd.Function):
    """x (n, I) times a weight (O, I) transposed; the weight's gradient is left to the ledger."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ledger: _Ledger) -> Tensor:
        ctx.ledger = ledger
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, weight = ctx.saved_tensors
        ledger: _Ledger = ctx.ledger.current()
        ledger.inputs.append(x.detach())  # with its history the graph would hold itself, and never be freed
        ledger.gradients.append(gradient)
        return gradient @ weight, None, None


class StepWeight:
    """A weight (O, I) used once per time step: ``weight(x (n, I)) -> (n, O)``.

    Its gradient is one product over all steps at the end, not T small ones added up; under autocast it is cast once.
    Make one per forward pass.
    """

    def __init__(self, weight: Tensor) -> None:
        kind = torch.get_autocast_dtype(weight.device.type) if torch.is_autocast_enabled(weight.device.type) else None
        weight = weight if kind is None or weight.dtype == torch.float64 else weight.to(kind)
        self.ledger = _Ledger() if torch.is_grad_enabled() and weight.requires_grad else None
        self.weight: Tensor = weight if self.ledger is None else _Collect.apply(weight, self.ledger)  # type: ignore[no-untyped-call]

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if self.ledger is None:
            return x @ self.weight.t()
        used: Tensor = _Use.apply(x, self.weight, self.ledger)  # type: ignore[no-untyped-call]
        return used


def lengths_to_mask(lengths: Tensor, positions: int) -> Tensor:
    """(B,) lengths to (B, positions) bool, True at real positions."""
    return torch.arange(positions, device=lengths.device) < lengths.unsqueeze(1)
