"""Lines of output: what stands between tabs, and JSON that every strict parser reads."""

from __future__ import annotations

import json
import math

import pytest

from s2s.interfaces import EOS
from s2s.search.beam import Hypothesis
from s2s.search.formats import lines_of
from s2s.search.translate import Candidate, Part, Translation
from s2s.strictjson import json_line


def part(finished: bool) -> Part:
    """Of a line that was cut, one that ended by itself or at the limit of its length."""
    return Part([EOS], [-1], Hypothesis([], 0.0, 0.0, finished, None))


FOUND = Translation(
    7,
    'a "b" \u2028 c',
    [
        Candidate("x y", -0.25, -0.75, ["▁x", "▁y"], [part(True), part(True)], {(1, 0), (0, 1), (0, 0)}),
        Candidate("", -1 / 3, -1 / 3, [], [part(True), part(False)], set()),
    ],
)


def refuse(name: str) -> None:
    raise ValueError(name)


def test_text_has_the_best_alone() -> None:
    assert list(lines_of(FOUND, "text")) == ["x y"]


def test_tab_separated() -> None:
    assert list(lines_of(FOUND, "tsv")) == ["7\t1\t-0.250000\tx y", "7\t2\t-0.333333\t"]


def test_json() -> None:
    (line,) = lines_of(FOUND, "jsonl")
    assert "\u2028" not in line and "\\u2028" in line
    assert json.loads(line, parse_constant=refuse) == {
        "line": 7,
        "source": 'a "b" \u2028 c',
        "hypotheses": [
            {"text": "x y", "score": -0.25, "log_probability": -0.75, "tokens": ["▁x", "▁y"],
             "finished": True, "alignment": "0-0 0-1 1-0"},
            {"text": "", "score": -0.333333, "log_probability": -0.333333, "tokens": [], "finished": False,
             "alignment": ""},
        ],
    }  # fmt: skip
    (line,) = lines_of(Translation(1, "", [Candidate("", 0.0, 0.0, [], [], None)]), "jsonl")
    (blank,) = json.loads(line)["hypotheses"]
    assert blank == {"text": "", "score": 0.0, "log_probability": 0.0, "tokens": [], "finished": True}


def test_what_has_no_probability_is_null() -> None:
    """`json.dumps` would write -Infinity, which is not JSON."""
    nothing = Translation(1, "a", [Candidate("x", -math.inf, -math.inf, ["x"], [], None)])
    (line,) = lines_of(nothing, "jsonl")
    assert json.loads(line, parse_constant=refuse)["hypotheses"][0]["score"] is None
    assert list(lines_of(nothing, "tsv")) == ["1\t1\t-inf\tx"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line(math.nan)


def test_every_character_survives_and_none_disturbs() -> None:
    for code in (*range(0x110), *range(0x2020, 0x2030), 0xD800, 0xDFFF, 0x1F600, 0x202E):
        text = json_line([chr(code)])
        assert json.loads(text) == [chr(code)]
        assert not set(text) & {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "\u2028", "\u2029"}
        text.encode()  # no lone surrogate
