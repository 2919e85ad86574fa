"""How many translations depend on company, order and threads in float32, and whether each is a tie.

    python scripts/search_ties.py RUN INPUT [--beam 5]

Rounding depends on the shape of a product and on how it is shared out over threads, so two hypotheses whose scores are
equal to the last digits may change places. The same lines are translated in batches of other sizes, in the opposite
order and with one thread, in float32 and in float64, each compared with batches of 4096 positions on two threads. A
line that differs is called a tie where both ways rank both translations within 1e-4. Results:
docs/results/search-ties.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from shared import ROOT

from s2s import __version__
from s2s.data.text import read_raw_lines
from s2s.run import Trained, load_trained
from s2s.search.translate import Translator

RESULT = ROOT / "docs" / "results" / "search-ties.json"
CLOSE = 1e-4


class Way(NamedTuple):
    """One way to translate the same lines."""

    name: str
    batch_tokens: int = 4096
    threads: int = 2
    backwards: bool = False


WAYS = (Way("batches of 64 positions", 64), Way("batches of 1000", 1000), Way("backwards", backwards=True),
        Way("one thread", threads=1))  # fmt: skip


def translated(trained: Trained, lines: list[str], beam: int, way: Way) -> list[list[tuple[str, float]]]:
    """All hypotheses of every line, with their scores."""
    torch.set_num_threads(way.threads)
    settings = trained.config.search.model_copy(update={"beam": beam, "batch_tokens": way.batch_tokens})
    translator = Translator(trained.model, trained.tokenizers, settings, torch.device("cpu"), n_best=beam)
    asked = lines[::-1] if way.backwards else lines
    found = [[(one.text, one.score) for one in line.candidates] for line in translator.translate(asked)]
    return found[::-1] if way.backwards else found


def compared(usual: list[list[tuple[str, float]]], other: list[list[tuple[str, float]]]) -> dict[str, Any]:
    """How many best translations differ, how many of them are ties, and how far apart scores of equal ones are."""
    differ = [pair for pair in zip(usual, other, strict=True) if pair[0][0][0] != pair[1][0][0]]
    same = [abs(one[0][1] - two[0][1]) for one, two in zip(usual, other, strict=True) if one[0][0] == two[0][0]]
    return {
        "differ": len(differ),
        "ties": sum(is_tie(one, two) for one, two in differ),
        "largest_difference_of_equal_lines": max(same, default=0.0),
    }


def is_tie(one: list[tuple[str, float]], two: list[tuple[str, float]]) -> bool:
    """Whether each list has the other's best translation, within rounding of its own best."""
    return all(
        any(text == best[0][0] and ranked[0][1] - score <= CLOSE for text, score in ranked)
        for ranked, best in ((one, two), (two, one))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("input", type=Path)
    parser.add_argument("--beam", type=int, default=5)
    options = parser.parse_args()
    lines = list(read_raw_lines(options.input))
    trained = load_trained(options.run, torch.device("cpu"))
    found: dict[str, Any] = {}
    for kind in (torch.float32, torch.float64):
        trained.model.to(kind)
        usual = translated(trained, lines, options.beam, Way("usual"))
        name = str(kind).removeprefix("torch.")
        found[name] = {way.name: compared(usual, translated(trained, lines, options.beam, way)) for way in WAYS}
        for way, row in found[name].items():
            print(f"{name}, {way}: {row}", flush=True)
    what = {"lines": len(lines), "beam": options.beam, "parameters": sum(p.numel() for p in trained.model.parameters())}
    versions = {"s2s": __version__, "torch": torch.__version__}
    RESULT.write_text(json.dumps({**what, **versions, "found": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
