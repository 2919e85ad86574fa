"""`s2s config`: show, check, describe and start configuration files; the words for the reference page are here too."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from heapq import heappop, heappush
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from s2s import configfile
from s2s.commands.output import answer
from s2s.configfile import Key, dotted
from s2s.errors import ConfigError, DataError, printable
from s2s.progress import say
from s2s.settings import MayChange

if TYPE_CHECKING:
    from s2s.data.text import Pair

# s2s.config imports every part of the tool, torch too, and is therefore imported where it is used.


def show(path: Path, overrides: Sequence[str] = ()) -> None:
    """Print the file as it would be used: what it extends merged, overrides applied, every default written out."""
    from s2s.config import load

    answer(configfile.dump(load(path, overrides).model_dump(mode="json")).removesuffix("\n"))


def check(path: Path, overrides: Sequence[str] = ()) -> None:
    """Print that the file is right; `ConfigError` with everything that is not, files that are not there among it."""
    from s2s.config import Config, check_parts

    document = configfile.load(path, overrides)
    config = configfile.validate(document, Config)
    check_parts(config)
    missing = [
        printable(f"{document.place(key)}: {dotted(key)}: {file}: no such file")
        for key, file in configfile.missing(config)
    ]
    if missing:
        raise ConfigError("", missing[0], problems=tuple(missing))
    answer(f"{printable(path)}: ok")


def describe(key: str | None = None) -> None:
    """Print what can be said about one key path, or about the sections of a file."""
    from s2s.config import Config

    answer(description(Config, key))


def schema() -> None:
    """Print the JSON Schema of a configuration file, for editors."""
    from s2s.config import Config

    answer(json.dumps(Config.model_json_schema(), indent=2))


# Describing ----------------------------------------------------------------------------------------------------------


def description(model: type[BaseModel], key: str | None = None) -> str:
    """The documentation of a key path of ``model``, or of its top level. Raises `ConfigError` for an unknown key.

    A part of the path may also be the name of a kind: ``model.encoder.rnn.layers``.
    """
    parts = key.split(".") if key else []
    fields: list[tuple[type[BaseModel], FieldInfo]] = []
    owners: list[type[BaseModel]] = [model]
    for index, part in enumerate(parts):
        having = [owner for owner in owners if part in owner.model_fields]
        of_kind = [owner for owner in owners if configfile.kind_of(owner) == part]
        if having:
            fields = _different([(owner, owner.model_fields[part]) for owner in having])
            owners = list(dict.fromkeys(each for _, field in fields for each in configfile.members(field.annotation)))
        elif of_kind:
            fields, owners = [], of_kind
        else:
            place = (
                configfile.right_place(tuple(parts[: index + 1]), owners, model)
                if owners
                else f"; {'.'.join(parts[:index])} has no keys"
            )
            path = ".".join(parts[: index + 1])
            raise ConfigError("", f"{path} is not a setting{place}")
    lines: list[str] = []
    for owner, field in fields:
        kind = f" ({_label(owner)})" if len(fields) > 1 else ""
        lines += [f"{key}{kind}: {words(field)}", *_indented(_meaning(field))]
    if key and not fields:  # the path ends in a kind
        lines += [key, *_indented(_documentation(owners[0]))]
    lines += _contents(owners)
    return "\n".join(lines).strip()


def _label(owner: type[BaseModel]) -> str:
    """What tells a settings class from the others that may stand in its place: its kind, or else its name in words."""
    kind = configfile.kind_of(owner)
    return f"kind: {kind}" if kind else re.sub("(?<=[a-z])(?=[A-Z])", " ", owner.__name__).lower()


def _contents(owners: list[type[BaseModel]]) -> list[str]:
    """The keys of the only settings class, or the kinds there are."""
    if len(owners) > 1:
        kinds = [(_label(owner).removeprefix("kind: "), _documentation(owner)) for owner in owners]
        return ["", "kinds:", *(f"  {kind}: {_summary(text)}" for kind, text in kinds)]
    entries = [(name, field) for owner in owners for name, field in owner.model_fields.items()]
    lines = ["", "keys:"] if entries else []
    for name, field in entries:
        lines += [f"  {name}: {words(field)}"]
        lines += [f"      {line}" for line in [_summary(_meaning(field))] if line]
    return lines


def _different(fields: list[tuple[type[BaseModel], FieldInfo]]) -> list[tuple[type[BaseModel], FieldInfo]]:
    """Without those that say the same of the key as an earlier one, as the same setting of several kinds does."""
    return list({(words(field), field.description): (owner, field) for owner, field in reversed(fields)}.values())[::-1]


def words(field: FieldInfo) -> str:
    """The type, the limits and the default of a setting: ``a number, greater than 0; default 0.001``."""
    text = _type_words(configfile.field_type(field))
    if field.is_required():
        return f"{text}; required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        kind = configfile.kind_of(type(default))
        default = {**({"kind": kind} if kind else {}), **default.model_dump(mode="json", exclude_defaults=True)}
    return f"{text}; default {configfile.inline(list(default) if isinstance(default, tuple) else default)}"


def _type_words(annotation: Any) -> str:
    """A type in plain words."""
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        if any(isinstance(mark, configfile.PathMarker) for mark in marks):
            return "a file path"
        return ", ".join([_type_words(inner), *_limits(marks)])
    choices = configfile.alternatives(annotation)
    kinds = configfile.kinds_of(choices)
    if kinds:
        texts = [f"a mapping with a kind ({', '.join(kinds)})"]
    elif choices == [annotation]:
        return _single_type_words(annotation)
    else:
        # Only the members themselves still have their limits; null goes last.
        texts = [_type_words(member) for member in get_args(annotation) if member is not type(None)]
    nullable = type(None) in get_args(annotation)
    return " or ".join([*texts, *(["null"] if nullable else [])])


def _single_type_words(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(configfile.inline(choice) for choice in inner)
    if origin in (list, tuple, set, frozenset):
        return f"a list ({_type_words(inner[0])})"
    if origin is dict:
        return f"a mapping of names ({_type_words(inner[1])})"
    if configfile.is_settings(annotation):
        return "a section"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(annotation, str(annotation))


def _limits(marks: Sequence[Any]) -> Iterator[str]:
    """The limits that a type is marked with, in words."""
    names = {
        "gt": "greater than",
        "ge": "at least",
        "lt": "less than",
        "le": "at most",
        "multiple_of": "a multiple of",
        "min_length": "with a length of at least",
        "max_length": "with a length of at most",
        "pattern": "matching",
    }
    for mark in marks:
        yield from _limits(mark.metadata if isinstance(mark, FieldInfo) else ())
        for attribute, name in names.items():
            if (limit := getattr(mark, attribute, None)) is not None:
                yield f"{name} {limit:g}" if isinstance(limit, (int, float)) else f"{name} {limit}"


def _documentation(settings: type[BaseModel]) -> str:
    """The docstring of a settings class; one made by filling in a generic class has that class's."""
    origin = settings.__pydantic_generic_metadata__["origin"] or settings
    return inspect.cleandoc(origin.__doc__ or "")


def _meaning(field: FieldInfo) -> str:
    """What is said about a setting: at the field or, for a section, at its class; and whether it may change."""
    text = field.description
    if not text:
        sections = configfile.alternatives(field.annotation)
        text = _documentation(sections[0]) if len(sections) == 1 and configfile.is_settings(sections[0]) else ""
    return " ".join([text, *(str(mark) for mark in field.metadata if isinstance(mark, MayChange))])


def _summary(text: str) -> str:
    """The first paragraph, on one line."""
    return " ".join(text.partition("\n\n")[0].split())


def _indented(text: str | None) -> list[str]:
    return [f"    {line}".rstrip() for line in (text or "").splitlines()]


# The reference page --------------------------------------------------------------------------------------------------


def reference(model: type[BaseModel]) -> str:
    """Every setting of ``model`` as a page of Markdown: a heading for each section, below it one for each kind."""
    found: dict[Key, list[type[BaseModel]]] = {}
    for key, settings in configfile.sections(model):
        if settings not in found.setdefault(key, []):
            found[key].append(settings)
    lines = [
        "# Settings",
        "",
        "Every key of a configuration file; [configuration.md](configuration.md) says how such files are read and laid",
        "over each other. This page is generated; the text is in the code.",
        "",
    ]
    documented: dict[tuple[type[BaseModel], ...], str] = {}
    for key, classes in found.items():
        name = f"`{dotted(key)}`" if key else "The top level"
        first = documented.setdefault(tuple(classes), name)
        lines += [f"## {name}", ""]
        if first != name:
            lines += [f"The same as {first}.", ""]
            continue
        for settings in classes:
            lines += [f"### {_label(settings)}", ""] if len(classes) > 1 else []
            lines += [_documentation(settings), "", *_table(settings), ""] if key else [*_table(settings), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(settings: type[BaseModel]) -> list[str]:
    rows = [("key", "value", "meaning"), ("---", "---", "---")]
    for name, field in settings.model_fields.items():
        rows.append((f"`{name}`", words(field), " ".join(_meaning(field).split())))
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]


# A first file --------------------------------------------------------------------------------------------------------

_HELD_OUT = 2000  # pairs of a validation or test set, but no more than a twentieth of all
_LONGEST = 256  # words of a sentence

_UNSPACED = ("zh", "ja", "ko")
"""Languages that BLEU has tokenisers of their own for."""

_TEMPLATE = """\
# `s2s config describe KEY` explains a key, such as optimizer.lr; keys that are not written have their defaults.
data:                     # paths are relative to this file; line N of source is translated by line N of target
  train: {train}
  valid: {valid}
  test: {test}{language}
tokenizer: {{kind: sentencepiece, model: bpe, vocabulary: 8000, joint: true}}  # vocabulary is an upper limit
batches: {{tokens: 2048, accumulate: 1}}      # target tokens of an update: tokens x accumulate
model:
  encoder: {{kind: rnn, cell: lstm, layers: 1, size: 512, bidirectional: true}}
  decoder:
    kind: rnn
    cell: lstm
    wiring: luong         # where attention stands: luong, bahdanau, gnmt or cgru
    input_feeding: true
    attention: {{kind: global, score: general}}   # the kinds: s2s config describe model.decoder.attention
objective: {{label_smoothing: 0.1}}
optimizer:
  kind: adam
  lr: 1e-3
  schedule: {{kind: inverse_sqrt, warmup: 400}}   # updates until the learning rate is at its highest
  clip: 1.0               # largest norm of the gradient
training:
  max_updates: 8000
  validate_every: 250     # updates
  save_every: 250
  stop_on: bleu
  patience: 10            # validations without a better score before training stops
search: {{beam: 5, length_penalty: average}}
seed: 1
"""


def new(source: Path, target: Path, out: Path, overwrite: bool = False) -> None:
    """Write a commented configuration ``out`` for two parallel files, and print the command that uses it.

    The pairs are split into train, valid and test files in a folder beside ``out``: those are held out whose text has
    the smallest hashes, so the same pairs each time, and equal pairs are never on two sides. Raises UsageError for
    files that are there already, without ``overwrite``.
    """
    from s2s.commands.stop import Stop
    from s2s.data.text import CONVERT, OutputFile, PairCounts, pair_hash, read_pairs

    out = Path(out)
    folder = out.parent / f"{out.stem}-data"
    suffixes = _suffixes(Path(source), Path(target))
    paths = {part: [folder / f"{part}.{suffix}" for suffix in suffixes] for part in ("train", "valid", "test")}

    def sink(path: Path) -> OutputFile:
        return OutputFile(path, overwrite=overwrite, inputs=(source, target), make_folder=True)

    def pairs(counts: PairCounts) -> Iterator[tuple[Pair, int]]:
        for pair in read_pairs(source, target, max_length=_LONGEST, remedy=CONVERT, counts=counts):
            yield pair, pair_hash(pair.source, pair.target)

    config = sink(out)  # refuses, before any work, what exists
    files = {part: [sink(path) for path in both] for part, both in paths.items()}
    counts = PairCounts()
    valid, test = _held_out(digest for _, digest in pairs(counts))
    say(counts.summary())
    with Stop(lambda: "before all files were written"), ExitStack() as stack:
        for file in (config, *(file for both in files.values() for file in both)):
            stack.enter_context(file)
        seen: set[int] = set()
        for pair, digest in pairs(PairCounts()):
            part = "valid" if digest in valid else "test" if digest in test else "train"
            if part != "train" and digest in seen:
                continue  # a sentence is judged once
            if part != "train":
                seen.add(digest)
            for file, text in zip(files[part], (pair.source, pair.target), strict=True):
                file.write_line(text)
        sides = {part: _sides(both, out.parent) for part, both in paths.items()}
        language = f"\n  language: {suffixes[1]}            # words without blanks: BLEU cuts them as sacreBLEU does"
        for line in _TEMPLATE.format(**sides, language=language if suffixes[1] in _UNSPACED else "").splitlines():
            config.write_line(line)
    say(f"wrote {out}; train, valid and test texts are in {folder}")
    answer(printable(shlex.join(["s2s", "train", "--config", str(out)])))


def _suffixes(source: Path, target: Path) -> tuple[str, str]:
    """What names the two sides: the file suffixes, such as languages, if they differ."""
    first, second = (path.with_suffix("") if path.suffix == ".gz" else path for path in (source, target))
    if first.suffix and second.suffix and first.suffix != second.suffix:
        return first.suffix[1:], second.suffix[1:]
    return "source", "target"


def _sides(both: list[Path], folder: Path) -> str:
    """Two files as a mapping in YAML, relative to the configuration."""
    names = [str(path.relative_to(folder)) for path in both]
    return configfile.inline({"source": names[0], "target": names[1]})


def _held_out(digests: Iterable[int]) -> tuple[set[int], set[int]]:
    """The digests of the validation and of the test pairs; of all that there are only the smallest stay in memory."""
    most, smallest, kept, some = 2 * _HELD_OUT, list[int](), set[int](), set[int]()
    for digest in digests:
        if len(some) < 20 * _HELD_OUT:  # of so many different ones the largest sets are held out
            some.add(digest)
        if digest in kept or (len(smallest) == most and digest > -smallest[0]):
            continue
        kept.add(digest)
        heappush(smallest, -digest)
        if len(smallest) > most:
            kept.remove(-heappop(smallest))
    if len(some) < 3:
        raise DataError("", f"{len(some)} different pairs cannot be split into train, valid and test sets")
    size, ordered = max(1, min(_HELD_OUT, len(some) // 20)), sorted(kept)
    return set(ordered[:size]), set(ordered[size : 2 * size])
