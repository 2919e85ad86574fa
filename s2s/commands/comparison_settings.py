"""The settings of a comparison, and the trainings that they mean: every recipe x every choice of the axes x every seed.

The file is read as the files of trainings are, `extends` and all. `s2s compare RUN RUN ...` is a comparison too, with
``runs`` and nothing to train.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from s2s import config as configuration
from s2s import configfile
from s2s.checkpoint import replace_file
from s2s.commands.train import resolved
from s2s.config import Config
from s2s.configfile import FilePath, NewPath
from s2s.data.prepare import DataSettings, PairFiles
from s2s.errors import CheckpointError, ConfigError, UsageError
from s2s.evaluation import MetricName
from s2s.evaluation.bands import LENGTHS, Bands
from s2s.evaluation.scores import LANGUAGE
from s2s.evaluation.significance import SAMPLES, SEED
from s2s.run import Run, best_weights, run_of
from s2s.settings import Settings

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]
ColumnName = Literal[
    "bleu", "chrf", "ter", "tok-lc", "tokenised", "exact", "difference", "p", "better", "aer-0", "aer-1", "entropy",
    "first", "last", "back", "tokens", "sentences", "memory", "parameters", "updates", "minutes",
]  # fmt: skip
"""The columns that a table can have; docs/compare.md says what each is."""
COLUMNS: tuple[ColumnName, ...] = (
    "bleu", "chrf", "difference", "p", "better", "aer-0", "entropy", "tokens", "sentences", "memory", "parameters",
)  # fmt: skip
FIRST_LINES = (1, 2, 3)
"""The lines of the test set that a page shows where nobody names others."""


class ComparisonSettings(Settings):
    """A comparison of mechanisms, sizes or whatever else differs between trainings."""

    title: str = "Comparison"
    """The heading of table and page."""
    introduction: str = ""
    """What stands under the heading; a blank line ends a paragraph."""
    recipes: tuple[FilePath, ...] = ()
    """Settings of trainings, as `s2s train --config` takes them. A system is named after its file."""
    axes: dict[Label, dict[Label, tuple[str, ...]]] = {}  # noqa: RUF012 - pydantic copies it
    """What else varies: of each axis its choices, each a list of KEY=VALUE over every recipe; every recipe meets every
    choice of every axis, and the choices join the name of the system. In a value {seed} is the seed of the training."""
    overrides: tuple[str, ...] = ()
    """KEY=VALUE over every recipe; the choices of the axes come after these. In a value {seed} is the seed of the
    training, as in init_from=runs/first-{seed}."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (1, 2, 3)
    """A training each, of every system."""
    runs: tuple[FilePath, ...] = ()
    """Finished runs that join the comparison; a system is named after its directory without -SEED at the end."""
    baseline: str | None = None
    """The system that the others are compared with; null: the first."""
    alike: bool = True
    """Let matrices that recipes have in common start from the same values: those of the baseline under that seed."""
    test: PairFiles | None = None
    """What is translated and scored, with gold word links where there are any; null: the test set of the recipes."""
    metrics: Annotated[tuple[MetricName, ...], Field(min_length=1)] = ("bleu", "chrf", "ter")
    """What is measured; differences from the baseline are tested by the first."""
    language: Annotated[str | None, Field(pattern=LANGUAGE)] = None
    """The target language: its rules are those of tok-lc, and BLEU cuts zh, ja and ko as sacreBLEU does; null: the
    data.language of the recipes, or else German."""
    columns: Annotated[tuple[ColumnName, ...], Field(min_length=1)] = COLUMNS
    """The columns of the table."""
    length_bands: Annotated[tuple[int, ...], Field(min_length=1)] = LENGTHS
    """Words of a source from which the next band begins: 10, 20 is 0-9, 10-19 and 20+."""
    shown: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Lines of the test set, from 1, that the page shows through every system, with what was attended to; null: the
    first three, as far as there are."""
    samples: Annotated[int, Field(ge=100, le=1_000_000)] = SAMPLES
    """Test sets that the paired bootstrap draws."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of each training; null: those of this machine, divided by --jobs."""
    rows: NewPath | None = None
    """The folder of the result files, one for each training; null: rows, in the output folder."""
    details: NewPath | None = None
    """The folder of their translations, which tests in pairs need, and of what the page shows; null: details, in the
    output folder."""
    table: NewPath | None = None
    """The Markdown file with the table; null: comparison.md, in the output folder."""
    page: NewPath | None = None
    """The page; null: comparison.html, in the output folder."""
    result: NewPath | None = None
    """The result file; null: comparison.json, in the output folder."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.recipes and not self.runs:
            raise ValueError("there is nothing to compare; name recipes or runs")
        for name, given in (("seeds", self.seeds), ("metrics", self.metrics), ("columns", self.columns)):
            if len(set(given)) < len(given):
                raise ValueError(f"{name}: something is named twice")
        stems = [Path(recipe).stem for recipe in self.recipes]
        if twice := next((stem for place, stem in enumerate(stems) if stem in stems[:place]), None):
            raise ValueError(f"recipes: two files are called {twice}; systems are named after them")
        if empty := next((axis for axis, choices in self.axes.items() if not choices), None):
            raise ValueError(f"axes.{empty}: has no choices")
        if list(self.length_bands) != sorted(set(self.length_bands)) or self.length_bands[0] < 1:
            raise ValueError("length_bands: must rise from 1 or more")
        needed = {"bleu", "chrf", "ter", "tok-lc", "tokenised"} & set(self.columns) - set(self.metrics)
        if needed:
            raise ValueError(f"columns: {sorted(needed)[0]} is not among the metrics")
        return self

    @property
    def target(self) -> str:
        """The target language."""
        return self.language or "de"

    @property
    def bands(self) -> Bands:
        """The bands of source length."""
        return Bands(self.length_bands)

    @property
    def lines_shown(self) -> tuple[int, ...]:
        """Lines that the page shows, where the test set has them."""
        return FIRST_LINES if self.shown is None else self.shown

    @property
    def bootstrap(self) -> tuple[int, int]:
        """How many test sets are drawn, and from which seed."""
        return self.samples, SEED


@dataclass(frozen=True)
class Cell:
    """One system with one seed: a training, or a run that is there already."""

    system: str
    seed: int
    run: Path
    config: Config
    recipe: Path | None = None
    """None of a run that is there already."""
    overrides: tuple[str, ...] = ()
    """Over the recipe, the seed among them."""
    first: First | None = None
    """Whose first matrices it shares; None of the system that others start like."""

    @property
    def name(self) -> str:
        """The name of its files."""
        return _file_name(self.system, self.seed)


@dataclass(frozen=True)
class First:
    """The settings that other systems start like, and where they are written for the trainings to read."""

    path: Path
    config: Config

    def write(self) -> None:
        """Put the file there."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, configuration.save_text(self.config).encode())


def read_settings(path: Path) -> ComparisonSettings:
    """A checked file. Raises ConfigError with every mistake."""
    document = configfile.load(path)
    if "model" in document.values:
        todo = f"train it, s2s train --config {path}, or name it under recipes: of a comparison (docs/compare.md)"
        raise ConfigError(path, "these are the settings of one training, not of a comparison", todo)
    return configfile.validate(document, ComparisonSettings)


def cells_of(settings: ComparisonSettings, output: Path) -> list[Cell]:
    """Every training, seed by seed, and then every run that is there. Raises ConfigError for what cannot be trained."""
    systems = list(_systems(settings))
    firsts = _firsts(settings, systems, output) if settings.alike else {}
    trained = [_cell(system, seed, firsts.get(system.name), output) for seed in settings.seeds for system in systems]
    found = [*trained, *_given(settings.runs)]
    for place, cell in enumerate(found):
        if cell.recipe is None:
            _check_siblings(cell, [other for other in found[:place] if other.system == cell.system])
        twin = next((other for other in found[:place] if other.name == cell.name), None)
        if twin is not None and cell.recipe is not None:
            what = f"{twin.system} and {cell.system} have files of one name, {cell.name}"
            raise ConfigError("axes", what, "rename a choice")
        if twin is not None:
            raise ConfigError("runs", f"there are two called {cell.name}", "give one of them, or rename it")
    return found


def baseline_of(settings: ComparisonSettings, cells: Sequence[Cell], asked: str | None = None) -> str:
    """The name of the baseline: the one ``asked`` for, or that of the settings, which others start like in any case.

    Raises ConfigError where there is no such system.
    """
    names = list(dict.fromkeys(cell.system for cell in cells))
    for name in (settings.baseline, asked):
        if name is not None and name not in names:
            close = configfile.did_you_mean(name, names)
            raise ConfigError("baseline", f"there is no system {name}{close}", f"they are {', '.join(names)}")
    return asked or settings.baseline or names[0]


def measured_on(settings: ComparisonSettings, cells: Sequence[Cell]) -> PairFiles:
    """What all systems are measured on. Raises ConfigError where they have none, or different ones."""
    if settings.test is not None:
        return settings.test
    found = {cell.name: cell.config.data.test for cell in cells}
    first, files = next(iter(found.items()))
    if files is None:
        raise ConfigError("test", f"{first} names no data.test", "name the test set of the comparison")
    for name, other in found.items():
        if other is None or (other != files and contents(other) != contents(files)):
            raise ConfigError("test", f"{name} and {first} have different test sets", "name that of the comparison")
    return files


def with_language(settings: ComparisonSettings, cells: Sequence[Cell]) -> ComparisonSettings:
    """The settings with the target language that systems name, if any do, for all are scored on one text.

    Raises ConfigError where they name different ones.
    """
    named = {cell.config.data.language for cell in cells} - {None}
    if settings.language is not None or not named:
        return settings
    if len(named) > 1:
        what = f"the systems have different ones: {', '.join(sorted(map(str, named)))}"
        raise ConfigError("language", what, "name that of the comparison")
    return settings.model_copy(update={"language": named.pop()})


def contents(files: PairFiles) -> dict[str, str]:
    """SHA-256 of each file of a corpus. Raises ConfigError for one that cannot be read."""
    return {side: _digest(path) for side, path in files.paths().items()}


def fingerprint(cell: Cell, settings: ComparisonSettings, test: Mapping[str, str]) -> str:
    """What a row follows from: settings but for names of files, the contents of those, and what is measured.

    Settings that have their default do not count, so that a row stays good when s2s gets more settings. Runs that a
    training begins from or learns from count by their names; see `began_elsewhere`.
    """
    data, before = cell.config.data, cell.config.runs_before
    corpora = [
        contents(files) for files in (*data.corpora, data.valid) if files is not None and cell.recipe is not None
    ]
    trained = {
        "config": cell.config.model_dump(mode="json", exclude_defaults=True, exclude=_FILES),
        "limits": _limits(data),
        "corpora": corpora,
        "first": None if cell.first is None else _start(cell.first.config),
        "from": before["init_from"].name if "init_from" in before else None,
        "run": None if cell.recipe is not None else run_of(cell.run).identity(),
    } | ({"teacher": before["teacher"].name} if "teacher" in before else {})
    language = [settings.target] if settings.target != "de" else []
    return _hash([trained, dict(test), settings.metrics, settings.length_bands, settings.lines_shown, *language])


_FILES: Any = {"data": True, "init_like": True, "init_from": True, "objective": {"teacher": {"run"}}}
"""Settings that name files and runs; what is in these is what counts."""


def _limits(data: DataSettings) -> dict[str, object]:
    """What decides which pairs are learned from and which checkpoint is the best.

    Most only where they are not the default, so that the hash of older rows, made before there were these, still holds.
    """
    named = {"language", "temperature", "max_ratio", "drop_copies", "drop_repeats"}
    filters = data.model_dump(mode="json", exclude_defaults=True, include=named)
    if isinstance(data.train, tuple):
        filters["corpora"] = [[files.weight, files.tag] for files in data.train]
    return data.model_dump(mode="json", include={"max_length", "invalid_utf8"}) | filters


def began_elsewhere(cell: Cell, weights: Mapping[str, str]) -> Path | None:
    """The run that a cell begins from or learns from, where it has other ``weights`` now than a row of the cell says.

    ``weights``: SHA-256 by setting, what a row calls ``began_from``. A run that is not there any more is as it was.
    """
    for setting, run in cell.config.runs_before.items():
        if setting in weights and _weights(run) not in (None, weights[setting]):
            return run
    return None


@cache
def _weights(run: Path) -> str | None:
    try:
        return best_weights(run)[1]
    except CheckpointError:
        return None


def require_same_training(cell: Cell) -> None:
    """Raises ConfigError where the run of a cell was begun under settings that make it another training.

    Those of which `s2s train` compares the contents, or knows more than their names, are left to it.
    """
    if cell.recipe is None or not (run := Run(cell.run)).config.is_file():
        return
    before, now = (one.model_dump(mode="json") for one in (configuration.load(run.config), resolved(cell.config)))
    for change in configfile.differences(before, now):
        key, old, new = change
        moved = key == "init_like" and old and new and Path(str(old)).name == Path(str(new)).name
        mark = configuration.may_change(key)
        if mark is None or (mark.decides and not moved):
            what = f"was trained under other settings: {change}"
            raise ConfigError(cell.run, what, "restore them, give another --output, or remove that run")


# --- trainings --------------------------------------------------------------------------------------------------------


class _System(NamedTuple):
    """A recipe with its choices."""

    name: str
    recipe: Path
    choices: tuple[str, ...]
    overrides: tuple[str, ...]

    def under(self, seed: int) -> tuple[str, ...]:
        """The overrides of the training that has this seed."""
        return (*(override.replace("{seed}", str(seed)) for override in self.overrides), f"seed={seed}")


def _systems(settings: ComparisonSettings) -> Iterator[_System]:
    axes = [list(choices.items()) for choices in settings.axes.values()]
    for recipe in map(Path, settings.recipes):
        for chosen in itertools.product(*axes):
            labels = tuple(label for label, _ in chosen)
            changes = (*settings.overrides, *(change for _, changes in chosen for change in changes))
            yield _System(" ".join([recipe.stem, *labels]), recipe, labels, changes)


def _firsts(settings: ComparisonSettings, systems: Sequence[_System], output: Path) -> dict[str, First]:
    """For every system but those that others start like: the system of the baseline's recipe with the same choices."""
    if not systems:
        return {}
    baseline = next((system for system in systems if system.name == settings.baseline), systems[0])
    heads = {system.choices: system for system in systems if system.recipe == baseline.recipe}
    found: dict[str, First] = {}
    for choices, head in heads.items():
        config = _config(head, head.under(0))  # the seed is that of each training
        path = output / "first" / f"{head.name.replace(' ', '-')}-{_hash(_start(config))[:8]}.yaml"
        others = [other.name for other in systems if other.choices == choices and other is not head]
        found |= dict.fromkeys(others, First(path, config))
    return found


def _start(config: Config) -> dict[str, object]:
    """The settings that decide the first weights."""
    return config.model_dump(mode="json", exclude_defaults=True, include={"model", "tokenizer"})


def _cell(system: _System, seed: int, first: First | None, output: Path) -> Cell:
    overrides = system.under(seed)
    if first is not None:
        overrides = (*overrides, f"init_like={configfile.inline(str(first.path))}")
    config, run = _config(system, overrides), output / "runs" / _file_name(system.name, seed)
    return Cell(system.name, seed, run, config, system.recipe, overrides, first)


def _config(system: _System, overrides: Sequence[str]) -> Config:
    try:
        return configuration.load(system.recipe, overrides)
    except ConfigError as error:
        given = f"{configfile.Place()}: "  # where there is no file
        problems = tuple(
            f"{system.name}: {problem.replace(given, 'overrides and axes: ', 1)}" for problem in error.problems
        )
        raise ConfigError("", problems[0], problems=problems) from error


def _file_name(system: str, seed: int) -> str:
    return f"{system.replace(' ', '-')}-{seed}"


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --- runs that are there ----------------------------------------------------------------------------------------------


def _given(runs: Sequence[str]) -> list[Cell]:
    cells: list[Cell] = []
    for path in map(Path, runs):
        config = configuration.load(run_of(path).config)
        cells.append(Cell(_system_of(path, config.seed), config.seed, path, config))
    return cells


def _system_of(run: Path, seed: int) -> str:
    name = run.resolve().name
    return name.removesuffix(f"-{seed}") or name


def _without_files(config: Config) -> dict[str, object]:
    """What seeds of one system have in common."""
    return config.model_dump(mode="json", exclude=_FILES | {"seed": True}) | {"data": _limits(config.data)}


def _check_siblings(cell: Cell, siblings: Sequence[Cell]) -> None:
    """Seeds of one system differ in nothing but the seed, where the files were, and their first stages and teachers."""
    for other in siblings:
        before, now = (_without_files(resolved(one.config)) for one in (other, cell))
        changed = configfile.differences(before, now)
        if changed:
            key, old, new = changed[0]
            is_now, was = configfile.inline(new), configfile.inline(old)
            what = f"is called {cell.system} as {other.run} is, but {key} is {is_now} and not {was}"
            raise UsageError(cell.run, what, "rename one of the directories")
        if other.seed == cell.seed:
            raise UsageError(cell.run, f"has seed {cell.seed} of {cell.system}, as {other.run} has", "give one of them")


@cache
def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(path, f"cannot be read: {error.strerror}", "check the path") from error
