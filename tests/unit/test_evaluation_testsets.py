"""sacreBLEU's named test sets: found where it keeps them, never fetched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NO_SOCKETS = """
import os, socket

def refuse(*arguments, **named):
    os.write(2, b"a socket was opened")
    os._exit(99)

socket.socket.__init__ = socket.create_connection = socket.getaddrinfo = refuse
"""
SGML = """<srcset setid="newstest2014"><doc docid="d" genre="news" origlang="en">
<seg id="1">{}</seg>
<seg id="2">{}</seg>
</doc></srcset>
"""
XML = """<?xml version='1.0' encoding='utf-8'?>
<dataset id="newstest2021"><doc id="d" origlang="en">
<src lang="en"><p><seg id="1">One  dog.</seg><seg id="2">Two.</seg></p></src>
<ref lang="de" translator="A"><p><seg id="1">Ein Hund.</seg><seg id="2">Zwei.</seg></p></ref>
<ref lang="de" translator="B"><p><seg id="1">1 Hund.</seg><seg id="2">2.</seg></p></ref>
</doc></dataset>
"""


def put(path: Path, text: str) -> None:
    """A file in a folder that need not be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What sacreBLEU would have left of one set in SGML, of one in XML, and of a download that broke."""
    folder = tmp_path_factory.mktemp("cache")
    put(folder / "wmt14" / "raw" / "wmt14.test-filtered.tgz", "unpacked already")
    put(folder / "wmt14" / "raw" / "test" / "newstest2014-deen-src.en.sgm", SGML.format("A dog.", "A tree."))
    put(folder / "wmt14" / "raw" / "test" / "newstest2014-deen-ref.de.sgm", SGML.format("Ein Hund.", "Ein Baum."))
    put(folder / "wmt21" / "raw" / "wmt21.test.tgz", "unpacked already")
    put(folder / "wmt21" / "raw" / "test" / "newstest2021.en-de.xml", XML)
    put(folder / "wmt21" / "raw" / "test" / "newstest2021.de-en.xml", "<dataset>")
    put(folder / "wmt16" / "raw" / "wmt16.test.tgz", "")
    return folder


def find(cache: Path, name: str, pair: str) -> list[str]:
    """In a process of its own, because sacreBLEU reads SACREBLEU once: the source and references, or the error."""
    code = f"""{NO_SOCKETS}
import sys
from s2s.errors import S2SError
from s2s.evaluation.testsets import named_set
try:
    source, references = named_set(*sys.argv[1:])
    print(source, *references, sep="\\n")
except S2SError as error:
    print(error.code, error, sep="\\n")
"""
    environment = os.environ | {"SACREBLEU": str(cache)}
    line = [sys.executable, "-c", code, name, pair]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_set_with_two_files(cache: Path) -> None:
    for _ in range(2):  # once unpacked, once found
        source, reference = (Path(line) for line in find(cache, "wmt14", "en-de"))
        assert source.read_text() == "A dog.\nA tree.\n"
        assert reference.read_text() == "Ein Hund.\nEin Baum.\n"


@pytest.mark.parametrize(("name", "translators"), [("wmt21", "A"), ("wmt21/AB", "AB")])
def test_a_set_with_the_references_of_that_name(cache: Path, name: str, translators: str) -> None:
    folder, stem = cache / name, name.replace("/", "_")
    if name != "wmt21":
        put(folder / "raw" / f"{stem}.test.tgz", "unpacked already")
        put(folder / "raw" / "test" / "newstest2021.en-de.xml", XML)
    found = [Path(line) for line in find(cache, name, "en-de")]
    assert found[0].read_text() == "One dog.\nTwo.\n"
    right = {"A": "Ein Hund.\nZwei.\n", "B": "1 Hund.\n2.\n"}
    assert sorted(path.read_text() for path in found[1:]) == sorted(right[one] for one in translators)


@pytest.mark.parametrize(
    ("name", "pair", "code", "words"),
    [
        ("wmt15", "en-de", 3, "fetch it: sacrebleu --download wmt15 --language-pair en-de"),
        ("wmt16", "en-de", 3, "is not there"),  # a file without content, as a broken download leaves it
        ("wmt21", "de-en", 3, "cannot be used"),
        ("wmt99", "en-de", 2, "sacreBLEU knows no wmt99"),
        ("wmt14", "en-zh", 2, "wmt14 has no en-zh; it has cs-en, de-en"),
    ],
)
def test_what_is_not_there(cache: Path, name: str, pair: str, code: int, words: str) -> None:
    found_code, message = find(cache, name, pair)
    assert int(found_code) == code
    assert words in message
