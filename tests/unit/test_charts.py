"""Charts: every mark stands where its value belongs, and text is safe."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2s.analysis.charts import Series, bar_chart, dot_plot, line_chart, means

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = ["<script>alert(1)</script>", '"onload="x', "'", "&amp;", "</title></svg>", "a\u202eb", "\x1b[2J"]


def marks(svg: str, tag: str, kind: str) -> list[ElementTree.Element]:
    found = ElementTree.fromstring(svg).iter(f"{SVG}{tag}")
    return [one for one in found if kind in one.get("class", "").split()]


def tips(svg: str, tag: str, kind: str) -> list[str]:
    return [re.sub("[\u2068\u2069]", "", one.findtext(f"{SVG}title", "")) for one in marks(svg, tag, kind)]


def at(mark: ElementTree.Element, *names: str) -> tuple[float, ...]:
    return tuple(float(mark.get(name, "")) for name in names)


def axis(svg: str, anchor: str) -> dict[str, float]:
    """The texts of an axis with their place: "end" those of the upward one, "middle" of the one across."""
    texts = [one for one in marks(svg, "text", "quiet") if one.get("text-anchor") == anchor]
    return {one.text or "": float(one.get("y" if anchor == "end" else "x", "")) for one in texts}


def test_points_stand_at_their_values() -> None:
    svg = line_chart([Series("bleu", [0, 100, 200], [0, 30, 40])], title="Scores", x="update", y="BLEU")
    assert tips(svg, "circle", "dot") == ["bleu, update 0: 0", "bleu, update 100: 30", "bleu, update 200: 40"]
    (x0, y0), (x1, y1), (x2, y2) = (at(dot, "cx", "cy") for dot in marks(svg, "circle", "dot"))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11) and x1 > x0
    assert (y0 - y1) / (y0 - y2) == pytest.approx(30 / 40, abs=0.001)
    up, across = axis(svg, "end"), axis(svg, "middle")
    assert list(up) == ["0", "10", "20", "30", "40"]
    assert up["30"] == pytest.approx(y1 + 4, abs=0.11) and across["100"] == pytest.approx(x1, abs=0.11)
    assert "update" in across


def test_a_logarithmic_axis() -> None:
    svg = line_chart([Series("norm", [1, 2, 3, 4], [0.1, 1, 0, 10])], title="", x="x", y="", log=True)
    ys = [at(dot, "cy")[0] for dot in marks(svg, "circle", "dot")]
    assert len(ys) == 3, "zero has no place"
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.11)
    (line,) = marks(svg, "path", "line")
    assert [step[0] for step in re.findall("[ML][^ML]*", line.get("d", ""))] == ["M", "L", "M"], "the line is broken"


def test_what_is_not_finite_interrupts_the_line() -> None:
    svg = line_chart([Series("a", [1, 2, 3, 4, 5], [1, 2, math.nan, math.inf, 3])], title="", x="", y="")
    (line,) = marks(svg, "path", "line")
    assert re.sub("[^ML]", "", line.get("d", "")) == "MLM"
    assert "nan" not in svg and "inf" not in svg


def test_a_constant_is_in_the_middle_and_dust_is_constant() -> None:
    for values in ([5.0, 5.0], [1.0000000043913, 1.0000000028]):
        svg = line_chart([Series("a", [1, 2], values)], title="", x="", y="")
        ticks = list(axis(svg, "end"))
        assert len(ticks) == len(set(ticks)) > 2
        one, other = (at(dot, "cy")[0] for dot in marks(svg, "circle", "dot"))
        assert one == other


def test_bars_rise_from_zero() -> None:
    svg = bar_chart(["0-9", "10+"], {"a": [20, 10], "b": [None, -5]}, title="", y="BLEU")
    drawn = [one for one in marks(svg, "rect", "bar") if one.findtext(f"{SVG}title")]
    assert tips(svg, "rect", "bar")[-3:] == ["a, 0-9: 20", "a, 10+: 10", "b, 10+: -5"]
    (_, top, tall), (_, _, half), (_, zero, below) = (at(bar, "x", "y", "height") for bar in drawn)
    assert half == pytest.approx(tall / 2, abs=0.11) and below == pytest.approx(tall / 4, abs=0.11)
    assert zero == pytest.approx(top + tall, abs=0.11)


def test_bars_of_a_group_stand_side_by_side_within_it() -> None:
    names = [f"m{index}" for index in range(10)]
    svg = bar_chart(["x", "y", "z"], {name: [1, 2, 3] for name in names}, title="", y="")
    drawn = [one for one in marks(svg, "rect", "bar") if one.findtext(f"{SVG}title")]
    spans = sorted((x, x + width) for x, width in (at(bar, "x", "width") for bar in drawn))
    assert len(spans) == 30
    assert all(end <= start + 0.11 for (_, end), (start, _) in pairwise(spans))
    looks = {bar.get("class") for bar in drawn}
    assert len(looks) == 10, "each series has a look of its own"


def test_dots_of_seeds_and_their_mean() -> None:
    svg = dot_plot(["a", "b", "c"], [[80, 90], [85, math.nan], []], title="BLEU", x="BLEU")
    assert tips(svg, "circle", "dot") == ["a: 80", "a: 90", "b: 85"]
    assert tips(svg, "path", "mean") == ["a: mean 85 of 2", "b: mean 85 of 1"]
    (x80, y), (x90, y_too), (x85, below) = (at(dot, "cx", "cy") for dot in marks(svg, "circle", "dot"))
    assert y == y_too < below and x85 == pytest.approx((x80 + x90) / 2, abs=0.11)
    means_at = [float(re.findall(r"[\d.]+", one.get("d", ""))[0]) for one in marks(svg, "path", "mean")]
    assert means_at == pytest.approx([x85, x85], abs=0.11)


def test_means_over_stretches() -> None:
    given_series = Series("a", list(range(1, 8)), [1, 3, math.nan, 5, 7, math.nan, math.nan])
    assert means(given_series, 7) is given_series
    name, x, y = means(given_series, 3)  # stretches of three: 1-3, 4-6 and 7
    assert (name, list(x), list(y[:2])) == ("a", [3, 6, 7], [2.0, 6.0]) and math.isnan(y[2])
    assert len(means(Series("a", range(10_001), [0.0] * 10_001), 300).x) <= 300


@pytest.mark.parametrize("text", HOSTILE)
def test_text_creates_no_element_and_no_attribute(text: str) -> None:
    class Elements(HTMLParser):
        def __init__(self, page: str) -> None:
            super().__init__()
            self.found: list[tuple[str, tuple[str, ...]]] = []
            self.feed(page)
            self.close()

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found.append((tag, tuple(name for name, _ in attrs)))

    def drawn(word: str) -> str:
        return (
            line_chart([Series(word, [1, 2], [3, 4]), Series("b", [1], [1])], title=word, x=word, y=word)
            + bar_chart([word, "b"], {word: [1, 2]}, title=word, y=word)
            + dot_plot([word], [[1.0, 2.0]], title=word, x=word)
        )

    assert Elements(drawn(text)).found == Elements(drawn("plain")).found
    assert "\u202e" not in drawn(text) and "\x1b" not in drawn(text)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(), max_size=20), st.text(max_size=10), st.booleans())
def test_any_numbers_give_well_formed_xml(values: list[float], text: str, log: bool) -> None:
    for svg in (
        line_chart([Series(text, range(len(values)), values)], title=text, x="", y="", log=log),
        bar_chart([text] * len(values), {"a": values}, title=text, y=""),
        dot_plot([text], [values], title=text, x=""),
    ):
        root = ElementTree.fromstring(svg.encode())
        width, height = (float(root.get(side, "")) for side in ("width", "height"))
        for dot in marks(svg, "circle", "dot"):
            x, y = at(dot, "cx", "cy")
            assert -1 <= x <= width + 1 and -1 <= y <= height + 1


def test_nothing_to_show_is_said() -> None:
    for svg in (
        line_chart([], title="t", x="x", y="y"),
        bar_chart([], {}, title="t", y="y"),
        dot_plot(["a"], [[]], title="t", x="x"),
    ):
        assert "nothing to show" in svg


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="2 x and 1 y"):
        line_chart([Series("a", [1, 2], [1])], title="", x="", y="")
    with pytest.raises(ValueError, match="1 values for 2 categories"):
        bar_chart(["a", "b"], {"m": [1]}, title="", y="")
    with pytest.raises(ValueError, match="1 names and 2 rows"):
        dot_plot(["a"], [[1], [2]], title="", x="")
