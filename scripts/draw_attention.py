"""Draws what each recipe of configs/toy attends to on one sentence of the embedded corpus, for docs/attention.md.

    python scripts/draw_attention.py              every recipe that s2s compare configs/compare/toy.yaml has trained
    python scripts/draw_attention.py mocha        some of them

The pictures, docs/pictures/attention-NAME.svg, are those of `s2s translate --attention`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from shared import ROOT, s2s

CONFIGS, PICTURES = ROOT / "configs" / "toy", ROOT / "docs" / "pictures"
RUNS = ROOT / "runs" / "compare-toy" / "runs"
SENTENCE = "I know that you do not see the small dogs.\n"
BLIND = {"base", "none", "none-context"}
"""What has no attention to draw."""


def draw(name: str, seed: int) -> None:
    """One picture. Raises CalledProcessError where the run cannot translate."""
    run, picture = RUNS / f"{name}-{seed}", PICTURES / f"attention-{name}.svg"
    command = s2s("translate", "--model", str(run), "--attention", str(picture), "--overwrite")
    subprocess.run(command, input=SENTENCE.encode(), check=True)


def main() -> None:
    """Draw what there is, and name what there is not."""
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in BLIND)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=names, help="recipes in configs/toy; default: all")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        if (RUNS / f"{name}-{arguments.seed}").is_dir():
            draw(name, arguments.seed)
        else:
            print(f"{name}: no run; s2s compare configs/compare/toy.yaml trains it", file=sys.stderr)


if __name__ == "__main__":
    main()
