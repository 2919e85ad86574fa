"""Ramps: settings that change while a model is trained, as functions of the update number alone."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from s2s.settings import Settings


class Ramp(Settings):
    """From one value to another, over the first updates or later: a function of the update number alone."""

    start: float
    """Value until update ``after``."""
    end: float
    """Value from update ``after`` + ``updates`` on."""
    updates: Annotated[int, Field(ge=1)]
    """Updates that the way takes."""
    after: Annotated[int, Field(ge=0)] = 0
    """Updates before the way begins."""
    shape: Literal["linear", "exponential"] = "linear"
    """linear: equal steps; exponential: equal factors."""

    @model_validator(mode="after")
    def _has_factors(self) -> Self:
        if self.shape == "exponential" and min(self.start, self.end) <= 0:
            raise ValueError("shape: exponential needs start and end above 0; write shape: linear")
        return self


def value_at(value: float | Ramp, update: int) -> float:
    """A number as it is; a ramp's value at ``update``."""
    if not isinstance(value, Ramp):
        return value
    way = max(0, update - value.after) / value.updates
    if way >= 1.0:
        return value.end
    if value.shape == "linear":
        return value.start + (value.end - value.start) * way
    return float(value.start * (value.end / value.start) ** way)


def whole_at(value: int | Ramp, update: int) -> int:
    """The same to the nearest whole number, halves up."""
    return math.floor(value_at(value, update) + 0.5)


def ends(value: float | Ramp) -> tuple[float, float]:
    """The values between which all of a ramp's lie; of a number itself, twice."""
    return (value.start, value.end) if isinstance(value, Ramp) else (value, value)


def is_probability(value: float | Ramp) -> float | Ramp:
    """The value itself. Raises ValueError where it is, or becomes, no probability."""
    if min(ends(value)) < 0 or max(ends(value)) > 1:
        raise ValueError("must be a probability, between 0 and 1, from start to end")
    return value
