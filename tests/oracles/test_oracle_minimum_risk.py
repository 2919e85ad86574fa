"""Oracles of minimum risk training: every translation of a tiny vocabulary, its probability, and what it costs.

Where the candidates are all translations there are and sharpness is 1, the risk is the expected cost of a translation
that the model draws, and its gradient is that of the expectation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fixtures import recurrent_model, redrawn
from torch import Tensor, nn

from s2s.commands.candidates import candidates_of
from s2s.config import AnyDecoder, AnyEncoder
from s2s.interfaces import BOS, EOS, PAD, Before
from s2s.models.seq2seq import ModelSettings, Seq2Seq
from s2s.training.objective import Candidates, ObjectiveSettings, Sums, TrainingStep, expected_cost

SOURCE, LENGTHS = torch.tensor([[4, 5, 2], [6, 2, 0]]), torch.tensor([3, 2])
TARGET = torch.tensor([[BOS, 4, 5, 4, EOS], [BOS, 5, EOS, PAD, PAD]])
RIGHT = [(4, 5, 4), (5,)]
VOCABULARY, LONGEST = 6, 3
EVERYTHING = [ids for count in range(LONGEST + 1) for ids in itertools.product((3, 4, 5), repeat=count)]
"""All translations of up to three words, UNK among them: 1 + 3 + 9 + 27."""
STACK = {"kind": "transformer", "size": 4, "layers": 1, "heads": 2, "feedforward": 6}
MODELS: dict[str, dict[str, Any]] = {
    "global": {},
    "cgru": {"wiring": "cgru"},
    "latent": {"attention": {"kind": "latent"}},
    "hmm": {"attention": {"kind": "hmm", "reach": 1}},
    "transformer": STACK,
}
each_model = pytest.mark.parametrize("kind", MODELS)


def build(kind: str, ends: float = 0.0) -> Seq2Seq:
    """A small model in float64 and training mode, without dropout, that is that much readier to end."""
    options = MODELS[kind]
    if kind == "transformer":
        page = {"embedding": 4, "dropout": 0.0, "tie": "none", "encoder": STACK, "decoder": options}
        model = ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(VOCABULARY + 1, VOCABULARY)
    else:
        decoder = {"size": 4, "attention": {"kind": "global"}, **options}
        model = recurrent_model((VOCABULARY + 1, VOCABULARY), {}, decoder)
    model = redrawn(model, 1.0, seed=7).train()
    with torch.no_grad():
        model.decoder.output.bias[[PAD, BOS]] = -40.0  # neither is ever part of a translation
        model.decoder.output.bias[EOS] += ends
    return model


def cost(ids: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Any function of both will do: a fourth of the places at which they differ, which float32 holds exactly."""
    return sum(one != other for one, other in itertools.zip_longest(ids, right)) / 4


def every_translation(model: nn.Module, source: Tensor, *_: Any) -> Candidates:
    """A proposal that is everything."""
    costs = [[cost(ids, right) for ids in EVERYTHING] for right in RIGHT]
    return candidates_of([EVERYTHING] * 2, costs, source.device)


def step_of(model: Seq2Seq, propose: Any = every_translation, **risk: Any) -> TrainingStep:
    """By risk alone, unless it is said."""
    settings = {"label_smoothing": 0.0, "minimum_risk": {"sharpness": 1.0, "likelihood": 0.0, **risk}}
    return TrainingStep(model, ObjectiveSettings.model_validate(settings), propose=propose).train()


def measured(step: TrainingStep) -> Sums:
    """One batch."""
    sums: Sums = step(SOURCE, LENGTHS, TARGET)
    return sums


def chances(model: Seq2Seq, row: int, before: Before | None = None) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every translation with its probability, word after word as search asks for them."""
    length = int(LENGTHS[row])
    memory, start = model.start(SOURCE[row : row + 1, :length], LENGTHS[row : row + 1], before=before)

    def beginning(ids: tuple[int, ...], before: float, state: Any) -> Iterator[tuple[tuple[int, ...], float]]:
        words, _, state = model.step(torch.tensor([ids[-1] if ids else BOS]), memory, state)
        yield ids, math.exp(before + float(words[0, EOS]))
        for word in (3, 4, 5) if len(ids) < LONGEST else ():
            yield from beginning((*ids, word), before + float(words[0, word]), state)

    found = list(beginning((), 0.0, start))
    assert sorted(ids for ids, _ in found) == sorted(EVERYTHING)
    yield from found


@torch.no_grad()
def risk_by_loops(model: Seq2Seq, sharpness: float = 1.0, before: Before | None = None) -> float:
    """Of both sentences, each as often as its right translation has tokens."""
    model.eval()
    total = 0.0
    for row, right in enumerate(RIGHT):
        own = None if before is None else Before(*(part[row : row + 1] for part in before))
        found = [(chance**sharpness, cost(ids, right)) for ids, chance in chances(model, row, own)]
        total += (len(right) + 1) * sum(p * c for p, c in found) / sum(p for p, _ in found)
    model.train()
    return total


@each_model
@pytest.mark.parametrize("sharpness", [1.0, 0.3])
def test_the_loss_is_the_expected_cost(kind: str, sharpness: float) -> None:
    model = build(kind)
    expected = risk_by_loops(model, sharpness)
    sums = measured(step_of(model, sharpness=sharpness))
    assert float(sums.loss.detach()) == pytest.approx(expected, abs=1e-9)
    assert float(sums.parts["risk"]) == pytest.approx(expected, abs=1e-9)
    assert int(sums.tokens) == 6


@torch.no_grad()
@each_model
def test_of_a_model_that_ends_soon_it_is_the_cost_of_what_it_draws(kind: str) -> None:
    """What is longer than the candidates has next to no probability, so that nothing is divided by."""
    model = build(kind, ends=8.0).eval()
    expected = 0.0
    for row, right in enumerate(RIGHT):
        found = list(chances(model, row))
        assert sum(chance for _, chance in found) > 1 - 1e-6
        expected += (len(right) + 1) * sum(chance * cost(ids, right) for ids, chance in found)
    assert float(measured(step_of(model.train())).loss) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["global", "latent", "transformer"])
def test_the_gradient_by_differences(kind: str) -> None:
    """Of the loops above, by the largest entry of every third matrix."""
    model = build(kind)
    measured(step_of(model)).loss.backward()  # type: ignore[no-untyped-call]
    matrices = [(name, one) for name, one in model.named_parameters() if one.dim() == 2 and one.grad is not None]
    assert len(matrices) > 8
    for name, parameter in matrices[::3]:
        assert parameter.grad is not None
        place = divmod(int(parameter.grad.abs().argmax()), parameter.size(1))
        with torch.no_grad():
            parameter[place] += 1e-5
            up = risk_by_loops(model)
            parameter[place] -= 2e-5
            down = risk_by_loops(model)
            parameter[place] += 1e-5
        assert float(parameter.grad[place]) == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-8), name


def test_the_gradient_is_the_score_function() -> None:
    """d risk = sharpness sum Q (cost - risk) d log p (Shen et al. 2016): by hand, of three and of one."""
    there = torch.tensor([[True, True, True], [True, False, False]])
    prices = torch.tensor([[0.0, 0.5, 1.0], [0.7, 0.0, 0.0]])
    logs = torch.tensor([0.5, 0.3, 0.2, 0.001], dtype=torch.float64).log().requires_grad_()
    some = Candidates(torch.zeros(4, 2, dtype=torch.int64), there, prices)
    risk = expected_cost(logs, some, 2.0)
    q = [p**2 / 0.38 for p in (0.5, 0.3, 0.2)]
    mean = 0.5 * q[1] + q[2]
    assert risk.tolist() == pytest.approx([mean, 0.7], abs=1e-7)
    risk.sum().backward()  # type: ignore[no-untyped-call]
    slopes = [2 * share * (price - mean) for share, price in zip(q, (0.0, 0.5, 1.0), strict=True)]
    assert logs.grad is not None and logs.grad.tolist() == pytest.approx([*slopes, 0.0], abs=1e-7)


def test_the_likelihood_keeps_its_share() -> None:
    model = build("global")
    plain = TrainingStep(model, ObjectiveSettings(label_smoothing=0.0)).train()
    risk, nll = (float(measured(step).loss.detach()) for step in (step_of(model), plain))
    sums = measured(step_of(model, likelihood=0.25))
    assert float(sums.loss.detach()) == pytest.approx(0.25 * nll + 0.75 * risk, abs=1e-9)
    assert float(sums.nll) == pytest.approx(nll, abs=1e-9)
    assert float(sums.parts["risk"]) == pytest.approx(0.75 * risk, abs=1e-9)


def test_the_mechanisms_terms_belong_to_the_likelihood() -> None:
    """Coverage punishes reading twice in the right translation alone, with the likelihood's share."""
    inner = {"kind": "global", "score": "additive"}
    model = recurrent_model((7, 6), {}, {"size": 4, "attention": {"kind": "coverage", "inner": inner}})
    model = redrawn(model, 1.0, seed=7).train()
    plain = measured(TrainingStep(model, ObjectiveSettings(label_smoothing=0.0)).train())
    found = measured(step_of(model, likelihood=0.25))
    torch.testing.assert_close(found.parts["coverage"], 0.25 * plain.parts["coverage"])
    torch.testing.assert_close(found.loss, 0.25 * plain.loss + found.parts["risk"])


def test_validation_measures_the_likelihood_alone() -> None:
    def never(*arguments: Any) -> Candidates:
        raise AssertionError("asked in evaluation")

    model = build("global").eval()
    sums = measured(step_of(model, propose=never).eval())
    assert torch.equal(sums.loss, sums.nll) and sums.parts == {}


def test_sentences_are_apart() -> None:
    """The risk of both is the sum of each alone."""
    model, alone = build("global"), list[float]()
    for row in range(2):

        def own(*_: Any, row: int = row) -> Candidates:
            return candidates_of([EVERYTHING], [[cost(ids, RIGHT[row]) for ids in EVERYTHING]], torch.device("cpu"))

        step, rows = step_of(model, propose=own), slice(row, row + 1)
        alone.append(float(step(SOURCE[rows], LENGTHS[rows], TARGET[rows]).loss.detach()))
    assert sum(alone) == pytest.approx(float(measured(step_of(model)).loss.detach()), abs=1e-9)


def test_descending_it_prefers_the_right_translations() -> None:
    """From a chance start, without ever being told how likely the right words are; among the candidates, that is: what
    the model says of others is nothing to the risk."""
    model = build("global")
    step, optimizer = step_of(model), torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        loss = measured(step).loss
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        for row, right in enumerate(RIGHT):
            found = dict(chances(model.eval(), row))
            assert found[right] > 0.9 * sum(found.values())


def test_of_documents_the_risk_is_that_of_what_is_read_with_the_sentences_before() -> None:
    """They are handed to whoever proposes, and the candidates are weighed by how likely they are after them."""
    before = Before(torch.tensor([[[5, 6, 2], [4, 2, 0]], [[0, 0, 0], [0, 0, 0]]]), torch.tensor([[3, 2], [0, 0]]))
    sides = {"encoder": STACK, "decoder": STACK, "document": {"sentences": 2, "heads": 2}}
    page = {"embedding": 4, "dropout": 0.0, "tie": "none", **sides}
    model = ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(VOCABULARY + 1, VOCABULARY)
    model = redrawn(model, 1.0, seed=7).train()
    with torch.no_grad():
        model.decoder.output.bias[[PAD, BOS]] = -40.0
    told: list[Before | None] = []

    def propose(model: nn.Module, source: Tensor, lengths: Tensor, target: Tensor, given: Any, seed: int) -> Candidates:
        told.append(given)
        return every_translation(model, source)

    found = float(step_of(model, propose)(SOURCE, LENGTHS, TARGET, None, before).loss.detach())
    assert found == pytest.approx(risk_by_loops(model, before=before), abs=1e-9)
    assert abs(found - risk_by_loops(model)) > 1e-3
    assert told == [before]
