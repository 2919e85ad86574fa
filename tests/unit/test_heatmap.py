"""Heat maps: well-formed, faithful to the weights, and safe with any text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2s.analysis.heatmap import HeatMap, heat_map_svg, heat_maps_svg

SVG = "{http://www.w3.org/2000/svg}"
WEIGHTS = np.array([[0.5, 0.0, 0.25], [0.0, 0.75, 0.001]])
HOSTILE = ["<script>alert(1)</script>", '"onmouseover="x', "'", "&amp;", "</title></svg>", "]]>", "a\u202eb", "\x1b[2J"]


class Elements(HTMLParser):
    """Collects element and attribute names as a browser would see them in a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)


def cells(svg: str) -> list[ElementTree.Element]:
    return [rect for rect in ElementTree.fromstring(svg).iter(f"{SVG}rect") if "cell" in rect.get("class", "").split()]


def words(svg: str) -> list[ElementTree.Element]:
    return [text for text in ElementTree.fromstring(svg).iter(f"{SVG}text") if text.get("class") == "word"]


def test_one_cell_per_weight_with_its_value() -> None:
    svg = heat_map_svg(WEIGHTS, ["a", "b", "c"], ["x", "y"], title="Title", note="Note")
    titles = [rect.findtext(f"{SVG}title", "").translate({0x2068: None, 0x2069: None}) for rect in cells(svg)]
    assert titles == ["a → x: 0.5", "b → x: 0", "c → x: 0.25", "a → y: 0", "b → y: 0.75", "c → y: 0.001"]
    assert [text.text for text in words(svg)] == ["a", "b", "c", "x", "y"]
    texts = [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert {"Title", "Note", "0", "0.75"} <= set(texts)


def test_shades_follow_the_weights() -> None:
    svg = heat_map_svg(WEIGHTS, ["a", "b", "c"], ["x", "y"])
    levels = [int(rect.get("class", "").removeprefix("cell c")) for rect in cells(svg)]
    # 24 shades up to the largest weight 0.75; zero is shade 0, anything above it at least 1.
    assert levels == [16, 0, 8, 0, 24, 1]
    light, dark = svg.split("@media screen and (prefers-color-scheme:dark)")
    for style, rising in ((light, False), (dark, True)):
        colours = [re.search(rf"\.c{level}{{fill:#(\w{{6}})}}", style) for level in range(1, 25)]
        assert all(colours)
        brightness = [sum(bytes.fromhex(colour[1])) for colour in colours if colour]
        assert brightness == sorted(set(brightness), reverse=not rising)


def test_cells_lie_below_their_column_and_beside_their_row() -> None:
    svg = heat_map_svg(WEIGHTS, ["a", "b", "c"], ["x", "y"])
    places = [(float(rect.get("x", "")), float(rect.get("y", ""))) for rect in cells(svg)]
    assert len({x for x, _ in places[:3]}) == 3
    assert [x for x, _ in places[:3]] == [x for x, _ in places[3:]]
    assert places[0][1] == places[2][1] < places[3][1]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_creates_no_element_and_no_attribute(text: str) -> None:
    plain = heat_map_svg(WEIGHTS, ["a", "b", "c"], ["x", "y"], title="t", note="n")
    hostile = heat_map_svg(WEIGHTS, [text, "b", "c"], ["x", text], title=text, note=text)
    ElementTree.fromstring(hostile)
    seen, expected = Elements(hostile), Elements(plain)
    assert (seen.tags, seen.attributes) == (expected.tags, expected.attributes)
    assert "script" not in seen.tags
    assert "\u202e" not in hostile
    assert "\x1b" not in hostile


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_gives_well_formed_xml(source: str, target: str) -> None:
    svg = heat_map_svg(np.ones((1, 1)), [source], [target], title=source, note=target)
    ElementTree.fromstring(svg.encode("utf-8"))


def test_right_to_left_words_keep_their_edge() -> None:
    svg = heat_map_svg(np.ones((1, 2)), ["كلب", "dog"], ["שלום"])
    arabic, english, hebrew = words(svg)
    assert (arabic.get("direction"), arabic.get("text-anchor")) == ("rtl", "end")
    assert (english.get("direction"), english.get("text-anchor")) == (None, "start")
    assert (hebrew.get("direction"), hebrew.get("text-anchor")) == ("rtl", "start")


def test_joiners_stay() -> None:
    assert words(heat_map_svg(np.ones((1, 1)), ["می\u200cخواهم"], ["x"]))[0].text == "می\u200cخواهم"


def test_a_long_word_is_cut_but_the_tooltip_has_it() -> None:
    word = "Donaudampfschifffahrtsgesellschaftskapitän"
    svg = heat_map_svg(np.ones((1, 1)), [word], ["漢" * 30])
    assert [text.text for text in words(svg)] == [word[:27] + "…", "漢" * 13 + "…"]
    assert word in svg


def test_long_words_fit_into_the_picture() -> None:
    root = ElementTree.fromstring(heat_map_svg(np.ones((1, 1)), ["w" * 28], ["w" * 28]))
    first_cell = next(rect for rect in root.iter(f"{SVG}rect") if rect.get("class", "").startswith("cell"))
    assert float(first_cell.get("x", "")) > 28 * 6.5
    assert float(first_cell.get("y", "")) > 28 * 5
    assert float(root.get("width", "")) - float(first_cell.get("x", "")) > 28 * 4


def test_nothing_comes_from_elsewhere() -> None:
    svg = heat_map_svg(WEIGHTS, ["a", "b", "c"], ["x", "y"])
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"url\(|@import|href|<script", svg)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="2 target and 2 source"):
        heat_map_svg(WEIGHTS, ["a", "b"], ["x", "y"])
    for wrong in (np.nan, np.inf, -0.5):
        with pytest.raises(ValueError, match="finite and not negative"):
            heat_map_svg(np.array([[wrong]]), ["a"], ["x"])


def test_nothing_to_draw_is_no_error() -> None:
    for shape in ((0, 0), (0, 2), (2, 0), (2, 2)):
        sources, targets = ["a", "b"][: shape[1]], ["x", "y"][: shape[0]]
        ElementTree.fromstring(heat_map_svg(np.zeros(shape), sources, targets))


# --- marks, directions, several at once -------------------------------------------------------------------------------


def numbers(element: ElementTree.Element, *names: str) -> list[float]:
    return [float(element.get(name, "")) for name in names]


def of_class(svg: str, kind: str) -> list[ElementTree.Element]:
    return [one for one in ElementTree.fromstring(svg).iter() if one.get("class", "").split()[:1] == [kind]]


def test_windows_and_centres_lie_on_their_rows() -> None:
    given = HeatMap(WEIGHTS, ["a", "b", "c"], ["x", "y"], centres=[0.5, 2.0], windows=[(0.0, 2.0), (1.0, 3.0)])
    svg = heat_maps_svg([given])
    grid = [numbers(cell, "x", "y") for cell in cells(svg)]
    left, top, step = grid[0][0] - 0.5, grid[0][1] - 0.5, grid[1][0] - grid[0][0]
    frames = [numbers(frame, "x", "y", "width") for frame in of_class(svg, "window")]
    assert frames == [[left + 1, top + 1, 2 * step - 2], [left + step + 1, top + step + 1, 2 * step - 2]]
    dots = [numbers(dot, "cx", "cy") for dot in of_class(svg, "centre")]
    assert dots == [[left + step / 2, top + step / 2], [left + 2 * step, top + 1.5 * step]]


def test_a_source_from_the_right_runs_so() -> None:
    hebrew = ["אני", "רואה", "dogs"]
    plain = heat_maps_svg([HeatMap(WEIGHTS, ["a", "b", "c"], ["x", "y"])])
    svg = heat_maps_svg([HeatMap(WEIGHTS, hebrew, ["x", "y"], centres=[0.5, 3.0], windows=[(0, 1), (0, 2)])])
    assert [word.text for word in words(svg)] == ["dogs", "רואה", "אני", "x", "y"]
    assert "← source" in svg and "source →" in plain
    first = [cell.get("class") for cell in cells(svg)[:3]]
    assert first == [cell.get("class") for cell in cells(plain)[:3]][::-1]
    assert "אני\u2069 → \u2068x\u2069: 0.5" in svg
    grid = [numbers(cell, "x") for cell in cells(svg)]
    left, step = grid[0][0] - 0.5, grid[1][0] - grid[0][0]
    assert [numbers(dot, "cx")[0] for dot in of_class(svg, "centre")] == [left + 2.5 * step, left]
    assert [numbers(one, "x", "width") for one in of_class(svg, "window")] == [
        [left + 2 * step + 1, step - 2], [left + step + 1, 2 * step - 2]
    ]  # fmt: skip


def test_several_stand_side_by_side_and_then_below() -> None:
    small = HeatMap(np.full((2, 2), 0.5), ["a", "b"], ["x", "y"], title="one")
    svg = heat_maps_svg([small, small._replace(title="other", weights=np.ones((2, 2)))] * 4, "All")
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == "All"
    moves = [one.get("transform", "") for one in root.findall(f"{SVG}g")]
    places = [tuple(map(int, re.findall(r"\d+", move))) for move in moves]
    width, height = int(root.get("width", "")), int(root.get("height", ""))
    assert len(places) == len(set(places)) == 8 and places[0] == (0, 0) and places[1][1] == 0 < places[1][0]
    assert 0 < len([place for place in places if place[1]]) < 8 and width <= 1200
    assert all(x < width and y < height for x, y in places)
    assert len(list(root.iter(f"{SVG}style"))) == 1
    legends = [text.text for text in root.iter(f"{SVG}text") if text.text in ("0.5", "1")]
    assert legends == ["0.5", "1"] * 4, "each has its own scale"


def test_long_sentences_have_smaller_cells() -> None:
    def side(count: int) -> float:
        svg = heat_map_svg(np.ones((1, count)), ["w"] * count, ["x"])
        (one, *_) = cells(svg)
        return float(one.get("width", ""))

    assert side(30) > side(31) == side(60) > side(61) >= 12


def test_marks_that_do_not_fit_are_refused() -> None:
    for wrong in ({"centres": [1.0]}, {"windows": [(0.0, 1.0)] * 3}):
        with pytest.raises(ValueError, match="of 2 target words"):
            heat_maps_svg([HeatMap(WEIGHTS, ["a", "b", "c"], ["x", "y"])._replace(**wrong)])
    with pytest.raises(ValueError, match="no heat map"):
        heat_maps_svg([])
