"""How far self-attention sees in its own sequence, and what of it is held for the places that follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class KeysValues(NamedTuple):
    """Projected keys and values of some places, each (B, groups, S, d / heads)."""

    keys: Tensor
    values: Tensor


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
    keys = torch.arange(read.start, read.stop, read.step, device=device)
    return keys - torch.arange(asking.start, asking.stop, device=device).unsqueeze(1)


class Reach(ABC):
    """Some of the places of a sequence. ``ahead``: whether those behind the one that asks are seen too (an encoder)."""

    def __init__(self, ahead: bool) -> None:
        self.ahead = ahead

    @abstractmethod
    def join(self, held: KeysValues | None, new: KeysValues, passed: int) -> KeysValues:
        """What was held of ``passed`` places before, and of the new ones what belongs here."""

    @abstractmethod
    def view(self, passed: int, count: int, mask: Tensor | None, device: torch.device) -> View:
        """Of ``count`` places after ``passed``; ``mask`` (B, count) tells an encoder which are real."""

    def keep(self, joined: KeysValues) -> KeysValues:
        """What later places can still see."""
        return joined


class Everywhere(Reach):
    """All places."""

    def join(self, held: KeysValues | None, new: KeysValues, passed: int) -> KeysValues:
        return _after(held, new)

    def view(self, passed: int, count: int, mask: Tensor | None, device: torch.device) -> View:
        return _open(range(passed, passed + count), 0, self.ahead, mask, device)


def _after(held: KeysValues | None, new: KeysValues) -> KeysValues:
    """The new behind what is held, in its type."""
    if held is None or not held.keys.size(2):
        return new
    return KeysValues(*(torch.cat([old, one.to(old.dtype)], 2) for old, one in zip(held, new, strict=True)))


def _open(asking: range, first: int, ahead: bool, mask: Tensor | None, device: torch.device) -> Rows:
    """All keys from place ``first`` on that are real and, but for ``ahead``, not behind the query."""
    read, blocked = range(first, asking.stop), None if mask is None else ~mask[:, None, None]
    if not ahead and len(asking) > 1:
        blocked = torch.ones(len(asking), len(read), dtype=torch.bool, device=device).triu(asking.start - first + 1)
    return Rows(blocked, asking, read, device)
