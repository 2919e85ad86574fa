"""What scripts share: where the repository is, the command line of s2s in this environment, and tables in pages."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def s2s(*arguments: str) -> list[str]:
    """A command of s2s, to be run as a process."""
    return [sys.executable, "-m", "s2s", *arguments]


PEAK = ROOT / "scripts" / "bench" / "peak.py"


def noting_peak(file: Path, command: Sequence[str]) -> list[str]:
    """The same command, which leaves the peak of its resident memory in a file; see scripts/bench/peak.py."""
    return [sys.executable, "-I", "-S", str(PEAK), str(file), *command]


def peak_in(file: Path) -> float:
    """What it left there, in MiB."""
    return int(file.read_text()) / 1024


def with_table(text: str, name: str, table: str) -> str:
    """A page with a table between the two lines that name it. Raises ValueError where they are not there once each."""
    begin, end = f"<!-- table: {name} -->\n", f"<!-- end of {name} -->\n"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"needs the lines {begin.strip()} and {end.strip()}, once each and in this order")
    before, rest = text.split(begin)
    return f"{before}{begin}{table.rstrip()}\n{end}{rest.split(end)[1]}"
