"""The equations of the papers in numpy, one vector at a time: what the tensors of `s2s` are checked against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from s2s.models.cells import Bahdanau, ConditionalGRU, Luong
from s2s.models.recurrence import RecurrentLayer
from s2s.models.rnn_decoder import RNNDecoder
from s2s.models.seq2seq import Seq2Seq

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


def tanh_readout(matrix: Array, *parts: Array) -> Array:
    """tanh(W [...])."""
    found: Array = np.tanh(matrix @ np.concatenate(parts))
    return found


def maxout(matrix: Array, *parts: Array) -> Array:
    """max(t_{2j-1}, t_{2j}) of t = W [...], one pair after the other."""
    t = matrix @ np.concatenate(parts)
    return np.array([max(t[2 * j], t[2 * j + 1]) for j in range(len(t) // 2)])


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


class Loop:
    """The decoder of a model as the papers write it: one sentence, one word and one source position at a time.

    Its score is additive. ``readout`` gives h~ of the matrix and what is joined: `tanh_readout` or `maxout`.
    """

    weights: Array
    """a (S,) of the last word."""
    told: Array
    """The state that the last word was read from."""

    def __init__(self, model: Seq2Seq, source: Tensor, lengths: Tensor, readout: Callable[..., Array]) -> None:
        assert isinstance(model.decoder, RNNDecoder)
        self.decoder, memory, self.readout = model.decoder, model.encoder(source, lengths), readout
        self.rows, self.matrix = array(memory.values[0]), array(self.decoder.wiring.readout.join.weight)
        first = self.decoder.first(memory)
        self.h = [array(layer.hidden[0]) for layer in first]
        self.c = [None if layer.cell is None else array(layer.cell[0]) for layer in first]
        self.fed = np.zeros(self.decoder.wiring.readout.size)

    def attend(self, query: Array) -> Array:
        """sum_j a_j h_j with a = softmax(v . tanh(W q + U h_j))."""
        scorer: Any = self.decoder.attention.score
        w, u, v = array(scorer.query.weight), array(scorer.source.weight), array(scorer.vector)
        self.weights = a = softmax(np.array([v @ np.tanh(w @ query + u @ row) for row in self.rows]))
        return sum((a[j] * row for j, row in enumerate(self.rows)), np.zeros(self.rows.shape[1]))

    def recur(self, layers: nn.ModuleList, x: Array, fed: Array | None, everywhere: bool = False) -> Array:
        """All layers once; the vector that is fed back goes into the bottom one, or into each."""
        for n, layer in enumerate(layers):
            assert isinstance(layer, RecurrentLayer)
            self.h[n], self.c[n] = step(layer, x, self.h[n], self.c[n], fed if n == 0 or everywhere else None)
            x = self.h[n]
        return x

    def __call__(self, word: int) -> Array:
        """Log-probabilities (V,) of the word after this one."""
        wiring, embedded = self.decoder.wiring, array(self.decoder.embedding.weight[word])
        if isinstance(wiring, Luong):
            self.told = self.recur(wiring.recurrence.layers, embedded, self.fed if wiring.feeds_back else None)
            joined = self.fed = self.readout(self.matrix, self.told, self.attend(self.told))
        elif isinstance(wiring, Bahdanau):
            asked = self.h[0] if wiring.from_below else self.h[-1]  # s_{t-1}, from which the paper's maxout reads too
            context = self.attend(asked)
            new = self.recur(wiring.recurrence.layers, embedded, context, wiring.from_below)
            self.told = asked if self.readout is maxout and not wiring.from_below else new
            joined = self.readout(self.matrix, self.told, context, embedded)
        else:
            assert isinstance(wiring, ConditionalGRU)
            between, _ = step(wiring.first, embedded, self.h[0], None)
            context = self.attend(between)
            self.h[0], _ = step(wiring.second, context, between, None)
            self.told = self.h[0]
            joined = self.readout(self.matrix, self.told, context, embedded)
        assert len(joined) == self.decoder.wiring.readout.size
        scores = array(self.decoder.output.weight) @ joined + array(self.decoder.output.bias)
        found: Array = np.log(softmax(scores))
        return found
