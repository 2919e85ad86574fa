"""Put the corpus of dates where configs/dates reads it: dates as people write them, and the same in ISO form.

    python scripts/get_dates.py [--out data/dates] --from DIR

unpacks DIR/dates/{train,dev,test}.{src,tgt}.gz (37,578 / 2,000 / 2,000 pairs, no source twice); the environment
variable S2S_DATA names DIR too. What is written is verified; files that are there already and right are kept. The dates
are those of dataset/date.txt in https://github.com/oreilly-japan/deep-learning-from-scratch-2 (MIT licence, Koki Saitoh
2018), without repetitions, shuffled and split. The split has no public home, so there is nothing to download.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

from fetching import EXIT_DATA, EXIT_USAGE, Failure, Telling, command_line, is_right, write

# Name under --out: SHA-256 of the plain text.
CHECKSUMS = {
    "train.src": "9092bac3ecb6d80cf919b542352f8ff12c6311fda3c926f71dec0e6cc85479a2",
    "train.tgt": "586a29a81800cfaa226058bb5ffd75a01b8b815d8dd44f3a76f0567176d8edd7",
    "dev.src": "57d30cc131e11aa55fd85f1054cbec1ff595a8ed88fe82a98bc2db0b54065288",
    "dev.tgt": "b689ea6febc9af87e22848094e9287fd51bc02a470b8988d3dd470b7720f9934",
    "test.src": "ed529df2dab41a8fc2620de934e4235629b6930cbb303229f06d4b2fb59091e5",
    "test.tgt": "84a9f5e0fbd752c4cbcb84b7507ea02dba03e9d4d1b37cba4910a7c4c2b79fe9",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Unpack every file that is not there yet; the exit code is 0, 2 (usage), 3 (wrong data) or 6 (system)."""
    options = command_line("Unpack the corpus of dates.", "data/dates", "dates").parse_args(arguments)
    with Telling("get_dates", options.out) as told:
        for name, checksum in CHECKSUMS.items():
            if is_right(options.out / name, checksum):
                print(f"{name}: already there", file=sys.stderr)
            else:
                write(options.out / name, text_of(name, checksum, options.copy))
                print(f"{name}: verified", file=sys.stderr)
        print(f"the dates are in {options.out}", file=sys.stderr)
    return told.code


def text_of(name: str, checksum: str, copy: Path | None) -> bytes:
    """The plain text of one file of the copy, verified."""
    if copy is None:
        raise Failure(EXIT_USAGE, f"{name}: is not there yet; name a folder that has dates/{name}.gz with --from")
    path = copy / "dates" / f"{name}.gz"
    try:
        text = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise Failure(EXIT_DATA, f"{path}: is missing; name another folder with --from") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Failure(EXIT_DATA, f"{path}: is not a whole gzip file ({error}); get it again") from error
    found = hashlib.sha256(text).hexdigest()
    if found != checksum:
        raise Failure(EXIT_DATA, f"{path}: SHA-256 of the text is {found}, not {checksum}; not written")
    return text


if __name__ == "__main__":
    sys.exit(main())
