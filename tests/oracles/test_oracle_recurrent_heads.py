"""Oracle of several heads in a recurrent decoder: each head's own projections and scores, in plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import decoder_of, recurrent_model, redrawn
from formulas import Array, Loop, array, softmax, tanh_readout

from s2s.interfaces import BOS
from s2s.models.heads import Heads
from s2s.models.seq2seq import Seq2Seq

SOURCE, WORDS = torch.tensor([[5, 3, 7, 2]]), torch.tensor([[BOS, 4, 6, 3, 4]])
LENGTHS = torch.tensor([4])
EACH = [
    {"wiring": "luong"},
    {"wiring": "luong", "input_feeding": False, "cell": "lstm", "layers": 2},
    {"wiring": "bahdanau"},
    {"wiring": "gnmt", "layers": 2},
    {"wiring": "cgru"},
]


def model_of(heads: int, **decoder: Any) -> Seq2Seq:
    decoder = {"size": 6, "attention": {"kind": "global", "score": "additive"}, "heads": heads, **decoder}
    return redrawn(recurrent_model((9, 8), {}, decoder), 0.8)


class HeadsLoop(Loop):
    """The decoder of a model with several heads; ``apart`` has the weights of each."""

    apart: list[Array]

    def attend(self, query: Array) -> Array:
        """W_O [head_1 ; ...] + b with head_i = sum_j a_ij V_i h_j, a_ij ~ exp(v . tanh(W Q_i q / d^.5 + U K_i h_j))."""
        attention = self.decoder.attention
        assert isinstance(attention, Heads)
        part, scorers = attention.heads, list(attention.heads.mechanisms)
        size, width = part.size, part.size // len(scorers)
        contexts, self.apart = [], []
        for i, one in enumerate(scorers):
            scorer: Any = one.score
            own = slice(i * width, (i + 1) * width)
            values = slice(size + i * width, size + (i + 1) * width)
            asked = (array(part.query)[own] @ query + array(part.query_bias)[own]) / math.sqrt(width)
            w, u, v = array(scorer.query.weight), array(scorer.source.weight), array(scorer.vector)
            scores, read = [], []
            for row in self.rows:
                key = array(part.key_value)[own] @ row + array(part.key_value_bias)[own]
                scores.append(v @ np.tanh(w @ asked + u @ key))
                read.append(array(part.key_value)[values] @ row + array(part.key_value_bias)[values])
            a = softmax(np.array(scores))
            self.apart.append(a)
            contexts.append(sum((a[j] * one for j, one in enumerate(read)), np.zeros(width)))
        self.weights = np.mean(self.apart, 0)
        joined: Array = array(part.output.weight) @ np.concatenate(contexts) + array(part.output.bias)
        return joined


@torch.no_grad()
@pytest.mark.parametrize("heads", [2, 3])
@pytest.mark.parametrize("choice", EACH, ids=str)
def test_every_word_and_every_weight(heads: int, choice: dict[str, Any]) -> None:
    model = model_of(heads, **choice)
    memory, state = model.start(SOURCE, LENGTHS, frozenset({"weights", "heads"}))
    decoded, _ = model.decoder(WORDS, memory, state)
    loop = HeadsLoop(model, SOURCE, LENGTHS, tanh_readout)
    words = model.decoder.logits(decoded, memory, torch.ones_like(WORDS, dtype=torch.bool)).log_softmax(-1)
    assert decoded.weights is not None and decoded.heads is not None
    assert decoded.heads.shape == (1, 5, 1, heads, 4)
    for time, word in enumerate(WORDS[0].tolist()):
        np.testing.assert_allclose(array(words[time]), loop(word), atol=1e-12)
        np.testing.assert_allclose(array(decoded.weights[0, time]), loop.weights, atol=1e-12)
        np.testing.assert_allclose(array(decoded.heads[0, time, 0]), np.stack(loop.apart), atol=1e-12)


def test_one_head_is_the_attention_itself() -> None:
    assert not isinstance(decoder_of(model_of(1)).attention, Heads)


@pytest.mark.parametrize(
    ("attention", "heads", "why"),
    [
        ({"kind": "global"}, 4, "heads 4 does not divide size 6"),
        ({"kind": "latent"}, 2, "heads 2 needs an attention whose weights depend on the query and the source alone"),
        ({"kind": "monotonic"}, 2, "heads 2 needs an attention whose weights depend on the query and the source alone"),
    ],
)
def test_what_cannot_stand_in_heads_is_refused(attention: dict[str, Any], heads: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        model_of(heads, attention=attention)
