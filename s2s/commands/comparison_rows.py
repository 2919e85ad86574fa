"""One trained model measured on the test set of a comparison: a row of numbers, and its details.

A row is one JSON file, NAME-SEED.json: small, and kept in a repository as a result. The details are the translations of
the whole test set and what was attended to in the sentences that a page shows. A row is written last, and only of a
training that came to its end, so a row that is there is whole; ``made_from`` says what it was made from.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from s2s import config as configuration
from s2s.analysis.alignment import GoldLinks, Link, Weights, aer, entropy, given_weights, links_from_weights, read_links
from s2s.checkpoint import load_model, replace_file
from s2s.commands.comparison_settings import FIRST_LINES
from s2s.commands.models import load
from s2s.commands.translate import translate_lines, word_attention
from s2s.data.parallel import Parallel, require_equal_lines
from s2s.data.text import read_raw_lines
from s2s.data.tokenizer import Tokenizers
from s2s.errors import CheckpointError, DataError
from s2s.evaluation import Judge, Measured, judge
from s2s.evaluation.bands import Bands, by_length
from s2s.progress import Meter, warn
from s2s.run import Trained, run_of
from s2s.search.score import Scored, Scorer, force_at_once
from s2s.search.translate import Translator, gives_attention
from s2s.strictjson import json_line, strict_json
from s2s.training.trainer import limit_met, resolve_device, state_of

Row = dict[str, Any]
"""What stands in a row's file; docs/compare.md says what each key is."""
_RESOURCES = "resources.json"
SHIFTS = (0, 1)


class Asked(NamedTuple):
    """What every model of a comparison is asked."""

    source: Path
    target: Path
    links: Path | None
    metrics: tuple[str, ...]
    language: str
    length_bands: tuple[int, ...]
    shown: tuple[int, ...] | None


class Files(NamedTuple):
    """Where a row and its details are."""

    row: Path
    details: Path


class Reading(NamedTuple):
    """Attention under the reference translation of one test sentence, all of it pieces with EOS at the end."""

    source_words: list[int]
    """The number of the word that each piece is part of, -1 for EOS."""
    target_words: list[int]
    weights: Weights
    """(T, S)"""


# --- measuring --------------------------------------------------------------------------------------------------------


class Exam(NamedTuple):
    """What every model of a comparison is asked, as it was read."""

    pairs: list[tuple[str, str]]
    right: list[str]
    """The references as they stand in their file."""
    gold: list[GoldLinks] | None
    judges: list[Judge]
    shown: tuple[int, ...]

    @classmethod
    def of(cls, asked: Asked) -> Exam:
        """Raises DataError where files do not fit each other, UsageError for a metric that needs a missing package."""
        pairs = [(source or "", target or "") for source, target in Parallel(asked.source, asked.target)]
        for number in asked.shown or ():
            if number > len(pairs):
                what = f"has {len(pairs)} lines, and line {number} is to be shown"
                raise DataError(asked.source, what, "show another")
        gold = None if asked.links is None else read_links(asked.links)
        if gold is not None:
            require_equal_lines((str(asked.source), len(pairs)), (str(asked.links), len(gold)))
        right = list(read_raw_lines(asked.target))
        judges = [judge(name, [right], target=asked.language, language=asked.language) for name in asked.metrics]
        shown = FIRST_LINES[: len(pairs)] if asked.shown is None else asked.shown
        return cls(pairs, right, gold, judges, shown)


def measure(run: Path, asked: Asked, device: str) -> tuple[Row, dict[str, Any]]:
    """The numbers of a finished run and their details. Raises CheckpointError, and what `Exam.of` raises."""
    pairs, right, gold, judges, shown = Exam.of(asked)
    trained = load(run, resolve_device(device))
    began = time.monotonic()
    with Meter(f"translating with {run}", len(pairs)) as meter:
        lines = translate_lines(trained, [source for source, _ in pairs], meter)
    seconds = time.monotonic() - began
    lengths, bands = [len(source.split()) for source, _ in pairs], Bands(asked.length_bands)
    row = {
        "scores": [_score(measured(lines), lengths, bands) for measured in judges],
        "hypotheses_sha256": digest(lines),
        "exact": statistics.fmean(line == other for line, other in zip(lines, right, strict=True)),
        "parameters": sum(parameter.numel() for parameter in trained.model.parameters()),
        **_training(run, trained),
        **(_origins(run) if trained.config.runs_before else {}),
        "sentences_per_second": len(pairs) / seconds,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        **_attention(trained, pairs, gold),
    }
    return row, {"hypotheses": lines, "shown": list(_shown(trained, pairs, shown))}


def require_finished(run: Path) -> None:
    """Raises CheckpointError for a run whose training has not come to its end; one of averaged weights has."""
    whole = run_of(run)
    loaded = load_model(whole.path, "latest", warn)
    if "averaged" in loaded.snapshot.state:
        return
    settings = configuration.load(whole.config).training
    if limit_met(state_of(loaded.snapshot, str(run)), settings) is None:
        what = f"its training stands at update {loaded.step} and is not finished"
        raise CheckpointError(run, what, "let it finish: s2s train with its settings and this --run-dir")


def digest(lines: Sequence[str]) -> str:
    """SHA-256 of translations, as `s2s eval` gives it."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def _score(measured: Measured, lengths: Sequence[int], bands: Bands) -> dict[str, Any]:
    score, found = measured.score, zip(bands.labels, by_length(measured, lengths, bands), strict=True)
    banded = [{"band": label, **band._asdict()} for label, band in found]
    return {"name": score.name, "value": score.value, "signature": score.signature, "by_length": banded}


def _training(run: Path, trained: Trained) -> Row:
    """What the record of the training tells; of averaged weights there is none."""
    last, metrics = None, run_of(run).metrics
    if metrics.is_file():
        with metrics.open(encoding="utf-8") as lines:
            for line in lines:
                last = line if '"loss"' in line else last
    record = {} if last is None else json.loads(last)
    seconds = record.get("seconds")
    return {
        "tokens_per_second": record["target_tokens"] / seconds if seconds else None,
        "seconds": seconds,
        "updates": record.get("step", trained.update),
        "best_update": trained.update,
        "peak_memory_bytes": read_peak(run),
    }


def _origins(run: Path) -> Row:
    """The weights that a training began from and learned from, where it did, by their hashes; see `began_elsewhere`."""
    state = load_model(run, "best", warn).snapshot.state
    teacher = state.get("teacher")
    found = {
        "init_from": state.get("init_from"),
        "teacher": teacher.get("sha256") if isinstance(teacher, dict) else None,
    }
    known = {setting: sha256 for setting, sha256 in found.items() if sha256 is not None}
    return {"began_from": known} if known else {}


def _attention(trained: Trained, pairs: Sequence[tuple[str, str]], gold: Sequence[GoldLinks] | None) -> Row:
    """Entropy, where attention goes and, with gold links, AER with both shifts; empty without attention."""
    device = next(trained.model.parameters()).device
    force = partial(force_at_once, trained.model)
    reads = trained.model.sentences_before
    scorer = Scorer(force, trained.tokenizers, trained.config.search, device, attention=True, sentences_before=reads)
    scored = list(scorer.score(pairs))
    readings = [_reading(one, trained.tokenizers) for one in scored]
    found = [reading for reading in readings if reading is not None]
    if not found:
        return {}
    row = {"entropy": statistics.fmean(value for one in found for value in entropy(one.weights).tolist())}
    row |= path_of_reading([reading.weights for reading in found])
    return row if gold is None else row | {"aer": _aer(readings, gold)}


def _reading(scored: Scored, tokenizers: Tokenizers) -> Reading | None:
    """None where the model was not asked, or has no attention."""
    if scored.attention is None:
        return None
    source, target = tokenizers.source.words(scored.source_ids), tokenizers.target.words(scored.target_ids)
    return Reading(source, target, scored.attention.double().numpy())


def path_of_reading(weights: Sequence[Weights]) -> Row:
    """Where attention goes, of sentences (T, S) each; a step that reads nothing is left out.

    ``first`` and ``last``: where the most read position of the first and of the last step stands, 0 for the first and 1
    for the last of the source, mean over sentences. ``back``: the share of steps whose most read position is before
    that of the step before. Ties go to the lowest position.
    """
    back = steps = 0
    first, last = [], []
    for rows in weights:
        read = [int(np.argmax(row)) for row in rows if row.any()]
        if read:
            end = max(1, rows.shape[1] - 1)
            first.append(read[0] / end)
            last.append(read[-1] / end)
            back += sum(now < before for before, now in itertools.pairwise(read))
            steps += len(read) - 1
    if not steps:
        return {}
    return {"first": statistics.fmean(first), "last": statistics.fmean(last), "back": back / steps}


def _aer(readings: Sequence[Reading | None], gold: Sequence[GoldLinks]) -> dict[str, float]:
    """By shift; see `s2s.search.align`."""
    sure, possible = [one.sure for one in gold], [one.possible for one in gold]
    predicted = {shift: [_links(reading, shift) for reading in readings] for shift in SHIFTS}
    return {str(shift): aer(sure, possible, rows).aer for shift, rows in predicted.items()}


def _links(reading: Reading | None, shift: int) -> set[Link]:
    if reading is None:
        return set()
    return links_from_weights(given_weights(reading.weights, reading.source_words, reading.target_words, shift))


@torch.no_grad()
def _shown(trained: Trained, pairs: Sequence[tuple[str, str]], numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Sentences with their translations and what each word of these attended to, null where that cannot be shown."""
    device = next(trained.model.parameters()).device
    can = gives_attention(trained.model, device)
    translator = Translator(trained.model, trained.tokenizers, trained.config.search, device, attention=can)
    found = translator.translate_at([source for source, _ in pairs], [number - 1 for number in numbers])
    for one, number in zip(found, numbers, strict=True):
        source, target = pairs[number - 1]
        parts, attention = one.candidates[0].parts, None
        if can and len(parts) == 1:
            weights, source_words, target_words = word_attention(parts[0], trained.tokenizers)
            four = [[float(f"{weight:.4g}") for weight in row] for row in weights.tolist()]  # what is small is not zero
            attention = {"source": source_words, "target": target_words, "weights": four}
        yield {"line": number, "source": source, "reference": target, "text": one.text, "attention": attention}


# --- memory -----------------------------------------------------------------------------------------------------------


def note_peak(run: Path) -> None:
    """Keep the most memory that this process has used so far with the run, if no part of its training used more."""
    peak = peak_memory()
    if peak is not None and run.is_dir():
        replace_file(
            run / _RESOURCES, json.dumps({"peak_memory_bytes": max(peak, read_peak(run) or 0)}).encode() + b"\n"
        )


def read_peak(run: Path) -> int | None:
    """The most memory that training used, in bytes; None where nobody noted it."""
    with suppress(OSError, ValueError):
        found = strict_json((run / _RESOURCES).read_text(encoding="utf-8"))
        peak = found.get("peak_memory_bytes") if isinstance(found, dict) else None
        return peak if isinstance(peak, int) else None
    return None


def peak_memory() -> int | None:
    """Bytes: on a GPU what torch had reserved there at most, else what this process had in memory.

    Linux tells the latter; elsewhere it is None.
    """
    if torch.cuda.is_available() and torch.cuda.max_memory_reserved():
        return torch.cuda.max_memory_reserved()
    with suppress(OSError):  # not that of getrusage, which a process inherits from the one that started it
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return None


# --- files ------------------------------------------------------------------------------------------------------------


def write_row(files: Files, row: Row, details: Mapping[str, Any]) -> None:
    """Both files, each whole or not at all; the row last."""
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(files.details, json_line(details).encode() + b"\n")
    text = json.dumps(row, indent=1, allow_nan=False)
    replace_file(files.row, text.encode() + b"\n")


def read_row(path: Path, system: str, seed: int) -> Row | None:
    """A row that is there, None where there is none. Raises DataError for what is no row, or that of another system."""
    row = _read(path)
    if row is None:
        return None
    if (row.get("name"), row.get("seed")) != (system, seed):
        raise DataError(path, f"is not the row of {system} with seed {seed}", "remove it, and it is made again")
    scores = row.get("scores")
    named = isinstance(scores, list) and all(isinstance(one, dict) and {"name", "value"} <= set(one) for one in scores)
    if not named or not isinstance(row.get("hypotheses_sha256"), str):
        raise DataError(path, "has no scores", "remove it, and it is made again")
    return row


def read_details(path: Path, row: Row) -> dict[str, Any] | None:
    """The details that belong to a row; None where they are not there, or belong to another."""
    details = _read(path)
    lines = None if details is None else details.get("hypotheses")
    return details if isinstance(lines, list) and digest(lines) == row["hypotheses_sha256"] else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = strict_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(path, f"cannot be read: {error}", "remove it, and it is made again") from error
    if not isinstance(found, dict):
        raise DataError(path, "is not an object", "remove it, and it is made again")
    return found
