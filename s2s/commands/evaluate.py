"""`s2s eval`: scores of models and of files of translations, compared with a baseline and taken apart by bands."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from s2s.commands.output import results
from s2s.commands.stop import Stop
from s2s.data.parallel import require_equal_lines
from s2s.data.text import OutputFile, TextCounts, normalise, read_lines, read_raw_lines
from s2s.errors import UsageError, printable
from s2s.evaluation import Judge, Measured, judge
from s2s.evaluation.bands import FREQUENCIES, LENGTHS, Bands, by_frequency, by_length, count_words
from s2s.evaluation.report import as_json, as_text
from s2s.evaluation.scores import require_metric, tokenise
from s2s.evaluation.significance import (
    SAMPLES,
    SEED,
    TRIALS,
    approximate_randomisation,
    bootstrap_scores,
    interval,
    paired_bootstrap,
)
from s2s.evaluation.testsets import named_set
from s2s.progress import Meter, warn

if TYPE_CHECKING:  # files are scored without waiting for torch
    from s2s.run import Trained

Test = Literal["bootstrap", "randomisation", "both", "none"]
_BY = ("length", "frequency")
_DEFAULT_METRICS = ("bleu", "chrf", "ter")
_DEFAULT_LANGUAGE = "de"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says; None where nothing was given."""

    models: Sequence[Path] = ()
    hypotheses: Sequence[Path] = ()
    source: Path | None = None
    references: Sequence[Path] = ()
    test_set: str | None = None
    language_pair: str | None = None
    metrics: Sequence[str] = ()
    tok_lc: Path | None = None
    """A tokenised, lower-cased reference file, for the metric tok-lc."""
    language: str | None = None
    baseline: Path | None = None
    significance: Test = "bootstrap"
    samples: int | None = None
    trials: int | None = None
    seed: int | None = None
    by: Sequence[str] = ()
    """Of length and frequency."""
    length_bands: str | None = None
    frequency_bands: str | None = None
    frequency_from: Path | None = None
    checkpoint: str = "best"
    device: str = "auto"
    output: Path | None = None
    """Where the translations of the one model are kept."""
    report: Path | None = None
    """Where the results go; standard output by default."""
    overwrite: bool = False
    as_json: bool = False

    @property
    def systems(self) -> list[Path]:
        """Models first, then files."""
        return [*self.models, *self.hypotheses]

    @property
    def target(self) -> str:
        """The target language, where a language pair names it."""
        return self.language_pair.split("-")[1] if self.language_pair else ""

    @property
    def bootstrap(self) -> bool:
        """Whether test sets are drawn."""
        return self.significance in ("bootstrap", "both")

    @property
    def randomisation(self) -> bool:
        """Whether translations are swapped."""
        return self.significance in ("randomisation", "both")

    @property
    def draws(self) -> tuple[int, int]:
        """How many samples, and from which seed."""
        return self.samples or SAMPLES, SEED if self.seed is None else self.seed

    @property
    def rounds(self) -> tuple[int, int]:
        """How many trials, and from which seed."""
        return self.trials or TRIALS, SEED if self.seed is None else self.seed

    @cached_property
    def measures(self) -> list[str]:
        """The metrics to compute."""
        chosen = list(dict.fromkeys(self.metrics or _DEFAULT_METRICS))
        return chosen if self.tok_lc is None or "tok-lc" in chosen else [*chosen, "tok-lc"]

    def check(self) -> None:
        """Raises UsageError for what is missing or does not go together."""
        self._check_systems()
        self._check_material()
        self._check_purposes()

    def _check_systems(self) -> None:
        if not self.systems:
            raise UsageError("eval", "there is nothing to score", "give --model or --hypotheses; see s2s eval --help")
        for place, path in enumerate(self.systems):
            if path in self.systems[:place]:
                raise UsageError(path, "is given twice", "give each system once")
        if self.output is not None and (len(self.models) != 1 or self.hypotheses):
            raise UsageError("--output", "keeps the translations of one model", "give one --model only")
        if self.output is not None and self.report is not None and self.output.resolve() == self.report.resolve():
            raise UsageError("--report", "is the file of --output too", "give two files")
        if self.baseline is not None and self.baseline not in self.systems:
            given = ", ".join(map(str, self.systems))
            raise UsageError(self.baseline, "the baseline is none of the systems", f"they are {given}")
        if self.baseline is not None and (len(self.systems) == 1 or self.significance == "none"):
            raise UsageError("--baseline", "compares several systems", "give another, and a --significance")

    def _check_material(self) -> None:
        if self.language_pair is not None and not re.fullmatch("[^-]+-[^-]+", self.language_pair):
            raise UsageError("--language-pair", f"{self.language_pair!r} is no pair", "give for instance de-en")
        if self.test_set is not None:
            if self.source is not None or self.references:
                raise UsageError("--testset", "brings its own --source and --reference", "leave them out")
            if self.language_pair is None:
                raise UsageError("--testset", "needs --language-pair", "give for instance --language-pair de-en")
        elif self.models:
            if (self.source is None) != (not self.references):
                raise UsageError("eval", "--source and --reference go together", "give both or neither")
        elif not self.references:
            raise UsageError("--hypotheses", "goes with --reference or --testset", "give one of them")
        elif (self.source is None) == ("length" in self.by):
            raise UsageError("eval", "without a model, --source and --by length go together", "give both or neither")

    def _check_purposes(self) -> None:
        """Nothing is given that is unknown or would do nothing."""
        if unknown := [name for name in self.by if name not in _BY]:
            raise UsageError("--by", f"there are no bands of {unknown[0]}", f"there are {', '.join(_BY)}")
        for name in self.metrics:
            require_metric(name)
        purposes = {
            "--samples": (self.samples, self.bootstrap, "--significance bootstrap or both"),
            "--trials": (self.trials, self.randomisation, "--significance randomisation or both"),
            "--seed": (self.seed, self.bootstrap or self.randomisation, "a --significance"),
            "--length-bands": (self.length_bands, "length" in self.by, "--by length"),
            "--frequency-bands": (self.frequency_bands, "frequency" in self.by, "--by frequency"),
            "--frequency-from": (self.frequency_from, "frequency" in self.by, "--by frequency"),
            "--language": (self.language, "tok-lc" in self.measures, "--metric tok-lc"),
            "--checkpoint": (None if self.checkpoint == "best" else self.checkpoint, bool(self.models), "--model"),
            "--device": (None if self.device == "auto" else self.device, bool(self.models), "--model"),
        }
        for name, (given, has_purpose, needed) in purposes.items():
            if given is not None and not has_purpose:
                raise UsageError(name, "does nothing here", f"it needs {needed}")
        if self.randomisation and len(self.systems) == 1:
            raise UsageError(
                "--significance", "randomisation compares several systems", "give another, or leave it out"
            )
        if "frequency" in self.by and not self.models and self.frequency_from is None:
            raise UsageError("--by frequency", "needs a training text", "give --frequency-from FILE")


class Material(NamedTuple):
    """What is translated, and what is right."""

    source: list[str] | None
    """Normalised; None where nobody needs it."""
    references: list[list[str]]
    """As sacreBLEU reads them; line n of each belongs to line n of the source."""
    source_path: Path | None
    reference_paths: list[Path]
    language: str
    """The target language, where anything names it."""


@dataclass(frozen=True)
class System:
    """One set of translations."""

    name: str
    lines: list[str]
    update: int | None = None
    """Of the model that made them."""


class Words(NamedTuple):
    """What bands of frequency need."""

    text: Path
    """Where the words were counted."""
    frequency: Mapping[str, int]
    bands: Bands


class Task(NamedTuple):
    """Everything read, loaded and found to fit together."""

    models: list[Trained]
    material: Material
    files: list[System]
    judges: list[Judge]
    lengths: Bands | None
    words: Words | None

    @property
    def inputs(self) -> list[Path]:
        """What no output may replace."""
        source, words = self.material.source_path, self.words
        return [*self.material.reference_paths, *([source] if source else []), *([words.text] if words else [])]


def evaluate(options: Options) -> None:
    """Score every system and print, or write, what was found. Raises UsageError for what does not go together."""
    options.check()
    task = _task(options)
    inputs = [*task.inputs, *options.hypotheses, *([options.tok_lc] if options.tok_lc else [])]
    sink = results(options.report, options.overwrite, inputs)
    kept: OutputFile | nullcontext[None] = nullcontext()
    if options.output is not None:
        kept = OutputFile(options.output, overwrite=options.overwrite, inputs=inputs)
    with Stop(lambda: "before the results were written"), sink as out:
        with kept as keep:
            systems = [*_translated(options, task), *task.files]
            if keep is not None:
                for line in systems[0].lines:
                    keep.write_line(line)
        found = _found(options, task, systems)
        for line in (as_json(found),) if options.as_json else as_text(found):
            out.write_line(line)
        out.flush()


# --- what goes in -----------------------------------------------------------------------------------------------------


def _task(options: Options) -> Task:
    lengths = Bands.parse(options.length_bands) if options.length_bands is not None else Bands(LENGTHS)
    models = _models(options) if options.models else []
    material = _material(options, models)
    files = [System(printable(path), _hypotheses(path, material)) for path in options.hypotheses]
    if "frequency" in options.by and len(material.references) > 1:
        what = f"compares with one reference, and there are {len(material.references)}"
        raise UsageError("--by frequency", what, "give one of them as --reference")
    words = _words(options, models, material.language) if "frequency" in options.by else None
    judges = [_judge(name, options, material) for name in options.measures]
    return Task(models, material, files, judges, lengths if "length" in options.by else None, words)


def _models(options: Options) -> list[Trained]:
    from s2s.commands.models import load
    from s2s.training.trainer import resolve_device

    device = resolve_device(options.device)
    return [load(path, device, options.checkpoint) for path in options.models]


def _material(options: Options, models: Sequence[Trained]) -> Material:
    """The source, wherever somebody needs it, and the references; the run's test set where nothing else is given."""
    source, references = options.source, list(options.references)
    if options.test_set is not None:
        assert options.language_pair is not None
        source, references = named_set(options.test_set, options.language_pair)
    elif not references:
        source, reference = _one_test_set(options, models)
        references = [reference]
    right = [list(read_raw_lines(path)) for path in references]
    for path, lines in zip(references[1:], right[1:], strict=True):
        require_equal_lines((str(references[0]), len(right[0])), (str(path), len(lines)))
    language = options.target or _language(models)
    if source is None or not (models or "length" in options.by):
        return Material(None, right, None, references, language)
    counts = TextCounts()
    lines = [line or "" for line in read_lines(source, counts=counts, invalid="replace", allow_pipe=True)]
    require_equal_lines((str(source), len(lines)), (str(references[0]), len(right[0])))
    for warning in counts.warnings():
        warn(warning)
    return Material(lines, right, source, references, language)


def _language(models: Sequence[Trained]) -> str:
    """The target language that the settings of the runs name, if any do: they are scored on one text."""
    named = {trained.config.data.language for trained in models} - {None}
    if len(named) > 1:
        what = f"the runs have different target languages, {', '.join(sorted(map(str, named)))}"
        raise UsageError("eval", what, "give --language-pair")
    return next(iter(named), None) or ""


def _one_test_set(options: Options, models: Sequence[Trained]) -> tuple[Path, Path]:
    sets = set()
    for path, trained in zip(options.models, models, strict=True):
        test = trained.config.data.test
        if test is None:
            raise UsageError(path, "its settings name no data.test", "give --source and --reference")
        sets.add((Path(test.source), Path(test.target)))
    if len(sets) > 1:
        raise UsageError("eval", "the runs have different test sets", "give --source and --reference")
    return sets.pop()


def _hypotheses(path: Path, material: Material) -> list[str]:
    lines = list(read_raw_lines(path))
    require_equal_lines((str(path), len(lines)), (str(material.reference_paths[0]), len(material.references[0])))
    return lines


def _judge(name: str, options: Options, material: Material) -> Judge:
    if name != "tok-lc":
        return judge(name, material.references, target=material.language)
    language = options.language or material.language or _DEFAULT_LANGUAGE
    official = None
    if options.tok_lc is not None:
        official = list(read_raw_lines(options.tok_lc))
        lines = len(material.references[0])
        require_equal_lines((str(options.tok_lc), len(official)), (str(material.reference_paths[0]), lines))
    return judge(name, material.references, tokenised=official, language=language)


def _words(options: Options, models: Sequence[Trained], language: str) -> Words:
    """How often every word is in the training text: the one that is named, or that of the runs."""
    edges, text = options.frequency_bands, options.frequency_from
    bands = Bands.parse(edges) if edges is not None else Bands(FREQUENCIES)
    if text is None:
        texts = [{Path(files.target) for files in trained.config.data.corpora} for trained in models]
        if any(own != texts[0] for own in texts):
            raise UsageError("--by frequency", "the runs learned from different texts", "give --frequency-from FILE")
        if len(texts[0]) > 1:
            raise UsageError("--by frequency", "the run learned from several texts", "give --frequency-from FILE")
        (text,) = texts[0]
    lines = read_lines(text, counts=TextCounts(), invalid="replace", allow_pipe=True)
    frequency = count_words(tokenise(line, language) for line in lines if line)
    return Words(text, frequency, bands)


def _translated(options: Options, task: Task) -> list[System]:
    if not task.models:
        return []
    from s2s.commands.translate import translate_lines

    assert task.material.source is not None
    systems = []
    for path, trained in zip(options.models, task.models, strict=True):
        with Meter(f"translating with {path}", len(task.material.source)) as meter:
            lines = translate_lines(trained, task.material.source, meter)
        systems.append(System(printable(path), lines, trained.update))
    return systems


# --- what comes out ---------------------------------------------------------------------------------------------------


def _found(options: Options, task: Task, systems: Sequence[System]) -> dict[str, Any]:
    """All results as a plain value; docs/evaluate.md says what each key is."""
    grid = _measured(systems, task.judges)
    scores = [[_plain(one) for one in row] for row in grid]
    base = options.systems.index(options.baseline) if options.baseline is not None else 0
    if options.bootstrap:
        _add_bootstrap(scores, grid, base, options)
    if options.randomisation:
        _add_randomisation(scores, grid, base, options)
    if task.lengths is not None:
        _add_lengths(scores, grid, task.material, task.lengths)
    return {
        **_circumstances(options, task, systems, base),
        "systems": [
            {
                "name": system.name,
                "update": system.update,
                "hypotheses_sha256": hashlib.sha256("".join(f"{line}\n" for line in system.lines).encode()).hexdigest(),
                "scores": row,
                "words": None if task.words is None else _word_bands(system, task.words, task.material),
            }
            for system, row in zip(systems, scores, strict=True)
        ],
    }


def _circumstances(options: Options, task: Task, systems: Sequence[System], base: int) -> dict[str, Any]:
    """What all systems have in common."""
    compares = len(systems) > 1 and options.significance != "none"
    source, lengths, words = task.material.source_path, task.lengths, task.words
    return {
        "sentences": len(systems[0].lines),
        "references": [printable(path) for path in task.material.reference_paths],
        "source": None if source is None else printable(source),
        "significance": {
            "baseline": systems[base].name if compares else None,
            "bootstrap": dict(zip(("samples", "seed"), options.draws, strict=True)) if options.bootstrap else None,
            "randomisation": dict(zip(("trials", "seed"), options.rounds, strict=True))
            if options.randomisation
            else None,
        },
        "length_bands": None if lengths is None else lengths.labels,
        "frequency": None if words is None else {"text": printable(words.text), "bands": words.bands.labels},
    }


def _measured(systems: Sequence[System], judges: Sequence[Judge]) -> list[list[Measured]]:
    """A row for each system, a column for each metric."""
    grid = []
    with Meter("scoring", len(systems)) as meter:
        for system in systems:
            grid.append([measure(system.lines) for measure in judges])
            meter.advance()
    return grid


def _plain(measured: Measured) -> dict[str, Any]:
    score = measured.score
    nothing = {"interval": None, "against_baseline": None, "by_length": None}
    return {"name": score.name, "value": score.value, "signature": score.signature, **nothing}


Scores = list[list[dict[str, Any]]]
Grid = list[list[Measured]]


def _against(scores: Scores, place: int, metric: int, base: int) -> dict[str, Any]:
    """Where the comparison of one score with the baseline's is written."""
    entry, other = scores[place][metric], scores[base][metric]
    if entry["against_baseline"] is None:
        difference = entry["value"] - other["value"]
        entry["against_baseline"] = {"difference": difference, "bootstrap": None, "randomisation": None}
    found: dict[str, Any] = entry["against_baseline"]
    return found


def _add_bootstrap(scores: Scores, grid: Grid, base: int, options: Options) -> None:
    """Intervals for all, p-values for all but the baseline."""
    flat = bootstrap_scores([one for row in grid for one in row], *options.draws)
    drawn = flat.reshape(len(grid), len(grid[0]), -1)
    for place, row in enumerate(grid):
        for metric, measured in enumerate(row):
            scores[place][metric]["interval"] = interval(drawn[place, metric])._asdict()
            if place != base:
                found = paired_bootstrap(measured, grid[base][metric], drawn[place, metric], drawn[base, metric])
                plain = {**found._asdict(), "difference": found.difference._asdict()}
                _against(scores, place, metric, base)["bootstrap"] = plain


def _add_randomisation(scores: Scores, grid: Grid, base: int, options: Options) -> None:
    places = [(place, metric) for place in range(len(grid)) if place != base for metric in range(len(grid[0]))]
    systems, baselines = [grid[place][metric] for place, metric in places], [grid[base][metric] for _, metric in places]
    found = approximate_randomisation(systems, baselines, *options.rounds)
    for (place, metric), p in zip(places, found, strict=True):
        _against(scores, place, metric, base)["randomisation"] = {"p": p}


def _add_lengths(scores: Scores, grid: Grid, material: Material, bands: Bands) -> None:
    assert material.source is not None
    lengths = [len(line.split()) for line in material.source]
    for row, measured in zip(scores, grid, strict=True):
        for entry, one in zip(row, measured, strict=True):
            found = zip(bands.labels, by_length(one, lengths, bands), strict=True)
            entry["by_length"] = [{"band": label, **band._asdict()} for label, band in found]


def _word_bands(system: System, words: Words, material: Material) -> list[dict[str, Any]]:
    """Both texts are normalised as the training text is, so that a word is the same word in all of them."""
    texts, language = (system.lines, material.references[0]), material.language
    found, right = ([tokenise(normalise(line)[0], language) for line in lines] for lines in texts)
    counted = by_frequency(found, right, words.frequency, words.bands)
    return [
        {"band": label, **band._asdict(), "precision": band.precision, "recall": band.recall, "f": band.f}
        for label, band in zip(words.bands.labels, counted, strict=True)
    ]
