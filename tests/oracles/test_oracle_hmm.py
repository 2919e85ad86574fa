"""Oracles of hidden Markov attention: the forward recursion is the sum over all alignments, written out one by one."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from fixtures import WIRINGS, decoder_of, double, memory_of, random, read_words, recurrent_model, redrawn
from formulas import Array, array, softmax
from pydantic import ValidationError
from torch import Tensor

from s2s.attention.hmm import HiddenMarkov, HMMSettings
from s2s.interfaces import Attended, Memory, Mixture
from s2s.models.seq2seq import Seq2Seq
from s2s.training.objective import ObjectiveSettings, Sums, TrainingStep
from s2s.tree import Tree

SOURCE, LENGTHS = torch.tensor([[4, 5, 6, 2], [7, 5, 2, 0]]), torch.tensor([4, 3])
TARGET = torch.tensor([[1, 4, 5, 2], [1, 6, 2, 0]])
WORDS, STEPS = 9, (3, 2)
KINDS: dict[str, dict[str, Any]] = {
    "free": {"reach": 1},
    "far": {"reach": 3},
    "monotone": {"reach": 1, "monotone": True},
    "monotone-without-jumps": {"reach": None, "monotone": True},
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_wiring = pytest.mark.parametrize("wiring", WIRINGS)


def build(attention: dict[str, Any], **order: Any) -> Seq2Seq:
    """A small model in float64 and evaluation mode; the same weights for every kind with the same parts."""
    model = recurrent_model((WORDS, WORDS), {}, {"size": 4, "attention": attention, **order})
    return redrawn(model, 1.2, seed=2)


def train(model: Seq2Seq) -> Sums:
    """One batch in training mode, without label smoothing."""
    sums: Sums = TrainingStep(model.train(), ObjectiveSettings(label_smoothing=0.0))(SOURCE, LENGTHS, TARGET)
    model.eval()
    return sums


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_two_steps_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A = ((.6, .4), (0, 1)) and p(y_1 | h) = (.5, .1): pi_1 = (.6, .4), alpha_1 = (.3, .04) / .34, pi_2 from there."""
    attention = HMMSettings(kind="hmm", monotone=True).build(2, 2).double()
    monkeypatch.setattr(attention, "moves", lambda query, memory: double((0.6, 0.4), (0.0, 1.0)).unsqueeze(0))
    memory = memory_of(random(1, 2, 2))
    query, state = random(1, 1, 2), attention.start(memory)
    _, state = attention.listen(lambda context: torch.zeros(1, 1, 2).double(), memory, state)  # no word was said yet
    np.testing.assert_allclose(array(state.exp()[0, 0]), [1, 0])
    attended, state = attention(query, memory, state)
    np.testing.assert_allclose(array(attended.weights[0, 0]), [0.6, 0.4])
    context, state = attention.listen(lambda context: double(0.5, 0.1).log().view(1, 1, 2), memory, state)
    assert context is None
    np.testing.assert_allclose(array(state.exp()[0, 0]), [0.3 / 0.34, 0.04 / 0.34])
    attended, _ = attention(query, memory, state)
    np.testing.assert_allclose(array(attended.weights[0, 0]), [0.529412, 0.470588], atol=1e-6)
    np.testing.assert_allclose(array(attended.mixture.log_weights.exp()), array(attended.weights))
    expected = 0.18 / 0.34 * memory.values[0, 0] + 0.16 / 0.34 * memory.values[0, 1]
    torch.testing.assert_close(attended.context[0, 0], expected)


def test_what_depends_on_nothing_before_is_refused() -> None:
    with pytest.raises(ValidationError, match="write kind: latent"):
        HMMSettings.model_validate({"kind": "hmm", "reach": None})
    with pytest.raises(ValidationError, match="renormalise belongs to k"):
        HMMSettings.model_validate({"kind": "hmm", "renormalise": True})


# --- all alignments ---------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """One reading of the batch in training mode."""

    queries: list[Tensor]
    mixtures: list[Mixture]
    sums: Sums


def watched(model: Seq2Seq, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What the attention is asked while the batch is read, and what it answers."""
    attention = decoder_of(model).attention
    attend, seen = attention.forward, Seen([], [], None)  # type: ignore[arg-type]

    def watch(query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        attended, state = attend(query, memory, state)
        assert attended.mixture is not None
        seen.queries.append(query)
        seen.mixtures.append(attended.mixture)
        return attended, state

    monkeypatch.setattr(attention, "forward", watch)
    found = seen._replace(sums=train(model))
    monkeypatch.undo()
    return found


def moves(attention: HiddenMarkov, query: Array, rows: Array) -> Array:
    """A_t (S, S) from the equations, row by row: score plus jump, a softmax over what may be reached."""
    assert attention.score.project is not None
    scores = np.array([query @ array(attention.score.project.weight) @ row for row in rows])
    table = []
    for i, row in enumerate(rows):
        logits = scores.copy()
        if attention.jumps is not None:
            jumps = attention.jumps
            u = array(jumps.query.weight) @ query + array(jumps.query.bias) + array(jumps.source.weight) @ row
            reach = len(u) - 1 if attention.monotone else len(u) // 2
            distances = [*range(len(u))] if attention.monotone else [*range(-reach, reach + 1)]
            for j in range(len(rows)):
                jump = max(distances[0], min(distances[-1], j - i))
                logits[j] += u[distances.index(jump)]
        reachable = [j for j in range(len(rows)) if j >= i or not attention.monotone]
        chances = softmax(logits[reachable])
        table.append([chances[reachable.index(j)] if j in reachable else 0.0 for j in range(len(rows))])
    return np.array(table)


def enumerated(model: Seq2Seq, seen: Seen) -> float:
    """-log of sum over z_1 ... z_T of prod_t A_t(z_{t-1}, z_t) p(y_t | z_t), z_t among the positions summed over."""
    decoded, memory = model(SOURCE, LENGTHS, TARGET[:, :-1])
    attention: Any = decoder_of(model).attention
    nll = 0.0
    for b, steps in enumerate(STEPS):
        length = int(LENGTHS[b])
        rows = array(memory.values[b, :length])
        tables = [moves(attention, array(seen.queries[t][b, 0]), rows) for t in range(steps)]
        chances = [
            [read_words(model, decoded, memory, (b, t), z)[int(TARGET[b, t + 1])] for z in range(length)]
            for t in range(steps)
        ]
        among = [
            range(length) if m.positions is None else [z for z in m.positions[b, 0].tolist() if z < length]
            for m in seen.mixtures[:steps]
        ]
        total = 0.0
        for alignment in itertools.product(*among):
            joint, before = 1.0, 0
            for t, z in enumerate(alignment):
                joint *= tables[t][before, z] * chances[t][z]
                before = z
            total += joint
        nll -= math.log(total)
    return nll


@torch.no_grad()
@each_wiring
@each_kind
def test_the_recursion_is_the_sum_over_all_alignments(kind: str, wiring: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """4^3 and 3^2 of them, or those that never go back."""
    model = build({"kind": "hmm", **KINDS[kind]}, **WIRINGS[wiring])
    seen = watched(model, monkeypatch)
    expected = enumerated(model, seen)
    assert float(seen.sums.nll) == pytest.approx(expected, abs=1e-9)
    assert float(seen.sums.loss) == pytest.approx(expected, abs=1e-9)
    in_evaluation = TrainingStep(model, ObjectiveSettings(label_smoothing=0.0))(SOURCE, LENGTHS, TARGET)
    assert float(in_evaluation.nll) == pytest.approx(expected, abs=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@each_kind
def test_with_k_the_sum_is_over_alignments_through_the_likeliest(
    kind: str, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without input feeding, so that all k have the same states: a bound that rises with k to the whole."""
    options = {"kind": "hmm", **KINDS[kind]}
    model = build({**options, "k": k}, **WIRINGS["luong"])
    seen = watched(model, monkeypatch)
    model.train()  # so that the readouts that are enumerated have what training leaves
    assert float(seen.sums.nll) == pytest.approx(enumerated(model, seen), abs=1e-9)
    whole = float(train(build(options, **WIRINGS["luong"])).nll)
    assert float(seen.sums.nll) > whole + 1e-6 if k < 3 else float(seen.sums.nll) >= whole - 1e-12
    if k == 4:
        assert float(seen.sums.nll) == pytest.approx(whole, abs=1e-12)


@torch.no_grad()
@each_wiring
def test_without_a_preference_for_jumps_it_is_latent_attention(wiring: str) -> None:
    """A_t(i, j) is the same for all i then, and the sum over alignments falls apart into one for each word."""
    model, other = (build({"kind": kind}, **WIRINGS[wiring]) for kind in ("hmm", "latent"))
    attention: Any = decoder_of(model).attention
    for parameter in attention.jumps.parameters():
        parameter.zero_()
    own = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        if name in own:
            own[name].copy_(parameter)
    assert float(train(model).nll) == pytest.approx(float(train(other).nll), abs=1e-9)


@each_wiring
def test_the_gradient_is_that_of_the_sum(wiring: str) -> None:
    """By central differences: through the recursion, that is through every likelihood of the words before."""
    model = build({"kind": "hmm", "reach": 1}, **WIRINGS[wiring])
    attention: Any = decoder_of(model).attention
    bias = attention.jumps.query.bias
    (gradient,) = torch.autograd.grad(train(model).loss, bias)
    with torch.no_grad():
        for place in range(len(bias)):
            values = []
            for move in (1e-5, -2e-5):
                bias[place] += move
                values.append(float(train(model).loss))
            bias[place] += 1e-5
            assert float(gradient[place]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-8)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_nothing_overflows_where_words_are_impossible() -> None:
    """Log-likelihoods of -10,000 but for one position: all mass goes there, and gradients are finite."""
    attention = HMMSettings(kind="hmm", monotone=True, reach=2).build(3, 2)
    memory = attention.prepare(memory_of(random(1, 5, 2).float(), (4,)))
    told = torch.tensor([-1e4, -1e4, -3.0, -1e4, -1e4], requires_grad=True)
    attended, state = attention(random(1, 1, 3).float(), memory, attention.start(memory))
    _, state = attention.listen(lambda context: told.view(1, 1, 5), memory, state)
    torch.testing.assert_close(state.exp()[0, 0], torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]))
    attended, state = attention(random(1, 1, 3).float(), memory, state)
    assert (attended.weights[0, 0, :2] == 0).all() and attended.weights[0, 0, 4] == 0
    torch.testing.assert_close(attended.weights.sum(), torch.tensor(1.0))
    (attended.context.sum() + attended.mixture.log_weights[0, 0, 2:4].sum()).backward()
    assert told.grad is not None and told.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in attention.parameters())


@torch.no_grad()
def test_under_bf16_the_recursion_stays_float32() -> None:
    attention = HMMSettings(kind="hmm").build(3, 2)
    lengths = torch.tensor([4, 2])
    memory = Memory(random(2, 4, 2).bfloat16(), torch.arange(4) < lengths.unsqueeze(1), lengths)
    with torch.autocast("cpu", torch.bfloat16):
        memory = attention.prepare(memory)
        attended, state = attention(random(2, 1, 3).float(), memory, attention.start(memory))
    assert attended.context.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert attended.weights is not None and attended.weights.dtype == torch.float32
    torch.testing.assert_close(attended.weights.sum(-1), torch.ones(2, 1))
