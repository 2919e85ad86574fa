"""Recurrent decoder: embeds the last word, repeats its wiring's step, and reads words out of what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Generic, Literal, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from s2s.interfaces import BOS, NOTHING, PAD, Attention, Decoded, Decoder, Encoder, Memory, Mixture, Totals
from s2s.likelihood import log_likelihood
from s2s.models.cells import (
    Bahdanau,
    ConditionalGRU,
    Luong,
    Readout,
    ReadoutKind,
    Said,
    Step,
    Unread,
    Wiring,
    WiringState,
    with_time,
)
from s2s.models.heads import Heads, Mechanisms
from s2s.models.hindsight import Hindsight
from s2s.models.layers import Dropout, Rate
from s2s.models.recurrence import CellKind, Recurrence, RecurrentLayer
from s2s.models.start import Start, StartKind
from s2s.products import share, share_all
from s2s.settings import AttentionSettings, DecoderSettings
from s2s.tree import Tree, join_time, leaves, map_tree

A = TypeVar("A", bound=AttentionSettings)


class RNNDecoder(Decoder):
    """Embedding, first state, wiring and output matrix. ``narrow`` fits h~ to an output matrix tied to embeddings.

    ``hindsight`` reads the right words in training, for an attention that asks for it.
    """

    # h~ is some 0.03 in all its places at first, where a Transformer's features are 1. Of a small matrix behind that,
    # what an update adds to the rows of all words alike soon drowns what tells words apart.
    least_deviation = 1 / 8
    same_age = False
    grows = False

    def __init__(
        self,
        embedding: nn.Embedding,
        dropout: float,
        start: Start,
        wiring: Wiring,
        narrow: nn.Linear | None,
        hindsight: Hindsight | None,
    ) -> None:
        super().__init__()
        self.embedding, self.embedded, self.first, self.wiring = embedding, Dropout(dropout), start, wiring
        self.narrow, self.hindsight = narrow, hindsight
        width = wiring.readout.size if narrow is None else narrow.out_features
        self.output = nn.Linear(width, embedding.num_embeddings)

    @property
    def attention(self) -> Attention:
        """The mechanism."""
        return self.wiring.attention

    def start(self, memory: Memory, want: frozenset[str] = NOTHING) -> tuple[Memory, WiringState]:
        memory, state = self.wiring.start(memory._replace(want=want), self.first(memory))
        if self.wiring.feeds_back or self.attention.listens:  # every step reads all of it
            memory = memory._replace(values=share(memory.values), keys=share_all(memory.keys))
        return memory, state

    def forward(self, tokens: Tensor, memory: Memory, state: WiringState) -> tuple[Decoded, Tree]:
        advance = self.wiring.begin(self.embedded(self.embedding(tokens)), self._said(tokens))
        width = 1 if self.wiring.feeds_back else tokens.size(1)
        steps: list[Step] = []
        for first in range(0, tokens.size(1), width):
            step, state = advance(slice(first, first + width), memory, state)
            steps.append(step)
        whole = join_time(steps)
        attended = whole.attended
        reread = attended.mixture is not None or self.attention.asks_gold
        unread = whole.unread if reread else None
        heads = attended.trace.get("heads")
        heads = None if heads is None else heads.unsqueeze(2)  # of the one layer that there is to attention
        return Decoded(whole.joined, unread, attended, attended.mixture, attended.weights, heads), state

    def _said(self, tokens: Tensor) -> Said | None:
        """What an attention that listens is told of ``tokens`` (B, T), which steps before them said; not of BOS."""
        if not self.attention.listens:
            return None
        words = tokens.masked_fill(tokens == BOS, PAD)

        def said(position: int, unread: Unread, context: Tensor) -> Tensor:
            return _Words(self, words[:, position : position + 1]).under(with_time(unread), context)

        return said

    def shares(self, state: WiringState) -> bool:
        """Where the attention remembers nothing: to it places of one step are like steps of one place."""
        return not leaves(state.attention)

    def features(self, decoded: Decoded, memory: Memory, where: Tensor) -> Tensor:
        return self._narrowed(decoded.features[where])

    def _narrowed(self, joined: Tensor) -> Tensor:
        return joined if self.narrow is None else self.narrow(joined)

    def logits(self, decoded: Decoded, memory: Memory, where: Tensor) -> Tensor:
        if decoded.mixture is None:
            return super().logits(decoded, memory, where)
        sentence = where.nonzero()[:, 0] // (len(where) // len(memory.values))  # (n,)
        unread: Unread = map_tree(lambda part: part[where], decoded.unread)
        mixture: Mixture = map_tree(lambda part: part[where], decoded.mixture)
        total: Tensor | None = None
        for n in range(mixture.log_weights.size(-1)):  # one context at a time: (n, N, V) need never stand in memory
            place = mixture.positions[:, n] if mixture.positions is not None else torch.full_like(sentence, n)
            words = self._log_probabilities(unread, memory.values[sentence, place])
            # A context of weight zero stays finite, or two of them would give a gradient that is not a number.
            part = mixture.log_weights[:, n : n + 1].to(words.dtype).clamp(min=-1e30) + words
            total = part if total is None else torch.logaddexp(total, part)
        assert total is not None
        return total

    def likelihood(self, decoded: Decoded, memory: Memory, target: Tensor) -> Tensor:
        if decoded.mixture is None:
            return super().likelihood(decoded, memory, target)
        where = target != PAD
        unread: Unread = map_tree(lambda part: part[where], decoded.unread)
        mixture: Mixture = map_tree(lambda part: part[where], decoded.mixture)
        weighed = mixture.log_weights > -torch.inf  # (n, N); nothing is asked about padding
        row, place = weighed.nonzero().unbind(1)
        if mixture.positions is not None:
            place = mixture.positions[weighed]
        sentence = where.nonzero()[:, 0][row] // (len(where) // len(memory.values))
        each: Unread = map_tree(lambda part: part[row], unread)
        features = self._narrowed(self.wiring.readout(each, memory.values[sentence, place]))
        found = log_likelihood(features, self.output.weight, self.output.bias, target[where][row])
        # A context of weight zero stays finite, or two of them would give a gradient that is not a number.
        terms = mixture.log_weights.to(found.dtype).clamp(min=-1e30)
        return (terms + torch.zeros_like(terms).masked_scatter(weighed, found)).logsumexp(1)

    def _log_probabilities(self, unread: Unread, context: Tensor) -> Tensor:
        """(n, V) in float32 or wider, had the readout been given ``context`` (n, M)."""
        logits: Tensor = self.output(self._narrowed(self.wiring.readout(unread, context)))
        return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)

    def penalties(self, decoded: Decoded, memory: Memory, target: Tensor) -> dict[str, Tensor]:
        assert decoded.attended is not None
        return self.attention.penalties(decoded.attended, memory, _Gold(self, decoded, memory, target))

    def statistics(self, decoded: Decoded, memory: Memory, target: Tensor) -> Totals:
        assert decoded.attended is not None
        return self.attention.statistics(decoded.attended, memory, _Gold(self, decoded, memory, target))

    def diagnostics(self, decoded: Decoded, memory: Memory, target: Tensor) -> Totals:
        assert decoded.attended is not None
        return self.attention.diagnostics(decoded.attended, memory, _Gold(self, decoded, memory, target))

    def after_update(self, totals: Mapping[str, tuple[float, float]]) -> None:
        self.attention.after_update(totals)

    def set_update(self, update: int) -> None:
        self.attention.set_update(update)


class _Words:
    """Given words (B, T) and how likely they are; zero where they are padding."""

    def __init__(self, decoder: RNNDecoder, words: Tensor) -> None:
        self.decoder, self.real = decoder, words != PAD
        self.ids = words[self.real]  # (n,)

    def under(self, unread: Unread, context: Tensor) -> Tensor:
        """log p(word | context): contexts (B, T, M) to (B, T), or (B, T, N, M) to (B, T, N)."""
        joined = self.decoder.wiring.readout(unread, context)
        return self.read_from(self.decoder._narrowed(joined[self.real]))

    def read_from(self, features: Tensor) -> Tensor:
        """Of features (n, D), or (n, N, D), what the words have: (B, T), or (B, T, N)."""
        words = self.ids if features.dim() == 2 else self.ids.unsqueeze(1).expand(features.shape[:2])
        output = self.decoder.output
        found = log_likelihood(features.flatten(0, -2), output.weight, output.bias, words.flatten())
        return self.placed(found.view(words.shape))

    def placed(self, found: Tensor) -> Tensor:
        """(n, ...) to (B, T, ...)."""
        placed = found.new_zeros((*self.real.shape, *found.shape[1:]))
        return placed.index_put((self.real,), found)


class _Gold:
    """See `s2s.interfaces.Gold`; zero where the target is padding."""

    def __init__(self, decoder: RNNDecoder, decoded: Decoded, memory: Memory, target: Tensor) -> None:
        self.decoder, self.decoded, self.memory, self.target = decoder, decoded, memory, target
        self.words = _Words(decoder, target)
        self.real = self.words.real

    def __call__(self, context: Tensor | None = None) -> Tensor:
        if context is not None:
            return self.words.under(self.decoded.unread, context)
        return self.words.placed(self.decoder.likelihood(self.decoded, self.memory, self.target))

    def hindsight(self) -> Tensor:
        decoder = self.decoder
        assert decoder.hindsight is not None, "built where the attention asks for it"
        return decoder.hindsight(decoder.embedded(decoder.embedding(self.target)), self.real.sum(1))  # type: ignore[no-any-return]


class RNNDecoderSettings(DecoderSettings, Generic[A]):
    """LSTM or GRU with an attention."""

    kind: Literal["rnn"]
    cell: CellKind = "lstm"
    """lstm or gru."""
    layers: Annotated[int, Field(ge=1)] = 1
    """Layers; the top one asks the attention, but in wiring gnmt the bottom one."""
    size: Annotated[int, Field(ge=1)] = 512
    """Width of every layer, and of the vector h~ that words are read from."""
    wiring: Literal["luong", "bahdanau", "gnmt", "cgru"] = "luong"
    """luong: recur, then attend; bahdanau: attend with the state before, then recur; gnmt: the same, but the bottom
    layer asks and every layer reads; cgru: two GRU cells round it."""
    input_feeding: bool | None = None
    """Luong only: the last h~ joins the next input. By default true for luong; the other wirings feed the context."""
    readout: ReadoutKind = "tanh"
    """How h~ is made: tanh, or maxout, the deep output of Bahdanau 2015, appendix A.2.2."""
    start: StartKind = "bridge"
    """The first state: zero, last (copied), bridge (learned from the last states), bahdanau (from the backward one),
    mean (learned from the mean memory)."""
    residual: bool = False
    """Every layer but the first adds its input to its output."""
    dropout: Rate | None = None
    """Between layers; by default model.dropout."""
    embedding_dropout: Rate | None = None
    """On the embedded words; by default the dropout of this decoder."""
    output_dropout: Rate | None = None
    """On h~, before words are read from it; by default the dropout of this decoder."""
    recurrent_dropout: Rate = 0.0
    """Variational: one mask per sentence on what each layer reads of its own past (Gal & Ghahramani 2016)."""
    attention: A
    """The mechanism of attention."""
    heads: Annotated[int, Field(ge=1)] = 1
    """With more than one, each has an attention of its own over its own projections, ``size / heads`` wide, and what
    they read is joined (Chen 2018)."""

    @property
    def feeds(self) -> bool:
        """Whether h~ is fed back."""
        return self.wiring == "luong" and self.input_feeding is not False

    @property
    def reads_cells(self) -> bool:
        """Whether the encoder's last cells are needed."""
        return self.start == "last" and self.cell == "lstm"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.wiring != "luong" and self.input_feeding is not None:
            raise ValueError(f"input_feeding belongs to wiring luong; {self.wiring} always feeds the context")
        if self.wiring == "cgru" and (self.cell != "gru" or self.layers != 1 or self.recurrent_dropout):
            raise ValueError("wiring cgru is two GRU cells: it needs cell: gru, layers: 1 and no recurrent_dropout")
        if self.wiring == "gnmt" and self.layers == 1:
            raise ValueError("wiring gnmt is about several layers; with one it is bahdanau")
        if self.residual and self.layers == 1:
            raise ValueError("residual is of the layers above the first; set layers to 2 or more, or leave it out")
        if self.size % self.heads:
            raise ValueError(f"heads {self.heads} does not divide size {self.size}")
        if self.heads > 1 and self.attention.refusal_as_head():
            raise ValueError(
                f"heads {self.heads} needs an attention whose weights depend on the query and the source alone, such "
                "as global; with heads 1 it can be any"
            )
        reason = self.attention.refusal(self.wiring, self.feeds)
        if reason:
            raise ValueError(reason)
        return self

    def _attention(self, memory_size: int) -> Attention:
        build: Callable[[int, int], Attention] = self.attention.build  # type: ignore[attr-defined]
        if self.heads == 1:
            return build(self.size, memory_size)
        return Heads(Mechanisms(self.size, memory_size, self.heads, self.heads, build))

    def build(self, embedding: nn.Embedding, encoder: Encoder, dropout: float, tied: bool) -> RNNDecoder:
        """The decoder; ``tied``: its output matrix is the embedding's. ValueError if the encoder leaves too little."""
        if self.attention.reads_final and encoder.leaves is None:
            kind = self.attention.kind  # type: ignore[attr-defined]
            raise ValueError(f"attention {kind}, as it is set, reads last states, which only an rnn encoder leaves")
        rate = dropout if self.dropout is None else self.dropout
        output_rate = rate if self.output_dropout is None else self.output_dropout
        width = embedding.embedding_dim
        attention = self._attention(encoder.size)
        context = attention.context_size
        read_word = 0 if self.wiring == "luong" else width  # luong's state has just read the word
        readout = Readout(self.size, context, read_word, self.size, output_rate, self.readout)
        wiring: Wiring
        if self.wiring == "cgru":
            first, second = RecurrentLayer("gru", width, self.size), RecurrentLayer("gru", context, self.size)
            wiring = ConditionalGRU(first, second, attention, readout)
        else:
            recurrence = Recurrence(
                self.cell, width, self.size, self.layers, feeds_all=self.wiring == "gnmt", residual=self.residual,
                feedback_size=context if self.wiring != "luong" else self.size if self.feeds else 0,
                dropout=rate, recurrent_dropout=self.recurrent_dropout,
            )  # fmt: skip
            if self.wiring == "luong":
                wiring = Luong(recurrence, attention, readout, self.feeds)
            else:
                wiring = Bahdanau(recurrence, attention, readout, from_below=self.wiring == "gnmt")
        narrow = nn.Linear(self.size, width, bias=False) if tied and self.size != width else None
        start = Start(self.start, self.cell, self.layers, self.size, encoder.size, encoder.leaves)
        embedded = rate if self.embedding_dropout is None else self.embedding_dropout
        hindsight = Hindsight(self.cell, width, attention.hindsight) if attention.hindsight else None
        decoder = RNNDecoder(embedding, embedded, start, wiring, narrow, hindsight)
        if tied:
            decoder.output.weight = embedding.weight
        return decoder
