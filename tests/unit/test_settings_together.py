"""Settings that contradict each other, or of which one does nothing beside the other, are refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2s import config as configuration
from s2s.errors import ConfigError

BASE = Path(__file__).resolve().parents[2] / "configs" / "toy" / "base.yaml"
ATTENTION = "model.decoder.attention"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ([f"{ATTENTION}={{kind: none}}", "search.coverage_penalty=0.2"], "search.coverage_penalty: .* no weights to"),
        ([f"{ATTENTION}={{kind: latent, k: 1, renormalise: true}}"], "renormalise: .* the score learn nothing"),
        ([f"{ATTENTION}={{kind: hmm, k: 1, renormalise: true}}"], "renormalise: .* the score learn nothing"),
        (["model.encoder.residual=true"], "residual is of the layers above the first"),
        (["model.decoder.residual=true"], "residual is of the layers above the first"),
        (
            [f"{ATTENTION}={{kind: hard, estimator: {{kind: reinforce, decay: 0.5}}}}"],
            "decay belongs to baseline: moving; self keeps no mean",
        ),
        ([f"{ATTENTION}={{kind: hard, estimator: reinforce}}", "objective.r_drop=1.0"], "objective.r_drop: .* reward"),
        (
            [f"{ATTENTION}={{kind: hard, estimator: reinforce}}", "objective.teacher={run: runs/other}"],
            "objective.teacher: .* reward",
        ),
        (
            [
                f"{ATTENTION}={{kind: coverage, inner: {{kind: hard, score: additive, estimator: reinforce}}}}",
                "objective.teacher={run: runs/other}",
            ],
            "objective.teacher: .* reward",
        ),
        (["data.valid=null", "training.stop_on=nll", "training.patience=3"], "training.patience: .* set data.valid"),
    ],
)
def test_what_does_nothing_together_is_refused(overrides: list[str], reason: str) -> None:
    """Each setting is good as long as the one that it contradicts is not there."""
    with pytest.raises(ConfigError, match=reason):
        configuration.load(BASE, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        [f"{ATTENTION}={{kind: none}}"],
        ["search.coverage_penalty=0.2"],
        [f"{ATTENTION}={{kind: latent, k: 2, renormalise: true}}"],
        [f"{ATTENTION}={{kind: latent, k: 1}}"],
        ["model.decoder.residual=true", "model.decoder.layers=2"],
        [f"{ATTENTION}={{kind: hard, estimator: {{kind: reinforce, baseline: moving, decay: 0.5}}}}"],
        [f"{ATTENTION}={{kind: hard, estimator: reinforce}}", "objective.scheduled_sampling=0.1"],
        [f"{ATTENTION}={{kind: hard, estimator: gumbel}}", "objective.teacher={run: runs/other}"],
        ["data.valid=null", "training.stop_on=nll"],
        ["training.patience=3"],
    ],
)
def test_what_does_something_is_not(overrides: list[str]) -> None:
    configuration.load(BASE, overrides)
