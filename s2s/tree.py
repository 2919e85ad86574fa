"""The law of state: nested tuples and dicts of tensors whose first dimension is the batch.

A leaf is a tensor; None and frozensets (what a caller wants) pass through untouched. Because nothing else is allowed
in, one `take` reorders LSTM states, key-value caches, coverage, alignments and ensembles alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

Tree = Any  # Tensor | None | frozenset | tuple[Tree, ...] | NamedTuple of Trees | dict[str, Tree]; Python cannot say it
T = TypeVar("T")


def map_tree(function: Callable[[Tensor], Tensor], tree: T) -> T:
    """The same tree with ``function`` applied to every tensor; TypeError for anything that is not state."""
    mapped: T = _map(function, tree)
    return mapped


def _map(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    if isinstance(tree, Tensor):
        return function(tree)
    if tree is None or isinstance(tree, frozenset):
        return tree
    if isinstance(tree, dict):
        return {key: _map(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        members = [_map(function, value) for value in tree]
        return type(tree)(*members) if hasattr(tree, "_fields") else tuple(members)
    raise TypeError(f"a {type(tree).__name__} cannot be part of a state: only tensors, tuples and dicts of them")


def leaves(tree: Tree) -> list[Tensor]:
    """Every tensor of the tree, in order."""
    found: list[Tensor] = []

    def collect(leaf: Tensor) -> Tensor:
        found.append(leaf)
        return leaf

    _map(collect, tree)
    return found


def take(tree: T, rows: Tensor) -> T:
    """The rows (n,) of every tensor: how a beam is reordered and how finished sentences leave."""
    return map_tree(lambda leaf: leaf.index_select(0, rows), tree)


def take_groups(tree: T, groups: Tensor, count: int) -> T:
    """The ``groups`` (n,) of every tensor, whose rows are ``count`` groups of equal size: some may have larger ones."""

    def taken(leaf: Tensor) -> Tensor:
        return leaf.view(count, len(leaf) // count, *leaf.shape[1:]).index_select(0, groups).flatten(0, 1)

    return map_tree(taken, tree)


def repeat(tree: T, times: int) -> T:
    """Every row ``times`` times in place: (B, ...) becomes (B * times, ...)."""
    return tree if times == 1 else map_tree(lambda leaf: leaf.repeat_interleave(times, 0), tree)


def join_time(trees: list[T]) -> T:
    """Trees of the same shape with tensors (B, T_i, ...) joined along the second dimension."""
    return _join(trees, lambda parts: torch.cat(parts, 1))


def join_rows(trees: list[T]) -> T:
    """Trees of the same shape with tensors (B_i, ...) below one another."""
    return _join(trees, torch.cat)


def join_ages(trees: list[T]) -> T:
    """The same of states after more words or fewer.

    What grows with every word grows at the end: where other dimensions differ, zeros stand before what is smaller. What
    is empty yet is of the type of what is not.
    """
    return _join(trees, lambda parts: torch.cat(_as_large(parts)))


def _as_large(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    shapes = [part.shape[1:] for part in parts]
    if all(shape == shapes[0] for shape in shapes):
        return parts
    largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    kind = next((part.dtype for part in parts if part.numel()), parts[0].dtype)

    def enlarged(part: Tensor) -> Tensor:
        missing = [most - own for most, own in zip(largest, part.shape[1:], strict=True)]
        in_front = [count for size in reversed(missing) for count in (size, 0)]  # pad begins with the last dimension
        return pad(part if part.numel() else part.to(kind), in_front)

    return tuple(map(enlarged, parts))


def _join(trees: list[T], joined: Callable[[tuple[Tensor, ...]], Tensor]) -> T:
    if len(trees) == 1:
        return trees[0]
    columns = zip(*(leaves(tree) for tree in trees), strict=True)
    return map_tree(lambda leaf: joined(next(columns)), trees[0])
