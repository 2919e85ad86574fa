"""Tests what may follow a prefix and what is counted against it: by hand, and by enumerating every translation."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from scripted import GARDEN_PATH, A, B, C, Script, Scripted, Words, always, best, noise, numbers, search, tree
from torch import Tensor

from s2s.errors import UsageError
from s2s.interfaces import BOS, EOS, PAD, UNK
from s2s.search.beam import Wishes
from s2s.search.rules import coverage_penalty
from s2s.tree import Tree

Condition = Callable[[Words], bool]
EXACT: dict[str, Any] = {"beam": 81, "n_best": 81, "max_length_ratio": 0, "length_penalty": "none"}
"""Wide enough for every continuation of two words out of three."""


def looking(said: Words) -> list[float]:
    """Random attention to three source tokens, one of them not looked at."""
    draw = random.Random(f"looking {said}")
    weights = [draw.random() for _ in range(3)]
    weights[draw.randrange(3)] = 0.0
    return [weight / sum(weights) for weight in weights]


def contains(words: Sequence[int], phrase: Words) -> bool:
    return any(tuple(words[place:][: len(phrase)]) == phrase for place in range(len(words)))


def step_scores(script: Script, said: Words, penalty: float) -> dict[int, float]:
    """Log-probabilities of the next word, those of words said times ``penalty``, normalised by plain arithmetic."""
    scores = {word: math.log(chance) * (penalty if word in said else 1) for word, chance in script(said).items()}
    total = math.log(math.fsum(map(math.exp, scores.values())))
    return {word: score - total for word, score in scores.items()}


def enumerated(
    script: Script, longest: int, allowed: Condition, *, repetition: float = 1.0, coverage: float = 0.0
) -> list[tuple[float, Words]]:
    """Every allowed translation of at most ``longest`` tokens with EOS, best first: score and words."""
    found = []
    for words in itertools.chain.from_iterable(itertools.product((UNK, A, B), repeat=n) for n in range(longest)):
        if not allowed(words):
            continue
        prefixes = [words[:said] for said in range(len(words) + 1)]
        path = zip(prefixes, (*words, EOS), strict=True)
        score = math.fsum(step_scores(script, said, repetition)[word] for said, word in path)
        seen = [math.fsum(column) for column in zip(*map(looking, prefixes), strict=True)]
        score += coverage * math.fsum(math.log(min(1.0, max(1e-4, attention))) for attention in seen)
        found.append((score, words))
    return sorted(found, reverse=True)


def repeats(size: int) -> Condition:
    def of(words: Words) -> bool:
        grams = [words[place : place + size] for place in range(len(words) - size + 1)]
        return len(grams) > len(set(grams))

    return of


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("settings", "wish", "allowed", "arithmetic"),
    [
        ({"coverage_penalty": 0.3}, {}, lambda _: True, {"coverage": 0.3}),
        ({"repetition_penalty": 1.7}, {}, lambda _: True, {"repetition": 1.7}),
        ({"no_repeat_ngram": 1}, {}, lambda words: not repeats(1)(words), {}),
        ({"no_repeat_ngram": 2}, {}, lambda words: not repeats(2)(words), {}),
        ({"min_length": 3}, {}, lambda words: len(words) >= 3, {}),
        ({}, {"prefix": (B, A)}, lambda words: words[:2] == (B, A), {}),
        ({}, {"forbidden": ((A, B), (UNK, UNK, B))}, lambda w: not contains(w, (A, B)) and w != (UNK, UNK, B), {}),
        ({}, {"forbidden": ((A,), (B, B))}, lambda w: not contains(w, (A,)) and not contains(w, (B, B)), {}),
        ({}, {"required": ((A, B),)}, lambda words: contains(words, (A, B)), {}),
        ({}, {"required": ((A, A, B), (A,))}, lambda words: contains(words, (A, A, B)), {}),
        ({}, {"required": ((B,), (A, UNK), (B,))}, lambda w: contains(w, (B,)) and contains(w, (A, UNK)), {}),
        (
            {"no_repeat_ngram": 2, "repetition_penalty": 1.3, "coverage_penalty": 0.1, "min_length": 3},
            {"prefix": (A,), "required": ((UNK, A),), "forbidden": ((A, B),)},
            lambda w: w[:1] == (A,) and len(w) >= 3 and contains(w, (UNK, A)) and not contains(w, (A, B))
            and not repeats(2)(w),
            {"repetition": 1.3, "coverage": 0.1},
        ),
    ],
)  # fmt: skip
def test_a_beam_as_wide_as_the_tree_is_exhaustive(
    seed: int, settings: dict[str, Any], wish: dict[str, Any], allowed: Condition, arithmetic: dict[str, float]
) -> None:
    """Of the 1 + 3 + 9 + 27 translations of at most four tokens all that are allowed are found, and sorted."""
    model = Scripted(noise(seed), dtype=torch.float64, attention=looking)
    found = search(model, wishes=[Wishes(**wish)], max_length_extra=4, **EXACT, **settings)[0]
    expected = enumerated(noise(seed), 4, allowed, **arithmetic)
    assert [tuple(hypothesis.ids) for hypothesis in found] == [words for _, words in expected]
    assert [hypothesis.score for hypothesis in found] == pytest.approx([score for score, _ in expected], abs=1e-6)
    plain = {words: score for score, words in enumerated(noise(seed), 4, allowed)}
    for hypothesis in found:
        assert hypothesis.log_probability == pytest.approx(plain[tuple(hypothesis.ids)], abs=1e-9)


# --- coverage ---------------------------------------------------------------------------------------------------------


def test_the_coverage_penalty_of_the_paper() -> None:
    """0.2 (log min(1.2, 1) + log 0.5 + log 0.9) = 0.2 (0 - 0.693147 - 0.105361) = -0.159702."""
    looks = {(): (0.7, 0.2, 0.5), (A,): (0.5, 0.3, 0.4)}
    model = Scripted(tree({(): {A: 1.0}}), attention=looks.__getitem__)
    found = search(model, beam=1, coverage_penalty=0.2)[0][0]
    assert found.score == pytest.approx(-0.159702, abs=1e-6)
    assert found.log_probability == 0.0
    assert found.attention is None


def test_coverage_decides_and_no_attention_at_all_is_not_infinite() -> None:
    """A has log 0.6 = -0.511 and leaves a token of three unread: 0.2 log 0.0001 = -1.842, together -2.353.
    B has log 0.4 = -0.916 and reads everything. By the log-probability alone A wins."""
    script = tree({(): {A: 0.6, B: 0.4}})
    model = Scripted(script, attention=lambda said: (1.0, 1.0, 1.0 if B in said else 0.0))
    found = search(model, beam=2, n_best=2, length_penalty="none", coverage_penalty=0.2)[0]
    assert [hypothesis.ids for hypothesis in found] == [[B], [A]]
    assert [hypothesis.score for hypothesis in found] == pytest.approx([-0.9163, -2.3529], abs=1e-4)
    assert [hypothesis.ids for hypothesis in search(model, beam=2, length_penalty="none")[0]] == [[A]]


def test_a_live_prefix_may_still_read_the_rest() -> None:
    """Nothing has log 0.5 = -0.693 and leaves a token unread, -9.210: -9.904. A lives with log 0.4 = -0.916, and would
    be worth as little if it ended with the same token unread; but then it reads that."""
    script = tree({(): {EOS: 0.5, A: 0.4}})
    model = Scripted(script, attention=lambda said: (0.0, 1.0) if said else (1.0, 0.0))
    found = search(model, length=2, beam=1, length_penalty="none", coverage_penalty=1.0)[0][0]
    assert (found.ids, found.score) == ([A], pytest.approx(math.log(0.4)))


def test_the_coverage_of_padding_does_not_count() -> None:
    coverage = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.5, 1.0], [2.0, 0.25]])  # two beams of two places
    expected = [math.log(0.5), math.log(0.5), math.log(0.5), math.log(0.25)]
    assert coverage_penalty(coverage, torch.tensor([1, 2]), 1.0).tolist() == pytest.approx(expected)


def test_coverage_follows_its_prefix() -> None:
    """After one step B is at A's place: A 0.4 and B 0.6. Only what A read before it ended counts for A."""
    script = tree({(): {A: 0.4, B: 0.6}, (A,): {C: 1.0}, (B,): {C: 1.0}})
    model = Scripted(script, attention=lambda said: {A: (0.5,), B: (0.25,), C: (0.0,)}[said[-1]] if said else (0.0,))
    found = search(model, length=1, beam=2, n_best=2, length_penalty="none", coverage_penalty=1.0)[0]
    expected = [math.log(0.4 * 0.5), math.log(0.6 * 0.25)]
    assert [hypothesis.ids for hypothesis in found] == [[A, C], [B, C]]
    assert [hypothesis.score for hypothesis in found] == pytest.approx(expected)


def test_a_model_without_attention_is_refused() -> None:
    class Blind(Scripted):
        def step(self, token: Tensor, memory: Tree, state: Tree) -> tuple[Tensor, Tensor | None, Tree]:
            log_probabilities, _, state = super().step(token, memory, state)
            return log_probabilities, None, state

    with pytest.raises(UsageError, match=r"search.coverage_penalty: the model has no attention .*; set it to 0"):
        search(Blind(GARDEN_PATH), coverage_penalty=0.1)


# --- repetition -------------------------------------------------------------------------------------------------------


def test_no_word_is_said_twice() -> None:
    found = best(always({A: 0.5, B: 0.3, EOS: 0.2}), beam=1, no_repeat_ngram=1)
    assert found.ids == [A, B]
    assert found.log_probability == pytest.approx(math.log(0.5 * 0.3 * 0.2))


def test_no_pair_is_said_twice() -> None:
    """A; AA; AAA would repeat it, so AAB; AABA; then AA and AB are said, and EOS is all that is left."""
    found = best(always({A: 0.5, B: 0.3, EOS: 0.2}), beam=1, no_repeat_ngram=2)
    assert found.ids == [A, A, B, A]
    assert found.log_probability == pytest.approx(math.log(0.5 * 0.5 * 0.3 * 0.5 * 0.2))


def test_overlapping_ngrams_count() -> None:
    """AAA is one trigram; a fourth A would say it again."""
    found = best(always({A: 0.5, B: 0.3, EOS: 0.2}), beam=1, no_repeat_ngram=3, max_length_ratio=0, max_length_extra=5)
    assert found.ids == [A, A, A, B]


def test_repetition_penalty_by_hand() -> None:
    """After A: A 0.6^2 = 0.36 and B 0.4, made to sum to one: B has 0.4 / 0.76, where the model says 0.4."""
    script = tree({(): {A: 0.6, B: 0.4}, (A,): {A: 0.6, B: 0.4}})
    found = best(script, beam=1, repetition_penalty=2.0, length_penalty="none")
    assert found.ids == [A, B]
    assert found.score == pytest.approx(math.log(0.6 * 0.4 / 0.76))
    assert found.log_probability == pytest.approx(math.log(0.6 * 0.4))
    assert best(script, beam=1).ids == [A, A]


def test_repetition_penalty_where_nothing_can_follow() -> None:
    found = best(tree({(): {A: 0.9, B: 0.1}, (A,): {}}), beam=1, repetition_penalty=1.5)
    assert (found.ids, found.score, found.finished) == ([A], -math.inf, False)


# --- company ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {"beam": 3, "n_best": 3, "coverage_penalty": 0.2, "no_repeat_ngram": 2, "min_length": 1},
        {"beam": 3, "n_best": 3, "repetition_penalty": 1.4, "early_stopping": "exhaustive"},
        {"beam": 2, "n_best": 2, "early_stopping": "first"},
        {"beam": 6, "n_best": 6, "diversity": {"groups": 3, "strength": 0.7}},
        {"beam": 1, "n_best": 4, "sampling": {"temperature": 0.8, "top_k": 3, "top_p": 0.9}},
        {"beam": 4, "n_best": 4, "wished": True},
        {"beam": 1, "n_best": 3, "sampling": {}, "wished": True},
    ],
    ids=["rules", "repetition", "first", "diversity", "sampling", "wishes", "sampling-wishes"],
)
def test_batch_order_and_padding_change_nothing(keys: dict[str, Any]) -> None:
    """Tables of wishes are padded to the longest of the batch, and sentences without wishes sit beside others."""
    wished, required = keys.get("wished", False), "sampling" not in keys
    settings = {key: value for key, value in keys.items() if key != "wished"}
    model = Scripted(*map(noise, range(6)), dtype=torch.float64, attention=looking)
    lengths = [3, 9, 4, 3, 6, 5]
    wishes = [Wishes(number) for number in range(6)]
    if wished:
        wishes[1] = Wishes(1, prefix=(A, B, A), forbidden=((A, A),))
        wishes[2] = Wishes(2, forbidden=((B,), (UNK, A, UNK)))
        wishes[4] = Wishes(4, prefix=(B,), required=((UNK, UNK, A), (A, B)) if required else ())
        wishes[5] = Wishes(5, required=((A,),) if required else ())

    def run(sentences: Sequence[int], padding: int = 0) -> list[list[tuple[list[int], float, float, bool]]]:
        some, lines = [lengths[sentence] for sentence in sentences], [wishes[sentence] for sentence in sentences]
        return numbers(search(model, sentences, some, padding, wishes=lines, **settings))

    alone = [run([sentence])[0] for sentence in range(6)]
    assert run(range(6)) == alone
    assert run([5, 2, 4, 0, 2, 1, 3], padding=2) == [alone[i] for i in (5, 2, 4, 0, 2, 1, 3)]


def test_control_ids_are_never_said_whatever_the_rules() -> None:
    keys: dict[str, Any] = {"no_repeat_ngram": 1, "repetition_penalty": 3.0, "max_length_extra": 0, "min_length": 3}
    for found in search(Scripted(always({PAD: 0.45, BOS: 0.45, EOS: 0.04, UNK: 0.06})), beam=3, n_best=3, **keys)[0]:
        assert set(found.ids) <= {UNK}
