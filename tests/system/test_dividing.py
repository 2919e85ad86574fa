"""`s2s translate` by several processes: the bytes of one, whoever is killed, stopped, or has nothing to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer.main
from harness import COMMAND, Cli, Outcome, Warm, assert_error, finish, start, start_ranks, wait_until
from test_devices import process_of

from s2s.cli import app
from s2s.commands.translate import Options, arguments

SMALL = ("--batch-tokens", "60")
"""Batches of a few lines, so that there are many blocks."""
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1",
            "-m", "s2s")  # fmt: skip


@pytest.fixture(scope="session")
def source(project: Path) -> Path:
    """150 lines, blank ones among them."""
    lines = (project / "train.en").read_text(encoding="utf-8").splitlines()[:150]
    path = project / "input.en"
    path.write_text("".join("\n" if number % 11 == 3 else f"{line}\n" for number, line in enumerate(lines)))
    return path


@pytest.fixture(scope="session")
def long_source(project: Path, source: Path) -> Path:
    """What takes a while."""
    path = project / "long.en"
    path.write_text(source.read_text(encoding="utf-8") * 40, encoding="utf-8")
    return path


def together(
    warm: Warm,
    options: Sequence[str | Path],
    size: int = 2,
    points: dict[int, str] | None = None,
    first: dict[int, str] | None = None,
) -> list[Outcome]:
    """How the processes of a translation ended, in the order of their ranks."""
    ranks = start_ranks(warm, ["translate", *map(str, options)], size, points, first)
    return [finish(process) for process in ranks]


NOTED = """
from s2s.commands.divided import Blocks
original = Blocks._answer
def answer(self, number, lines):
    with open("{path}", "a") as file:
        print(number, file=file)
    return original(self, number, lines)
Blocks._answer = answer
"""


@pytest.mark.fault("E6")
@pytest.mark.parametrize(
    ("size", "options"),
    [(2, []), (3, ["--format", "jsonl", "--n-best", "2", "--alignment"]), (2, ["--format", "tsv", "--n-best", "2"])],
)
def test_the_bytes_of_one_process(
    finished: Path, source: Path, tmp_path: Path, warm: Warm, cli: Cli, size: int, options: list[str]
) -> None:
    """All have worked, and one speaks."""
    common = ["--model", finished, source, *SMALL, *options]
    expected = cli("translate", *common)
    notes = {rank: NOTED.format(path=tmp_path / f"blocks-{rank}") for rank in range(size)}
    outcomes = together(warm, [*common, "--output", tmp_path / "out"], size, first=notes)
    assert [outcome.code for outcome in outcomes] == [0] * size, outcomes
    assert (tmp_path / "out").read_bytes() == expected.out and expected.out.count(b"\n") >= 150
    assert "translated 150 lines" in outcomes[0].err
    assert not any(outcome.err for outcome in outcomes[1:])
    shares = [(tmp_path / f"blocks-{rank}").read_text().split() for rank in range(size)]
    assert all(shares) and len({number for share in shares for number in share}) >= 6


@pytest.mark.fault("E4")
@pytest.mark.parametrize("lines", [0, 1, 4])
def test_more_processes_than_lines(
    finished: Path, source: Path, tmp_path: Path, warm: Warm, cli: Cli, lines: int
) -> None:
    few = tmp_path / "few"
    few.write_bytes(b"".join(source.read_bytes().splitlines(keepends=True)[:lines]))
    outcomes = together(warm, ["--model", finished, few, "--output", tmp_path / "out"], 3)
    assert [outcome.code for outcome in outcomes] == [0, 0, 0], outcomes
    assert (tmp_path / "out").read_bytes() == cli("translate", "--model", finished, few).out


@pytest.mark.fault("E1")
def test_the_part_of_a_killed_process_is_done_by_the_others(
    finished: Path, source: Path, tmp_path: Path, warm: Warm, cli: Cli
) -> None:
    """Where the launcher lets them live; one that is killed between two blocks has left nothing to do."""
    common = ["--model", finished, source, *SMALL]
    outcomes = together(warm, [*common, "--output", tmp_path / "out"], points={1: "block:kill9@2"})
    assert [outcome.code for outcome in outcomes] == [0, -9], outcomes
    assert (tmp_path / "out").read_bytes() == cli("translate", *common).out


@pytest.mark.fault("E1")
def test_without_the_first_process_all_end(finished: Path, source: Path, tmp_path: Path, warm: Warm) -> None:
    options = ["--model", finished, source, *SMALL, "--output", tmp_path / "out"]
    outcomes = together(warm, options, points={0: "block:kill9@2"})
    assert outcomes[0].code == -9
    assert_error(outcomes[1], 6, "process 1 of 2 lost the others")
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("E2")
@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_one_ends_all(
    finished: Path, long_source: Path, tmp_path: Path, warm: Warm, cli: Cli, asked: int
) -> None:
    """What was written is kept, whole lines and the right ones, and one says so."""
    options = ["--model", finished, long_source, *SMALL, "--output", tmp_path / "out"]
    outcomes = together(warm, options, points={asked: "block:sigterm@4"})
    assert [outcome.code for outcome in outcomes] == [143, 143], outcomes
    assert outcomes[1].err == ""
    assert_error(outcomes[0], 143, "stopped by SIGTERM", "out.partial")
    kept = (tmp_path / "out.partial").read_bytes()
    few = tmp_path / "few"
    few.write_bytes(b"".join(long_source.read_bytes().splitlines(keepends=True)[: kept.count(b"\n")]))
    assert kept.endswith(b"\n") and kept == cli("translate", "--model", finished, few).out
    assert not (tmp_path / "out").exists()


def test_an_error_in_the_input_is_told_once(finished: Path, source: Path, tmp_path: Path, warm: Warm, cli: Cli) -> None:
    """After the lines before it, as by one process."""
    long = tmp_path / "long"
    long.write_text(source.read_text(encoding="utf-8") + "dog " * 90 + "\n", encoding="utf-8")
    common = ["--model", finished, long, *SMALL, "--long-lines", "error", "--search", "max_source_length=60"]
    alone = cli("translate", *common, "--output", tmp_path / "alone")
    outcomes = together(warm, [*common, "--output", tmp_path / "out"])
    assert [alone.code, *(outcome.code for outcome in outcomes)] == [3, 3, 3], outcomes
    assert_error(outcomes[0], 3, "line 151", "pieces", "out.partial")
    assert outcomes[1].err == ""
    assert (tmp_path / "out.partial").read_bytes() == (tmp_path / "alone.partial").read_bytes() != b""


def test_long_lines_are_counted_once(finished: Path, source: Path, tmp_path: Path, warm: Warm, cli: Cli) -> None:
    """However many of them the process that reads translates itself."""
    common = ["--model", finished, source, *SMALL, "--search", "max_source_length=8"]
    alone = cli("translate", *common, "--output", tmp_path / "alone")
    outcomes = together(warm, [*common, "--output", tmp_path / "out"])
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    warnings = [[line for line in one.err.splitlines() if "warning" in line] for one in (alone, outcomes[0])]
    assert warnings[0] == warnings[1] and "lines are longer" in warnings[0][0]
    assert (tmp_path / "out").read_bytes() == (tmp_path / "alone").read_bytes()


@pytest.mark.fault("TX25")
@pytest.mark.parametrize("options", [["--forbid"], ["--replace-unknown", "--dictionary"]])
def test_what_every_process_reads_is_no_pipe(
    finished: Path, source: Path, tmp_path: Path, warm: Warm, options: list[str]
) -> None:
    """Each would get a part of it, or none."""
    os.mkfifo(tmp_path / "pipe")
    outcomes = together(warm, ["--model", finished, source, *options, tmp_path / "pipe"])
    assert [outcome.code for outcome in outcomes] == [2, 2], outcomes
    told = Outcome(2, b"", "".join(outcome.err for outcome in outcomes))
    assert_error(told, 2, options[-1], "read by every process", "write it to a file first")


@pytest.mark.parametrize(
    ("option", "code", "words"),
    [
        (["--stream"], 2, ["--stream", "one process only"]),
        (["--attention", "picture.svg"], 2, ["--attention", "draws one line"]),
        (["--model", "nothing"], 4, ["nothing"]),
        (["--search", "bean=2"], 2, ["bean"]),
    ],
)
def test_what_cannot_be_is_told_once(
    finished: Path, source: Path, warm: Warm, option: list[str], code: int, words: list[str]
) -> None:
    outcomes = together(warm, ["--model", finished, source, *option])
    assert [outcome.code for outcome in outcomes] == [code, code], outcomes
    told = Outcome(code, b"", "".join(outcome.err for outcome in outcomes))
    assert_error(told, code, *words)


def test_the_launcher_hands_every_option_on() -> None:
    """What the parser makes of the arguments that are passed on is what it made of those that were given."""
    options = Options(
        output=Path("out put"), overwrite=True, form="jsonl", n_best=3, alignment=True, attention=Path("a.svg"),
        checkpoint="latest", device="cpu", search=["beam=4", "length_penalty=none"], ensemble="log",
        long_lines="error", strict=True, stream=True, prefix=Path("p"), require=Path("r"), forbid=Path("f"),
        replace_unknown=True, dictionary=Path("d"),
    )  # fmt: skip
    assert all(getattr(options, name) != getattr(Options(), name) for name in vars(options)), "every option is given"
    command = typer.main.get_command(app).commands["translate"]  # type: ignore[attr-defined]
    said = arguments([Path("one"), Path("two")], Path("-x"), options)
    found = command.make_context("translate", said).params
    assert [str(path) for path in found.pop("model")] == ["one", "two"]
    assert str(found.pop("source")) == "-x"
    for name in vars(options):
        assert str(found.pop(name)) == str(getattr(options, name)), name
    assert {name for name, value in found.items() if value} == set(), "and nothing else"
    assert arguments([], None, Options()) == []


# --- real launchers ---------------------------------------------------------------------------------------------------


def written(folder: Path) -> int:
    """The bytes so far of the file that is being written in this folder."""
    return max((path.stat().st_size for path in folder.glob(".s2s-*")), default=0)


@pytest.mark.slow
@pytest.mark.fault("E1")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_started_again(
    finished: Path, long_source: Path, tmp_path: Path, cli: Cli, rank: int
) -> None:
    """Into a file, whoever it was."""
    common = ["translate", "--model", str(finished), str(long_source), *SMALL]
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "out"
    process = start([*common, "--output", str(out), "--devices", "2", "--max-restarts", "1"])
    wait_until(lambda: written(out.parent) > 0, process)
    os.kill(process_of(process, rank), signal.SIGKILL)
    outcome = finish(process, timeout=400)
    assert outcome.code == 0, outcome
    assert out.read_bytes() == cli(*common).out
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.slow
@pytest.mark.fault("E1")
@pytest.mark.parametrize("rank", [0, 1])
def test_standard_output_under_torchrun(finished: Path, long_source: Path, tmp_path: Path, cli: Cli, rank: int) -> None:
    """Is gone on with after the death of another process, and refused after that of its own."""
    common = ["translate", "--model", str(finished), str(long_source), *SMALL]
    with (tmp_path / "out").open("wb") as out:
        process = start(common, command=TORCHRUN, stdout=out)
        wait_until(lambda: (tmp_path / "out").stat().st_size > 0, process)
        os.kill(process_of(process, rank), signal.SIGKILL)
        outcome = finish(process, timeout=400)
    expected = cli(*common).out
    if rank:
        assert outcome.code == 0, outcome
        assert (tmp_path / "out").read_bytes() == expected
    else:
        assert outcome.code == 1 and "nobody knows how far it came" in outcome.err, outcome
        assert expected.startswith((tmp_path / "out").read_bytes())


@pytest.mark.slow
def test_standard_input_to_standard_output(finished: Path, source: Path, cli: Cli) -> None:
    """The launcher's are those of the first process."""
    command = [*COMMAND, "translate", "--model", str(finished), *SMALL, "--devices", "2"]
    found = subprocess.run(command, input=source.read_bytes(), capture_output=True, timeout=400, check=False)
    assert found.returncode == 0, found
    assert found.stdout == cli("translate", "--model", finished, source, *SMALL).out


@pytest.mark.slow
@pytest.mark.fault("E2", "T11")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher(finished: Path, long_source: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    options = ["translate", "--model", str(finished), str(long_source), *SMALL, "--output", str(out)]
    process = start([*options, "--devices", "2", "--max-restarts", "1"])
    wait_until(lambda: written(tmp_path) > 0, process)
    process.send_signal(number)
    outcome = finish(process, timeout=400)
    assert_error(outcome, 128 + number, f"stopped by {number.name}", "out.partial")
    assert not out.exists() and (tmp_path / "out.partial").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.fault("T5")
def test_a_reader_that_leaves(finished: Path, long_source: Path, tmp_path: Path) -> None:
    """Ends all silently."""
    command = [*COMMAND, "translate", "--model", str(finished), str(long_source), *SMALL, "--devices", "2"]
    began = time.monotonic()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(400) == -signal.SIGPIPE, time.monotonic() - began
    assert process.stderr.read() == b""
    process.stderr.close()
    assert not list(tmp_path.iterdir())  # what the launcher kept there
