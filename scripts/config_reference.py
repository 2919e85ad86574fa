"""Writes docs/config.md, the reference of every setting, from the settings classes; ``--check`` only compares."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from s2s.commands.config import reference
from s2s.config import Config

PAGE = Path(__file__).resolve().parent.parent / "docs" / "config.md"


def main() -> int:
    """Write the page, or say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is out of date")
    text = reference(Config)
    if not parser.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE} is out of date; run python scripts/config_reference.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
