"""What the oracles start from: numbers drawn alike everywhere, memories, given scores, and small redrawn modules."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest
import torch
from formulas import Array, array, softmax, tanh_readout
from torch import Tensor, nn

from s2s.attention.scores import Score
from s2s.config import AnyDecoder, AnyEncoder
from s2s.interfaces import Attended, Attention, Decoded, Memory
from s2s.models.cells import Unread
from s2s.models.rnn_decoder import RNNDecoder
from s2s.models.seq2seq import ModelSettings, Seq2Seq

M = TypeVar("M", bound=nn.Module)

WIRINGS: dict[str, dict[str, Any]] = {
    "luong": {"wiring": "luong", "input_feeding": False},
    "luong-feeding": {"wiring": "luong"},
    "bahdanau": {"wiring": "bahdanau"},
    "cgru": {"wiring": "cgru"},
}
"""Every order of recurring and attending, for decoders of one GRU layer."""
DECODERS: list[dict[str, Any]] = [
    {"wiring": "luong"},
    {"wiring": "luong", "cell": "lstm", "layers": 2},
    {"wiring": "luong", "input_feeding": False, "cell": "lstm", "layers": 2},
    {"wiring": "bahdanau"},
    {"wiring": "bahdanau", "cell": "lstm", "layers": 2},
    {"wiring": "gnmt", "layers": 2},
    {"wiring": "gnmt", "cell": "lstm", "layers": 3},
    {"wiring": "cgru"},
]
each_decoder = pytest.mark.parametrize("choice", DECODERS, ids=lambda choice: "-".join(map(str, choice.values())))
"""Runs a test with every wiring, both cells and more than a layer."""


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def double(*rows: object) -> Tensor:
    """Numbers or rows as a tensor of float64."""
    return torch.tensor(rows, dtype=torch.float64)


def redrawn(module: M, width: float = 0.7, seed: int = 3) -> M:
    """The module in float64 and evaluation mode, its parameters drawn anew from U(-width, width), biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.uniform_(-width, width, generator=generator)
    return module.eval()


# --- attention --------------------------------------------------------------------------------------------------------


class Given(Score):
    """Scores (S,) or (B, T, S) that do not depend on anything."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def keys(self, values: Tensor) -> Tensor:
        return values

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        return self.scores.expand(query.size(0), query.size(1), -1)


def memory_of(values: Tensor, lengths: tuple[int, ...] | None = None, want: frozenset[str] = frozenset()) -> Memory:
    """Rows (B, S, M) as a memory, zero behind each sentence, numbered; without lengths all of them are real."""
    ends = torch.tensor(lengths or (values.size(1),) * values.size(0))
    mask = torch.arange(values.size(1)) < ends.unsqueeze(1)
    return Memory(values * mask.unsqueeze(-1), mask, ends, want=want, number=torch.arange(len(ends)))


def attend(attention: Attention, query: Tensor, memory: Memory) -> Attended:
    """What is read from the start of the sentence on."""
    memory = attention.prepare(memory)
    found: Attended = attention(query, memory, attention.start(memory))[0]
    return found


def weights_of(attended: Attended) -> Tensor:
    """The weights, which are there."""
    assert attended.weights is not None
    return attended.weights


# --- models -----------------------------------------------------------------------------------------------------------


def recurrent_model(words: tuple[int, int], encoder: dict[str, Any], decoder: dict[str, Any], **page: Any) -> Seq2Seq:
    """A recurrent model over embeddings of width 3 for (source, target) words, with its first weights.

    What is not said: GRU cells, an encoder of width 4, a mean start, no dropout, nothing tied.
    """
    settings = {
        "embedding": 3,
        "tie": "none",
        "dropout": 0.0,
        "encoder": {"kind": "rnn", "size": 4, "cell": "gru", **encoder},
        "decoder": {"kind": "rnn", "cell": "gru", "start": "mean", **decoder},
        **page,
    }
    return ModelSettings[AnyEncoder, AnyDecoder].model_validate(settings).build(*words)


def decoder_of(model: Seq2Seq) -> RNNDecoder:
    """The decoder, known to be a recurrent one."""
    assert isinstance(model.decoder, RNNDecoder)
    return model.decoder


def read_words(model: Seq2Seq, decoded: Decoded, memory: Memory, place: tuple[int, int], position: int) -> Array:
    """p(y | h_position) (V,) at one target position (b, t), written out; the readout is tanh."""
    decoder, unread = decoder_of(model), decoded.unread
    assert isinstance(unread, Unread) and decoder.wiring.readout.kind == "tanh"
    parts = [unread.hidden[place], memory.values[place[0], position]]
    if unread.embedded is not None:
        parts.append(unread.embedded[place])
    joined = tanh_readout(array(decoder.wiring.readout.join.weight), *map(array, parts))
    return softmax(array(decoder.output.weight) @ joined + array(decoder.output.bias))
