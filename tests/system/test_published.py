"""Every published recipe trains at its full size: a few updates on a tiny corpus in the place of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Cli, losses, validations

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PUBLISHED = [
    path
    for corpus in ("iwslt14-de-en", "iwslt15-en-vi", "wmt14-en-de")
    for path in sorted((CONFIGS / corpus).glob("*.yaml"))
    if path.stem != "base"
]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", PUBLISHED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_published_recipe_trains(recipe: Path, project: Path, tmp_path: Path, cli: Cli) -> None:
    texts = [
        f"data.{split}.{side}={project / name}.{suffix}"
        for split, name in (("train", "train"), ("valid", "valid"), ("test", "valid"))
        for side, suffix in (("source", "en"), ("target", "de"))
    ]
    short = ["training.max_updates=3", "training.validate_every=3", "training.save_every=3", "training.device=cpu"]
    small = ["batches.tokens=60", "search.beam=1", "search.max_length_extra=2", "training.keep_last=1"]
    run = tmp_path / "run"
    outcome = cli("train", "--config", recipe, "--run-dir", run, *texts, *short, *small)
    assert outcome.code == 0, outcome.err
    assert len(losses(run)) == 3 and validations(run)
