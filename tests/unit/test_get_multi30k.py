"""Fetching Multi30k: verified, atomic and repeatable, from a local copy and from a (pretended) home."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
TEXTS = {"val.en": b"A dog.\n", "tok-lc/val.lc.norm.tok.en": b"a dog .\n"}
COPY_NAMES = {"val.en": "raw/val.en.gz", "tok-lc/val.lc.norm.tok.en": "tok-lc/val.lc.norm.tok.en.gz"}


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as it is."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("get_multi30k")


@pytest.fixture
def script(whole: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module that expects only the two small texts above."""
    monkeypatch.setattr(whole, "CHECKSUMS", {name: hashlib.sha256(text).hexdigest() for name, text in TEXTS.items()})
    monkeypatch.delenv("S2S_DATA", raising=False)
    return whole


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A local copy in the layout of ``--from``."""
    for name, text in TEXTS.items():
        path = tmp_path / "copy" / "multi30k" / COPY_NAMES[name]
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(text))
    return tmp_path / "copy"


def written(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_copies_and_verifies(
    script: ModuleType, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--from", str(copy), "--out", str(tmp_path / "out")]) == 0
    assert written(tmp_path / "out") == TEXTS
    output = capsys.readouterr()
    assert output.out == ""
    assert "[2/2] tok-lc/val.lc.norm.tok.en: 8 bytes, verified" in output.err


def test_the_environment_variable_names_the_copy(
    script: ModuleType, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S2S_DATA", str(copy))
    assert script.main(["--out", str(tmp_path / "out")]) == 0
    assert written(tmp_path / "out") == TEXTS


def test_a_second_run_keeps_what_is_right_and_mends_the_rest(script: ModuleType, copy: Path, tmp_path: Path) -> None:
    arguments = ["--from", str(copy), "--out", str(tmp_path / "out")]
    assert script.main(arguments) == 0
    kept, spoilt = (tmp_path / "out" / name for name in TEXTS)
    spoilt.write_bytes(b"a do")
    (copy / "multi30k" / COPY_NAMES["val.en"]).unlink()  # not needed again
    before = kept.stat()
    assert script.main(arguments) == 0
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert written(tmp_path / "out") == TEXTS


def spoil_text(path: Path) -> None:
    path.write_bytes(gzip.compress(b"A cat.\n"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def replace_by_a_page(path: Path) -> None:
    path.write_bytes(b"<html>not found</html>")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (spoil_text, "not written"),
        (truncate, "is not a whole gzip file"),
        (replace_by_a_page, "is not a whole gzip file"),
        (Path.unlink, "is missing"),
    ],
)
def test_wrong_data_is_refused(
    script: ModuleType,
    copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    message: str,
) -> None:
    damage(copy / "multi30k" / COPY_NAMES["val.en"])
    assert script.main(["--from", str(copy), "--out", str(tmp_path / "out")]) == 3
    assert written(tmp_path / "out") == {}
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert "val.en.gz: " in error[0]
    assert message in error[0]


def test_a_folder_without_multi30k(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--from", str(tmp_path / "a\x1bb"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "a\\x1bb: has no folder multi30k" in error


def test_what_cannot_be_written(
    script: ModuleType, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("a file, not a folder")
    assert script.main(["--from", str(copy), "--out", str(tmp_path / "out")]) == 6
    assert "get_multi30k: error: " in capsys.readouterr().err


def test_an_interrupted_write_leaves_nothing(
    script: ModuleType, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    assert script.main(["--from", str(copy), "--out", str(tmp_path / "out")]) == 130
    assert written(tmp_path / "out") == {}


def test_downloads_from_its_home(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / "raw").mkdir(parents=True)
    (home / "tok").mkdir()
    (home / "raw" / "val.en.gz").write_bytes(gzip.compress(TEXTS["val.en"]))
    (home / "tok" / "val.lc.norm.tok.en").write_bytes(TEXTS["tok-lc/val.lc.norm.tok.en"])
    monkeypatch.setattr(script, "HOME", home.as_uri())
    assert script.main(["--out", str(tmp_path / "out")]) == 0
    assert written(tmp_path / "out") == TEXTS


def test_a_failed_download(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "HOME", (tmp_path / "nowhere").as_uri())
    assert script.main(["--out", str(tmp_path / "out")]) == 6
    assert "cannot be downloaded" in capsys.readouterr().err


@pytest.mark.skipif("S2S_DATA" not in os.environ, reason="S2S_DATA does not name the data folder")
def test_the_real_corpus(whole: ModuleType, tmp_path: Path) -> None:
    assert whole.main(["--from", os.environ["S2S_DATA"], "--out", str(tmp_path)]) == 0
    files = written(tmp_path)
    assert set(files) == set(whole.CHECKSUMS)
    for prefix, suffix in (("", ""), ("tok-lc/", ".lc.norm.tok")):
        for split, lines in (("train", 29000), ("val", 1014), ("test_2016_flickr", 1000)):
            for language in ("en", "de"):
                assert files[f"{prefix}{split}{suffix}.{language}"].count(b"\n") == lines


def test_it_needs_nothing_but_python() -> None:
    """``-S``: an interpreter that sees no installed package."""
    alone = [sys.executable, "-S", str(SCRIPTS / "get_multi30k.py"), "--help"]
    assert "--from" in subprocess.run(alone, capture_output=True, text=True, timeout=60, check=True).stdout
