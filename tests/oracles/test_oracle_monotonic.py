"""Oracles of monotonic attention (O-R1 to O-R4) and MoChA (O-R5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fixtures import memory_of, random, redrawn
from formulas import Array, array, sigma, softmax
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from s2s.attention.monotonic import Monotonic, chunkwise, expected, scanned
from s2s.attention.scores import Additive
from s2s.config import AnyAttention
from s2s.interfaces import Attended, Memory
from s2s.tree import take


def energies_of(rows: list[list[float]]) -> Tensor:
    """Energies (1, T, S) that make these probabilities of stopping."""
    return torch.logit(torch.tensor([rows], dtype=torch.float64))


def at_first(batch: int, positions: int) -> Tensor:
    """alpha_0 = (1, 0, ..., 0)."""
    found = torch.zeros(batch, positions, dtype=torch.float64)
    found[:, 0] = 1.0
    return found


def recursion(p: Array, before: Array) -> Array:
    """alpha (T, S) of p (T, S): q_j = (1 - p_{j-1}) q_{j-1} + alpha_{i-1,j}, one position after the other."""
    rows = []
    for row in p:
        alpha, q = np.zeros(len(row)), 0.0
        for j in range(len(row)):
            q = (q * (1 - row[j - 1]) if j else 0.0) + before[j]
            alpha[j] = row[j] * q
        rows.append(alpha)
        before = alpha
    return np.stack(rows)


def closed_form(p: Array, before: Array) -> Array:
    """alpha_i = p_i cumprod(1 - p_i) cumsum(alpha_{i-1} / cumprod(1 - p_i)), the product without its own position."""
    rows = []
    for row in p:
        product = np.concatenate([[1.0], np.cumprod(1 - row)[:-1]])
        before = row * product * np.cumsum(before / product)
        rows.append(before)
    return np.stack(rows)


def scan(energies: Array) -> list[int | None]:
    """Where each step stops, as the paper's algorithm has it; None once the last word was passed."""
    place: int | None = 0
    stops: list[int | None] = []
    for row in energies:
        if place is not None:
            place = next((j for j in range(place, len(row)) if row[j] > 0), None)
        stops.append(place)
    return stops


def chunks(alpha: Array, u: Array, window: int) -> Array:
    """beta_j = sum_{k=j}^{j+w-1} alpha_k exp(u_j) / sum_{l=k-w+1}^{k} exp(u_l), written out."""
    beta = np.zeros(len(alpha))
    for j in range(len(alpha)):
        for k in range(j, min(j + window, len(alpha))):
            beta[j] += alpha[k] * np.exp(u[j]) / sum(np.exp(u[l]) for l in range(max(0, k - window + 1), k + 1))
    return beta


def mechanism(redraw: bool = True, **options: Any) -> Monotonic:
    """For queries of width 5 and memories of width 3, in float64, evaluating."""
    built: Monotonic = TypeAdapter(AnyAttention).validate_python({"kind": "monotonic", **options}).build(5, 3)
    return redrawn(built, 1.5) if redraw else built.double().eval()


QUERY, LENGTHS = random(3, 4, 5), (6, 4, 1)


def source(attention: Monotonic, extra: int = 0) -> Memory:
    """Three sentences, padded, with keys; padding is zero."""
    values = torch.cat([random(3, max(LENGTHS), 3, seed=1), torch.zeros(3, extra, 3, dtype=torch.float64)], 1)
    return attention.prepare(memory_of(values, LENGTHS))


def attend(attention: Monotonic, memory: Memory, query: Tensor = QUERY) -> tuple[Attended, Tensor]:
    """What is read, and its weights."""
    found, _ = attention(query, memory, attention.start(memory))
    assert isinstance(found, Attended) and found.weights is not None
    return found, found.weights


def energies_by_loops(attention: Monotonic, memory: Memory, row: int) -> Array:
    """g v / |v| . tanh(W s + V h + b) + r of the real positions of one sentence, (T, S)."""
    scorer = attention.energy
    assert scorer.source is not None and scorer.gain is not None and scorer.bias is not None
    v = array(scorer.vector)
    v = float(scorer.gain) * v / np.sqrt((v**2).sum())
    found = np.zeros((QUERY.size(1), LENGTHS[row]))
    for t, j in np.ndindex(*found.shape):
        inside = array(scorer.query.weight) @ array(QUERY[row, t]) + array(scorer.bias)
        found[t, j] = v @ np.tanh(inside + array(scorer.source.weight) @ array(memory.values[row, j]))
    return found + float(attention.offset)


# --- the recursion ----------------------------------------------------------------------------------------------------


def test_or1_fixture() -> None:
    found = expected(energies_of([[0.5, 0.5, 0.5], [0.2, 0.6, 0.9]]), at_first(1, 3))
    np.testing.assert_allclose(array(found[0]), [[0.5, 0.25, 0.125], [0.1, 0.39, 0.3465]], rtol=0, atol=1e-12)
    assert float(found[0, 0].sum()) == pytest.approx(0.875)


@pytest.mark.parametrize("positions", [1, 2, 3, 4, 5, 8, 9, 17])
def test_or2_the_recursion_is_its_closed_form(positions: int) -> None:
    energies = random(2, 5, positions)
    found = expected(energies, at_first(2, positions))
    for row in range(2):
        p, before = sigma(array(energies[row])), array(at_first(1, positions)[0])
        np.testing.assert_allclose(array(found[row]), recursion(p, before), atol=1e-14)
        np.testing.assert_allclose(array(found[row]), closed_form(p, before), atol=1e-12)


def test_or2_it_is_exact_where_stopping_is_nearly_certain() -> None:
    """There the closed form divides by the product of many tiny numbers."""
    energies = 60 * random(2, 6, 12)
    found = expected(energies, at_first(2, 12))
    for row in range(2):
        p = sigma(array(energies[row]))
        np.testing.assert_allclose(array(found[row]), recursion(p, array(at_first(1, 12)[0])), rtol=1e-9, atol=1e-15)


def test_or3_hard_mode_is_the_recursion_for_certain_stops() -> None:
    energies = torch.where(random(20, 4, 6) > 0.4, torch.inf, -torch.inf).double()
    hard = scanned(energies, at_first(20, 6))
    assert torch.equal(hard, expected(energies, at_first(20, 6)))
    for row in range(20):
        for t, stop in enumerate(scan(array(energies[row]))):
            assert hard[row, t].tolist() == [float(j == stop) for j in range(6)]


def test_or4_mass_and_order() -> None:
    energies = random(50, 6, 7)
    soft, hard = expected(energies, at_first(50, 7)), scanned(energies, at_first(50, 7))
    assert (soft >= 0).all() and (soft.sum(-1) <= 1 + 1e-12).all()
    assert (soft.sum(-1).diff(dim=1) <= 1e-12).all()  # what is past the last word does not come back
    assert set(hard.sum(-1).unique().tolist()) == {0.0, 1.0}
    for row in range(50):
        stops = scan(array(energies[row]))
        places = [j for j in stops if j is not None]
        assert places == sorted(places) and stops == places + [None] * (6 - len(places))
        assert [int(one.argmax()) if one.any() else None for one in hard[row]] == stops


def test_an_energy_of_zero_does_not_stop_the_scan() -> None:
    energies = torch.tensor([[[0.0, 1.0, 2.0]]], dtype=torch.float64)
    assert scanned(energies, at_first(1, 3)).tolist() == [[[0.0, 1.0, 0.0]]]


@pytest.mark.parametrize("positions", [1, 4])
def test_the_gradient_of_the_expectation_is_that_of_finite_differences(positions: int) -> None:
    energies = random(2, 3, positions).requires_grad_()
    before = random(2, positions, seed=1).abs().requires_grad_()
    assert torch.autograd.gradcheck(expected, (energies, before))


def test_padding_has_no_gradient_that_is_not_a_number() -> None:
    energies = random(1, 3, 4).requires_grad_()
    behind = torch.tensor([False, False, True, True])
    found = expected(energies.masked_fill(behind, -torch.inf), at_first(1, 4))
    assert (found[..., 2:] == 0).all()
    (gradient,) = torch.autograd.grad((found * random(4, seed=2)).sum(), energies)
    assert gradient.isfinite().all() and gradient[..., :2].all() and not gradient[..., 2:].any()


# --- the mechanism ----------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("evaluate", ["hard", "expected"])
def test_the_mechanism_is_the_formula(evaluate: str) -> None:
    attention = mechanism(evaluate=evaluate)
    attention.offset.fill_(-0.1)
    memory = source(attention)
    found, weights = attend(attention, memory)
    stopped = 0
    for row, length in enumerate(LENGTHS):
        energies = energies_by_loops(attention, memory, row)
        if evaluate == "hard":
            stops = scan(energies)
            stopped += sum(stop is not None for stop in stops)
            alphas = np.array([[float(j == stop) for j in range(length)] for stop in stops])
        else:
            alphas = recursion(sigma(energies), np.eye(length)[0])
        np.testing.assert_allclose(array(weights[row, :, :length]), alphas, atol=1e-12)
        assert (weights[row, :, length:] == 0).all()
        for t, alpha in enumerate(alphas):
            context = sum((alpha[j] * array(memory.values[row, j]) for j in range(length)), np.zeros(3))
            np.testing.assert_allclose(array(found.context[row, t]), context, atol=1e-12)
    assert evaluate == "expected" or 0 < stopped < 12  # both of what may happen did


@torch.no_grad()
def test_it_starts_as_the_paper_says() -> None:
    attention = mechanism(redraw=False, size=16)
    assert float(attention.offset) == -4.0
    assert attention.energy.gain is not None and attention.energy.bias is not None
    assert float(attention.energy.gain) == pytest.approx(0.25) and not attention.energy.bias.any()
    memory = source(attention)
    assert torch.equal(attention.start(memory), at_first(3, 6))


@torch.no_grad()
def test_noise_is_added_to_the_energies_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = mechanism(evaluate="expected", noise=0.7)
    memory = source(attention)
    quiet = attend(attention, memory)[1]
    assert torch.equal(quiet, attend(attention, memory)[1])
    attention.train()
    torch.manual_seed(1)
    one, other = attend(attention, memory)[1], attend(attention, memory)[1]
    assert not torch.allclose(one, other) and not torch.allclose(one, quiet)
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)  # one standard deviation on every energy
    raised = attend(attention, memory)[1]
    attention.eval().offset.add_(0.7)
    torch.testing.assert_close(raised, attend(attention, memory)[1])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["monotonic", "mocha"])
def test_without_noise_training_takes_the_expectation_and_evaluation_the_scan(kind: str) -> None:
    attention = mechanism(kind=kind, noise=0.0)
    attention.offset.fill_(-0.1)
    memory = source(attention)
    scanning = attend(attention, memory)[1]
    hoping = mechanism(kind=kind, noise=0.0, evaluate="expected")
    hoping.load_state_dict(attention.state_dict())
    assert not torch.allclose(attend(hoping, memory)[1], scanning)
    torch.testing.assert_close(attend(attention.train(), memory)[1], attend(hoping, memory)[1])


@torch.no_grad()
@pytest.mark.parametrize("evaluate", ["hard", "expected"])
@pytest.mark.parametrize("kind", ["monotonic", "mocha"])
def test_splits_padding_and_reordering(kind: str, evaluate: str) -> None:
    """What the laws say, of the expectation too."""
    attention = mechanism(kind=kind, evaluate=evaluate)
    attention.offset.fill_(0.1)
    memory = source(attention)
    whole, weights = attend(attention, memory)
    wider, rows = source(attention, extra=3), torch.tensor([2, 0, 0, 1])
    found, shown = attend(attention, wider)
    torch.testing.assert_close(found.context, whole.context)
    torch.testing.assert_close(shown[..., :6], weights)
    assert not shown[..., 6:].any()
    first, state = attention(QUERY[:, :1], memory, attention.start(memory))
    torch.testing.assert_close(first.weights, weights[:, :1])
    rest, _ = attention(QUERY[rows, 1:], take(memory, rows), take(state, rows))
    torch.testing.assert_close(rest.weights, weights[rows, 1:])
    torch.testing.assert_close(rest.context, whole.context[rows, 1:])


@pytest.mark.parametrize("kind", ["monotonic", "mocha"])
def test_every_parameter_learns(kind: str) -> None:
    attention = mechanism(kind=kind, evaluate="expected")
    found, _ = attend(attention, source(attention))
    (found.context * random(*found.context.shape, seed=5)).sum().backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None and parameter.grad.any() and parameter.grad.isfinite().all(), name


@torch.no_grad()
@pytest.mark.parametrize("kind", ["monotonic", "mocha"])
def test_under_bf16_what_adds_up_stays_float32(kind: str) -> None:
    attention = mechanism(kind=kind, evaluate="expected").float()
    memory = source(mechanism())
    memory = memory._replace(values=memory.values.float())
    exact = attend(attention, attention.prepare(memory), QUERY.float())[1]
    with torch.autocast("cpu", torch.bfloat16):
        kept = attention.prepare(memory)
        found, state = attention(QUERY.float(), kept, attention.start(kept))
    assert found.weights.dtype == state.dtype == torch.float32
    torch.testing.assert_close(found.weights, exact, rtol=0.05, atol=0.02)


# --- MoChA ------------------------------------------------------------------------------------------------------------


def test_or5_fixture() -> None:
    alpha, u = (torch.tensor([[row]], dtype=torch.float64) for row in ([0.2, 0.5, 0.3], [0.0, 1.0, 2.0]))
    found = chunkwise(alpha, u, torch.ones(1, 3, dtype=torch.bool), 2)
    np.testing.assert_allclose(array(found[0, 0]), [0.334471, 0.446212, 0.219318], rtol=0, atol=1e-6)
    assert float(found.sum()) == pytest.approx(1.0)


def test_or5_a_chunk_of_one_word_changes_nothing() -> None:
    alphas, scores = random(2, 3, 5).abs(), random(2, 3, 5, seed=1)
    torch.testing.assert_close(chunkwise(alphas, scores, torch.ones(2, 5, dtype=torch.bool), 1), alphas)


@pytest.mark.parametrize("window", [2, 3, 6, 9])
def test_or5_chunks_are_the_formula_and_keep_the_mass(window: int) -> None:
    mask = torch.arange(6) < torch.tensor([[6], [4], [1]])
    alphas = random(3, 4, 6).abs() * mask.unsqueeze(1)
    scores = random(3, 4, 6, seed=1).masked_fill(~mask.unsqueeze(1), torch.nan)  # what stands in padding is not read
    found = chunkwise(alphas, scores, mask, window)
    torch.testing.assert_close(found.sum(-1), alphas.sum(-1))
    for row, length in enumerate((6, 4, 1)):
        assert not found[row, :, length:].any()
        for t in range(4):
            exact = chunks(array(alphas[row, t, :length]), array(scores[row, t, :length]), window)
            np.testing.assert_allclose(array(found[row, t, :length]), exact, atol=1e-12)


def test_the_gradient_of_chunks_is_that_of_finite_differences() -> None:
    mask = torch.arange(4) < torch.tensor([[4], [2]])
    alphas, scores = random(2, 2, 4).abs().requires_grad_(), random(2, 2, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, u: chunkwise(a * mask.unsqueeze(1), u, mask, 3), (alphas, scores))


@torch.no_grad()
def test_mocha_is_soft_within_the_chunk_of_each_stop() -> None:
    attention = mechanism(kind="mocha", window=2)
    attention.offset.fill_(0.0)
    scorer = attention.chunk
    assert isinstance(scorer, Additive) and scorer.source is not None and scorer.gain is None
    memory = source(attention)
    _, weights = attend(attention, memory)
    w, u, v = array(scorer.query.weight), array(scorer.source.weight), array(scorer.vector)
    for row, length in enumerate(LENGTHS):
        for t, stop in enumerate(scan(energies_by_loops(attention, memory, row))):
            expected_row = np.zeros(6)
            if stop is not None:
                places = [j for j in (stop - 1, stop) if 0 <= j < length]
                of_chunk = [v @ np.tanh(w @ array(QUERY[row, t]) + u @ array(memory.values[row, j])) for j in places]
                expected_row[places] = softmax(np.array(of_chunk))
            np.testing.assert_allclose(array(weights[row, t]), expected_row, atol=1e-12)


def test_a_chunk_has_at_least_two_words() -> None:
    """With one the second score could not learn."""
    with pytest.raises(ValidationError):
        mechanism(kind="mocha", window=1)
