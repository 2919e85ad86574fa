"""`s2s prepare`: encodes the corpora of a config, so that `s2s train` starts at once; in parallel, and resumable."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from s2s import config as configuration
from s2s.commands.output import answer
from s2s.config import Config
from s2s.data import tokenizer
from s2s.data.prepare import Prepared
from s2s.data.prepare import prepare as prepare_data
from s2s.data.text import PairCounts
from s2s.data.tokenizer import Tokenizers
from s2s.progress import say
from s2s.run import default_directory, run_of
from s2s.training.signals import Signals

_COLUMNS = ("corpus", "lines", "blank", "too long", "not UTF-8", "copies", "uneven", "repeats", "kept")


def prepare(config_path: Path, overrides: Sequence[str] = (), run_directory: Path | None = None, jobs: int = 1) -> None:
    """Learn the vocabularies and encode the corpora that a training by this config would, and print what was kept."""
    config = configuration.load(config_path, overrides)
    cache = cache_of(run_directory or default_directory(config_path))
    began = time.monotonic()
    with Signals() as signals, signals.nothing_to_save("before all was prepared; what is finished is kept"):
        prepared = prepare_data(config.data, config.tokenizer, cache, say, given_tokenizers(config), jobs)
    answer(_table(prepared.counts))
    lines, seconds = sum(counts.pairs for counts in prepared.counts), time.monotonic() - began
    say(f"prepared: {lines:,} lines in {seconds:.1f} s ({lines / seconds:,.0f} lines/s), {_sizes(prepared)}")
    where = [] if run_directory is None else ["--run-dir", str(run_directory)]
    say(f"next: {shlex.join(['s2s', 'train', '--config', str(config_path), *where, *overrides])}")


def cache_of(run: Path) -> Path:
    """Where the encoded corpora of a run are kept if the settings do not say: beside it, so that others find them."""
    return run.parent / ".cache"


def given_tokenizers(config: Config) -> Tokenizers | None:
    """The vocabularies that a new run takes over from another; None if it learns its own."""
    other = config.init_from
    if other is None and config.objective.teacher is not None:
        other = config.objective.teacher.run
    return None if other is None else tokenizer.load(run_of(Path(other)).tokenizer)


def _sizes(prepared: Prepared) -> str:
    source, target = (one.size for one in prepared.tokenizers)
    return f"{source} source and {target} target pieces"


def _table(corpora: Sequence[PairCounts]) -> str:
    """What was read, dropped for which reason, and kept of each corpus, in columns."""
    rows = [_COLUMNS] + [
        (
            one.name,
            *(
                f"{number:,}"
                for number in (
                    one.pairs, one.blank, one.too_long, one.invalid_dropped, one.copied, one.uneven, one.repeated,
                    one.kept,
                )
            ),
        )
        for one in corpora
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )
