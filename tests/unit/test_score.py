"""Scoring lines with a scripted model: every pair gets its own result, in order, whatever its company."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from s2s.data.parallel import Parallel
from s2s.data.tokenizer import Tokenizers, WhitespaceTokenizer
from s2s.errors import CheckpointError, DataError
from s2s.interfaces import BOS, EOS, PAD, UNK, Before
from s2s.search.beam import SearchSettings
from s2s.search.score import Forced, Lines, Scorer

A, B, C = 4, 5, 6
WORDS = WhitespaceTokenizer(b"a\nb\nc")
BOTH = Tokenizers(WORDS, WORDS)


class Scripted:
    """log p(token t) = -(token + t / 8 + source length); attention at (t, s) is 10 t + s. Notes the batches it sees."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int, int]] = []

    def __call__(
        self, source: Tensor, lengths: Tensor, target: Tensor, want: frozenset[str], before: Before | None
    ) -> Forced:
        assert (target[:, 0] == BOS).all()
        assert [int(row) for row in (source != PAD).sum(1)] == lengths.tolist()
        gold = target[:, 1:]
        self.shapes.append((len(gold), source.size(1), gold.size(1)))
        steps = torch.arange(gold.size(1))
        said = -(gold + steps / 8 + lengths.unsqueeze(1))
        weights = (10.0 * steps.view(1, -1, 1) + torch.arange(source.size(1))).expand(len(gold), -1, -1)
        return Forced(said.masked_fill(gold == PAD, 0.0), weights if "weights" in want else None)


def scorer(script: Scripted, attention: bool = False, **settings: int) -> Scorer:
    return Scorer(script, BOTH, SearchSettings(**settings), torch.device("cpu"), attention=attention)  # type: ignore[arg-type]


def test_a_hand_worked_pair() -> None:
    """Source "a b" has 3 tokens with EOS: -(5 + 0 + 3) for b, -(4 + 1/8 + 3) for a, -(2 + 2/8 + 3) for EOS."""
    (found,) = scorer(Scripted(), attention=True).score([("a b", "b a")])
    assert found.token_log_probabilities == [-8.0, -7.125, -5.25]
    assert found.log_probability == -20.375
    assert (found.source_ids, found.target_ids, found.length) == ([A, B, EOS], [B, A, EOS], 3)
    assert (found.source, found.target) == ("a b", "b a")
    assert found.attention is not None
    assert found.attention.tolist() == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]


def test_pairs_without_words() -> None:
    """See the module: only the first of these is a question to the model, and it is EOS alone, -(2 + 0 + 2)."""
    script = Scripted()
    pairs: list[Lines] = [("a", ""), ("", ""), ("", "a"), (None, "a"), ("a", None), (None, None), ("", None)]
    found = list(scorer(script).score(pairs))
    values = [one.log_probability for one in found]
    assert values[:3] == [-4.0, 0.0, -math.inf]
    assert all(math.isnan(value) for value in values[3:])
    assert [len(one.target_ids) for one in found] == [1, 0, 0, 0, 0, 0, 0]
    assert {one.length for one in found} == {1}
    assert script.shapes == [(1, 2, 1)]


def test_lines_that_are_too_long_are_not_scored() -> None:
    """The limit counts EOS, and holds for both sides."""
    limited = scorer(Scripted(), max_source_length=3)
    found = list(limited.score([("a b", "c c"), ("a b c", "a"), ("a", "a b c"), ("a b", "")]))
    assert [math.isnan(one.log_probability) for one in found] == [False, True, True, False]
    assert limited.too_long == 2
    assert (found[1].source, found[1].target_ids) == ("a b c", [])


def test_company_and_order_change_nothing() -> None:
    draw = random.Random(5)
    lines = [" ".join(draw.choices("abcx", k=draw.randrange(1, 9))) for _ in range(200)]  # x is unknown
    pairs: list[Lines] = list(zip(lines[:100], lines[100:], strict=True))
    alone = [next(scorer(Scripted()).score([pair])) for pair in pairs]
    for tokens in (1, 20, 10_000):  # 1: a pair at a time, in windows of one pair
        script = Scripted()
        assert list(scorer(script, batch_tokens=tokens).score(pairs)) == alone
        assert all(rows == 1 or rows * max(widths) <= tokens for rows, *widths in script.shapes)
    ids = WORDS.encode(lines[100])
    expected = [-(token + step / 8 + len(lines[0].split()) + 1) for step, token in enumerate([*ids, EOS])]
    assert alone[0].token_log_probabilities == expected
    assert any(UNK in one.target_ids for one in alone)


@pytest.mark.parametrize(("words", "others", "window"), [(1, 1, 32), (31, 1, 2), (1, 31, 2), (200, 1, 1)])
def test_a_window_at_a_time_is_read(words: int, others: int, window: int) -> None:
    """16 batches of 4 tokens are pairs whose longer sides have 64 pieces, or the first with which they have more."""
    taken: list[int] = []

    def pairs() -> Iterator[Lines]:
        for number in range(100):
            taken.append(number)
            yield " ".join(["a"] * words), " ".join(["b"] * others)

    found = scorer(Scripted(), batch_tokens=4).score(pairs())
    next(found)
    assert taken == list(range(window))


def test_probabilities_that_are_not_numbers_are_refused() -> None:
    def broken(source: Tensor, lengths: Tensor, target: Tensor, want: frozenset[str], before: Before | None) -> Forced:
        return Forced(torch.full(target[:, 1:].shape, math.nan), None)

    broken_model = Scorer(broken, BOTH, SearchSettings(), torch.device("cpu"))
    with pytest.raises(CheckpointError, match="not numbers"):
        list(broken_model.score([("a", "b")]))


# --- two files --------------------------------------------------------------------------------------------------------


def write(folder: Path, one: bytes, other: bytes) -> tuple[Path, Path]:
    (folder / "one").write_bytes(one)
    (folder / "other").write_bytes(other)
    return folder / "one", folder / "other"


def test_two_files_line_by_line(tmp_path: Path) -> None:
    pairs = Parallel(*write(tmp_path, b"a  b\n\n\xff\nd", "e\nf\u2028g\n\n\n".encode()))
    assert list(pairs) == [("a b", "e"), ("", "f g"), ("\ufffd", ""), ("d", "")]
    assert pairs.warnings() == [f"{tmp_path / 'one'}: 1 lines are not UTF-8, the first is line 3"]
    with pytest.raises(DataError, match="line 3, byte 1: 0xff is not UTF-8"):
        list(Parallel(tmp_path / "one", tmp_path / "other", "error"))


@pytest.mark.parametrize(("one", "other"), [(3, 1), (1, 3), (0, 2), (2, 0)])
def test_files_of_other_lengths(tmp_path: Path, one: int, other: int) -> None:
    """What both have comes out, then both counts are told, also when the first of them ends first."""
    paths = write(tmp_path, one * b"a\n", other * b"b\n")
    taken = []
    with pytest.raises(DataError, match=rf"one has {one} lines, \S+other {other}; line N") as caught:
        for pair in Parallel(*paths):
            taken.append(pair)
    assert taken == [("a", "b")] * min(one, other)
    assert caught.value.code == 3
    with pytest.raises(DataError, match=rf"one has {one} lines"):
        Parallel(*paths).check()
