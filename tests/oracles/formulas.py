"""The equations of the papers in numpy, one vector at a time: what the tensors of `s2s` are checked against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from s2s.models.recurrence import RecurrentLayer

Array = NDArray[np.float64]


def array(tensor: Tensor) -> Array:
    """The same numbers outside torch."""
    found: Array = tensor.detach().double().numpy()
    return found


def sigma(x: Array) -> Array:
    """The logistic function."""
    found: Array = 1.0 / (1.0 + np.exp(-x))
    return found


def softmax(x: Array) -> Array:
    """exp(x_i) / sum_j exp(x_j) of one vector."""
    found: Array = np.exp(x) / np.exp(x).sum()
    return found


def lstm(layer: RecurrentLayer, x: Array, past: Array, cell: Array) -> tuple[Array, Array]:
    """One step, gate by gate; ``past`` is h, with what is fed back behind it. Gives h and c."""
    gates = []
    for gate in range(4):
        rows = slice(gate * layer.size, (gate + 1) * layer.size)
        own, recurrent = array(layer.weight_input)[rows], array(layer.weight_recurrent)[rows]
        gates.append(own @ x + recurrent @ past + array(layer.bias)[rows])
    i, f, g, o = sigma(gates[0]), sigma(gates[1]), np.tanh(gates[2]), sigma(gates[3])
    new = f * cell + i * g
    return o * np.tanh(new), new


def gru(layer: RecurrentLayer, x: Array, h: Array, fed: Array | None = None) -> Array:
    """One step, gate by gate: the reset gate acts on U h + b', not on what is fed back."""
    assert layer.bias_reset is not None
    by_input, by_past = [], []
    for gate in range(3):
        rows = slice(gate * layer.size, (gate + 1) * layer.size)
        recurrent = array(layer.weight_recurrent)[rows]
        part = array(layer.weight_input)[rows] @ x + array(layer.bias)[rows]
        by_input.append(part if fed is None else part + recurrent[:, layer.size :] @ fed)
        by_past.append(recurrent[:, : layer.size] @ h)
    r, z = sigma(by_input[0] + by_past[0]), sigma(by_input[1] + by_past[1])
    n = np.tanh(by_input[2] + r * (by_past[2] + array(layer.bias_reset)))
    new: Array = (1 - z) * n + z * h
    return new


def step(
    layer: RecurrentLayer, x: Array, h: Array, c: Array | None, fed: Array | None = None
) -> tuple[Array, Array | None]:
    """One step of either kind: h and, of an LSTM, c."""
    if c is None:
        return gru(layer, x, h, fed), None
    return lstm(layer, x, h if fed is None else np.concatenate([h, fed]), c)


def read(layer: RecurrentLayer, xs: Array, backwards: bool = False) -> tuple[Array, Array, Array | None]:
    """Outputs (S, H) in the order of the sentence ``xs`` (S, I), and the h and c that it ends with, from zero."""
    h, c = np.zeros(layer.size), np.zeros(layer.size) if layer.kind == "lstm" else None
    outputs = np.zeros((len(xs), layer.size))
    for place in reversed(range(len(xs))) if backwards else range(len(xs)):
        h, c = step(layer, xs[place], h, c)
        outputs[place] = h
    return outputs, h, c
