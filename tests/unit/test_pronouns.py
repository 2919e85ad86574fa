"""scripts/pronouns.py: what counts as right, and the test of signs against values worked out by hand."""

from __future__ import annotations

import importlib.util
import sys
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load() -> ModuleType:
    """The script as a module, which finds its neighbours as a script does."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec = importlib.util.spec_from_file_location("pronouns", SCRIPTS / "pronouns.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPTS))
    return module


script: Any = load()


@pytest.mark.parametrize(
    ("german", "found"),
    [
        ("Sie findet sie.", {"sie": 2}),
        ("Ist er alt?", {"er": 1}),
        ("Ich weiß, dass es kalt ist.", {"es": 1}),
        ("Dieser Lehrer sieht ihn, aber seine Katze nicht.", {"ihn": 1}),
        ("Das ist der Hund.", {}),
    ],
)
def test_pronouns_are_whole_words(german: str, found: dict[str, int]) -> None:
    assert script.pronouns(german) == found


def test_signs_are_tested_exactly() -> None:
    """By going through all coins."""
    assert script.sign_test(0, 0) == 1.0
    assert script.sign_test(5, 0) == 2 / 32
    assert script.sign_test(3, 3) == 1.0
    for wins, losses in ((4, 1), (1, 6), (2, 2), (7, 0)):
        coins = [sum(throw) for throw in product((0, 1), repeat=wins + losses)]
        far = abs(wins - (wins + losses) / 2)
        share = sum(abs(heads - (wins + losses) / 2) >= far for heads in coins) / len(coins)
        assert script.sign_test(wins, losses) == pytest.approx(share)


SOURCE = [
    "He sees a dog.", "It is old.", "", "He sees a cat.", "It is old.", "", "He sees a horse.", "It is old.", "",
    "This is tea.", "Is it hot?", "I drink it.", "", "This is milk.", "Is it hot?", "I drink it.", "", "This is water.",
    "Is it hot?", "I drink it.",
]  # fmt: skip
REFERENCE = [
    "Er sieht einen Hund.", "Er ist alt.", "", "Er sieht eine Katze.", "Sie ist alt.", "", "Er sieht ein Pferd.",
    "Es ist alt.", "", "Das ist Tee.", "Ist er heiß?", "Ich trinke ihn.", "", "Das ist Milch.", "Ist sie heiß?",
    "Ich trinke sie.", "", "Das ist Wasser.", "Ist es heiß?", "Ich trinke es.",
]  # fmt: skip


def test_what_is_right_is_counted_by_triples_and_genders() -> None:
    groups = script.triples(SOURCE)
    assert groups == [[1, 4, 7], [10, 11, 14, 15, 18, 19]]
    guessed = ["Es ist alt." if "alt" in line else line.replace("ihn", "sie") for line in REFERENCE]
    marks = script.right(guessed, REFERENCE, groups)
    assert marks == [[False, False, True], [True, False, True, True, True, True]]
    found = script.described(guessed, REFERENCE, groups)
    assert (found["right"], found["of"]) == (6, 9)
    assert found["by_gender"] == {"m": round(1 / 3, 4), "f": round(2 / 3, 4), "n": 1.0}
    against = script.compared(script.right(REFERENCE, REFERENCE, groups), marks)
    assert against["sentences"] == {"better": 3, "worse": 0, "p": 0.25}
    assert against["triples"] == {"better": 2, "worse": 0, "p": 0.5}


def test_documents_of_the_corpus_come_in_threes() -> None:
    text = Path(f"{script.TEXT}.en").read_text(encoding="utf-8").split("\n")[:-1]
    groups = script.triples(text)
    assert len(groups) == 120 and all(len(group) % 3 == 0 for group in groups)
    assert sum(map(len, groups)) == sum(map(script.with_it, text))
