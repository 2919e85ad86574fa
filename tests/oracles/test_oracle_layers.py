"""Oracles of the small parts: dropout by its statistics, and the weight whose gradient waits, beside autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from s2s.config import AnyDecoder, AnyEncoder
from s2s.interfaces import PAD
from s2s.models.layers import Dropout, StepWeight, dropout_mask, embedding, lengths_to_mask
from s2s.models.seq2seq import ModelSettings


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_dropout_drops_at_its_rate_and_scales_the_rest(rate: float) -> None:
    torch.manual_seed(0)
    mask = dropout_mask((1000, 999), rate, torch.zeros(1))
    kept = mask[mask != 0]
    assert (kept == kept[0]).all() and float(kept[0]) == pytest.approx(1 / (1 - rate), rel=1e-3)
    deviation = math.sqrt(rate * (1 - rate) / mask.numel())
    assert abs(float((mask == 0).double().mean()) - rate) < 4 * deviation + 1 / 65536
    assert abs(float(mask.double().mean()) - 1) < 5 * deviation / (1 - rate)


def test_the_entries_of_a_dropout_mask_are_independent() -> None:
    """Neighbours at any short distance, since masks are drawn several entries to a word."""
    torch.manual_seed(1)
    dropped = (dropout_mask((400_000,), 0.5, torch.zeros(1)) == 0).double() - 0.5
    for distance in range(1, 17):
        correlation = 4 * (dropped[:-distance] * dropped[distance:]).mean()
        assert abs(float(correlation)) < 4.5 / math.sqrt(400_000), distance


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 7), (0, 4)])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_a_dropout_mask_has_the_shape_and_type_asked_for(shape: tuple[int, ...], kind: torch.dtype) -> None:
    mask = dropout_mask(shape, 0.2, torch.zeros(1, dtype=kind))
    assert mask.shape == shape and mask.dtype == kind


def test_a_dropout_mask_is_a_function_of_the_seed() -> None:
    masks = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        masks.append(dropout_mask((9, 9), 0.5, torch.zeros(1)))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_dropout_is_the_identity_in_evaluation_and_at_rate_zero() -> None:
    x = random(3, 4)
    assert Dropout(0.5).eval()(x) is x and Dropout(0.0).train()(x) is x
    torch.manual_seed(0)
    dropped = Dropout(0.5).train()(x)
    assert ((dropped == 0) | torch.isclose(dropped, 2 * x)).all() and (dropped == 0).any() and (dropped != 0).any()


# --- embeddings -------------------------------------------------------------------------------------------------------


def test_embeddings_have_rows_of_length_one_and_none_for_padding() -> None:
    torch.manual_seed(0)
    table = embedding(5000, 64)
    assert (table.weight[PAD] == 0).all()
    assert float(table.weight.detach()[1:].square().sum(1).mean()) == pytest.approx(1.0, rel=0.02)
    table(torch.tensor([[PAD, 4]])).sum().backward()
    assert table.weight.grad is not None
    assert (table.weight.grad[PAD] == 0).all() and (table.weight.grad[4] == 1).all()


@pytest.mark.parametrize("uniform", [None, 0.1])
@pytest.mark.parametrize("tie", ["none", "output", "all"])
def test_first_weights_of_a_model(uniform: float | None, tie: str) -> None:
    """Matrices from U(-x, x) where asked for (Luong 2015: 0.1); biases and the rows of PAD are zero either way."""
    torch.manual_seed(0)
    reads = {"kind": "rnn", "size": 16, "cell": "gru"}
    writes = {**reads, "attention": {"kind": "global"}}
    page = {"embedding": 16, "tie": tie, "uniform_init": uniform, "encoder": reads, "decoder": writes}
    model = ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(40, 40)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert not parameter.any(), name
        elif uniform is not None:
            assert 0.08 < float(parameter.detach().abs().max()) <= uniform, name
    for module in model.modules():
        assert not isinstance(module, nn.Embedding) or not module.weight[PAD].any()


def test_lengths_become_a_mask() -> None:
    assert lengths_to_mask(torch.tensor([2, 0, 3]), 3).tolist() == [[True, True, False], [False] * 3, [True] * 3]


# --- the weight whose gradient waits ----------------------------------------------------------------------------------


def recur(weight: Tensor, x: Tensor, start: Tensor, step_weight: bool) -> Tensor:
    """h_t = tanh(W h_{t-1} + x_t), the sum of all of them squared; with a `StepWeight` or with plain products."""
    product = StepWeight(weight) if step_weight else lambda h: h @ weight.t()
    h, total = start, start.new_zeros(())
    for part in x.unbind(1):
        h = torch.tanh(product(h) + part)
        total = total + h.square().sum()
    return total


def operands() -> list[Tensor]:
    """Weight (3, 3), inputs (2, 4, 3) and first state (2, 3), all with gradients."""
    return [part.requires_grad_() for part in (random(3, 3), random(2, 4, 3, seed=1), random(2, 3, seed=2))]


def test_its_gradient_is_that_of_plain_products() -> None:
    weight, x, start = operands()
    found = torch.autograd.grad(recur(weight, x, start, True), [weight, x, start])
    expected = torch.autograd.grad(recur(weight, x, start, False), [weight, x, start])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_its_gradient_joins_that_of_other_uses() -> None:
    weight, x, start = operands()
    (found,) = torch.autograd.grad(recur(weight, x, start, True) + weight.square().sum(), [weight])
    (expected,) = torch.autograd.grad(recur(weight, x, start, False) + weight.square().sum(), [weight])
    torch.testing.assert_close(found, expected)


def test_its_gradient_through_a_slice_of_a_parameter() -> None:
    weight, x, start = operands()
    wide = torch.cat([weight.detach(), random(3, 2)], 1).requires_grad_()
    (found,) = torch.autograd.grad(recur(wide[:, :3], x, start, True), [wide])
    (expected,) = torch.autograd.grad(recur(weight, x, start, False), [weight])
    torch.testing.assert_close(found[:, :3], expected)
    assert (found[:, 3:] == 0).all()


def test_two_gradients_of_one_pass_are_the_same() -> None:
    """A graph that is kept may be asked again: for the terms of a loss one by one, or for diagnostics."""
    weight, x, start = operands()
    total = recur(weight, x, start, True)
    (first,) = torch.autograd.grad(total, [weight], retain_graph=True)
    (second,) = torch.autograd.grad(total, [weight])
    torch.testing.assert_close(second, first)


def test_a_gradient_that_leaves_the_weight_out_does_not_stay_behind() -> None:
    weight, x, start = operands()
    total = recur(weight, x, start, True)
    torch.autograd.grad(total, [x], retain_graph=True)
    (found,) = torch.autograd.grad(total, [weight])
    (expected,) = torch.autograd.grad(recur(weight, x, start, False), [weight])
    torch.testing.assert_close(found, expected)


def test_it_needs_no_gradient_to_multiply() -> None:
    weight, x, start = operands()
    with torch.no_grad():
        torch.testing.assert_close(recur(weight, x, start, True), recur(weight, x, start, False))
    frozen = weight.detach()
    (found,) = torch.autograd.grad(recur(frozen, x, start, True), [x])
    (expected,) = torch.autograd.grad(recur(frozen, x, start, False), [x])
    torch.testing.assert_close(found, expected)


def test_it_is_cast_once_under_autocast() -> None:
    weight, x = random(3, 3).float().requires_grad_(), random(2, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = StepWeight(weight)(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), x @ weight.detach().t(), rtol=0.02, atol=0.02)
    (gradient,) = torch.autograd.grad(y.float().sum(), [weight])
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, x.sum(0).expand(3, 3), rtol=0.02, atol=0.02)
