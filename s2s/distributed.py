"""Several processes that train one model: which of them this is, and the few things they do together.

Nothing else knows of ranks. PyTorch's launcher says in the environment how many processes there are (RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR, MASTER_PORT); without it there is one, and nothing here sends or waits. Two channels join them:
a process group, for gradients and for small messages in which all take part at once, and the launcher's key-value
store, for what one does while the others wait: that may take hours, which a collective operation is not made for.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed as torch_distributed
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from s2s.errors import ConfigError, S2SError, Stopped, SystemRefused, refusal

T = TypeVar("T")

LAUNCHED = "WORLD_SIZE"
"""The variable that a launcher sets: how many processes there are."""
_MEETING = timedelta(minutes=5)
"""How long a process waits at the start for the one that keeps the store."""
_LOOK = 0.02  # seconds between two looks at whether the first process is done
_FAREWELL = 5.0  # seconds that the keeper of the store stays after a failure, for the others to ask who speaks
_BUCKET = 1 << 23
"""Numbers that are summed in one message: 32 MB of float32 stand in memory twice."""
_PIECE = 1 << 20
"""Characters of a text that stand under one key: the store takes 8 MB at once."""


class World:
    """All processes of a training as one of them sees them. ``World()`` is a process alone."""

    def __init__(self, rank: int = 0, size: int = 1, lasting: Store | None = None, session: str = "") -> None:
        """``lasting`` is the launcher's store, ``session`` what these processes alone keep their keys under."""
        self.rank, self.size, self._lasting = rank, size, lasting
        self._store = None if lasting is None else PrefixStore(session, lasting)
        self._turn = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    # --- beginning and end --------------------------------------------------------------------------------------------

    @classmethod
    def launched(cls) -> World:
        """What the launcher started. Raises ConfigError for half an environment, SystemRefused where nobody answers."""
        size = _number(LAUNCHED, 1) if LAUNCHED in os.environ else 1
        if size == 1:
            return cls()
        rank, port = _number("RANK", 0), _number("MASTER_PORT", 1)
        place = f"{_variable('MASTER_ADDR')}:{port}"
        if rank >= size or port >= 1 << 16:
            what = f"RANK={rank} of WORLD_SIZE={size} at MASTER_PORT={port} cannot be"
            raise ConfigError("the environment", what, "start with torchrun")
        try:
            store, _, _ = next(rendezvous("env://", timeout=_MEETING))
            lasting = PrefixStore("s2s", store)
            return cls(rank, size, lasting, _session(lasting, rank, size))
        except RuntimeError as error:
            if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
                raise SystemRefused(place, "the port is in use", "set another MASTER_PORT") from error
            what = f"process {rank} of {size} did not find the others there in {_MEETING.seconds // 60} minutes"
            raise SystemRefused(place, what, "set MASTER_ADDR and MASTER_PORT to where process 0 runs") from error

    def begin(self, device: torch.device, minutes: float) -> None:
        """Join the others for computing on ``device``; whoever keeps them waiting for ``minutes`` is given up."""
        if self._store is None:
            return
        self.take_device(device, "training.device")
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with self._together():
            torch_distributed.init_process_group(
                backend,
                store=PrefixStore("group", self._store),
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(minutes=minutes),
            )

    def take_device(self, device: torch.device, setting: str) -> None:
        """Of the GPUs of a machine each of its processes has its own; ``setting`` is what asked for one."""
        if self.size == 1 or device.type != "cuda":
            return
        local = _number("LOCAL_RANK", 0)
        if local >= torch.cuda.device_count():
            what = f"{local + 1} processes on this machine, which has {torch.cuda.device_count()} GPUs"
            raise ConfigError(setting, what, "start one process a GPU")
        torch.cuda.set_device(local)

    def end(self) -> None:
        """Part from the others in good order. Not after a failure: they may be gone, and waiting would hide it."""
        if self.size > 1:
            torch_distributed.destroy_process_group()

    # --- work that is divided -----------------------------------------------------------------------------------------

    def own(self, items: Sequence[T]) -> list[tuple[int, T]]:
        """The items that are this process's, with their numbers: rank, rank + size, ..."""
        return list(enumerate(items))[self.rank :: self.size]

    def collect(self, values: Sequence[Any]) -> list[Any]:
        """What every process has to tell of its `own` items, JSON values, in the order of all items."""
        rows = zip_longest(*self.gather(list(values)), fillvalue=_NONE)
        return [value for row in rows for value in row if value is not _NONE]

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all processes in the order of ranks; all must ask."""
        if self.size == 1:
            return [value]
        data = json.dumps(value).encode()
        lengths = [int(length) for length in self._gather(torch.tensor([len(data)]))]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        rows = self._gather(padded)
        return [json.loads(row[:length].numpy().tobytes()) for row, length in zip(rows, lengths, strict=True)]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every parameter the sum of its gradients in all processes; one that has none anywhere gets none.

        Not DistributedDataParallel: that averages, while every gradient here is divided by the tokens of the whole
        update already; it must be told of parameters without a gradient and of processes without a batch, both of which
        are usual here; and it sums micro-batches in another order than a process alone. Here the gradients of an update
        are added as they are, in messages of bounded size, so two processes come to what one with two batches an update
        comes to. The price is that sending does not overlap with the backward pass.
        """
        if self.size == 1:
            return
        waiting = list(parameters)
        anywhere = [any(row) for row in zip(*self.gather([p.grad is not None for p in waiting]), strict=True)]
        for parameter, there in zip(waiting, anywhere, strict=True):
            if there and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter for parameter in waiting if parameter.grad is not None]):
            flat = torch.cat([parameter.grad.flatten() for parameter in bucket if parameter.grad is not None])
            with self._together():
                torch_distributed.all_reduce(flat)
            for parameter, total in zip(bucket, torch.split(flat, [p.numel() for p in bucket]), strict=True):
                parameter.grad = total.view_as(parameter)

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Give the tensors, in the same order everywhere, the values that they have in the first process."""
        if self.size > 1:
            for tensor in tensors:
                with self._together(), torch.no_grad():
                    torch_distributed.broadcast(tensor, 0)

    # --- work that one does -------------------------------------------------------------------------------------------

    def once(self, work: Callable[[], Any]) -> Any:
        """The result of ``work``, a JSON value, done by the first process while the others wait as long as it takes.

        Where it raises, all raise: the others an `S2SError` with the same exit code, as told already. They wait in
        Python, so that their signals are noted meanwhile.
        """
        if self._store is None:
            return work()
        self._turn += 1
        key = f"once/{self._turn}"
        if self.first:
            try:
                answer = json.dumps({"result": work()})
                with self._together():
                    self._store.set(key, answer)
            except BaseException as error:
                with suppress(RuntimeError):  # where nobody is left to hear of it, it is still what must be told
                    self._store.set(key, json.dumps({"failed": _words(error)}))
                raise
        with self._together():
            while not self._store.check([key]):
                time.sleep(_LOOK)
            answer = json.loads(self._store.get(key))
        if "failed" in answer:
            raise _told(**answer["failed"])
        return answer["result"]

    def first_then_all(self, work: Callable[[], T]) -> T:
        """Every process's own result of ``work``; the others begin when the first is done, and find what it left."""
        results: list[T] = []
        self.once(lambda: results.append(work()))
        return results[0] if self.first else work()

    # --- texts that all can read -------------------------------------------------------------------------------------

    def put(self, name: str, text: str, lasting: bool = False) -> None:
        """Show a text, not an empty one, to all.

        A ``lasting`` one is shown to those too that the launcher starts in the place of these after a failure.
        """
        store = self._shelf(lasting)
        pieces = [text[first : first + _PIECE] for first in range(0, len(text), _PIECE)]
        with self._together():
            for number, piece in enumerate(pieces):
                store.set(f"text/{name}/{number}", piece)
            store.set(f"text/{name}", str(len(pieces)))

    def look(self, name: str, lasting: bool = False) -> str | None:
        """The text of this name; None where there is none, or none any more."""
        store, key = self._shelf(lasting), f"text/{name}"
        with self._together():
            if not store.check([key]):
                return None
            count = store.get(key)
            data = b"".join(store.get(f"{key}/{number}") for number in range(int(count)))
            return data.decode() if int(count) and store.get(key) == count else None  # it may have been dropped here

    def has(self, name: str, lasting: bool = False) -> bool:
        """Whether `look` would find a text, for less than it costs to read it."""
        store, key = self._shelf(lasting), f"text/{name}"
        with self._together():
            return bool(store.check([key]) and int(store.get(key)))

    def drop(self, name: str, lasting: bool = False) -> None:
        """Nobody needs the text any more. Its keys stay: a reader that was about to ask for one would wait for it."""
        store, key = self._shelf(lasting), f"text/{name}"
        with self._together():
            if store.check([key]):
                count = int(store.get(key))
                store.set(key, "0")
                for number in range(count):
                    store.set(f"{key}/{number}", "")

    def ticket(self, name: str) -> int:
        """0, 1, 2, ...: each to one process only."""
        with self._together():
            return int(self._shelf().add(f"ticket/{name}", 1)) - 1

    def _shelf(self, lasting: bool = False) -> Store:
        store = self._lasting if lasting else self._store
        assert store is not None, "a process alone has nobody to tell"
        return store

    # --- what outlives a failure --------------------------------------------------------------------------------------

    def note(self, name: str) -> None:
        """Remember something for the processes that the launcher starts in the place of these after a failure."""
        if self._lasting is not None:
            self._lasting.set(name, "")

    def noted(self, name: str) -> bool:
        """Whether it was noted, since the launcher began."""
        if self._lasting is None:  # a process alone: it is the only one that a launcher counts
            return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        return bool(self._lasting.check([name]))

    # --- failures -----------------------------------------------------------------------------------------------------

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        """Of the failures of all processes in this context the first is told; the others are marked as told.

        What the system refuses is a failure like the others: an OSError leaves as a SystemRefused.
        """
        try:
            yield
        except S2SError as error:
            error.told = not self._speaks(error.told)
            raise
        except OSError as error:
            refused = refusal(error)
            refused.told = not self._speaks(told=False)
            raise refused from error

    @contextmanager
    def led(self) -> Iterator[None]:
        """Failures in this context are the first process's to tell, which hears of the others' by `check_others`.

        It alone knows what became of the output. Where it is gone, or does not listen, another tells its own, but not
        of a signal: who sent it knows.
        """
        try:
            yield
        except (S2SError, OSError) as error:
            failure = refusal(error) if isinstance(error, OSError) else error
            if failure.told:
                self.part()
            else:
                heard = self._is_handed_over(failure)
                failure.told = heard or (isinstance(failure, Stopped) and not self.first)
            if failure is error:
                raise
            raise failure from error

    def check_others(self) -> None:
        """Raises what another process has failed with; for the first one to tell, to the others as told already."""
        if self._store is None:
            return
        key = "failed/other" if self.first else "failed/first"
        with self._together():
            if not self._store.check([key]):
                return
            error = _told(**json.loads(self._store.get(key)))
        error.told = not self.first
        raise error

    def _is_handed_over(self, error: S2SError) -> bool:
        """Whether somebody else tells of it."""
        if self._store is None:
            return False
        try:
            self._store.set("failed/first" if self.first else "failed/other", json.dumps(_words(error)))
            end = time.monotonic() + _FAREWELL
            while not (heard := bool(self._store.check(["failed/first"]))) and time.monotonic() < end:
                time.sleep(_LOOK)
        except RuntimeError:  # its keeper is gone
            return False
        self.part()
        return heard and not self.first

    def part(self) -> None:
        """Leave without a process group; where the store goes with the first process, it stays until all have left."""
        if self._store is None:
            return
        with suppress(RuntimeError):  # its keeper is gone: the work was done, or somebody has said why not
            self._store.add("gone", 1)
            if self.first and not torch_distributed.is_torchelastic_launched():
                end = time.monotonic() + _FAREWELL
                while self._store.add("gone", 0) < self.size and time.monotonic() < end:
                    time.sleep(_LOOK)

    def _speaks(self, told: bool) -> bool:
        """Whether this process, which ends with a failure, is the first of those that were not told of one."""
        if self._store is None:
            return not told
        try:
            speaks: bool = not told and self._store.add("failures", 1) == 1
        except RuntimeError:  # its keeper is gone
            return not told
        self.part()
        return speaks

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Raises SystemRefused where the others are gone, or do not come in time."""
        try:
            yield
        except RuntimeError as error:
            reason = re.sub(r"^\[[^]]*\] ", "", str(error).splitlines()[0]).partition(". ")[0]
            what = f"process {self.rank} of {self.size} lost the others: {reason}"
            todo = "see what they say; the same command goes on from the last checkpoint"
            raise SystemRefused("", what, todo) from error

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        rows = [torch.empty_like(tensor) for _ in range(self.size)]
        with self._together():
            torch_distributed.all_gather(rows, tensor)
        return rows


_NONE = object()
"""Where a process has fewer items than another."""


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The parameters in their order, in runs of one type that have `_BUCKET` numbers at most, or are one parameter."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        full = sum(one.numel() for one in bucket) + parameter.numel() > _BUCKET
        if bucket and (full or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def _session(store: Store, rank: int, size: int) -> str:
    """A name that these processes have in common with nobody, found by all of them meeting in the store.

    After a restart the launcher's store still has what the processes before them left, and the count of restarts is
    not the same on all machines. Raises RuntimeError where not all come.
    """
    own, end = uuid.uuid4().hex, time.monotonic() + _MEETING.total_seconds()
    store.set(f"hello/{rank}", own)
    keys = [f"hello/{other}" for other in range(1, size)]
    while time.monotonic() < end:
        if rank == 0:
            present = [store.get(key).decode() for key in keys if store.check([key])]
            store.set("session", json.dumps([own, present]))
            if store.add(f"{own}/present", 0) == size - 1:
                return own
        elif store.check(["session"]):
            session, present = json.loads(store.get("session"))
            if own in present:
                store.add(f"{session}/present", 1)
                return str(session)
        time.sleep(_LOOK)
    raise RuntimeError("not all processes came")


def _variable(name: str) -> str:
    if name not in os.environ:
        what = "is not set, but WORLD_SIZE is"
        raise ConfigError(name, what, "start with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT")
    return os.environ[name]


def _number(name: str, least: int) -> int:
    text = _variable(name)
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise ConfigError(name, f"is {text!r}, not a number from {least} on", "start with torchrun")
    return int(text)


def _words(error: BaseException) -> Mapping[str, Any]:
    """What the other processes are told of an error."""
    if isinstance(error, OSError):
        error = refusal(error)
    if isinstance(error, S2SError):
        return {"code": error.code, "where": error.where, "what": error.what, "todo": error.todo}
    return {"code": 1, "where": "", "what": f"process 0 failed: {error!r}", "todo": ""}


def _told(code: int, where: str, what: str, todo: str) -> S2SError:
    """The error of the first process in another one."""
    error = S2SError(where, what, todo)
    error.code, error.told = code, True
    return error
