"""Two processes that train one model: the same weights as one with two batches an update, and one fate for both."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from harness import (
    Cli,
    Outcome,
    Warm,
    assert_error,
    assert_same_run,
    digests,
    finish,
    losses,
    records,
    repeatable,
    rewrite_state,
    start_ranks,
    steps,
    train_arguments,
    validations,
)

from s2s import config as configuration
from s2s.checkpoint import Snapshot, load
from s2s.data import tokenizer
from s2s.data.batches import plan_epoch
from s2s.data.prepare import prepare

UPDATES = 14
SHORT = (f"training.max_updates={UPDATES}", "training.save_every=5", "training.validate_every=7")
ALONE, EACH = "batches.accumulate=2", "batches.accumulate=1"
"""An update of two batches by one process, and by two."""

DOUBLE = """
import s2s.commands.train as command
build = command.build_model
command.build_model = lambda *arguments: build(*arguments).double()
"""
"""What a process runs first whose model is to be in float64."""


def together(
    warm: Warm,
    arguments: Sequence[str],
    points: dict[int, str] | None = None,
    first: dict[int, str] | None = None,
    size: int = 2,
) -> list[Outcome]:
    """How the processes of a training ended, in the order of their ranks."""
    return [finish(process) for process in start_ranks(warm, arguments, size, points, first)]


def told(outcomes: Sequence[Outcome]) -> Outcome:
    """What all said, as one."""
    return Outcome(outcomes[0].code, b"", "".join(outcome.err for outcome in outcomes))


def snapshot(run: Path) -> Snapshot:
    """All that the last checkpoint holds."""
    return load(run / "checkpoints" / f"step-{steps(run)[-1]:08d}").snapshot


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys() and found
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="session")
def alone(project: Path, warm: Warm) -> Path:
    """A run of one process that two must repeat. Read it, never change it.

    To the bit, for the gradients of two batches have one sum in either order.
    """
    run = project / "alone"
    outcome = finish(warm.start(train_arguments(project, run, *SHORT, ALONE)))
    assert outcome.code == 0, outcome
    return run


def batches_of_an_epoch(run: Path) -> int:
    """How many batches a run has in its first epoch."""
    config = configuration.load(run / "config.yaml")
    corpus = prepare(config.data, config.tokenizer, run.parent / ".cache", print, tokenizer.load(run / "tokenizer"))
    lengths = (corpus.train.source_lengths, corpus.train.target_lengths)
    return len(plan_epoch(*lengths, config.batches, config.seed, 0))


# --- the same mathematics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("config", ["rnn.yaml", pytest.param("hard.yaml", marks=pytest.mark.slow), "transformer.yaml"])
def test_two_processes_train_as_one(project: Path, tmp_path: Path, warm: Warm, config: str, batches: int) -> None:
    """In float64, with dropout and sampled segmentations, over an epoch whose last update has too few batches."""
    settings = (
        "data.valid=null", "training.stop_on=nll", "tokenizer.sampling={alpha: 0.2}", "batches.tokens=700",
        f"training.max_updates={-(-7 // (2 * batches)) + 1}",
    )  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    more = f"batches.accumulate={2 * batches}"
    outcome = finish(warm.start(train_arguments(project, one, *settings, more, config=config), first=DOUBLE))
    assert outcome.code == 0, outcome
    arguments = train_arguments(project, two, *settings, f"batches.accumulate={batches}", config=config)
    outcomes = together(warm, arguments, first=dict.fromkeys((0, 1), DOUBLE))
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    expected, found = snapshot(one), snapshot(two)
    assert next(iter(found.model.values())).dtype == torch.float64
    assert_close(found.model, expected.model, 1e-12)
    assert_close(found.optimizer, expected.optimizer, 1e-12)
    assert found.state["training"]["target_tokens"] == expected.state["training"]["target_tokens"]
    assert batches_of_an_epoch(two) == 7, "no update of an epoch lacks a batch"
    assert [record["epoch"] for record in records(two)][-2:] == [1, 2]
    for mine, other in zip(records(two), records(one), strict=True):
        assert mine.keys() == other.keys()
        for name in mine.keys() - {"seconds", "waited", "loss_hex"}:
            assert mine[name] == pytest.approx(other[name], rel=1e-12, abs=1e-12), name


@pytest.mark.fault("E6")
def test_one_writes_and_one_speaks(project: Path, new_run: Path, alone: Path, warm: Warm) -> None:
    """The second process says nothing, and the run's folder has what one process leaves."""
    outcomes = together(warm, train_arguments(project, new_run, *SHORT, EACH, "training.log_every=1"))
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert outcomes[1].err == ""
    assert outcomes[0].err.count("update 3  epoch 1") == 1
    assert "1 threads, 2 processes" in outcomes[0].err
    assert_same_run(new_run, alone)
    names = {path.relative_to(new_run) for path in new_run.rglob("*")}
    assert names == {path.relative_to(alone) for path in alone.rglob("*")}


@pytest.mark.slow
def test_precision_average_and_three_processes(project: Path, tmp_path: Path, warm: Warm) -> None:
    """In bf16 with a moving average; three gradients may be added in any order, so float32 rounds differently."""
    settings = ("training.max_updates=6", "training.precision=bf16", "training.ema=0.9", "data.valid=null",
                "training.stop_on=nll")  # fmt: skip
    for size in (1, 3):
        arguments = train_arguments(project, tmp_path / str(size), *settings, f"batches.accumulate={3 // size}")
        outcomes = together(warm, arguments, size=size)
        assert [outcome.code for outcome in outcomes] == [0] * size, outcomes
    one, three = snapshot(tmp_path / "1"), snapshot(tmp_path / "3")
    assert_close(three.model, one.model, 2e-4)
    assert one.average is not None and three.average is not None
    assert_close(three.average, one.average, 2e-4)


@pytest.mark.slow
@pytest.mark.fault("N12")
def test_going_on_in_half_precision_where_one_has_no_batch(project: Path, new_run: Path, warm: Warm) -> None:
    """The seventh batch of seven is the first update of a process that has none of it, and no loss to scale."""
    settings = ("data.valid=null", "training.stop_on=nll", "training.precision=fp16", "batches.tokens=700")
    arguments = train_arguments(project, new_run, *settings, EACH, config="transformer.yaml")
    for updates in (3, 5):
        outcomes = together(warm, [*arguments, f"training.max_updates={updates}"])
        assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert [record["epoch"] for record in records(new_run)] == [1, 1, 1, 1, 2]
    assert batches_of_an_epoch(new_run) == 7


# --- E1 to E7 ---------------------------------------------------------------------------------------------------------


@pytest.mark.fault("E1")
@pytest.mark.parametrize("dead", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_the_other(project: Path, new_run: Path, alone: Path, warm: Warm, dead: int) -> None:
    """At once, with a message, and the run goes on from its last checkpoint to the weights of an undisturbed one."""
    arguments = train_arguments(project, new_run, *SHORT, EACH)
    outcomes = together(warm, arguments, points={dead: "batch:kill9@9"})
    assert outcomes[dead].code == -9
    assert_error(outcomes[1 - dead], 6, f"process {1 - dead} of 2 lost the others", "goes on from the last checkpoint")
    assert steps(new_run)[-1] == 7
    assert [outcome.code for outcome in together(warm, arguments)] == [0, 0]
    assert_same_run(new_run, alone)


@pytest.mark.slow
@pytest.mark.fault("E1")
def test_a_process_that_hangs_is_given_up(project: Path, new_run: Path, warm: Warm) -> None:
    """After the minutes of the setting, not after those that torch waits by default."""
    arguments = train_arguments(project, new_run, *SHORT, EACH, "training.wait_minutes=0.1")
    waiting, hanging = start_ranks(warm, arguments, points={1: "batch:sleep300@9"})
    try:
        outcome = finish(waiting, timeout=100)
    finally:
        os.kill(hanging.pid, signal.SIGKILL)
    assert_error(outcome, 6, "process 0 of 2 lost the others", "Timed out")
    assert steps(new_run) == [5, 7]


@pytest.mark.fault("E2", "S11")
@pytest.mark.parametrize("asked", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_to_one_is_a_signal_to_all(project: Path, new_run: Path, alone: Path, warm: Warm, asked: int) -> None:
    arguments = train_arguments(project, new_run, *SHORT, EACH)
    outcomes = together(warm, arguments, points={asked: "batch:sigterm@9"})
    assert [outcome.code for outcome in outcomes] == [143, 143], outcomes
    assert_error(told(outcomes), 143, "stopped by SIGTERM at step 9", "step-00000009")
    assert steps(new_run)[-1] == 9
    assert [outcome.code for outcome in together(warm, arguments)] == [0, 0]
    assert_same_run(new_run, alone)


@pytest.mark.fault("E2")
@pytest.mark.parametrize("asked", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_signal_in_a_validation(project: Path, new_run: Path, alone: Path, warm: Warm, asked: int) -> None:
    """The process that measures leaves off; a signal to one that waits is seen when it has measured."""
    measuring = """
import os, signal
import s2s.commands.train as command
original = command.likelihood
def likelihood(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return original(*arguments)
command.likelihood = likelihood
"""
    waiting = """
import os, signal
from s2s.distributed import World
original = World.once
def once(self, work):
    if getattr(work, "__name__", "") == "_measure":
        os.kill(os.getpid(), signal.SIGTERM)
    return original(self, work)
World.once = once
"""
    arguments = train_arguments(project, new_run, *SHORT, EACH)
    outcomes = together(warm, arguments, first={asked: waiting if asked else measuring})
    assert [outcome.code for outcome in outcomes] == [143, 143], outcomes
    assert_error(told(outcomes), 143, "stopped by SIGTERM at step 7")
    assert [step for step, _ in validations(new_run)] == ([7] if asked else [])
    assert [outcome.code for outcome in together(warm, arguments)] == [0, 0]
    assert_same_run(new_run, alone)


@pytest.mark.slow
def test_usr1_to_one_saves(project: Path, new_run: Path, alone: Path, warm: Warm) -> None:
    arguments = train_arguments(project, new_run, *SHORT, EACH, "training.keep_last=9")
    outcomes = together(warm, arguments, points={1: "batch:sigusr1@3"})
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert steps(new_run) == [3, 5, 7, 10, 14]
    assert_same_run(new_run, alone)


@pytest.mark.fault("E3")
def test_a_failed_save_is_told_to_all(project: Path, new_run: Path, alone: Path, warm: Warm) -> None:
    """Three in a row end both with one message; a single one is a warning, and nothing else changes."""
    arguments = train_arguments(project, new_run, *SHORT, EACH)
    outcomes = together(warm, arguments, points={0: "checkpoint.after_model:enospc@1+"})
    assert [outcome.code for outcome in outcomes] == [6, 6], outcomes
    assert_error(told(outcomes), 6, "could not save step 10", "no space left on device", "make room")
    assert steps(new_run) == []
    outcomes = together(warm, arguments, points={0: "checkpoint.after_model:enospc@1"})
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert "could not save step 5" in outcomes[0].err and outcomes[1].err == ""
    assert digests(new_run) == digests(alone)
    assert losses(new_run) == losses(alone)


@pytest.mark.fault("E4")
def test_too_little_for_every_process(project: Path, tmp_path: Path, warm: Warm) -> None:
    """Three pairs that are one batch leave nothing for the second process; as three batches they are two updates."""
    for suffix in ("en", "de"):
        lines = (project / f"train.{suffix}").read_text(encoding="utf-8").splitlines(keepends=True)[:3]
        (tmp_path / f"train.{suffix}").write_text("".join(lines), encoding="utf-8")
    few = [f"data.train={{source: {tmp_path}/train.en, target: {tmp_path}/train.de}}", "tokenizer.vocabulary=40"]
    arguments = train_arguments(project, tmp_path / "run", *SHORT, EACH, *few)
    outcomes = together(warm, arguments)
    assert [outcome.code for outcome in outcomes] == [3, 3], outcomes
    assert_error(told(outcomes), 3, "data.train: has 1 batches an epoch, too few for 2 processes", "start fewer")
    outcomes = together(warm, [*arguments, "batches.tokens=3", "--overwrite"])
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert [record["epoch"] for record in records(tmp_path / "run") if "loss" in record][:4] == [1, 1, 2, 2]


NOTED = """
import json, os
import s2s.commands.train as command
original = command.EpochData.batch
def noted(data, indices, *rest):
    with open(f"{path}-{{os.environ.get('RANK', 0)}}", "a") as file:
        print(json.dumps(indices.tolist()), file=file)
    return original(data, indices, *rest)
command.EpochData.batch = noted
"""


@pytest.mark.fault("E5")
def test_the_number_of_processes_may_change(project: Path, new_run: Path, tmp_path: Path, warm: Warm) -> None:
    """2 -> 1 -> 2: every batch of the epoch is met once, in the order of a run alone, and a warning tells of it."""

    def order(name: str, size: int, updates: int, run: Path) -> tuple[list[list[int]], str]:
        path = tmp_path / name
        arguments = train_arguments(project, run, f"training.max_updates={updates}", EACH)
        outcomes = together(warm, arguments, first=dict.fromkeys(range(size), NOTED.format(path=path)), size=size)
        assert [outcome.code for outcome in outcomes] == [0] * size, outcomes
        met = [list(map(json.loads, Path(f"{path}-{rank}").read_text().splitlines())) for rank in range(size)]
        return [pairs for row in zip(*met, strict=True) for pairs in row], outcomes[0].err

    expected, _ = order("alone", 1, 15, tmp_path / "run")
    found: list[list[int]] = []
    for part, (size, updates, warning) in enumerate([(2, 3, ""), (1, 6, "2 -> 1"), (2, 9, "1 -> 2")]):
        pairs, said = order(str(part), size, updates, new_run)
        found += pairs
        assert (f"warning: processes: {warning}: the run is no longer the same to the bit" in said) == bool(warning)
    assert found == expected


ENVIRONMENT = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.mark.fault("E7")
@pytest.mark.parametrize("missing", ["MASTER_PORT", "MASTER_ADDR", "RANK"])
def test_half_an_environment(
    project: Path, new_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in ENVIRONMENT.keys() - {missing}:
        monkeypatch.setenv(name, ENVIRONMENT[name])
    assert_error(cli(*train_arguments(project, new_run)), 2, f"{missing}: is not set", "start with torchrun")
    assert not new_run.exists()


@pytest.mark.fault("E7")
@pytest.mark.parametrize(("name", "value"), [("RANK", "2"), ("RANK", "one"), ("MASTER_PORT", "70000")])
def test_numbers_that_cannot_be(
    project: Path, new_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    for variable, text in (ENVIRONMENT | {name: value}).items():
        monkeypatch.setenv(variable, text)
    assert_error(cli(*train_arguments(project, new_run)), 2, name, value, "start with torchrun")


@pytest.mark.fault("E7")
def test_a_port_in_use(project: Path, new_run: Path, warm: Warm) -> None:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        place = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        outcome = finish(warm.start(train_arguments(project, new_run), extra=place))
    assert_error(outcome, 6, f"localhost:{port}: the port is in use", "set another MASTER_PORT")


# --- other ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "allowed", "code"),
    [
        ("loss:nan@4", 1, 0),
        pytest.param("loss:nan@4", 0, 5, marks=pytest.mark.slow),
        pytest.param("loss:inf@4,loss:inf@5", 1, 5, marks=pytest.mark.slow),
    ],
)
def test_a_loss_that_is_no_number_on_one(
    project: Path, new_run: Path, warm: Warm, point: str, allowed: int, code: int
) -> None:
    arguments = train_arguments(project, new_run, *SHORT, EACH, f"training.skip_nonfinite={allowed}")
    outcomes = together(warm, arguments, points={1: point})
    assert [outcome.code for outcome in outcomes] == [code, code], outcomes
    assert (new_run / "diverged.json").exists() == bool(code)
    if code:
        assert_error(told(outcomes), 5, f"update {3 + len(point.split(','))}: loss is")
    else:
        assert [record["step"] for record in repeatable(new_run) if "skipped" in record] == [4]


def test_the_time_is_over_for_all(project: Path, new_run: Path, warm: Warm) -> None:
    """When it is for one: the slower clock ends the training, after a validation and a save."""
    slow = """
from s2s.training.trainer import Trainer
original = Trainer._update
def update(self):
    original(self)
    self.state.seconds += 25
Trainer._update = update
"""
    outcomes = together(warm, train_arguments(project, new_run, EACH, "training.max_minutes=1"), first={1: slow})
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert "done: 1 minutes" in outcomes[0].err
    assert [step for step, _ in losses(new_run)] == [1, 2, 3]
    assert [step for step, _ in validations(new_run)] == steps(new_run) == [3]


def test_the_message_is_that_of_the_first_to_fail(project: Path, new_run: Path, warm: Warm) -> None:
    """Not that of those who lost it."""
    failing = """
from s2s.training.objective import TrainingStep
original, calls = TrainingStep.forward, []
def forward(*arguments):
    calls.append(None)
    if len(calls) == 3:
        raise MemoryError
    return original(*arguments)
TrainingStep.forward = forward
"""
    outcomes = together(warm, train_arguments(project, new_run, *SHORT, EACH), first={1: failing})
    assert [outcome.code for outcome in outcomes] == [6, 6], outcomes
    assert_error(told(outcomes), 6, "update 3: out of memory")


def test_a_wrong_setting_is_told_once(project: Path, new_run: Path, warm: Warm) -> None:
    outcomes = together(warm, train_arguments(project, new_run, "model.droput=0.1"))
    assert [outcome.code for outcome in outcomes] == [2, 2], outcomes
    assert_error(told(outcomes), 2, "droput")


def test_processes_that_would_train_something_else(project: Path, new_run: Path, warm: Warm) -> None:
    """A command that differs on one machine is refused before the first update."""
    other = """
import s2s.commands.train as command
original = command.configuration.load
command.configuration.load = lambda path, overrides: original(path, [*overrides, "seed=2"])
"""
    outcomes = together(warm, train_arguments(project, new_run, *SHORT, EACH), first={1: other})
    assert [outcome.code for outcome in outcomes] == [2, 2], outcomes
    assert_error(told(outcomes), 2, "processes 0 and 1 differ in config", "start all with the same command")
    assert not (new_run / "metrics.jsonl").exists()


@pytest.mark.fault("R9")
def test_a_checkpoint_from_before_there_were_processes(project: Path, new_run: Path, alone: Path, warm: Warm) -> None:
    """Its position counts updates, not batches, and it says nothing of processes."""
    arguments = train_arguments(project, new_run, *SHORT, ALONE)
    assert finish(warm.start([*arguments, "training.max_updates=6"])).code == 0
    directory = new_run / "checkpoints" / "step-00000006"
    state = json.loads((directory / "state.json").read_text())
    assert state["training"]["position"] == 12
    state["training"]["position"] = 6
    del state["processes"]
    rewrite_state(directory, state)
    outcome = finish(warm.start(arguments))
    assert outcome.code == 0 and "no longer the same" not in outcome.err, outcome
    assert digests(new_run) == digests(alone)
    assert losses(new_run) == losses(alone)
