"""Scoring over real models: at once and by steps are the same, and both are what search and plain arithmetic say."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from grid import BOTH_WAYS, STACK, Case, Pairs, build, every_case, pairs, recurrent
from torch import Tensor

from s2s.interfaces import EOS, NOTHING, PAD
from s2s.models.ensemble import Ensemble
from s2s.search import score
from s2s.search.beam import SearchSettings, beam_search
from s2s.search.score import Forced, force_at_once, force_by_steps

PAIRS = pairs((5, 2, 4, 1))
WEIGHTS = frozenset({"weights"})


def arguments(some: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """What a pair is scored from."""
    return some.source, some.lengths, some.target


def assert_same(one: Forced, other: Forced, gold: Tensor) -> None:
    """Equal log-probabilities, zero at padding, and equal attention where there is a target."""
    torch.testing.assert_close(one.log_probabilities, other.log_probabilities, rtol=0, atol=1e-9)
    assert (one.log_probabilities[gold == PAD] == 0).all() and (one.log_probabilities[gold != PAD] < 0).all()
    assert (one.weights is None) == (other.weights is None)
    if one.weights is not None and other.weights is not None:
        torch.testing.assert_close(one.weights[gold != PAD], other.weights[gold != PAD], rtol=0, atol=1e-9)


@every_case
def test_at_once_is_by_steps(case: Case) -> None:
    model = build(case)
    at_once = force_at_once(model, *arguments(PAIRS), WEIGHTS)
    assert_same(at_once, force_by_steps(model, *arguments(PAIRS), WEIGHTS), PAIRS.gold)
    assert force_by_steps(model, *arguments(PAIRS), NOTHING).weights is None


CASES = [
    recurrent("feeding", BOTH_WAYS, wiring="luong", cell="lstm", layers=2),
    recurrent("without-feeding", BOTH_WAYS, wiring="luong", input_feeding=False),
    recurrent("latent", BOTH_WAYS, wiring="luong", attention={"kind": "latent", "k": 2, "score": "general"}),
    recurrent("hard", BOTH_WAYS, wiring="bahdanau", attention={"kind": "hard", "estimator": {"kind": "enumerate"}}),
    recurrent("none", BOTH_WAYS, wiring="luong", attention={"kind": "none"}),
    Case("transformer", {"embedding": STACK["size"], "tie": "none", "encoder": STACK, "decoder": STACK}),
]
each_model = pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])


def of_translations(some: Pairs, ids: list[list[int]]) -> Pairs:
    """The same sources with these targets, EOS left out."""
    rows = [torch.tensor([1, *one, EOS]) for one in ids]
    return Pairs(some.source, some.lengths, torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD))


@each_model
def test_the_score_of_a_translation_is_what_search_said(case: Case) -> None:
    """Also of one that the length limit ended: its EOS counts what it would have."""
    model = build(case)
    settings = SearchSettings(beam=4, max_length_ratio=0, max_length_extra=3)
    found = beam_search(model, PAIRS.source, PAIRS.lengths, settings, n_best=4)
    for place in range(min(map(len, found))):
        some = of_translations(PAIRS, [kept[place].ids for kept in found])
        for force in (partial(force_at_once, model), partial(force_by_steps, Ensemble([model, model]))):
            sums = force(*arguments(some)).log_probabilities.sum(1)
            assert sums.tolist() == pytest.approx([kept[place].log_probability for kept in found], abs=1e-6)


def test_an_ensemble_scores_as_it_searches() -> None:
    together = Ensemble([build(case) for case in CASES])
    found = beam_search(together, PAIRS.source, PAIRS.lengths, SearchSettings(beam=3, max_length_extra=3))
    some = of_translations(PAIRS, [best.ids for best, *_ in found])
    sums = force_by_steps(together, *arguments(some)).log_probabilities.sum(1)
    assert sums.tolist() == pytest.approx([best.log_probability for best, *_ in found], abs=1e-6)


@torch.no_grad()
@each_model
def test_log_probabilities_sum_to_one_over_all_words(case: Case) -> None:
    """Every word in turn at the last place: what is summed are probabilities, of the mixtures too."""
    model = build(case)
    some = PAIRS.rows(slice(0, 1))
    total = 0.0
    for word in range(1, model.decoder.output.out_features):  # PAD would be no target
        target = torch.cat([some.target[:, :3], torch.tensor([[word]])], 1)
        total += float(force_at_once(model, some.source, some.lengths, target).log_probabilities[0, -1].exp())
    memory, state = model.start(some.source, some.lengths)
    for step in range(3):
        words, _, state = model.step(some.target[:, step], memory, state)
    assert total + float(words[0, PAD].exp()) == pytest.approx(1, abs=1e-9)


@each_model
def test_the_vocabulary_is_read_out_in_parts(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(case)
    whole = force_at_once(model, *arguments(PAIRS), WEIGHTS)
    monkeypatch.setattr(score, "_SCORES", 4 * model.decoder.output.out_features)
    assert_same(force_at_once(model, *arguments(PAIRS), WEIGHTS), whole, PAIRS.gold)
