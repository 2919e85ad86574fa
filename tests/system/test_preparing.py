"""`s2s prepare` from the command line: what it prints, what a kill leaves, and the training that takes it over."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from harness import Cli, Warm, assert_error, train_arguments

from s2s.data import encode

_TWO = "training.max_updates=2"


def prepare_arguments(project: Path, run: Path, *more: str) -> list[str]:
    return ["prepare", "--config", str(project / "rnn.yaml"), "--run-dir", str(run), *more]


def encoded(cache: Path) -> dict[str, str]:
    """SHA-256 of every file of the encoded corpora and the vocabularies."""
    return {
        str(path.relative_to(cache)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in cache.rglob("*")
        if path.is_file() and path.name != "digests.json"
    }


def test_a_training_takes_over_what_was_prepared(
    project: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = cli(*prepare_arguments(project, tmp_path / "run"))
    assert outcome.code == 0 and not (tmp_path / "run").exists()
    rows = [line.split() for line in outcome.out.decode().splitlines()]
    assert rows[1:] == [["data", "288", *"000000", "288"], ["valid", "12", *"000000", "12"]]
    assert "data: 288 pairs read" in outcome.err and "lines/s" in outcome.err
    prepared = encoded(tmp_path / ".cache")
    cli(*train_arguments(project, tmp_path / "alone" / "run", _TWO))
    assert encoded(tmp_path / "alone" / ".cache") == prepared

    def forbidden(*arguments: object) -> None:
        raise AssertionError("it was encoded again")

    monkeypatch.setattr(encode.Encoder, "__call__", forbidden)
    assert cli(*train_arguments(project, tmp_path / "run", _TWO)).code == 0
    assert encoded(tmp_path / ".cache") == prepared


def test_the_next_command_trains_on_what_was_prepared(project: Path, tmp_path: Path, cli: Cli) -> None:
    """With the options that say where that is, and quoted for a shell."""
    run = tmp_path / "my run"
    outcome = cli(*prepare_arguments(project, run, "data.max_length=50"))
    config = project / "rnn.yaml"
    assert f"next: s2s train --config {config} --run-dir '{run}' data.max_length=50" in outcome.err


def test_a_killed_preparation_goes_on(project: Path, tmp_path: Path, cli: Cli, warm: Warm) -> None:
    killed = warm.start(prepare_arguments(project, tmp_path / "run"), "prepare.part:kill9").wait()
    assert killed.code == -9 and list((tmp_path / ".cache").glob(".data-*.parts/part-000000"))
    outcome = cli(*prepare_arguments(project, tmp_path / "run"))
    assert outcome.code == 0 and "data: 1 of 1 parts are there already" in outcome.err
    assert cli(*prepare_arguments(project, tmp_path / "other" / "run")).code == 0
    assert encoded(tmp_path / ".cache") == encoded(tmp_path / "other" / ".cache")


def test_corpora_of_a_run_may_move_but_not_change_their_weights(project: Path, tmp_path: Path, cli: Cli) -> None:
    def corpora(folder: Path, weight: int) -> str:
        both = f"source: {folder}/train.en, target: {folder}/train.de"
        return f"data.train=[{{{both}, weight: {weight}, tag: <a>}}, {{{both}, weight: 1, name: b}}]"

    run = tmp_path / "run"
    assert cli(*train_arguments(project, run, _TWO, corpora(project, 2))).code == 0
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("train.en", "train.de"):
        (moved / name).write_bytes((project / name).read_bytes())
    outcome = cli(*train_arguments(project, run, _TWO, corpora(moved, 2)))
    assert outcome.code == 0 and "already complete" in outcome.err
    assert_error(cli(*train_arguments(project, run, _TWO, corpora(project, 3))), 2, "data.train")
    (moved / "train.de").write_bytes((project / "train.de").read_bytes().replace(b"Der", b"Das"))
    outcome = cli(*train_arguments(project, run, _TWO, corpora(moved, 2)))
    assert_error(outcome, 3, f"{moved}/train.de: changed since step 2")
