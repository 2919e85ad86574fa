"""Pictures of attention: a self-contained SVG for pages and files.

Source words run across the top, target words down the left, and the shade of a cell is its weight. A source that is
read from right to left runs so here too. The words are other people's text, so everything is escaped, and the SVG has
no script, no link and no font of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from s2s.analysis.svg import (
    DARK,
    FONT,
    FONTS,
    isolated,
    label,
    pixels,
    right_to_left,
    shorten,
    visible,
)

Weights = NDArray[np.floating[Any]]
Span = tuple[float, float]

_LEVELS = 24  # shades above zero; finer steps cannot be told apart
_SLANT = math.radians(50)  # the rise of the source words
_PADDING = 20  # px around the picture
_LEGEND = 150  # px, the width of its bar
_SIZES = ((30, 26), (60, 20), (10**9, 16))  # up to so many words on a side: px a cell
_ABREAST = 1200  # px, from which several pictures do not stand side by side but below each other

# Three colours of one hue in equal steps of lightness, for the smallest, the middle and the largest weight.
SHADES = ((243, 247, 252), (91, 147, 214), (11, 47, 107))
_DARK_SHADES = ((26, 35, 46), (63, 130, 200), (207, 228, 255))


class HeatMap(NamedTuple):
    """What is drawn. Places on the source are counted in words from the left edge of the first: 1.5 is mid-second."""

    weights: Weights
    """(T, S), finite and not negative."""
    source: Sequence[str]
    """S words or pieces."""
    target: Sequence[str]
    """T words or pieces."""
    title: str = ""
    """Stands above the picture."""
    note: str = ""
    """Stands beside the legend."""
    centres: Sequence[float] = ()
    """For each target word where its window is centred, if the mechanism has one; drawn as a dot."""
    windows: Sequence[Span] = ()
    """For each target word what it could read, likewise; drawn as a frame."""

    def check(self) -> None:
        """Raises ValueError when the words or the marks do not fit the shape, or a weight cannot be drawn."""
        rows, columns = len(self.target), len(self.source)
        if self.weights.shape != (rows, columns):
            raise ValueError(f"weights {self.weights.shape}, {rows} target and {columns} source words")
        if not (np.isfinite(self.weights).all() and (self.weights >= 0).all()):
            raise ValueError("weights must be finite and not negative")
        if len(self.centres) not in (0, rows) or len(self.windows) not in (0, rows):
            raise ValueError(f"{len(self.centres)} centres and {len(self.windows)} windows of {rows} target words")

    @property
    def largest(self) -> float:
        """The weight that is drawn darkest, 1 when all are zero."""
        return float(self.weights.max(initial=0)) or 1.0

    @property
    def from_the_right(self) -> bool:
        """Whether most of the source words are read from right to left."""
        return 2 * sum(map(right_to_left, self.source)) > len(self.source)

    def mirrored(self) -> HeatMap:
        """The same with the first source word at the right."""
        end = float(len(self.source))
        return self._replace(
            weights=self.weights[:, ::-1],
            source=self.source[::-1],
            centres=[end - centre for centre in self.centres],
            windows=[(end - last, end - first) for first, last in self.windows],
        )


def heat_map_svg(
    weights: Weights, source_words: Sequence[str], target_words: Sequence[str], title: str = "", note: str = ""
) -> str:
    """Draw ``weights`` (T, S) as an SVG document, darkest at the largest weight (brightest in dark mode).

    ``title`` stands above the picture and ``note`` beside its legend. A cell of exactly zero stays empty.
    Raises ValueError when the words do not fit the shape, or a weight is negative or not finite.
    """
    return heat_maps_svg([HeatMap(weights, source_words, target_words, title, note)])


def heat_maps_svg(maps: Sequence[HeatMap], title: str = "") -> str:
    """Draw some heat maps, side by side as far as there is room, as one SVG document called ``title``.

    By default it is called as its pictures are. Each has its own scale. Raises ValueError as `HeatMap.check`, and
    where there is nothing to draw.
    """
    if not maps:
        raise ValueError("no heat map is given")
    panels = [_Panel(one) for one in maps]
    places, width, height = _arranged(panels)
    name = visible(title or ", ".join(one.title for one in maps if one.title) or "Attention weights")
    parts = [
        f'<svg class="heat" xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(name)}">',
        style(),
        f'<rect class="page" width="{width}" height="{height}"/>',
    ]
    for panel, (x, y) in zip(panels, places, strict=True):
        parts += [f'<g transform="translate({x} {y})">', *panel.drawn(), "</g>"]
    return "\n".join([*parts, "</svg>\n"])


def _arranged(panels: Sequence[_Panel]) -> tuple[list[tuple[int, int]], int, int]:
    """The upper left corner of every panel, in rows, and the size of the whole in px."""
    places: list[tuple[int, int]] = []
    x = y = tallest = width = 0
    for panel in panels:
        if x and x + panel.width > _ABREAST:
            x, y, tallest = 0, y + tallest, 0
        places.append((x, y))
        x, tallest = x + panel.width, max(tallest, panel.height)
        width = max(width, x)
    return places, width, y + tallest


class _Panel:
    """One heat map with all that stands round it; ``width`` and ``height`` are in px."""

    def __init__(self, given: HeatMap) -> None:
        given.check()
        self.mirrored = given.from_the_right
        self.map = given.mirrored() if self.mirrored else given
        self.title, self.note = visible(given.title), visible(given.note)
        self.sources = [shorten(visible(word)) for word in self.map.source]
        self.targets = [shorten(visible(word)) for word in self.map.target]
        rows, columns = given.weights.shape
        self.cell = next(px for most, px in _SIZES if max(rows, columns) <= most)
        self.left = math.ceil(_PADDING + max([64, *(pixels(word) + 10 for word in self.targets)]))
        rise = max([36, *(pixels(word) * math.sin(_SLANT) + 18 for word in self.sources)])
        self.top = math.ceil(_PADDING + (28 if self.title else 0) + rise)
        self.bottom = self.top + rows * self.cell
        slanted = [(at + 0.5) * self.cell + pixels(word) * math.cos(_SLANT) for at, word in enumerate(self.sources)]
        right = self.left + max([columns * self.cell, _LEGEND, *slanted])
        below = self.left + _LEGEND + 20 + 0.85 * pixels(self.note)
        self.width = math.ceil(max(right, below, _PADDING + 1.25 * pixels(self.title)) + _PADDING)
        self.height = self.bottom + 48 + _PADDING

    def drawn(self) -> Iterator[str]:
        """The elements, in order."""
        left, top, cell = self.left, self.top, self.cell
        yield label(self.title, _PADDING, _PADDING + 15, "start", "title")
        yield label("← source" if self.mirrored else "source →", left - 10, top - 27, "end", "quiet")
        yield label("target ↓", left - 10, top - 10, "end", "quiet")
        for column, word in enumerate(self.sources):
            x = left + (column + 0.5) * cell + 4
            turn = f"translate({x:.1f} {top - 7:.1f}) rotate(-{math.degrees(_SLANT):.0f})"
            yield f'<g transform="{turn}">{label(word, 0, 0, "start", "word")}</g>'
        for row, word in enumerate(self.targets):
            yield label(word, left - 10, top + (row + 0.5) * cell + 4.5, "end", "word")
        yield from self._cells()
        yield from self._marks()
        yield from self._legend()

    def _cells(self) -> Iterator[str]:
        """The grid and one square per weight, each with a tooltip."""
        left, top, cell = self.left, self.top, self.cell
        rows, columns = self.map.weights.shape
        lines = [f"M{left} {top + row * cell}h{columns * cell}" for row in range(rows + 1)]
        lines += [f"M{left + column * cell} {top}v{rows * cell}" for column in range(columns + 1)]
        yield f'<path class="grid" d="{"".join(lines)}"/>'
        sources = [isolated(word) for word in self.map.source]
        for row, word in enumerate(self.map.target):
            target = isolated(word)
            for column, weight in enumerate(self.map.weights[row].tolist()):
                level = math.ceil(_LEVELS * (weight / self.map.largest))
                yield (
                    f'<rect class="cell c{level}" x="{left + column * cell + 0.5}" y="{top + row * cell + 0.5}" '
                    f'width="{cell - 1}" height="{cell - 1}">'
                    f"<title>{sources[column]} → {target}: {weight:.3g}</title></rect>"
                )

    def _marks(self) -> Iterator[str]:
        """A frame round every window, and a dot at every centre."""
        for row, (first, last) in enumerate(self.map.windows):
            x, y = self.left + first * self.cell + 1, self.top + row * self.cell + 1
            size = f'width="{max((last - first) * self.cell - 2, 1):.1f}" height="{self.cell - 2}"'
            yield f'<rect class="window" x="{x:.1f}" y="{y:.1f}" {size} rx="3"/>'
        for row, centre in enumerate(self.map.centres):
            place = f'cx="{self.left + centre * self.cell:.1f}" cy="{self.top + (row + 0.5) * self.cell:.1f}"'
            yield f'<circle class="centre" {place} r="3.5"/>'

    def _legend(self) -> Iterator[str]:
        """A bar from zero to the largest weight, and the note beside it."""
        left, top, step = self.left, self.bottom + 24, _LEGEND // (_LEVELS + 1)
        for level in range(_LEVELS + 1):
            yield f'<rect class="c{level}" x="{left + level * step}" y="{top}" width="{step}" height="10"/>'
        yield f'<rect class="grid" x="{left}" y="{top}" width="{_LEGEND}" height="10"/>'
        yield label("weight", left - 10, top + 9, "end", "quiet")
        yield label("0", left, top + 25, "start", "quiet")
        yield label(f"{self.map.largest:.2g}", left + _LEGEND, top + 25, "end", "quiet")
        yield label(self.note, left + _LEGEND + 20, top + 9, "start", "quiet")


def style() -> str:
    """The style sheet: colours for both modes, every rule below the class of the picture."""
    light = _palette(SHADES, page="#ffffff", word="#1c2733", quiet="#5a6672", grid="#d9e0e8", mark="#c8481b")
    dark = _palette(_DARK_SHADES, page="#12171d", word="#e4eaf1", quiet="#a3b0bd", grid="#2f3944", mark="#ffb05c")
    return (
        f"<style>.heat text{{font:{FONT:g}px {FONTS}}}"
        ".heat .title{font-size:16px;font-weight:600}.heat .quiet{font-size:11px}"
        ".heat .grid,.heat .window{fill:none}.heat .cell:hover{stroke-width:2}"
        ".heat .window,.heat .centre{pointer-events:none}.heat .window{stroke-width:1.5}"
        f"{light}{DARK}{{{dark}}}</style>"
    )


def _palette(colours: tuple[tuple[int, int, int], ...], page: str, word: str, quiet: str, grid: str, mark: str) -> str:
    low, middle, high = (np.array(colour) for colour in colours)
    rules = [
        f".heat .page,.heat .c0{{fill:{page}}}.heat .word,.heat .title{{fill:{word}}}.heat .quiet{{fill:{quiet}}}",
        f".heat .grid{{stroke:{grid}}}.heat .cell:hover,.heat .window{{stroke:{mark}}}",
        f".heat .centre{{fill:{mark};stroke:{page}}}",
    ]
    for level in range(1, _LEVELS + 1):
        share = (level - 1) / (_LEVELS - 1)
        start, end, part = (low, middle, 2 * share) if share < 0.5 else (middle, high, 2 * share - 1)
        red, green, blue = np.rint(start + part * (end - start)).astype(int).tolist()
        rules.append(f".heat .c{level}{{fill:#{red:02x}{green:02x}{blue:02x}}}")
    return "".join(rules)
