"""What minutes of training give: BLEU on Multi30k's validation set, ours beside OpenNMT-py.

    python scripts/bench/curve.py --peer PYTHON [--minutes 10] [KEY=VALUE ...]

Ours is configs/multi30k/quick.yaml, with settings over it where there are any; theirs is R1, with the settings that
speed.py times. One after the other, alone on the machine. Minutes are of training: validation and saving are left out
of both. Ours is measured by the run itself, theirs by translating the validation set with every checkpoint (beam 5) and
scoring it in the same way. Results: docs/results/speed-curve.json, docs/pictures/speed-curve.svg.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import speed
from shared import s2s
from speed import MULTI30K, PEERS, RECIPES, RESULTS, WARMUP, WORK, Row, alone, last_json, write_pieces

from s2s import config as configuration
from s2s.analysis.charts import Series, line_chart
from s2s.data.text import read_raw_lines
from s2s.evaluation import bleu
from s2s.progress import say

RESULT = RESULTS / "speed-curve.json"
PICTURE = RESULTS.parent / "pictures" / "speed-curve.svg"
OURS, THEIRS = "s2s, quick.yaml", "OpenNMT-py, R1"


def ours(every: int, threads: int, more: list[str]) -> list[Row]:
    """Minutes of training and BLEU after every so many updates of the recipe, which ends by itself."""
    recipe, run = RECIPES / "quick.yaml", WORK / "curve"
    last = configuration.load(recipe, more).training.max_updates
    settings = [*more, f"training.validate_every={every}", f"training.save_every={last}"]
    command = s2s("train", "--config", str(recipe), "--run-dir", str(run), "--resume", "none", "--overwrite", *settings)
    alone(command, threads)
    found, seconds = [], 0.0
    for line in (run / "metrics.jsonl").open(encoding="utf-8"):
        record: dict[str, Any] = json.loads(line)
        seconds = record.get("seconds", seconds)
        if "valid" in record:
            found.append({"updates": record["step"], "minutes": seconds / 60, "bleu": record["valid"]["bleu"]})
    return found


def theirs(python: str, minutes: float, every: int, threads: int) -> list[Row]:
    """The same of the peer's R1, trained until that many minutes are over."""
    pieces, output = write_pieces(), WORK / "translated"
    train = [python, str(PEERS / "opennmt_train.py"), "r1", str(pieces)]
    tried = last_json(alone([*train, str(WARMUP + 30), str(WARMUP)], threads)[0])
    each = tried["tokens_per_update"] / tried["tokens_per_second"] / 60  # minutes
    updates = every * max(1, round(minutes / each / every))
    said = last_json(alone([*train, str(updates), str(WARMUP), str(every)], threads)[0])
    each = said["tokens_per_update"] / said["tokens_per_second"] / 60
    right, found = list(read_raw_lines(MULTI30K / "val.de")), []
    for step in range(every, updates + 1, every):
        model = pieces / f"opennmt-r1_step_{step}.pt"
        alone(
            [python, str(PEERS / "opennmt_translate.py"), str(model), str(pieces), "5", str(output), "valid"], threads
        )
        lines = ["".join(line.split()).replace("\u2581", " ").strip() for line in read_raw_lines(output)]
        found.append({"updates": step, "minutes": step * each, "bleu": bleu(lines, right).value})
    return found


def table(kept: Row) -> str:
    """Updates, minutes and BLEU of both, one after the other."""
    lines = ["| system | updates | minutes of training | BLEU, validation |", "|---|--:|--:|--:|"]
    for name, rows in kept["rows"].items():
        lines += [f"| {name} | {row['updates']:,} | {row['minutes']:.1f} | {row['bleu']:.1f} |" for row in rows]
    facts = ", ".join(f"{key} {value}" for key, value in kept["machine"].items())
    return "\n".join([*lines, "", f"Machine: {facts}."])


def main() -> None:
    """Measure, keep, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="over our recipe")
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="of an environment that has OpenNMT-py 3.5")
    parser.add_argument("--minutes", type=float, default=10, help="of the peer's training")
    parser.add_argument("--every", type=int, default=200, help="updates between our measurements")
    parser.add_argument("--peer-every", type=int, default=100, help="updates between theirs")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    kept: Row = {"machine": speed.machine(options.threads), "rows": {}}
    measured: dict[str, Callable[[], list[Row]]] = {
        OURS: partial(ours, options.every, options.threads, options.settings),
        THEIRS: partial(theirs, options.peer, options.minutes, options.peer_every, options.threads),
    }
    for name, measure in measured.items():
        kept["rows"][name] = measure()
        last = kept["rows"][name][-1]
        say(f"{name}: BLEU {last['bleu']:.1f} after {last['minutes']:.1f} minutes")
        RESULT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    curves = [
        Series(name, [row["minutes"] for row in rows], [row["bleu"] for row in rows])
        for name, rows in kept["rows"].items()
    ]
    picture = line_chart(
        curves, title="Multi30k, ten minutes of two cores", x="minutes of training", y="BLEU, validation"
    )
    PICTURE.write_text(picture, encoding="utf-8")
    print(table(kept))


if __name__ == "__main__":
    main()
