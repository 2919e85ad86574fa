"""Writes the table at the head of README.md from the result file of a comparison.

    python scripts/readme_table.py            after s2s compare configs/compare/readme.yaml
    python scripts/readme_table.py --check    only says whether README.md has it; exit code 1 where it has another

What stands between the two lines that name the table is replaced, nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from shared import ROOT, with_table

README, RESULT = ROOT / "README.md", ROOT / "docs" / "results-mechanisms.json"
COLUMNS = (
    ("BLEU", "bleu", ".1f"),
    ("exact match", "exact", ".1f"),
    ("alignment error", "aer-0", ".2f"),
    ("entropy", "entropy", ".2f"),
    ("parameters", "parameters", ",.0f"),
)
"""Heading, name in the result file, and how the mean is written."""


def table(found: dict[str, Any]) -> str:
    """The Markdown of the systems, best mean of the first column first."""
    lines = [f"| mechanism | {' | '.join(heading for heading, _, _ in COLUMNS)} |", "|---|" + "--:|" * len(COLUMNS)]
    finished = [one for one in found["systems"] if one["rows"]]
    first, most = COLUMNS[0][1], max(len(one["rows"]) for one in finished)
    for one in sorted(finished, key=lambda system: -system["summary"][first]["mean"]):
        name = f"`{one['name']}`" + (f" ({len(one['rows'])} of {most} seeds)" if len(one["rows"]) < most else "")
        lines.append(f"| {name} | {' | '.join(cell(one, column, form) for _, column, form in COLUMNS)} |")
    return "\n".join(lines) + "\n"


def cell(system: dict[str, Any], name: str, form: str) -> str:
    """The mean over seeds, of the first column with the lowest and the highest."""
    summary = system["summary"][name]
    if summary is None:
        return "-"
    spread = f" ({summary['low']:{form}}-{summary['high']:{form}})" if name == COLUMNS[0][1] else ""
    return f"{summary['mean']:{form}}{spread}"


def main(readme: Path = README, result: Path = RESULT) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    text = readme.read_text(encoding="utf-8")
    new = with_table(text, "mechanisms", table(json.loads(result.read_text(encoding="utf-8"))))
    if arguments.check:
        return int(new != text)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
