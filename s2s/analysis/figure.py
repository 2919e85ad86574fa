"""Heat maps as PNG or PDF, for papers: the same cells, marks and directions as the SVG, drawn by matplotlib."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from s2s.analysis.heatmap import SHADES, HeatMap
from s2s.analysis.svg import columns_of, shorten, visible
from s2s.errors import UsageError
from s2s.progress import warn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Form = Literal["png", "pdf"]

_CELL, _LETTER = 0.27, 0.085  # inches: a cell, and an upper estimate for a terminal column of a label
_ABREAST = 3  # pictures in a row
_DPI = 200
_MARK = "#c8481b"
_FONTS = (
    "Noto Sans", "DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "WenQuanYi Zen Hei",
    "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS",
)  # fmt: skip
"""Asked in this order for every character, as far as they are installed."""


def figure(maps: Sequence[HeatMap], form: Form) -> bytes:
    """Draw some heat maps, up to three side by side, each with its own scale.

    Raises UsageError where matplotlib is missing, ValueError as `HeatMap.check` and for no heat map. Characters that no
    installed font has are boxes, and a warning says so.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.font_manager import get_font_names
    except ImportError:
        remedy = "pip install -e '.[pictures]' in the folder of s2s, or give a name that ends in .svg"
        raise UsageError("--output", f"{form.upper()} needs matplotlib, which is not installed", remedy) from None
    if not maps:
        raise ValueError("no heat map is given")
    across = min(len(maps), _ABREAST)
    rows = math.ceil(len(maps) / across)
    sizes = [_size(one) for one in maps]
    width, height = (max(size[axis] for size in sizes) for axis in (0, 1))
    available = set(get_font_names())
    settings: dict[Any, Any] = {
        "text.parse_math": False,  # a dollar is a dollar
        "font.family": [name for name in _FONTS if name in available],
        "pdf.fonttype": 42,
    }
    data = io.BytesIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        page = Figure(figsize=(across * width, rows * height), layout="constrained")
        panels = page.subplots(rows, across, squeeze=False).flatten()
        for axes, one in zip(panels, maps, strict=False):
            _draw(axes, one)
        for axes in panels[len(maps) :]:
            axes.set_axis_off()
        nothing = {"Software": None} if form == "png" else {"CreationDate": None}  # the same bytes every time
        page.savefig(data, format=form, dpi=_DPI, metadata=nothing)
    if any("missing from font" in str(one.message) for one in told):
        warn("some characters are in none of the installed fonts and are drawn as boxes; install Noto Sans for them")
    return data.getvalue()


def _size(one: HeatMap) -> tuple[float, float]:
    """Inches that a picture wants across and down."""
    rows, columns = len(one.target), len(one.source)
    left = max([4, *(columns_of(shorten(word)) for word in one.target)]) * _LETTER
    top = max([4, *(columns_of(shorten(word)) for word in one.source)]) * _LETTER
    return max(3.0, columns * _CELL + left + top * 0.7 + 0.9), rows * _CELL + top * 0.8 + 0.7


def _draw(axes: Axes, given: HeatMap) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    given.check()
    mirrored = given.from_the_right
    one = given.mirrored() if mirrored else given
    rows, columns = one.weights.shape
    colours = LinearSegmentedColormap.from_list("weights", [tuple(c / 255 for c in colour) for colour in SHADES])
    cells = np.ma.masked_equal(one.weights, 0)  # what has no weight at all stays white
    edges = np.arange(columns + 1), np.arange(rows + 1)
    mesh = axes.pcolormesh(*edges, cells, cmap=colours, vmin=0, vmax=one.largest, edgecolors="#d9e0e8", linewidth=0.5)
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal")
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=9)
    axes.set_xticks(np.arange(columns) + 0.5, [_word(word) for word in one.source], rotation=50, ha="left")
    axes.set_yticks(np.arange(rows) + 0.5, [_word(word) for word in one.target])
    for row, (first, last) in enumerate(one.windows):
        frame = Rectangle((first, row + 0.06), last - first, 0.88, fill=False, edgecolor=_MARK, linewidth=1)
        axes.add_patch(frame)
    for row, centre in enumerate(one.centres):
        axes.plot([centre], [row + 0.5], "o", color=_MARK, markeredgecolor="white", markersize=5, clip_on=False)
    axes.figure.colorbar(mesh, ax=axes, shrink=0.6, aspect=12).ax.tick_params(labelsize=8)
    axes.set_title(shorten(visible(given.title), 60), fontsize=11, loc="left")
    if given.note:
        axes.set_xlabel(visible(given.note), fontsize=8)


def _word(text: str) -> str:
    return shorten(visible(text))
