"""What the scripts that fetch data share: checksums published or trusted, tar archives read line by line."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import os
import signal
import time
from pathlib import Path
from types import ModuleType

import pytest
from tars import archive_of

SCRIPTS = Path(__file__).parents[2] / "scripts"
TEXT = gzip.compress(b"not much of a corpus\n")


@pytest.fixture
def fetching(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("fetching")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What the public home of a file looks like to urllib."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "a.tgz").write_bytes(TEXT)
    return tmp_path / "home" / "a.tgz"


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_published_checksum_is_asked_of_every_file(
    fetching: ModuleType, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], algorithm: str
) -> None:
    right = fetching.Origin("a.tgz", home.as_uri(), algorithm, hashlib.new(algorithm, TEXT).hexdigest())
    sums = fetching.Sums(tmp_path / "out")
    path = fetching.obtain(right, sums, None, "a.tgz")
    assert path == tmp_path / "out" / "a.tgz" and path.read_bytes() == TEXT and not sums.path.exists()
    home.unlink()  # not needed again
    assert fetching.obtain(right, sums, None, "a.tgz") == path
    assert "trusted" not in capsys.readouterr().err

    home.write_bytes(TEXT + b"!")
    path.write_bytes(b"")
    with pytest.raises(fetching.Failure, match=r"a\.tgz: its (SHA-256|MD5) is .*, not ") as failure:
        fetching.obtain(right, sums, None, "a.tgz")
    assert failure.value.code == 3 and path.read_bytes() == b""
    assert {file.name for file in path.parent.iterdir()} == {"a.tgz"}


def test_without_one_the_first_file_is_trusted_and_later_ones_must_be_the_same(
    fetching: ModuleType, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin, sums = fetching.Origin("a.tgz", home.as_uri()), fetching.Sums(tmp_path / "out")
    fetching.obtain(origin, sums, None, "a.tgz")
    found = hashlib.sha256(TEXT).hexdigest()
    assert sums.path.read_text() == f"{found}  a.tgz\n"  # a line of the program sha256sum
    told = capsys.readouterr().err
    assert "no published checksum of it is known" in told and found in told

    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "a.tgz").write_bytes(b"something else")
    with pytest.raises(fetching.Failure, match=f"not {found}"):
        fetching.obtain(origin, sums, tmp_path / "copy", "a.tgz")
    (tmp_path / "copy" / "a.tgz").write_bytes(TEXT)
    assert fetching.obtain(origin, sums, tmp_path / "copy", "a.tgz") == tmp_path / "copy" / "a.tgz"
    assert "trusted" not in capsys.readouterr().err


@pytest.mark.parametrize("damaged", [b"<html>", TEXT[:-9], TEXT[:-8] + bytes(8)], ids=["page", "part", "spoilt"])
def test_what_is_no_whole_file_is_not_trusted(fetching: ModuleType, home: Path, tmp_path: Path, damaged: bytes) -> None:
    home.write_bytes(damaged)
    sums = fetching.Sums(tmp_path / "out")
    with pytest.raises(fetching.Failure, match="is not a whole gzip file"):
        fetching.obtain(fetching.Origin("a.tgz", home.as_uri()), sums, None, "a.tgz")
    assert not sums.known()


def test_a_copy_that_lacks_the_file(fetching: ModuleType, home: Path, tmp_path: Path) -> None:
    with pytest.raises(fetching.Failure, match="is missing"):
        fetching.obtain(fetching.Origin("a.tgz", home.as_uri()), fetching.Sums(tmp_path), tmp_path / "home2", "a.tgz")


def test_remembered_files_are_held_until_they_change(fetching: ModuleType, tmp_path: Path) -> None:
    sums = fetching.Sums(tmp_path)
    (tmp_path / "a b").write_bytes(TEXT)
    assert not sums.hold(["a b"])
    sums.remember({"a b": hashlib.sha256(TEXT).hexdigest()})
    sums.remember({"c": "0" * 64})
    assert sums.hold(["a b"]) and not sums.hold(["a b", "c"])
    (tmp_path / "a b").write_bytes(b"")
    assert not sums.hold(["a b"])


@pytest.mark.parametrize("text", [b"what is this\n", b"\xff\n"])
def test_a_spoilt_list_of_checksums_is_refused(fetching: ModuleType, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "SHA256SUMS").write_bytes(text)
    with pytest.raises(fetching.Failure, match="SHA256SUMS: is not a list of checksums"):
        fetching.Sums(tmp_path).known()


def test_a_signal_leaves_nothing_half_downloaded(
    fetching: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with fetching.Telling("get", tmp_path) as telling, fetching.replacing(tmp_path / "archive") as temporary:
        temporary.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    assert telling.code == 143 and capsys.readouterr().err == "get: error: stopped; run it again to continue\n"
    assert not list(tmp_path.iterdir()) and signal.getsignal(signal.SIGTERM) == before


def test_lines_of_several_files_side_by_side(fetching: ModuleType, tmp_path: Path) -> None:
    """Only LF ends a line, and the last one may have none."""
    archive = archive_of(tmp_path / "a.tgz", {"x/a.en": b"one\r\n\ntwo\xe2\x80\xa8\n", "./a.de": b"eins\n\nzwei"})
    lines = list(fetching.parallel_lines((archive, "x/a.en"), (archive, "a.de")))
    assert lines == [(b"one\r", b"eins"), (b"", b""), (b"two\xe2\x80\xa8", b"zwei")]


def test_sides_of_unequal_length_are_refused(fetching: ModuleType, tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.tgz", {"a.en": b"one\ntwo\n", "a.de": b"eins\n"})
    for first, second in (("a.en", "a.de"), ("a.de", "a.en")):
        with pytest.raises(fetching.Failure, match=r"a\.de ends before line 2"):
            list(fetching.parallel_lines((archive, first), (archive, second)))


def test_what_is_no_whole_archive_is_refused(fetching: ModuleType, tmp_path: Path) -> None:
    noise = hashlib.shake_256(b"").digest(200_000)  # does not get smaller, so that half of it is missing below
    whole = archive_of(tmp_path / "a.tgz", {"a": noise}).read_bytes()
    for damaged in (b"", b"<html>", whole[: len(whole) // 2]):
        (tmp_path / "b.tgz").write_bytes(damaged)
        with pytest.raises(fetching.Failure, match=r"b\.tgz: is not a whole tar archive") as failure:
            fetching.text_of(tmp_path / "b.tgz", "a")
        assert failure.value.code == 3
    with pytest.raises(fetching.Failure, match="has no file b"):
        fetching.text_of(tmp_path / "a.tgz", "b")
    with pytest.raises(fetching.Failure, match="a is not UTF-8"):
        fetching.text_of(tmp_path / "a.tgz", "a")


def test_segments(fetching: ModuleType) -> None:
    text = '<doc>\n<seg id="1"> A &amp; B. </seg>\n<hl><seg id="2">C</seg></hl>\n<seg id="3"></seg>\n<p>D</p>\n'
    assert fetching.segments(text) == ["A &amp; B.", "C", ""]
