"""What a model looks at: heads apart, windows and centres placed on words, scripts without blanks in pieces."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from s2s.analysis.heatmap import HeatMap
from s2s.config import AnyDecoder, AnyEncoder
from s2s.data.tokenizer import Tokenizer, Tokenizers, WhitespaceTokenizer
from s2s.interfaces import BOS, EOS
from s2s.models.heads import MultiHead
from s2s.models.seq2seq import ModelSettings, Seq2Seq
from s2s.search.look import Looked, Units, head_maps, heat_map, look, marked

SOURCE, TARGET = [5, 6, 4, 7, EOS], [4, 6, 5, EOS]
CPU = torch.device("cpu")
LAYERS, HEADS = 3, 2


def model_of(encoder: dict[str, Any], decoder: dict[str, Any]) -> Seq2Seq:
    """A random model of width 8 over 9 words, in float64 and evaluation mode."""
    torch.manual_seed(0)
    page = {"embedding": 8, "tie": "none", "dropout": 0.0, "encoder": encoder, "decoder": decoder}
    return ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(9, 9).double().eval().requires_grad_(False)


def transformer() -> Seq2Seq:
    stack = {"kind": "transformer", "size": 8, "layers": LAYERS, "heads": HEADS, "feedforward": 10}
    return model_of(stack, stack)


def recurrent(attention: dict[str, Any]) -> Seq2Seq:
    decoder = {"kind": "rnn", "size": 8, "wiring": "luong", "input_feeding": False, "attention": attention}
    return model_of({"kind": "rnn", "size": 8}, decoder)


class Pieces(Tokenizer):
    """Each id is a piece; a piece that begins with a blank begins a word."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.texts = dict(enumerate(pieces, start=4))

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def encode_sampled(self, text: str, sampling: object, generator: object) -> list[int]:
        raise NotImplementedError

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.texts[index].replace(" ", "_") for index in ids]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.texts.get(index, "") for index in ids)

    def words(self, ids: Sequence[int]) -> list[int]:
        starts = itertools.accumulate(int(self.texts.get(index, "").startswith(" ")) for index in ids)
        return [-1 if index == EOS else start - 1 for index, start in zip(ids, starts, strict=True)]


def spelled(*pieces: str) -> tuple[Pieces, list[int]]:
    return Pieces(pieces), [*range(4, 4 + len(pieces)), EOS]


# --- the model ----------------------------------------------------------------------------------------------------


def test_each_head_of_each_layer_is_the_softmax_of_its_own_products() -> None:
    """In plain loops, from what goes into each attention on the source."""
    model = transformer()
    inputs: list[tuple[MultiHead, Tensor]] = []
    memory = model.encoder(torch.tensor([SOURCE]), torch.tensor([len(SOURCE)])).values[0]
    for layer in model.decoder.layers:
        layer.across.register_forward_pre_hook(lambda part, given: inputs.append((part, given[0][0])))
    found = look(model, SOURCE, TARGET, CPU)
    assert found is not None and found.heads is not None
    assert found.heads.shape == (LAYERS, HEADS, len(TARGET), len(SOURCE))
    width = 8 // HEADS
    for layer, head in np.ndindex(LAYERS, HEADS):
        part, x = inputs[layer]
        rows = slice(head * width, (head + 1) * width)
        query = x @ part.query[rows].T + part.query_bias[rows]
        keys = memory @ part.key_value[rows].T + part.key_value_bias[rows]
        for t in range(len(TARGET)):
            scores = [math.exp(float(query[t] @ keys[s]) / math.sqrt(width)) for s in range(len(SOURCE))]
            expected = [score / sum(scores) for score in scores]
            assert found.heads[layer, head, t].tolist() == pytest.approx(expected, abs=1e-12)


def test_the_weights_are_the_mean_of_the_heads() -> None:
    found = look(transformer(), SOURCE, TARGET, CPU)
    assert found is not None and found.heads is not None
    np.testing.assert_allclose(found.weights, found.heads.mean((0, 1)), atol=1e-12)


def test_heads_are_the_same_step_by_step_and_only_for_who_wants_them() -> None:
    model, want = transformer(), frozenset({"heads"})
    source, lengths = torch.tensor([SOURCE]), torch.tensor([len(SOURCE)])
    words = torch.tensor([[BOS, *TARGET[:-1]]])
    whole, _ = model(source, lengths, words, want)
    memory, state = model.start(source, lengths, want)
    steps = []
    for t in range(words.size(1)):
        decoded, state = model.decoder(words[:, t : t + 1], memory, state)
        steps.append(decoded.heads)
    assert whole.weights is None and whole.heads.shape == (1, len(TARGET), LAYERS, HEADS, len(SOURCE))
    torch.testing.assert_close(torch.cat(steps, 1), whole.heads)
    assert model(source, lengths, words, frozenset({"weights"}))[0].heads is None
    assert model(source, lengths, words)[0].heads is None


def test_a_model_without_attention_has_nothing_to_show() -> None:
    assert look(recurrent({"kind": "none"}), SOURCE, TARGET, CPU) is None


def test_other_mechanisms_have_neither_heads_nor_windows() -> None:
    found = look(recurrent({"kind": "global", "score": "general"}), SOURCE, TARGET, CPU)
    assert found is not None and found.heads is found.centres is found.reach is None
    np.testing.assert_allclose(found.weights.sum(-1), 1)


def test_local_m_tells_its_window() -> None:
    """p_t = min(t, S), counted from 1, and D on either side: what is outside has no weight."""
    found = look(recurrent({"kind": "local-m", "window": 1}), SOURCE, [*TARGET[:-1], 4, 4, 4, EOS], CPU)
    assert found is not None and found.centres is not None and found.reach is not None
    assert found.centres.tolist() == [1, 2, 3, 4, 5, 5, 5]
    assert found.reach.tolist() == [1] * 7
    for t, centre in enumerate([1, 2, 3, 4, 5, 5, 5]):
        assert [s for s in range(1, 6) if found.weights[t, s - 1] > 0] == [
            s for s in range(1, 6) if abs(s - centre) <= 1
        ]


# --- words --------------------------------------------------------------------------------------------------------


def test_pieces_share_the_width_of_their_word() -> None:
    tokenizer, ids = spelled(" a", " b", "b", "b", "b", " c")
    units = Units.of(tokenizer, ids)
    assert (units.texts, units.numbers) == (["a", "bbbb", "c"], [0, 1, 1, 1, 1, 2, -1])
    begins, ends = units.edges()
    assert begins.tolist() == [0, 1, 1.25, 1.5, 1.75, 2, 3]
    assert ends.tolist() == [1, 1.25, 1.5, 1.75, 2, 3, 3]


def test_scripts_without_blanks_are_shown_in_pieces() -> None:
    for pieces, alone in (
        ([" 我", "看见", "狗"], True), ([" 犬を", "見る"], True), ([" ฉันเห็น", "หมา"], True),
        ([" 나는", " 개", "를"], False), ([" أرى", " كلب"], False), ([" 1", "2"], False), ([" NHK", "は"], False),
    ):  # fmt: skip
        tokenizer, ids = spelled(*pieces)
        units = Units.of(tokenizer, ids)
        assert (units.texts == [piece.replace(" ", "_") for piece in pieces]) is alone, pieces
        if alone:
            assert units.numbers == [*range(len(pieces)), -1]


def test_weights_are_summed_over_the_source_and_averaged_over_the_target() -> None:
    source, ids = spelled(" a", " b", "b")
    target, said = spelled(" x", "x", " y")
    weights = np.array([[0.1, 0.2, 0.3, 0.4], [0.3, 0.0, 0.5, 0.2], [0.5, 0.5, 0, 0], [0, 0, 0, 1.0]])
    drawn = heat_map(weights, ids, said, Tokenizers(source, target), "title")
    assert (drawn.source, drawn.target, drawn.title) == (["a", "bb"], ["xx", "y"], "title")
    np.testing.assert_allclose(drawn.weights, [[0.2, 0.5], [0.5, 0.5]])


def test_windows_and_centres_on_words() -> None:
    """Five pieces in three words and the end; D = 1. Positions are counted from 1."""
    source, ids = spelled(" a", " b", "b", " c", "c")
    target, said = spelled(" x", " y", "y")
    centres = np.array([0.4, 3.0, 6.0, 1.0])  # below the first; the second half of b; the end; one of EOS itself
    looked = Looked(np.zeros((4, 6)), None, centres, np.ones(4))
    plain = HeatMap(np.zeros((2, 3)), ["a", "bb", "cc"], ["x", "yy"])
    drawn = marked(plain, looked, ids, said, Tokenizers(source, target))
    # x: pieces 1 and 2, that is a and the first half of b. y: pieces 2 to 4, and 5 to the end, which is the edge.
    assert drawn.windows == [(0.0, 1.5), (1.0, 3.0)]
    assert drawn.centres == [pytest.approx(0.5), pytest.approx((1.75 + 3.0) / 2)]
    assert marked(plain, looked._replace(centres=None), ids, said, Tokenizers(source, target)) is plain


def test_hard_attention_tells_what_it_read_and_it_is_marked() -> None:
    """At evaluation the largest weight; here it is marked on words of one piece each, the end at the right edge."""
    hard = {"kind": "hard", "score": "general", "estimator": {"kind": "enumerate"}, "evaluate": "argmax"}
    found = look(recurrent(hard), SOURCE, TARGET, CPU)
    assert found is not None and found.chosen is not None and found.reach is None
    best = [max(range(len(SOURCE)), key=row.tolist().__getitem__) for row in found.weights]
    assert found.chosen.tolist() == [place + 1 for place in best]
    tokenizer = WhitespaceTokenizer(b"a\nb\nc\nd")
    both = Tokenizers(tokenizer, tokenizer)
    drawn = marked(heat_map(found.weights, SOURCE, TARGET, both), found, SOURCE, TARGET, both)
    assert drawn.centres == [place + 0.5 if place < 4 else 4.0 for place in best[:-1]] and not drawn.windows


def test_heads_are_named_by_layer() -> None:
    tokenizer = WhitespaceTokenizer(b"a\nb\nc\nd")
    found = look(transformer(), SOURCE, TARGET, CPU)
    assert found is not None and found.heads is not None
    maps = head_maps(found, SOURCE, TARGET, Tokenizers(tokenizer, tokenizer))
    assert [one.title for one in maps][:3] == ["layer 1, head 1", "layer 1, head 2", "layer 2, head 1"]
    assert len(maps) == LAYERS * HEADS
    np.testing.assert_allclose(maps[3].weights, found.heads[1, 1, :-1, :-1])
    assert head_maps(found._replace(heads=None), SOURCE, TARGET, Tokenizers(tokenizer, tokenizer)) == []
