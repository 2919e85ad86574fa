"""`s2s translate`: one line out for every line in, whatever stands in them and wherever they go."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pty
import random
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from harness import (
    COMMAND,
    UPDATES,
    Cli,
    assert_error,
    done,
    finish,
    refuse_constant,
    start,
    steps,
    train_arguments,
)

from s2s import checkpoint
from s2s.cli import app
from s2s.commands import models
from s2s.commands.output import Output
from s2s.data.tokenizer import UNKNOWN
from s2s.errors import CheckpointError
from s2s.interfaces import BOS, EOS, PAD, UNK
from s2s.models.seq2seq import Seq2Seq
from s2s.run import Run

CONTROLS = [*range(0x0A), *range(0x0B, 0x20), *range(0x7F, 0xA0)]


@pytest.fixture(scope="session")
def sentences(project: Path) -> list[str]:
    """What a model can be asked."""
    return (project / "train.en").read_text(encoding="utf-8").splitlines()[:40]


def through_shell(
    redirection: str, *arguments: str, data: bytes = b"", **extra: str
) -> subprocess.CompletedProcess[bytes]:
    """The command with a redirection that only a shell can make."""
    line = ["bash", "-c", f'"$@" {redirection}', "bash", *COMMAND, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | extra
    return subprocess.run(line, input=data, capture_output=True, timeout=60, env=environment, check=False)


def lines_of(data: bytes) -> list[str]:
    """The lines of an output, which must be UTF-8 that does nothing to a terminal."""
    text = data.decode("utf-8")
    assert text == "" or text.endswith("\n")
    assert not set(text) & {chr(code) for code in CONTROLS} and not set(text) & {"\u2028", "\u2029"}
    return text.split("\n")[:-1]


# --- lines (T1-T4, T15, T16) ------------------------------------------------------------------------------------------


@pytest.mark.fault("T1", "T16")
def test_lines_in_lines_out(finished: Path, cli: Cli, sentences: list[str]) -> None:
    """In any order and company, sentences have the same translations (T16); the model has learned something."""
    outcome = cli("translate", "--model", finished, stdin="".join(f"{line}\n" for line in sentences).encode())
    assert outcome.code == 0
    answers = lines_of(outcome.out)
    assert len(answers) == len(sentences)
    assert len(set(answers)) > 3
    expected = dict(zip(sentences, answers, strict=True))
    shuffled = random.Random(1).sample(sentences + sentences[:5], len(sentences) + 5)
    outcome = cli("translate", "--model", finished, "-", stdin="".join(f"{line}\n" for line in shuffled).encode())
    assert lines_of(outcome.out) == [expected[line] for line in shuffled]
    for line in sentences[:5]:
        assert lines_of(cli("translate", "--model", finished, stdin=line.encode()).out) == [expected[line]]


@pytest.mark.fault("T2", "TX2", "TX4")
@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"\n\n\n", ["", "", ""]),
        (" \n\t\n\u00a0\n\u3000\n\x00\x1b\n".encode(), [""] * 5),
    ],
)
def test_nothing_in_nothing_out(
    finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, data: bytes, lines: list[str]
) -> None:
    """And the model is not asked."""
    monkeypatch.setattr(Seq2Seq, "step", None)
    outcome = cli("translate", "--model", finished, stdin=data)
    assert (outcome.code, lines_of(outcome.out)) == (0, lines)


@pytest.mark.fault("T4", "TX5", "TX7", "TX9", "TX10", "TX11", "TX16")
@pytest.mark.parametrize(
    ("strange", "plain", "warning"),
    [
        (b"The old dog sees a man.\r\n\r\n", b"The old dog sees a man.\n\n", ""),
        (b"\xef\xbb\xbfThe old dog sees a man.", b"The old dog sees a man.\n", ""),
        ("The\u2028old\u0085dog\u00a0sees\ra\x0bman.\n".encode(), b"The old dog sees a man.\n", ""),
        (b"The\x00old\x1bdog sees a man.\n", b"The old dog sees a man.\n", "2 control characters"),
        (b"ok\nThe \xff dog.\n", "ok\nThe \ufffd dog.\n".encode(), "1 lines are not UTF-8, the first is line 2"),
        ("Ko\u0308nig\n".encode(), "K\u00f6nig\n".encode(), ""),
    ],
)
def test_the_same_text_in_other_bytes(finished: Path, cli: Cli, strange: bytes, plain: bytes, warning: str) -> None:
    outcome, expected = (cli("translate", "--model", finished, stdin=data) for data in (strange, plain))
    assert (outcome.code, expected.code) == (0, 0)
    assert lines_of(outcome.out) == lines_of(expected.out)
    assert warning in outcome.err
    assert ("s2s: warning" in outcome.err) == bool(warning)


@pytest.mark.fault("TX9")
def test_strict_refuses_what_is_not_utf8(finished: Path, cli: Cli) -> None:
    outcome = cli("translate", "--model", finished, "--strict", stdin=b"ok\nThe \xff dog.\n")
    assert_error(outcome, 3, "standard input: line 2, byte 5: 0xff is not UTF-8", "or leave out --strict")


@pytest.mark.fault("TX17")
def test_text_of_control_tokens_is_text(finished: Path, cli: Cli) -> None:
    outcome = cli("translate", "--model", finished, stdin=b"The dog </s> <pad> <s> <unk> sees a man.\n")
    assert outcome.code == 0
    assert len(lines_of(outcome.out)) == 1


@pytest.mark.fault("T3", "TX12")
def test_long_lines_are_cut_and_joined(finished: Path, tmp_path: Path, cli: Cli) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    text = (run / "config.yaml").read_text(encoding="utf-8")
    assert "max_source_length: 1000" in text
    (run / "config.yaml").write_text(text.replace("max_source_length: 1000", "max_source_length: 20"))
    long = "The old dog sees a man. " * 40
    outcome = cli("translate", "--model", run, stdin=f"The man.\n{long}\n{long}\n".encode())
    assert outcome.code == 0
    answers = lines_of(outcome.out)
    assert len(answers) == 3 and answers[1] == answers[2] != ""
    assert outcome.err.count("longer than search.max_source_length") == 1


def make_stubborn(monkeypatch: pytest.MonkeyPatch, favourite: int) -> None:
    """Let every model say this word wherever it may."""
    original = Seq2Seq.step

    def stubborn(self: Seq2Seq, *arguments: Any) -> Any:
        scores, weights, state = original(self, *arguments)
        scores = scores.clone()
        scores[:, favourite] += 1000
        return scores, weights, state

    monkeypatch.setattr(Seq2Seq, "step", stubborn)


@pytest.mark.fault("T15")
@pytest.mark.parametrize("favourite", [EOS, PAD, BOS, 10])
def test_models_that_say_one_thing_only(
    finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, favourite: int
) -> None:
    """Only EOS gives an empty line; anything else ends at the longest length; PAD and BOS are never printed."""
    make_stubborn(monkeypatch, favourite)
    outcome = cli("translate", "--model", finished, stdin=b"The old dog sees a man.\nThe man.\n")
    assert outcome.code == 0
    answers = lines_of(outcome.out)
    assert len(answers) == 2
    assert (answers == ["", ""]) == (favourite == EOS)
    assert not any(name in answer for name in ("<s>", "</s>", "<pad>") for answer in answers)


# --- files (T6, T7, T13) ----------------------------------------------------------------------------------------------


@pytest.mark.fault("T6")
def test_output_files(finished: Path, tmp_path: Path, cli: Cli) -> None:
    source, output = tmp_path / "in.en", tmp_path / "out.de"
    source.write_bytes(b"The man.\n\n")
    arguments = ("translate", "--model", finished, source, "--output", output)
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out) == (0, b"")
    written = output.read_bytes()
    assert len(lines_of(written)) == 2
    output.write_bytes(b"precious\n")
    assert_error(cli(*arguments), 2, f"{output}: exists already", "--overwrite")
    assert output.read_bytes() == b"precious\n"
    assert cli(*arguments, "--overwrite").code == 0
    assert output.read_bytes() == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.en", "out.de"]


@pytest.mark.fault("T7")
def test_output_over_the_input(finished: Path, tmp_path: Path, cli: Cli) -> None:
    source, link = tmp_path / "in.en", tmp_path / "link"
    source.write_bytes(b"The man.\n")
    link.symlink_to(source)
    for output in (source, link):
        outcome = cli("translate", "--model", finished, source, "--output", output, "--overwrite")
        assert_error(outcome, 2, "is the input too")
    assert source.read_bytes() == b"The man.\n"


@pytest.mark.fault("T11")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_keeps_what_there_is(
    finished: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    """The old file, and beside it what was finished."""
    original, turns = Seq2Seq.start, itertools.count()

    def interrupted(self: Seq2Seq, *arguments: Any) -> Any:
        if next(turns) == 2:
            os.kill(os.getpid(), number)
        return original(self, *arguments)

    monkeypatch.setattr(Seq2Seq, "start", interrupted)
    output = tmp_path / "out.de"
    output.write_bytes(b"precious\n")
    arguments = ("translate", "--model", finished, "--output", output, "--overwrite", "--stream")
    outcome = cli(*arguments, stdin=b"The man.\n\nThe dog.\nThe king.\n")
    name = signal.Signals(number).name
    assert_error(outcome, code, f"stopped by {name} after 3 lines", f"kept in {output}.partial")
    assert output.read_bytes() == b"precious\n"
    assert len(lines_of((tmp_path / "out.de.partial").read_bytes())) == 3


@pytest.mark.fault("T13")
def test_which_model(finished: Path, finished_transformer: Path, project: Path, tmp_path: Path, cli: Cli) -> None:
    """A run, one of its checkpoints, an ensemble with another architecture over the same vocabulary; else a reason."""
    data = b"The old dog sees a man.\n"
    best = (finished / "best").read_text()
    plain = cli("translate", "--model", finished, stdin=data)
    for arguments in (["--model", finished / "checkpoints" / best], ["--model", finished, "--checkpoint", best]):
        assert cli("translate", *arguments, stdin=data).out == plain.out
    both = cli("translate", "--model", finished, "--model", finished_transformer, stdin=data)
    assert (both.code, len(lines_of(both.out))) == (0, 1)
    wrong = cli("translate", "--model", finished, "--checkpoint", "step-3", stdin=data)
    assert_error(wrong, 4, "no checkpoint 'step-3'", "best, latest", f"step-{UPDATES:08d}")
    assert_error(cli("translate", "--model", tmp_path / "nowhere", stdin=data), 4, "no such directory")
    assert_error(cli("translate", "--model", project, stdin=data), 4, "no checkpoints here")
    other = tmp_path / "other"
    settings = ("training.max_updates=1", "tokenizer.vocabulary=60")
    assert cli(*train_arguments(project, other, *settings)).code == 0
    mixed = cli("translate", "--model", finished, "--model", other, stdin=data)
    assert_error(mixed, 4, "its vocabulary is not that of", "ensembles share one vocabulary")


@pytest.mark.fault("C5", "X1")
@pytest.mark.parametrize("name", ["model.pt", "model.zip", "notes.txt"])
def test_files_that_are_no_models(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Also where torch was told to load anything."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker, path = tmp_path / "marker", tmp_path / name
    payload = b"cos\nsystem\n(S'touch " + os.fsencode(marker) + b"'\ntR."
    path.write_bytes(b"PK\x03\x04" + payload if name.endswith("zip") else payload)
    assert_error(cli("translate", "--model", path, stdin=b"a\n"), 4, f"{path}: not an s2s model")
    assert not marker.exists()


# --- wrong use (T12) --------------------------------------------------------------------------------------------------


@pytest.mark.fault("T12")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--beam", "0"],
        ["--beam", "-1"],
        ["--beam", "1000000000"],
        ["--beam", "many"],
        ["--no-such-option"],
        ["one", "two"],
    ],
)
def test_wrong_options(finished: Path, cli: Cli, arguments: list[str]) -> None:
    outcome = cli("translate", "--model", finished, *arguments, stdin=b"a\n")
    assert_error(outcome, 2)
    assert outcome.out == b""


@pytest.mark.fault("T13")
def test_no_model_and_no_input(finished: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no runs are that the message could name
    assert_error(cli("translate", stdin=b"a\n"), 2, "--model: none is given; give the directory of a run")
    assert_error(cli("translate", "--model", finished, tmp_path / "missing\x1b.en"), 3, "missing\\x1b.en: no such file")
    assert_error(cli("translate", "--model", finished, tmp_path), 3, "is a directory")


def test_beams_differ_only_in_search(finished: Path, cli: Cli) -> None:
    for beam in ("1", "5", "1000"):
        outcome = cli("translate", "--model", finished, "--beam", beam, stdin=b"The man.\n")
        assert (outcome.code, len(lines_of(outcome.out))) == (0, 1)


# --- streams (T1, T5, T8, T9) -----------------------------------------------------------------------------------------


@pytest.mark.fault("T1")
@pytest.mark.parametrize(
    "extra",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "de_DE.ISO-8859-1", "PYTHONIOENCODING": "utf-16"},
    ],
)
def test_any_locale(finished: Path, cli: Cli, extra: dict[str, str]) -> None:
    data = "The old king sees a king.\nK\u00f6nig \ud83d\ude00\n".encode("utf-8", "surrogatepass")
    expected = cli("translate", "--model", finished, stdin=data)
    outcome = through_shell("", "translate", "--model", str(finished), data=data, **extra)
    assert (outcome.returncode, outcome.stdout) == (0, expected.out)


@pytest.mark.fault("T5")
def test_a_reader_that_leaves(finished: Path) -> None:
    """More output than a pipe holds, of which ``head`` takes one line."""
    data = b"The man.\n" + 100_000 * b"\n"
    outcome = through_shell("| head -1; exit ${PIPESTATUS[0]}", "translate", "--model", str(finished), data=data)
    assert outcome.returncode in (141, -signal.SIGPIPE)
    assert len(lines_of(outcome.stdout)) == 1
    assert b"Exception" not in outcome.stderr and b"error" not in outcome.stderr


@pytest.mark.fault("T8", "T9")
@pytest.mark.parametrize(
    ("redirection", "code", "words"),
    [
        (">&-", 6, "standard output: is closed"),
        ("> /dev/full", 6, "No space left on device"),
        ("<&-", 2, "standard input: no input"),
    ],
)
def test_streams_that_do_not_work(finished: Path, redirection: str, code: int, words: str) -> None:
    outcome = through_shell(redirection, "translate", "--model", str(finished), data=b"The man.\n")
    error = outcome.stderr.decode()
    assert outcome.returncode == code, error
    assert [words in line for line in error.splitlines() if line.startswith("s2s: error: ")] == [True]
    assert "Traceback" not in error and "Exception" not in error


@pytest.mark.fault("T6", "T8")
def test_a_full_disk_leaves_the_old_output(finished: Path, tmp_path: Path) -> None:
    """``ulimit -f`` stands in for it: a file may have a block and no more."""
    source, output = tmp_path / "in.en", tmp_path / "out.de"
    source.write_bytes(b"The man.\n" + 100_000 * b"\n")
    output.write_bytes(b"precious\n")
    line = [
        "bash",
        "-c",
        'ulimit -f 4; exec "$@"',
        "bash",
        *COMMAND,
        "translate",
        "--model",
        str(finished),
        str(source),
    ]
    outcome = subprocess.run([*line, "-o", str(output), "--overwrite"], capture_output=True, timeout=60, check=False)
    assert outcome.returncode == 6, outcome.stderr
    assert b"out.de: cannot be written: " in outcome.stderr and b"out.de.partial" in outcome.stderr
    assert output.read_bytes() == b"precious\n"


@pytest.mark.fault("T9", "T10")
def test_a_conversation(finished: Path) -> None:
    """On a terminal each line is answered at once, and Ctrl-D ends it."""
    master, slave = pty.openpty()
    process = start(["translate", "--model", str(finished)], stdin=slave)
    os.close(slave)
    assert process.stdout is not None
    for _ in range(2):
        os.write(master, b"The man.\n")
        assert process.stdout.readline().endswith(b"\n")
    os.write(master, b"\x04")
    outcome = finish(process)
    os.close(master)
    assert outcome.code == 0, outcome
    assert "type a sentence" in outcome.err


@pytest.mark.fault("TX25")
@pytest.mark.skipif(sys.platform != "linux", reason="/dev/stdin is a pipe here")
def test_a_pipe_as_a_file(finished: Path) -> None:
    outcome = through_shell("", "translate", "--model", str(finished), "/dev/stdin", data=b"The man.\n")
    assert (outcome.returncode, len(lines_of(outcome.stdout))) == (0, 1)


# --- options ----------------------------------------------------------------------------------------------------------


def test_every_option_is_tested_and_explained_with_an_example() -> None:
    """Here, and in docs/translate.md, whose commands the parser understands."""
    command = typer.main.get_command(app).commands["translate"]  # type: ignore[attr-defined]
    options = {option for one in command.params for option in one.opts if option.startswith("--")} - {"--help"}
    assert len(options) >= 20
    page = (Path(__file__).parents[2] / "docs" / "translate.md").read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S))
    commands = [line[line.index("s2s translate") :] for line in blocks.splitlines()]
    words = [shlex.split(line) for line in commands]
    for line in words:
        command.make_context("translate", line[2:])
    assert options == {word for line in words for word in line if word.startswith("--")}
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S)
    own = Path(__file__).read_text(encoding="utf-8")
    for option in options:
        assert re.search(rf"`{option}\b", prose), f"docs/translate.md does not explain {option}"
        assert f'"{option}"' in own, f"no test gives {option}"


def tables(data: bytes) -> list[list[str]]:
    """The fields of tab-separated lines."""
    mark = "\u241f"
    return [line.split(mark) for line in lines_of(data.replace(b"\t", mark.encode()))]


def objects(data: bytes) -> list[dict[str, Any]]:
    """JSON lines, read strictly."""
    return [json.loads(line, parse_constant=refuse_constant) for line in lines_of(data)]


STRANGE = 'The "old" \\ dog\u2028sees\ta\x0bman.\n\n\ufffd </s> \U0001f600 \u202e\n'.encode()


@pytest.mark.fault("T14")
def test_formats_say_the_same(finished: Path, cli: Cli) -> None:
    arguments = ("translate", "--model", finished, "--search", "beam=4")
    text = lines_of(cli(*arguments, stdin=STRANGE).out)
    assert text == lines_of(cli(*arguments, "--format", "text", "--n-best", "1", stdin=STRANGE).out)
    rows = tables(cli(*arguments, "--format", "tsv", "--n-best", "3", stdin=STRANGE).out)
    found = objects(cli(*arguments, "--format", "jsonl", "--n-best", "3", "--alignment", stdin=STRANGE).out)
    assert [one["line"] for one in found] == [1, 2, 3]
    assert [one["source"] for one in found] == ['The "old" \\ dog sees a man.', "", "\ufffd </s> \U0001f600 \u202e"]
    assert [one["hypotheses"][0]["text"] for one in found] == text
    assert rows == [
        [str(one["line"]), str(rank), f"{each['score']:.6f}", each["text"]]
        for one in found
        for rank, each in enumerate(one["hypotheses"], start=1)
    ]
    assert [len(one["hypotheses"]) for one in found] == [3, 1, 3]
    for one in found:
        scores = [each["score"] for each in one["hypotheses"]]
        assert scores == sorted(scores, reverse=True)
        for each in one["hypotheses"]:
            assert (
                "".join(each["tokens"]).replace("\u2581", " ").split() == each["text"].replace(UNKNOWN, "<unk>").split()
            )
            if each["text"]:  # the run's length penalty is the average over all tokens and EOS
                assert each["score"] == pytest.approx(each["log_probability"] / (len(each["tokens"]) + 1), abs=2e-6)
            links = [tuple(map(int, link.split("-"))) for link in each["alignment"].split()]
            assert all(i < len(one["source"].split()) and j < len(each["text"].split()) for i, j in links)
            assert sorted(links) == links and len({j for _, j in links}) == len(links)
    assert found[0]["hypotheses"][0]["alignment"]


@pytest.mark.fault("T12")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--n-best", "2"], ["--n-best", "give --format tsv or --format jsonl"]),
        (["--alignment"], ["--alignment", "give --format jsonl"]),
        (["--alignment", "--format", "tsv"], ["--alignment", "give --format jsonl"]),
        (["--dictionary", "words.tsv"], ["--dictionary", "give --replace-unknown too"]),
        (["--ensemble", "log"], ["--ensemble", "give --model more than once"]),
        (["--format", "xml"], ["--format", "xml"]),
        (["--n-best", "0", "--format", "tsv"], ["--n-best"]),
        (["--n-best", "3", "--format", "tsv"], ["--n-best: 3 translations of a line", "search.beam is 2", "--beam 3"]),
        (
            ["--require", "x", "--beam", "1", "--search", "sampling={top_k: 5}"],
            ["--require: required phrases need a beam"],
        ),
        (["--long-lines", "skip"], ["--long-lines", "skip"]),
        (["--device", "abacus"], ["--device", "abacus"]),
        (["--batch-tokens", "0"], ["--batch-tokens"]),
        (["--search", "bean=3"], ["command line: search.bean is not a setting; did you mean search.beam?"]),
        (["--search", "beam=0"], ["command line: search.beam must be greater than or equal to 1, got 0"]),
        (["--search", "beam=2.5"], ["search.beam must be a whole number, got 2.5"]),
        (["--search", "length_penalty=wu"], ["search.length_penalty must be average, gnmt or none"]),
        (["--search", "beam"], ["'search.beam' is not KEY=VALUE"]),
    ],
)
def test_options_that_make_no_sense(finished: Path, cli: Cli, arguments: list[str], words: list[str]) -> None:
    outcome = cli("translate", "--model", finished, *arguments, stdin=b"\n")  # even where nothing would be searched
    assert_error(outcome, 2, *words)
    assert outcome.out == b""


def test_options_of_several_processes(finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they do is in test_dividing.py."""
    arguments = ("translate", "--model", finished)
    assert_error(cli(*arguments, "--max-restarts", "1"), 2, "--max-restarts: belongs to --devices")
    assert_error(cli(*arguments, "--devices", "2", "--n-best", "2"), 2, "--n-best", "--format")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_error(cli(*arguments, "--devices", "2"), 2, "--devices: a launcher started this process already")


def test_all_mistakes_in_search_settings_are_told(finished: Path, cli: Cli) -> None:
    outcome = cli("translate", "--model", finished, "--search", "bean=3", "--search", "min_length=-1", stdin=b"a\n")
    assert outcome.code == 2
    assert {line.split(" ")[4] for line in outcome.err.splitlines()} == {"search.bean", "search.min_length"}


def test_shortcuts_and_settings_of_search(finished: Path, cli: Cli, sentences: list[str]) -> None:
    """A longer minimum than any translation shows that a setting arrives; batches change nothing."""
    data = "".join(f"{line}\n" for line in sentences).encode()
    plain, short, long, small, many = (
        cli("translate", "--model", finished, *more, stdin=data)
        for more in (
            [],
            ["--beam", "1", "--device", "cpu"],
            ["--search", "beam=1"],
            ["--batch-tokens", "1"],
            ["--search", "min_length=16", "--search", "max_length_ratio=3", "--search", "batch_tokens=64"],
        )
    )
    assert short.out == long.out
    assert small.out == plain.out
    assert all(a != b for a, b in zip(lines_of(many.out), lines_of(plain.out), strict=True))


@pytest.mark.parametrize("average", ["probability", "log"])
def test_ensembles(finished: Path, finished_transformer: Path, cli: Cli, sentences: list[str], average: str) -> None:
    """A model with itself is that model; with another it is another."""
    data = "".join(f"{line}\n" for line in sentences).encode()
    alone = cli("translate", "--model", finished, stdin=data)
    twins = cli("translate", "--model", finished, "--model", finished, "--ensemble", average, stdin=data)
    assert (twins.code, twins.out) == (0, alone.out)
    both = ("translate", "--model", finished, "--model", finished_transformer, "--format", "tsv")
    assert cli(*both, "--ensemble", average, stdin=data).code == 0
    scores = [cli(*both, "--ensemble", kind, stdin=data).out for kind in ("probability", "log")]
    assert scores[0] != scores[1] and scores[0] == cli(*both, stdin=data).out


@pytest.mark.fault("T3", "TX12")
def test_what_happens_to_long_lines(finished: Path, cli: Cli) -> None:
    """The line is as long as twenty; only its first 15 pieces are read, or nothing of it."""
    data = f"The man.\n{'The old dog sees a man. ' * 20}\n".encode()
    arguments = ("translate", "--model", finished, "--search", "max_source_length=16")
    found = {}
    for choice in ("split", "truncate"):
        outcome = cli(*arguments, "--long-lines", choice, stdin=data)
        assert outcome.code == 0
        assert "standard input: 1 lines are longer than search.max_source_length (16 pieces)" in outcome.err
        found[choice] = lines_of(outcome.out)
    assert found["split"] == lines_of(cli(*arguments, stdin=data).out)
    assert found["split"][0] == found["truncate"][0]
    assert len(found["split"][1]) > 5 * len(found["truncate"][1]) > 0
    outcome = cli(*arguments, "--long-lines", "error", stdin=data)
    assert_error(outcome, 3, "standard input: line 2: ", "search.max_source_length is 16", "--long-lines split")
    assert len(lines_of(outcome.out)) <= 1


# --- wishes -----------------------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_beginnings(finished: Path, tmp_path: Path, cli: Cli, sentences: list[str]) -> None:
    """The text begins so, and where nothing is asked for nothing changes."""
    data = "".join(f"{line}\n" for line in sentences).encode()
    plain = lines_of(cli("translate", "--model", finished, stdin=data).out)
    wanted = ["Der Vogel" if number % 2 else "" for number in range(len(sentences))]
    wanted[5] = "Der K\u00f6nigin einen"
    path = write(tmp_path / "prefix", "".join(f"{each}\n" for each in wanted))
    outcome = cli("translate", "--model", finished, "--prefix", path, stdin=data)
    assert outcome.code == 0
    for found, beginning, old in zip(lines_of(outcome.out), wanted, plain, strict=True):
        assert found.startswith(beginning)
        assert beginning or found == old


def test_required_phrases(finished: Path, tmp_path: Path, cli: Cli, sentences: list[str]) -> None:
    """Each is in the text, from the beginning of a word."""
    data = "".join(f"{line}\n" for line in sentences).encode()
    plain = lines_of(cli("translate", "--model", finished, stdin=data).out)
    wanted: list[list[str]] = [[], ["einen Brief"], ["rote", "K\u00f6nig"]] * len(sentences)
    wanted = wanted[: len(sentences)]
    path = write(tmp_path / "require", "".join("\t".join(each) + "\n" for each in wanted))
    outcome = cli("translate", "--model", finished, "--require", path, "--search", "max_length_extra=20", stdin=data)
    assert outcome.code == 0, outcome.err
    free = lines_of(cli("translate", "--model", finished, "--search", "max_length_extra=20", stdin=data).out)
    for found, phrases, old in zip(lines_of(outcome.out), wanted, free, strict=True):
        assert all(f" {phrase}" in f" {found}" for phrase in phrases)
        assert phrases or found == old
    assert sum(" einen Brief" in f" {line}" for line in plain) < len(plain) / 2


def test_forbidden_phrases(finished: Path, tmp_path: Path, cli: Cli, sentences: list[str]) -> None:
    """Gone from the text of every hypothesis, however it is spelled; lines that never had any are as before."""
    data = "".join(f"{line}\n" for line in sentences).encode()
    arguments = ("translate", "--model", finished, "--format", "tsv", "--n-best", "2")
    plain = tables(cli(*arguments, stdin=data).out)
    often = sorted({word for row in plain for word in re.findall(r"\w+", row[3])}, key=lambda word: -len(word))[:3]
    phrases = [*often, "Der alte"]
    path = write(tmp_path / "forbid", "".join(f"{phrase}\n\n" for phrase in phrases))
    outcome = cli(*arguments, "--forbid", path, stdin=data)
    assert outcome.code == 0, outcome.err

    def has(row: list[str]) -> bool:
        return any(re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", row[3]) for phrase in phrases)

    found = tables(outcome.out)
    assert not any(map(has, found))
    touched = {row[0] for row in plain if has(row)}
    assert len(touched) > 0
    assert [row for row in found if row[0] not in touched] == [row for row in plain if row[0] not in touched]


@pytest.mark.parametrize("option", ["--prefix", "--require"])
def test_files_beside_the_input_that_do_not_fit(finished: Path, tmp_path: Path, cli: Cli, option: str) -> None:
    source, beside = write(tmp_path / "in", "a\nb\nc\n"), write(tmp_path / "beside", "Der\n\n")
    arguments = ("translate", "--model", finished, option, beside)
    outcome = cli(*arguments, source)
    assert_error(outcome, 3, f"{source} has 3 lines, {beside} 2")
    assert outcome.out == b""  # known before the first line is translated
    assert_error(cli(*arguments, stdin=b"a\n"), 3, f"standard input has 1 lines, {beside} 2")
    assert_error(cli(*arguments, stdin=b"a\n\nb\nc\n"), 3, f"standard input has 4 lines, {beside} 2")
    assert_error(cli(*arguments, "--output", beside, "--overwrite", source), 2, "is the input too")
    write(beside, "Der\n\u65e5\u672c\n\n")
    assert_error(cli(*arguments, source), 3, f"{source}: line 2: the model's vocabulary cannot write")
    assert_error(cli("translate", "--model", finished, option, tmp_path / "none", source), 3, "none: no such file")


def test_what_is_required_and_forbidden(finished: Path, tmp_path: Path, cli: Cli) -> None:
    forbid, require = write(tmp_path / "forbid", "Hund\n"), write(tmp_path / "require", "ein Hund.\n")
    outcome = cli("translate", "--model", finished, "--forbid", forbid, "--require", require, stdin=b"The dog.\n")
    assert_error(outcome, 3, "standard input: line 1: 'ein Hund.' contains a phrase that is forbidden")


# --- unknown words ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words_run(project: Path) -> Path:
    """A run whose pieces are whole words, and that has learned little."""
    run = project / "words"
    done(train_arguments(project, run, "tokenizer={kind: whitespace}", "training.max_updates=3"))
    return run


def test_unknown_words_are_replaced(
    finished: Path, words_run: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model says nothing but UNK: every word is one of the source, or its entry in the dictionary."""
    make_stubborn(monkeypatch, UNK)
    source = "A \u017di\u017eek sees a grizzly."
    plain, copied = (
        lines_of(cli("translate", "--model", words_run, *more, stdin=f"{source}\n\n".encode()).out)
        for more in ([], ["--replace-unknown"])
    )
    assert plain[0].split() == [UNKNOWN] * len(copied[0].split()) and plain[1] == copied[1] == ""
    assert set(copied[0].split()) <= set(source.split())
    entries = write(
        tmp_path / "words.tsv", "".join(f"{word}\t{number}\n" for number, word in enumerate(source.split()))
    )
    arguments = ("translate", "--model", words_run, "--replace-unknown", "--dictionary", entries)
    (outcome,) = lines_of(cli(*arguments, stdin=f"{source}\n".encode()).out)
    assert outcome.split() == [str(source.split().index(word)) for word in copied[0].split()]
    (pieces,) = lines_of(cli("translate", "--model", finished, "--replace-unknown", stdin=source.encode()).out)
    assert pieces in source.split()  # in subwords UNK after UNK is one word


@pytest.mark.parametrize(
    "option", [["--replace-unknown"], ["--alignment", "--format", "jsonl"], ["--attention", "a.svg"]]
)
def test_options_that_need_attention(project: Path, cli: Cli, option: list[str]) -> None:
    run = project / "without-attention"
    if not run.is_dir():
        done(train_arguments(project, run, "model.decoder.attention={kind: none}", "training.max_updates=1"))
    outcome = cli("translate", "--model", run, *option, stdin=b"The man.\n")
    assert_error(outcome, 2, f"{option[0]}: this model has no attention")
    assert outcome.out == b""


def test_the_picture_is_of_the_first_line_that_is_not_blank_or_cut(finished: Path, tmp_path: Path, cli: Cli) -> None:
    picture = tmp_path / "a.svg"
    outcome = cli("translate", "--model", finished, "--attention", picture, stdin=b"\nThe zebra.\nThe man.\n")
    assert outcome.code == 0
    drawn = picture.read_text(encoding="utf-8")
    assert "zebra" not in lines_of(outcome.out)[2] and drawn.startswith("<svg") and "man." not in drawn
    arguments = ("translate", "--model", finished, "--attention", picture, "--overwrite")
    shorter = ("--search", "max_source_length=4")
    outcome = cli(*arguments, *shorter, stdin=b"The old dog sees a man.\nThe zebra.\n")
    assert outcome.code == 0 and picture.read_text(encoding="utf-8") == drawn
    outcome = cli(*arguments, *shorter, stdin=b"The old dog sees a man.\n\n")
    assert outcome.code == 0 and len(lines_of(outcome.out)) == 2
    assert "--attention: all lines are blank or were cut into parts" in outcome.err


def test_a_picture_replaces_no_text(finished: Path, tmp_path: Path, cli: Cli) -> None:
    """Neither the input nor the translations, and it is heard of before anything is translated."""
    source, output = write(tmp_path / "in.en", "The man.\n"), tmp_path / "out.de"
    arguments = ("translate", "--model", finished, source, "--overwrite", "--attention")
    outcome = cli(*arguments, source)
    assert_error(outcome, 2, "is the input too")
    assert outcome.out == b"" and source.read_text() == "The man.\n"
    assert_error(cli(*arguments, output, "--output", output), 2, "--attention: is the file of --output too")
    picture = write(tmp_path / "a.svg", "mine")
    outcome = cli("translate", "--model", finished, source, "--attention", picture)
    assert_error(outcome, 2, "a.svg: exists already")
    assert outcome.out == b"" and picture.read_text() == "mine" and not output.exists()


# --- streams and signals (T5, T10, T11, T17) --------------------------------------------------------------------------


@pytest.mark.fault("T10")
def test_a_driver_that_waits_for_each_answer(finished: Path) -> None:
    process = start(["translate", "--model", str(finished), "--stream"], stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    for number in range(3):
        process.stdin.write(b"The man.\n")
        process.stdin.flush()
        assert select.select([process.stdout], [], [], 60 if number == 0 else 10)[0], "no answer"
        assert process.stdout.readline().endswith(b"\n")
    outcome = finish(process)
    assert outcome.code == 0
    assert "translated 3 lines in" in outcome.err and "lines/s" in outcome.err


@pytest.mark.fault("T11")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_while_waiting_for_input(finished: Path, number: int, code: int) -> None:
    process = start(["translate", "--model", str(finished), "--stream"], stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"The man.\nThe dog.\n")
    process.stdin.flush()
    answers = process.stdout.readline() + process.stdout.readline()
    process.send_signal(number)
    outcome = finish(process)
    assert_error(outcome, code, f"stopped by {signal.Signals(number).name} after 2 lines")
    assert len(lines_of(answers + outcome.out)) == 2


@pytest.mark.fault("T11")
def test_a_signal_in_the_middle_of_the_work(finished: Path, tmp_path: Path) -> None:
    """What came out are whole lines, and as many as are told."""
    source = write(tmp_path / "in", "The old dog sees a man.\n" * 20_000)
    process = start(["translate", "--model", str(finished), str(source), "--batch-tokens", "200"])
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1 << 16)  # readline would keep what follows the line from `finish`
    process.send_signal(signal.SIGTERM)
    outcome = finish(process)
    found = lines_of(first + outcome.out)
    assert 1 <= len(found) < 20_000 and len(set(found)) == 1
    assert_error(outcome, 143, f"stopped by SIGTERM after {len(found)} lines")


@pytest.mark.fault("T5")
def test_head_stops_the_work(finished: Path) -> None:
    """Of an endless input; and nothing is said about it."""
    line = ["bash", "-c", 'yes "The man." | "$@" --batch-tokens 64 | head -1; exit ${PIPESTATUS[1]}', "bash", *COMMAND]
    process = subprocess.run(
        [*line, "translate", "--model", str(finished)], capture_output=True, timeout=60, check=False
    )
    assert process.returncode in (141, -signal.SIGPIPE)
    assert len(lines_of(process.stdout)) == 1
    assert process.stderr == b""


@pytest.mark.fault("T5")
def test_a_closed_pipe_is_seen_before_the_next_write(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    monkeypatch.setattr("s2s.commands.output.end_silently", lambda: ended.append(True))
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as stream:
        output = Output(stream)
        output.check()
        assert not ended
        os.close(reader)
        output.check()
        assert ended


@pytest.mark.fault("T5")
@pytest.mark.parametrize("arguments", [["translate"], ["eval"]])
def test_a_broken_standard_error_stops_nothing(finished: Path, tmp_path: Path, arguments: list[str]) -> None:
    """As `s2s translate ... 2>&1 >out | head` leaves one: what was to be said is lost, and nothing else."""
    expected = through_shell("", *arguments, "--model", str(finished), data=b"The man.\n" * 3)
    reader, writer = os.pipe()
    os.close(reader)
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            [*COMMAND, *arguments, "--model", str(finished)], stdin=subprocess.PIPE, stdout=out, stderr=writer
        )
        process.communicate(b"The man.\n" * 3, timeout=100)
    os.close(writer)
    assert process.returncode == expected.returncode == 0
    assert (tmp_path / "out").read_bytes() == expected.stdout != b""


@pytest.mark.fault("T5")
@pytest.mark.parametrize("extra", [{}, {"PYTHONUNBUFFERED": "1"}])
@pytest.mark.parametrize("arguments", ["config describe", "config schema", "--help", "translate --help", "--version"])
def test_a_reader_that_never_reads(arguments: str, extra: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [*COMMAND, *arguments.split()], stdout=writer, stderr=subprocess.PIPE, env=os.environ | extra, check=False
    )
    os.close(writer)
    assert process.returncode == -signal.SIGPIPE and process.stderr == b""


@pytest.mark.fault("T5")
def test_a_pipe_to_somebody_else_is_no_reader_that_left(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """As one to a process that has died: standard output is well, so this is told."""

    def fail() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("s2s.commands.config.schema", fail)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # the parser leaves another in its place
    assert_error(cli("config", "schema"), 6, "Broken pipe")
    monkeypatch.setenv("S2S_TRACEBACK", "1")
    assert "BrokenPipeError" in cli("config", "schema").err


@pytest.mark.fault("T7")
def test_an_answer_that_cannot_be_printed() -> None:
    with Path("/dev/full").open("wb") as full:
        found = subprocess.run([*COMMAND, "config", "schema"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert (found.returncode, found.stderr.count(b"\n")) == (6, 1)
    assert b"standard output: No space left on device" in found.stderr
    closed = subprocess.run(["bash", "-c", '"$@" >&-', "", *COMMAND, "config", "schema"], stderr=subprocess.PIPE)
    assert (closed.returncode, closed.stderr) == (6, b"s2s: error: standard output: is closed\n")


@pytest.mark.fault("T17")
def test_two_readers_of_one_model(finished: Path) -> None:
    both = [start(["translate", "--model", str(finished)], stdin=subprocess.PIPE) for _ in range(2)]
    outcomes = []
    for process in both:
        out, _ = process.communicate(b"The man.\n", timeout=60)
        outcomes.append((process.returncode, out))
    assert outcomes[0] == outcomes[1] and outcomes[0][0] == 0


# --- models (T13) -----------------------------------------------------------------------------------------------------


@pytest.mark.fault("T13")
def test_which_runs_there_are(
    finished: Path, project: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_error(cli("translate", "--model", project, stdin=b"a\n"), 4, "no checkpoints here", f"are {finished}, ")
    assert_error(cli("translate", "--model", project / "rn", stdin=b"a\n"), 4, "no such directory", f"{finished}")
    shutil.copytree(finished, tmp_path / "runs" / "one")
    monkeypatch.chdir(tmp_path)
    assert_error(cli("translate", stdin=b"a\n"), 2, "--model: none is given", "the runs here are runs/one")
    assert_error(cli("translate", "--model", "runs/two", stdin=b"a\n"), 4, "no such directory", "runs/one")


@pytest.mark.fault("T13", "T17")
def test_a_run_that_is_training(finished: Path, run: Path) -> None:
    """Its best checkpoint is replaced all the time, and the old one deleted: a reader gets one that was the best."""
    loaded = checkpoint.load(run / "checkpoints" / f"step-{steps(run)[-1]:08d}")
    writer = checkpoint.Checkpoints(run, Run(run).identity(), keep_last=1)
    stop, step = threading.Event(), itertools.count(loaded.step + 1)

    def train() -> None:
        while not stop.is_set():
            now = next(step)
            loaded.snapshot.state["step"] = now
            writer.save(now, loaded.snapshot, score=float(now), is_best=True)

    thread = threading.Thread(target=train)
    thread.start()
    updates: list[int] = []
    deadline = time.monotonic() + 60
    try:
        # Counted by different checkpoints met, not by reads: how many a read overtakes depends on the machine.
        while len(set(updates)) <= 10 and time.monotonic() < deadline:
            updates.append(models.load(run, torch.device("cpu")).update)
    finally:
        stop.set()
        thread.join()
    assert updates == sorted(updates)
    assert len(set(updates)) > 10
    assert updates[-1] > loaded.step


@pytest.mark.fault("C14")
def test_a_checkpoint_that_goes_away_while_it_is_looked_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its choice and its opening a better one comes, and it is deleted; without a better one it is an error."""
    original, turns = models.load_trained, itertools.count()

    def overtaken(path: Path, device: torch.device, which: str) -> Any:
        chosen = path / "checkpoints" / (path / which).read_text()
        if next(turns) < 2:
            loaded = checkpoint.load(chosen)
            step = loaded.snapshot.state["step"] = steps(run)[-1] + 1
            writer = checkpoint.Checkpoints(run, Run(run).identity(), keep_last=1)
            writer.save(step, loaded.snapshot, score=1000.0 + step, is_best=True)
            shutil.rmtree(chosen, ignore_errors=True)
        return original(chosen, device, which)

    monkeypatch.setattr(models, "load_trained", overtaken)
    assert models.load(run, torch.device("cpu")).update == steps(run)[-1] == UPDATES + 2
    assert next(turns) == 3
    (run / "checkpoints" / f"step-{steps(run)[-1]:08d}" / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match="incomplete checkpoint"):
        models.load(run, torch.device("cpu"))


# --- memory -----------------------------------------------------------------------------------------------------------


def most_memory(run: Path, source: Path, output: Path, *arguments: str) -> int:
    """The most bytes that a translation of its own process held."""
    line = ["translate", "--model", str(run), str(source), "--output", str(output), *arguments]
    process = start(line, stdout=None, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


@pytest.mark.fault("T3", "M1")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(finished: Path, tmp_path: Path, sentences: list[str]) -> None:
    """Ten times the lines, no more than a few megabytes of allocator's noise."""
    few, many = (
        write(
            tmp_path / str(count), "".join(f"{line}\n" for line in itertools.islice(itertools.cycle(sentences), count))
        )
        for count in (2000, 20_000)
    )
    arguments = ("--batch-tokens", "1024", "--format", "jsonl", "--n-best", "2", "--alignment")
    small, large = (most_memory(finished, path, tmp_path / f"{path.name}.out", *arguments) for path in (few, many))
    assert (tmp_path / "20000.out").read_bytes().count(b"\n") == 20_000
    assert large - small < 24 * 2**20
