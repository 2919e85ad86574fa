"""Alignments: the fixture of Och & Ney's measure, Pharaoh files, links and words from attention weights."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

from s2s.analysis.alignment import (
    GoldLinks,
    aer,
    entropy,
    format_links,
    links_from_weights,
    merge_words,
    parse_links,
    read_links,
)
from s2s.errors import DataError

SURE = {(0, 0), (1, 1)}
POSSIBLE = SURE | {(2, 1), (2, 2)}


def test_aer_of_a_hand_worked_pair() -> None:
    score = aer([SURE], [POSSIBLE], [{(0, 0), (2, 1), (1, 2)}])
    # A & S = 1 link, A & P = 2 links, |A| = 3, |S| = 2.
    assert score.aer == pytest.approx(1 - (1 + 2) / (3 + 2))
    assert score.precision == pytest.approx(2 / 3)
    assert score.recall == pytest.approx(1 / 2)


def test_aer_sums_over_the_corpus_before_dividing() -> None:
    score = aer([SURE, {(0, 0)}], [POSSIBLE, set()], [{(0, 0), (2, 1), (1, 2)}, {(0, 0)}])
    # The second pair adds one right link; its sure link counts as possible although it is not listed there.
    assert score.aer == pytest.approx(1 - (2 + 3) / (4 + 3))
    assert [score.precision, score.recall] == pytest.approx([3 / 4, 2 / 3])


def test_aer_at_the_ends() -> None:
    assert aer([SURE], [POSSIBLE], [SURE]).aer == 0
    assert aer([SURE], [POSSIBLE], [{(7, 7)}]).aer == 1
    nothing = aer([SURE], [POSSIBLE], [set()])
    assert (nothing.aer, nothing.precision, nothing.recall) == (1, 0, 0)


def test_aer_refuses_what_is_not_defined() -> None:
    with pytest.raises(DataError, match="no predicted and no sure link"):
        aer([set()], [POSSIBLE], [set()])
    with pytest.raises(DataError, match="1 sure, 1 possible and 2 predicted"):
        aer([SURE], [POSSIBLE], [SURE, SURE])


def test_pharaoh_lines() -> None:
    assert parse_links("0-0 2p1\t10-3") == GoldLinks(frozenset({(0, 0), (10, 3)}), frozenset({(0, 0), (2, 1), (10, 3)}))
    assert parse_links("1-1 3p2", first=1) == GoldLinks(frozenset({(0, 0)}), frozenset({(0, 0), (2, 1)}))
    assert parse_links("") == GoldLinks(frozenset(), frozenset())
    assert format_links({(10, 3), (2, 1), (2, 0)}) == "2-0 2-1 10-3"


@pytest.mark.parametrize("token", ["0", "0-", "-1-0", "0:0", "a-b", "0-0-0", "0P0", "0?0", "٣-٤", "1,0-0"])
def test_a_malformed_link_names_file_and_line(tmp_path: Path, token: str) -> None:
    path = tmp_path / "gold.align"
    path.write_text(f"0-0\n1-1 {token}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"gold\.align: line 2: ") as caught:
        read_links(path)
    assert token in str(caught.value)
    assert caught.value.code == 3


def test_files_of_links(tmp_path: Path) -> None:
    path = tmp_path / "gold.align"
    path.write_text("0-0 1p1\n\n2-2", encoding="utf-8")
    assert [format_links(pair.possible) for pair in read_links(path)] == ["0-0 1-1", "", "2-2"]
    path.write_text("0-0\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1: the link 0-0 is below the first word; count words from 1"):
        read_links(path, first=1)
    path.write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_links(path)
    with pytest.raises(DataError, match="missing: cannot be read"):
        read_links(tmp_path / "missing")


def test_links_are_the_largest_weights() -> None:
    weights = np.array([[0.1, 0.7, 0.2], [0.4, 0.2, 0.4], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert links_from_weights(weights) == {(1, 0), (0, 1), (2, 3)}  # a tie goes left, an empty row has no link
    assert links_from_weights(weights, shift=1) == {(0, 0), (2, 2)}
    assert links_from_weights(np.zeros((0, 3))) == set()
    with pytest.raises(ValueError, match="shift"):
        links_from_weights(weights, shift=2)


def test_pieces_become_words() -> None:
    weights = np.array([[0.25, 0.50, 0.25, 0.0], [0.75, 0.05, 0.10, 0.1], [0.0, 0.25, 0.25, 0.5], [0.0, 0.0, 0.0, 1.0]])
    # Source: pieces 0 and 1 are word 0, piece 2 is word 1, piece 3 is the end sign. Target: pieces 0 and 1 are word 0.
    merged = merge_words(weights, [0, 0, 1, -1], [0, 0, 1, -1])
    np.testing.assert_allclose(merged, [[(0.75 + 0.80) / 2, (0.25 + 0.10) / 2], [0.25, 0.25]])


def test_pieces_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 target and 3 source pieces"):
        merge_words(np.ones((3, 3)), [0, 1, 2], [0, 1])
    with pytest.raises(ValueError, match="needs a piece"):
        merge_words(np.ones((2, 2)), [0, 2], [0, 1])


def test_merging_keeps_all_weight() -> None:
    weights = np.random.default_rng(3).dirichlet(np.ones(6), size=5)
    merged = merge_words(weights, [0, 1, 1, 2, 3, 3], [0, 1, 1, 1, 2])
    np.testing.assert_allclose(merged.sum(axis=1), 1)


def test_entropy() -> None:
    weights = np.array([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25, 0.0]])
    np.testing.assert_allclose(entropy(weights), [0, math.log(4), 1.5 * math.log(2)])
    assert not np.signbit(entropy(weights)[0])


@pytest.mark.skipif("S2S_DATA" not in os.environ, reason="S2S_DATA does not name the data folder")
def test_the_hansards_gold_file() -> None:
    gold = read_links(Path(os.environ["S2S_DATA"]) / "align-gold" / "enfr.gold", first=1)
    assert len(gold) == 447
    sure = [pair.sure for pair in gold]
    assert sum(map(len, sure)) == 4038
    assert aer(sure, [pair.possible for pair in gold], sure).aer == 0
