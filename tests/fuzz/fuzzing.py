"""How a property is fuzzed: a hundred inputs in every run of the tests, ten thousand in the slow ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FEW, MANY = 100, 10_000

Property = Callable[..., None]
"""``check(folder, *inputs)`` asserts what holds for every input; ``folder`` is its own to write in."""


def fuzzed(*inputs: st.SearchStrategy[Any]) -> Callable[[Property], Callable[..., None]]:
    """Make a property a test in two sizes. The inputs are the same in every run, and those met are counted."""

    def as_test(check: Property) -> Callable[..., None]:
        @pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
        def test(count: int, tmp_path: Path) -> None:
            met = 0

            @settings(
                max_examples=count,
                derandomize=True,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(st.tuples(*inputs))
            def run(drawn: tuple[Any, ...]) -> None:
                nonlocal met
                met += 1
                check(tmp_path, *drawn)

            run()
            assert met >= count

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return as_test


def lines_in(data: bytes) -> int:
    """How many lines a text has: its line feeds, and one more where bytes follow the last of them."""
    return sum(byte == 0x0A for byte in data) + (data[-1:] not in (b"", b"\n"))
