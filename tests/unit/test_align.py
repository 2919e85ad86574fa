"""Links from scripted attention: merging, shift, threshold, and the error rate, worked out by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from s2s.analysis.alignment import given_weights, links_above
from s2s.data.tokenizer import SamplingSettings, Tokenizer, Tokenizers
from s2s.errors import CheckpointError
from s2s.interfaces import EOS
from s2s.search.align import Aligned, Aligner
from s2s.search.beam import SearchSettings
from s2s.search.score import Forced, Lines, Scorer


class Letters(Tokenizer):
    """A piece is a letter, ``x_`` where it begins a word."""

    kind, suffix = "letters", "none"

    def encode(self, text: str) -> list[int]:
        return [ord(letter) + 1000 * (place == 0) for word in text.split() for place, letter in enumerate(word)]

    def encode_sampled(self, text: str, sampling: SamplingSettings, generator: random.Random) -> list[int]:
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i % 1000) if i < 1000 else f" {chr(i % 1000)}" for i in ids if i != EOS).strip()

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [chr(i % 1000) + "_" * (i > 1000) for i in ids]

    def words(self, ids: Sequence[int]) -> list[int]:
        begun = np.cumsum([i > 1000 for i in ids]) - 1
        return [-1 if i == EOS else int(word) for i, word in zip(ids, begun, strict=True)]


LETTERS = Letters(b"", 2000)
PAIR: Lines = ("ab c", "d ef")
WEIGHTS = [
    # a    b     c   EOS
    [0.2, 0.3, 0.4, 0.1],  # d
    [0.0, 0.1, 0.5, 0.4],  # e
    [0.3, 0.4, 0.2, 0.1],  # f
    [0.0, 0.0, 0.1, 0.9],  # EOS
]


def aligner(weights: list[list[float]] | None = WEIGHTS, **options: object) -> Aligner:
    """Over a model that attends so, whatever it is asked."""

    def force(source: Tensor, lengths: Tensor, target: Tensor, *_: object) -> Forced:
        shown = None if weights is None else torch.tensor(weights, dtype=torch.float64).expand(len(source), -1, -1)
        return Forced(torch.zeros_like(target[:, 1:], dtype=torch.float64), shown)

    scorer = Scorer(force, Tokenizers(LETTERS, LETTERS), SearchSettings(), torch.device("cpu"), attention=True)
    return Aligner(scorer, **options)  # type: ignore[arg-type]


def links(**options: object) -> set[tuple[int, int]]:
    (found,) = aligner(**options).align([PAIR])
    return found.links


def test_words() -> None:
    """ab gets .2 + .3 of d, and the mean of 0 + .1 and .3 + .4 of ef; c gets .4 and (.5 + .2) / 2."""
    (found,) = aligner().align([PAIR])
    assert (found.source, found.target) == (["ab", "c"], ["d", "ef"])
    np.testing.assert_allclose(found.weights, [[0.5, 0.4], [0.4, 0.35]], rtol=1e-6)
    assert found.links == {(0, 0), (0, 1)}


def test_pieces() -> None:
    (found,) = aligner(level="piece").align([PAIR])
    assert (found.source, found.target) == (["a_", "b", "c_"], ["d_", "e_", "f"])
    np.testing.assert_allclose(found.weights, [[0.2, 0.3, 0.4], [0.0, 0.1, 0.5], [0.3, 0.4, 0.2]], rtol=1e-6)
    assert found.links == {(2, 0), (2, 1), (1, 2)}  # EOS is nobody's word


def test_a_shift_is_one_of_pieces() -> None:
    """d has e's row, e has f's, f has that of EOS: ab .1 to c .5, then the means (.7 + 0) / 2 and (.2 + .1) / 2."""
    assert links(level="piece", shift=1) == {(2, 0), (1, 1), (2, 2)}
    (found,) = aligner(shift=1).align([PAIR])
    np.testing.assert_allclose(found.weights, [[0.1, 0.5], [0.35, 0.15]], rtol=1e-6)
    assert found.links == {(1, 0), (0, 1)}


def test_a_threshold_links_all_that_reach_it() -> None:
    assert links(threshold=0.45) == {(0, 0)}
    assert links(threshold=0.3) == {(0, 0), (1, 0), (0, 1), (1, 1)}
    assert links(threshold=0.9) == set()
    assert links_above(np.array([[0.25, 0.5], [0.75, 0.0]]), 0.5) == {(1, 0), (0, 1)}
    with pytest.raises(ValueError, match="above 0"):
        links_above(np.zeros((1, 1)), 0.0)


def test_a_word_that_attends_to_nothing_has_no_link() -> None:
    assert links(weights=[[0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) == {(1, 1)}


def test_pairs_without_links() -> None:
    """A blank or unreadable side; the empty translation has a row for EOS only."""
    found = list(aligner().align([("", ""), ("", "d"), (None, "d")]))
    assert [(one.source, one.target, one.weights.shape, one.links) for one in found] == [([], [], (0, 0), set())] * 3
    assert next(aligner(weights=[[0.5, 0.5]]).align([("a", "")])).links == set()
    empty = given_weights(np.array([[0.5, 0.5]]), [0, -1], [-1], 1)
    assert empty.shape == (0, 1)
    with pytest.raises(ValueError, match="shift"):
        given_weights(np.array([[0.5, 0.5]]), [0, -1], [-1], 2)


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(CheckpointError, match="has no attention"):
        list(aligner(weights=None).align([PAIR]))


def test_order_is_kept() -> None:
    identity = np.eye(4).tolist()
    pairs: list[Lines] = [("a b c", "d e f"), ("", ""), ("f e d", "c b a")]
    found: list[Aligned] = list(aligner(weights=identity).align(pairs))
    assert [one.target for one in found] == [["d", "e", "f"], [], ["c", "b", "a"]]
    assert found[0].links == found[2].links == {(0, 0), (1, 1), (2, 2)}
