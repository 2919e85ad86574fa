"""The readout: `gold` asks it about other contexts, and a mixture of contexts is a mixture of its answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from grid import BOTH_WAYS, STACKS, WIRINGS, Case, Pairs, build, only, pairs, recurrent
from torch import Tensor

from s2s.attention.normalise import masked_log_softmax
from s2s.interfaces import PAD, Attended, Attention, Decoded, Gold, Memory, Mixture, Told
from s2s.models.seq2seq import Seq2Seq
from s2s.training.objective import ObjectiveSettings, TrainingStep
from s2s.tree import Tree

PAIRS = pairs((5, 3, 1, 4))
REAL = PAIRS.gold != PAD
CASES = [recurrent(name, BOTH_WAYS, **order) for name, order in WIRINGS.items()]
NARROW = recurrent("narrow", BOTH_WAYS, wiring="bahdanau", cell="lstm", layers=2)
CASES.append(Case("narrow", {**NARROW.model, "tie": "output"}))
each_wiring = pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])


def read_words(model: Seq2Seq, decoded: Decoded, context: Tensor) -> Tensor:
    """log p(y | context) (B, T, V), written out: tanh(W [hidden ; context ; embedded]) and the output matrix."""
    decoder, unread = only(model.decoder), decoded.unread
    parts = [unread.hidden, context] if unread.embedded is None else [unread.hidden, context, unread.embedded]
    joined = torch.tanh(torch.cat(parts, -1) @ decoder.wiring.readout.join.weight.T)
    joined = joined if unread.keep is None else joined * unread.keep
    joined = joined if decoder.narrow is None else joined @ decoder.narrow.weight.T
    scores = joined @ decoder.output.weight.T + decoder.output.bias
    return scores - scores.exp().sum(-1, keepdim=True).log()


def of_gold(words: Tensor) -> Tensor:
    """Log-probabilities (B, T, V) to those of the right words (B, T), zero at padding."""
    return words.gather(-1, PAIRS.gold.unsqueeze(-1)).squeeze(-1) * REAL


# --- gold -------------------------------------------------------------------------------------------------------------


def ask(model: Seq2Seq, monkeypatch: pytest.MonkeyPatch) -> tuple[Gold, Tensor, Decoded]:
    """The ``gold`` that a mechanism is given, the context that it read, and what was decoded."""
    heard: list[tuple[Gold, Tensor]] = []

    def listen(attended: Attended, memory: Memory, gold: Gold) -> dict[str, Tensor]:
        heard.append((gold, attended.context))
        return {}

    attention = only(model.decoder).attention
    monkeypatch.setattr(attention, "asks_gold", True)
    monkeypatch.setattr(attention, "penalties", listen)
    decoded, memory = model(PAIRS.source, PAIRS.lengths, PAIRS.words)
    model.decoder.penalties(decoded, memory, PAIRS.gold)
    (gold, context), *_ = heard
    return gold, context, decoded


@torch.no_grad()
@each_wiring
def test_gold_without_a_context_is_the_likelihood_of_the_loss(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(case)
    found = ask(model, monkeypatch)[0]()
    sums = TrainingStep(model, ObjectiveSettings())(PAIRS.source, PAIRS.lengths, PAIRS.target)
    assert found.shape == PAIRS.gold.shape and (found[~REAL] == 0).all() and (found[REAL] < 0).all()
    torch.testing.assert_close(-found.sum(), sums.nll)


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True], ids=["evaluating", "training"])
@each_wiring
def test_gold_with_the_context_that_was_read(case: Case, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as without: in training too, since the dropout of the readout is one draw for all its answers."""
    model = build(case, dropout=0.4).train(training)
    gold, context, decoded = ask(model, monkeypatch)
    torch.testing.assert_close(gold(context), gold())
    if training:
        assert (decoded.unread.keep == 0).any() and (decoded.unread.keep > 1).any()
        torch.testing.assert_close(decoded.unread.keep == 0, decoded.features == 0)


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True], ids=["evaluating", "training"])
@each_wiring
def test_gold_with_other_contexts(case: Case, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(case, dropout=0.4).train(training)
    gold, context, decoded = ask(model, monkeypatch)
    others = torch.randn(*context.shape[:2], 3, context.size(-1), dtype=torch.float64)  # (B, T, N, M)
    found = gold(others)
    assert found.shape == (*PAIRS.gold.shape, 3)
    for n in range(3):
        expected = of_gold(read_words(model, decoded, others[:, :, n]))
        torch.testing.assert_close(found[..., n], expected)
        torch.testing.assert_close(gold(others[:, :, n]), expected)


@each_wiring
def test_the_gradient_of_gold_reaches_its_context(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(case)
    gold, context, _ = ask(model, monkeypatch)
    other = torch.randn(context.shape, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(gold(other).sum(), other)
    assert gradient[REAL].abs().sum(-1).min() > 0 and (gradient[~REAL] == 0).all()


# --- told -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True], ids=["evaluating", "training"])
@each_wiring
def test_who_listens_is_told_how_likely_the_last_word_was(
    case: Case, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under any context, by the readout and the dropout of the step that said it; zero for BOS and at padding."""
    model = build(case, dropout=0.4).train(training)
    attention, heard = only(model.decoder).attention, list[Tensor]()
    others = torch.randn(len(PAIRS.lengths), 1, 3, attention.context_size, dtype=torch.float64)

    def listen(told: Told, memory: Memory, state: Tree) -> tuple[None, Tree]:
        heard.append(told(others)[:, 0])
        return None, state

    for name, value in (("listens", True), ("asks_gold", True), ("listen", listen)):
        monkeypatch.setattr(attention, name, value)
    decoded, _ = model(PAIRS.source, PAIRS.lengths, PAIRS.words)
    assert len(heard) == PAIRS.words.size(1) and (heard[0] == 0).all()
    for n in range(3):
        context = others[:, :, n].expand(-1, PAIRS.words.size(1), -1)
        expected = of_gold(read_words(model, decoded, context))
        torch.testing.assert_close(torch.stack(heard[1:], 1)[..., n], expected[:, :-1])


@torch.no_grad()
def test_what_who_listens_answers_is_fed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under input feeding; the readout of the context that was read, said once more, changes nothing."""
    model = build(CASES[0])
    attention, read = only(model.decoder).attention, list[Tensor]()
    expected = model(PAIRS.source, PAIRS.lengths, PAIRS.words)[0].features
    attend, factor = attention.forward, 1.0

    def remember(query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        attended, state = attend(query, memory, state)
        read.append(attended.context)
        return attended, state

    def listen(told: Told, memory: Memory, state: Tree) -> tuple[Tensor, Tree]:
        nothing = torch.zeros(len(PAIRS.lengths), 1, attention.context_size, dtype=torch.float64)
        return (factor * read[-1] if read else nothing), state

    for name, value in (("listens", True), ("listen", listen), ("forward", remember)):
        monkeypatch.setattr(attention, name, value)
    torch.testing.assert_close(model(PAIRS.source, PAIRS.lengths, PAIRS.words)[0].features, expected)
    read.clear()
    factor = 2.0
    found = model(PAIRS.source, PAIRS.lengths, PAIRS.words)[0].features
    torch.testing.assert_close(found[:, 0], expected[:, 0])
    assert not torch.allclose(found[:, 1], expected[:, 1])


# --- mixtures ---------------------------------------------------------------------------------------------------------

Choose = Callable[[Tensor], Mixture]
"""Log-weights (B, T, S) over all positions to the mixture that is read out."""


def every_position(log_weights: Tensor) -> Mixture:
    """All S contexts."""
    return Mixture(log_weights)


def best_two(log_weights: Tensor) -> Mixture:
    """The two likeliest, as they are: a bound."""
    return Mixture(*log_weights.topk(2))


def best_two_rescaled(log_weights: Tensor) -> Mixture:
    """The two likeliest, made to sum to one."""
    kept, positions = log_weights.topk(2)
    return Mixture(kept.log_softmax(-1), positions)


def last_two(log_weights: Tensor) -> Mixture:
    """The last two positions of the padded source and nothing before them: exact zeros stand first."""
    behind = torch.arange(log_weights.size(-1)) < log_weights.size(-1) - 2
    return Mixture(log_weights.masked_fill(behind, -torch.inf))


class Latent(Attention):
    """A dot score whose softmax is a distribution over contexts, not over parts of one."""

    def __init__(self, choose: Choose, size: int) -> None:
        super().__init__()
        self.choose, self.context_size = choose, size

    def forward(self, query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        scores = query @ memory.values.transpose(1, 2)  # (B, T, S)
        log_weights = masked_log_softmax(scores, memory.mask.unsqueeze(1))
        weights = log_weights.exp()
        return Attended(weights @ memory.values, weights, self.choose(log_weights)), state


SOME = pairs((5, 5, 3, 4))


def latent(case: Case, choose: Choose) -> Seq2Seq:
    """The case's model with `Latent` in it."""
    model = build(case)
    decoder = only(model.decoder)
    decoder.wiring.attention = Latent(choose, decoder.attention.context_size)
    return model


def enumerated(model: Seq2Seq, decoded: Decoded, memory: Memory) -> Tensor:
    """sum over contexts of weight x p(y | context), (B, T, V), one sentence, word and context after the other."""
    assert decoded.mixture is not None
    log_weights, positions = decoded.mixture
    total = torch.zeros(*log_weights.shape[:2], model.decoder.output.out_features, dtype=torch.float64)
    for sentence in range(total.size(0)):
        for n in range(log_weights.size(-1)):
            for word in range(total.size(1)):
                place = n if positions is None else int(positions[sentence, word, n])
                context = memory.values[sentence, place].expand(*log_weights.shape[:2], -1)
                likelihood = read_words(model, decoded, context)[sentence, word].exp()
                total[sentence, word] += log_weights[sentence, word, n].exp() * likelihood
    return total


CHOICES: list[Choose] = [every_position, best_two, best_two_rescaled]
each_choice = pytest.mark.parametrize("choose", CHOICES, ids=lambda choose: choose.__name__)


@torch.no_grad()
@each_choice
@each_wiring
def test_a_mixture_is_read_out_by_enumeration(case: Case, choose: Choose) -> None:
    model = latent(case, choose)
    decoded, memory = model(SOME.source, SOME.lengths, SOME.words)
    expected, real = enumerated(model, decoded, memory), SOME.gold != PAD
    torch.testing.assert_close(model.decoder.logits(decoded, memory, real).exp(), expected[real])
    mass = expected.sum(-1)
    if choose is best_two:
        assert (mass < 1).any() and (mass <= 1 + 1e-12).all()
    else:
        torch.testing.assert_close(mass, torch.ones_like(mass))


@torch.no_grad()
@each_choice
@each_wiring
def test_training_minimises_the_mixture_as_it_is(case: Case, choose: Choose) -> None:
    model = latent(case, choose)
    decoded, memory = model(SOME.source, SOME.lengths, SOME.words)
    logs = enumerated(model, decoded, memory).log()
    real = SOME.gold != PAD
    nll = -logs.gather(-1, SOME.gold.unsqueeze(-1)).squeeze(-1)[real].sum()
    sums = TrainingStep(model, ObjectiveSettings(label_smoothing=0.2))(SOME.source, SOME.lengths, SOME.target)
    torch.testing.assert_close(sums.nll, nll)
    torch.testing.assert_close(sums.loss, 0.8 * nll - 0.2 * logs.mean(-1)[real].sum())


@torch.no_grad()
@each_choice
@each_wiring
def test_search_sees_a_normalised_mixture(case: Case, choose: Choose) -> None:
    model = latent(case, choose)
    decoded, memory = model(SOME.source, SOME.lengths, SOME.words)
    expected = enumerated(model, decoded, memory)
    expected = expected / expected.sum(-1, keepdim=True)
    kept, state = model.start(SOME.source, SOME.lengths)
    for position, token in enumerate(SOME.words.unbind(1)):
        words, _, state = model.step(token, kept, state)
        torch.testing.assert_close(words.exp(), expected[:, position])


@pytest.mark.parametrize("choose", [*CHOICES, last_two], ids=lambda choose: choose.__name__)
def test_the_gradient_through_a_mixture_is_finite(choose: Choose) -> None:
    """Contexts of weight zero (padding, a window, a sparse normaliser) have no part in it, wherever they stand."""
    model = latent(CASES[1], choose)
    some = SOME.rows(slice(0, 2))
    sums = TrainingStep(model, ObjectiveSettings(label_smoothing=0.1))(some.source, some.lengths, some.target)
    sums.loss.backward()
    assert sums.loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())


def test_a_transformer_has_no_mixture() -> None:
    stack = STACKS["pre-sinusoidal"]
    model = build(Case("", {"embedding": stack["size"], "tie": "none", "encoder": stack, "decoder": stack}))
    some: Pairs = SOME
    assert model(some.source, some.lengths, some.words)[0].mixture is None
