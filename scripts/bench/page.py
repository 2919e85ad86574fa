"""Puts the tables of docs/results into docs/speed.md and docs/scale.md; run it after what measures them.

python scripts/bench/page.py            writes
python scripts/bench/page.py --check    only says whether the pages have these tables; exit code 1 where they have not
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cost
import curve
import gains
import hotspots
import scale
import speed
from shared import with_table

PAGES = (speed.DOCS / "speed.md", speed.DOCS / "scale.md")


def read(table: Callable[[Any], str]) -> Callable[[Path], str]:
    """A table of what a result file holds, as one of the file."""
    return lambda result: table(json.loads(result.read_text(encoding="utf-8")))


TABLES: dict[str, Callable[[Path], str]] = {
    "speed-training": speed.table,
    "speed-mechanisms": speed.table,
    "speed-translation": speed.table,
    "speed-gpu": speed.table,
    "speed-cost": read(lambda kept: "\n".join(cost.tables(kept))),
    "speed-profile": read(hotspots.table),
    "speed-gains": read(gains.table),
    "speed-gains-search": read(gains.table),
    "speed-curve": read(curve.table),
    **{f"scale/{part}": read(found[1]) for part, found in scale.PARTS.items()},
}
"""What turns a result file into its table."""


def page(text: str) -> str:
    """The page with those tables that have a place in it and a result."""
    for name, table in TABLES.items():
        result = speed.RESULTS / f"{name}.json"
        if result.exists() and f"<!-- table: {name} -->" in text:
            text = with_table(text, name, table(result))
    return text


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    differs = False
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        new = page(text)
        differs |= new != text
        if not arguments.check:
            path.write_text(new, encoding="utf-8")
    return int(arguments.check and differs)


if __name__ == "__main__":
    sys.exit(main())
