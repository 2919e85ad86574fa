"""What a training refuses to start or to go on with, and how it ends when numbers stop being numbers."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from harness import (
    UPDATES,
    Cli,
    assert_error,
    digests,
    finish,
    losses,
    start,
    steps,
    train_arguments,
    validations,
    wait_until,
    write_project,
)

CHECKPOINT_FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")


# --- going on under other circumstances (R8, R9, R10, C8) -------------------------------------------------------------


def test_harmless_settings_may_change(project: Path, run: Path, cli: Cli) -> None:
    settings = (f"training.max_updates={UPDATES + 2}", "training.log_every=1", "search.beam=1")
    outcome = cli(*train_arguments(project, run, *settings))
    assert outcome.code == 0
    assert f"training.max_updates: {UPDATES} -> {UPDATES + 2}" in outcome.err
    assert "search.beam: 2 -> 1" in outcome.err
    assert losses(run)[-1][0] == UPDATES + 2


@pytest.mark.parametrize(
    ("setting", "change"),
    [
        ("model.embedding=16", "model.embedding: 32 -> 16"),
        ("batches.tokens=300", "batches.tokens: 150 -> 300"),
        ("optimizer.lr=1e-2", "optimizer.lr: 0.005 -> 0.01"),
        ("seed=2", "seed: 1 -> 2"),
    ],
)
def test_other_settings_may_not_change(project: Path, run: Path, cli: Cli, setting: str, change: str) -> None:
    before = digests(run)
    assert_error(cli(*train_arguments(project, run, setting)), 2, change, "--overwrite")
    assert digests(run) == before


@pytest.mark.parametrize("change", ["line", "byte"])
def test_a_corpus_that_changed_is_refused(run: Path, tmp_path: Path, cli: Cli, change: str) -> None:
    """Paths are compared by what is in the files, so the run is started again over a copy that is then changed."""
    project = write_project(tmp_path / "copy")
    assert cli(*train_arguments(project, tmp_path / "own", "training.max_updates=3")).code == 0
    corpus = project / "train.de"
    text = corpus.read_text(encoding="utf-8")
    if change == "line":
        corpus.write_text(text + "Noch eine Zeile.\n", encoding="utf-8")
        (project / "train.en").write_text((project / "train.en").read_text() + "One more line.\n")
    else:
        corpus.write_text(text.replace("Hund", "Huhn", 1), encoding="utf-8")
    outcome = cli(*train_arguments(project, tmp_path / "own"))
    assert_error(outcome, 3, "changed since step 3", str(project))


def test_another_vocabulary_is_refused(project: Path, run: Path, tmp_path: Path, cli: Cli) -> None:
    """Of the same size, but of another model."""
    other = tmp_path / "other"
    settings = ("tokenizer.model=unigram", "training.max_updates=1")
    assert cli(*train_arguments(project, other, *settings)).code == 0
    shutil.rmtree(run / "tokenizer")
    shutil.copytree(other / "tokenizer", run / "tokenizer")
    for arguments in (train_arguments(project, run), ["translate", "--model", str(run)]):
        assert_error(cli(*arguments, stdin=b"a\n"), 4, "vocabulary hash differs")


def test_another_number_of_threads_is_a_warning(project: Path, run: Path) -> None:
    outcome = finish(start(train_arguments(project, run), extra={"OMP_NUM_THREADS": "2"}))
    assert outcome.code == 0
    assert "s2s: warning: threads: 1 -> 2" in outcome.err


# --- the run's directory (R11, D4, 4.2) -------------------------------------------------------------------------------


def test_two_trainings_in_one_run(project: Path, new_run: Path, cli: Cli) -> None:
    """The second is told who is there; when the first is dead, its lock is free."""
    process = start(train_arguments(project, new_run), extra={"S2S_FAILPOINT": "checkpoint.saved:sleep60"})
    wait_until(lambda: steps(new_run) == [7], process)
    assert_error(cli(*train_arguments(project, new_run)), 7, f"in use by pid {process.pid} on host")
    process.kill()
    assert finish(process).code == -signal.SIGKILL
    assert cli(*train_arguments(project, new_run, "training.max_updates=8")).code == 0


def test_a_run_is_not_started_again_unasked(project: Path, run: Path, cli: Cli) -> None:
    before = digests(run)
    assert_error(cli(*train_arguments(project, run, "--resume", "none")), 2, "holds a run already", "--overwrite")
    assert digests(run) == before
    assert cli(*train_arguments(project, run, "training.max_updates=2", "--overwrite")).code == 0
    assert [step for step, _ in losses(run)] == [1, 2]
    assert steps(run) == [2]


def test_directories_that_cannot_be_a_run(project: Path, tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    assert_error(cli(*train_arguments(project, file)), 2, "is a file", str(file))
    outcome = cli(*train_arguments(project, file / "below"))
    assert outcome.code in (2, 6), outcome
    assert_error(outcome, outcome.code, str(file))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    for more in ((), ("--overwrite",)):
        assert_error(cli(*train_arguments(project, foreign, *more)), 2, "not a run of s2s")
    assert [path.name for path in foreign.iterdir() if path.name != "LOCK"] == ["thesis.tex"]


def test_strange_names_and_missing_parents(project: Path, tmp_path: Path, cli: Cli) -> None:
    strange = tmp_path / "not there yet" / "a \x1b[31mred\nname"
    outcome = cli(*train_arguments(project, strange, "training.max_updates=1"))
    assert outcome.code == 0, outcome
    assert steps(strange) == [1]
    assert "\x1b" not in outcome.err


# --- broken checkpoints (C1, C5, C15) ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_broken_checkpoint_is_passed_over(project: Path, run: Path, finished: Path, cli: Cli, name: str) -> None:
    last = run / "checkpoints" / f"step-{UPDATES:08d}"
    content = (last / name).read_bytes()
    (last / name).write_bytes(content[: len(content) // 2])
    assert_error(cli("translate", "--model", run, "--checkpoint", "latest", stdin=b"a\n"), 4, f"{last.name}/{name}")
    outcome = cli(*train_arguments(project, run))
    assert outcome.code == 0
    assert f"s2s: warning: passing over {last.name}/{name}" in outcome.err
    assert digests(run) == digests(finished)
    assert losses(run) == losses(finished)


def test_no_good_checkpoint_is_no_fresh_start(project: Path, run: Path, cli: Cli) -> None:
    there = steps(run)
    for path in (run / "checkpoints").glob("step-*/model.safetensors"):
        path.write_bytes(b"")
    before = (run / "metrics.jsonl").read_bytes()
    outcome = cli(*train_arguments(project, run))
    assert_error(outcome, 4, "no checkpoint can be used", *(f"step-{step:08d}/model.safetensors" for step in there))
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "../../run.json", "../../tokenizer"])
def test_pickles_run_nothing(project: Path, run: Path, tmp_path: Path, cli: Cli, name: str) -> None:
    """A pickle that would create a file when loaded, in the place of every file of a run."""
    marker = tmp_path / "marker"
    payload = b"cos\nsystem\n(S'touch " + os.fsencode(marker) + b"'\ntR."
    path = run / "checkpoints" / f"step-{UPDATES:08d}" / name
    for target in [path] if not path.is_dir() else [child for child in path.iterdir() if child.is_file()]:
        target.write_bytes(payload)
    cli("translate", "--model", run, "--checkpoint", "latest", stdin=b"a\n")
    cli(*train_arguments(project, run))
    assert not marker.exists()
    assert os.system(f"touch {marker}") == 0  # the command of the payload does what the test looks for
    assert marker.exists()


# --- numbers (N1, N2, N4) ---------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number(
    project: Path, new_run: Path, finished: Path, cli: Cli, failpoint: Callable[[str], None]
) -> None:
    failpoint("loss:nan@16")
    outcome = cli(*train_arguments(project, new_run))
    last = f"last good checkpoint step-{steps(new_run)[-1]:08d}"
    assert_error(outcome, 5, "update 16: loss is nan", "batch of lines ", "weights not updated", last)
    report = json.loads((new_run / "diverged.json").read_text())
    assert (report["update"], report["loss"]) == (16, "nan")
    assert set(report["lines"]) <= set(range(1, 289))
    assert losses(new_run) == losses(finished)[:15]
    failpoint("")
    assert cli(*train_arguments(project, new_run)).code == 0
    assert digests(new_run) == digests(finished)


def test_weights_stay_as_they_were(
    project: Path, new_run: Path, cli: Cli, failpoint: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that training leaves behind is that of the update before, which was saved."""
    from s2s.checkpoint import load
    from s2s.training.trainer import Trainer

    trainers: list[Trainer] = []
    original = Trainer.run

    def remembered(trainer: Trainer) -> str:
        trainers.append(trainer)
        return original(trainer)

    monkeypatch.setattr(Trainer, "run", remembered)
    failpoint("loss:nan@8")
    assert cli(*train_arguments(project, new_run)).code == 5
    saved = load(new_run / "checkpoints" / "step-00000007").snapshot.model
    for name, parameter in trainers[0].model.named_parameters():
        assert parameter.equal(saved[name]), name


def test_a_gradient_that_is_not_finite(project: Path, new_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    original = torch.nn.utils.clip_grad_norm_

    def infinite(parameters: Iterable[torch.nn.Parameter], *arguments: Any, **named: Any) -> torch.Tensor:
        listed = list(parameters)
        listed[0].grad = torch.full_like(listed[0], torch.inf)
        return original(listed, *arguments, **named)

    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", infinite)
    assert_error(
        cli(*train_arguments(project, new_run)), 5, "the gradient's norm is inf", "no checkpoint was saved yet"
    )


def test_a_validation_that_is_not_a_number_is_never_the_best(
    project: Path, new_run: Path, finished: Path, cli: Cli, failpoint: Callable[[str], None]
) -> None:
    failpoint("valid:nan@1")
    outcome = cli(*train_arguments(project, new_run, "training.max_updates=20", "training.patience=1"))
    assert outcome.code == 0
    assert "s2s: warning: validation at update 10 gave bleu nan" in outcome.err
    assert (new_run / "best").read_text() == "step-00000020"
    assert set(validations(new_run)[0][1].values()) == {None}  # strict JSON
    assert validations(new_run)[1] == validations(finished)[1]
