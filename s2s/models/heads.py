"""Multi-head attention: over a memory, over the sequence itself, and with another mechanism in every head.

    head_h = softmax(Q_h K_h^T / sqrt(d / heads)) V_h,   what is read = W_O [head_1 ; ...]      Vaswani et al. 2017

With fewer groups than heads, the heads of a group share their keys and values (Ainslie et al. 2023, section 2.2): that
much smaller is what a decoder has to remember. A mechanism of `s2s.attention` in the place of the softmax is given a
head's queries, divided by sqrt(d / heads) as above, its keys to score, and its values to read.

Products are written out: at sentence lengths they are faster on a CPU than the fused attention kernel, and the weights
are there when somebody wants to see them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from s2s.interfaces import Attended, Attention, Memory
from s2s.models.layers import Dropout
from s2s.models.positions import Absolute, Relation
from s2s.models.reach import KeysValues, Passed, Reach, Rows, View
from s2s.products import Linear, joined_once, linear
from s2s.tree import Tree

Lanes = Sequence[tuple[KeysValues, View]]
"""Keys and values, and how they are laid out; one softmax runs over all of them."""


class _Projections(nn.Module, ABC):
    """W_Q, W_K, W_V and W_O of all heads."""

    def __init__(self, size: int, memory_size: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size, self.width = heads, groups, size, size // heads
        shared = groups * self.width
        self.query = nn.Parameter(torch.empty(size, size))
        self.key_value = nn.Parameter(torch.empty(2 * shared, memory_size))
        self.query_bias = nn.Parameter(torch.zeros(size))
        self.key_value_bias = nn.Parameter(torch.zeros(2 * shared))
        for block in (self.query, self.key_value[:shared], self.key_value[shared:]):
            nn.init.xavier_uniform_(block, gain=1 / math.sqrt(2))
        self.output = Linear(size, size)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), -1, self.width).transpose(1, 2)

    def _queries(self, x: Tensor) -> Tensor:
        """(B, T, d) to (B, heads, T, d / heads)."""
        return self._split(linear(x, self.query, self.query_bias))

    def _keys_values(self, memory: Tensor) -> KeysValues:
        both = linear(memory, self.key_value, self.key_value_bias)
        return KeysValues(*(self._split(part) for part in both.chunk(2, -1)))

    def _joined(self, context: Tensor) -> Tensor:
        """W_O of what the heads read (B, heads, T, d / heads): (B, T, d)."""
        joined: Tensor = self.output(context.transpose(1, 2).flatten(2))
        return joined

    def each(self, x: Tensor) -> Tensor:
        """Keys or values (B, groups, S, d / heads) for every head."""
        return x if self.groups == self.heads else x.repeat_interleave(self.heads // self.groups, 1)


class Across(_Projections, ABC):
    """Attention of a decoder's layer to the memory."""

    @abstractmethod
    def read(self, memory: Memory) -> Tree:
        """What is computed once per sentence."""

    def start(self, memory: Memory, source: Tree) -> Tree:
        """The state before the first step."""
        return ()

    @abstractmethod
    def forward(self, x: Tensor, memory: Memory, source: Tree, state: Tree) -> tuple[Tensor, Tensor, Tree]:
        """What x (B, T, d) reads, (B, T, d), the weights (B, heads, T, S), and the new state."""

    def set_update(self, update: int) -> None:
        """See `s2s.interfaces.Attention.set_update`."""


def unrounded(projected: Tensor) -> Tensor:
    """Queries, keys and values in the type in which they are to meet: in search on a CPU float32, whatever they are.

    Kernels of bf16 are compiled for every number of keys, which grows by one at every step of a search.
    """
    if torch.is_grad_enabled() or projected.device.type != "cpu" or projected.dtype != torch.bfloat16:
        return projected
    return projected.float()


def attend(query: Tensor, lanes: Lanes, relation: Relation, dropout: Dropout) -> tuple[Tensor, Tensor]:
    """What queries (B, heads, T, d) read in all lanes, of the same shape, and the weights (B, heads, T, S).

    S counts the columns of all lanes, one lane after the other; keys and values have a row for every head.
    """
    device = query.device.type
    narrow = torch.is_autocast_enabled(device) and query.dtype == torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=narrow):
        return _attend(query, lanes, relation, dropout)


def _attend(query: Tensor, lanes: Lanes, relation: Relation, dropout: Dropout) -> tuple[Tensor, Tensor]:
    """`attend` in the type of the query."""
    scale, parts = query.size(-1) ** -0.5, []
    for memory, view in lanes:
        asking = view.ask(query)
        scores = asking.to(memory.keys.dtype) @ view.keys(memory.keys).transpose(-1, -2) * scale
        bias = relation.bias(asking, view)
        if bias is not None:
            scores = scores + bias
        if view.blocked is not None:
            scores = scores.masked_fill(view.blocked, -torch.inf)
        parts.append(view.answer(scores))
    together = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    weights = together.softmax(-1, dtype=torch.float32 if together.dtype != torch.float64 else None)
    kept = dropout(weights.to(lanes[0][0].values.dtype))
    apart = [kept] if len(parts) == 1 else kept.split_with_sizes([part.size(-1) for part in parts], -1)
    read = [_read(view, part, memory.values, relation) for part, (memory, view) in zip(apart, lanes, strict=True)]
    return sum(read[1:], read[0]), weights


def _read(view: View, weights: Tensor, values: Tensor, relation: Relation) -> Tensor:
    """What weights (B, heads, T, S) of one lane read, (B, heads, T, d)."""
    laid = view.ask(weights)
    context = laid @ view.keys(values)
    more = relation.values(laid, view)
    return view.answer(context if more is None else context + more)


class Source(NamedTuple):
    """What `MultiHead` keeps of a memory."""

    read: KeysValues
    blocked: Tensor
    """(B, 1, 1, S) bool, True at padding."""


class MultiHead(Across):
    """The Transformer's own attention to a memory: scaled products and a softmax."""

    def __init__(self, size: int, memory_size: int, heads: int, groups: int, dropout: float) -> None:
        super().__init__(size, memory_size, heads, groups)
        self.dropout, self.relation = Dropout(dropout), Absolute()

    def read(self, memory: Memory) -> Source:
        read = KeysValues(*map(unrounded, self._keys_values(memory.values)))
        return Source(read, ~memory.mask[:, None, None])

    def forward(self, x: Tensor, memory: Memory, source: Source, state: Tree) -> tuple[Tensor, Tensor, Tree]:
        view = Rows(source.blocked, range(x.size(1)), range(source.blocked.size(-1)), x.device)
        lane = KeysValues(*map(self.each, source.read)), view
        context, weights = attend(unrounded(self._queries(x)), [lane], self.relation, self.dropout)
        return self._joined(context), weights, state


class Look(NamedTuple):
    """What the layers of one call of a stack have in common."""

    first: int | Tensor
    """The place of the first word; (B, 1) where every sentence has its own."""
    passed: int
    """Places before it that the stack has read, in the row that has read most."""
    views: tuple[View, ...]
    """One for each reach."""

    @classmethod
    def after(cls, passed: Passed, count: int, reaches: Iterable[Reach], device: torch.device) -> Look:
        """Of a decoder that reads ``count`` words."""
        real = passed.real(count)
        views = tuple(reach.view(passed.most, count, real, device) for reach in reaches)
        return cls(passed.first, passed.most, views)


class SelfAttention(_Projections):
    """Attention of a sequence to itself, as far as its reaches go, which are held apart."""

    def __init__(
        self, size: int, heads: int, groups: int, dropout: float, relation: Relation, reaches: tuple[Reach, ...]
    ) -> None:
        super().__init__(size, size, heads, groups)
        self.dropout, self.relation, self.reaches = Dropout(dropout), relation, reaches

    def nothing(self, memory: Memory) -> tuple[KeysValues, ...]:
        """What is held before the first word."""
        none = memory.values.new_empty(len(memory.values), self.groups, 0, self.width)
        return (KeysValues(none, none),) * len(self.reaches)

    def forward(
        self, x: Tensor, held: Iterable[KeysValues | None], look: Look, beside: Lanes = ()
    ) -> tuple[Tensor, tuple[KeysValues, ...], Tensor]:
        """What x (B, T, d) reads of what was held and of itself, what is held now, and the weights.

        What stands ``beside`` is read too, and comes first in the weights.
        """
        weight = joined_once([self.query, self.key_value])
        bias = joined_once([self.query_bias, self.key_value_bias])
        shared = self.groups * self.width
        projected = unrounded(linear(x, weight, bias)).split_with_sizes([self.size, shared, shared], -1)
        query, keys, values = map(self._split, projected)
        query, keys = self.relation.turn(query, keys, look.first)
        new = KeysValues(keys, values)
        joined = [reach.join(old, new, look.passed) for reach, old in zip(self.reaches, held, strict=True)]
        together = [*beside, *zip(joined, look.views, strict=True)]
        lanes = [(KeysValues(*map(self.each, one)), view) for one, view in together]
        context, weights = attend(query, lanes, self.relation, self.dropout)
        kept = tuple(reach.keep(one) for reach, one in zip(self.reaches, joined, strict=True))
        return self._joined(context), kept, weights


class Mechanisms(Across):
    """Another mechanism in every head, each with its own parameters and state."""

    def __init__(
        self, size: int, memory_size: int, heads: int, groups: int, build: Callable[[int, int], Attention]
    ) -> None:
        """``build`` gives a mechanism for a query and a memory of these widths."""
        mechanisms = [build(size // heads, size // heads) for _ in range(heads)]
        super().__init__(size, memory_size, heads, groups)
        self.mechanisms = nn.ModuleList(mechanisms)

    def read(self, memory: Memory) -> tuple[KeysValues, ...]:
        """Of each head its keys, as the mechanism prepared them, and its values (B, S, d / heads)."""
        keys, values = (self.each(part).unbind(1) for part in self._keys_values(memory.values))
        zero = ~memory.mask.unsqueeze(-1)
        return tuple(
            KeysValues(
                mechanism.prepare(memory._replace(values=own.masked_fill(zero, 0.0))).keys,  # type: ignore[operator]
                read.masked_fill(zero, 0.0),
            )
            for mechanism, own, read in zip(self.mechanisms, keys, values, strict=True)
        )

    def _memories(self, memory: Memory, source: tuple[KeysValues, ...]) -> list[Memory]:
        return [memory._replace(keys=one.keys, values=one.values) for one in source]

    def start(self, memory: Memory, source: tuple[KeysValues, ...]) -> Tree:
        memories = self._memories(memory, source)
        return tuple(
            mechanism.start(one)  # type: ignore[operator]
            for mechanism, one in zip(self.mechanisms, memories, strict=True)
        )

    def forward(
        self, x: Tensor, memory: Memory, source: tuple[KeysValues, ...], state: Tree
    ) -> tuple[Tensor, Tensor, Tree]:
        queries = (self._queries(x) * self.width**-0.5).unbind(1)
        found: list[tuple[Attended, Tree]] = [
            mechanism(*given)
            for mechanism, *given in zip(self.mechanisms, queries, self._memories(memory, source), state, strict=True)
        ]
        context = torch.stack([attended.context for attended, _ in found], 1)
        weights = torch.stack([attended.weights for attended, _ in found if attended.weights is not None], 1)
        return self._joined(context), weights, tuple(after for _, after in found)

    def set_update(self, update: int) -> None:
        for mechanism in self.mechanisms:
            mechanism.set_update(update)  # type: ignore[operator]


class Heads(Attention):
    """What several heads read, as one attention of a recurrent decoder (Chen et al. 2018)."""

    def __init__(self, heads: Mechanisms) -> None:
        super().__init__()
        self.heads, self.context_size = heads, heads.size

    def prepare(self, memory: Memory) -> Memory:
        return memory._replace(keys=self.heads.read(memory))

    def start(self, memory: Memory) -> Tree:
        return self.heads.start(memory, memory.keys)

    def forward(self, query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        """Weights are the mean over heads; where heads are wanted, the trace has those of each, (B, T, heads, S)."""
        context, weights, state = self.heads(query, memory, memory.keys, state)
        trace = {"heads": weights.transpose(1, 2)} if "heads" in memory.want else {}
        return Attended(context, weights.mean(1), trace=trace), state

    def set_update(self, update: int) -> None:
        self.heads.set_update(update)
