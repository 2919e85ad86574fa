"""Whatever stops a training, the same command goes on, and the weights come out the same to the bit."""

from __future__ import annotations

import gc
import json
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from harness import (
    HARD_ATTENTION,
    UPDATES,
    Cli,
    Outcome,
    assert_same_run,
    digests,
    done,
    losses,
    records,
    rewrite,
    rewrite_state,
    steps,
    train_arguments,
    validations,
)

from s2s.checkpoint import Snapshot
from s2s.commands.train import EpochData
from s2s.training.trainer import Trainer, TrainingState


def changed(path: Path) -> int:
    """When the file was written last, in nanoseconds; 0 where it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


def test_the_reference_is_a_whole_run(finished: Path) -> None:
    assert [step for step, _ in losses(finished)] == list(range(1, UPDATES + 1))
    assert [step for step, _ in validations(finished)] == [10, 20, 30, 40]
    assert steps(finished)[-1] == UPDATES
    assert losses(finished)[0][1] != losses(finished)[-1][1]
    epochs = [record["epoch"] for record in records(finished) if "loss" in record]
    assert len(set(epochs)) > 2  # resuming crosses epochs


@pytest.mark.fault("R3", "R4")
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


def test_a_training_that_went_on_says_of_which_part_it_waited(project: Path, new_run: Path, cli: Cli) -> None:
    first = cli(*train_arguments(project, new_run, "training.max_updates=3"))
    again = cli(*train_arguments(project, new_run, "training.max_updates=6"))
    assert re.search(r"in \d+ s of training, [\d.]+% of it waiting for batches", first.err)
    assert re.search(r"in \d+ s of training, [\d.]+% of the last \d+ s waiting for batches", again.err)


@pytest.mark.fault("R3")
def test_the_end_is_the_end(project: Path, run: Path, cli: Cli) -> None:
    before = {path: changed(path) for path in run.rglob("*") if path.is_file() and path.name != "LOCK"}
    outcome = cli(*train_arguments(project, run))
    assert outcome.code == 0
    assert f"already complete ({UPDATES}/{UPDATES} updates)" in outcome.err
    assert {path: changed(path) for path in run.rglob("*") if path.is_file() and path.name != "LOCK"} == before


def test_a_schedule_that_never_came_to_its_end_is_told(project: Path, new_run: Path, cli: Cli) -> None:
    settings = ("optimizer.schedule={kind: cosine}", "training.max_updates=5000", "training.max_epochs=1")
    outcome = cli(*train_arguments(project, new_run, *settings))
    assert outcome.code == 0
    assert "warning: schedule cosine is stretched to training.max_updates, 5,000, and training ended at" in outcome.err


def test_settings_that_nothing_was_trained_with_are_not_kept(project: Path, run: Path, cli: Cli) -> None:
    """What a run says it was is what made its weights."""
    before = (run / "config.yaml").read_bytes()
    assert cli(*train_arguments(project, run, "training.precision=bf16", "search.beam=7")).code == 0
    assert (run / "config.yaml").read_bytes() == before


def stop_with_update(patched: pytest.MonkeyPatch, update: int) -> None:
    """TERM comes while this update is made, so that a validation due after it is left to the next start."""
    original = Trainer._update

    def interrupted(trainer: Trainer) -> None:
        original(trainer)
        trainer.signals.stop = signal.SIGTERM if trainer.state.update == update else None

    patched.setattr(Trainer, "_update", interrupted)


@pytest.mark.fault("R3")
def test_a_validation_at_the_end_is_not_done_again(
    project: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal came with the last update; what the next start measures, and finds no better, is kept with the run."""
    run = tmp_path / "run"
    settings = ("optimizer.lr=1e-30", "training.validate_every=2", "training.max_updates=5")
    with monkeypatch.context() as patched:
        stop_with_update(patched, 5)
        assert cli(*train_arguments(project, run, *settings)).code == 128 + signal.SIGTERM
    assert cli(*train_arguments(project, run, *settings)).code == 0
    (once,) = [line for line in records(run) if "valid" in line and line["step"] == 5]
    assert (run / "best").read_text() == "step-00000002"
    before = {path: changed(path) for path in run.rglob("*") if path.is_file() and path.name != "LOCK"}
    assert "already complete (5/5 updates)" in cli(*train_arguments(project, run, *settings)).err
    assert {path: changed(path) for path in run.rglob("*") if path.is_file() and path.name != "LOCK"} == before
    assert once in records(run)


@pytest.mark.fault("R3")
def test_a_validation_that_was_interrupted_reads_by_the_schedules_of_its_update(
    project: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variance of the gradient hangs on the temperature, which is a function of the update."""
    gumbel = "{kind: hard, estimator: {kind: gumbel, temperature: {start: 4.0, end: 0.5, updates: 4}}}"
    settings = (f"model.decoder.attention={gumbel}", "training.validate_every=4", "training.max_updates=4")
    with monkeypatch.context() as patched:
        stop_with_update(patched, 4)
        assert cli(*train_arguments(project, tmp_path / "parts", *settings)).code == 128 + signal.SIGTERM
    for run in ("parts", "whole"):
        assert cli(*train_arguments(project, tmp_path / run, *settings)).code == 0
    parts, whole = (
        [line["valid"] for line in records(tmp_path / run) if "valid" in line] for run in ("parts", "whole")
    )
    assert parts == whole and whole[-1]["attention"]["gradient_variance"] > 0


def test_what_was_loaded_is_let_go(project: Path, run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that goes on does not keep the weights that it began with beside its own."""
    kept: list[int] = []
    original = Trainer._update

    def counted(trainer: Trainer) -> None:
        kept.append(sum(type(one) is Snapshot for one in gc.get_objects()))
        original(trainer)

    monkeypatch.setattr(Trainer, "_update", counted)
    gc.collect()
    assert cli(*train_arguments(project, run, "training.max_updates=42")).code == 0
    assert kept == [0, 0]


@pytest.mark.fault("R6")
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


@pytest.mark.fault("R4")
def test_every_pair_once_an_epoch(project: Path, new_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over four stops in the first epoch and three in the second, each of the 288 pairs is met once in each."""
    seen: dict[int, list[int]] = {}
    original = EpochData.batch

    def noted(data: EpochData, indices: Any, epoch: int, *rest: Any) -> Any:
        seen.setdefault(epoch, []).extend(indices.tolist())
        return original(data, indices, epoch, *rest)

    monkeypatch.setattr(EpochData, "batch", noted)
    for stop in (2, 3, 5, 6, 20, 21, 22, 40):
        assert cli(*train_arguments(project, new_run, f"training.max_updates={stop}")).code == 0
    for epoch in (0, 1):
        assert sorted(seen[epoch]) == list(range(288))
    assert seen[0] != seen[1]


@pytest.mark.fault("R3")
@pytest.mark.parametrize(("schedule", "warned"), [("cosine", True), ("luong", True), ("constant", False)])
def test_a_schedule_that_is_stretched_says_so(
    project: Path, new_run: Path, cli: Cli, schedule: str, warned: bool
) -> None:
    """More updates than were planned are another plan."""
    settings = (f"optimizer.schedule={{kind: {schedule}}}", "training.validate_every=100")
    assert cli(*train_arguments(project, new_run, *settings, "training.max_updates=4")).code == 0
    outcome = cli(*train_arguments(project, new_run, *settings, "training.max_updates=8"))
    assert outcome.code == 0
    told = f"s2s: warning: training.max_updates: 4 -> 8: schedule {schedule} is stretched to the last update"
    assert (told in outcome.err) == warned


@pytest.mark.fault("R3")
@pytest.mark.parametrize(
    ("ended", "patience", "kind", "warned"),
    [
        (5, "null", "plateau", True),
        (6, "null", "plateau", False),
        (5, "3", "constant", True),
        (5, "null", "constant", False),
    ],
)
def test_a_validation_that_only_the_end_made_is_told_where_it_counts(
    project: Path, new_run: Path, cli: Cli, ended: int, patience: str, kind: str, warned: bool
) -> None:
    """A run that goes on had one validation more than one that never ended there."""
    settings = (f"optimizer.schedule={{kind: {kind}}}", "training.validate_every=3", f"training.patience={patience}")
    assert cli(*train_arguments(project, new_run, *settings, f"training.max_updates={ended}")).code == 0
    outcome = cli(*train_arguments(project, new_run, *settings, "training.max_updates=7"))
    assert outcome.code == 0
    told = f"s2s: warning: training.max_updates: {ended} -> 7: the validation at its end, update 5, counts for"
    assert (told in outcome.err) == warned


@pytest.mark.fault("R3")
@pytest.mark.parametrize(
    "settings",
    [
        "kind: sgd, lr: 0.5",
        "kind: sgd, lr: 0.5, momentum: 0.9",
        "kind: sgd, lr: 0.1, momentum: 0.9, nesterov: true",
        "kind: adadelta",
    ],
)
def test_every_optimizer_goes_on(project: Path, new_run: Path, cli: Cli, settings: str) -> None:
    """Plain gradient descent keeps nothing between updates, and is resumed none the less."""
    config = f"{new_run.name}.yaml"
    text = (project / "rnn.yaml").read_text(encoding="utf-8")
    adam = "kind: adam, lr: 5e-3"
    assert adam in text
    (project / config).write_text(text.replace(adam, settings), encoding="utf-8")
    whole = new_run.with_name(f"{new_run.name}-whole")
    assert cli(*train_arguments(project, whole, "training.max_updates=12", config=config)).code == 0
    for stop in (1, 5, 12):
        assert cli(*train_arguments(project, new_run, f"training.max_updates={stop}", config=config)).code == 0
    assert digests(new_run) == digests(whole)
    assert losses(new_run) == losses(whole)


# --- nothing may be forgotten -----------------------------------------------------------------------------------------

Change = Callable[[Snapshot], None]


def put(name: str, value: Any) -> Change:
    """Save another value of a counter."""

    def change(snapshot: Snapshot) -> None:
        assert snapshot.state["training"][name] != value
        snapshot.state["training"][name] = value

    return change


def zero_moments(snapshot: Snapshot) -> None:
    """Save an optimizer that has seen nothing, under the names of one that has."""
    snapshot.optimizer = {name: torch.zeros_like(tensor) for name, tensor in snapshot.optimizer.items()}


def zero_baseline(snapshot: Snapshot) -> None:
    """Save a REINFORCE baseline of no experience."""
    names = [name for name in snapshot.model if name.endswith("estimator.mean")]
    assert len(names) == 1
    snapshot.model[names[0]] = torch.zeros(())


def first_average(snapshot: Snapshot) -> None:
    """Save the weights in the place of their average."""
    snapshot.average = {name: tensor.clone() for name, tensor in snapshot.model.items()}


FULL = ("training.ema=0.9", "training.patience=10", "training.validate_every=3")


def the_same_again(found: object, references: object, metrics: Sequence[str], language: str) -> list[SimpleNamespace]:
    """In the place of BLEU and chrF: the first validation is the best, and every counter of fruitless ones moves."""
    return [SimpleNamespace(name=name, value=1.0) for name in metrics]


@pytest.fixture(scope="module")
def whole(project: Path) -> Path:
    """A run that uses everything a checkpoint holds, undisturbed."""
    run = project / "everything"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s2s.commands.train.score_all", the_same_again)
        done(train_arguments(project, run, *FULL, "training.max_updates=24", config="plateau.yaml"))
    return run


@pytest.fixture(scope="module", autouse=True)
def _plateau(project: Path) -> None:
    """hard.yaml with a schedule that has a memory."""
    text = (project / "rnn.yaml").read_text(encoding="utf-8")
    changed = text.replace("{kind: inverse_sqrt, warmup: 10}", "{kind: plateau, patience: 2, decay: 0.5}")
    assert changed != text
    changed = changed.replace("{kind: global, score: general}", HARD_ATTENTION)
    (project / "plateau.yaml").write_text(changed, encoding="utf-8")


def stopped_and_resumed(project: Path, run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, change: Change) -> Outcome:
    """Train to update 15 with a saver that saves something else then, and to update 24 with the right one."""
    original = Trainer.snapshot

    def forgetful(trainer: Trainer) -> Snapshot:
        snapshot = original(trainer)
        if trainer.state.update == 15:
            change(snapshot)
        return snapshot

    arguments = train_arguments(project, run, *FULL, config="plateau.yaml")
    monkeypatch.setattr("s2s.commands.train.score_all", the_same_again)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "snapshot", forgetful)
        assert cli(*arguments, "training.max_updates=15").code == 0
    return cli(*arguments, "training.max_updates=24")


def is_same(run: Path, reference: Path) -> bool:
    """Whether `assert_same_run` holds: the mutations must be seen by the very check that the kills are judged by."""
    try:
        assert_same_run(run, reference)
    except AssertionError:
        return False
    return True


@pytest.mark.fault("R5")
def test_a_saver_that_forgets_nothing(
    project: Path, new_run: Path, whole: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stopped_and_resumed(project, new_run, cli, monkeypatch, lambda _: None).code == 0
    assert is_same(new_run, whole)


@pytest.mark.fault("R5")
@pytest.mark.parametrize(
    "change",
    [
        zero_moments,
        zero_baseline,
        first_average,
        *(
            pytest.param(put(name, value), id=name, marks=pytest.mark.slow)
            for name, value in (
                ("update", 12),
                ("position", 0),
                ("epoch", 1),
                ("target_tokens", 0),
                ("best", 0.5),
                ("fruitless", 9),
                ("reductions", 7),
                ("since_reduction", 1),
                ("validated", 0),
            )
        ),
    ],
    ids=lambda change: getattr(change, "__name__", ""),
)
def test_a_saver_that_forgets_is_seen(
    project: Path, new_run: Path, whole: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    """The mutation test of these tests: with any part of the state wrong, a run is refused or comes out different."""
    outcome = stopped_and_resumed(project, new_run, cli, monkeypatch, change)
    assert outcome.code == 4 or not is_same(new_run, whole), "nobody would have noticed"


@pytest.mark.fault("R5")
def test_what_is_missing_is_named(project: Path, whole: Path, tmp_path: Path, cli: Cli) -> None:
    """Every field of the state and every tensor of the optimizer: a checkpoint without it is refused."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    directory = run / "checkpoints" / f"step-{steps(run)[-1]:08d}"
    for other in steps(run)[:-1]:
        shutil.rmtree(run / "checkpoints" / f"step-{other:08d}")
    state = json.loads((directory / "state.json").read_text())
    arguments = train_arguments(project, run, *FULL, f"data.cache={project / '.cache'}", config="plateau.yaml")

    def refusal() -> str:
        outcome = cli(*arguments)
        assert outcome.code == 4, outcome
        return outcome.err

    for field in TrainingState.__dataclass_fields__:
        rewrite_state(directory, state | {"training": {k: v for k, v in state["training"].items() if k != field}})
        assert f"{field} is missing" in refusal()
    for field in ("training", "scaler", "unstepped", "config", "tokenizer", "fingerprint"):
        rewrite_state(directory, {name: value for name, value in state.items() if name != field})
        assert f"{field} is missing" in refusal()
    rewrite_state(directory, state)
    tensors = safetensors.torch.load((directory / "optimizer.safetensors").read_bytes())
    for name in (next(iter(tensors)), next(reversed(tensors))):
        rest = {other: tensor for other, tensor in tensors.items() if other != name}
        rewrite(directory, "optimizer.safetensors", safetensors.torch.save(rest))
        assert f"{name} is missing" in refusal()
    rewrite(directory, "optimizer.safetensors", safetensors.torch.save({}))
    assert " is missing" in refusal()
