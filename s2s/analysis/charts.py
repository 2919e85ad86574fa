"""Charts as SVG: lines over updates, bars over categories, dots of seeds; every text in them is escaped.

A chart carries its style sheet, so that it stands alone as a file; `s2s.analysis.pages` takes it out, for its pages
have it once. Nothing needs a script: the values are in tooltips. Series differ by colour and, past the eighth, by
pattern; their names are in a legend, in the order of the series.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

from s2s.analysis.svg import DARK, FONTS, isolated, label, number, pixels, shorten, visible

_WIDTH, _HEIGHT = 720, 300  # px of the chart without title and legend
_SMALL = 12.0  # px of all text but the title
_MARGIN = 16
_DOTS = 60  # points of a line that are marked, each with a tooltip; more would touch
_ROW = 26  # px a row of a dot plot
_TICKS = 6
_DUST = 1e-6  # differences below so much of the value are rounding, not news
_LARGEST, _SMALLEST = 1e30, 1e-30  # beyond, a value is taken for one that is not finite, or for zero
_COLOURS = 8

_LIGHT = ("#1f6fc4", "#c8481b", "#1f8a52", "#8a4fc0", "#a36b00", "#0c8590", "#c02f74", "#5d6b79")
_DARK = ("#6cb0f5", "#ff9166", "#5fcf95", "#c79bf2", "#e2b04a", "#4fc6d1", "#f58bb8", "#a9b6c4")


class Series(NamedTuple):
    """A line: ``y`` at ``x``; where either is not finite the line is interrupted."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def means(series: Series, points: int = 300) -> Series:
    """The same line in at most ``points`` points: means over equal stretches of what is finite, at their last x."""
    stretch = math.ceil(len(series.x) / points)
    if stretch <= 1:
        return series
    x, y = [], []
    for first in range(0, len(series.x), stretch):
        values = [value for value in series.y[first : first + stretch] if math.isfinite(value)]
        x.append(series.x[min(first + stretch, len(series.x)) - 1])
        y.append(math.fsum(values) / len(values) if values else math.nan)
    return Series(series.name, x, y)


def line_chart(series: Sequence[Series], *, title: str, x: str, y: str, log: bool = False) -> str:
    """Lines over a common axis ``x``; with ``log`` the axis ``y`` is logarithmic and what is not positive is left out.

    Raises ValueError for a series with more x than y, or fewer.
    """
    for one in series:
        if len(one.x) != len(one.y):
            raise ValueError(f"series {one.name!r} has {len(one.x)} x and {len(one.y)} y")
    shown = [[(a, b) for a, b in zip(one.x, one.y, strict=True) if _drawn(a, b, log)] for one in series]
    across = _linear([a for points in shown for a, _ in points])
    up = (_logarithmic if log else _linear)([b for points in shown for _, b in points])
    frame = _Frame(title, [one.name for one in series], up.labels, y)
    parts = [*frame.opening(), *frame.grid(up, y), *frame.scale(across, x)]
    for index, one in enumerate(series):
        at = [
            (frame.x(across.place(a)), frame.y(up.place(b))) if _drawn(a, b, log) else None
            for a, b in zip(one.x, one.y, strict=True)
        ]
        parts.append(f'<path class="line {_look(index)}" d="{_path(at)}"/>')
        if len(shown[index]) <= _DOTS:
            for (a, b), (px, py) in zip(shown[index], (point for point in at if point), strict=True):
                tip = f"{isolated(one.name)}, {escape(visible(x))} {number(a)}: {number(b)}"
                parts.append(_dot(px, py, index, tip))
    return frame.closed(parts, any(shown))


def bar_chart(
    categories: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    *,
    title: str,
    y: str,
) -> str:
    """Groups of bars from zero: of each series one value a category, None where there is none.

    Raises ValueError for a series that does not have one value a category.
    """
    for name, values in series.items():
        if len(values) != len(categories):
            raise ValueError(f"series {name!r} has {len(values)} values for {len(categories)} categories")
    bars = [
        (place, index, name, value)
        for index, (name, values) in enumerate(series.items())
        for place, given in enumerate(values)
        if (value := _finite(given)) is not None
    ]
    up = _linear([0.0, *(value for *_, value in bars)])
    frame = _Frame(title, list(series), up.labels, y, below=_slant(categories), bars=True)
    parts = [*frame.opening(), *frame.grid(up, y), *frame.names(categories)]
    group = frame.wide / max(1, len(categories))
    width = min(40.0, 0.8 * group / max(1, len(series)))
    zero = frame.y(up.place(0.0))
    for place, index, name, value in bars:
        left = frame.left + (place + 0.5) * group + (index - len(series) / 2) * width
        top, bottom = sorted((frame.y(up.place(value)), zero))
        tip = f"{isolated(name)}, {isolated(categories[place])}: {number(value)}"
        box = f'x="{left:.1f}" y="{top:.1f}" width="{max(width - 1, 0.5):.1f}" height="{bottom - top:.1f}"'
        parts.append(f'<rect class="bar {_look(index)}" {box}><title>{tip}</title></rect>')
    return frame.closed(parts, bool(bars))


def dot_plot(names: Sequence[str], values: Sequence[Sequence[float]], *, title: str, x: str) -> str:
    """A row a name from the top down: a dot a value, and an upright stroke at their mean.

    Values that are not finite are left out. Raises ValueError where there is not one list of values a name.
    """
    if len(names) != len(values):
        raise ValueError(f"{len(names)} names and {len(values)} rows of values")
    rows = [[value for value in row if _finite(value) is not None] for row in values]
    across = _linear([value for row in rows for value in row], snug=True)
    texts = [shorten(visible(name)) for name in names]
    frame = _Frame(title, [], texts, "", height=_ROW * max(1, len(names)))
    parts = [*frame.opening(), *frame.scale(across, x, lines=True)]
    for place, (name, row) in enumerate(zip(names, rows, strict=True)):
        middle = frame.top + (place + 0.5) * _ROW
        parts.append(f'<path class="grid" d="M{frame.left} {middle:.1f}h{frame.wide}"/>')
        parts.append(label(texts[place], frame.left - 8, middle + 4, "end", "word"))
        for value in row:
            parts.append(_dot(frame.x(across.place(value)), middle, 0, f"{isolated(name)}: {number(value)}"))
        if row:
            mean = math.fsum(row) / len(row)
            stroke = f"M{frame.x(across.place(mean)):.1f} {middle - 9:.1f}v18"
            tip = f"{isolated(name)}: mean {number(mean)} of {len(row)}"
            parts.append(f'<path class="mean" d="{stroke}"><title>{tip}</title></path>')
    return frame.closed(parts, any(rows))


# ---------------------------------------------------------------------------------------------- scales


class _Scale(NamedTuple):
    """From values to a share of the axis, with the values that are written on it."""

    place: Callable[[float], float]
    ticks: list[float]

    @property
    def labels(self) -> list[str]:
        return [number(tick) for tick in self.ticks]


def _linear(values: Sequence[float], snug: bool = False) -> _Scale:
    """An axis with ticks at 1, 2 or 5 times a power of ten, from tick to tick unless ``snug``."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    size = max(abs(low), abs(high))
    if high - low <= max(_DUST * size, _SMALLEST):
        around = size / 50 if size > _SMALLEST else 0.5
        low, high = low - around, high + around
    step = _step((high - low) / _TICKS)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [_rounded(index * step, step) for index in range(first, last + 1)]
    start, end = (low - step / 4, high + step / 4) if snug else (ticks[0], ticks[-1])
    return _Scale(lambda value: (value - start) / (end - start), [tick for tick in ticks if start <= tick <= end])


def _step(least: float) -> float:
    """The smallest 1, 2 or 5 times a power of ten that is not below ``least`` > 0."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= least * (1 - 1e-9))


def _rounded(value: float, step: float) -> float:
    """Without the dust that multiplying by 0.1 leaves."""
    return round(value, max(0, 2 - math.floor(math.log10(step))))


def _logarithmic(values: Sequence[float]) -> _Scale:
    """An axis from one power of ten to another, or, within two of them, between 1, 2 and 5 times one."""
    low, high = math.log10(min(values, default=1.0)), math.log10(max(values, default=10.0))
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [float(f"{times}e{power}") for power in powers for times in ((1, 2, 5) if high - low <= 2 else (1,))]
    below = [tick for tick in ticks if tick <= 10**low * (1 + 1e-9)]
    above = [tick for tick in ticks if tick >= 10**high * (1 - 1e-9)]
    start, end = below[-1], above[0] if above else ticks[-1]
    if start == end:
        end = start * 10
    kept = [tick for tick in ticks if start <= tick <= end]
    every = math.ceil(len(kept) / (2 * _TICKS))
    base, reach = math.log10(start), math.log10(end) - math.log10(start)
    return _Scale(lambda value: (math.log10(value) - base) / reach, kept[::every])


# ---------------------------------------------------------------------------------------------- the frame


class _Frame:
    """The plot's rectangle with what stands round it: title, legend, axes."""

    def __init__(
        self,
        title: str,
        names: Sequence[str],
        left: Sequence[str],
        y: str,
        *,
        height: int = _HEIGHT,
        below: int = 0,
        bars: bool = False,
    ) -> None:
        """``names`` are those of the series, ``left`` what is written left of the plot, ``below`` px under it."""
        self.title, self.bars = visible(title), bars
        self.legend = [shorten(visible(name), 40) for name in names] if len(names) > 1 else []
        self.left = math.ceil(_MARGIN + max([36.0, *(pixels(text, _SMALL) + 10 for text in left)]))
        self.wide = _WIDTH - self.left - 2 * _MARGIN
        self.keys = list(self._keys())
        rows = 1 + max((row for _, row, _ in self.keys), default=-1)
        self.top = _MARGIN + 26 + 20 * rows + (22 if y else 0)
        self.high = height
        self.height = self.top + height + (below or 24) + 22 + _MARGIN // 2

    def _keys(self) -> Iterator[tuple[float, int, str]]:
        """Where each name of the legend stands: x, row and text."""
        x, row = float(_MARGIN), 0
        for text in self.legend:
            width = 22 + pixels(text, _SMALL) + 14
            if x + width > _WIDTH - _MARGIN and x > _MARGIN:
                x, row = float(_MARGIN), row + 1
            yield x, row, text
            x += width

    def x(self, share: float) -> float:
        """px of a share of the axis across."""
        return self.left + share * self.wide

    def y(self, share: float) -> float:
        """px of a share of the axis upwards."""
        return self.top + (1 - share) * self.high

    def opening(self) -> Iterator[str]:
        yield (
            f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{self.height}" '
            f'viewBox="0 0 {_WIDTH} {self.height}" role="img" aria-label="{escape(self.title)}">'
        )
        yield style()
        yield label(self.title, _MARGIN, _MARGIN + 10, "start", "title")
        for index, (x, row, text) in enumerate(self.keys):
            middle = _MARGIN + 32 + 20 * row
            if self.bars:
                yield f'<rect class="bar {_look(index)}" x="{x:.1f}" y="{middle - 5}" width="14" height="10"/>'
            else:
                yield f'<path class="line key {_look(index)}" d="M{x:.1f} {middle}h16"/>'
            yield label(text, x + 22, middle + 4, "start", "word")

    def grid(self, up: _Scale, y: str) -> Iterator[str]:
        """Lines across at the ticks of the axis upwards, and its name above it."""
        yield label(visible(y), _MARGIN, self.top - 14, "start", "quiet")
        for tick, text in zip(up.ticks, up.labels, strict=True):
            at = self.y(up.place(tick))
            yield f'<path class="grid" d="M{self.left} {at:.1f}h{self.wide}"/>'
            yield label(text, self.left - 8, at + 4, "end", "quiet")

    def scale(self, across: _Scale, x: str, lines: bool = False) -> Iterator[str]:
        """The axis across with its name below it; with ``lines``, upright lines at its ticks."""
        bottom = self.top + self.high
        for tick, text in zip(across.ticks, across.labels, strict=True):
            at = self.x(across.place(tick))
            start = self.top if lines else bottom
            yield f'<path class="grid" d="M{at:.1f} {start}V{bottom + 4}"/>'
            yield label(text, at, bottom + 18, "middle", "quiet")
        yield label(visible(x), self.left + self.wide / 2, bottom + 38, "middle", "quiet")

    def names(self, categories: Sequence[str]) -> Iterator[str]:
        """Categories under their groups, rising where they are too wide to lie."""
        group, bottom, slanted = self.wide / max(1, len(categories)), self.top + self.high, _slant(categories)
        for place, category in enumerate(categories):
            x, text = self.left + (place + 0.5) * group, shorten(visible(category))
            if slanted:
                turn = f"translate({x:.1f} {bottom + 14}) rotate(-35)"
                yield f'<g transform="{turn}">{label(text, 0, 0, "end", "quiet")}</g>'
            else:
                yield label(text, x, bottom + 18, "middle", "quiet")

    def closed(self, parts: list[str], drawn: bool) -> str:
        """The document; where nothing could be drawn it says so."""
        if not drawn:
            parts.append(
                label("nothing to show", self.left + self.wide / 2, self.top + self.high / 2, "middle", "word")
            )
        return "\n".join(part for part in [*parts, "</svg>\n"] if part)


def _slant(categories: Sequence[str]) -> int:
    """px that rising names of categories need below the plot; 0 where they can lie."""
    widest = max((pixels(shorten(visible(name)), _SMALL) for name in categories), default=0.0)
    room = (_WIDTH - 80) / max(1, len(categories))
    return 0 if widest < room else math.ceil(widest * math.sin(math.radians(35)) + 20)


# ---------------------------------------------------------------------------------------------- marks


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) <= _LARGEST else None


def _drawn(x: float, y: float, log: bool) -> bool:
    return _finite(x) is not None and _finite(y) is not None and (y >= _SMALLEST or not log)


def _look(index: int) -> str:
    """Classes of a series: its colour, and past the last colour its pattern."""
    colour, turn = index % _COLOURS, index // _COLOURS
    return f"s{colour}" + (f" t{min(turn, 2)}" if turn else "")


def _dot(x: float, y: float, index: int, tip: str) -> str:
    return f'<circle class="dot {_look(index)}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{tip}</title></circle>'


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Lines from point to point; nothing is drawn to or from None."""
    parts = []
    for before, point in pairwise([None, *points]):
        if point is not None:
            parts.append(f"{'M' if before is None else 'L'}{point[0]:.1f} {point[1]:.1f}")
    return "".join(parts)


def style() -> str:
    """The style sheet that every chart carries: colours for both modes, every rule below the class of the picture."""
    light = _palette(_LIGHT, word="#1c2733", quiet="#5a6672", grid="#dde3ea")
    dark = _palette(_DARK, word="#e4eaf1", quiet="#a3b0bd", grid="#2f3944")
    return (
        f"<style>.chart text{{font:{_SMALL:g}px {FONTS}}}.chart .title{{font-size:15px;font-weight:600}}"
        ".chart .line{fill:none;stroke-width:1.8;stroke-linejoin:round}.chart .line.key{stroke-width:4}"
        ".chart .line.t1{stroke-dasharray:7 4}.chart .line.t2{stroke-dasharray:2 4}"
        ".chart .bar.t1,.chart .dot.t1{fill-opacity:.55}.chart .bar.t2,.chart .dot.t2{fill-opacity:.25}"
        ".chart .grid{fill:none}.chart .mean{fill:none;stroke-width:3}"
        f"{light}{DARK}{{{dark}}}</style>"
    )


def _palette(colours: Sequence[str], word: str, quiet: str, grid: str) -> str:
    rules = [
        f".chart .word,.chart .title{{fill:{word}}}.chart .quiet{{fill:{quiet}}}.chart .grid{{stroke:{grid}}}",
        f".chart .mean{{stroke:{word}}}",
    ]
    for index, colour in enumerate(colours):
        rules.append(f".chart .line.s{index}{{stroke:{colour}}}")
        rules.append(f".chart .bar.s{index},.chart .dot.s{index}{{fill:{colour};stroke:{colour}}}")
    return "".join(rules)
