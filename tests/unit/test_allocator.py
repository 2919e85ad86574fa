"""What is asked of the machine."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from s2s.machine import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def touched(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        bytes(20 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
touched(2)
print(touched(10))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_what_is_freed_is_used_again() -> None:
    """The pages of 20 MB, asked for ten times, come from the system ten times or not again."""
    again, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("leave", "keep")
    )
    assert again > 10 * 20  # huge pages may make them few
    assert kept < again / 10
