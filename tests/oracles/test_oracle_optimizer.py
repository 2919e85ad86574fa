"""Oracles of the schedules (O-T5 and hand-worked values) and of one step of the optimizers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from s2s.products import cast_once
from s2s.training.optimizer import AnyOptimizer, AnySchedule, Optimizer, Schedule, moments, restore


def factor(update: int, last: int = 1000, reductions: int = 0, **options: Any) -> float:
    """The factor that a schedule gives."""
    schedule: Schedule = TypeAdapter(AnySchedule).validate_python(options)
    return schedule.factor(update, last, reductions)


def rule(**options: Any) -> Optimizer:
    """An optimizer by its settings."""
    settings: Optimizer = TypeAdapter(AnyOptimizer).validate_python(options)
    return settings


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update, expected", [(1, 1.74693e-7), (4000, 6.98771e-4), (8000, 4.94106e-4)])
def test_ot5_noam(update: int, expected: float) -> None:
    assert factor(update, kind="noam", size=512, warmup=4000) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("update, expected", [(1000, 2.5e-3), (2000, 5e-3), (8000, 2.5e-3)])
def test_ot5_inverse_sqrt(update: int, expected: float) -> None:
    """Linear from zero; the program whose value at 1000 is 2.50005e-3 starts from 1e-7 instead."""
    assert 0.005 * factor(update, kind="inverse_sqrt", warmup=2000) == pytest.approx(expected, rel=1e-12)


HAND_WORKED: list[tuple[dict[str, Any], dict[int, float]]] = [
    ({"kind": "constant"}, {1: 1.0, 1000: 1.0}),
    ({"kind": "constant", "warmup": 10}, {1: 0.1, 5: 0.5, 10: 1.0, 1000: 1.0}),
    # half a cosine over the 800 updates after the warm-up: 1/3, 1/2, 2/3 and all of the way
    ({"kind": "cosine", "warmup": 200}, {50: 0.25, 200: 1.0, 600: 0.5, 1000: 0.0, 1200: 0.0}),
    ({"kind": "cosine"}, {250: (1 + math.sqrt(0.5)) / 2, 500: 0.5, 750: (1 - math.sqrt(0.5)) / 2}),
    ({"kind": "cosine", "final": 0.2}, {500: 0.6, 1000: 0.2}),
    ({"kind": "exponential", "every": 100}, {1: 1.0, 99: 1.0, 100: 0.5, 199: 0.5, 200: 0.25, 1000: 1 / 1024}),
    ({"kind": "exponential", "decay": 0.9, "every": 10, "after": 50}, {50: 1.0, 59: 1.0, 60: 0.9, 70: 0.81}),
    ({"kind": "exponential", "every": 4, "warmup": 8}, {2: 0.25, 4: 0.25, 8: 0.25, 12: 0.125}),
    # halvings 5 times over updates 501 to 1000: after 600, 700, ... 1000
    ({"kind": "luong"}, {1: 1.0, 599: 1.0, 600: 0.5, 699: 0.5, 700: 0.25, 999: 1 / 16, 1000: 1 / 32}),
    # TensorFlow NMT's luong234: after 2/3, 4 times
    ({"kind": "luong", "after": 0.6, "times": 4}, {600: 1.0, 699: 1.0, 700: 0.5, 800: 0.25, 1000: 1 / 16}),
]


@pytest.mark.parametrize("options, values", HAND_WORKED)
def test_schedules_by_hand(options: dict[str, Any], values: dict[int, float]) -> None:
    for update, expected in values.items():
        assert factor(update, **options) == pytest.approx(expected, abs=1e-12), update


@pytest.mark.parametrize("last", [7, 10, 18, 103, 1009])
@pytest.mark.parametrize("times", [1, 4, 5])
def test_luong_halves_as_often_as_it_says(last: int, times: int) -> None:
    """Also where the updates cannot be cut evenly, and not at all before its share has passed."""
    values = [factor(update, last, kind="luong", after=0.5, times=times) for update in range(1, last + 1)]
    assert set(values[: last // 2]) == {1.0}
    assert min(values) >= 0.5**times
    if last - last // 2 >= times:
        assert values[-1] == 0.5**times


@pytest.mark.parametrize("reductions, expected", [(0, 1.0), (1, 0.7), (3, 0.343)])
def test_plateau_is_a_function_of_its_reductions(reductions: int, expected: float) -> None:
    assert factor(500, reductions=reductions, kind="plateau", decay=0.7) == pytest.approx(expected)
    assert factor(5, reductions=reductions, kind="plateau", decay=0.7, warmup=10) == pytest.approx(expected / 2)


@pytest.mark.parametrize("kind", ["constant", "noam", "inverse_sqrt", "cosine", "exponential", "plateau", "luong"])
def test_schedules_never_rise_after_their_warmup(kind: str) -> None:
    values = [factor(update, last=100, kind=kind, warmup=20) for update in range(1, 101)]
    assert all(value >= 0 for value in values) and values[18] > values[0]
    assert all(later <= earlier + 1e-15 for earlier, later in itertools.pairwise(values[19:]))


# --- one step ---------------------------------------------------------------------------------------------------------


def stepped(options: dict[str, Any], weights: list[float], gradients: list[float]) -> float:
    """Where a 1 x 1 matrix that begins at ``weights[0]`` stands after these gradients."""
    layer = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.fill_(weights[0])
    optimizer = rule(**options).build(layer)
    for gradient in gradients:
        layer.weight.grad = torch.full((1, 1), gradient, dtype=torch.float64)
        optimizer.step()
    return float(layer.weight.detach())


def test_the_first_step_of_adam_is_the_learning_rate() -> None:
    """m / (1 - b1) = g and v / (1 - b2) = g^2, so the step is lr g / (|g| + eps)."""
    for gradient in (0.5, -3.0, 1e-3):
        expected = 1.0 - 0.1 * gradient / (abs(gradient) + 1e-8)
        assert stepped({"kind": "adam", "lr": 0.1}, [1.0], [gradient]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind, decay", [("adam", 0.0), ("adam", 0.1), ("adamw", 0.0), ("adamw", 0.1)])
def test_two_steps_of_adam_by_hand(kind: str, decay: float) -> None:
    """Adam adds decay x weight to the gradient, AdamW takes lr x decay x weight off besides."""
    weight, mean, square = 1.0, 0.0, 0.0
    for step, gradient in enumerate((0.5, -0.2), start=1):
        if kind == "adam":
            gradient += decay * weight
        else:
            weight -= 0.1 * decay * weight
        mean, square = 0.8 * mean + 0.2 * gradient, 0.98 * square + 0.02 * gradient**2
        weight -= 0.1 * (mean / (1 - 0.8**step)) / (math.sqrt(square / (1 - 0.98**step)) + 1e-6)
    options = {"kind": kind, "lr": 0.1, "beta1": 0.8, "beta2": 0.98, "eps": 1e-6, "weight_decay": decay}
    assert stepped(options, [1.0], [0.5, -0.2]) == pytest.approx(weight, abs=1e-12)


def test_two_steps_of_sgd_by_hand() -> None:
    """velocity 0.5, then 0.9 x 0.5 - 0.2 = 0.25; lr 0.1."""
    options = {"kind": "sgd", "lr": 0.1, "momentum": 0.9}
    assert stepped(options, [1.0], [0.5, -0.2]) == pytest.approx(1.0 - 0.1 * 0.5 - 0.1 * 0.25, abs=1e-12)


def test_momentum_of_a_part_that_gets_its_first_gradient_later() -> None:
    """As a document's attention does where the first batches have first sentences only."""
    early, late = nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 1, bias=False).double()
    optimizer = rule(kind="sgd", lr=0.1, momentum=0.9).build(nn.ModuleList([early, late]))
    velocities, weights = [0.0, 0.0], [float(part.weight.detach()) for part in (early, late)]
    for gradients in ([0.5, None], [-0.2, 0.3], [0.1, None], [0.4, -0.6]):
        for place, (part, gradient) in enumerate(zip((early, late), gradients, strict=True)):
            part.weight.grad = None if gradient is None else torch.full((1, 1), gradient, dtype=torch.float64)
            if gradient is not None:
                velocities[place] = 0.9 * velocities[place] + gradient
                weights[place] -= 0.1 * velocities[place]
        optimizer.step()
        assert [float(part.weight.detach()) for part in (early, late)] == pytest.approx(weights, abs=1e-12)


def test_a_first_step_that_the_scaler_skips_leaves_no_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    """What memory held before must not be taken for it."""
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **_: torch.full_like(tensor, 7.0))
    layer = nn.Linear(3, 2)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    optimizer = rule(kind="sgd", lr=0.1, momentum=0.9).build(layer)
    for infinite in (1.0, 0.0):
        optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.tensor(infinite)  # type: ignore[attr-defined]
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, torch.inf if infinite else 0.0)
        optimizer.step()
        assert all(map(torch.equal, before, layer.parameters()))


def test_nesterov_takes_the_gradient_where_momentum_leads() -> None:
    """Sutskever et al. 2013, equations 3 and 4, on (w - 3)^2; ours holds the point that the gradient is taken at."""

    def slope(at: float) -> float:
        return 2 * (at - 3)

    layer = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.fill_(1.0)
    optimizer = rule(kind="sgd", lr=0.1, momentum=0.9, nesterov=True).build(layer)
    weight, velocity = 1.0, 0.0
    for _ in range(5):
        velocity = 0.9 * velocity - 0.1 * slope(weight + 0.9 * velocity)
        weight += velocity
        layer.weight.grad = torch.full((1, 1), slope(float(layer.weight.detach())), dtype=torch.float64)
        optimizer.step()
        assert float(layer.weight.detach()) == pytest.approx(weight + 0.9 * velocity, abs=1e-12)


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValidationError, match="set momentum"):
        rule(kind="sgd", nesterov=True)


def test_two_steps_of_adadelta_by_hand() -> None:
    """Zeiler 2012, algorithm 1: dx = -RMS(dx) / RMS(g) g, with running means of both squares."""
    weight, of_gradient, of_step = 1.0, 0.0, 0.0
    for gradient in (0.5, -0.2):
        of_gradient = 0.95 * of_gradient + 0.05 * gradient**2
        step = math.sqrt(of_step + 1e-6) / math.sqrt(of_gradient + 1e-6) * gradient
        of_step = 0.95 * of_step + 0.05 * step**2
        weight -= step
    assert stepped({"kind": "adadelta"}, [1.0], [0.5, -0.2]) == pytest.approx(weight, abs=1e-12)


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd", "adadelta"])
def test_matrices_decay_and_the_rest_does_not(kind: str) -> None:
    model = nn.ModuleDict({"map": nn.Linear(3, 2), "norm": nn.LayerNorm(2), "table": nn.Embedding(4, 3)})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    optimizer = rule(kind=kind, lr=0.1, weight_decay=0.5).build(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        shrunk = bool((parameter < 1).all())
        assert shrunk == (name in ("map.weight", "table.weight")), name
        assert shrunk or (parameter == 1).all(), name
    if kind in ("sgd", "adamw"):
        torch.testing.assert_close(model.get_parameter("map.weight").detach(), torch.full((2, 3), 0.95))


def test_frozen_parameters_are_left_alone() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    groups = rule(kind="adam").build(model).param_groups
    assert [len(group["params"]) for group in groups] == [1] and groups[0]["params"][0] is model.weight


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd", "adadelta"])
def test_moments_put_back_continue_the_same(kind: str) -> None:
    def trained(steps: int, tensors: dict[str, torch.Tensor] | None, weight: torch.Tensor | None) -> Any:
        layer = nn.Linear(2, 2).double()
        with torch.no_grad():
            layer.weight.copy_(torch.ones(2, 2) if weight is None else weight)
            layer.bias.zero_()
        optimizer = rule(kind=kind, lr=0.1, **({"momentum": 0.9} if kind == "sgd" else {})).build(layer)
        if tensors is not None:
            restore(optimizer, layer, tensors)
        for _ in range(steps):
            for parameter in layer.parameters():
                parameter.grad = torch.arange(parameter.numel()).double().view(parameter.shape) / 7 - 0.2
            layer.bias.grad = torch.zeros(2).double()
            optimizer.step()
        return layer.weight.detach().clone(), {name: one.clone() for name, one in moments(optimizer, layer).items()}

    whole, _ = trained(5, None, None)
    half, kept = trained(2, None, None)
    assert {name.rpartition("/")[2] for name in kept} == {"weight", "bias"}
    found, _ = trained(3, kept, half)
    assert torch.equal(found, whole)


@pytest.mark.parametrize(("kind", "counter"), [("adam", "meta"), ("adamw", "meta"), ("adadelta", "cpu")])
def test_moments_go_where_their_parameters_are(kind: str, counter: str) -> None:
    """A checkpoint is read into the memory of the machine, and the model may be on a GPU: here, on another device.

    A fused step counts its updates where it computes, another one on the CPU.
    """
    layer = nn.Linear(3, 2)
    optimizer = rule(kind=kind).build(layer)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    kept = {name: one.clone() for name, one in moments(optimizer, layer).items()}
    layer.to("meta")  # gives it other parameters
    optimizer.state.clear()
    optimizer.param_groups[0]["params"], optimizer.param_groups[1]["params"] = [layer.weight], [layer.bias]
    restore(optimizer, layer, kept)
    found = moments(optimizer, layer)
    assert found.keys() == kept.keys()
    for name, one in found.items():
        assert (one.device.type, one.dtype) == (counter if name.startswith("step/") else "meta", torch.float32), name
        assert one.shape == kept[name].shape


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": -1.0}, {"lr": math.inf}, {"beta1": 1.0}, {"clip": 0.0}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        rule(kind="adam", **wrong)


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd", "adadelta"])
def test_a_step_tells_those_who_keep_what_they_made_of_a_parameter(kind: str) -> None:
    """A fused step of torch's changes it in silence: a search in bf16 would go on with the weights of the first one."""
    layer = nn.Linear(3, 2)
    optimizer = rule(kind=kind, lr=0.5).build(layer)
    with torch.no_grad():
        before = cast_once(layer.weight, torch.bfloat16).clone()
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        after = cast_once(layer.weight, torch.bfloat16)
    assert torch.equal(after, layer.weight.bfloat16()) and not torch.equal(after, before)
