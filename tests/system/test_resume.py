"""Whatever stops a training, the same command goes on, and the weights come out the same to the bit."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from harness import (
    UPDATES,
    Cli,
    assert_same_run,
    digests,
    finish,
    losses,
    records,
    start,
    steps,
    train_arguments,
    validations,
    wait_until,
    write_project,
)

import s2s.commands.train
from s2s.training.trainer import Trainer


def changed(path: Path) -> int:
    """When the file was written last, in nanoseconds; 0 where it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


def kill_and_resume(project: Path, run: Path, config: str, kills: int, seed: int) -> None:
    """Kill a training ``kills`` times at random moments after a record was written, then let it end."""
    generator = random.Random(seed)
    for number in range(kills):
        before = changed(run / "metrics.jsonl")
        process = start(train_arguments(project, run, config=config))
        wait_until(lambda: changed(run / "metrics.jsonl") > before, process)  # noqa: B023
        pause = generator.uniform(0, 0.1)
        time.sleep(pause)
        os.killpg(process.pid, signal.SIGKILL)
        outcome = finish(process)
        print(f"seed {seed}, kill {number} after {pause:.3f} s: {outcome}")  # shown if the test fails
        assert outcome.code == -signal.SIGKILL
    assert finish(start(train_arguments(project, run, config=config))).code == 0


def test_five_kills_change_nothing(project: Path, new_run: Path, finished: Path) -> None:
    kill_and_resume(project, new_run, "rnn.yaml", kills=5, seed=0)
    assert_same_run(new_run, finished)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_kills_change_nothing_in_a_transformer(
    project: Path, new_run: Path, finished_transformer: Path, seed: int
) -> None:
    kill_and_resume(project, new_run, "transformer.yaml", kills=5, seed=seed)
    assert_same_run(new_run, finished_transformer)


def test_the_reference_is_a_whole_run(finished: Path) -> None:
    assert [step for step, _ in losses(finished)] == list(range(1, UPDATES + 1))
    assert [step for step, _ in validations(finished)] == [10, 20, 30, 40]
    assert steps(finished)[-1] == UPDATES
    assert losses(finished)[0][1] != losses(finished)[-1][1]
    epochs = [record["epoch"] for record in records(finished) if "loss" in record]
    assert len(set(epochs)) > 2  # resuming crosses epochs


@pytest.mark.parametrize("config", ["rnn.yaml", "transformer.yaml"])
def test_stopping_again_and_again(project: Path, new_run: Path, cli: Cli, request: Any, config: str) -> None:
    """Stops within one epoch, at its last update, at the first update of all, and one update before the end."""
    reference = request.getfixturevalue("finished" if config == "rnn.yaml" else "finished_transformer")
    epochs = [record["epoch"] for record in records(reference) if "loss" in record]
    boundary = epochs.count(epochs[0])  # the last update of the first epoch
    for stop in (1, 3, boundary - 1, boundary, boundary + 1, UPDATES - 1, UPDATES):
        outcome = cli(*train_arguments(project, new_run, f"training.max_updates={stop}", config=config))
        assert outcome.code == 0, outcome
        assert steps(new_run)[-1] == stop
    assert losses(new_run) == losses(reference)
    assert digests(new_run) == digests(reference)


def test_the_end_is_the_end(project: Path, run: Path, cli: Cli) -> None:
    before = {path: changed(path) for path in run.rglob("*") if path.is_file() and path.name != "LOCK"}
    outcome = cli(*train_arguments(project, run))
    assert outcome.code == 0
    assert f"already complete ({UPDATES}/{UPDATES} updates)" in outcome.err
    assert {path: changed(path) for path in run.rglob("*") if path.is_file() and path.name != "LOCK"} == before


def test_patience_and_the_best_survive_a_stop(project: Path, tmp_path: Path, cli: Cli) -> None:
    """Without learning (a rate of nearly zero) the first validation stays the best, and patience ends the run."""
    settings = ("optimizer.lr=1e-30", "training.patience=3", "training.validate_every=2")
    assert cli(*train_arguments(project, tmp_path / "whole", *settings)).code == 0
    for stop in (4, 6, 100):
        outcome = cli(*train_arguments(project, tmp_path / "parts", *settings, f"training.max_updates={stop}"))
        assert outcome.code == 0
    assert "no better bleu in 3 validations" in outcome.err
    assert (tmp_path / "parts" / "best").read_text() == "step-00000002"
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves(project: Path, new_run: Path, finished: Path, cli: Cli, number: signal.Signals) -> None:
    process = start(train_arguments(project, new_run))
    wait_until(lambda: changed(new_run / "metrics.jsonl") > 0, process)
    process.send_signal(number)
    outcome = finish(process)
    assert outcome.code == 128 + number
    last = steps(new_run)[-1]
    assert 0 < last < UPDATES
    assert f"stopped by {number.name} at step {last}; saved {new_run}/checkpoints/step-{last:08d}" in outcome.err
    assert "Traceback" not in outcome.err
    assert losses(new_run)[-1][0] == last
    assert cli(*train_arguments(project, new_run)).code == 0
    assert_same_run(new_run, finished)


def test_a_second_interrupt_ends_at_once(project: Path, new_run: Path, finished: Path, cli: Cli) -> None:
    """The first one waits for the save, which is held up; the second does not, and the checkpoint before it is good."""
    process = start(train_arguments(project, new_run), extra={"S2S_FAILPOINT": "checkpoint.after_state:sleep30@2"})
    wait_until(lambda: steps(new_run) == [7] and any(new_run.glob("checkpoints/.tmp-*/state.json")), process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert finish(process, timeout=5).code == 130
    assert steps(new_run) == [7]
    assert cli(*train_arguments(project, new_run)).code == 0
    assert_same_run(new_run, finished)


@pytest.mark.parametrize("where", ["likelihood", "score_all"])
def test_a_signal_in_a_validation(
    project: Path, new_run: Path, finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Before its first batch it is left and done again on resume; after its last it is finished."""
    original = getattr(s2s.commands.train, where)

    def interrupted(*arguments: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(s2s.commands.train, where, interrupted)
        outcome = cli(*train_arguments(project, new_run))
    assert outcome.code == 143
    assert steps(new_run)[-1] == 10
    assert [step for step, _ in validations(new_run)] == ([] if where == "likelihood" else [10])
    assert cli(*train_arguments(project, new_run)).code == 0
    assert_same_run(new_run, finished)


def test_a_validation_done_again_is_recorded_once(
    project: Path, new_run: Path, finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the validation of step 10, and killed between its record and the checkpoint that knows of it."""
    original = s2s.commands.train.likelihood

    def interrupted(*arguments: Any) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(s2s.commands.train, "likelihood", interrupted)
        assert cli(*train_arguments(project, new_run)).code == 143
    process = start(train_arguments(project, new_run), extra={"S2S_FAILPOINT": "checkpoint.after_mkdir:kill9"})
    assert finish(process).code == -signal.SIGKILL
    assert cli(*train_arguments(project, new_run)).code == 0
    assert_same_run(new_run, finished)


def test_a_signal_before_the_first_update(
    project: Path, new_run: Path, finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer._is_validation_due

    def interrupted(trainer: Any) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_is_validation_due", interrupted)
        outcome = cli(*train_arguments(project, new_run))
    assert outcome.code == 143
    assert "nothing to save yet" in outcome.err
    assert not (new_run / "checkpoints").exists()
    assert cli(*train_arguments(project, new_run)).code == 0
    assert_same_run(new_run, finished)


def test_usr1_saves_and_goes_on(
    project: Path, new_run: Path, finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = s2s.commands.train.EpochData.batch
    saved: list[int] = []

    def asking(data: Any, *arguments: Any) -> Any:
        if len(saved) == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
        saved.extend(steps(new_run))
        return original(data, *arguments)

    monkeypatch.setattr(s2s.commands.train.EpochData, "batch", asking)
    assert cli(*train_arguments(project, new_run)).code == 0
    assert saved[0] == 1
    assert_same_run(new_run, finished)


# --- the same again ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra",
    [
        {"PYTHONHASHSEED": "0", "LC_ALL": "C"},
        {"PYTHONHASHSEED": "77", "LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Tokyo", "PYTHONUTF8": "0"},
    ],
)
def test_the_same_seed_anywhere(tmp_path: Path, finished: Path, extra: dict[str, str]) -> None:
    """In another folder with other hashes and another locale, the vocabulary learned anew."""
    project = write_project(tmp_path / "anywhere")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    outcome = finish(start(train_arguments(project, Path("run")), cwd=elsewhere, extra=extra))
    assert outcome.code == 0, outcome.err
    assert_same_run(elsewhere / "run", finished)


def test_the_same_seed_in_one_process_and_another_seed(project: Path, new_run: Path, finished: Path, cli: Cli) -> None:
    assert cli(*train_arguments(project, new_run)).code == 0
    assert_same_run(new_run, finished)
    assert cli(*train_arguments(project, new_run, "seed=2", "--overwrite")).code == 0
    assert digests(new_run) != digests(finished)
