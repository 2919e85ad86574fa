"""READ ME FIRST: what an encoder, an attention, a decoder and a search promise each other.

Letters, here and everywhere:

    B sentences (in search: sentences x beam)      H query width
    S source positions                             M memory width
    T target positions in this call, T >= 1        V target vocabulary
    N contexts in a mixture                        D width of what the output matrix reads

Three rules hold everything together.

1. State is a batch-first tree (`s2s.tree`), opaque to all but its maker. Nothing that outlives a call is stored on a
   module: projected keys travel with the memory.
2. One forward: ``decoder(tokens (B, T), memory, state)`` for every T >= 1. Training gives the whole target, search
   gives T = 1, and a test holds the two together.
3. Attention returns contexts; a latent one returns a *mixture* of them, and the readout joins them by one logsumexp.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from s2s.likelihood import log_likelihood
from s2s.tree import Tree

PAD, BOS, EOS, UNK = 0, 1, 2, 3
"""The ids every vocabulary starts with."""

Totals = dict[str, tuple[Tensor, Tensor]]
"""Named sums with their counts, both scalars, so that micro-batches and ranks can be added before dividing."""

NOTHING: frozenset[str] = frozenset()
"""``want`` of a caller who needs only the next word."""


class Before(NamedTuple):
    """The sentences before those to translate, of the same document, at most K of each. A tree."""

    source: Tensor
    """(B, K, P) int64, the nearest sentence first; EOS at the end of each, then PAD."""
    lengths: Tensor
    """(B, K) int64, EOS counted; 0 where there is no sentence."""


class Final(NamedTuple):
    """The last states of a recurrent encoder, for decoders that start from them."""

    hidden: Tensor
    """(B, layers, M): per layer, the forward direction's last state and the backward direction's first, joined."""
    cell: Tensor | None
    """The same of an LSTM's cell."""


class Memory(NamedTuple):
    """What an encoder leaves; constant within a sentence. A tree: search takes its rows when sentences leave."""

    values: Tensor
    """(B, S, M), exactly zero at padding."""
    mask: Tensor
    """(B, S) bool, True at real positions."""
    lengths: Tensor
    """(B,) int64, real positions of each sentence, EOS counted."""
    final: Final | None = None
    """The encoder's last states, if it has any."""
    keys: Tree = None
    """What a decoder or an attention computed once per sentence."""
    want: frozenset[str] = NOTHING
    """What of {"weights", "heads", "trace"} the caller will read; fixed per sentence, so nothing unread is computed."""
    embedded: Tensor | None = None
    """(B, S, M) the words as they went into the encoder, zero at padding, if it leaves them."""
    number: Tensor | None = None
    """(B,) int64, which sentence it is, told by its words: in evaluation, what is drawn is a function of it. None in
    training, whose draws are torch's."""


class Mixture(NamedTuple):
    """A distribution over contexts: p(y) = sum over n of exp(log_weights[n]) p(y | context n)."""

    log_weights: Tensor
    """(B, T, N); they may sum to less than one (a bound)."""
    positions: Tensor | None = None
    """(B, T, N) source positions of the contexts; None when N = S and context n is memory.values[n]."""


class Attended(NamedTuple):
    """What attention read."""

    context: Tensor
    """(B, T, M); what the recurrence is fed."""
    weights: Tensor | None
    """(B, T, S), zero at padding; None from a mechanism that has none."""
    mixture: Mixture | None = None
    trace: dict[str, Tensor] = {}  # noqa: RUF012 - a NamedTuple default that nobody writes to
    """Whatever the mechanism's own penalties and diagnostics need, (B, T, ...)."""


class Gold(Protocol):
    """log p(right word), had the decoder read ``context`` (B, T, M) -> (B, T), or (B, T, N, M) -> (B, T, N).

    Contexts (B, 1, N, M) are the same at every step, and cost less than T copies of them.
    Only the readout changes: the recurrence keeps what it was fed. Without a context: the one that was read.
    """

    def hindsight(self) -> Tensor:
        """What all right words together, read in both directions, tell of each: (B, T, W), with gradient.

        Zero at padding. Only for a mechanism that says how wide: `Attention.hindsight`.
        """
        ...

    @property
    def real(self) -> Tensor:
        """(B, T) bool, True where there is a right word; the answer is zero elsewhere, and may be zero here."""
        ...

    def __call__(self, context: Tensor | None = None) -> Tensor: ...


Told = Callable[[Tensor], Tensor]
"""log p(the word just read), had the step that said it read ``context``: (B, 1, N, M) to (B, 1, N), with gradient.

Zero where no step said the word: before the first one, and at padding.
"""


class Attention(nn.Module, ABC):
    """One mechanism: ``context_size`` is the width of the contexts it gives.

    ``asks_gold`` is True where `penalties` or `statistics` call ``gold`` with a context of their own; ``draws`` where
    training estimates a gradient by what it draws, so that the estimate has a variance; ``listens`` where the next step
    depends on how likely the last word was at the positions it could come from. Then queries come one at a time, and
    `listen` is called before each. ``hindsight`` is the width, an even number, of what `Gold.hindsight` tells; 0 asks
    for nothing.
    """

    context_size: int
    asks_gold = False
    draws = False
    listens = False
    hindsight = 0

    def prepare(self, memory: Memory) -> Memory:
        """Compute once per sentence what every step needs (usually the keys)."""
        return memory

    def start(self, memory: Memory) -> Tree:
        """The state before the first step; draws that all steps of a sentence share are made here."""
        return ()

    @abstractmethod
    def forward(self, query: Tensor, memory: Memory, state: Tree) -> tuple[Attended, Tree]:
        """Attend T queries (B, T, H) at once."""

    def listen(self, told: Told, memory: Memory, state: Tree) -> tuple[Tensor | None, Tree]:
        """Take in the word that the last step said, of which ``told`` knows the likelihood under any context.

        The state, and the context (B, 1, M) that the recurrence is fed in the place of the one that was read; None
        leaves that as it is.
        """
        return None, state

    def penalties(self, attended: Attended, memory: Memory, gold: Gold) -> dict[str, Tensor]:
        """The mechanism's own terms of the loss, by name, each (B, T) or (B,)."""
        return {}

    def statistics(self, attended: Attended, memory: Memory, gold: Gold) -> Totals:
        """Sums and counts that `after_update` will see, added over micro-batches and ranks."""
        return {}

    def diagnostics(self, attended: Attended, memory: Memory, gold: Gold) -> Totals:
        """What the mechanism tells of itself at a validation, over the target positions ``gold.real``.

        The trace was wanted. What weights alone can tell is measured for every kind: `s2s.analysis.diagnostics`.
        """
        return {}

    def after_update(self, totals: Mapping[str, tuple[float, float]]) -> None:
        """The only place where a buffer that learns (a running baseline) changes."""

    def set_update(self, update: int) -> None:
        """Called before each update: schedules are functions of the update number alone.

        One that evaluation obeys too has its value in a buffer, so that a checkpoint tells it to a translation.
        """


class Leaves(NamedTuple):
    """What `Memory.final` of an encoder has."""

    layers: int
    directions: int
    cells: bool


class Encoder(nn.Module, ABC):
    """Source ids to memory. ``size`` is the memory width M, ``leaves`` what final states there are, None if none."""

    size: int
    leaves: Leaves | None = None
    recomputes = False
    """Whether `recompute` was called."""

    def recompute(self) -> None:
        """From now on training keeps what enters each layer, and computes the rest again in the backward pass.

        A recurrent layer goes through all of its steps at once either way: it would save nothing, and keeps all.
        """
        self.recomputes = True

    def compile_parts(self) -> None:
        """Have parts that can be compiled for all lengths at once compiled when they are first trained.

        The steps of a recurrent layer are few calls already, or a loop that would be compiled for every length anew.
        """

    @abstractmethod
    def forward(self, source: Tensor, lengths: Tensor) -> Memory:
        """(B, S) int64 padded with PAD and (B,) lengths to memory; what stands in the padding has no influence."""


class Decoded(NamedTuple):
    """Target positions, not yet projected to the vocabulary."""

    features: Tensor
    """(B, T, D), ready for the output matrix wherever ``mixture`` is None."""
    unread: Tree = None
    """(B, T, ...) what the readout needs before a context joins; kept only where a mixture or ``gold`` needs it."""
    attended: Attended | None = None
    mixture: Mixture | None = None
    weights: Tensor | None = None
    """(B, T, S) attention to show or to guide; None unless wanted or free."""
    heads: Tensor | None = None
    """(B, T, layers, heads, S), of which ``weights`` is the mean; None unless wanted, and from what has no heads."""


class Decoder(nn.Module, ABC):
    """Target prefix to features, and features to words."""

    output: nn.Linear
    """The matrix (V, D), perhaps shared with an embedding, and its bias."""
    least_deviation = 0.0
    """How widely the first values of the output matrix are strewn at least, where N(0, 1/D) is narrower."""
    recomputes = False
    """See `Encoder.recomputes`."""
    same_age = True
    """See `Searchable.same_age`."""
    grows = True
    """See `Searchable.grows`."""

    @abstractmethod
    def start(self, memory: Memory, want: frozenset[str] = NOTHING) -> tuple[Memory, Tree]:
        """Memory with everything that is computed once per sentence, and the state before the first word."""

    @abstractmethod
    def forward(self, tokens: Tensor, memory: Memory, state: Tree) -> tuple[Decoded, Tree]:
        """Read ``tokens`` (B, T), BOS first, and predict the word after each.

        Where memory may be shared it can have fewer rows, B / places, while T is 1: see `shares`.
        """

    @abstractmethod
    def shares(self, state: Tree) -> bool:
        """Whether rows of ``state`` that stand side by side can read one row of memory."""

    def recompute(self) -> None:
        """See `Encoder.recompute`."""
        self.recomputes = True

    def compile_parts(self) -> None:
        """See `Encoder.compile_parts`."""

    def features(self, decoded: Decoded, memory: Memory, where: Tensor) -> Tensor:
        """What the output matrix reads at the positions ``where`` (B, T) bool: (n, D); only without a mixture."""
        return decoded.features[where]

    def logits(self, decoded: Decoded, memory: Memory, where: Tensor) -> Tensor:
        """Scores (n, V) at the positions ``where``; log-probabilities, perhaps summing below one, under a mixture."""
        result: Tensor = self.output(self.features(decoded, memory, where))
        return result

    def likelihood(self, decoded: Decoded, memory: Memory, target: Tensor) -> Tensor:
        """log p of the words of ``target`` (B, T) that are not PAD, in nats: (n,). Never holds (n, V)."""
        real = target != PAD
        return log_likelihood(self.features(decoded, memory, real), self.output.weight, self.output.bias, target[real])

    def penalties(self, decoded: Decoded, memory: Memory, target: Tensor) -> dict[str, Tensor]:
        """Terms of the loss that belong to parts of this decoder, by name, each (B, T) or (B,)."""
        return {}

    def statistics(self, decoded: Decoded, memory: Memory, target: Tensor) -> Totals:
        """See `Attention.statistics`."""
        return {}

    def diagnostics(self, decoded: Decoded, memory: Memory, target: Tensor) -> Totals:
        """See `Attention.diagnostics`."""
        return {}

    def after_update(self, totals: Mapping[str, tuple[float, float]]) -> None:
        """See `Attention.after_update`."""

    def set_update(self, update: int) -> None:
        """See `Attention.set_update`."""


class Searchable(Protocol):
    """What search needs: a model or an ensemble."""

    @property
    def sentences_before(self) -> int:
        """How many sentences before the one to translate it reads; 0: it reads each alone."""
        ...

    @property
    def same_age(self) -> bool:
        """Whether all rows of a state must have read as many words; where not, sentences may join others by
        `s2s.tree.join_ages`."""
        ...

    @property
    def grows(self) -> bool:
        """Whether the state of a sentence grows with every word; beside an older one it costs what that does."""
        ...

    def start(
        self,
        source: Tensor,
        lengths: Tensor,
        want: frozenset[str] = NOTHING,
        places: int = 1,
        before: Before | None = None,
    ) -> tuple[Tree, Tree]:
        """(B, S) and (B,) to memory and state, with ``places`` equal rows of state for each sentence, side by side.

        Memory has a row for each sentence, which its places share, or where a model cannot do that one for each place.
        ``before`` are the sentences before each, perhaps more than are read; None where there are none.
        """
        ...

    def step(self, token: Tensor, memory: Tree, state: Tree) -> tuple[Tensor, Tensor | None, Tree]:
        """(R,) last tokens to normalised log-probabilities (R, V), attention (R, S) or None, and the new state.

        R rows of state. The log-probabilities are the caller's to overwrite.
        """
        ...
