"""Translations as lines of output: plain text, n-best lists between tabs, or JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from s2s.analysis.alignment import format_links
from s2s.data.nbest import Form, Listed, NBest, written
from s2s.search.translate import Candidate, Translation
from s2s.strictjson import finite

_DIGITS = 6
"""Decimals of a score: float32 has no more to say."""


def lines_of(found: Translation, form: Form) -> Iterator[str]:
    """The lines, without their ends, that say what became of one line of input."""
    return written(NBest(found.number, found.line, [_listed(one) for one in found.candidates], {}), form)


def _listed(candidate: Candidate) -> Listed:
    more: dict[str, Any] = {
        "log_probability": finite(round(candidate.log_probability, _DIGITS)),
        "tokens": candidate.tokens,
        "finished": all(part.hypothesis.finished for part in candidate.parts),
    }
    if candidate.links is not None:
        more["alignment"] = format_links(candidate.links)
    return Listed(candidate.text, round(candidate.score, _DIGITS), more)
