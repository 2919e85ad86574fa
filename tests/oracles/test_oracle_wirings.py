"""Oracles of the scores (O-B1 to O-B4, O-L1, O-L2), the wirings (O-L3, O-L4) and no attention (O-N1 to O-N3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fixtures import attend, each_decoder, memory_of, random, recurrent_model, redrawn, weights_of
from formulas import Loop, array, softmax, tanh_readout
from pydantic import TypeAdapter
from torch import Tensor

from s2s.attention.global_ import Global, GlobalSettings
from s2s.attention.none import NoneSettings, Summary
from s2s.attention.scores import Additive, AnyScore, Dot, General, Location, Score
from s2s.interfaces import BOS, Attended
from s2s.models.rnn_encoder import RNNEncoder
from s2s.models.seq2seq import Seq2Seq

QUERY = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
VALUES = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]], dtype=torch.float64)


def score(query_size: int, memory_size: int, **options: Any) -> Score:
    """A score by its settings, redrawn."""
    settings: Any = TypeAdapter(AnyScore).validate_python(options)
    built: Score = settings.build(query_size, memory_size)
    return redrawn(built, 0.8)


def read_by(scorer: Score, query: Tensor, values: Tensor, lengths: tuple[int, ...] | None = None) -> Attended:
    """What global softmax attention with this score reads."""
    return attend(Global(scorer, "softmax", values.size(-1)), query, memory_of(values, lengths))


# --- scores -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_ob1_additive_fixture() -> None:
    scorer = Additive(2, 2, 2, normed=False, identity_source=False).double()
    assert scorer.source is not None
    scorer.query.weight.copy_(0.5 * torch.eye(2))
    scorer.source.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    scorer.vector.copy_(torch.tensor([1.0, 2.0]))
    found, scores = read_by(scorer, QUERY, VALUES), scorer(QUERY, scorer.keys(VALUES))
    np.testing.assert_allclose(array(scores[0, 0]), [-0.0190861, -1.3481794, -0.9051483], rtol=0, atol=1e-6)
    np.testing.assert_allclose(array(weights_of(found)[0, 0]), [0.5963053, 0.1578523, 0.2458424], rtol=0, atol=1e-6)
    np.testing.assert_allclose(array(found.context[0, 0]), [0.8421477, 0.4036947], rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["additive", "concat"])
def test_ob2_without_a_vector_attention_is_uniform_over_the_real_positions(kind: str) -> None:
    scorer = score(5, 3, kind=kind)
    assert isinstance(scorer, Additive)
    scorer.vector.zero_()
    found = weights_of(read_by(scorer, random(2, 3, 5), random(2, 4, 3), (4, 2)))
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
    torch.testing.assert_close(weights_of(read_by(scorer, QUERY, VALUES))[0, 0], expected, rtol=0, atol=1e-6)
    assert not list(scorer.parameters())


@torch.no_grad()
def test_ol2_general_with_the_identity_is_dot() -> None:
    general, query, values = General(3, 3, scaled=False).double(), random(2, 4, 3), random(2, 6, 3, seed=1)
    general.project.weight.copy_(torch.eye(3))
    expected = weights_of(read_by(Dot(3, 3, scaled=False), query, values))
    torch.testing.assert_close(weights_of(read_by(general, query, values)), expected)


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
    found = weights_of(read_by(scorer, query, random(2, 6, 3), (6, 2)))
    assert torch.equal(found, weights_of(read_by(scorer, query, random(2, 6, 3, seed=9), (6, 2))))
    for b, real in enumerate((4, 2)):
        for t in range(3):
            expected = softmax(array(scorer.rows.weight)[:real] @ array(query[b, t]))
            np.testing.assert_allclose(array(found[b, t]), np.append(expected, np.zeros(6 - real)), atol=1e-12)


# --- wirings ----------------------------------------------------------------------------------------------------------

SOURCE, WORDS = torch.tensor([[5, 3, 7, 2]]), torch.tensor([[BOS, 4, 6, 3, 4]])
LENGTHS = torch.tensor([4])


def model_of(encoder: dict[str, Any] | None = None, **decoder: Any) -> Seq2Seq:
    """A redrawn model of width 6 over embeddings of width 3, with additive attention unless said otherwise."""
    decoder = {"size": 6, "attention": {"kind": "global", "score": "additive"}, **decoder}
    return redrawn(recurrent_model((9, 8), encoder or {}, decoder), 0.8)


@torch.no_grad()
@each_decoder
def test_wirings_are_the_equations_of_their_papers(choice: dict[str, Any]) -> None:
    model = model_of(**choice)
    decoded, memory = model(SOURCE, LENGTHS, WORDS)
    loop, everywhere = Loop(model, SOURCE, LENGTHS, tanh_readout), torch.ones_like(WORDS, dtype=torch.bool)
    words = model.decoder.logits(decoded, memory, everywhere).log_softmax(-1)
    assert decoded.weights is not None
    for time, word in enumerate(WORDS[0].tolist()):
        np.testing.assert_allclose(array(words[time]), loop(word), atol=1e-12)
        np.testing.assert_allclose(array(decoded.weights[0, time]), loop.weights, atol=1e-12)


@torch.no_grad()
def test_in_gnmt_the_bottom_layer_asks_and_every_layer_reads() -> None:
    """Weights do not depend on what the layers above do, and what each layer does depends on what was read."""
    model = model_of(wiring="gnmt", layers=3)
    layers = model.decoder.get_submodule("wiring.recurrence.layers")

    def outcome() -> tuple[Tensor, list[Tensor]]:
        decoded, _ = model(SOURCE, LENGTHS, WORDS[:, :2])
        assert decoded.weights is not None
        memory, state = model.start(SOURCE, LENGTHS)
        return decoded.weights, [layer.hidden for layer in model.step(WORDS[:, 0], memory, state)[2].layers]

    weights, hidden = outcome()
    for number, layer in enumerate(layers.children()):
        recurrent: Any = layer.weight_recurrent
        assert recurrent.size(1) == 6 + 4, "its own past, and the context of width 4"
        kept = recurrent[:, 6:].clone()
        recurrent[:, 6:] = 0.0
        other, after = outcome()
        recurrent[:, 6:] = kept
        assert torch.equal(weights, other) == (number > 0)
        changed = [not torch.equal(one, two) for one, two in zip(hidden, after, strict=True)]
        assert changed == [n >= number for n in range(3)]


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
@each_decoder
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
    redrawn(built, 0.8)
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
