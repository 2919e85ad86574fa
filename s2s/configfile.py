"""YAML files and command-line overrides to checked settings; every problem has its file, line and key.

`load` reads text into plain values that remember where they were written, `validate` turns them into a settings
class, `dump` writes values back. YAML is read by the 1.2 core rules (``no`` is a word, ``1e-4`` a number), without
tags, aliases and merge keys. The last part walks a settings class the way a file is nested, for messages and for
documentation.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from s2s.errors import ConfigError, printable

LARGEST_FILE = 1 << 20  # bytes
DEEPEST = 40  # levels of nesting
MOST_PROBLEMS = 100  # more than this is another kind of file

Key = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)
Mark = TypeVar("Mark")


@dataclass(frozen=True)
class PathMarker:
    """Marks a text setting as a file path, which `validate` makes absolute."""

    read: bool
    """Whether it is there before it is used."""


FilePath = Annotated[str, PathMarker(read=True), Field(min_length=1)]
"""A path, relative to the file it is written in; on the command line to the current folder. Nothing is expanded."""
NewPath = Annotated[str, PathMarker(read=False), Field(min_length=1)]
"""The same of what is written and need not be there."""


@dataclass(frozen=True)
class Place:
    """Where a value was written: a line of a file, or (without a file) the command line."""

    file: Path | None = None
    line: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.file else "command line"


@dataclass(frozen=True)
class Document:
    """Plain values (mappings, lists, text, numbers, true/false, null) and the place of each key and list item."""

    values: dict[str, object]
    places: dict[Key, Place]

    def place(self, key: Key) -> Place:
        """The place of ``key`` or, where it is not written, of the section it would be in."""
        while key not in self.places:
            key = key[:-1]
        return self.places[key]


def dotted(key: Key) -> str:
    """A key path as users write it: ``model.encoder.sizes[0]``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")


def load(path: Path, overrides: Sequence[str] = ()) -> Document:
    """Read a YAML file, what it ``extends``, and ``key.path=value`` overrides, the later over the earlier.

    Mappings merge key by key; one whose ``kind`` changes replaces the other. Raises `ConfigError` with every problem
    found in the texts.
    """
    problems: list[_Problem] = []
    layers = [*_read_chain(Path(path), problems), *_read_overrides(overrides, problems)]
    if problems:
        raise _refusal(problems)
    whole = layers[0]
    for layer in layers[1:]:
        whole = _merge(whole, layer)
    places: dict[Key, Place] = {}
    values = _plain(whole, (), places)
    assert isinstance(values, dict)
    return Document(values, places)


def validate(document: Document, model: type[Model]) -> Model:
    """The values as settings, with file paths absolute. Raises `ConfigError` with every problem, ordered by line."""
    try:
        return model.model_validate(_prepared(model, document.values, (), document))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        problems = _explain(errors[:MOST_PROBLEMS], document, model)
        raise _refusal(problems, max(0, len(errors) - MOST_PROBLEMS)) from None


def dump(values: Mapping[str, object]) -> str:
    """YAML text of plain values, in their order, that `load` reads back to the same."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


def inline(value: object) -> str:
    """YAML text of one plain value on one line."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf, default_flow_style=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


class Difference(NamedTuple):
    """One key at which two nested mappings differ; as text what a reader of YAML expects."""

    key: str
    """Dotted."""
    before: object
    """None where it is absent."""
    after: object

    def __str__(self) -> str:
        return f"{self.key}: {inline(self.before)} -> {inline(self.after)}"


def differences(before: Mapping[str, object], after: Mapping[str, object], section: Key = ()) -> list[Difference]:
    """Where two nested mappings differ."""
    found: list[Difference] = []
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, (*section, name))
        elif old != new:
            found.append(Difference(dotted((*section, name)), old, new))
    return found


# Reading -------------------------------------------------------------------------------------------------------------

_Problem = tuple[Place, str]

_WORDS: dict[str, object] = {
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
    **dict.fromkeys(["", "~", "null", "Null", "NULL"]),
    **dict.fromkeys([sign + word for sign in ("", "+") for word in (".inf", ".Inf", ".INF")], math.inf),
    **dict.fromkeys(["-.inf", "-.Inf", "-.INF"], -math.inf),
    **dict.fromkeys([".nan", ".NaN", ".NAN"], math.nan),
}
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_UNFIT = re.compile("[\0\ud800-\udfff]")  # no file name, and no UTF-8 text, can hold these


@dataclass(frozen=True)
class _Node:
    """A value with its place; mappings and lists hold nodes."""

    value: object
    place: Place


def _refusal(problems: Sequence[_Problem], more: int = 0) -> ConfigError:
    """The error that reports all problems: files in the order of their names, then the command line."""
    ordered = sorted(problems, key=lambda problem: (problem[0].file is None, str(problem[0].file), problem[0].line))
    lines = [printable(f"{place}: {text}") for place, text in ordered]
    more += len(lines) - MOST_PROBLEMS if len(lines) > MOST_PROBLEMS else 0
    shown = (*lines[:MOST_PROBLEMS], *([f"and {more} more"] if more else []))
    return ConfigError("", lines[0], f"and {len(lines) + more - 1} more" if len(shown) > 1 else "", problems=shown)


def _scalar(text: str) -> object:
    """What unquoted text means by the core rules. Raises ValueError for a number too large to hold."""
    if text in _WORDS:
        return _WORDS[text]
    if not _NUMBER.fullmatch(text):
        return text
    number = float(text)  # first, because int() of a thousand digits is refused in words of its own
    if math.isinf(number):
        raise ValueError("too large a number")
    if "." in text:
        return number
    if "e" in text.lower():  # 1e5 is how people write the whole number 100000
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    if abs(number) >= 2**63:
        raise ValueError("too large a whole number (at most 2^63 - 1)")
    return int(text)


class _TooDeep(Exception):
    """Nesting past `DEEPEST`; ends the reading, because the text may be an attack."""


class _Reader:
    """Turns one YAML text into nodes; what is refused is noted and stepped over, so that all of it is reported."""

    def __init__(self, text: str, file: Path | None, problems: list[_Problem]) -> None:
        self.events: Any = yaml.SafeLoader(text)  # only its parser is used, never its constructors
        self.file = file
        self.problems = problems

    def place(self, mark: yaml.Mark) -> Place:
        return Place(self.file, mark.line + 1)

    def refuse(self, place: Place, key: Key, what: str) -> None:
        self.problems.append((place, f"{dotted(key)}: {what}" if key else what))

    def document(self, key: Key) -> _Node:
        """The only document of the text, null if there is none; ``key`` is where its value will be put."""
        self.events.get_event()  # the start of the stream
        if self.events.check_event(yaml.StreamEndEvent):
            return _Node(None, Place(self.file))
        self.events.get_event()  # the start of the document
        node = self.node(key)
        self.events.get_event()  # its end
        if not self.events.check_event(yaml.StreamEndEvent):
            self.refuse(
                self.place(self.events.peek_event().start_mark), key, "a second YAML document; only one is read"
            )
        return node

    def node(self, key: Key) -> _Node:
        event = self.events.get_event()
        place = self.place(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            self.refuse(place, key, f"aliases (*{_short(str(event.anchor))}) are not supported; write the value again")
            return _Node(None, place)
        if event.anchor is not None:
            self.refuse(place, key, f"anchors (&{_short(event.anchor)}) are not supported")
        if event.tag is not None:
            self.refuse(place, key, f"tags ({_short(event.tag)}) are not supported")
        if isinstance(event, yaml.ScalarEvent):
            return _Node(self.scalar(event, place, key), place)
        if len(key) >= DEEPEST:
            raise _TooDeep(place)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[_Node] = []
            while not self.events.check_event(yaml.SequenceEndEvent):
                items.append(self.node((*key, len(items))))
            self.events.get_event()
            return _Node(items, place)
        return _Node(self.mapping(key), place)

    def scalar(self, event: yaml.ScalarEvent, place: Place, key: Key) -> object:
        text: str = event.value
        if _UNFIT.search(text):
            self.refuse(place, key, "text with a NUL or half a surrogate pair")
            return ""
        if event.style is not None:  # quoted, or a block of text
            return text
        try:
            return _scalar(text)
        except ValueError as error:
            self.refuse(place, key, f"{_short(text)} is {error}")
            return 0

    def mapping(self, key: Key) -> dict[str, _Node]:
        entries: dict[str, _Node] = {}
        while not self.events.check_event(yaml.MappingEndEvent):
            event = self.events.peek_event()
            written = self.node((*key, "(key)"))
            name, place = written.value, written.place
            value = self.node((*key, name if isinstance(name, str) else "?"))
            if name == "<<" and event.style is None:
                self.refuse(place, key, "merge keys (<<) are not supported; use extends, or write the keys out")
            elif not isinstance(name, str):
                self.refuse(place, key, f"the key {spelled(_plain(written, (), {}))} is not text; put it in quotes")
            elif name in entries:
                first = entries[name].place.line
                self.refuse(place, (*key, name), f"given twice, on lines {first} and {place.line}")
            else:
                entries[name] = _Node(value.value, place)
        self.events.get_event()
        return entries


def _parse(text: str, file: Path | None, key: Key, problems: list[_Problem]) -> _Node | None:
    """The value of a YAML text; None, with a problem noted, if its syntax is wrong."""
    place, what = Place(file), ""
    reader: _Reader | None = None
    try:
        reader = _Reader(text, file, problems)
        return reader.document(key)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Place(file, before.count("\n") + 1)
        column = len(before) - before.rfind("\n")
        what = f"column {column}: the character U+{ord(text[error.position]):04X} cannot be in YAML; remove it"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark or yaml.Mark("", 0, 0, 0, None, 0)
        place = Place(file, mark.line + 1)
        context = f" ({error.context} from line {error.context_mark.line + 1})" if error.context_mark else ""
        hint = "; indent with spaces" if r"'\t'" in (error.problem or "") else ""
        what = f"column {mark.column + 1}: not YAML: {error.problem}{context}{hint}"
    except _TooDeep as error:
        place, what = error.args[0], f"nested more than {DEEPEST} levels deep"
    except (ValueError, OverflowError):  # an escape past the last Unicode character, %YAML with a thousand digits
        assert reader is not None
        place, what = reader.place(reader.events.get_mark()), "not YAML: a number that means nothing here"
    problems.append((place, f"{dotted(key)}: {what}" if key else what))
    return None


def _read_text(file: Path) -> str:
    """The text of a small UTF-8 file, without byte-order mark; `ConfigError` if it is not that."""
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise ConfigError(file, "there is no such file") from None
    except IsADirectoryError:
        raise ConfigError(file, "is a folder, not a configuration file") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise ConfigError(file, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > LARGEST_FILE:
        raise ConfigError(file, f"is larger than {LARGEST_FILE} bytes; is it a configuration file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        what = f"byte {column} of the line, {data[error.start]:#04x}, is not UTF-8"
        raise ConfigError(f"{file}:{line}", what, "save the file as UTF-8") from None


def _read_chain(file: Path, problems: list[_Problem]) -> list[_Node]:
    """The file and what it extends, the base first; notes problems and then gives what could be read."""
    layers: list[_Node] = []
    text, read = _read_text(file), [file]
    while True:
        node = _parse(text, file, (), problems)
        if node is None:
            return layers
        if not isinstance(node.value, dict):
            got = "nothing" if node.value is None else _named(node.value)
            problems.append((node.place, f"expected settings, written as KEY: VALUE, got {got}"))
            return layers
        entries = dict(node.value)
        parent = entries.pop("extends", None)
        layers.insert(0, _Node(entries, Place(file)))
        if parent is None:
            return layers
        if not isinstance(parent.value, str) or not parent.value:
            problems.append((parent.place, "extends must be the path of one YAML file"))
            return layers
        file = file.parent / parent.value
        if os.path.realpath(file) in [os.path.realpath(other) for other in read]:
            circle = " -> ".join(str(other) for other in [*read, file])
            problems.append((parent.place, f"extends goes in a circle: {circle}"))
            return layers
        read.append(file)
        try:
            text = _read_text(file)
        except ConfigError as error:
            problems.append((parent.place, f"extends: {error}"))
            return layers


def _read_overrides(overrides: Sequence[str], problems: list[_Problem]) -> list[_Node]:
    """All overrides as one layer (or none), so that their order matters only where they set the same key."""
    whole = _Node({}, Place())
    for override in overrides:
        name, equals, text = override.partition("=")
        key = tuple(name.split("."))
        if not equals or not all(key) or len(key) >= DEEPEST or _UNFIT.search(name):
            problems.append((Place(), f"{_short(override)!r} is not KEY=VALUE, such as training.patience=5"))
        elif key == ("extends",):
            problems.append((Place(), "extends: can be set only in a file"))
        elif _is_cut_off(text):
            what = "begins a mapping or a list and does not end it; where it has spaces, quote the whole of KEY=VALUE"
            problems.append((Place(), f"{_short(override)!r} {what}"))
            break  # what follows are its other pieces
        elif node := _parse(text, None, key, problems):
            for part in reversed(key):
                node = _Node({part: node}, Place())
            whole = _merge(whole, node)
    return [whole] if overrides else []


def _is_cut_off(text: str) -> bool:
    """Whether a mapping or a list is begun and not ended, as when the shell has split it."""
    if not text.startswith(("{", "[")):
        return False
    try:
        for _ in yaml.parse(text, yaml.SafeLoader):
            pass
    except yaml.MarkedYAMLError as error:
        return error.problem_mark is not None and error.problem_mark.index >= len(text)
    except (yaml.YAMLError, ValueError, OverflowError):
        pass  # wrong in another way, which `_parse` tells
    return False


def _merge(base: _Node, over: _Node) -> _Node:
    """``over`` laid upon ``base``: mappings merge unless their kinds differ, everything else is replaced."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    old, new = base.value.get("kind"), over.value.get("kind")
    if old and new and old.value != new.value:
        return over
    merged = dict(base.value)
    for name, node in over.value.items():
        merged[name] = _merge(merged[name], node) if name in merged else node
    # A key missing from the section is best added in the file nearest to the user.
    return _Node(merged, over.place if over.place.file else base.place)


def _plain(node: _Node, key: Key, places: dict[Key, Place]) -> object:
    """The value without its places, which are noted in ``places``."""
    places[key] = node.place
    if isinstance(node.value, dict):
        return {name: _plain(child, (*key, name), places) for name, child in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(child, (*key, index), places) for index, child in enumerate(node.value)]
    return node.value


# Writing -------------------------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Writes text in quotes wherever this reader, or one of YAML 1.1, would take it for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, data: str) -> yaml.ScalarNode:
        """Double quotes around whatever is more than one line of visible characters."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.text)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"({_NUMBER.pattern})\Z"), None)


# Explaining ----------------------------------------------------------------------------------------------------------

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_unicode": "text in UTF-8, the names of folders too",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping (KEY: VALUE)",
    "model_type": "a mapping (KEY: VALUE)",
    "model_attributes_type": "a mapping (KEY: VALUE)",
    "none_required": "null",
}


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _named(value: object) -> str:
    """What a plain value is, in words."""
    names = {bool: "a boolean", int: "a whole number", float: "a decimal number", str: "a string", dict: "a mapping"}
    return names.get(type(value), "a list")


def spelled(value: object, named: bool = True) -> str:
    """A value as YAML spells it and, if ``named``, what it is: ``"0.1" (a string)``."""
    if isinstance(value, (list, tuple, dict)):
        return _named(value)
    if value is None:
        return "null"
    text = json.dumps(_short(value), ensure_ascii=False) if isinstance(value, str) else inline(value)
    return f"{text} ({_named(value)})" if named else text


def did_you_mean(word: object, choices: Sequence[str], cutoff: float = 0.6) -> str:
    """``; did you mean CHOICE?`` for the choice most like the word, nothing if none is like it."""
    close = difflib.get_close_matches(str(word), choices, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def _explain(errors: list[ErrorDetails], document: Document, model: type[BaseModel]) -> list[_Problem]:
    """What pydantic found, in words and at the places where it was written."""
    found: dict[Key, list[tuple[ErrorDetails, list[Any]]]] = {}
    for details in errors:
        key, choices = _locate(model, details["loc"])
        found.setdefault(key, []).append((details, choices))
    above = {key[:length] for key in found for length in range(len(key))}
    problems: list[_Problem] = []
    for key, items in found.items():
        details, choices = items[0]
        if key in above and details["type"] in _EXPECTED:
            continue  # of a union, the member that was meant is the one with problems inside
        where = (*key, "kind") if details["type"] == "union_tag_invalid" else key
        problems.append((document.place(where), _sentence(key, [each for each, _ in items], choices, model)))
    return problems


def _sentence(key: Key, errors: list[ErrorDetails], choices: list[Any], model: type[BaseModel]) -> str:
    """One problem in words. ``choices`` are the types allowed at the key; for an unknown key, its section's class."""
    details, name = errors[0], dotted(key)
    value = details["input"]
    kinds = kinds_of(choices)
    match details["type"]:
        case "extra_forbidden":
            return f"{name} is not a setting{right_place(key, choices, model)}"
        case "missing":
            return f"{name} is missing"
        case "value_error" | "assertion_error":
            return f"{name}: {details['ctx']['error']}" if name else str(details["ctx"]["error"])
        case "union_tag_invalid":
            kind = value["kind"] if isinstance(value["kind"], str) else spelled(value["kind"])
            hint = did_you_mean(kind, list(kinds)) or _values_named(kind, key, model)
            return f"{name}: kind: {kind} is not one of {', '.join(kinds)}{hint}"
        case "union_tag_not_found":
            return f"{name}: kind is missing; it is one of {', '.join(kinds)}"
        case "dict_type" | "model_attributes_type" if kinds:
            close = difflib.get_close_matches(value, kinds, n=1) if isinstance(value, str) else ()
            todo = f"; did you mean {{kind: {close[0]}}}?" if close else ""
            return f"{name} must be a mapping with a kind ({', '.join(kinds)}), got {spelled(value)}{todo}"
    rules = " or ".join(dict.fromkeys(_rule(each) for each in errors))
    named = any(each["type"] in (*_EXPECTED, "literal_error") or isinstance(value, str) for each in errors)
    return f"{name} must {rules.replace(' or be ', ' or ')}, got {spelled(value, named)}{_hint(value, errors)}"


def _rule(details: ErrorDetails) -> str:
    """What a value must do: pydantic's "Input should be greater than 0" without its subject, types in plain words."""
    if words := _EXPECTED.get(details["type"]):
        return f"be {words}"
    if details["type"] == "literal_error":
        return "be " + str(details["ctx"]["expected"]).replace("'", "")
    if details["type"] == "string_too_short" and details["ctx"]["min_length"] == 1:
        return "not be empty"
    return re.sub(r"^.*? should ", "", details["msg"]).removesuffix(" after validation")


def _hint(value: object, errors: list[ErrorDetails]) -> str:
    """What to do about a value of the wrong type, where that can be guessed."""
    expected = {each["type"] for each in errors}
    if "string_type" in expected and isinstance(value, (bool, int, float)):
        return "; put it in quotes if it is meant as text"
    if not isinstance(value, str):
        return ""
    words = [
        word
        for each in errors
        if "expected" in each.get("ctx", {})
        for word in re.findall(r"'([^']*)'", each["ctx"]["expected"])
    ]
    if words:
        return did_you_mean(value, words)
    if "bool_type" in expected:
        return "; write true or false"
    if not expected & {"int_type", "float_type"}:
        return ""
    if _NUMBER.fullmatch(value):
        return "; remove the quotes"
    if re.match(r"[-+]?[0-9]", value):
        return "; write a plain decimal number, without leading zeros, _ or :"
    return ""


def right_place(key: Key, owners: Sequence[type[BaseModel]], model: type[BaseModel]) -> str:
    """Where in ``model`` an unknown key may have been meant to be; ``owners`` are the classes its section may have."""
    name, section = str(key[-1]), dotted(key[:-1])
    own = list(dict.fromkeys(each for owner in owners for each in owner.model_fields))
    elsewhere = [(dotted(where), other) for where, other in sections(model) if name in other.model_fields]
    kinds = [kind for where, other in elsewhere if where == section and (kind := kind_of(other))]
    places = dict.fromkeys(f"in {where}" if where else "at the top level" for where, _ in elsewhere)
    like = difflib.get_close_matches(name, own, n=1, cutoff=0.75 if elsewhere else 0.6)
    if like:
        return f"; did you mean {section}.{like[0]}?" if section else f"; did you mean {like[0]}?"
    if kinds:
        return f" of kind: {kind_of(owners[0])}; it is one of kind: {', '.join(kinds)}"
    if places:
        return f"; it belongs {' or '.join(places)}"
    return f"; here the settings are {', '.join(own)}"


def _values_named(word: str, key: Key, model: type[BaseModel]) -> str:
    """``; WORD is a value of KEY`` for keys beside or below ``key`` that may have this value, nothing if none may.

    Beside a section of the file itself stand all the others, so only what is below it counts.
    """
    above = key[:-1] or key
    found = [
        dotted((*where, name))
        for where, settings in sections(model)
        if where[: len(above)] == above
        for name, field in settings.model_fields.items()
        if name != "kind" and word in _words(field.annotation)
    ]
    return f"; {word} is a value of {', '.join(list(dict.fromkeys(found))[:3])}" if found else ""


def _words(annotation: Any) -> set[str]:
    """The words that a value may be, or that its ``kind`` may be."""
    choices = alternatives(annotation)
    literals = {str(word) for choice in choices if get_origin(choice) is Literal for word in get_args(choice)}
    return literals | set(kinds_of(choices))


def _locate(model: type[BaseModel], location: Sequence[str | int]) -> tuple[Key, list[Any]]:
    """The user's key of a pydantic error, whose location also names members of unions, and the types allowed there.

    For a key that no class has, the types are the class of its section.
    """
    key: Key = ()
    choices: list[Any] = [model]
    for part in location:
        if len(choices) > 1:  # a union: the part is the kind, the class or the type that was tried
            choices = [each for each in choices if part in (kind_of(each), getattr(each, "__name__", None))] or [
                each for each in choices if get_origin(each) and str(part).startswith(get_origin(each).__name__)
            ]
            continue
        if not choices:
            continue
        owner = choices[0]
        if is_settings(owner):
            key = (*key, part)
            if part in owner.model_fields:
                choices = alternatives(owner.model_fields[str(part)].annotation)
        elif get_origin(owner) in (list, tuple, set, frozenset, dict) and part != "[key]":
            key = (*key, part)
            choices = alternatives(get_args(owner)[1 if get_origin(owner) is dict else 0])
    return key, choices


def _prepared(annotation: Any, value: object, key: Key, document: Document) -> object:
    """The value as strict validation wants it: each `FilePath` absolute, a list where a tuple is meant made one.

    Whatever has the wrong type is left as it is.
    """
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        if isinstance(value, str) and value and any(isinstance(mark, PathMarker) for mark in marks):
            file = document.place(key).file
            # Links of folders are followed before ".." is removed, as the system would; others stay as they are named.
            path = Path(os.path.realpath(file.parent if file else Path()), value)
            return os.path.normpath(Path(os.path.realpath(path.parent), path.name) if ".." in path.parts else path)
        return _prepared(inner, value, key, document)
    if get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            value = _prepared(member, value, key, document)
    elif is_settings(annotation) and isinstance(value, dict):
        if "kind" in value and kind_of(annotation) not in (None, value["kind"]):
            return value
        fields = {name: field_type(field) for name, field in annotation.model_fields.items()}
        return {
            name: _prepared(fields[name], item, (*key, name), document) if name in fields else item
            for name, item in value.items()
        }
    elif get_origin(annotation) in (list, tuple) and isinstance(value, list):
        item_type = get_args(annotation)[0]
        items = [_prepared(item_type, item, (*key, index), document) for index, item in enumerate(value)]
        return tuple(items) if get_origin(annotation) is tuple else items
    elif get_origin(annotation) is dict and isinstance(value, dict):
        item_type = get_args(annotation)[1]
        return {name: _prepared(item_type, item, (*key, name), document) for name, item in value.items()}
    return value


def files(settings: BaseModel, key: Key = ()) -> Iterator[tuple[Key, Path]]:
    """Every path that the settings name and something is read from, with its key."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        items: dict[tuple[int, ...], object] = {(): value}
        if isinstance(value, (tuple, list)):
            items = {(number,): item for number, item in enumerate(value)}
        for place, item in items.items():
            where = (*key, name, *place)
            if isinstance(item, BaseModel):
                yield from files(item, where)
            elif isinstance(item, str) and _is_read(field_type(field)):
                yield where, Path(item)


def missing(settings: BaseModel) -> list[tuple[Key, Path]]:
    """Those of `files` that are not there."""
    # Path.exists raises where a name is too long or a folder closed
    return [(key, file) for key, file in files(settings) if not os.path.exists(file)]  # noqa: PTH110


def _is_read(annotation: Any) -> bool:
    """Whether a type is, or holds, a path that something is read from."""
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        return any(isinstance(mark, PathMarker) and mark.read for mark in marks) or _is_read(inner)
    return any(_is_read(member) for member in get_args(annotation))


# Walking a settings class --------------------------------------------------------------------------------------------


def is_settings(annotation: Any) -> bool:
    """Whether a type is a class of settings."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def field_type(field: FieldInfo) -> Any:
    """The type of a field as it was written, with its marks and limits."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def mark_of(model: type[BaseModel], key: str, kind: type[Mark]) -> Mark | None:
    """What a setting of ``model``, or the section that it is in, is marked with; the outermost mark counts."""
    owners = [model]
    for name in key.split("."):
        fields = [owner.model_fields[name] for owner in owners if name in owner.model_fields]
        for mark in (mark for field in fields for mark in field.metadata if isinstance(mark, kind)):
            return mark
        owners = [each for field in fields for each in members(field.annotation)]
    return None


def alternatives(annotation: Any) -> list[Any]:
    """The members of a union, without null and without marks; of any other type, the type alone."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [leaf for member in get_args(annotation) for leaf in alternatives(member)]
    return [] if annotation is type(None) else [annotation]


def kind_of(settings: Any) -> str | None:
    """The ``kind`` of a settings class, None if it has none."""
    field = settings.model_fields.get("kind") if is_settings(settings) else None
    if field is None or get_origin(field.annotation) is not Literal:
        return None
    return str(get_args(field.annotation)[0])


def kinds_of(choices: Sequence[Any]) -> dict[str, type[BaseModel]]:
    """The classes, by kind, if there is a choice between several."""
    kinds = {kind: each for each in choices if (kind := kind_of(each))}
    return kinds if len(kinds) > 1 else {}


def members(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes that a value of this type, or an item of it, may be."""
    found: list[type[BaseModel]] = []
    for choice in alternatives(annotation):
        if is_settings(choice):
            found.append(choice)
        else:
            found += [each for part in get_args(choice) for each in members(part)]
    return found


def sections(
    model: type[BaseModel], key: Key = (), above: tuple[type[BaseModel], ...] = ()
) -> Iterator[tuple[Key, type[BaseModel]]]:
    """Every settings class that can occur in a file, with its key, from the top down; one inside itself once."""
    yield key, model
    for name, field in model.model_fields.items():
        for member in members(field.annotation):
            if member not in (*above, model):
                yield from sections(member, (*key, name), (*above, model))
