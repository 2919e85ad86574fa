"""Scores of translations, each with the signature that makes it comparable: BLEU, chrF, TER, exact match, tok-lc BLEU.

sacreBLEU computes them, so a score here is the score its command line gives for the same lines. ``tok-lc`` is the
score that papers on Multi30k print: BLEU on lower-cased, punctuation-normalised, Moses-tokenised text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from s2s.errors import DataError, UsageError

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric


@dataclass(frozen=True)
class Score:
    """One corpus score: ``value`` is in per cent, ``signature`` says everything that two equal scores must share."""

    name: str
    value: float
    signature: str

    def __str__(self) -> str:
        return f"{self.name} {self.value:.2f}  {self.signature}"


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    """Cased BLEU of raw text with sacreBLEU's tokeniser 13a, 0 to 100."""
    from sacrebleu.metrics.bleu import BLEU

    return _corpus_score("bleu", BLEU(), hypotheses, references)


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    """chrF2 of raw text: F-score of character n-grams up to 6, recall counted twice, 0 to 100."""
    from sacrebleu.metrics.chrf import CHRF

    return _corpus_score("chrf", CHRF(), hypotheses, references)


def ter(hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    """Translation edit rate, lower-cased as tercom does it: edits per 100 reference words, lower is better."""
    from sacrebleu.metrics.ter import TER

    return _corpus_score("ter", TER(), hypotheses, references)


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    """Per cent of lines that equal their reference character for character."""
    _require_pairs(hypotheses, references)
    matches = sum(hypothesis == reference for hypothesis, reference in zip(hypotheses, references, strict=True))
    return Score("exact", 100 * matches / len(references), "exact|nrefs:1|case:mixed|tok:none")


METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], Score]] = {
    "bleu": bleu,
    "chrf": chrf,
    "ter": ter,
    "exact": exact_match,
}


def score_all(
    hypotheses: Sequence[str], references: Sequence[str], metrics: Sequence[str] = ("bleu", "chrf", "ter")
) -> list[Score]:
    """The scores named in ``metrics``, in that order.

    Raises UsageError for a name that is not in `METRICS`, DataError for no lines or different numbers of lines.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise UsageError("metrics", f"no metric is called {unknown[0]}", f"the metrics are {', '.join(METRICS)}")
    return [METRICS[name](hypotheses, references) for name in metrics]


def tok_lc_bleu(hypotheses: Sequence[str], tokenised_references: Sequence[str], language: str) -> Score:
    """BLEU of raw ``hypotheses`` against the official ``lc.norm.tok`` references of ``language`` ("de", "en", ...).

    Raises DataError for no lines or different numbers of lines.
    """
    from sacrebleu.metrics.bleu import BLEU

    _require_pairs(hypotheses, tokenised_references)
    # force: the references are tokenised on purpose, so sacreBLEU need not warn about it.
    metric = BLEU(lowercase=True, tokenize="none", force=True)
    return _corpus_score("tok-lc", metric, [tok_lc(line, language) for line in hypotheses], tokenised_references)


def tok_lc(line: str, language: str) -> str:
    """Turn raw text into the form of the official Multi30k ``lc.norm.tok`` files.

    Lower-case, normalise punctuation, tokenise, in this order; ``&`` and quotes become entities, as Moses writes them.
    """
    normaliser, tokeniser = _moses(language)
    # Moses' own script sees lines with their line feed, and one of its rules (a quote after a last full stop) needs it.
    normalised = normaliser.normalize(line.lower() + "\n")
    return str(tokeniser.tokenize(normalised, escape=True, return_str=True))


@cache
def _moses(language: str) -> tuple[Any, Any]:
    """The punctuation normaliser and the tokeniser of one language; they read their rules from files, so only once."""
    from sacremoses import MosesPunctNormalizer, MosesTokenizer

    return MosesPunctNormalizer(lang=language), MosesTokenizer(lang=language)


def _corpus_score(name: str, metric: Metric, hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    _require_pairs(hypotheses, references)
    result = metric.corpus_score(list(hypotheses), [list(references)])
    return Score(name, float(result.score), f"{result.name}|{metric.get_signature()}")


def _require_pairs(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references):
        counts = f"{len(hypotheses)} hypothesis lines but {len(references)} reference lines"
        raise DataError("scoring", counts, "the two files must translate the same lines")
    if not references:
        raise DataError("scoring", "0 hypothesis lines and 0 reference lines", "there is nothing to score")
