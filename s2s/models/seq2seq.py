"""An encoder and a decoder joined: what is trained, and what search steps through."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from s2s.draws import numbers_of
from s2s.interfaces import NOTHING, Before, Decoded, Decoder, Encoder, Memory
from s2s.likelihood import log_probabilities
from s2s.models.document import Hierarchical, HierarchicalSettings
from s2s.models.layers import embedding
from s2s.settings import DecoderSettings, EncoderSettings, Settings
from s2s.tree import Tree, repeat

E = TypeVar("E", bound=EncoderSettings)
D = TypeVar("D", bound=DecoderSettings)


class Seq2Seq(nn.Module):
    """Source ids to a distribution over target ids. A `s2s.interfaces.Searchable`."""

    def __init__(self, encoder: Encoder, decoder: Decoder, document: Hierarchical | None = None) -> None:
        super().__init__()
        self.encoder, self.decoder, self.document = encoder, decoder, document

    @property
    def sentences_before(self) -> int:
        """See `Searchable.sentences_before`."""
        return 0 if self.document is None else self.document.sentences

    @property
    def same_age(self) -> bool:
        """See `Searchable.same_age`."""
        return self.decoder.same_age

    @property
    def grows(self) -> bool:
        """See `Searchable.grows`."""
        return self.decoder.grows

    def forward(
        self,
        source: Tensor,
        lengths: Tensor,
        words: Tensor,
        want: frozenset[str] = NOTHING,
        before: Before | None = None,
    ) -> tuple[Decoded, Memory]:
        """Teacher forcing: source (B, S), lengths (B,), target prefix (B, T), BOS first; ``before`` as for `start`."""
        memory, state = self.decoder.start(self.read(source, lengths, before), want)
        return self.decoder(words, memory, state)[0], memory

    def read(self, source: Tensor, lengths: Tensor, before: Before | None) -> Memory:
        """What the encoder leaves of source (B, S) with lengths (B,), joined with the sentences before."""
        memory: Memory = self.encoder(source, lengths)
        if not self.training:
            memory = memory._replace(number=numbers_of(source, lengths))
        if self.document is None:
            return memory
        joined: Memory = self.document(memory, before, self.encoder)
        return joined

    def start(
        self,
        source: Tensor,
        lengths: Tensor,
        want: frozenset[str] = NOTHING,
        places: int = 1,
        before: Before | None = None,
    ) -> tuple[Tree, Tree]:
        """See `Searchable.start`."""
        memory, state = self.decoder.start(self.read(source, lengths, before), want)
        if places > 1 and not self.decoder.shares(state):
            memory = repeat(memory, places)
        return memory, repeat(state, places)

    def step(self, token: Tensor, memory: Memory, state: Tree) -> tuple[Tensor, Tensor | None, Tree]:
        """See `Searchable.step`."""
        decoded, state = self.decoder(token.unsqueeze(1), memory, state)
        here, output = torch.ones_like(token, dtype=torch.bool).unsqueeze(1), self.decoder.output
        if decoded.mixture is None:
            words = log_probabilities(self.decoder.features(decoded, memory, here), output.weight, output.bias)
        else:
            words = self.decoder.logits(decoded, memory, here).log_softmax(-1)
        return words, None if decoded.weights is None else decoded.weights[:, -1], state


def initialise(model: Seq2Seq, uniform: float | None) -> None:
    """Xavier-uniform matrices and zero biases for plain linear maps, or everything from U(-uniform, uniform).

    An output matrix, tied or not, is drawn as embeddings are, N(0, 1/D), or more widely if the decoder asks for it
    (`Decoder.least_deviation`). Xavier's rows are shorter the more words there are.

    Recurrent layers, embeddings and multi-head projections have set themselves already.
    """
    with torch.no_grad():
        tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        output = model.decoder.output
        usual = output.in_features**-0.5
        deviation = max(usual, model.decoder.least_deviation)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                if module is output and id(module.weight) not in tied:
                    nn.init.normal_(module.weight, 0.0, deviation)
                elif id(module.weight) not in tied:
                    nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    module.bias.zero_()
        if id(output.weight) in tied:
            output.weight.mul_(deviation / usual)
        if uniform is not None:
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.uniform_(-uniform, uniform)
            for module in model.modules():
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    module.weight[module.padding_idx].zero_()


class ModelSettings(Settings, Generic[E, D]):
    """The network."""

    embedding: Annotated[int, Field(ge=1)] = 256
    """Width of the word embeddings."""
    tie: Literal["none", "output", "all"] = "output"
    """Share the target embedding with the output matrix (output), and with the source embedding too (all, which needs
    a joint vocabulary)."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Dropout wherever a part has no rate of its own."""
    uniform_init: Annotated[float, Field(gt=0.0)] | None = None
    """Draw every matrix from U(-x, x), as Luong 2015 does with 0.1; by default Xavier, embeddings and the output
    matrix N(0, 1 / width), but N(0, 1 / 64) at least before a recurrent decoder, recurrent parts orthogonal. Rows of
    ConvS2S have lengths that are parameters of their own: there x moves the embeddings alone."""
    encoder: E
    """What reads the source."""
    decoder: D
    """What writes the target."""
    document: HierarchicalSettings | None = None
    """How the sentences before, of the same document, are read too (Miculicich 2018); null: each sentence is alone. In
    texts a blank line ends a document."""

    def build(self, source_vocabulary: int, target_vocabulary: int) -> Seq2Seq:
        """The network for vocabularies of these sizes, drawn from torch's generator as it stands.

        Raises ValueError where parts do not fit each other.
        """
        if self.tie == "all" and source_vocabulary != target_vocabulary:
            raise ValueError("tie: all needs one vocabulary for both sides (tokenizer.joint: true)")
        target = embedding(target_vocabulary, self.embedding)
        source = target if self.tie == "all" else embedding(source_vocabulary, self.embedding)
        encoder_settings: Any = self.encoder  # the kinds are closed in s2s.config; each has its build
        decoder_settings: Any = self.decoder
        encoder: Encoder = encoder_settings.build(source, self.dropout, decoder_settings.reads_cells)
        decoder: Decoder = decoder_settings.build(target, encoder, self.dropout, self.tie != "none")
        document = None if self.document is None else self.document.build(encoder.size, self.dropout)
        model = Seq2Seq(encoder, decoder, document)
        initialise(model, self.uniform_init)
        return model
