"""What was said before: hierarchical attention of a sentence to the sentences before it (Miculicich et al. 2018).

Section 2.2 there, for each position t of the sentence to translate, of which the encoder left h_t, and for the words
h^j_1 .. h^j_n of each of the k sentences j before it in its document:

    s^j = MultiHead(h_t, h^j_1 .. h^j_n)          word by word: what sentence j says to this position
    d_t = FFN(MultiHead(h_t, s^1 .. s^k))         sentence by sentence
    g_t = sigmoid(W [h_t ; d_t] + b)              a gate for every number
    m_t = (1 - g_t) h_t + g_t norm(d_t)           what the decoder finds instead of h_t

The paper's linear maps f_w and f_s of the query are the query projections of the two attentions. As in the authors'
program, the sentences before are read by the same encoder, and neither they nor the queries pass a gradient on to it.
That program normalises m_t, after which even a closed gate would show the decoder other numbers than h_t. Here d_t is
normalised instead: where g is 0 the decoder finds h_t to the last bit, and so it does in the first sentence of a
document, which has nothing before it. The gate begins almost closed, so that a training which starts from a model of
sentences (`init_from`) goes on from what that can do.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from s2s.interfaces import Before, Encoder, Memory
from s2s.models.heads import MultiHead
from s2s.models.layers import Rate
from s2s.models.transformer import FeedForward
from s2s.settings import Settings

_ALMOST_CLOSED = -2.0
"""Where b begins: a gate of 0.12 shuts nothing out and spoils little."""


class Hierarchical(nn.Module):
    """See `HierarchicalSettings`; ``size`` is the width M of the memory."""

    def __init__(self, settings: HierarchicalSettings, size: int, dropout: float) -> None:
        """Raises ValueError where the heads do not divide the memory's width."""
        super().__init__()
        if size % settings.heads:
            raise ValueError(f"document.heads {settings.heads} does not divide the encoder's size {size}")
        rate = dropout if settings.dropout is None else settings.dropout
        inner = 4 * size if settings.feedforward is None else settings.feedforward
        self.sentences = settings.sentences
        self.word = MultiHead(size, size, settings.heads, settings.heads, rate)
        self.sentence = MultiHead(size, size, settings.heads, settings.heads, rate)
        self.feedforward, self.norm = FeedForward(size, inner, "relu", rate), nn.LayerNorm(size)
        self.gate = nn.Linear(2 * size, size, bias=False)
        self.gate_bias = nn.Parameter(torch.full((size,), _ALMOST_CLOSED))

    def forward(self, memory: Memory, before: Before | None, encoder: Encoder) -> Memory:
        """The memory (B, S, M) of B sentences, which ``encoder`` left, joined with the nearest sentences before each.

        The encoder's last states stay what they are.
        """
        if before is None or not before.lengths.any():
            return memory
        source, lengths = (part[:, : self.sentences] for part in before)
        there = lengths > 0  # (B, K)
        rows, places = there.nonzero().unbind(1)  # (n,) each: whose sentence, and which before it
        # After the sentences to translate: autocast keeps what it makes of weights, and here that has no gradient.
        with torch.no_grad():
            read: Memory = encoder(source[rows, places], lengths[rows, places])
        query = memory.values.detach()
        said = self._attended(self.word, query[rows], read)  # (n, S, M)
        summaries = said.new_zeros(*there.shape, *said.shape[1:]).index_put((rows, places), said)  # (B, K, S, M)
        found = self._gathered(query, summaries.transpose(1, 2), there)
        opened = torch.sigmoid(self.gate(torch.cat([memory.values, found], -1)) + self.gate_bias)
        opened = opened * there.any(1)[:, None, None]
        joined = (1 - opened) * memory.values + opened * self.norm(found)
        return memory._replace(values=joined.masked_fill(~memory.mask.unsqueeze(-1), 0.0).to(memory.values.dtype))

    def _gathered(self, query: Tensor, summaries: Tensor, there: Tensor) -> Tensor:
        """d_t (B, S, M): what queries (B, S, M) gather from their summaries (B, S, K, M) of the sentences ``there``."""
        seen = there | ~there.any(1, keepdim=True)  # of no sentence nothing can be asked: those rows are not used
        each = summaries.flatten(0, 1)  # (B S, K, M)
        mask = seen.repeat_interleave(query.size(1), 0)  # (B S, K)
        asked = query.flatten(0, 1).unsqueeze(1)  # (B S, 1, M)
        found = self._attended(self.sentence, asked, Memory(each, mask, mask.sum(1)))
        gathered: Tensor = self.feedforward(found.view_as(query))
        return gathered

    @staticmethod
    def _attended(attention: MultiHead, query: Tensor, memory: Memory) -> Tensor:
        context, _, _ = attention(query, memory, attention.read(memory), ())
        found: Tensor = context
        return found


class HierarchicalSettings(Settings):
    """Every position reads the sentences before its own: their words first, then the sentences (Miculicich 2018)."""

    sentences: Annotated[int, Field(ge=1)] = 3
    """Sentences before, of the same document, that are read."""
    heads: Annotated[int, Field(ge=1)] = 4
    """Heads of both attentions; their number divides the encoder's size."""
    feedforward: Annotated[int, Field(ge=1)] | None = None
    """Width inside the feed-forward part; by default four times the encoder's size."""
    dropout: Rate | None = None
    """On the weights of both attentions and inside the feed-forward part; by default model.dropout."""

    def build(self, size: int, dropout: float) -> Hierarchical:
        """The part for an encoder of this size. Raises ValueError where the heads do not fit."""
        return Hierarchical(self, size, dropout)
