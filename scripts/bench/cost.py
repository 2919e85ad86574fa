"""How cost grows: training speed by sentence length, batch and vocabulary, translation by the number of lines.

    python scripts/bench/cost.py [--rounds 2]

Training is of generated texts, random words of one length on both sides, by the sizes of configs/bench/r1.yaml with
global and with local attention (window 10). One thing varies at a time; the others stay at 20 words, 2048 target tokens
an update and 8,000 words. Translation is of the first lines of the test set and of ten times as many, by a model of
scripts/bench/speed.py --translate. Every figure is of a fresh process, as there; a round runs every cell once. Results:
docs/results/speed-cost.json, docs/pictures/cost-*.svg, and the tables of docs/speed.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import yaml
from speed import (
    CONFIGS,
    DOCS,
    MULTI30K,
    RESULTS,
    WORK,
    Cell,
    Row,
    models,
    rate,
    run_rounds,
    spread,
    train_ours,
    translate_ours,
)

from s2s.analysis.charts import Series, line_chart

RESULT, PICTURES = RESULTS / "speed-cost.json", DOCS / "pictures"
AXES = {"words": (10, 20, 40, 80), "batch": (512, 1024, 2048, 4096), "vocabulary": (4000, 8000, 16000, 32000)}
"""What varies; the default of each is in `USUAL`."""
USUAL = {"words": 20, "batch": 2048, "vocabulary": 8000}
TITLES = {
    "words": "words of a sentence",
    "batch": "target tokens of an update",
    "vocabulary": "words of the vocabulary",
}
ATTENTION = {"global": {"kind": "global", "score": "general"}, "local-p": {"kind": "local-p", "score": "general"}}
UPDATES = 36
_PAIRS = 200_000  # target tokens of a text: enough for the updates, and for every word of a vocabulary to occur


def text(words: int, vocabulary: int) -> Path:
    """The folder of a generated text: two sides of random words, every word of the vocabulary among them."""
    folder = WORK / "cost" / f"{words}-{vocabulary}"
    if (folder / "target").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(f"{words} {vocabulary}")
    count = max(_PAIRS, 2 * vocabulary) // (words + 1)
    for side in ("source", "target"):
        drawn = [draw.randrange(vocabulary) for _ in range(count * words)]
        drawn[:vocabulary] = range(vocabulary)
        lines = (" ".join(f"w{word}" for word in drawn[row * words : (row + 1) * words]) for row in range(count))
        (folder / side).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def config(attention: str, words: int, batch: int, vocabulary: int) -> Path:
    """A config for such a text."""
    folder = text(words, vocabulary)
    path = WORK / "cost" / f"{attention}-{words}-{batch}-{vocabulary}.yaml"
    files = {"source": str(folder / "source"), "target": str(folder / "target")}
    settings = {
        "extends": str(CONFIGS / "r1.yaml"),
        "data": {"train": files, "valid": None, "test": None},
        "tokenizer": {"kind": "whitespace", "vocabulary": vocabulary + 4},
        "batches": {"tokens": batch},
        "model": {"decoder": {"attention": ATTENTION[attention]}},
    }
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def training_cells(threads: int) -> Iterator[Cell]:
    """Every axis with both kinds of attention; what all axes share is measured once."""
    seen = set()
    for axis, values in AXES.items():
        for value in values:
            sizes = USUAL | {axis: value}
            for name in ATTENTION:
                if (key := (name, *sizes.values())) not in seen:
                    seen.add(key)
                    path = config(name, **sizes)
                    yield Cell(key_of(sizes), name, partial(train_ours, path, "auto", UPDATES, threads))


def key_of(sizes: dict[str, int]) -> str:
    """The name of a row in the result file."""
    return " ".join(f"{axis}={value}" for axis, value in sizes.items())


def translation_cells(threads: int, lines: int) -> Iterator[Cell]:
    """The first lines of the test set, and those ten times over."""
    source = (MULTI30K / "test_2016_flickr.en").read_text(encoding="utf-8").splitlines()[:lines]
    for times in (1, 10):
        path = WORK / "cost" / f"lines-{times * lines}"
        path.write_text("".join(f"{line}\n" for line in source * times), encoding="utf-8")
        measure = partial(translate_ours, WORK / "model-r1", "float32", 5, threads, path)
        yield Cell(f"lines={times * lines}", "beam 5", measure)


def tables(kept: Row) -> Iterator[str]:
    """A table for each axis, and one of translation."""
    rows = kept["rows"]
    for axis, values in AXES.items():
        yield f"| {TITLES[axis]} | {' | '.join(ATTENTION)} | peak MiB |"
        yield "|--:|" + "--:|" * (len(ATTENTION) + 1)
        for value in values:
            cells = rows[key_of(USUAL | {axis: value})]
            peak = max(one["peak_mib"] for found in cells.values() for one in found)
            rates = " | ".join(spread([rate(one) for one in cells[name]]) for name in ATTENTION)
            yield f"| {value:,} | {rates} | {peak:,.0f} |"
        yield ""
    yield "| lines | seconds | sentences/s | peak MiB |"
    yield "|--:|--:|--:|--:|"
    for name, cells in rows.items():
        if name.startswith("lines="):
            found = cells["beam 5"]
            seconds, rates = spread([one["seconds"] for one in found], ".1f"), spread([rate(one) for one in found])
            yield f"| {int(name[6:]):,} | {seconds} | {rates} | {max(one['peak_mib'] for one in found):,.0f} |"


def draw(kept: Row) -> None:
    """A picture for each axis."""
    for axis, values in AXES.items():
        series = [
            Series(
                name,
                values,
                [statistics.median(map(rate, kept["rows"][key_of(USUAL | {axis: value})][name])) for value in values],
            )
            for name in ATTENTION
        ]
        picture = line_chart(series, title=f"Training speed by {TITLES[axis]}", x=TITLES[axis], y="target tokens/s")
        (PICTURES / f"cost-{axis}.svg").write_text(picture, encoding="utf-8")


def main() -> None:
    """Measure, keep, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--lines", type=int, default=1000, help="of the shorter file")
    parser.add_argument("--train-updates", type=int, default=675, help="training of the model that translates")
    options = parser.parse_args()
    models(["r1"], {}, options.train_updates, options.threads)
    (WORK / "cost").mkdir(parents=True, exist_ok=True)
    cells = [*training_cells(options.threads), *translation_cells(options.threads, options.lines)]
    run_rounds(cells, options.rounds, options.threads, RESULT)
    kept = json.loads(RESULT.read_text(encoding="utf-8"))
    draw(kept)
    print("\n".join(tables(kept)))


if __name__ == "__main__":
    main()
