"""Numbers that change in training."""

from __future__ import annotations

from typing import Literal

import pytest

from s2s.schedules import Ramp, value_at


@pytest.mark.parametrize("shape", ["linear", "exponential"])
@pytest.mark.parametrize("end", [1e-17, 1e-3, 0.3, 7.0])
def test_a_ramp_ends_at_its_end(shape: Literal["linear", "exponential"], end: float) -> None:
    """To the last digit: one that was checked to be above zero is."""
    ramp = Ramp(start=1.0, end=end, updates=5, after=3, shape=shape)
    assert value_at(ramp, 0) == value_at(ramp, 3) == 1.0
    assert value_at(ramp, 8) == value_at(ramp, 1000) == end
    middle = (1.0 + end) / 2 if shape == "linear" else end**0.5
    assert value_at(Ramp(start=1.0, end=end, updates=4, shape=shape), 2) == pytest.approx(middle)
