"""Lists of translations ranked again by models: a log-linear combination of the given score and theirs.

    score(y) = w_0 given(y) + sum over models m of w_m score_m(y | x)

score_m is the log-probability over the length penalty, as for any other translation. The models share nothing: each
has its own vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from s2s.data.nbest import Listed, NBest
from s2s.data.text import normalise
from s2s.search.score import Lines, Scored, Scorer
from s2s.strictjson import finite

_LISTS = 256
"""Lists that are pooled for one pass of a model."""


class Judge(NamedTuple):
    """A model with a say."""

    scorer: Scorer
    normalise: Callable[[Scored], float]
    """From what was scored to the model's score."""
    weight: float


class Rescorer:
    """Ranks lists anew. ``given`` is the weight of the scores that stand in the lists."""

    def __init__(self, judges: list[Judge], given: float = 1.0) -> None:
        self.judges, self.given = judges, given
        self.left = 0
        """Lists so far that kept their scores, because a model could not score some hypothesis: see `Scorer`."""

    def rescore(self, lists: Iterable[tuple[NBest, str | None]]) -> Iterator[NBest]:
        """Every list with its source line, in order, ranked by the new scores; ties keep their order.

        Each hypothesis says in its ``more`` what made its score: ``given_score``, and ``model_scores`` of all models.
        """
        rest = iter(lists)
        while taken := list(islice(rest, _LISTS)):
            pairs: list[Lines] = [
                (_normalised(source), _normalised(one.text)) for found, source in taken for one in found.hypotheses
            ]
            columns = [map(judge.normalise, judge.scorer.score(pairs)) for judge in self.judges]
            rows = zip(*columns, strict=True)
            for found, _ in taken:
                yield self._ranked(found, [next(rows) for _ in found.hypotheses])

    def _ranked(self, found: NBest, scores: list[tuple[float, ...]]) -> NBest:
        if any(math.isnan(score) for of_one in scores for score in of_one):
            self.left += 1
            return found
        weights = [self.given, *(judge.weight for judge in self.judges)]
        explained: list[Listed] = []
        totals: list[float] = []
        for one, of_one in zip(found.hypotheses, scores, strict=True):
            said = {"given_score": finite(one.score), "model_scores": [*map(finite, of_one)]}
            explained.append(one._replace(more=one.more | said))
            totals.append(weighted(weights, [one.score, *of_one]))
        return found._replace(hypotheses=explained).ranked(totals)


def _normalised(line: str | None) -> str | None:
    """A line as models read it; what stands in a JSON file may be anything."""
    return None if line is None else normalise(line)[0]


def weighted(weights: list[float], scores: list[float]) -> float:
    """The sum of scores times weights; what has weight 0 has no say, also where it is -inf.

    -inf where a score with a say is: what one of them calls impossible is last, whatever the sign of its weight.
    """
    said = [(weight, score) for weight, score in zip(weights, scores, strict=True) if weight]
    if any(score == -math.inf for _, score in said):
        return -math.inf
    return math.fsum(weight * score for weight, score in said)
