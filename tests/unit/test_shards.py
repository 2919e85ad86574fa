"""Encoded corpora: what is written is read, damage is found, nothing half-written stays; and their preparation."""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from s2s.data import encode, shards
from s2s.data.prepare import DataSettings, PairFiles, Prepared, prepare
from s2s.data.shards import Example
from s2s.data.tokenizer import SamplingSettings, SentencePieceSettings, WhitespaceSettings
from s2s.errors import DataError
from s2s.interfaces import EOS

EXAMPLES = [
    Example("a cat", "eine Katze", [4, 5], [6, 7], line=1, links=[(1, 1), (0, 0)]),
    Example("日本", "☃", [8], [9, 65535, 11], line=4, links=[]),
    Example("x", "", [], [], line=2**40, links=[(0, 3)]),
]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "corpus"
    shards.write(folder, iter(EXAMPLES), vocabulary=65536, facts=lambda: {"notes": ["ä"]})
    corpus = shards.open_corpus(folder)
    assert len(corpus) == 3 and corpus.facts == {"notes": ["ä"]} and corpus.has_links
    for index, example in enumerate(EXAMPLES):
        source, target = corpus.pair(index)
        assert source.tolist() == [*example.source_ids, EOS]
        assert target.tolist() == [*example.target_ids, EOS]
        assert corpus.text(index) == (example.source, example.target)
        assert corpus.line(index) == example.line
    assert [corpus.links(index).tolist() for index in range(3)] == [[[0, 0], [1, 1]], [], [[0, 3]]]
    assert corpus.source_lengths.tolist() == [3, 2, 1] and corpus.target_lengths.tolist() == [3, 4, 1]
    assert corpus.source_lengths.dtype == np.int32
    assert [path.name for path in folder.parent.iterdir()] == ["corpus"]


@pytest.mark.parametrize(("vocabulary", "width"), [(65536, 2), (65537, 4)])
def test_ids_take_two_bytes_where_they_fit(tmp_path: Path, vocabulary: int, width: int) -> None:
    largest = vocabulary - 1
    shards.write(tmp_path / "c", [Example("a", "b", [largest], [5], line=1)], vocabulary=vocabulary)
    assert (tmp_path / "c" / "source_ids.bin").stat().st_size == 2 * width
    assert shards.open_corpus(tmp_path / "c").pair(0)[0].tolist() == [largest, EOS]


def test_id_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OverflowError):
        shards.write(tmp_path / "c", [Example("a", "b", [65536], [5], line=1)], vocabulary=10)


def test_corpus_without_pairs_or_links(tmp_path: Path) -> None:
    shards.write(tmp_path / "c", [], vocabulary=10)
    assert len(shards.open_corpus(tmp_path / "c")) == 0
    shards.write(tmp_path / "d", [Example("a", "b", [4], [5], line=1)], vocabulary=10)
    corpus = shards.open_corpus(tmp_path / "d")
    assert not corpus.has_links and corpus.links(0).shape == (0, 2)


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[Example]:
        yield EXAMPLES[0]
        raise DataError("train.en", "is broken")

    with pytest.raises(DataError, match="is broken"):
        shards.write(tmp_path / "c", failing(), vocabulary=10)
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    shards.write(tmp_path / "c", EXAMPLES[:1], vocabulary=10)
    shards.write(tmp_path / "c", EXAMPLES, vocabulary=65536)
    assert len(shards.open_corpus(tmp_path / "c")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_every_changed_bit_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shards.write(folder, EXAMPLES, vocabulary=65536)
    files = [path for path in folder.iterdir() if path.name != "meta.json"]
    assert len(files) == 15
    for path in files:
        original = path.read_bytes()
        for damaged in (original[:-1], original + b"\0", bytes([original[0] ^ 1]) + original[1:]):
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=rf"{path.name}: is damaged"):
                shards.open_corpus(folder)
        path.unlink()
        with pytest.raises(DataError, match="is damaged"):
            shards.open_corpus(folder)
        path.write_bytes(original)
    shards.open_corpus(folder)


NOW = f'{{"format": {shards.FORMAT}'


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", NOW + "}", NOW + ', "files": 3}', "\xff"])
def test_broken_description(tmp_path: Path, text: str) -> None:
    (tmp_path / "meta.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match="is damaged"):
        shards.open_corpus(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("pairs", 1), ("pairs", 99), ("ids", "<i4")])
def test_a_description_of_something_else(tmp_path: Path, key: str, value: object) -> None:
    """It alone has no checksum: fewer pairs than there are would be lost without a word."""
    shards.write(tmp_path / "c", EXAMPLES, vocabulary=65536)
    meta = json.loads((tmp_path / "c" / "meta.json").read_bytes())
    assert meta[key] != value
    (tmp_path / "c" / "meta.json").write_text(json.dumps(meta | {key: value}))
    with pytest.raises(DataError, match="is damaged: its description does not fit"):
        shards.open_corpus(tmp_path / "c")


def test_a_disk_that_does_not_answer_has_damaged_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is damaged is removed and made again; a corpus that cannot be read just now is left where it is."""
    settings = DataSettings(train=corpus_files(tmp_path))
    run(tmp_path, settings)
    before = sorted(tmp_path.rglob("*"))

    def refuse(*arguments: object, **options: object) -> object:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output error"):
        patch.setattr(np, "memmap", refuse)
        run(tmp_path, settings)
    assert sorted(tmp_path.rglob("*")) == before
    _, notes = run(tmp_path, settings)
    assert not any("damaged" in note for note in notes)


def test_other_format_and_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        shards.open_corpus(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps({"format": shards.FORMAT + 1}))
    with pytest.raises(DataError, match="another version"):
        shards.open_corpus(tmp_path)


# --- preparation ------------------------------------------------------------------------------------------------------

SOURCE = ["the cat sat", "", "a dog ran away", "the cat", "one two"]
TARGET = ["die Katze saß", "leer", "ein Hund lief weg", "die Katze", "eins zwei"]
LINKS = ["0-0 1p1 2-2", "", "0-0 1-1", "", "1-0"]

WORDS = WhitespaceSettings()


def lines(path: Path, texts: list[str]) -> str:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return str(path)


def corpus_files(folder: Path, links: list[str] | None = None) -> PairFiles:
    return PairFiles(
        source=lines(folder / "train.en", SOURCE),
        target=lines(folder / "train.de", TARGET),
        links=None if links is None else lines(folder / "train.align", links),
    )


def run(
    folder: Path, settings: DataSettings, tokenizer: SentencePieceSettings | WhitespaceSettings = WORDS
) -> tuple[Prepared, list[str]]:
    notes: list[str] = []
    return prepare(settings, tokenizer, folder / "cache", notes.append), notes


def test_prepare(tmp_path: Path) -> None:
    prepared, notes = run(tmp_path, DataSettings(train=corpus_files(tmp_path, LINKS)))
    assert notes == ["data: 5 pairs read, 1 blank, 0 too long (> 256), 0 control characters replaced, 4 kept"]
    assert prepared.valid is None and prepared.sampling is None and prepared.tokenizers.joint
    train = prepared.train
    assert [train.line(index) for index in range(4)] == [1, 3, 4, 5]
    assert [train.text(index) for index in range(4)] == [(SOURCE[i], TARGET[i]) for i in (0, 2, 3, 4)]
    source, target = train.pair(1)
    assert prepared.tokenizers.source.pieces(source.tolist()) == ["a", "dog", "ran", "away", "</s>"]
    assert prepared.tokenizers.target.decode(target.tolist()) == "ein Hund lief weg"
    assert [train.links(index).tolist() for index in range(4)] == [
        [[0, 0], [1, 1], [2, 2]],
        [[0, 0], [1, 1]],
        [],
        [[1, 0]],
    ]
    content = (tmp_path / "train.de").read_bytes()
    assert prepared.fingerprint["train"]["target"] == {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "lines": 5,
    }
    assert set(prepared.fingerprint) == {"train"} and set(prepared.fingerprint["train"]) == {
        "source",
        "target",
        "links",
    }


def test_pairs_of_too_many_pieces_are_counted(tmp_path: Path) -> None:
    characters = SentencePieceSettings(model="char")
    prepared, notes = run(tmp_path, DataSettings(train=corpus_files(tmp_path), max_length=14), characters)
    # ▁die▁Katze▁saß has 14 pieces, ▁ein▁Hund▁lief▁weg 18
    assert "data: 5 pairs read, 1 blank, 1 too long (> 14), 0 control characters replaced, 3 kept" in notes
    assert [prepared.train.line(index) for index in range(3)] == [1, 4, 5]
    with pytest.raises(DataError, match=r"data: no pair is left .* 4 too long \(> 8\)"):
        run(tmp_path, DataSettings(train=corpus_files(tmp_path), max_length=8), characters)


def test_second_call_reuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DataSettings(train=corpus_files(tmp_path), valid=corpus_files(tmp_path))
    first, notes = run(tmp_path, settings, SentencePieceSettings())
    assert any("supports" in note for note in notes)

    def forbidden(*arguments: object, **named: object) -> None:
        raise AssertionError("it was made again")

    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "train", forbidden)
    monkeypatch.setattr(shards, "write", forbidden)
    again, notes_again = run(tmp_path, settings, SentencePieceSettings(sampling=SamplingSettings()))
    assert notes_again == notes and again.fingerprint == first.fingerprint
    assert again.tokenizers.fingerprint == first.tokenizers.fingerprint
    assert again.sampling == SamplingSettings()
    with pytest.raises(AssertionError, match="made again"):
        run(tmp_path, settings.model_copy(update={"max_length": 200}), SentencePieceSettings())
    lines(tmp_path / "train.en", [*SOURCE[:-1], "one three"])  # the same size, other bytes
    with pytest.raises(AssertionError, match="made again"):
        run(tmp_path, settings, SentencePieceSettings())


def test_damaged_cache_is_made_again(tmp_path: Path) -> None:
    settings = DataSettings(train=corpus_files(tmp_path))
    first, _ = run(tmp_path, settings)
    (text,) = (tmp_path / "cache").glob("data-*/source_text.bin")
    text.write_bytes(b"x")
    (words,) = (tmp_path / "cache").glob("tokenizer-*/joint.vocab")
    words.write_bytes(b"x")
    again, notes = run(tmp_path, settings)
    assert "is damaged" in notes[0] and "encoded again" in notes[0]
    assert again.train.text(0) == (SOURCE[0], TARGET[0])
    assert again.tokenizers.fingerprint == first.tokenizers.fingerprint


def test_who_finds_another_learning_the_vocabulary_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DataSettings(train=corpus_files(tmp_path))
    first, _ = run(tmp_path, settings)
    (folder,) = (tmp_path / "cache").glob("tokenizer-*")
    elsewhere = folder.rename(tmp_path / "elsewhere")
    waits, notes = threading.Event(), list[str]()

    def note(line: str) -> None:
        notes.append(line)
        waits.set()

    monkeypatch.setattr("s2s.data.tokenizer.train", lambda *_: pytest.fail("it was learned twice"))
    with (tmp_path / "cache" / f".{folder.name}.lock").open("ab") as lock, ThreadPoolExecutor(1) as threads:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threads.submit(prepare, settings, WORDS, tmp_path / "cache", note)
        assert waits.wait(30) and notes == [f"waiting for another process that prepares {folder}"]
        elsewhere.rename(folder)
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert second.result(30).tokenizers.fingerprint == first.tokenizers.fingerprint


def test_the_tokenizers_of_a_run_are_kept(tmp_path: Path) -> None:
    first, _ = run(tmp_path, DataSettings(train=corpus_files(tmp_path)))
    lines(tmp_path / "train.en", ["zebra", *SOURCE[1:]])
    settings = DataSettings(train=PairFiles(source=str(tmp_path / "train.en"), target=str(tmp_path / "train.de")))
    again = prepare(settings, WORDS, tmp_path / "cache", print, first.tokenizers)
    assert again.tokenizers is first.tokenizers
    assert again.tokenizers.source.pieces(again.train.pair(0)[0].tolist()) == ["<unk>", "</s>"]


def test_cache_of_the_settings(tmp_path: Path) -> None:
    run(tmp_path, DataSettings(train=corpus_files(tmp_path), cache=str(tmp_path / "elsewhere")))
    assert (tmp_path / "elsewhere").exists() and not (tmp_path / "cache").exists()


@pytest.mark.fault("TX27")
def test_overlap_is_told(tmp_path: Path) -> None:
    valid = PairFiles(
        source=lines(tmp_path / "valid.en", ["the cat", "one two", "new"]),
        target=lines(tmp_path / "valid.de", ["die Katze", "eins drei", "neu"]),
    )
    prepared, notes = run(tmp_path, DataSettings(train=corpus_files(tmp_path), valid=valid))
    assert prepared.valid is not None and len(prepared.valid) == 3
    assert notes[1:] == [
        "valid: 3 pairs read, 0 blank, 0 too long (> 256), 0 control characters replaced, 3 kept",
        "valid: 1 pairs are in the training data too",
    ]


@pytest.mark.parametrize(
    ("links", "message"),
    [
        (LINKS[:-1], r"train\.align: has 4 lines, .*train\.en has 5"),
        ([*LINKS, ""], r"train\.align: has 6 lines, .*train\.en has 5"),
        (["0-0", "", "0:0", "", ""], r"train\.align: line 3: '0:0' is not a link"),
        (["0-0", "", "", "2-0", ""], r"train\.align: line 4: the link 2-0 is outside a pair of 2 and 2 words"),
        (["0-3", "", "", "", ""], r"train\.align: line 1: the link 0-3 is outside a pair of 3 and 3 words"),
    ],
)
def test_wrong_links(tmp_path: Path, links: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run(tmp_path, DataSettings(train=corpus_files(tmp_path, links)))
    assert not list((tmp_path / "cache").glob("data-*"))


@pytest.mark.fault("TX25")
@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_missing_file_is_told_first(tmp_path: Path, part: str) -> None:
    good = corpus_files(tmp_path)
    missing = PairFiles(source=good.source, target=str(tmp_path / "none.de"))
    with pytest.raises(DataError, match=r"none\.de: no such file"):
        run(tmp_path, DataSettings.model_validate({"train": good, part: missing}))
    assert not (tmp_path / "cache").exists()


@pytest.mark.fault("TX1")
@pytest.mark.parametrize("tokenizer", [WORDS, SentencePieceSettings()])
def test_unequal_files(tmp_path: Path, tokenizer: SentencePieceSettings | WhitespaceSettings) -> None:
    files = corpus_files(tmp_path)
    lines(tmp_path / "train.de", TARGET[:-1])
    with pytest.raises(DataError, match=r"5 lines.* 4"):
        run(tmp_path, DataSettings(train=files), tokenizer)


@pytest.mark.fault("TX1")
@pytest.mark.parametrize("part", ["valid", "test"])
@pytest.mark.parametrize(
    ("source", "target", "message"), [(SOURCE, TARGET[:-1], r"5 lines.* 4"), ([], [], r"source: is empty")]
)
def test_what_is_measured_on_is_looked_at_before_anything_is_encoded(
    tmp_path: Path, part: str, source: list[str], target: list[str], message: str
) -> None:
    files = PairFiles(source=lines(tmp_path / "source", source), target=lines(tmp_path / "target", target))
    with pytest.raises(DataError, match=message):
        run(tmp_path, DataSettings.model_validate({"train": corpus_files(tmp_path), part: files}))
    assert not list((tmp_path / "cache").glob("data-*"))


@pytest.mark.fault("TX24")
def test_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = corpus_files(tmp_path)
    original = encode.Encoder._examples

    def grow(*arguments: object) -> Iterator[Example]:
        yield from original(*arguments)  # type: ignore[arg-type]
        with (tmp_path / "train.de").open("a") as file:
            file.write("\n")

    monkeypatch.setattr(encode.Encoder, "_examples", grow)
    with pytest.raises(DataError, match=r"train\.de: changed while it was read"):
        run(tmp_path, DataSettings(train=files))


@pytest.mark.fault("N10", "TX18")
def test_gzip_gives_the_same_corpus(tmp_path: Path) -> None:
    plain, _ = run(tmp_path, DataSettings(train=corpus_files(tmp_path)))
    for name in ("train.en", "train.de"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    files = PairFiles(source=str(tmp_path / "train.en.gz"), target=str(tmp_path / "train.de.gz"))
    zipped, _ = run(tmp_path, DataSettings(train=files))
    assert zipped.tokenizers.fingerprint == plain.tokenizers.fingerprint
    assert [zipped.train.text(i) for i in range(4)] == [plain.train.text(i) for i in range(4)]


def test_another_tokenizer_gives_another_corpus(tmp_path: Path) -> None:
    settings = DataSettings(train=corpus_files(tmp_path))
    for tokenizer, pieces in (
        (WORDS, ["the", "cat", "sat"]),
        (SentencePieceSettings(model="char"), list("▁the▁cat▁sat")),
    ):
        prepared, _ = run(tmp_path, settings, tokenizer)
        assert prepared.tokenizers.source.pieces(prepared.train.pair(0)[0].tolist()) == [*pieces, "</s>"]
