"""Oracles of the Transformer (O-T1 to O-T4, O-T6 to O-T9) against the formulas of Vaswani et al. 2017."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import random, redrawn
from formulas import Array, array, softmax
from torch import Tensor, nn

from s2s.config import AnyDecoder, AnyEncoder
from s2s.interfaces import BOS, Memory
from s2s.models import heads
from s2s.models.heads import MultiHead, SelfAttention
from s2s.models.layers import sinusoids
from s2s.models.seq2seq import ModelSettings, Seq2Seq
from s2s.models.transformer import Layer, TransformerDecoder, TransformerEncoder

DOUBLE = torch.zeros(1, dtype=torch.float64)
SOURCE, LENGTHS = torch.tensor([[5, 3, 7, 2], [6, 4, 2, 0]]), torch.tensor([4, 3])
WORDS = torch.tensor([[BOS, 4, 6, 3, 4], [BOS, 7, 7, 3, 5]])


def model_of(**stack: Any) -> Seq2Seq:
    """A redrawn Transformer of width 8."""
    both = {"kind": "transformer", "size": 8, "layers": 2, "heads": 2, "feedforward": 10, **stack}
    page = {"embedding": 8, "tie": "none", "dropout": 0.0, "encoder": both, "decoder": both}
    model = ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(9, 8)
    return redrawn(model)


# --- positions --------------------------------------------------------------------------------------------------------


def test_ot1_sinusoids_of_position_one() -> None:
    expected = torch.tensor([[0.841471, 0.540302, 0.0099998, 0.99995]], dtype=torch.float64)
    torch.testing.assert_close(sinusoids(1, 1, 4, DOUBLE), expected, rtol=0, atol=1e-6)


def test_sinusoids_are_the_formula() -> None:
    found = sinusoids(3, 60, 10, DOUBLE)
    for row, column in np.ndindex(60, 10):
        angle = (row + 3) / 10000 ** (2 * (column // 2) / 10)
        assert float(found[row, column]) == pytest.approx((math.cos if column % 2 else math.sin)(angle), abs=1e-5)


def test_ot2_a_shift_is_a_rotation() -> None:
    size, shift = 8, 5
    found = sinusoids(0, 30, size, DOUBLE)
    for pair in range(size // 2):
        rate = 10000 ** (-2 * pair / size)
        here, there = found[:-shift, 2 * pair : 2 * pair + 2], found[shift:, 2 * pair : 2 * pair + 2]
        c, s = math.cos(rate * shift), math.sin(rate * shift)
        rotation = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)  # (sin, cos) -> (sin + shift, cos + shift)
        torch.testing.assert_close(here @ rotation, there, rtol=0, atol=1e-5)


# --- attention --------------------------------------------------------------------------------------------------------


def identity(size: int, heads: int) -> MultiHead:
    """An attention whose every projection is the identity."""
    attention = MultiHead(size, size, heads, heads, 0.0).double().eval()
    with torch.no_grad():
        attention.query.copy_(torch.eye(size))
        attention.key_value.copy_(torch.eye(size).repeat(2, 1))
        attention.output.weight.copy_(torch.eye(size))
        attention.output.bias.zero_()
    return attention


def reads(attention: MultiHead, x: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """What x (B, T, d) reads of memory values (B, S, d) without padding, and the weights."""
    real = torch.ones(values.shape[:2], dtype=torch.bool)
    memory = Memory(values, real, real.sum(1))
    found, weights, _ = attention(x, memory, attention.read(memory), ())
    return found, weights


@torch.no_grad()
def test_ot3_scaled_dot_product_fixture() -> None:
    attention = identity(4, 1)
    keys = torch.tensor([[[1.0, 0, 1, 0], [0, 1, 0, 1]]], dtype=torch.float64)
    context, weights = reads(attention, keys[:, :1], keys)
    expected = torch.tensor([0.731059, 0.268941], dtype=torch.float64)  # scores 2 / sqrt(4) and 0
    torch.testing.assert_close(weights[0, 0, 0], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(context[0, 0], expected @ keys[0], rtol=0, atol=1e-6)


@torch.no_grad()
def test_ot8_one_head_with_identities_is_plain_attention() -> None:
    attention, x, memory = identity(6, 1), random(2, 3, 6), random(2, 5, 6, seed=1)
    found, weights = reads(attention, x, memory)
    for b, t in np.ndindex(2, 3):
        rows = array(memory[b])
        expected = softmax(rows @ array(x[b, t]) / math.sqrt(6))
        np.testing.assert_allclose(array(weights[b, 0, t]), expected, atol=1e-12)
        np.testing.assert_allclose(array(found[b, t]), expected @ rows, atol=1e-12)


def heads_of(attention: MultiHead | SelfAttention, queries: Array, memory: Array, causal: bool) -> Array:
    """concat(head_1 ..) W_O, each head's rows of the projections by themselves, one query after the other."""
    width, results = attention.size // attention.heads, []
    keys, values = array(attention.key_value)[: attention.size], array(attention.key_value)[attention.size :]
    key_bias, value_bias = np.split(array(attention.key_value_bias), 2)
    for t, x in enumerate(queries):
        heads = []
        for head in range(attention.heads):
            rows = slice(head * width, (head + 1) * width)
            q = array(attention.query)[rows] @ x + array(attention.query_bias)[rows]
            seen = memory[: t + 1] if causal else memory
            k, v = seen @ keys[rows].T + key_bias[rows], seen @ values[rows].T + value_bias[rows]
            heads.append(softmax(k @ q / math.sqrt(width)) @ v)
        results.append(array(attention.output.weight) @ np.concatenate(heads) + array(attention.output.bias))
    return np.stack(results)


def normed(norm: nn.LayerNorm | None, x: Array) -> Array:
    """gain (x - mean) / sqrt(variance + eps) + bias; x itself where there is no norm."""
    if norm is None:
        return x
    centred = x - x.mean(1, keepdims=True)
    found: Array = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * array(norm.weight) + array(norm.bias)
    return found


def through(layer: Layer, x: Array, memory: Array | None, activation: str) -> Array:
    """One layer as the paper (post) or Chen et al. 2018 (pre) write it."""

    def inner(y: Array) -> Array:
        first, last = layer.feedforward[0], layer.feedforward[3]
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        inside = y @ array(first.weight).T + array(first.bias)
        gelu = np.vectorize(lambda z: z * 0.5 * (1 + math.erf(z / math.sqrt(2))))
        inside = np.maximum(inside, 0) if activation == "relu" else gelu(inside)
        found: Array = inside @ array(last.weight).T + array(last.bias)
        return found

    across, own = layer.across, layer.own
    assert across is None or isinstance(across, MultiHead)
    parts = [lambda y: heads_of(own, y, y, causal=memory is not None)]
    if across is not None and memory is not None:
        parts.append(lambda y: heads_of(across, y, memory, causal=False))
    for norm, part in zip(layer.norms, [*parts, inner], strict=True):
        assert isinstance(norm, nn.LayerNorm)
        x = x + part(normed(norm, x)) if layer.pre else normed(norm, x + part(x))
    return x


@torch.no_grad()
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_whole_model_is_the_formula(norm: str, positions: str, activation: str) -> None:
    model = model_of(norm=norm, positions=positions, activation=activation)
    decoded, _ = model(SOURCE, LENGTHS, WORDS)
    encoder, decoder = model.encoder, model.decoder
    assert isinstance(encoder, TransformerEncoder) and isinstance(decoder, TransformerDecoder)
    assert (encoder.norm is not None) == (decoder.norm is not None) == (norm == "pre")
    for row, length in enumerate(LENGTHS.tolist()):
        states: list[Array] = []
        for side, ids in ((encoder, SOURCE[row, :length]), (decoder, WORDS[row])):
            x = math.sqrt(8) * array(side.input.embedding.weight)[ids.numpy()]
            learned = side.input.learned
            where = sinusoids(0, len(ids), 8, DOUBLE) if learned is None else learned.weight[: len(ids)]
            assert (learned is not None) == (positions == "learned")
            x = x + array(where)
            for layer in side.layers:
                assert isinstance(layer, Layer)
                x = through(layer, x, states[0] if states else None, activation)
            states.append(normed(side.norm, x))
        np.testing.assert_allclose(array(decoded.features[row]), states[1], atol=1e-10)


# --- what the model must and must not see -----------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_ot4_later_words_have_no_influence(norm: str) -> None:
    model = model_of(norm=norm)
    expected = model(SOURCE, LENGTHS, WORDS)[0].features
    for position in range(1, WORDS.size(1)):
        changed = WORDS.clone()
        changed[:, position:] = 5
        found = model(SOURCE, LENGTHS, changed)[0].features
        assert torch.equal(found[:, :position], expected[:, :position])
    assert not torch.allclose(found[:, -1], expected[:, -1])


@torch.no_grad()
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_ot6_cached_steps_are_the_full_pass(norm: str, positions: str) -> None:
    model = model_of(norm=norm, positions=positions)
    memory, state = model.start(SOURCE, LENGTHS)
    expected = model(SOURCE, LENGTHS, WORDS)[0].features
    for time in range(WORDS.size(1)):
        decoded, state = model.decoder(WORDS[:, time : time + 1], memory, state)
        torch.testing.assert_close(decoded.features[:, 0], expected[:, time])


@torch.no_grad()
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_ot7_without_positions_the_encoder_is_equivariant(norm: str) -> None:
    model, order = model_of(norm=norm, positions="learned"), torch.tensor([2, 0, 3, 1])
    source, lengths = SOURCE[:1], LENGTHS[:1]
    assert isinstance(model.encoder, TransformerEncoder) and model.encoder.input.learned is not None
    assert not torch.allclose(
        model.encoder(source[:, order], lengths).values, model.encoder(source, lengths).values[:, order]
    )
    model.encoder.input.learned.weight.zero_()
    torch.testing.assert_close(
        model.encoder(source[:, order], lengths).values, model.encoder(source, lengths).values[:, order]
    )


@torch.no_grad()
def test_shown_weights_are_the_mean_over_layers_and_heads() -> None:
    model = model_of(layers=1, norm="post")
    decoded, memory = model(SOURCE, LENGTHS, WORDS, frozenset({"weights"}))
    assert decoded.weights.shape == (2, 5, 4) and model(SOURCE, LENGTHS, WORDS)[0].weights is None
    (layer,) = model.decoder.layers  # type: ignore[misc]
    x = model.decoder.input(WORDS, 0)  # type: ignore[operator]
    x = layer.norms[0](x + torch.from_numpy(np.stack([heads_of(layer.own, row, row, causal=True) for row in array(x)])))
    keys, query = memory.keys[0].read.keys, nn.functional.linear(x, layer.across.query, layer.across.query_bias)
    for b, t, length in ((0, 3, 4), (1, 2, 3)):
        each = [softmax(array(keys[b, head, :length] @ query[b, t, 4 * head : 4 * head + 4]) / 2) for head in (0, 1)]
        np.testing.assert_allclose(array(decoded.weights[b, t, :length]), (each[0] + each[1]) / 2, atol=1e-12)


def test_ot9_parameters_of_the_tiny_configuration() -> None:
    """4 + 4 layers of width 128, feed-forward 256, one matrix of 9,712 words: 2,568,192, and an output bias here.

    An attention: 4 (128^2 + 128). A feed-forward part: 2 x 128 x 256 + 256 + 128. A norm: 2 x 128.
    """
    stack = {"kind": "transformer", "size": 128, "layers": 4, "heads": 4, "feedforward": 256, "norm": "post"}
    page = {"embedding": 128, "tie": "all", "encoder": stack, "decoder": stack}
    model = ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(9712, 9712)
    attention, inner, norm = 4 * (128**2 + 128), 2 * 128 * 256 + 256 + 128, 2 * 128
    layers = 4 * (attention + inner + 2 * norm) + 4 * (2 * attention + inner + 3 * norm)
    assert layers + 9712 * 128 == 2_568_192
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_568_192 + 9712


def test_projections_start_within_their_xavier_bound() -> None:
    """Each of Q, K and V by itself, with gain 1 / sqrt(2); biases zero."""
    torch.manual_seed(0)
    attention = MultiHead(64, 32, 4, 4, 0.0)
    for block, width in ((attention.query, 64), (attention.key_value[:64], 32), (attention.key_value[64:], 32)):
        bound = math.sqrt(6 / (64 + width)) / math.sqrt(2)
        assert 0.95 * bound < float(block.detach().abs().max()) <= bound
    assert not attention.query_bias.any() and not attention.key_value_bias.any()


# --- bf16 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["sinusoidal", "relative", "rotary", "alibi"])
def test_in_a_search_in_bf16_queries_keys_and_values_meet_in_float32(
    positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training they meet in bf16."""
    kinds: set[torch.dtype] = set()

    def watched(query: Tensor, lanes: Any, *rest: Any) -> tuple[Tensor, Tensor]:
        context, weights = attended(query, lanes, *rest)
        kinds.update(part.dtype for (keys, values), _ in lanes for part in (query, keys, values, context))
        return context, weights

    attended = heads._attend
    monkeypatch.setattr(heads, "_attend", watched)
    model = model_of(positions=positions).float()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            memory, state = model.start(SOURCE, LENGTHS)
            for word in WORDS.unbind(1):
                _, _, state = model.step(word, memory, state)
        assert kinds == {torch.float32}
        kinds.clear()
        model.decoder(WORDS, *model.start(SOURCE, LENGTHS))
        assert kinds == {torch.bfloat16}
