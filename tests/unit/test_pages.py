"""Pages: what is in them is escaped, what may run in them is named by its hash, and nothing comes from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import jinja2
import numpy as np
import pytest
from markupsafe import Markup

from s2s.analysis import pages
from s2s.analysis.charts import Series, line_chart
from s2s.analysis.heatmap import heat_map_svg

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=y>',
    "' onfocus='x",
    "&lt;b&gt;",
    "</style>",
    "a\u202eb\x1b",
]


class Seen(HTMLParser):
    """Elements with their attributes, and the text of style sheets and scripts, as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.raw: dict[str, list[str]] = {"style": [], "script": []}
        self.inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in self.raw:
            self.raw[tag].append("")
            self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = "" if tag == self.inside else self.inside

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.raw[self.inside][-1] += data


def report(text: str) -> str:
    """The page of a run in which every text is this one."""
    sentence = {"line": 1, "number": 1, "chrf": 50.0, "source": text, "reference": text, "found": text}
    picture = heat_map_svg(np.ones((1, 1)), [text], [text], title=text)
    chart = line_chart([Series(text, [1, 2], [3, 4]), Series(text, [1], [2])], title=text, x=text, y=text)
    measured = {
        "split": text, "count": 1, "scores": [(text, 1.0, text)], "names": [text], "chart": chart,
        "bands": [(text, 1, [1.0])], "best": [sentence], "worst": [sentence],
    }  # fmt: skip
    return pages.render(
        "report.html", name=text, made=text, missing=[text], tiles=[(text, text)], curves=[chart],
        mechanism=[(chart, text)], measured=measured, samples=[sentence | {"found": [(1, text)]}],
        looks=[sentence | {"picture": picture, "heads": picture, "why": ""}], rule=text, settings=text,
        changes=[(text, text, text)], environment=[(text, text)],
    )  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_text_creates_no_element_and_no_attribute(text: str) -> None:
    page = report(text)
    assert Seen(page).elements == Seen(report("plain")).elements
    assert "\u202e" not in page and "\x1b" not in page
    assert "a\\u202eb\\x1b" in report(HOSTILE[-1])


def test_the_policy_allows_the_one_style_sheet_and_the_one_script_and_nothing_else() -> None:
    page = report("plain")
    seen = Seen(page)
    assert {name: len(texts) for name, texts in seen.raw.items()} == {"style": 1, "script": 1}
    policy = dict(part.split(" ", 1) for part in pages.policy_of(page).split("; "))
    for name, (text,) in seen.raw.items():
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{name}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert set(policy) == {"default-src", "style-src", "script-src", "img-src", "base-uri", "form-action"}
    place = seen.attributes.index(("meta", "http-equiv", "Content-Security-Policy"))
    assert {tag for tag, _, _ in seen.attributes[:place]} == {"html", "meta"}, "it comes before what it governs"


def test_nothing_comes_from_elsewhere_and_nothing_is_inline() -> None:
    page = report("plain")
    for tag, name, value in Seen(page).attributes:
        assert not name.startswith("on") and name not in ("style", "src"), (tag, name)
        if name == "href":
            assert value.startswith("#") or value == "data:,"
    assert set(re.findall(r"https?://[^\"'<> ]*", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\(|@import", page)


def test_landmarks_and_headings_in_order() -> None:
    seen = Seen(report("plain"))
    tags = [tag for tag, _ in seen.elements]
    assert all(tags.count(tag) == 1 for tag in ("header", "nav", "main", "footer", "h1"))
    assert ("html", "lang", "en") in seen.attributes
    assert ("a", "href", "#content") in seen.attributes and ("main", "id", "content") in seen.attributes
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False))
    ids = [value for _, name, value in seen.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [value[1:] for tag, name, value in seen.attributes if tag == "a" and name == "href"]
    targets += [value for _, name, value in seen.attributes if name == "aria-labelledby"]
    assert set(targets) <= set(ids)


def test_pictures_come_without_their_style_sheet_which_the_page_has() -> None:
    picture = heat_map_svg(np.ones((1, 1)), ["a"], ["b"])
    sheet = re.search(r"<style>(.*?)</style>", picture)
    assert sheet and sheet[1] in Seen(report("plain")).raw["style"][0]
    assert pages.embedded(picture) == picture.replace(f"{sheet[0]}\n", "")
    for wrong in ("<b>bold</b>", "<svg><script>1</script></svg>", ""):
        with pytest.raises(ValueError, match="not a chart or a heat map"):
            pages.embedded(wrong)


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="name"):
        pages.render("report.html", made="")


def test_a_page_without_a_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="Content-Security-Policy"):
        pages.policy_of("<p>")


def test_lines_stay_and_markup_is_not_escaped_twice() -> None:
    assert "a\nb\tc" in report("a\nb\tc")
    assert pages._shown(Markup("<b>\u202e</b>")) == "<b>\u202e</b>"
    assert pages._shown(3) == 3
