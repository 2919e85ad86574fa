"""What the comparisons of recipes share: train one with a seed, measure it on its test set, write its row, tabulate."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from s2s.data.text import read_raw_lines
from s2s.interfaces import BOS, EOS
from s2s.run import Trained, load_trained

ROOT = Path(__file__).resolve().parent.parent

Row = dict[str, Any]
"""One recipe with one seed, as it stands in its result file."""


class Reading(NamedTuple):
    """Attention under the reference translation of one test sentence."""

    source: list[int]
    """Source pieces, EOS at the end."""
    target: list[int]
    """Target pieces, without EOS."""
    weights: NDArray[np.float64]
    """(T + 1, S): a row per target piece, and one for EOS."""


class Column(NamedTuple):
    """A column of the table: how a row's number is found (None where there is none) and written."""

    heading: str
    value: Callable[[Row], float | None]
    form: str
    spread: bool = True
    """Whether seeds may differ; false shows the first row's number."""


@dataclass(frozen=True)
class Comparison:
    """Every recipe of configs/NAME, with rows in docs/results/NAME and a table in docs/results-NAME.md."""

    name: str
    introduction: str
    """What stands above the table; ``{signature}`` is that of BLEU."""
    columns: tuple[Column, ...]
    measure: Callable[[Trained, list[Reading]], Row]
    """What joins the row of a trained model, given its readings of the test set (none without attention)."""

    @property
    def configs(self) -> Path:
        """The folder of the recipes."""
        return ROOT / "configs" / self.name

    @property
    def results(self) -> Path:
        """The folder of the rows."""
        return ROOT / "docs" / "results" / self.name

    @property
    def recipes(self) -> list[str]:
        """The names of the recipes, the base left out."""
        return [path.stem for path in sorted(self.configs.glob("*.yaml")) if path.stem != "base"]

    def row(self, recipe: str, seed: int) -> None:
        """Train one recipe with one seed, and write its row."""
        run = ROOT / "runs" / f"{self.name}-{recipe}-{seed}"
        config = self.configs / f"{recipe}.yaml"
        subprocess.run(s2s("train", "--config", str(config), "--run-dir", str(run), f"seed={seed}"), check=True)
        hypotheses = run / "test.hypotheses"
        command = s2s("eval", "--model", str(run), "--json", "--output", str(hypotheses), "--overwrite")
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["systems"][0]
        updates = [record for line in (run / "metrics.jsonl").open() if "loss" in (record := json.loads(line))]
        trained = load_trained(run, torch.device("cpu"))
        lines, right = list(read_raw_lines(hypotheses)), [target for _, target in test_pairs(trained)]
        result = {
            "name": recipe,
            "seed": seed,
            "scores": found["scores"],
            "hypotheses_sha256": found["hypotheses_sha256"],
            "exact": sum(a == b for a, b in zip(lines, right, strict=True)) / len(right),
            "parameters": sum(parameter.numel() for parameter in trained.model.parameters()),
            "tokens_per_second": updates[-1]["target_tokens"] / updates[-1]["seconds"],
            "seconds": updates[-1]["seconds"],
            "updates": updates[-1]["step"],
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **self.measure(trained, list(readings(trained))),
        }
        self.results.mkdir(parents=True, exist_ok=True)
        path = self.results / f"{recipe}-{seed}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    def table(self) -> None:
        """Write the page from the rows that are there."""
        rows: dict[str, list[Row]] = {recipe: [] for recipe in self.recipes}
        for path in sorted(self.results.glob("*.json")):
            result = json.loads(path.read_text(encoding="utf-8"))
            rows.setdefault(result["name"], []).append(result)
        headings = ["recipe", "seeds", *(column.heading for column in self.columns)]
        lines = [f"| {' | '.join(headings)} |", "|---|" + "--:|" * (len(headings) - 1)]
        signature = "-"
        for name, found in rows.items():
            if not found:
                lines.append(f"| `{name}` | not yet run |" + " |" * len(self.columns))
                continue
            signature = found[0]["scores"][0]["signature"]
            cells = [f"`{name}`", str(len(found)), *(_cell(column, found) for column in self.columns)]
            lines.append(f"| {' | '.join(cells)} |")
        page = ROOT / "docs" / f"results-{self.name}.md"
        page.write_text("\n".join([self.introduction.format(signature=signature), *lines]) + "\n", encoding="utf-8")

    def main(self, description: str) -> None:
        """The command line: measure what is not there yet, and write the page after each row."""
        form = argparse.RawDescriptionHelpFormatter
        parser = argparse.ArgumentParser(description=description, formatter_class=form)
        parser.add_argument("names", nargs="*", default=self.recipes, help="recipes; default: all")
        parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
        parser.add_argument("--table", action="store_true", help="train nothing")
        arguments = parser.parse_args()
        for seed in arguments.seeds if not arguments.table else ():
            for name in arguments.names:
                if not (self.results / f"{name}-{seed}.json").exists():
                    self.row(name, seed)
                    self.table()
        self.table()


def s2s(*arguments: str) -> list[str]:
    """The command line of s2s in this environment."""
    return [sys.executable, "-c", "from s2s.cli import main; main()", *arguments]


def test_pairs(trained: Trained) -> list[tuple[str, str]]:
    """The lines of the run's test set."""
    files = trained.config.data.test
    if files is None:
        raise SystemExit("data.test: is not set; a comparison measures on it")
    return list(zip(read_raw_lines(files.source), read_raw_lines(files.target), strict=True))


@torch.no_grad()
def readings(trained: Trained) -> Iterator[Reading]:
    """Attention under the reference translation, for every pair of the test set; nothing without attention."""
    for source_line, target_line in test_pairs(trained):
        source = [*trained.tokenizers.source.encode(source_line), EOS]
        target = trained.tokenizers.target.encode(target_line)
        words, lengths = torch.tensor([[BOS, *target]]), torch.tensor([len(source)])
        decoded, _ = trained.model(torch.tensor([source]), lengths, words, frozenset({"weights"}))
        if decoded.weights is None:
            return
        yield Reading(source, target, decoded.weights[0].double().numpy())


def spread(values: list[float], form: str) -> str:
    """The mean, with the lowest and highest of several."""
    if not values:
        return "-"
    several = f" ({min(values):{form}}-{max(values):{form}})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{several}"


def _cell(column: Column, rows: list[Row]) -> str:
    values = [value for row in rows if (value := column.value(row)) is not None]
    return spread(values if column.spread else values[:1], column.form)


BLEU = Column("BLEU", lambda row: row["scores"][0]["value"], ".1f")
EXACT = Column("exact match", lambda row: 100 * row["exact"], ".1f")
ENTROPY = Column("entropy", lambda row: row.get("entropy"), ".2f")
SPEED = Column("tokens/s", lambda row: row["tokens_per_second"], ",.0f")
PARAMETERS = Column("parameters", lambda row: row["parameters"], ",.0f", spread=False)
