"""Minimum Bayes risk: of several translations, the one that is most like all the others.

    best = argmax over y of  sum over y' of p(y') u(y, y')            Kumar & Byrne 2004; Eikema & Aziz 2020

u is a score of y against y' as its reference. The sum runs over all given translations, y itself among them. With drawn
samples every y' counts the same, for the more probable ones come more often; a list of the best translations holds each
one once, and there p is the softmax of the scores. Ties go to the lowest rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

Utility = Callable[[str, str], float]
"""``utility(hypothesis, reference)``, higher is better."""
UtilityName = Literal["chrf", "bleu"]
Weighting = Literal["uniform", "softmax"]


def sentence_utility(name: UtilityName) -> Utility:
    """sacreBLEU's sentence score, 0 to 100: chrF2, or BLEU with exponential smoothing and effective order."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF() if name == "chrf" else BLEU(effective_order=True)
    return lambda hypothesis, reference: float(metric.sentence_score(hypothesis, [reference]).score)


def probabilities(scores: Sequence[float], weighting: Weighting) -> list[float]:
    """What each of these hypotheses counts, summing to 1; uniform too where no score is above -inf."""
    highest = max(scores)
    if weighting == "uniform" or highest == -math.inf:
        return [1 / len(scores)] * len(scores)
    masses = [math.exp(score - highest) for score in scores]
    total = math.fsum(masses)
    return [mass / total for mass in masses]


def expected_utilities(texts: Sequence[str], weights: Sequence[float], utility: Utility) -> list[float]:
    """Of each text the mean of its utility against all texts, under these weights, which sum to 1.

    Equal texts are looked at once: n different ones ask for n^2 utilities.
    """
    mass: dict[str, float] = {}
    for text, weight in zip(texts, weights, strict=True):
        mass[text] = mass.get(text, 0.0) + weight
    expected = {text: math.fsum(p * utility(text, other) for other, p in mass.items() if p) for text in mass}
    return [expected[text] for text in texts]
