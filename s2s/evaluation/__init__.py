"""Scores of translations: with signatures, with intervals and p-values, and by bands of length or word frequency."""

from s2s.evaluation.scores import (
    METRICS,
    Judge,
    Measured,
    MetricName,
    Score,
    bleu,
    judge,
    score_all,
    tok_lc,
)

__all__ = [
    "METRICS",
    "Judge",
    "Measured",
    "MetricName",
    "Score",
    "bleu",
    "judge",
    "score_all",
    "tok_lc",
]
