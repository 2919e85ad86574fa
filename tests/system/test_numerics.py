"""Numbers that stop being numbers: caught before the optimizer sees them, named, and never taken for good ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import (
    Cli,
    assert_error,
    digests,
    losses,
    records,
    steps,
    train_arguments,
    validations,
    write_project,
)

from s2s.checkpoint import load
from s2s.training.trainer import Trainer, resolve_precision


def test_auto_is_bf16_where_the_hardware_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    has = {"_is_avx512_bf16_supported": False, "_is_amx_tile_supported": False}
    for name in has:
        monkeypatch.setattr(torch.cpu, name, lambda name=name: has[name])
    asked: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: asked.append(including_emulation))
    assert resolve_precision("auto", cpu) == resolve_precision("auto", cuda) == "float32"
    assert asked == [False]  # emulated it is slower than float32
    for name in has:
        has[name] = True
        assert resolve_precision("auto", cpu) == "bf16"
        has[name] = False
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert resolve_precision("auto", cuda) == "bf16"
    for given in ("float32", "bf16", "fp16"):
        assert resolve_precision(given, cpu) == resolve_precision(given, cuda) == given


@pytest.mark.fault("N1", "N2")
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_a_number(
    project: Path, new_run: Path, finished: Path, cli: Cli, failpoint: Callable[[str], None], value: str
) -> None:
    failpoint(f"loss:{value}@16")
    outcome = cli(*train_arguments(project, new_run))
    last = f"last good checkpoint step-{steps(new_run)[-1]:08d}"
    assert_error(outcome, 5, f"update 16: loss is {value}", "batch of lines ", "weights not updated", last)
    report = json.loads((new_run / "diverged.json").read_text())
    assert (report["update"], report["loss"]) == (16, value)
    assert set(report["lines"]) <= set(range(1, 289))
    assert losses(new_run) == losses(finished)[:15]
    failpoint("")
    assert cli(*train_arguments(project, new_run)).code == 0
    assert digests(new_run) == digests(finished)


@pytest.mark.fault("N1")
def test_lines_of_several_corpora_have_the_name_of_theirs(
    project: Path, new_run: Path, cli: Cli, failpoint: Callable[[str], None]
) -> None:
    failpoint("loss:nan@1")
    files = f"{{source: {project}/train.en, target: {project}/train.de, name: one}}"
    others = f"{{source: {project}/valid.en, target: {project}/valid.de, name: two}}"
    outcome = cli(*train_arguments(project, new_run, f"data.train=[{files}, {others}]", "batches.tokens=100000"))
    assert_error(outcome, 5, "update 1: loss is nan (batch of lines one:")
    lines = json.loads((new_run / "diverged.json").read_text())["lines"]
    assert sorted(lines) == sorted([f"one:{n}" for n in range(1, 289)] + [f"two:{n}" for n in range(1, 13)])


@pytest.mark.fault("N1")
def test_weights_stay_as_they_were(
    project: Path, new_run: Path, cli: Cli, failpoint: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that training leaves behind is that of the update before, which was saved."""
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


@pytest.mark.fault("N2")
def test_a_gradient_that_is_not_finite(project: Path, new_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.nn.utils.clip_grad_norm_

    def infinite(parameters: Iterable[torch.nn.Parameter], *arguments: Any, **named: Any) -> torch.Tensor:
        listed = list(parameters)
        listed[0].grad = torch.full_like(listed[0], torch.inf)
        return original(listed, *arguments, **named)

    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", infinite)
    assert_error(
        cli(*train_arguments(project, new_run)), 5, "the gradient's norm is inf", "no checkpoint was saved yet"
    )


@pytest.mark.fault("N4")
def test_a_validation_that_is_not_a_number_is_never_the_best(
    project: Path, new_run: Path, finished: Path, cli: Cli, failpoint: Callable[[str], None]
) -> None:
    failpoint("valid:nan@1")
    outcome = cli(*train_arguments(project, new_run, "training.max_updates=20", "training.patience=1"))
    assert outcome.code == 0
    assert "s2s: warning: validation at update 10 gave bleu nan" in outcome.err
    assert (new_run / "best").read_text() == "step-00000020"
    assert validations(new_run)[0][1]["bleu"] is None  # strict JSON
    assert validations(new_run)[1] == validations(finished)[1]


@pytest.mark.fault("N4")
def test_validations_that_are_not_numbers_do_not_end_a_run(
    project: Path, new_run: Path, cli: Cli, failpoint: Callable[[str], None]
) -> None:
    """Neither better nor worse: three in a row leave a patience of one as it was, and there is no best."""
    failpoint("valid:nan@1+")
    settings = ("training.max_updates=6", "training.validate_every=2", "training.patience=1")
    outcome = cli(*train_arguments(project, new_run, *settings))
    assert outcome.code == 0, outcome
    assert losses(new_run)[-1][0] == 6
    assert not (new_run / "best").exists()


# --- half precision (N12) ---------------------------------------------------------------------------------------------

HALF = ("training.precision=fp16", "data.valid=null", "training.stop_on=nll", "training.max_updates=6")


@pytest.mark.fault("N12")
def test_an_update_is_left_out_in_half_precision(
    project: Path, new_run: Path, cli: Cli, failpoint: Callable[[str], None]
) -> None:
    """Its gradients were divided by the scale already; those of the next update are its own."""
    failpoint("loss:nan@3,loss:inf@4")
    arguments = train_arguments(project, new_run, *HALF, "training.skip_nonfinite=2", config="transformer.yaml")
    outcome = cli(*arguments)
    assert outcome.code == 0, outcome
    assert [record.get("skipped") for record in records(new_run)] == [None, None, 1, 2, None, None]


@pytest.mark.fault("N2", "N12")
def test_gradients_that_no_scale_mends_end_a_training_in_half_precision(
    project: Path, new_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 2^16 the scale is halved 17 times until it is below 1; the update after that is not let pass."""
    original = Trainer.run

    def spoilt(trainer: Trainer) -> str:
        next(trainer.model.parameters()).register_hook(lambda gradient: gradient * math.nan)
        return original(trainer)

    monkeypatch.setattr(Trainer, "run", spoilt)
    arguments = train_arguments(project, new_run, *HALF, "training.max_updates=30", config="transformer.yaml")
    assert_error(cli(*arguments), 5, "update 18", "the gradient's norm is nan", "training.precision: float32")


@pytest.mark.fault("N12")
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recurrent_models_learn_in_half_precision(project: Path, tmp_path: Path, cli: Cli, cell: str) -> None:
    """What they learn is what they learn in float32, but for rounding."""
    cells = (f"model.encoder.cell={cell}", f"model.decoder.cell={cell}")
    for precision in ("fp16", "float32"):
        outcome = cli(*train_arguments(project, tmp_path / precision, *HALF, *cells, f"training.precision={precision}"))
        assert outcome.code == 0, outcome.err
    half, full = ([float.fromhex(loss) for _, loss in losses(tmp_path / name)] for name in ("fp16", "float32"))
    assert half != full
    assert half == pytest.approx(full, rel=5e-3)


@pytest.mark.fault("N12")
def test_half_precision_may_begin_in_the_middle_of_a_run(project: Path, new_run: Path, cli: Cli) -> None:
    """A checkpoint of another precision has no scale: it begins as in a new run."""
    arguments = train_arguments(project, new_run, *HALF, config="transformer.yaml")
    assert cli(*arguments, "training.precision=float32", "training.max_updates=3").code == 0
    outcome = cli(*arguments)
    assert outcome.code == 0, outcome
    assert "training.precision: float32 -> fp16: the run is no longer the same to the bit" in outcome.err
    assert load(new_run / "checkpoints" / "step-00000006").snapshot.state["scaler"]["scale"] == 2.0**16


# --- leaving updates out (N3) -----------------------------------------------------------------------------------------


@pytest.mark.fault("N3")
def test_a_skipped_update_changes_nothing(
    project: Path, new_run: Path, cli: Cli, failpoint: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Updates 4 and 5 of six are left out: weights, moments and Adam's count of steps are those of before."""
    failpoint("loss:nan@4,loss:inf@5")
    seen: dict[int, tuple[list[torch.Tensor], list[torch.Tensor], list[float]]] = {}
    original = Trainer._update

    def noted(trainer: Trainer) -> None:
        original(trainer)
        states = trainer.optimizer.state.values()
        seen[trainer.state.update] = (
            [parameter.detach().clone() for parameter in trainer.model.parameters()],
            [state["exp_avg"].clone() for state in states],
            [float(state["step"]) for state in states],
        )

    monkeypatch.setattr(Trainer, "_update", noted)
    arguments = train_arguments(project, new_run, "training.max_updates=6", "training.skip_nonfinite=2")
    outcome = cli(*arguments)
    assert outcome.code == 0, outcome
    assert "s2s: warning: update 4: loss is nan (batch of lines " in outcome.err
    assert "weights not updated; 2 in a row, 2 are allowed" in outcome.err
    for update in (4, 5):
        for before, after in zip(seen[3][0] + seen[3][1], seen[update][0] + seen[update][1], strict=True):
            assert before.equal(after)
    assert [set(seen[update][2]) for update in range(1, 7)] == [{1}, {2}, {3}, {3}, {3}, {4}]
    assert [record.get("skipped") for record in records(new_run) if "lr" in record] == [None, None, None, 1, 2, None]
    assert [record["loss"] is None for record in records(new_run) if "lr" in record] == [False] * 3 + [True] * 2 + [
        False
    ]


@pytest.mark.fault("N3")
def test_too_many_in_a_row(project: Path, new_run: Path, cli: Cli, failpoint: Callable[[str], None]) -> None:
    """Two are allowed: two, a good one and two pass; the third of three ends the run, also over a stop between them."""
    arguments = train_arguments(project, new_run, "training.skip_nonfinite=2")
    failpoint("loss:nan@2,loss:nan@3,loss:nan@5,loss:nan@6,loss:nan@8,loss:nan@9")
    assert cli(*arguments, "training.max_updates=9").code == 0
    failpoint("loss:nan@1")
    assert_error(cli(*arguments), 5, "update 10: loss is nan", "last good checkpoint step-00000009")


@pytest.mark.fault("N3", "R3")
def test_a_run_whose_updates_were_all_skipped_goes_on(
    project: Path, new_run: Path, cli: Cli, failpoint: Callable[[str], None]
) -> None:
    """Its optimizer has kept nothing yet, which is not the same as having lost it."""
    failpoint("loss:nan@1,loss:nan@2")
    arguments = train_arguments(project, new_run, "training.skip_nonfinite=2")
    assert cli(*arguments, "training.max_updates=2").code == 0
    assert steps(new_run) == [2]
    assert cli(*arguments, "training.max_updates=3").code == 0
    assert math.isfinite(float.fromhex(losses(new_run)[-1][1]))


# --- settings that cannot work (N6), texts with nothing to learn (N5) -------------------------------------------------


@pytest.mark.fault("N6")
@pytest.mark.parametrize(
    "setting",
    [
        "optimizer.lr=0", "optimizer.lr=-1", "optimizer.lr=.nan", "optimizer.lr=.inf", "optimizer.lr=1e400",
        "optimizer.schedule.warmup=0", "optimizer.schedule.warmup=-1", "optimizer.clip=0", "optimizer.clip=.nan",
    ],
)  # fmt: skip
def test_impossible_rates_are_refused(project: Path, new_run: Path, cli: Cli, setting: str) -> None:
    assert_error(cli(*train_arguments(project, new_run, setting)), 2, setting.partition("=")[0])
    assert not new_run.exists()


@pytest.mark.fault("N6")
def test_a_rate_that_is_far_too_high(project: Path, new_run: Path, cli: Cli) -> None:
    """Weights of 1e38 overflow: the run ends as diverged, and no checkpoint has a weight of it."""
    outcome = cli(*train_arguments(project, new_run, "optimizer.lr=1e38", "training.save_every=1"))
    assert_error(outcome, 5, "weights not updated")


@pytest.mark.fault("N6")
def test_a_warmup_longer_than_the_run(project: Path, new_run: Path, cli: Cli) -> None:
    """Allowed: the rate of update n of 3 is n / 1000 of the whole."""
    settings = ("optimizer.schedule.warmup=1000", "training.max_updates=3")
    assert cli(*train_arguments(project, new_run, *settings)).code == 0
    rates = [record["lr"] for record in records(new_run) if "lr" in record]
    assert rates == pytest.approx([5e-6, 1e-5, 1.5e-5])


@pytest.mark.fault("N5")
@pytest.mark.parametrize(("target", "code"), [("\n \t\n\u3000\n", 3), ("\n\u200b\nDer Hund.\n", 0)])
def test_targets_of_nothing(tmp_path: Path, cli: Cli, target: str, code: int) -> None:
    """Blank targets are left out and counted; without any other there is nothing to train on. No batch is empty."""
    project = write_project(tmp_path)
    (project / "train.en").write_text("a\nb\nc\n", encoding="utf-8")
    (project / "train.de").write_text(target, encoding="utf-8")
    outcome = cli(*train_arguments(project, tmp_path / "run", "training.max_updates=2"))
    assert outcome.code == code, outcome
    if code:
        assert_error(outcome, 3, "3 blank")
    else:
        assert [record["target_tokens"] > 0 for record in records(tmp_path / "run") if "lr" in record] == [True] * 2
