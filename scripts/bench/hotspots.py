"""Where the time of a training or of a translation goes: the ten operations that take most of it.

    python scripts/bench/hotspots.py r1 [--precision float32]         12 updates of a workload of configs/bench
    python scripts/bench/hotspots.py r1 --translate [--beam 5]        the test set, by a model of speed.py --translate

Shares are of the time that PyTorch's own profiler sees in operations themselves, what they call left out; recording
slows short operations more than long ones. The figures join docs/results/speed-profile.json.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from speed import CONFIGS, RESULTS, WORK, Row, machine, of_updates
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from s2s import config as configuration
from s2s.commands.train import train
from s2s.data.text import read_raw_lines
from s2s.machine import keep_freed_memory
from s2s.run import load_trained
from s2s.search.translate import Translator

RESULT = RESULTS / "speed-profile.json"
TOP = 10


def training(workload: str, precision: str, updates: int) -> Callable[[], None]:
    """A few updates, without validation."""
    settings = of_updates(updates, f"training.precision={precision}")
    return lambda: train(CONFIGS / f"{workload}.yaml", settings, WORK / "profile", overwrite=True)


def translation(workload: str, precision: str, beam: int, count: Counter[str]) -> Callable[[], None]:
    """The test set. Counted are its sentences, the steps of search, and the rows that all of them computed."""
    trained = load_trained(WORK / f"model-{workload}", torch.device("cpu"))
    test = configuration.load(WORK / f"model-{workload}" / "config.yaml").data.test
    assert test is not None
    changes = {"beam": beam, "precision": "bf16" if precision == "bf16" else "float32"}
    settings = trained.config.search.model_copy(update=changes)
    translator = Translator(trained.model, trained.tokenizers, settings, torch.device("cpu"))
    lines = list(read_raw_lines(test.source))
    step = trained.model.step

    def counting(token: Tensor, *more: Any) -> Any:
        count.update(steps=1, rows=len(token))
        return step(token, *more)

    trained.model.step = counting  # type: ignore[method-assign, assignment]

    def work() -> None:
        count.update(sentences=len(lines))
        for _ in translator.translate(lines):
            pass

    return work


def top(work: Callable[[], None]) -> tuple[list[Row], float]:
    """The operations that took most of the time of their own, and the seconds of all."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        work()
    events = sorted(recorded.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    rows = [
        {"operation": event.key, "share": event.self_cpu_time_total / total, "calls": event.count}
        for event in events[:TOP]
    ]
    return rows, total / 1e6


def table(kept: Row) -> str:
    """Every profile of the result file, side by side."""
    lines = []
    for name, found in kept.items():
        counted = "".join(f", {number:,} {what}" for what, number in found.get("counted", {}).items())
        lines += [f"**{name}**, {found['seconds']:.1f} s{counted}", ""]
        lines += ["| operation | share | calls |", "|---|--:|--:|"]
        for row in found["rows"]:
            lines.append(f"| `{row['operation']}` | {100 * row['share']:.1f} % | {row['calls']:,} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def main() -> None:
    """Profile, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    parser.add_argument("--precision", choices=("auto", "float32", "bf16"), default="auto")
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--translate", action="store_true")
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--name", default="", help="what this state of the code is called in the result")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    count: Counter[str] = Counter()
    if options.translate:
        what = f"{options.workload}, translation, beam {options.beam}"
        work = translation(options.workload, options.precision, options.beam, count)
    else:
        what = f"{options.workload}, training"
        work = training(options.workload, options.precision, options.updates)
    rows, seconds = top(work)
    name = ", ".join(part for part in (what, options.precision, options.name) if part)
    kept: Row = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    kept[name] = {"seconds": seconds, "rows": rows, "machine": machine(options.threads)}
    if count:
        kept[name]["counted"] = dict(count)
    RESULT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(table({name: kept[name]}))


if __name__ == "__main__":
    main()
