"""Tests prefixes, required and forbidden phrases: banks by hand, narrow beams, and wishes that cannot be met."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scripted import VOCABULARY, A, B, C, D, Scripted, Words, always, noise, numbers, search, tree

from s2s.errors import UsageError
from s2s.interfaces import BOS, EOS, PAD, UNK
from s2s.search.beam import Hypothesis, Wishes
from s2s.search.choice import best_of_banks
from s2s.search.rules import Limits, Notes, allow
from s2s.search.wishes import tabled

CPU = torch.device("cpu")


def wished(script: Any, wish: Wishes, **keys: Any) -> list[Hypothesis]:
    return search(Scripted(script), wishes=[wish], **keys)[0]


def contains(words: list[int], phrase: Words) -> bool:
    return any(tuple(words[place:][: len(phrase)]) == phrase for place in range(len(words)))


# --- prefix -----------------------------------------------------------------------------------------------------------


def test_a_prefix_is_said_and_its_probability_counts() -> None:
    """B, A though A, A is likelier; then A, A until EOS. log (0.2 x 0.7 x 0.1) once the limit of three is reached."""
    script = always({A: 0.7, B: 0.2, EOS: 0.1})
    (found,) = wished(script, Wishes(prefix=(B, A)), beam=2, max_length_ratio=0, max_length_extra=3)
    assert found.ids == [B, A]
    assert found.log_probability == pytest.approx(math.log(0.2 * 0.7 * 0.1))


def test_a_prefix_wins_over_the_rules_that_bind_the_search() -> None:
    """A, A is said though no word may be said twice; after it, A is forbidden and B is not."""
    script = always({A: 0.7, B: 0.2, EOS: 0.1})
    (found,) = wished(script, Wishes(prefix=(A, A)), beam=1, no_repeat_ngram=1)
    assert found.ids == [A, A, B]


def test_a_prefix_wins_over_the_room_for_what_is_required() -> None:
    """A B C and B C D overlap in the prefix A B C D, so five tokens are enough; one after the other they need seven."""
    wish = Wishes(prefix=(A, B, C, D), required=((A, B, C), (B, C, D)))
    script = always({A: 0.2, B: 0.2, C: 0.2, D: 0.2, EOS: 0.2})
    (found,) = wished(script, wish, beam=1, max_length_ratio=0, max_length_extra=5)
    assert found.ids == [A, B, C, D] and found.log_probability == pytest.approx(5 * math.log(0.2))


def test_a_prefix_that_the_model_thinks_impossible() -> None:
    (found,) = wished(tree({(): {A: 1.0}}), Wishes(prefix=(B,)), beam=2)
    assert (found.score, found.finished) == (-math.inf, False)


# --- forbidden --------------------------------------------------------------------------------------------------------


def test_a_forbidden_phrase_is_avoided_at_its_last_word() -> None:
    """A, B is the best; without B after A it is A, then C with 0.1."""
    script = tree({(): {A: 0.8, B: 0.2}, (A,): {B: 0.9, C: 0.1}})
    assert wished(script, Wishes(), beam=1)[0].ids == [A, B]
    found = wished(script, Wishes(forbidden=((A, B),)), beam=1, length_penalty="none")
    assert [hypothesis.ids for hypothesis in found] == [[A, C]]
    assert found[0].score == pytest.approx(math.log(0.08))
    assert wished(script, Wishes(forbidden=((B,), (A, C), (D, A))), beam=1)[0].score == -math.inf


# --- required ---------------------------------------------------------------------------------------------------------


def test_banks_keep_a_place_for_what_is_required() -> None:
    """Beam 2, C required. Of A 0.6, B 0.3 and C 0.1 the likeliest are A and B; C, which is in the bank of the one
    required word, gets the first place, A, the best of the other bank, the second."""
    model = Scripted(tree({(): {A: 0.6, B: 0.3, C: 0.1}, (A,): {C: 0.5, EOS: 0.5}}))
    found = search(model, wishes=[Wishes(required=((C,),))], beam=2, n_best=2, length_penalty="none")[0]
    assert model.read[1] == [(C,), (A,)]
    assert [hypothesis.ids for hypothesis in found] == [[A, C], [C]]
    assert [math.exp(hypothesis.score) for hypothesis in found] == pytest.approx([0.3, 0.1])


def test_what_a_bank_cannot_use_goes_to_the_others() -> None:
    """Three places, A B required. Totals by row: row 0 (nothing said) C 0.3, D 0.2, A 0.1; row 1 (A said) B 0.05,
    C 0.04, A 0.01; row 2 is dead. Words said of the phrase: 2 by 1B; 1 by 0A and 1A; 0 by 0C, 0D and 1C. The best of
    every bank from the fullest, then the second best: 1B, 0A, 0C; 1A, 0D; 1C."""
    totals = torch.full((1, 3, VOCABULARY), -math.inf)
    for row, words in enumerate(({C: 0.3, D: 0.2, A: 0.1}, {B: 0.05, C: 0.04, A: 0.01})):
        for word, probability in words.items():
            totals[0, row, word] = math.log(probability)
    required = tabled([Wishes(required=((A, B),))], [9], 0, CPU).required
    assert required is not None
    total, column = best_of_banks(totals, required, torch.tensor([[[0], [1], [0]]]))
    order = [(0, 1, B), (1, 0, A), (2, 0, C), (3, 1, A), (4, 0, D), (5, 1, C)]
    assert column[0].tolist() == [row * VOCABULARY + word for _, row, word in order]
    assert total[0].exp().tolist() == pytest.approx([0.05, 0.1, 0.3, 0.01, 0.2, 0.04])


def test_ties_in_a_bank_go_to_the_lowest_column_and_nan_comes_first() -> None:
    """A B A C required and A B A said: C makes four words, B two, A one, others none. Two continuations of one place
    are looked at: the fullest banks'; and NaN, wherever it is, so that it is seen."""
    required = tabled([Wishes(required=((A, B, A, C),))], [9], 0, CPU).required
    assert required is not None
    totals = torch.full((1, 1, VOCABULARY), -1.0)
    assert best_of_banks(totals.clone(), required, torch.tensor([[[3]]]))[1].tolist() == [[C, B]]
    totals[0, 0, D] = math.nan
    assert best_of_banks(totals.clone(), required, torch.tensor([[[3]]]))[1].tolist() == [[D, C]]
    totals[0, 0] = torch.tensor([-math.inf, -math.inf, -math.inf, -1.0, -math.inf, -1.0, -1.0, -1.0])
    assert best_of_banks(totals.clone(), required, torch.tensor([[[0]]]))[1].tolist() == [[UNK, B]]


@pytest.mark.parametrize(("step", "allowed"), [(0, {UNK, A, B, C, D}), (1, {A}), (2, {B})])
def test_words_that_leave_too_little_room_are_not_allowed(step: int, allowed: set[int]) -> None:
    """Four tokens with EOS, A B required, of which nothing, nothing and A are said before the steps: at first there is
    room for one other word, then A must come, then B."""
    limits = Limits(torch.tensor([4]), torch.tensor([1]), tabled([Wishes(required=((A, B),))], [4], 0, CPU), None)
    progress = torch.tensor([[0], [0], [1]][step : step + 1])
    totals = torch.zeros(1, 1, VOCABULARY)
    allow(totals, torch.tensor([step]), limits, Notes(None, progress, None), 0, 0)
    assert set((totals[0, 0] == 0).nonzero().flatten().tolist()) == allowed


def test_eos_waits_for_all_that_is_required() -> None:
    """EOS has 0.9 at every step. C, D is said at once or after the words that fit before it; greedy says it at once."""
    script = always({EOS: 0.9, A: 0.06, C: 0.03, D: 0.01})
    (found,) = wished(script, Wishes(required=((C, D),)), beam=1)
    assert found.ids == [C, D]
    assert found.log_probability == pytest.approx(math.log(0.03 * 0.01 * 0.9))


def test_nothing_crowds_out_what_is_required() -> None:
    """Four tokens with EOS, three required: whatever the beam, there is no room for a fourth word."""
    script = always({A: 0.97, C: 0.01, D: 0.01, EOS: 0.01})
    for beam in (1, 2, 7):
        wish = Wishes(required=((C,), (D, C)))  # C is said with D, C
        (found,) = wished(script, wish, beam=beam, max_length_ratio=0, max_length_extra=3)
        assert found.ids == [D, C]


@pytest.mark.parametrize("beam", [1, 2, 5, 12])
@pytest.mark.parametrize(
    "required",
    [((A, B),), ((UNK, UNK), (B, A)), ((A,), (B,), (UNK,)), ((A, A, B), (B, UNK), (UNK, A)), ((A, B, A, B),)],
)
def test_narrow_beams_say_what_is_required_and_nothing_forbidden(required: tuple[Words, ...], beam: int) -> None:
    wish = Wishes(prefix=(A,), required=required, forbidden=((B, B), (A, UNK, A)))
    model = Scripted(*map(noise, range(4)))
    for hypotheses in search(model, range(4), wishes=[wish] * 4, beam=beam, n_best=beam, length=2):
        assert hypotheses
        for found in hypotheses:
            assert found.score > -math.inf and found.ids[0] == A
            assert all(contains(found.ids, phrase) for phrase in required)
            assert not contains(found.ids, (B, B)) and not contains(found.ids, (A, UNK, A))


def test_a_phrase_begun_and_broken_off_is_found_later() -> None:
    """A, A, B of the words A, A, A, B: the third A leaves two said, not none and not one."""
    said = (A, A, A, B)
    required = tabled([Wishes(required=((A, A, B), (A, B, A)))], [9], 0, CPU).required
    assert required is not None
    progress, seen = torch.zeros(1, 1, 2, dtype=torch.long), []
    for word in (*said, A, C, A):
        progress = required.after(progress, torch.tensor([[word]]))
        seen.append(progress[0, 0].tolist())
    assert seen == [[1, 1], [2, 1], [2, 1], [3, 2], [3, 3], [3, 3], [3, 3]]
    assert required.missing(torch.tensor([[[2, 1], [3, 1], [3, 3]]])).tolist() == [[6 - 2, 3 - 1, 0]]


def test_wishes_of_nothing_change_nothing() -> None:
    model = Scripted(*map(noise, range(3)))
    keys: dict[str, Any] = {"beam": 3, "n_best": 3}
    assert numbers(search(model, range(3), wishes=[Wishes()] * 3, **keys)) == numbers(search(model, range(3), **keys))
    beside = [Wishes(required=((A,),)), Wishes(), Wishes(forbidden=((B,),))]
    assert numbers(search(model, range(3), wishes=beside, **keys))[1] == numbers(search(model, [1], **keys))[0]


# --- wishes that cannot be met ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "keys", "reason"),
    [
        (Wishes(6, prefix=(A, B, C)), {}, "need 4 tokens with EOS, the translation may have 3"),
        (Wishes(6, required=((A, B), (C,))), {}, "need 4 tokens with EOS, the translation may have 3"),
        (Wishes(6, prefix=(A, C), required=((A, B),)), {}, "need 5 tokens with EOS, the translation may have 3"),
        (Wishes(6, prefix=(A,), required=((A, B, D),)), {}, "need 4 tokens with EOS, the translation may have 3"),
        (Wishes(6, required=((A, B),), forbidden=((B,),)), {}, "a phrase is required and forbidden; give up one"),
        (Wishes(6, prefix=(A, B), forbidden=((A, B),)), {}, "a forbidden phrase stands in the prefix"),
        (Wishes(6, required=((A, A),)), {"no_repeat_ngram": 1}, "repeats 1 of its own words, which search.no_repeat"),
        (Wishes(6, prefix=(A, EOS)), {}, "ids of control symbols"),
        (Wishes(6, required=((PAD,),)), {}, "ids of control symbols"),
        (Wishes(6, forbidden=((BOS,),)), {}, "ids of control symbols"),
        (Wishes(6, forbidden=((),)), {}, "has no words; leave it out"),
        (Wishes(6, required=((A,),)), {"beam": 1, "sampling": {}}, "neither sampling nor diversity"),
        (Wishes(6, required=((A,),)), {"beam": 2, "diversity": {"groups": 2}}, "neither sampling nor diversity"),
    ],
)
def test_wishes_that_cannot_be_met_name_their_line(wish: Wishes, keys: dict[str, Any], reason: str) -> None:
    limits: dict[str, Any] = {"beam": 2, "max_length_ratio": 0, "max_length_extra": 3} | keys
    with pytest.raises(UsageError, match=f"line 7: .*{reason}"):
        search(Scripted(noise(0), noise(1)), (0, 1), wishes=[Wishes(5), wish], **limits)


def test_wishes_that_just_fit() -> None:
    """Two words and EOS: A, B stands in the prefix A and what follows it."""
    wish = Wishes(prefix=(A,), required=((A, B), (B,)))
    (found,) = wished(noise(0), wish, beam=2, max_length_ratio=0, max_length_extra=3)
    assert found.ids == [A, B]


def test_every_sentence_has_its_wishes() -> None:
    with pytest.raises(ValueError, match="2 sentences, 1 wishes"):
        search(Scripted(noise(0)), (0, 0), wishes=[Wishes()])
