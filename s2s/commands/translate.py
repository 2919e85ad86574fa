"""`s2s translate`: a text file or standard input, line for line, through a trained model."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import torch

from s2s.analysis.alignment import merge_words
from s2s.analysis.heatmap import heat_map_svg
from s2s.data.text import Invalid, OutputFile, TextCounts, read_lines, read_stream
from s2s.data.tokenizer import Tokenizers
from s2s.errors import CheckpointError, SystemRefused, UsageError
from s2s.interfaces import Searchable
from s2s.models.ensemble import Ensemble
from s2s.progress import Meter, say, warn
from s2s.run import Trained, load_trained
from s2s.search.beam import SearchSettings
from s2s.search.translate import Translation, Translator
from s2s.training.trainer import resolve_device


class Output:
    """Standard output as UTF-8 with plain line ends, whatever the locale says."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def write_line(self, text: str) -> None:
        """One line."""
        with _refusals():
            self.stream.write(text.encode() + b"\n")

    def flush(self) -> None:
        """To the reader, now."""
        with _refusals():
            self.stream.flush()


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


def translate(
    models: Sequence[Path],
    source: Path | None = None,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    checkpoint: str = "best",
    beam: int | None = None,
    device: str = "auto",
    strict: bool = False,
    attention: Path | None = None,
) -> None:
    """Translate ``source`` (None or "-": standard input) with one model, or with several as an ensemble.

    ``attention``: an SVG file for a picture of what the first line that is not blank attended to.
    """
    from_standard = source is None or str(source) == "-"
    if from_standard and sys.stdin is None:
        raise UsageError("standard input", "no input", "give a file to translate")
    where = resolve_device(device)
    inputs = [] if from_standard else [Path(str(source))]
    sink = nullcontext(standard_output()) if output is None else OutputFile(output, overwrite=overwrite, inputs=inputs)
    trained = [load_trained(path, where, checkpoint) for path in models]
    settings = trained[0].config.search
    if beam is not None:
        settings = SearchSettings.model_validate(settings.model_dump() | {"beam": beam})
    model, tokenizers = together(trained, models), trained[0].tokenizers
    translator = Translator(model, tokenizers, settings, where, attention=attention is not None, warn=warn)
    counts = TextCounts()
    invalid: Invalid = "error" if strict else "replace"
    if from_standard:
        lines = read_stream(sys.stdin.buffer, counts=counts, invalid=invalid)
        live = sys.stdin.isatty()
    else:
        lines = read_lines(inputs[0], counts=counts, invalid=invalid, allow_pipe=True)
        live = False
    if live:
        say("type a sentence and press Enter; end with Ctrl-D")
    began, done = time.monotonic(), 0
    with sink as out, Meter("translating", None, quiet=live) as meter:
        for found in translator.translate(lines, window=1 if live else None):
            out.write_line(found.text)
            if attention is not None and found.source:
                draw(found, tokenizers, attention, overwrite)
                attention = None
            done += 1
            meter.advance()
            if live:
                out.flush()
        out.flush()
    for warning in counts.warnings():
        warn(warning)
    seconds = time.monotonic() - began
    if done and not live:
        say(f"translated {done} lines in {seconds:.1f} s ({done / seconds:.1f} lines/s)")


def draw(found: Translation, tokenizers: Tokenizers, path: Path, overwrite: bool) -> None:
    """Write the attention of one translation as an SVG picture, from word to word.

    Raises UsageError if there is none.
    """
    if found.attention is None:
        raise UsageError(
            "--attention", "this model has no attention, or the line was cut", "use a model with attention"
        )
    source_words, target_words = tokenizers.source.words(found.source), tokenizers.target.words(found.target)
    weights = merge_words(found.attention.numpy(), source_words, target_words)
    source, target = tokenizers.source.decode(found.source).split(), tokenizers.target.decode(found.target).split()
    with OutputFile(path, overwrite=overwrite) as file:
        file.write_line(heat_map_svg(weights, source, target, title=found.text))


def together(trained: Sequence[Trained], paths: Sequence[Path]) -> Searchable:
    """One model, or an ensemble. Raises CheckpointError where vocabularies differ."""
    for other, path in zip(trained[1:], paths[1:], strict=True):
        if other.tokenizers.fingerprint != trained[0].tokenizers.fingerprint:
            raise CheckpointError(path, f"its vocabulary is not that of {paths[0]}", "ensembles share one vocabulary")
    return trained[0].model if len(trained) == 1 else Ensemble([one.model for one in trained])


@torch.no_grad()
def translate_lines(trained: Trained, lines: Sequence[str], device: torch.device, meter: Meter) -> list[str]:
    """Translations of lines that are in memory, by the model's own settings of search."""
    translator = Translator(trained.model, trained.tokenizers, trained.config.search, device, warn=warn)
    found = []
    for one in translator.translate(lines):
        found.append(one.text)
        meter.advance()
    return found
