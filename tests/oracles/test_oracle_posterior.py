"""Oracles of posterior attention: Bayes' rule in plain loops, and what is fed back of it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import decoder_of, double, memory_of, random, recurrent_model, redrawn
from formulas import Array, array, gru, softmax

from s2s.attention.posterior import PosteriorSettings
from s2s.models.cells import Luong
from s2s.models.recurrence import RecurrentLayer
from s2s.models.seq2seq import Seq2Seq
from s2s.training.objective import ObjectiveSettings, TrainingStep

WORDS = 9
SOURCE, LENGTHS = torch.tensor([[4, 5, 6, 2]]), torch.tensor([4])
TARGET = [1, 4, 5, 7, 2]


def build(**options: Any) -> Seq2Seq:
    """A small model in float64 and evaluation mode; the same weights for every kind with the same parts."""
    attention = {"kind": "posterior", **options}
    return redrawn(recurrent_model((WORDS, WORDS), {}, {"size": 4, "attention": attention}), 1.2, seed=2)


def test_bayes_by_hand() -> None:
    """alpha = (.5, .3, .2), p(y | h) = (.1, .6, .3): the posterior is (.05, .18, .06) / .29."""
    attention = PosteriorSettings(kind="posterior").build(2, 2).double()
    memory = memory_of(random(1, 3, 2))
    told = double(0.1, 0.6, 0.3).log().view(1, 1, 3)
    nothing, _ = attention.listen(lambda context: 0 * told, memory, attention.start(memory))
    assert (nothing == 0).all()
    prior = double(0.5, 0.3, 0.2).log().view(1, 1, 3)
    context, _ = attention.listen(lambda context: told, memory, prior)
    expected = sum(p / 0.29 * array(memory.values[0, j]) for j, p in enumerate((0.05, 0.18, 0.06)))
    np.testing.assert_allclose(array(context[0, 0]), expected)
    attention.count = 2  # the likeliest a priori: the posterior is (.05, .18) / .23
    context, _ = attention.listen(lambda context: told.gather(-1, torch.tensor([[[0, 1]]])), memory, prior)
    expected = sum(p / 0.23 * array(memory.values[0, j]) for j, p in enumerate((0.05, 0.18)))
    np.testing.assert_allclose(array(context[0, 0]), expected)


def nll_of(model: Seq2Seq, k: int, renormalise: bool, share: float = 1.0) -> float:
    """The sentence word by word: recur over word and h~, prior, mixture, and by Bayes' rule the h~ that is fed back."""
    decoder = decoder_of(model)
    wiring: Any = decoder.wiring
    assert isinstance(wiring, Luong) and isinstance(wiring.recurrence.layers[0], RecurrentLayer)
    scorer: Any = decoder.attention.score  # type: ignore[attr-defined]
    memory = model.encoder(SOURCE, LENGTHS)
    rows, state = array(memory.values[0]), array(decoder.first(memory)[0].hidden[0])
    matrix, fed, nll = array(wiring.readout.join.weight), np.zeros(4), 0.0

    def read(context: Array) -> Array:
        joined: Array = np.tanh(matrix @ np.concatenate([state, context]))
        return joined

    for word, right in itertools.pairwise(TARGET):
        state = gru(wiring.recurrence.layers[0], array(decoder.embedding.weight[word]), state, fed)
        alpha = softmax(np.array([state @ array(scorer.project.weight) @ row for row in rows]))
        best = sorted(range(len(rows)), key=lambda j, alpha=alpha: -alpha[j])[:k]  # type: ignore[misc]
        chance = {
            z: softmax(array(decoder.output.weight) @ read(rows[z]) + array(decoder.output.bias))[right] for z in best
        }
        likelihood = sum(alpha[z] * chance[z] for z in best)
        nll -= math.log(likelihood / sum(alpha[z] for z in best) if renormalise else likelihood)
        context = np.zeros(rows.shape[1])
        for z in range(len(rows)):
            known = alpha[z] * chance[z] / likelihood if z in best else 0.0
            context += (share * known + (1 - share) * alpha[z]) * rows[z]
        fed = read(context)
    return nll


def measured(model: Seq2Seq) -> float:
    """What is minimised, without label smoothing."""
    step = TrainingStep(model, ObjectiveSettings(label_smoothing=0.0))
    return float(step(SOURCE, LENGTHS, torch.tensor([TARGET])).loss)


@torch.no_grad()
@pytest.mark.parametrize("k", [None, 2, 3])
@pytest.mark.parametrize("renormalise", [False, True])
def test_a_sentence_is_its_formula(k: int | None, renormalise: bool) -> None:
    """In training, and in evaluation, where what was kept is always renormalised."""
    if k is None and renormalise:
        pytest.skip("renormalise belongs to k")
    model = build(k=k, renormalise=renormalise)
    assert measured(model.train()) == pytest.approx(nll_of(model, k or 4, renormalise), abs=1e-9)
    assert measured(model.eval()) == pytest.approx(nll_of(model, k or 4, True), abs=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("k", [None, 2])
def test_half_and_half(k: int | None) -> None:
    assert measured(build(k=k, share=0.5)) == pytest.approx(nll_of(build(), k or 4, True, share=0.5), abs=1e-9)


@torch.no_grad()
def test_fed_the_prior_it_would_be_latent_attention() -> None:
    """The oracle itself tells the two apart, and agrees with `latent` on the other one."""
    other = redrawn(recurrent_model((WORDS, WORDS), {}, {"size": 4, "attention": {"kind": "latent"}}), 1.2, seed=2)
    assert measured(other) == pytest.approx(nll_of(build(), 4, False, share=0.0), abs=1e-9)
    assert abs(measured(other) - measured(build())) > 1e-3


def test_the_gradient_goes_through_what_is_fed_back() -> None:
    """By central differences of the score's matrix, which later words see through the posterior too."""
    model = build().train()
    weight: Any = decoder_of(model).attention.score.project.weight  # type: ignore[attr-defined]
    step = TrainingStep(model, ObjectiveSettings(label_smoothing=0.0))
    loss = step(SOURCE, LENGTHS, torch.tensor([TARGET])).loss
    (gradient,) = torch.autograd.grad(loss, weight)
    with torch.no_grad():
        for place in ((0, 0), (1, 2), (3, 3)):
            weight[place] += 1e-5
            up = measured(model)
            weight[place] -= 2e-5
            down = measured(model)
            weight[place] += 1e-5
            assert float(gradient[place]) == pytest.approx((up - down) / 2e-5, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    "order",
    [
        {"wiring": "bahdanau"},
        {"wiring": "gnmt", "layers": 2},
        {"wiring": "cgru"},
        {"wiring": "luong", "input_feeding": False},
    ],
)
def test_only_input_feeding_can_do_it(order: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="attention posterior"):
        recurrent_model((WORDS, WORDS), {}, {"size": 4, "attention": {"kind": "posterior"}, **order})
