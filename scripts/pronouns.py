"""Measures who knows what "it" is: pronouns of the embedded corpus' documents, translated with and without context.

    python scripts/pronouns.py --model runs/documents-hierarchical --baseline runs/documents-sentence
                                                    measure; write docs/results/documents.json and the table
    python scripts/pronouns.py --table              only write the table in docs/documents.md, from that file

Several pairs of runs, such as of several seeds, are given one after the other. Of every sentence of
data/toy/documents.test.en with "it" it is asked whether its translation has the pronouns er, ihn, sie and es that its
reference has, each as often. Three systems are asked: the ``baseline``, which reads sentence by sentence, the
``model``, and the model with every sentence in a document of its own. Whether the model is better by more than chance
is told by exact tests of signs, two-sided:

    p = min(1, 2 P(X <= min(b, c)))    X ~ Binomial(b + c, 1/2)

b and c are how many sentences only one of two systems has right (McNemar 1947, exact); or, because documents come in
threes that differ by one noun, in how many such triples one system has more right than the other.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from shared import ROOT, with_table

from s2s.commands.models import load
from s2s.commands.translate import translate_lines
from s2s.data.text import read_raw_lines
from s2s.evaluation import score_all
from s2s.progress import Meter
from s2s.run import Trained

TEXT = ROOT / "data" / "toy" / "documents.test"
RESULT = ROOT / "docs" / "results" / "documents.json"
PAGE = ROOT / "docs" / "documents.md"
PRONOUNS = {"er", "ihn", "sie", "es"}
"""What "it" can be; sie may be she and they besides."""
TRIPLE = 3
"""Documents that differ by their noun alone stand side by side."""


def pronouns(german: str) -> Counter[str]:
    """The pronouns of a sentence that could be translations of "it"."""
    return Counter(word for word in re.findall(r"\w+", german.lower()) if word in PRONOUNS)


def with_it(english: str) -> bool:
    """Whether a sentence has "it"."""
    return "it" in re.findall(r"\w+", english.lower())


def sign_test(wins: int, losses: int) -> float:
    """The p-value of so many wins and losses, two-sided, where either is as likely; 1 where there are none."""
    trials, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(trials, k) for k in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**trials))


def triples(source: Sequence[str]) -> list[list[int]]:
    """The sentences with "it", by their places in the text, of every three documents."""
    found: list[list[int]] = []
    documents = 0
    for place, line in enumerate(source):
        if not line:
            documents += 1
        elif with_it(line):
            if documents // TRIPLE == len(found):
                found.append([])
            found[-1].append(place)
    return found


def right(found: Sequence[str], reference: Sequence[str], groups: Sequence[Sequence[int]]) -> list[list[bool]]:
    """Of each sentence with "it", by triples, whether its pronouns are those of the reference."""
    return [[pronouns(found[place]) == pronouns(reference[place]) for place in group] for group in groups]


def compared(system: Sequence[Sequence[bool]], other: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """How often each is better, and whether that could be chance: by sentences, and by triples of documents."""
    pairs = [pair for one, two in zip(system, other, strict=True) for pair in zip(one, two, strict=True)]
    by_sentence = pairs.count((True, False)), pairs.count((False, True))
    sums = [(sum(one), sum(two)) for one, two in zip(system, other, strict=True)]
    by_triple = sum(one > two for one, two in sums), sum(one < two for one, two in sums)
    return {
        name: {"better": better, "worse": worse, "p": sign_test(better, worse)}
        for name, (better, worse) in (("sentences", by_sentence), ("triples", by_triple))
    }


def translated(trained: Trained, lines: Sequence[str], apart: bool) -> list[str]:
    """Translations of the lines as they stand, or with a blank one after each."""
    asked = [text for line in lines for text in (line, "")] if apart else list(lines)
    with torch.no_grad(), Meter("translating", len(asked)) as meter:
        found = translate_lines(trained, asked, meter)
    return found[::2] if apart else found


def described(found: Sequence[str], reference: Sequence[str], groups: Sequence[Sequence[int]]) -> dict[str, Any]:
    """How many pronouns are right, by gender too, and BLEU of the whole text."""
    by_gender: dict[str, list[int]] = {gender: [0, 0] for gender in "mfn"}
    marks = right(found, reference, groups)
    for group, own in zip(groups, marks, strict=True):
        # A triple has every sentence with each gender: one third of its places after the other.
        size = len(group) // TRIPLE
        for number, mark in enumerate(own):
            count = by_gender["mfn"[number // size]]
            count[0], count[1] = count[0] + mark, count[1] + 1
    total = sum(map(len, marks))
    (bleu,) = score_all(list(found), list(reference), ("bleu",))
    return {
        "right": sum(map(sum, marks)),
        "of": total,
        "accuracy": round(sum(map(sum, marks)) / total, 4),
        "by_gender": {gender: round(good / of, 4) for gender, (good, of) in by_gender.items()},
        "bleu": round(bleu.value, 2),
        "signature": bleu.signature,
    }


def measure(model: Path, baseline: Path) -> dict[str, Any]:
    """All of it, for two runs. Raises SystemExit where they are not what they are to be."""
    device = torch.device("cpu")
    source, reference = (list(read_raw_lines(f"{TEXT}.{side}")) for side in ("en", "de"))
    reading, alone = load(model, device), load(baseline, device)
    if not reading.model.sentences_before or alone.model.sentences_before:
        raise SystemExit("--model is a run with model.document, --baseline one without")
    systems = {
        "sentence by sentence": translated(alone, source, apart=False),
        "documents, each sentence alone": translated(reading, source, apart=True),
        "documents": translated(reading, source, apart=False),
    }
    groups = triples(source)
    marks = {name: right(found, reference, groups) for name, found in systems.items()}
    *others, best = systems
    return {
        "seed": reading.config.seed,
        "baseline": settings_of(alone),
        "model": settings_of(reading),
        "systems": {name: described(found, reference, groups) for name, found in systems.items()},
        "against": {name: compared(marks[best], marks[name]) for name in others},
    }


def settings_of(trained: Trained) -> dict[str, Any]:
    """What a run's model is, and how it was trained; its texts are those of the corpus."""
    left_out = {"data", "init_from", "init_like"}
    return {"update": trained.update} | trained.config.model_dump(mode="json", exclude_defaults=True, exclude=left_out)


def table(found: dict[str, Any]) -> str:
    """The result as a table of a page."""
    rows = [
        "| seed | read | right | m | f | n | BLEU | p, sentences | p, triples |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for run in found["runs"]:
        for name, one in run["systems"].items():
            against = run["against"].get(name)
            chances = (
                [""] * 2 if against is None else [f"{against[unit]['p']:.1g}" for unit in ("sentences", "triples")]
            )
            genders = [f"{100 * one['by_gender'][gender]:.1f}" for gender in "mfn"]
            share = f"{one['right']} of {one['of']}, {100 * one['accuracy']:.1f} %"
            cells = [str(run["seed"]), name, share, *genders, f"{one['bleu']:.2f}", *chances]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> int:
    """Measure unless only the table is asked for, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", default=[], help="a run with model.document")
    parser.add_argument("--baseline", type=Path, action="append", default=[], help="a run without, for each --model")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if options.table == bool(options.model) or len(options.model) != len(options.baseline):
        parser.error("give as many --baseline as --model, or --table alone")
    if not options.table:
        runs = [measure(*pair) for pair in zip(options.model, options.baseline, strict=True)]
        found = {"text": TEXT.name, "torch": torch.__version__, "runs": runs}
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), "pronouns", table(found)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
