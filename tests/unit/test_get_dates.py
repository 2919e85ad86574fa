"""Unpacking the corpus of dates: verified, repeatable, and refused with one line where something is wrong."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
TEXTS = {"dev.src": b"may 9, 1998\n5/9/98\n", "dev.tgt": b"1998-05-09\n1998-05-09\n"}


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as it is."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("get_dates")


@pytest.fixture
def script(whole: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module that expects only the two small texts above."""
    monkeypatch.setattr(whole, "CHECKSUMS", {name: hashlib.sha256(text).hexdigest() for name, text in TEXTS.items()})
    monkeypatch.delenv("S2S_DATA", raising=False)
    return whole


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder for ``--from``."""
    (tmp_path / "copy" / "dates").mkdir(parents=True)
    for name, text in TEXTS.items():
        (tmp_path / "copy" / "dates" / f"{name}.gz").write_bytes(gzip.compress(text))
    return tmp_path / "copy"


def written(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.glob("*")}


def test_unpacks_and_verifies_and_keeps_what_is_right(script: ModuleType, copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert script.main(["--from", str(copy), "--out", str(out)]) == 0
    assert written(out) == TEXTS
    (out / "dev.src").write_bytes(b"may")
    (copy / "dates" / "dev.tgt.gz").unlink()  # not needed again
    assert script.main(["--from", str(copy), "--out", str(out)]) == 0
    assert written(out) == TEXTS


def test_the_environment_variable_names_the_folder(
    script: ModuleType, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S2S_DATA", str(copy))
    assert script.main(["--out", str(tmp_path / "out")]) == 0
    assert written(tmp_path / "out") == TEXTS


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(gzip.compress(b"may 8, 1998\n")), "not written"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is not a whole gzip file"),
        (lambda path: path.write_bytes(b"<html>"), "is not a whole gzip file"),
        (Path.unlink, "is missing"),
    ],
)
def test_wrong_data_is_refused(
    script: ModuleType,
    copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    message: str,
) -> None:
    damage(copy / "dates" / "dev.src.gz")
    assert script.main(["--from", str(copy), "--out", str(tmp_path / "out")]) == 3
    assert written(tmp_path / "out") == {}
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("get_dates: error: ") and "dev.src.gz: " in error and message in error


def test_without_a_folder(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--out", str(tmp_path / "out")]) == 2
    assert "with --from" in capsys.readouterr().err


def test_what_cannot_be_written(script: ModuleType, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file, not a folder")
    assert script.main(["--from", str(copy), "--out", str(tmp_path / "out")]) == 6


@pytest.mark.skipif("S2S_DATA" not in os.environ, reason="S2S_DATA does not name the data folder")
def test_the_real_corpus(whole: ModuleType, tmp_path: Path) -> None:
    assert whole.main(["--from", os.environ["S2S_DATA"], "--out", str(tmp_path)]) == 0
    for split, pairs in (("train", 37578), ("dev", 2000), ("test", 2000)):
        assert {(tmp_path / f"{split}.{side}").read_bytes().count(b"\n") for side in ("src", "tgt")} == {pairs}
