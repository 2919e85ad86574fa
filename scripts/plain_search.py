"""A beam search in plain loops, by the rules of s2s or, difference by difference, by those of OpenNMT-py.

With no difference it finds what s2s finds, with all of them what OpenNMT-py finds. So what it finds with all but one
tells what that one does.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from search_tables import IMPOSSIBLE, Found, Words

from s2s.interfaces import BOS, EOS, PAD
from s2s.search.beam import SearchSettings
from s2s.search.rules import COVERAGE_FLOOR

DIFFERENCES = {
    "places": "a finished hypothesis has taken one of the K places: only the best K continuations are looked at",
    "revival": "a finished hypothesis goes on at log-probability -65504, and comes back where others are worth less",
    "stop": "the search ends when the best continuation of a step is EOS and n_best have finished",
    "length": "BOS counts as a token of the length that scores are divided by",
    "limit": "a prefix is cut off at the length limit; EOS need not follow",
    "single": "blocking single words twice has no effect",
    "floor": "a source token that had no attention costs infinity",
    "padding": "padding of the source counts as source tokens that had no attention",
    "company": "words that are blocked stay in the places of sentences that have left the batch",
}
"""What OpenNMT-py does otherwise than s2s."""
REVIVED = -65504.0


class Searched(Protocol):
    """What a search is told of sentences by their numbers; see `search_tables.World`."""

    def length(self, sentence: int) -> int: ...

    def scores(self, sentence: int, said: Words) -> list[float]: ...

    def attention(self, sentence: int, said: Words) -> list[float]: ...


class Place(NamedTuple):
    """A prefix of a beam, or one that a step might make of it."""

    words: Words
    """EOS and all."""
    total: float
    """Log-probability; -inf is dead."""
    origin: int = 0
    """The place that it continues."""

    @property
    def ended(self) -> bool:
        """Whether EOS was said."""
        return self.words[-1:] == (EOS,)


class PlainSearch:
    """A search of one batch."""

    def __init__(
        self, world: Searched, settings: SearchSettings, limit: int, n_best: int, differences: Collection[str] = ()
    ) -> None:
        """``limit`` in tokens, EOS counted; ``differences`` of `DIFFERENCES`. ValueError for another."""
        if unknown := set(differences) - set(DIFFERENCES):
            raise ValueError(f"{', '.join(sorted(unknown))}: no difference that this search knows")
        self.world, self.settings, self.limit, self.n_best = world, settings, limit, n_best
        self.differs = frozenset(differences)

    def __call__(self, sentences: Sequence[int]) -> list[Found]:
        """Up to n_best translations of each sentence, all sentences step by step together."""
        size = self.settings.beam
        self.width = max(self.world.length(sentence) for sentence in sentences)
        found: dict[int, Found] = {sentence: [] for sentence in sentences}
        beams = {sentence: [Place((), 0.0)] + [Place((), -math.inf)] * (size - 1) for sentence in sentences}
        grams: list[frozenset[Words]] = [frozenset()] * (len(beams) * size)
        while beams:
            stayed, kept_grams, grown = {}, [], []
            for number, (sentence, places) in enumerate(beams.items()):
                first = number * size
                ranked = self.continuations(sentence, places, grams[first : first + size])
                live = self.living(ranked)
                after = [self.noted(grams[first + place.origin], place.words) for place in live]
                grown += after
                if not self.over(sentence, ranked, live, found[sentence]):
                    stayed[sentence] = live
                    kept_grams += after
            beams, grams = stayed, grown if "company" in self.differs else kept_grams
        return [sorted(one, key=lambda hypothesis: -hypothesis[1])[: self.n_best] for one in found.values()]

    def continuations(self, sentence: int, places: list[Place], grams: list[frozenset[Words]]) -> list[Place]:
        """All that may follow, best first; ties to the lower place, then to the lower word."""
        ranked = []
        for origin, place in enumerate(places):
            if place.total == -math.inf:
                continue
            for word, log in enumerate(self.world.scores(sentence, place.words)):
                words = (*place.words, word)
                if log > IMPOSSIBLE and self.allowed(words, grams[origin]):
                    ranked.append(Place(words, place.total + log, origin))
        return sorted(ranked, key=lambda place: (-place.total, place.origin, place.words[-1]))

    def allowed(self, words: Words, grams: frozenset[Words]) -> bool:
        """Whether the last of ``words`` may follow the others, which have said ``grams``."""
        if words[-1] in (PAD, BOS):
            return False
        if len(words) == self.limit and "limit" not in self.differs:
            return words[-1] == EOS
        if words[-1] == EOS and len(words) <= self.settings.min_length:
            return False
        size = self.settings.no_repeat_ngram
        return not size or words[-size:] not in grams

    def noted(self, grams: frozenset[Words], words: Words) -> frozenset[Words]:
        """``grams`` and the one that ends ``words``."""
        size = self.settings.no_repeat_ngram
        if not size or len(words) < size or (size == 1 and "single" in self.differs):
            return grams
        return grams | {words[-size:]}

    def living(self, ranked: list[Place]) -> list[Place]:
        """The places of the next step, of which the dead are there for their room."""
        size = self.settings.beam
        live = ranked[:size] if "places" in self.differs else [place for place in ranked if not place.ended][:size]
        dead = REVIVED if "revival" in self.differs else -math.inf
        live = [place._replace(total=dead) if place.ended else place for place in live]
        return live + [Place((), -math.inf)] * (size - len(live))

    def over(self, sentence: int, ranked: list[Place], live: list[Place], found: Found) -> bool:
        """Add to ``found`` what this step finished; whether the search of this sentence ends with it."""
        length = len(ranked[0].words) if ranked else self.limit
        last = length == self.limit
        for place in ranked[: self.settings.beam]:
            if place.ended or last:
                score = place.total / self.penalty(length) + self.coverage(sentence, place.words)
                found.append(([word for word in place.words if word != EOS], score))
        if last:
            return True
        if "stop" in self.differs:
            return ranked[0].ended and len(found) >= self.n_best
        kept = sorted((score for _, score in found), reverse=True)[: self.settings.beam]
        worst = kept[-1] if len(kept) == self.settings.beam else -math.inf
        return max(place.total for place in live) / self.penalty(length) <= worst

    def penalty(self, tokens: int) -> float:
        """What log-probabilities of so many tokens, EOS counted, are divided by."""
        tokens += "length" in self.differs
        kind, alpha = self.settings.length_penalty, self.settings.length_alpha
        return float({"none": 1.0, "average": tokens**alpha, "gnmt": ((5 + tokens) / 6) ** alpha}[kind])

    def coverage(self, sentence: int, words: Words) -> float:
        """The coverage penalty of ``words``, which were read by as many steps."""
        if not self.settings.coverage_penalty:
            return 0.0
        rows = [self.world.attention(sentence, words[:step]) for step in range(len(words))]
        sums = [math.fsum(column) for column in zip(*rows, strict=True)]
        if "padding" in self.differs:
            sums += [0.0] * (self.width - len(sums))
        floor = 0.0 if "floor" in self.differs else COVERAGE_FLOOR
        return self.settings.coverage_penalty * sum(
            math.log(had) if (had := min(max(each, floor), 1.0)) else -math.inf for each in sums
        )
