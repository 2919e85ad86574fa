"""Pictures of attention: a self-contained SVG for pages and files, and block characters for a terminal.

Source words run across the top, target words down the left, and the shade of a cell is its weight. The words are
other people's text, so everything is escaped, and the SVG has no script, no link and no font of its own.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2s.errors import printable

Weights = NDArray[np.floating[Any]]

_LEVELS = 24  # shades above zero; finer steps cannot be told apart
_FONT = 13.0  # px
_ADVANCE = 0.56  # width of one terminal column in em, an upper estimate for the usual sans-serif fonts
_SLANT = math.radians(50)  # the rise of the source words
_LONGEST = 28  # columns of a word that are shown; the tooltip has all of it
_PADDING = 20  # px around the picture
_LEGEND = 150  # px, the width of its bar
_SHADES = "·░▒▓█"
_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

# Three colours of one hue in equal steps of lightness, for the smallest, the middle and the largest weight.
_LIGHT = ((243, 247, 252), (91, 147, 214), (11, 47, 107))
_DARK = ((26, 35, 46), (63, 130, 200), (207, 228, 255))


def heat_map_svg(
    weights: Weights, source_words: Sequence[str], target_words: Sequence[str], title: str = "", note: str = ""
) -> str:
    """Draw ``weights`` (T, S) as an SVG document, darkest at the largest weight (brightest in dark mode).

    ``title`` stands above the picture and ``note`` beside its legend. A cell of exactly zero stays empty.
    Raises ValueError when the words do not fit the shape, or a weight is negative or not finite.
    """
    largest = _largest(weights, source_words, target_words)
    rows, columns = weights.shape
    cell = 26 if max(rows, columns) <= 30 else 20
    title, note = _visible(title), _visible(note)
    sources = [_shorten(_visible(word)) for word in source_words]
    targets = [_shorten(_visible(word)) for word in target_words]

    left = math.ceil(_PADDING + max([64, *(_pixels(word) + 10 for word in targets)]))
    heading = 28 if title else 0
    top = math.ceil(_PADDING + heading + max([36, *(_pixels(word) * math.sin(_SLANT) + 18 for word in sources)]))
    slanted = [(column + 0.5) * cell + _pixels(word) * math.cos(_SLANT) for column, word in enumerate(sources)]
    right = left + max([columns * cell, _LEGEND, *slanted])
    below = left + _LEGEND + 20 + 0.85 * _pixels(note)
    width = math.ceil(max(right, below, _PADDING + 1.25 * _pixels(title)) + _PADDING)
    bottom = top + rows * cell
    height = bottom + 48 + _PADDING

    parts = [
        f'<svg class="heat" xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title or "Attention weights")}">',
        _style(),
        f'<rect class="page" width="{width}" height="{height}"/>',
        _label(title, _PADDING, _PADDING + 15, "start", "title"),
        _label("source →", left - 10, top - 27, "end", "quiet"),
        _label("target ↓", left - 10, top - 10, "end", "quiet"),
    ]
    for column, word in enumerate(sources):
        x = left + (column + 0.5) * cell + 4
        turn = f"translate({x:.1f} {top - 7:.1f}) rotate(-{math.degrees(_SLANT):.0f})"
        parts.append(f'<g transform="{turn}">{_label(word, 0, 0, "start", "word")}</g>')
    for row, word in enumerate(targets):
        parts.append(_label(word, left - 10, top + (row + 0.5) * cell + 4.5, "end", "word"))
    parts += _cells(weights, source_words, target_words, largest, left, top, cell)
    parts += _legend(largest, left, bottom + 24, note)
    return "\n".join([*parts, "</svg>\n"])


def heat_map_text(weights: Weights, source_words: Sequence[str], target_words: Sequence[str]) -> str:
    """Draw ``weights`` (T, S) with block characters; the source words are written downwards above their columns.

    Control and format characters in words are escaped. Raises ValueError like `heat_map_svg`.
    """
    largest = _largest(weights, source_words, target_words)
    sources = [_clusters(_shorten(printable(word))) for word in source_words]
    targets = [_shorten(printable(word)) for word in target_words]
    margin = max(map(_columns, targets), default=0)
    height = max(map(len, sources), default=0)
    lines = []
    for row in range(height):
        # Words end just above their column; a cell is two terminal columns wide.
        letters = [word[row - height] if row >= height - len(word) else "" for word in sources]
        lines.append(" " * (margin + 1) + "".join(_pad(letter, 2) for letter in letters))
    for word, shares in zip(targets, weights / largest, strict=True):
        shades = [_SHADES[round(float(share) * (len(_SHADES) - 1))] for share in shares]
        cells = "".join(shade + (" " if shade == _SHADES[0] else shade) for shade in shades)
        lines.append(" " * (margin - _columns(word)) + f"{word} {cells}")
    steps = [f"{shade} {largest * step / (len(_SHADES) - 1):.2f}" for step, shade in enumerate(_SHADES)]
    lines += ["", " " * (margin + 1) + "  ".join(steps)]
    return "".join(line.rstrip() + "\n" for line in lines)


def _largest(weights: Weights, source_words: Sequence[str], target_words: Sequence[str]) -> float:
    """The weight that is drawn darkest, 1 when all are zero; refuses what cannot be drawn."""
    if weights.shape != (len(target_words), len(source_words)):
        raise ValueError(f"weights {weights.shape}, {len(target_words)} target and {len(source_words)} source words")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("weights must be finite and not negative")
    return float(weights.max(initial=0)) or 1.0


def _cells(
    weights: Weights,
    source_words: Sequence[str],
    target_words: Sequence[str],
    largest: float,
    left: int,
    top: int,
    cell: int,
) -> Iterator[str]:
    """The grid and one square per weight, each with a tooltip."""
    rows, columns = weights.shape
    lines = [f"M{left} {top + row * cell}h{columns * cell}" for row in range(rows + 1)]
    lines += [f"M{left + column * cell} {top}v{rows * cell}" for column in range(columns + 1)]
    yield f'<path class="grid" d="{"".join(lines)}"/>'
    sources = [_isolated(word) for word in source_words]
    for row, word in enumerate(target_words):
        target = _isolated(word)
        for column, weight in enumerate(weights[row].tolist()):
            level = math.ceil(_LEVELS * (weight / largest))
            yield (
                f'<rect class="cell c{level}" x="{left + column * cell + 0.5}" y="{top + row * cell + 0.5}" '
                f'width="{cell - 1}" height="{cell - 1}">'
                f"<title>{sources[column]} → {target}: {weight:.3g}</title></rect>"
            )


def _legend(largest: float, left: int, top: int, note: str) -> Iterator[str]:
    """A bar from zero to the largest weight, and the note beside it."""
    step = _LEGEND // (_LEVELS + 1)
    for level in range(_LEVELS + 1):
        yield f'<rect class="c{level}" x="{left + level * step}" y="{top}" width="{step}" height="10"/>'
    yield f'<rect class="grid" x="{left}" y="{top}" width="{_LEGEND}" height="10"/>'
    yield _label("weight", left - 10, top + 9, "end", "quiet")
    yield _label("0", left, top + 25, "start", "quiet")
    yield _label(f"{largest:.2g}", left + _LEGEND, top + 25, "end", "quiet")
    yield _label(note, left + _LEGEND + 20, top + 9, "start", "quiet")


def _label(text: str, x: float, y: float, anchor: str, kind: str) -> str:
    """A line of text whose ``anchor`` edge (start = left, end = right) is at x, whichever way it is read."""
    direction = ""
    if _right_to_left(text):
        # For text read from right to left, SVG's "start" is the right edge.
        anchor = {"start": "end", "end": "start"}[anchor]
        direction = ' direction="rtl"'
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{direction}'
    return f'<text class="{kind}" {place}>{escape(text)}</text>' if text else ""


def _style() -> str:
    """The style sheet: colours for both modes, every rule below the class of the picture."""
    light = _palette(_LIGHT, page="#ffffff", word="#1c2733", quiet="#66717d", grid="#d9e0e8", hover="#e8710a")
    dark = _palette(_DARK, page="#12171d", word="#e4eaf1", quiet="#93a0ae", grid="#2f3944", hover="#ffb05c")
    return (
        f"<style>.heat text{{font:{_FONT:g}px system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif}}"
        ".heat .title{font-size:16px;font-weight:600}.heat .quiet{font-size:11px}"
        ".heat .grid{fill:none}.heat .cell:hover{stroke-width:2}"
        f"{light}@media(prefers-color-scheme:dark){{{dark}}}</style>"
    )


def _palette(colours: tuple[tuple[int, int, int], ...], page: str, word: str, quiet: str, grid: str, hover: str) -> str:
    low, middle, high = (np.array(colour) for colour in colours)
    rules = [
        f".heat .page,.heat .c0{{fill:{page}}}.heat .word,.heat .title{{fill:{word}}}.heat .quiet{{fill:{quiet}}}",
        f".heat .grid{{stroke:{grid}}}.heat .cell:hover{{stroke:{hover}}}",
    ]
    for level in range(1, _LEVELS + 1):
        share = (level - 1) / (_LEVELS - 1)
        start, end, part = (low, middle, 2 * share) if share < 0.5 else (middle, high, 2 * share - 1)
        red, green, blue = np.rint(start + part * (end - start)).astype(int).tolist()
        rules.append(f".heat .c{level}{{fill:#{red:02x}{green:02x}{blue:02x}}}")
    return "".join(rules)


def _visible(text: str) -> str:
    """Text that XML can hold and that cannot reorder its surroundings: offending characters become escapes.

    Joiners stay, unlike in `printable`: several scripts and emoji need them.
    """
    return "".join(
        ascii(character)[1:-1]
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        or character in _BIDI_CONTROLS
        or character in "\ufffe\uffff"
        else character
        for character in text
    )


def _isolated(word: str) -> str:
    """A word for a tooltip, between isolating marks so that its direction does not reach its neighbours."""
    return f"\u2068{escape(_visible(word))}\u2069"


def _right_to_left(text: str) -> bool:
    directions = (unicodedata.bidirectional(character) for character in text)
    return next((direction for direction in directions if direction in ("L", "R", "AL")), "L") != "L"


def _clusters(text: str) -> list[str]:
    """Characters with the combining marks that belong to them."""
    clusters: list[str] = []
    for character in text:
        if clusters and unicodedata.category(character).startswith("M"):
            clusters[-1] += character
        else:
            clusters.append(character)
    return clusters


def _columns(text: str) -> int:
    """Width of text in terminal columns."""
    return sum(2 if unicodedata.east_asian_width(cluster[0]) in "WF" else 1 for cluster in _clusters(text))


def _pixels(text: str) -> float:
    return _columns(text) * _ADVANCE * _FONT


def _pad(text: str, columns: int) -> str:
    return text + " " * (columns - _columns(text))


def _shorten(text: str) -> str:
    """At most `_LONGEST` columns of text, with an ellipsis where something was cut."""
    if _columns(text) <= _LONGEST:
        return text
    kept = ""
    for cluster in _clusters(text):
        if _columns(kept + cluster) >= _LONGEST:
            break
        kept += cluster
    return kept + "…"
