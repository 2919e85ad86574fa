"""Training and translation speed of the workloads in configs/bench, beside other toolkits where they are given.

    python scripts/bench/speed.py                                  ours alone: every workload, float32 and auto
    python scripts/bench/speed.py r1 t --rounds 5                  some of them
    python scripts/bench/speed.py --mechanisms                     recurrent recipes of configs/multi30k, sizes of R1
    python scripts/bench/speed.py --peer opennmt=VENV/bin/python --peer joeynmt=VENV/bin/python
    python scripts/bench/speed.py --translate --peer opennmt=... --peer ctranslate2=...
    python scripts/bench/speed.py --device cuda --set batches.tokens=25000 --updates 300     on a GPU, ours alone

Every figure comes from a fresh process, alone on the machine. A round runs every cell once, so that a drift of the
machine meets all of them; the median over rounds stands with the lowest and highest, and a ratio is the median of the
rounds' own ratios.

Training speed is real target tokens (EOS counted, padding not) per second after a warm-up, data included, validation
and saving not: for s2s from the run's metrics.jsonl, for a peer from its own training step, watched (scripts/bench/
peers). All read the same pieces, those of configs/bench/r1.yaml. Translation is of the test set in batches of 64
sentences by models trained for --train-updates updates; loading is left out. Results: docs/results/speed-*.json.

On a GPU the share of the peak is the model FLOP utilisation, of what products of two large matrices reach there; peak
memory is the process's own, not the GPU's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from s2s import __version__
from s2s import config as configuration
from s2s.data.prepare import prepare
from s2s.data.text import read_raw_lines
from s2s.data.tokenizer import load as load_tokenizers
from s2s.progress import say
from s2s.training.trainer import resolve_precision

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from shared import ROOT, noting_peak, peak_in, s2s

CONFIGS, RECIPES, MULTI30K = ROOT / "configs" / "bench", ROOT / "configs" / "multi30k", ROOT / "data" / "multi30k"
DOCS = ROOT / "docs"
RESULTS = DOCS / "results"
WORK = ROOT / "runs" / "bench"
PEERS = Path(__file__).resolve().parent / "peers"
WARMUP = 12
WORKLOADS = {"cpu": ("r1", "r1n", "r2", "cgru", "t"), "cuda": ("r1", "r1n", "t", "t-base")}
"""What is measured where nothing else is asked for."""
USUAL = "luong-general"
"""The recipe that the others of configs/multi30k differ from."""
Row = dict[str, Any]


class Cell(NamedTuple):
    """One thing to measure: what does the work, and how."""

    workload: str
    system: str
    measure: Callable[[], Row]


# --- running one process ----------------------------------------------------------------------------------------------


def alone(command: list[str], threads: int) -> tuple[str, str, float]:
    """Run a command to its end: standard output, standard error and the peak of its resident memory in MiB."""
    (WORK / "logs").mkdir(parents=True, exist_ok=True)
    out, err = WORK / "logs" / "out", WORK / "logs" / "err"
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    measured = noting_peak(WORK / "logs" / "peak", command)
    with out.open("w") as stdout, err.open("w") as stderr:
        code = subprocess.run(measured, stdout=stdout, stderr=stderr, env=environment, cwd=ROOT, check=False).returncode
    if code:
        sys.exit(f"{' '.join(command)} ended with {code}:\n{err.read_text()[-2000:]}")
    return out.read_text(), err.read_text(), peak_in(WORK / "logs" / "peak")


def of_updates(updates: int, *more: str) -> list[str]:
    """Settings of a training for so many updates, without validations and saves between."""
    return [
        f"training.max_updates={updates}", f"training.save_every={updates}", "data.valid=null",
        "training.stop_on=nll", "training.ema=null", *more,
    ]  # fmt: skip


def last_json(text: str) -> Row:
    """The last line that is JSON."""
    found: Row = json.loads([line for line in text.splitlines() if line.startswith("{")][-1])
    return found


# --- training ---------------------------------------------------------------------------------------------------------


def train_ours(config: Path, precision: str, updates: int, threads: int, more: Sequence[str] = ()) -> Row:
    """Our own command with ``more`` settings, and what its metrics say of the updates after the warm-up."""
    run = WORK / "run"
    settings = of_updates(updates, f"training.precision={precision}", *more)
    command = s2s("train", "--config", str(config), "--run-dir", str(run), "--resume", "none", "--overwrite", *settings)
    *_, peak = alone(command, threads)
    return after_warmup(run) | {"peak_mib": peak}


def after_warmup(run: Path) -> Row:
    """What a run's metrics say of the speed of its updates, the first ones left out."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    first, last = records[WARMUP - 1], records[-1]
    tokens, count = last["target_tokens"] - first["target_tokens"], last["step"] - first["step"]
    return {
        "tokens_per_second": tokens / (last["seconds"] - first["seconds"]),
        "tokens_per_update": tokens / count,
        "updates": count,
    }


def train_peer(python: str, peer: str, workload: str, updates: int, threads: int) -> Row:
    """A peer's own training loop, watched."""
    script = [python, str(PEERS / f"{peer}_train.py"), workload, str(write_pieces()), str(updates), str(WARMUP)]
    out, _, peak = alone(script, threads)
    return last_json(out) | {"peak_mib": peak}


def write_pieces() -> Path:
    """The corpus of configs/bench/r1.yaml as lines of pieces, for toolkits that read such; the folder."""
    folder = WORK / "pieces"
    if (folder / "vocabulary").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = configuration.load(CONFIGS / "r1.yaml")
    tokenizers = prepare(config.data, config.tokenizer, ROOT / "runs" / ".cache", lambda line: None).tokenizers
    assert config.data.valid is not None and config.data.test is not None
    (train,) = config.data.corpora
    for name, files in (("train", train), ("valid", config.data.valid), ("test", config.data.test)):
        for side, path, tokenizer in zip(("source", "target"), (files.source, files.target), tokenizers, strict=True):
            lines = (" ".join(tokenizer.pieces(tokenizer.encode(line))) for line in read_raw_lines(path))
            (folder / f"{name}.{side}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    words = tokenizers.target.pieces(range(4, tokenizers.target.size))
    (folder / "vocabulary").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return folder


def mechanisms() -> list[str]:
    """The recipes that are recurrent on both sides and of the usual sizes, each model once."""
    found: dict[str, str] = {}
    usual = configuration.load(RECIPES / f"{USUAL}.yaml").model
    for name in [USUAL, *sorted(path.stem for path in RECIPES.glob("*.yaml"))]:
        model = configuration.load(RECIPES / f"{name}.yaml").model
        if all(_shape(getattr(model, side)) == _shape(getattr(usual, side)) for side in ("encoder", "decoder")):
            found.setdefault(model.model_dump_json(), name)
    return sorted(found.values())


def _shape(side: Any) -> tuple[Any, ...]:
    return side.kind, getattr(side, "size", None)


def mechanism(name: str) -> Path:
    """A config with the decoder of a Multi30k recipe at the sizes of R1."""
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    decoder = recipe.get("model", {}).get("decoder", {})
    model = {"decoder": decoder} | ({"encoder": {"cell": "gru"}} if decoder.get("cell") == "gru" else {})
    path = WORK / "mechanisms" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"extends": str(CONFIGS / "r1.yaml"), "model": model}), encoding="utf-8")
    return path


def training_cells(
    names: Iterable[str], peers: dict[str, str], updates: int, threads: int, more: Sequence[str]
) -> list[Cell]:
    """Ours in float32 and in what this machine does best, and every peer that has the workload."""
    cells = []
    for name in names:
        config = CONFIGS / f"{name}.yaml"
        cells += [
            Cell(name, f"s2s {precision}", partial(train_ours, config, precision, updates, threads, more))
            for precision in ("float32", "auto")
        ]
        cells += [
            Cell(name, peer, partial(train_peer, python, peer, name, updates, threads))
            for peer, python in peers.items()
            if name in HAS.get(peer, ())
        ]
    return cells


HAS = {"opennmt": ("r1", "r1n", "r2", "t"), "joeynmt": ("r1", "r2", "t")}
"""What each peer can train of configs/bench."""


# --- translation ------------------------------------------------------------------------------------------------------

PLAIN = {"t": "t-plain"}
"""The peer's workload whose model translates, where it is not the one that is timed in training."""


def translate_ours(model: Path, precision: str, beam: int, threads: int, source: Path | None = None) -> Row:
    """Our own command on a file, or on the test set; it leaves the loading out itself."""
    test = configuration.load(model / "config.yaml").data.test
    assert test is not None
    output = WORK / "translated"
    files = [str(source or test.source), "--output", str(output), "--overwrite"]
    search = ["--beam", str(beam), "--search", f"precision={precision}"]
    _, err, peak = alone(s2s("translate", "--model", str(model), *files, *search), threads)
    said = re.search(r"translated (\d+) lines in ([\d.]+) s", err)
    assert said is not None, err
    target = load_tokenizers(model / "tokenizer").target
    pieces = sum(len(target.encode(line)) for line in read_raw_lines(output))
    return {"seconds": float(said[2]), "sentences": int(said[1]), "pieces": pieces, "peak_mib": peak}


def translate_peer(python: str, script: str, model: Path, beam: int, threads: int, *more: str) -> Row:
    """A peer's own translation."""
    output = WORK / "translated"
    command = [python, str(PEERS / f"{script}.py"), str(model), str(write_pieces()), str(beam), str(output), *more]
    out, _, peak = alone(command, threads)
    return last_json(out) | {"peak_mib": peak}


def models(names: Iterable[str], peers: dict[str, str], updates: int, threads: int) -> None:
    """Train what will translate, where it is not there yet."""
    for name in names:
        run = ["--run-dir", str(WORK / f"model-{name}")]
        alone(s2s("train", "--config", str(CONFIGS / f"{name}.yaml"), *run, *of_updates(updates)), threads)
        checkpoint = opennmt_model(name, updates)
        if "opennmt" in peers and name in HAS["opennmt"] and not checkpoint.exists():
            train_peer(peers["opennmt"], "opennmt", PLAIN.get(name, name), updates, threads)
        converted = WORK / "ctranslate2-t"
        if name == "t" and {"opennmt", "ctranslate2"} <= set(peers) and not converted.exists():
            convert = str(PEERS / "opennmt_to_ctranslate2.py")
            alone([peers["opennmt"], convert, str(checkpoint), str(converted)], threads)


def opennmt_model(name: str, updates: int) -> Path:
    """Where OpenNMT-py leaves what it trained."""
    return write_pieces() / f"opennmt-{PLAIN.get(name, name)}_step_{updates}.pt"


def translation_cells(names: Iterable[str], peers: dict[str, str], updates: int, threads: int) -> list[Cell]:
    """Greedy and beam 5, ours and theirs."""
    cells = []
    for name in names:
        for beam, search in ((1, "greedy"), (5, "beam 5")):
            systems: dict[str, Callable[[], Row]] = {
                f"s2s {precision}": partial(translate_ours, WORK / f"model-{name}", precision, beam, threads)
                for precision in ("float32", "bf16")
            }
            if "opennmt" in peers and name in HAS["opennmt"]:
                what = ("opennmt_translate", opennmt_model(name, updates), beam, threads)
                systems["opennmt"] = partial(translate_peer, peers["opennmt"], *what)
            if "ctranslate2" in peers and name == "t":
                what = ("ctranslate2_translate", WORK / "ctranslate2-t", beam, threads)
                for kind in ("float32", "int8"):
                    systems[f"ctranslate2 {kind}"] = partial(translate_peer, peers["ctranslate2"], *what, kind)
            cells += [Cell(f"{name}, {search}", system, measure) for system, measure in systems.items()]
    return cells


# --- all of it --------------------------------------------------------------------------------------------------------


SQUARE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices whose product is what a device can do at best."""


def matrix_product(kind: torch.dtype, device: str) -> float:
    """GFLOP/s of a square product: what the machine can do at best."""
    size = SQUARE[device]
    left, right = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    times = []
    for _ in range(12):
        began = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(times[2:]) / 1e9


def work_of(config: Path) -> float:
    """MFLOP of a target token in training: 6 for each entry of every matrix that multiplies, in matrices of the encoder
    for as many source tokens. Attention's products with keys and values, and all that is no product, are left out."""
    settings = configuration.load(config)
    words = settings.tokenizer.vocabulary
    assert words is not None, "every workload names the size of its vocabulary"
    model = settings.model.build(words, words)
    looked_up = {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Embedding)}
    looked_up -= {id(model.decoder.output.weight)}
    return 6e-6 * sum(part.numel() for part in model.parameters() if part.dim() == 2 and id(part) not in looked_up)


def machine(threads: int, device: str = "cpu") -> Row:
    """What the figures belong to."""
    facts = dict(re.findall(r"^(.+?)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    model, flags = facts.get("model name", platform.processor()), facts.get("flags", "").split()
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8") if flag in flags]
    found = {
        "processor": model, "instructions": wide, "threads": threads, "s2s": __version__,
        "torch": str(torch.__version__), "python": platform.python_version(),
    }  # fmt: skip
    return found if device == "cpu" else found | {"gpu": torch.cuda.get_device_name()}


def run_rounds(
    cells: list[Cell], rounds: int, threads: int, result: Path, device: str = "cpu", settings: Sequence[str] = ()
) -> None:
    """Every cell once a round; the file is written after each figure. ``settings``: what workloads were changed by."""
    torch.set_num_threads(threads)
    kept: Row = {"machine": machine(threads, device), "peak_gflops": {"float32": [], "bfloat16": []}, "rows": {}}
    kept |= {"auto": resolve_precision("auto", torch.device(device)), "square": SQUARE[device]}
    kept |= {"settings": list(settings)} if settings else {}
    configs = {cell.workload: CONFIGS / f"{cell.workload}.yaml" for cell in cells}
    if all(path.exists() for path in configs.values()):  # trainings of workloads
        kept["mflop_per_token"] = {name: round(work_of(path), 2) for name, path in configs.items()}
    result.parent.mkdir(parents=True, exist_ok=True)
    for turn in range(rounds):
        for kind in (torch.float32, torch.bfloat16):
            kept["peak_gflops"][str(kind).removeprefix("torch.")].append(round(matrix_product(kind, device), 1))
        for cell in cells:
            row = cell.measure()
            kept["rows"].setdefault(cell.workload, {}).setdefault(cell.system, []).append(row)
            say(f"round {turn + 1}: {cell.workload:14} {cell.system:20} {rate(row):10,.1f}  {row['peak_mib']:,.0f} MiB")
            result.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def rate(row: Row) -> float:
    """Target tokens per second of a training, sentences per second of a translation."""
    found: float = row["tokens_per_second"] if "tokens_per_second" in row else row["sentences"] / row["seconds"]
    return found


def spread(values: list[float], form: str = ",.0f") -> str:
    """The median, with the lowest and highest where there are several."""
    extremes = f" ({min(values):{form}}-{max(values):{form}})" if len(values) > 1 else ""
    return f"{statistics.median(values):{form}}{extremes}"


def table(result: Path) -> str:
    """The result file as a table: rates, ratios to each peer of the same rounds, memory."""
    kept = json.loads(result.read_text(encoding="utf-8"))
    lines = ["| workload | system | rate | ours / theirs, round by round | peak MiB |", "|---|---|--:|---|--:|"]
    work = kept.get("mflop_per_token")
    if work:
        lines = [f"{lines[0]} share of peak |", f"{lines[1]}--:|"]
    for workload, systems in kept["rows"].items():
        for system, rows in systems.items():
            rates = [rate(row) for row in rows]
            ratios = []
            for other, theirs in systems.items():
                if system.startswith("s2s") and not other.startswith("s2s"):
                    each = [a / rate(b) for a, b in zip(rates, theirs, strict=False)]
                    ratios.append(f"{other} {spread(each, '.2f')}")
            peak = max(row["peak_mib"] for row in rows)
            lines.append(f"| {workload} | {system} | {spread(rates)} | {'; '.join(ratios)} | {peak:,.0f} |")
            if work:
                kind = "bfloat16" if system == "s2s auto" and kept["auto"] == "bf16" else "float32"
                at_best = statistics.median(kept["peak_gflops"][kind]) * 1e3
                lines[-1] += f" {100 * statistics.median(rates) * work[workload] / at_best:.0f} % |"
    peaks = "; ".join(f"{kind} {spread(values)}" for kind, values in kept["peak_gflops"].items())
    facts = ", ".join(f"{key} {value}" for key, value in kept["machine"].items())
    square = f"{kept['square']} x {kept['square']}"
    changed = f" With {' '.join(kept['settings'])}." if "settings" in kept else ""
    return "\n".join([*lines, "", f"Matrix products of {square}, GFLOP/s: {peaks}.{changed} Machine: {facts}."])


def main() -> None:
    """Measure, keep, print."""
    names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"workloads, of {names}; by default those of the device")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="see above; may be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--updates", type=int, default=60, help=f"updates of a training; the first {WARMUP} do not count"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=tuple(WORKLOADS), default="cpu", help="where ours is trained")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of our trainings")
    parser.add_argument("--mechanisms", action="store_true", help="recipes of configs/multi30k instead")
    parser.add_argument("--translate", action="store_true", help="translation instead of training")
    parser.add_argument("--train-updates", type=int, default=675, help="training of the models that translate")
    parser.add_argument(
        "--result", type=Path, help="default: docs/results/speed-{training,mechanisms,translation,gpu}.json"
    )
    options = parser.parse_args()
    peers = dict(peer.split("=", 1) for peer in options.peer)
    options.names = options.names or WORKLOADS[options.device]
    if options.device == "cuda" and (peers or options.translate or options.mechanisms):
        parser.error("on a GPU our own trainings of workloads are measured, nothing else")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device was found")
    if options.set and (options.translate or options.mechanisms):
        parser.error("--set changes trainings of workloads, nothing else")
    if options.translate:
        kind = "translation"
        models(options.names, peers, options.train_updates, options.threads)
        cells = translation_cells(options.names, peers, options.train_updates, options.threads)
    elif options.mechanisms:
        kind = "mechanisms"
        cells = [
            Cell(name, "s2s auto", partial(train_ours, mechanism(name), "auto", options.updates, options.threads))
            for name in mechanisms()
        ]
    else:
        kind = "training" if options.device == "cpu" else "gpu"
        settings = [*options.set, f"training.device={options.device}"]
        cells = training_cells(options.names, peers, options.updates, options.threads, settings)
    result = options.result or RESULTS / f"speed-{kind}.json"
    run_rounds(cells, options.rounds, options.threads, result, options.device, options.set)
    print(table(result))


if __name__ == "__main__":
    main()
