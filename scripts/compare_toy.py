"""Trains every recipe of configs/toy with several seeds and tabulates what came out; rows land as they are made.

    python scripts/compare_toy.py                      every recipe, seeds 1 to 3; what is there already is kept
    python scripts/compare_toy.py bahdanau local-p --seeds 1
    python scripts/compare_toy.py --table              only write docs/results-toy.md from docs/results/toy

BLEU and exact match are on the test split; the alignment error rate (AER) against its gold word links comes from the
attention under the reference translation, pieces merged to words, one link per German word, with the rows taken as
they are (shift 0) and one later (shift 1); see docs/attention.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from s2s.analysis.alignment import aer, entropy, links_from_weights, merge_words, read_links
from s2s.data.text import read_raw_lines
from s2s.interfaces import BOS, EOS
from s2s.run import Trained, load_trained

ROOT = Path(__file__).resolve().parent.parent
CONFIGS, RESULTS, PAGE = ROOT / "configs" / "toy", ROOT / "docs" / "results" / "toy", ROOT / "docs" / "results-toy.md"
TEST = ROOT / "data" / "toy" / "test"
INTRODUCTION = """# Mechanism by mechanism on the embedded corpus

Written by `python scripts/compare_toy.py --table` from the files in `docs/results/toy`. Test split, 300 sentences;
mean over seeds, with the lowest and highest where there are several. BLEU is sacreBLEU `{signature}`. AER is against
the gold links, with the reference given (shift 0 / shift 1: see docs/attention.md). Entropy is that of the weights over
pieces, in nats. Speed is of training on the machine named in the files.
"""


def s2s(*arguments: str) -> list[str]:
    """The command line of s2s in this environment."""
    return [sys.executable, "-c", "from s2s.cli import main; main()", *arguments]


def measure(name: str, seed: int) -> None:
    """Train one recipe with one seed, and write its row."""
    run = ROOT / "runs" / f"toy-{name}-{seed}"
    config = CONFIGS / f"{name}.yaml"
    subprocess.run(s2s("train", "--config", str(config), "--run-dir", str(run), f"seed={seed}"), check=True)
    hypotheses = run / "test.de"
    command = s2s("eval", "--model", str(run), "--json", "--output", str(hypotheses), "--overwrite")
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)[0]
    updates = [record for line in (run / "metrics.jsonl").open() if "loss" in (record := json.loads(line))]
    right, lines = list(read_raw_lines(f"{TEST}.de")), list(read_raw_lines(hypotheses))
    trained = load_trained(run, torch.device("cpu"))
    result = {
        "name": name,
        "seed": seed,
        "scores": found["scores"],
        "hypotheses_sha256": found["hypotheses_sha256"],
        "exact": sum(a == b for a, b in zip(lines, right, strict=True)) / len(right),
        "parameters": sum(parameter.numel() for parameter in trained.model.parameters()),
        "tokens_per_second": updates[-1]["target_tokens"] / updates[-1]["seconds"],
        "seconds": updates[-1]["seconds"],
        "updates": updates[-1]["step"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **alignment(trained),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}-{seed}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def alignment(trained: Trained) -> dict[str, Any]:
    """AER with both shifts, and the entropy, of attention under the reference translations; empty without attention."""
    gold = read_links(TEST.with_suffix(".align"))
    source_lines, target_lines = list(read_raw_lines(f"{TEST}.en")), list(read_raw_lines(f"{TEST}.de"))
    predicted: dict[int, list[set[tuple[int, int]]]] = {0: [], 1: []}
    entropies: list[float] = []
    for source_line, target_line in zip(source_lines, target_lines, strict=True):
        source = [*trained.tokenizers.source.encode(source_line), EOS]
        target = trained.tokenizers.target.encode(target_line)
        words = torch.tensor([[BOS, *target]])
        decoded, _ = trained.model(
            torch.tensor([source]), torch.tensor([len(source)]), words, frozenset({"weights"})
        )  # fmt: skip
        if decoded.weights is None:
            return {}
        weights = decoded.weights[0].double().numpy()  # (T + 1, S): a row per piece, and one for EOS
        entropies += entropy(weights).tolist()
        source_words, target_words = trained.tokenizers.source.words(source), trained.tokenizers.target.words(target)
        for shift, rows in predicted.items():
            shown = weights[shift : shift + len(target)]
            rows.append(links_from_weights(merge_words(shown, source_words, target_words)))
    sure, possible = [one.sure for one in gold], [one.possible for one in gold]
    return {
        "entropy": statistics.fmean(entropies),
        "aer": {str(shift): aer(sure, possible, rows).aer for shift, rows in predicted.items()},
    }


def spread(values: list[float], form: str) -> str:
    """The mean, with the lowest and highest of several."""
    if not values:
        return "-"
    several = f" ({min(values):{form}}-{max(values):{form}})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{several}"


def table() -> None:
    """Write the page from the rows that are there."""
    rows: dict[str, list[dict[str, Any]]] = {path.stem: [] for path in sorted(CONFIGS.glob("*.yaml"))}
    rows.pop("base")
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        rows.setdefault(result["name"], []).append(result)
    signature = "-"
    lines = ["| recipe | seeds | BLEU | exact match | AER shift 0 | AER shift 1 | entropy | tokens/s | parameters |"]
    lines.append("|---|" + "--:|" * 8)
    for name, found in rows.items():
        if not found:
            lines.append(f"| `{name}` | not yet run |" + " |" * 7)
            continue
        bleu = [one["scores"][0]["value"] for one in found]
        signature = found[0]["scores"][0]["signature"]
        errors = {shift: [one["aer"][shift] for one in found if "aer" in one] for shift in ("0", "1")}
        cells = [
            f"`{name}`",
            str(len(found)),
            spread(bleu, ".1f"),
            spread([100 * one["exact"] for one in found], ".1f"),
            spread(errors["0"], ".3f"),
            spread(errors["1"], ".3f"),
            spread([one["entropy"] for one in found if "entropy" in one], ".2f"),
            spread([one["tokens_per_second"] for one in found], ",.0f"),
            f"{found[0]['parameters']:,}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    PAGE.write_text("\n".join([INTRODUCTION.format(signature=signature), *lines]) + "\n", encoding="utf-8")


def main() -> None:
    """Measure what is not there yet, then write the page after each row."""
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "base")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=names, help="recipes in configs/toy; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    for seed in arguments.seeds if not arguments.table else ():
        for name in arguments.names:
            if not (RESULTS / f"{name}-{seed}.json").exists():
                measure(name, seed)
                table()
    table()


if __name__ == "__main__":
    main()
