"""Fetch WMT 2014, English to German: 4.5 million training pairs, newstest2013 and newstest2014.

    python scripts/get_wmt14.py [--out data/wmt14] [--from DIR] [--tokenised]

writes, as raw cased text, train.{en,de} (Europarl v7, Common Crawl and News Commentary v9, one after the other, without
pairs of which a side is empty), valid.{en,de} (newstest2013, 3,000 pairs), test.{en,de} (newstest2014, 3,003) and
test-filtered.{en,de} (the 2,737 of the evaluation in 2014, on which Luong et al. report). ``--tokenised`` adds the same
files, tokenised by the rules of Moses, in tok/, for models of whole words: nine million lines take long, and need
sacremoses, which s2s needs too. Nothing else needs more than Python.

The archives (1.7 GB) are downloaded beside the texts, or read where ``--from`` (or the environment variable S2S_DATA)
names a folder that has them in wmt14/. Every one is verified by a published checksum. What is there already and right
is kept, and the archives may be deleted. Terms: https://statmt.org/wmt14/translation-task.html.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from fetching import (
    Origin,
    Sums,
    Telling,
    command_line,
    digest,
    folder_of_copy,
    obtain,
    parallel_lines,
    replacing,
    require_lines,
    segments,
    text_of,
)
from moses import tokenise

LANGUAGES = ("en", "de")

# SHA-256 as TensorFlow Datasets lists them (url_checksums/wmt14_translate.txt), MD5 as sacreBLEU does.
EUROPARL = Origin(
    "training-parallel-europarl-v7.tgz",
    "https://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz",
    checksum="0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e31836103d27d96e7",
)
COMMON_CRAWL = Origin(
    "training-parallel-commoncrawl.tgz",
    "https://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz",
    checksum="c7a74e2ea01ac6c920123108627e35278d4ccb5701e15428ffa34de86fa3a9e5",
)
NEWS_COMMENTARY = Origin(
    "training-parallel-nc-v9.tgz",
    "https://www.statmt.org/wmt14/training-parallel-nc-v9.tgz",
    checksum="cb8953f292298e6877ae433c98912b927cb0766b303f4540512ddd286c748485",
)
DEVELOPMENT = Origin(
    "dev.tgz",
    "http://data.statmt.org/wmt19/translation-task/dev.tgz",
    checksum="7a7deccf82ebb05ba508dba5eb21356492224e8f630ec4f992132b029b4b25e7",
)
TEST = Origin("test-full.tgz", "https://statmt.org/wmt14/test-full.tgz", "md5", "a8cd784e006feb32ac6f3d9ec7eb389a")
TEST_FILTERED = Origin(
    "test-filtered.tgz", "https://statmt.org/wmt14/test-filtered.tgz", "md5", "84c597844c1542e29c2aff23aaee4310"
)

TRAINING = {
    EUROPARL: "training/europarl-v7.de-en.{}",
    COMMON_CRAWL: "commoncrawl.de-en.{}",
    NEWS_COMMENTARY: "training/news-commentary-v9.de-en.{}",
}
TESTS = {
    "test": (TEST, ("test-full/newstest2014-deen-src.en.sgm", "test-full/newstest2014-deen-ref.de.sgm")),
    "test-filtered": (TEST_FILTERED, ("test/newstest2014-deen-src.en.sgm", "test/newstest2014-deen-ref.de.sgm")),
}
COUNTS = {"valid": 3_000, "test": 3_003, "test-filtered": 2_737}

Archives = Callable[[Origin], Path]
"""The path of a verified archive, which is fetched when it is asked for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what is not there yet; the exit code is 0, 2 (usage), 3 (wrong data) or 6 (system, network)."""
    parser = command_line("Fetch WMT 2014, English to German.", "data/wmt14", "wmt14")
    parser.add_argument("--tokenised", action="store_true", help="write tokenised texts too, in tok/ (takes long)")
    options = parser.parse_args(arguments)
    with Telling("get_wmt14", options.out) as told:
        sums = Sums(options.out)
        copy = folder_of_copy(options.copy, "wmt14")
        for split in ("train", *COUNTS):
            if not is_there(split, sums):
                write_pairs(split, pairs_of(split, lambda origin: obtain(origin, sums, copy, origin.name)), sums)
            if options.tokenised and not is_there(f"tok/{split}", sums):
                write_tokenised(split, sums)
        print(f"WMT 2014 is in {options.out}", file=sys.stderr)
    return told.code


def is_there(name: str, sums: Sums) -> bool:
    """Whether both sides are there as they were written."""
    kept = sums.hold([f"{name}.{language}" for language in LANGUAGES])
    if kept:
        print(f"{name}: already there", file=sys.stderr)
    return kept


def pairs_of(split: str, archives: Archives) -> Iterable[tuple[bytes, ...]]:
    """The pairs of one split, English first."""
    if split == "train":
        return training_pairs(archives)
    if split == "valid":
        development = archives(DEVELOPMENT)
        pairs = list(parallel_lines(*((development, f"dev/newstest2013.{language}") for language in LANGUAGES)))
    else:
        origin, members = TESTS[split]
        sides = [segments(text_of(archives(origin), member)) for member in members]
        for member, side in zip(members, sides, strict=True):
            require_lines(member, len(side), COUNTS[split])
        pairs = [tuple(line.encode() for line in pair) for pair in zip(*sides, strict=True)]
    require_lines(split, len(pairs), COUNTS[split])
    return pairs


def training_pairs(archives: Archives) -> Iterator[tuple[bytes, ...]]:
    """The three corpora, one after the other, without pairs of which a side is empty."""
    paths = {origin: archives(origin) for origin in TRAINING}
    for origin, member in TRAINING.items():
        kept = read = 0
        for pair in parallel_lines(*((paths[origin], member.format(language)) for language in LANGUAGES)):
            read += 1
            if all(line.strip() for line in pair):
                kept += 1
                yield pair
        print(f"{origin.name}: {kept:,} pairs; {read - kept:,} with an empty side left out", file=sys.stderr)


def write_pairs(split: str, pairs: Iterable[tuple[bytes, ...]], sums: Sums) -> None:
    """Write both sides: all of them, or neither."""
    names = [f"{split}.{language}" for language in LANGUAGES]
    with ExitStack() as stack:
        temporaries = [stack.enter_context(replacing(sums.folder / name)) for name in names]
        files = [stack.enter_context(path.open("wb")) for path in temporaries]
        for pair in pairs:
            for file, line in zip(files, pair, strict=True):
                file.write(line + b"\n")
    sums.remember({name: digest(sums.folder / name) for name in names})
    print(f"{split}: written", file=sys.stderr)


def write_tokenised(split: str, sums: Sums) -> None:
    """Write both sides again, tokenised."""
    for language in LANGUAGES:
        name = f"tok/{split}.{language}"
        with (
            replacing(sums.folder / name) as temporary,
            (sums.folder / f"{split}.{language}").open(encoding="utf-8", newline="\n") as raw,
            temporary.open("w", encoding="utf-8", newline="\n") as file,
        ):
            lines = tokenise((line.removesuffix("\n") for line in raw), language)
            file.writelines(f"{line}\n" for line in lines)
        sums.remember({name: digest(sums.folder / name)})
        print(f"{name}: written", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
