"""`s2s score`: log-probabilities of given translations, by line and by piece."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from s2s.commands.models import require_models
from s2s.commands.output import results, write
from s2s.commands.pairs import Normalise, score_of, scorer_of, tell_too_long
from s2s.data.nbest import number
from s2s.data.parallel import Parallel
from s2s.data.text import printable_output
from s2s.data.tokenizer import Tokenizer
from s2s.progress import say, warn
from s2s.search.score import Lines, Scored, Scorer
from s2s.strictjson import finite, json_line


def score(
    models: Sequence[Path],
    source: Path,
    target: Path,
    output: Path | None = None,
    *,
    normalise: Normalise = "search",
    per_token: bool = False,
    as_json: bool = False,
    overwrite: bool = False,
    checkpoint: str = "best",
    device: str = "auto",
    batch_tokens: int | None = None,
    strict: bool = False,
) -> None:
    """Write a score for each pair of lines; several models are an ensemble.

    As text a line is the score; with ``per_token`` there follow, after a tab each, ``PIECE LOG-PROBABILITY``, EOS last.
    As JSON it is an object, null standing for a score that is not finite.
    """
    require_models(models)
    pairs = Parallel(source, target, "error" if strict else "replace")
    pairs.check()
    sink = results(output, overwrite, (source, target))
    scorer = scorer_of(models, checkpoint=checkpoint, device=device, batch_tokens=batch_tokens, normalise=normalise)
    total = _Total()
    write(sink, _lines(scorer, pairs, total, per_token, as_json), ("scoring", "scored", "pairs"))
    for warning in pairs.warnings():
        warn(warning)
    tell_too_long(scorer, "have no score (nan)")
    total.tell()


class _Total:
    """Sums over the pairs that the model was asked about."""

    def __init__(self) -> None:
        self.log_probability, self.tokens, self.pairs = 0.0, 0, 0

    def add(self, scored: Scored) -> None:
        if scored.target_ids:
            self.log_probability += scored.log_probability
            self.tokens += len(scored.target_ids)
            self.pairs += 1

    def tell(self) -> None:
        if self.tokens:
            nll = -self.log_probability / self.tokens
            perplexity = math.exp(nll) if nll < 700 else math.inf
            say(f"{self.pairs} pairs, {self.tokens} tokens: {nll:.4f} nats a token, perplexity {perplexity:.3f}")


def _lines(
    scorer: Scorer, pairs: Iterable[Lines], total: _Total, per_token: bool, as_json: bool
) -> Iterator[tuple[str]]:
    pieces = scorer.tokenizers.target if per_token else None
    for line, scored in enumerate(scorer.score(pairs), start=1):
        total.add(scored)
        value = score_of(scored, scorer)
        yield (_json(line, scored, value, pieces) if as_json else _text(scored, value, pieces),)


def _text(scored: Scored, value: float, pieces: Tokenizer | None) -> str:
    fields = [number(value)]
    if pieces is not None:
        shown = zip(pieces.pieces(scored.target_ids), scored.token_log_probabilities, strict=True)
        fields += [f"{printable_output(piece)} {number(each)}" for piece, each in shown]
    return "\t".join(fields)


def _json(line: int, scored: Scored, value: float, pieces: Tokenizer | None) -> str:
    shown = {
        "line": line,
        "source": scored.source,
        "target": scored.target,
        "score": finite(value),
        "log_probability": finite(scored.log_probability),
    }
    if pieces is not None:
        shown["tokens"] = pieces.pieces(scored.target_ids)
        shown["token_log_probabilities"] = [finite(each) for each in scored.token_log_probabilities]
    return json_line(shown)
