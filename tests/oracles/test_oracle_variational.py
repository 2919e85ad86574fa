"""Oracles of variational attention: the guess, the KL and the ELBO in plain loops, and what its estimate is worth.

Exactly: with the true posterior as the guess the bound is the likelihood, and so is its gradient; every draw tried once
and weighted with its probability gives the gradient of the bound.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from fixtures import WIRINGS, decoder_of, double, read_words, recurrent_model, redrawn
from formulas import Array, array, read, softmax
from torch import Tensor

from s2s import config as configuration
from s2s.analysis.diagnostics import Diagnostics
from s2s.attention import variational
from s2s.attention.variational import Variational, divergence
from s2s.errors import ConfigError
from s2s.interfaces import Attended, Gold, Memory
from s2s.models.seq2seq import Seq2Seq
from s2s.training.objective import ObjectiveSettings, Sums, TrainingStep

SOURCE, LENGTHS = torch.tensor([[4, 5, 2], [6, 2, 0]]), torch.tensor([3, 2])
TARGET = torch.tensor([[1, 4, 5, 2], [1, 6, 2, 0]])
PLACES = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
"""The real target positions (b, t)."""
WORDS = 9
each_wiring = pytest.mark.parametrize("wiring", WIRINGS)


def build(options: dict[str, Any], **order: Any) -> Seq2Seq:
    """A small model in float64 and training mode, without dropout."""
    attention = {"kind": "variational", "size": 3, **options}
    model = recurrent_model((WORDS, WORDS), {}, {"size": 4, "attention": attention, **order})
    return redrawn(model, 1.1, seed=4).train()


def latent_twin(model: Seq2Seq, options: dict[str, Any], **order: Any) -> Seq2Seq:
    """Latent attention with the same weights, wherever it has any."""
    twin = recurrent_model((WORDS, WORDS), {}, {"size": 4, "attention": {"kind": "latent", **options}, **order})
    left = twin.double().load_state_dict(model.state_dict(), strict=False)
    assert not left.missing_keys
    assert {name.split(".")[1] for name in left.unexpected_keys} <= {"hindsight", "wiring"}
    return twin.train()


def attention_of(model: Seq2Seq) -> Variational:
    """The mechanism."""
    found = decoder_of(model).attention
    assert isinstance(found, Variational)
    return found


def measured(model: Seq2Seq, rows: slice = slice(None), smoothing: float = 0.0) -> Sums:
    """What is minimised."""
    step = TrainingStep(model, ObjectiveSettings(label_smoothing=smoothing)).train(model.training)
    sums: Sums = step(SOURCE[rows], LENGTHS[rows], TARGET[rows])
    return sums


def gradients(model: Seq2Seq) -> tuple[float, dict[str, Tensor]]:
    """The loss, and its gradient by every parameter that has one."""
    model.zero_grad()
    loss = measured(model).loss
    loss.backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), found


class Word(NamedTuple):
    """One real target position, over the real positions of its source."""

    prior: Array
    guess: Array
    chances: Array
    """p(right word | h_z)."""

    @property
    def kl(self) -> float:
        """KL(q || alpha)."""
        return sum(q * math.log(q / p) for q, p in zip(self.guess, self.prior, strict=True) if q > 0)

    @property
    def expected(self) -> float:
        """sum_z q_z log p(right word | h_z)."""
        return float(sum(q * math.log(c) for q, c in zip(self.guess, self.chances, strict=True) if q > 0))

    @property
    def posterior(self) -> Array:
        """p(z | right word)."""
        return self.prior * self.chances / (self.prior @ self.chances)


@torch.no_grad()
def by_loops(model: Seq2Seq) -> list[Word]:
    """Every real word, one position after the other."""
    decoder, attention = decoder_of(model), attention_of(model)
    assert decoder.hindsight is not None
    decoded, memory = model(SOURCE, LENGTHS, TARGET[:, :-1])
    weight, found = array(attention.inference.project.weight), []
    for b, t in PLACES:
        rows = array(memory.values[b, : int(LENGTHS[b])])
        right = array(decoder.embedding.weight)[[int(word) for word in TARGET[b, 1:] if word > 0]]
        there, _, _ = read(decoder.hindsight.forwards, right)  # type: ignore[arg-type]
        back, _, _ = read(decoder.hindsight.backwards, right, backwards=True)  # type: ignore[arg-type]
        known = np.concatenate([there[t], back[t]])
        prior = array(decoded.weights[b, t])[: len(rows)]
        scores = np.array([-np.inf if p == 0 else known @ weight @ row for p, row in zip(prior, rows, strict=True)])
        chances = [read_words(model, decoded, memory, (b, t), z)[int(TARGET[b, t + 1])] for z in range(len(rows))]
        found.append(Word(prior, softmax(scores), np.array(chances)))
    return found


# --- the bound --------------------------------------------------------------------------------------------------------


def test_the_divergence_by_hand() -> None:
    """q = (.9, .1, 0), p = (.5, .25, .25): .9 log 1.8 + .1 log .4; and a position that neither can read has no part."""
    after, before = double(0.9, 0.1, 0).log().requires_grad_(), double(0.5, 0.25, 0.25).log().requires_grad_()
    found = divergence(after, before)
    assert float(found.detach()) == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.4), abs=1e-12)
    found.backward()  # type: ignore[no-untyped-call]
    assert after.grad is not None and after.grad.isfinite().all() and before.grad is not None
    torch.testing.assert_close(before.grad, -double(0.9, 0.1, 0))
    both = divergence(double(1, 0).log(), double(1, 0).log())
    assert float(both) == 0


@each_wiring
def test_the_loss_is_minus_the_elbo(wiring: str) -> None:
    model = build({}, **WIRINGS[wiring])
    words, sums = by_loops(model), measured(model)
    elbo = sum(word.expected - word.kl for word in words)
    assert float(sums.loss.detach()) == pytest.approx(-elbo, abs=1e-9)
    assert float(sums.parts["kl"]) == pytest.approx(sum(word.kl for word in words), abs=1e-9)
    assert float(sums.nll + sums.parts["guess"]) == pytest.approx(-sum(word.expected for word in words), abs=1e-9)


@each_wiring
def test_the_bound_is_below_the_likelihood(wiring: str) -> None:
    """By KL(q || posterior), which is what a validation tells of it."""
    order = WIRINGS[wiring]
    model = build({}, **order)
    loss, likelihood = measured(model).loss.detach(), measured(latent_twin(model, {}, **order)).loss.detach()
    gap = sum(float(word.guess @ np.log(word.guess / word.posterior)) for word in by_loops(model))
    assert gap > 0.02
    assert float(loss - likelihood) == pytest.approx(gap, abs=1e-9)


@each_wiring
def test_with_the_posterior_as_the_guess_it_is_the_likelihood(wiring: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its gradient is that of the likelihood, by every parameter that both have."""
    order = WIRINGS[wiring]
    model = build({}, **order)

    def known(attended: Attended, memory: Memory, gold: Gold) -> tuple[Tensor, Tensor]:
        prior = attended.trace["prior"]
        after = (prior + gold(memory.values.unsqueeze(1))).log_softmax(-1).detach()
        return after, divergence(after, prior)

    monkeypatch.setattr(attention_of(model), "inferred", known)
    (loss, found), (likelihood, expected) = gradients(model), gradients(latent_twin(model, {}, **order))
    assert loss == pytest.approx(likelihood, abs=1e-9)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("wiring", ["luong", "luong-feeding"])
def test_the_gradient_by_differences(wiring: str) -> None:
    """Into the prior, the guess, the network that reads the right words, its words, and the source's encoder."""
    model = build({}, **WIRINGS[wiring])
    _, found = gradients(model)
    parameters = dict(model.named_parameters())
    attention = "decoder.wiring.attention"
    for name in (
        f"{attention}.score.project.weight",
        f"{attention}.inference.project.weight",
        "decoder.hindsight.forwards.weight_input",
        "decoder.hindsight.backwards.weight_recurrent",
        "decoder.embedding.weight",
        "encoder.layers.0.0.weight_input",
    ):
        place = divmod(int(found[name].abs().argmax()), found[name].size(1))
        with torch.no_grad():
            parameters[name][place] += 1e-5
            up = float(measured(model).loss)
            parameters[name][place] -= 2e-5
            down = float(measured(model).loss)
            parameters[name][place] += 1e-5
        assert float(found[name][place]) == pytest.approx((up - down) / 2e-5, rel=1e-6, abs=1e-8), name


def test_sentences_are_apart_and_padding_has_no_part() -> None:
    model = build({})
    alone = [measured(model, slice(row, row + 1)).loss for row in range(2)]
    torch.testing.assert_close(sum(alone), measured(model).loss)


def test_label_smoothing_pulls_on_the_soft_reading() -> None:
    model = build({}, **WIRINGS["luong"])
    plain, smooth = (measured(model, smoothing=e).loss for e in (0.0, 0.2))
    decoded, memory = model(SOURCE, LENGTHS, TARGET[:, :-1])
    real = TARGET[:, 1:] != 0
    logs = decoder_of(model).logits(decoded, memory, real).log_softmax(-1)
    of_gold = logs.gather(1, TARGET[:, 1:][real].unsqueeze(1)).sum()
    torch.testing.assert_close(smooth - plain, 0.2 * (of_gold - logs.mean(1).sum()))


def test_the_guess_keeps_to_what_the_prior_can_read() -> None:
    """A location score of two rows reads nothing of the third position, and nor does the guess."""
    model = build({"score": {"kind": "location", "max_length": 2}})
    words = by_loops(model)
    assert words[0].prior[2] == 0
    elbo = sum(word.expected - word.kl for word in words)
    loss, found = gradients(model)
    assert loss == pytest.approx(-elbo, abs=1e-9)
    assert all(gradient.isfinite().all() for gradient in found.values())


# --- the estimate -----------------------------------------------------------------------------------------------------


def test_every_draw_weighted_with_its_probability_is_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """All 3 x 3 x 3 x 2 x 2 draws of the five words; of the loss, and of its gradient by every parameter."""
    order = WIRINGS["luong-feeding"]
    loss, expected = gradients(build({}, **order))
    model = build({"estimator": "reinforce"}, **order)
    guesses, mean = [word.guess for word in by_loops(model)], 0.0
    found = {name: torch.zeros_like(gradient) for name, gradient in expected.items()}
    for draw in itertools.product(range(3), range(3), range(3), range(2), range(2)):
        choice = torch.tensor([draw[:3], [*draw[3:], 0]])
        noise = 1e4 * torch.nn.functional.one_hot(choice, 3).double()
        monkeypatch.setattr(variational, "gumbel", lambda like, noise=noise: noise)
        chance = math.prod(guess[z] for guess, z in zip(guesses, draw, strict=True))
        of_draw, parts = gradients(model)
        mean += chance * of_draw
        for name, gradient in parts.items():
            found[name] += chance * gradient
    assert mean == pytest.approx(loss, abs=1e-9)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-9, msg=name)


def test_draws_are_from_the_guess() -> None:
    """A chi-square test of 3,000 draws at the three words of the longer sentence."""
    model, chosen = build({"estimator": "reinforce"}), list[Tensor]()
    words, choose = by_loops(model)[:3], variational.choose
    torch.manual_seed(3)
    with pytest.MonkeyPatch.context() as patch:

        def noted(guess: Tensor, noise: Tensor) -> Tensor:
            chosen.append(choose(guess, noise))
            return chosen[-1]

        patch.setattr(variational, "choose", noted)
        with torch.no_grad():
            for _ in range(3000):
                measured(model, slice(0, 1))
    drawn = torch.cat(chosen)  # (3000, 3)
    for t, word in enumerate(words):
        expected = 3000 * word.guess
        counts = np.bincount(drawn[:, t].numpy(), minlength=3)
        assert float(((counts - expected) ** 2 / expected).sum()) < 16.3  # of two degrees of freedom: one in 3,500


def test_the_soft_baseline_lowers_the_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the gradient by the guess, which the draw alone teaches, over all draws of one word."""

    def variance(baseline: float) -> float:
        model = build({"estimator": "reinforce"}, **WIRINGS["luong"])
        weight, (word, *_) = attention_of(model).inference.project.weight, by_loops(model)
        total, squares = torch.zeros_like(weight), 0.0
        take = Variational._sampled
        shifted = lambda guess, memory, gold, soft: take(guess, memory, gold, baseline * soft)  # noqa: E731
        monkeypatch.setattr(attention_of(model), "_sampled", shifted)
        for z in range(3):
            noise = 1e4 * torch.nn.functional.one_hot(torch.tensor([[z]]), 3).double()
            monkeypatch.setattr(variational, "gumbel", lambda like, noise=noise: noise)
            step = TrainingStep(model, ObjectiveSettings(label_smoothing=0.0))
            (found,) = torch.autograd.grad(step(SOURCE[:1], LENGTHS[:1], TARGET[:1, :2]).loss, weight)
            total, squares = total + word.guess[z] * found, squares + word.guess[z] * float(found.square().sum())
        return squares - float(total.square().sum())

    assert variance(1.0) < 0.5 * variance(0.0)


# --- evaluation -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("estimator", ["enumerate", "reinforce"])
@pytest.mark.parametrize("k", [None, 2])
@each_wiring
def test_evaluation_is_latent_attention_and_does_without_the_guess(wiring: str, k: int | None, estimator: str) -> None:
    order = WIRINGS[wiring]
    model = build({"k": k, "estimator": estimator}, **order).eval()
    twin = latent_twin(model, {"k": k}, **order).eval()
    for one in (model.decoder.hindsight, attention_of(model).inference):  # type: ignore[attr-defined]
        for parameter in one.parameters():
            parameter.fill_(torch.nan)
    found, expected = measured(model), measured(twin)
    assert found.parts == {} and torch.equal(found.nll, expected.nll) and torch.equal(found.loss, expected.loss)


@torch.no_grad()
@pytest.mark.parametrize("k", [None, 2])
def test_what_a_validation_tells(k: int | None) -> None:
    model = build({"k": k}).eval()
    words, diagnostics = by_loops(model), Diagnostics()
    decoded, memory = model(SOURCE, LENGTHS, TARGET[:, :-1], Diagnostics.WANT)
    diagnostics.add(model.decoder, decoded, memory, TARGET[:, 1:])
    found = diagnostics.means()
    assert found["kl"] == pytest.approx(np.mean([word.kl for word in words]), abs=1e-9)
    gaps = [math.log(word.prior @ word.chances) - (word.expected - word.kl) for word in words]
    assert found["gap"] == pytest.approx(np.mean(gaps), abs=1e-9) and min(gaps) >= 0
    assert ("kept" in found) == (k is not None)


def test_under_bf16_logarithms_stay_float32() -> None:
    expected = float(measured(build({})).loss.detach())
    model = build({}).float()
    with torch.autocast("cpu", torch.bfloat16):
        sums = measured(model)
    sums.loss.backward()  # type: ignore[no-untyped-call]
    assert sums.loss.dtype == torch.float32 and sums.parts["kl"].dtype == torch.float32
    assert float(sums.loss.detach()) == pytest.approx(expected, rel=0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# --- what it does not go together with --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attention",
    [
        "{kind: variational}",
        "{kind: coverage, inner: {kind: variational, score: additive}}",
        "{kind: hard, estimator: enumerate}",
    ],
)
@pytest.mark.parametrize("setting", ["r_drop=1.0", "scheduled_sampling=0.1", "teacher={run: runs/other}"])
def test_objectives_that_need_the_distribution_over_all_words_are_refused(attention: str, setting: str) -> None:
    recipe = Path(__file__).resolve().parents[2] / "configs" / "toy" / "base.yaml"
    overrides = [f"model.decoder.attention={attention}", f"objective.{setting}"]
    with pytest.raises(ConfigError, match=f"objective.{setting.split('=')[0]}: attention .* learns by .* bound"):
        configuration.load(recipe, overrides)
    configuration.load(recipe, overrides[:1])
    configuration.load(recipe, overrides[1:])
