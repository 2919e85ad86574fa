"""The peak of memory that benchmarks tell is that of the program, not of what started it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def test_a_small_program_is_small_whatever_starts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    shared, file = importlib.import_module("shared"), tmp_path / "peak"
    large = b"1" * (300 << 20)
    for mebibytes, expected in ((0, (1, 100)), (200, (200, 320))):
        command = [sys.executable, "-I", "-S", "-c", f"x = b'1' * ({mebibytes} << 20)"]
        assert subprocess.run(shared.noting_peak(file, command), check=False).returncode == 0
        assert expected[0] < shared.peak_in(file) < expected[1]
    assert len(large) == 300 << 20
    assert (
        subprocess.run(shared.noting_peak(file, [sys.executable, "-c", "raise SystemExit(3)"]), check=False).returncode
        == 3
    )
