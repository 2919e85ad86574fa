"""Settings from YAML: what is read, what is refused and in which words, and the commands that show and describe it."""

from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Generic, Literal, TypeVar

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import BeforeValidator, Field, model_validator

from s2s import configfile
from s2s.commands import config as commands
from s2s.configfile import FilePath, Place, differences, dump, load, mark_of, validate
from s2s.errors import ConfigError, DataError, UsageError, printable
from s2s.settings import MayChange, Settings

# A settings page as a tool might have it: kinds, generics, lists, paths, rules over several keys.


class Global(Settings):
    """Attends to every position.

    The equation would be here.
    """

    kind: Literal["global"]
    score: Literal["dot", "general", "concat"] = "dot"
    """How query and key are compared."""


class Local(Settings):
    """Attends to a window."""

    kind: Literal["local"]
    window: int = Field(5, gt=0)
    """Positions to each side."""
    offsets: tuple[int, ...] = ()
    score: Literal["dot", "general"] = "general"
    """How query and key are compared."""


def recipe(value: object) -> object:
    """A name that people know gets an answer of its own."""
    if value == "bahdanau":
        raise ValueError("bahdanau is a recipe; write {kind: global, score: concat}")
    return value


Attention = Annotated[Global | Local, Field(discriminator="kind"), BeforeValidator(recipe)]
A = TypeVar("A")


class Recurrent(Settings, Generic[A]):
    """Recurrent decoder."""

    kind: Literal["rnn"]
    size: int = Field(512, gt=0)
    """Width of a state."""
    heads: int = 4
    attention: A
    """Where to look."""

    @model_validator(mode="after")
    def whole_heads(self) -> Recurrent[A]:
        """A rule over two keys."""
        if self.size % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide size ({self.size})")
        return self


class Plain(Settings):
    """A decoder without attention."""

    kind: Literal["plain"]


class Model(Settings):
    """The model."""

    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of values set to zero."""
    layers: int = Field(1, ge=1)
    decoder: Annotated[Recurrent[Attention] | Plain, Field(discriminator="kind")]
    sizes: tuple[int, ...] = (1, 2)
    helper: Attention | None = None
    experts: list[Attention] = Field(default_factory=list)


class Files(Settings):
    """Two texts."""

    source: FilePath
    target: FilePath | None = None
    links: list[FilePath] = Field(default_factory=list)


class Training(Settings):
    """The loop."""

    max_updates: int = 100
    shuffle: bool = True
    seconds: float | None = None
    precision: Literal["auto"] | Annotated[int, Field(ge=8)] = "auto"
    """The word auto, or bits."""


class Page(Settings):
    """The whole file."""

    model: Model
    data: Files | None = None
    training: Training = Training()
    names: list[str] = Field(default_factory=list)
    limits: dict[str, int] = Field(default_factory=dict)
    title: Annotated[str, Field(min_length=1)] = "run"
    seed: int = 1
    """Of all randomness."""


GOOD = "model: {decoder: {kind: plain}}\n"


def write(folder: Path, text: str | bytes, name: str = "train.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    """The lines of the refusal, without the folder."""
    with pytest.raises(ConfigError) as caught:
        validate(load(path, overrides), Page)
    assert caught.value.code == 2
    return [line.replace(f"{printable(path.parent)}/", "") for line in caught.value.problems]


def values(folder: Path, text: str | bytes, *overrides: str) -> dict[str, Any]:
    return load(write(folder, text), overrides).values


# Scalars -------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("YM3", "YM4", "YM5", "YM6")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 0.0001),
        ("1E-4", 0.0001),
        ("1.0e4", 10000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-0.5", -0.5),
        ("+7", 7),
        ("0", 0),
        ("1e5", 100000),
        ("1E5", 100000),
        ("25e-1", 2.5),
        ("1e22", 1e22),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("9223372036854774784", 9223372036854774784),
        *[(word, word) for word in ("no", "yes", "on", "off", "y", "n", "No", "tRUE", "nan", "inf")],
        *[(word, word) for word in ("010", "0x10", "0o7", "1_000", "1:30", "2024-01-01", "1e", "e5", ".", "00.5")],
        ("'1e-4'", "1e-4"),
        ('"true"', "true"),
        ("|\n  12\n", "12\n"),
        ("[no, nb, 1.5]", ["no", "nb", 1.5]),
    ],
)
def test_scalars_follow_the_core_rules(tmp_path: Path, text: str, expected: object) -> None:
    value = values(tmp_path, f"a: {text}")["a"]
    assert (value, type(value)) == (expected, type(expected))


def test_nan(tmp_path: Path) -> None:
    assert math.isnan(values(tmp_path, "a: .nan")["a"])


@pytest.mark.fault("YM12")
@pytest.mark.parametrize(
    "text", ["\ufeffa: 1\nb: 2\n", "a: 1\r\nb: 2\r\n", "---\na: 1\nb: 2\n...\n", "%YAML 1.2\n---\n{a: 1, b: 2}"]
)
def test_forms_that_are_accepted(tmp_path: Path, text: str) -> None:
    assert values(tmp_path, text) == {"a": 1, "b": 2}


def test_every_key_and_item_has_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "# first\na:\n  b: 1\n  c:\n  - x\n  - {d: 2}\n")
    lines = {configfile.dotted(key): place.line for key, place in load(path).places.items() if key}
    assert lines == {"a": 2, "a.b": 3, "a.c": 4, "a.c[0]": 5, "a.c[1]": 6, "a.c[1].d": 6}


# Texts that are refused ----------------------------------------------------------------------------------------------


@pytest.mark.fault("YM2", "YM8", "YM9", "YM10", "YM11", "YM12", "YM13")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "train.yaml:3: a: given twice, on lines 1 and 3"),
        ("m:\n  a: 1\n  a: 2\n", "train.yaml:3: m.a: given twice, on lines 2 and 3"),
        ("a: &x 1\n", "train.yaml:1: a: anchors (&x) are not supported"),
        (
            "b:\n  <<: {a: 1}\n",
            "train.yaml:2: b: merge keys (<<) are not supported; use extends, or write the keys out",
        ),
        (
            "a: !!python/object/apply:os.system [x]\n",
            "train.yaml:1: a: tags (tag:yaml.org,2002:python/object/apply:os.system) are not supported",
        ),
        ("a: !!binary aGk=\n", "train.yaml:1: a: tags (tag:yaml.org,2002:binary) are not supported"),
        ("a: !!set {x}\n", "train.yaml:1: a: tags (tag:yaml.org,2002:set) are not supported"),
        ("\na: !env HOME\n", "train.yaml:2: a: tags (!env) are not supported"),
        ("a: 1\n---\nb: 1\n", "train.yaml:2: a second YAML document; only one is read"),
        ("- a\n", "train.yaml:1: expected settings, written as KEY: VALUE, got a list"),
        ("word\n", "train.yaml:1: expected settings, written as KEY: VALUE, got a string"),
        ("", "train.yaml:1: expected settings, written as KEY: VALUE, got nothing"),
        ("# only this\n", "train.yaml:1: expected settings, written as KEY: VALUE, got nothing"),
        ("1: a\n", "train.yaml:1: the key 1 (a whole number) is not text; put it in quotes"),
        ("true: a\n", "train.yaml:1: the key true (a boolean) is not text; put it in quotes"),
        ("null: a\n", "train.yaml:1: the key null is not text; put it in quotes"),
        ("? [a]\n: b\n", "train.yaml:1: the key a list is not text; put it in quotes"),
        ("a: 1e400\n", "train.yaml:1: a: 1e400 is too large a number"),
        (f"a: {10**30}\n", f"train.yaml:1: a: {10**30} is too large a whole number (at most 2^63 - 1)"),
        ("a: 1" + "0" * 5000, "train.yaml:1: a: 1" + "0" * 56 + "... is too large a number"),
        ('a: "\\ud800"\n', "train.yaml:1: a: text with a NUL or half a surrogate pair"),
        ('a: "x\\0"\n', "train.yaml:1: a: text with a NUL or half a surrogate pair"),
        ("a: 1\nb: x\x07\n", "train.yaml:2: column 5: the character U+0007 cannot be in YAML; remove it"),
        ("a: 1\nb: \x00\n", "train.yaml:2: column 4: the character U+0000 cannot be in YAML; remove it"),
        (b"a: 1\nb: caf\xe9\n", "train.yaml:2: byte 7 of the line, 0xe9, is not UTF-8; save the file as UTF-8"),
        ("a:\n\t- b\n", r"train.yaml:2: column 1: not YAML: .*'\\t'.*; indent with spaces"),
        ("a:\n    b: 1\n  c: 1\n", r"train.yaml:3: column 3: not YAML: .*"),
        ("a: 'x\n", r"train.yaml:\d: column \d+: not YAML: .*end of stream.* quoted scalar from line 1\)"),
        ('a: "\\UFFFFFFFF"\n', r"train.yaml:1: .*not YAML.*"),
        ("a: " + "[" * 100000, r"train.yaml:1: nested more than 40 levels deep"),
        ("a: 1\n" * 300000, r"train.yaml: is larger than 1048576 bytes; .*"),
    ],
)
def test_refused_texts(tmp_path: Path, text: str | bytes, expected: str) -> None:
    got = problems(write(tmp_path, text))
    assert len(got) == 1
    assert got[0] == expected or re.fullmatch(expected, got[0]), got[0]


def test_all_problems_of_a_text_at_once(tmp_path: Path) -> None:
    got = problems(write(tmp_path, "a: 1\na: 2\nb: !x 1\nc: &y 2\nd: *y\n"))
    assert [line.partition(": ")[0] for line in got] == [f"train.yaml:{line}" for line in (2, 3, 4, 5)]


def test_thousand_problems_are_not_thousand_lines(tmp_path: Path) -> None:
    text = "".join(f"word{number}: 1\n" for number in range(1000))
    got = problems(write(tmp_path, text))
    assert len(got) == 101
    assert got[-1] == "and 901 more"  # 1000 unknown keys and the missing model


@pytest.mark.fault("YM9", "X2")
def test_alias_bombs_end_at_once(tmp_path: Path) -> None:
    levels = [
        f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    start = time.process_time()
    bomb = problems(write(tmp_path, "a: &a [lol]\n" + "\n".join(levels)))
    circle = problems(write(tmp_path, "a: &a [*a]"))
    assert time.process_time() - start < 1
    assert "anchors (&a) are not supported" in bomb[0]
    assert "train.yaml:1: a[0]: aliases (*a) are not supported; write the value again" in circle


@pytest.mark.fault("YM10", "X2")
def test_tags_execute_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    problems(write(tmp_path, f"a: !!python/object/apply:os.system ['touch {marker}']\n"))
    assert not marker.exists()


@pytest.mark.fault("YM15")
def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert problems(tmp_path / "absent.yaml") == ["absent.yaml: there is no such file"]
    assert problems(tmp_path) == [f"{tmp_path.name}: is a folder, not a configuration file"]
    assert "cannot be read" in problems(write(tmp_path, GOOD) / "below.yaml")[0]


@pytest.mark.fault("X6")
def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    got = problems(write(tmp_path, GOOD + '"\\e[31m\\n": 1\n'))
    assert got[0].startswith(r"train.yaml:2: \x1b[31m\n is not a setting")


@pytest.mark.fault("YM12")
@hypothesis_settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40) | st.text("%!&*?:-|>\n \t'\"\\UFx{}[],#.e<a1\x85\u2028\r", max_size=30).map(str.encode))
def test_any_bytes_load_or_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    for path, overrides in [
        (write(folder, data, "any.yaml"), []),
        (write(folder, "a: 1", "fixed.yaml"), ["a=" + data.decode(errors="surrogateescape")]),
        (folder / "fixed.yaml", [data.decode(errors="surrogateescape")]),
    ]:
        try:
            validate(load(path, overrides), Page)
        except ConfigError as error:
            assert error.problems


# Inheritance and overrides -------------------------------------------------------------------------------------------


def test_extends_merges_and_a_new_kind_replaces(tmp_path: Path) -> None:
    write(tmp_path, "x: {kind: a, one: 1, two: 2}\ny: {kind: b, one: 1}\nz: [1, 2]\nw: 1\n", "base.yaml")
    write(tmp_path, "extends: base.yaml\nw: 2\nz: [3]\n", "middle.yaml")
    got = values(tmp_path, "extends: middle.yaml\nx: {two: 3}\ny: {kind: c, three: 3}\n")
    assert got == {"x": {"kind": "a", "one": 1, "two": 3}, "y": {"kind": "c", "three": 3}, "z": [3], "w": 2}


def test_places_name_the_file_that_counts(tmp_path: Path) -> None:
    base = write(tmp_path, "a:\n  b: 1\n  c: 1\n", "base.yaml")
    child = write(tmp_path, "extends: base.yaml\n\na: {b: 2}\n")
    document = load(child, ["a.d=1"])
    assert document.places["a", "b"] == Place(child, 3)
    assert document.places["a", "c"] == Place(base, 3)
    assert document.places["a", "d"] == Place()
    assert document.places["a",] == Place(child, 3)


def test_extends_from_other_folders(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    write(tmp_path / "one", "a: 1", "base.yaml")
    write(tmp_path / "two", "extends: ../one/base.yaml\nb: 2", "middle.yaml")
    assert values(tmp_path, "extends: two/middle.yaml\nc: 3") == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("extends: absent.yaml\n", "train.yaml:1: extends: absent.yaml: there is no such file"),
        ("extends: [a.yaml]\n", "train.yaml:1: extends must be the path of one YAML file"),
        ("extends:\n", "train.yaml:1: extends must be the path of one YAML file"),
        ("a: 1\nextends: train.yaml\n", "train.yaml:2: extends goes in a circle: train.yaml -> train.yaml"),
        ("extends: other.yaml\n", "other.yaml:2: extends goes in a circle: train.yaml -> other.yaml -> train.yaml"),
        (
            "extends: broken.yaml\na: 1\na: 2\n",
            "broken.yaml:1: b: tags (!x) are not supported|train.yaml:3: a: given twice, on lines 2 and 3",
        ),
        ("extends: empty.yaml\n", "empty.yaml:1: expected settings, written as KEY: VALUE, got nothing"),
    ],
)
def test_refused_extends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str) -> None:
    write(tmp_path, "a: 1\nextends: ./train.yaml\n", "other.yaml")
    write(tmp_path, "b: !x 1\n", "broken.yaml")
    write(tmp_path, "", "empty.yaml")
    write(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    assert problems(Path("train.yaml")) == expected.split("|")


def test_overrides(tmp_path: Path) -> None:
    text = "a: {b: 1, c: 2}\nk: {kind: x, one: 1}\n"
    assert values(tmp_path, text, "a.b=1e-4", "a.d.e=no", "f=[1, {g: 2}]", "h=x=y", "i=") == {
        "a": {"b": 0.0001, "c": 2, "d": {"e": "no"}},
        "k": {"kind": "x", "one": 1},
        "f": [1, {"g": 2}],
        "h": "x=y",
        "i": None,
    }
    expected = {"kind": "z", "two": 2}
    assert values(tmp_path, text, "k.kind=z", "k.two=2")["k"] == expected
    assert values(tmp_path, text, "k.two=2", "k.kind=z")["k"] == expected
    assert values(tmp_path, text, "k={kind: z, two: 2}")["k"] == expected
    assert values(tmp_path, text, "a.b=2", "a.b=3")["a"]["b"] == 3


@pytest.mark.fault("YM16")
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.droput=1", "command line: model.droput is not a setting; did you mean model.dropout?"),
        ("model.dropout=1.0", "command line: model.dropout must be less than 1, got 1.0"),
        (
            "model.dropout='0.1'",
            'command line: model.dropout must be a number, got "0.1" (a string); remove the quotes',
        ),
        ("seed=", "command line: seed must be a whole number, got null"),
        ("seed", "command line: 'seed' is not KEY=VALUE, such as training.patience=5"),
        ("model..x=1", "command line: 'model..x=1' is not KEY=VALUE, such as training.patience=5"),
        ("=1", "command line: '=1' is not KEY=VALUE, such as training.patience=5"),
        ("a" + ".a" * 5000 + "=1", "command line: 'a.a.a.a"),
        ("extends=a.yaml", "command line: extends: can be set only in a file"),
        ("seed=&a 1", "command line: seed: anchors (&a) are not supported"),
        ("training={a: 1, a: 2}", "command line: training.a: given twice"),
        ("seed=1e999", "command line: seed: 1e999 is too large a number"),
        ("names=[a", "command line: 'names=[a' begins a mapping or a list and does not end it; where it has"),
    ],
)
def test_refused_overrides(tmp_path: Path, override: str, expected: str) -> None:
    got = problems(write(tmp_path, GOOD), override)
    assert len(got) == 1
    assert got[0].startswith(expected)


# Validation ----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("YM1", "YM4", "YM5", "YM6", "YM7", "YM8")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("modle: 1\n", "modle is not a setting; did you mean model?"),
        ("dropout: 0.1\n", "dropout is not a setting; it belongs in model"),
        ("training: {seed: 3}\n", "training.seed is not a setting; it belongs at the top level"),
        (
            "training: {qqq: 3}\n",
            "training.qqq is not a setting; here the settings are max_updates, shuffle, seconds, precision",
        ),
        ("training: {max_updates: 1e5}\nseed: 1.5\n", "seed must be a whole number, got 1.5 (a decimal number)"),
        ("training: {max_updates: 2.0}\n", "training.max_updates must be a whole number, got 2.0 (a decimal number)"),
        ("training: {max_updates: true}\n", "training.max_updates must be a whole number, got true (a boolean)"),
        ("training: {max_updates: [1]}\n", "training.max_updates must be a whole number, got a list"),
        (
            "training: {max_updates: 1e30}\n",
            "training.max_updates must be a whole number, got 1.0e+30 (a decimal number)",
        ),
        ("training: {seconds: true}\n", "training.seconds must be a number, got true (a boolean)"),
        ("training: {seconds: .nan}\n", "training.seconds must be a finite number, got .nan"),
        ("training: {seconds: -.inf}\n", "training.seconds must be a finite number, got -.inf"),
        (
            "training: {shuffle: yes}\n",
            'training.shuffle must be true or false, got "yes" (a string); write true or false',
        ),
        ("training: {shuffle: 1}\n", "training.shuffle must be true or false, got 1 (a whole number)"),
        (
            "training: {precision: aut}\n",
            'training.precision must be auto or a whole number, got "aut" (a string); did you mean auto?',
        ),
        (
            "training: {precision: 4}\n",
            "training.precision must be auto or greater than or equal to 8, got 4 (a whole number)",
        ),
        ("training: fast\n", 'training must be a mapping (KEY: VALUE), got "fast" (a string)'),
        ("training:\n", "training must be a mapping (KEY: VALUE), got null"),
        ("seed: null\n", "seed must be a whole number, got null"),
        *[
            (
                f"seed: {text}\n",
                f'seed must be a whole number, got "{text}" (a string); '
                "write a plain decimal number, without leading zeros, _ or :",
            )
            for text in ("010", "0x10", "1_000", "1:30", "2024-01-01")
        ],
        ('seed: "7"\n', 'seed must be a whole number, got "7" (a string); remove the quotes'),
        ("names: no\n", 'names must be a list, got "no" (a string)'),
        (
            "names: [no, nb, true]\n",
            "names[2] must be text, got true (a boolean); put it in quotes if it is meant as text",
        ),
        (
            "names: [1.5]\n",
            "names[0] must be text, got 1.5 (a decimal number); put it in quotes if it is meant as text",
        ),
        ("limits: {a: x}\n", 'limits.a must be a whole number, got "x" (a string)'),
        ("title: ''\n", 'title must not be empty, got "" (a string)'),
        ("data: {target: b}\n", "data.source is missing"),
        ("data: {source: ''}\n", 'data.source must not be empty, got "" (a string)'),
        ("data: {source: [a]}\n", "data.source must be text, got a list"),
    ],
)
def test_refused_values(tmp_path: Path, text: str, expected: str) -> None:
    line = 1 + text.count("\n")  # the last
    assert problems(write(tmp_path, GOOD + text)) == [f"train.yaml:{line}: {expected}"]


@pytest.mark.fault("YM1", "YM7", "YM8")
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("{decoder: {kind: plain}, dropout: -0.1}", "model.dropout must be greater than or equal to 0, got -0.1"),
        ("{decoder: {kind: plain}, layers: 0}", "model.layers must be greater than or equal to 1, got 0"),
        ("{decoder: {kind: plain}, sizes: 3}", "model.sizes must be a list, got 3 (a whole number)"),
        ("{decoder: {kind: plain}, layers: [3]}", "model.layers must be a whole number, got a list"),
        (
            "{decoder: {kind: plain}, sizes: [1, 2.5]}",
            "model.sizes[1] must be a whole number, got 2.5 (a decimal number)",
        ),
        ("{decoder: {kind: plian}}", "model.decoder: kind: plian is not one of rnn, plain; did you mean plain?"),
        ("{decoder: {kind: 3}}", "model.decoder: kind: 3 (a whole number) is not one of rnn, plain"),
        ("{decoder: {size: 3}}", "model.decoder: kind is missing; it is one of rnn, plain"),
        (
            "{decoder: plain}",
            "model.decoder must be a mapping with a kind (rnn, plain), "
            'got "plain" (a string); did you mean {kind: plain}?',
        ),
        ("{decoder: null}", "model.decoder must be a mapping with a kind (rnn, plain), got null"),
        ("{decoder: [plain]}", "model.decoder must be a mapping with a kind (rnn, plain), got a list"),
        ("{}", "model.decoder is missing"),
        ("{decoder: {kind: rnn}}", "model.decoder.attention is missing"),
        (
            "{decoder: {kind: rnn, attention: bahdanau}}",
            "model.decoder.attention: bahdanau is a recipe; write {kind: global, score: concat}",
        ),
        (
            "{decoder: {kind: rnn, attention: {kind: glbal}}}",
            "model.decoder.attention: kind: glbal is not one of global, local; did you mean global?",
        ),
        (
            "{decoder: {kind: rnn, attention: {kind: concat}}}",
            "model.decoder.attention: kind: concat is not one of global, local; concat is a value of "
            "model.decoder.attention.score",
        ),
        (
            "{decoder: {kind: rnn, attention: {kind: global, scor: dot}}}",
            "model.decoder.attention.scor is not a setting; did you mean model.decoder.attention.score?",
        ),
        (
            "{decoder: {kind: rnn, attention: {kind: global, window: 3}}}",
            "model.decoder.attention.window is not a setting of kind: global; it is one of kind: local",
        ),
        (
            "{decoder: {kind: rnn, attention: {kind: local, score: concat}}}",
            'model.decoder.attention.score must be dot or general, got "concat" (a string)',
        ),
        (
            "{decoder: {kind: rnn, attention: {kind: local, window: 0}}}",
            "model.decoder.attention.window must be greater than 0, got 0",
        ),
        (
            "{decoder: {kind: rnn, size: 10, heads: 4, attention: {kind: local}}}",
            "model.decoder: heads (4) must divide size (10)",
        ),
        (
            "{decoder: {kind: plain}, helper: {kind: local, window: x}}",
            'model.helper.window must be a whole number, got "x" (a string)',
        ),
        (
            "{decoder: {kind: plain}, helper: {kind: 1}}",
            "model.helper: kind: 1 (a whole number) is not one of global, local",
        ),
        (
            "{decoder: {kind: plain}, experts: [{kind: local}, {kind: global, x: 1}]}",
            "model.experts[1].x is not a setting; here the settings are kind, score",
        ),
        (
            "{decoder: {kind: plain}, experts: [local]}",
            "model.experts[0] must be a mapping with a kind (global, local), "
            'got "local" (a string); did you mean {kind: local}?',
        ),
    ],
)
def test_refused_kinds(tmp_path: Path, model: str, expected: str) -> None:
    assert problems(write(tmp_path, f"seed: 1\nmodel: {model}\n")) == [f"train.yaml:2: {expected}"]


def test_a_key_named_like_its_kind_does_not_confuse(tmp_path: Path) -> None:
    text = "model:\n  decoder:\n    kind: rnn\n    attention:\n"
    text += "      kind: global\n      global:\n        score: 1\n      score: 1\n"
    assert problems(write(tmp_path, text)) == [
        "train.yaml:6: model.decoder.attention.global is not a setting; here the settings are kind, score",
        "train.yaml:8: model.decoder.attention.score must be dot, general or concat, got 1 (a whole number)",
    ]


def test_all_problems_ordered_by_line(tmp_path: Path) -> None:
    text = "seed: x\ntraining:\n  shuffle: 1\n  foo: 1\nmodel:\n  dropout: 2\n"
    write(tmp_path, "limits: 3\n", "base.yaml")
    got = problems(write(tmp_path, "extends: base.yaml\n" + text), "title=3")
    heads = [
        "base.yaml:1: limits",
        "train.yaml:2: seed",
        "train.yaml:4: training.shuffle",
        "train.yaml:5: training.foo",
    ]
    heads += ["train.yaml:6: model.decoder", "train.yaml:7: model.dropout", "command line: title"]
    assert [" ".join(line.split()[: len(head.split())]) for line, head in zip(got, heads, strict=True)] == heads


@pytest.mark.fault("YM4", "YM5")
def test_the_values_arrive(tmp_path: Path) -> None:
    text = "model: {decoder: {kind: rnn, attention: {kind: local, offsets: [1, 2]}}, dropout: 0, sizes: [3]}\n"
    text += "training: {max_updates: 1e5}\n"
    page = validate(load(write(tmp_path, text), ["names=[no, nb, nn]"]), Page)
    assert isinstance(page.model.decoder, Recurrent)
    assert isinstance(page.model.decoder.attention, Local)
    assert page.model.decoder.attention.offsets == (1, 2)  # a list in YAML, below a validator of its own
    assert page.model.sizes == (3,)
    assert isinstance(page.model.dropout, float)
    assert (page.training.max_updates, type(page.training.max_updates)) == (100000, int)
    assert page.names == ["no", "nb", "nn"]


@pytest.mark.fault("YM14")
def test_paths_are_relative_to_where_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "here").mkdir()
    write(tmp_path / "one", "data: {source: a.en, target: ../b.de, links: [x, /abs/y]}\n", "base.yaml")
    path = write(tmp_path, GOOD + "extends: one/base.yaml\ndata: {links: ['~/$HOME', '$(id)']}\n")
    monkeypatch.chdir(tmp_path / "here")
    data = validate(load(path, ["data.target=c.de"]), Page).data
    assert data is not None
    assert data.source == str(tmp_path.resolve() / "one" / "a.en")
    assert data.target == str(tmp_path.resolve() / "here" / "c.de")
    assert data.links == [str(tmp_path.resolve() / "~/$HOME"), str(tmp_path.resolve() / "$(id)")]
    monkeypatch.chdir(tmp_path)
    again = validate(load(Path("one/base.yaml"), ["model.decoder.kind=plain"]), Page).data
    assert again is not None
    assert again.links == [str(tmp_path.resolve() / "one" / "x"), "/abs/y"]


def test_paths_follow_a_linked_folder_as_the_system_does(tmp_path: Path) -> None:
    (tmp_path / "store" / "configs").mkdir(parents=True)
    (tmp_path / "configs").symlink_to(tmp_path / "store" / "configs")
    path = write(tmp_path / "configs", GOOD + "data: {source: ../text.en}\n")
    data = validate(load(path), Page).data
    assert data is not None
    assert data.source == str(tmp_path.resolve() / "store" / "text.en")


def test_a_folder_above_a_linked_one_is_that_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "store" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "store" / "inner")
    (tmp_path / "text.en").symlink_to(tmp_path / "store" / "text.en")
    for value, found in {"link/../text.en": "store/text.en", "link/x": "link/x", "./text.en": "text.en"}.items():
        data = validate(load(write(tmp_path, GOOD + f"data: {{source: {value}}}\n")), Page).data
        assert data is not None and data.source == str(tmp_path.resolve() / found)


@pytest.mark.fault("YM14")
def test_folders_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    """The resolved settings could not be written down."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/K\xf6nig"))
    folder.mkdir()
    (got,) = problems(write(folder, GOOD + "data: {source: a}\n"))
    assert got.startswith("train.yaml:2: data.source must be text in UTF-8, the names of folders too, got ")


# Writing -------------------------------------------------------------------------------------------------------------

CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False)
    | st.text(CHARACTERS)
    | st.sampled_from(
        ["1e-4", "no", "0x10", "1:30", "2024-01-01", "~", "<<", "1_0", ".5", "1E5", "-", "? a", "a: b", "#", "\u2028"]
    )
)
NAMES = st.text(CHARACTERS, min_size=1).filter(lambda name: name != "extends")
TREES = st.dictionaries(
    NAMES,
    st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.fault("YM17")
@hypothesis_settings(max_examples=200, deadline=None)
@given(TREES)
def test_dump_and_load_are_inverse(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, object]) -> None:
    path = write(tmp_path_factory.getbasetemp(), dump(tree), "dumped.yaml")
    again = load(path).values
    assert repr(again) == repr(tree)  # equal in type, sign of zero and order too


def test_dump_is_readable() -> None:
    text = dump({"b": {"lr": 1e-4, "text": "ü"}, "a": [1, True, None], "n": "1e-4"})
    assert text == "b:\n  lr: 0.0001\n  text: ü\na:\n- 1\n- true\n- null\nn: '1e-4'\n"
    assert dump({"lr": 1e-5}) == "lr: 1.0e-05\n"


@pytest.mark.fault("YM17")
def test_settings_survive_the_file(tmp_path: Path) -> None:
    text = "model: {decoder: {kind: rnn, attention: {kind: local}}, experts: [{kind: global}]}\ndata: {source: a}\n"
    page = validate(load(write(tmp_path, text)), Page)
    (tmp_path / "run").mkdir()
    saved = write(tmp_path / "run", dump(page.model_dump(mode="json")))
    assert validate(load(saved), Page) == page


def test_differences() -> None:
    before = {"a": {"b": 1, "c": 2}, "d": [1], "e": {"f": 1}, "same": {"x": 1}}
    after = {"a": {"b": 1, "c": 3}, "d": [2], "e": None, "same": {"x": 1}, "g": 4}
    assert differences(before, after) == [("a.c", 2, 3), ("d", [1], [2]), ("e", {"f": 1}, None), ("g", None, 4)]


class Inner(Settings):
    free: Annotated[int, MayChange()] = 1
    """Any number."""
    fixed: int = 1
    """One number."""


class Marked(Settings):
    one: Inner = Inner()
    """A section."""
    other: Annotated[Inner | None, MayChange(contents=True)] = None
    """A section that counts as a whole."""
    several: tuple[Inner, ...] = ()
    """Sections."""
    rough: Annotated[bool, MayChange(exact=False)] = False
    """Any value."""


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("one", None), ("one.free", MayChange()), ("one.fixed", None), ("other", MayChange(contents=True)),
        ("other.free", MayChange(contents=True)), ("other.fixed", MayChange(contents=True)), ("several", None),
        ("several.free", MayChange()), ("rough", MayChange(exact=False)), ("rough.more", MayChange(exact=False)),
        ("nothing", None), ("one.nothing", None), ("fixed.free", None), ("freed", None), ("roughly", None),
    ],
)  # fmt: skip
def test_the_mark_of_a_setting_or_of_its_section(key: str, expected: MayChange | None) -> None:
    assert mark_of(Marked, key, MayChange) == expected


def test_what_may_change_is_told_beside_the_setting() -> None:
    assert commands.description(Marked, "one.free").splitlines()[1] == "    Any number. May change when a run goes on."
    assert commands.description(Marked, "one.fixed").splitlines()[1] == "    One number."
    text = commands.reference(Marked)
    assert "| A section that counts as a whole. May name another place when a run goes on. |" in text
    assert "| Any value. May change when a run goes on, which is then no longer the same to the bit. |" in text


# Commands ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def page_is_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands see `Page` as the tool's settings."""
    fake = SimpleNamespace(
        Config=Page,
        load=lambda path, overrides=(): validate(load(path, overrides), Page),
        check_parts=lambda config: None,
    )
    monkeypatch.setitem(sys.modules, "s2s.config", fake)


@pytest.mark.usefixtures("page_is_config")
def test_show_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "model: {decoder: {kind: rnn, attention: {kind: local}}}\n")
    commands.show(path, ["seed=7"])
    shown = write(tmp_path, capsys.readouterr().out, "shown.yaml")
    assert load(shown).values["seed"] == 7
    assert load(shown).values["training"] == {"max_updates": 100, "shuffle": True, "seconds": None, "precision": "auto"}
    commands.check(shown)
    assert capsys.readouterr().out == f"{shown}: ok\n"
    with pytest.raises(ConfigError, match="seed must be a whole number"):
        commands.check(shown, ["seed=x"])


@pytest.mark.fault("TX25")
@pytest.mark.usefixtures("page_is_config")
def test_files_that_are_not_there_are_named_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    path = write(tmp_path, GOOD + "data:\n  source: gone\n  links: [there, lost]\n")
    line = 1 + path.read_text().count("data:\n") + path.read_text().split("data:")[0].count("\n")
    with pytest.raises(ConfigError) as refused:
        commands.check(path, ["data.target=away"])
    assert [problem.replace(f"{tmp_path}/", "") for problem in refused.value.problems] == [
        f"train.yaml:{line}: data.source: gone: no such file",
        f"command line: data.target: {Path.cwd()}/away: no such file",
        f"train.yaml:{line + 1}: data.links[1]: lost: no such file",
    ]


@pytest.mark.usefixtures("page_is_config")
def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    commands.schema()
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"]["seed"]["description"] == "Of all randomness."
    assert {"Local", "Global"} <= set(schema["$defs"])


@pytest.mark.usefixtures("page_is_config")
@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (None, ["keys:", "  model: a section; required", "      The model.", "  seed: a whole number; default 1"]),
        ("seed", ["seed: a whole number; default 1", "    Of all randomness."]),
        ("model.dropout", ["model.dropout: a number, at least 0, less than 1; default 0.0"]),
        ("model.sizes", ["model.sizes: a list (a whole number); default [1, 2]"]),
        (
            "data",
            [
                "data: a section or null; default null",
                "  source: a file path; required",
                "  target: a file path or null; default null",
            ],
        ),
        ("limits", ["limits: a mapping of names (a whole number); default {}"]),
        ("training", ["training: a section; default {}", "    The loop.", "  shuffle: true or false; default true"]),
        ("training.precision", ["training.precision: auto or a whole number, at least 8; default auto"]),
        ("model.decoder", ["model.decoder: a mapping with a kind (rnn, plain); required", "  rnn: Recurrent decoder."]),
        (
            "model.decoder.attention",
            ["    Where to look.", "kinds:", "  global: Attends to every position.", "  local: Attends to a window."],
        ),
        (
            "model.decoder.attention.window",
            ["model.decoder.attention.window: a whole number, greater than 0; default 5"],
        ),
        (
            "model.decoder.attention.score",
            [
                "model.decoder.attention.score (kind: global): one of dot, general, concat; default dot",
                "model.decoder.attention.score (kind: local): one of dot, general; default general",
            ],
        ),
        (
            "model.decoder.attention.global",
            ["    The equation would be here.", "  score: one of dot, general, concat; default dot"],
        ),
        ("model.helper", ["model.helper: a mapping with a kind (global, local) or null; default null"]),
    ],
)
def test_describe(capsys: pytest.CaptureFixture[str], key: str | None, expected: list[str]) -> None:
    commands.describe(key)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line in expected] == expected, "\n".join(lines)


@pytest.mark.usefixtures("page_is_config")
@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("model.droput", "model.droput is not a setting; did you mean model.dropout?"),
        ("dropout", "dropout is not a setting; it belongs in model"),
        (
            "model.decoder.attention.scores",
            "model.decoder.attention.scores is not a setting; did you mean model.decoder.attention.score?",
        ),
        ("seed.x", "seed.x is not a setting; seed has no keys"),
        ("model..x", "model. is not a setting; here the settings are dropout, layers, decoder, sizes, helper, experts"),
    ],
)
def test_describe_unknown(key: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        commands.describe(key)
    assert str(caught.value) == expected


def test_reference_has_every_key_and_kind() -> None:
    text = commands.reference(Page)
    for key, settings in configfile.sections(Page):
        assert f"## `{'.'.join(map(str, key))}`" in text or not key
        assert all(f"| `{name}` |" in text for name in settings.model_fields)
    assert "### kind: local\n\nAttends to a window.\n" in text
    assert "## `model.helper`\n\nThe same as `model.decoder.attention`.\n" in text
    assert "| `window` | a whole number, greater than 0; default 5 | Positions to each side. |" in text


def corpus(folder: Path, count: int = 100) -> tuple[Path, Path]:
    source = write(folder, "".join(f"source {number % count}\n" for number in range(count + 20)), "text.en")
    target = write(folder, "".join(f"target {number % count}\n" for number in range(count + 20)), "text.de")
    return source, target


def test_new_splits_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "my runs" / "first.yaml"
    commands.new(*corpus(tmp_path), out)
    assert capsys.readouterr().out == f"s2s train --config '{out}'\n"
    parts = {}
    for part, files in load(out).values["data"].items():  # type: ignore[attr-defined]
        assert list(files) == ["source", "target"]
        texts = [(out.parent / files[side]).read_text().splitlines() for side in files]
        assert [line.replace("source", "target") for line in texts[0]] == texts[1]
        parts[part] = texts[0]
    assert [len(set(parts[part])) for part in ("train", "valid", "test")] == [90, 5, 5]
    assert len(parts["valid"]) == len(parts["test"]) == 5
    assert len(set(parts["train"]) | set(parts["valid"]) | set(parts["test"])) == 100
    again = tmp_path / "again.yaml"
    commands.new(*corpus(tmp_path), again)
    assert (tmp_path / "again-data" / "test.en").read_text().splitlines() == parts["test"]


def test_new_writes_what_the_tool_accepts(tmp_path: Path) -> None:
    from s2s.config import load as load_config

    out = tmp_path / "first.yaml"
    commands.new(*corpus(tmp_path), out)
    config = load_config(out)
    assert config.data.train.source == str(tmp_path.resolve() / "first-data" / "train.en")
    assert config.data.language is None
    source, _ = corpus(tmp_path)
    commands.new(source, (tmp_path / "text.de").rename(tmp_path / "text.zh"), tmp_path / "second.yaml")
    assert load_config(tmp_path / "second.yaml").data.language == "zh"


def test_new_refuses(tmp_path: Path) -> None:
    out = write(tmp_path, "mine", "first.yaml")
    with pytest.raises(UsageError, match="exists already"):
        commands.new(*corpus(tmp_path), out)
    assert out.read_text() == "mine"
    assert not (tmp_path / "first-data").exists()
    (tmp_path / "other-data").mkdir()
    write(tmp_path / "other-data", "mine", "valid.de")
    with pytest.raises(UsageError, match=r"valid\.de: exists already"):
        commands.new(*corpus(tmp_path), tmp_path / "other.yaml")
    with pytest.raises(DataError, match="2 different pairs cannot be split"):
        commands.new(*corpus(tmp_path, 2), tmp_path / "small.yaml")
    assert not (tmp_path / "small.yaml").exists()
    latin = tmp_path / "latin.en"
    latin.write_bytes(b"K\xf6nig\n")
    with pytest.raises(DataError, match=r"0xf6 is not UTF-8; convert the file \(iconv -f latin1 -t utf-8\)$"):
        commands.new(latin, corpus(tmp_path)[1], tmp_path / "small.yaml")


def test_new_replaces_what_it_is_asked_to(tmp_path: Path) -> None:
    """As after a kill between two of its files."""
    out = write(tmp_path, "mine", "first.yaml")
    (tmp_path / "first-data").mkdir()
    write(tmp_path / "first-data", "mine", "valid.de")
    commands.new(*corpus(tmp_path), out, overwrite=True)
    assert "data:" in out.read_text() and "target" in (tmp_path / "first-data" / "valid.de").read_text()
    with pytest.raises(UsageError, match="is the input too"):
        commands.new(tmp_path / "first-data" / "train.en", tmp_path / "first-data" / "train.de", out, overwrite=True)


@pytest.mark.parametrize("count", [3, 19, 20, 59, 60, 119, 120, 121, 400])
def test_the_pairs_with_the_smallest_hashes_are_held_out(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(commands, "_HELD_OUT", 6)
    digests = random.Random(count).sample(range(1000), count)
    size = max(1, min(6, count // 20))
    ordered = sorted(digests)
    assert commands._held_out(iter(digests + digests[::-1])) == ({*ordered[:size]}, {*ordered[size : 2 * size]})


def test_reading_settings_needs_no_torch() -> None:
    code = "import sys, s2s.configfile, s2s.commands.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
