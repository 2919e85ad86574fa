"""Search over real models: as wide as the space it is exhaustive, and its scores are those of teacher forcing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from grid import (
    BOTH_WAYS,
    CONV,
    EMBEDDING,
    EVERY_STACK,
    ONE_STACK,
    STACK,
    Case,
    Options,
    Pairs,
    attending,
    build,
    pairs,
    recurrent,
)
from torch import Tensor

from s2s.errors import UsageError
from s2s.interfaces import BOS, EOS, UNK, Searchable
from s2s.models.ensemble import Ensemble
from s2s.models.seq2seq import Seq2Seq
from s2s.search.beam import Hypothesis, SearchSettings, Wishes, beam_search, can_enter

SEEING: dict[str, Options] = {
    "pre-relative": EVERY_STACK["pre-relative"],
    "post-alibi-window": {**EVERY_STACK["post-alibi-window"], "sparse": {"kind": "window", "size": 1}},
    "pre-rotary-strided-grouped": EVERY_STACK["pre-rotary-strided-grouped"],
}
"""Decoders by what they hold; under a window of one word the first of a translation is out of sight before the last, as
it is to a convolution over two words."""
CASES = [
    recurrent("luong", BOTH_WAYS, wiring="luong", cell="lstm", layers=2),
    recurrent("cgru", BOTH_WAYS, wiring="cgru", attention={"kind": "global", "normaliser": "entmax15"}),
    recurrent("batched", BOTH_WAYS, wiring="luong", input_feeding=False, attention={"kind": "none"}),
    Case("transformer", {"embedding": STACK["size"], "tie": "none", "encoder": STACK, "decoder": STACK}),
    *(
        Case(name, {"embedding": STACK["size"], "tie": "none", "encoder": EVERY_STACK[name], "decoder": decoder})
        for name, decoder in SEEING.items()
    ),
    attending("local-m", {"kind": "local-m", "window": 1, "normaliser": "sparsemax"}, layers=1),
    Case("conv", {"embedding": 6, "tie": "none", "encoder": CONV, "decoder": {**CONV, "kernel": 2, "layers": 1}}),
    *(
        Case(name, {"embedding": STACK["size"], "tie": "none", "encoder": EMBEDDING, "decoder": ONE_STACK[name][1]})
        for name in ("decoder-only-bidirectional-sinusoidal", "decoder-only-grouped")  # absolute places, and distances
    ),
]
each_model = pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
PAIRS = pairs((5, 2, 4, 1))
WORDS = range(UNK, 9)  # all that may stand in a translation: not PAD, BOS and EOS
LIMIT = 3
ALL = SearchSettings(beam=60, length_penalty="none", max_length_ratio=0, max_length_extra=LIMIT)
"""Wide enough for all 1 + 6 + 36 translations of at most 3 tokens, EOS counted."""


def hypotheses(model: Searchable, some: Pairs, settings: SearchSettings, n_best: int = 1) -> list[list[Hypothesis]]:
    """What search finds, with its attention."""
    return beam_search(model, some.source, some.lengths, settings, attention=True, n_best=n_best)


def rescored(model: Seq2Seq, some: Pairs, row: int, ids: list[int]) -> tuple[float, Tensor | None]:
    """The log-probability of a translation under teacher forcing, and its attention (T, S)."""
    source = some.source[row : row + 1, : int(some.lengths[row])]
    words = torch.tensor([[BOS, *ids]])
    decoded, memory = model(source, some.lengths[row : row + 1], words, frozenset({"weights"}))
    logits = model.decoder.logits(decoded, memory, torch.ones_like(words, dtype=torch.bool))
    of_words = logits.log_softmax(-1).gather(1, torch.tensor([*ids, EOS]).unsqueeze(1))
    return float(of_words.sum()), None if decoded.weights is None else decoded.weights[0]


def same(found: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> bool:
    """Whether two searches found the same translations, scores and attention."""
    for one, other in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        if one.ids != other.ids or not math.isclose(one.score, other.score, rel_tol=1e-9):
            return False
        if one.attention is None or other.attention is None:
            if one.attention is not other.attention:
                return False
        elif not torch.allclose(one.attention, other.attention, atol=1e-6):
            return False
    return [len(kept) for kept in found] == [len(kept) for kept in expected]


@torch.no_grad()
@pytest.mark.parametrize("alpha", [0.0, 1.0])
@each_model
def test_a_beam_as_wide_as_the_space_is_exhaustive(case: Case, alpha: float) -> None:
    model = build(case)
    space = [list(ids) for count in range(LIMIT) for ids in itertools.product(WORDS, repeat=count)]
    penalty = {"length_penalty": "average", "length_alpha": alpha}
    found = hypotheses(model, PAIRS, ALL.model_copy(update=penalty), n_best=len(space))
    for row, kept in enumerate(found):
        scored = [(rescored(model, PAIRS, row, ids)[0] / (len(ids) + 1) ** alpha, ids) for ids in space]
        scored.sort(key=lambda pair: -pair[0])
        assert [one.ids for one in kept] == [ids for _, ids in scored]
        assert [one.score for one in kept] == pytest.approx([score for score, _ in scored], abs=1e-9)


@torch.no_grad()
@each_model
def test_scores_and_attention_are_those_of_teacher_forcing(case: Case) -> None:
    model = build(case)
    for row, kept in enumerate(hypotheses(model, PAIRS, SearchSettings(beam=4, max_length_extra=3), n_best=4)):
        for one in kept:
            score, weights = rescored(model, PAIRS, row, one.ids)
            assert one.log_probability == pytest.approx(score, abs=1e-9)
            assert one.score == pytest.approx(score / (len(one.ids) + 1), abs=1e-9)
            if weights is None or one.attention is None:
                assert one.attention is weights
            else:
                torch.testing.assert_close(one.attention, weights.float())


OPTIONS: dict[str, dict[str, Any]] = {
    "repetition": {"beam": 3, "repetition_penalty": 1.5},
    "blocked": {"beam": 3, "no_repeat_ngram": 1, "min_length": 3, "early_stopping": "exhaustive"},
    "diverse": {"beam": 4, "diversity": {"groups": 2}},
    "sampled": {"beam": 1, "sampling": {"temperature": 1.3, "top_p": 0.9}},
    "wished": {"beam": 3},
}
"""Ways to search; in the last the sentences have wishes."""
WISHES = [
    Wishes(0, required=((4, 5), (7,))),
    Wishes(1, prefix=(6, 6), forbidden=((6, 6, 6), (3,))),
    Wishes(2),
    Wishes(3, required=((8,),), forbidden=((7,), (5,), (4,))),
]
each_option = pytest.mark.parametrize("option", OPTIONS)


def sought(model: Searchable, some: Pairs, option: str, rows: list[int]) -> list[list[Hypothesis]]:
    """What search by an option of `OPTIONS` finds for ``some``, which are these ``rows`` of `PAIRS`."""
    settings = SearchSettings(max_length_ratio=0, max_length_extra=6, **OPTIONS[option])
    n_best = 2 if option == "sampled" else settings.beam
    wishes = [WISHES[row] if option == "wished" else Wishes(row) for row in rows]
    return beam_search(model, some.source, some.lengths, settings, attention=True, n_best=n_best, wishes=wishes)


@torch.no_grad()
@each_option
@each_model
def test_the_log_probability_is_the_models_own_whatever_the_option(case: Case, option: str) -> None:
    model = build(case)
    for row, kept in enumerate(sought(model, PAIRS, option, [0, 1, 2, 3])):
        assert kept
        for one in kept:
            score, weights = rescored(model, PAIRS, row, one.ids)
            assert one.log_probability == pytest.approx(score, abs=1e-6)
            if weights is not None and one.attention is not None:
                torch.testing.assert_close(one.attention, weights.float())
            if option != "repetition":
                assert one.score == pytest.approx(score / (len(one.ids) + 1), abs=1e-6)
            if option == "blocked":
                assert len(set(one.ids)) == len(one.ids) >= 3


@torch.no_grad()
@each_option
@each_model
def test_company_and_padding_do_not_change_any_option(case: Case, option: str) -> None:
    model = build(case)
    expected = [sought(model, PAIRS.rows(slice(row, row + 1)), option, [row])[0] for row in range(4)]
    assert same(sought(model, PAIRS, option, [0, 1, 2, 3]), expected)
    turned = [3, 1, 0, 2]
    wider = torch.cat([PAIRS.source, torch.full((4, 4), 6)], 1)
    other = Pairs(wider[turned], PAIRS.lengths[turned], PAIRS.target[turned])
    assert same(sought(model, other, option, turned), [expected[row] for row in turned])


ENTERING: dict[str, dict[str, Any]] = {
    "beam": {"beam": 3, "coverage_penalty": 0.3},
    "greedy": {"beam": 1, "min_length": 2},
    "gnmt": {"beam": 4, "length_penalty": "gnmt", "length_alpha": 3.0, "early_stopping": "exhaustive"},
    "first": {"beam": 2, "early_stopping": "first"},
    "diverse": OPTIONS["diverse"],
    "sampled": OPTIONS["sampled"],
    "wished": {"beam": 3},
}
MANY = pairs((5, 2, 4, 1, 3) * 4)


@torch.no_grad()
@pytest.mark.parametrize("option", ENTERING)
@each_model
def test_sentences_that_enter_while_others_are_searched_become_what_they_would(case: Case, option: str) -> None:
    model = build(case)
    count = len(MANY.lengths)
    settings = SearchSettings(max_length_ratio=1, max_length_extra=5, **ENTERING[option])
    n_best = 2 if option == "sampled" else settings.beam
    wishes = [Wishes(row) for row in range(count)]
    if option == "wished":
        wishes[1::2] = [Wishes(row, required=((4, 5), (7,)), prefix=(6,)) for row in range(1, count, 2)]

    def found(together: int | None, rows: slice = slice(count)) -> list[list[Hypothesis]]:
        some = MANY.rows(rows)
        return beam_search(
            model, some.source, some.lengths, settings, attention=True, n_best=n_best, wishes=wishes[rows],
            together=together,
        )  # fmt: skip

    if case.decoder.get("attention") == {"kind": "none"} and settings.coverage_penalty:
        pytest.skip("it has no attention to count")
    if not can_enter(model, settings):
        assert model.same_age or (model.grows and settings.beam > 1)
        with pytest.raises(ValueError, match="cannot enter"):
            found(2)
        return
    expected = [found(None, slice(row, row + 1))[0] for row in range(count)]
    assert option == "first" or len({len(kept[0].ids) for kept in expected}) > 1  # they do not all end at once
    for together in (None, 1, 5, 16):
        assert same(found(together), expected)


@torch.no_grad()
@each_model
def test_who_has_ended_may_stay_while_others_go_on(case: Case) -> None:
    """Where there are many they leave some at a time."""
    model, settings = build(case), SearchSettings(beam=2, max_length_ratio=1, max_length_extra=1)
    expected = [hypotheses(model, MANY.rows(slice(row, row + 1)), settings)[0] for row in range(len(MANY.lengths))]
    assert len({len(kept[0].ids) for kept in expected}) > 1
    assert same(hypotheses(model, MANY, settings), expected)


def test_no_sentence_enters_where_words_said_are_kept() -> None:
    model = build(CASES[0])
    assert not can_enter(model, SearchSettings(no_repeat_ngram=2))
    assert not can_enter(model, SearchSettings(repetition_penalty=1.1))
    with pytest.raises(ValueError, match="cannot enter"):
        wishes = [Wishes(row, forbidden=((4,),)) for row in range(4)]
        beam_search(model, PAIRS.source, PAIRS.lengths, SearchSettings(), wishes=wishes, together=2)


@torch.no_grad()
@each_model
def test_wishes_are_met_and_the_best_that_meets_them_is_found(case: Case) -> None:
    """By a beam as wide as the space: all translations of at most three words are scored."""
    model = build(case)
    settings = ALL.model_copy(update={"beam": 300, "max_length_extra": 4})
    wishes = [
        Wishes(0, required=((4, 5),)),
        Wishes(1, prefix=(6,), forbidden=((6, 6), (3,))),
        Wishes(2, required=((8,), (3,)), forbidden=((3, 8),)),
        Wishes(3, prefix=(7, 5)),
    ]
    space = [list(ids) for count in range(4) for ids in itertools.product(WORDS, repeat=count)]
    fits: list[Callable[[str], bool]] = [
        lambda text: "45" in text,
        lambda text: text[:1] == "6" and "66" not in text and "3" not in text,
        lambda text: "8" in text and "3" in text and "38" not in text,
        lambda text: text[:2] == "75",
    ]
    found = beam_search(model, PAIRS.source, PAIRS.lengths, settings, wishes=wishes)
    for row, ((best,), fit) in enumerate(zip(found, fits, strict=True)):
        scores = {tuple(ids): rescored(model, PAIRS, row, ids)[0] for ids in space if fit("".join(map(str, ids)))}
        assert tuple(best.ids) == max(scores, key=lambda ids: scores[ids])
        assert best.score == pytest.approx(max(scores.values()), abs=1e-9)


@torch.no_grad()
@each_model
def test_coverage_is_counted_where_there_is_attention(case: Case) -> None:
    """Wu et al. 2016, equation 14, of the attention under teacher forcing."""
    model = build(case)
    settings = SearchSettings(beam=3, max_length_extra=3, coverage_penalty=0.4, length_penalty="none")
    if case.decoder.get("attention") == {"kind": "none"}:
        with pytest.raises(UsageError, match="no attention"):
            beam_search(model, PAIRS.source, PAIRS.lengths, settings)
        return
    for row, kept in enumerate(hypotheses(model, PAIRS, settings, n_best=3)):
        for one in kept:
            score, weights = rescored(model, PAIRS, row, one.ids)
            assert weights is not None
            logs = [math.log(min(1.0, max(1e-4, attention))) for attention in weights.sum(0).tolist()]
            assert one.score == pytest.approx(score + 0.4 * sum(logs), abs=1e-5)


@torch.no_grad()
@each_model
def test_beam_one_is_greedy(case: Case) -> None:
    model = build(case)
    settings = SearchSettings(beam=1, max_length_ratio=0, max_length_extra=6)
    for row, (found,) in enumerate(hypotheses(model, PAIRS, settings)):
        some = PAIRS.rows(slice(row, row + 1))
        memory, state = model.start(some.source, some.lengths)
        token, said = torch.tensor([BOS]), list[int]()
        while len(said) < 5:
            words, _, state = model.step(token, memory, state)
            token = torch.tensor([max([EOS, *WORDS], key=lambda word: float(words[0, word]))])
            if token == EOS:
                break
            said.append(int(token))
        assert found.ids == said


@torch.no_grad()
@each_model
def test_company_and_padding_do_not_change_translations(case: Case) -> None:
    model, settings = build(case), SearchSettings(beam=3, max_length_extra=4)
    expected = [hypotheses(model, PAIRS.rows(slice(row, row + 1)), settings, n_best=3)[0] for row in range(4)]
    assert same(hypotheses(model, PAIRS, settings, n_best=3), expected)
    turned = torch.tensor([3, 1, 0, 2])
    wider = torch.cat([PAIRS.source, torch.full((4, 4), 6)], 1)
    other = Pairs(wider[turned], PAIRS.lengths[turned], PAIRS.target[turned])
    assert same(hypotheses(model, other, settings, n_best=3), [expected[int(row)] for row in turned])


@torch.no_grad()
@pytest.mark.parametrize("average", ["probability", "log"])
@each_model
def test_an_ensemble_of_one_model_with_itself_is_the_model(case: Case, average: str) -> None:
    model, settings = build(case), SearchSettings(beam=3, max_length_extra=4)
    twins = Ensemble([model, model, model], average)  # type: ignore[arg-type]
    assert same(hypotheses(twins, PAIRS, settings, n_best=3), hypotheses(model, PAIRS, settings, n_best=3))


@torch.no_grad()
@pytest.mark.parametrize("average", ["probability", "log"])
def test_a_recurrent_model_and_a_transformer_search_together(average: str) -> None:
    models = [build(case) for case in CASES]
    together = Ensemble(models, average)  # type: ignore[arg-type]
    memory, state = together.start(PAIRS.source, PAIRS.lengths, frozenset({"weights"}))
    token = torch.full((4,), BOS)
    words, weights, _ = together.step(token, memory, state)
    apart = [model.step(token, *model.start(PAIRS.source, PAIRS.lengths, frozenset({"weights"}))) for model in models]
    likelihoods = torch.stack([part[0].exp() for part in apart])
    if average == "probability":
        expected = likelihoods.sum(0) / len(models)
    else:
        expected = likelihoods.prod(0) ** (1 / len(models))
        expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(words.exp(), expected)
    shown = [part[1] for part in apart if part[1] is not None]
    assert weights is not None and len(shown) == len(models) - 1  # the one without attention shows none
    torch.testing.assert_close(weights, sum(shown[1:], shown[0]) / len(shown))
    settings = SearchSettings(beam=3, max_length_extra=4)
    assert same(
        hypotheses(together, PAIRS, settings),
        [hypotheses(together, PAIRS.rows(slice(row, row + 1)), settings)[0] for row in range(4)],
    )


@torch.no_grad()
def test_the_best_of_an_ensemble_is_found() -> None:
    """Exhaustively: the score of a translation is the product of the averaged probabilities of its words."""
    models = [build(CASES[0]), build(CASES[3])]
    found = hypotheses(Ensemble(models), PAIRS, ALL)
    for row, (best,) in enumerate(found):
        some, scores = PAIRS.rows(slice(row, row + 1)), dict[tuple[int, ...], float]()
        for count in range(LIMIT):
            for ids in itertools.product(WORDS, repeat=count):
                words = torch.tensor([[BOS, *ids]])
                mean = torch.zeros(len(ids) + 1, 9, dtype=torch.float64)
                for model in models:
                    decoded, memory = model(some.source, some.lengths, words)
                    mean += model.decoder.logits(decoded, memory, words > 0).softmax(-1) / 2
                scores[ids] = sum(math.log(mean[t, word]) for t, word in enumerate([*ids, EOS]))
        assert tuple(best.ids) == max(scores, key=lambda ids: scores[ids])
        assert best.score == pytest.approx(max(scores.values()), abs=1e-9)
