"""Tests diverse beam search: by hand, and against the definition in plain loops."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from scripted import VOCABULARY, A, B, C, Script, Scripted, Words, always, noise, numbers, search, tree

from s2s.interfaces import EOS, UNK
from s2s.search.choice import DiversitySettings, best_of_groups

TWO = tree({(): {A: 0.6, B: 0.4}})


@pytest.mark.parametrize(
    ("groups", "strength", "expected"),
    [
        (
            2,
            0.3,
            [[A]],
        ),  # log 0.6 - 0.3 = -0.811 is still over log 0.4 = -0.916: both groups say A, which is given once
        (2, 0.5, [[A], [B]]),  # -1.011 is under it
        (3, 0.25, [[A], [B]]),  # the second group says A, -0.761; for the third two places have said it, -1.011
    ],
)
def test_a_group_keeps_away_from_the_words_of_those_before(
    groups: int, strength: float, expected: list[list[int]]
) -> None:
    keys: dict[str, Any] = {"length_penalty": "none", "diversity": {"groups": groups, "strength": strength}}
    found = search(Scripted(TWO), beam=groups, n_best=groups, **keys)[0]
    assert [hypothesis.ids for hypothesis in found] == expected
    chances = {A: 0.6, B: 0.4}  # nothing of the penalty stays in the scores
    assert [math.exp(one.score) for one in found] == pytest.approx([chances[one.ids[0]] for one in found])


def test_the_penalty_is_of_one_step() -> None:
    """Group 2 says B at first, 0.4 against A's 0.6 e^-0.5 = 0.364. At the second step group 1 ends, so that C costs
    nothing there; had the penalty stayed in the totals of group 2, nothing else would show."""
    script = tree({(): {A: 0.6, B: 0.4}, (B,): {C: 0.7, EOS: 0.3}})
    keys: dict[str, Any] = {"length_penalty": "none", "diversity": {"groups": 2, "strength": 0.5}}
    found = search(Scripted(script), beam=2, n_best=2, **keys)[0]
    assert [hypothesis.ids for hypothesis in found] == [[A], [B, C]]
    assert found[1].score == pytest.approx(math.log(0.28))


@pytest.mark.parametrize("seed", range(4))
def test_one_group_is_beam_search(seed: int) -> None:
    keys: dict[str, Any] = {"beam": 4, "n_best": 4}
    model = Scripted(noise(seed), noise(seed + 10))
    diverse = search(model, (0, 1), diversity={"groups": 1, "strength": 0.8}, **keys)
    assert numbers(diverse) == numbers(search(model, (0, 1), **keys))


def by_definition(script: Script, groups: int, places: int, strength: float, limit: int) -> list[tuple[float, Words]]:
    """What is kept of a sentence, without length penalty: every group a beam search, the groups step by step."""
    live: list[list[tuple[float, Words]]] = [[(0.0, ())] for _ in range(groups)]
    kept: list[list[tuple[float, Words]]] = [[] for _ in range(groups)]
    for step in range(limit):
        said = Counter[int]()
        for group in range(groups):
            reached = []
            for place, (total, words) in enumerate(live[group]):
                for word, chance in script(words).items():
                    last = step + 1 == limit
                    if word in (EOS, UNK, A, B) and (word == EOS or not last):
                        score = total + math.log(chance)
                        reached.append((-(score - strength * said[word]), place, word, score, words))
            reached.sort()
            ended = [(score, words) for _, _, word, score, words in reached[:places] if word == EOS]
            kept[group] = sorted(kept[group] + ended, key=lambda one: -one[0])[:places]
            alive = [(score, (*words, word)) for _, _, word, score, words in reached[: 2 * places] if word != EOS]
            live[group] = alive[:places]
            said.update(words[-1] for _, words in live[group])
            best = max((score for score, _ in live[group]), default=-math.inf)
            if len(kept[group]) == places and best <= kept[group][-1][0]:
                live[group] = []
    return sorted({one for group in kept for one in group}, reverse=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("groups", "places", "strength"), [(2, 2, 0.5), (3, 1, 1.0), (3, 2, 0.2), (2, 4, 1.0)])
def test_groups_choose_as_the_definition_says(seed: int, groups: int, places: int, strength: float) -> None:
    keys: dict[str, Any] = {"length_penalty": "none", "diversity": {"groups": groups, "strength": strength}}
    beam, model = groups * places, Scripted(noise(seed), dtype=torch.float64)
    found = search(model, beam=beam, n_best=beam, max_length_ratio=0, max_length_extra=6, **keys)[0]
    expected = by_definition(noise(seed), groups, places, strength, 6)
    assert [tuple(hypothesis.ids) for hypothesis in found] == [words for _, words in expected]
    assert [hypothesis.score for hypothesis in found] == pytest.approx([score for score, _ in expected], abs=1e-9)


def test_groups_in_which_nothing_ends() -> None:
    """One hypothesis that never finished, without control symbols, though groups ended at different steps."""
    script = tree({(): {A: 0.6, B: 0.4}, (A,): {}, (B,): {C: 1.0}, (B, C): {C: 1.0}, (B, C, C): {}})
    found = search(Scripted(script), beam=2, n_best=2, diversity={"groups": 2, "strength": 1.0})[0]
    assert [(one.ids, one.score, one.finished) for one in found] == [([A], -math.inf, False)]


def test_a_group_that_has_ended_says_nothing() -> None:
    """Its three places hold dead words, the third of them UNK, which must cost the group after it nothing."""
    totals = torch.full((2, 3, VOCABULARY), -math.inf)
    totals[1, 0, UNK], totals[1, 0, B] = -1.0, -1.2
    total, column = best_of_groups(totals, DiversitySettings(groups=2, strength=1.0))
    assert column[1, :2].tolist() == [UNK, B]
    assert total[1, :2].tolist() == pytest.approx([-1.0, -1.2])


def test_one_group_that_ends_and_one_that_cannot() -> None:
    script = tree({(): {A: 0.6, B: 0.4}, (A,): {}, (B,): {C: 1.0}})
    found = search(Scripted(script), beam=2, n_best=2, diversity={"groups": 2, "strength": 1.0})[0]
    assert [(one.ids, one.finished) for one in found] == [([B, C], True)]


def test_attention_follows_its_group() -> None:
    """Six digits at most, which float32 holds exactly."""
    keys: dict[str, Any] = {"beam": 2, "n_best": 2, "diversity": {"groups": 2, "strength": 1.0}}
    limit = {"max_length_ratio": 0, "max_length_extra": 6}
    model = Scripted(noise(5), always({A: 0.5, B: 0.3, EOS: 0.2}))
    for found in search(model, (0, 1), attention=True, **keys, **limit):
        for one in found:
            read = [1, *one.ids]
            digits = [float("".join(map(str, read[: time + 1]))) for time in range(len(read))]
            assert one.attention is not None and one.attention[:, 0].tolist() == digits
