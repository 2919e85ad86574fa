"""`s2s translate`: a text file or standard input, line for line, through a trained model."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from s2s.analysis.heatmap import Weights, heat_map_svg
from s2s.commands.asked import asked_lines, read_dictionary, read_phrases
from s2s.commands.divided import Blocks, Numbered
from s2s.commands.models import load, require_models, search_settings, together
from s2s.commands.output import Output, results, write
from s2s.commands.stop import Stop
from s2s.commands.written import Written
from s2s.data.nbest import Form
from s2s.data.text import NOT_STRICT, Invalid, OutputFile, TextCounts, read_lines, read_stream
from s2s.data.tokenizer import Tokenizers
from s2s.distributed import World
from s2s.errors import SystemRefused, UsageError
from s2s.interfaces import EOS
from s2s.progress import Meter, say, silent, warn
from s2s.run import Trained
from s2s.search.beam import SearchSettings
from s2s.search.formats import lines_of
from s2s.search.look import heat_map
from s2s.search.translate import Line, LongLines, Part, Translation, Translator, gives_attention
from s2s.training.trainer import resolve_device


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says, beside models and input."""

    output: Path | None = None
    overwrite: bool = False
    form: Form = "text"
    n_best: int = 1
    alignment: bool = False
    attention: Path | None = None
    """An SVG file for a picture of what the first line that is not blank attended to."""
    checkpoint: str = "best"
    device: str = "auto"
    search: Sequence[str] = ()
    """``KEY=VALUE`` over the first run's own search settings."""
    ensemble: Literal["probability", "log"] | None = None
    long_lines: LongLines = "split"
    strict: bool = False
    """Refuse input that is not UTF-8."""
    stream: bool = False
    """Answer each line before the next is read."""
    prefix: Path | None = None
    require: Path | None = None
    forbid: Path | None = None
    replace_unknown: bool = False
    dictionary: Path | None = None

    def check(self, models: Sequence[Path]) -> None:
        """Raises UsageError for what does not go together."""
        require_models(models)
        if self.form == "text" and self.n_best > 1:
            what = "text has one translation for each line"
            raise UsageError("--n-best", what, "give --format tsv or --format jsonl")
        if self.form != "jsonl" and self.alignment:
            raise UsageError("--alignment", f"{self.form} has no place for links", "give --format jsonl")
        if self.dictionary is not None and not self.replace_unknown:
            raise UsageError("--dictionary", "serves unknown words only", "give --replace-unknown too")
        if self.attention and self.output and self.attention.resolve() == self.output.resolve():
            raise UsageError("--attention", "is the file of --output too", "give two files")
        if self.ensemble is not None and len(models) == 1:
            raise UsageError("--ensemble", "one model is no ensemble", "give --model more than once")

    def check_divided(self, live: bool) -> None:
        """Raises UsageError for what several processes cannot do; ``live``: standard input is a terminal."""
        if self.stream or live:
            where = "--stream" if self.stream else "standard input"
            raise UsageError(where, "answers come line by line from one process only", "start one process")
        if self.attention is not None:
            raise UsageError("--attention", "draws one line, which may be any process's", "start one process")
        for name, path in (("--forbid", self.forbid), ("--dictionary", self.dictionary)):
            if path is not None and path.is_fifo():
                raise UsageError(name, "is a pipe, but is read by every process", "write it to a file first")

    def needs_attention(self, settings: SearchSettings) -> str | None:
        """The option that a model without attention cannot serve, if any is given."""
        given = {
            "--alignment": self.alignment,
            "--attention": self.attention is not None,
            "--replace-unknown": self.replace_unknown,
            "search.coverage_penalty": settings.coverage_penalty > 0,
        }
        return next((name for name, is_given in given.items() if is_given), None)

    def check_search(self, settings: SearchSettings) -> None:
        """Raises UsageError for what settings of search cannot give."""
        if settings.sampling is None and self.n_best > settings.beam:
            what = f"{self.n_best} translations of a line need as wide a beam, and search.beam is {settings.beam}"
            raise UsageError("--n-best", what, f"give --beam {self.n_best}")
        if self.require is not None:
            settings.check_required("--require")

    def files(self) -> list[Path]:
        """What is read beside the input."""
        return [path for path in (self.prefix, self.require, self.forbid, self.dictionary) if path is not None]


def arguments(models: Sequence[Path], source: Path | None, options: Options) -> list[str]:
    """The command line that says the same, after ``s2s translate``."""
    said: list[str] = [part for path in models for part in ("--model", str(path))]
    said += [part for change in options.search for part in ("--search", change)]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name == "search" or value == field.default:
            continue
        name = {"form": "--format"}.get(field.name, f"--{field.name.replace('_', '-')}")
        said += [name] if value is True else [name, str(value)]
    return said if source is None else [*said, "--", str(source)]


def translate(models: Sequence[Path], source: Path | None, options: Options) -> None:
    """Translate ``source`` (None or "-": standard input) with one model, or with several as an ensemble.

    Where a launcher started several processes, this is one of them.
    """
    world = World.launched()
    with world.led(), nullcontext() if world.first else silent():
        options.check(models)
        source = None if str(source) == "-" else source
        if world.size == 1:
            if options.output is None and world.noted("begun"):  # by the launcher that started this one again
                what = "the process that wrote here failed, and nobody knows how far it came"
                raise SystemRefused("standard output", what, "give --output FILE")
            _alone(models, source, options)
        else:
            _together(models, source, options, world)
        world.part()


def _alone(models: Sequence[Path], source: Path | None, options: Options) -> None:
    inputs = _inputs(source, options)
    sink, picture = results(options.output, options.overwrite, inputs), None
    if options.attention is not None:
        picture = OutputFile(options.attention, overwrite=options.overwrite, inputs=inputs)
    counts = _counts(source, options)
    translator, tokenizers = prepare(models, options, counts.where)
    live = _is_typed(source)
    if live:
        say("type a sentence and press Enter; end with Ctrl-D")
    window = 1 if _is_live(source, options) else None
    check = sink.check if isinstance(sink, Output) else None
    found = translator.translate(_asked(source, options, counts), window=window, check=check)
    lines = _lines(found, options.form, tokenizers, picture)
    write(sink, lines, _WORDS, at_once=options.stream, conversation=live)
    _warn(counts, translator)


def _together(models: Sequence[Path], source: Path | None, options: Options, world: World) -> None:
    """The part of one of several processes: the first reads, writes and speaks, and all translate."""
    options.check_divided(live=_is_typed(source))
    written = Written.before(world)
    if written.complete:
        return
    if not world.first:
        translator, _ = prepare(models, options, "input", world)
        with Stop(lambda: "while translating"):
            Blocks(world, partial(_block, translator, options.form)).serve()
        return
    sink = written.sink(options.output, options.overwrite, _inputs(source, options), standard_input=source is None)
    counts = _counts(source, options)
    translator, _ = prepare(models, options, counts.where, world)
    check = sink.check if isinstance(sink, Output) else lambda: None
    windows = translator.windows(_asked(source, options, counts))
    blocks = Blocks(world, partial(_block, translator, options.form), check)
    answers = blocks.answers(windows, skip=written.lines)
    write(sink, map(iter, answers), _WORDS, flushed=partial(written.note, world, sink))
    written.end(world)
    _warn(counts, translator)


_WORDS = ("translating", "translated", "lines")


def _block(
    translator: Translator, form: Form, lines: Sequence[Numbered], check: Callable[[], None]
) -> Iterator[list[str]]:
    """The lines of output for each of these lines of input, which are searched together."""
    taken = [translator.take(*one) for one in lines]
    return (list(lines_of(one, form)) for one in translator.answers(taken, check))


def _inputs(source: Path | None, options: Options) -> list[Path]:
    """The files that are read. Raises UsageError where there is nothing to translate."""
    if source is None and sys.stdin is None:
        raise UsageError("standard input", "no input", "give a file to translate")
    return [*([] if source is None else [source]), *options.files()]


def _counts(source: Path | None, options: Options) -> TextCounts:
    """What will be found in the input, nothing yet. Raises DataError where the files beside it do not fit."""
    if options.prefix or options.require:
        _check_counts(source, options)
    return TextCounts(where="standard input" if source is None else str(source))


def _warn(counts: TextCounts, translator: Translator) -> None:
    for warning in (*counts.warnings(), *translator.warnings()):
        warn(warning)


def prepare(
    models: Sequence[Path], options: Options, where: str, world: World | None = None
) -> tuple[Translator, Tokenizers]:
    """What translates, and the vocabularies of its models; ``where`` is what messages call the input.

    Processes of a ``world`` have a GPU each, where there are any.
    """
    device = resolve_device(options.device)
    if world is not None:
        world.take_device(device, "--device")
    trained = [load(path, device, options.checkpoint) for path in models]
    model, tokenizers = together(trained, models, options.ensemble or "probability"), trained[0].tokenizers
    settings = search_settings(models[0], options.search)
    options.check_search(settings)
    needing = options.needs_attention(settings)
    if needing and not gives_attention(model, device):
        raise UsageError(needing, "this model has no attention", "use a model with attention, or leave it out")
    dictionary = {} if options.dictionary is None else read_dictionary(options.dictionary)
    translator = Translator(
        model,
        tokenizers,
        settings,
        device,
        n_best=options.n_best,
        attention=options.attention is not None,
        alignment=options.alignment,
        long_lines=options.long_lines,
        forbidden=[] if options.forbid is None else read_phrases(options.forbid),
        dictionary=dictionary if options.replace_unknown else None,
        where=where,
    )
    return translator, tokenizers


def _asked(source: Path | None, options: Options, counts: TextCounts) -> Iterator[Line]:
    """The lines to translate, with what is wished for them."""
    invalid: Invalid = "error" if options.strict else "replace"
    if source is None:
        lines = read_stream(sys.stdin.buffer, counts=counts, invalid=invalid, remedy=NOT_STRICT)
    else:
        lines = read_lines(source, counts=counts, invalid=invalid, remedy=NOT_STRICT, allow_pipe=True)
    return asked_lines(lines, counts.where, options.prefix, options.require, conversation=_is_live(source, options))


def _is_typed(source: Path | None) -> bool:
    return source is None and sys.stdin is not None and sys.stdin.isatty()


def _is_live(source: Path | None, options: Options) -> bool:
    """Whether somebody waits for each answer before the next line comes."""
    return options.stream or _is_typed(source)


def _check_counts(source: Path | None, options: Options) -> None:
    """Go through files that can be read twice: better to hear of unequal ones now than in an hour."""
    files = [path for path in (source, options.prefix, options.require) if path is not None]
    if source is not None and all(path.is_file() for path in files):
        deque(_asked(source, options, TextCounts(where=str(source))), maxlen=0)


def _lines(
    found: Iterator[Translation], form: Form, tokenizers: Tokenizers, picture: OutputFile | None
) -> Iterator[Iterator[str]]:
    """The lines of each translation; once the first that can be drawn is written, its attention is.

    That is one that is not blank, and was not cut into parts.
    """
    for one in found:
        yield lines_of(one, form)
        if picture is not None and one.line and len(parts := one.candidates[0].parts) == 1:
            with picture as file:
                file.write_line(heat_map_svg(*word_attention(parts[0], tokenizers), title=one.text))
            picture = None
    if picture is not None:
        warn("--attention: all lines are blank or were cut into parts, and there is nothing to draw")


def word_attention(part: Part, tokenizers: Tokenizers) -> tuple[Weights, list[str], list[str]]:
    """Weights from word to word (T, S) of a part whose attention was kept, its source words, its target words.

    Where a script puts no blanks between words they are pieces.
    """
    assert part.hypothesis.attention is not None
    found = heat_map(part.hypothesis.attention.numpy(), part.source, [*part.hypothesis.ids, EOS], tokenizers)
    return found.weights, list(found.source), list(found.target)


@torch.no_grad()
def translate_lines(trained: Trained, lines: Sequence[str], meter: Meter) -> list[str]:
    """Translations of lines that are in memory, by the model's own settings of search."""
    device = next(trained.model.parameters()).device
    translator = Translator(trained.model, trained.tokenizers, trained.config.search, device)
    found = []
    for one in translator.translate(lines):
        found.append(one.text)
        meter.advance()
    for warning in translator.warnings():
        warn(warning)
    return found
