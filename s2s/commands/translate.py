"""`s2s translate`: a text file or standard input, line for line, through a trained model."""

from __future__ import annotations

import select
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import torch

from s2s.analysis.alignment import merge_words
from s2s.analysis.heatmap import heat_map_svg
from s2s.commands.asked import asked_lines, read_dictionary, read_phrases
from s2s.commands.models import load, runs_near, search_settings
from s2s.commands.stop import Stop
from s2s.data.text import Invalid, OutputFile, TextCounts, read_lines, read_stream
from s2s.data.tokenizer import Tokenizers
from s2s.errors import CheckpointError, SystemRefused, UsageError
from s2s.interfaces import EOS, Searchable
from s2s.models.ensemble import Ensemble
from s2s.progress import Meter, say, warn
from s2s.run import Trained
from s2s.search.formats import Format, lines_of
from s2s.search.translate import Line, LongLines, Translation, Translator, gives_attention
from s2s.training.trainer import resolve_device

_FLUSH = 1.0
"""Seconds after which finished lines are handed on."""


class Output:
    """Standard output as UTF-8 with plain line ends, whatever the locale says."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self._poll = select.poll()
        self._poll.register(stream, 0)  # errors are told in any case

    def write_line(self, text: str) -> None:
        """One line."""
        with _refusals():
            self.stream.write(text.encode() + b"\n")

    def flush(self) -> None:
        """To the reader, now."""
        with _refusals():
            self.stream.flush()

    def check(self) -> None:
        """End as a write would where the reader of a pipe has gone: nothing is computed for nobody."""
        if any(events & select.POLLERR for _, events in self._poll.poll(0)):
            signal.raise_signal(signal.SIGPIPE)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SystemRefused("standard output", error.strerror, "make room, or give --output FILE") from error


def standard_output() -> Output:
    """Raises SystemRefused where standard output is closed."""
    if sys.stdout is None:
        raise SystemRefused("standard output", "is closed", "give --output FILE")
    return Output(sys.stdout.buffer)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says, beside models and input."""

    output: Path | None = None
    overwrite: bool = False
    style: Format = "text"
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
        if not models:
            raise UsageError("--model", "none is given", runs_near(Path("runs")) or "give the directory of a run")
        if self.style == "text" and self.n_best > 1:
            what = "text has one translation for each line"
            raise UsageError("--n-best", what, "give --format tsv or --format jsonl")
        if self.style != "jsonl" and self.alignment:
            raise UsageError("--alignment", f"{self.style} has no place for links", "give --format jsonl")
        if self.dictionary is not None and not self.replace_unknown:
            raise UsageError("--dictionary", "serves unknown words only", "give --replace-unknown too")
        if self.ensemble is not None and len(models) == 1:
            raise UsageError("--ensemble", "one model is no ensemble", "give --model more than once")

    def needs_attention(self) -> str | None:
        """The option that a model without attention cannot serve, if any is given."""
        given = {
            "--alignment": self.alignment,
            "--attention": self.attention is not None,
            "--replace-unknown": self.replace_unknown,
        }
        return next((name for name, is_given in given.items() if is_given), None)

    def files(self) -> list[Path]:
        """What is read beside the input."""
        return [path for path in (self.prefix, self.require, self.forbid, self.dictionary) if path is not None]


def translate(models: Sequence[Path], source: Path | None, options: Options) -> None:
    """Translate ``source`` (None or "-": standard input) with one model, or with several as an ensemble."""
    options.check(models)
    source = None if str(source) == "-" else source
    if source is None and sys.stdin is None:
        raise UsageError("standard input", "no input", "give a file to translate")
    inputs = [*([] if source is None else [source]), *options.files()]
    sink: nullcontext[Output] | OutputFile
    if options.output is None:
        sink = nullcontext(standard_output())
    else:
        sink = OutputFile(options.output, overwrite=options.overwrite, inputs=inputs)
    if options.prefix or options.require:
        _check_counts(source, options)
    counts = TextCounts(where="standard input" if source is None else str(source))
    translator, tokenizers = prepare(models, options, counts.where)
    live = source is None and sys.stdin.isatty()
    if live:
        say("type a sentence and press Enter; end with Ctrl-D")
    began = time.monotonic()
    with sink as out:
        done = _run(translator, _asked(source, options, counts), out, options, tokenizers, live)
    for warning in (*counts.warnings(), *translator.warnings()):
        warn(warning)
    seconds = time.monotonic() - began
    if done and not live:
        say(f"translated {done} lines in {seconds:.1f} s ({done / seconds:.1f} lines/s)")


def prepare(models: Sequence[Path], options: Options, where: str) -> tuple[Translator, Tokenizers]:
    """What translates, and the vocabularies of its models; ``where`` is what messages call the input."""
    device = resolve_device(options.device)
    trained = [load(path, device, options.checkpoint) for path in models]
    model, tokenizers = together(trained, models, options.ensemble or "probability"), trained[0].tokenizers
    needing = options.needs_attention()
    if needing and not gives_attention(model, device):
        raise UsageError(needing, "this model has no attention", "use a model with attention")
    dictionary = {} if options.dictionary is None else read_dictionary(options.dictionary)
    translator = Translator(
        model,
        tokenizers,
        search_settings(models[0], options.search),
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


def together(
    trained: Sequence[Trained], paths: Sequence[Path], average: Literal["probability", "log"] = "probability"
) -> Searchable:
    """One model, or an ensemble. Raises CheckpointError where vocabularies differ."""
    for other, path in zip(trained[1:], paths[1:], strict=True):
        if other.tokenizers.fingerprint != trained[0].tokenizers.fingerprint:
            raise CheckpointError(path, f"its vocabulary is not that of {paths[0]}", "ensembles share one vocabulary")
    return trained[0].model if len(trained) == 1 else Ensemble([one.model for one in trained], average)


def _asked(source: Path | None, options: Options, counts: TextCounts) -> Iterator[Line]:
    """The lines to translate, with what is wished for them."""
    invalid: Invalid = "error" if options.strict else "replace"
    if source is None:
        lines = read_stream(sys.stdin.buffer, counts=counts, invalid=invalid)
    else:
        lines = read_lines(source, counts=counts, invalid=invalid, allow_pipe=True)
    return asked_lines(lines, counts.where, options.prefix, options.require)


def _check_counts(source: Path | None, options: Options) -> None:
    """Go through files that can be read twice: better to hear of unequal ones now than in an hour."""
    files = [path for path in (source, options.prefix, options.require) if path is not None]
    if source is not None and all(path.is_file() for path in files):
        deque(_asked(source, options, TextCounts(where=str(source))), maxlen=0)


def _run(
    translator: Translator,
    lines: Iterator[Line],
    out: Output | OutputFile,
    options: Options,
    tokenizers: Tokenizers,
    live: bool,
) -> int:
    """Translate and write; gives the number of lines. Raises Stopped where a signal ended it, all finished written."""
    at_once = live or options.stream
    picture = options.attention
    check = out.check if isinstance(out, Output) else None
    done, flushed, began = 0, time.monotonic(), time.monotonic()
    with Stop(lambda: f"after {done} lines") as stop, Meter("translating", None, quiet=at_once) as meter:
        try:
            for found in translator.translate(lines, window=1 if at_once else None, check=check):
                with stop.held():
                    for line in lines_of(found, options.style):
                        out.write_line(line)
                    done += 1
                if picture is not None and found.line:
                    draw(found, tokenizers, picture, options.overwrite)
                    picture = None
                now = time.monotonic()
                meter.advance(note=f"{done / (now - began):.1f} lines/s")
                if at_once or now - flushed >= _FLUSH:
                    out.flush()
                    flushed = now
        finally:
            out.flush()
    return done


def draw(found: Translation, tokenizers: Tokenizers, path: Path, overwrite: bool) -> None:
    """Write the attention of one translation as an SVG picture, from word to word.

    Raises UsageError for a line that was cut.
    """
    if len(found.candidates[0].parts) > 1:
        raise UsageError("--attention", f"line {found.number} was cut into parts", "begin with a shorter line")
    (part,) = found.candidates[0].parts
    assert part.hypothesis.attention is not None
    ids = [*part.hypothesis.ids, EOS]
    weights = merge_words(part.hypothesis.attention.numpy(), part.source_words, tokenizers.target.words(ids))
    source, target = tokenizers.source.decode(part.source).split(), tokenizers.target.decode(ids).split()
    with OutputFile(path, overwrite=overwrite) as file:
        file.write_line(heat_map_svg(weights, source, target, title=found.text))


@torch.no_grad()
def translate_lines(trained: Trained, lines: Sequence[str], device: torch.device, meter: Meter) -> list[str]:
    """Translations of lines that are in memory, by the model's own settings of search."""
    translator = Translator(trained.model, trained.tokenizers, trained.config.search, device)
    found = []
    for one in translator.translate(lines):
        found.append(one.text)
        meter.advance()
    for warning in translator.warnings():
        warn(warning)
    return found
