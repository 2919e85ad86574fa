"""What is refused is refused with a reason, when the configuration is read, and docs/refusals.md says all of it."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from grid import BOTH_WAYS, recurrent
from pydantic import ValidationError

from s2s import config as configuration
from s2s import configfile
from s2s.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/refusals.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        return importlib.import_module("refusals")


@pytest.fixture(scope="module")
def everything(script: ModuleType) -> list[Any]:
    """All combinations."""
    return list(script.combinations())


@pytest.fixture(scope="module")
def refused(script: ModuleType, everything: list[Any]) -> dict[str, list[Any]]:
    """Those that are refused, by reason."""
    found: dict[str, list[Any]] = script.refusals(everything)
    return found


def test_the_page_is_up_to_date(script: ModuleType) -> None:
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run python scripts/refusals.py"


def test_a_configuration_file_is_refused_with_the_reason(refused: dict[str, list[Any]], tmp_path: Path) -> None:
    """By the error that the command line prints, which names the place in the file."""
    for reason, found in refused.items():
        path = tmp_path / "refused.yaml"
        extends = {"extends": str(ROOT / "configs" / "toy" / "base.yaml")}
        path.write_text(configfile.dump({**extends, "model": {"decoder": found[0].decoder}}))
        with pytest.raises(ConfigError) as caught:
            configuration.load(path)
        assert caught.value.code == 2 and reason in str(caught.value) and "refused.yaml:" in str(caught.value)


def test_reasons_are_sentences(refused: dict[str, list[Any]]) -> None:
    assert refused and all(len(reason.split()) >= 5 for reason in refused)


def test_nothing_else_is_refused(everything: list[Any], refused: dict[str, list[Any]]) -> None:
    """By hand: feeding is luong's alone, a cgru needs a context, coverage needs weights and the additive score,
    `posterior` needs feeding.

    Heads are `global` or local.
    """
    gone = {one.places for found in refused.values() for one in found}
    for one in everything:
        kind, score, _, wiring, feeding = one.places
        impossible = wiring in ("bahdanau", "gnmt", "cgru") and feeding != "by default"
        impossible |= wiring == "cgru" and kind == "none"
        impossible |= "posterior" in kind and (wiring in ("bahdanau", "gnmt", "cgru") or feeding == "false")
        heads = wiring == "heads of a Transformer"
        impossible |= heads and kind.split(" ")[0] not in ("global", "local-m", "local-p")
        if kind.startswith("coverage of "):
            inside = kind.removeprefix("coverage of ").split(" ")[0]
            impossible |= inside in ("none", "monotonic", "mocha", "location-aware", "hmm")
            impossible |= score.split(" ")[0] not in ("additive", "concat")  # two names of one score
        assert (one.places in gone) == impossible, one.places


def test_a_mistake_is_no_refusal(script: ModuleType) -> None:
    wrong = recurrent("", BOTH_WAYS, wiring="luong", attention={"kind": "global", "scor": "dot"}).decoder
    with pytest.raises(ValidationError, match="scor"):
        script.reason_against(wrong)


def test_a_row_folds_what_is_complete(script: ModuleType) -> None:
    def at(*places: str) -> Any:
        return script.Combination(places, {})

    x, y, z = at("a", "-", "-", "w", "f"), at("a (k: 2)", "-", "-", "w", "f"), at("b", "-", "-", "w", "f")
    assert list(script.rows({"no": [x]}, [x, y, z])) == [("`a (no options)`", "any", "any", "any", "any", "no")]
    assert list(script.rows({"no": [x, y]}, [x, y, z])) == [("`a`", "any", "any", "any", "any", "no")]
    two = list(script.rows({"no": [x], "nor": [y, z]}, [x, y, z]))  # what the row above has is not asked for again
    assert [row[0] for row in two] == ["`a (no options)`", "any"]
