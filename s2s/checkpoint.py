"""Checkpoints: saved whole or not at all, verified before they are parsed, never pickled; and the run's lock.

A checkpoint is the directory ``RUN/checkpoints/step-00001200`` with ``model.safetensors``, ``optimizer.safetensors``,
perhaps ``average.safetensors`` (moving averages of the weights), ``state.json``, and ``MANIFEST.json``, written last,
with bytes and SHA-256 of every other file (safetensors has no checksum). It is filled under a temporary name, synced,
read back, and appears by one rename. ``RUN/latest`` and ``RUN/best`` hold names of such directories, for people and
for `load_model`; resuming scans the directories.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import platform
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

import s2s
from s2s.errors import CheckpointError, RunInUse, SystemRefused
from s2s.failpoints import hit
from s2s.strictjson import strict_json

FORMAT = 1
MANIFEST, MODEL, OPTIMIZER, AVERAGE, STATE = (
    "MANIFEST.json",
    "model.safetensors",
    "optimizer.safetensors",
    "average.safetensors",
    "state.json",
)
IDENTITY = "run.json"
"""What a run's directory says that it is."""
_STEP = re.compile(r"(?:\.old-)?step-([0-9]{1,18})")
_LARGEST_JSON = 8 << 20  # bytes of a state, a manifest or a tensor header: 50,000 tensors
_READ_BACK_BELOW = 1 << 30  # larger checkpoints are trusted to fsync
_PICKLE = "not an s2s model (looks like a PyTorch pickle); s2s does not load pickles"
_INCOMPLETE = "incomplete checkpoint"
_log = logging.getLogger("s2s")

Value = TypeVar("Value")
Warn = Callable[[str], None]


@dataclass
class Snapshot:
    """All that a checkpoint holds. ``state`` is plain JSON values; each shared parameter is passed under one name."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    average: dict[str, Tensor] | None = None


@dataclass
class Loaded:
    """A verified checkpoint, its tensors on the CPU in the types they were saved in."""

    path: Path
    step: int
    snapshot: Snapshot


class SaveFailed(SystemRefused):
    """A checkpoint could not be saved; what was there before is as it was. ``step`` and ``errno`` say which and why."""

    def __init__(self, step: int, error: OSError, need: int, run: Path) -> None:
        self.step, self.errno = step, error.errno
        reason = error.strerror or str(error)
        free = ""
        with suppress(OSError):
            free = f", {shutil.disk_usage(run).free / 1e6:.1f} MB free in {run}"
        reason = f"{reason[:1].lower()}{reason[1:]}"
        super().__init__("", f"could not save step {step}: {reason} (need {need / 1e6:.1f} MB{free})")


# ---------------------------------------------------------------------------------------------- writing files


def _write_file(path: Path, data: bytes) -> None:
    """A new file with the usual permissions, on the disk when this returns; `OSError` keeps its errno."""
    hit("checkpoint.write")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        rest = memoryview(data)
        while rest:  # a write may stop short without an error; the next one then says why
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)  # that of a descriptor has none
        raise
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a directory
            raise
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Give the file this content in one step: readers see the old or the new, also after a crash. Raises `OSError`."""
    # caches are shared, and two containers have the same process numbers
    temporary = path.with_name(f".tmp-{path.name}-{secrets.token_hex(8)}")
    try:
        _write_file(temporary, data)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _encode(tensors: Mapping[str, Tensor]) -> bytes:
    # safetensors refuses views that share memory, as the weights of a flattened RNN do: every tensor is copied
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return safetensors.torch.save(copies)


def _fill(directory: Path, snapshot: Snapshot, state: Mapping[str, Any]) -> None:
    """Write all files of a checkpoint into an empty directory, the manifest last, and read them back."""
    listed: dict[str, dict[str, int | str]] = {}

    def put(name: str, data: bytes) -> None:
        listed[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        _write_file(directory / name, data)

    put(MODEL, _encode(snapshot.model))
    hit("checkpoint.after_model")
    put(OPTIMIZER, _encode(snapshot.optimizer))
    hit("checkpoint.after_optimizer")
    if snapshot.average is not None:
        put(AVERAGE, _encode(snapshot.average))
    put(STATE, json.dumps(state, allow_nan=False, indent=1).encode())
    hit("checkpoint.after_state")
    _write_file(directory / MANIFEST, json.dumps({"files": listed}, indent=1).encode())
    hit("checkpoint.after_manifest")
    _sync_directory(directory)
    if _size(snapshot) < _READ_BACK_BELOW:
        try:
            with _verified(directory):
                pass
        except CheckpointError as error:
            raise OSError(errno.EIO, f"what was written reads back differently: {error}") from error


def _size(snapshot: Snapshot) -> int:
    parts = (snapshot.model, snapshot.optimizer, snapshot.average or {})
    return sum(tensor.nbytes for part in parts for tensor in part.values())


# ---------------------------------------------------------------------------------------------- reading files


def _parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object in UTF-8, read strictly."""
    try:
        value = strict_json(data.decode())
    except ValueError as error:
        raise CheckpointError(where, f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(where, "not a JSON object")
    return value


def require(
    state: Mapping[str, Any], name: str, kind: type[Value], where: str = STATE, least: float | None = None
) -> Value:
    """The field ``name`` of a saved state, of exactly this type (an integer serves as a float) and at least ``least``.

    Raises `CheckpointError` that names the field.
    """
    words = {
        int: "an integer",
        float: "a number",
        str: "a string",
        bool: "true or false",
        list: "a list",
        dict: "a map",
    }
    if name not in state:
        raise CheckpointError(where, f"{name} is missing")
    value = state[name]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise CheckpointError(where, f"{name} should be {words.get(kind, kind.__name__)}, not {repr(value)[:80]}")
    if least is not None and isinstance(value, (int, float)) and value < least:
        raise CheckpointError(where, f"{name} should be at least {least}, not {repr(value)[:80]}")
    return value


def _open(path: Path, where: str) -> BufferedReader:
    """A regular file, open; a pipe in its place must not make us wait."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CheckpointError(where, f"missing: {_INCOMPLETE}") from None
    except OSError as error:
        raise CheckpointError(where, error.strerror) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(where, "not a regular file")
    return os.fdopen(descriptor, "rb")


def _read_json(file: BufferedReader, where: str) -> dict[str, Any]:
    data = file.read(_LARGEST_JSON + 1)
    if len(data) > _LARGEST_JSON:
        raise CheckpointError(where, f"more than {_LARGEST_JSON} bytes")
    return _parse_json(data, where)


def _manifest(directory: Path, label: str) -> dict[str, tuple[int, str]]:
    """Bytes and SHA-256 of every file of a checkpoint, by name; names stay inside the directory."""
    where = f"{label}/{MANIFEST}"
    with _open(directory / MANIFEST, where) as file:
        files = require(_read_json(file, where), "files", dict, where)
    listed: dict[str, tuple[int, str]] = {}
    for name, entry in files.items():
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise CheckpointError(where, f"{name[:80]!r} is not the name of a file in this directory")
        if not isinstance(entry, dict):
            raise CheckpointError(where, f"{name} should have bytes and sha256")
        listed[name] = (require(entry, "bytes", int, where, least=0), require(entry, "sha256", str, where))
    for name in (MODEL, OPTIMIZER, STATE):
        if name not in listed:
            raise CheckpointError(where, f"does not list {name}: {_INCOMPLETE}")
    return listed


def _is_pickle(file: BufferedReader) -> bool:
    """Whether this is a pickle or a zip; both give an impossible length where safetensors has that of its header."""
    file.seek(0)
    start = file.read(8)
    file.seek(0)
    impossible = int.from_bytes(start, "little") > os.fstat(file.fileno()).st_size
    return start.startswith((b"PK\x03\x04", b"\x80")) and impossible


@contextmanager
def _verified(directory: Path) -> Iterator[dict[str, BufferedReader]]:
    """The files of a checkpoint by name, open and verified: what is parsed later is what was verified.

    All are opened before any is read, so that a checkpoint deleted meanwhile is read to its end.
    """
    label = directory.resolve().name
    with ExitStack() as stack:
        listed = _manifest(directory, label)
        files = {name: stack.enter_context(_open(directory / name, f"{label}/{name}")) for name in listed}
        for name, (size, _) in listed.items():
            found = os.fstat(files[name].fileno()).st_size
            if found != size:
                problem = "truncated" if found < size else "not the file that was saved"
                what = f"{found} bytes, manifest says {size}: {problem}"
                raise CheckpointError(f"{label}/{name}", _PICKLE if _is_pickle(files[name]) else what)
        for name, (_, digest) in listed.items():
            if hashlib.file_digest(files[name], "sha256").hexdigest() != digest:
                raise CheckpointError(f"{label}/{name}", _PICKLE if _is_pickle(files[name]) else "checksum mismatch")
            files[name].seek(0)
        yield files


def _tensors(file: BufferedReader, where: str) -> dict[str, Tensor]:
    """The tensors of a verified safetensors file; its header is bounded and checked before the library sees it."""
    length = int.from_bytes(file.read(8), "little")
    if length > min(_LARGEST_JSON, os.fstat(file.fileno()).st_size - 8):
        what = f"not a safetensors file (its header would have {length} bytes)"
        raise CheckpointError(where, _PICKLE if _is_pickle(file) else what)
    _parse_json(file.read(length), where)  # the library takes a tensor that is there twice
    file.seek(0)
    try:
        return safetensors.torch.load(file.read())
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(where, f"not a safetensors file ({error})") from None


def _state(file: BufferedReader, label: str) -> dict[str, Any]:
    """The state of a verified checkpoint, with the fields that every checkpoint has checked."""
    where = f"{label}/{STATE}"
    state = _read_json(file, where)
    written = require(state, "format", int, where, least=1)
    if written > FORMAT:
        writer = f"written by s2s {str(state.get('s2s'))[:40]} (format {written})"
        raise CheckpointError(where, f"{writer}; this is {s2s.__version__} (format {FORMAT}): upgrade")
    for name in ("s2s", "torch", "python", "run_id"):
        require(state, name, str, where)
    step = require(state, "step", int, where, least=0)
    named = _STEP.fullmatch(label)
    if named and int(named[1]) != step:
        raise CheckpointError(where, f"step is {step}, in a directory named {label}")
    return state


def _load(path: Path, only_model: bool) -> Loaded:
    label = path.resolve().name
    try:
        with _verified(path) as files:
            state = _state(files[STATE], label)
            weights = AVERAGE if only_model and AVERAGE in files else MODEL
            snapshot = Snapshot(_tensors(files[weights], f"{label}/{weights}"), {}, state)
            if not only_model:
                snapshot.optimizer = _tensors(files[OPTIMIZER], f"{label}/{OPTIMIZER}")
                if AVERAGE in files:
                    snapshot.average = _tensors(files[AVERAGE], f"{label}/{AVERAGE}")
    except OSError as error:
        raise CheckpointError(label, error.strerror) from error
    return Loaded(path, state["step"], snapshot)


def load(path: Path) -> Loaded:
    """All of the checkpoint in this directory, verified. Raises `CheckpointError`."""
    return _load(path, only_model=False)


# ---------------------------------------------------------------------------------------------- choosing one


def _steps(directory: Path) -> list[tuple[int, Path]]:
    """The checkpoints there, newest first by number; one that was being replaced follows the one that replaced it."""
    if not directory.is_dir():
        return []
    found = [(name, path) for path in directory.iterdir() if (name := _STEP.fullmatch(path.name)) and path.is_dir()]
    ordered = sorted(found, key=lambda item: (-int(item[0][1]), item[1].name.startswith(".old-"), item[1].name))
    return [(int(name[1]), path) for name, path in ordered]


def _claim(path: Path) -> tuple[str | None, float | None]:
    """The run id and score that a checkpoint, perhaps a broken one, says it has."""
    try:
        with _open(path / STATE, STATE) as file:
            state = _read_json(file, STATE)
        own = require(state, "checkpoint", dict)
        score = None if own.get("score") is None else require(own, "score", float)
        return require(state, "run_id", str), score
    except (CheckpointError, OSError):
        return None, None


def _own(run: Path, found: list[tuple[int, Path]], warn: Warn) -> list[tuple[int, Path]]:
    """Without those that another run has saved and a copy has brought here; each is told."""
    try:
        run_id = json.loads((run / IDENTITY).read_bytes())["id"]
    except (OSError, ValueError, LookupError, TypeError):  # told where a training wants to go on
        return found
    kept = []
    for step, path in found:
        owner, _ = _claim(path)
        if owner in (None, run_id):
            kept.append((step, path))
        else:
            warn(f"passing over {path}: belongs to another run ({owner}, this is {run_id})")
    return kept


def _pointer(path: Path) -> int | None:
    """The step that ``latest`` or ``best`` names; None where it is missing or says nothing of the kind."""
    with suppress(OSError, UnicodeDecodeError):
        name = _STEP.fullmatch(path.read_bytes()[:100].decode("ascii").strip())
        return int(name[1]) if name else None
    return None


def _refuse_file(path: Path) -> None:
    if not os.path.lexists(path):
        raise CheckpointError(path, "no such directory", "give the directory of a run")
    pickled = path.suffix in (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")
    if not pickled and path.is_file():
        with _open(path, str(path)) as file:
            pickled = _is_pickle(file)
    raise CheckpointError(path, _PICKLE if pickled else "not an s2s model", "give the directory of a run")


def checkpoints_of(run: Path, warn: Warn) -> dict[int, Path]:
    """A run's own checkpoints by their updates, ascending. Raises `CheckpointError` where there are none."""
    ordered = _own(run, _steps(run / "checkpoints"), warn)
    if not ordered:
        raise CheckpointError(run, "no checkpoints here", "give the directory of a run that has saved one")
    return dict(reversed(ordered))  # the complete one wins over the one it was replacing


def _choose(path: Path, which: str, warn: Warn) -> Path:
    """The directory of the checkpoint that is asked for, in a run's directory or itself one."""
    if not path.is_dir():
        _refuse_file(path)
    name = _STEP.fullmatch(path.resolve().name)
    if name or os.path.lexists(path / MANIFEST):
        asked = _STEP.fullmatch(which)
        if which != "best" and (asked is None or name is None or int(asked[1]) != int(name[1])):
            raise CheckpointError(path, f"is one checkpoint, and not {which!r}", "give the directory of its run")
        return path
    steps = checkpoints_of(path, warn)
    if which in ("best", "latest"):
        step = _pointer(path / which)
        if step not in steps and (which == "latest" or os.path.lexists(path / which)):
            warn(f"{path / which}: names no checkpoint; taking the newest")
        # a save interrupted before it could write `latest` is still the newest
        return steps[step if which == "best" and step in steps else max(steps)]
    name = _STEP.fullmatch(which)
    if not name or int(name[1]) not in steps:
        there = ", ".join(sorted(found.name for found in steps.values()))
        raise CheckpointError(path, f"no checkpoint {which!r}", f"there are best, latest, {there}")
    return steps[int(name[1])]


def load_model(path: Path, which: str = "best", warn: Warn = _log.warning) -> Loaded:
    """The model to translate with: averaged weights where the checkpoint has them; no optimizer.

    ``path`` is a run (``which`` is ``best``, ``latest`` or ``step-N``) or one of its checkpoints. Without a best one
    the newest is taken. Raises `CheckpointError`, also for weights that are not finite.
    """
    loaded = _load(_choose(path, which, warn), only_model=True)
    for name, tensor in loaded.snapshot.model.items():
        if not tensor.isfinite().all():
            raise CheckpointError(loaded.path, f"model contains non-finite values in {name}")
    return loaded


# ---------------------------------------------------------------------------------------------- tensors


def check_tensors(expected: Mapping[str, Tensor], loaded: Mapping[str, Tensor], where: object) -> None:
    """Raises `CheckpointError` unless both have the same names, shapes and types; it says what differs and how."""

    def form(tensor: Tensor) -> str:
        return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"

    problems = [f"{name} is missing ({form(expected[name])})" for name in expected if name not in loaded]
    problems += [f"{name} is not expected ({form(loaded[name])})" for name in loaded if name not in expected]
    problems += [
        f"{name} is {form(loaded[name])}, expected {form(tensor)}"
        for name, tensor in expected.items()
        if name in loaded and form(loaded[name]) != form(tensor)
    ]
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(where, f"tensors do not fit the model: {', '.join(problems[:5])}{more}")


def average(models: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of every floating tensor, summed in float64, in its own type; of the others the last model's value.

    A model is let go before the next one is taken. Raises `CheckpointError` unless all have the same names, shapes and
    types.
    """
    count, forms, totals = 0, dict[str, Tensor](), dict[str, Tensor]()
    for model in models:
        count += 1
        if count == 1:
            forms = {name: tensor.to("meta") for name, tensor in model.items()}
        check_tensors(forms, model, f"model {count}")
        _add(model, totals)
        del model
    if not count:
        raise CheckpointError("", "no models to average")
    return {
        name: (total / count).to(forms[name].dtype) if forms[name].is_floating_point() else total
        for name, total in totals.items()
    }


def _add(model: Mapping[str, Tensor], totals: dict[str, Tensor]) -> None:
    for name, tensor in model.items():
        if not tensor.is_floating_point():
            totals[name] = tensor.clone()
        elif name in totals:
            totals[name] += tensor
        else:
            totals[name] = tensor.to(torch.float64, copy=True)


# ---------------------------------------------------------------------------------------------- a run's checkpoints


def _name(step: int) -> str:
    return f"step-{step:08d}"


class Checkpoints:
    """The checkpoints of one run: saves, keeps the right ones, and finds the newest to resume from.

    The holder of the `RunLock` uses it. ``keep_last`` (at least 1) newest ones are kept, ``keep_best`` with the highest
    scores, the best, and the one resumed from. Directories of another run id are neither loaded, counted nor deleted.
    """

    def __init__(self, run: Path, run_id: str, keep_last: int, keep_best: int = 1, warn: Warn = _log.warning) -> None:
        self.run, self.run_id, self.warn = run, run_id, warn
        self.keep_last, self.keep_best = keep_last, keep_best
        self.directory = run / "checkpoints"
        self.best: int | None = None
        self._resumed: int | None = None
        self._rejected: set[Path] = set()

    def check_space(self, size: int) -> None:
        """Warn where the run's file system has no room for two checkpoints of ``size`` bytes: one replaces another."""
        try:
            free = shutil.disk_usage(self.run).free
        except OSError as error:
            self.warn(f"{self.run}: cannot tell how much space is free: {error.strerror}")
            return
        if free < 2 * size:
            room = f"{free / 1e6:.1f} MB are free, a checkpoint takes {size / 1e6:.1f} MB and two must fit"
            self.warn(f"{self.run}: {room}; make room, or give another --run-dir")

    def save(self, step: int, snapshot: Snapshot, score: float | None = None, is_best: bool = False) -> Path:
        """Save a checkpoint and return its directory; ``score``: higher is better, None without a validation.

        Raises `SaveFailed` (after one more try where the device reported an error) and leaves what was there before.
        """
        best = step if is_best else self.best
        state = {
            **snapshot.state,
            "format": FORMAT,
            "s2s": s2s.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "run_id": self.run_id,
            "step": step,
            "checkpoint": {"score": score if score is not None and math.isfinite(score) else None, "best": best},
        }
        try:
            try:
                target = self._write(step, snapshot, state)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                target = self._write(step, snapshot, state)
        except OSError as error:
            raise SaveFailed(step, error, _size(snapshot), self.run) from error
        self.best = best
        self._rejected.discard(target)
        try:
            self._retire(step)
        except OSError as error:
            self.warn(f"could not look for old checkpoints in {self.directory}: {error.strerror}")
        return target

    def _write(self, step: int, snapshot: Snapshot, state: dict[str, Any]) -> Path:
        self.directory.mkdir(parents=True, exist_ok=True)
        target, old = self.directory / _name(step), self.directory / f".old-{_name(step)}"
        temporary = self.directory / f".tmp-{_name(step)}-{os.getpid()}"
        if target.is_dir() and _claim(target)[0] not in (None, self.run_id):
            raise OSError(errno.EEXIST, f"{target} belongs to another run")
        if temporary.is_dir():  # of a dead process that had our number
            shutil.rmtree(temporary)
        try:
            temporary.mkdir()
            hit("checkpoint.after_mkdir")
            _fill(temporary, snapshot, state)
            hit("checkpoint.before_rename")
            if target.is_dir():
                if old.is_dir():
                    self._discard(old)
                target.rename(old)
            try:
                temporary.rename(target)
            except OSError:
                if old.is_dir():
                    old.rename(target)
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # gone already unless the save failed
        hit("checkpoint.after_rename")
        _sync_directory(self.directory)
        replace_file(self.run / "latest", _name(step).encode())
        hit("checkpoint.after_latest")
        if state["checkpoint"]["best"] == step:
            replace_file(self.run / "best", _name(step).encode())
        if old.is_dir():
            self._discard(old)
        return target

    def _discard(self, path: Path) -> None:
        """Delete a checkpoint; half deleted, it must not look like one. Failure is a warning."""
        trash = path.with_name(f".trash-{path.name.lstrip('.')}-{os.getpid()}")
        try:
            path.rename(trash)
            hit("checkpoint.in_retention")
            shutil.rmtree(trash)
        except OSError as error:
            self.warn(f"could not delete {error.filename or path}: {error.strerror}")

    def _retire(self, current: int) -> None:
        """Delete the checkpoints that need not be kept, now that ``current`` is safe.

        Those that could not be resumed from count for nothing and are left alone.
        """
        scores: dict[int, float | None] = {}
        for step, path in _steps(self.directory):
            owner, score = _claim(path)
            if path.name == _name(step) and owner == self.run_id and path not in self._rejected:
                scores[step] = score
        scored = sorted((-score, step) for step, score in scores.items() if score is not None)
        keep = {current, self.best, self._resumed}
        keep.update(sorted(scores)[-self.keep_last :])
        keep.update(step for _, step in scored[: self.keep_best])
        for step in sorted(scores.keys() - keep):
            self._discard(self.directory / _name(step))

    def clean(self) -> None:
        """Remove what dead saves left behind, and put back a checkpoint whose replacement never arrived."""
        temporaries = list(self.run.glob(".tmp-*"))
        if self.directory.is_dir():
            temporaries += [*self.directory.glob(".tmp-*"), *self.directory.glob(".trash-*")]
        for path in temporaries:
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            except OSError as error:
                self.warn(f"could not delete {error.filename or path}: {error.strerror}")
        for step, path in _steps(self.directory):
            target = self.directory / _name(step)
            if not path.name.startswith(".old-"):
                continue
            try:
                if not target.is_dir():
                    path.rename(target)
                    continue
                with suppress(CheckpointError), _verified(target):
                    self._discard(path)
            except OSError as error:
                self.warn(f"could not tidy {path}: {error.strerror}")

    def load_newest(self, warn: Warn | None = None) -> Loaded | None:
        """The newest checkpoint of this run that verifies; None only where there is none at all.

        Every one that is passed over is named with the reason. Raises `CheckpointError` if none can be used: a run that
        has checkpoints never starts from scratch.
        """
        warn = warn or self.warn
        ordered = _steps(self.directory)
        if not ordered:
            return None
        if _pointer(self.run / "latest") not in dict(ordered):
            warn(f"{self.run / 'latest'}: names no checkpoint; taking the newest")
        reasons = []
        for step, path in ordered:
            owner, _ = _claim(path)
            try:
                if owner not in (None, self.run_id):
                    raise CheckpointError(path.name, f"belongs to another run ({owner}, this is {self.run_id})")
                loaded = load(path)
            except CheckpointError as error:
                self._rejected.add(path)
                reasons.append(str(error))
                warn(f"passing over {error}")
                continue
            self._resumed = step
            self._restore_pointers(loaded, warn)
            return loaded
        raise CheckpointError(
            self.directory, f"no checkpoint can be used: {'; '.join(reasons)}", "restore one, or use a new --run-dir"
        )

    def _restore_pointers(self, loaded: Loaded, warn: Warn) -> None:
        """Let ``latest`` and ``best`` say what they said when this was saved: the save may have died before them."""
        own = require(loaded.snapshot.state, "checkpoint", dict)
        self.best = None if own.get("best") is None else require(own, "best", int)
        for file, step in (("latest", loaded.step), ("best", self.best)):
            if step is None or _pointer(self.run / file) == step or not (self.directory / _name(step)).is_dir():
                continue
            try:
                replace_file(self.run / file, _name(step).encode())
            except OSError as error:
                warn(f"could not write {self.run / file}: {error.strerror}")


# ---------------------------------------------------------------------------------------------- the lock


class RunLock:
    """Holds a run's directory (which exists) for one process: ``with RunLock(run): ...``; a dead holder's lock is free.

    Raises `RunInUse` where another process holds it, `SystemRefused` where it cannot be locked at all.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self._descriptor = -1

    def __enter__(self) -> RunLock:
        path = self.run / "LOCK"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise SystemRefused(path, error.strerror) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            holder = f"pid {os.getpid()} on host {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
            os.ftruncate(descriptor, 0)
            os.write(descriptor, holder.encode())
        except BlockingIOError:
            holder = os.read(descriptor, 500).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise RunInUse(self.run, f"in use by {holder}", "wait for it, or use a new --run-dir") from None
        except OSError as error:
            os.close(descriptor)
            raise SystemRefused(path, error.strerror) from None
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)  # the file stays: deleting it would let two processes lock two files
