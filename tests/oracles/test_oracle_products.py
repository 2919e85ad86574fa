"""Products with a matrix that many steps share: values and gradients beside those of plain products, by autograd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fixtures import random
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from s2s import products
from s2s.products import by_rows, joined_once, linear, of_rows, share, share_all
from s2s.training.objective import smoothed_loss
from s2s.training.optimizer import Adam

Matrix = Callable[[Tensor], Tensor]
"""`share`, or nothing."""


def plain(matrix: Tensor) -> Tensor:
    return matrix


def recur(matrix: Tensor, x: Tensor, start: Tensor, given: Matrix) -> Tensor:
    """h_t = tanh(W h_{t-1} + x_t), the sum of all of them squared."""
    matrix, h, total = given(matrix), start, start.new_zeros(())
    for part in x.unbind(-2):
        h = torch.tanh(by_rows(h, matrix) + part)
        total = total + h.square().sum()
    return total


def attend(matrix: Tensor, x: Tensor, start: Tensor, given: Matrix) -> Tensor:
    """h_t = softmax(K h_{t-1}) K + x_t, keys and values in one: both products with the rows of one matrix."""
    matrix, h, total = given(matrix), start.unsqueeze(-2), start.new_zeros(())
    for part in x.unbind(-2):
        h = of_rows(by_rows(h, matrix).softmax(-1), matrix) + part.unsqueeze(-2)
        total = total + h.square().sum()
    return total


def operands(batched: bool) -> list[Tensor]:
    """Matrix (3, 3) or (2, 3, 3), inputs (2, 4, 3) and first state (2, 3), all with gradients."""
    matrix = random(2, 3, 3) if batched else random(3, 3)
    return [part.requires_grad_() for part in (matrix, random(2, 4, 3, seed=1), random(2, 3, seed=2))]


Total = Callable[[Tensor, Tensor, Tensor, Matrix], Tensor]
CASES = pytest.mark.parametrize("total, batched", [(recur, False), (attend, True)])


@CASES
def test_gradients_are_those_of_plain_products(total: Total, batched: bool) -> None:
    leaves = operands(batched)
    found = torch.autograd.grad(total(*leaves, share), leaves)
    expected = torch.autograd.grad(total(*leaves, plain), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@CASES
def test_they_agree_with_finite_differences(total: Total, batched: bool) -> None:
    leaves = operands(batched)
    assert torch.autograd.gradcheck(lambda *inputs: total(*inputs, share), leaves)


@CASES
def test_the_gradient_joins_that_of_other_uses(total: Total, batched: bool) -> None:
    leaves = operands(batched)

    def both(given: Matrix) -> Tensor:
        shared = given(leaves[0])
        return total(shared, *leaves[1:], plain) + shared.square().sum()

    (found,) = torch.autograd.grad(both(share), leaves[:1])
    (expected,) = torch.autograd.grad(both(plain), leaves[:1])
    torch.testing.assert_close(found, expected)


def test_the_gradient_through_a_slice_of_a_parameter() -> None:
    weight, x, start = operands(False)
    wide = torch.cat([weight.detach(), random(3, 2)], 1).requires_grad_()
    (found,) = torch.autograd.grad(recur(wide[:, :3], x, start, share), [wide])
    (expected,) = torch.autograd.grad(recur(weight, x, start, plain), [weight])
    torch.testing.assert_close(found[:, :3], expected)
    assert (found[:, 3:] == 0).all()


@CASES
def test_two_gradients_of_one_graph_are_the_same(total: Total, batched: bool) -> None:
    """A graph that is kept may be asked again: for the terms of a loss one by one, or for diagnostics."""
    leaves = operands(batched)
    value = total(*leaves, share)
    (first,) = torch.autograd.grad(value, leaves[:1], retain_graph=True)
    (second,) = torch.autograd.grad(value, leaves[:1])
    torch.testing.assert_close(second, first)


@CASES
def test_a_gradient_that_leaves_the_matrix_out_does_not_stay_behind(total: Total, batched: bool) -> None:
    leaves = operands(batched)
    value = total(*leaves, share)
    torch.autograd.grad(value, leaves[1:2], retain_graph=True)
    (found,) = torch.autograd.grad(value, leaves[:1])
    (expected,) = torch.autograd.grad(total(*leaves, plain), leaves[:1])
    torch.testing.assert_close(found, expected)


@CASES
def test_nothing_waits_where_no_gradient_is_wanted(total: Total, batched: bool) -> None:
    matrix, x, start = operands(batched)
    with torch.no_grad():
        torch.testing.assert_close(total(matrix, x, start, share), total(matrix, x, start, plain))
    frozen = matrix.detach()
    (found,) = torch.autograd.grad(total(frozen, x, start, share), [x])
    (expected,) = torch.autograd.grad(total(frozen, x, start, plain), [x])
    torch.testing.assert_close(found, expected)


def test_the_matrix_is_cast_once_under_autocast() -> None:
    weight, x = random(3, 3).float().requires_grad_(), random(2, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = by_rows(x, share(weight))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), x @ weight.detach().t(), rtol=0.02, atol=0.02)
    (gradient,) = torch.autograd.grad(y.float().sum(), [weight])
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, x.sum(0).expand(3, 3), rtol=0.02, atol=0.02)


def test_a_tree_is_shared_leaf_by_leaf() -> None:
    values, lengths = random(2, 3, 4).requires_grad_(), torch.tensor([3, 2])
    shared, same, nothing = share_all((values, lengths, None))
    assert same is lengths and nothing is None
    (found,) = torch.autograd.grad(of_rows(random(2, 1, 3, seed=1), shared).sum(), [values])
    torch.testing.assert_close(found, random(2, 1, 3, seed=1).mT.expand(2, 3, 4))


class _Rows(TorchDispatchMode):
    """Notes how many rows every product of matrices has, forward and backward, and over how many it sums."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if operation in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.seen.append(tuple(arguments[-2].shape))
        return operation(*arguments, **(named or {}))


@pytest.mark.parametrize("rows", [1023, 1024, 1100, 2047])
def test_many_rows_are_rounded_up_and_change_nothing(rows: int) -> None:
    """Under bf16 on a CPU; values and gradients are those of torch's own product, to its rounding."""
    generator = torch.Generator().manual_seed(rows)
    ours = [torch.randn(*shape, generator=generator, requires_grad=True) for shape in ((1, rows, 24), (40, 24), (40,))]
    theirs = [part.detach().clone().requires_grad_(True) for part in ours]
    by_product = torch.randn(1, rows, 40, generator=generator).bfloat16()
    with torch.autocast("cpu", torch.bfloat16), _Rows() as counted:
        found = linear(*ours)
        found.backward(by_product)
    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.nn.functional.linear(*theirs)
        expected.backward(by_product)
    assert torch.equal(found, expected)
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=2e-2, atol=2e-2)
    if rows >= 1024:
        assert {size for shape in counted.seen for size in shape} <= {24, 40, 1024, 1152, 2048}


def test_rows_of_zeros_are_no_words() -> None:
    """The loss over 1,100 words in bf16 is that of plain arithmetic over the same numbers, and so are its gradients."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(1100, 8, generator=generator).bfloat16().requires_grad_(True)
    weight = (0.5 * torch.randn(50, 8, generator=generator)).bfloat16().float().requires_grad_(True)
    bias = torch.randn(50, generator=generator, requires_grad=True)
    target = torch.randint(50, (1100,), generator=generator)
    loss, nll = smoothed_loss(features, weight, bias, target, 0.1)
    loss.backward()
    wide = [part.detach().double().requires_grad_(True) for part in (features, weight, bias)]
    log_chances = (wide[0] @ wide[1].t() + wide[2]).log_softmax(1)
    of_gold = -log_chances.gather(1, target.unsqueeze(1)).sum()
    expected = 0.9 * of_gold - 0.1 * log_chances.mean(1).sum()
    expected.backward()
    assert nll.item() == pytest.approx(of_gold.item(), rel=1e-3)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    for own, other in zip((features, weight, bias), wide, strict=True):
        assert own.grad is not None and other.grad is not None
        torch.testing.assert_close(own.grad.double(), other.grad, rtol=2e-2, atol=2e-2 * other.grad.abs().max().item())


@pytest.mark.parametrize("count", [827, 843, 854, 1012])
def test_a_mean_over_words_is_not_rounded_with_the_features(count: int) -> None:
    """1 / count has more digits than bf16: rounded, it would be the same error in every number of the gradient."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(count, 64, generator=generator).bfloat16().requires_grad_(True)
    weight, bias = torch.randn(50, 64, generator=generator), torch.zeros(50)
    loss, _ = smoothed_loss(features, weight, bias, torch.randint(50, (count,), generator=generator), 0.1)
    (whole,) = torch.autograd.grad(loss, [features], retain_graph=True)
    (mean,) = torch.autograd.grad(loss / count, [features])
    whole, mean = whole.double(), mean.double()
    assert ((mean * whole).sum() / (whole * whole).sum()).item() == pytest.approx(1 / count, rel=1e-3)


@pytest.mark.parametrize(("rows", "multiplied"), [(15, 15), (17, 32), (32, 32), (95, 96)])
def test_few_rows_are_rounded_up_in_search(rows: int, multiplied: int) -> None:
    """A step of search in bf16 multiplies 32 rows at a time; a step of training as many as there are."""
    x, matrix = torch.randn(rows, 24).bfloat16(), torch.randn(40, 24).bfloat16()
    for learns, expected in ((False, multiplied), (True, rows)):
        with torch.set_grad_enabled(learns), _Rows() as counted:
            for product in (by_rows(x, matrix), linear(x, matrix)):
                assert torch.equal(product, x @ matrix.t())
        assert {shape[0] for shape in counted.seen} == {expected} | ({rows} if not learns else set())


class _Calls(TorchDispatchMode):
    """Counts calls by the name of the operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Counter[str]()

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.seen[operation.__name__.partition(".")[0]] += 1
        return operation(*arguments, **(named or {}))


packed = pytest.mark.skipif(not products._CAN_PACK, reason="no bf16 here, or another torch")


@packed
def test_search_lays_a_parameter_out_once() -> None:
    """Every product after the first finds it; values are those of torch's own product in bf16."""
    layer = products.Linear(24, 40)
    x = torch.randn(3, 5, 24)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with _Calls() as calls:
            found = [layer(x), layer(x[:1]), by_rows(x[0], share(layer.weight))]
        expected = torch.nn.functional.linear(x.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16())
    assert calls.seen["_reorder_linear_weight"] == 1 and calls.seen["_linear_pointwise"] == 3
    for one, other in zip(found, (expected, expected[:1], expected[0] - layer.bias), strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=2e-2, atol=2e-2)


@packed
@pytest.mark.parametrize("change", ["in place", "optimizer", "other storage"])
def test_what_is_kept_does_not_outlive_a_change(change: str) -> None:
    layer, x = products.Linear(24, 40), torch.randn(5, 24)
    other = torch.nn.Parameter(torch.randn(2, 24))
    layer.register_parameter("other", other)

    def all_of_it() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            joined = joined_once([layer.weight, other])
            return torch.cat([layer(x), linear(x, joined)], 1).float()

    all_of_it()
    if change == "in place":
        with torch.no_grad():
            layer.weight.mul_(3)
            other.sub_(1)
    elif change == "optimizer":
        torch.nn.functional.linear(x, torch.cat([layer.weight, other])).sum().backward()
        Adam(kind="adam", lr=0.5).build(layer).step()
    else:
        layer.weight.data, other.data = torch.randn(40, 24), torch.randn(2, 24)
    weight = torch.cat([layer.weight, other]).detach()
    expected = torch.cat([x @ layer.weight.detach().t() + layer.bias.detach(), x @ weight.t()], 1)
    torch.testing.assert_close(all_of_it(), expected, rtol=3e-2, atol=6e-2)


def test_joined_parameters_learn() -> None:
    """And what is kept for search has no part in it."""
    parts = [torch.nn.Parameter(random(rows, 3).float()) for rows in (2, 4)]
    with torch.no_grad():
        kept = joined_once(parts)
        assert joined_once(parts) is kept
    joined = joined_once(parts)
    assert joined is not kept and torch.equal(joined, kept)
    joined.sum().backward()
    assert all(part.grad is not None and torch.equal(part.grad, torch.ones_like(part)) for part in parts)


@packed
def test_neither_many_rows_nor_what_learns_is_laid_out() -> None:
    layer = products.Linear(8, 8)
    with torch.autocast("cpu", torch.bfloat16), _Calls() as calls:
        layer(torch.randn(5, 8)).sum().backward()
        with torch.no_grad():
            layer(torch.randn(1024, 8))
            linear(torch.randn(5, 8), layer.weight.detach().clone())
    assert not calls.seen["_linear_pointwise"]
