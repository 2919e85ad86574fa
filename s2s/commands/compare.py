"""`s2s compare`: a grid of trainings, or runs that are there: what is missing is trained, and all of it is measured.

    OUTPUT/
      comparison.json  comparison.md  comparison.html      what was found
      rows/NAME-SEED.json                                  a row for each training that came to its end
      details/NAME-SEED.json                               its translations, and what the page shows of it
      runs/NAME-SEED/                                      its run
      logs/NAME-SEED.txt                                   what it said
      first/NAME.yaml                                      the settings that the others start like

Nothing is kept in memory: what is finished is what has a row, and the same command again goes on from there. What was
found is written anew after every row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from s2s.checkpoint import RunLock, replace_file
from s2s.commands.comparison_results import System, Unfinished, markdown, page, result
from s2s.commands.comparison_rows import Asked, Exam, Files, read_details, read_row
from s2s.commands.comparison_settings import (
    Cell,
    ComparisonSettings,
    baseline_of,
    began_elsewhere,
    cells_of,
    contents,
    fingerprint,
    measured_on,
    read_settings,
    require_same_training,
    with_language,
)
from s2s.commands.comparison_work import Ended, Task, visible_devices, work
from s2s.commands.stop import Stop
from s2s.data.prepare import PairFiles
from s2s.errors import S2SError, Stopped, UsageError
from s2s.evaluation.scores import LANGUAGE
from s2s.progress import say, warn

_NOT_YET = "not yet run"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says, beside what is to be compared."""

    output: Path | None = None
    baseline: str | None = None
    source: Path | None = None
    reference: Path | None = None
    links: Path | None = None
    language: str | None = None
    jobs: int = 1
    train: bool = True
    device: str = "auto"


LARGEST_P = 0.05
"""Where no corrected p can be below it, nothing is told from chance."""


class Incomplete(S2SError):
    """Some trainings failed; the code is that of the first."""

    def __init__(self, failed: Sequence[Ended], total: int) -> None:
        names = ", ".join(one.task.name for one in failed)
        what = f"{len(failed)} of {total} have no result: {names}"
        super().__init__("compare", what, "the reasons are above; the same command tries these again")
        self.code = failed[0].code


def compare(what: Sequence[Path], options: Options) -> None:
    """Compare what one YAML file describes, or several runs. Raises Incomplete where a training failed."""
    settings, asked = _settings(what, options)
    default = Path("runs") / (f"compare-{what[0].stem}" if settings.recipes else "comparison")
    comparison = Comparison(settings, options.output or default, options, asked)
    comparison.prepare()
    if (note := too_few_samples(comparison.settings, len({cell.system for cell in comparison.cells}))) is not None:
        warn(note)
    with RunLock(comparison.output):
        failed = comparison.work() if options.train else []
        unfinished = comparison.write(failed)
    say(f"wrote {comparison.page}, {comparison.result} and {comparison.table}")
    if failed:
        raise Incomplete(failed, len(comparison.cells))
    for one in unfinished:
        if one.why != _NOT_YET:
            warn(f"{one.name}: {one.why}")
    if waiting := sum(one.why == _NOT_YET for one in unfinished):
        warn(f"{waiting} of {len(comparison.cells)} are not yet run")


def too_few_samples(settings: ComparisonSettings, systems: int) -> str | None:
    """What to say where no difference could be told from chance, however large; None where one could."""
    others, asked = systems - 1, settings.bootstrap[0]
    if "p" not in settings.columns or others <= LARGEST_P * (asked + 1):
        return None
    needed = 100 * others  # then it may be a hundredth
    return (
        f"samples: with {asked:,} drawn test sets no p of {others} differences, corrected, is below "
        f"{others / (asked + 1):.3f}; set samples: {needed}"
    )


def _settings(what: Sequence[Path], options: Options) -> tuple[ComparisonSettings, str]:
    """What is compared, and how it was asked for."""
    if len(what) == 1 and not what[0].is_dir():
        given = {
            "--source": (options.source, "test: {...}"),
            "--reference": (options.reference, "test: {...}"),
            "--links": (options.links, "test: {...}"),
            "--language": (options.language, f"language: {options.language}"),
        }
        for name, (value, setting) in given.items():
            if value is not None:
                raise UsageError(name, "goes with runs", f"write {setting} into {what[0]}")
        return read_settings(what[0]), what[0].read_text(encoding="utf-8-sig")
    for path in what:
        if not path.is_dir():
            raise UsageError(path, "is not a directory", "give one YAML file, or the directories of runs")
    if (options.source is None) != (options.reference is None):
        raise UsageError("compare", "--source and --reference go together", "give both or neither")
    test = None
    if options.source is not None:
        links = None if options.links is None else str(options.links)
        test = PairFiles(source=str(options.source), target=str(options.reference), links=links)
    elif options.links is not None:
        raise UsageError("--links", "goes with --source and --reference", "give these too")
    if options.language is not None and not re.match(LANGUAGE, options.language):
        raise UsageError("--language", f"{options.language!r} is no language", "give two letters or three, such as ja")
    runs = tuple(str(path) for path in what)
    more: dict[str, Any] = {} if options.language is None else {"language": options.language}
    return ComparisonSettings(runs=runs, test=test, **more), f"s2s compare {' '.join(runs)}"


class Comparison:
    """The work of one call."""

    def __init__(self, settings: ComparisonSettings, output: Path, options: Options, asked: str) -> None:
        self.output, self.options, self.asked = output, options, asked
        self.cells = cells_of(settings, output)
        self.settings = with_language(settings, self.cells)
        self.baseline = baseline_of(settings, self.cells, options.baseline)
        self.test = measured_on(settings, self.cells)
        self.rows = Path(settings.rows or output / "rows")
        self.details = Path(settings.details or output / "details")
        self.table = Path(settings.table or output / "comparison.md")
        self.page = Path(settings.page or output / "comparison.html")
        self.result = Path(settings.result or output / "comparison.json")

    def prepare(self) -> None:
        """Make the output folder, and put there what trainings read."""
        if self.output.exists() and not self.output.is_dir():
            raise UsageError(self.output, "is a file", "give another --output")
        self.output.mkdir(parents=True, exist_ok=True)
        for first in {cell.first.path: cell.first for cell in self.cells if cell.first is not None}.values():
            first.write()

    # --- work ---------------------------------------------------------------------------------------------------------

    def work(self) -> list[Ended]:
        """Train and measure what has no row yet; gives those that failed."""
        tasks, failed = [], []
        for cell in self.cells:
            if self.why_unfinished(cell) is None:
                continue
            try:
                require_same_training(cell)
                tasks.append(self.task(cell))
            except S2SError as error:
                failed.append(Ended(self.task(cell), error.code, str(error)))
        for ended in failed:
            say(f"{ended.task.name}: failed: {ended.why}")
        done = 0

        def on_end(ended: Ended) -> None:
            nonlocal done
            done += 1
            if ended.code:
                failed.append(ended)
                say(f"{ended.task.name}: failed: {ended.why}")
            else:
                say(f"{ended.task.name}: {_told(ended.task)} ({done} of {len(tasks)})")
                try:
                    self.write(failed)
                except Stopped:
                    raise
                except (S2SError, OSError) as error:  # the others go on; at the end it is tried again, and then raised
                    warn(f"the table cannot be written yet: {error}")

        if tasks:
            Exam.of(self.asked_of_all())  # what does not fit is told now, not after hours of training
            say(
                f"{len(tasks)} of {len(self.cells)} to do, {self.options.jobs} at a time; logs in {tasks[0].log.parent}"
            )
        devices = visible_devices(torch.cuda.device_count())
        with Stop(lambda: f"after {done} of {len(tasks)}; the same command goes on"):
            work(tasks, self.options.jobs, devices, on_end)
        return failed

    def task(self, cell: Cell) -> Task:
        """What a process is told to do for a cell."""
        facts = {"name": cell.system, "seed": cell.seed, "made_from": self.made_from(cell)}
        threads = self.settings.threads or max(1, torch.get_num_threads() // self.options.jobs)
        log = self.output / "logs" / f"{cell.name}.txt"
        asked, files, device = self.asked_of_all(), self.files(cell), self.options.device
        return Task(cell.name, facts, cell.recipe, cell.overrides, cell.run, asked, files, log, threads, device)

    def asked_of_all(self) -> Asked:
        """What every model is asked."""
        test, settings = self.test, self.settings
        links = None if test.links is None else Path(test.links)
        return Asked(
            Path(test.source), Path(test.target), links, settings.metrics, settings.target, settings.length_bands,
            settings.shown,
        )  # fmt: skip

    def files(self, cell: Cell) -> Files:
        """Where the row and the details of a cell are."""
        return Files(self.rows / f"{cell.name}.json", self.details / f"{cell.name}.json")

    def made_from(self, cell: Cell) -> str:
        """See `fingerprint`."""
        return fingerprint(cell, self.settings, contents(self.test))

    def why_unfinished(self, cell: Cell) -> str | None:
        """Why a cell has no row that could enter a table; None where it has one.

        A row that does not say what it was made from was made before rows said so, and counts.
        """
        row = read_row(self.files(cell).row, cell.system, cell.seed)
        if row is None:
            return "not finished" if cell.run.is_dir() else _NOT_YET
        if "made_from" in row and row["made_from"] != self.made_from(cell):
            return "has a row of other settings or texts"
        changed = began_elsewhere(cell, row.get("began_from", {}))
        return None if changed is None else f"has a row from before {changed} was trained anew"

    # --- what was found -----------------------------------------------------------------------------------------------

    def write(self, failed: Sequence[Ended]) -> list[Unfinished]:
        """Write result, table and page from the rows that are there; gives what has none."""
        systems = {cell.system: System(cell.system) for cell in self.cells}
        unfinished, reasons = [], {one.task.name: one.why for one in failed}
        for cell in self.cells:
            why, files = reasons.get(cell.name) or self.why_unfinished(cell), self.files(cell)
            row = None if why is not None else read_row(files.row, cell.system, cell.seed)
            if row is None:
                unfinished.append(Unfinished(cell.name, str(why)))
                continue
            systems[cell.system].rows[cell.seed] = row
            if (details := read_details(files.details, row)) is not None:
                systems[cell.system].details[cell.seed] = details
        found = result(self.settings, list(systems.values()), self.baseline, Path(self.test.target), unfinished)
        text = json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False)
        _write(self.result, f"{text}\n")
        _write(self.table, markdown(self.settings, found))
        _write(self.page, page(self.settings, list(systems.values()), found, self.asked))
        return unfinished


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode())


def _told(task: Task) -> str:
    """A row in a few words."""
    row = read_row(task.files.row, str(task.facts["name"]), int(str(task.facts["seed"])))
    assert row is not None
    return "  ".join(f"{score['name']} {score['value']:.2f}" for score in row["scores"])
