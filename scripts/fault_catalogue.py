"""Writes docs/faults.md: every fault that s2s must survive, with the tests that show it; ``--check`` only compares.

A test says which rows it covers by ``@pytest.mark.fault("R1", ...)``. A row without a test is a visible gap.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pytest
from shared import ROOT

PAGE = ROOT / "docs" / "faults.md"


class Row(NamedTuple):
    """One fault. ``priority``: 0 before the first release, 1 soon after it, 2 with the feature that it belongs to."""

    name: str
    priority: int
    fault: str


class Section(NamedTuple):
    """Faults of one kind; ``later`` says why a section's rows have no tests yet."""

    title: str
    rows: Sequence[Row]
    later: str = ""


def _rows(prefix: str, *faults: tuple[int, str]) -> list[Row]:
    return [Row(f"{prefix}{number}", priority, fault) for number, (priority, fault) in enumerate(faults, start=1)]


SECTIONS = (
    Section(
        "Crash and resume",
        _rows(
            "R",
            (0, "killed at random moments: the run goes on to the same weights, optimizer and losses, to the bit"),
            (0, "killed at every point of a save: a valid checkpoint is always there"),
            (0, "resumed at an epoch's end, within accumulation, before the first save, before the end, after it"),
            (0, "resumed several times in one epoch: every pair is still met once"),
            (0, "a part of the state is forgotten: refused by name, or seen by the comparison of runs"),
            (1, "early stopping and the best checkpoint across a resume"),
            (0, "a crash between a record and its checkpoint: no record twice, none missing, none cut"),
            (1, "the corpus changed since the checkpoint"),
            (1, "settings changed since the checkpoint, harmless ones and others"),
            (1, "other threads, another torch or numpy, another machine: a warning that names it"),
            (1, "two trainings in one run directory; the lock of a dead one"),
            (1, "power loss: files and directories are synced before they are renamed"),
            (1, "a clock that jumps back, saves in the same second"),
            (2, "asynchronous saving"),
        ),
    ),
    Section(
        "Saving",
        _rows(
            "D",
            (0, "the disk is full during a save: training goes on; three failures or the last one exit with 6"),
            (0, "the disk is full for the record: one warning"),
            (1, "little free space at the start: a warning with numbers"),
            (0, "the run directory is a file, below a file, or somebody else's"),
            (1, "a device error that passes: one more try"),
            (0, "file modes follow the umask"),
            (0, "retention: the newest and the best stay, steps are numbers, other runs are not touched"),
            (1, "an old checkpoint cannot be deleted"),
            (1, "links, relative paths, spaces, control characters and bytes that are not UTF-8 in names"),
            (1, "a signal during a save"),
        ),
    ),
    Section(
        "Reading checkpoints",
        _rows(
            "C",
            (0, "a file is cut at any length"),
            (0, "a bit is flipped anywhere"),
            (0, "the manifest is missing, no JSON, incomplete, or names files elsewhere"),
            (0, "`latest` or `best` is missing, empty or points nowhere"),
            (0, "a pickle in the place of a file: refused, and nothing of it is run"),
            (0, "the source has no call that runs what it reads"),
            (0, "a checkpoint of a later format"),
            (0, "another vocabulary of the same size"),
            (0, "tensors that are missing, too many, of another shape or type, or not finite"),
            (1, "forged tensor files: huge headers, overlaps, overflows, names twice"),
            (1, "forged states: deep nesting, infinite, negative or missing values, other types"),
            (1, "a checkpoint of a GPU or in another precision"),
            (1, "the model is behind a link, read-only, or on another mount"),
            (1, "a checkpoint is deleted while it is read"),
            (1, "no checkpoint is valid: never a fresh start"),
            (2, "averaged and exported models follow the same rules"),
        ),
    ),
    Section(
        "Signals and terminals",
        _rows(
            "S",
            (0, "TERM while training"),
            (0, "TERM during validation, vocabulary learning, a save, and before the first update"),
            (0, "Ctrl-C once and twice"),
            (1, "USR1"),
            (1, "HUP, and under nohup"),
            (1, "a signal to the whole process group"),
            (1, "training in a thread of another program"),
            (1, "the host program's handlers come back"),
            (1, "standard error is closed, or its terminal is gone"),
            (1, "dumb and narrow terminals, none at all, NO_COLOR"),
            (2, "torchrun and signals"),
            (1, "stopped and continued, as a laptop is"),
        ),
    ),
    Section(
        "Numbers",
        _rows(
            "N",
            (0, "a loss that is not a number"),
            (0, "an infinite loss or gradient"),
            (1, "updates that are left out because they are not finite"),
            (0, "a validation that is not a number"),
            (1, "batches without target tokens"),
            (1, "learning rates and warm-ups that cannot work"),
            (0, "the same seed twice, in one process and in two"),
            (0, "hash seeds, locales, folders"),
            (1, "workers and global random states"),
            (1, "the same text in other bytes: gzip, CRLF"),
            (1, "a translation does not depend on its batch"),
            (2, "overflow in mixed precision and the scaler's state"),
        ),
    ),
    Section(
        "Distributed training",
        _rows(
            "E",
            (1, "a rank is killed"),
            (1, "one rank gets a signal"),
            (1, "rank 0 cannot save"),
            (1, "ranks with unequal data"),
            (1, "the number of ranks changes across resumes"),
            (1, "only rank 0 writes"),
            (1, "the launcher's port is missing or taken"),
            (1, "a worker dies"),
        ),
        later="there are no worker processes",
    ),
    Section(
        "Memory and size",
        _rows(
            "M",
            (0, "a line of a million characters, a gzip bomb"),
            (1, "memory runs out in an update"),
            (1, "a pair larger than a batch"),
            (1, "millions of short lines"),
            (1, "vocabularies and corpora of hardly anything"),
        ),
    ),
    Section(
        "Parallel text",
        _rows(
            "TX",
            (0, "unequal numbers of lines"),
            (0, "empty files, only newlines"),
            (0, "blank on one side"),
            (0, "only white space"),
            (0, "CRLF, and mixed"),
            (0, "a lone CR inside a line"),
            (0, "a byte order mark"),
            (0, "UTF-16"),
            (0, "bytes that are not UTF-8"),
            (0, "NUL and other control characters"),
            (0, "Unicode's own line and paragraph separators, VT, FF, FS, GS, RS"),
            (0, "a line of a million characters or half a million tokens"),
            (0, "tabs"),
            (0, "right-to-left text and its marks"),
            (0, "emoji and floods of combining characters"),
            (0, "composed and decomposed characters"),
            (0, "the names of control tokens as text"),
            (0, "gzip by name and by content, of several members"),
            (0, "gzip that is cut, damaged, or followed by something else"),
            (0, "no newline at the end of one side"),
            (0, "an extra blank line at the end of one side"),
            (0, "duplicates, and sources that are their own translation"),
            (0, "one file for both sides"),
            (0, "a file that changes while it is read"),
            (0, "a directory, a pipe, a socket, a missing or unreadable file"),
            (0, "tables and JSON by mistake"),
            (0, "pairs that training and validation share"),
        ),
    ),
    Section(
        "Settings in YAML",
        _rows(
            "YM",
            (0, "an unknown key, and where it would belong"),
            (0, "a key twice"),
            (0, "floats in every notation"),
            (0, "integers as floats"),
            (0, "words that other readers take for truth values"),
            (0, "octal, hexadecimal, sexagesimal numbers and dates"),
            (0, "a value of the wrong type"),
            (0, "a value out of range"),
            (0, "anchors, aliases and merge keys"),
            (0, "tags"),
            (0, "several documents, lists, nothing at all"),
            (0, "tabs, bad indents, control characters, other encodings, huge files"),
            (0, "keys that are not words"),
            (0, "paths and environment variables"),
            (0, "a missing file, a directory"),
            (0, "overrides on the command line"),
            (0, "the saved settings are the settings"),
            (0, "sections that do not go together"),
        ),
    ),
    Section(
        "Translating",
        _rows(
            "T",
            (0, "as many lines out as in, in order, whatever the locale"),
            (0, "empty and blank lines, no line"),
            (0, "lines longer than anything in training"),
            (0, "control characters and bytes that are not UTF-8: the output is always clean UTF-8"),
            (0, "a reader that leaves"),
            (0, "an output file that exists"),
            (0, "the output is the input"),
            (0, "standard output is closed or full"),
            (1, "standard input is closed, or a terminal"),
            (1, "a conversation: one line in, one answer out"),
            (1, "a signal keeps what there is"),
            (0, "options out of range"),
            (1, "no model, another folder, several models"),
            (1, "n-best lists, scores and JSON with strange characters"),
            (1, "models that never end, or say only one thing"),
            (1, "the order of lines does not matter"),
            (1, "two processes with one model"),
        ),
    ),
    Section(
        "Scoring",
        _rows(
            "V",
            (0, "unequal numbers of lines"),
            (0, "nothing to score, blank references, strange line separators: as sacreBLEU"),
            (1, "signatures, and JSON without NaN"),
            (1, "a report that exists or cannot be written"),
        ),
    ),
    Section(
        "Security",
        _rows(
            "X",
            (0, "a pickle in the place of every file that is read"),
            (0, "YAML tags and alias bombs"),
            (0, "names that lead out of a directory"),
            (1, "text in HTML reports"),
            (1, "templates"),
            (1, "escape sequences on the terminal"),
            (1, "no network"),
            (1, "temporary files and links"),
            (1, "versions of what s2s depends on"),
            (2, "the HTTP server"),
            (1, "secrets of the environment"),
        ),
    ),
)


class Marks:
    """A pytest plugin that notes which tests cover which rows."""

    def __init__(self) -> None:
        self.tests: dict[str, set[str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Called with every test of the suite."""
        for item in items:
            for mark in item.iter_markers("fault"):
                for row in mark.args:
                    self.tests.setdefault(row, set()).add(item.nodeid.partition("[")[0])


def collect() -> dict[str, set[str]]:
    """The tests of each row. Raises RuntimeError where the tests cannot be collected."""
    marks, said = Marks(), io.StringIO()
    options = ["--collect-only", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), str(ROOT / "tests")]
    with contextlib.redirect_stdout(said):
        code = pytest.main(options, plugins=[marks])
    if code != pytest.ExitCode.OK:
        raise RuntimeError(f"pytest could not collect the tests:\n{said.getvalue()[-3000:]}")
    return marks.tests


def page(tests: Mapping[str, set[str]]) -> str:
    """The page. Raises ValueError for a mark that names no row."""
    known = {row.name for section in SECTIONS for row in section.rows}
    if unknown := sorted(tests.keys() - known):
        raise ValueError(f"marked, but no row of scripts/fault_catalogue.py: {', '.join(unknown)}")
    lines = [
        "<!-- Generated by scripts/fault_catalogue.py; do not edit. -->",
        "# Faults and their tests",
        "",
        "P 0: before the first release; 1: soon after it; 2: with the feature. An empty cell is a gap.",
        "`make test` runs the tests that are not marked slow, `make slow` the others.",
    ]
    for section in SECTIONS:
        lines += ["", f"## {section.title}", "", "| row | P | fault | tests |", "|---|---|---|---|"]
        for row in section.rows:
            names = ", ".join(f"`{test.removeprefix('tests/')}`" for test in sorted(tests.get(row.name, ())))
            lines.append(f"| {row.name} | {row.priority} | {row.fault} | {names or section.later} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is out of date")
    check = parser.parse_args().check
    text = page(collect())
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE} is out of date; run python scripts/fault_catalogue.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
