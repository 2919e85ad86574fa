"""Oracles of the Transformer without an encoder: the stack over the whole joined sequence, place after place."""

from __future__ import annotations

import cmath
import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from fixtures import redrawn
from formulas import Array, array, softmax
from pydantic import ValidationError
from torch import Tensor, nn

from s2s.config import AnyDecoder, AnyEncoder
from s2s.interfaces import BOS, PAD
from s2s.models.decoder_only import DecoderOnly, EmbeddingEncoder
from s2s.models.heads import SelfAttention
from s2s.models.positions import Alibi, PositionKind, Relative, Rotary
from s2s.models.seq2seq import ModelSettings, Seq2Seq
from s2s.models.transformer import Layer
from s2s.training.objective import ObjectiveSettings, TrainingStep
from s2s.tree import leaves

SOURCE, LENGTHS = torch.tensor([[5, 3, 7, 4, 2], [6, 4, 2, 0, 0]]), torch.tensor([5, 3])
WORDS = torch.tensor([[BOS, 4, 6, 3, 4, 7], [BOS, 7, 7, 3, 5, 4]])
SIZE, HEADS, KNOWN = 8, 2, 4
WIDTH = SIZE // HEADS
BOTH, CAUSAL = "bidirectional", "causal"


def settings_of(**stack: Any) -> ModelSettings[AnyEncoder, AnyDecoder]:
    """A page with a small stack; of places `KNOWN` on either side of BOS have learned vectors."""
    small = {"size": SIZE, "layers": 3, "heads": HEADS, "feedforward": 10, "max_positions": KNOWN, "max_distance": 2}
    decoder = {"kind": "decoder-only", **small, **stack}
    page = {"embedding": SIZE, "tie": "none", "dropout": 0.0, "encoder": {"kind": "embedding"}, "decoder": decoder}
    return ModelSettings[AnyEncoder, AnyDecoder].model_validate(page)


def model_of(**stack: Any) -> Seq2Seq:
    """The model, redrawn."""
    return redrawn(settings_of(**stack).build(9, 8))


# --- the joined sequence ----------------------------------------------------------------------------------------------


def joined(model: Seq2Seq, source: Tensor, words: Tensor) -> Array:
    """Embedded source and target words one after the other, with their places."""
    decoder, encoder = model.decoder, model.encoder
    assert isinstance(decoder, DecoderOnly) and isinstance(encoder, EmbeddingEncoder)
    learned, rows = decoder.input.learned, []
    tables = [(array(encoder.embedding.weight), source), (array(decoder.input.embedding.weight), words)]
    together = [table[word] for table, ids in tables for word in ids.tolist()]
    for n, vector in enumerate(together):
        place, row = n - len(source), math.sqrt(SIZE) * vector
        if decoder.input.waves:
            angles = [place / 10000 ** (2 * (i // 2) / SIZE) for i in range(SIZE)]
            row = row + np.array([math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(angles)])
        elif learned is not None:
            row = row + array(learned.weight)[min(max(place + KNOWN, 0), 2 * KNOWN - 1)]
        rows.append(row)
    return np.array(rows)


def normed(norm: nn.Module | None, x: Array) -> Array:
    """gain (x - mean) / sqrt(variance + eps) + bias of each row."""
    if norm is None:
        return x
    assert isinstance(norm, nn.LayerNorm)
    centred = x - x.mean(1, keepdims=True)
    found: Array = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * array(norm.weight) + array(norm.bias)
    return found


def turned(x: Array, place: int) -> Array:
    """Pairs as complex numbers, turned."""
    pairs = [complex(*x[n : n + 2]) * cmath.exp(1j * place * 10000 ** (-n / len(x))) for n in range(0, len(x), 2)]
    return np.array([part for pair in pairs for part in (pair.real, pair.imag)])


def clipped(relation: Relative, distance: int) -> int:
    """The row of a distance."""
    return min(max(distance, relation.lowest), relation.highest) - relation.lowest


def pair(own: SelfAttention, query: Array, key: Array, i: int, j: int, head: int) -> float:
    """The score of place j from place i; places counted from the first word of the source."""
    relation = own.relation
    if isinstance(relation, Rotary):
        query, key = turned(query, i), turned(key, j)
    if isinstance(relation, Relative):
        key = key + array(relation.of_keys)[clipped(relation, j - i)]
    score = float(query @ key) / math.sqrt(WIDTH)
    return score - abs(i - j) * 2 ** (-8 * (head + 1) / HEADS) if isinstance(relation, Alibi) else score


def attention(own: SelfAttention, x: Array, source: int, seen: str) -> tuple[Array, Array]:
    """What every place reads of those it may see, and the weights (places, heads, places)."""
    parts = np.concatenate([array(own.query), array(own.key_value)])
    biases = np.concatenate([array(own.query_bias), array(own.key_value_bias)])
    query, key, value = np.split(x @ parts.T + biases, [SIZE, SIZE + own.groups * WIDTH], axis=1)
    read, shown = np.zeros((len(x), SIZE)), np.zeros((len(x), HEADS, len(x)))
    for i in range(len(x)):
        for head in range(HEADS):
            group, relation = head // (HEADS // own.groups), own.relation
            mine, shared = slice(head * WIDTH, (head + 1) * WIDTH), slice(group * WIDTH, (group + 1) * WIDTH)
            places = [j for j in range(len(x)) if j <= i or (seen == BOTH and i < source and j < source)]
            weights = softmax(np.array([pair(own, query[i, mine], key[j, shared], i, j, head) for j in places]))
            for j, weight in zip(places, weights, strict=True):
                row = value[j, shared]
                if isinstance(relation, Relative):
                    row = row + array(relation.of_values)[clipped(relation, j - i)]
                read[i, mine] += weight * row
                shown[i, head, j] = weight
    return read @ array(own.output.weight).T + array(own.output.bias), shown


def inner(layer: Layer, x: Array) -> Array:
    """W_2 relu(W_1 x + b_1) + b_2."""
    first, last = layer.feedforward[0], layer.feedforward[3]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    inside = np.maximum(x @ array(first.weight).T + array(first.bias), 0)
    found: Array = inside @ array(last.weight).T + array(last.bias)
    return found


def through(model: Seq2Seq, source: Tensor, words: Tensor, seen: str) -> tuple[Array, Array]:
    """What target words are read from (T, d), and what they see of the source (T, layers, heads, S)."""
    decoder, x, every = model.decoder, joined(model, source, words), []
    assert isinstance(decoder, DecoderOnly)
    for layer in decoder.layers:
        assert isinstance(layer, Layer)
        read, weights = attention(layer.own, normed(layer.norms[0], x) if layer.pre else x, len(source), seen)
        x = x + read if layer.pre else normed(layer.norms[0], x + read)
        x = x + inner(layer, normed(layer.norms[1], x)) if layer.pre else normed(layer.norms[1], x + inner(layer, x))
        every.append(weights[len(source) :, :, : len(source)])
    return normed(decoder.norm, x)[len(source) :], np.array(every).transpose(1, 0, 2, 3)


CHOICES = [
    *({"positions": positions, "source": seen} for positions in get_args(PositionKind) for seen in (BOTH, CAUSAL)),
    {"norm": "post", "source": BOTH},
    {"groups": 1, "positions": "relative", "source": CAUSAL},
]


@torch.no_grad()
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_it_is_one_stack_over_the_joined_sequence(choice: dict[str, Any]) -> None:
    """Without padding, whatever the batch is padded to. Waves are computed in float32."""
    model = model_of(**choice)
    tolerance = 1e-5 if choice.get("positions", "sinusoidal") == "sinusoidal" else 1e-10
    found, _ = model(SOURCE, LENGTHS, WORDS, frozenset({"weights", "heads"}))
    for row, length in enumerate(LENGTHS.tolist()):
        features, weights = through(model, SOURCE[row, :length], WORDS[row], choice["source"])
        np.testing.assert_allclose(array(found.features[row]), features, atol=tolerance)
        np.testing.assert_allclose(array(found.heads[row, ..., :length]), weights, atol=tolerance)
        np.testing.assert_allclose(array(found.weights[row, :, :length]), weights.mean((1, 2)), atol=tolerance)
        assert not found.weights[row, :, length:].any()


# --- what is seen, what is held, what is learned ----------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("seen", [BOTH, CAUSAL])
def test_which_source_words_a_source_word_sees(seen: str) -> None:
    """By what the second layer keeps of each, which the first made: all of them, or none behind it."""
    model = model_of(source=seen)
    expected = model.start(SOURCE[:1], LENGTHS[:1])[0].keys[1]
    for place in range(5):
        changed = SOURCE[:1].clone()
        changed[0, place] = 8
        found = model.start(changed, LENGTHS[:1])[0].keys[1]
        moved = (found.keys != expected.keys).any(1).any(-1)[0].tolist()
        assert moved == [seen == BOTH or there >= place for there in range(5)]


@torch.no_grad()
def test_later_words_have_no_influence_and_the_source_has_it_on_all() -> None:
    model = model_of()
    expected = model(SOURCE, LENGTHS, WORDS)[0].features
    for place in range(1, WORDS.size(1)):
        changed = WORDS.clone()
        changed[:, place:] = 2
        found = model(SOURCE, LENGTHS, changed)[0].features
        assert torch.equal(found[:, :place], expected[:, :place]) and not torch.equal(
            found[:, place], expected[:, place]
        )
    other = SOURCE.clone()
    other[:, 0] = 8
    assert (model(other, LENGTHS, WORDS)[0].features != expected).any(-1).all()


@torch.no_grad()
def test_the_source_is_read_once_and_no_place_of_a_beam_holds_it() -> None:
    model = model_of(layers=2, groups=1)
    memory, state = model.start(SOURCE, LENGTHS, places=3)
    assert all(leaf.size(0) == 2 for leaf in leaves(memory.keys))
    for count, word in enumerate(WORDS.repeat_interleave(3, 0).unbind(1)):
        passed, *held = leaves(state)
        assert passed.tolist() == [count] * 6
        assert sum(leaf.numel() for leaf in held) == 6 * 2 * 2 * count * WIDTH  # rows, layers, keys and values
        _, _, state = model.step(word, memory, state)


def test_the_loss_is_that_of_target_words_alone() -> None:
    """Of each target word after BOS its likelihood given the source; no source word is predicted."""
    model = model_of()
    target = torch.tensor([[BOS, 4, 6, 2, PAD], [BOS, 7, 5, 4, 2]])
    sums = TrainingStep(model, ObjectiveSettings(label_smoothing=0.0))(SOURCE, LENGTHS, target)
    total = 0.0
    matrix, bias = array(model.decoder.output.weight), array(model.decoder.output.bias)
    for row, (source, count) in enumerate(((5, 3), (3, 4))):
        features, _ = through(model, SOURCE[row, :source], target[row, :count], BOTH)
        for n in range(count):
            total -= math.log(softmax(matrix @ features[n] + bias)[int(target[row, n + 1])])
    assert int(sums.tokens) == 7 and float(sums.nll) == pytest.approx(total, rel=1e-5)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_window_would_hide_the_source() -> None:
    with pytest.raises(ValidationError, match="sparse would hide the source"):
        settings_of(sparse={"kind": "window", "size": 2})


def test_a_memory_of_another_width_cannot_stand_before_words() -> None:
    page = settings_of().model_dump() | {"encoder": {"kind": "rnn", "size": 6}}
    with pytest.raises(ValueError, match="size 8 must be that of the memory, 6"):
        ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(9, 8)
    with pytest.raises(ValueError, match=r"needs model.embedding 8"):
        narrow = settings_of().model_dump() | {"embedding": 6, "encoder": {"kind": "rnn", "size": 8}}
        ModelSettings[AnyEncoder, AnyDecoder].model_validate(narrow).build(9, 8)
