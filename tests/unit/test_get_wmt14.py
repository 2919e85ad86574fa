"""WMT 2014 from archives of a few lines: joined, verified, atomic and repeatable, raw and tokenised."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from types import ModuleType

import pytest
from tars import archive_of

SCRIPTS = Path(__file__).parents[2] / "scripts"

TEXTS = {
    "training-parallel-europarl-v7.tgz": {
        "training/europarl-v7.de-en.en": "It's late, isn't it?\n\nA\u2028B\n",
        "training/europarl-v7.de-en.de": "Es ist spät.\nLeer.\nA\n",
        "training/europarl-v7.fr-en.fr": "Autre chose.\n",
    },
    "training-parallel-commoncrawl.tgz": {
        "commoncrawl.de-en.en": "One & two.\n \n",
        "commoncrawl.de-en.de": "Eins & zwei.\nLeer.\n",
    },
    "training-parallel-nc-v9.tgz": {
        "training/news-commentary-v9.de-en.en": "Last.\n",
        "training/news-commentary-v9.de-en.de": "Zuletzt.\n",
    },
    "dev.tgz": {"dev/newstest2013.en": "Dev.\nEloped.\n", "dev/newstest2013.de": "Ent.\nWickelt.\n"},
    "test-full.tgz": {
        "test-full/newstest2014-deen-src.en.sgm": '<doc>\n<seg id="1">Full.</seg>\n<seg id="2">Fuller.</seg>\n</doc>\n',
        "test-full/newstest2014-deen-ref.de.sgm": '<doc>\n<seg id="1">Voll.</seg>\n<seg id="2">Voller.</seg>\n</doc>\n',
    },
    "test-filtered.tgz": {
        "test/newstest2014-deen-src.en.sgm": '<seg id="1">Full.</seg>\n',
        "test/newstest2014-deen-ref.de.sgm": '<seg id="1">Voll.</seg>\n',
    },
}
RAW = {
    "train.en": "It's late, isn't it?\nA\u2028B\nOne & two.\nLast.\n",
    "train.de": "Es ist spät.\nA\nEins & zwei.\nZuletzt.\n",
    "valid.en": "Dev.\nEloped.\n",
    "valid.de": "Ent.\nWickelt.\n",
    "test.en": "Full.\nFuller.\n",
    "test.de": "Voll.\nVoller.\n",
    "test-filtered.en": "Full.\n",
    "test-filtered.de": "Voll.\n",
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder for ``--from``."""
    for name, members in TEXTS.items():
        archive_of(tmp_path / "copy" / "wmt14" / name, {member: text.encode() for member, text in members.items()})
    return tmp_path / "copy"


@pytest.fixture
def script(copy: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module whose public homes are the archives above."""
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.delenv("S2S_DATA", raising=False)
    module = importlib.import_module("get_wmt14")

    def small(origin: tuple[str, str, str, str]) -> object:
        path = copy / "wmt14" / origin[0]
        checksum = hashlib.new(origin[2], path.read_bytes()).hexdigest()
        return module.Origin(path.name, path.as_uri(), origin[2], checksum)

    monkeypatch.setattr(module, "TRAINING", {small(origin): member for origin, member in module.TRAINING.items()})
    monkeypatch.setattr(module, "DEVELOPMENT", small(module.DEVELOPMENT))
    tests = {split: (small(origin), members) for split, (origin, members) in module.TESTS.items()}
    monkeypatch.setattr(module, "TESTS", tests)
    monkeypatch.setattr(module, "COUNTS", {"valid": 2, "test": 2, "test-filtered": 1})
    return module


def written(folder: Path) -> dict[str, str]:
    """Every text below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix in {".en", ".de"})
    return {path.relative_to(folder).as_posix(): path.read_bytes().decode() for path in files}


def test_the_texts_are_joined(
    script: ModuleType, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--from", str(copy), "--out", str(tmp_path / "out")]) == 0
    assert written(tmp_path / "out") == RAW
    told = capsys.readouterr().err
    assert "training-parallel-europarl-v7.tgz: 2 pairs; 1 with an empty side left out" in told
    assert "trusted" not in told


def test_tokenised_texts_are_added(
    script: ModuleType, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--from", str(copy), "--out", str(tmp_path / "out")]
    assert script.main(arguments) == 0
    for path in (copy / "wmt14").iterdir():
        path.unlink()  # not needed again
    assert script.main([*arguments, "--tokenised"]) == 0
    files = written(tmp_path / "out")
    assert set(files) == {*RAW, *(f"tok/{name}" for name in RAW)}
    assert files["tok/train.en"].split("\n")[0] == "It &apos;s late , isn &apos;t it ?"
    assert files["tok/train.de"] == "Es ist spät .\nA\nEins &amp; zwei .\nZuletzt .\n"
    assert all(files[f"tok/{name}"].count("\n") == text.count("\n") for name, text in RAW.items())
    capsys.readouterr()
    assert script.main([*arguments, "--tokenised"]) == 0
    assert capsys.readouterr().err.count("already there") == 8


def test_a_second_run_mends_only_what_is_spoilt(
    script: ModuleType, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--from", str(copy), "--out", str(tmp_path / "out")]
    assert script.main(arguments) == 0
    (tmp_path / "out" / "valid.de").write_bytes(b"")
    (copy / "wmt14" / "training-parallel-nc-v9.tgz").unlink()  # not needed again
    assert script.main(arguments) == 0
    assert written(tmp_path / "out") == RAW
    assert "valid: written" in capsys.readouterr().err


def test_archives_come_from_their_homes(script: ModuleType, tmp_path: Path) -> None:
    assert script.main(["--out", str(tmp_path / "out")]) == 0
    assert written(tmp_path / "out") == RAW
    assert set(TEXTS) < {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_another_archive_is_refused(
    script: ModuleType, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    archive_of(copy / "wmt14" / name, {member: text.encode() + b" " for member, text in TEXTS[name].items()})
    assert script.main(["--from", str(copy), "--out", str(tmp_path / "out")]) == 3
    assert f"{name}: its " in capsys.readouterr().err
    assert not set(written(tmp_path / "out")) >= set(RAW)


def test_other_sizes_are_refused(
    script: ModuleType,
    copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(script, "COUNTS", {"valid": 3000, "test": 3003, "test-filtered": 2737})
    assert script.main(["--from", str(copy), "--out", str(tmp_path / "out")]) == 3
    assert "valid: has 2 lines, not the published 3,000; not written" in capsys.readouterr().err


def test_what_it_expects_of_the_real_archives(monkeypatch: pytest.MonkeyPatch) -> None:
    """sacreBLEU, which is installed, knows the test sets too."""
    from sacrebleu.dataset import DATASETS

    monkeypatch.syspath_prepend(SCRIPTS)
    module = importlib.import_module("get_wmt14")
    for name, split in (("wmt14/full", "test"), ("wmt14", "test-filtered")):
        origin, members = module.TESTS[split]
        known = DATASETS[name]
        assert (known.md5, known.langpairs["en-de"]) == ([origin.checksum], list(members)) and origin.algorithm == "md5"
        assert known.data == [origin.url]
