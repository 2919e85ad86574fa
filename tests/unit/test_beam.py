"""Tests the beam search with scripted models: small trees of probabilities, worked out by hand or enumerated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from scripted import GARDEN_PATH, A, B, C, D, Script, Scripted, always, best, noise, search, tree
from torch import Tensor

from s2s.errors import CheckpointError, UsageError
from s2s.interfaces import BOS, EOS, NOTHING, PAD, UNK
from s2s.search.beam import Hypothesis, SearchSettings, beam_search
from s2s.search.choice import DiversitySettings, best_columns
from s2s.search.sampling import SamplingSettings
from s2s.tree import Tree


def test_beam_1_takes_the_best_word_each_time() -> None:
    found = best(GARDEN_PATH, beam=1)
    assert found.ids == [A]
    assert found.log_probability == pytest.approx(math.log(0.24))
    assert found.score == pytest.approx(math.log(0.24) / 2)
    assert found.finished


def test_beam_2_finds_the_better_translation() -> None:
    found = best(GARDEN_PATH, beam=2)
    assert found.ids == [B]
    assert found.log_probability == pytest.approx(math.log(0.36))


@pytest.mark.parametrize("penalty", ["average", "gnmt", "none"])
def test_beam_1_stops_at_the_eos_it_chose(penalty: str) -> None:
    """The other word would lead to a better average: log 0.45 / 11 > log 0.55 / 1. Greedy does not look."""
    model = Scripted(lambda said: {EOS: 0.55, A: 0.45} if not said else {A: 1.0} if len(said) < 10 else {EOS: 1.0})
    assert search(model, beam=1, length_penalty=penalty)[0][0].ids == []
    assert len(model.seen) == 1


LENGTHS = tree(
    {(): {EOS: 0.4, A: 0.28, B: 0.1, C: 0.22}}
    | {(A,) * said: {A: 1.0} for said in (1, 2)}
    | {(B,) * said: {B: 1.0} for said in range(1, 7)}
)
"""L and log p, L with EOS: nothing 1, -0.9163; C 2, -1.5141; AAA 4, -1.2730; BBBBBBB 8, -2.3026."""


@pytest.mark.parametrize(
    ("penalty", "alpha", "ids", "score"),
    [
        ("none", 1.0, [], -0.9163),  # the others are less probable
        ("average", 0.0, [], -0.9163),  # divided by 1
        ("gnmt", 1.0, [A] * 3, -1.2730 / 1.5),  # = -0.849 over nothing -0.916, B -2.3026 / (13 / 6) = -1.063
        ("average", 0.5, [A] * 3, -1.2730 / 2),  # = -0.636 over B -2.3026 / 2.8284 = -0.814, nothing -0.916
        ("average", 1.0, [B] * 7, -2.3026 / 8),  # = -0.288 over A -1.2730 / 4 = -0.318, C -1.5141 / 2 = -0.757
    ],
)
def test_the_length_penalty_decides_the_winner(penalty: str, alpha: float, ids: list[int], score: float) -> None:
    found = best(LENGTHS, beam=4, length_penalty=penalty, length_alpha=alpha)
    assert found.ids == ids
    assert found.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize(("words", "alpha", "penalty"), [(0, 0.6, 1.0), (9, 0.6, 1.732862), (9, 1.0, 2.5)])
def test_gnmt_penalty_at_published_lengths(words: int, alpha: float, penalty: float) -> None:
    script = tree({(A,) * said: {A: 1.0} for said in range(words)} | {(A,) * words: {EOS: 0.5, B: 0.5}})
    found = best(script, beam=1, length_penalty="gnmt", length_alpha=alpha, length=10)
    assert len(found.ids) == words
    assert found.score == pytest.approx(math.log(0.5) / penalty, rel=1e-6)


def test_a_length_penalty_beyond_float32_leaves_the_dead_dead() -> None:
    """10,010^10 is more than float32 can hold, and what is dead over infinity would be no number: never the worse."""
    model = Scripted(tree({(): {A: 0.4, EOS: 0.6}}))
    keys: dict[str, Any] = {"length_alpha": 10.0, "early_stopping": "exhaustive", "max_length_extra": 10_000}
    found = search(model, beam=2, n_best=2, **keys)[0]
    assert [one.ids for one in found] == [[A], []]  # log 0.4 / 2^10 over log 0.6
    assert len(model.seen) == 2


def test_search_goes_on_while_a_live_prefix_is_more_promising_than_the_worst_kept() -> None:
    """After two steps two have finished, nothing (0.06) and A (0.072), but AC lives with 0.81; after three AC has
    0.7695 and the best live prefix 0.0405 < 0.072."""
    script = tree({(): {A: 0.9, EOS: 0.06, B: 0.04}, (A,): {C: 0.9, EOS: 0.08, D: 0.02}, (A, C): {EOS: 0.95, D: 0.05}})
    model = Scripted(script)
    found = search(model, beam=2, n_best=2, length_penalty="none")[0]
    assert [hypothesis.ids for hypothesis in found] == [[A, C], [A]]
    assert [math.exp(hypothesis.score) for hypothesis in found] == pytest.approx([0.7695, 0.072])
    assert len(model.seen) == 3


@pytest.mark.parametrize(
    ("rule", "steps", "expected"),
    [("first", 2, [[A], []]), ("promising", 3, [[A, C], [A]]), ("exhaustive", 3, [[A, C], [A]])],
)
def test_a_full_beam_stops_by_the_rule(rule: str, steps: int, expected: list[list[int]]) -> None:
    """The script of the test above. After two steps two have finished: enough for "first". Without a length penalty
    the best live prefix is its own bound, so "exhaustive" stops where "promising" does."""
    script = tree({(): {A: 0.9, EOS: 0.06, B: 0.04}, (A,): {C: 0.9, EOS: 0.08, D: 0.02}, (A, C): {EOS: 0.95, D: 0.05}})
    model = Scripted(script)
    found = search(model, beam=2, n_best=2, length_penalty="none", early_stopping=rule)[0]
    assert [hypothesis.ids for hypothesis in found] == expected
    assert len(model.seen) == steps


def test_exhaustive_search_goes_on_while_growth_could_win() -> None:
    """Nothing has log 0.55 = -0.598; A lives with log 0.45 = -0.799, which over 16 tokens would be -0.05. After ten
    more certain words it ends, -0.799 / 11 = -0.073, and nothing lives."""
    script = tree({(): {EOS: 0.55, A: 0.45}} | {(A,) * said: {A: 1.0} for said in range(1, 10)})
    for rule, words, steps in (("promising", 0, 1), ("first", 0, 1), ("exhaustive", 10, 11)):
        model = Scripted(script)
        found = search(model, beam=1, early_stopping=rule)[0][0]
        assert (found.ids, len(model.seen)) == ([A] * words, steps)


@pytest.mark.parametrize(("limit", "steps"), [(4, 2), (5, 5)])
def test_exhaustive_search_stops_where_nothing_could_win(limit: int, steps: int) -> None:
    """Nothing has log 0.5 = -0.693. AA lives with log 0.05 = -2.996: at best -0.749 after four tokens, which is worse,
    but -0.599 after five, which is better; it ends with log 0.05 - log 1 / 5 = -0.599 there."""
    script = tree({(): {EOS: 0.5, A: 0.5}, (A,): {A: 0.1}, (A, A): {A: 1.0}, (A, A, A): {A: 1.0}})
    model = Scripted(script)
    found = best_of(model, limit)
    assert (found.ids, len(model.seen)) == ([A] * 4 if limit == 5 else [], steps)


def best_of(model: Scripted, limit: int) -> Hypothesis:
    rule: dict[str, Any] = {"beam": 1, "early_stopping": "exhaustive", "max_length_ratio": 0, "max_length_extra": limit}
    return search(model, **rule)[0][0]


def test_one_finished_hypothesis_does_not_end_a_beam_of_two() -> None:
    model = Scripted(tree({(): {EOS: 0.6, A: 0.4}}))
    found = search(model, beam=2, n_best=2, length_penalty="none")[0]
    assert [hypothesis.ids for hypothesis in found] == [[], [A]]


def test_eos_is_forced_at_the_length_limit() -> None:
    """1.5 * 3 + 1 = 5.5: five tokens with EOS."""
    found = best(always({A: 0.9, EOS: 0.1}), beam=1, max_length_ratio=1.5, max_length_extra=1)
    assert found.ids == [A] * 4
    assert found.log_probability == pytest.approx(4 * math.log(0.9) + math.log(0.1))
    assert not found.finished


def test_a_limit_of_nothing_still_allows_eos() -> None:
    assert best(always({A: 0.9, EOS: 0.1}), max_length_ratio=0, max_length_extra=0).ids == []


def test_a_model_that_cannot_end_gives_its_best_prefix() -> None:
    model = Scripted(always({C: 1.0}), always({A: 0.4, B: 0.6}))
    both = search(model, (0, 1), beam=3, n_best=3, max_length_ratio=1, attention=True)
    for word, found in zip((C, B), both, strict=True):
        assert len(found) == 1
        assert found[0].ids == [word] * 12
        assert found[0].score == found[0].log_probability == -math.inf
        assert not found[0].finished
        assert found[0].attention is not None and found[0].attention.shape == (13, 3)


def test_a_prefix_that_nothing_can_follow_is_given_up() -> None:
    dead_end = tree({(): {A: 0.9, B: 0.1}, (A,): {}})
    assert best(dead_end, beam=2).ids == [B]
    found = best(dead_end, beam=1)
    assert (found.ids, found.score, found.finished) == ([A], -math.inf, False)


def test_min_length_forbids_an_early_eos() -> None:
    found = best(always({EOS: 0.9, A: 0.06, B: 0.04}), beam=2, min_length=2)
    assert found.ids == [A, A]
    assert found.log_probability == pytest.approx(2 * math.log(0.06) + math.log(0.9))
    assert best(always({EOS: 0.9, A: 0.1}), min_length=9, max_length_ratio=1, max_length_extra=0).ids == [A, A]


@pytest.mark.parametrize("beam", [1, 2])
def test_finished_sentences_leave_the_batch(beam: int) -> None:
    model = Scripted(tree({}), tree({(): {A: 1.0}, (A,): {B: 1.0}}), tree({(): {C: 1.0}}))
    found = search(model, (0, 1, 2), beam=beam)
    assert [hypotheses[0].ids for hypotheses in found] == [[], [A, B], [C]]
    assert model.seen == [[0] * beam + [1] * beam + [2] * beam, [1] * beam + [2] * beam, [1] * beam]


def test_attention_follows_its_hypothesis_through_reordering_and_shrinking() -> None:
    """A (0.6) leads B (0.4), then BC (0.36) leads AC (0.24), then ACD (0.24) leads BCD (0.216): the winner changes its
    place twice, while the two sentences before it leave."""
    switching = tree(
        {
            (): {A: 0.6, B: 0.4},
            (A,): {C: 0.4, D: 0.3, UNK: 0.3},
            (B,): {C: 0.9, D: 0.1},
            (A, C): {D: 1.0},
            (B, C): {D: 0.6, C: 0.4},
        }
    )
    model = Scripted(tree({}), tree({(): {A: 1.0}, (A,): {B: 1.0}}), switching)
    found = search(model, (0, 1, 2), length=(2, 3, 4), beam=2, n_best=2, attention=True)
    assert [[hypothesis.ids for hypothesis in hypotheses] for hypotheses in found[:2]] == [[[]], [[A, B]]]
    assert [hypothesis.ids for hypothesis in found[2]] == [[A, C, D], [B, C, D]]
    assert math.exp(found[2][0].log_probability) == pytest.approx(0.24)
    assert math.exp(found[2][1].log_probability) == pytest.approx(0.216)
    for script, length in enumerate((2, 3, 4)):
        for hypothesis in found[script]:
            assert hypothesis.attention is not None and hypothesis.attention.dtype == torch.float32
            read = [BOS, *hypothesis.ids]
            digits = [float("".join(map(str, read[: time + 1]))) for time in range(len(read))]
            assert hypothesis.attention[:, 0].tolist() == digits
            assert hypothesis.attention[:, 1].tolist() == [float(script)] * len(read)
            assert hypothesis.attention.shape == (len(read), length)


def test_attention_is_kept_and_wanted_only_when_asked_for() -> None:
    model = Scripted(GARDEN_PATH)
    assert search(model)[0][0].attention is None
    assert model.want == NOTHING
    assert search(model, attention=True)[0][0].attention is not None
    assert model.want == {"weights"}


def test_a_model_without_attention_gives_none() -> None:
    class Blind(Scripted):
        def step(self, token: Tensor, memory: Tree, state: Tree) -> tuple[Tensor, Tensor | None, Tree]:
            log_probabilities, _, state = super().step(token, memory, state)
            return log_probabilities, None, state

    assert search(Blind(GARDEN_PATH), attention=True)[0][0].attention is None


def enumerate_all(script: Script, longest: int, penalty: Callable[[int], float]) -> list[tuple[float, list[int]]]:
    """Every translation of at most ``longest`` tokens with EOS, best first: score and words."""
    found = []
    for words in itertools.chain.from_iterable(itertools.product((UNK, A, B), repeat=n) for n in range(longest)):
        path = [script(words[:said])[word] for said, word in enumerate((*words, EOS))]
        found.append((math.fsum(map(math.log, path)) / penalty(len(path)), list(words)))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("name", "penalty"),
    [
        ("none", lambda _: 1.0),
        ("average", lambda length: length**0.7),
        ("gnmt", lambda length: ((5 + length) / 6) ** 0.7),
    ],
)
def test_a_beam_as_wide_as_the_tree_is_exhaustive(seed: int, name: str, penalty: Callable[[int], float]) -> None:
    """1 + 3 + 9 + 27 = 40 translations of at most four tokens, all of which a beam of 81 finds and sorts."""
    model = Scripted(noise(seed), dtype=torch.float64)
    limit: dict[str, Any] = {"max_length_ratio": 1, "max_length_extra": 1}
    found = search(model, beam=81, n_best=81, length_penalty=name, length_alpha=0.7, **limit)[0]
    expected = enumerate_all(noise(seed), 4, penalty)
    assert [hypothesis.ids for hypothesis in found] == [words for _, words in expected]
    assert [hypothesis.score for hypothesis in found] == pytest.approx([score for score, _ in expected], rel=1e-12)


@pytest.mark.parametrize("beam", [1, 3])
def test_batch_order_and_padding_change_nothing(beam: int) -> None:
    model = Scripted(*map(noise, range(7)))
    lengths = [2, 9, 4, 2, 6, 3, 5]

    def run(sentences: list[int], padding: int = 0) -> list[list[tuple[object, ...]]]:
        wanted: dict[str, Any] = {"beam": beam, "n_best": beam, "min_length": 1, "attention": True}
        found = search(model, sentences, [lengths[sentence] for sentence in sentences], padding, **wanted)
        return [[(*one[:4], one.attention.tolist()) for one in many if one.attention is not None] for many in found]

    alone = [run([sentence])[0] for sentence in range(7)]
    assert all(alone)
    assert run(list(range(7))) == alone
    assert run([6, 2, 4, 0, 5, 1, 3, 2], padding=3) == [alone[i] for i in (6, 2, 4, 0, 5, 1, 3, 2)]


def test_ties_go_to_the_lowest_place_and_then_the_lowest_word() -> None:
    """UNK and A are the lowest of five equal words; then UNK-A, UNK-B, A-A and A-B are equal."""
    script = tree({(): dict.fromkeys((D, C, B, A, UNK), 0.2)} | {(word,): {B: 0.5, A: 0.5} for word in (UNK, A)})
    found = search(Scripted(script), beam=2, n_best=2)[0]
    assert [hypothesis.ids for hypothesis in found] == [[UNK, A], [UNK, B]]
    assert best(script, beam=1).ids == [UNK, A]


@pytest.mark.parametrize(("width", "count"), [(5, 2), (64, 2), (65, 2), (999, 2), (4099, 4), (20_000, 10), (9001, 1)])
def test_the_best_columns_are_those_of_a_stable_sort(width: int, count: int) -> None:
    generator = torch.Generator().manual_seed(width)
    many_ties = torch.randint(0, 4, (6, width), generator=generator).float()
    rare = torch.full((6, width), -torch.inf)
    rare[torch.arange(6), torch.randint(0, width, (6,), generator=generator)] = -1.0
    distinct = torch.randn(6, width, generator=generator)
    signs = torch.tensor([0.0, -0.0, -1e-45, 1e-45, -3e38, torch.inf])
    extremes = signs[torch.randint(0, len(signs), (6, width), generator=generator)]
    for values in (many_ties, rare, distinct, extremes, torch.zeros(6, width), distinct.double(), many_ties.double()):
        value, column = best_columns(values, count)
        for row, line in enumerate(values.tolist()):
            expected = sorted(range(width), key=lambda index: (-line[index], index))[:count]
            assert column[row].tolist() == expected
            assert value[row].tolist() == [line[index] for index in expected]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_what_is_not_a_number_is_largest_whatever_its_sign(kind: torch.dtype) -> None:
    """The sign is that of infinity less infinity on this processor, and the other one."""
    infinity = torch.full((2,), torch.inf, dtype=kind)
    nan = infinity - infinity
    for line in (torch.cat((nan, -nan)), torch.cat((-nan, nan))):
        values = torch.cat((infinity, torch.zeros(996, dtype=kind), line)).unsqueeze(0)
        assert best_columns(values, 3)[1].tolist() == [[998, 999, 1000]]


def test_control_ids_are_never_said() -> None:
    found = search(Scripted(always({PAD: 0.45, BOS: 0.45, EOS: 0.04, UNK: 0.06})), beam=3, n_best=3, max_length_extra=0)
    assert {word for hypothesis in found[0] for word in hypothesis.ids} == {UNK}
    assert best(always({PAD: 0.5, BOS: 0.4, EOS: 0.1})).ids == []


def test_an_eos_at_once_is_an_empty_translation() -> None:
    found = best(always({EOS: 1.0}), attention=True)
    assert (found.ids, found.score, found.finished) == ([], 0.0, True)
    assert found.attention is not None and found.attention.tolist() == [[1.0, 0.0, 0.0]]


def test_the_n_best_are_sorted_and_start_with_the_best() -> None:
    model = Scripted(*map(noise, range(4)))
    for one, many in zip(search(model, range(4)), search(model, range(4), n_best=5), strict=True):
        scores = [hypothesis.score for hypothesis in many]
        assert scores == sorted(scores, reverse=True) and len(scores) == 5
        assert len({tuple(hypothesis.ids) for hypothesis in many}) == 5
        assert one == many[:1]


def test_fewer_hypotheses_than_places() -> None:
    found = search(Scripted(tree({(): {A: 0.7, EOS: 0.3}})), beam=50, n_best=50, length_penalty="none")[0]
    assert [hypothesis.ids for hypothesis in found] == [[A], []]


@pytest.mark.parametrize("n_best", [0, 6])
def test_n_best_outside_the_beam_is_refused(n_best: int) -> None:
    with pytest.raises(UsageError, match=f"{n_best} is not between 1 and the beam, 5"):
        search(Scripted(GARDEN_PATH), n_best=n_best)


def test_no_sentences() -> None:
    empty = torch.zeros(0, dtype=torch.long)
    assert beam_search(Scripted(), empty.view(0, 0), empty, SearchSettings()) == []


def test_a_model_that_gives_nan_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not numbers"):
        best(tree({(A,): {B: math.nan}, (): {A: 1.0}}))


def test_scores_are_summed_in_float32_where_the_model_gives_bf16() -> None:
    """-8 and then -1/128 per word: in bf16 near 8 the steps are 1/32, and none of the small terms would count."""
    script = tree({(): {A: math.exp(-8)}} | {(A,) * said: {A: math.exp(-1 / 128)} for said in range(1, 20)})
    found = search(Scripted(script, dtype=torch.bfloat16), beam=1, length=10)[0][0]
    assert len(found.ids) == 20
    assert found.log_probability == -8 - 19 / 128


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_precision_is_that_of_the_settings_whatever_the_caller_does(precision: str) -> None:
    seen: set[torch.dtype] = set()

    class Watched(Scripted):
        def step(self, token: Tensor, memory: Tree, state: Tree) -> tuple[Tensor, Tensor | None, Tree]:
            seen.add((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
            return super().step(token, memory, state)

    with torch.autocast("cpu", torch.bfloat16):
        search(Watched(GARDEN_PATH), precision=precision)
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float32}


@pytest.mark.parametrize(
    "wrong",
    [
        {"beam": 0}, {"beam": -1}, {"beam": 10**9}, {"beam": 2.0}, {"length_alpha": -0.1}, {"length_alpha": math.nan},
        {"length_penalty": "wu"}, {"max_length_ratio": -1.0}, {"max_length_extra": 10**9}, {"min_length": -1},
        {"batch_tokens": 0}, {"batch_tokens": 10**9}, {"max_source_length": 1}, {"precision": "fp16"}, {"bean": 5},
        {"coverage_penalty": -1.0}, {"no_repeat_ngram": -1}, {"repetition_penalty": 0.9}, {"early_stopping": "never"},
        {"sampling": {"temperature": 0.0}}, {"sampling": {"temperature": 1e-46}}, {"sampling": {"top_k": -1}},
        {"sampling": {"top_p": 0.0}}, {"sampling": {"top_p": 1.1}}, {"sampling": {"seed": -1}},
        {"diversity": {"groups": 0}}, {"diversity": {"groups": 2, "strength": 0.0}}, {"diversity": {}},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        SearchSettings(**wrong)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"sampling": {}}, "one by one, without a beam; set beam to 1"),
        ({"beam": 4, "sampling": {}, "diversity": {"groups": 2}}, "set one of them to null"),
        ({"beam": 5, "diversity": {"groups": 2}}, "beam 5 cannot be divided into 2 groups; set beam to a multiple"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        SearchSettings(**wrong)


def test_every_setting_is_explained() -> None:
    for settings in (SearchSettings, SamplingSettings, DiversitySettings):
        assert all(field.description for field in settings.model_fields.values())
