"""What the scripts that fetch data share: downloading, verifying, writing whole files, and telling what went wrong.

Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import http.client
import os
import re
import signal
import sys
import tarfile
import urllib.request
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import IO, NamedTuple, NoReturn, Self
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
        self._before = signal.signal(signal.SIGTERM, _stop)  # so that what is half downloaded is removed
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        signal.signal(signal.SIGTERM, self._before)
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


def _stop(number: int, frame: object) -> NoReturn:
    raise Failure(128 + number, "stopped; run it again to continue")


class Origin(NamedTuple):
    """A file at its public home."""

    name: str
    """What it is called here: under --out, and in the corpus' folder of a local copy."""
    url: str
    algorithm: str = "sha256"
    """Of the checksum: what whoever published it used."""
    checksum: str | None = None
    """None where no published one is known."""


class Sums:
    """The file SHA256SUMS of a folder, as the program sha256sum writes it: what the files were when they were right."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "SHA256SUMS"

    def known(self) -> dict[str, str]:
        """Checksums by name."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return {}
        pairs = [line.split("  ", 1) for line in lines]
        if not all(len(pair) == 2 and re.fullmatch("[0-9a-f]{64}", pair[0]) for pair in pairs):
            raise Failure(EXIT_DATA, f"{self.path}: is not a list of checksums; delete it to begin anew")
        return {name: checksum for checksum, name in pairs}

    def remember(self, checksums: Mapping[str, str]) -> None:
        """Add these, or replace them."""
        lines = (f"{checksum}  {name}\n" for name, checksum in sorted({**self.known(), **checksums}.items()))
        write(self.path, "".join(lines).encode())

    def hold(self, names: Collection[str]) -> bool:
        """Whether all these files are there as they were."""
        known = self.known()
        return all(name in known and is_right(self.folder / name, known[name]) for name in names)


def command_line(description: str, out: str, corpus: str) -> argparse.ArgumentParser:
    """The options that every script has: --out, and --from with a folder that has one of the corpus' name."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path(out), help="folder to write (%(default)s)")
    parser.add_argument(
        "--from",
        dest="copy",
        type=Path,
        default=os.environ.get("S2S_DATA") or None,
        metavar="DIR",
        help=f"read DIR/{corpus} and download nothing (default: the environment variable S2S_DATA)",
    )
    return parser


def folder_of_copy(copy: Path | None, corpus: str) -> Path | None:
    """The corpus' folder in a local copy; None without a copy."""
    if copy is not None and not (copy / corpus).is_dir():
        raise Failure(EXIT_USAGE, f"{copy}: has no folder {corpus}; name another folder with --from")
    return None if copy is None else copy / corpus


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The checksum of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def is_right(path: Path, checksum: str, algorithm: str = "sha256") -> bool:
    """Whether the file is there and has the right content."""
    return path.is_file() and digest(path, algorithm) == checksum


def obtain(origin: Origin, sums: Sums, copy: Path | None, label: str) -> Path:
    """The path of a verified file: in the local copy, or, downloaded if need be, in the folder of ``sums``.

    A gzip file without a published checksum is trusted when it is first seen whole, and that is told: from then
    on it must stay the same.
    """
    expected = origin.checksum or sums.known().get(origin.name)
    if copy is not None:
        path = copy / origin.name
        if not path.is_file():
            raise Failure(EXIT_DATA, f"{path}: is missing; leave out --from and S2S_DATA to download it")
        _verify(path, str(path), origin, expected)
    else:
        path = sums.folder / origin.name
        if expected is None or not is_right(path, expected, origin.algorithm):
            with replacing(path) as temporary:
                with temporary.open("wb") as file:
                    file.writelines(blocks(origin.url, label))
                _verify(temporary, origin.url, origin, expected)
    if expected is None:
        _require_whole(path)
        found = digest(path)
        sums.remember({origin.name: found})
        trusted = f"it is trusted, and from now on its SHA-256 must be {found} ({sums.path})"
        print(f"{label}: no published checksum of it is known; {trusted}", file=sys.stderr)
    else:
        print(f"{label}: verified", file=sys.stderr)
    return path


def _require_whole(path: Path) -> None:
    """Read a gzip file to its end, where its own check is: a part, or an error page, must not be trusted."""
    try:
        with gzip.open(path) as file:
            while file.read(BLOCK):
                pass
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Failure(EXIT_DATA, f"{path}: is not a whole gzip file ({error}); delete it and get it again") from error


def _verify(path: Path, where: str, origin: Origin, expected: str | None) -> None:
    if expected is not None and (found := digest(path, origin.algorithm)) != expected:
        name = {"sha256": "SHA-256", "md5": "MD5"}[origin.algorithm]
        raise Failure(EXIT_DATA, f"{where}: its {name} is {found}, not {expected}; get it again, or from elsewhere")


@contextmanager
def reading(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """A file within a tar archive, read from beginning to end; what is damaged is told as such."""
    try:
        with tarfile.open(archive, "r|*") as tar:
            for entry in tar:
                if entry.name.removeprefix("./") == member and (stream := tar.extractfile(entry)) is not None:
                    yield stream
                    return
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise Failure(EXIT_DATA, f"{archive}: is not a whole tar archive ({error}); get it again") from error
    raise Failure(EXIT_DATA, f"{archive}: has no file {member}; get it again")


def parallel_lines(*places: tuple[Path, str]) -> Iterator[tuple[bytes, ...]]:
    """Line by line, without line feeds, several files of tar archives that are translations of each other."""
    with ExitStack() as stack:
        streams = [stack.enter_context(reading(archive, member)) for archive, member in places]
        for number, lines in enumerate(zip_longest(*streams), start=1):
            for (archive, member), line in zip(places, lines, strict=True):
                if line is None:
                    raise Failure(EXIT_DATA, f"{archive}: {member} ends before line {number}, its translation does not")
            yield tuple(line.removesuffix(b"\n") for line in lines)


def text_of(archive: Path, member: str) -> str:
    """A whole text of a tar archive."""
    with reading(archive, member) as stream:
        data = stream.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Failure(EXIT_DATA, f"{archive}: {member} is not UTF-8 ({error}); get it again") from error


def segments(text: str) -> list[str]:
    """The sentences of a test set in SGML or XML: what stands between <seg id=...> and </seg>, as it is written."""
    return [segment.strip() for segment in re.findall(r"<seg id[^>\n]*>([^\n]*?)</seg>", text)]


def require_lines(what: str, found: int, published: int, accept: bool = False, advice: str = "get it again") -> None:
    """Compare a number of lines with the published one; with ``accept`` a difference is only told."""
    if found == published:
        return
    message = f"{what}: has {found:,} lines, not the published {published:,}"
    if not accept:
        raise Failure(EXIT_DATA, f"{message}; not written; {advice}")
    print(f"{message}; accepted", file=sys.stderr)


def read_copy(path: Path) -> bytes:
    """A file of the local copy."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Failure(EXIT_DATA, f"{path}: is missing; leave out --from and S2S_DATA to download it") from error


def download(url: str, label: str) -> bytes:
    """The bytes at ``url``, with progress where someone watches."""
    return b"".join(blocks(url, label))


def blocks(url: str, label: str) -> Iterator[bytes]:
    """The same, one block after the other."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            yield from watched(response, label)
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
    with replacing(target) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path to write to; unless something fails, what is there at the end takes the place of ``target`` at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
