"""What a training refuses to start or to go on with, what it says then, and the exit codes of it all."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import (
    UPDATES,
    Cli,
    Warm,
    assert_error,
    digests,
    finish,
    losses,
    start,
    steps,
    train_arguments,
    wait_until,
    write_project,
)

# --- going on under other circumstances (R8, R9, R10, C8) -------------------------------------------------------------


@pytest.mark.fault("R9")
def test_harmless_settings_may_change(project: Path, run: Path, cli: Cli) -> None:
    settings = (f"training.max_updates={UPDATES + 2}", "training.log_every=1", "search.beam=1")
    outcome = cli(*train_arguments(project, run, *settings))
    assert outcome.code == 0
    assert f"training.max_updates: {UPDATES} -> {UPDATES + 2}" in outcome.err
    assert "search.beam: 2 -> 1: scores of validation before and after this cannot be compared" in outcome.err
    assert losses(run)[-1][0] == UPDATES + 2
    again = cli(*train_arguments(project, run, *settings, "data.language=de"))
    assert "data.language: null -> de: scores" in again.err
    assert again.code == 0 and f"/{UPDATES + 2} updates); {run / 'config.yaml'} keeps" in again.err
    assert "language: null" in (run / "config.yaml").read_text()


@pytest.mark.fault("R9")
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


@pytest.mark.fault("R8")
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


@pytest.mark.fault("C8")
def test_another_vocabulary_is_refused(project: Path, run: Path, tmp_path: Path, cli: Cli) -> None:
    """Of the same size, but of another model."""
    other = tmp_path / "other"
    settings = ("tokenizer.model=unigram", "training.max_updates=1")
    assert cli(*train_arguments(project, other, *settings)).code == 0
    shutil.rmtree(run / "tokenizer")
    shutil.copytree(other / "tokenizer", run / "tokenizer")
    for arguments in (train_arguments(project, run), ["translate", "--model", str(run)]):
        assert_error(cli(*arguments, stdin=b"a\n"), 4, "vocabulary hash differs")


@pytest.mark.fault("R10")
def test_another_number_of_threads_is_a_warning(project: Path, run: Path) -> None:
    outcome = finish(start(train_arguments(project, run), extra={"OMP_NUM_THREADS": "2"}))
    assert outcome.code == 0
    assert "s2s: warning: threads: 1 -> 2" in outcome.err


# --- the run's directory (R11, D4, 4.2) -------------------------------------------------------------------------------


@pytest.mark.fault("R11")
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


@pytest.mark.parametrize(
    ("setting", "code", "words"),
    [
        ("data.train.source=none.en", 3, ["none.en: no such file", "nothing was overwritten"]),
        ("data.train.source=valid.en", 3, ["valid.en", "lines"]),
        ("init_from=RUN", 2, ["--overwrite: would delete", "which init_from names", "--run-dir"]),
        ("objective.teacher={run: RUN/checkpoints}", 2, ["--overwrite: would delete", "objective.teacher.run names"]),
        ("init_from=empty", 4, ["empty", "no checkpoint"]),
        ("model.encoder.layers=0", 2, ["model.encoder.layers"]),
        ("training.frozen=[attic]", 2, ["attic"]),
    ],
)
def test_a_run_is_not_deleted_for_one_that_cannot_begin(
    project: Path, run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, setting: str, code: int, words: list[str]
) -> None:
    (project / "empty").mkdir(exist_ok=True)
    monkeypatch.chdir(project)
    before = digests(run)
    outcome = cli(*train_arguments(project, run, setting.replace("RUN", str(run)), "--overwrite"))
    assert_error(outcome, code, *words)
    assert digests(run) == before and (run / "metrics.jsonl").is_file()


# --- exit codes and the form of messages (4.1) ------------------------------------------------------------------------

RELIABILITY = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


def documented() -> set[int]:
    """The exit codes of the table in docs/reliability.md."""
    return {int(code) for code in re.findall(r"^\| (\d+) \|", RELIABILITY.read_text(encoding="utf-8"), re.MULTILINE)}


class Reached(NamedTuple):
    """How a code is reached: arguments after which the command ends with it, or a fail point of a training."""

    arguments: tuple[str, ...] = ()
    point: str = ""


CODES = {
    0: Reached(("--version",)),
    2: Reached(("train", "--config", "none.yaml")),
    3: Reached(("train", "--config", "CONFIG", "--run-dir", "RUN", "data.train.source=none.en")),
    4: Reached(("translate", "--model", "none")),
    5: Reached(point="loss:nan@1"),
    6: Reached(point="checkpoint.after_model:enospc@1+"),
    129: Reached(point="batch:sighup@3"),
    130: Reached(point="batch:sigint@3"),
    138: Reached(point="batch:sigusr1@3"),
    143: Reached(point="batch:sigterm@3"),
}
"""1 and 141 are reached in test_terminal.py and test_translate.py, 7 above: they take more than one command."""


def test_every_documented_code_is_one_of_these() -> None:
    assert documented() == CODES.keys() | {1, 7, 141}


@pytest.mark.parametrize("code", CODES)
def test_the_code_and_the_form_of_its_message(project: Path, new_run: Path, warm: Warm, code: int) -> None:
    """``s2s: error: WHERE: WHAT; WHAT TO DO``: no place where a signal came, nothing to do where that is plain."""
    places = {"CONFIG": str(project / "rnn.yaml"), "RUN": str(new_run)}
    arguments = [places.get(word, word) for word in CODES[code].arguments]
    more = ("training.max_updates=8", "training.usr1=exit")
    outcome = finish(warm.start(arguments or train_arguments(project, new_run, *more), CODES[code].point))
    if code == 0:
        assert (outcome.code, outcome.err) == (0, "")
        return
    assert_error(outcome, code)
    line = next(line for line in outcome.err.splitlines() if line.startswith("s2s: error: "))
    what, _, todo = line.removeprefix("s2s: error: ").partition("; ")
    assert todo or code in (2, 3), line
    assert (": " in what) == (code < 128), line
