"""Oracles of coverage (O-C1 to O-C4), and of the other score that looks back: location-aware attention."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import numpy as np
import pytest
import torch
from fixtures import memory_of, random, redrawn
from formulas import Array, array, sigma, softmax
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from s2s.attention.coverage import REFUSED, Coverage
from s2s.attention.global_ import Global
from s2s.attention.location_aware import LocationAware
from s2s.attention.records import Fertility, Neural, Sum
from s2s.attention.scores import Additive
from s2s.config import AnyAttention, AnyDecoder, AnyEncoder
from s2s.interfaces import Attended, Attention, Gold, Memory, Totals
from s2s.models.rnn_decoder import RNNDecoder
from s2s.models.seq2seq import ModelSettings
from s2s.tree import Tree, leaves, take

H, M = 5, 3
LENGTHS = (6, 4, 1)


QUERY = random(3, 4, H)


def built(redraw: bool = True, **options: Any) -> Attention:
    """A mechanism by its settings, in float64, evaluating."""
    attention: Attention = TypeAdapter(AnyAttention).validate_python(options).build(H, M)
    return redrawn(attention, 1.0) if redraw else attention.double().eval()


def coverage(redraw: bool = True, weight: float = 1.0, record: Any = "sum", **score: Any) -> Coverage:
    """Coverage round global attention with an additive score."""
    inner = {"kind": "global", "score": {"kind": "additive", **score}}
    attention = built(redraw, kind="coverage", inner=inner, weight=weight, record=record)
    assert isinstance(attention, Coverage)
    return attention


def source(attention: Attention, extra: int = 0) -> Memory:
    """Three sentences, padded, with keys; padding is zero."""
    values = torch.cat([random(3, max(LENGTHS), M, seed=1), torch.zeros(3, extra, M, dtype=torch.float64)], 1)
    return attention.prepare(memory_of(values, LENGTHS))


def attend(attention: Attention, memory: Memory, query: Tensor = QUERY) -> tuple[Attended, Tensor, Tree]:
    """What is read, its weights, and the state after it."""
    found, state = attention(query, memory, attention.start(memory))
    assert isinstance(found, Attended) and found.weights is not None
    return found, found.weights, state


def nobody(context: Tensor | None = None) -> Tensor:
    """A ``gold`` that is not to be asked."""
    raise AssertionError("coverage asks for no likelihood")


def penalty(attention: Coverage, found: Attended, memory: Memory) -> Tensor:
    """The loss of coverage (B, T)."""
    return attention.penalties(found, memory, nobody)["coverage"]


def lost(weights: Array) -> Array:
    """sum_j min(a_tj, cov_tj) of weights (T, S), step by step."""
    covered, losses = np.zeros(weights.shape[1]), []
    for row in weights:
        losses.append(sum(min(a, c) for a, c in zip(row, covered, strict=True)))
        covered = covered + row
    return np.array(losses)


class Scripted(Attention):
    """Weights as they are written down, whatever is asked."""

    context_size = M

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = torch.tensor(rows, dtype=torch.float64)
        self.heard: list[Any] = []

    def prepare(self, memory: Memory) -> Memory:
        return memory._replace(keys=torch.zeros(*memory.mask.shape, 2, dtype=torch.float64))

    def start(self, memory: Memory) -> Tensor:
        return torch.zeros(memory.mask.size(0), dtype=torch.int64)

    def forward(self, query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        weights = self.rows[state].unsqueeze(1)  # (B, 1, S)
        return Attended(weights @ memory.values, weights, trace={"own": weights}), state + 1

    def penalties(self, attended: Attended, memory: Memory, gold: Gold) -> dict[str, Tensor]:
        return {"own": attended.trace["own"].sum(-1)}

    def statistics(self, attended: Attended, memory: Memory, gold: Gold) -> Totals:
        return {"own": (attended.trace["own"].sum(), torch.tensor(1))}

    def after_update(self, totals: Any) -> None:
        self.heard.append(totals)

    def set_update(self, update: int) -> None:
        self.heard.append(update)


# --- coverage ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_oc1_nothing_is_covered_at_first_and_the_loss_is_bounded() -> None:
    attention = coverage()
    memory = source(attention)
    covered = attention.start(memory).covered
    assert covered.shape == memory.mask.shape and not covered.any()
    loss = penalty(attention, attend(attention, memory)[0], memory)
    assert loss.shape == (3, 4) and not loss[:, 0].any()
    assert (loss >= 0).all() and (loss <= 1 + 1e-12).all() and (loss[:, 1:] > 0).all()


@torch.no_grad()
def test_oc2_fixture() -> None:
    attention = Coverage(Scripted([[0.7, 0.3], [0.6, 0.4]]), Sum(), 2, 1.0).double()
    memory = attention.prepare(Memory(random(1, 2, M), torch.ones(1, 2, dtype=torch.bool), torch.tensor([2])))
    found, _, (covered, *_) = attend(attention, memory, random(1, 2, H))
    np.testing.assert_allclose(array(penalty(attention, found, memory)), [[0.0, 0.9]], atol=1e-12)
    np.testing.assert_allclose(array(covered), [[1.3, 0.7]], atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("normed", [False, True])
def test_oc3_without_its_vector_it_is_the_additive_score(normed: bool) -> None:
    attention = coverage(normed=normed)
    assert isinstance(attention.inner, Global)
    memory = source(attention)
    different = attend(attention, memory)[1]
    attention.vector.zero_()
    found, weights, _ = attend(attention, memory)
    plain, expected, _ = attend(attention.inner, source(attention.inner))
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(found.context, plain.context)
    torch.testing.assert_close(different[:, :1], expected[:, :1])  # nothing was covered yet
    assert not torch.allclose(different[:, 1:], expected[:, 1:])
    assert not coverage(redraw=False).vector.any()  # and so it begins


@torch.no_grad()
def test_oc4_what_is_covered_adds_up_to_the_steps() -> None:
    attention = coverage()
    memory = source(attention)
    state: Tree = attention.start(memory)
    for step in range(4):
        torch.testing.assert_close(state[0].sum(-1), torch.full((3,), float(step), dtype=torch.float64))
        assert not state[0][~memory.mask].any()
        _, state = attention(QUERY[:, step : step + 1], memory, state)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"size": 7}, {"normed": True}, {"identity_source": True}], ids=str)
def test_the_mechanism_is_the_formula(options: dict[str, Any]) -> None:
    """e_j = v . tanh(W s + U h_j + w cov_j (+ b)), softmax, and sum_j min(a_j, cov_j), in loops."""
    attention = coverage(weight=0.3, **options)
    scorer: Any = attention.inner.score
    memory = source(attention)
    found, weights, (covered, *_) = attend(attention, memory)
    w_c, w, v = array(attention.vector), array(scorer.query.weight), array(scorer.vector)
    u = np.eye(M) if scorer.source is None else array(scorer.source.weight)
    bias = np.zeros(len(v)) if scorer.bias is None else array(scorer.bias)
    v = v if scorer.gain is None else float(scorer.gain) * v / np.sqrt((v**2).sum())
    for row, length in enumerate(LENGTHS):
        seen, exact = np.zeros(length), np.zeros((4, length))
        for t in range(4):
            scores = np.zeros(length)
            for j in range(length):
                inside = w @ array(QUERY[row, t]) + u @ array(memory.values[row, j]) + w_c * seen[j] + bias
                scores[j] = v @ np.tanh(inside)
            exact[t] = softmax(scores)
            seen = seen + exact[t]
        np.testing.assert_allclose(array(weights[row, :, :length]), exact, atol=1e-12)
        np.testing.assert_allclose(array(penalty(attention, found, memory)[row]), 0.3 * lost(exact), atol=1e-12)
        np.testing.assert_allclose(array(covered[row, :length]), seen, atol=1e-12)
        assert not weights[row, :, length:].any()


@torch.no_grad()
@pytest.mark.parametrize(
    "record", ["fertility", {"kind": "fertility", "most": 5.0}, "neural", {"kind": "neural", "size": 2}]
)
def test_records_are_the_formulas_of_their_paper(record: Any) -> None:
    """e_j = v . tanh(W s + U h_j + V C_j): C_j = cov_j / (N sigma(u . h_j)), or a GRU of its own for every position."""
    attention = coverage(weight=0.3, record=record)
    scorer: Any = attention.inner.score
    own: Any = attention.record
    memory = source(attention)
    found, weights, _ = attend(attention, memory)
    big_v, w, u, v = map(
        array, (attention.vector.view(own.width, -1), scorer.query.weight, scorer.source.weight, scorer.vector)
    )
    for row, length in enumerate(LENGTHS):
        rows = array(memory.values[row, :length])
        seen, units, exact = np.zeros(length), np.zeros((length, own.width)), np.zeros((4, length))
        for t in range(4):
            query, scores = array(QUERY[row, t]), np.zeros(length)
            for j, h in enumerate(rows):
                told = units[j]
                if isinstance(own, Fertility):
                    told = seen[j] / (own.most / (1 + np.exp(-array(own.project.weight) @ h)))
                scores[j] = v @ np.tanh(w @ query + u @ h + told @ big_v)
            exact[t] = softmax(scores)
            seen = seen + exact[t]
            for j, h in enumerate(rows):
                if isinstance(own, Neural):
                    d = own.width
                    x = array(own.weight.weight)[:, 0] * exact[t][j] + array(own.memory.weight) @ h
                    x = x + array(own.memory.bias) + array(own.query.weight) @ query
                    past = array(own.past.weight) @ units[j] + array(own.past.bias)
                    r, z = sigma(x[:d] + past[:d]), sigma(x[d : 2 * d] + past[d : 2 * d])
                    units[j] = (1 - z) * np.tanh(x[2 * d :] + r * past[2 * d :]) + z * units[j]
        np.testing.assert_allclose(array(weights[row, :, :length]), exact, atol=1e-12)
        np.testing.assert_allclose(array(penalty(attention, found, memory)[row]), 0.3 * lost(exact), atol=1e-12)
        assert not weights[row, :, length:].any()


@torch.no_grad()
def test_a_word_that_becomes_one_is_counted_as_it_is() -> None:
    """With u = 0, Phi is N / 2: for N = 2 the weights are those of the plain sum."""
    one, other = coverage(), coverage(record="fertility")
    assert isinstance(other.record, Fertility)
    for name, value in one.state_dict().items():
        other.state_dict()[name].copy_(value)
    different = attend(other, source(other))[1]
    other.record.project.weight.zero_()
    expected = attend(one, source(one))[1]
    torch.testing.assert_close(attend(other, source(other))[1], expected)
    assert not torch.allclose(different, expected)


@torch.no_grad()
def test_the_mechanism_inside_keeps_its_own_terms_and_is_told_everything() -> None:
    inner = Scripted([[0.7, 0.3], [0.6, 0.4]])
    inner.asks_gold = True
    attention = Coverage(inner, Sum(), 2, 0.5).double()
    memory = attention.prepare(Memory(random(1, 2, M), torch.ones(1, 2, dtype=torch.bool), torch.tensor([2])))
    found, _, _ = attend(attention, memory, random(1, 2, H))
    terms = attention.penalties(found, memory, nobody)
    assert {name: part.tolist() for name, part in terms.items()} == {
        "own": [[1.0, 1.0]],
        "coverage": [[0.0, pytest.approx(0.45)]],
    }
    assert attention.asks_gold and attention.context_size == M
    assert float(attention.statistics(found, memory, nobody)["own"][0]) == 2.0
    attention.set_update(3)
    attention.after_update({"own": (2.0, 1.0)})
    assert inner.heard == [3, {"own": (2.0, 1.0)}]


def test_every_parameter_learns_from_the_contexts_and_from_the_loss() -> None:
    for weight, record in itertools.product((0.0, 1.0), ("sum", "fertility", "neural")):
        attention = coverage(weight=weight, record=record)
        memory = source(attention)
        found, _, _ = attend(attention, memory)
        told = penalty(attention, found, memory).sum()
        loss = told if weight else told + (found.context * random(*found.context.shape, seed=5)).sum()
        gradients = torch.autograd.grad(loss, list(attention.parameters()))
        assert all(gradient.any() and gradient.isfinite().all() for gradient in gradients)


def scored_kinds() -> list[str]:
    """Every kind with a score that can be chosen, but those that are refused with a reason."""
    members = get_args(get_args(AnyAttention)[0])
    kinds = [(get_args(one.model_fields["kind"].annotation)[0], one) for one in members]
    return [kind for kind, one in kinds if "score" in one.model_fields and kind not in REFUSED]


BESIDES: dict[str, dict[str, Any]] = {"hard": {"estimator": {"kind": "enumerate"}}}
"""What a kind needs besides a score."""


@torch.no_grad()
@pytest.mark.parametrize("kind", scored_kinds())
def test_every_mechanism_with_an_additive_score_can_be_wrapped(kind: str) -> None:
    attention = built(kind="coverage", inner={"kind": kind, "score": "additive", **BESIDES.get(kind, {})})
    memory, rows = source(attention), torch.tensor([2, 0, 0, 1])
    whole, weights, _ = attend(attention, memory)
    first, state = attention(QUERY[:, :1], memory, attention.start(memory))
    assert all(leaf.size(0) == 3 for leaf in leaves(state))
    rest, _ = attention(QUERY[rows, 1:], take(memory, rows), take(state, rows))
    torch.testing.assert_close(first.weights, weights[:, :1])
    torch.testing.assert_close(rest.weights, weights[rows, 1:])
    torch.testing.assert_close(rest.context, whole.context[rows, 1:])
    np.testing.assert_allclose(array(whole.trace["again"][0]), lost(array(weights[0])), atol=1e-12)


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_makes_no_sense_inside_is_refused_with_the_reason(kind: str) -> None:
    with pytest.raises(ValidationError, match=REFUSED[kind]):
        built(kind="coverage", inner={"kind": kind})


@pytest.mark.parametrize(
    "inner",
    [
        {"kind": "global"},
        {"kind": "global", "score": "dot"},
        {"kind": "global", "score": {"kind": "location", "max_length": 9}},
        {"kind": "coverage", "inner": {"kind": "global", "score": "additive"}},
    ],
    ids=str,
)
def test_other_scores_and_coverage_itself_are_refused(inner: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="additive" if inner["kind"] == "global" else "coverage"):
        built(kind="coverage", inner=inner)


def test_the_settings_come_back_as_they_were() -> None:
    adapter = TypeAdapter[Any](AnyAttention)
    options = {"kind": "coverage", "inner": {"kind": "global", "score": "concat", "normaliser": "sparsemax"}}
    settings = adapter.validate_python(options)
    page = settings.model_dump(mode="json")
    assert page["inner"]["score"]["kind"] == "concat" and page["inner"]["normaliser"] == "sparsemax"
    assert adapter.validate_python(page) == settings


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sum", "fertility", "neural", "location-aware"])
def test_under_bf16_what_adds_up_stays_float32(kind: str) -> None:
    attention = (built(kind=kind) if kind == "location-aware" else coverage(record=kind)).float()
    memory = source(coverage())._replace(keys=None)
    memory = memory._replace(values=memory.values.float())
    exact = attend(attention, attention.prepare(memory), QUERY.float())[1]
    with torch.autocast("cpu", torch.bfloat16):
        kept = attention.prepare(memory)
        found, state = attention(QUERY.float(), kept, attention.start(kept))
        narrow = kept._replace(values=kept.values.bfloat16())
        attention(QUERY.float(), narrow, attention.start(narrow))
    assert found.weights.dtype == torch.float32 and all(leaf.dtype == torch.float32 for leaf in leaves(state))
    torch.testing.assert_close(found.weights, exact, rtol=0.05, atol=0.02)


def test_what_is_drawn_anew_leaves_coverage_as_it_begins() -> None:
    """`uniform_init` draws matrices; w stays zero, in whatever record."""
    for record in ("sum", "fertility", "neural"):
        attention = {"kind": "coverage", "record": record, "inner": {"kind": "global", "score": "additive"}}
        sides = {"encoder": {"kind": "rnn", "size": 8}, "decoder": {"kind": "rnn", "size": 8, "attention": attention}}
        page = {"embedding": 8, "uniform_init": 0.1, **sides}
        decoder = ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(9, 9).decoder
        assert isinstance(decoder, RNNDecoder)
        vector = decoder.attention.vector
        assert isinstance(vector, Tensor) and vector.dim() == 1 and not vector.any()


# --- location-aware ---------------------------------------------------------------------------------------------------


def location_aware(redraw: bool = True, **options: Any) -> LocationAware:
    """The mechanism by its settings."""
    attention = built(redraw, kind="location-aware", **options)
    assert isinstance(attention, LocationAware)
    return attention


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"filters": 2, "reach": 1, "size": 4, "sharpness": 2.5}], ids=str)
def test_location_aware_is_the_formula(options: dict[str, Any]) -> None:
    """f_j = sum_o F_o a_{j+o}, e_j = v . tanh(W s + U h_j + V f_j + b), a = softmax(sharpness e), in loops."""
    attention = location_aware(**options)
    reach, sharpness = options.get("reach", 3), options.get("sharpness", 1.0)
    scorer, memory = attention.score, source(attention)
    assert isinstance(scorer, Additive) and scorer.source is not None
    assert not attention.start(memory).any()
    found, weights, _ = attend(attention, memory)
    filters, of_filters = array(attention.filters.weight)[:, 0], array(attention.location.weight)
    w, u, v = array(scorer.query.weight), array(scorer.source.weight), array(scorer.vector)
    for row, length in enumerate(LENGTHS):
        past = np.zeros(length)
        for t in range(4):
            scores = np.zeros(length)
            for j in range(length):
                seen = np.zeros(len(filters))
                for shift in range(-reach, reach + 1):
                    if 0 <= j + shift < length:
                        seen += filters[:, shift + reach] * past[j + shift]
                inside = w @ array(QUERY[row, t]) + u @ array(memory.values[row, j])
                scores[j] = v @ np.tanh(inside + of_filters @ seen + array(attention.location.bias))
            past = softmax(sharpness * scores)
            np.testing.assert_allclose(array(weights[row, t, :length]), past, atol=1e-12)
            context = sum((past[j] * array(memory.values[row, j]) for j in range(length)), np.zeros(M))
            np.testing.assert_allclose(array(found.context[row, t]), context, atol=1e-12)
        assert not weights[row, :, length:].any()


@torch.no_grad()
def test_the_loss_may_come_late() -> None:
    """A ramp from 0 to 1 in two updates, after ten: the loss of the formula times 0, 1/2 and 1."""
    ramp = {"start": 0.0, "end": 1.0, "updates": 2, "after": 10}
    attention = built(kind="coverage", inner={"kind": "global", "score": "additive"}, weight=ramp)
    assert isinstance(attention, Coverage)
    memory = source(attention)
    found, weights, _ = attend(attention, memory)
    for update, share in ((10, 0.0), (11, 0.5), (12, 1.0), (500, 1.0)):
        attention.set_update(update)
        expected = np.stack([share * lost(array(rows)) for rows in weights])
        np.testing.assert_allclose(array(penalty(attention, found, memory)), expected, atol=1e-12)


def test_a_loss_below_zero_is_refused() -> None:
    for weight in (-0.1, {"start": 0.0, "end": -1.0, "updates": 2}):
        with pytest.raises(ValidationError, match="must not be below 0"):
            built(kind="coverage", inner={"kind": "global", "score": "additive"}, weight=weight)


@torch.no_grad()
def test_without_filters_location_aware_is_additive() -> None:
    attention = location_aware()
    attention.location.weight.zero_()
    attention.location.bias.zero_()
    memory = source(attention)
    expected = attend(Global(attention.score, "softmax", M), memory)[1]
    torch.testing.assert_close(attend(attention, memory)[1], expected)


@torch.no_grad()
def test_location_aware_splits_padding_and_reordering() -> None:
    attention = location_aware()
    memory, rows = source(attention), torch.tensor([2, 0, 0, 1])
    whole, weights, _ = attend(attention, memory)
    _, wider, _ = attend(attention, source(attention, extra=5))
    torch.testing.assert_close(wider[..., :6], weights)
    assert not wider[..., 6:].any()
    _, state = attention(QUERY[:, :2], memory, attention.start(memory))
    rest, _ = attention(QUERY[rows, 2:], take(memory, rows), take(state, rows))
    torch.testing.assert_close(rest.context, whole.context[rows, 2:])


@torch.no_grad()
def test_sharpness_sharpens_and_other_normalisers_give_zeros() -> None:
    mild, sharp = (location_aware(sharpness=value) for value in (1.0, 50.0))
    memory = source(mild)
    first, second = (attend(attention, memory)[1][:2, 0].amax(-1) for attention in (mild, sharp))
    assert (second > first).all() and (second > 0.9).all()
    weights = attend(location_aware(normaliser="sparsemax", sharpness=5.0), memory)[1]
    assert (weights[0] == 0).any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, dtype=torch.float64))


def test_every_parameter_of_location_aware_learns() -> None:
    attention = location_aware()
    found, _, _ = attend(attention, source(attention))
    (found.context * random(*found.context.shape, seed=5)).sum().backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None and parameter.grad.any() and parameter.grad.isfinite().all(), name
