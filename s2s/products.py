"""Products with matrices: those of many rows, and those with a matrix that many steps share.

**Many rows.** On a CPU the products of bf16 are compiled anew for every number of rows, which takes about as long as
the product itself, and every batch has another number of positions. `linear` and whatever else multiplies all positions
of a batch therefore has a multiple of 128 rows, the last of them zeros.

**A shared matrix.** Gradients wait, and become one product at the end. A recurrent decoder multiplies by the same
weights, the same keys and the same values at every step. Left alone, the backward pass forms one small gradient for
each step and adds them up, T times through the whole matrix. Here each use notes its two factors in a ledger, and the
gradient is formed once, from all of them.

**Search.** While nothing learns, a parameter is cast once, and in bf16 on a CPU laid out once in the order in which the
product wants it. Left alone, that is done in every product, and takes longer than to multiply a few rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s2s.tree import Tree, map_tree

_MARK, _CAST, _JOINED, _PACKED, _LASTS = (f"_s2s_{name}" for name in ("ledger", "cast", "joined", "packed", "lasts"))
_ROWS, _MANY = 128, 1024
_FEW_ROWS, _FEW = 32, 16


def missing_rows(count: int, like: Tensor) -> int:
    """How many rows of zeros a product of ``count`` rows, in the type and on the device of ``like``, is to have more.

    Zero where kernels are not compiled for a shape. In training few rows are those of a recurrent step, whose number
    stays through a batch and returns soon; in search it changes whenever a sentence leaves.
    """
    if like.device.type != "cpu" or like.dtype != torch.bfloat16:
        return 0
    if count >= _MANY:
        return -count % _ROWS
    return -count % _FEW_ROWS if count >= _FEW and not torch.is_grad_enabled() else 0


def more_rows(matrix: Tensor) -> Tensor:
    """(n, K) and `missing_rows` below it."""
    missing = missing_rows(len(matrix), matrix)
    return nn.functional.pad(matrix, (0, 0, 0, missing)) if missing else matrix


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) W^T + b with W (J, K): (..., J), in the type of autocast where it is on."""
    device, rows = x.device.type, math.prod(x.shape[:-1])
    if torch.is_autocast_enabled(device) and x.dtype == torch.float32:
        x = x.to(torch.get_autocast_dtype(device))
    if _packs(x, weight):
        return _packed_product(x.reshape(rows, -1), weight, bias).view(*x.shape[:-1], -1)
    if not missing_rows(rows, x):
        return nn.functional.linear(x, weight, bias)
    product = nn.functional.linear(more_rows(x.reshape(rows, -1)), weight, bias)
    return product[:rows].view(*x.shape[:-1], -1)


def _can_pack() -> bool:
    """Whether this torch has the two operations, which it does not promise to keep, and the machine multiplies bf16."""
    operations = torch.ops.mkldnn
    known = hasattr(operations, "_reorder_linear_weight") and hasattr(operations, "_linear_pointwise")
    return known and bool(operations._is_mkldnn_bf16_supported())


_CAN_PACK = torch.backends.mkldnn.is_available() and _can_pack()  # type: ignore[no-untyped-call]


def _packs(x: Tensor, matrix: Tensor) -> bool:
    """Whether the product of x with each row of the matrix is by a layout that is kept beside the matrix.

    Not for many rows: they take so long that nothing is gained, and validation would leave the layouts to training.
    """
    narrow = _CAN_PACK and x.device.type == "cpu" and x.dtype == torch.bfloat16
    return narrow and x.numel() < _MANY * x.size(-1) and matrix.dim() == 2 and _lasts(matrix)


def _packed_product(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (n, K) times each row of ``matrix`` (J, K), plus the bias, in bf16: (n, J)."""
    matrix = cast_once(matrix, x.dtype)
    packed = _kept(matrix, _PACKED, [matrix], lambda: torch.ops.mkldnn._reorder_linear_weight(matrix.detach(), None))
    bias = None if bias is None else cast_once(bias, x.dtype)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(more_rows(x), packed, bias, "none", [], "")
    return product[: len(x)]


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _Ledger:
    """Pairs of factors, in the backward pass that is running: the gradient is the sum of left^T right."""

    def __init__(self) -> None:
        self.left: list[Tensor] = []
        self.right: list[Tensor] = []
        self._pass: int | None = None

    def add(self, left: Tensor, right: Tensor) -> None:
        """Note (..., n, rows) and (..., n, columns); what an earlier pass over the same graph left is dropped."""
        now: int = torch._C._current_graph_task_id()
        if now != self._pass:
            self._pass, self.left, self.right = now, [], []
        self.left.append(left.detach())  # with its history the graph would hold itself, and never be freed
        self.right.append(right.detach())

    def close(self) -> Tensor | None:
        """The gradient (..., rows, columns) of what was noted in this pass, which is forgotten."""
        if self._pass != torch._C._current_graph_task_id() or not self.left:
            return None
        kind = self.left[0].dtype
        total = _joined(self.left).mT @ _joined([part.to(kind) for part in self.right])
        self.left, self.right = [], []
        return total


def _joined(parts: list[Tensor]) -> Tensor:
    """(..., n, K) each, below one another; of matrices, with the rows that are missing."""
    missing = missing_rows(sum(map(len, parts)), parts[0]) if parts[0].dim() == 2 else 0
    return torch.cat([*parts, parts[0].new_zeros(missing, parts[0].size(1))] if missing else parts, -2)


class _Share(torch.autograd.Function):
    """Identity on a matrix; its backward runs after all uses, and adds what the ledger holds."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, ledger: _Ledger) -> Tensor:
        ctx.ledger = ledger
        ctx.set_materialize_grads(False)
        return matrix.view_as(matrix)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        total = ctx.ledger.close()
        if total is None or gradient is None:
            return gradient if total is None else total, None
        return total + gradient, None


class _ByRows(torch.autograd.Function):
    """x (..., n, K) times the rows of a shared matrix (..., m, K): (..., n, m)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, ledger: _Ledger) -> Tensor:
        ctx.ledger = ledger
        ctx.save_for_backward(x, matrix)
        return x @ matrix.mT

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, matrix = ctx.saved_tensors
        ctx.ledger.add(gradient, x)
        return gradient @ matrix, None, None


class _OfRows(torch.autograd.Function):
    """Weights (..., n, m) times a shared matrix (..., m, K): sums of its rows (..., n, K)."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, matrix: Tensor, ledger: _Ledger) -> Tensor:
        ctx.ledger = ledger
        ctx.save_for_backward(weights, matrix)
        return weights @ matrix

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weights, matrix = ctx.saved_tensors
        ctx.ledger.add(weights, gradient)
        return gradient @ matrix.mT, None, None


def share(matrix: Tensor) -> Tensor:
    """The same matrix, whose gradient by `by_rows` and `of_rows` waits; under autocast it is cast here, once.

    Share anew for each forward pass. Any other use of the result is differentiated as always.
    """
    device = matrix.device.type
    if torch.is_autocast_enabled(device) and matrix.dtype == torch.float32:
        matrix = cast_once(matrix, torch.get_autocast_dtype(device))
    if not (torch.is_grad_enabled() and matrix.requires_grad):
        return matrix
    ledger = _Ledger()
    shared: Tensor = _Share.apply(matrix, ledger)  # type: ignore[no-untyped-call]
    setattr(shared, _MARK, ledger)
    return shared


def cast_once(matrix: Tensor, kind: torch.dtype) -> Tensor:
    """In the other type; of a parameter, while nothing learns, the cast is kept: search asks at every step."""
    if matrix.dtype == kind or not _lasts(matrix):
        return matrix.to(kind)
    return _kept(matrix, f"{_CAST}_{kind}", [matrix], lambda: matrix.to(kind))


def joined_once(parts: Sequence[Tensor]) -> Tensor:
    """Parameters below one another; while nothing learns, they are kept so."""
    if not all(map(_lasts, parts)):
        return torch.cat([*parts])
    return _kept(parts[0], _JOINED, parts, lambda: torch.cat([*parts]))


def _lasts(matrix: Tensor) -> bool:
    """Whether nothing learns, and it is a parameter or was made from some once and for all."""
    return not torch.is_grad_enabled() and (isinstance(matrix, nn.Parameter) or hasattr(matrix, _LASTS))


def _kept(owner: Tensor, name: str, sources: Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
    """What is made of the sources, which lasts as they do: kept beside the owner until one of them changes."""
    versions = [(source.data_ptr(), source._version) for source in sources]
    if getattr(owner, name, (None, None))[0] != versions:
        made = make()
        setattr(made, _LASTS, True)
        setattr(owner, name, (versions, made))
    kept: Tensor = getattr(owner, name)[1]
    return kept


def share_all(tree: Tree) -> Tree:
    """Every tensor of floating point numbers in a tree, shared."""
    return map_tree(lambda leaf: share(leaf) if leaf.is_floating_point() else leaf, tree)


def by_rows(x: Tensor, matrix: Tensor) -> Tensor:
    """x (..., n, K) times each row of ``matrix`` (..., m, K): (..., n, m), in the matrix' type."""
    x, ledger = x.to(matrix.dtype), getattr(matrix, _MARK, None)
    if ledger is None and x.dim() == 2 and _packs(x, matrix):
        return _packed_product(x, matrix)
    if ledger is None:
        return x @ matrix.mT if x.dim() > 2 else (more_rows(x) @ matrix.mT)[: len(x)]
    product: Tensor = _ByRows.apply(x, matrix, ledger)  # type: ignore[no-untyped-call]
    return product


def of_rows(weights: Tensor, matrix: Tensor) -> Tensor:
    """The rows of ``matrix`` (..., m, K) summed under ``weights`` (..., n, m): (..., n, K), in the matrix' type."""
    weights, ledger = weights.to(matrix.dtype), getattr(matrix, _MARK, None)
    product: Tensor = weights @ matrix if ledger is None else _OfRows.apply(weights, matrix, ledger)  # type: ignore[no-untyped-call]
    return product
