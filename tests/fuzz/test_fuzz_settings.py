"""Any text as settings: a checked page that is written and read back to the same, or lines that say what is wrong."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from fuzzing import FEW, fuzzed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from s2s.config import Config, load, save_text
from s2s.configfile import Document, PathMarker, Place, field_type, is_settings, validate
from s2s.errors import ConfigError, printable

CONFIGS = Path(__file__).parents[2] / "configs"


def checked(make: Callable[[], Config], folder: Path) -> Config | None:
    """The settings, which survive being saved; None for those that are refused in words fit for a terminal."""
    try:
        config = make()
    except ConfigError as error:
        assert error.code == 2
        assert error.problems
        for line in error.problems:
            assert line == printable(line) != ""
            assert line.startswith((str(folder), "command line: ", "and ")), line
        return None
    saved = folder / "saved.yaml"
    saved.write_text(save_text(config), encoding="utf-8")
    assert load(saved) == config
    return config


# --- texts ------------------------------------------------------------------------------------------------------------

SNIPPETS = [
    "\n", "  ", "\t", ": ", "- ", "[", "]", "{", "}", ",", "#", "&a ", "*a", "<<: ", "!!python/object/apply:os.system ",
    "!x ", "|\n", ">\n", "'", '"', "---\n", "...\n", "%YAML 1.1\n", "? ", "no", "1e-4", "010", "1_0", ".nan", "-.inf",
    "1e999", "9" * 30, "null", "~", "true", "\\x00", '"\\0"', '"\\ud800"', "\x00", "\x07", "\x1b", "\x85", "\u2028",
    "\ufeff", "\r", "kind", "model", "dropout", "extends: ", "extends: settings.yaml", "seed: 2\n", "\U0010ffff",
    "a: " * 50, "[" * 60,
]  # fmt: skip


@cache
def texts() -> list[str]:
    """Settings that people wrote."""
    data = "data: {train: {source: a, target: b}, valid: {source: c, target: d}}\n"
    model = "model: {encoder: {kind: rnn}, decoder: {kind: rnn, attention: {kind: global, score: dot}}}\n"
    own = [path.read_text(encoding="utf-8") for path in sorted((CONFIGS / "toy").glob("*.yaml"))]
    return [data + model, data + model + "optimizer: {kind: adam, lr: 1e-3}\nseed: 1\n", *own]


EDITS = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 12), st.sampled_from(SNIPPETS)), max_size=4)
RAW = st.binary(max_size=60) | st.lists(st.sampled_from(SNIPPETS), max_size=12).map(
    lambda parts: "".join(parts).encode()
)


def edited(text: str, edits: list[tuple[int, int, str]]) -> bytes:
    """The text with snippets put in the place of some of its characters."""
    for place, length, snippet in edits:
        start = place % (len(text) + 1)
        text = text[:start] + snippet + text[start + length :]
    return text.encode("utf-8", "surrogatepass")


@pytest.mark.fault("YM1", "YM2", "YM9", "YM10", "YM11", "YM12", "YM13", "X2")
@fuzzed(st.integers(0, 99), EDITS)
def test_settings_with_accidents(folder: Path, which: int, edits: list[tuple[int, int, str]]) -> None:
    """Real files with a few bytes changed; where their parents are there, they are read too."""
    base = folder / "base.yaml"
    if not base.exists():
        base.write_text(texts()[0], encoding="utf-8")
    path = folder / "settings.yaml"
    path.write_bytes(edited(texts()[which % len(texts())], edits))
    checked(lambda: load(path), folder)


@pytest.mark.fault("YM12", "YM16")
@fuzzed(RAW, RAW)
def test_any_bytes_as_settings(folder: Path, data: bytes, override: bytes) -> None:
    path, good = folder / "settings.yaml", folder / "good.yaml"
    path.write_bytes(data)
    checked(lambda: load(path), folder)
    if not good.exists():
        good.write_text(texts()[0], encoding="utf-8")
    text = override.decode("utf-8", "surrogateescape")
    for overrides in ((text,), (f"model.dropout={text}",)):
        checked(partial(load, good, overrides), folder)


# --- pages ------------------------------------------------------------------------------------------------------------

WRONG: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, -1, 0, 2**62, -0.5, 1.0, 1e300, math.inf, "", "no", "0.1", "auto", "x\x1b[0m", [], {}, {"kind": "rnn"}]
)
"""Values of which each is wrong in most places."""


def values_of(annotation: Any, wrong: bool, limits: dict[str, Any] | None = None) -> st.SearchStrategy[Any]:
    """Plain values as a file has them: of this type and within its limits, now and then others if ``wrong``."""
    right = _right_values(annotation, wrong, limits or {})
    return st.one_of(*[right] * 7, WRONG) if wrong else right


def _right_values(annotation: Any, wrong: bool, limits: dict[str, Any]) -> st.SearchStrategy[Any]:
    marks: list[Any] = []
    while get_origin(annotation) is Annotated:
        annotation, *added = get_args(annotation)
        marks += added
    if any(isinstance(mark, PathMarker) for mark in marks):
        return st.sampled_from(["a.en", "../b", "/c/d e", "\u00fc"])
    for mark in [each for outer in marks for each in (outer.metadata if isinstance(outer, FieldInfo) else [outer])]:
        found = {name: getattr(mark, name, None) for name in ("gt", "ge", "lt", "le")}
        limits = limits | {name: limit for name, limit in found.items() if limit is not None}
    if get_origin(annotation) in (Union, types.UnionType):
        return st.one_of([values_of(member, wrong, limits) for member in get_args(annotation)])
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if get_origin(annotation) in (list, tuple):
        return st.lists(values_of(get_args(annotation)[0], wrong), max_size=3)
    return page_of(annotation, wrong) if is_settings(annotation) else _scalars(annotation, limits)


def _scalars(annotation: Any, limits: dict[str, Any]) -> st.SearchStrategy[Any]:
    if annotation is type(None):
        return st.none()
    if annotation is bool:
        return st.booleans()
    if annotation is str:
        return st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
    least, most = limits.get("ge", limits.get("gt", -5)), limits.get("le", limits.get("lt", 70))
    if annotation is int:
        return st.integers(math.ceil(least) + ("gt" in limits), math.floor(most) - ("lt" in limits))
    assert annotation is float, annotation
    return st.floats(least, most, exclude_min="gt" in limits, exclude_max="lt" in limits)


FITTING = {"heads": [2, 4], "groups": [1, 2], "size": [8, 16], "feedforward": [16]}
"""Numbers that go together, whichever are drawn."""


@cache
def page_of(section: Any, wrong: bool) -> st.SearchStrategy[dict[str, Any]]:
    """A section: everything that it must have, and some of what it may have."""
    required: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for name, field in section.model_fields.items():
        strategy = values_of(field_type(field), wrong)
        if not wrong and name in FITTING:
            strategy = st.sampled_from(FITTING[name])
        if not wrong and name in ("train", "valid"):  # a list of corpora has one
            strategy = strategy.filter(bool)
        (required if field.is_required() or name in ("kind", "valid") else optional)[name] = strategy
    return st.fixed_dictionaries(required, optional=optional)


def of_page(values: dict[str, Any], folder: Path) -> Config | None:
    """The settings of plain values, as if they stood in a file."""
    place = Place(folder / "page.yaml")
    return checked(lambda: validate(Document(values, {(): place}), Config), folder)


@pytest.mark.fault("YM17")
@fuzzed(page_of(Config, wrong=False))
def test_pages_within_the_limits(folder: Path, values: dict[str, Any]) -> None:
    """Refused only where keys do not go together; otherwise what is saved is what was read."""
    of_page(values, folder)


@pytest.mark.fault("YM7", "YM8")
@fuzzed(page_of(Config, wrong=True))
def test_pages_beyond_the_limits(folder: Path, values: dict[str, Any]) -> None:
    of_page(values, folder)


def test_most_pages_within_the_limits_are_right(tmp_path: Path) -> None:
    """So that the round trip above is a trip."""
    right = []

    @settings(max_examples=FEW, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(page_of(Config, wrong=False))
    def run(values: dict[str, Any]) -> None:
        right.append(of_page(values, tmp_path) is not None)

    run()
    assert sum(right) > len(right) / 2
