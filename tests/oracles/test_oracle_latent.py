"""Oracles of latent attention: the marginal (O-H1), its truncations (O-H5) and what search sees of them (O-H8)."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import WIRINGS, Given, double, memory_of, random, read_words, recurrent_model, redrawn
from formulas import Array, array
from pydantic import ValidationError
from torch import Tensor

from s2s.attention.latent import Latent, LatentSettings
from s2s.interfaces import BOS, EOS, PAD, UNK, Attended, Memory
from s2s.models.seq2seq import Seq2Seq
from s2s.search.beam import SearchSettings, beam_search
from s2s.training.objective import ObjectiveSettings, Sums, TrainingStep


def latent(scores: Tensor, **options: Any) -> Latent:
    """Latent attention in training mode, by its settings, over given scores."""
    built = LatentSettings.model_validate({"kind": "latent", **options}).build(1, 2)
    built.score = Given(scores)
    return built.double().train()


def attend(attention: Latent, values: Tensor, length: int | None = None) -> Attended:
    """What is read of values (1, S, M), of which ``length`` are real."""
    memory = attention.prepare(memory_of(values, (length or values.size(1),)))
    attended, state = attention(values[:, :1], memory, attention.start(memory))
    assert state == ()
    return attended


def mixed(attended: Attended, chances: Tensor) -> Tensor:
    """sum over the mixture of weight times the likelihood (S,) of its position."""
    assert attended.mixture is not None
    log_weights, positions = attended.mixture
    total = torch.zeros((), dtype=torch.float64)
    for n in range(log_weights.size(-1)):
        place = n if positions is None else int(positions[0, 0, n])
        total = total + log_weights[0, 0, n].exp() * chances[place]
    return total


# --- fixtures ---------------------------------------------------------------------------------------------------------


def test_oh1_the_marginal_and_its_gradient() -> None:
    """alpha = (.7, .3), log p = (-1, -3): -1.300294, and its gradient is the posterior less the prior."""
    alpha, chances = double(0.7, 0.3), double(-1, -3).exp()
    scores = alpha.log().view(1, 1, 2).requires_grad_()
    found = mixed(attend(latent(scores), random(1, 2, 2)), chances).log()
    assert float(found.detach()) == pytest.approx(-1.300294, abs=1e-6)
    (gradient,) = torch.autograd.grad(found, scores)
    np.testing.assert_allclose(array(gradient[0, 0]), [0.245179, -0.245179], rtol=0, atol=1e-6)
    np.testing.assert_allclose(array(gradient[0, 0] + alpha), [0.945179, 0.054821], rtol=0, atol=1e-6)


ALPHA, CHANCES = (0.5, 0.3, 0.15, 0.05), double(0.2, 0.6, 0.1, 0.4)


def of_top(k: int | None, renormalise: bool = False, training: bool = True, real: int = 4) -> float:
    """The likelihood of the fixture's mixture; ``real`` of its positions are no padding."""
    scores = double(*ALPHA).log().view(1, 1, 4)
    attention = latent(scores, k=k, renormalise=renormalise).train(training)
    return float(mixed(attend(attention, random(1, 4, 2), real), CHANCES))


def test_oh5_fixture() -> None:
    """Full .315; top-2 .28, in training; renormalised top-2 .35, which can be more than the whole."""
    assert of_top(None) == pytest.approx(0.315, abs=1e-12)
    assert of_top(2) == pytest.approx(0.28, abs=1e-12)
    assert of_top(2, renormalise=True) == pytest.approx(0.35, abs=1e-12)
    for renormalise in (False, True):
        assert of_top(2, renormalise, training=False) == pytest.approx(0.35, abs=1e-12)


def test_oh5_the_bound_rises_with_k_to_the_whole() -> None:
    values = [of_top(k) for k in (1, 2, 3, 4, 5)]
    assert values == sorted(values) and values[:3] == pytest.approx([0.1, 0.28, 0.295], abs=1e-12)
    assert values[3] == values[4] == of_top(None)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("renormalise", [False, True])
def test_oh5_padding_takes_no_place_among_the_k(renormalise: bool, training: bool) -> None:
    """Of two real positions, .5 and .3, k = 3 leaves both: (.5 x .2 + .3 x .6) / .8 with or without renormalising."""
    assert of_top(3, renormalise, training, real=2) == pytest.approx(0.35, abs=1e-12)
    assert of_top(1, False, True, real=2) == pytest.approx(0.5 / 0.8 * 0.2, abs=1e-12)


def test_oh5_ties_go_to_the_lowest_position() -> None:
    scores = torch.zeros(1, 1, 40).double()
    scores[..., 30:] = 1.0
    mixture = attend(latent(scores, k=13), random(1, 40, 2)).mixture
    assert mixture is not None and mixture.positions is not None
    assert mixture.positions.flatten().tolist() == [*range(30, 40), 0, 1, 2]


@pytest.mark.parametrize("k", [None, 2])
def test_the_recurrence_is_fed_the_soft_context_and_all_weights_are_shown(k: int | None) -> None:
    values = random(1, 4, 2)
    attended = attend(latent(double(*ALPHA).log().view(1, 1, 4), k=k), values)
    expected = sum(a * array(values[0, j]) for j, a in enumerate(ALPHA))
    np.testing.assert_allclose(array(attended.context[0, 0]), expected, rtol=0, atol=1e-12)
    assert attended.weights is not None
    np.testing.assert_allclose(array(attended.weights[0, 0]), ALPHA, rtol=0, atol=1e-12)


def test_renormalise_belongs_to_k() -> None:
    with pytest.raises(ValidationError, match="renormalise belongs to k"):
        LatentSettings.model_validate({"kind": "latent", "renormalise": True})
    with pytest.raises(ValidationError):
        LatentSettings.model_validate({"kind": "latent", "k": 0})


# --- in a model -------------------------------------------------------------------------------------------------------

SOURCE, LENGTHS = torch.tensor([[4, 5, 6, 2], [7, 5, 2, 0]]), torch.tensor([4, 3])
TARGET = torch.tensor([[1, 4, 5, 2], [1, 6, 2, 0]])
WORDS = 9
each_wiring = pytest.mark.parametrize("wiring", WIRINGS)


def build(attention: dict[str, Any], **order: Any) -> Seq2Seq:
    """A small model in float64 and evaluation mode; the same weights for every kind."""
    model = recurrent_model((WORDS, WORDS), {}, {"size": 4, "attention": attention, **order})
    return redrawn(model, 1.2, seed=2)


def kept(alpha: Array, k: int | None) -> list[int]:
    """The k likeliest positions, the lowest of equals first."""
    return sorted(range(len(alpha)), key=lambda j: (-alpha[j], j))[:k]


def train(model: Seq2Seq) -> Sums:
    """One batch in training mode, without label smoothing."""
    sums: Sums = TrainingStep(model.train(), ObjectiveSettings(label_smoothing=0.0))(SOURCE, LENGTHS, TARGET)
    model.eval()
    return sums


@torch.no_grad()
@each_wiring
def test_the_marginal_is_the_sum_over_all_alignments_of_the_sentence(wiring: str) -> None:
    """p(y) = sum over z_1 ... z_T of prod_t alpha_t(z_t) p(y_t | z_t): 4^3 and 3^2 alignments."""
    model = build({"kind": "latent"}, **WIRINGS[wiring])
    decoded, memory = model(SOURCE, LENGTHS, TARGET[:, :-1])
    nll = 0.0
    for b, steps in ((0, 3), (1, 2)):
        chances = [
            [read_words(model, decoded, memory, (b, t), z)[int(TARGET[b, t + 1])] for z in range(int(LENGTHS[b]))]
            for t in range(steps)
        ]
        total = 0.0
        for alignment in itertools.product(range(int(LENGTHS[b])), repeat=steps):
            joint = 1.0
            for t, z in enumerate(alignment):
                joint *= float(decoded.weights[b, t, z]) * chances[t][z]
            total += joint
        nll -= math.log(total)
    assert float(train(model).nll) == pytest.approx(nll, abs=1e-9)
    assert float(train(model).loss) == pytest.approx(nll, abs=1e-9)


@torch.no_grad()
@each_wiring
def test_oh5_in_a_model(wiring: str) -> None:
    exact = float(train(build({"kind": "latent"}, **WIRINGS[wiring])).nll)
    bounds = [float(train(build({"kind": "latent", "k": k}, **WIRINGS[wiring])).nll) for k in (1, 2, 3, 4, 9)]
    assert bounds == sorted(bounds, reverse=True) and bounds[0] > bounds[2] > exact + 1e-6
    assert bounds[3:] == pytest.approx([exact, exact], abs=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("renormalise", [False, True])
@each_wiring
def test_the_truncated_sum_is_its_formula(wiring: str, renormalise: bool) -> None:
    model = build({"kind": "latent", "k": 2, "renormalise": renormalise}, **WIRINGS[wiring])
    decoded, memory = model(SOURCE, LENGTHS, TARGET[:, :-1])
    found = {"training": float(train(model).nll), "evaluation": 0.0}
    sums = TrainingStep(model, ObjectiveSettings())(SOURCE, LENGTHS, TARGET)
    found["evaluation"] = float(sums.nll)
    expected = {"training": 0.0, "evaluation": 0.0}
    for b, steps in ((0, 3), (1, 2)):
        for t in range(steps):
            alpha = array(decoded.weights[b, t])
            best = kept(alpha, 2)
            words = sum(alpha[z] * read_words(model, decoded, memory, (b, t), z) for z in best)
            mass, chance = float(sum(alpha[z] for z in best)), float(words[int(TARGET[b, t + 1])])
            assert mass < 1
            expected["training"] -= math.log(chance / mass if renormalise else chance)
            expected["evaluation"] -= math.log(chance / mass)
    assert found == pytest.approx(expected, abs=1e-9)


MARGINALS: dict[str, dict[str, Any]] = {
    "exact": {"kind": "latent"},
    "bound": {"kind": "latent", "k": 2},
    "renormalised": {"kind": "latent", "k": 2, "renormalise": True},
    "hard": {"kind": "hard", "estimator": "reinforce", "evaluate": "marginal"},
}


@each_wiring
@pytest.mark.parametrize("kind", MARGINALS)
def test_the_likelihood_of_given_words_has_the_gradient_of_that_of_all(kind: str, wiring: str) -> None:
    """One way forms the scores of all words and autograd goes back through them, the other keeps none."""
    model = build(MARGINALS[kind], **WIRINGS[wiring])
    parameters = list(model.parameters())
    gold, found, gradients = TARGET[:, 1:], [], []
    for alone in (True, False):
        decoded, memory = model(SOURCE, LENGTHS, TARGET[:, :-1])
        if alone:
            words = model.decoder.likelihood(decoded, memory, gold)
        else:
            real = gold != PAD
            words = model.decoder.logits(decoded, memory, real).gather(1, gold[real].unsqueeze(1))[:, 0]
        found.append(words)
        weights = torch.arange(1.0, 1 + len(words), dtype=words.dtype)  # unlike one another
        gradients.append(torch.autograd.grad(words @ weights, parameters, allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    assert sum(bool(part.any()) for part in gradients[0]) > len(parameters) / 2


@torch.no_grad()
@each_wiring
@pytest.mark.parametrize("kind", MARGINALS)
def test_oh8_beam_one_is_greedy_on_the_normalised_mixture(kind: str, wiring: str) -> None:
    """Word for word: the mixture summed by loops, divided by its mass, its likeliest word and that word's logarithm."""
    options = MARGINALS[kind]
    model = build(options, **WIRINGS[wiring])
    settings = SearchSettings(beam=1, length_penalty="none", max_length_ratio=0, max_length_extra=5)
    for row, (found,) in enumerate(beam_search(model, SOURCE, LENGTHS, settings)):
        length = int(LENGTHS[row])
        source, lengths = SOURCE[row : row + 1, :length], LENGTHS[row : row + 1]
        said, score = [BOS], 0.0
        while said[-1] != EOS:
            decoded, memory = model(source, lengths, torch.tensor([said]))
            here = (0, len(said) - 1)
            alpha = array(decoded.weights[here])
            best = kept(alpha, options.get("k"))
            words = sum(alpha[z] * read_words(model, decoded, memory, here, z) for z in best)
            words = np.asarray(words / sum(alpha[z] for z in best))
            assert words.sum() == pytest.approx(1, abs=1e-12)
            allowed = [EOS] if len(said) == 5 else [EOS, *range(UNK, WORDS)]
            said.append(max(allowed, key=lambda word, words=words: words[word]))  # type: ignore[misc]
            score += math.log(words[said[-1]])
        assert found.ids == said[1:-1]
        assert found.log_probability == pytest.approx(score, abs=1e-9)


@torch.no_grad()
def test_under_bf16_the_weights_of_the_mixture_stay_float32() -> None:
    attention = LatentSettings(kind="latent", k=2).build(3, 2).eval()
    lengths = torch.tensor([4, 2])
    memory = Memory(random(2, 4, 2).bfloat16(), torch.arange(4) < lengths.unsqueeze(1), lengths)
    with torch.autocast("cpu", torch.bfloat16):
        attended, _ = attention(random(2, 3, 3).float(), attention.prepare(memory), ())
    assert attended.context.dtype == torch.bfloat16 and attended.mixture is not None
    assert attended.weights is not None
    assert attended.weights.dtype == attended.mixture.log_weights.dtype == torch.float32
    torch.testing.assert_close(attended.mixture.log_weights.exp().sum(-1), torch.ones(2, 3))
