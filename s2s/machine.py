"""What is asked of the machine before heavy work begins."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc


def keep_freed_memory() -> None:
    """Let glibc's allocator keep up to 512 MiB of what is freed, instead of giving every large tensor back at once.

    A search step makes and drops tensors of 10 MB. By default each comes from the system, page by page and zeroed, and
    goes back: on two cores that was a third of the time of beam search in bf16. Other allocators are left alone.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
    mallopt(_M_TRIM_THRESHOLD, 512 << 20)
    mallopt(_M_TOP_PAD, 16 << 20)


def use_huge_pages() -> None:
    """Let torch ask for pages of 2 MiB for tensors of that size and more.

    The first touch of a page of 4 KiB costs microseconds on a virtual machine, and the scores of one batch, 33 MB, come
    with 8,000 of them; docs/speed.md has the gain. torch looks at the environment when it first makes a tensor; what a
    user set there stays. Where the system has no such pages torch would warn, and is not asked. In search, whose large
    tensors are of a new size at every step, no steady gain was seen, and training alone asks.
    """
    if _HUGE_PAGES.exists():
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_few_kernels() -> None:
    """Let oneDNN keep the last 64 kernels that it compiled, instead of 1,024 in each of two caches.

    Products of bf16 are compiled for every shape, attention's for those of every batch, most of which never return:
    configs/multi30k/quick.yaml, in one thread, had 1,660 MB after 200 updates and still grew; with 64 it stays below
    830, and is 8 % faster; the first 40 updates of configs/bench/r1.yaml in two threads are some 5 % slower. With fewer
    still, those that do return are compiled again. oneDNN looks at the environment when it compiles for the first
    time; what a user set there stays. Search, whose shapes return, keeps the usual number.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "64")


def start_vector_mathematics() -> None:
    """Let MKL choose its kernels of exp, tanh and the like in one thread.

    It does so in the first call. Where that call came from two threads at once, one of them could still compute with a
    coarser kernel: in half of all trainings of configs/bench/r1.yaml in bf16, the first tanh was off by 5e-5 in one
    row, and the same seed gave one of two runs.
    """
    import torch  # not above: the command line asks for memory before it knows whether it needs this

    torch.exp(torch.zeros(16))
