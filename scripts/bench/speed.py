"""Training and translation speed of the workloads in configs/bench, on this machine, alone.

    python scripts/bench/speed.py                    all workloads: training tokens/s, sentences/s with beam 1 and 5
    python scripts/bench/speed.py r1 t --rounds 5    some of them, in alternating rounds

Training speed is real target tokens (EOS counted, padding not) per second over whole updates after a warm-up, data
included, validation not. Each round measures every workload once, so that a drift of the machine meets all of them;
the median over rounds is given with the lowest and highest. Translation is of the first validation sentences by a
model that was just initialised and always runs to its length limit, so it compares searches, not qualities.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from s2s import config as configuration
from s2s.commands.train import EpochData, resolved
from s2s.data.prepare import prepare
from s2s.progress import say
from s2s.run import build_model
from s2s.search.translate import Translator
from s2s.training.objective import TrainingStep
from s2s.training.trainer import seed_forward

ROOT = Path(__file__).resolve().parent.parent.parent
WARMUP = 8
SENTENCES = 128


class Workload:
    """One config, ready to be timed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.config = resolved(configuration.load(ROOT / "configs" / "bench" / f"{name}.yaml"))
        self.prepared = prepare(self.config.data, self.config.tokenizer, ROOT / "runs" / ".cache", lambda line: None)
        self.model = build_model(self.config, self.prepared.tokenizers)
        self.data = EpochData(self.config, self.prepared)
        self.plan = self.data.plan(0)
        self.step = TrainingStep(self.model, self.config.objective)
        self.optimizer = self.config.optimizer.build(self.step)
        self.next = 0
        self.train(WARMUP)

    def train(self, updates: int) -> float:
        """Target tokens per second over so many updates."""
        self.step.train()
        began, tokens = time.perf_counter(), 0
        for _ in range(updates):
            batch = self.data.batch(self.plan[self.next % len(self.plan)][0], 0)
            self.next += 1
            seed_forward(1, self.next, 0)
            kind = torch.bfloat16
            with torch.autocast("cpu", kind, enabled=self.config.training.precision == "bf16"):
                sums = self.step(batch.source, batch.source_lengths, batch.target)
            count = int(sums.tokens)
            (sums.loss / count).backward()
            torch.nn.utils.clip_grad_norm_(self.step.parameters(), 1.0, foreach=True)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            tokens += count
        return tokens / (time.perf_counter() - began)

    def translate(self, beam: int) -> float:
        """Sentences per second."""
        assert self.prepared.valid is not None
        lines = [self.prepared.valid.text(index)[0] for index in range(SENTENCES)]
        settings = self.config.search.model_copy(update={"beam": beam})
        translator = Translator(self.model, self.prepared.tokenizers, settings, torch.device("cpu"))
        began = time.perf_counter()
        count = sum(1 for _ in translator.translate(lines))
        return count / (time.perf_counter() - began)


def matrix_product(kind: torch.dtype) -> float:
    """GFLOP/s of a square product: what the machine can do at best."""
    left, right = torch.randn(1024, 1024).to(kind), torch.randn(1024, 1024).to(kind)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - began)
    return 2 * 1024**3 / statistics.median(times) / 1e9


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest, highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def main() -> None:
    """Measure, print, and keep the result where asked."""
    names = sorted(path.stem for path in (ROOT / "configs" / "bench").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=names, help=f"workloads: {', '.join(names)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=16, help="updates timed in each round")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    arguments = parser.parse_args()
    say(f"{torch.get_num_threads()} threads; preparing {', '.join(arguments.names)}")
    workloads = [Workload(name) for name in arguments.names]
    found: dict[str, dict[str, list[float]]] = {
        name: {"train": [], "beam 1": [], "beam 5": []} for name in arguments.names
    }
    peaks: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for turn in range(arguments.rounds):
        for kind in (torch.float32, torch.bfloat16):
            peaks[str(kind).removeprefix("torch.")].append(matrix_product(kind))
        for workload in workloads:
            found[workload.name]["train"].append(workload.train(arguments.updates))
            found[workload.name]["beam 1"].append(workload.translate(1))
            found[workload.name]["beam 5"].append(workload.translate(5))
            say(f"round {turn + 1}: {workload.name} {found[workload.name]['train'][-1]:,.0f} tokens/s")
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": arguments.rounds,
        "peak GFLOP/s": {name: spread(values) for name, values in peaks.items()},
        "workloads": {name: {what: spread(v) for what, v in rows.items()} for name, rows in found.items()},
    }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{'workload':10} {'tokens/s (low-high)':>26} {'beam 1':>12} {'beam 5':>12}  sentences/s")
    for name, rows in result["workloads"].items():
        train, one, five = rows["train"], rows["beam 1"], rows["beam 5"]
        tokens = f"{train['median']:,.0f} ({train['low']:,.0f}-{train['high']:,.0f})"
        print(f"{name:10} {tokens:>26} {one['median']:>12.1f} {five['median']:>12.1f}")


if __name__ == "__main__":
    main()
