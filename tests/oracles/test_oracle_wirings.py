"""Oracles of the scores (O-B1 to O-B4, O-L1, O-L2), the wirings (O-L3, O-L4) and no attention (O-N1 to O-N3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from formulas import Array, array, softmax, step
from pydantic import TypeAdapter
from torch import Tensor, nn

from s2s.attention.global_ import Global, GlobalSettings
from s2s.attention.none import NoneSettings, Summary
from s2s.attention.scores import Additive, AnyScore, Dot, General, Location, Score
from s2s.config import AnyDecoder, AnyEncoder
from s2s.interfaces import BOS, Attended, Memory
from s2s.models.cells import Bahdanau, ConditionalGRU, Luong
from s2s.models.recurrence import RecurrentLayer
from s2s.models.rnn_decoder import RNNDecoder
from s2s.models.rnn_encoder import RNNEncoder
from s2s.models.seq2seq import ModelSettings, Seq2Seq

QUERY = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
VALUES = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]], dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def redraw(module: nn.Module) -> None:
    """New parameters in float64."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.double().eval().parameters():
            parameter.uniform_(-0.8, 0.8, generator=generator)


def score(query_size: int, memory_size: int, **options: Any) -> Score:
    """A score by its settings, redrawn."""
    settings: Any = TypeAdapter(AnyScore).validate_python(options)
    built: Score = settings.build(query_size, memory_size)
    redraw(built)
    return built


def attend(scorer: Score, query: Tensor, values: Tensor, lengths: tuple[int, ...] | None = None) -> Attended:
    """What global softmax attention with this score reads."""
    attention = Global(scorer, "softmax", values.size(-1))
    ends = torch.tensor(lengths or (values.size(1),) * values.size(0))
    memory = attention.prepare(Memory(values, torch.arange(values.size(1)) < ends.unsqueeze(1), ends))
    found, _ = attention(query, memory, attention.start(memory))
    assert isinstance(found, Attended)
    return found


def weights_of(attended: Attended) -> Tensor:
    """The weights, which are there."""
    assert attended.weights is not None
    return attended.weights


# --- scores -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_ob1_additive_fixture() -> None:
    scorer = Additive(2, 2, 2, normed=False, identity_source=False).double()
    assert scorer.source is not None
    scorer.query.weight.copy_(0.5 * torch.eye(2))
    scorer.source.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    scorer.vector.copy_(torch.tensor([1.0, 2.0]))
    found, scores = attend(scorer, QUERY, VALUES), scorer(QUERY, scorer.keys(VALUES))
    np.testing.assert_allclose(array(scores[0, 0]), [-0.0190861, -1.3481794, -0.9051483], rtol=0, atol=1e-6)
    np.testing.assert_allclose(array(weights_of(found)[0, 0]), [0.5963053, 0.1578523, 0.2458424], rtol=0, atol=1e-6)
    np.testing.assert_allclose(array(found.context[0, 0]), [0.8421477, 0.4036947], rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["additive", "concat"])
def test_ob2_without_a_vector_attention_is_uniform_over_the_real_positions(kind: str) -> None:
    scorer = score(5, 3, kind=kind)
    assert isinstance(scorer, Additive)
    scorer.vector.zero_()
    found = weights_of(attend(scorer, random(2, 3, 5), random(2, 4, 3), (4, 2)))
    torch.testing.assert_close(found[0], torch.full((3, 4), 0.25).double())
    torch.testing.assert_close(found[1], torch.tensor([0.5, 0.5, 0, 0]).double().expand(3, 4))


@torch.no_grad()
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("identity_source", [False, True])
def test_ob3_precomputed_keys_are_the_formula(normed: bool, identity_source: bool) -> None:
    """v . tanh(W q + U h (+ b)), with g v / |v| for v where normed, U the identity where it is left out."""
    scorer = score(5, 3, kind="additive", normed=normed, identity_source=identity_source, size=3)
    assert isinstance(scorer, Additive)
    query, values = random(2, 4, 5), random(2, 6, 3, seed=1)
    found = scorer(query, scorer.keys(values))
    w, v = array(scorer.query.weight), array(scorer.vector)
    u = np.eye(3) if scorer.source is None else array(scorer.source.weight)
    if scorer.gain is not None:
        v = float(scorer.gain) * v / np.sqrt((v**2).sum())
    bias = np.zeros(3) if scorer.bias is None else array(scorer.bias)
    assert (scorer.source is None) == identity_source and (scorer.bias is not None) == normed
    for b, t, s in np.ndindex(2, 4, 6):
        expected = v @ np.tanh(w @ array(query[b, t]) + u @ array(values[b, s]) + bias)
        assert float(found[b, t, s]) == pytest.approx(expected, abs=1e-12)


@torch.no_grad()
def test_ob4_additive_scores_are_bounded_by_the_vector() -> None:
    scorer = score(5, 3, kind="additive", size=500)
    assert isinstance(scorer, Additive)
    found = scorer(100 * random(2, 4, 5), scorer.keys(100 * random(2, 6, 3)))
    bound = float(scorer.vector.abs().sum())
    assert float(found.abs().max()) <= bound


@torch.no_grad()
def test_ol1_dot_fixture() -> None:
    scorer = Dot(2, 2, scaled=False)
    torch.testing.assert_close(scorer(QUERY, scorer.keys(VALUES))[0, 0], torch.tensor([1.0, -1, 0]).double())
    expected = torch.tensor([0.6652410, 0.0900306, 0.2447285]).double()
    torch.testing.assert_close(weights_of(attend(scorer, QUERY, VALUES))[0, 0], expected, rtol=0, atol=1e-6)
    assert not list(scorer.parameters())


@torch.no_grad()
def test_ol2_general_with_the_identity_is_dot() -> None:
    general, query, values = General(3, 3, scaled=False).double(), random(2, 4, 3), random(2, 6, 3, seed=1)
    general.project.weight.copy_(torch.eye(3))
    expected = weights_of(attend(Dot(3, 3, scaled=False), query, values))
    torch.testing.assert_close(weights_of(attend(general, query, values)), expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dot", "general"])
@pytest.mark.parametrize("scaled", [False, True])
def test_products_are_the_formula(kind: str, scaled: bool) -> None:
    """g (h . W h_j); the dot score has a W only where the widths differ."""
    scorer, query, values = score(5, 3, kind=kind, scaled=scaled), random(2, 4, 5), random(2, 6, 3, seed=1)
    assert isinstance(scorer, Dot | General) and scorer.project is not None
    scale = 1.0 if scorer.scale is None else float(scorer.scale)
    assert (scorer.scale is not None) == scaled
    found = scorer(query, scorer.keys(values))
    for b, t, s in np.ndindex(2, 4, 6):
        expected = scale * array(query[b, t]) @ (array(scorer.project.weight) @ array(values[b, s]))
        assert float(found[b, t, s]) == pytest.approx(expected, abs=1e-12)


@torch.no_grad()
def test_ol2_location_does_not_look_at_the_words() -> None:
    scorer, query = score(5, 3, kind="location", max_length=4), random(2, 3, 5)
    assert isinstance(scorer, Location)
    found = weights_of(attend(scorer, query, random(2, 6, 3), (6, 2)))
    assert torch.equal(found, weights_of(attend(scorer, query, random(2, 6, 3, seed=9), (6, 2))))
    for b, real in enumerate((4, 2)):
        for t in range(3):
            expected = softmax(array(scorer.rows.weight)[:real] @ array(query[b, t]))
            np.testing.assert_allclose(array(found[b, t]), np.append(expected, np.zeros(6 - real)), atol=1e-12)


# --- wirings ----------------------------------------------------------------------------------------------------------

SOURCE, WORDS = torch.tensor([[5, 3, 7, 2]]), torch.tensor([[BOS, 4, 6, 3, 4]])
LENGTHS = torch.tensor([4])


def model_of(encoder: dict[str, Any] | None = None, **decoder: Any) -> Seq2Seq:
    """A redrawn model of width 6 over embeddings of width 3, with additive attention unless said otherwise."""
    attention = {"kind": "global", "score": "additive"}
    reads = {"kind": "rnn", "size": 4, "cell": "gru", **(encoder or {})}
    writes = {"kind": "rnn", "size": 6, "cell": "gru", "start": "mean", "attention": attention, **decoder}
    page = {"embedding": 3, "tie": "none", "dropout": 0.0, "encoder": reads, "decoder": writes}
    model = ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(9, 8)
    redraw(model)
    return model


class Loop:
    """The decoder of a model as the papers write it: one sentence, one word and one source position at a time."""

    def __init__(self, model: Seq2Seq) -> None:
        assert isinstance(model.decoder, RNNDecoder)
        self.decoder, self.memory = model.decoder, model.encoder(SOURCE, LENGTHS)
        self.rows = array(self.memory.values[0])
        first = model.decoder.first(self.memory)
        self.h = [array(layer.hidden[0]) for layer in first]
        self.c = [None if layer.cell is None else array(layer.cell[0]) for layer in first]
        self.fed = np.zeros(model.decoder.wiring.readout.size)

    def attend(self, query: Array) -> Array:
        """sum_j a_j h_j with a = softmax(v . tanh(W q + U h_j))."""
        scorer: Any = self.decoder.attention.score
        w, u, v = array(scorer.query.weight), array(scorer.source.weight), array(scorer.vector)
        a = softmax(np.array([v @ np.tanh(w @ query + u @ row) for row in self.rows]))
        self.weights = a
        return sum((a[j] * row for j, row in enumerate(self.rows)), np.zeros(self.rows.shape[1]))

    def recur(self, layers: nn.ModuleList, x: Array, fed: Array | None) -> Array:
        """All layers once; the vector that is fed back goes into the bottom one."""
        for n, layer in enumerate(layers):
            assert isinstance(layer, RecurrentLayer)
            self.h[n], self.c[n] = step(layer, x, self.h[n], self.c[n], fed if n == 0 else None)
            x = self.h[n]
        return x

    def read(self, *parts: Array) -> Array:
        """h~ = tanh(W [...])."""
        found: Array = np.tanh(array(self.decoder.wiring.readout.join.weight) @ np.concatenate(parts))
        return found

    def __call__(self, word: int) -> Array:
        """Log-probabilities of the word after this one."""
        wiring, embedded = self.decoder.wiring, array(self.decoder.embedding.weight[word])
        if isinstance(wiring, Luong):
            h = self.recur(wiring.recurrence.layers, embedded, self.fed if wiring.feeds_back else None)
            joined = self.fed = self.read(h, self.attend(h))
        elif isinstance(wiring, Bahdanau):
            context = self.attend(self.h[-1])
            h = self.recur(wiring.recurrence.layers, embedded, context)
            joined = self.read(h, context, embedded)
        else:
            assert isinstance(wiring, ConditionalGRU)
            between, _ = step(wiring.first, embedded, self.h[0], None)
            context = self.attend(between)
            self.h[0], _ = step(wiring.second, context, between, None)
            joined = self.read(self.h[0], context, embedded)
        scores = array(self.decoder.output.weight) @ joined + array(self.decoder.output.bias)
        found: Array = np.log(softmax(scores))
        return found


CHOICES: list[dict[str, Any]] = [
    {"wiring": "luong"},
    {"wiring": "luong", "cell": "lstm", "layers": 2},
    {"wiring": "luong", "input_feeding": False, "cell": "lstm", "layers": 2},
    {"wiring": "bahdanau"},
    {"wiring": "bahdanau", "cell": "lstm", "layers": 2},
    {"wiring": "cgru"},
]


@torch.no_grad()
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_wirings_are_the_equations_of_their_papers(choice: dict[str, Any]) -> None:
    model = model_of(**choice)
    decoded, memory = model(SOURCE, LENGTHS, WORDS)
    loop, everywhere = Loop(model), torch.ones_like(WORDS, dtype=torch.bool)
    words = model.decoder.logits(decoded, memory, everywhere).log_softmax(-1)
    assert decoded.weights is not None
    for time, word in enumerate(WORDS[0].tolist()):
        np.testing.assert_allclose(array(words[time]), loop(word), atol=1e-12)
        np.testing.assert_allclose(array(decoded.weights[0, time]), loop.weights, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_ol3_without_its_columns_input_feeding_is_no_input_feeding(cell: str) -> None:
    feeding, plain = (model_of(wiring="luong", cell=cell, layers=2, input_feeding=feeds) for feeds in (True, False))
    values = plain.state_dict()
    for name, value in feeding.state_dict().items():
        if value.shape != values[name].shape:  # the recurrent matrix of the bottom layer, fed columns behind its own
            assert name.endswith("layers.0.weight_recurrent")
            value[:, 6:] = 0.0
            value[:, :6] = values[name]
        else:
            value.copy_(values[name])
    expected, found = (model(SOURCE, LENGTHS, WORDS)[0].features for model in (plain, feeding))
    torch.testing.assert_close(found, expected)
    name = "decoder.wiring.recurrence.layers.0.weight_recurrent"
    feeding.state_dict()[name][:, 6:] = 0.1
    assert not torch.allclose(feeding(SOURCE, LENGTHS, WORDS)[0].features, expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dot", "general", "additive", "concat", "location"])
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_ol4_teacher_forcing_is_step_by_step(kind: str, choice: dict[str, Any]) -> None:
    scorer = {"kind": kind} | ({"max_length": 3} if kind == "location" else {})
    model = model_of(attention={"kind": "global", "score": scorer}, **choice)
    decoded, memory = model(SOURCE, LENGTHS, WORDS)
    whole = model.decoder.logits(decoded, memory, torch.ones_like(WORDS, dtype=torch.bool)).log_softmax(-1)
    memory, state = model.start(SOURCE, LENGTHS)
    for time in range(WORDS.size(1)):
        words, _, state = model.step(WORDS[:, time], memory, state)
        torch.testing.assert_close(words[0], whole[time])


# --- no attention -----------------------------------------------------------------------------------------------------

NONE = {"kind": "none"}


@pytest.mark.parametrize("wiring", ["luong", "bahdanau"])
def test_on1_from_a_zero_state_the_source_has_no_influence(wiring: str) -> None:
    model = model_of(wiring=wiring, start="zero", attention=NONE)
    decoded, _ = model(SOURCE, LENGTHS, WORDS)
    other, _ = model(torch.tensor([[8, 8]]), torch.tensor([2]), WORDS)
    assert torch.equal(decoded.features, other.features)
    values = torch.autograd.grad(decoded.features.sum(), list(model.encoder.parameters()), allow_unused=True)
    assert all(value is None or not value.any() for value in values)
    assert not torch.equal(
        model_of(wiring=wiring, attention=NONE)(SOURCE, LENGTHS, WORDS)[0].features,
        model_of(wiring=wiring, attention=NONE)(torch.tensor([[8, 8]]), torch.tensor([2]), WORDS)[0].features,
    )


def test_on2_there_are_no_weights_to_show() -> None:
    model = model_of(wiring="luong", attention=NONE)
    memory, state = model.start(SOURCE, LENGTHS, frozenset({"weights", "trace"}))
    decoded, _ = model.decoder(WORDS, memory, state)
    assert decoded.weights is None and model.step(WORDS[:, 0], memory, state)[1] is None


@torch.no_grad()
def test_the_summary_is_read_at_every_step() -> None:
    """c = tanh(V [forward last ; backward first]) (Cho et al. 2014), whatever the query."""
    built, model = NoneSettings(kind="none", context="summary").build(6, 4), model_of({"layers": 2})
    assert isinstance(built, Summary)
    redraw(built)
    memory = built.prepare(model.encoder(SOURCE, LENGTHS))
    attended, _ = built(random(1, 3, 6), memory, built.start(memory))
    forwards, backwards = memory.values[0, -1, :2], memory.values[0, 0, 2:]
    expected = np.tanh(
        array(built.project.weight) @ array(torch.cat([forwards, backwards])) + array(built.project.bias)
    )
    np.testing.assert_allclose(array(attended.context[0]), np.stack([expected] * 3), atol=1e-12)
    assert attended.weights is None


@torch.no_grad()
def test_on3_reading_in_reverse() -> None:
    """It changes the memory of a recurrent encoder; reversing twice does not."""
    forwards, backwards = (model_of({"bidirectional": False, "reverse": turned}).encoder for turned in (False, True))
    assert isinstance(forwards, RNNEncoder) and isinstance(backwards, RNNEncoder)
    plain, turned = forwards(SOURCE, LENGTHS), backwards(SOURCE, LENGTHS)
    assert not torch.allclose(plain.values, turned.values)
    twice = backwards(SOURCE.flip(1), LENGTHS)
    torch.testing.assert_close(twice.values.flip(1), plain.values)
    assert plain.final is not None and twice.final is not None
    torch.testing.assert_close(twice.final.hidden, plain.final.hidden)


def test_the_settings_give_what_they_say() -> None:
    assert isinstance(GlobalSettings.model_validate({"kind": "global", "score": "dot"}).build(4, 4).score, Dot)
    assert isinstance(GlobalSettings(kind="global").build(4, 4).score, General)
