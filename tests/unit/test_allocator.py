"""What is asked of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from s2s import machine

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

PAGES = """
import resource, sys
from s2s.machine import use_huge_pages
if sys.argv[1] == "huge":
    use_huge_pages()
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.zeros(40 << 20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


KERNELS = """
import sys, torch
from s2s.machine import keep_few_kernels
if sys.argv[1] == "keep":
    keep_few_kernels()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
matrix = torch.zeros(256, 256, dtype=torch.bfloat16)
for rows in range(1, 601):
    torch.zeros(rows, 256, dtype=torch.bfloat16) @ matrix
    if rows == 100:
        before = resident()
print(resident() - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="no bf16 here",
)
def test_kernels_of_shapes_that_do_not_return_are_not_kept() -> None:
    """Memory grows with every new number of rows, or it does not."""
    usual = {name: value for name, value in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
    grown, kept = (
        int(subprocess.run([sys.executable, "-c", KERNELS, how], capture_output=True, env=usual, check=True).stdout)
        for how in ("leave", "keep")
    )
    assert grown > 20 << 20
    assert kept < grown / 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_what_is_freed_is_used_again() -> None:
    """The pages of 20 MB, asked for ten times, come from the system ten times or not again."""
    again, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("leave", "keep")
    )
    assert again > 10 * 20  # huge pages may make them few
    assert kept < again / 10


def huge_pages_on_request() -> bool:
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return path.exists() and "[madvise]" in path.read_text()


@pytest.mark.skipif(not huge_pages_on_request(), reason="the system has none, or gives them unasked")
def test_a_large_tensor_is_of_few_pages() -> None:
    """40 MB are 10,240 pages of the usual kind, or 20 large ones."""
    usual = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    many, few = (
        int(subprocess.run([sys.executable, "-c", PAGES, how], capture_output=True, env=usual, check=True).stdout)
        for how in ("leave", "huge")
    )
    assert many >= 10_240
    assert few < 1_000


def test_huge_pages_are_asked_for_where_there_are_any(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And never against the user's wish."""
    name = "THP_MEM_ALLOC_ENABLE"
    monkeypatch.setenv(name, "x")  # put back after the test
    monkeypatch.delenv(name)
    monkeypatch.setattr(machine, "_HUGE_PAGES", tmp_path / "enabled")
    machine.use_huge_pages()
    assert name not in os.environ
    (tmp_path / "enabled").touch()
    machine.use_huge_pages()
    assert os.environ[name] == "1"
    monkeypatch.setenv(name, "0")
    machine.use_huge_pages()
    assert os.environ[name] == "0"
