"""Oracles of other mechanisms in the heads of a Transformer: one head, one query, one key after the other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import random, redrawn
from formulas import Array, array, softmax
from torch import Tensor

from s2s.attention.scores import Additive
from s2s.config import AnyDecoder, AnyEncoder
from s2s.interfaces import Memory
from s2s.models.heads import Across, Mechanisms
from s2s.models.seq2seq import ModelSettings, Seq2Seq

SIZE, HEADS, WIDTH = 8, 2, 4
SOURCE, LENGTHS = torch.tensor([[5, 3, 7, 2], [6, 4, 2, 0]]), torch.tensor([4, 3])
WORDS = torch.tensor([[1, 4, 6, 3, 4], [1, 7, 7, 3, 5]])
WANT = frozenset({"weights", "heads"})


def model_of(**decoder: Any) -> Seq2Seq:
    """A redrawn Transformer."""
    both = {"kind": "transformer", "size": SIZE, "layers": 2, "heads": HEADS, "feedforward": 10}
    page = {"embedding": SIZE, "tie": "none", "dropout": 0.0, "encoder": both, "decoder": both | decoder}
    return redrawn(ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(9, 8))


@torch.no_grad()
@pytest.mark.parametrize("groups", [None, 1])
def test_the_dot_score_with_softmax_is_the_transformer(groups: int | None) -> None:
    """All that is learned has the same names: the mechanism adds nothing of its own."""
    plain = model_of(groups=groups)
    other = model_of(groups=groups, attention={"kind": "global", "score": "dot"})
    other.load_state_dict(plain.state_dict())
    (expected, _), (found, _) = (model(SOURCE, LENGTHS, WORDS, WANT) for model in (plain, other))
    torch.testing.assert_close(found.features, expected.features)
    torch.testing.assert_close(found.heads, expected.heads)
    torch.testing.assert_close(found.weights, expected.weights)


def across_of(**decoder: Any) -> Across:
    """The attention to the source of the first layer."""
    layer = model_of(**decoder).decoder.layers[0]  # type: ignore[index]
    across: Across = layer.across
    return across


def in_loops(across: Mechanisms, x: Array, values: Array, weigh: Any) -> tuple[Array, Array]:
    """What x (T, d) reads of values (S, d), and the weights (heads, T, S); ``weigh(head, t, q, keys)`` gives (S,)."""
    key_rows, value_rows = array(across.key_value)[:SIZE], array(across.key_value)[SIZE:]
    key_bias, value_bias = np.split(array(across.key_value_bias), 2)
    found, weights = [], np.zeros((HEADS, len(x), len(values)))
    for t in range(len(x)):
        heads = []
        for head in range(HEADS):
            rows = slice(head * WIDTH, (head + 1) * WIDTH)
            query = array(across.query)[rows] @ x[t] + array(across.query_bias)[rows]
            keys = [key_rows[rows] @ h + key_bias[rows] for h in values]
            weights[head, t] = weigh(head, t, query / math.sqrt(WIDTH), keys)
            heads.append(
                sum(
                    a * (value_rows[rows] @ h + value_bias[rows]) for a, h in zip(weights[head, t], values, strict=True)
                )
            )
        found.append(array(across.output.weight) @ np.concatenate(heads) + array(across.output.bias))
    return np.stack(found), weights


def read(across: Across, x: Tensor, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """What x (B, T, d) reads of values (B, S, d), and the weights."""
    memory = Memory(values, torch.arange(values.size(1)) < lengths.unsqueeze(1), lengths)
    source = across.read(memory)
    found, weights, _ = across(x, memory, source, across.start(memory, source))
    return found, weights


def sparsemax(scores: Array) -> Array:
    """max(z - tau, 0), tau by bisection so that it sums to one."""
    low, high = scores.max() - 1, scores.max()
    for _ in range(100):
        tau = (low + high) / 2
        low, high = (tau, high) if np.maximum(scores - tau, 0).sum() > 1 else (low, tau)
    found: Array = np.maximum(scores - low, 0)
    return found


@torch.no_grad()
def test_each_head_has_an_additive_score_of_its_own() -> None:
    across = across_of(attention={"kind": "global", "score": "additive", "normaliser": "sparsemax"})
    assert isinstance(across, Mechanisms)
    x, values, lengths = random(2, 3, SIZE), random(2, 5, SIZE, seed=1), torch.tensor([5, 4])
    scores = [mechanism.score for mechanism in across.mechanisms]
    assert not torch.equal(scores[0].vector, scores[1].vector)  # type: ignore[union-attr, arg-type]

    def weigh(head: int, t: int, query: Array, keys: list[Array]) -> Array:
        score = scores[head]
        assert isinstance(score, Additive) and score.source is not None
        w, u, v = array(score.query.weight), array(score.source.weight), array(score.vector)
        return sparsemax(np.array([v @ np.tanh(w @ query + u @ key) for key in keys]))

    found, weights = read(across, x, values, lengths)
    for row, length in enumerate(lengths.tolist()):
        expected, shares = in_loops(across, array(x[row]), array(values[row, :length]), weigh)
        np.testing.assert_allclose(array(found[row]), expected, atol=1e-12)
        np.testing.assert_allclose(array(weights[row, :, :, :length]), shares, atol=1e-12)
        assert (weights[row, :, :, length:] == 0).all()


@torch.no_grad()
def test_the_windows_of_local_m_move_with_the_target() -> None:
    """min(t, S) and one place on either side, in every head; whether all words come at once or one by one."""
    decoder = {"attention": {"kind": "local-m", "window": 1, "score": "dot"}}
    across = across_of(**decoder)
    assert isinstance(across, Mechanisms)
    x, values = random(1, 6, SIZE), random(1, 4, SIZE, seed=1)

    def weigh(head: int, t: int, query: Array, keys: list[Array]) -> Array:
        inside = [abs(s - min(t, len(keys) - 1)) <= 1 for s in range(len(keys))]
        weights = np.zeros(len(keys))
        weights[inside] = softmax(np.array([query @ key for key, near in zip(keys, inside, strict=True) if near]))
        return weights

    found, weights = read(across, x, values, torch.tensor([4]))
    expected, shares = in_loops(across, array(x[0]), array(values[0]), weigh)
    np.testing.assert_allclose(array(found[0]), expected, atol=1e-12)
    np.testing.assert_allclose(array(weights[0]), shares, atol=1e-12)


def test_the_window_of_a_ramp_is_that_of_the_update() -> None:
    ramp = {"start": 3, "end": 1, "updates": 10}
    model = model_of(attention={"kind": "local-m", "window": ramp, "score": "dot"})
    for update, width in ((0, 3), (10, 1)):
        model.decoder.set_update(update)
        weights = model(SOURCE, LENGTHS, WORDS, WANT)[0].heads
        assert int((weights[0, 0, 0, 0] > 0).sum()) == width + 1  # the first place and those behind it


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        ({"kind": "none"}, "blind"),
        ({"kind": "hard", "estimator": "reinforce"}, "readout"),
        ({"kind": "latent"}, "mixture"),
        ({"kind": "mocha"}, "all target positions at once"),
        ({"kind": "coverage", "inner": {"kind": "global", "score": "additive"}}, "adds up"),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_what_cannot_stand_in_heads_is_refused(attention: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        model_of(attention=attention)
