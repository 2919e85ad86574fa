"""Random tables of probabilities and attention that s2s and its peers search, and how what they find is compared."""

from __future__ import annotations

import math
import random
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s2s.interfaces import BOS, EOS, NOTHING, PAD, Before
from s2s.tree import Tree, repeat

SENTENCES, VOCABULARY, WORDS, BEAM = 100, 10, 7, 4
LONGEST_SOURCE = 6
IMPOSSIBLE = -1e9
"""A logarithm that all take for none; the peers cannot reckon with infinity."""

Words = tuple[int, ...]
Found = list[tuple[list[int], float]]
"""Words and score of each hypothesis, best first."""


@cache
def table(sentence: int, ends: bool, said: Words) -> list[float]:
    """Log-probabilities of the word after ``said``: random, PAD and BOS impossible, EOS likelier as it grows."""
    draw = random.Random(f"{sentence} {said}")
    scores = [draw.gauss(0, 1.5) for _ in range(VOCABULARY)]
    if ends:
        scores[EOS] += 0.3 * len(said)
    if ends and len(said) == WORDS:
        return [0.0 if word == EOS else IMPOSSIBLE for word in range(VOCABULARY)]
    possible = [word for word in range(VOCABULARY) if word not in (PAD, BOS)]
    total = math.log(math.fsum(math.exp(scores[word]) for word in possible))
    return [scores[word] - total if word in possible else IMPOSSIBLE for word in range(VOCABULARY)]


class World(NamedTuple):
    """What is searched: the tables of all sentences, and the attention of their prefixes."""

    ends: bool = True
    """Whether the tables end by themselves before the limit."""
    hard: bool = False
    """Whether all attention is on one source position, so that others have none at all."""
    uneven: bool = False
    """Whether sources differ in length."""

    def length(self, sentence: int) -> int:
        """Source positions."""
        return LONGEST_SOURCE - sentence % 4 if self.uneven else LONGEST_SOURCE

    def scores(self, sentence: int, said: Words) -> list[float]:
        """Log-probabilities of the word after ``said``."""
        return table(sentence, self.ends, said)

    def attention(self, sentence: int, said: Words) -> list[float]:
        """What the step after ``said`` gives to each source position."""
        draw = random.Random(f"attention {sentence} {said}")
        weights = [math.exp(draw.gauss(0, 1.5)) for _ in range(self.length(sentence))]
        if self.hard:
            return [float(weight == max(weights)) for weight in weights]
        return [weight / math.fsum(weights) for weight in weights]


class Tables:
    """A world as a model that s2s searches; the first source token is the number of the sentence."""

    sentences_before = 0
    same_age = True
    grows = True

    def __init__(self, world: World, attends: bool = False) -> None:
        """``attends``: whether it tells its attention."""
        self.world, self.attends = world, attends

    def start(
        self,
        source: Tensor,
        lengths: Tensor,
        want: frozenset[str] = NOTHING,
        places: int = 1,
        before: Before | None = None,
    ) -> tuple[Tree, Tree]:
        """See `s2s.interfaces.Searchable`."""
        return repeat((source, source.new_zeros(len(source), 0)), places)

    def step(self, token: Tensor, memory: Tree, state: Tree) -> tuple[Tensor, Tensor | None, Tree]:
        """See `s2s.interfaces.Searchable`."""
        said = torch.cat((state, token.unsqueeze(1)), 1)
        rows = [(int(row[0]), tuple(read[1:])) for row, read in zip(memory, said.tolist(), strict=True)]
        scores = torch.tensor([self.world.scores(*row) for row in rows], dtype=torch.float64)
        if not self.attends:
            return scores, None, said
        weights = torch.zeros(memory.shape, dtype=torch.float64)
        for row, key in enumerate(rows):
            shown = self.world.attention(*key)
            weights[row, : len(shown)] = torch.tensor(shown, dtype=torch.float64)
        return scores, weights, said


def agreement(one: list[Found], other: list[Found]) -> dict[str, Any]:
    """In how many sentences two searches agree, and how far finite scores of equal translations lie apart.

    ``infinite_scores`` of the ``other``, where there are any: hypotheses whose score is -inf.
    """
    pairs = list(zip(one, other, strict=True))
    differences = [
        abs(score - scores[tuple(words)])
        for found, second in pairs
        for scores in [{tuple(words): score for words, score in second}]
        for words, score in found
        if math.isfinite(score - scores.get(tuple(words), math.nan))
    ]
    infinite = sum(score == -math.inf for second in other for _, score in second)
    return {
        "same_best": sum(found[0][0] == second[0][0] for found, second in pairs),
        "same_list": sum([words for words, _ in found] == [words for words, _ in second] for found, second in pairs),
        "largest_difference_of_score": max(differences) if differences else None,
        **({"infinite_scores": infinite} if infinite else {}),
    }
