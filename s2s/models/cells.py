"""Wirings: in which order a recurrent decoder recurs and attends. Each is one step that the decoder repeats.

    luong      h_t = RNN([E y ; h~_{t-1}], h_{t-1});  c_t = attend(h_t);  h~_t = read(h_t, c_t)
    bahdanau   c_t = attend(s_{t-1});  s_t = RNN([E y ; c_t], s_{t-1});   h~_t = read(s_t, c_t, E y)
    gnmt       as bahdanau, but the bottom of several layers asks, and all of them read c_t
    cgru       s' = GRU1(E y, s_{t-1});  c_t = attend(s');  s_t = GRU2(c_t, s');  h~_t = read(s_t, c_t, E y)

Luong et al. 2015, section 3.3; Bahdanau et al. 2015, appendix A.2.2; Wu et al. 2016, section 3; Sennrich et al. 2017
(Nematus), section 3. Wu et al. read words from the top state alone, where here h~ has the context and the word too.

What is read becomes one vector, h~ = tanh(W [...]), and h~ becomes words. In `luong` without input feeding (h~_{t-1}
left out) nothing of step t goes back into the recurrence, so all T steps run at once.

With the readout maxout, h~ is the deep output of Bahdanau et al. 2015, appendix A.2.2: h~_j = max(t~_{2j-1}, t~_{2j})
with t~ = W [...] of twice the width. As there, wiring `bahdanau` then reads words from the state that asked, s_{t-1}:
t~ = U s_{t-1} + V E y + C c_t.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from s2s.interfaces import Attended, Attention, Memory
from s2s.models.layers import dropout_mask
from s2s.models.recurrence import LayerState, Recurrence, RecurrentLayer
from s2s.products import by_rows, linear, share
from s2s.tree import Tree, join_time, map_tree

ReadoutKind = Literal["tanh", "maxout"]


class Unread(NamedTuple):
    """What the readout joins with a context, each (B, T, ...)."""

    hidden: Tensor
    embedded: Tensor | None
    keep: Tensor | None
    """The dropout mask of the readout: the same for every context that is tried."""


class Step(NamedTuple):
    """What a wiring gives for the positions of one call."""

    unread: Unread
    joined: Tensor
    """(B, T, D) the readout of the context that was read."""
    attended: Attended


class WiringState(NamedTuple):
    """Everything that goes on to the next word."""

    layers: tuple[LayerState, ...]
    attention: Tree
    fed: Tensor | None
    """(B, D) the last h~, under input feeding."""
    unread: Unread | None = None
    """(B, ...) what the last word was read from, for an attention that listens."""


Said = Callable[[int, Unread, Tensor], Tensor]
"""log p(the word read at a position | context), given what it was read from: (B, 1, N, M) to (B, 1, N)."""
Advance = Callable[[slice, Memory, WiringState], tuple[Step, WiringState]]
"""The positions of a slice, given memory and state."""


class Readout(nn.Module):
    """h~ = f(W [hidden ; context (; embedded)]), without a bias.

    f is tanh (Luong et al. 2015, equation 5) or, with W of twice the width, the maximum of each pair of neighbours
    (Bahdanau et al. 2015, appendix A.2.2).
    """

    def __init__(
        self, hidden: int, context: int, embedded: int, size: int, dropout: float, kind: ReadoutKind = "tanh"
    ) -> None:
        super().__init__()
        self.join = nn.Linear(hidden + context + embedded, 2 * size if kind == "maxout" else size, bias=False)
        self.widths, self.size, self.dropout, self.kind = (hidden, context, embedded), size, dropout, kind

    def nothing(self, memory: Memory) -> Unread:
        """What there is to be read before the first step, (B, ...): zeros."""
        hidden, _, embedded = (memory.values.new_zeros(len(memory.values), width) for width in self.widths)
        keep = memory.values.new_zeros(len(memory.values), self.size) if self._drops() else None
        return Unread(hidden, embedded if self.widths[2] else None, keep)

    def _drops(self) -> bool:
        return self.training and self.dropout > 0.0

    def _joined(self, inside: Tensor) -> Tensor:
        """f of (..., D), or of (..., 2 D) for maxout, to (..., D)."""
        if self.kind == "tanh":
            return torch.tanh(inside)
        return torch.maximum(inside[..., 0::2], inside[..., 1::2])

    def draw(self, embedded: Tensor) -> Tensor | None:
        """The dropout masks (B, T, D) of one forward pass over embedded words (B, T, E); None where there are none."""
        if not self._drops():
            return None
        return dropout_mask((embedded.size(0), embedded.size(1), self.size), self.dropout, embedded)

    def forward(self, unread: Unread, context: Tensor) -> Tensor:
        """(B, T, ...) parts to (B, T, D). Contexts (B, T, N, M), or (B, 1, N, M) for all T, give (B, T, N, D)."""
        of_hidden, of_context, of_embedded = torch.split(self.join.weight, list(self.widths), 1)
        inside = linear(unread.hidden, of_hidden)
        if unread.embedded is not None:
            inside = inside + linear(unread.embedded, of_embedded)
        keep = unread.keep
        if context.dim() > inside.dim():
            inside, keep = inside.unsqueeze(-2), None if keep is None else keep.unsqueeze(-2)
        joined = self._joined(inside + linear(context, of_context))
        return joined if keep is None else joined * keep

    def stepper(self) -> Callable[[Unread, Tensor], Tensor]:
        """The same for one position, (B, ...) parts, with the weight's gradient formed once for all steps."""
        join = share(self.join.weight)

        def step(unread: Unread, context: Tensor) -> Tensor:
            parts = [unread.hidden, context] if unread.embedded is None else [unread.hidden, context, unread.embedded]
            joined = self._joined(by_rows(torch.cat([part.to(join.dtype) for part in parts], -1), join))
            return joined if unread.keep is None else joined * unread.keep

        return step


def attend(attention: Attention, query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
    """What (B, T, H) queries read; places that share a row of memory ask side by side, as if they were its steps."""
    rows, steps = query.shape[:2]
    if len(memory.values) == rows:
        found: tuple[Attended, Tree] = attention(query, memory, state)
        return found
    assert steps == 1, "places that share a memory go step by step"
    attended, state = attention(query.view(len(memory.values), -1, query.size(2)), memory, state)
    return map_tree(lambda part: part.flatten(0, 1).unsqueeze(1), attended), state


def with_time(unread: Unread) -> Unread:
    """(B, ...) parts as those of one step, (B, 1, ...)."""
    return map_tree(lambda part: part.unsqueeze(1), unread)


class Wiring(nn.Module, ABC):
    """``feeds_back``: whether a step needs the one before it to be finished."""

    feeds_back: bool
    attention: Attention
    readout: Readout

    @abstractmethod
    def begin(self, embedded: Tensor, said: Said | None) -> Advance:
        """Do for all T embedded words (B, T, E) what needs no feedback; give the function that does the rest.

        ``said`` knows these words' likelihoods, and is there where the attention listens.
        """

    @abstractmethod
    def states(self, states: list[LayerState]) -> tuple[LayerState, ...]:
        """First states, with the draws that the steps of a sentence share."""

    def start(self, memory: Memory, states: list[LayerState]) -> tuple[Memory, WiringState]:
        """Memory with keys, and the state before the first word."""
        memory = self.attention.prepare(memory)
        unread = self.readout.nothing(memory) if self.attention.listens else None
        return memory, WiringState(self.states(states), self.attention.start(memory), self.first_fed(memory), unread)

    def first_fed(self, memory: Memory) -> Tensor | None:
        """What is fed to the first word."""
        return None

    def listen(
        self, position: int, memory: Memory, state: WiringState, said: Said | None
    ) -> tuple[Tensor | None, WiringState]:
        """Tell the attention of the word at a position, if it listens; what `Attention.listen` answers."""
        if said is None or state.unread is None:
            return None, state
        told = partial(said, position, state.unread)
        context, attention = self.attention.listen(told, memory, state.attention)
        return context, state._replace(attention=attention)


class Luong(Wiring):
    """Recur, then attend with the new state; with ``input_feeding`` the last h~ joins the next input."""

    def __init__(self, recurrence: Recurrence, attention: Attention, readout: Readout, input_feeding: bool) -> None:
        super().__init__()
        self.recurrence, self.attention, self.readout, self.feeds_back = recurrence, attention, readout, input_feeding

    def states(self, states: list[LayerState]) -> tuple[LayerState, ...]:
        return self.recurrence.begin(states)

    def first_fed(self, memory: Memory) -> Tensor | None:
        return memory.values.new_zeros(memory.values.size(0), self.readout.size) if self.feeds_back else None

    def begin(self, embedded: Tensor, said: Said | None) -> Advance:
        return self._by_steps(embedded, said) if self.feeds_back else self._at_once(embedded, said)

    def _at_once(self, embedded: Tensor, said: Said | None) -> Advance:
        keep = self.readout.draw(embedded)

        def advance(where: slice, memory: Memory, state: WiringState) -> tuple[Step, WiringState]:
            hidden, layers = self.recurrence.run(embedded[:, where], state.layers)
            unread = Unread(hidden, None, None if keep is None else keep[:, where])
            if said is None:
                attended, attention = attend(self.attention, hidden, memory, state.attention)
                state = WiringState(layers, attention, None)
            else:
                attended, state = self._listening(where.start, unread, memory, state._replace(layers=layers), said)
            return Step(unread, self.readout(unread, attended.context), attended), state

        return advance

    def _listening(
        self, first: int, unread: Unread, memory: Memory, state: WiringState, said: Said
    ) -> tuple[Attended, WiringState]:
        """The recurrence has run; only the attention goes step by step."""
        steps: list[Attended] = []
        for step, query in enumerate(unread.hidden.unsqueeze(2).unbind(1)):
            _, state = self.listen(first + step, memory, state, said)
            attended, attention = attend(self.attention, query, memory, state.attention)
            steps.append(attended)
            here: Unread = map_tree(lambda part, step=step: part[:, step], unread)  # type: ignore[misc]
            state = state._replace(attention=attention, unread=here)
        return join_time(steps), state

    def _by_steps(self, embedded: Tensor, said: Said | None) -> Advance:
        gates, recur, read = (
            self.recurrence.gates(embedded).unbind(1),
            self.recurrence.stepper(),
            self.readout.stepper(),
        )
        keep = self.readout.draw(embedded)

        def advance(where: slice, memory: Memory, state: WiringState) -> tuple[Step, WiringState]:
            again, state = self.listen(where.start, memory, state, said)
            fed = state.fed
            if again is not None and state.unread is not None:
                fed = read(state.unread, again[:, 0]).to(memory.values.dtype)
            hidden, layers = recur(gates[where.start], fed, state.layers)
            attended, attention = attend(self.attention, hidden.unsqueeze(1), memory, state.attention)
            unread = Unread(hidden, None, None if keep is None else keep[:, where.start])
            joined = read(unread, attended.context[:, 0])
            step = Step(with_time(unread), joined.unsqueeze(1), attended)
            kept = None if said is None else unread
            return step, WiringState(layers, attention, joined.to(memory.values.dtype), kept)

        return advance


class Bahdanau(Wiring):
    """Attend with the state before this word, then recur over word and context.

    The top layer asks and the bottom one reads the context; with ``from_below`` (`gnmt`) the bottom layer asks and all
    of them read. With the readout maxout words are read from the top state that asked, otherwise from the new one.
    """

    feeds_back = True

    def __init__(self, recurrence: Recurrence, attention: Attention, readout: Readout, from_below: bool) -> None:
        super().__init__()
        self.recurrence, self.attention, self.readout, self.from_below = recurrence, attention, readout, from_below

    def states(self, states: list[LayerState]) -> tuple[LayerState, ...]:
        return self.recurrence.begin(states)

    def begin(self, embedded: Tensor, said: Said | None) -> Advance:
        gates, recur, read = (
            self.recurrence.gates(embedded).unbind(1),
            self.recurrence.stepper(),
            self.readout.stepper(),
        )
        keep, words = self.readout.draw(embedded), embedded.unbind(1)

        def advance(where: slice, memory: Memory, state: WiringState) -> tuple[Step, WiringState]:
            _, state = self.listen(where.start, memory, state, said)
            query = state.layers[0 if self.from_below else -1].hidden
            attended, attention = attend(self.attention, query.unsqueeze(1), memory, state.attention)
            context = attended.context[:, 0]
            hidden, layers = recur(gates[where.start], context if context.size(1) else None, state.layers)
            told = query if self.readout.kind == "maxout" and not self.from_below else hidden
            unread = Unread(told, words[where.start], None if keep is None else keep[:, where.start])
            joined = read(unread, context)
            step = Step(with_time(unread), joined.unsqueeze(1), attended)
            return step, WiringState(layers, attention, None, None if said is None else unread)

        return advance


class ConditionalGRU(Wiring):
    """Two GRU cells with the attention between them: the Multi30k baseline of Nematus and nmtpy."""

    feeds_back = True

    def __init__(self, first: RecurrentLayer, second: RecurrentLayer, attention: Attention, readout: Readout) -> None:
        super().__init__()
        self.first, self.second, self.attention, self.readout = first, second, attention, readout

    def states(self, states: list[LayerState]) -> tuple[LayerState, ...]:
        return tuple(states)

    def begin(self, embedded: Tensor, said: Said | None) -> Advance:
        gates, recur, recur_again = self.first.gates(embedded).unbind(1), self.first.stepper(), self.second.stepper()
        of_context, read = share(self.second.weight_input), self.readout.stepper()
        keep, words = self.readout.draw(embedded), embedded.unbind(1)

        def advance(where: slice, memory: Memory, state: WiringState) -> tuple[Step, WiringState]:
            _, state = self.listen(where.start, memory, state, said)
            between = recur(gates[where.start], None, state.layers[0])
            attended, attention = attend(self.attention, between.hidden.unsqueeze(1), memory, state.attention)
            context = attended.context[:, 0]
            layer = recur_again(by_rows(context, of_context) + self.second.bias, None, between)
            unread = Unread(layer.hidden, words[where.start], None if keep is None else keep[:, where.start])
            joined = read(unread, context)
            step = Step(with_time(unread), joined.unsqueeze(1), attended)
            return step, WiringState((layer,), attention, None, None if said is None else unread)

        return advance
