"""The command line itself: help at once, no network, nothing on a terminal that it cannot take."""

from __future__ import annotations

import os
import pty
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from harness import COMMAND, Cli, assert_error, finish, records, start, train_arguments, write_project

from s2s import __version__


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_comes_at_once(arguments: list[str]) -> None:
    """Within half a second of computing, which does not depend on what else the machine does."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        outcome = finish(start(arguments))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert outcome.code == 0 and outcome.out
    assert 0 < min(times) < 0.5


@pytest.mark.parametrize("arguments", [["--help"], ["translate", "--help"], ["config"]])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    code = "import sys; from s2s.cli import run; run(); sys.exit('torch' in sys.modules)"
    line = [sys.executable, "-c", code, *arguments]
    assert subprocess.run(line, capture_output=True, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("arguments", [[], ["config"]])
def test_without_a_command_the_help_is_the_answer(arguments: list[str], cli: Cli) -> None:
    outcome = cli(*arguments)
    assert outcome.code == 2 and outcome.out == b""
    assert outcome.err.startswith("Usage: ") and "Commands:" in outcome.err


def test_the_version(cli: Cli) -> None:
    assert cli("--version").out.decode().strip() == __version__


@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["config", "shwo"], ["train", "--config"]])
def test_wrong_commands(cli: Cli, arguments: list[str]) -> None:
    assert_error(cli(*arguments), 2)


def test_an_option_that_there_is_not_is_answered_with_the_usage(cli: Cli) -> None:
    assert_error(cli("serve", "--model", "runs/mine"), 2, "--model", "usage: s2s serve [OPTIONS] {MODEL...}")
    assert_error(cli("train"), 2, "--config", "usage: s2s train [OPTIONS]")


@pytest.mark.fault("X7")
def test_no_network(project: Path, new_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """From training to scores, not a socket is opened."""

    def refused(*arguments: object, **named: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    assert cli(*train_arguments(project, new_run, "training.max_updates=2")).code == 0
    assert cli("translate", "--model", new_run, stdin=b"The man.\n").code == 0
    assert cli("eval", "--model", new_run).code == 0


@pytest.mark.fault("T1", "N8")
@pytest.mark.parametrize(
    "extra",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "utf-16"},
        {"LC_ALL": "C"},
    ],
    ids=str,
)
def test_settings_are_shown_in_utf8_anywhere(tmp_path: Path, extra: dict[str, str]) -> None:
    project = write_project(tmp_path / "K\u00f6nig \U0001f600")
    for command in ("show", "check"):
        outcome = finish(start(["config", command, "--config", str(project / "rnn.yaml")], extra=extra))
        assert outcome.code == 0, outcome
        assert str(project) in outcome.out.decode("utf-8")


def test_a_bug_is_called_one(cli: Cli, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2s.commands.translate.translate", lambda *_, **__: 1 / 0)
    outcome = cli("translate", "--model", finished)
    assert outcome.code == 1
    assert "ZeroDivisionError" in outcome.err and "please report" in outcome.err


def test_a_traceback_where_asked_for(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2S_TRACEBACK", "1")
    outcome = cli("translate", "--model", tmp_path / "none")
    assert outcome.code == 4 and "Traceback" in outcome.err and "s2s: error: " in outcome.err


@pytest.mark.fault("S9")
def test_standard_error_may_be_closed(project: Path, new_run: Path) -> None:
    line = ["bash", "-c", 'exec "$@" 2>&-', "bash", *COMMAND]
    arguments = train_arguments(project, new_run, "training.max_updates=2")
    outcome = subprocess.run([*line, *arguments], stdout=subprocess.PIPE, timeout=60, check=False)
    assert (outcome.returncode, outcome.stdout) == (0, b"")


@pytest.mark.parametrize("progress", ["auto", "live", "plain", "quiet"])
def test_what_a_training_shows(project: Path, new_run: Path, cli: Cli, progress: str) -> None:
    """Without a terminal auto is plain; quiet says nothing that is no warning, and the panel needs no terminal."""
    settings = ["training.max_updates=4", "training.validate_every=4", "training.log_every=2"]
    outcome = cli(*train_arguments(project, new_run, *settings), "--progress", progress)
    assert outcome.code == 0
    lines = outcome.err.splitlines()
    steps = [line for line in lines if line.startswith("update ")]
    assert len(steps) == (2 if progress in ("auto", "plain") else 0)
    if progress == "quiet":
        assert [line for line in lines if not line.startswith("s2s: warning: ")] == []
    else:
        assert any(line.startswith("validation at update 4: ") for line in lines)
        assert lines[-1].startswith("next: s2s eval")


def test_samples_of_a_validation_are_recorded(project: Path, new_run: Path, cli: Cli) -> None:
    settings = ["training.max_updates=4", "training.validate_every=2", "training.samples=2"]
    outcome = cli(*train_arguments(project, new_run, *settings))
    assert outcome.code == 0
    found = [record["samples"] for record in records(new_run) if "valid" in record]
    sources = (project / "valid.en").read_text().splitlines()[:2]
    assert [[one["source"] for one in samples] for samples in found] == [sources, sources]
    assert all(f"    translation {one['translation']}" in outcome.err for samples in found for one in samples)


@pytest.mark.fault("S9", "S10")
@pytest.mark.parametrize(
    ("extra", "escapes"),
    [
        ({"TERM": "xterm", "COLUMNS": "80"}, True),
        ({"TERM": "xterm", "COLUMNS": "1", "NO_COLOR": "1"}, True),
        ({"TERM": "dumb"}, False),
    ],
)
def test_terminals(project: Path, tmp_path: Path, extra: dict[str, str], escapes: bool) -> None:
    """A bar where the terminal can show one, plain lines elsewhere; and its end (an SSH connection) ends nothing."""
    run = project / f"terminal-{extra['TERM']}-{extra.get('COLUMNS')}"
    master, slave = pty.openpty()
    process = start(train_arguments(project, run, "training.max_updates=12"), stderr=slave, extra=extra)
    os.close(slave)
    shown = b""
    while b"validation at update 10" not in shown:
        shown += os.read(master, 1 << 16)
    os.close(master)  # whatever is written now fails
    assert finish(process).code == 0
    assert (b"\x1b" in shown) == escapes
    assert (run / "latest").read_text() == "step-00000012"


@pytest.mark.fault("S10")
def test_no_escapes_without_a_terminal(project: Path, new_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    outcome = cli(*train_arguments(project, new_run, "training.max_updates=2", "training.log_every=1"))
    assert outcome.code == 0
    assert outcome.out == b"" and "\x1b" not in outcome.err and "\r" not in outcome.err
    assert "update 2  epoch 1  loss " in outcome.err
