"""Batches for the updates, one update ahead: a thread builds the next ones while these are computed with.

What an update gets is a function of where the training stands, so the thread changes nothing but the time: a position
that it did not foresee is built when it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from s2s.data.batches import Batch, Indices, Planned


class TrainingData(Protocol):
    """Batches of a corpus, as functions of the epoch."""

    def plan(self, epoch: int, taken: int) -> Planned[list[Indices]]:
        """The updates of an epoch after the first ``taken`` batches of it, each a list of batches of pair numbers."""
        ...

    def batch(self, indices: Indices, epoch: int, position: int, sentences_before: int) -> Batch:
        """The tensors of one batch, with so many sentences before each of its own.

        ``position``: the batches before it in the epoch, so that whatever is drawn for it is its own.
        """
        ...

    def lines(self, indices: Indices) -> list[int] | list[str]:
        """Where its pairs stand in the files, from 1; with the name of their corpus where there are several."""
        ...


class Supplied(NamedTuple):
    """What an update is made of."""

    group: list[Indices]
    """All its batches."""
    is_last: bool
    """Whether they are the last ones of their epoch."""
    own: list[tuple[int, Batch]]
    """Those of this process, with their places in the group."""


class Supply:
    """The updates of a training in order. A context: at its end the thread has ended."""

    def __init__(
        self,
        data: TrainingData,
        own: Callable[[Sequence[Indices]], list[tuple[int, Indices]]],
        sentences_before: int = 0,
    ) -> None:
        """``own`` says which batches of an update are this process's. ``sentences_before``: `TrainingData.batch`."""
        self._data, self._own, self._before = data, own, sentences_before
        self._plan: Planned[list[Indices]] | None = None  # what was left of an epoch when it was planned
        self._next = 0  # update of the plan
        self._stands = -1, -1  # epoch and position of that update
        self._thread = ThreadPoolExecutor(1, "supply")
        self._coming: tuple[tuple[int, int], Future[Supplied]] | None = None
        self.waited = 0.0
        """Seconds that the last `take` took."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, epoch: int, position: int, more: bool) -> Supplied:
        """The update after the first ``position`` batches of ``epoch``; where there is ``more`` the next is begun."""
        began = time.monotonic()
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] == (epoch, position):
            found = coming[1].result()
        else:
            if coming is not None:
                coming[1].exception()  # of what nobody needs only the end matters: the plan is in its hands until then
            found = self._make(epoch, position)
        if more:
            then = (epoch + 1, 0) if found.is_last else (epoch, position + len(found.group))
            self._coming = then, self._thread.submit(self._make, *then)
        self.waited = time.monotonic() - began
        return found

    def _make(self, epoch: int, position: int) -> Supplied:
        """An epoch is planned once, or once more where a checkpoint left it."""
        if self._plan is None or self._stands != (epoch, position):
            self._plan, self._next = self._data.plan(epoch, position), 0
        group = self._plan[self._next]
        is_last = not _has(self._plan, self._next + 1)
        own = [
            (place, self._data.batch(indices, epoch, position + place, self._before))
            for place, indices in self._own(group)
        ]
        self._next += 1
        self._stands = (epoch, position + len(group))
        if is_last:
            self._plan = None
        return Supplied(group, is_last, own)


def _has(plan: Planned[list[Indices]], index: int) -> bool:
    """Whether there is such an update. Counting them all would be reading all lengths: seconds for 20 million pairs."""
    try:
        plan[index]
    except IndexError:
        return False
    return True
