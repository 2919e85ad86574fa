"""What files contain, by SHA-256, found out once for as long as a file stays as it is."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from s2s.checkpoint import replace_file

_NAME = "digests.json"


def describe(path: Path) -> dict[str, Any]:
    """The size and the SHA-256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def signature(path: Path) -> list[int]:
    """What changes whenever a file is written to or another one takes its name. Raises OSError."""
    facts = path.stat()
    # The last of the times is the system's own: unlike the one before, no program can set it back.
    return [facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]


class Digests:
    """Describes files as `describe` does, and keeps the answers in a file of the folder for the next run.

    A file is read again unless inode, size and both times are those that it had; and always while it is so young that
    it could change once more within the same tick of its file system's clock.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._known: dict[str, dict[str, Any]] = {}
        self._changed = False
        try:
            found = json.loads(self._path.read_bytes())
            self._known = {name: entry for name, entry in found.items() if _is_entry(entry)}
        except (OSError, ValueError, RecursionError, AttributeError):
            pass  # not there yet, or damaged: it is all found out again

    def __call__(self, path: Path) -> dict[str, Any]:
        """The size and the SHA-256 of a file. Raises OSError."""
        name, now = os.path.realpath(path), signature(path)
        entry = self._known.get(name)
        if entry is not None and entry["signature"] == now:
            return {"bytes": entry["bytes"], "sha256": entry["sha256"]}
        settled = _is_settled(now[-1], time.time_ns())
        found = describe(path)
        self._known.pop(name, None)
        if settled and signature(path) == now:
            self._known[name] = found | {"signature": now}
            self._changed = True
        return found

    def save(self) -> None:
        """Keep what was found out, less what is about files that cannot be seen any more. Raises OSError."""
        if self._changed:
            # Path.exists raises where a folder may not be looked into, such as another user's.
            kept = {name: entry for name, entry in self._known.items() if os.path.exists(name)}  # noqa: PTH110
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, json.dumps(kept, indent=0).encode() + b"\n")
            self._changed = False


def _is_settled(changed: int, now: int) -> bool:
    """Whether a file that was changed at this time (ns) would show another time if it were changed now."""
    tick = 2_000_000_000 if changed % 1_000_000_000 == 0 else 100_000_000  # some file systems count whole seconds
    return now - changed > tick


def _is_entry(entry: Any) -> bool:
    match entry:
        case {"bytes": int(), "sha256": str(), "signature": [int(), int(), int(), int()]}:
            return True
    return False
