"""What scripts share: where the repository is, and the command line of s2s in this environment."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def s2s(*arguments: str) -> list[str]:
    """A command of s2s, to be run as a process."""
    return [sys.executable, "-m", "s2s", *arguments]
