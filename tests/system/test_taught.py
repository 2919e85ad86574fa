"""One run learns from what another predicts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from harness import UPDATES, Cli, Outcome, assert_error, records, rewrite_state, train_arguments

from s2s.checkpoint import load_model
from s2s.commands.train import _compare_settings
from s2s.config import Config
from s2s.errors import ConfigError
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
    """Neither a run that began without one, nor one that takes over another's, reads what the teacher does."""
    assert cli(*train_arguments(project, new_run, SMALLER, "training.max_updates=1")).code == 0
    found = cli(*train_arguments(project, new_run, SMALLER, f"objective.teacher.run={finished}"))
    assert_error(found, 2, "objective.teacher", "differ from the checkpoint's")
    other = new_run.with_name(f"{new_run.name}-other")
    taught = f"objective.teacher={{run: {new_run}}}"
    found = cli(*train_arguments(project, other, f"init_from={finished}", taught, "training.max_updates=1"))
    assert_error(
        found, 2, "objective.teacher.run", "the vocabularies of", "are not those of this run; leave init_from out"
    )


def test_a_teacher_that_is_no_run_is_refused(project: Path, new_run: Path, cli: Cli) -> None:
    found = cli(*train_arguments(project, new_run, f"objective.teacher={{run: {project / 'nowhere'}}}"))
    assert_error(found, 4, "nowhere", "no config.yaml here; give the directory of a run")


def test_another_teacher_than_before_is_refused(project: Path, new_run: Path, finished: Path, cli: Cli) -> None:
    """The best checkpoint of a run that goes on is another one later."""
    teacher = Path(shutil.copytree(finished, new_run.with_name(f"{new_run.name}-teacher")))
    arguments = train_arguments(project, new_run, f"objective.teacher={{run: {teacher}}}")
    assert cli(*arguments, "training.max_updates=1").code == 0
    numbers = sorted(path.name for path in (teacher / "checkpoints").glob("step-*"))
    best = (teacher / "best").read_text()
    (teacher / "best").write_text(next(name for name in numbers if name != best.strip()))
    found = cli(*arguments, "training.max_updates=2")
    assert_error(found, 2, "objective.teacher.run", "its best checkpoint was of update", "checkpoints/step-N")


def test_a_teacher_is_known_by_its_weights(
    project: Path, new_run: Path, finished: Path, tmp_path: Path, cli: Cli
) -> None:
    """It may move; another one that stands where it stood, of the same update, is refused."""
    teacher = tmp_path / "teacher"
    shutil.copytree(finished, teacher)

    def taught(run: Path, updates: int) -> Outcome:
        last = run / "checkpoints" / f"step-{UPDATES:08d}"
        settings = (f"objective.teacher={{run: {last}}}", f"training.max_updates={updates}")
        return cli(*train_arguments(project, new_run, *settings))

    assert taught(teacher, 1).code == 0
    moved = teacher.rename(tmp_path / "moved")
    found = taught(moved, 2)
    assert found.code == 0 and "changed since the checkpoint: objective.teacher.run" in found.err

    assert cli(*train_arguments(project, teacher, f"init_from={moved}", "seed=7")).code == 0
    found = taught(teacher, 3)
    assert_error(found, 2, "objective.teacher.run", "its weights are not those that taught until step 2")


@pytest.mark.parametrize("update", [None, 20, 7])
def test_a_checkpoint_that_knows_its_teacher_by_the_update_alone_goes_on(
    project: Path, new_run: Path, finished: Path, tmp_path: Path, cli: Cli, update: int | None
) -> None:
    """As they were saved once; another update, or another place, is refused."""
    shutil.copytree(finished, tmp_path / "teacher")
    arguments = train_arguments(project, new_run, f"objective.teacher={{run: {tmp_path}/teacher}}")
    assert cli(*arguments, "training.max_updates=1").code == 0
    assert load_model(finished).step == 20

    def make_older(step: int) -> None:
        saved = new_run / "checkpoints" / f"step-{step:08d}"
        state = json.loads((saved / "state.json").read_text())
        del state["teacher"]
        rewrite_state(saved, state if update is None else state | {"teacher": update})

    make_older(1)
    found = cli(*arguments, "training.max_updates=2")
    if update == 7:
        assert_error(found, 2, "objective.teacher.run", "was of update 7 at step 1, and is of 20 now")
        return
    assert found.code == 0, found
    make_older(2)
    (tmp_path / "teacher").rename(tmp_path / "moved")
    moved = train_arguments(project, new_run, f"objective.teacher={{run: {tmp_path}/moved}}", "training.max_updates=3")
    assert_error(cli(*moved), 2, "objective.teacher.run", "are not those that taught until step 2")


def test_settings_that_there_were_not_yet_had_their_defaults(project: Path, new_run: Path, cli: Cli) -> None:
    arguments = train_arguments(project, new_run)
    assert cli(*arguments, "training.max_updates=1").code == 0
    saved = load_model(new_run, "latest").snapshot.state["config"]
    assert isinstance(saved, dict)
    del saved["objective"]["r_drop"], saved["model"]["decoder"]["heads"]
    _compare_settings({"config": saved}, Config.model_validate_json(json.dumps(saved)))
    saved["objective"]["r_drop"] = 1.0
    with pytest.raises(ConfigError, match="r_drop"):
        _compare_settings({"config": saved}, Config.model_validate_json(json.dumps(saved | {"objective": {}})))
