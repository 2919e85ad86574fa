"""What a comparison writes, from rows written by hand: table, result and page; and where attention goes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2s.analysis.alignment import entropy
from s2s.commands.compare import too_few_samples
from s2s.commands.comparison_results import NUMBERS, System, Unfinished, markdown, page, result
from s2s.commands.comparison_rows import digest, path_of_reading, read_details, read_row
from s2s.commands.comparison_settings import ComparisonSettings
from s2s.errors import DataError
from s2s.evaluation.comparing import holm

HOSTILE = "<script>alert(1)</script>\"'&\u202e</title>"
RIGHT = ["the cat sat on the mat", "a dog", "the end of it"]


def settings(**more: Any) -> ComparisonSettings:
    """Over recipes that nobody reads."""
    columns = ("bleu", "exact", "difference", "p", "better", "aer-0", "entropy", "tokens", "parameters")
    given = {"recipes": ("a.yaml", "b.yaml"), "metrics": ("bleu",), "columns": columns, "length_bands": (3, 5)}
    return ComparisonSettings(**{**given, "shown": (2,), **more})


def row(name: str, seed: int, bleu: float, **more: Any) -> dict[str, Any]:
    """A row as scripts of before wrote them: without bands, speed of search, memory, and what it was made from."""
    scores = [{"name": "bleu", "value": bleu, "signature": "BLEU|sig", "by_length": None}]
    return {
        "name": name, "seed": seed, "scores": scores, "hypotheses_sha256": "0" * 64, "exact": 0.5, "parameters": 1234,
        "tokens_per_second": 2000.4, "updates": 7, "threads": 1, "torch": "2.13.0", **more,
    }  # fmt: skip


def bands(*values: float | None) -> list[dict[str, Any]]:
    """A score taken apart by length."""
    return [
        {"band": band, "sentences": 4, "value": value} for band, value in zip(("0-2", "3-4", "5+"), values, strict=True)
    ]


def details(lines: list[str], text: str = "a dog") -> dict[str, Any]:
    """Translations, and line 2 with what it attended to."""
    attention = {"source": ["ein", HOSTILE], "target": [text], "weights": [[0.25, 0.75]]}
    shown = [{"line": 2, "source": f"ein {HOSTILE}", "reference": "a dog", "text": text, "attention": attention}]
    return {"hypotheses": lines, "shown": shown}


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """The right translations."""
    (tmp_path / "right").write_text("".join(f"{line}\n" for line in RIGHT))
    return tmp_path / "right"


@pytest.fixture
def systems() -> list[System]:
    """`a`, the baseline, with two seeds; `b` with two more, one of them shared; `c` with none."""
    a = System("a", {1: row("a", 1, 10.0), 2: row("a", 2, 20.0, aer={"0": 0.25, "1": 0.5}, entropy=0.125)})
    b = System("b", {2: row("b", 2, 40.0), 3: row("b", 3, 41.0)})
    a.details = {1: details(["x"] * 3), 2: details(["the cat sat on a mat", "a cat", "the end"])}
    b.details = {2: details(RIGHT, HOSTILE), 3: details(RIGHT)}
    return [a, b, System("c")]


def test_the_table_has_mean_lowest_and_highest_of_what_is_there(systems: list[System], reference: Path) -> None:
    asked = settings(title="Toys", introduction="Some words.\n")
    text = markdown(asked, result(asked, systems, "a", reference, []))
    lines = text.splitlines()
    assert lines[:4] == ["# Toys", "", "Some words.", ""]
    assert lines[4] == (
        "| system | seeds | BLEU | exact match | BLEU difference | p | better in | AER shift 0 | entropy | tokens/s "
        "| parameters |"
    )
    assert lines[5] == "|---|" + "--:|" * 10
    assert lines[6] == (
        "| `a` | 2 | 15.0 (10.0-20.0) | 50.0 (50.0-50.0) | baseline | - | - | 0.250 | 0.12 | 2,000 (2,000-2,000) "
        "| 1,234 |"
    )
    assert lines[7].startswith("| `b` | 2 | 40.5 (40.0-41.0) | 50.0 (50.0-50.0) | +")
    assert lines[7].endswith("| 1 of 1 | - | - | 2,000 (2,000-2,000) | 1,234 |")
    assert lines[8] == "| `c` | not yet run |" + " |" * 9
    assert lines[10] == "BLEU: `BLEU|sig`"
    assert len(lines) == 11  # no row has bands of length


def test_too_few_samples_to_tell_anything_from_chance_are_noticed() -> None:
    """The smallest p is 1 / (samples + 1), and Holm multiplies it by the number of differences."""
    settings = ComparisonSettings(recipes=("a.yaml",))
    assert settings.samples == 1000 and "p" in settings.columns
    assert too_few_samples(settings, 51) is None
    found = too_few_samples(settings, 56)
    assert found is not None and "55 differences, corrected, is below 0.055; set samples: 5500" in found
    assert min(holm([1 / 1001] * 55)) == pytest.approx(55 / 1001) and max(holm([1 / 5501] * 55)) < 0.01
    assert too_few_samples(settings.model_copy(update={"samples": 5500}), 56) is None
    assert too_few_samples(settings.model_copy(update={"columns": ("bleu",)}), 56) is None
    assert too_few_samples(settings, 1) is None


def test_updates_of_seeds_that_differ_are_told_as_a_range(systems: list[System], reference: Path) -> None:
    """As where patience ended them; what is usually the same for all seeds is told once where it is."""
    systems[1].rows[3]["updates"] = 9
    asked = settings(columns=("updates", "parameters"))
    found = result(asked, systems, "a", reference, [])
    lines = markdown(asked, found).splitlines()
    assert lines[4:6] == ["| `a` | 2 | 7 | 1,234 |", "| `b` | 2 | 8 (7-9) | 1,234 |"]
    assert "8 ± 1" in page(asked, systems, found, "asked")


def test_the_metric_goes_by_the_rules_of_the_language(tmp_path: Path) -> None:
    """By those of German "don't" ends in a t alone, by those of English in 't: a translation with a t gains by one."""
    (tmp_path / "right").write_text("don't walk on the grass\n" * 2)
    a, b = System("a", {1: row("a", 1, 0.0)}), System("b", {1: row("b", 1, 0.0)})
    a.details, b.details = {1: details(["do t walk on the grass"] * 2)}, {1: details(["do x walk on the grass"] * 2)}
    found = {}
    for language in ("de", "en"):
        asked = settings(metrics=("tok-lc",), columns=("tok-lc", "difference"), language=language)
        beside = result(asked, [a, b], "a", tmp_path / "right", [])["systems"][1]["against_baseline"]
        found[language] = beside["low"]
    assert found["de"] < 0 and found["en"] == 0


def test_the_table_has_the_metric_by_source_length(systems: list[System], reference: Path) -> None:
    systems[0].rows[1]["scores"][0]["by_length"] = bands(1.0, None, 5.0)
    systems[0].rows[2]["scores"][0]["by_length"] = bands(2.0, None, 9.0)
    systems[1].rows[2]["scores"][0]["by_length"] = bands(4.0, 3.26, None)
    asked = settings(title="Toys", introduction="Some words.\n")
    lines = markdown(asked, result(asked, systems, "a", reference, [])).splitlines()
    assert lines[11:] == [
        "",
        "## BLEU by words of the source",
        "",
        "In brackets how many sentences there are of such a length.",
        "",
        "| system | 0-2 (4) | 3-4 (4) | 5+ (4) |",
        "|---|--:|--:|--:|",
        "| `a` | 1.5 | - | 7.0 |",
        "| `b` | 4.0 | 3.3 | - |",
    ]


def test_differences_are_of_the_seeds_that_both_have(systems: list[System], reference: Path) -> None:
    found = result(settings(), systems, "a", reference, [])
    beside = {one["name"]: one["against_baseline"] for one in found["systems"]}
    assert beside["a"] is None and beside["c"] is None
    assert beside["b"]["seeds"] == [2] and beside["b"]["better"] == 1 and beside["b"]["difference"] > 10
    assert found["systems"][0]["summary"]["bleu"] == {
        "mean": 15.0, "deviation": pytest.approx(50**0.5), "low": 10.0, "high": 20.0, "seeds": 2,
    }  # fmt: skip
    json.dumps(found, allow_nan=False)


def test_bands_of_length_are_means_over_seeds_that_have_them(reference: Path) -> None:
    one = row("a", 1, 10.0)
    one["scores"][0]["by_length"] = bands(1.0, None, 5.0)
    two = row("a", 2, 10.0)
    two["scores"][0]["by_length"] = bands(2.0, None, 9.0)
    found = result(settings(), [System("a", {1: one, 2: two, 3: row("a", 3, 1.0)})], "a", reference, [])
    assert [band["value"] for band in found["systems"][0]["by_length"]] == [1.5, None, 7.0]
    other = result(settings(length_bands=(2,)), [System("a", {1: one})], "a", reference, [])
    assert other["systems"][0]["by_length"] is None


@pytest.mark.parametrize(("metric", "best"), [("bleu", range(20, 12, -1)), ("ter", range(1, 9))])
def test_the_chart_by_length_has_the_baseline_and_the_best_others(
    reference: Path, metric: str, best: Sequence[int]
) -> None:
    """The more BLEU the better, the less TER; bars are in that order, and bands without sentences have none."""
    systems = []
    for place in range(1, 21):
        one = row(f"s{place}", 1, float(place))
        one["scores"][0] |= {"name": metric, "by_length": bands(float(place), None, 2.0 * place)}
        systems.append(System(one["name"], {1: one}))
    asked = settings(metrics=(metric,), columns=(metric,))
    text = page(asked, systems, result(asked, systems, "s10", reference, []), "asked")
    (chart,) = (svg for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL) if "by words of the source" in svg)
    assert f"{NUMBERS[metric].heading} by words of the source, the baseline and the 7 best others" in chart
    tips = [re.sub("[\u2068\u2069]", "", tip) for tip in re.findall(r"<rect[^>]*><title>(.*?)</title>", chart)]
    chosen = [10, *(place for place in best if place != 10)][:8]
    assert tips == [f"s{place}, {band}: {place * times}" for place in chosen for band, times in (("0-2", 1), ("5+", 2))]


def test_dots_are_of_what_was_measured(systems: list[System], reference: Path) -> None:
    """Of every seed; nothing is drawn where no system has a number."""
    text = page(settings(), systems, result(settings(), systems, "a", reference, []), "asked")
    assert "BLEU, seed by seed" in text and f"{NUMBERS['tokens'].heading}, seed by seed" in text
    assert f"{NUMBERS['memory'].heading}, seed by seed" not in text


class Elements(HTMLParser):
    """Everything that a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_makes_no_element_of_texts_and_fetches_nothing(systems: list[System], reference: Path) -> None:
    asked = settings(title=HOSTILE, introduction=f"{HOSTILE}\n\nA second.")
    systems[1].name = HOSTILE
    found = result(asked, systems, "a", reference, [Unfinished("c-1", HOSTILE)])
    elements = Elements()
    elements.feed(page(asked, systems, found, HOSTILE))
    plain = Elements()
    systems[1].name = "b"
    quiet = result(settings(), systems, "a", reference, [Unfinished("c-1", "failed")])
    plain.feed(page(settings(introduction="x\n\nA second."), systems, quiet, "asked"))
    assert elements.tags.count("script") == 1
    assert sorted(elements.tags) == sorted(plain.tags)
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    outward = [value for name, value in elements.attributes if name in ("src", "href", "action") and value]
    assert all(value.startswith("#") or value == "data:," for value in outward)
    assert "alert(1)" in "".join(elements.text) and "\u202e" not in "".join(elements.text)


def test_the_page_of_nothing_says_so(reference: Path) -> None:
    found = result(settings(), [System("a")], "a", reference, [Unfinished("a-1", "not yet run")])
    text = page(settings(), [System("a")], found, "asked")
    assert "No training has finished yet" in text and "not yet run" in text


def test_committed_rows_can_be_read() -> None:
    """Those of the toy corpus and of the dates, whatever made them; each gives the numbers that its tables show."""
    results = Path(__file__).parents[2] / "docs" / "results"
    paths = [*results.glob("toy/*.json"), *results.glob("dates/*.json")]
    assert len(paths) >= 20
    for path in paths:
        name, _, seed = path.stem.rpartition("-")
        found = read_row(path, name, int(seed))
        assert found is not None
        for column in ("bleu", "exact", "tokens", "parameters", "updates"):
            assert NUMBERS[column].value(found) is not None, (path, column)


def test_a_row_of_another_system_or_without_scores_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    assert read_row(path, "a", 1) is None
    for text, message in (
        (json.dumps(row("a", 1, 1.0)), "is not the row of a with seed 2"),
        (json.dumps({"name": "a", "seed": 2, "scores": [{}]}), "has no scores"),
        ("[1]", "is not an object"),
        ('{"name": ', "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_row(path, "a", 2)


def test_details_of_other_translations_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "details.json"
    own = row("a", 1, 1.0, hypotheses_sha256=digest(RIGHT))
    assert read_details(path, own) is None
    path.write_text(json.dumps(details(RIGHT)))
    assert read_details(path, own) == details(RIGHT)
    path.write_text(json.dumps(details(RIGHT[:2])))
    assert read_details(path, own) is None


def test_where_attention_goes() -> None:
    """Of four positions: 3, 0, 1 and then 2, 2, with a step that reads nothing: one step back of three."""
    rows = np.zeros((3, 4))
    rows[range(3), [3, 0, 1]] = 1.0
    halves = np.zeros((3, 4))
    halves[0, 2] = halves[2, 2] = 0.7
    halves[0, 1] = halves[2, 3] = 0.3
    found = path_of_reading([rows, halves])
    assert found["first"] == pytest.approx((3 / 3 + 2 / 3) / 2)
    assert found["last"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert found["back"] == pytest.approx(1 / 3)
    assert entropy(halves)[1] == 0
    assert path_of_reading([]) == {} and path_of_reading([np.zeros((2, 3))]) == {}
    assert path_of_reading([np.ones((2, 1))]) == {"first": 0.0, "last": 0.0, "back": 0.0}
