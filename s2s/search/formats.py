"""Translations as lines of output: plain text, n-best lists between tabs, or JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, Literal

from s2s.analysis.alignment import format_links
from s2s.search.translate import Candidate, Translation

Format = Literal["text", "tsv", "jsonl"]

_DIGITS = 6
"""Decimals of a score: float32 has no more to say."""
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What JSON allows in a string, but a terminal, another reader of lines, or UTF-8 does not."""


def lines_of(found: Translation, style: Format) -> Iterator[str]:
    """The lines, without their ends, that say what became of one line of input."""
    if style == "text":
        yield found.text
    elif style == "tsv":
        for rank, one in enumerate(found.candidates, start=1):
            yield f"{found.number}\t{rank}\t{one.score:.{_DIGITS}f}\t{one.text}"
    else:
        yield strict_json(
            {"line": found.number, "source": found.line, "hypotheses": [_plain(one) for one in found.candidates]}
        )


def strict_json(value: Any) -> str:
    """One line of JSON that every parser reads alike. Raises ValueError for NaN and infinities."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _plain(candidate: Candidate) -> dict[str, Any]:
    found: dict[str, Any] = {
        "text": candidate.text,
        "score": _number(candidate.score),
        "log_probability": _number(candidate.log_probability),
        "tokens": candidate.tokens,
    }
    if candidate.links is not None:
        found["alignment"] = format_links(candidate.links)
    return found


def _number(value: float) -> float | None:
    """Null for the score of what has no probability."""
    return round(value, _DIGITS) if math.isfinite(value) else None
