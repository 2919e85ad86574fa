"""Oracles of hard attention and its estimators: O-H1 to O-H4, O-H6 and O-H7; those of the mixture are in the next file.

Two ways of asking whether an estimator is right. Exactly: force each position in turn and weight its gradient with its
probability. And by sampling: many independent gradients, whose mean must not be further from the enumerated gradient
than their own standard error explains (a z-test with fixed seeds).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import WIRINGS, Given, decoder_of, double, memory_of, random, read_words, recurrent_model, redrawn
from formulas import Array, array, softmax
from pydantic import ValidationError
from torch import Tensor

from s2s.attention import estimators
from s2s.attention.global_ import Global
from s2s.attention.hard import Hard, HardSettings, HardState
from s2s.attention.latent import LatentSettings
from s2s.draws import gumbel, gumbel_at, numbers_of
from s2s.interfaces import Attended, Gold, Memory
from s2s.models.seq2seq import Seq2Seq
from s2s.schedules import Ramp, value_at
from s2s.training.objective import ObjectiveSettings, TrainingStep
from s2s.tree import take


def hard(scores: Tensor, memory_size: int, **options: Any) -> Hard:
    """Hard attention in training mode, by its settings, over given scores."""
    built = HardSettings.model_validate({"kind": "hard", **options}).build(1, memory_size)
    built.score = Given(scores)
    return built.double().train()


def attend(attention: Hard, values: Tensor, steps: int = 1) -> tuple[Attended, Memory]:
    """What T steps from the start read."""
    memory = attention.prepare(memory_of(values))
    query = values.new_zeros(values.size(0), steps, 1)
    attended, _ = attention(query, memory, attention.start(memory))
    return attended, memory


@dataclass(frozen=True)
class Answers:
    """A `Gold` whose answer is a function of the context, by default of the one that was read; all words are real."""

    attended: Attended
    answer: Callable[[Tensor], Tensor]
    real: Tensor

    def __call__(self, context: Tensor | None = None) -> Tensor:
        return self.answer(self.attended.context if context is None else context)

    def hindsight(self) -> Tensor:
        raise NotImplementedError


def answers(attended: Attended, answer: Callable[[Tensor], Tensor], real: Tensor | None = None) -> Gold:
    """The same, perhaps with some of the words (B, T) padding."""
    everywhere = torch.ones(attended.context.shape[:2], dtype=torch.bool)
    return Answers(attended, answer, everywhere if real is None else real)


def by_readout(attended: Attended, words: Tensor, right: int) -> Gold:
    """``gold`` of a readout that is one softmax over ``words`` (V, M) times the context."""
    return answers(attended, lambda context: (context @ words.T).log_softmax(-1)[..., right])


def loss_of(attention: Hard, attended: Attended, memory: Memory, gold: Gold) -> Tensor:
    """What training minimises: the likelihood of what was read and the mechanism's terms, summed."""
    terms = attention.penalties(attended, memory, gold)
    return (sum(terms.values(), -gold())).sum()


def choose_always(monkeypatch: pytest.MonkeyPatch, *choices: Tensor) -> None:
    """Let the draws of the next calls, by turns, choose the positions (B, T) that are given."""
    turns = itertools.cycle(choices)

    def forced(like: Tensor) -> Tensor:
        return 1e4 * torch.nn.functional.one_hot(next(turns), like.size(-1)).to(like)

    monkeypatch.setattr(estimators, "gumbel", forced)


# --- the bound --------------------------------------------------------------------------------------------------------


def test_oh1_the_bound_and_its_gradient() -> None:
    """alpha = (.7, .3), log p = (-1, -3): E log p = -1.6, and its gradient by the scores is (.42, -.42)."""
    scores = double(0.7, 0.3).log().view(1, 1, 2).requires_grad_()
    attention = hard(scores, 2, estimator="enumerate")
    attended, memory = attend(attention, torch.eye(2, dtype=torch.float64).unsqueeze(0))
    logs = double(-1, -3)
    loss = loss_of(attention, attended, memory, answers(attended, lambda context: context @ logs))
    torch.testing.assert_close(-loss, double(-1.6)[0])
    (gradient,) = torch.autograd.grad(-loss, scores)
    torch.testing.assert_close(gradient[0, 0], double(0.42, -0.42))


S, M, V, RIGHT = 4, 3, 5, 2
SCORES, ROWS, WORDS = random(S, seed=1), random(S, M, seed=2), random(V, M, seed=3)


def bound(scores: Array, rows: Array) -> float:
    """sum_z alpha_z log p(right word | h_z), term by term."""
    alpha, total = softmax(scores), 0.0
    for z in range(S):
        total += float(alpha[z] * np.log(softmax(array(WORDS) @ rows[z])[RIGHT]))
    return total


def by_differences() -> Tensor:
    """The gradient of minus the bound by scores and rows (S + S M), by central differences."""
    point = np.concatenate([array(SCORES), array(ROWS).ravel()])
    slopes, width = [], 1e-5
    for place in range(len(point)):
        up, down = point.copy(), point.copy()
        up[place] += width
        down[place] -= width
        there, here = (bound(x[:S], x[S:].reshape(S, M)) for x in (up, down))
        slopes.append((here - there) / (2 * width))
    return torch.tensor(slopes, dtype=torch.float64)


def sampled_gradients(count: int, sign: float = 1.0, mean: float = 0.0, **options: Any) -> Tensor:
    """``count`` independent gradients (count, S + S M) by scores and rows: each row of the batch has its own leaves."""
    scores = SCORES.expand(count, 1, S).clone().requires_grad_()
    rows = ROWS.expand(count, S, M).clone().requires_grad_()
    attention = hard(scores, M, estimator={"kind": "reinforce", "soft_mixing": 0.0, **options})
    if options.get("baseline") == "moving":
        attention.estimator.mean.fill_(mean)
    attended, memory = attend(attention, rows)
    gold = by_readout(attended, WORDS, RIGHT)
    penalty = attention.penalties(attended, memory, gold)["reinforce"]
    found = torch.autograd.grad((sign * penalty - gold()).sum(), [scores, rows])
    return torch.cat([found[0][:, 0], found[1].flatten(1)], 1)


def z_scores(samples: Tensor, expected: Tensor) -> Tensor:
    """How many standard errors the mean of the samples (n, K) is away from ``expected`` (K,)."""
    return (samples.mean(0) - expected) / (samples.std(0) / math.sqrt(len(samples)))


BASELINES: list[dict[str, Any]] = [
    {"baseline": "none"},
    {"baseline": "moving", "mean": -1.5},
    {"baseline": "moving", "mean": 4.0},
    {"baseline": "self"},
]
each_baseline = pytest.mark.parametrize("options", BASELINES, ids=lambda options: "-".join(map(str, options.values())))


@each_baseline
def test_oh3_reinforce_is_unbiased_by_a_z_test(options: dict[str, Any]) -> None:
    torch.manual_seed(11)
    found = z_scores(sampled_gradients(20_000, **options), by_differences())
    assert found.isfinite().all() and float(found.abs().max()) < 4.5


def test_oh3_the_z_test_notices_a_wrong_sign() -> None:
    """A loss that adds log alpha times the reward, instead of taking it away, rewards what was unlikely."""
    torch.manual_seed(11)
    found = z_scores(sampled_gradients(20_000, sign=-1.0, baseline="self"), by_differences())
    assert float(found.abs().max()) > 20


def moments(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance of the gradient over the draw, every position forced once and weighted with alpha."""
    choose_always(monkeypatch, torch.arange(S).unsqueeze(1))
    alpha = torch.from_numpy(softmax(array(SCORES))).unsqueeze(1)
    gradients = sampled_gradients(S, **options)
    mean = (alpha * gradients).sum(0)
    return mean, (alpha * (gradients - mean) ** 2).sum(0)


@each_baseline
def test_oh3_the_expected_gradient_is_that_of_the_bound(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.testing.assert_close(moments(monkeypatch, **options)[0], by_differences(), rtol=0, atol=1e-8)


def test_oh3_a_weight_scales_the_gradient_of_the_choice_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, found = by_differences(), moments(monkeypatch, baseline="self", weight=0.1)[0]
    torch.testing.assert_close(found[:S], 0.1 * expected[:S], rtol=0, atol=1e-8)
    torch.testing.assert_close(found[S:], expected[S:], rtol=0, atol=1e-8)


def test_oh3_baselines_lower_the_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the gradient by the scores, which is all that a baseline has a part in."""
    mean = bound(array(SCORES), array(ROWS))
    none, moving, soft = (
        float(moments(monkeypatch, **options)[1][:S].sum())
        for options in ({"baseline": "none"}, {"baseline": "moving", "mean": mean}, {"baseline": "self"})
    )
    assert soft < 0.8 * none and moving < 0.8 * none


# --- the bound in a model ---------------------------------------------------------------------------------------------

SOURCE, LENGTHS = torch.tensor([[4, 5, 2], [6, 2, 0]]), torch.tensor([3, 2])
TARGET = torch.tensor([[1, 4, 2], [1, 5, 2]])


def build(attention: dict[str, Any], **order: Any) -> Seq2Seq:
    """A small model in float64 and training mode, without dropout; the same weights for every kind."""
    model = recurrent_model((7, 7), {}, {"size": 4, "attention": attention, **order})
    return redrawn(model, 0.9, seed=6).train()


def reading(model: Seq2Seq, **parts: Tensor) -> dict[str, Any]:
    """What `TrainingStep` gives without label smoothing, and its gradients."""
    model.zero_grad()
    sums = TrainingStep(model, ObjectiveSettings(label_smoothing=0.0))(
        parts.get("source", SOURCE), parts.get("lengths", LENGTHS), parts.get("target", TARGET)
    )
    sums.loss.backward()
    return {
        "sums": sums,
        "gradient": {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
    }


def enumerated(model: Seq2Seq) -> tuple[float, float]:
    """Sums over all words: Jensen's bound and the likelihood of the mixture, sum over positions by loops."""
    decoded, memory = model(SOURCE, LENGTHS, TARGET[:, :-1])
    jensen = marginal = 0.0
    for b, t in np.ndindex(2, 2):
        alpha, gold = array(decoded.weights[b, t]), int(TARGET[b, t + 1])
        chances = [read_words(model, decoded, memory, (b, t), z)[gold] for z in range(int(LENGTHS[b]))]
        jensen += sum(alpha[z] * math.log(chance) for z, chance in enumerate(chances))
        marginal += math.log(sum(alpha[z] * chance for z, chance in enumerate(chances)))
    return jensen, marginal


@pytest.mark.parametrize("wiring", WIRINGS)
def test_enumeration_minimises_the_bound(wiring: str) -> None:
    model = build({"kind": "hard", "estimator": "enumerate"}, **WIRINGS[wiring])
    sums = reading(model)["sums"]
    jensen, _ = enumerated(model)
    assert float(sums.loss.detach()) == pytest.approx(-jensen, abs=1e-9)
    assert float(sums.nll + sums.parts["jensen"]) == pytest.approx(-jensen, abs=1e-9)


def test_label_smoothing_of_the_bound_pulls_on_the_soft_reading() -> None:
    model = build({"kind": "hard", "estimator": "enumerate"}, **WIRINGS["luong"])
    plain, smooth = (
        TrainingStep(model, ObjectiveSettings(label_smoothing=e))(SOURCE, LENGTHS, TARGET) for e in (0.0, 0.2)
    )
    decoded, memory = model(SOURCE, LENGTHS, TARGET[:, :-1])
    logs = decoder_of(model).logits(decoded, memory, TARGET[:, 1:] != 0).log_softmax(-1)
    of_gold = logs.gather(1, TARGET[:, 1:].reshape(-1, 1)).sum()
    torch.testing.assert_close(smooth.loss - plain.loss, 0.2 * (of_gold - logs.mean(1).sum()))


@pytest.mark.parametrize("wiring", WIRINGS)
def test_oh2_the_bound_is_below_the_likelihood(wiring: str) -> None:
    model = build({"kind": "hard", "estimator": "enumerate"}, **WIRINGS[wiring])
    jensen, marginal = enumerated(model)
    assert jensen < marginal - 1e-3
    assert float(reading(model)["sums"].loss.detach()) == pytest.approx(-jensen, abs=1e-9)


@pytest.mark.parametrize("case", ["nothing is read", "one position"])
def test_oh2_they_are_equal_where_positions_agree_or_one_has_all(case: str) -> None:
    order = WIRINGS["luong"]
    twins = [build(options, **order) for options in ({"kind": "hard", "estimator": "enumerate"}, {"kind": "latent"})]
    for model in twins:
        with torch.no_grad():
            if case == "one position":
                decoder_of(model).attention.score.project.weight.mul_(1e9)
            else:
                decoder_of(model).wiring.readout.join.weight[:, 4:].zero_()
    hard_loss, latent_loss = (reading(model)["sums"].loss.detach() for model in twins)
    torch.testing.assert_close(hard_loss, latent_loss)


@pytest.mark.parametrize("baseline", ["none", "self"])
def test_oh3_in_a_model_the_expected_gradient_is_the_enumerated_one(
    baseline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All 3 x 3 x 2 x 2 choices of two sentences with two words: pairs every reward with its own draw."""
    order = WIRINGS["luong"]
    expected = reading(build({"kind": "hard", "estimator": "enumerate"}, **order))["gradient"]
    model = build(
        {"kind": "hard", "estimator": {"kind": "reinforce", "baseline": baseline, "soft_mixing": 0.0}}, **order
    )
    weights = model(SOURCE, LENGTHS, TARGET[:, :-1])[0].weights.detach()
    found = {name: torch.zeros_like(gradient) for name, gradient in expected.items()}
    for choice in itertools.product(range(3), range(3), range(2), range(2)):
        positions = torch.tensor(choice).view(2, 2)
        chance = float(weights.gather(2, positions.unsqueeze(-1)).prod())
        choose_always(monkeypatch, positions)
        for name, gradient in reading(model)["gradient"].items():
            found[name] += chance * gradient
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-9, msg=name)


class Sentence:
    """One sentence of two source positions and three words, whose eight choices are all tried under input feeding."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.patch = monkeypatch
        estimator = {"kind": "reinforce", "soft_mixing": 0.0, **options}
        self.model = build({"kind": "hard", "estimator": estimator}, **WIRINGS["luong-feeding"])
        if options["baseline"] == "moving":
            with torch.no_grad():
                decoder_of(self.model).attention.estimator.mean.fill_(-1.5)
        self.parts = {"source": torch.tensor([[4, 2]]), "lengths": torch.tensor([2])}
        self.target = torch.tensor([[1, 4, 5, 2]])

    def tried(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of every choice: its probability and the log-likelihood of the sentence, and the loss of its sample."""
        for choice in itertools.product(range(2), repeat=3):
            choose_always(self.patch, *(torch.tensor([[z]]) for z in choice))
            decoded, memory = self.model(self.parts["source"], self.parts["lengths"], self.target[:, :-1])
            chosen = decoded.weights.gather(2, torch.tensor(choice).view(1, 3, 1)).prod()
            logits = decoder_of(self.model).logits(decoded, memory, self.target[:, 1:] != 0)
            logs = logits.log_softmax(-1).gather(1, self.target[:, 1:].view(3, 1)).sum()
            terms = decoder_of(self.model).penalties(decoded, memory, self.target[:, 1:])
            yield chosen, logs, sum((term.sum() for term in terms.values()), -logs)

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """Of the expected negative log-likelihood, and expected of the samples."""
        parameters = list(self.model.parameters())
        exact = [torch.zeros_like(parameter) for parameter in parameters]
        found = [torch.zeros_like(parameter) for parameter in parameters]
        for chance, logs, loss in self.tried():
            for total, objective in ((exact, -chance * logs), (found, chance.detach() * loss)):
                slopes = torch.autograd.grad(objective, parameters, retain_graph=True, materialize_grads=True)
                for one, slope in zip(total, slopes, strict=True):
                    one += slope
        return exact, found


@pytest.mark.parametrize("baseline", ["none", "moving"])
def test_oh3_the_reward_of_the_rest_is_unbiased_under_feedback(baseline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exact, found = Sentence(monkeypatch, baseline=baseline, reward="rest").gradients()
    for one, other in zip(exact, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-7, atol=1e-9)


def test_the_reward_of_a_word_leaves_out_what_is_fed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the documents say: the estimator of Deng et al. is biased where a choice changes later words."""
    exact, found = Sentence(monkeypatch, baseline="none", reward="word").gradients()
    assert not all(torch.allclose(one, other, atol=1e-6) for one, other in zip(exact, found, strict=True))


# --- reinforce: baselines and coins -----------------------------------------------------------------------------------


def test_the_moving_baseline_is_a_running_mean_of_sampled_words() -> None:
    attention = hard(random(2, 3, S), M, estimator={"kind": "reinforce", "baseline": "moving", "soft_mixing": 0.0})
    assert attention.estimator.mean.dtype == torch.float64 and "estimator.mean" in attention.state_dict()
    attended, memory = attend(attention, random(2, S, M), 3)
    given, real = double((-1, -2, -4), (-3, 0, 0)), torch.tensor([[True, True, True], [True, True, False]])
    totals = attention.statistics(attended, memory, answers(attended, lambda context: given, real))
    assert {name: (float(total), int(count)) for name, (total, count) in totals.items()} == {"reward": (-10.0, 5)}
    assert attention.estimator.mean == 0
    for expected in (-0.2, 0.9 * -0.2 - 0.2):
        attention.after_update({"reward": (-10.0, 5.0)})
        assert float(attention.estimator.mean) == pytest.approx(expected, abs=1e-12)
    attention.after_update({"reward": (0.0, 0.0)})  # no word was sampled
    attention.after_update({})
    assert float(attention.estimator.mean) == pytest.approx(-0.38, abs=1e-12)


@pytest.mark.parametrize("reward", ["word", "rest"])
def test_a_word_of_probability_one_is_no_padding(reward: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log-likelihood is exactly zero, as at padding; the gradient is unbiased all the same.

    Two sentences of one word, all positions tried: log p(right word | h_z) is 0, -1, -3, -2 of z = 0, 1, 2, 3.
    """
    logs, alpha = double(0, -1, -3, -2), softmax(array(SCORES))
    options = {"kind": "reinforce", "baseline": "moving", "reward": reward, "soft_mixing": 0.0}
    choose_always(monkeypatch, torch.arange(S).unsqueeze(1))
    scores = SCORES.expand(S, 1, S).clone().requires_grad_()
    attention = hard(scores, S, estimator=options)
    with torch.no_grad():
        attention.estimator.mean.fill_(-1.5)
    attended, memory = attend(attention, torch.eye(S, dtype=torch.float64).expand(S, S, S))
    gold = answers(attended, lambda context: context.detach() @ logs)
    (slopes,) = torch.autograd.grad(attention.penalties(attended, memory, gold)["reinforce"].sum(), scores)
    found = sum(alpha[z] * array(slopes[z, 0]) for z in range(S))
    mean = sum(alpha[z] * float(logs[z]) for z in range(S))
    np.testing.assert_allclose(found, [-alpha[z] * (float(logs[z]) - mean) for z in range(S)], rtol=0, atol=1e-12)
    total, count = attention.statistics(attended, memory, gold)["reward"]
    assert (float(total), int(count)) == (-6.0, 4)


def test_the_rest_of_a_sentence_ends_with_it() -> None:
    """Under a moving baseline nothing is earned at padding, so no word before it is blamed for that."""
    real, given = torch.tensor([[True, True, False]]), double((-1, 0, 0))
    attention = hard(random(1, 3, S), M, estimator={"kind": "reinforce", "baseline": "moving", "reward": "rest"})
    with torch.no_grad():
        attention.estimator.mean.fill_(-0.4)
    attended, _ = attend(attention, random(1, S, M), 3)
    advantage = attention.estimator._advantage(attended, answers(attended, lambda context: given, real))
    np.testing.assert_allclose(array(advantage), [[-0.6 + 0.4, 0.4, 0.0]], rtol=0, atol=1e-12)


def test_gold_knows_which_words_are_real(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build({"kind": "hard", "estimator": {"kind": "reinforce", "baseline": "moving"}}, **WIRINGS["luong"])
    heard: list[Gold] = []

    def listen(attended: Attended, memory: Memory, gold: Gold) -> dict[str, Tensor]:
        heard.append(gold)
        return {}

    monkeypatch.setattr(decoder_of(model).attention, "penalties", listen)
    reading(model, target=torch.tensor([[1, 4, 5, 2], [1, 2, 0, 0]]))
    assert heard[0].real.tolist() == [[True, True, True], [True, False, False]]


def test_the_moving_baseline_of_a_float32_model_is_float32() -> None:
    settings = HardSettings.model_validate({"kind": "hard", "estimator": {"kind": "reinforce", "baseline": "moving"}})
    (buffer,) = settings.build(3, 3).buffers()
    assert buffer.dtype == torch.float32 and buffer == 0


def test_rewards_and_baselines_are_constants() -> None:
    """Nothing but log alpha gets a gradient from the term: the readout learns from the likelihood alone."""
    words = WORDS.clone().requires_grad_()
    for baseline in ("none", "moving", "self"):
        scores = random(2, 3, S).requires_grad_()
        attention = hard(scores, M, estimator={"kind": "reinforce", "baseline": baseline, "soft_mixing": 0.0})
        attended, memory = attend(attention, random(2, S, M), 3)
        term = attention.penalties(attended, memory, by_readout(attended, words, RIGHT))["reinforce"]
        assert term.shape == (2, 3)
        by_words, by_scores = torch.autograd.grad(term.sum(), [words, scores], allow_unused=True)
        assert by_words is None and by_scores.any()


def test_a_coin_per_sentence_is_thrown_at_the_start() -> None:
    """Heads: the soft context at every step and no reinforcement. Tails: one row at every step, and no word of it."""
    torch.manual_seed(4)
    count, steps = 400, 3
    values = random(count, S, M)
    attention = hard(random(count, steps, S), M, estimator={"kind": "reinforce", "baseline": "self"})
    memory = attention.prepare(memory_of(values))
    state = attention.start(memory)
    assert state.drawn is not None and state.drawn.shape == (count,)
    attended, after = attention(values.new_zeros(count, steps, 1), memory, state)
    assert after.drawn is state.drawn
    soft = state.drawn
    assert 150 < int(soft.sum()) < 250
    assert attended.weights is not None
    torch.testing.assert_close(attended.context[soft], (attended.weights @ values)[soft])
    is_row = (attended.context.unsqueeze(2) == values.unsqueeze(1)).all(-1).any(-1)  # (B, T)
    assert is_row[~soft].all() and not is_row[soft].any()
    term = attention.penalties(attended, memory, by_readout(attended, WORDS, RIGHT))["reinforce"]
    assert (term[soft] == 0).all() and (term[~soft] != 0).all()
    totals = hard(random(count, steps, S), M, estimator={"kind": "reinforce", "baseline": "moving"}).statistics(
        attended, memory, by_readout(attended, WORDS, RIGHT)
    )
    assert int(totals["reward"][1]) == steps * int((~soft).sum())


def test_soft_mixing_of_one_is_soft_attention() -> None:
    scores, values = random(2, 3, S), random(2, S, M)
    attended, _ = attend(hard(scores, M, estimator={"kind": "reinforce", "soft_mixing": 1.0}), values, 3)
    expected, _ = Global(Given(scores), "softmax", M)(values[:, :3], memory_of(values), ())
    torch.testing.assert_close(attended.context, expected.context)


# --- draws ------------------------------------------------------------------------------------------------------------

CRITICAL = {3: 16.266, 9: 27.877, 15: 37.697}
"""Chi-square values that are passed with a probability of 0.001, by degrees of freedom."""


def chi_square(counts: Tensor, chances: Tensor) -> float:
    """sum (seen - expected)^2 / expected."""
    expected = counts.sum() * chances
    return float(((counts - expected) ** 2 / expected).sum())


ALPHA = torch.from_numpy(softmax(array(SCORES)))


@pytest.mark.parametrize("estimator", ["reinforce", "gumbel", "sample"])
def test_oh4_positions_are_drawn_as_often_as_alpha_says(estimator: str) -> None:
    torch.manual_seed(7)
    count = 20_000
    scores, rows = SCORES.expand(count, 1, S), torch.eye(S, dtype=torch.float64).expand(count, S, S)
    if estimator == "sample":
        attention = hard(scores, S, estimator="enumerate", evaluate="sample").eval()
        attended, _ = attend(attention, rows)
        assert attended.mixture is not None and attended.mixture.positions is not None
        choice = attended.mixture.positions.flatten()
    else:
        options = {"soft_mixing": 0.0} if estimator == "reinforce" else {}
        attended, _ = attend(hard(scores, S, estimator={"kind": estimator, **options}), rows)
        choice = attended.context.argmax(-1).flatten()
    assert chi_square(torch.bincount(choice, minlength=S).double(), ALPHA) < CRITICAL[S - 1]


def test_draws_of_neighbouring_steps_positions_and_sentences_are_independent() -> None:
    """Of the samples in evaluation, which are functions of (seed, step, position)."""
    torch.manual_seed(8)
    logs, pairs = ALPHA.log(), (ALPHA.unsqueeze(1) * ALPHA).flatten()
    seeds, first = torch.randint(2**62, (10_000,)), torch.zeros(10_000, dtype=torch.int64)
    steps = (logs + gumbel_at(seeds, first, logs.expand(10_000, 2, S))).argmax(-1)
    assert chi_square(torch.bincount(S * steps[:, 0] + steps[:, 1], minlength=S * S).double(), pairs) < CRITICAL[15]
    counted = torch.arange(20_000)  # even seeds that follow each other
    choice = (logs + gumbel_at(counted, torch.zeros_like(counted), logs.expand(20_000, 1, S))).argmax(-1).flatten()
    seen = torch.bincount(S * choice[::2] + choice[1::2], minlength=S * S).double()
    assert chi_square(seen, pairs) < CRITICAL[15]


@pytest.mark.parametrize("source", ["generator", "counters"])
def test_gumbel_noise_has_its_moments(source: str) -> None:
    """Mean: Euler's constant; variance: pi^2 / 6."""
    torch.manual_seed(9)
    like = torch.empty(4000, 5, 5, dtype=torch.float64)
    counters = torch.randint(2**62, (4000,)), torch.zeros(4000, dtype=torch.int64)
    noise = gumbel(like) if source == "generator" else gumbel_at(*counters, like)
    assert noise.shape == like.shape and noise.dtype == like.dtype and noise.isfinite().all()
    assert float(noise.mean()) == pytest.approx(0.577216, abs=5 * math.sqrt(math.pi**2 / 6 / noise.numel()))
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=0.03)


# --- gumbel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_a_relaxed_sample_is_its_formula(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, values, noise = random(2, 3, S), random(2, S, M), random(2, 3, S, seed=5)
    monkeypatch.setattr(estimators, "gumbel", lambda like: noise)
    relaxed = {"kind": "gumbel", "straight_through": False, "temperature": temperature}
    attended, memory = attend(hard(scores, M, estimator=relaxed), values, 3)
    for b, t in np.ndindex(2, 3):
        alpha = softmax(array(scores[b, t]))
        weights = softmax((np.log(alpha) + array(noise[b, t])) / temperature)
        expected = sum(weights[j] * array(values[b, j]) for j in range(S))
        np.testing.assert_allclose(array(attended.context[b, t]), expected, rtol=0, atol=1e-12)
        assert attended.weights is not None
        np.testing.assert_allclose(array(attended.weights[b, t]), alpha, rtol=0, atol=1e-12)
    assert attended.mixture is None and memory.keys is not None


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_oh4_straight_through_reads_one_row_and_learns_from_the_relaxed_sample(kind: torch.dtype) -> None:
    values, vector = random(50, S, M).to(kind), random(50, 3, M, seed=1).to(kind)
    slopes = []
    for straight_through in (True, False):
        torch.manual_seed(3)
        scores = random(50, 3, S).to(kind).requires_grad_()
        options = {"kind": "gumbel", "straight_through": straight_through, "temperature": 0.7}
        attended, _ = attend(hard(scores, M, estimator=options).to(kind), values, 3)
        is_row = (attended.context.unsqueeze(2) == values.unsqueeze(1)).all(-1)  # (B, T, S)
        assert (is_row.sum(-1) == (1 if straight_through else 0)).all()
        slopes.append(torch.autograd.grad((attended.context * vector).sum(), scores)[0])
    torch.testing.assert_close(slopes[0], slopes[1])
    assert slopes[0].any()


def test_a_cold_relaxed_sample_is_one_row() -> None:
    torch.manual_seed(3)
    values = random(20, S, M)
    relaxed = {"kind": "gumbel", "straight_through": False, "temperature": 1e-6}
    attended, _ = attend(hard(random(20, 2, S), M, estimator=relaxed), values, 2)
    distance = (attended.context.unsqueeze(2) - values.unsqueeze(1)).abs().amax(-1)  # (B, T, S)
    assert float(distance.amin(-1).max()) < 1e-9


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_oh7_a_mixture_of_inputs_is_not_a_mixture_of_outputs() -> None:
    """h = (-2, 3), alpha = (.6, .4), the readout is sigma(h): soft .5, marginal .452551, argmax .119203."""
    scores, values = double(0.6, 0.4).log().view(1, 1, 2), double(-2, 3).view(1, 2, 1)

    def read(attended: Attended) -> float:
        if attended.mixture is None:
            return float(torch.sigmoid(attended.context))
        log_weights, positions = attended.mixture
        places = range(2) if positions is None else positions.flatten().tolist()
        chances = [1 / (1 + math.exp(-float(values[0, place, 0]))) for place in places]
        return sum(math.exp(w) * p for w, p in zip(log_weights.flatten().tolist(), chances, strict=True))

    soft, _ = Global(Given(scores), "softmax", 1)(values[:, :1], memory_of(values), ())
    assert read(soft) == pytest.approx(0.5, abs=1e-9)
    for estimator in ("reinforce", "gumbel", "enumerate"):
        found = {
            evaluate: read(attend(hard(scores, 1, estimator=estimator, evaluate=evaluate).eval(), values)[0])
            for evaluate in ("argmax", "marginal")
        }
        assert found == pytest.approx({"argmax": 0.119203, "marginal": 0.452551}, abs=1e-6)
    latent = LatentSettings(kind="latent").build(1, 1)
    latent.score = Given(scores)
    assert read(latent(values[:, :1], memory_of(values), ())[0]) == pytest.approx(0.452551, abs=1e-6)


KINDS: dict[str, dict[str, Any]] = {
    "soft": {"kind": "global", "score": "general"},
    **{
        f"{estimator}-{evaluate}": {"kind": "hard", "estimator": estimator, "evaluate": evaluate}
        for estimator, evaluate in itertools.product(
            ("reinforce", "gumbel", "enumerate"), ("argmax", "sample", "marginal")
        )
    },
    "exact": {"kind": "latent"},
    "topk": {"kind": "latent", "k": 2},
}


@torch.no_grad()
@pytest.mark.parametrize("wiring", WIRINGS)
def test_oh6_with_all_weight_on_one_position_all_kinds_agree(wiring: str) -> None:
    read = []
    for options in KINDS.values():
        model = build(options, **WIRINGS[wiring]).eval()
        decoder_of(model).attention.score.project.weight.mul_(1e9)
        decoded, memory = model(SOURCE, LENGTHS, TARGET[:, :-1])
        assert decoded.weights.amax(-1).min() > 1 - 1e-12
        read.append(model.decoder.logits(decoded, memory, TARGET[:, 1:] != 0).log_softmax(-1))
    for other in read[1:]:
        torch.testing.assert_close(other, read[0])


@torch.no_grad()
@pytest.mark.parametrize("estimator", ["reinforce", "gumbel", "enumerate"])
def test_in_evaluation_the_likeliest_position_is_read_and_the_lowest_of_several(estimator: str) -> None:
    scores, values = double((1, 3, 3, 0), (2, 2, 2, 2)).unsqueeze(0), random(1, 4, M)
    attention = hard(scores, M, estimator=estimator).eval()
    attended, memory = attend(attention, values, 2)
    rows = values[0, torch.tensor([1, 0])]
    assert attended.weights is not None
    if estimator == "enumerate":  # fed as in training, read out as chosen
        torch.testing.assert_close(attended.context, attended.weights @ values)
        assert attended.mixture is not None and attended.mixture.positions is not None
        assert attended.mixture.positions[0, :, 0].tolist() == [1, 0] and (attended.mixture.log_weights == 0).all()
    else:
        assert attended.mixture is None and attended.context[0].equal(rows)
    gold = answers(attended, lambda context: context[..., 0])
    assert not attention.penalties(attended, memory, gold) and not attention.statistics(attended, memory, gold)


@torch.no_grad()
def test_samples_in_evaluation_are_functions_of_the_sentence_and_the_step() -> None:
    """The same for any split of the steps, order of the rows and padding of the source; others of another sentence."""
    settings = HardSettings.model_validate({"kind": "hard", "estimator": "reinforce", "evaluate": "sample"})
    attention = settings.build(3, M).double().eval()
    query, values = random(40, 6, 3), random(40, S, M, seed=1)
    memory = attention.prepare(memory_of(values))
    state = attention.start(memory)
    whole, after = attention(query, memory, state)
    assert (after.step == 6).all()

    parts, now = [], state
    for part in query.split([1, 3, 2], 1):
        attended, now = attention(part, memory, now)
        parts.append(attended.context)
    assert torch.cat(parts, 1).equal(whole.context)

    rows = torch.randperm(40)
    _, middle = attention(query[:, :2], memory, state)
    there, _ = attention(query[rows, 2:], take(memory, rows), take(middle, rows))
    torch.testing.assert_close(there.context, whole.context[rows, 2:])

    wider = torch.cat([values, torch.zeros(40, 3, M).double()], 1)
    padded = attention.prepare(memory_of(wider, (S,) * 40))
    torch.testing.assert_close(attention(query, padded, state)[0].context, whole.context)

    again, _ = attention(query, memory, attention.start(memory))
    assert again.context.equal(whole.context)
    others, _ = attention(query, memory._replace(number=torch.arange(40, 80)), state)
    assert not others.context.equal(whole.context)
    assert (whole.context[:, 1:] != whole.context[:, :-1]).any(), "draws differ from step to step"


def splitmix(bits: int) -> int:
    """The finaliser of SplitMix64 on a number of 64 bits without sign, by Python's integers."""
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
    return bits ^ (bits >> 31)


def test_a_sentence_is_numbered_by_its_words_and_their_places() -> None:
    golden = 0x9E3779B97F4A7C15
    words, padded = [5, 9, 5, 2], torch.tensor([[5, 9, 5, 2, 0, 0], [9, 5, 5, 2, 0, 0], [5, 9, 5, 2, 7, 7]])
    places = [
        splitmix((splitmix(word * golden % 2**64) + place * golden) % 2**64) for place, word in enumerate(words, 1)
    ]
    expected = splitmix(sum(places) % 2**64)
    numbers = numbers_of(padded, torch.tensor([4, 4, 4]))
    assert [number % 2**64 for number in numbers.tolist()][::2] == [expected, expected]
    assert numbers[1] != numbers[0], "the same words in another order"


def test_sentences_that_differ_in_a_word_draw_independently() -> None:
    """First draws over 20,000 sentences of two words that follow each other: as often as alpha says, also in pairs."""
    source = torch.stack([torch.arange(20_000) % 200, torch.arange(20_000) // 200], 1)
    numbers = numbers_of(source, torch.full((20_000,), 2))
    assert len(numbers.unique()) == 20_000
    logs, both = ALPHA.log(), (ALPHA.unsqueeze(1) * ALPHA).flatten()
    choice = (logs + gumbel_at(numbers, torch.zeros_like(numbers), logs.expand(20_000, 1, S))).argmax(-1).flatten()
    assert chi_square(torch.bincount(choice, minlength=S).double(), ALPHA) < CRITICAL[S - 1]
    pairs = (choice[::2] * S + choice[1::2]).bincount(minlength=S * S).double()
    assert chi_square(pairs, both) < CRITICAL[15]


# --- entropy, schedules, precision, settings --------------------------------------------------------------------------


def test_the_entropy_bonus_is_its_formula() -> None:
    scores = random(2, 3, S).requires_grad_()
    attention = hard(scores, M, estimator="gumbel", entropy=0.3)
    memory = attention.prepare(memory_of(random(2, S, M), (S, 2)))
    attended, _ = attention(torch.zeros(2, 3, 1).double(), memory, attention.start(memory))
    terms = attention.penalties(attended, memory, answers(attended, lambda context: context[..., 0]))
    assert list(terms) == ["entropy"] and terms["entropy"].shape == (2, 3)
    for b, t in np.ndindex(2, 3):
        real = S if b == 0 else 2
        alpha = softmax(array(scores[b, t, :real]))
        assert float(terms["entropy"][b, t].detach()) == pytest.approx(0.3 * float((alpha * np.log(alpha)).sum()))
        (slopes,) = torch.autograd.grad(terms["entropy"][b, t], scores, retain_graph=True)
        entropy = -float((alpha * np.log(alpha)).sum())
        expected = 0.3 * alpha * (np.log(alpha) + entropy)  # d(-H) / d scores
        np.testing.assert_allclose(array(slopes[b, t, :real]), expected, rtol=0, atol=1e-12)
        assert not slopes[b, t, real:].any()


def test_ramps_are_functions_of_the_update_alone() -> None:
    linear = Ramp(start=1.0, end=0.5, updates=10)
    assert [value_at(linear, n) for n in (0, 1, 5, 10, 11, 900)] == pytest.approx([1, 0.95, 0.75, 0.5, 0.5, 0.5])
    cooling = Ramp(start=1.0, end=0.01, updates=4, shape="exponential")
    assert [value_at(cooling, n) for n in (0, 1, 2, 4, 5)] == pytest.approx([1, 0.1**0.5, 0.1, 0.01, 0.01])
    late = Ramp(start=0.0, end=1.0, updates=2, after=10)
    assert [value_at(late, n) for n in (1, 10, 11, 12, 13)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert value_at(0.3, 7) == 0.3


def test_schedules_reach_the_estimators() -> None:
    ramp = {"start": 1.0, "end": 0.2, "updates": 4}
    warm = hard(random(1, 1, S), M, estimator={"kind": "gumbel", "temperature": ramp})
    mixed = hard(random(1, 1, S), M, estimator={"kind": "reinforce", "soft_mixing": {**ramp, "end": 0.0}})
    for update, temperature, mixing in ((3, 0.4, 0.25), (1, 0.8, 0.75), (4, 0.2, 0.0)):
        warm.set_update(update)
        mixed.set_update(update)
        assert warm.estimator.temperature == pytest.approx(temperature)
        assert mixed.estimator.soft_mixing == pytest.approx(mixing)
    assert mixed.start(memory_of(random(2, S, M))) == HardState(None, None)


@pytest.mark.parametrize("estimator", ["reinforce", "gumbel", "enumerate"])
def test_under_bf16_scores_and_terms_stay_float32(estimator: str) -> None:
    torch.manual_seed(0)
    settings = HardSettings.model_validate({"kind": "hard", "estimator": estimator, "entropy": 0.1})
    attention = settings.build(3, M).train()
    values, words = random(2, S, M).bfloat16(), WORDS.float()
    with torch.autocast("cpu", torch.bfloat16):
        memory = attention.prepare(memory_of(values))
        attended, _ = attention(random(2, 3, 3).float(), memory, attention.start(memory))
        gold = answers(attended, lambda context: (context @ words.T).log_softmax(-1)[..., RIGHT].float())
        terms = attention.penalties(attended, memory, gold)
    assert attended.context.dtype == torch.bfloat16 and attended.weights is not None
    assert attended.weights.dtype == torch.float32 and all(term.dtype == torch.float32 for term in terms.values())
    assert all(term.isfinite().all() for term in terms.values())


@pytest.mark.parametrize(
    "estimator",
    [
        "bogus",
        {"kind": "reinforce", "reward": "rest"},  # the baseline is self
        {"kind": "reinforce", "weight": 0.0},
        {"kind": "reinforce", "soft_mixing": 1.5},
        {"kind": "reinforce", "soft_mixing": {"start": 0.5, "end": -0.5, "updates": 3}},
        {"kind": "gumbel", "temperature": 0.0},
        {"kind": "gumbel", "temperature": {"start": 1.0, "end": 0.0, "updates": 3}},
        {"kind": "gumbel", "temperature": {"start": 1.0, "end": 0.1, "updates": 0}},
        {"kind": "reinforce", "soft_mixing": {"start": 0.5, "end": 0.0, "updates": 3, "shape": "exponential"}},
        {"kind": "enumerate", "temperature": 1.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(estimator: Any) -> None:
    with pytest.raises(ValidationError):
        HardSettings.model_validate({"kind": "hard", "estimator": estimator})


@pytest.mark.parametrize(
    "estimator",
    [
        "enumerate",
        {"kind": "reinforce", "soft_mixing": {"start": 0.5, "end": 0.0, "updates": 3}},
        {"kind": "gumbel", "temperature": 1},
    ],
)
def test_settings_survive_being_saved(estimator: Any) -> None:
    settings = HardSettings.model_validate({"kind": "hard", "estimator": estimator})
    assert HardSettings.model_validate(settings.model_dump(mode="json")) == settings
