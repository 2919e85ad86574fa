"""Fetch IWSLT 2014, German and English, prepared and split as published results have it.

    python scripts/get_iwslt14.py [--out data/iwslt14] [--from DIR] [--any-counts]

writes {train,valid,test}.{de,en}: tokenised by the rules of Moses, lower-cased, training pairs of 1 to 175 words a side
and at most 1.5 times as many on one side as on the other; every 23rd of these pairs is set aside for validation, and
the test set joins dev2010, dev2012 and tst2010 to tst2012. That is what fairseq's prepare-iwslt14.sh does before it
learns BPE: 160,239 / 7,283 / 6,750 pairs. Other numbers are refused, or with ``--any-counts`` told and accepted.

``--from`` (or the environment variable S2S_DATA) names a folder that has iwslt14/de-en.tgz. No checksum of that archive
by its publisher is known: the first one seen whole is trusted, its SHA-256 is kept in SHA256SUMS beside the texts, and
any later one has to be the same. Files that are there already and right are kept. Needs sacremoses, which s2s needs
too. The talks are TED's, for non-commercial use: https://wit3.fbk.eu.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path

from fetching import (
    EXIT_DATA,
    Failure,
    Origin,
    Sums,
    Telling,
    command_line,
    folder_of_copy,
    obtain,
    require_lines,
    segments,
    text_of,
    write,
)
from moses import is_clean, tokenise

ARCHIVE = Origin("de-en.tgz", "https://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz")
LANGUAGES = ("de", "en")
COUNTS = {"train": 160_239, "valid": 7_283, "test": 6_750}
NAMES = [f"{split}.{language}" for split in COUNTS for language in LANGUAGES]
TESTS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")

LONGEST, RATIO, EVERY = 175, 1.5, 23
ABOUT_TALKS = ("<url>", "<talkid>", "<keywords>")
"""What marks lines of the training text that are left out."""
ROUND_TEXT = ("<title>", "</title>", "<description>", "</description>")
"""What is taken off lines that stay."""

Pairs = list[tuple[str, str]]
Reader = Callable[[Path, str], list[str]]
"""The lines of one language in the archive."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what is not there yet; the exit code is 0, 2 (usage), 3 (wrong data) or 6 (system, network)."""
    parser = command_line("Fetch and prepare IWSLT 2014, German and English.", "data/iwslt14", "iwslt14")
    parser.add_argument("--any-counts", action="store_true", help="accept splits of other sizes than the published")
    options = parser.parse_args(arguments)
    with Telling("get_iwslt14", options.out) as told:
        sums = Sums(options.out)
        copy = folder_of_copy(options.copy, "iwslt14")
        if sums.hold(NAMES):
            print("all texts are already there", file=sys.stderr)
        else:
            archive = obtain(ARCHIVE, sums, copy, ARCHIVE.name)
            write_splits(splits(archive), sums, options.any_counts)
        print(f"IWSLT 2014 is in {options.out}", file=sys.stderr)
    return told.code


def splits(archive: Path) -> dict[str, Pairs]:
    """The pairs of every split, prepared."""
    talks = [pair for pair in prepared(archive, talk_lines) if is_clean(pair, LONGEST, RATIO)]
    return {
        "train": [pair for number, pair in enumerate(talks, start=1) if number % EVERY],
        "valid": talks[EVERY - 1 :: EVERY],
        "test": prepared(archive, test_lines),
    }


def prepared(archive: Path, read: Reader) -> Pairs:
    """Both sides of a text, tokenised and lower-cased."""
    sides = []
    for language in LANGUAGES:
        lines = read(archive, language)
        print(f"tokenising {len(lines):,} lines ({language})", file=sys.stderr)
        sides.append([line.lower() for line in tokenise(lines, language)])
    german, english = sides
    if len(german) != len(english):
        raise Failure(EXIT_DATA, f"{archive}: {len(german):,} German but {len(english):,} English lines; get it again")
    return list(zip(german, english, strict=True))


def talk_lines(archive: Path, language: str) -> list[str]:
    """The training text without what is said about the talks."""
    lines = text_of(archive, f"de-en/train.tags.de-en.{language}").removesuffix("\n").split("\n")
    spoken = [line for line in lines if not any(mark in line for mark in ABOUT_TALKS)]
    return [reduce(lambda text, mark: text.replace(mark, ""), ROUND_TEXT, line) for line in spoken]


def test_lines(archive: Path, language: str) -> list[str]:
    """The five test sets, one after the other, with plain apostrophes."""
    texts = [text_of(archive, f"de-en/IWSLT14.{name}.de-en.{language}.xml") for name in TESTS]
    return [line.replace("\u2019", "'") for text in texts for line in segments(text)]


def write_splits(pairs: dict[str, Pairs], sums: Sums, any_counts: bool) -> None:
    """Compare the sizes with the published ones, and write all files."""
    for split, published in COUNTS.items():
        require_lines(split, len(pairs[split]), published, any_counts, "--any-counts accepts it")
    texts = {
        f"{split}.{language}": "".join(f"{line}\n" for line in lines).encode()
        for split in COUNTS
        for language, lines in zip(LANGUAGES, zip(*pairs[split], strict=True), strict=True)
    }
    for name, text in texts.items():
        write(sums.folder / name, text)
    sums.remember({name: hashlib.sha256(text).hexdigest() for name, text in texts.items()})


if __name__ == "__main__":
    sys.exit(main())
