"""`training.compile`: the losses of the same run uncompiled up to rounding, with everything else that can be set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness import Cli, Warm, assert_error, digests, finish, records, start_ranks, train_arguments

COMPILE, AGAIN = "training.compile=true", "training.checkpoint_activations=true"
WATCHED = """
import sys, torch
original, said = torch.compile, []
def watched(function, **options):
    made = original(function, **options)
    def call(*arguments):
        if options and not said:
            said.append(print("compiled code runs", file=sys.stderr))
        return made(*arguments)
    return call
torch.compile = watched
"""
"""What a process runs first that is to say when a compiled part of the model is used."""


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bf16", 3e-2)])
def test_precision_compiling_recomputing_accumulation_and_processes(
    project: Path, tmp_path: Path, warm: Warm, precision: str, tolerance: float
) -> None:
    """All together, with dropout, in two processes; and the same run twice is the same to the bit."""
    settings = ("training.max_updates=4", f"training.precision={precision}", "batches.accumulate=2", "data.valid=null",
                "training.stop_on=nll", "training.wait_minutes=30")  # fmt: skip
    for name, more in (("plain", []), ("compiled", [COMPILE, AGAIN]), ("repeated", [COMPILE, AGAIN])):
        arguments = train_arguments(project, tmp_path / name, *settings, *more, config="transformer.yaml")
        first = dict.fromkeys(range(2), WATCHED) if more else None
        outcomes = [finish(process, timeout=1500) for process in start_ranks(warm, arguments, first=first)]
        assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
        assert all(("compiled code runs" in outcome.err) == bool(more) for outcome in outcomes)
    plain, compiled = (records(tmp_path / name) for name in ("plain", "compiled"))
    assert [record["loss"] for record in compiled] == pytest.approx([record["loss"] for record in plain], rel=tolerance)
    assert digests(tmp_path / "compiled") == digests(tmp_path / "repeated")


def test_a_recurrent_model_is_not_compiled(project: Path, new_run: Path, cli: Cli) -> None:
    outcome = cli(*train_arguments(project, new_run, COMPILE))
    assert_error(outcome, 2, "training.compile", "compiled for every length anew", "kind: transformer")


def test_without_a_compiler(project: Path, new_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told before the first update, in one line."""

    def broken(function: object) -> object:
        def call(*arguments: object) -> None:
            raise RuntimeError("No working C++ compiler found\nand forty lines more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    outcome = cli(*train_arguments(project, new_run, COMPILE, config="transformer.yaml"))
    assert_error(outcome, 2, "training.compile: torch cannot compile here: No working C++ compiler found", "set false")
