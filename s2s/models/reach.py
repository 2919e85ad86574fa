"""How far self-attention sees in its own sequence: everywhere, or a window and a few places beyond it.

    window     j is seen from i where |i - j| <= w                                  Beltagy et al. 2020, section 3.1
    strided    or where j = l - 1, 2 l - 1, ..., the last of every l places         Child et al. 2019, section 4.3

A decoder sees nothing ahead of the place that asks. Scores are formed for what can be seen and little more: for each of
T places 2 w in a decoder and 3 w in an encoder instead of T, and T / l more when strided. A decoder's state holds no
more than can still be seen: the last w places, and every l-th.

Child et al. call this pattern fixed, with blocks where the window is here. Their other one, (i - j) mod l = 0, has no
place that is not seen again, so it would have to keep them all; they find it wanting for text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from s2s.settings import Settings


class KeysValues(NamedTuple):
    """Projected keys and values of some places, each (B, groups, S, d / heads)."""

    keys: Tensor
    values: Tensor


class Passed(NamedTuple):
    """How many words a decoder has read before a call."""

    most: int
    """In the row that has read most."""
    rows: Tensor | None
    """(B,) in each row, where they differ."""

    @classmethod
    def of(cls, rows: Tensor, held: int) -> Passed:
        """``rows`` (B,) as a state has them, with ``held`` places: none before the first word, which needs no look."""
        if not held:
            return cls(0, None)
        least, most = torch.stack(rows.aminmax()).tolist()
        return cls(most, None if least == most else rows)

    @property
    def first(self) -> int | Tensor:
        """The place of the next word: one for all rows, or (B, 1)."""
        return self.most if self.rows is None else self.rows.unsqueeze(1)

    def real(self, count: int) -> Tensor | None:
        """(B, most + count) where rows have words, ``count`` new ones at the end; None: everywhere.

        What is held of a row that has read fewer stands behind places that are not real.
        """
        if self.rows is None:
            return None
        return torch.arange(self.most + count, device=self.rows.device) >= self.most - self.rows.unsqueeze(1)


class View(ABC):
    """How the queries of one call are laid beside the keys that they see; the same in all layers."""

    blocked: Tensor | None
    """True where nothing may be read; broadcasts to the scores (B, heads, ..., t, s) as they are laid out."""

    @property
    @abstractmethod
    def distance(self) -> Tensor:
        """Place of the key minus place of the query, int64; broadcasts to the same."""

    def keys(self, x: Tensor) -> Tensor:
        """Keys or values (B, heads, S, d), laid out."""
        return x

    def ask(self, x: Tensor) -> Tensor:
        """Queries, or their weights (B, heads, T, n), laid out."""
        return x

    def answer(self, x: Tensor) -> Tensor:
        """The way back: to (B, heads, T, n)."""
        return x


class Rows(View):
    """Every query beside all the keys: places ``asking`` beside places ``read``."""

    def __init__(self, blocked: Tensor | None, asking: range, read: range, device: torch.device) -> None:
        self.blocked, self.asking, self.read, self.device = blocked, asking, read, device

    @cached_property
    def distance(self) -> Tensor:  # (T, S)
        return _apart(self.asking, self.read, self.device)


def _apart(asking: range, read: range, device: torch.device) -> Tensor:
    keys = read.start + read.step * torch.arange(len(read), device=device)  # perhaps none: arange refuses such ends
    return keys - torch.arange(asking.start, asking.stop, device=device).unsqueeze(1)


class Blocks(View):
    """Queries cut into blocks of ``behind`` places, each beside the keys of its own window: no pair is far apart.

    ``held`` keys stand before the ``count`` places that ask, at most ``behind`` of them. ``mask`` (B, held + count)
    tells the real ones. A place always sees itself, so that padding has something to read.
    """

    def __init__(
        self, behind: int, ahead: int, held: int, count: int, mask: Tensor | None, device: torch.device
    ) -> None:
        self.count, self.step, self.size = count, behind, 2 * behind + ahead
        self.blocks = -(-count // behind)
        self.missing = self.blocks * behind - count
        self.margin = (behind - held, self.missing + ahead)
        inside = torch.arange(self.size, device=device) - behind
        self._distance = inside - torch.arange(behind, device=device).unsqueeze(1)  # (t, s)
        near = (self._distance >= -behind) & (self._distance <= ahead)
        real = torch.ones(1, held + count, dtype=torch.bool, device=device) if mask is None else mask
        real = pad(real, self.margin).unfold(1, self.size, self.step)[:, None, :, None]  # (B, 1, blocks, 1, s)
        self.blocked = ~(near & (real | (self._distance == 0)))

    @property
    def distance(self) -> Tensor:
        return self._distance

    def keys(self, x: Tensor) -> Tensor:
        return pad(x, (0, 0, *self.margin)).unfold(2, self.size, self.step).transpose(-1, -2)  # (B, h, blocks, s, d)

    def ask(self, x: Tensor) -> Tensor:
        padded = pad(x, (0, 0, 0, self.missing))
        return padded.view(*x.shape[:2], self.blocks, self.step, x.size(3))  # (B, h, blocks, t, n)

    def answer(self, x: Tensor) -> Tensor:
        return x.flatten(2, 3)[:, :, : self.count]


class Reach(ABC):
    """Some of the places of a sequence. ``ahead``: whether those behind the one that asks are seen too (an encoder)."""

    same_age = False
    """Whether all rows must have read as many words."""

    def __init__(self, ahead: bool) -> None:
        self.ahead = ahead

    @abstractmethod
    def join(self, held: KeysValues | None, new: KeysValues, passed: int) -> KeysValues:
        """What was held of ``passed`` places before, and of the new ones what belongs here."""

    @abstractmethod
    def view(self, passed: int, count: int, mask: Tensor | None, device: torch.device) -> View:
        """Of ``count`` places after ``passed``; ``mask`` (B, passed + count) tells which are real."""

    def keep(self, joined: KeysValues) -> KeysValues:
        """What later places can still see."""
        return joined


class Everywhere(Reach):
    """All places."""

    def join(self, held: KeysValues | None, new: KeysValues, passed: int) -> KeysValues:
        return _after(held, new, passed)

    def view(self, passed: int, count: int, mask: Tensor | None, device: torch.device) -> View:
        return _open(range(passed, passed + count), 0, self.ahead, mask, device)


class Near(Reach):
    """The places at most ``size`` away."""

    def __init__(self, size: int, ahead: bool) -> None:
        super().__init__(ahead)
        self.size = size

    def join(self, held: KeysValues | None, new: KeysValues, passed: int) -> KeysValues:
        return _after(held, new, min(passed, self.size))

    def view(self, passed: int, count: int, mask: Tensor | None, device: torch.device) -> View:
        held = min(passed, self.size)
        mask = None if mask is None else mask[:, passed - held :]
        if held + count <= self.size + 1:  # nothing is out of sight
            return _open(range(passed, passed + count), passed - held, self.ahead, mask, device)
        return Blocks(self.size, self.size if self.ahead else 0, held, count, mask, device)

    def keep(self, joined: KeysValues) -> KeysValues:
        return KeysValues(*(part[:, :, -self.size :] for part in joined))


class Far(Reach):
    """The last of every ``stride`` places, where it is more than ``size`` away."""

    same_age = True

    def __init__(self, size: int, stride: int, ahead: bool) -> None:
        super().__init__(ahead)
        self.size, self.stride = size, stride

    def join(self, held: KeysValues | None, new: KeysValues, passed: int) -> KeysValues:
        first = (self.stride - 1 - passed) % self.stride
        return _after(held, KeysValues(*(part[:, :, first :: self.stride] for part in new)), passed // self.stride)

    def view(self, passed: int, count: int, mask: Tensor | None, device: torch.device) -> View:
        asking, read = range(passed, passed + count), range(self.stride - 1, passed + count, self.stride)
        apart = _apart(asking, read, device)
        seen = (apart < -self.size) | (apart > self.size) if self.ahead else apart < -self.size
        if mask is not None:
            seen = seen & mask[:, None, None, self.stride - 1 :: self.stride]
        return Rows(~seen, asking, read, device)


def _after(held: KeysValues | None, new: KeysValues, count: int) -> KeysValues:
    """The new behind the last ``count`` places that are held, in their type."""
    if held is None or not count:
        return new
    first = held.keys.size(2) - count  # more are held after the rows that had read most have left
    return KeysValues(
        *(torch.cat([old[:, :, first:], one.to(old.dtype)], 2) for old, one in zip(held, new, strict=True))
    )


def _open(asking: range, first: int, ahead: bool, mask: Tensor | None, device: torch.device) -> Rows:
    """All keys from place ``first`` on that are real and, but for ``ahead``, not behind the query."""
    read, blocked = range(first, asking.stop), None if mask is None else ~mask[:, None, None]
    if not ahead and len(asking) > 1:
        later = torch.ones(len(asking), len(read), dtype=torch.bool, device=device).triu(asking.start - first + 1)
        blocked = later if blocked is None else blocked | later
    return Rows(blocked, asking, read, device)


class WindowSettings(Settings):
    """Only near places are seen (Beltagy et al. 2020)."""

    kind: Literal["window"]
    size: Annotated[int, Field(ge=1)]
    """Places seen on either side, beside the one that asks; a decoder sees those before."""

    def reaches(self, ahead: bool) -> tuple[Reach, ...]:
        """What is seen, and held, in parts."""
        return (Near(self.size, ahead),)


class StridedSettings(Settings):
    """Near places are seen, and the last of every few (Child et al. 2019)."""

    kind: Literal["strided"]
    size: Annotated[int, Field(ge=1)]
    """Places seen on either side, beside the one that asks; a decoder sees those before."""
    stride: Annotated[int, Field(ge=2)]
    """Every so many places one is seen from everywhere."""

    def reaches(self, ahead: bool) -> tuple[Reach, ...]:
        """What is seen, and held, in parts."""
        return Near(self.size, ahead), Far(self.size, self.stride, ahead)


AnySparse = Annotated[WindowSettings | StridedSettings, Field(discriminator="kind")]
"""Which places self-attention leaves out."""
