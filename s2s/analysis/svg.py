"""Text in pictures: other people's words, escaped, measured, cut and placed, whichever way they are read."""

from __future__ import annotations

import math
import unicodedata
from html import escape

FONT = 13.0
"""px of a word in a picture."""
FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif"
DARK = "@media screen and (prefers-color-scheme:dark)"
"""Rules of the dark mode; paper stays light."""

_ADVANCE = 0.56  # width of one terminal column in em, an upper estimate for the usual sans-serif fonts
_LONGEST = 28  # columns of a word that are shown; the tooltip has all of it
_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """Text that XML can hold and that cannot reorder its surroundings: offending characters become escapes.

    Joiners stay, unlike in `s2s.errors.printable`: several scripts and emoji need them.
    """
    return "".join(
        ascii(character)[1:-1]
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        or character in _BIDI_CONTROLS
        or character in "\ufffe\uffff"
        else character
        for character in text
    )


def isolated(word: str) -> str:
    """A word for a tooltip, escaped and between isolating marks so that its direction does not reach its neighbours."""
    return f"\u2068{escape(visible(word))}\u2069"


def label(text: str, x: float, y: float, anchor: str, kind: str) -> str:
    """A line of text whose ``anchor`` edge (start = left, end = right, middle) is at x, whichever way it is read.

    ``kind`` is its class. Nothing where there is no text.
    """
    direction = ""
    if right_to_left(text):
        # For text read from right to left, SVG's "start" is the right edge.
        anchor = {"start": "end", "end": "start"}.get(anchor, anchor)
        direction = ' direction="rtl"'
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{direction}'
    return f'<text class="{kind}" {place}>{escape(text)}</text>' if text else ""


def right_to_left(text: str) -> bool:
    """Whether the first character with a direction of its own is read from right to left."""
    directions = (unicodedata.bidirectional(character) for character in text)
    return next((direction for direction in directions if direction in ("L", "R", "AL")), "L") != "L"


def clusters(text: str) -> list[str]:
    """Characters with the combining marks that belong to them."""
    found: list[str] = []
    for character in text:
        if found and unicodedata.category(character).startswith("M"):
            found[-1] += character
        else:
            found.append(character)
    return found


def columns_of(text: str) -> int:
    """Width of text in terminal columns."""
    return sum(2 if unicodedata.east_asian_width(cluster[0]) in "WF" else 1 for cluster in clusters(text))


def pixels(text: str, size: float = FONT) -> float:
    """An upper estimate of the width of text in px, in letters of ``size`` px."""
    return columns_of(text) * _ADVANCE * size


def shorten(text: str, longest: int = _LONGEST) -> str:
    """At most ``longest`` columns of text, with an ellipsis where something was cut."""
    if columns_of(text) <= longest:
        return text
    kept = ""
    for cluster in clusters(text):
        if columns_of(kept + cluster) >= longest:
            break
        kept += cluster
    return kept + "…"


def number(value: float) -> str:
    """A number as people write it on an axis or in a tooltip: four digits at most, no exponent where it can be read."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3g}"
    return f"{value:.4g}" if abs(value) >= 1e-4 else f"{value:.2e}"
