"""The record of a training: one JSON line per update in ``metrics.jsonl``, cut back to the checkpoint on resume."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s2s.checkpoint import replace_file
from s2s.errors import ConfigError, SystemRefused
from s2s.strictjson import all_finite

_log = logging.getLogger("s2s")


def _place(line: bytes) -> tuple[str, int] | None:
    """What a complete record is of, an update or a validation, and its step; None for anything else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return ("validation" if "valid" in record else "update", step) if type(step) is int else None


class TensorBoard:
    """The same records as TensorBoard's event files in ``folder``; those shown of a step after ``step`` are hidden.

    Raises ConfigError where the extra is missing.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            what, remedy = "TensorBoard is not installed", "pip install -e '.[tensorboard]' in the folder of s2s"
            raise ConfigError("training.tensorboard", what, remedy) from None
        self.folder = folder
        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def append(self, record: Mapping[str, Any]) -> None:
        """Every number of the record as a scalar at its step."""
        for name, value in record.items():
            if isinstance(value, Mapping):
                self.append({f"{name}/{inner}": number for inner, number in value.items()} | {"step": record["step"]})
            elif isinstance(value, (int, float)) and name != "step":
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Write out what is buffered."""
        self._writer.close()


class MetricsLog:
    """Appends records to a file; a full disk costs records, never the training. ``board`` gets them too."""

    def __init__(
        self, path: Path, warn: Callable[[str], None] = _log.warning, board: TensorBoard | None = None
    ) -> None:
        self.path, self.warn, self.board = path, warn, board
        self._descriptor: int | None = None
        self._failed: set[Path] = set()

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record as one line. The first failure is a warning; later ones are silent."""
        with self._losing(self.path):
            self._write(json.dumps(all_finite(record), allow_nan=False).encode() + b"\n")
        if self.board is not None:
            with self._losing(self.board.folder):
                self.board.append(record)

    @contextmanager
    def _losing(self, path: Path) -> Iterator[None]:
        """In this context a record may be lost, which is told once of each place."""
        try:
            yield
        except OSError as error:
            if path not in self._failed:
                self.warn(f"{path}: {error.strerror}; training goes on, records are lost")
            self._failed.add(path)

    def _write(self, line: bytes) -> None:
        if self._descriptor is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o666)
        written = os.write(self._descriptor, line)
        if written < len(line):  # the next record must not continue half a line
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def truncate_after(self, step: int, validated: int | None = None) -> None:
        """Keep the complete records up to this step, of validations up to ``validated`` (by default ``step`` too).

        The file changes in one step or not at all. Raises `SystemRefused` if it cannot be read or written.
        """
        last = {"update": step, "validation": step if validated is None else validated}
        self.close()
        try:
            before = self.path.read_bytes()
            complete = before.split(b"\n")[:-1]  # what follows the last newline was cut off while being written
            kept = [line for line in complete if (found := _place(line)) is not None and found[1] <= last[found[0]]]
            after = b"".join(line + b"\n" for line in kept)
            if after != before:
                replace_file(self.path, after)
        except FileNotFoundError:
            return
        except OSError as error:
            raise SystemRefused(self.path, error.strerror) from None

    def end(self) -> None:
        """Close the file, and the board for good."""
        self.close()
        if self.board is not None:
            with self._losing(self.board.folder):
                self.board.close()

    def close(self) -> None:
        """Close the file; another `append` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
