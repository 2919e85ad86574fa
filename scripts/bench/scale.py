"""The numbers of docs/scale.md: what updates cost, what waiting for batches does, and computing activations again.

    python scripts/bench/scale.py                       everything, with one thread a process
    python scripts/bench/scale.py model --rounds 3      a part: model, waiting, activations
    python scripts/bench/scale.py --smoke               tiny and quick, to see that it runs; writes to runs/bench/scale

Every figure is of a fresh process, or of two that train together, after a warm-up; a round measures every cell once.
Seconds and tokens are those of metrics.jsonl, memory is the peak of the resident memory of a process as the system
counts it, and bytes are what passed through the loopback device meanwhile, so nothing else may use it. Results:
docs/results/scale/{model,waiting,activations}.json; scripts/bench/page.py puts their tables into docs/scale.md.

The model of an update of N processes, each with n target tokens, of P parameters of which M are in matrices that every
token is multiplied with:

    seconds = M n / rate + n x word + P x step + fixed + bytes / bandwidth,    bytes = 2 (N - 1) / N x 4 P sent by each
    memory  = base + P x held + n x layers x width x activations

rate, word, step, fixed and bandwidth are fitted by least squares of relative errors to all cells at once, base, held
and activations too. Communication is added in full, because sums are sent when the backward pass is done.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from cost import text
from numpy.typing import NDArray
from speed import DOCS, WORK, Row, machine, of_updates

from s2s import config as configuration
from s2s.commands.prepare import cache_of
from s2s.commands.train import EpochData
from s2s.data.prepare import prepare
from s2s.distributed import World
from s2s.progress import say
from s2s.run import build_model
from s2s.training.supply import Supply

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from shared import ROOT, noting_peak, peak_in, s2s

RESULTS = DOCS / "results" / "scale"
WIDTHS, BATCHES, PROCESSES = (128, 256, 512), (512, 1024, 2048), (1, 2)
"""Of the cost model's cells; a batch is the target tokens of one process."""
LAYERS, WORDS, VOCABULARY = 3, 20, 8000
BANDWIDTHS = {"1 Gbit/s": 0.125e9, "10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9, "NVLink, 300 GB/s": 300e9}
"""Bytes a second that a process is assumed to send at, where the table goes on beyond this machine."""
DEVICES = (2, 4, 8, 16, 64)
CORPORA = {"multi30k": ROOT / "configs" / "multi30k" / "base.yaml", "toy": ROOT / "configs" / "toy" / "base.yaml"}
SAMPLING = {"off": [], "on": ["tokenizer.sampling={alpha: 0.1}"]}
WARMUP = 6


class Extent(NamedTuple):
    """How much is measured."""

    widths: tuple[int, ...] = WIDTHS
    batches: tuple[int, ...] = BATCHES
    updates: int = 30
    rounds: int = 2
    threads: int = 1
    results: Path = RESULTS


# --- one measurement --------------------------------------------------------------------------------------------------


def loopback() -> int:
    """Bytes that were sent through it since the machine began."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    return 0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def together(command: list[str], processes: int, threads: int) -> float:
    """Run a command as so many processes of one training; the highest peak of resident memory, in MiB."""
    usual = os.environ | {"OMP_NUM_THREADS": str(threads)}
    launched = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    WORK.mkdir(parents=True, exist_ok=True)
    peaks = [WORK / f"scale-peak-{rank}" for rank in range(processes)]
    with (WORK / "scale-errors").open("w+") as errors:
        started = [
            subprocess.Popen(
                noting_peak(peak, command), stderr=errors, cwd=ROOT, env=usual | launched | {"RANK": str(rank)}
            )
            for rank, peak in enumerate(peaks)
        ]
        codes = [process.wait() for process in started]
        if any(codes):
            errors.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{errors.read()[-2000:]}")
    return max(map(peak_in, peaks))


def trained(config: Path, settings: list[str], updates: int, processes: int, threads: int) -> Row:
    """What the metrics say of the updates after the warm-up, of all processes together."""
    run = WORK / "scale-run"
    options = [*of_updates(updates + WARMUP), *settings]
    command = s2s("train", "--config", str(config), "--run-dir", str(run), "--resume", "none", "--overwrite", *options)
    before = loopback()
    peak = together(command, processes, threads)
    sent = loopback() - before
    records = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    first, counted = records[WARMUP - 1], records[WARMUP:]
    seconds, tokens = (counted[-1][name] - first[name] for name in ("seconds", "target_tokens"))
    return {
        "seconds_per_update": seconds / len(counted),
        "tokens_per_second": tokens / seconds,
        "tokens_per_update": tokens / len(counted),
        "waited": sum(record["waited"] for record in counted) / seconds,
        "sent_per_update": sent / len(records) / processes,
        "peak_mib": peak,
    }


# --- the cost of an update --------------------------------------------------------------------------------------------


def transformer(width: int, batch: int) -> Path:
    """A config of a Transformer of this width over a generated text."""
    folder = text(WORDS, VOCABULARY)
    stack = {"kind": "transformer", "layers": LAYERS, "size": width, "heads": 4, "feedforward": 4 * width}
    files = {"source": str(folder / "source"), "target": str(folder / "target")}
    settings = {
        "data": {"train": files},
        "tokenizer": {"kind": "whitespace", "vocabulary": 2 * VOCABULARY},
        "batches": {"tokens": batch},
        "model": {"embedding": width, "tie": "output", "dropout": 0.1, "encoder": stack, "decoder": {**stack}},
        "training": {"patience": None, "stop_on": "nll"},
    }
    path = WORK / "cost" / f"scale-{width}-{batch}.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def sizes(config: Path) -> tuple[int, int]:
    """Parameters, and those of them that every token is multiplied with: all but what is only looked up."""
    settings = configuration.load(config)
    tokenizers = prepare(settings.data, settings.tokenizer, cache_of(WORK / "scale-run"), lambda line: None).tokenizers
    model = build_model(settings, tokenizers)
    everything = sum(parameter.numel() for parameter in model.parameters())
    return everything, everything - model.encoder.input.embedding.weight.numel()  # type: ignore[union-attr, operator]


def measure_model(extent: Extent) -> Row:
    """Every width x batch x number of processes."""
    cells: list[Row] = []
    for turn, width, batch, processes in product(range(extent.rounds), extent.widths, extent.batches, PROCESSES):
        config = transformer(width, batch)
        row = trained(config, [], extent.updates, processes, extent.threads)
        parameters, multiplied = sizes(config)
        cells.append(
            {"round": turn, "width": width, "batch": batch, "processes": processes, "parameters": parameters,
             "multiplied": multiplied} | row
        )  # fmt: skip
        say(f"width {width}, batch {batch}, {processes} processes: {row['seconds_per_update']:.3f} s an update")
    return {"cells": cells}


def sent_by_each(parameters: float, processes: int) -> float:
    """Bytes of an update's gradients, summed along a ring."""
    return 2 * (processes - 1) / processes * 4 * parameters


def fitted(rows: list[list[float]], measured: list[float]) -> NDArray[np.float64]:
    """Coefficients, none negative, that make the relative errors least: terms that would be are left out."""
    table, values = np.array(rows, np.float64), np.array(measured, np.float64)
    kept = list(range(table.shape[1]))
    while True:
        part = table[:, kept] / values[:, None]
        scale = np.abs(part).max(axis=0)
        scale[scale == 0] = 1
        found = np.linalg.lstsq(part / scale, np.ones(len(values)), rcond=None)[0] / scale
        if (found >= 0).all():
            break
        kept = [place for place, value in zip(kept, found, strict=True) if value >= 0]
    result = np.zeros(table.shape[1])
    result[kept] = found
    return result


def time_terms(cell: Row) -> list[float]:
    """What the coefficients of seconds are multiplied with."""
    tokens = cell["tokens_per_update"] / cell["processes"]
    sent = sent_by_each(cell["parameters"], cell["processes"])
    return [cell["multiplied"] * tokens, tokens, cell["parameters"], 1.0, sent]


def memory_terms(cell: Row) -> list[float]:
    """The same of bytes."""
    return [1.0, cell["parameters"], cell["tokens_per_update"] / cell["processes"] * LAYERS * cell["width"]]


def medians(kept: Row) -> list[Row]:
    """One row for each cell: the medians over the rounds."""
    groups: dict[tuple[int, ...], list[Row]] = {}
    for cell in kept["cells"]:
        groups.setdefault((cell["width"], cell["batch"], cell["processes"]), []).append(cell)
    return [{name: statistics.median(one[name] for one in group) for name in group[0]} for group in groups.values()]


class Fit(NamedTuple):
    """The two models of this machine."""

    time: NDArray[np.float64]
    memory: NDArray[np.float64]

    @classmethod
    def of(cls, cells: list[Row]) -> Fit:
        """By least squares over all cells."""
        return cls(
            fitted([time_terms(cell) for cell in cells], [cell["seconds_per_update"] for cell in cells]),
            fitted([memory_terms(cell) for cell in cells], [cell["peak_mib"] * 2**20 for cell in cells]),
        )

    def seconds(self, cell: Row) -> float:
        """Of an update."""
        return float(np.dot(self.time, time_terms(cell)))

    def mib(self, cell: Row) -> float:
        """The peak of one process."""
        return float(np.dot(self.memory, memory_terms(cell))) / 2**20


def model_table(kept: Row) -> str:
    """Predicted beside measured, and what follows for more devices."""
    cells = medians(kept)
    fit = Fit.of(cells)
    lines = [
        "| width | parameters | tokens a process | processes | s/update | predicted | tokens/s | peak MiB | predicted "
        "| MB sent by each | predicted |",
        "|--:|" + "--:|" * 10,
    ]
    errors: dict[str, list[float]] = {"seconds": [], "memory": []}
    for cell in cells:
        seconds, mib = fit.seconds(cell), fit.mib(cell)
        errors["seconds"].append(abs(seconds / cell["seconds_per_update"] - 1))
        errors["memory"].append(abs(mib / cell["peak_mib"] - 1))
        sent = sent_by_each(cell["parameters"], int(cell["processes"])) / 1e6
        lines.append(
            f"| {cell['width']:.0f} | {cell['parameters'] / 1e6:.1f} M | "
            f"{cell['tokens_per_update'] / cell['processes']:,.0f} | {cell['processes']:.0f} | "
            f"{cell['seconds_per_update']:.3f} | {seconds:.3f} | {cell['tokens_per_second']:,.0f} | "
            f"{cell['peak_mib']:,.0f} | {mib:,.0f} | {cell['sent_per_update'] / 1e6:.1f} | {sent:.1f} |"
        )
    found = "; ".join(
        f"{name}: mean error {statistics.mean(values):.0%}, largest {max(values):.0%}"
        for name, values in errors.items()
    )
    return "\n".join([*lines, "", f"{found}. {coefficients(fit)}", "", *extrapolated(fit, cells)])


def coefficients(fit: Fit) -> str:
    """The fit in words."""
    rate, word, step, fixed, byte = fit.time
    base, held, activations = fit.memory
    said = [
        f"rate {1 / rate / 1e9:,.1f} G parameters x tokens/s" if rate else "no cost of products",
        f"word {word * 1e6:.0f} µs",
        f"step {step * 1e9:.2f} ns a parameter",
        f"fixed {fixed * 1e3:.1f} ms",
        f"bandwidth {1 / byte / 1e9:.2f} GB/s" if byte else "no cost of sending",
        f"base {base / 2**20:,.0f} MiB",
        f"held {held:.0f} bytes a parameter",
        f"activations {activations:,.0f} bytes for each token, layer and unit of width",
    ]
    return f"Fitted: {', '.join(said)}."


def extrapolated(fit: Fit, cells: list[Row]) -> Iterator[str]:
    """Tokens a second of more devices like this one, one process each, for the largest model and batch."""
    largest = max((cell for cell in cells if cell["processes"] == 1), key=lambda cell: (cell["width"], cell["batch"]))
    alone = fit.seconds(largest)
    yield f"| devices | {' | '.join(BANDWIDTHS)} |"
    yield "|--:|" + "--:|" * len(BANDWIDTHS)
    for devices in DEVICES:
        rates = []
        for bandwidth in BANDWIDTHS.values():
            seconds = alone + sent_by_each(largest["parameters"], devices) / bandwidth
            rates.append(f"{devices * largest['tokens_per_update'] / seconds:,.0f} ({alone / seconds:.0%})")
        yield f"| {devices} | {' | '.join(rates)} |"


# --- waiting for batches ----------------------------------------------------------------------------------------------


def building(config: Path, settings: list[str], updates: int) -> float:
    """Seconds that it takes to build the batches of an update, with nothing beside it."""
    loaded = configuration.load(config, [*of_updates(updates), *settings])
    prepared = prepare(loaded.data, loaded.tokenizer, cache_of(WORK / "scale-run"), lambda line: None)
    position = 0
    with Supply(EpochData(loaded, prepared, World()), World().own) as supply:
        supply.take(0, 0, more=False)
        began = time.perf_counter()
        for _ in range(updates):
            position += len(supply.take(0, position, more=False).group)
            if position >= 20:
                position = 0
        return (time.perf_counter() - began) / updates


def measure_waiting(extent: Extent) -> Row:
    """Every corpus that is there, with and without subword sampling."""
    cells: list[Row] = []
    corpora = {name: config for name, config in CORPORA.items() if name == "toy" or (ROOT / "data" / name).exists()}
    for turn, (corpus, config), (sampling, settings) in product(
        range(extent.rounds), corpora.items(), SAMPLING.items()
    ):
        row = trained(config, settings, extent.updates, 1, extent.threads)
        row["building"] = building(config, settings, extent.updates)
        cells.append({"round": turn, "corpus": corpus, "sampling": sampling} | row)
        say(f"{corpus}, sampling {sampling}: {row['waited']:.1%} waiting, {row['building'] * 1e3:.1f} ms to build")
    return {"cells": cells}


def waiting_table(kept: Row) -> str:
    """The share of training time that waits, and what it would be without the thread."""
    lines = [
        "| corpus | subword sampling | ms an update | ms to build its batches | built in the update | waiting |",
        "|---|---|--:|--:|--:|--:|",
    ]
    groups: dict[tuple[str, str], list[Row]] = {}
    for cell in kept["cells"]:
        groups.setdefault((cell["corpus"], cell["sampling"]), []).append(cell)
    for (corpus, sampling), group in groups.items():
        update, build, waited = (
            statistics.median(one[name] for one in group) for name in ("seconds_per_update", "building", "waited")
        )
        share = build / (update * (1 - waited) + build)
        lines.append(f"| {corpus} | {sampling} | {update * 1e3:.0f} | {build * 1e3:.1f} | {share:.1%} | {waited:.2%} |")
    return "\n".join(lines)


# --- activations ------------------------------------------------------------------------------------------------------


LAYERS_AS = {
    "as they are": [],
    "computed again": ["training.checkpoint_activations=true"],
    "compiled": ["training.compile=true"],
    "compiled, computed again": ["training.compile=true", "training.checkpoint_activations=true"],
}
"""Ways to compute a layer."""


def measure_activations(extent: Extent) -> Row:
    """Every way, of the largest model with twice the largest batch."""
    cells: list[Row] = []
    width, tokens = extent.widths[-1], 2 * extent.batches[-1]
    for turn, (name, settings) in product(range(extent.rounds), LAYERS_AS.items()):
        row = trained(transformer(width, tokens), settings, extent.updates, 1, extent.threads)
        cells.append({"round": turn, "layers": name} | row)
        say(f"layers {name}: {row['tokens_per_second']:,.0f} tokens/s, {row['peak_mib']:,.0f} MiB")
    return {"cells": cells, "width": width, "tokens": tokens}


def activations_table(kept: Row) -> str:
    """Speed and memory of each."""
    lines = [f"| layers of width {kept['width']}, {kept['tokens']} tokens | tokens/s | peak MiB |", "|---|--:|--:|"]
    for name in LAYERS_AS:
        group = [cell for cell in kept["cells"] if cell["layers"] == name]
        rate, peak = (statistics.median(one[key] for one in group) for key in ("tokens_per_second", "peak_mib"))
        lines.append(f"| {name} | {rate:,.0f} | {peak:,.0f} |")
    return "\n".join(lines)


# --- all of it --------------------------------------------------------------------------------------------------------

PARTS: dict[str, tuple[Callable[[Extent], Row], Callable[[Row], str]]] = {
    "model": (measure_model, model_table),
    "waiting": (measure_waiting, waiting_table),
    "activations": (measure_activations, activations_table),
}


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--updates", type=int, default=30, help="after the warm-up")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--smoke", action="store_true", help="two tiny models, few updates, one round")
    options = parser.parse_args()
    extent = Extent(updates=options.updates, rounds=options.rounds, threads=options.threads)
    if options.smoke:
        extent = Extent((32, 64), (128, 256), 3, 1, options.threads, WORK / "scale")
    torch.set_num_threads(options.threads)
    extent.results.mkdir(parents=True, exist_ok=True)
    (WORK / "cost").mkdir(parents=True, exist_ok=True)
    for name in options.parts:
        measure, table = PARTS[name]
        kept = {"machine": machine(options.threads)} | measure(extent)
        (extent.results / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        print(table(kept), end="\n\n")


if __name__ == "__main__":
    main()
