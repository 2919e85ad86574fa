"""Recurrent layers: LSTM and GRU with one set of weights, run over a whole sequence at once or step by step.

Gates stand in PyTorch's order. LSTM (i, f, g, o):

    i, f, o = sigma(...),  g = tanh(...),   c' = f c + i g,   h' = o tanh(c')

GRU (r, z, n), the variant of cuDNN and PyTorch, in which the reset gate acts after the product:

    r, z = sigma(...),  n = tanh(W x + b + r (U h + b')),   h' = (1 - z) n + z h

(Cho et al. 2014 reset before the product, tanh(W x + U (r h)); weights of the two are not interchangeable.)
There is one bias per gate, so an LSTM's forget bias of 1 is 1, not the 2 of two added biases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from s2s.models.layers import Dropout, dropout_mask
from s2s.products import by_rows, linear, share

CellKind = Literal["lstm", "gru"]


class LayerState(NamedTuple):
    """Where one layer stands."""

    hidden: Tensor
    """(B, H)"""
    cell: Tensor | None
    """(B, H) of an LSTM, kept in float32."""
    mask: Tensor | None = None
    """(B, H) dropout on what the layer reads of its own past, one draw per sentence (Gal & Ghahramani 2016)."""


class _LSTMStep(torch.autograd.Function):
    """The elementwise part of an LSTM step, gates (B, 4H) and c (B, H) to h and c, with a backward of few kernels."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        size = cell.size(1)
        wide = gates.to(cell.dtype)
        opened = torch.sigmoid(wide)
        candidate = torch.tanh(wide[:, 2 * size : 3 * size])
        new = torch.addcmul(opened[:, size : 2 * size] * cell, opened[:, :size], candidate)
        squashed = torch.tanh(new)
        ctx.save_for_backward(opened, candidate, cell, squashed)
        ctx.kind = gates.dtype
        return opened[:, 3 * size :] * squashed, new

    @staticmethod
    def backward(ctx: Any, by_hidden: Tensor, by_cell: Tensor) -> tuple[Tensor, Tensor]:
        opened, candidate, cell, squashed = ctx.saved_tensors
        size = cell.size(1)
        i, f, o = opened[:, :size], opened[:, size : 2 * size], opened[:, 3 * size :]
        by_new = torch.addcmul(by_cell, by_hidden * o, 1 - squashed * squashed)
        by_gates = opened * (1 - opened)
        by_gates[:, :size] *= by_new * candidate
        by_gates[:, size : 2 * size] *= by_new * cell
        torch.mul(by_new * i, 1 - candidate * candidate, out=by_gates[:, 2 * size : 3 * size])
        by_gates[:, 3 * size :] *= by_hidden * squashed
        return by_gates.to(ctx.kind), by_new * f


def _has_no_kernel(x: Tensor) -> bool:
    """Whether an LSTM over x is to be learned in float16 on a CPU, where oneDNN can only run it forwards."""
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.float16


class RecurrentLayer(nn.Module):
    """One layer with input width I, hidden width H and, for fed-back vectors, a further input of width F."""

    def __init__(self, kind: CellKind, input_size: int, size: int, feedback_size: int = 0) -> None:
        super().__init__()
        gates = 4 if kind == "lstm" else 3
        self.kind, self.size = kind, size
        self.weight_input = nn.Parameter(torch.empty(gates * size, input_size))
        self.weight_recurrent = nn.Parameter(torch.empty(gates * size, size + feedback_size))  # columns: own past, fed
        self.bias = nn.Parameter(torch.zeros(gates * size))
        self.bias_reset = nn.Parameter(torch.zeros(size)) if kind == "gru" else None
        with torch.no_grad():
            for gate in range(gates):  # each gate has its own fan-out
                rows = slice(gate * size, (gate + 1) * size)
                nn.init.xavier_uniform_(self.weight_input[rows])
                nn.init.orthogonal_(self.weight_recurrent[rows, :size])
                if feedback_size:
                    nn.init.xavier_uniform_(self.weight_recurrent[rows, size:])
            if kind == "lstm":
                self.bias[size : 2 * size] = 1.0  # Gers et al. 2000: begin by remembering

    def zeros(self, batch: int, like: Tensor) -> LayerState:
        """A state of zeros for ``batch`` sentences."""
        hidden = like.new_zeros(batch, self.size)
        return LayerState(hidden, torch.zeros_like(hidden) if self.kind == "lstm" else None)

    def _bias_hidden(self) -> Tensor:
        if self.bias_reset is None:
            return torch.zeros_like(self.bias)
        return torch.cat([self.bias_reset.new_zeros(2 * self.size), self.bias_reset])

    def run(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """Read x (B, T, I) without feedback: outputs (B, T, H), float or as autocast decides, and the last state."""
        if state.mask is not None or (self.kind == "lstm" and _has_no_kernel(x)):
            return self._run_by_steps(x, state)
        weights = [self.weight_input, self.weight_recurrent, self.bias, self._bias_hidden()]
        # Biases, layers, dropout, whether a backward pass may follow (cuDNN asks), two directions, batch first.
        options = (True, 1, 0.0, torch.is_grad_enabled(), False, True)
        hidden = state.hidden.to(x.dtype).unsqueeze(0)
        if state.cell is None:
            y, hidden = torch.gru(x, hidden, weights, *options)
            return y, LayerState(hidden[0].to(state.hidden.dtype), None)
        y, hidden, cell = torch.lstm(x, (hidden, state.cell.to(x.dtype).unsqueeze(0)), weights, *options)
        return y, LayerState(hidden[0].to(state.hidden.dtype), cell[0].to(state.cell.dtype))

    def _run_by_steps(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        gates, step, outputs = self.gates(x), self.stepper(), []
        for part in gates.unbind(1):
            state = step(part, None, state)
            outputs.append(state.hidden)
        return torch.stack(outputs, 1), state

    def gates(self, x: Tensor) -> Tensor:
        """The part of the gates that x (B, T, I) decides: (B, T, gates x H), one product for all T."""
        return linear(x, self.weight_input, self.bias)

    def stepper(self) -> Callable[[Tensor, Tensor | None, LayerState], LayerState]:
        """One step as a function: gates (B, gates x H), fed-back vector (B, F) or None, state -> state."""
        if self.bias_reset is not None:
            return self._gru_stepper(self.bias_reset)
        weight = share(self.weight_recurrent)
        kind = weight.dtype

        def step(gates: Tensor, fed: Tensor | None, state: LayerState) -> LayerState:
            past = state.hidden if state.mask is None else state.hidden * state.mask
            past = past.to(kind) if fed is None else torch.cat([past.to(kind), fed.to(kind)], 1)
            hidden, cell = _LSTMStep.apply(gates + by_rows(past, weight), state.cell)  # type: ignore[no-untyped-call]
            return LayerState(hidden, cell, state.mask)

        return step

    def _gru_stepper(self, bias: Tensor) -> Callable[[Tensor, Tensor | None, LayerState], LayerState]:
        size = self.size
        recur, feed = share(self.weight_recurrent[:, :size]), share(self.weight_recurrent[:, size:])

        def step(gates: Tensor, fed: Tensor | None, state: LayerState) -> LayerState:
            old = state.hidden
            by_past = by_rows(old if state.mask is None else old * state.mask, recur).to(old.dtype)
            by_input = gates.to(old.dtype)
            if fed is not None:
                by_input = by_input + by_rows(fed, feed)
            opened = torch.sigmoid(by_input[:, : 2 * size] + by_past[:, : 2 * size])
            reset, keep = opened[:, :size], opened[:, size:]
            candidate = torch.tanh(by_input[:, 2 * size :] + reset * (by_past[:, 2 * size :] + bias))
            return LayerState(torch.lerp(candidate, old, keep), None, state.mask)

        return step


class Recurrence(nn.Module):
    """A stack of layers; dropout between them, and optionally each adding its input to its output (residual).

    A fed-back vector goes into the bottom layer, with ``feeds_all`` into every layer.
    """

    def __init__(
        self,
        kind: CellKind,
        input_size: int,
        size: int,
        layers: int,
        *,
        feedback_size: int = 0,
        feeds_all: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            RecurrentLayer(kind, size if n else input_size, size, feedback_size if n == 0 or feeds_all else 0)
            for n in range(layers)
        )
        self.feeds_all = feeds_all
        self.kind, self.size, self.residual, self.recurrent_dropout = kind, size, residual, recurrent_dropout
        self.between = Dropout(dropout)

    def begin(self, states: list[LayerState]) -> tuple[LayerState, ...]:
        """First states with the draws that all steps share, in training with recurrent dropout."""
        if not (self.training and self.recurrent_dropout):
            return tuple(states)
        return tuple(s._replace(mask=dropout_mask(s.hidden.shape, self.recurrent_dropout, s.hidden)) for s in states)

    def run(self, x: Tensor, states: tuple[LayerState, ...]) -> tuple[Tensor, tuple[LayerState, ...]]:
        """All T positions x (B, T, I) at once: top outputs (B, T, H) and the last states."""
        after = []
        for n, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            y, last = layer.run(self.between(x) if n else x, state)  # type: ignore[operator]
            x = x + y if self.residual and n else y
            after.append(last._replace(mask=state.mask))
        return x, tuple(after)

    def gates(self, x: Tensor) -> Tensor:
        """The bottom layer's gates for all T, as far as x (B, T, I) decides them."""
        gates: Tensor = self.layers[0].gates(x)  # type: ignore[operator]
        return gates

    def stepper(
        self,
    ) -> Callable[[Tensor, Tensor | None, tuple[LayerState, ...]], tuple[Tensor, tuple[LayerState, ...]]]:
        """One step: bottom gates (B, gates x H), fed-back vector, states -> top output (B, H) and states."""
        bottom, *upper = [layer.stepper() for layer in self.layers]  # type: ignore[operator]

        def step(
            gates: Tensor, fed: Tensor | None, states: tuple[LayerState, ...]
        ) -> tuple[Tensor, tuple[LayerState, ...]]:
            after = [bottom(gates, fed, states[0])]
            x = after[0].hidden
            fed = fed if self.feeds_all else None
            for layer, upper_step, state in zip(list(self.layers)[1:], upper, states[1:], strict=True):
                after.append(upper_step(layer.gates(self.between(x)), fed, state))  # type: ignore[operator]
                x = x + after[-1].hidden if self.residual else after[-1].hidden
            return x, tuple(after)

        return step
