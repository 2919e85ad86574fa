"""IWSLT 2014: the talks tokenised, lower-cased, cleaned and split as published, by hand-worked lines."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from types import ModuleType

import pytest
from tars import archive_of

SCRIPTS = Path(__file__).parents[2] / "scripts"
TESTS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")

ABOUT = "<url>http://www.ted.com/1</url>\n<keywords>talks</keywords>\n<talkid>1</talkid>\n"
LINES = [
    ("<title>Über uns</title>", "<title>About us</title>"),
    ("<description>Es ist's, A & B hier.</description>", "<description>It's A & B here, yes.</description>"),
    ("Nein.", "No, not at all, never."),  # 2 tokens to 8
    ("", "Nothing."),
    ("Ja, ja!", "Yes!"),  # 4 tokens to 2
    ("Drei Wörter hier", "Two words"),  # 3 to 2 is 1.5
    *((f"Zeile {number} .", f"Line {number} .") for number in range(6, 50)),
    ("ein " * 175, "one " * 175),
    ("ein " * 176, "one " * 176),
]
KEPT = [
    ("über uns", "about us"),
    ("es ist &apos; s , a &amp; b hier .", "it &apos;s a &amp; b here , yes ."),
    ("drei wörter hier", "two words"),
    *((f"zeile {number} .", f"line {number} .") for number in range(6, 50)),
    (("ein " * 175).strip(), ("one " * 175).strip()),
]
SIZES = {"train": 46, "valid": 2, "test": 10}


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def side(pairs: list[tuple[str, str]], number: int) -> bytes:
    return "".join(f"{pair[number]}\n" for pair in pairs).encode()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder for ``--from``."""
    members = {}
    for number, language in enumerate(("de", "en")):
        members[f"de-en/train.tags.de-en.{language}"] = ABOUT.encode() + side(LINES, number)
        for name in TESTS:
            first = f"{name} isn\u2019t {language.upper()}."
            text = f'<doc>\n<seg id="1"> {first} </seg>\n<seg id="2">{number}</seg>\n</doc>\n'
            members[f"de-en/IWSLT14.{name}.de-en.{language}.xml"] = text.encode()
    archive_of(tmp_path / "copy" / "iwslt14" / "de-en.tgz", members)
    return tmp_path / "copy"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module that expects the small corpus above."""
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.delenv("S2S_DATA", raising=False)
    module = importlib.import_module("get_iwslt14")
    monkeypatch.setattr(module, "COUNTS", SIZES)
    return module


def test_the_published_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    counts = importlib.import_module("get_iwslt14").COUNTS
    assert counts == {"train": 160239, "valid": 7283, "test": 6750}
    assert (counts["train"] + counts["valid"]) // 23 == counts["valid"]


def test_the_texts_are_prepared_and_split(script: ModuleType, copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert script.main(["--from", str(copy), "--out", str(out)]) == 0
    files = written(out)
    assert set(files) == {"SHA256SUMS", *(f"{split}.{language}" for split in SIZES for language in ("de", "en"))}
    set_aside = [KEPT[22], KEPT[45]]
    for number, language in enumerate(("de", "en")):
        assert files[f"valid.{language}"] == side(set_aside, number)
        assert files[f"train.{language}"] == side([pair for pair in KEPT if pair not in set_aside], number)
    english = [f"{name.lower()} isn &apos;t en .\n1\n" for name in TESTS]
    assert files["test.en"] == "".join(english).encode()
    german = [f"{name.lower()} isn &apos; t de .\n0\n" for name in TESTS]
    assert files["test.de"] == "".join(german).encode()


def test_a_second_run_keeps_what_is_right_and_mends_the_rest(
    script: ModuleType, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--from", str(copy), "--out", str(tmp_path / "out")]
    assert script.main(arguments) == 0
    archive = (copy / "iwslt14" / "de-en.tgz").read_bytes()
    assert hashlib.sha256(archive).hexdigest() in capsys.readouterr().err  # trusted, and told
    before = written(tmp_path / "out")
    (copy / "iwslt14" / "de-en.tgz").unlink()  # not needed again
    assert script.main(arguments) == 0
    assert "already there" in capsys.readouterr().err
    (tmp_path / "out" / "train.de").write_bytes(b"")
    (copy / "iwslt14" / "de-en.tgz").write_bytes(archive)
    assert script.main(arguments) == 0
    assert written(tmp_path / "out") == before


def test_another_archive_than_the_first_is_refused(
    script: ModuleType, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--from", str(copy), "--out", str(tmp_path / "out")]
    assert script.main(arguments) == 0
    (tmp_path / "out" / "test.en").unlink()
    archive_of(copy / "iwslt14" / "de-en.tgz", {"de-en/other": b""})
    assert script.main(arguments) == 3
    assert "de-en.tgz: its SHA-256 is " in capsys.readouterr().err


def test_other_sizes_are_refused_unless_accepted(
    script: ModuleType,
    copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(script, "COUNTS", {**SIZES, "valid": 3})
    arguments = ["--from", str(copy), "--out", str(tmp_path / "out")]
    assert script.main(arguments) == 3
    assert "valid: has 2 lines, not the published 3; not written" in capsys.readouterr().err
    assert set(written(tmp_path / "out")) == {"SHA256SUMS"}
    assert script.main([*arguments, "--any-counts"]) == 0
    assert "valid: has 2 lines, not the published 3; accepted" in capsys.readouterr().err
    assert len(written(tmp_path / "out")) == 7


def test_downloads_from_its_home(
    script: ModuleType, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = script.ARCHIVE._replace(url=(copy / "iwslt14" / "de-en.tgz").as_uri())
    monkeypatch.setattr(script, "ARCHIVE", home)
    assert script.main(["--out", str(tmp_path / "out")]) == 0
    assert {"de-en.tgz", "train.de", "test.en"} < set(written(tmp_path / "out"))


@pytest.mark.parametrize(
    ("pair", "kept"),
    [
        (("a b", "c"), False),
        (("a b c", "d e"), True),
        (("a b", "c d e"), True),
        (("", ""), False),
        (("a", ""), False),
        (("a " * 176, "b " * 176), False),
        (("a" * 1000, "b"), True),
        (("a", "b" * 1001), False),
    ],
)
def test_what_cleaning_keeps(script: ModuleType, pair: tuple[str, str], kept: bool) -> None:
    assert script.is_clean(pair, 175, 1.5) is kept
