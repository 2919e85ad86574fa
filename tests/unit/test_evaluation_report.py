"""What is printed of results: JSON that every parser reads, columns that stand under each other."""

from __future__ import annotations

import json
import math

import pytest

from s2s.evaluation.report import aligned, as_json, as_text


def refuse(name: str) -> None:
    """NaN and Infinity are not JSON."""
    raise ValueError(name)


def test_json_has_no_number_that_is_none() -> None:
    found = {"a": [math.nan, {"b": (math.inf, -math.inf, 1.5)}], "c": "NaN", "d": None, "ü": True}
    expected = {"a": [None, {"b": [None, None, 1.5]}], "c": "NaN", "d": None, "ü": True}
    assert json.loads(as_json(found), parse_constant=refuse) == expected
    assert "\n" not in as_json(found)


def test_columns_are_aligned_and_empty_ones_left_out() -> None:
    rows = [["system", "score", "nothing", "p"], ["a", "7.00", "", ""], ["a longer name", "100.00", "", "0.5"]]
    assert list(aligned(rows)) == [
        "  system          score    p",
        "  a                7.00",
        "  a longer name  100.00  0.5",
    ]


@pytest.fixture
def found() -> dict[str, object]:
    """Two systems, one metric, everything asked for."""
    against = {
        "difference": -1.25,
        "bootstrap": {"p": 0.0312, "wins": 0.021, "losses": 0.97, "difference": {"low": -2.5, "high": 0.1}},
        "randomisation": {"p": 1.0},
    }
    bleu = {"name": "bleu", "signature": "BLEU|x", "interval": {"low": 30.5, "high": 101.0}}
    first, second = [{"band": "0-9", "sentences": 3, "value": 41.0}], [{"band": "0-9", "sentences": 3, "value": None}]
    words = [{"band": "0", "matched": 1, "hypothesis": 2, "reference": 2, "precision": 0.5, "recall": 0.5, "f": 0.5}]
    return {
        "sentences": 3,
        "references": ["right.de"],
        "source": "source.en",
        "significance": {
            "baseline": "one",
            "bootstrap": {"samples": 1000, "seed": 12345},
            "randomisation": {"trials": 10000, "seed": 12345},
        },
        "length_bands": ["0-9"],
        "frequency": {"text": "train.de", "bands": ["0"]},
        "systems": [
            {
                "name": "one",
                "scores": [{**bleu, "value": 40.0, "against_baseline": None, "by_length": first}],
                "words": words,
            },
            {
                "name": "another",
                "scores": [{**bleu, "value": 38.75, "against_baseline": against, "by_length": second}],
                "words": [{**words[0], "f": None}],
            },
        ],
    }


def test_the_whole_page(found: dict[str, object]) -> None:
    assert "\n".join(as_text(found)) == (
        "3 sentences against right.de\n"
        "95 % intervals by bootstrap: 1000 samples, seed 12345; randomisation: 10000 trials, seed 12345\n"
        "\n"
        "bleu  BLEU|x\n"
        "  system   score    95 % interval  difference  p (bootstrap)   wins  p (randomisation)\n"
        "  one      40.00  30.50 to 101.00    baseline\n"
        "  another  38.75  30.50 to 101.00       -1.25         0.0312  0.021             1.0000\n"
        "\n"
        "bleu by length\n"
        "  words of the source    0-9\n"
        "  sentences                3\n"
        "  one                  41.00\n"
        "  another                  -\n"
        "\n"
        "F-measure of words by how often they are in train.de\n"
        "  times seen         0\n"
        "  in references      2\n"
        "  one            0.500\n"
        "  another            -"
    )
