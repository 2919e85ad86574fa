"""What an attacker might put in a text, a name, a settings file or a cache: nothing runs and nothing leaks."""

from __future__ import annotations

import ast
import html.parser
import json
import os
import pickle
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

import pytest
from harness import Cli, assert_error, finish, start, train_arguments, write_project
from packaging.requirements import Requirement
from packaging.version import Version

from s2s.data import shards, text
from s2s.data.shards import Example, open_corpus, write
from s2s.data.text import OutputFile
from s2s.errors import DataError, S2SError

ROOT = Path(__file__).parents[2]
ONE_UPDATE = "training.max_updates=1"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A project that a test may spoil."""
    return write_project(tmp_path / "own")


# --- pickles (X1) -----------------------------------------------------------------------------------------------------


class Payload:
    """Makes a directory when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture(params=[0, 4], ids=["text", "binary"])
def payload(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    """A pickle that leaves ``marker`` behind in ``tmp_path``, which has been tried."""
    marker = tmp_path / "marker"
    data = pickle.dumps(Payload(marker), protocol=request.param)
    pickle.loads(data)  # noqa: S301 - it is ours, and the tests below mean nothing unless it works
    marker.rmdir()
    return data


@pytest.mark.fault("X1", "C5")
@pytest.mark.parametrize("name", ["rnn.yaml", "train.en", "train.de", "valid.en", "test.de", "train.align", "run"])
def test_pickles_to_train_on_run_nothing(own: Path, tmp_path: Path, cli: Cli, payload: bytes, name: str) -> None:
    """In the place of every file that `s2s train` is given by name; a run to start from too."""
    (own / "train.align").write_text("0-0\n" * 288)
    (own / "test.de").write_bytes((own / "valid.de").read_bytes())
    (own / name).write_bytes(payload)
    settings = [f"data.train.links={own}/train.align", f"data.test.target={own}/test.de"]
    settings += [f"init_from={own}/run"] * (name == "run")
    outcome = cli(*train_arguments(own, tmp_path / "new", ONE_UPDATE, *settings))
    assert outcome.code in ((0, 3) if name == "test.de" else (2, 3, 4)), outcome  # a test set is read when it is used
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "marker").exists()


@pytest.mark.fault("X1", "C5")
def test_pickles_in_the_cache_run_nothing(own: Path, tmp_path: Path, cli: Cli, payload: bytes) -> None:
    """Every file of the cache in turn; what is damaged is made again, to the same bytes. Locks have none to read."""
    time.sleep(0.2)  # or some of the texts were too young for their digests to be kept by the first training
    assert cli(*train_arguments(own, own / "first", ONE_UPDATE)).code == 0
    files = (path for path in (own / ".cache").rglob("*") if path.is_file() and path.suffix != ".lock")
    kept = {path: path.read_bytes() for path in files}
    assert len(kept) > 20
    for path in kept:
        path.write_bytes(payload)
    outcome = cli(*train_arguments(own, own / "second", ONE_UPDATE))
    assert outcome.code == 0, outcome
    assert {path: path.read_bytes() for path in kept} == kept
    assert not (tmp_path / "marker").exists()


@pytest.mark.fault("X1", "C5")
def test_pickles_to_translate_and_score_run_nothing(finished: Path, tmp_path: Path, cli: Cli, payload: bytes) -> None:
    path = tmp_path / "pickle"
    path.write_bytes(payload)
    for arguments in (
        ("translate", "--model", finished, path),
        ("eval", "--hypotheses", path, "--reference", path),
        ("eval", "--model", finished, "--source", path, "--reference", path),
        ("translate", "--model", path),
        ("config", "check", "-c", path),
    ):
        outcome = cli(*arguments)
        assert outcome.code in (0, 2, 3, 4), outcome
        assert "Traceback" not in outcome.err
    assert not (tmp_path / "marker").exists()


# --- names that lead elsewhere (X3) -----------------------------------------------------------------------------------


@pytest.mark.fault("X3")
@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "/dev/zero", "..", "", "below/secret"])
def test_a_corpus_reads_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    """The description of a cached corpus names its files; what is not one of them is not even opened."""
    write(tmp_path / "corpus", [Example("a", "b", [4], [5], 1)], vocabulary=6)
    (tmp_path / "secret").write_text("secret")
    meta = json.loads((tmp_path / "corpus" / "meta.json").read_text())
    meta["files"] = {name: {"bytes": 6, "sha256": "0" * 64}} | meta["files"]
    (tmp_path / "corpus" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(DataError, match="is damaged: it names files that are not its own"):
        open_corpus(tmp_path / "corpus")


@pytest.mark.fault("X3", "X8")
def test_a_pipe_in_the_cache_makes_nobody_wait(own: Path, cli: Cli) -> None:
    assert cli(*train_arguments(own, own / "first", ONE_UPDATE)).code == 0
    (ids,) = (own / ".cache").glob("data-*/source_ids.bin")
    ids.unlink()
    os.mkfifo(ids)
    outcome = finish(start(train_arguments(own, own / "second", ONE_UPDATE)))
    assert outcome.code == 0, outcome
    assert "is damaged" in outcome.err


# --- pages and terminals (X4, X5, X6) ---------------------------------------------------------------------------------

HOSTILE = ["<script>alert(1)</script>", '"onmouseover="x', "'", "&amp;", "</title></svg>", "]]>", "a\u202eb", "{{7*7}}"]


class Seen(html.parser.HTMLParser):
    """The elements and attributes that a browser would make."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.mark.fault("X4")
def test_text_makes_no_element_in_a_picture(own: Path, cli: Cli) -> None:
    for name in ("train.en", "train.de"):
        with (own / name).open("a") as file:
            file.write(f"{' '.join(HOSTILE)}\n" * 3)
    settings = (ONE_UPDATE, "tokenizer={kind: whitespace}")
    assert cli(*train_arguments(own, own / "run", *settings)).code == 0
    picture = own / "picture.svg"
    outcome = cli("translate", "--model", own / "run", "--attention", picture, stdin=" ".join(HOSTILE).encode())
    assert outcome.code == 0, outcome
    content = picture.read_text(encoding="utf-8")
    seen = Seen()
    seen.feed(content)
    assert seen.tags <= {"svg", "title", "desc", "style", "g", "rect", "text", "line", "path"}
    assert not [name for name in seen.attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in content  # the words are there, as words
    assert not re.search(r"(?:src|href)=|url\(|@import", content)


def careless_templates(source: str) -> list[str]:
    """Uses of Jinja2 that would let text become HTML: an environment without autoescape, a template made of text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        escapes = [word.value for word in node.keywords if word.arg == "autoescape"]
        if name == "Environment" and not any(
            isinstance(value, ast.Constant) and value.value is True for value in escapes
        ):
            found.append(f"line {node.lineno}: Environment without autoescape=True")
        constant = all(isinstance(argument, ast.Constant) for argument in node.args)
        if name in ("Template", "from_string", "Markup") and not constant:
            found.append(f"line {node.lineno}: {name} of text that is not a constant")
    return found


THE_GATE = {"pages.py": ["Markup of text that is not a constant"] * 2}
"""The one place where charts and heat maps, which escape the words in them (X4), come into a page as what they are: the
style sheet of both, and `embedded`, which takes nothing that does not begin like one of them. All else is escaped."""


@pytest.mark.fault("X5")
def test_templates_escape() -> None:
    assert careless_templates("jinja2.Environment(loader=x)") and careless_templates("Environment(autoescape=False)")
    assert careless_templates("environment.from_string(text)") and careless_templates("Markup(f'<b>{word}')")
    assert not careless_templates("jinja2.Environment(autoescape=True).from_string('<b>{{ word }}</b>')")
    for path in (ROOT / "s2s").rglob("*.py"):
        found = careless_templates(path.read_text(encoding="utf-8"))
        assert [line.partition(": ")[2] for line in found] == THE_GATE.get(path.name, []), (path, found)


@pytest.mark.fault("X6")
def test_names_do_nothing_to_a_terminal(tmp_path: Path, cli: Cli) -> None:
    """Files, folders, runs and settings with escape sequences and line feeds in their names, right and wrong ones."""
    project = write_project(tmp_path / "a\x1b[31m\nb")
    config = project / "c\x1b]0;x\x07.yaml"
    config.write_bytes((project / "rnn.yaml").read_bytes())
    run, translated = project / "run\x9b2J", project / "out\x1b[0m"
    train = ("train", "--config", config, "--run-dir", run, ONE_UPDATE)
    commands: list[tuple[int, tuple[str | Path, ...]]] = [
        (0, train),
        (0, train),
        (2, (*train, "seed=2")),
        (2, (*train, "model.dr\x1b[31mopout=\x1b[32m1")),
        (2, (*train[:4], f"{run}-2", f"data.test.source={project}/none\x1b[0m")),
        (3, ("translate", "--model", run, project / "none\x1b[0m")),
        (0, ("translate", "--model", run, project / "valid.en", "--output", translated)),
        (2, ("translate", "--model", run, project / "valid.en", "--output", translated)),
        (4, ("translate", "--model", project / "none\x1b[0m")),
        (0, ("eval", "--model", run)),
        (0, ("eval", "--hypotheses", translated, "--reference", project / "valid.de")),
        (3, ("eval", "--hypotheses", translated, "--reference", project / "train.de")),
        (0, ("config", "check", "--config", config)),
        (2, ("config", "check", "--config", f"{config}-2")),
        (0, ("config", "new", project / "train.en", project / "train.de", "--output", project / "n\x1b[0m.yaml")),
    ]
    for code, arguments in commands:
        outcome = cli(*arguments)
        assert outcome.code == code, (arguments, outcome)
        shown = outcome.out.decode() + outcome.err
        assert not set(shown) & {"\x1b", "\x07", "\x9b", "\r"}, (arguments, outcome)
        assert all(line.startswith("s2s: error: ") for line in outcome.err.splitlines()[-1:] if code), outcome


# --- sockets, files, secrets (X7, X8, X11) ----------------------------------------------------------------------------

SECRET = "correct-horse-battery-staple"

# Runs commands in one process, which dies where it opens a socket, and tells the files that it opened to write.
WATCHED = """
import json, os, sys
written = []
def watch(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        os.write(2, f"{event} {arguments}".encode())
        os._exit(99)
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        if isinstance(arguments[0], (str, bytes)):
            written.append((os.fsdecode(arguments[0]), arguments[2]))
sys.addaudithook(watch)
from s2s.cli import run
codes = [run(arguments) for arguments in json.loads(sys.argv[1])]
json.dump((codes, written), open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[Path, int]]]:
    """A project in which everything was done once, and the files that were opened to write, with their flags."""
    folder = tmp_path_factory.mktemp("watched")
    project = write_project(folder / "project")
    for name in ("home", "temporary"):
        (folder / name).mkdir()
    commands = [
        train_arguments(project, project / "run", "training.max_updates=3", "training.save_every=1"),
        ["translate", "--model", str(project / "run"), str(project / "valid.en"), "--output", str(project / "out.de")],
        ["eval", "--model", str(project / "run"), "--output", str(project / "eval.de")],
    ]
    temporary = str(folder / "temporary")
    extra = {"HOME": str(folder / "home"), "TMPDIR": temporary, "PYTHONDONTWRITEBYTECODE": "1", "S2S_TOKEN": SECRET}
    line = [sys.executable, "-c", WATCHED, json.dumps(commands), str(folder / "seen")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "AWS_SECRET_ACCESS_KEY": SECRET} | extra
    ended = subprocess.run(line, env=environment, capture_output=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    codes, written = json.loads((folder / "seen").read_text())
    assert codes == [0, 0, 0], ended.stderr.decode()
    return folder, [(Path(name), flags) for name, flags in written if name != str(folder / "seen")]


@pytest.mark.fault("X7")
def test_no_socket_is_opened(watched: tuple[Path, object]) -> None:
    """Training, translation and scoring came to their end in a process that a socket would have ended."""
    assert (watched[0] / "project" / "eval.de").read_bytes() == (watched[0] / "project" / "out.de").read_bytes()
    code = [
        sys.executable,
        "-c",
        WATCHED.replace("from s2s.cli import run", "import socket; socket.socket()"),
        "[]",
        "x",
    ]
    ended = subprocess.run(code, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr[:14]) == (99, b"socket.__new__")  # the watch does see one


@pytest.mark.fault("X8")
def test_files_are_written_beside_what_they_become(watched: tuple[Path, list[tuple[Path, int]]]) -> None:
    """Nothing in the shared folder for temporary files, nothing at home; temporary names are new files, not links."""
    folder, written = watched
    assert not [*(folder / "temporary").iterdir(), *(folder / "home").iterdir()]
    assert len(written) > 20
    outside = [(path, flags) for path, flags in written if not {folder / "project", Path("/dev")} & {*path.parents}]
    # The standard library tries whether it could write there, with a new file that it removes at once.
    assert all(path.parent == folder / "temporary" and flags & os.O_EXCL for path, flags in outside)
    ours = [(path, flags) for path, flags in written if path.name.startswith((".tmp-", ".s2s-"))]
    assert ours and all(flags & os.O_EXCL and flags & os.O_NOFOLLOW for _, flags in ours)


@pytest.mark.fault("X11")
def test_secrets_of_the_environment_are_not_kept(watched: tuple[Path, object]) -> None:
    files = [path for path in watched[0].rglob("*") if path.is_file() and path.name != "seen"]
    assert len(files) > 30
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.fault("X11", "YM14")
def test_settings_do_not_read_the_environment(own: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2S_TOKEN", SECRET)
    for name in ("$S2S_TOKEN", "${S2S_TOKEN}", "$(echo $S2S_TOKEN)", "~/x", "x%(S2S_TOKEN)s"):
        outcome = cli(*train_arguments(own, own / "run", f"data.train.source={name}"))
        assert_error(outcome, 3, f"{Path.cwd()}/{name}: no such file")
        assert SECRET not in outcome.err


def links_at(folder: Path, names: Iterable[str]) -> Path:
    """Symbolic links of these names to a file that must stay as it is."""
    precious = folder / "precious"
    precious.write_text("precious")
    for name in names:
        (folder / name).symlink_to(precious)
    return precious


@pytest.mark.fault("X8")
def test_guessed_names_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even who knows the name that a temporary file will have cannot lead its content elsewhere."""
    monkeypatch.setattr(text.secrets, "token_hex", lambda size: "0" * 2 * size)
    precious = links_at(tmp_path, [".s2s-0000000000000000", ".corpus-0000000000000000", "failed.partial"])
    with pytest.raises(S2SError, match="File exists"), OutputFile(tmp_path / "out"):
        pass
    assert shards.secrets is text.secrets
    with pytest.raises(FileExistsError):
        write(tmp_path / "corpus", [Example("a", "b", [4], [5], 1)], vocabulary=6)
    monkeypatch.setattr(text.secrets, "token_hex", lambda size: "1" * 2 * size)
    with pytest.raises(DataError, match=r"failed\.partial"), OutputFile(tmp_path / "failed") as output:
        output.write_line("text")
        raise DataError("x", "y")
    assert (tmp_path / "failed.partial").read_text() == "text\n" and not (tmp_path / "failed.partial").is_symlink()
    assert precious.read_text() == "precious"


# --- dependencies (X9) ------------------------------------------------------------------------------------------------


@pytest.mark.fault("X9")
@pytest.mark.parametrize(("name", "unsafe"), [("torch", "2.9.1"), ("pyyaml", "5.4.1"), ("safetensors", "0.4.5")])
def test_unsafe_versions_are_not_installed(name: str, unsafe: str) -> None:
    """The floors of pyproject.toml: below them are ways to run code from a file that is read."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        needed = [Requirement(line) for line in tomllib.load(file)["project"]["dependencies"]]
    (requirement,) = [each for each in needed if each.name.lower() == name]
    assert not requirement.specifier.contains(unsafe)
    assert requirement.specifier.contains(Version(metadata.version(name)).base_version)
