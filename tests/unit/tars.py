"""Small tar archives for the tests of the scripts that fetch data."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path


def archive_of(path: Path, members: Mapping[str, bytes]) -> Path:
    """A compressed tar archive of these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path
