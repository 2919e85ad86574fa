"""Notes when each update of a peer's training began and how many real target tokens it had; for the peer's Python."""

from __future__ import annotations

import atexit
import json
import os
import time
import warnings
from pathlib import Path

import torch

warnings.filterwarnings("ignore")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


class Recorder:
    """Prints one line of JSON when the process ends: tokens per second of the updates after the first ``warmup``."""

    def __init__(self, warmup: int) -> None:
        self.warmup, self.began, self.tokens, self.apart = warmup, [], [], 0.0
        atexit.register(self.report)

    def update(self, tokens: int) -> None:
        """An update with so many real target tokens (end of sentence counted, padding not) begins now."""
        self.began.append(time.perf_counter() - self.apart)
        self.tokens.append(tokens)

    def leave_out(self, seconds: float) -> None:
        """Time of validations does not count."""
        self.apart += seconds

    def report(self) -> None:
        """The rate; the last update has no end of its own and only marks the end of the one before."""
        first, last = self.warmup, len(self.began) - 1
        if last <= first:
            return
        tokens, seconds = sum(self.tokens[first:last]), self.began[last] - self.began[first]
        found = {
            "tokens_per_second": tokens / seconds,
            "tokens_per_update": tokens / (last - first),
            "updates": last - first,
            "peak_mib": peak_mib(),
        }
        print(json.dumps(found), flush=True)


def peak_mib() -> float:
    """The most resident memory so far; that of getrusage may be of the process that started this one."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024


def timed(function):  # type: ignore[no-untyped-def]
    """The same function, which adds what it took to the list ``timed.seconds``."""

    def wrapped(*arguments, **options):  # type: ignore[no-untyped-def]
        began = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            timed.seconds.append(time.perf_counter() - began)  # type: ignore[attr-defined]

    return wrapped


timed.seconds = []  # type: ignore[attr-defined]
