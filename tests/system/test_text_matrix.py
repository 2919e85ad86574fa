"""Every file of the text matrix through `s2s translate` and `s2s train`: as many lines out as in, or a reason why not.

How lines are counted and cleaned is tested in tests/unit/test_text.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Cli, assert_error, train_arguments, write_project
from text_matrix import CONTROLS, GOOD, PACKED, PLAIN, SEPARATORS, Case

from s2s.data import tokenizer


def cases(matrix: dict[str, Case]) -> list[object]:
    """The matrix as parameters, each with the mark of its row."""
    return [pytest.param(case, id=name, marks=pytest.mark.fault(case.row)) for name, case in matrix.items()]


def assert_lines(out: bytes, lines: int) -> None:
    """UTF-8 that does nothing to a terminal, as many lines as there should be."""
    text = out.decode("utf-8")
    assert text.count("\n") == lines and text[-1:] in ("", "\n")
    assert not [sign for sign in text if sign != "\n" and unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp")]
    assert "<pad>" not in text and "</s>" not in text


# --- translation ------------------------------------------------------------------------------------------------------


@pytest.mark.fault("T1", "T2", "T4")
@pytest.mark.parametrize("case", cases(PLAIN))
def test_translating_by_name_and_from_standard_input(finished: Path, tmp_path: Path, cli: Cli, case: Case) -> None:
    path = tmp_path / "text.en"
    path.write_bytes(case.data)
    named, piped = cli("translate", "--model", finished, path), cli("translate", "--model", finished, stdin=case.data)
    if case.lines is None:
        assert_error(named, 3, f"{path}: {case.words}")
        assert_error(piped, 3, f"standard input: {case.words}")
        assert named.out == piped.out == b""
        return
    assert (named.code, piped.code) == (0, 0), (named, piped)
    assert_lines(named.out, case.lines)
    assert piped.out == named.out
    assert ("are not UTF-8" in named.err) == (not case.valid)
    strict = cli("translate", "--model", finished, "--strict", path)
    if case.valid:
        assert (strict.code, strict.out) == (0, named.out)
    else:
        assert_error(strict, 3, f"{path}: line ", "is not UTF-8")


@pytest.mark.parametrize("suffix", [".gz", ".en"])
@pytest.mark.parametrize("case", cases(PACKED))
def test_translating_packed_text(finished: Path, tmp_path: Path, cli: Cli, case: Case, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(case.data)
    outcome = cli("translate", "--model", finished, path)
    if case.lines is None:
        assert_error(outcome, 3, f"{path}: {case.words}", "fetch or compress the file again")
        assert outcome.out == b""
    else:
        assert outcome.code == 0, outcome
        assert_lines(outcome.out, case.lines)
    piped = cli("translate", "--model", finished, stdin=case.data)
    assert_error(piped, 3, "standard input: is packed with gzip")


@pytest.mark.fault("TX25")
def test_translating_a_pipe_with_a_name(finished: Path, tmp_path: Path, cli: Cli) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen([sys.executable, "-c", f"open({str(pipe)!r}, 'w').write('The man.\\n\\nThe dog.')"]):
        outcome = cli("translate", "--model", finished, pipe)
    assert outcome.code == 0
    assert_lines(outcome.out, 3)


# One process imports everything and forks another for each file, which has streams of its own, made under the locale
# that the first was started with. Only the others use torch, so that there are no threads to lose.
FORKS = """
import json, os, sys
import s2s.commands.translate
from s2s.cli import run

for number, (arguments, source) in enumerate(json.load(open(sys.argv[1]))):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.dup2(os.open(source, os.O_RDONLY), 0)
        os.dup2(write if sys.argv[2] == "closed" else os.open(f"{number}.out", os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(os.open(f"{number}.err", os.O_WRONLY | os.O_CREAT), 2)
        os._exit(run(arguments))
    os.close(read)
    os.close(write)
    _, status, used = os.wait4(child, 0)
    os.write(1, b"%d %d\\n" % (os.waitstatus_to_exitcode(status), used.ru_maxrss))
"""


def forked(
    folder: Path, commands: list[tuple[list[str], Path]], *, closed: bool = False, **extra: str
) -> Iterator[tuple[int, int, bytes, str]]:
    """Exit code, most memory in KiB, output and errors of commands, each with a file as standard input.

    ``closed``: nobody reads the output.
    """
    folder.mkdir()
    (folder / "commands").write_text(json.dumps([(arguments, str(source)) for arguments, source in commands]))
    line = [sys.executable, "-c", FORKS, "commands", "closed" if closed else "open"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | extra
    ended = subprocess.run(line, cwd=folder, env=environment, capture_output=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    for number, row in enumerate(ended.stdout.split(b"\n")[:-1]):
        code, memory = map(int, row.split())
        out = b"" if closed else (folder / f"{number}.out").read_bytes()
        yield code, memory, out, (folder / f"{number}.err").read_text(encoding="utf-8", errors="backslashreplace")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The plain matrix on disk."""
    folder = tmp_path_factory.mktemp("matrix")
    for name, case in PLAIN.items():
        (folder / name).write_bytes(case.data)
    return {name: folder / name for name in PLAIN}


@pytest.mark.fault("T1")
@pytest.mark.parametrize(
    "extra",
    [
        {"LC_ALL": "C"},
        pytest.param({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, marks=pytest.mark.slow),
        pytest.param({"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}, marks=pytest.mark.slow),
        pytest.param({"PYTHONIOENCODING": "utf-16", "LC_ALL": "de_DE.ISO-8859-1"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("named", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_translating_under_any_locale(
    finished: Path, tmp_path: Path, cli: Cli, files: dict[str, Path], extra: dict[str, str], named: bool
) -> None:
    """The bytes that come out are the same everywhere."""
    arguments = ["translate", "--model", str(finished)]
    commands = [([*arguments, *([str(path)] if named else [])], path) for path in files.values()]
    for case, path, (code, _, out, error) in zip(
        PLAIN.values(), files.values(), forked(tmp_path / "out", commands, **extra), strict=True
    ):
        assert (code, out) == cli(*arguments, path)[:2], (path, error)
        assert_lines(out, case.lines or 0)
        assert "Traceback" not in error


@pytest.mark.slow
@pytest.mark.fault("T5")
@pytest.mark.parametrize("named", [False, True])
def test_translating_for_nobody(finished: Path, tmp_path: Path, files: dict[str, Path], named: bool) -> None:
    """A reader that has left ends the program by SIGPIPE and without a word, unless there was nothing to say anyway."""
    arguments = ["translate", "--model", str(finished)]
    commands = [([*arguments, *([str(path)] if named else [])], path) for path in files.values()]
    outcomes = forked(tmp_path / "out", commands, closed=True)
    for (name, case), (code, _, _, error) in zip(PLAIN.items(), outcomes, strict=True):
        assert code == (3 if case.lines is None else -signal.SIGPIPE if case.lines else 0), (name, error)
        assert "Traceback" not in error and "Exception" not in error


@pytest.mark.fault("T3", "M1", "TX12")
def test_translating_a_million_characters(finished: Path, tmp_path: Path) -> None:
    """As many lines as before, little more memory than for one word, one warning."""
    contents = {"short": "The man.\n", "line": "The man.\n" + f"{GOOD} " * 42_000 + "\nThe man.\n", "word": "x" * 10**6}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    commands = [(["translate", "--model", str(finished)], tmp_path / name) for name in contents]
    short, line, word = forked(tmp_path / "out", commands)
    assert (short[0], line[0], word[0]) == (0, 0, 0), (line[3], word[3])
    assert_lines(line[2], 3)
    assert_lines(word[2], 1)
    answers = line[2].split(b"\n")
    assert answers[0] == answers[2] == short[2].removesuffix(b"\n")
    assert len(answers[1]) > 1000
    assert line[3].count("longer than search.max_source_length") == 1
    assert max(line[1], word[1]) - short[1] < 300 << 10


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.fault("TX3", "TX4", "TX6", "TX7", "TX10", "TX11", "TX12", "TX13", "TX14", "TX15", "TX16", "TX17", "X6")
def test_training_on_all_of_it(tmp_path: Path, cli: Cli) -> None:
    """Every valid file of the matrix added to the corpus: what is left out is counted, nothing strange is learned."""
    project = write_project(tmp_path / "own")
    contents = [case.data.decode() for case in PLAIN.values() if case.valid]
    added = "".join(f"{content}\n" for content in contents).split("\n")[:-1]
    source, target = project / "train.en", project / "train.de"
    source.write_bytes(source.read_bytes() + "".join(f"{line}\n" for line in added).encode())
    target.write_bytes(target.read_bytes() + b"Ein Hund.\n" * len(added))
    arguments = train_arguments(project, project / "run", "training.max_updates=1", "tokenizer.vocabulary=200")
    outcome = cli(*arguments)
    assert outcome.code == 0, outcome
    seen = [line.translate(dict.fromkeys(map(ord, CONTROLS), " ")) for line in added]
    blank = sum(not line.strip() for line in seen)
    long = sum(len(line.split()) > 256 or len(line) > 20 * 256 for line in seen)
    controls = sum(line.count(control) for line in added for control in CONTROLS)
    kept = 288 + len(added) - blank - long
    counts = (
        f"{288 + len(added)} pairs read, {blank} blank, {long} too long (> 256), {controls} control characters replaced"
    )
    assert f"data: {counts}, {kept} kept\n" in outcome.err
    assert (blank, long) != (0, 0)
    assert "\x1b" not in outcome.err
    learned = tokenizer.load(project / "run" / "tokenizer").source
    pieces = learned.pieces(range(4, learned.size))
    assert not set("".join(pieces)) & set(CONTROLS + SEPARATORS + "\r\t\u00a0\u3000")
    assert all(unicodedata.is_normalized("NFC", piece) for piece in pieces)
    assert not set(learned.encode("<unk> </s> <pad> <s>")) & {0, 1, 2}


@pytest.mark.fault("M1", "TX12")
def test_training_beside_a_million_characters(tmp_path: Path) -> None:
    """A long line and a long word are left out, counted, and take no memory to speak of."""
    commands = []
    for name, lines in (("short", ("short", "short")), ("long", (f"{GOOD} " * 42_000, "x" * 10**6))):
        project = write_project(tmp_path / name)
        with (project / "train.en").open("a") as english, (project / "train.de").open("a") as german:
            english.writelines(f"{line}\n" for line in lines)
            german.write("Ein Hund.\nEin Hund.\n")
        commands.append((train_arguments(project, project / "run", "training.max_updates=1"), Path(os.devnull)))
    short, long = forked(tmp_path / "out", commands)
    assert (short[0], long[0]) == (0, 0), long[3]
    assert "290 pairs read, 0 blank, 0 too long (> 256)" in short[3]
    assert "290 pairs read, 0 blank, 2 too long (> 256)" in long[3]
    assert long[1] - short[1] < 300 << 10
