"""Batches one update ahead: the same ones in the same order, wherever a training goes on, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from s2s.data.batches import Batch, Indices
from s2s.training.supply import Supply

EPOCHS = {0: [[1, 2], [3, 4], [5]], 1: [[6, 7], [8]], 2: [[9]]}
"""The numbers of the batches of every update; a batch is one pair of its number."""

PLACES = {1: (0, 0), 2: (0, 1), 3: (0, 2), 4: (0, 3), 5: (0, 4), 6: (1, 0), 7: (1, 1), 8: (1, 2), 9: (2, 0)}
"""Epoch and position of each batch."""


class Data:
    """Plans as above, and notes what is built."""

    def __init__(self) -> None:
        self.built: list[int] = []
        self.told: dict[int, tuple[int, int]] = {}
        self.threads: set[str] = set()
        self.came = threading.Event()
        self.broken = 0

    def plan(self, epoch: int, taken: int) -> list[list[Indices]]:
        rest = [number for group in EPOCHS[epoch] for number in group][taken:]
        return [[np.array([number]) for number in rest[first : first + 2]] for first in range(0, len(rest), 2)]

    def batch(self, indices: Indices, epoch: int, position: int, sentences_before: int) -> Batch:
        number = int(indices[0])
        self.told[number] = epoch, position
        self.threads.add(threading.current_thread().name)
        if number == self.broken:
            raise OSError("the disk is gone")
        self.built.append(number)
        if number == 4:
            self.came.set()
        one = torch.tensor([number])
        return Batch(one, one, one, one, [number], None)

    def lines(self, indices: Indices) -> list[int]:
        return []


def everything(items: Sequence[Indices]) -> list[tuple[int, Indices]]:
    return list(enumerate(items))


def second(items: Sequence[Indices]) -> list[tuple[int, Indices]]:
    """What the second of two processes has to do."""
    return list(enumerate(items))[1::2]


@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize(("start", "expected"), [
    ((0, 0), [[1, 2], [3, 4], [5], [6, 7], [8], [9]]), ((0, 2), [[3, 4], [5], [6, 7], [8], [9]]),
    ((0, 1), [[2, 3], [4, 5], [6, 7], [8], [9]]), ((1, 2), [[8], [9]]),
])  # fmt: skip
def test_the_updates_in_order_from_anywhere(more: bool, start: tuple[int, int], expected: list[list[int]]) -> None:
    """The next epoch follows the last update of one; only with more to come is anything built ahead."""
    (epoch, position), data = start, Data()
    with Supply(data, everything) as supply:
        for numbers in expected:
            found = supply.take(epoch, position, more and numbers != expected[-1])
            assert [batch.pairs for _, batch in found.own] == [[number] for number in numbers]
            assert [int(indices[0]) for indices in found.group] == numbers
            epoch, position = (epoch + 1, 0) if found.is_last else (epoch, position + len(found.group))
        assert epoch == 3 and position == 0
    assert data.built == [number for numbers in expected for number in numbers], "each once"
    assert data.told.items() <= PLACES.items()


def test_the_next_update_is_built_without_being_asked_for() -> None:
    data = Data()
    with Supply(data, everything) as supply:
        supply.take(0, 0, more=True)
        assert data.came.wait(10)
        assert data.built == [1, 2, 3, 4] and len(data.threads) == 2
        assert supply.waited >= 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("supply")]


def test_a_process_builds_only_what_is_its_own() -> None:
    data = Data()
    with Supply(data, second) as supply:
        own = [supply.take(0, position, more=position < 4).own for position in (0, 2, 4)]
    assert [[(place, batch.pairs) for place, batch in one] for one in own] == [[(1, [2])], [(1, [4])], []]
    assert data.told == {2: PLACES[2], 4: PLACES[4]}, "that of one process alone"


def test_a_position_that_was_not_foreseen() -> None:
    """Another number of processes, or a checkpoint that was loaded meanwhile."""
    data = Data()
    with Supply(data, everything) as supply:
        supply.take(0, 0, more=True)
        assert [batch.pairs for _, batch in supply.take(0, 3, more=True).own] == [[4], [5]]
        assert [batch.pairs for _, batch in supply.take(1, 0, more=False).own] == [[6], [7]]


def test_an_error_comes_with_the_update_that_needs_the_batch() -> None:
    data = Data()
    data.broken = 4
    with Supply(data, everything) as supply:
        assert [batch.pairs for _, batch in supply.take(0, 0, more=True).own] == [[1], [2]]
        with pytest.raises(OSError, match="the disk is gone"):
            supply.take(0, 2, more=True)
        data.broken = 0
        assert [batch.pairs for _, batch in supply.take(0, 2, more=False).own] == [[3], [4]]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("supply")]
