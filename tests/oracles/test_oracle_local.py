"""Oracles of local attention: local-m (O-LM1 to O-LM4) and local-p (O-LP1 to O-LP5)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import Given, attend, double, memory_of, random, redrawn, weights_of
from formulas import Array, array, sigma, softmax
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from s2s.attention.global_ import Global
from s2s.attention.local import LocalMonotonic, LocalPredictive, Predicted
from s2s.attention.normalise import Normaliser
from s2s.attention.scores import Dot, General, Location
from s2s.config import AnyAttention
from s2s.interfaces import Attention, Memory
from s2s.tree import Tree, take

LENGTHS = (6, 4, 1)
NORMALISERS: list[Normaliser] = ["softmax", "sparsemax", "entmax15"]
each_normaliser = pytest.mark.parametrize("normaliser", NORMALISERS)
each_gauss = pytest.mark.parametrize("gauss", ["post", "pre", "renorm", "off"])
each_formula = pytest.mark.parametrize("formula", ["paper", "code"])


def sentences(lengths: tuple[int, ...] = LENGTHS, size: int = 3, padding: int = 0) -> Memory:
    """Random rows, zero behind each sentence and in ``padding`` more columns; someone wants the trace."""
    values = torch.nn.functional.pad(random(len(lengths), max(lengths), size, seed=1), (0, 0, 0, padding))
    return memory_of(values, lengths, frozenset({"trace"}))


def build(size: int = 5, memory: int = 3, **options: Any) -> Attention:
    """A kind by its settings, in float64 and redrawn."""
    settings: Any = TypeAdapter(AnyAttention).validate_python(options)
    built: Attention = settings.build(size, memory)
    return redrawn(built, 0.8)


def positions(centre: int, window: int, length: int) -> list[int]:
    """The window, counted from 1."""
    return [s for s in range(1, length + 1) if centre - window <= s <= centre + window]


def aligned(scores: Array, window: list[int]) -> Array:
    """Softmax over the positions of the window, zero elsewhere."""
    found = np.zeros(len(scores))
    found[np.array(window) - 1] = softmax(scores[np.array(window) - 1])
    return found


# --- local-m ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@each_normaliser
def test_olm1_a_window_as_wide_as_the_source_is_global(normaliser: Normaliser) -> None:
    score, query = General(5, 3, scaled=False).double(), random(3, 8, 5)
    expected = attend(Global(score, normaliser, 3), query, sentences())
    found = attend(LocalMonotonic(score, normaliser, 3, window=6), query, sentences())
    torch.testing.assert_close(weights_of(found), weights_of(expected), rtol=0, atol=1e-15)
    torch.testing.assert_close(found.context, expected.context, rtol=0, atol=1e-14)


@torch.no_grad()
@pytest.mark.parametrize("window", [0, 1, 2, 5])
def test_olm2_the_weights_are_a_softmax_inside_the_window(window: int) -> None:
    score, query, memory = General(5, 3, scaled=False).double(), random(3, 9, 5), sentences()
    found = attend(LocalMonotonic(score, "softmax", 3, window), query, memory)
    scores = array(score(query, score.keys(memory.values)))
    for b, length in enumerate(LENGTHS):
        for t in range(9):
            inside = positions(min(t + 1, length), window, length)
            expected = aligned(scores[b, t, :length], inside)
            weights = array(weights_of(found)[b, t])
            np.testing.assert_allclose(weights[:length], expected, rtol=0, atol=1e-12)
            assert {s + 1 for s in np.flatnonzero(weights)} == set(inside)
            assert weights.sum() == pytest.approx(1.0, abs=1e-12)
            context = sum(expected[s] * array(memory.values[b, s]) for s in range(length))
            np.testing.assert_allclose(array(found.context[b, t]), context, rtol=0, atol=1e-12)


@torch.no_grad()
@each_normaliser
def test_olm2_other_normalisers_see_the_window_alone(normaliser: Normaliser) -> None:
    """What stands outside the window could as well not be there."""
    memory, query = sentences((6,)), random(1, 4, 5)
    attention = LocalMonotonic(General(5, 3, scaled=False).double(), normaliser, 3, window=1)
    found = weights_of(attend(attention, query, memory))
    for t in range(4):
        first, last = max(0, t - 1), t + 2
        alone = Memory(memory.values[:, first:last], memory.mask[:, first:last], torch.tensor([last - first]))
        expected = weights_of(attend(Global(attention.score, normaliser, 3), query[:, t : t + 1], alone))
        torch.testing.assert_close(found[:, t : t + 1, first:last], expected)
        assert found[0, t].sum() == pytest.approx(1.0)
        assert not found[0, t, :first].any() and not found[0, t, last:].any()


@torch.no_grad()
@each_normaliser
def test_olm3_a_window_of_one_is_a_copy_of_its_position(normaliser: Normaliser) -> None:
    memory = sentences()
    for seed in range(2):  # whatever the scores are
        query = 50 * random(3, 9, 5, seed=seed)
        found = attend(LocalMonotonic(General(5, 3, scaled=False).double(), normaliser, 3, 0), query, memory)
        for b, length in enumerate(LENGTHS):
            for t in range(9):
                place = min(t + 1, length) - 1
                assert weights_of(found)[b, t].tolist() == [float(s == place) for s in range(6)]
                assert torch.equal(found.context[b, t], memory.values[b, place])


@torch.no_grad()
def test_olm4_past_the_end_the_last_window_is_read() -> None:
    query, window = random(3, 1, 5).expand(-1, 12, -1), 2
    attended = attend(LocalMonotonic(General(5, 3, scaled=False).double(), "softmax", 3, window), query, sentences())
    found = weights_of(attended)
    for b, length in enumerate(LENGTHS):
        for t in range(length, 12):
            torch.testing.assert_close(found[b, t], found[b, length - 1], rtol=0, atol=0)
            expected = [length - window <= s + 1 <= length for s in range(6)]
            assert [value > 0 for value in found[b, t].tolist()] == expected
        assert attended.trace["centre"][b].tolist() == [min(t + 1, length) for t in range(12)]


# --- local-p ----------------------------------------------------------------------------------------------------------

SCORES = [0.1, 0.4, -0.2, 0.3, 0.0, 0.5]
ALIGN = [0.191684, 0.258746, 0.142003, 0.234123, 0.173443, 0.0]
GAUSS = [0.071005, 0.429557, 0.955997, 0.782705, 0.235746, 0.0]
POST = [0.013611, 0.111146, 0.135755, 0.183250, 0.040888, 0.0]


def predicting(share: float, formula: Any = "paper") -> Predicted:
    """Predicts this share of the sentence when it is asked with ``ASKING``."""
    predicted = Predicted(1, formula).double()
    with torch.no_grad():
        predicted.hidden.weight.fill_(1.0)
        predicted.vector.fill_(math.log(share / (1 - share)))
    return predicted


ASKING = torch.full((1, 1, 1), 100.0, dtype=torch.float64)  # tanh of it is 1


@torch.no_grad()
def fixture(gauss: Any, window: int = 2) -> list[float]:
    """The weights of a sentence of six whose predicted position is 3.3."""
    attention = LocalPredictive(Given(double(*SCORES)), "softmax", 3, window, predicting(3.3 / 6), gauss)
    found = attend(attention, ASKING, sentences((6,)))
    assert float(found.trace["centre"]) == pytest.approx(3.3)
    weights: list[float] = weights_of(found)[0, 0].tolist()
    expected = sum(weight * array(sentences((6,)).values[0, s]) for s, weight in enumerate(weights))
    np.testing.assert_allclose(array(found.context[0, 0]), expected, rtol=0, atol=1e-12)
    return weights


def test_olp1_fixture() -> None:
    found = fixture("post")
    assert found == pytest.approx(POST, abs=1e-6) and found[5] == 0
    assert sum(found) == pytest.approx(0.484650, abs=1e-6)
    assert found == pytest.approx([a * g for a, g in zip(ALIGN, GAUSS, strict=True)], abs=1e-6)


def test_olp1_the_other_places_of_the_gaussian() -> None:
    assert fixture("off") == pytest.approx(ALIGN, abs=1e-6)
    assert fixture("renorm") == pytest.approx([value / 0.484650 for value in POST], abs=1e-5)
    before = [math.exp(score * factor) for score, factor in zip(SCORES[:5], GAUSS[:5], strict=True)]
    assert fixture("pre") == pytest.approx([value / sum(before) for value in before] + [0.0], abs=1e-6)
    for gauss in ("off", "renorm", "pre"):
        assert sum(fixture(gauss)) == pytest.approx(1.0)


def by_hand(scores: Array, position: float, window: int, gauss: str) -> Array:
    """The weights of one sentence (S,) by the definition."""
    length = len(scores)
    centre = min(max(math.floor(position), 1), length)
    inside = positions(centre, window, length)
    bell = np.array([math.exp(-((s - position) ** 2) / (2 * (window / 2) ** 2)) for s in range(1, length + 1)])
    if gauss == "pre":
        return aligned(scores * bell, inside)
    found = aligned(scores, inside)
    if gauss != "off":
        found = found * bell
    return found / found.sum() if gauss == "renorm" else found


@torch.no_grad()
@each_gauss
@each_formula
@pytest.mark.parametrize("window", [1, 3])
def test_olp1_the_definition_in_loops(gauss: str, formula: str, window: int) -> None:
    attention = build(kind="local-p", gauss=gauss, position=formula, window=window)
    assert isinstance(attention, LocalPredictive)
    query, memory = 2 * random(3, 7, 5), sentences()
    found = attend(attention, query, memory)
    scores = array(attention.score(query, attention.score.keys(memory.values)))
    w, v = array(attention.predicted.hidden.weight), array(attention.predicted.vector)
    for b, length in enumerate(LENGTHS):
        for t in range(7):
            share = float(sigma(v @ np.tanh(w @ array(query[b, t]))))
            position = length * share if formula == "paper" else (length - 1) * share + 1
            assert float(found.trace["centre"][b, t]) == pytest.approx(position, abs=1e-12)
            expected = by_hand(scores[b, t, :length], position, window, gauss)
            np.testing.assert_allclose(array(weights_of(found)[b, t, :length]), expected, rtol=0, atol=1e-12)
            assert (weights_of(found)[b, t, length:] == 0).all()
            assert {s + 1 for s in np.flatnonzero(expected)} <= set(range(1, length + 1))


@torch.no_grad()
@each_formula
def test_olp2_the_sum_is_at_most_one(formula: str) -> None:
    attention = build(kind="local-p", position=formula, window=2)
    total = weights_of(attend(attention, random(3, 20, 5), sentences())).sum(-1)
    assert (total[:2] < 1).all() and (total[:2] > 0).all()
    if formula == "code":  # the only position of a sentence of one is where it is predicted
        assert (total[2] == 1).all()
    else:
        assert (total[2] < 1).all()


@torch.no_grad()
@pytest.mark.parametrize("formula, expected", [("paper", [3.0, 2.0, 0.5]), ("code", [3.5, 2.5, 1.0])])
def test_olp3_without_a_vector_the_middle_is_predicted(formula: str, expected: list[float]) -> None:
    attention = build(kind="local-p", position=formula)
    assert isinstance(attention, LocalPredictive)
    attention.predicted.vector.zero_()
    found = attend(attention, random(3, 4, 5), sentences()).trace["centre"]
    assert found.tolist() == [[middle] * 4 for middle in expected]


@each_gauss
def test_olp4_the_position_learns_through_the_gaussian_alone(gauss: str) -> None:
    attention = build(kind="local-p", gauss=gauss, window=2)
    assert isinstance(attention, LocalPredictive)
    query, memory, wanted = random(3, 4, 5), sentences(), random(3, 4, 3, seed=2)

    def value() -> tuple[Tensor, Tensor]:
        attended = attend(attention, query, memory)
        return (attended.context * wanted).sum(), attended.trace["centre"].floor()

    loss, before = value()
    torch.autograd.backward(loss)
    step = 1e-6
    for parameter in (attention.predicted.hidden.weight, attention.predicted.vector):
        differences = torch.zeros_like(parameter)
        with torch.no_grad():
            flat, into = parameter.view(-1), differences.view(-1)
            for index in range(flat.numel()):
                own = float(flat[index])
                results = []
                for changed in (own + step, own - step):
                    flat[index] = changed
                    result, floors = value()
                    assert torch.equal(floors, before), "no window may jump in between"
                    results.append(result)
                flat[index] = own
                into[index] = (results[0] - results[1]) / (2 * step)
        if gauss == "off":
            assert parameter.grad is None and not parameter.requires_grad and not differences.any()
        else:
            assert parameter.grad is not None and differences.abs().max() > 1e-3
            torch.testing.assert_close(parameter.grad, differences, rtol=1e-5, atol=1e-8)


@torch.no_grad()
@each_gauss
@each_normaliser
def test_olp5_a_window_without_end_is_global(gauss: str, normaliser: Normaliser) -> None:
    attention = build(kind="local-p", gauss=gauss, normaliser=normaliser, window=1_000_000)
    assert isinstance(attention, LocalPredictive)
    query = random(3, 5, 5)
    expected = weights_of(attend(Global(attention.score, normaliser, 3), query, sentences()))
    torch.testing.assert_close(weights_of(attend(attention, query, sentences())), expected, rtol=0, atol=1e-9)


# --- a window that changes --------------------------------------------------------------------------------------------

RAMP = {"start": 4, "end": 1, "updates": 6}
WIDTHS = {0: 4, 1: 4, 2: 3, 3: 3, 4: 2, 5: 2, 6: 1, 7: 1, 900: 1}
"""4 - 3 n / 6 at update n to the nearest whole number, halves up."""


@pytest.mark.parametrize("options", [{"kind": "local-m"}, *({"kind": "local-p", "gauss": g} for g in ("post", "pre"))])
def test_at_every_update_a_ramp_is_a_window_of_its_width(options: dict[str, Any]) -> None:
    """The same weights, context and gradients, in any order of the updates: a function of their number alone."""
    query = random(3, 8, 5)
    for update in (3, 0, 900, 2, 1, 7, 6, 5, 4):
        found, expected = build(**options, window=RAMP), build(**options, window=WIDTHS[update])
        found.set_update(update)
        expected.set_update(update)
        read = [attend(attention, query, sentences()) for attention in (found, expected)]
        assert torch.equal(weights_of(read[0]), weights_of(read[1])) and torch.equal(read[0].context, read[1].context)
        for attention, attended in zip((found, expected), read, strict=True):
            torch.autograd.backward(attended.context.square().sum())
            assert all(parameter.grad is not None for parameter in attention.parameters())
        for one, other in zip(found.parameters(), expected.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["local-m", "local-p"])
def test_the_window_goes_with_the_weights(kind: str) -> None:
    """A model that is loaded reads as it did when it was saved; a window of one width is not part of a checkpoint."""
    trained, loaded = build(kind=kind, window=RAMP), build(kind=kind, window=RAMP)
    trained.set_update(4)
    assert {name: int(value) for name, value in trained.named_buffers()} == {"window": 2}
    assert not any(value.is_floating_point() for value in trained.buffers())  # a mean of checkpoints keeps it whole
    loaded.load_state_dict(trained.state_dict())
    expected = weights_of(attend(build(kind=kind, window=2), random(3, 8, 5), sentences()))
    assert torch.equal(weights_of(attend(loaded, random(3, 8, 5), sentences())), expected)
    assert "window" not in build(kind=kind, window=2).state_dict()


# --- both -------------------------------------------------------------------------------------------------------------

KINDS: list[dict[str, Any]] = [
    {"kind": "local-m", "window": 1},
    {"kind": "local-m", "window": 1, "normaliser": "entmax15"},
    {"kind": "local-m", "window": 2, "filter": {"kind": "topk", "k": 2, "renormalise": False}},
    {"kind": "local-p", "window": 1},
    {"kind": "local-p", "window": 2, "gauss": "renorm", "position": "code"},
    {"kind": "local-p", "window": 2, "gauss": "pre", "filter": {"kind": "threshold", "theta": 0.2}},
    {"kind": "local-p", "window": RAMP},
]
each_kind = pytest.mark.parametrize("options", KINDS, ids=lambda options: "-".join(map(str, options.values())))


@torch.no_grad()
@each_kind
def test_any_split_of_the_target_gives_the_same(options: dict[str, Any]) -> None:
    attention, query = build(**options), random(3, 7, 5)
    memory = attention.prepare(sentences())
    expected, _ = attention(query, memory, attention.start(memory))
    for widths in ([1] * 7, [2, 5], [4, 1, 2]):
        state, shown, read = attention.start(memory), [], []
        for part in torch.split(query, widths, 1):
            found, state = attention(part, memory, state)
            shown.append(found.weights)
            read.append(found.context)
        torch.testing.assert_close(torch.cat(shown, 1), expected.weights, rtol=0, atol=1e-12)
        torch.testing.assert_close(torch.cat(read, 1), expected.context, rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_step_goes_with_its_row() -> None:
    """Rows that are one word further, as when a batch is put together of sentences at different places."""
    attention = build(kind="local-m", window=0)
    memory = attention.prepare(sentences((6, 6)))
    ahead: Tree = attention(random(2, 3, 5), memory, attention.start(memory))[1]
    assert ahead.tolist() == [3, 3]
    mixed = torch.stack([ahead[0], attention.start(memory)[1]])
    for rows, expected in (([0, 1], [3, 0]), ([1, 0, 0], [0, 3, 3])):
        chosen = torch.tensor(rows)
        found, _ = attention(random(len(rows), 1, 5), take(memory, chosen), take(mixed, chosen))
        assert weights_of(found).argmax(-1)[:, 0].tolist() == expected


@torch.no_grad()
@each_kind
def test_padding_changes_nothing(options: dict[str, Any]) -> None:
    attention, query = build(**options), random(3, 7, 5)
    expected = attend(attention, query, sentences())
    found = attend(attention, query, sentences(padding=4))
    torch.testing.assert_close(found.context, expected.context, rtol=0, atol=1e-12)
    torch.testing.assert_close(weights_of(found)[..., :6], weights_of(expected), rtol=0, atol=1e-12)
    assert (weights_of(found)[..., 6:] == 0).all()


@pytest.mark.parametrize("gauss", [None, "post", "pre", "renorm"])
@each_normaliser
def test_a_window_beyond_the_rows_of_location_reads_nothing(gauss: Any, normaliser: Normaliser) -> None:
    """No weight there, and no gradient that is not a number."""
    score = Location(5, 3).double()
    attention: Attention
    if gauss is None:
        attention = LocalMonotonic(score, normaliser, 3, window=1)
    else:
        attention = LocalPredictive(score, normaliser, 3, 1, Predicted(5, "paper").double(), gauss)
        with torch.no_grad():
            attention.predicted.vector.fill_(2.0)
            attention.predicted.hidden.weight.fill_(1.0)
    query = random(1, 6, 5).abs().requires_grad_()  # all of them predict the end
    found = attend(attention, query, sentences((6,)))
    if gauss is not None:
        assert (found.trace["centre"] > 5).any()
    total = weights_of(found).sum(-1)[0]
    assert total[-1] == 0 and (weights_of(found)[..., 3:] == 0).all()
    torch.autograd.backward(found.context.sum())
    for tensor in (query, *attention.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("gauss", ["post", "pre", "renorm"])
def test_positions_and_weights_are_float32_under_autocast(gauss: str) -> None:
    """In bfloat16 the positions past 256 of a long sentence would be whole numbers apart."""
    attention = build(kind="local-p", gauss=gauss).float()
    memory = sentences((300,))
    memory = memory._replace(values=memory.values.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(attention, random(1, 40, 5).float(), memory)
    assert weights_of(found).dtype == torch.float32 and found.trace["centre"].dtype == torch.float32
    exact = attend(attention, random(1, 40, 5).float(), memory).trace["centre"]
    assert (found.trace["centre"] - exact).abs().max() < 2.0
    assert (found.trace["centre"] != found.trace["centre"].to(torch.bfloat16)).any()


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "local-m", "window": -1},
        {"kind": "local-p", "window": 0},
        {"kind": "local-p", "window": 10**30},
        {"kind": "local-p", "window": 2.5},
        {"kind": "local-m", "window": {"start": 4, "end": -1, "updates": 6}},
        {"kind": "local-p", "window": {"start": 4, "end": 0, "updates": 6}},
        {"kind": "local-m", "window": {"start": 10**7, "end": 0, "updates": 6}},
        {"kind": "local-m", "window": {"start": 4, "end": 0, "updates": 0}},
        {"kind": "local-p", "gauss": "never"},
        {"kind": "local-m", "position": "code"},
    ],
)
def test_settings_without_a_meaning_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(AnyAttention).validate_python(options)


def test_a_ramp_survives_being_saved() -> None:
    settings: Any = TypeAdapter(AnyAttention).validate_python({"kind": "local-m", "window": RAMP})
    assert TypeAdapter(AnyAttention).validate_python(settings.model_dump(mode="json")) == settings


def test_the_trace_is_for_those_who_want_it() -> None:
    memory = sentences()._replace(want=frozenset())
    for kind in ("local-m", "local-p"):
        assert attend(build(kind=kind), random(3, 2, 5), memory).trace == {}
    assert isinstance(build(kind="local-m", score="dot", size=3), LocalMonotonic)
    assert isinstance(build(kind="local-p", score={"kind": "dot"}, size=3), LocalPredictive)
    assert not list(LocalMonotonic(Dot(3, 3, scaled=False), "softmax", 3, 10).parameters())
