"""A run that learns from what its own translations cost, begun from another."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Cli, records, train_arguments

RISK = "objective.minimum_risk={samples: 4, likelihood: 0.5}"


@pytest.mark.parametrize("config", ["rnn.yaml", "transformer.yaml"])
def test_it_goes_on_after_a_stop_as_if_there_was_none(
    config: str, project: Path, new_run: Path, finished: Path, finished_transformer: Path, cli: Cli
) -> None:
    before = finished if config == "rnn.yaml" else finished_transformer
    arguments = (f"init_from={before}", RISK)
    whole = new_run.with_name(f"{new_run.name}-whole")
    for run, updates in ((new_run, 2), (new_run, 4), (whole, 4)):
        found = cli(*train_arguments(project, run, *arguments, f"training.max_updates={updates}", config=config))
        assert found.code == 0, found.err
    parts = [[record for record in records(run) if "lr" in record] for run in (new_run, whole)]
    assert [record["loss_hex"] for record in parts[0]] == [record["loss_hex"] for record in parts[1]]
    assert len(parts[0]) == 4 and all(0 < record["risk"] < 0.5 for record in parts[0])  # half of a mean cost
