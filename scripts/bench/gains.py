"""What each of our steps towards speed gains: a training with all of them beside one without that step.

    python scripts/bench/gains.py r1 t [--rounds 2] [--updates 40]
    python scripts/bench/gains.py r1 t --step pages                    one of them; what is known of the others stays
    python scripts/bench/gains.py r1 t --translate --beam 5            steps of search in bf16, by models of speed.py

Every figure is of a fresh process, alone on the machine, as in speed.py; with and without follow each other, so that a
drift of the machine meets both. A step is taken out in the process that trains, by the plain PyTorch that anyone would
write first, so that what is compared is the step and nothing else. Results: docs/results/speed-gains*.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from hotspots import translation
from speed import (
    CONFIGS,
    RESULTS,
    WARMUP,
    WORK,
    Row,
    after_warmup,
    alone,
    last_json,
    machine,
    of_updates,
    rate,
    spread,
)
from torch import Tensor, nn

from s2s import products
from s2s.commands.train import train
from s2s.machine import keep_freed_memory
from s2s.models import layers, positions
from s2s.models.recurrence import Recurrence, RecurrentLayer
from s2s.progress import say
from s2s.search import beam as beam_search
from s2s.training import objective

RESULT, SEARCH_RESULT = RESULTS / "speed-gains.json", RESULTS / "speed-gains-search.json"


# --- without ----------------------------------------------------------------------------------------------------------


def replaced(original: Any, other: Any) -> None:
    """Put another function in the place of one of s2s, wherever it was imported."""
    for name, module in list(sys.modules.items()):
        if name.startswith("s2s"):
            for key, value in list(vars(module).items()):
                if value is original:
                    setattr(module, key, other)


def _plain_loss(
    features: Tensor, weight: Tensor, bias: Tensor, target: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    scores = nn.functional.linear(features, weight, bias).float().log_softmax(-1)
    nll = -scores.gather(1, target.unsqueeze(1)).sum()
    return (1 - smoothing) * nll - smoothing * scores.mean(1).sum(), nll.detach()


def _plain_share(matrix: Tensor) -> Tensor:
    device = matrix.device.type
    return matrix.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else matrix


def _plain_mask(shape: tuple[int, ...], rate: float, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype).bernoulli_(1 - rate).div_(1 - rate)


def _plainly_turned(x: Tensor, by: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * by.real - odd * by.imag, even * by.imag + odd * by.real], -1).flatten(-2).to(x.dtype)


def _gates_by_steps(recurrence: Recurrence, x: Tensor) -> Tensor:
    bottom = recurrence.layers[0]
    assert isinstance(bottom, RecurrentLayer)
    return torch.stack([nn.functional.linear(part, bottom.weight_input, bottom.bias) for part in x.unbind(1)], 1)


def _unfused(kind: Any) -> Any:
    return lambda *arguments, fused, **settings: kind(*arguments, foreach=False, **settings)


_ALL_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024", "LRU_CACHE_CAPACITY": "1024"}


class Without(NamedTuple):
    """A step, and how it is taken out."""

    what: str
    settings: tuple[str, ...] = ()
    take_out: Callable[[], None] = lambda: None
    use: Callable[[str], bool] = lambda workload: True
    """Whether a workload has any use for it."""


STEPS = {
    "bf16": Without("products in bf16", ("training.precision=float32",)),
    "window": Without("lengths sorted over a million pairs, not 1,000", ("batches.window=1000",)),
    "rows": Without("a round number of rows", (), lambda: replaced(products.missing_rows, lambda *asked: 0)),
    "gates": Without(
        "gates of all words in one product",
        (),
        lambda: setattr(Recurrence, "gates", _gates_by_steps),
        lambda workload: not workload.startswith("t"),
    ),
    "gradients": Without(
        "gradients of shared matrices formed once",
        (),
        lambda: replaced(products.share, _plain_share),
        lambda workload: not workload.startswith("t"),
    ),
    "turns": Without(
        "rotary positions by complex numbers",
        (),
        lambda: replaced(positions._turned, _plainly_turned),
        lambda workload: workload == "t-rotary",
    ),
    "loss": Without(
        "the loss in parts, scores not kept", (), lambda: replaced(objective.smoothed_loss, _plain_loss)
    ),
    "dropout": Without("masks drawn 16 bits at a time", (), lambda: replaced(layers.dropout_mask, _plain_mask)),
    "optimizer": Without(
        "a fused optimizer", (), lambda: setattr(torch.optim, "Adam", _unfused(torch.optim.Adam))
    ),
    "memory": Without("freed memory kept"),
    "pages": Without("huge pages", (), lambda: os.environ.update(THP_MEM_ALLOC_ENABLE="0")),
    "kernels": Without("64 compiled kernels kept, not 1,024 twice", (), lambda: os.environ.update(_ALL_KERNELS)),
}  # fmt: skip
SEARCH_STEPS = {
    "layout": Without("matrices laid out once", (), lambda: replaced(products._packs, lambda *asked: False)),
    "entering": Without(
        "sentences that enter while others are searched",
        (),
        lambda: replaced(beam_search.can_enter, lambda *asked: False),
    ),
    "leaving": Without("beams that leave an eighth at a time", (), lambda: setattr(beam_search, "_FEW", 10**9)),
    "memory": STEPS["memory"],
    "small-pages": Without("no huge pages", (), lambda: os.environ.update(THP_MEM_ALLOC_ENABLE="1")),
}


def child(workload: str, without: str, updates: int, beam: int | None) -> None:
    """The training, or the translation of the test set, in a process of its own."""
    if without != "memory":
        keep_freed_memory()
    step = (STEPS | SEARCH_STEPS).get(without, Without(""))
    step.take_out()
    if beam is not None:
        count = Counter[str]()
        work = translation(workload, "bf16", beam, count)
        began = time.perf_counter()
        work()
        print(json.dumps({"sentences": count["sentences"], "seconds": time.perf_counter() - began}))
        return
    train(CONFIGS / f"{workload}.yaml", of_updates(updates, *step.settings), WORK / "run", overwrite=True)


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(workload: str, without: str, updates: int, threads: int, beam: int | None) -> Row:
    """Speed and memory of one training, or of one translation."""
    command = [sys.executable, __file__, workload, "--updates", str(updates), "--child", without]
    command += [] if beam is None else ["--translate", "--beam", str(beam)]
    out, _, peak = alone(command, threads)
    return (after_warmup(WORK / "run") if beam is None else last_json(out)) | {"peak_mib": peak}


def table(kept: Row) -> str:
    """What each step gains, by workload: the ratio of the speeds of neighbours, and the memory that it saves."""
    lines = ["| step | " + " | ".join(f"{name} | MiB" for name in kept["rows"]) + " |"]
    lines.append("|---|" + "--:|" * (2 * len(kept["rows"])))
    for name, step in (STEPS | SEARCH_STEPS).items():
        if not any(name in steps for steps in kept["rows"].values()):
            continue
        cells = []
        for steps in kept["rows"].values():
            pairs = steps.get(name)
            if pairs is None:
                cells += ["", ""]
                continue
            ratios = [rate(with_it) / rate(without) for with_it, without in pairs]
            saved = statistics.median(without["peak_mib"] - with_it["peak_mib"] for with_it, without in pairs)
            cells += [spread(ratios, ".2f"), f"{-saved:+,.0f}"]
        lines.append(f"| {step.what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--updates", type=int, default=40, help=f"of a training; the first {WARMUP} do not count")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--translate", action="store_true", help="translation of the test set instead of training")
    parser.add_argument("--beam", type=int, action="append", help="of translation; may be repeated; default: 1 and 5")
    every = tuple(STEPS | SEARCH_STEPS)
    parser.add_argument("--step", action="append", choices=every, help="only this one; may be repeated")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.names[0], options.child, options.updates, options.beam[0] if options.translate else None)
        return
    steps, result = (SEARCH_STEPS, SEARCH_RESULT) if options.translate else (STEPS, RESULT)
    if not {*(options.step or ())} <= steps.keys():
        parser.error(f"--step: choose from {', '.join(steps)}")
    beams = (options.beam or [1, 5]) if options.translate else [None]
    works = [(name, beam, name if beam is None else f"{name}, beam {beam}") for name in options.names for beam in beams]
    kept: Row = {"machine": machine(options.threads), "rows": {}}
    if options.step and result.exists():
        kept = json.loads(result.read_text(encoding="utf-8"))
        for (_, _, work), name in itertools.product(works, options.step):
            kept["rows"].get(work, {}).pop(name, None)
    for turn in range(options.rounds):
        for workload, beam, work in works:
            for name in options.step or steps:
                if not (STEPS | SEARCH_STEPS)[name].use(workload):
                    continue
                of = partial(measure, workload, updates=options.updates, threads=options.threads, beam=beam)
                pair = [of(without="nothing"), of(without=name)]
                kept["rows"].setdefault(work, {}).setdefault(name, []).append(pair)
                speeds = " to ".join(f"{rate(one):,.0f}" for one in pair)
                say(f"round {turn + 1}: {work:12} {steps[name].what:42} {speeds}")
                result.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(table(kept))


if __name__ == "__main__":
    main()
