"""Fetching IWSLT 2015: verified, counted and repeatable, from a local copy and from a (pretended) home."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
TEXTS = {"tst2012.en": b"One .\nTwo .", "tst2012.vi": b"M\xe1\xbb\x99t .\nHai .\n"}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module that expects only the two small texts above."""
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.delenv("S2S_DATA", raising=False)
    module = importlib.import_module("get_iwslt15")
    monkeypatch.setattr(module, "CHECKSUMS", {name: hashlib.sha256(text).hexdigest() for name, text in TEXTS.items()})
    monkeypatch.setattr(module, "COUNTS", {"tst2012": 2})
    return module


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder for ``--from``."""
    (tmp_path / "copy" / "iwslt15").mkdir(parents=True)
    for name, text in TEXTS.items():
        (tmp_path / "copy" / "iwslt15" / name).write_bytes(text)
    return tmp_path / "copy"


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*")}


def test_copies_and_verifies_and_keeps_what_is_right(script: ModuleType, copy: Path, tmp_path: Path) -> None:
    arguments = ["--from", str(copy), "--out", str(tmp_path / "out")]
    assert script.main(arguments) == 0
    assert written(tmp_path / "out") == TEXTS
    (tmp_path / "out" / "tst2012.vi").write_bytes(b"M")
    (copy / "iwslt15" / "tst2012.en").unlink()  # not needed again
    assert script.main(arguments) == 0
    assert written(tmp_path / "out") == TEXTS


@pytest.mark.parametrize(
    ("damage", "message"),
    [(lambda path: path.write_bytes(b"Mot .\n"), "its SHA-256 is "), (Path.unlink, "is missing")],
)
def test_wrong_data_is_refused(
    script: ModuleType,
    copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    message: str,
) -> None:
    damage(copy / "iwslt15" / "tst2012.en")
    assert script.main(["--from", str(copy), "--out", str(tmp_path / "out")]) == 3
    assert written(tmp_path / "out") == {}
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("get_iwslt15: error: ") and "tst2012.en: " in error and message in error


def test_other_numbers_of_lines_are_refused(
    script: ModuleType,
    copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(script, "COUNTS", {"tst2012": 3})
    assert script.main(["--from", str(copy), "--out", str(tmp_path / "out")]) == 3
    assert "tst2012.en: has 2 lines, not the published 3; not written" in capsys.readouterr().err


def test_a_folder_without_the_corpus(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--from", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "has no folder iwslt15" in capsys.readouterr().err


def test_downloads_from_its_home(
    script: ModuleType,
    copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(script, "HOME", (copy / "iwslt15").as_uri())
    assert script.main(["--out", str(tmp_path / "out")]) == 0
    assert written(tmp_path / "out") == TEXTS
    monkeypatch.setattr(script, "HOME", (copy / "nowhere").as_uri())
    assert script.main(["--out", str(tmp_path / "other")]) == 6
    assert "cannot be downloaded" in capsys.readouterr().err


def test_what_it_expects_of_the_real_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    module = importlib.import_module("get_iwslt15")
    assert module.COUNTS == {"train": 133317, "tst2012": 1553, "tst2013": 1268}
    assert set(module.CHECKSUMS) == {f"{split}.{language}" for split in module.COUNTS for language in ("en", "vi")}
    assert len({int(checksum, 16) for checksum in module.CHECKSUMS.values()}) == 6
