"""Measures what a corpus larger than memory costs: prepared, killed and resumed, then trained on for 200 updates.

Writes a synthetic corpus of ``--lines`` pairs into a folder (about 120 bytes a pair, and as much again prepared), lets
`s2s prepare` encode it with ``--jobs`` processes, kills that half-way, lets it finish, and trains a small model; the
same training on 5,000 of the lines says what of its memory is the model's. All numbers go to docs/results/prepare.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "docs" / "results" / "prepare.json"
_CHUNK = 100_000  # pairs that are made together
_WORDS = 60_000

_CONFIG = """\
data:
  train: {{source: {name}.source, target: {name}.target}}
  cache: {cache}
  max_ratio: 4.0
  drop_copies: true
  drop_repeats: true
tokenizer: {{kind: sentencepiece, model: bpe, vocabulary: 8000}}
batches: {{tokens: 2048}}
model:
  embedding: 128
  encoder: {{kind: rnn, size: 256}}
  decoder: {{kind: rnn, size: 256, attention: {{kind: global, score: general}}}}
training: {{max_updates: {updates}, validate_every: {updates}, save_every: {updates}, stop_on: nll, patience: null}}
"""


# --- the corpus -------------------------------------------------------------------------------------------------------


def write_corpus(folder: Path, lines: int) -> None:
    """Pairs of words drawn by Zipf's law, of lengths like those of sentences; a few blank, copied or repeated."""
    generator = np.random.default_rng(1)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(generator.choice(letters, 2 + int(length))) for length in generator.gamma(3, 1.5, 2 * _WORDS)]
    sides = words[:_WORDS], words[_WORDS:]
    chances = np.cumsum(1 / np.arange(1, _WORDS + 1))
    chances /= chances[-1]
    with (folder / "all.source").open("w") as source, (folder / "all.target").open("w") as target:
        for first in range(0, lines, _CHUNK):
            pairs = min(_CHUNK, lines - first)
            lengths = np.clip(generator.gamma(4, 2.5, pairs), 1, 80).astype(int)
            drawn = np.searchsorted(chances, generator.random(lengths.sum())).tolist()
            place, rows = 0, []
            for length in lengths.tolist():
                rows.append(drawn[place : place + length])
                place += length
            for index in range(0, pairs, 50):  # two in a hundred repeat a neighbour, a tenth of these are blank
                rows[index] = rows[index - 1] if index % 500 else []
            for file, own in ((source, sides[0]), (target, sides[1])):
                file.writelines(" ".join([own[word] for word in row]) + "\n" for row in rows)


def write_configs(folder: Path, updates: int) -> None:
    """The same training on all of the corpus, and on its first lines with the same vocabulary size."""
    for side in ("source", "target"):
        with (folder / f"all.{side}").open() as file, (folder / f"few.{side}").open("w") as few:
            few.writelines(line for _, line in zip(range(5000), file, strict=False))
    for name in ("all", "few"):
        text = _CONFIG.format(name=name, cache=f"cache-{name}", updates=updates)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


# --- running ----------------------------------------------------------------------------------------------------------


class Watch(threading.Thread):
    """Samples memory and work of a process and of those that it started; pages of files do not count as memory."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self._process, self._ended = process, threading.Event()
        self.anonymous = 0
        """The most that all of them held of their own at a time, in kilobytes."""
        self.work: dict[int, float] = {}
        """Seconds that each has computed."""

    def run(self) -> None:
        while not self._ended.wait(0.1):
            family = _family(self._process)
            self.anonymous = max(self.anonymous, sum(_kilobytes(one, "RssAnon") for one in family))
            self.work |= {one: max(self.work.get(one, 0.0), _cpu_seconds(one)) for one in family}

    def end(self) -> dict[str, float]:
        """What was measured."""
        self._ended.set()
        self.join()
        return {"cpu_seconds": round(sum(self.work.values()), 1), "peak_mib": self.anonymous // 1024}


def _cpu_seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has just ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _family(process: int) -> list[int]:
    """The process and all that descend from it."""
    found = [process]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:  # it has just ended
                continue
    return found


def _kilobytes(process: int | str, name: str) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """A Python program of this checkout."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *arguments], env=environment, start_new_session=True)


def prepare(config: Path, jobs: int, kill_at: int | None = None) -> dict[str, Any]:
    """Run `s2s prepare`, or kill it when so many parts are there; seconds and memory."""
    began = time.monotonic()
    process = start(["-m", "s2s", "prepare", "--config", str(config), "--jobs", str(jobs)])
    watch = Watch(process.pid)
    watch.start()
    while process.poll() is None:
        if kill_at is not None and len(_finished(config)) >= kill_at:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        time.sleep(0.1)
    if kill_at is None and process.returncode:
        raise SystemExit(f"s2s prepare ended with code {process.returncode}")
    facts: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1)} | watch.end()
    return facts | {"parts_left_by_kill": len(_finished(config))} if kill_at is not None else facts


def _finished(config: Path) -> list[Path]:
    """The parts of the corpus that are there."""
    return list((config.parent / f"cache-{config.stem}").glob(".data-*.parts/part-*"))


def train(config: Path) -> dict[str, Any]:
    """Train in a process of its own, as `measured_training` does."""
    result = config.with_suffix(".json")
    process = start([str(Path(__file__).resolve()), "--measured-training", str(config), str(result)])
    if process.wait():
        raise SystemExit(f"the training ended with code {process.returncode}")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def measured_training(config: Path, result: Path) -> None:
    """`s2s train` in this process, with a clock at the first batch; what it waited for its data it says itself."""
    began = time.monotonic()
    from s2s.commands import train as command
    from s2s.data.batches import Batch, Indices

    starts: list[tuple[float, float]] = []
    batch = command.EpochData.batch

    def noted(self: command.EpochData, indices: Indices, epoch: int, position: int, sentences_before: int) -> Batch:
        starts.append((time.monotonic(), time.process_time()))
        return batch(self, indices, epoch, position, sentences_before)

    command.EpochData.batch = noted  # type: ignore[method-assign]
    run = config.parent / f"run-{config.stem}"
    command.train(config, run_directory=run, overwrite=True)
    records = [json.loads(line) for line in (run / "metrics.jsonl").open(encoding="utf-8")]
    updates = [record for record in records if "waited" in record]
    facts = {
        "startup_seconds": round(starts[0][0] - began, 2),
        "startup_cpu_seconds": round(starts[0][1], 2),
        "training_seconds": updates[-1]["seconds"],
        "first_wait_seconds": updates[0]["waited"],  # the first million pairs are put in order
        "waiting_share_after": round(
            sum(update["waited"] for update in updates[1:]) / (updates[-1]["seconds"] - updates[0]["seconds"]), 4
        ),
        "peak_mib": _kilobytes("self", "VmHWM") // 1024,
    }
    result.write_text(json.dumps(facts), encoding="utf-8")


def prepared(folder: Path, lines: int, jobs: int) -> dict[str, Any]:
    """What it costs to prepare the corpus, killed half-way and done again."""
    parts = -(-lines // (1 << 16))
    killed = prepare(folder / "all.yaml", jobs, kill_at=max(1, parts // 2))
    resumed = prepare(folder / "all.yaml", jobs)
    return {
        "lines": lines,
        "corpus_mib": sum((folder / f"all.{side}").stat().st_size for side in ("source", "target")) >> 20,
        "cache_mib": sum(path.stat().st_size for path in (folder / "cache-all").rglob("*") if path.is_file()) >> 20,
        "jobs": jobs,
        "cores": os.cpu_count(),
        "load_average": [round(one, 1) for one in os.getloadavg()],
        "niceness": os.nice(0),
        "parts": parts,
        "killed": killed,
        "resumed": resumed,
        "lines_per_second": round(lines / (killed["seconds"] + resumed["seconds"])),
        "lines_per_cpu_second": round(lines / (killed["cpu_seconds"] + resumed["cpu_seconds"])),
        "again": prepare(folder / "all.yaml", jobs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="where corpus, cache and runs are written; it is left there")
    parser.add_argument("--lines", type=int, default=20_000_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--updates", type=int, default=200, help="of the small model")
    parser.add_argument(
        "--training", action="store_true", help="measure only the training, on what was prepared before"
    )
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "all.yaml").exists():
        write_corpus(folder, options.lines)
        write_configs(folder, options.updates)
    found = (
        json.loads(options.output.read_text()) if options.training else prepared(folder, options.lines, options.jobs)
    )
    found |= {"updates": options.updates, "train": train(folder / "all.yaml"), "train_few": train(folder / "few.yaml")}
    found["train_beyond_model_mib"] = found["train"]["peak_mib"] - found["train_few"]["peak_mib"]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measured-training"]:
        measured_training(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
