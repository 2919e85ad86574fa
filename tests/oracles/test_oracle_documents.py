"""Hierarchical attention over the sentences before: the equations in plain loops, and what a closed gate leaves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s2s.config import AnyDecoder, AnyEncoder
from s2s.interfaces import Before, Encoder, Memory
from s2s.models.document import Hierarchical, HierarchicalSettings
from s2s.models.heads import MultiHead
from s2s.models.seq2seq import ModelSettings, Seq2Seq
from s2s.training.objective import ObjectiveSettings, TrainingStep

SIZE, HEADS, WORDS = 6, 2, 9
Vector = list[float]


class Table(Encoder):
    """Each word is a vector, whatever stands beside it; padding is zero."""

    size = SIZE

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(WORDS, SIZE, dtype=torch.float64))

    def forward(self, source: Tensor, lengths: Tensor) -> Memory:
        mask = torch.arange(source.size(1)) < lengths.unsqueeze(1)
        return Memory(self.table[source].masked_fill(~mask.unsqueeze(-1), 0.0), mask, lengths)


def times(matrix: Tensor, bias: Tensor | None, x: Vector) -> Vector:
    found = [sum(float(weight) * value for weight, value in zip(row, x, strict=True)) for row in matrix]
    return found if bias is None else [one + float(more) for one, more in zip(found, bias, strict=True)]


def multi_head(part: MultiHead, query: Vector, words: list[Vector]) -> Vector:
    """Vaswani et al. 2017, section 3.2.2, for one query."""
    q = times(part.query, part.query_bias, query)
    k = [times(part.key_value[:SIZE], part.key_value_bias[:SIZE], word) for word in words]
    v = [times(part.key_value[SIZE:], part.key_value_bias[SIZE:], word) for word in words]
    width, joined = SIZE // HEADS, []
    for head in range(HEADS):
        own = range(head * width, (head + 1) * width)
        scores = [math.exp(sum(q[i] * key[i] for i in own) / math.sqrt(width)) for key in k]
        joined += [sum(s * value[i] for s, value in zip(scores, v, strict=True)) / sum(scores) for i in own]
    return times(part.output.weight, part.output.bias, joined)


def by_hand(part: Hierarchical, h: Vector, sentences: list[list[Vector]]) -> Vector:
    """m_t of one position h_t, given the words of each sentence before."""
    if not sentences:
        return h
    summaries = [multi_head(part.word, h, words) for words in sentences]
    first, last = part.feedforward[0], part.feedforward[3]
    gathered = multi_head(part.sentence, h, summaries)
    inner = [max(0.0, value) for value in times(first.weight, first.bias, gathered)]
    d = times(last.weight, last.bias, inner)
    g = [
        1 / (1 + math.exp(-one - float(more)))
        for one, more in zip(times(part.gate.weight, None, h + d), part.gate_bias, strict=True)
    ]
    mean = sum(d) / SIZE
    spread = math.sqrt(sum((value - mean) ** 2 for value in d) / SIZE + 1e-5)
    normed = [
        (value - mean) / spread * float(scale) + float(shift)
        for value, scale, shift in zip(d, part.norm.weight, part.norm.bias, strict=True)
    ]
    return [(1 - gate) * own + gate * other for gate, own, other in zip(g, h, normed, strict=True)]


def hierarchical(sentences: int = 2) -> tuple[Hierarchical, Table]:
    torch.manual_seed(3)
    settings = HierarchicalSettings(sentences=sentences, heads=HEADS, feedforward=5)
    part = settings.build(SIZE, 0.3).double().eval()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.uniform_(-1.0, 1.0)
    return part, Table()


SOURCE = torch.tensor([[4, 5, 6, 2], [7, 2, 0, 0], [8, 3, 2, 0]])
LENGTHS = torch.tensor([4, 2, 3])
BEFORE = Before(
    torch.tensor([[[5, 8, 2], [6, 2, 0], [4, 4, 2]], [[0, 0, 0]] * 3, [[3, 2, 0], [0, 0, 0], [0, 0, 0]]]),
    torch.tensor([[3, 2, 3], [0, 0, 0], [2, 0, 0]]),
)
"""Three sentences before the first, none before the second, one before the third."""


@torch.no_grad()
def test_the_equations_by_hand() -> None:
    """Two sentences are read of three, and of a document's first sentence nothing changes, to the last bit."""
    part, encoder = hierarchical()
    memory = encoder(SOURCE, LENGTHS)
    found = part(memory, BEFORE, encoder)
    for row, length in enumerate(LENGTHS.tolist()):
        words = [
            encoder.table[ids[:count]].tolist()
            for ids, count in zip(BEFORE.source[row], BEFORE.lengths[row].tolist(), strict=True)
            if count
        ]
        for t in range(length):
            expected = by_hand(part, memory.values[row, t].tolist(), words[:2])
            assert found.values[row, t].tolist() == pytest.approx(expected, rel=1e-9), (row, t)
        assert not found.values[row, length:].any()
    assert torch.equal(found.values[1], memory.values[1])
    assert found._replace(values=memory.values) == memory


def test_the_sentences_before_are_a_set() -> None:
    """Nothing says which is the nearest, but which are read at all."""
    part, encoder = hierarchical(sentences=3)
    memory = encoder(SOURCE, LENGTHS)
    turned = Before(*(tensor[:, [2, 0, 1]] for tensor in BEFORE))
    assert torch.allclose(part(memory, BEFORE, encoder).values, part(memory, turned, encoder).values, rtol=1e-12)


def test_words_and_queries_pass_no_gradient_on() -> None:
    """Where the gate is wide open nothing of the sentence is left but its queries: the encoder learns nothing."""
    part, encoder = hierarchical()
    with torch.no_grad():
        part.gate_bias.fill_(torch.inf)
    part(encoder(SOURCE, LENGTHS)._replace(final=None), BEFORE, encoder).values[[0, 2]].square().sum().backward()
    assert encoder.table.grad is not None and not encoder.table.grad.any()
    assert part.word.key_value.grad is not None and part.word.key_value.grad.any()


# --- whole models -----------------------------------------------------------------------------------------------------

STACK = {"kind": "transformer", "size": 8, "layers": 2, "heads": 2, "feedforward": 12}
MODELS: dict[str, dict[str, Any]] = {
    "transformer": {"encoder": STACK, "decoder": STACK},
    "post-norm": {"encoder": STACK | {"norm": "post"}, "decoder": STACK},
    "recurrent": {
        "encoder": {"kind": "rnn", "size": 8, "cell": "lstm", "layers": 2},
        "decoder": {"kind": "rnn", "size": 8, "start": "bridge", "attention": {"kind": "global"}},
    },
}
TARGET = torch.tensor([[1, 4, 5, 2, 0], [1, 6, 7, 8, 2], [1, 3, 2, 0, 0]])


def model_of(name: str, document: dict[str, Any] | None) -> Seq2Seq:
    """The same weights with and without."""
    torch.manual_seed(1)
    page = {"embedding": 8, "dropout": 0.0, "document": document, **MODELS[name]}
    return ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(WORDS, WORDS)


def loss(model: Seq2Seq, before: Before | None) -> float:
    step = TrainingStep(model, ObjectiveSettings())
    return float(step(SOURCE, LENGTHS, TARGET, None, before).loss.detach())


@pytest.mark.parametrize("name", MODELS)
def test_a_closed_gate_is_the_model_of_sentences(name: str) -> None:
    """To the last bit, with the same weights; and one that is not closed is another model."""
    alone, reading = model_of(name, None), model_of(name, {"sentences": 3, "heads": 2})
    missing = reading.load_state_dict(alone.state_dict(), strict=False)
    assert not missing.unexpected_keys and all(key.startswith("document.") for key in missing.missing_keys)
    assert reading.sentences_before == 3 and alone.sentences_before == 0
    expected = loss(alone, None)
    assert loss(alone, BEFORE) == expected  # who reads sentences alone does not mind what is before
    assert loss(reading, None) == expected
    assert loss(reading, BEFORE) != expected
    with torch.no_grad():
        assert reading.document is not None
        reading.document.gate_bias.fill_(-torch.inf)
    assert loss(reading, BEFORE) == expected


@pytest.mark.parametrize("name", MODELS)
def test_no_sentence_before_any_is_the_model_of_sentences(name: str) -> None:
    reading = model_of(name, {"sentences": 2, "heads": 2})
    nothing = Before(torch.zeros(3, 2, 1, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.int64))
    assert loss(reading, nothing) == loss(reading, None)


def test_heads_must_divide_the_memory() -> None:
    with pytest.raises(ValueError, match=r"document\.heads 3 does not divide the encoder's size 8"):
        model_of("transformer", {"heads": 3})
