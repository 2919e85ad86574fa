"""Fixtures of the system tests: one tiny project, one finished run of each architecture, the command line at hand."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from s2s import cli as command_line
from s2s import failpoints

pytest.register_assert_rewrite("harness")

from harness import Cli, Outcome, Warm, done, train_arguments, write_project  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Results are the same to the bit at one number of threads only, and other processes are started with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _interrupts_arrive() -> None:
    """A shell starts what runs in the background with INT and QUIT ignored, as would be what the tests start then."""
    for number, usual in [(signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)]:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus and its settings; runs beside it share one cache."""
    return write_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def finished(project: Path) -> Path:
    """A run that nothing disturbed. Read it, copy it, never change it."""
    done(train_arguments(project, project / "rnn"))
    return project / "rnn"


@pytest.fixture(scope="session")
def finished_transformer(project: Path) -> Path:
    """The same of the Transformer."""
    done(train_arguments(project, project / "transformer", config="transformer.yaml"))
    return project / "transformer"


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Starts commands in processes of their own without waiting for imports."""
    with Warm(tmp_path_factory.mktemp("warm")) as process:
        yield process


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def new_run(project: Path, request: pytest.FixtureRequest) -> Path:
    """A directory beside the project's cache that no run has used yet."""
    return project / f"run-{abs(hash(request.node.nodeid))}"


@pytest.fixture
def cli(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a command in this process, with what it reads from standard input."""

    def call(*arguments: str | Path, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfdbinary.readouterr()
        code = command_line.run([os.fspath(argument) for argument in arguments])
        captured = capfdbinary.readouterr()
        return Outcome(code, captured.out, captured.err.decode())

    return call


@pytest.fixture
def failpoint(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set fail points as S2S_FAILPOINT does, counted from now."""

    def set_points(text: str) -> None:
        monkeypatch.setattr(failpoints, "_POINTS", failpoints._parse(text))
        monkeypatch.setattr(failpoints, "_PASSED", {})

    return set_points
