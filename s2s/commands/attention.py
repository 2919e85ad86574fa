"""`s2s attention`: what models look at, drawn: by beam search or a given translation, side by side, head by head."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from s2s.analysis.figure import figure
from s2s.analysis.heatmap import HeatMap, heat_maps_svg
from s2s.commands.models import load, require_models
from s2s.data.text import NOT_STRICT, Invalid, OutputFile, TextCounts, read_lines, read_stream
from s2s.errors import CheckpointError, DataError, UsageError
from s2s.interfaces import EOS
from s2s.progress import say, warn
from s2s.run import Trained
from s2s.search.documents import Document, first_before
from s2s.search.look import head_maps, heat_map, look, marked
from s2s.search.translate import Translator
from s2s.training.trainer import resolve_device


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says, beside models and input."""

    output: Path
    """The picture; its ending says what it is."""
    overwrite: bool = False
    target: Path | None = None
    """Translations that the models are made to say; without them each searches for its own."""
    line: int = 1
    """Which line is drawn, from 1."""
    heads: bool = False
    """Every head of every layer, beside their mean."""
    checkpoint: str = "best"
    device: str = "auto"
    strict: bool = False

    @property
    def form(self) -> Literal["svg", "png", "pdf"]:
        """By the ending. Raises UsageError for another."""
        for form in ("svg", "png", "pdf"):
            if self.output.suffix.lower() == f".{form}":
                return form
        raise UsageError(self.output, "is no picture", "give a name that ends in .svg, .png or .pdf")


class Pair(NamedTuple):
    """What is drawn: a line, and the translation that was asked for, if any."""

    source: str
    target: str | None
    before: list[str]
    """The lines before it in its document."""


def attention(models: Sequence[Path], source: Path | None, options: Options) -> None:
    """Draw what each model attends to in one line of ``source`` (None or "-": standard input).

    Raises CheckpointError for a model without attention, UsageError or DataError for a line that cannot be drawn.
    """
    require_models(models)
    form = options.form
    source = None if str(source) == "-" else source
    inputs = [path for path in (source, options.target) if path is not None]
    sink = OutputFile(options.output, overwrite=options.overwrite, inputs=inputs)
    pair = _pair(source, options)
    device = resolve_device(options.device)
    maps = [one for path in models for one in _drawn(path, load(path, device, options.checkpoint), pair, options)]
    picture = heat_maps_svg(maps).encode() if form == "svg" else figure(maps, form)
    with sink as file:
        file.write(picture)
    say(f"wrote {options.output}")


def _pair(source: Path | None, options: Options) -> Pair:
    counts = TextCounts(where="standard input" if source is None else str(source))
    invalid: Invalid = "error" if options.strict else "replace"
    if source is not None:
        lines: Iterable[str | None] = read_lines(
            source, counts=counts, invalid=invalid, remedy=NOT_STRICT, allow_pipe=True
        )
    elif sys.stdin is not None:
        lines = read_stream(sys.stdin.buffer, counts=counts, invalid=invalid, remedy=NOT_STRICT)
    else:
        raise UsageError("standard input", "no input", "give a file")
    *before, text = _until(lines, counts.where, options.line)
    target, beside = None, TextCounts(where=str(options.target))
    if options.target is not None:
        given = read_lines(options.target, counts=beside, invalid=invalid, remedy=NOT_STRICT, allow_pipe=True)
        target = _until(given, beside.where, options.line)[-1]
    for warning in (*counts.warnings(), *beside.warnings()):
        warn(warning)
    return Pair(text, target, before)


def _until(lines: Iterable[str | None], where: str, number: int) -> list[str]:
    """The line with this number, and before it those of its document. Raises DataError where there is none, or a blank
    one."""
    read = [line or "" for line in islice(lines, number)]
    if len(read) < number:
        raise DataError(where, f"has no line {number}", "choose another by --line")
    if not read[-1].strip():
        raise DataError(f"{where}: line {number}", "is blank", "choose another by --line")
    return read[first_before(read, number - 1, number) :]


@torch.no_grad()
def _drawn(path: Path, trained: Trained, pair: Pair, options: Options) -> Iterator[HeatMap]:
    """The pictures of one model: the whole and, if they are asked for, the heads."""
    source, target = _forced(trained, pair) if pair.target is not None else _searched(trained, pair)
    looked = look(trained.model, source, target, next(trained.model.parameters()).device, _before(trained, pair))
    if looked is None:
        raise CheckpointError(path, "has no attention", "use a model with attention")
    name = path.resolve().name
    whole = heat_map(looked.weights, source, target, trained.tokenizers, name)
    yield marked(whole, looked, source, target, trained.tokenizers)
    if options.heads:
        if looked.heads is None:
            raise UsageError("--heads", f"{path} has no heads", "leave it out, or use a model with several heads")
        yield from head_maps(looked, source, target, trained.tokenizers)


def _forced(trained: Trained, pair: Pair) -> tuple[list[int], list[int]]:
    """The pieces of a given pair, EOS last."""
    assert pair.target is not None
    sides = [*trained.tokenizers.source.encode(pair.source), EOS], [*trained.tokenizers.target.encode(pair.target), EOS]
    if max(map(len, sides)) > trained.config.search.max_source_length:
        raise _too_long()
    return sides


def _before(trained: Trained, pair: Pair) -> tuple[list[int], ...]:
    """The pieces of what the model reads before the line, the nearest sentence first, EOS last."""
    document = Document(trained.model.sentences_before, trained.config.search.max_source_length)
    for line in pair.before[first_before(pair.before, len(pair.before), trained.model.sentences_before) :]:
        document.add(trained.tokenizers.source.encode(line))
    return document.before


def _searched(trained: Trained, pair: Pair) -> tuple[list[int], list[int]]:
    """The pieces of the line and of what the model's own search finds for it, EOS last."""
    device = next(trained.model.parameters()).device
    translator = Translator(trained.model, trained.tokenizers, trained.config.search, device)
    (found,) = translator.translate_at([*pair.before, pair.source], [len(pair.before)])
    if len(found.candidates[0].parts) != 1:
        raise _too_long()
    (part,) = found.candidates[0].parts
    return part.source, [*part.hypothesis.ids, EOS]


def _too_long() -> UsageError:
    return UsageError("--line", "the line is longer than search.max_source_length", "choose a shorter one")
