"""One run learns from what another predicts."""

from __future__ import annotations

from pathlib import Path

import torch
from harness import Cli, assert_error, records, train_arguments

from s2s.run import load_trained

SMALLER = "tokenizer.vocabulary=60"


def test_a_transformer_learns_from_a_recurrent_run(project: Path, new_run: Path, finished: Path, cli: Cli) -> None:
    """It takes over the vocabularies, records what the teacher costs, and goes on after a stop as if there was none."""
    taught = f"objective.teacher={{run: {finished}, weight: 0.5}}"
    arguments = train_arguments(project, new_run, taught, SMALLER, config="transformer.yaml")
    found = cli(*arguments, "training.max_updates=3")
    assert found.code == 0, found.err
    assert f"learning from {finished} (update " in found.err
    theirs, own = (load_trained(run, torch.device("cpu")).tokenizers.fingerprint for run in (finished, new_run))
    assert theirs == own
    assert cli(*arguments, "training.max_updates=6").code == 0
    whole = new_run.with_name(f"{new_run.name}-whole")
    assert (
        cli(*train_arguments(project, whole, taught, SMALLER, "training.max_updates=6", config="transformer.yaml")).code
        == 0
    )
    updates = [[record for record in records(run) if "lr" in record] for run in (new_run, whole)]
    assert [record["loss_hex"] for record in updates[0]] == [record["loss_hex"] for record in updates[1]]
    assert all(any(name.endswith("teacher") and record[name] > 0 for name in record) for record in updates[0])


def test_a_teacher_of_other_pieces_is_refused(project: Path, new_run: Path, finished: Path, cli: Cli) -> None:
    """A run that began without one has vocabularies of its own."""
    assert cli(*train_arguments(project, new_run, SMALLER, "training.max_updates=1")).code == 0
    found = cli(*train_arguments(project, new_run, SMALLER, f"objective.teacher.run={finished}"))
    assert found.code in (2, 4), found
    other = new_run.with_name(f"{new_run.name}-other")
    taught = f"objective.teacher={{run: {new_run}}}"
    found = cli(*train_arguments(project, other, f"init_from={finished}", taught, "training.max_updates=1"))
    assert_error(found, 2, "objective.teacher.run", "the vocabularies of", "are not those of this run")


def test_a_teacher_that_is_no_run_is_refused(project: Path, new_run: Path, cli: Cli) -> None:
    found = cli(*train_arguments(project, new_run, f"objective.teacher={{run: {project / 'nowhere'}}}"))
    assert_error(found, 4, "nowhere", "no config.yaml here; give the directory of a run")
