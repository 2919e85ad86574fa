"""Fetch IWSLT 2015, English and Vietnamese, as Stanford prepared and published it.

    python scripts/get_iwslt15.py [--out data/iwslt15] [--from DIR]

writes {train,tst2012,tst2013}.{en,vi}: 133,317 / 1,553 / 1,268 pairs, tokenised and cased, to train, validate and test.
``--from`` (or the environment variable S2S_DATA) names a folder that has these files in iwslt15/. Every file is
verified; those that are there already and right are kept. Needs nothing but Python. The talks are TED's, for
non-commercial use; the preparation is that of Luong & Manning 2015: https://nlp.stanford.edu/projects/nmt.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from fetching import (
    EXIT_DATA,
    Failure,
    Telling,
    command_line,
    download,
    folder_of_copy,
    is_right,
    read_copy,
    require_lines,
    write,
)

HOME = "https://nlp.stanford.edu/projects/nmt/data/iwslt15.en-vi"

# Name here and there: SHA-256, as Hugging Face's data set mt_eng_vietnamese lists them (dataset_infos.json).
CHECKSUMS = {
    "train.en": "c26dfeed74b6bf3752f5ca552f2412456f0de153f7c804df8717931fb3a5c78a",
    "train.vi": "707206edf2dc0280273952c7b70544ea8a1363aa69aaeb9d70514b888dc3067d",
    "tst2012.en": "b8fbcd0d4199d41276421d1f7228298df67dd9e2c5c134c2ee8cdf3ec27801e2",
    "tst2012.vi": "01004078b3f36b0c46e81b65fc6851230b3c823405c76d1d82ef3b786b512ff0",
    "tst2013.en": "3860ce60bc5b85d96cc2d3d580cf1bc9d62440e939c1b964676d3607c4e8f1df",
    "tst2013.vi": "29af16842808da2812b8fd4d47fc05d082ba870e60ab7755090ad04b380994cd",
}
COUNTS = {"train": 133_317, "tst2012": 1_553, "tst2013": 1_268}


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch every file that is not there yet; the exit code is 0, 2 (usage), 3 (wrong data) or 6 (system, network)."""
    options = command_line("Fetch IWSLT 2015, English and Vietnamese.", "data/iwslt15", "iwslt15").parse_args(arguments)
    with Telling("get_iwslt15", options.out) as told:
        copy = folder_of_copy(options.copy, "iwslt15")
        for number, (name, checksum) in enumerate(CHECKSUMS.items(), start=1):
            label = f"[{number}/{len(CHECKSUMS)}] {name}"
            if is_right(options.out / name, checksum):
                print(f"{label}: already there", file=sys.stderr)
            else:
                write(options.out / name, fetched(name, checksum, copy, label))
                print(f"{label}: verified", file=sys.stderr)
        print(f"IWSLT 2015 is in {options.out}", file=sys.stderr)
    return told.code


def fetched(name: str, checksum: str, copy: Path | None, label: str) -> bytes:
    """The right content of one file."""
    origin = f"{HOME}/{name}" if copy is None else str(copy / name)
    data = download(origin, label) if copy is None else read_copy(copy / name)
    found = hashlib.sha256(data).hexdigest()
    if found != checksum:
        raise Failure(EXIT_DATA, f"{origin}: its SHA-256 is {found}, not {checksum}; not written")
    require_lines(origin, len(data.removesuffix(b"\n").split(b"\n")), COUNTS[Path(name).stem])
    return data


if __name__ == "__main__":
    sys.exit(main())
