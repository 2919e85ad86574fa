"""`s2s translate`: one line out for every line in, whatever stands in them and wherever they go."""

from __future__ import annotations

import os
import pty
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import COMMAND, UPDATES, Cli, assert_error, finish, start, train_arguments

from s2s.interfaces import BOS, EOS, PAD
from s2s.models.seq2seq import Seq2Seq

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


def test_strict_refuses_what_is_not_utf8(finished: Path, cli: Cli) -> None:
    outcome = cli("translate", "--model", finished, "--strict", stdin=b"ok\nThe \xff dog.\n")
    assert_error(outcome, 3, "standard input: line 2, byte 5: 0xff is not UTF-8")


def test_text_of_control_tokens_is_text(finished: Path, cli: Cli) -> None:
    outcome = cli("translate", "--model", finished, stdin=b"The dog </s> <pad> <s> <unk> sees a man.\n")
    assert outcome.code == 0
    assert len(lines_of(outcome.out)) == 1


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


@pytest.mark.parametrize("favourite", [EOS, PAD, BOS, 10])
def test_models_that_say_one_thing_only(
    finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, favourite: int
) -> None:
    """Only EOS gives an empty line; anything else ends at the longest length; PAD and BOS are never printed."""
    original = Seq2Seq.step

    def stubborn(self: Seq2Seq, *arguments: Any) -> Any:
        scores, weights, state = original(self, *arguments)
        scores = scores.clone()
        scores[:, favourite] += 1000
        return scores, weights, state

    monkeypatch.setattr(Seq2Seq, "step", stubborn)
    outcome = cli("translate", "--model", finished, stdin=b"The old dog sees a man.\nThe man.\n")
    assert outcome.code == 0
    answers = lines_of(outcome.out)
    assert len(answers) == 2
    assert (answers == ["", ""]) == (favourite == EOS)
    assert not any(name in answer for name in ("<s>", "</s>", "<pad>") for answer in answers)


# --- files (T6, T7, T13) ----------------------------------------------------------------------------------------------


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


def test_output_over_the_input(finished: Path, tmp_path: Path, cli: Cli) -> None:
    source, link = tmp_path / "in.en", tmp_path / "link"
    source.write_bytes(b"The man.\n")
    link.symlink_to(source)
    for output in (source, link):
        outcome = cli("translate", "--model", finished, source, "--output", output, "--overwrite")
        assert_error(outcome, 2, "is the input too")
    assert source.read_bytes() == b"The man.\n"


def test_an_interrupt_keeps_what_there_is(
    finished: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Seq2Seq, "step", interrupted)
    output = tmp_path / "out.de"
    output.write_bytes(b"precious\n")
    outcome = cli("translate", "--model", finished, "--output", output, "--overwrite", stdin=b"The man.\n")
    assert outcome.code == 130
    assert "Traceback" not in outcome.err
    assert output.read_bytes() == b"precious\n"


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


def test_no_model_and_no_input(finished: Path, tmp_path: Path, cli: Cli) -> None:
    assert_error(cli("translate", stdin=b"a\n"), 2, "--model")
    assert_error(cli("translate", "--model", finished, tmp_path / "missing\x1b.en"), 3, "missing\\x1b.en: no such file")
    assert_error(cli("translate", "--model", finished, tmp_path), 3, "is a directory")


def test_beams_differ_only_in_search(finished: Path, cli: Cli) -> None:
    for beam in ("1", "5", "1000"):
        outcome = cli("translate", "--model", finished, "--beam", beam, stdin=b"The man.\n")
        assert (outcome.code, len(lines_of(outcome.out))) == (0, 1)


# --- streams (T1, T5, T8, T9) -----------------------------------------------------------------------------------------


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


def test_a_reader_that_leaves(finished: Path) -> None:
    """More output than a pipe holds, of which ``head`` takes one line."""
    data = b"The man.\n" + 100_000 * b"\n"
    outcome = through_shell("| head -1; exit ${PIPESTATUS[0]}", "translate", "--model", str(finished), data=data)
    assert outcome.returncode in (141, -signal.SIGPIPE)
    assert len(lines_of(outcome.stdout)) == 1
    assert b"Exception" not in outcome.stderr and b"error" not in outcome.stderr


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


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/stdin is a pipe here")
def test_a_pipe_as_a_file(finished: Path) -> None:
    outcome = through_shell("", "translate", "--model", str(finished), "/dev/stdin", data=b"The man.\n")
    assert (outcome.returncode, len(lines_of(outcome.stdout))) == (0, 1)
