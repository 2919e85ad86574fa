"""Given translations, scored: the log-probability of every target line, and of its pieces, under its source line.

What search reports of a translation is what is found here for the same pieces. Pairs are taken in windows; within a
window pairs of like length are run together, and the results come out in the order of the pairs, one for each:

- a pair whose target is blank: the probability of EOS alone;
- a pair whose source is blank: the model is not asked, as when translating. Blank is then the one translation there
  is: a blank target has log-probability 0, any other one -inf;
- a pair with a line that could not be read, or with more pieces on a side than ``max_source_length``: NaN. A
  translation cannot be cut into parts that belong to the parts of its source.

A model of documents is given the source lines before each, up to the last one that is blank or could not be read, as
when translating.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from s2s.data.batches import padded, sentences_of
from s2s.data.tokenizer import Tokenizers
from s2s.errors import CheckpointError
from s2s.interfaces import BOS, EOS, NOTHING, PAD, Before, Decoded, Decoder, Memory, Searchable
from s2s.likelihood import log_likelihood
from s2s.search.beam import SearchSettings
from s2s.search.documents import Document
from s2s.tree import map_tree

_WINDOW = 16
"""Batches that are pooled for sorting by length."""
_SCORES = 8_000_000
"""Scores (positions x V) that stand in memory at once."""

Lines = tuple[str | None, str | None]
"""A source line and its translation, normalised; None is a line that could not be read."""
Ids = tuple[list[int], list[int]]
"""The pieces of both, EOS at the end of each."""


class Forced(NamedTuple):
    """What a model says of given targets, T tokens each with EOS."""

    log_probabilities: Tensor
    """(B, T) natural logarithms of the given tokens' probabilities, float32 or wider; 0 at padding."""
    weights: Tensor | None
    """(B, T, S) attention at each token; None if not wanted or if the model has none."""


Force = Callable[[Tensor, Tensor, Tensor, frozenset[str], Before | None], Forced]
"""``force(source (B, S), lengths (B,), target (B, T + 1), want, before)``; ``target`` has BOS first and PAD last."""


class Teachable(Protocol):
    """A single model, which reads a whole target at once."""

    @property
    def decoder(self) -> Decoder:
        """What reads words out."""
        ...

    def forward(
        self,
        source: Tensor,
        lengths: Tensor,
        words: Tensor,
        want: frozenset[str] = NOTHING,
        before: Before | None = None,
    ) -> tuple[Decoded, Memory]:
        """See `s2s.models.seq2seq.Seq2Seq`."""
        ...


@torch.no_grad()
def force_at_once(
    model: Teachable,
    source: Tensor,
    lengths: Tensor,
    target: Tensor,
    want: frozenset[str] = NOTHING,
    before: Before | None = None,
) -> Forced:
    """See `Force`; all positions of the target in one call. Never holds (B, T, V) at once."""
    gold = target[:, 1:]
    decoded, memory = model.forward(source, lengths, target[:, :-1], want, before)
    chosen: list[Tensor] = []
    real = (gold != PAD).nonzero()  # (n, 2)
    for places in torch.split(real, max(1, _SCORES // model.decoder.output.out_features)):
        where = torch.zeros_like(gold, dtype=torch.bool)
        where[places[:, 0], places[:, 1]] = True
        if decoded.mixture is None:
            features, output = model.decoder.features(decoded, memory, where), model.decoder.output
            chosen.append(log_likelihood(features, output.weight, output.bias, gold[where]))
        else:
            words = model.decoder.logits(decoded, memory, where).log_softmax(-1)
            chosen.append(words.gather(1, gold[where].unsqueeze(1)).squeeze(1))
    found = torch.cat(chosen)
    return Forced(found.new_zeros(gold.shape).masked_scatter(gold != PAD, found), decoded.weights)


@torch.no_grad()
def force_by_steps(
    model: Searchable,
    source: Tensor,
    lengths: Tensor,
    target: Tensor,
    want: frozenset[str] = NOTHING,
    before: Before | None = None,
) -> Forced:
    """See `Force`; token by token, as search does it, which every `Searchable` can."""
    memory, state = model.start(source, lengths, want, before=before)
    gold = target[:, 1:]
    chosen: list[Tensor] = []
    shown: list[Tensor] = []
    for step in range(gold.size(1)):
        words, weights, state = model.step(target[:, step], memory, state)
        chosen.append(words.gather(1, gold[:, step : step + 1]))
        if weights is not None and "weights" in want:
            shown.append(weights)
    found = torch.cat(chosen, 1).masked_fill(gold == PAD, 0.0)
    return Forced(found, torch.stack(shown, 1) if shown else None)


class Scored(NamedTuple):
    """What became of one pair."""

    source: str
    target: str
    log_probability: float
    """Natural logarithm, EOS counted; NaN for a pair that was not scored, -inf for text that "translates" nothing."""
    source_ids: list[int]
    """Pieces with EOS; empty where the model was not asked."""
    target_ids: list[int]
    """The same of the target."""
    token_log_probabilities: list[float]
    """One per target piece, EOS last."""
    attention: Tensor | None
    """(target, source) float32 weights on the CPU, both with EOS, if they were asked for and the model has any."""

    @property
    def length(self) -> int:
        """Tokens that length penalties count, EOS among them; at least 1."""
        return max(1, len(self.target_ids))


class Scorer:
    """A model with its vocabularies. ``settings`` gives the size of batches, the longest line and the precision."""

    def __init__(
        self,
        force: Force,
        tokenizers: Tokenizers,
        settings: SearchSettings,
        device: torch.device,
        *,
        attention: bool = False,
        sentences_before: int = 0,
    ) -> None:
        """``force`` runs the model, which the caller has put into evaluation mode and which reads so many sentences
        before each."""
        self.sentences_before = sentences_before
        self.force, self.tokenizers, self.settings, self.device = force, tokenizers, settings, device
        self.want = frozenset({"weights"}) if attention else NOTHING
        self.too_long = 0
        """Pairs so far that had too many pieces on a side."""

    def score(self, pairs: Iterable[Lines]) -> Iterator[Scored]:
        """What becomes of every pair, in order. Raises CheckpointError if the model gives NaN."""
        rest, document = iter(pairs), Document(self.sentences_before, self.settings.max_source_length)
        while taken := list(self._taken(rest)):
            yield from self._window(taken, document)

    def _taken(self, pairs: Iterator[Lines]) -> Iterator[tuple[Lines, Scored | Ids]]:
        """The pairs of a window, each with its result, or with its pieces where the model is asked."""
        room = _WINDOW * self.settings.batch_tokens
        for pair in pairs:
            found = self._unasked(*pair) or self._ids(*pair)
            yield pair, found
            room -= 1 if isinstance(found, Scored) else max(map(len, found))
            if room <= 0:
                return

    def _window(self, taken: list[tuple[Lines, Scored | Ids]], document: Document) -> list[Scored]:
        pairs = [pair for pair, _ in taken]
        before = [self._before(source, document) for source, _ in pairs]
        results = [found if isinstance(found, Scored) else None for _, found in taken]
        asked = {index: found for index, (_, found) in enumerate(taken) if not isinstance(found, Scored)}
        for index, (source, target) in list(asked.items()):
            if max(len(source), len(target)) > self.settings.max_source_length:
                self.too_long += 1
                results[index] = _without_ids(pairs[index], math.nan)
                del asked[index]
        for batch in self._batches({index: max(map(len, sides)) for index, sides in asked.items()}):
            forced = self._forced([asked[index] for index in batch], [before[index] for index in batch])
            for row, index in enumerate(batch):
                results[index] = _scored(pairs[index], *asked[index], forced, row)
        return [result for result in results if result is not None]

    def _before(self, source: str | None, document: Document) -> tuple[list[int], ...]:
        """The sentences before a source line, which joins its document, or ends it."""
        before = document.before
        if source is None or not source.strip():
            document.end()
        elif self.sentences_before:
            document.add(self.tokenizers.source.encode(source))
        return before

    @staticmethod
    def _unasked(source: str | None, target: str | None) -> Scored | None:
        """The result of a pair that the model is not asked about; None for any other."""
        if source is None or target is None:
            return _without_ids((source, target), math.nan)
        if source.strip():
            return None
        return _without_ids((source, target), -math.inf if target.strip() else 0.0)

    def _ids(self, source: str | None, target: str | None) -> Ids:
        encode_source, encode_target = self.tokenizers.source.encode, self.tokenizers.target.encode
        return [*encode_source(source or ""), EOS], [*encode_target(target or ""), EOS]

    def _batches(self, lengths: dict[int, int]) -> Iterator[list[int]]:
        """Indices of pairs by the length of their longer side, longest first, as many as fit ``batch_tokens``."""
        order = sorted(lengths, key=lambda index: (-lengths[index], index))
        while order:
            count = max(1, self.settings.batch_tokens // lengths[order[0]])
            yield order[:count]
            order = order[count:]

    def _forced(self, pairs: list[Ids], before: list[tuple[list[int], ...]]) -> Forced:
        sources, targets = [ids for ids, _ in pairs], [[BOS, *ids] for _, ids in pairs]
        arrays = (*padded(sources), padded(targets)[0])
        source, lengths, target = (torch.from_numpy(array).to(self.device) for array in arrays)
        given = map_tree(lambda tensor: tensor.to(self.device), sentences_of(before, self.sentences_before))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            forced = self.force(source, lengths, target, self.want, given)
        if forced.log_probabilities.isnan().any():
            raise CheckpointError("model", "gives probabilities that are not numbers", "score with another checkpoint")
        weights = None if forced.weights is None else forced.weights.float().cpu()
        return Forced(forced.log_probabilities.double().cpu(), weights)


def _without_ids(pair: Lines, log_probability: float) -> Scored:
    return Scored(pair[0] or "", pair[1] or "", log_probability, [], [], [], None)


def _scored(pair: Lines, source: list[int], target: list[int], forced: Forced, row: int) -> Scored:
    tokens = forced.log_probabilities[row, : len(target)].tolist()
    weights = None if forced.weights is None else forced.weights[row, : len(target), : len(source)].clone()
    return Scored(pair[0] or "", pair[1] or "", math.fsum(tokens), source, target, tokens, weights)
