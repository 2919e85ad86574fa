"""Fetch Multi30k (task 1, English and German) as plain text, from its public home or from a local copy.

    python scripts/get_multi30k.py [--out data/multi30k] [--from DIR]

writes {train,val,test_2016_flickr}.{en,de} (raw text) and tok-lc/{...}.lc.norm.tok.{en,de} (the official lower-cased
tokenised text that published scores refer to). ``--from`` (or the environment variable S2S_DATA) names a folder with
multi30k/raw/*.gz and multi30k/tok-lc/*.gz to copy from instead. Files that are there already and right are kept.
Needs nothing but Python. Multi30k is for research and education: https://github.com/multi30k/dataset.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

from fetching import EXIT_DATA, Failure, Telling, command_line, download, folder_of_copy, is_right, read_copy, write

HOME = "https://raw.githubusercontent.com/multi30k/dataset/c60773c2a3db82db0e05655b3d01cf391e810800/data/task1"

# Name under --out: SHA-256 of the plain text (the compressed bytes may differ from one copy to another).
CHECKSUMS = {
    "train.en": "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
    "train.de": "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
    "val.en": "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227",
    "val.de": "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660",
    "test_2016_flickr.en": "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
    "test_2016_flickr.de": "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
    "tok-lc/train.lc.norm.tok.en": "08925f8e0572bcd5a006702fc5fe20e2d77c6917d4eebd576fc20de6693c2119",
    "tok-lc/train.lc.norm.tok.de": "cb5a23529b65ec2061f1dc446192a9c37382b63cc75f81a0be59d34894b3a505",
    "tok-lc/val.lc.norm.tok.en": "46573ce391ae227f1c72f873392436a20ef18e0a6d518098cfbd70b77c8572ec",
    "tok-lc/val.lc.norm.tok.de": "97232bd273eceb7207f689527386a97e4be2616b18ada47576bdaf96c8ae1f00",
    "tok-lc/test_2016_flickr.lc.norm.tok.en": "5b7f32627cf99eced828311b955dae9800bb52bc8b91cf8b6526829e605b29d2",
    "tok-lc/test_2016_flickr.lc.norm.tok.de": "c6a33d39d48f9f510de147651316cd9d918e09ad0219df734a2f16b6baccacc4",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch every file that is not there yet; the exit code is 0, 2 (usage), 3 (wrong data) or 6 (system, network)."""
    options = command_line("Fetch Multi30k, English and German.", "data/multi30k", "multi30k").parse_args(arguments)
    with Telling("get_multi30k", options.out) as told:
        folder = folder_of_copy(options.copy, "multi30k")
        for number, name in enumerate(CHECKSUMS, start=1):
            label = f"[{number}/{len(CHECKSUMS)}] {name}"
            target = options.out / name
            if is_right(target, CHECKSUMS[name]):
                print(f"{label}: already there", file=sys.stderr)
            else:
                fetch(name, target, folder, label)
        print(f"Multi30k is in {options.out}", file=sys.stderr)
    return told.code


def fetch(name: str, target: Path, copy: Path | None, label: str) -> None:
    """Bring one file to ``target``: all of it and right, or not at all."""
    folder = "tok-lc" if name.startswith("tok-lc/") else "raw"
    plain = name.removeprefix("tok-lc/")
    if copy is not None:
        origin = str(copy / folder / f"{plain}.gz")
        data = read_copy(Path(origin))
    else:
        # At its home only the raw text is compressed.
        origin = f"{HOME}/raw/{plain}.gz" if folder == "raw" else f"{HOME}/tok/{plain}"
        data = download(origin, label)
    try:
        text = gzip.decompress(data) if origin.endswith(".gz") else data
    except (OSError, EOFError, zlib.error) as error:
        raise Failure(EXIT_DATA, f"{origin}: is not a whole gzip file ({error}); try again") from error
    found = hashlib.sha256(text).hexdigest()
    if found != CHECKSUMS[name]:
        raise Failure(EXIT_DATA, f"{origin}: SHA-256 of the text is {found}, not {CHECKSUMS[name]}; not written")
    write(target, text)
    print(f"{label}: {len(text):,} bytes, verified", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
