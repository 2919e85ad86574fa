"""The comparisons of recipes: tables from rows written by hand, resuming, and what is measured of attention."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """comparison.py and compare_dates.py."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("comparison"), importlib.import_module("compare_dates")


@pytest.fixture
def toys(scripts: tuple[ModuleType, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A comparison of two recipes, `a` and `b`, in a folder of its own."""
    comparison, _ = scripts
    monkeypatch.setattr(comparison, "ROOT", tmp_path)
    (tmp_path / "configs" / "toys").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    for name in ("a", "b", "base"):
        (tmp_path / "configs" / "toys" / f"{name}.yaml").touch()
    columns = (comparison.EXACT, comparison.ENTROPY, comparison.PARAMETERS)
    return comparison.Comparison("toys", "# Toys\n\nBLEU is {signature}.\n", columns, lambda *_: {})


def write_row(toys: Any, name: str, seed: int, **more: Any) -> None:
    """A row by hand."""
    row = {"name": name, "seed": seed, "scores": [{"value": 1.0, "signature": "sig"}], "parameters": 1234, **more}
    toys.results.mkdir(parents=True, exist_ok=True)
    (toys.results / f"{name}-{seed}.json").write_text(json.dumps(row))


def page(toys: Any) -> list[str]:
    """The lines of the page."""
    text: str = (toys.configs.parents[1] / "docs" / "results-toys.md").read_text()
    return text.splitlines()


def test_the_table_has_mean_lowest_and_highest_of_what_is_there(toys: Any) -> None:
    write_row(toys, "b", 1, exact=0.5, entropy=0.25)
    write_row(toys, "b", 2, exact=0.75)
    toys.table()
    assert page(toys) == [
        "# Toys",
        "",
        "BLEU is sig.",
        "",
        "| recipe | seeds | exact match | entropy | parameters |",
        "|---|--:|--:|--:|--:|",
        "| `a` | not yet run | | | |",
        "| `b` | 2 | 62.5 (50.0-75.0) | 0.25 | 1,234 |",
    ]


def test_only_what_is_missing_is_trained_and_the_page_follows_every_row(
    toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int]] = []
    pages: list[str] = []

    def train(self: Any, recipe: str, seed: int) -> None:
        if trained:
            pages.append(page(toys)[-2])
        trained.append((recipe, seed))
        write_row(toys, recipe, seed, exact=1.0)

    write_row(toys, "a", 2, exact=0.0)
    monkeypatch.setattr(type(toys), "row", train)
    monkeypatch.setattr(sys, "argv", ["compare", "--seeds", "1", "2"])
    toys.main("what for")
    assert trained == [("a", 1), ("b", 1), ("b", 2)]
    assert pages == ["| `a` | 2 | 50.0 (0.0-100.0) | - | 1,234 |"] * 2
    monkeypatch.setattr(sys, "argv", ["compare", "--table"])
    toys.main("what for")
    assert len(trained) == 3


def test_where_attention_goes(scripts: tuple[ModuleType, ModuleType]) -> None:
    """Of four positions: 3, 0, 1 and then 2, 2, with a step that reads nothing: one step back of three."""
    comparison, dates = scripts
    rows = np.zeros((3, 4))
    rows[range(3), [3, 0, 1]] = 1.0
    halves = np.zeros((3, 4))
    halves[0, 2] = halves[2, 2] = 0.7
    halves[0, 1] = halves[2, 3] = 0.3
    found = dates.path_of_reading(None, [comparison.Reading([], [], rows), comparison.Reading([], [], halves)])
    spread = -(0.7 * np.log(0.7) + 0.3 * np.log(0.3))
    assert found["first"] == pytest.approx((3 / 3 + 2 / 3) / 2)
    assert found["last"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert found["back"] == pytest.approx(1 / 3)
    assert found["entropy"] == pytest.approx(2 * spread / 6)
    assert dates.path_of_reading(None, []) == {}
