"""`training.checkpoint_activations`: the same run to the bit, alone, in two processes, in bf16, with accumulation."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Cli, Warm, assert_error, digests, done, finish, losses, repeatable, start_ranks, train_arguments

AGAIN = "training.checkpoint_activations=true"


def test_the_same_run(project: Path, new_run: Path, finished_transformer: Path) -> None:
    """With dropout and two batches an update; and the setting may change in the middle of it."""
    done(train_arguments(project, new_run, AGAIN, "training.max_updates=20", config="transformer.yaml"))
    done(train_arguments(project, new_run, config="transformer.yaml"))
    assert repeatable(new_run) == repeatable(finished_transformer)
    assert digests(new_run) == digests(finished_transformer)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_with_precision_accumulation_and_processes(project: Path, tmp_path: Path, warm: Warm, precision: str) -> None:
    settings = ("training.max_updates=6", f"training.precision={precision}", "batches.accumulate=2", "data.valid=null",
                "training.stop_on=nll")  # fmt: skip
    for name, more in (("plain", []), ("again", [AGAIN])):
        arguments = train_arguments(project, tmp_path / name, *settings, *more, config="transformer.yaml")
        outcomes = [finish(process) for process in start_ranks(warm, arguments)]
        assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert len(losses(tmp_path / "again")) == 6
    assert repeatable(tmp_path / "again") == repeatable(tmp_path / "plain")
    assert digests(tmp_path / "again") == digests(tmp_path / "plain")


def test_a_recurrent_model_is_refused_with_the_reason(project: Path, new_run: Path, cli: Cli) -> None:
    outcome = cli(*train_arguments(project, new_run, AGAIN))
    assert_error(outcome, 2, "training.checkpoint_activations", "all of its steps at once", "kind: transformer")
