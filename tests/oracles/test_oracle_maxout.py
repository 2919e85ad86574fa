"""Oracles of the deep maxout output (Bahdanau 2015, appendix A.2.2), in every wiring, with `gold` and mixtures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fixtures import decoder_of, each_decoder, recurrent_model, redrawn
from formulas import Array, Loop, array, maxout, softmax
from torch import Tensor

from s2s.attention.global_ import Global
from s2s.interfaces import BOS, Attended, Attention, Decoded, Gold, Memory, Mixture
from s2s.models.cells import Luong, Readout, Unread
from s2s.models.seq2seq import Seq2Seq
from s2s.training.objective import ObjectiveSettings, TrainingStep
from s2s.tree import Tree

SOURCE, LENGTHS = torch.tensor([[5, 3, 7, 2]]), torch.tensor([4])
TARGET = torch.tensor([[BOS, 4, 6, 3, 4, 2]])
WORDS, GOLD = TARGET[:, :-1], TARGET[:, 1:]


def model_of(dropout: float = 0.0, tie: str = "none", **decoder: Any) -> Seq2Seq:
    """A model of width 6 over embeddings of width 3, with additive attention and maxout."""
    decoder = {"size": 6, "attention": {"kind": "global", "score": "additive"}, "readout": "maxout", **decoder}
    return redrawn(recurrent_model((9, 8), {}, decoder, dropout=dropout, tie=tie), 0.8)


def words_of(model: Seq2Seq, told: Array, context: Array, word: int) -> Array:
    """log p(y | context) (V,) read from the state ``told`` after ``word``."""
    decoder = decoder_of(model)
    parts = [told, context]
    if not isinstance(decoder.wiring, Luong):
        parts.append(array(decoder.embedding.weight[word]))
    joined = maxout(array(decoder.wiring.readout.join.weight), *parts)
    if decoder.narrow is not None:
        joined = array(decoder.narrow.weight) @ joined
    found: Array = np.log(softmax(array(decoder.output.weight) @ joined + array(decoder.output.bias)))
    return found


# --- the readout ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_fixture() -> None:
    """t~ = (1, 3, -2, -5) gives (3, -2): neighbours are the pairs, and no bias is added."""
    readout = Readout(1, 1, 0, 2, 0.0, "maxout")
    assert readout.join.weight.shape == (4, 2) and readout.join.bias is None
    readout.join.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 3.0], [-1.0, -1.0], [-5.0, 0.0]]))
    unread, context = Unread(torch.ones(1, 1), None, None), torch.ones(1, 1)
    assert readout(unread, context).tolist() == readout.stepper()(unread, context).tolist() == [[3.0, -2.0]]


def test_the_gradient_goes_to_the_larger_of_each_pair() -> None:
    readout = Readout(1, 1, 0, 2, 0.0, "maxout")
    with torch.no_grad():
        readout.join.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 3.0], [-1.0, -1.0], [-5.0, 0.0]]))
    readout(Unread(torch.ones(1, 1), None, None), torch.ones(1, 1)).sum().backward()
    gradient = readout.join.weight.grad
    assert gradient is not None and gradient.tolist() == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]


@torch.no_grad()
@each_decoder
def test_the_decoder_is_the_equations_of_the_paper(choice: dict[str, Any]) -> None:
    model = model_of(**choice)
    decoded, memory = model(SOURCE, LENGTHS, WORDS)
    words = model.decoder.logits(decoded, memory, torch.ones_like(WORDS, dtype=torch.bool)).log_softmax(-1)
    loop = Loop(model, SOURCE, LENGTHS, maxout)
    kept, state = model.start(SOURCE, LENGTHS)
    for time, word in enumerate(WORDS[0].tolist()):
        expected = loop(word)
        np.testing.assert_allclose(array(words[time]), expected, atol=1e-12)
        stepped, _, state = model.step(WORDS[:, time], kept, state)
        np.testing.assert_allclose(array(stepped[0]), expected, atol=1e-12)


@torch.no_grad()
def test_it_is_another_function_than_tanh_of_the_same_width() -> None:
    deep, plain = (decoder_of(model_of(wiring="luong", readout=kind)) for kind in ("maxout", "tanh"))
    assert deep.wiring.readout.size == plain.wiring.readout.size == 6
    assert deep.wiring.readout.join.weight.shape == (12, 10) and plain.wiring.readout.join.weight.shape == (6, 10)
    assert deep.output.weight.shape == plain.output.weight.shape


@each_decoder
def test_every_parameter_learns(choice: dict[str, Any]) -> None:
    model = model_of(dropout=0.1, **choice).train()
    torch.manual_seed(1)
    sums = TrainingStep(model, ObjectiveSettings())(SOURCE, LENGTHS, TARGET)
    sums.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any() and parameter.grad.isfinite().all(), name


# --- other contexts ---------------------------------------------------------------------------------------------------


class Asking(Attention):
    """Global attention that asks what other contexts would have given; with ``mixed`` its contexts are a mixture."""

    asks_gold = True

    def __init__(self, inner: Global, mixed: bool) -> None:
        super().__init__()
        self.inner, self.mixed, self.context_size = inner, mixed, inner.context_size

    def prepare(self, memory: Memory) -> Memory:
        return self.inner.prepare(memory)

    def forward(self, query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        attended, state = self.inner(query, memory, state)
        return attended._replace(mixture=Mixture(attended.weights.log()) if self.mixed else None), state

    def penalties(self, attended: Attended, memory: Memory, gold: Gold) -> dict[str, Tensor]:
        every = memory.values.unsqueeze(1).expand(-1, GOLD.size(1), -1, -1)  # (B, T, S, M)
        return {"as read": gold(), "same": gold(attended.context), "every": gold(every)}


def asking(choice: dict[str, Any], mixed: bool = False, **options: Any) -> Seq2Seq:
    """The model with `Asking` in it."""
    model = model_of(**options, **choice)
    decoder = decoder_of(model)
    assert isinstance(decoder.attention, Global)
    decoder.wiring.attention = Asking(decoder.attention, mixed)
    return model


def told_states(model: Seq2Seq, decoded: Decoded) -> Array:
    """The states (T, H) that words were read from."""
    unread = decoded.unread
    assert isinstance(unread, Unread)
    return array(unread.hidden[0])


@torch.no_grad()
@each_decoder
def test_words_are_read_from_the_state_that_the_loop_says(choice: dict[str, Any]) -> None:
    loop = Loop(model_of(**choice), SOURCE, LENGTHS, maxout)
    model = asking(choice)
    told = told_states(model, model(SOURCE, LENGTHS, WORDS)[0])
    for time, word in enumerate(WORDS[0].tolist()):
        loop(word)
        np.testing.assert_allclose(told[time], loop.told, atol=1e-12)


@torch.no_grad()
@each_decoder
@pytest.mark.parametrize("tie", ["none", "output"])
def test_gold_of_every_context(choice: dict[str, Any], tie: str) -> None:
    model = asking(choice, tie=tie)
    decoded, memory = model(SOURCE, LENGTHS, WORDS)
    found, told = model.decoder.penalties(decoded, memory, GOLD), told_states(model, decoded)
    torch.testing.assert_close(found["same"], found["as read"])
    for time, (word, right) in enumerate(zip(WORDS[0].tolist(), GOLD[0].tolist(), strict=True)):
        for place in range(4):
            exact = words_of(model, told[time], array(memory.values[0, place]), word)[right]
            assert float(found["every"][0, time, place]) == pytest.approx(exact, abs=1e-12)


@torch.no_grad()
@each_decoder
def test_gold_shares_the_dropout_of_what_was_read(choice: dict[str, Any]) -> None:
    model = asking(choice, dropout=0.4).train()
    torch.manual_seed(2)
    decoded, memory = model(SOURCE, LENGTHS, WORDS)
    found = model.decoder.penalties(decoded, memory, GOLD)
    torch.testing.assert_close(found["same"], found["as read"])
    assert decoded.unread.keep.shape == (1, 5, 6) and (decoded.unread.keep == 0).any()
    assert (decoded.features[decoded.unread.keep == 0] == 0).all()


@torch.no_grad()
@each_decoder
def test_a_mixture_is_read_out_by_enumeration(choice: dict[str, Any]) -> None:
    model = asking(choice, mixed=True)
    decoded, memory = model(SOURCE, LENGTHS, WORDS)
    assert decoded.weights is not None
    told = told_states(model, decoded)
    words = model.decoder.logits(decoded, memory, torch.ones_like(WORDS, dtype=torch.bool))
    for time, word in enumerate(WORDS[0].tolist()):
        likelihood = np.zeros(8)
        for place in range(4):
            context = array(memory.values[0, place])
            likelihood += float(decoded.weights[0, time, place]) * np.exp(words_of(model, told[time], context, word))
        np.testing.assert_allclose(array(words[time].exp()), likelihood, atol=1e-12)
