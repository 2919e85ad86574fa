"""How processes part when one of them fails: at once, with one voice, and with one exit code."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from s2s import distributed
from s2s.distributed import World
from s2s.errors import DataError, S2SError, SystemRefused


def failure_of(world: World, work: Callable[[], Any]) -> S2SError:
    """What a process ends with that does ``work``."""
    with pytest.raises(S2SError) as caught, world.one_voice():
        work()
    return caught.value


def fail(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize("quick", [0, 1])
def test_nobody_waits_for_those_who_were_told(monkeypatch: pytest.MonkeyPatch, quick: int) -> None:
    """The keeper of the store leaves when the others have left; whoever is first to, the one that failed speaks."""
    store = HashStore()
    worlds = [World(rank, 2, store, "session") for rank in (0, 1)]
    monkeypatch.setattr(distributed, "_FAREWELL", 60.0)
    errors = [DataError("train.en", "is not there"), DataError("train.en", "is not there")]
    errors[1].told = True
    threads = [
        threading.Thread(target=failure_of, args=(world, lambda error=error: fail(error)), daemon=True)
        for world, error in zip(worlds, errors, strict=True)
    ]
    for rank in (quick, 1 - quick):
        threads[rank].start()
        if rank == 1:  # the first stays for it
            threads[rank].join(10)
    threads[0].join(10)
    assert not any(thread.is_alive() for thread in threads), "the keeper of the store still waits"
    assert [error.told for error in errors] == [False, True]


def test_what_the_system_refuses_to_one_has_one_exit_code() -> None:
    """No bug of the first process, as its traceback would say, and not that of the others either."""
    store = HashStore()
    first, other = (World(rank, 2, store, "session") for rank in (0, 1))
    with pytest.raises(NotADirectoryError):
        first.once(lambda: fail(NotADirectoryError(errno.ENOTDIR, "Not a directory", "train.en/run")))
    with pytest.raises(S2SError) as caught:
        other.once(lambda: None)
    assert (caught.value.code, caught.value.told, str(caught.value)) == (6, True, "train.en/run: Not a directory")
    alone = failure_of(World(), lambda: fail(OSError(errno.ENOSPC, "No space left on device", "run/config.yaml")))
    assert isinstance(alone, SystemRefused) and not alone.told
    assert str(alone) == "run/config.yaml: No space left on device"


class Broken(Store):
    """A store whose keeper is gone."""

    def set(self, key: str, value: str) -> None:
        raise RuntimeError("[c10d] Broken pipe. This may indicate a possible application crash on rank 0")

    def add(self, key: str, amount: int) -> int:
        raise RuntimeError("Broken pipe")


@pytest.mark.parametrize("said", [None, DataError("train.en", "is not there")])
def test_a_launcher_that_died_while_one_worked(said: DataError | None) -> None:
    """Its store went with it: the first process cannot tell the result, and says so; what failed it tells itself."""
    world = World(0, 2, Broken(), "session")
    error = failure_of(world, lambda: world.once(lambda: said and fail(said)))
    assert not error.told
    if said is None:
        assert isinstance(error, SystemRefused) and "process 0 of 2 lost the others: Broken pipe" in str(error)
    else:
        assert error is said


def test_the_result_is_told_as_json() -> None:
    store = HashStore()
    first, other = (World(rank, 2, store, "session") for rank in (0, 1))
    assert first.once(lambda: {"bleu": 0.1, "samples": [["a", "b"]]}) == {"bleu": 0.1, "samples": [["a", "b"]]}
    assert other.once(lambda: fail(AssertionError())) == json.loads('{"bleu": 0.1, "samples": [["a", "b"]]}')
