"""docs/faults.md is the table of faults and tests that scripts/fault_catalogue.py writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from fault_catalogue import SECTIONS, page  # noqa: E402


def test_the_table_is_up_to_date() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "fault_catalogue.py"), "--check"]
    outcome = subprocess.run(script, capture_output=True, text=True, timeout=300, check=False)
    assert outcome.returncode == 0, outcome.stderr


def test_a_row_shows_its_tests_and_a_gap_is_empty() -> None:
    text = page({"R1": {"tests/b.py::test_b", "tests/a.py::test_a"}})
    assert "to the bit | `a.py::test_a`, `b.py::test_b` |\n" in text
    assert "| R2 | 0 | killed at every point of a save: a valid checkpoint is always there |  |\n" in text
    assert "| E8 | 1 | a worker dies | there are no worker processes |\n" in text


def test_a_mark_of_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="R99"):
        page({"R99": {"tests/a.py::test_a"}})


def test_names_are_unique() -> None:
    names = [row.name for section in SECTIONS for row in section.rows]
    assert len(set(names)) == len(names) > 150
