"""Scores of translations, each with the signature that makes it comparable.

sacreBLEU computes them, so a score here is the score its command line gives for the same lines. ``tok-lc`` is the
score that papers on Multi30k print: BLEU on lower-cased, punctuation-normalised, Moses-tokenised text. ``tokenised``
is BLEU of the words as they stand, for texts that were trained on in that form.

Every one is a function of sums over sentences (`Measured`). That is what resampling and bands need: they sum again,
over other sentences, and look at no text twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

from s2s.errors import DataError, UsageError

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric
    from sacrebleu.metrics.bleu import BLEU

MetricName = Literal["bleu", "chrf", "ter", "exact", "tok-lc", "tokenised"]
METRICS: tuple[str, ...] = get_args(MetricName)
LANGUAGE = r"^[a-z]{2,3}$"
"""How a language is named."""


@dataclass(frozen=True)
class Score:
    """One corpus score: ``value`` is in per cent, ``signature`` says everything that two equal scores must share."""

    name: str
    value: float
    signature: str

    def __str__(self) -> str:
        return f"{self.name} {self.value:.2f}  {self.signature}"


@dataclass(frozen=True)
class Measured:
    """One system by one metric: what each sentence adds to the sums that the corpus score is a function of."""

    name: str
    signature: str
    sentences: Sequence[Sequence[float]]
    """For each sentence what it adds; all of one length."""
    value_of: Callable[[Sequence[float]], float]
    """From sums to a score in per cent."""

    @property
    def score(self) -> Score:
        """Of all sentences."""
        sums = [math.fsum(column) for column in zip(*self.sentences, strict=True)]
        return Score(self.name, self.value_of(sums), self.signature)

    @property
    def better(self) -> Literal[1, -1]:
        """The sign of an improvement: TER counts errors."""
        return -1 if self.name == "ter" else 1


Judge = Callable[[Sequence[str]], Measured]
"""A metric with its references, prepared once for any number of systems. Raises DataError as `score_all`."""


def judge(
    name: str,
    references: Sequence[Sequence[str]],
    *,
    target: str = "",
    tokenised: Sequence[str] | None = None,
    language: str = "de",
) -> Judge:
    """The metric called ``name`` over one or more references, each with a line for every sentence.

    ``target`` is the target language where it is known: sacreBLEU has tokenisers of their own for zh, ja and ko.
    ``tokenised`` and ``language`` are of tok-lc: its references in the official form, made from the others where they
    are not given, and the language of its rules. Raises UsageError for an unknown metric or one that needs an extra
    package, DataError for no lines.
    """
    require_metric(name)
    for lines in references:
        _require_pairs(references[0], lines)
    if name == "exact":
        return _exact(references)
    if name == "tok-lc":
        given = [tokenised] if tokenised is not None else [[tok_lc(line, language) for line in r] for r in references]
        rules = f"|moses:{language}"  # sacreBLEU only sees what these have made
        return _by_sacrebleu(name, _metric(name, given), given, lambda line: tok_lc(line, language), rules)
    return _by_sacrebleu(name, _metric(name, references, target), references)


def require_metric(name: str) -> None:
    """Raises UsageError where no metric is called so."""
    if name not in METRICS:
        raise UsageError("metrics", f"no metric is called {name}", f"the metrics are {', '.join(METRICS)}")


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    """Cased BLEU of raw text with sacreBLEU's tokeniser 13a, 0 to 100."""
    return judge("bleu", [references])(hypotheses).score


def score_all(
    hypotheses: Sequence[str],
    references: Sequence[str],
    metrics: Sequence[str] = ("bleu", "chrf", "ter"),
    target: str = "",
) -> list[Score]:
    """The scores named in ``metrics``, in that order; ``target`` as in `judge`.

    Raises UsageError for a name that is not in `METRICS`, DataError for no lines or different numbers of lines.
    """
    judges = [judge(name, [references], target=target) for name in metrics]
    return [measure(hypotheses).score for measure in judges]


def tok_lc(line: str, language: str) -> str:
    """Turn raw text into the form of the official Multi30k ``lc.norm.tok`` files.

    Lower-case, normalise punctuation, tokenise, in this order; ``&`` and quotes become entities, as Moses writes them.
    """
    normaliser, tokeniser = _moses(language)
    # Moses' own script sees lines with their line feed, and one of its rules (a quote after a last full stop) needs it.
    normalised = normaliser.normalize(line.lower() + "\n")
    return str(tokeniser.tokenize(normalised, escape=True, return_str=True))


def tokenise(line: str, target: str = "") -> list[str]:
    """The words that BLEU sees in a raw line: sacreBLEU's tokeniser 13a, or that of ``target`` where it has its own."""
    return str(_tokeniser(target)(line)).split()


@cache
def _tokeniser(target: str) -> Callable[[str], str]:
    with_tokeniser: Callable[[str], str] = _bleu(target).tokenizer
    return with_tokeniser


def _bleu(target: str, **options: Any) -> BLEU:
    """sacreBLEU's metric with the tokeniser of a language. Raises UsageError where that is not installed."""
    from sacrebleu.metrics.bleu import BLEU

    try:
        return BLEU(trg_lang=target, **options)
    except RuntimeError as error:  # that of Japanese or Korean
        raise UsageError("bleu", " ".join(str(error).split())) from error


@cache
def _moses(language: str) -> tuple[Any, Any]:
    """The punctuation normaliser and the tokeniser of one language; they read their rules from files, so only once."""
    from sacremoses import MosesPunctNormalizer, MosesTokenizer
    from sacremoses.corpus import NonbreakingPrefixes

    known = sorted({code for code in NonbreakingPrefixes().available_langs.values() if len(code) <= 3})
    if language not in known:  # it would go by the rules of English, silently
        raise UsageError("tok-lc", f"Moses has no rules for {language!r}", f"it has them for {', '.join(known)}")
    return MosesPunctNormalizer(lang=language), MosesTokenizer(lang=language)


def _metric(name: str, references: Sequence[Sequence[str]], target: str = "") -> Metric:
    """sacreBLEU's metric, with its references counted."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    if name == "chrf":
        return CHRF(references=references)
    if name == "ter":
        return TER(references=references)
    if name in ("tok-lc", "tokenised"):
        # force: the references are tokenised on purpose, so sacreBLEU need not warn about it.
        return BLEU(lowercase=name == "tok-lc", tokenize="none", force=True, references=references)
    return _bleu(target, references=references)


def _by_sacrebleu(
    name: str,
    metric: Metric,
    references: Sequence[Sequence[str]],
    rewrite: Callable[[str], str] = str,
    signed: str = "",
) -> Judge:
    """``rewrite``: what becomes of every hypothesis first; ``signed``: what the signature says of that."""

    # What sentences add is not in sacreBLEU's public interface, though its own significance tests are built on it.
    def value_of(sums: Sequence[float]) -> float:
        return float(metric._compute_score_from_stats(list(sums)).score)

    def measure(hypotheses: Sequence[str]) -> Measured:
        _require_pairs(hypotheses, references[0])
        sentences = metric._extract_corpus_statistics([rewrite(line) for line in hypotheses], None)
        title = metric._compute_score_from_stats(list(sentences[0])).name
        return Measured(name, f"{title}|{metric.get_signature()}{signed}", sentences, value_of)

    return measure


def _exact(references: Sequence[Sequence[str]]) -> Judge:
    def measure(hypotheses: Sequence[str]) -> Measured:
        _require_pairs(hypotheses, references[0])
        found = [float(line in right) for line, right in zip(hypotheses, zip(*references, strict=True), strict=True)]
        signature = f"exact|nrefs:{len(references)}|case:mixed|tok:none"
        return Measured("exact", signature, [(match, 1.0) for match in found], lambda sums: 100 * sums[0] / sums[1])

    return measure


def _require_pairs(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references):
        counts = f"{len(hypotheses)} hypothesis lines but {len(references)} reference lines"
        raise DataError("scoring", counts, "the two files must translate the same lines")
    if not references:
        raise DataError("scoring", "0 hypothesis lines and 0 reference lines", "there is nothing to score")
