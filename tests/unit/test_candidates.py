"""Candidates of minimum risk: which translations are weighed, what they cost, and what they depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from pydantic import ValidationError

from s2s import config as configuration
from s2s.commands.candidates import Proposer, candidates_of
from s2s.config import AnyDecoder, AnyEncoder
from s2s.data.tokenizer import WhitespaceTokenizer
from s2s.errors import ConfigError
from s2s.interfaces import BOS, EOS, PAD, Before
from s2s.models.seq2seq import ModelSettings, Seq2Seq
from s2s.search.beam import SearchSettings, beam_search
from s2s.training.objective import Candidates, MinimumRiskSettings

WORDS = WhitespaceTokenizer(b"der\nHund\nsieht\ndas\nPferd")
SOURCE, LENGTHS = torch.tensor([[4, 5, 2], [6, 2, 0], [4, 5, 2]]), torch.tensor([3, 2, 3])
TARGET = torch.tensor([[BOS, 4, 5, 6, EOS], [BOS, 7, 8, EOS, PAD], [BOS, 4, 5, 6, EOS]])
RIGHT = [[4, 5, 6], [7, 8], [4, 5, 6]]
CPU = torch.device("cpu")


def model_of(dropout: float = 0.0, document: dict[str, Any] | None = None) -> Seq2Seq:
    """A small one, in training mode, that ends soon."""
    torch.manual_seed(3)
    sides = {side: {"kind": "rnn", "size": 8} for side in ("encoder", "decoder")}
    sides["decoder"] |= {"attention": {"kind": "global"}}
    page: dict[str, Any] = {"embedding": 8, "tie": "none", "dropout": dropout, "document": document, **sides}
    model = ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(9, WORDS.size)
    with torch.no_grad():
        model.decoder.output.bias[EOS] += 0.5
    return model.train()


def propose(model: Seq2Seq, seed: int = 1, **settings: Any) -> Candidates:
    """The candidates of the three sentences."""
    return Proposer(MinimumRiskSettings(**settings), WORDS)(model, SOURCE, LENGTHS, TARGET, None, seed)


def lists(candidates: Candidates) -> list[list[list[int]]]:
    """The translations of each sentence."""
    every = iter([[word for word in row if word > EOS] for row in candidates.target.tolist()])
    return [[next(every) for _ in range(int(row.sum()))] for row in candidates.there]


def test_rows_become_tensors() -> None:
    found = candidates_of([[(4, 5), ()], [(6,)]], [[0.0, 1.0], [0.25]], CPU)
    assert found.target.tolist() == [[BOS, 4, 5, EOS], [BOS, EOS, PAD, PAD], [BOS, 6, EOS, PAD]]
    assert found.there.tolist() == [[True, True], [True, False]]
    assert found.cost.tolist() == [[0.0, 1.0], [0.25, 0.0]]


@pytest.mark.parametrize("by", ["sampling", "beam"])
def test_the_right_translation_is_one_of_them_and_none_is_there_twice(by: str) -> None:
    found = lists(propose(model_of(), by=by, samples=6))
    assert [rows[0] for rows in found] == RIGHT
    assert all(len({tuple(ids) for ids in rows}) == len(rows) for rows in found)
    assert all(2 <= len(rows) <= 7 for rows in found)


def test_without_the_right_translation_there_is_what_was_found() -> None:
    model = model_of()
    found = lists(propose(model, by="beam", samples=4, reference=False))
    best = beam_search(model.eval(), SOURCE, LENGTHS, SearchSettings(beam=4), n_best=4)
    assert found == [[one.ids for one in hypotheses] for hypotheses in best]


def test_of_a_document_they_are_found_after_the_sentences_before() -> None:
    """Best by a beam, which is another one without them."""
    before = Before(torch.tensor([[[8, 7, 2]], [[0, 0, 0]], [[4, 2, 0]]]), torch.tensor([[3], [0], [2]]))
    model = model_of(document={"sentences": 1, "heads": 2})
    with torch.no_grad():
        assert model.document is not None
        model.document.gate_bias.fill_(4.0)
        model.document.norm.weight.fill_(3.0)
        model.decoder.output.weight.mul_(4.0)
    settings = MinimumRiskSettings(by="beam", samples=4, reference=False)
    found = lists(Proposer(settings, WORDS)(model, SOURCE, LENGTHS, TARGET, before, 1))
    search = SearchSettings(beam=4)
    best = beam_search(model.eval(), SOURCE, LENGTHS, search, n_best=4, before=before)
    alone = beam_search(model, SOURCE, LENGTHS, search, n_best=4)
    assert found == [[one.ids for one in hypotheses] for hypotheses in best]
    assert found[1] == [one.ids for one in alone[1]] and found[0] != [one.ids for one in alone[0]]


@pytest.mark.parametrize("metric", ["chrf", "bleu"])
def test_a_candidate_costs_what_sacrebleu_takes_off(metric: str) -> None:
    candidates = propose(model_of(), samples=12, metric=metric)
    score = {"chrf": sacrebleu.sentence_chrf, "bleu": sacrebleu.sentence_bleu}[metric]
    seen = 0
    for row, (right, rows) in enumerate(zip(RIGHT, lists(candidates), strict=True)):
        for place, ids in enumerate(rows):
            expected = 1 - score(WORDS.decode(ids), [WORDS.decode(right)]).score / 100  # type: ignore[operator]
            assert float(candidates.cost[row, place]) == pytest.approx(expected, abs=1e-6)
            seen += 0 < expected < 1
    assert seen > 3
    assert candidates.cost[:, 0].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert (candidates.cost[~candidates.there] == 0).all()


def test_one_candidate_has_nothing_to_be_weighed_against() -> None:
    with pytest.raises(ValidationError, match="one candidate has nothing to be weighed against"):
        MinimumRiskSettings(samples=1, reference=False)
    assert propose(model_of(), samples=1).there.sum(1).max() == 2


def test_draws_are_a_function_of_the_seed_and_the_sentence() -> None:
    model = model_of(dropout=0.5)
    torch.manual_seed(1)
    first = propose(model, seed=5, samples=8)
    torch.manual_seed(2)
    again, other = propose(model, seed=5, samples=8), propose(model, seed=6, samples=8)
    assert lists(first) == lists(again) and torch.equal(first.cost, again.cost)
    assert lists(first) != lists(other)
    assert lists(first)[0] != lists(first)[2]  # the same sentence in another place of the batch


def test_dropout_is_off_meanwhile_and_on_again() -> None:
    """The same weights without dropout propose the same; and no draw of the training is taken."""
    dropping, plain = model_of(dropout=0.5), model_of()
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    assert lists(propose(dropping)) == lists(propose(plain))
    assert torch.equal(torch.rand(3), expected)
    assert all(part.training for part in dropping.modules())


@pytest.mark.parametrize(
    "attention",
    [
        "{kind: hard, estimator: gumbel}",
        "{kind: variational}",
        "{kind: coverage, inner: {kind: variational, score: additive}}",
    ],
)
def test_attention_that_learns_by_a_bound_is_refused(attention: str) -> None:
    recipe = Path(__file__).resolve().parents[2] / "configs" / "toy" / "minimum-risk.yaml"
    with pytest.raises(ConfigError, match=r"objective.minimum_risk: attention (hard|variational) learns by a bound"):
        configuration.load(recipe, [f"model.decoder.attention={attention}"])
