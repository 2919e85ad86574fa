"""Tests sampling: frequencies against the exact distribution, and draws that depend on nothing but their numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scripted import VOCABULARY, A, B, C, Copier, D, Script, Scripted, always, noise, numbers, search, tree

from s2s.data.batches import padded
from s2s.errors import CheckpointError, UsageError
from s2s.interfaces import EOS, UNK
from s2s.search.beam import Hypothesis, SearchSettings, Wishes, beam_search
from s2s.search.sampling import SamplingSettings, drawn, uniforms

CPU = torch.device("cpu")
CHI_SQUARE = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32, 8: 26.12}
"""What chi-square passes once in a thousand, by degrees of freedom; the seeds are fixed."""


def sample(
    script: Script, count: int = 1, number: int = 0, keys: dict[str, Any] | None = None, **cut: Any
) -> list[Hypothesis]:
    wish = [Wishes(number)]
    return search(Scripted(script), beam=1, n_best=count, wishes=wish, sampling=cut, **(keys or {}))[0]


def truncated(words: dict[int, float], temperature: float, top_k: int, top_p: float) -> dict[int, float]:
    """The distribution that is drawn from, step by step as it is defined."""
    sharp = {word: chance ** (1 / temperature) for word, chance in words.items()}
    ranked = sorted(sharp, key=lambda word: (-sharp[word], word))[: top_k or None]
    total = sum(sharp[word] for word in ranked)
    kept, mass = list[int](), 0.0
    for word in ranked:
        if mass >= top_p:
            break
        kept.append(word)
        mass += sharp[word] / total
    total = sum(sharp[word] for word in kept)
    return {word: sharp[word] / total for word in kept}


def chi_square(seen: Counter[Any], expected: dict[Any, float]) -> float:
    """Of counts against probabilities; infinite where something impossible was seen."""
    count = seen.total()
    if set(seen) - set(expected):
        return math.inf
    return sum((seen[what] - count * chance) ** 2 / (count * chance) for what, chance in expected.items())


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 0, 1.0), (1.0, 2, 1.0), (1.0, 0, 0.7), (1.5, 3, 0.8), (1.0, 1, 1.0)],
)
def test_translations_are_as_frequent_as_they_are_probable(temperature: float, top_k: int, top_p: float) -> None:
    """Two words in a row, the second one's distribution depending on the first; 3000 draws."""
    first, second = {A: 0.4, B: 0.3, C: 0.2, D: 0.1}, {EOS: 0.65, UNK: 0.35}
    script = tree({(): first, (A,): second})
    cut = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    expected = dict[tuple[int, ...], float]()
    for word, chance in truncated(first, **cut).items():
        ends = truncated(second, **cut) if word == A else {EOS: 1.0}
        expected |= {(word, last) if last != EOS else (word,): chance * then for last, then in ends.items()}
    found = sample(script, 3000, **cut)
    seen = Counter(tuple(hypothesis.ids) for hypothesis in found)
    assert len(found) == 3000
    assert chi_square(seen, expected) < CHI_SQUARE.get(len(expected) - 1, 1e-9)


def test_two_draws_of_a_sentence_and_two_sentences_are_independent() -> None:
    """A with 0.3, B with 0.7: all four pairs as often as their products, 2000 pairs each."""
    script = always({A: 0.3, B: 0.7})
    short: dict[str, Any] = {"max_length_ratio": 0, "max_length_extra": 2}
    found = search(
        Scripted(script), [0] * 2000, beam=1, n_best=2, sampling={}, wishes=[Wishes(n) for n in range(2000)], **short
    )
    words = [[draw.ids[0] for draw in draws] for draws in found]
    expected = {(one, other): p * q for one, p in ((A, 0.3), (B, 0.7)) for other, q in ((A, 0.3), (B, 0.7))}
    for pairs in (map(tuple, words), zip([one for one, _ in words], [one for one, _ in words[1:]], strict=False)):
        assert chi_square(Counter(pairs), expected) < CHI_SQUARE[3]


def test_scores_are_those_of_the_model_not_of_the_cut() -> None:
    (found,) = sample(tree({(): {A: 0.4, B: 0.6}}), top_k=1, temperature=0.1)
    assert (found.ids, found.finished) == ([B], True)
    assert found.log_probability == pytest.approx(math.log(0.6))
    assert found.score == pytest.approx(math.log(0.6) / 2)


@pytest.mark.parametrize("seed", range(4))
def test_near_zero_temperature_is_greedy(seed: int) -> None:
    greedy = search(Scripted(noise(seed)), beam=1)[0][0].ids
    assert all(hypothesis.ids == greedy for hypothesis in sample(noise(seed), 5, temperature=1e-6))


def test_draws_depend_on_their_numbers_alone() -> None:
    """Not on the other sentences, the order, the padding, or how many draws are asked for."""
    model = Scripted(*map(noise, range(5)), dtype=torch.float64)

    def run(sentences: Sequence[int], count: int = 4, padding: int = 0, seed: int = 7) -> list[Any]:
        wishes = [Wishes(number=10 + sentence) for sentence in sentences]
        sampling = {"seed": seed, "top_p": 0.95}
        some = [3 + sentence for sentence in sentences]
        return numbers(search(model, sentences, some, padding, beam=1, n_best=count, sampling=sampling, wishes=wishes))

    together = run(range(5))
    assert [run([sentence])[0] for sentence in range(5)] == together
    assert run([3, 0, 4], padding=2) == [together[3], together[0], together[4]]
    assert run(range(5), count=2) == [draws[:2] for draws in together]
    assert run(range(5), seed=8) != together
    assert len({str(draw) for draws in together for draw in draws}) > 10


def test_draws_obey_the_rules() -> None:
    """Prefix, forbidden phrase, minimum length, n-grams and the limit."""
    keys: dict[str, Any] = {"min_length": 3, "no_repeat_ngram": 2, "max_length_ratio": 0, "max_length_extra": 5}
    model, wish = Scripted(noise(3)), Wishes(prefix=(B,), forbidden=((A, UNK), (UNK, UNK)))
    for found in search(model, wishes=[wish], beam=1, n_best=200, sampling={}, **keys)[0]:
        pairs = list(zip(found.ids, found.ids[1:], strict=False))
        assert found.ids[0] == B and 3 <= len(found.ids) <= 4 and found.finished == (len(found.ids) == 3)
        assert len(set(pairs)) == len(pairs) and not {(A, UNK), (UNK, UNK)} & set(pairs)


def test_draws_that_lead_nowhere_are_given_too() -> None:
    """After A nothing can follow: such draws are given up with score -inf, in their place among the others."""
    found = sample(tree({(): {A: 0.5, B: 0.5}, (A,): {}}), 40)
    assert len(found) == 40
    assert {(tuple(draw.ids), draw.score > -math.inf) for draw in found} == {((A,), False), ((B,), True)}
    assert not all(draw.score > -math.inf for draw in found[:10])


def test_a_draw_that_ended_may_stay_longer_than_any_may_live() -> None:
    """One of sixteen, which ended at its fifth word when fifteen had just entered, waits until they end."""
    sentences = [[A] * 3 + [EOS]] * 15 + [[B] * 4 + [EOS]] + [[C] * 20 + [EOS]] * 15
    source, lengths = map(torch.from_numpy, padded(sentences))
    settings = SearchSettings(
        beam=1, sampling=SamplingSettings(temperature=0.1), max_length_ratio=0, max_length_extra=10
    )
    found = beam_search(Copier(VOCABULARY), source, lengths, settings, together=16)
    assert [draw.ids for (draw,) in found] == [[A] * 3] * 15 + [[B] * 4] + [[C] * 9] * 15


@pytest.mark.parametrize("rule", ["promising", "first", "exhaustive"])
def test_a_draw_ends_at_its_eos(rule: str) -> None:
    """Even where a longer translation, or one that reads more of the source, would be worth more."""
    script = tree({(): {EOS: 0.5, A: 0.5}, (A,): {A: 1.0}})
    model = Scripted(script, attention=lambda said: (0.1,) * 3)
    keys: dict[str, Any] = {"coverage_penalty": 1.0, "early_stopping": rule}
    found = search(model, beam=1, n_best=60, sampling={}, **keys)[0]
    assert {tuple(draw.ids) for draw in found} == {(), (A, A)}
    assert all(draw.log_probability == pytest.approx(math.log(0.5)) for draw in found)


def test_a_word_without_probability_is_never_drawn() -> None:
    """At the ends of the interval: 0 and the largest number below 1."""
    totals = torch.tensor([[-math.inf, math.log(0.5), -math.inf, math.log(0.5), -math.inf]]).repeat(2, 1)
    ends = torch.tensor([0.0, 1 - 2**-24])
    for cut in ({}, {"top_k": 5}, {"top_p": 0.999}, {"temperature": 0.01}):
        _, word = drawn(totals, ends, SamplingSettings(**cut))
        assert word.flatten().tolist() == [1, 3]


def test_ties_are_cut_by_the_lowest_id() -> None:
    totals = torch.zeros(1000, 6).log_softmax(1)
    uniform = torch.arange(1000) / 1000
    for cut in ({"top_k": 3}, {"top_p": 0.45}):  # a sixth, two, three sixths: 0.5 is the first past 0.45
        total, word = drawn(totals, uniform, SamplingSettings(**cut))
        assert Counter(word.flatten().tolist()) == {0: 334, 1: 333, 2: 333}
        assert total.flatten().tolist() == [totals[0, 0].item()] * 1000


def test_uniform_numbers() -> None:
    """One row per draw, all different, in [0, 1), exact in float32, with the mean of a uniform distribution."""
    rows = uniforms(3, [(0, 0), (1, 0), (7, 0)], 2, 5000, CPU)
    assert rows.shape == (6, 5000) and rows.dtype == torch.float32
    assert rows.min() >= 0 and rows.max() < 1
    assert len(rows.unique()) > 29_900  # of 30,000 of 2^24 numbers 27 would meet another by chance
    assert torch.equal(uniforms(3, [(7, 0)], 2, 60, CPU), rows[4:, :60])
    assert not torch.equal(uniforms(4, [(7, 0)], 2, 60, CPU), rows[4:, :60])
    parts = uniforms(3, [(7, part) for part in range(4)], 2, 5000, CPU)
    assert len(torch.cat((rows, parts[2:])).unique()) > 59_850  # 107 meetings by chance
    assert (rows.mean(1) - 0.5).abs().max() < 4 / math.sqrt(12 * 5000)


def test_nan_is_refused_when_sampling() -> None:
    with pytest.raises(CheckpointError, match="not numbers"):
        sample(always({A: 0.5, B: math.nan}))


def test_at_least_one_draw() -> None:
    with pytest.raises(UsageError, match="n_best"):
        sample(noise(0), 0)
