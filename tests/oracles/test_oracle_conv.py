"""Oracles of ConvS2S in plain loops: the formulas of Gehring et al. 2017, what is seen, and what padding may do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import random, redrawn
from formulas import Array, array, sigma, softmax
from pydantic import ValidationError
from torch import Tensor, nn

from s2s.config import AnyDecoder, AnyEncoder
from s2s.interfaces import BOS, Memory
from s2s.models.conv import ConvDecoder, ConvEncoder, Convolution, Layer, Normed
from s2s.models.layers import Input
from s2s.models.seq2seq import ModelSettings, Seq2Seq
from s2s.tree import leaves

SOURCE, LENGTHS = torch.tensor([[5, 3, 7, 4, 2], [6, 4, 2, 0, 0]]), torch.tensor([5, 3])
WORDS = torch.tensor([[BOS, 4, 6, 3, 4, 7], [BOS, 7, 7, 3, 5, 4]])
WIDTH, S = 6, math.sqrt(0.5)
SHOWN = frozenset({"weights", "heads"})


def fresh(encoder: dict[str, Any], decoder: dict[str, Any], dropout: float = 0.0) -> Seq2Seq:
    """A model whose embeddings are `WIDTH` wide, as it is first drawn."""
    both = {"kind": "conv", "size": 5, "layers": 2, "max_positions": 4}
    page = {
        "embedding": WIDTH, "tie": "none", "dropout": dropout, "encoder": both | encoder, "decoder": both | decoder
    }  # fmt: skip
    return ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(9, 8)


def model_of(encoder: dict[str, Any], decoder: dict[str, Any]) -> Seq2Seq:
    """The same, redrawn."""
    return redrawn(fresh(encoder, decoder))


def decoder_of(model: Seq2Seq) -> ConvDecoder:
    """The decoder, known to be a convolutional one."""
    assert isinstance(model.decoder, ConvDecoder)
    return model.decoder


# --- the formulas -----------------------------------------------------------------------------------------------------


def linear(part: Normed, x: Array) -> Array:
    """W x + b, one row of W after the other: l v / |v|."""
    rows = zip(array(part.direction), array(part.length), array(part.bias), strict=True)
    return np.array([length * (v @ x) / math.sqrt(sum(v * v)) + bias for v, length, bias in rows])


def embedded(words: Input, ids: Tensor) -> Array:
    """Each word's vector plus that of its place, or of the last there is."""
    assert words.learned is not None
    table, places = array(words.embedding.weight), array(words.learned.weight)
    return np.array([table[word] + places[min(n, len(places) - 1)] for n, word in enumerate(ids.tolist())])


def convolved(part: Convolution, xs: Array, first: int) -> Array:
    """glu of what the kernel reads of x (T, d), whose leftmost place is ``first`` places from where it stands."""
    results = []
    for n in range(len(xs)):
        places = range(n + first, n + first + part.kernel)
        read = [xs[place] if 0 <= place < len(xs) else np.zeros(xs.shape[1]) for place in places]
        both = linear(part.gates, np.concatenate(read))
        half = len(both) // 2
        results.append(both[:half] * sigma(both[half:]))
    return np.array(results)


def encoded(encoder: ConvEncoder, ids: Tensor) -> tuple[Array, Array]:
    """z and e of one sentence without padding."""
    e = embedded(encoder.input, ids)
    x = np.array([linear(encoder.enter, row) for row in e])
    for layer in encoder.layers:
        assert isinstance(layer, Convolution)
        x = S * (convolved(layer, x, -((layer.kernel - 1) // 2)) + x)
    return np.array([linear(encoder.leave, row) for row in x]), e


def decoded(decoder: ConvDecoder, ids: Tensor, z: Array, e: Array) -> tuple[Array, Array]:
    """What words are read from, (T, d), and the weights (layers, T, S), for one source without padding."""
    g = embedded(decoder.input, ids)
    x, shown = np.array([linear(decoder.enter, row) for row in g]), []
    for layer in decoder.layers:
        assert isinstance(layer, Layer)
        y = convolved(layer.convolution, x, 1 - layer.convolution.kernel)
        weights = []
        for i in range(len(y)):
            d = S * (linear(layer.ask, y[i]) + g[i])
            a = softmax(np.array([d @ row for row in z]))
            context = sum((a[j] * (z[j] + e[j]) for j in range(len(z))), np.zeros(WIDTH))
            y[i] = S * (y[i] + linear(layer.tell, len(z) * math.sqrt(1 / len(z)) * context))
            weights.append(a)
        x = S * (y + x)
        shown.append(weights)
    return np.array([linear(decoder.leave, row) for row in x]), np.array(shown)


@torch.no_grad()
@pytest.mark.parametrize("kernels", [(3, 3), (5, 2), (1, 1), (3, 8)])
def test_the_whole_model_is_the_formula(kernels: tuple[int, int]) -> None:
    model = model_of({"kernel": kernels[0]}, {"kernel": kernels[1], "size": 4, "layers": 3})
    found, memory = model(SOURCE, LENGTHS, WORDS, SHOWN)
    assert isinstance(model.encoder, ConvEncoder)
    for row, length in enumerate(LENGTHS.tolist()):
        z, e = encoded(model.encoder, SOURCE[row, :length])
        np.testing.assert_allclose(array(memory.values[row, :length]), z, atol=1e-12)
        assert not memory.values[row, length:].any()
        features, weights = decoded(decoder_of(model), WORDS[row], z, e)
        np.testing.assert_allclose(array(found.features[row]), features, atol=1e-11)
        heads = array(found.heads[row, ..., :length])  # (T, layers, 1, S)
        np.testing.assert_allclose(heads[:, :, 0].transpose(1, 0, 2), weights, atol=1e-12)
        np.testing.assert_allclose(array(found.weights[row, :, :length]), weights.mean(0), atol=1e-12)
    assert model(SOURCE, LENGTHS, WORDS)[0].weights is None


@torch.no_grad()
@pytest.mark.parametrize(
    "encoder", [{"kind": "rnn", "size": WIDTH}, {"kind": "transformer", "size": WIDTH, "heads": 2}]
)
def test_of_another_encoder_the_memory_is_what_is_read(encoder: dict[str, Any]) -> None:
    page = {"embedding": WIDTH, "tie": "none", "encoder": encoder, "decoder": {"kind": "conv", "size": 5}}
    model = redrawn(ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(9, 8))
    rows = array(model.encoder(SOURCE, LENGTHS).values[1, :3])
    expected, _ = decoded(decoder_of(model), WORDS[1], rows, np.zeros_like(rows))
    np.testing.assert_allclose(array(model(SOURCE, LENGTHS, WORDS)[0].features[1]), expected, atol=1e-11)


def test_a_gated_convolution_by_hand() -> None:
    """One channel, kernel 2: W = [[1, 2], [3, -1]] over x = (0,) 2, 1: sums (4, -2), then (4, 5); biases (0, 1)."""
    part = Convolution(1, 2, 0.0).double()
    with torch.no_grad():
        part.gates.direction.copy_(torch.tensor([[1.0, 2], [3, -1]]))
        part.gates.length.copy_(part.gates.direction.norm(dim=1))
        part.gates.bias.copy_(torch.tensor([0.0, 1]))
    found = part(torch.tensor([[[0.0], [2], [1]]], dtype=torch.float64))
    expected = [4 / (1 + math.exp(1)), 4 / (1 + math.exp(-6))]
    torch.testing.assert_close(found[0, :, 0].tolist(), expected)


# --- padding and scale ------------------------------------------------------------------------------------------------


def contexts(model: Seq2Seq, memory: Memory) -> list[Tensor]:
    """What each layer reads of a memory."""
    read: list[Tensor] = []
    handles = [
        layer.tell.register_forward_pre_hook(lambda _, given: read.append(given[0]))  # type: ignore[union-attr]
        for layer in decoder_of(model).layers
    ]
    model.decoder(WORDS, *model.decoder.start(memory))
    for handle in handles:
        handle.remove()
    return read


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_a_context_of_equal_values_is_sqrt_of_the_length_times_them(padding: int) -> None:
    """Whatever the weights are; length without padding."""
    model, v = model_of({}, {}), random(WIDTH)
    mask = torch.arange(5 + padding) < LENGTHS.unsqueeze(1)
    z = random(2, 5 + padding, WIDTH, seed=1).masked_fill(~mask.unsqueeze(-1), 0.0)
    memory = Memory(z, mask, LENGTHS, embedded=(v - z).masked_fill(~mask.unsqueeze(-1), 0.0))
    for context in contexts(model, memory):
        for row, length in enumerate((5, 3)):
            torch.testing.assert_close(context[row], math.sqrt(length) * v.expand(WORDS.size(1), -1))


@torch.no_grad()
def test_the_number_of_padded_places_changes_nothing() -> None:
    model = model_of({"kernel": 5}, {})
    expected, memory = model(SOURCE[1:, :3], LENGTHS[1:], WORDS[1:])
    for padding in (1, 2, 7):
        garbage = torch.cat([SOURCE[1:, :3], torch.full((1, padding), 7)], 1)
        found, wider = model(garbage, LENGTHS[1:], WORDS[1:])
        torch.testing.assert_close(found.features, expected.features, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(wider.values[:, :3], memory.values, rtol=1e-12, atol=1e-13)


# --- what is seen, and what is held -----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kernel, layers", [(2, 1), (2, 2), (3, 1), (3, 2)])
def test_a_word_is_seen_from_its_own_place_to_the_end_of_the_stack_and_no_further(kernel: int, layers: int) -> None:
    """By the decoder, layers x (kernel - 1) places behind it, and never before."""
    model, reach = model_of({}, {"kernel": kernel, "layers": layers}), layers * (kernel - 1)
    expected = model(SOURCE, LENGTHS, WORDS)[0].features
    for place in range(1, WORDS.size(1)):
        changed = WORDS.clone()
        changed[:, place] = 2
        moved = (model(SOURCE, LENGTHS, changed)[0].features != expected).any(-1)
        for row in moved.tolist():
            assert row == [place <= there <= place + reach for there in range(len(row))]


@torch.no_grad()
def test_an_encoder_sees_as_far_to_both_sides() -> None:
    model, source = model_of({"kernel": 3, "layers": 2}, {}), torch.tensor([[3, 4, 5, 6, 7, 3, 4, 5, 2]])
    expected = model.encoder(source, torch.tensor([9])).values
    for place in range(9):
        changed = source.clone()
        changed[0, place] = 8
        moved = (model.encoder(changed, torch.tensor([9])).values != expected).any(-1)
        assert moved[0].tolist() == [abs(there - place) <= 2 for there in range(9)]


@torch.no_grad()
def test_the_state_does_not_grow() -> None:
    """Of two layers two inputs each, and how many words have been read."""
    model = model_of({}, {"kernel": 3, "size": 5})
    memory, state = model.start(SOURCE, LENGTHS)
    for word in WORDS.unbind(1):
        assert sum(leaf.numel() for leaf in leaves(state)) == len(WORDS) * (1 + 2 * 2 * 5)
        _, _, state = model.step(word, memory, state)
    passed, *windows = leaves(state)
    assert passed.tolist() == [6, 6] and [tuple(leaf.shape) for leaf in windows] == [(2, 2, 5)] * 2


@torch.no_grad()
def test_places_behind_the_last_that_is_known_share_its_vector() -> None:
    """Four are known: the fifth and the sixth word see the same one, the third does not."""
    words = model_of({}, {}).encoder.input  # type: ignore[union-attr]
    seen = words(torch.full((1, 6), 5), 0)[0]  # type: ignore[operator]
    assert torch.equal(seen[3], seen[4]) and torch.equal(seen[3], seen[5]) and not torch.equal(seen[2], seen[3])


# --- how it begins and learns -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_lengths_of_rows_are_apart_from_their_directions() -> None:
    part, x = redrawn(Normed(4, 3)), random(5, 4)
    expected = part(x)
    part.direction *= torch.tensor([[0.1], [2.0], [30.0]])
    torch.testing.assert_close(part(x), expected)
    part.length *= 3
    torch.testing.assert_close(part(x) - part.bias, 3 * (expected - part.bias))


@torch.no_grad()
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_first_convolution_keeps_the_variance_of_its_input(dropout: float) -> None:
    """Section 3.5: W ~ N(0, 4 p / n), biases zero. Small inputs, for which half of the gates is open on either side."""
    torch.manual_seed(1)
    part = Convolution(128, 3, dropout)
    p, n = 1 - dropout, 3 * 128
    assert float(part.gates.direction.std()) == pytest.approx(math.sqrt(4 * p / n), rel=0.01)
    torch.testing.assert_close(part.gates.length, part.gates.direction.norm(dim=1))
    assert not part.gates.bias.any()
    x = 0.01 * torch.randn(64, 22, 128)
    dropped = x * (torch.rand(x.shape) < p) / p
    assert float(part(dropped).var()) == pytest.approx(float(x.var()), rel=0.05)


def test_matrices_without_gates_begin_with_one_over_their_inputs() -> None:
    """p / n where the input was dropped, 1 / n elsewhere; `initialise` leaves them as they are."""
    torch.manual_seed(1)
    model = fresh({"size": 256}, {"size": 256}, dropout=0.4)
    decoder = decoder_of(model)
    layer = decoder.layers[0]
    assert isinstance(layer, Layer) and isinstance(model.encoder, ConvEncoder)
    for part, variance in (
        (model.encoder.enter, 0.6 / WIDTH),
        (decoder.enter, 0.6 / WIDTH),
        (model.encoder.leave, 1 / 256),
        (decoder.leave, 1 / 256),
        (layer.ask, 1 / 256),
        (layer.tell, 1 / WIDTH),
        (layer.convolution.gates, 4 * 0.6 / (3 * 256)),
    ):
        assert float(part.direction.detach().var()) == pytest.approx(variance, rel=0.15)


def test_the_gradient_of_the_encoder_is_shared_among_attentions() -> None:
    """Against differences: 1 / (2 x layers) of it reaches z, all of it the embedded words that values have."""
    model = model_of({}, {"layers": 3})
    memory = model.encoder(SOURCE, LENGTHS)
    factors = random(2, WORDS.size(1), WIDTH)

    def loss(values: Tensor, words: Tensor) -> Tensor:
        found, _ = model.decoder(WORDS, *model.decoder.start(memory._replace(values=values, embedded=words)))
        return (found.features * factors).sum()

    assert memory.embedded is not None
    given = [part.detach().clone().requires_grad_() for part in (memory.values, memory.embedded)]
    gradients = torch.autograd.grad(loss(*given), given)
    for which, share in ((0, 1 / 6), (1, 1.0)):
        for b, s, n in ((0, 0, 0), (0, 4, 2), (1, 1, 5), (1, 2, 3)):
            sides = []
            for step in (1e-6, -1e-6):
                moved = [part.detach().clone() for part in given]
                moved[which][b, s, n] += step
                sides.append(float(loss(*moved).detach()))
            true = (sides[0] - sides[1]) / 2e-6
            assert abs(true) > 1e-4 and float(gradients[which][b, s, n]) == pytest.approx(share * true, rel=1e-5)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_an_even_kernel_has_no_middle_in_an_encoder() -> None:
    with pytest.raises(ValidationError, match="kernel 4 is even"):
        fresh({"kernel": 4}, {})
    assert isinstance(fresh({}, {"kernel": 4}).decoder, nn.Module)


def test_a_memory_of_another_width_cannot_be_compared() -> None:
    page = {"embedding": 6, "encoder": {"kind": "rnn", "size": 8}, "decoder": {"kind": "conv", "size": 5}}
    with pytest.raises(ValueError, match=r"model.embedding 6 must be the width of the memory, 8"):
        ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(9, 8)
