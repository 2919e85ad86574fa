"""What the scripts that fetch data share: downloading, verifying, writing whole files, and telling what went wrong.

Needs nothing but Python.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.error import URLError

BLOCK = 1 << 16
EXIT_USAGE, EXIT_DATA, EXIT_SYSTEM, EXIT_INTERRUPT = 2, 3, 6, 130


class Failure(Exception):
    """What to tell the user, and the exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Telling:
    """A context that tells what ends the work in it, in one line; ``code`` is then the exit code."""

    def __init__(self, program: str, out: Path) -> None:
        self.program, self.out, self.code = program, out, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Failure):
            self._complain(str(error), error.code)
        elif isinstance(error, OSError):
            where = error.filename or self.out
            self._complain(f"{where}: {error.strerror}; check the disk and its permissions", EXIT_SYSTEM)
        elif isinstance(error, KeyboardInterrupt):
            self._complain("stopped; run it again to continue", EXIT_INTERRUPT)
        return self.code != 0

    def _complain(self, message: str, code: int) -> None:
        """Print one line that cannot disturb a terminal."""
        line = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in message)
        print(f"{self.program}: error: {line}", file=sys.stderr)
        self.code = code


def is_right(path: Path, checksum: str) -> bool:
    """Whether the file is there and has the right content."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == checksum


def read_copy(path: Path) -> bytes:
    """A file of the local copy."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Failure(EXIT_DATA, f"{path}: is missing; leave out --from and S2S_DATA to download it") from error


def download(url: str, label: str) -> bytes:
    """The bytes at ``url``, with progress where someone watches."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return b"".join(watched(response, label))
    except (URLError, OSError, http.client.HTTPException) as error:
        advice = "check the network, or copy from a folder with --from"
        raise Failure(EXIT_SYSTEM, f"{url}: cannot be downloaded ({error}); {advice}") from error


def watched(response: http.client.HTTPResponse, label: str) -> Iterator[bytes]:
    """The blocks of a response; on a terminal, how many bytes came so far."""
    done, size = 0, response.headers.get("Content-Length", "?")
    while block := response.read(BLOCK):
        done += len(block)
        if sys.stderr.isatty():
            print(f"\r{label}: {done} of {size} bytes\x1b[K\r", end="", file=sys.stderr)
        yield block


def write(target: Path, data: bytes) -> None:
    """Write a file so that no reader ever sees a part of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
