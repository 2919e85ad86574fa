"""Batches: the plan of an epoch as a pure function, the rule that cuts it, and the tensors."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies
from hypothesis import settings as hypothesis_settings
from numpy.typing import NDArray
from pydantic import ValidationError

from s2s.data import batches, shards, tokenizer
from s2s.data.batches import BatchSettings, Planned, Sampling, collate, group_updates, plan_epoch, valid_batches
from s2s.data.shards import Corpus, Example
from s2s.data.tokenizer import SamplingSettings, SentencePieceSettings, Tokenizers, WhitespaceSettings
from s2s.interfaces import BOS, EOS, PAD

Array = NDArray[np.int32]


def some_lengths(pairs: int, seed: int = 0) -> tuple[Array, Array]:
    """Lengths like those of sentences: both sides of a pair are about as long."""
    generator = np.random.default_rng(seed)
    source = np.clip(generator.gamma(6, 2.5, pairs), 1, 100)
    target = np.clip(source * generator.normal(1, 0.15, pairs), 1, 100)
    return source.astype(np.int32) + 1, target.astype(np.int32) + 1


def digest(plan: Planned[NDArray[np.int64]]) -> str:
    return hashlib.sha256(b"|".join(batch.astype("<i8").tobytes() for batch in plan)).hexdigest()


def cut_by_hand(order: list[int], source: Array, target: Array, tokens: int) -> list[list[int]]:
    """The rule of the settings, one pair at a time."""
    result: list[list[int]] = []
    now: list[int] = []
    for pair in order:
        longer = [*now, pair]
        padded = len(longer) * max(int(source[each]) for each in longer)
        if now and (sum(int(target[each]) for each in longer) > tokens or padded > 4 * tokens):
            result.append(now)
            now = [pair]
        else:
            now = longer
    return [*result, now] if now else result


def test_every_pair_once_and_limits() -> None:
    source, target = some_lengths(20_000)
    settings = BatchSettings(tokens=500)
    plan = plan_epoch(source, target, settings, seed=1, epoch=0)
    assert sorted(np.concatenate(list(plan)).tolist()) == list(range(20_000))
    for batch in plan:
        assert target[batch].sum() <= 500
        assert source[batch].max() * len(batch) <= 2000
        assert np.all(np.diff(target[batch]) >= 0)


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    strategies.lists(strategies.tuples(strategies.integers(1, 40), strategies.integers(1, 12)), max_size=40),
    strategies.integers(1, 30),
)
def test_cut_is_the_rule(lengths: list[tuple[int, int]], tokens: int) -> None:
    source = np.array([each[0] for each in lengths], np.int32)
    target = np.array([each[1] for each in lengths], np.int32)
    order = sorted(range(len(lengths)), key=lambda pair: (target[pair], source[pair], pair))
    found = [batch.tolist() for batch in valid_batches(source, target, BatchSettings(tokens=tokens))]
    assert found == cut_by_hand(order, source, target, tokens)


def plan_at_once(source: Array, target: Array, settings: BatchSettings, seed: int, epoch: int) -> list[list[int]]:
    """The plan as it is described, all windows in one go."""
    generator = np.random.default_rng(np.random.SeedSequence([seed, epoch]))
    pairs, block = len(target), min(4096, settings.window)
    order = generator.permutation(-(-pairs // block)).tolist()
    together = settings.window // block
    result: list[list[int]] = []
    for window, first in enumerate(range(0, len(order), together)):
        if window:
            generator = np.random.default_rng(np.random.SeedSequence([seed, epoch, window]))
        pool = [pair for each in order[first : first + together] for pair in range(each * block, (each + 1) * block)]
        pool = generator.permutation([pair for pair in pool if pair < pairs]).tolist()
        cut = cut_by_hand(sorted(pool, key=lambda pair: (target[pair], source[pair])), source, target, settings.tokens)
        result += [cut[index] for index in generator.permutation(len(cut))]
    return result


@pytest.mark.parametrize("window", [1_000_000, 3000, 700, 1])
def test_windows_that_are_planned_when_they_are_needed(window: int) -> None:
    """A corpus of one window has the order that it always had; every position is found without those before it."""
    source, target = some_lengths(2500 if window > 1 else 40)
    settings = BatchSettings(tokens=300, window=window)
    expected = plan_at_once(source, target, settings, seed=5, epoch=3)
    plan = plan_epoch(source, target, settings, 5, 3)
    assert [batch.tolist() for batch in plan] == expected and len(plan) == len(expected)
    for position in (len(expected) - 1, 0, len(expected) // 2):
        assert plan_epoch(source, target, settings, 5, 3)[position].tolist() == expected[position]
    for outside in (len(expected), -1):
        with pytest.raises(IndexError):
            plan[outside]


def test_a_position_late_in_an_epoch_needs_one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = some_lengths(5000)
    settings = BatchSettings(tokens=300, window=1000)
    cuts: list[int] = []
    original = batches._cut

    def watched(pool: NDArray[np.int64], *rest: Any) -> list[NDArray[np.int64]]:
        cuts.append(len(pool))
        return original(pool, *rest)

    monkeypatch.setattr(batches, "_cut", watched)
    plan = group_updates(plan_epoch(source, target, settings, 1, 0), settings)
    assert cuts == []
    _ = plan[len(plan) - 1], plan[len(plan) - 2]
    assert cuts == [1000]


def test_plan_of_an_epoch_is_the_cut_of_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shuffled batches of an epoch are those that the rule gives for the sorted permuted pairs."""
    source, target = some_lengths(500)
    pools: list[list[int]] = []
    original = batches._cut

    def watched(pool: NDArray[np.int64], *rest: Any) -> list[NDArray[np.int64]]:
        pools.append(pool.tolist())
        return original(pool, *rest)

    monkeypatch.setattr(batches, "_cut", watched)
    plan = list(plan_epoch(source, target, BatchSettings(tokens=100), seed=3, epoch=2))
    (pool,) = pools
    assert pool != sorted(pool)
    order = sorted(pool, key=lambda pair: (target[pair], source[pair]))  # stable: ties as they come
    expected = cut_by_hand(order, source, target, 100)
    found = [batch.tolist() for batch in plan]
    assert sorted(found) == sorted(expected) and found != expected


def test_pure_function_of_seed_and_epoch() -> None:
    source, target = some_lengths(3000)
    plans = {
        (seed, epoch): digest(plan_epoch(source, target, BatchSettings(), seed, epoch))
        for seed in (0, 1, 2)
        for epoch in (0, 1, 2)
    }
    assert len(set(plans.values())) == 9
    np.random.default_rng(5).random(100)
    assert digest(plan_epoch(source, target, BatchSettings(), 2, 1)) == plans[2, 1]


def test_the_same_in_every_process() -> None:
    program = (
        "from tests.unit.test_batches import *\n"
        "print(digest(plan_epoch(*some_lengths(9000), BatchSettings(window=5000), 4, 7)))"
    )
    root = Path(__file__).parents[2]
    results = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("0", "1")
    }
    assert results == {digest(plan_epoch(*some_lengths(9000), BatchSettings(window=5000), 4, 7))}


def test_equal_lengths_meet_in_new_batches() -> None:
    source = target = np.full(64, 5, np.int32)
    first, second = (
        {frozenset(batch.tolist()) for batch in plan_epoch(source, target, BatchSettings(tokens=20), 0, epoch)}
        for epoch in (0, 1)
    )
    assert all(len(batch) == 4 for batch in first | second)
    assert len(first & second) <= 2


def test_windows_keep_blocks_together() -> None:
    """With windows of two blocks every batch comes from two blocks of neighbours, and windows follow each other."""
    pairs = 10 * 4096 + 100
    source, target = some_lengths(pairs)
    plan = plan_epoch(source, target, BatchSettings(window=2 * 4096 + 5), seed=0, epoch=0)
    assert sorted(np.concatenate(list(plan)).tolist()) == list(range(pairs))
    seen: list[frozenset[int]] = []
    together: set[int] = set()
    for batch in plan:
        blocks = set((batch // 4096).tolist())
        if together and len(together | blocks) > 2:
            seen.append(frozenset(together))
            together = set()
        together |= blocks
    seen.append(frozenset(together))
    assert len(seen) == 6 and sorted(block for window in seen for block in window) == list(range(11))


@pytest.mark.fault("M3")
def test_huge_pair_is_a_batch_of_its_own() -> None:
    source = np.array([3, 3, 900, 3, 5000], np.int32)
    target = np.array([4, 4, 4, 4, 700], np.int32)
    plan = plan_epoch(source, target, BatchSettings(tokens=64), seed=0, epoch=0)
    assert sorted(sorted(batch.tolist()) for batch in plan) == [[0, 1, 3], [2], [4]]


@pytest.mark.fault("M5")
@pytest.mark.parametrize("tokens", [1, 7, 2048])
def test_corpus_of_one_pair(tokens: int) -> None:
    one = np.array([7], np.int32)
    for epoch in range(3):
        (batch,) = plan_epoch(one, one, BatchSettings(tokens=tokens), seed=0, epoch=epoch)
        assert batch.tolist() == [0]


@pytest.mark.fault("N5")
def test_no_pair_no_batch() -> None:
    none = np.empty(0, np.int32)
    assert list(plan_epoch(none, none, BatchSettings(), 0, 0)) == [] == valid_batches(none, none, BatchSettings())


def test_little_padding() -> None:
    source, target = some_lengths(29_000)
    plan = plan_epoch(source, target, BatchSettings(), seed=1, epoch=1)
    positions = sum(len(batch) * int(target[batch].max()) for batch in plan)
    assert 1 - target.sum() / positions < 0.03
    positions = sum(len(batch) * int(source[batch].max()) for batch in plan)
    assert 1 - source.sum() / positions < 0.25
    assert len(plan) < 1.03 * target.sum() / 2048


def test_updates_take_whole_groups_and_end_with_the_epoch() -> None:
    plan = [np.array([index]) for index in range(14)]
    updates = group_updates(plan, BatchSettings(accumulate=2), world=3)
    assert [[int(batch[0]) for batch in update] for update in updates] == [
        [0, 1, 2, 3, 4, 5],
        [6, 7, 8, 9, 10, 11],
        [12, 13],
    ]
    same = group_updates(plan, BatchSettings(accumulate=6))
    assert [len(update) for update in same] == [6, 6, 2]


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"accumulate": 0}, {"window": 0}, {"token": 5}])
def test_settings_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        BatchSettings.model_validate(wrong)


# --- tensors ----------------------------------------------------------------------------------------------------------

TEXT = [("a cat sat", "eine Katze saß"), ("dogs", "Hunde liefen"), ("the cat is a cat", "die Katze")]


def make(
    folder: Path,
    settings: SentencePieceSettings | WhitespaceSettings,
    links: list[list[tuple[int, int]]] | None = None,
) -> tuple[Corpus, Tokenizers]:
    learned = tokenizer.train(settings, TEXT, lambda _: None)
    examples = [
        Example(
            *pair,
            learned.source.encode(pair[0]),
            learned.target.encode(pair[1]),
            line=number,
            links=None if links is None else links[number - 1],
        )
        for number, pair in enumerate(TEXT, start=1)
    ]
    shards.write(folder, examples, vocabulary=learned.source.size)
    return shards.open_corpus(folder), learned


def test_collate(tmp_path: Path) -> None:
    corpus, learned = make(tmp_path / "c", WhitespaceSettings())
    batch = collate(corpus, np.array([1, 0]), learned, guided=True)
    dogs, cat, sat, a = (learned.source.encode(word)[0] for word in ("dogs", "cat", "sat", "a"))
    assert batch.source.tolist() == [[dogs, EOS, PAD, PAD], [a, cat, sat, EOS]]
    hunde, liefen, eine, katze, sass = (
        learned.target.encode(word)[0] for word in ("Hunde", "liefen", "eine", "Katze", "saß")
    )
    assert batch.target.tolist() == [[BOS, hunde, liefen, EOS, PAD], [BOS, eine, katze, sass, EOS]]
    assert batch.source_lengths.tolist() == [2, 4] and batch.target_lengths.tolist() == [3, 4]
    assert batch.pairs == [1, 0] and batch.links is None
    assert (
        batch.source.dtype
        == batch.source_lengths.dtype
        == batch.target.dtype
        == batch.target_lengths.dtype
        == torch.int64
    )


def test_links_of_words(tmp_path: Path) -> None:
    links = [[(0, 0), (1, 0), (2, 2)], [(0, 1)], []]
    corpus, learned = make(tmp_path / "c", WhitespaceSettings(), links)
    batch = collate(corpus, np.array([0, 1, 2]), learned, guided=True)
    assert batch.links is not None and batch.links.shape == (3, 4, 6)
    none = [0.0] * 6
    assert batch.links[0].tolist() == [[0.5, 0.5, 0, 0, 0, 0], none, [0, 0, 1.0, 0, 0, 0], none]
    assert batch.links[1].tolist() == [none, [1.0, 0, 0, 0, 0, 0], none, none]
    assert batch.links[2].tolist() == [none] * 4
    assert collate(corpus, np.array([0, 1, 2]), learned).links is None


def test_links_are_carried_to_pieces(tmp_path: Path) -> None:
    links: list[list[tuple[int, int]]] = [[], [(0, 1)], []]
    corpus, learned = make(tmp_path / "c", SentencePieceSettings(model="char"), links)
    batch = collate(corpus, np.array([1]), learned, guided=True)
    assert batch.links is not None and batch.links.shape == (1, 14, 6)  # ▁Hunde▁liefen and EOS; ▁dogs and EOS
    expected = np.zeros((14, 6), np.float32)
    expected[6:13, :5] = 1 / 5
    np.testing.assert_array_equal(batch.links[0].numpy(), expected)


def test_sampled_batches(tmp_path: Path) -> None:
    links = [[(2, 2)], [(0, 0)], [(1, 1)]]
    settings = SentencePieceSettings(vocabulary=60, sampling=SamplingSettings(alpha=0.5))
    corpus, learned = make(tmp_path / "c", settings, links)
    assert settings.sampling is not None
    pairs = np.array([2, 0, 1])
    sampling = Sampling(settings.sampling, seed=1, epoch=0, position=5)
    drawn, again = (collate(corpus, pairs, learned, sampling, guided=True) for _ in range(2))
    assert drawn.source.tolist() == again.source.tolist() and drawn.target.tolist() == again.target.tolist()
    others = [
        collate(corpus, pairs, learned, sampling._replace(**{what: value + 1}))
        for what, value in (("seed", 1), ("epoch", 0), ("position", 5))
    ]
    assert all(other.source.tolist() != drawn.source.tolist() for other in others)
    twice = collate(corpus, np.array([0] * 20), learned, sampling)
    assert len({tuple(row) for row in twice.target.tolist()}) > 5, "a pair that comes again is drawn for again"
    assert drawn.links is not None
    for row, pair in enumerate(drawn.pairs):
        source, target = drawn.source[row].tolist(), drawn.target[row].tolist()
        assert learned.source.decode(source) == TEXT[pair][0] and learned.target.decode(target) == TEXT[pair][1]
        assert source[int(drawn.source_lengths[row]) - 1] == EOS == target[int(drawn.target_lengths[row])]
        ((source_word, target_word),) = links[pair]
        linked = {
            (s, t)
            for s, t in np.ndindex(len(source), len(target) - 1)
            if learned.source.words(source)[s] == source_word and learned.target.words(target[1:])[t] == target_word
        }
        assert linked == {(s, t) for t, s in drawn.links[row].nonzero().tolist()}
