"""Scores of translations: with signatures, with intervals and p-values, and by bands of length or word frequency."""

from s2s.evaluation.scores import (
    METRICS,
    Judge,
    Measured,
    MetricName,
    Score,
    bleu,
    chrf,
    exact_match,
    judge,
    score_all,
    ter,
    tok_lc,
    tok_lc_bleu,
)

__all__ = [
    "METRICS",
    "Judge",
    "Measured",
    "MetricName",
    "Score",
    "bleu",
    "chrf",
    "exact_match",
    "judge",
    "score_all",
    "ter",
    "tok_lc",
    "tok_lc_bleu",
]
