"""Puts the tables of docs/results/speed-*.json into docs/speed.md; run it after speed.py and cost.py.

python scripts/bench/page.py            writes
python scripts/bench/page.py --check    only says whether the page has these tables; exit code 1 where it has not
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import cost
import hotspots
import speed
from shared import with_table

PAGE = speed.DOCS / "speed.md"


def cost_tables(result: Path) -> str:
    """What cost.py prints."""
    return "\n".join(cost.tables(json.loads(result.read_text(encoding="utf-8"))))


def profile_tables(result: Path) -> str:
    """What hotspots.py prints, of every profile."""
    return hotspots.table(json.loads(result.read_text(encoding="utf-8")))


TABLES: dict[str, Callable[[Path], str]] = {
    "speed-training": speed.table,
    "speed-mechanisms": speed.table,
    "speed-translation": speed.table,
    "speed-cost": cost_tables,
    "speed-profile": profile_tables,
}
"""What turns a result file into its table."""


def page(text: str) -> str:
    """The page with the tables of the results that are there."""
    for name, table in TABLES.items():
        result = speed.RESULTS / f"{name}.json"
        if result.exists():
            text = with_table(text, name, table(result))
    return text


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    new = page(text)
    if not arguments.check:
        PAGE.write_text(new, encoding="utf-8")
    return int(arguments.check and new != text)


if __name__ == "__main__":
    sys.exit(main())
