"""Trains Multi30k recipes, translates test_2016_flickr once with each, and keeps what came out; rows land one by one.

    python scripts/measure_multi30k.py luong-general transformer     train, score, write docs/results/multi30k/NAME.json
    python scripts/measure_multi30k.py --table                       only write docs/results.md from those files

A run that was interrupted goes on where it stopped; its time is then the sum of its parts. Test data is used once, at
the end of each recipe.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from shared import ROOT, s2s

RESULTS = ROOT / "docs" / "results" / "multi30k"
PAGE = ROOT / "docs" / "results.md"
REFERENCE = ROOT / "data" / "multi30k" / "tok-lc" / "test_2016_flickr.lc.norm.tok.de"
INTRODUCTION = """# Results on Multi30k

English to German, `test_2016_flickr`, one run of raw cased text, checkpoint chosen by validation BLEU. Written by
`python scripts/measure_multi30k.py --table` from the files in `docs/results/multi30k`, which hold every setting and
the SHA-256 of the translations.

- **BLEU** is cased, on detokenised text, sacreBLEU `{bleu}`.
- **tok-lc** is the form of published Multi30k scores: hypotheses lower-cased, punctuation-normalised and tokenised,
  against the official `lc.norm.tok` file, sacreBLEU `{tok_lc}`.
- **minutes** is wall-clock of `s2s train`, from start to finished training, data, validation and saving included.
"""


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    model = next((line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")), "unknown")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def cpu_lines() -> list[str]:
    """/proc/cpuinfo, where there is one."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def measure(name: str, overrides: list[str]) -> None:
    """Train one recipe and write its result file."""
    run = ROOT / "runs" / f"multi30k-{name}"
    clock = run.with_suffix(".seconds")
    run.parent.mkdir(exist_ok=True)
    before = float(clock.read_text()) if clock.exists() and run.exists() else 0.0
    began = time.time()
    config = ROOT / "configs" / "multi30k" / f"{name}.yaml"
    try:
        subprocess.run(s2s("train", "--config", str(config), "--run-dir", str(run), *overrides), check=True)
    finally:
        clock.write_text(str(before + time.time() - began))
    seconds = float(clock.read_text())
    began = time.time()
    hypotheses = run / "test_2016_flickr.de"
    command = s2s("eval", "--model", str(run), "--tok-lc", str(REFERENCE), "--json", "--output", str(hypotheses))
    printed = subprocess.run([*command, "--overwrite"], check=True, stdout=subprocess.PIPE).stdout
    found = json.loads(printed)["systems"][0]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    updates = [record for record in metrics if "loss" in record]
    validations = [record for record in metrics if "valid" in record]
    best = max(validations, key=lambda record: record["valid"]["bleu"])
    result = {
        "name": name,
        "date": datetime.date.today().isoformat(),
        "overrides": overrides,
        "train_minutes": round(seconds / 60, 2),
        "eval_seconds": round(time.time() - began, 1),
        "updates": updates[-1]["step"],
        "epochs": updates[-1]["epoch"],
        "target_tokens": updates[-1]["target_tokens"],
        "tokens_per_second": round(updates[-1]["target_tokens"] / updates[-1]["seconds"], 1),
        "best_update": best["step"],
        "best_valid": best["valid"],
        "scores": found["scores"],
        "hypotheses_sha256": found["hypotheses_sha256"],
        "machine": machine(),
        "config": (run / "config.yaml").read_text().replace(str(ROOT) + "/", ""),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def table() -> None:
    """Write the page from the result files."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    rows, signatures = [], {"bleu": "", "tok-lc": ""}
    for result in results:
        scores = {score["name"]: score for score in result["scores"]}
        signatures = {name: scores[name]["signature"] for name in signatures}
        machine_text = f"{result['machine']['threads']} threads, {result['machine']['cpu']}"
        rows.append(
            f"| `{result['name']}` | {scores['bleu']['value']:.2f} | {scores['tok-lc']['value']:.2f} "
            f"| {scores['chrf']['value']:.2f} | {result['best_valid']['bleu']:.2f} | {result['updates']} "
            f"| {result['train_minutes']:.1f} | {result['tokens_per_second']:,.0f} | {machine_text} |"
        )
    head = "| recipe | BLEU | tok-lc | chrF2 | valid BLEU | updates | minutes | target tokens/s | machine |"
    introduction = INTRODUCTION.format(bleu=signatures["bleu"], tok_lc=signatures["tok-lc"])
    text = "\n".join([introduction, head, "|---|" + "--:|" * 7 + "---|", *rows])
    PAGE.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Measure the recipes that are named, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="recipes in configs/multi30k; KEY=VALUE are settings over all of them")
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    overrides = [name for name in arguments.names if "=" in name]
    for name in arguments.names:
        if name not in overrides and not arguments.table:
            measure(name, overrides)
    table()


if __name__ == "__main__":
    main()
