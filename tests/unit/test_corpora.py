"""Corpora in parts, by several processes, and several corpora as one: the same as by plain loops."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from s2s.data import digests, encode, shards, tokenizer
from s2s.data import prepare as preparation
from s2s.data.batches import BatchSettings, Mixture, collate, plan_epoch
from s2s.data.corpora import Corpora
from s2s.data.digests import Digests
from s2s.data.prepare import DataSettings, PairFiles, Prepared, TrainFiles, prepare
from s2s.data.shards import Example
from s2s.data.text import PairCounts, StretchReader, TextCounts, index_lines, last_line, sample
from s2s.data.tokenizer import SentencePieceSettings, WhitespaceSettings
from s2s.errors import DataError, SystemRefused
from s2s.interfaces import UNK

WORDS = WhitespaceSettings()


def write_lines(path: Path, texts: Sequence[str]) -> str:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return str(path)


def some_pairs(number: int) -> list[tuple[str, str]]:
    """Pairs with blanks, copies, repeats and uneven ones among them."""
    pairs = [(f"w{index % 13} x{index % 7} end", f"v{index % 13} y{index % 7} z{index % 5}") for index in range(number)]
    pairs[3::17] = [("", "blank")] * len(pairs[3::17])
    pairs[5::19] = [("same text", "same text")] * len(pairs[5::19])
    pairs[6::23] = [("short", "a very much longer sentence here")] * len(pairs[6::23])
    return pairs


def files_of(folder: Path, pairs: Sequence[tuple[str, str]], **more: Any) -> TrainFiles:
    folder.mkdir(parents=True, exist_ok=True)
    sides = [
        write_lines(folder / f"train.{side}", [pair[number] for pair in pairs]) for number, side in enumerate("st")
    ]
    return TrainFiles(source=sides[0], target=sides[1], **more)


def one(files: TrainFiles, **more: Any) -> DataSettings:
    return DataSettings(train=PairFiles(source=files.source, target=files.target, links=files.links), **more)


def run(settings: DataSettings, cache: Path, tokenizer: Any = WORDS, **more: Any) -> tuple[Prepared, list[str]]:
    notes: list[str] = []
    return prepare(settings, tokenizer, cache, notes.append, **more), notes


def contents(cache: Path) -> dict[str, str]:
    """SHA-256 of every file of the encoded corpora and vocabularies in a cache."""
    return {
        str(path.relative_to(cache)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(cache.rglob("*"))
        if path.is_file() and path.name != "digests.json"
    }


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_PART", 10)


# --- stretches of lines -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "content", [b"", b"\n", b"a", b"a\nb\n", b"a\nb\nc", b"a\nb\nc\n", b"1\n2\n3\n4\n", b"1\n\n\n4\n5"]
)
def test_stretches_are_the_lines_of_the_file(tmp_path: Path, content: bytes, packed: bool) -> None:
    path = tmp_path / "text"
    path.write_bytes(gzip.compress(content) if packed else content)
    lines = content.split(b"\n")
    lines = lines[:-1] if lines[-1] == b"" else lines
    index = index_lines(path, 2)
    assert index.lines == len(lines) and len(index.starts) == max(1, -(-len(lines) // 2))
    reader = StretchReader(path, index)
    for stretch in [*range(len(index.starts)), 0]:  # also back again
        counts = TextCounts()
        assert list(reader.read(stretch, counts)) == [line.decode() for line in lines[2 * stretch : 2 * stretch + 2]]
        assert counts.line == min(2 * stretch + 2, len(lines))
    reader.close()
    assert last_line(path, index) == (lines[-1].decode() if lines else None)


def test_stretches_over_many_reads(tmp_path: Path) -> None:
    lines = [f"{number} " + "x" * (number * 37 % 300) for number in range(20_000)]  # three reads of a megabyte
    path = Path(write_lines(tmp_path / "text", lines))
    for stride in (1, 999, 8192, 20_000, 20_001):
        index = index_lines(path, stride)
        text = path.read_bytes()
        expected = [0] + [len("\n".join(lines[:first])) + 1 for first in range(stride, 20_000, max(stride, 999))]
        found = index.starts if stride > 1 else index.starts[:1] + index.starts[1::999]
        assert index.lines == 20_000 and list(found) == expected
        assert all(text[start - 1 : start] == b"\n" for start in index.starts[1:])


def test_a_line_of_a_later_stretch_is_named_by_its_number_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a\nb\nc\n\xe9\n")
    reader = StretchReader(path, index_lines(path, 3))
    with pytest.raises(DataError, match="line 4, byte 1: 0xe9 is not UTF-8"):
        list(reader.read(1, TextCounts()))
    reader.close()


@pytest.mark.parametrize(("lines", "number"), [(0, 5), (7, 7), (7, 9), (100, 1), (1000, 37)])
def test_a_sample_has_one_line_of_each_stretch(lines: int, number: int) -> None:
    found = list(sample(lines, number))
    number = min(number, lines)
    assert len(found) == number and found == sorted(set(found))
    for stretch, line in enumerate(found):
        assert stretch * lines // number < line <= (stretch + 1) * lines // number
    assert found == list(sample(lines, number))


def test_the_vocabulary_of_a_large_corpus_is_learned_from_a_sample(tmp_path: Path) -> None:
    pairs = [(f"a{number}", f"b{number}") for number in range(60)]
    settings = SentencePieceSettings(model="word", vocabulary=200, learn_from=20)
    prepared, _ = run(one(files_of(tmp_path / "own", pairs)), tmp_path / "cache", settings)
    chosen = {f"▁{side}{line - 1}" for line in sample(60, 20) for side in "ab"}
    assert set(prepared.tokenizers.source.pieces(range(4, prepared.tokenizers.source.size))) == chosen
    assert len(prepared.train) == 60


# --- parts and processes ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_kept_is_what_loops_keep(tmp_path: Path, repeats: bool, packed: bool) -> None:
    pairs = some_pairs(95)
    files = files_of(tmp_path, pairs)
    if packed:
        for path in (Path(files.source), Path(files.target)):
            path.write_bytes(gzip.compress(path.read_bytes()))
    settings = one(files, max_ratio=3.0, drop_copies=True, drop_repeats=repeats)
    prepared, notes = run(settings, tmp_path / "cache")
    kept: list[tuple[int, tuple[str, str]]] = []
    dropped: Counter[str] = Counter()
    for line, (source, target) in enumerate(pairs, start=1):
        long = max(len(source.split()), len(target.split())) / max(1, min(len(source.split()), len(target.split())))
        if not source or not target:
            dropped["blank"] += 1
        elif source == target:
            dropped["copied"] += 1
        elif long > 3:
            dropped["uneven"] += 1
        elif repeats and (source, target) in [pair for _, pair in kept]:
            dropped["repeated"] += 1
        else:
            kept.append((line, (source, target)))
    train, (counts,) = prepared.train, prepared.counts
    assert [(train.line(index), train.text(index)) for index in range(len(train))] == kept
    for index, (_, (source, target)) in enumerate(kept):
        ids = train.pair(index)
        assert prepared.tokenizers.source.decode(ids[0].tolist()) == source
        assert prepared.tokenizers.target.decode(ids[1].tolist()) == target
        assert (train.source_lengths[index], train.target_lengths[index]) == (len(ids[0]), len(ids[1]))
    found = {name: getattr(counts, name) for name in ("blank", "copied", "uneven", "repeated")}
    assert found == {name: dropped[name] for name in found} and (counts.pairs, counts.kept) == (95, len(kept))
    assert counts.repeats == (0 if repeats else len(kept) - len({pair for _, pair in kept}))
    assert f"{dropped['copied']} with equal sides dropped, {dropped['uneven']} of uneven length dropped" in notes[0]
    assert train.facts["counts"]["uneven"] == dropped["uneven"]  # type: ignore[union-attr]


@pytest.mark.usefixtures("small_parts")
def test_any_number_of_processes_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of(tmp_path, some_pairs(64))
    settings = one(files, drop_repeats=True)
    run(settings, tmp_path / "one")
    run(settings, tmp_path / "two", jobs=2)
    monkeypatch.setattr(preparation, "_PART", 1 << 16)
    run(settings, tmp_path / "whole")
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("small_parts")
def test_processes_tell_of_the_first_fault(tmp_path: Path) -> None:
    """Also where a later part fails earlier; and nothing of the parts is left."""
    pairs = some_pairs(60)
    files = files_of(tmp_path, pairs)
    for suffix, line in (("s", 19), ("t", 52)):
        path = tmp_path / f"train.{suffix}"
        lines = path.read_bytes().split(b"\n")
        lines[line - 1] = b"\xff"
        path.write_bytes(b"\n".join(lines))
    (tmp_path / "links").write_text("0-0\n" * 60, encoding="utf-8")
    learned, _ = run(one(files_of(tmp_path / "good", pairs)), tmp_path / "cache")
    for jobs in (1, 3):
        with pytest.raises(DataError, match=r"train\.s: line 19, byte 1: 0xff is not UTF-8"):
            run(one(files), tmp_path / "cache", tokenizers=learned.tokenizers, jobs=jobs)
    assert not list((tmp_path / "cache").glob(".*.parts"))


def test_a_process_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_PART", 30)
    share = encode._share

    def deadly(work: encode.Work, parts: Any, workers: Sequence[encode._Worker], done: Any) -> None:
        encode.Encoder(work)(0)
        assert workers[0]._process.pid is not None
        os.kill(workers[0]._process.pid, signal.SIGKILL)
        share(work, parts, workers, done)

    monkeypatch.setattr(encode, "_share", deadly)
    settings = one(files_of(tmp_path, some_pairs(60)))
    with pytest.raises(SystemRefused, match="ended with code -9"):
        run(settings, tmp_path / "cache", jobs=2)
    monkeypatch.undo()
    monkeypatch.setattr(preparation, "_PART", 30)
    prepared, notes = run(settings, tmp_path / "cache")
    assert any("of 2 parts are there already" in note for note in notes) and prepared.counts[0].pairs == 60


@pytest.mark.usefixtures("small_parts")
def test_finished_parts_are_kept_and_damaged_ones_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = one(files_of(tmp_path, some_pairs(64)))
    run(settings, tmp_path / "whole")
    made: list[int] = []
    original = encode.Encoder.__call__

    def stopping(self: encode.Encoder, part: int) -> None:
        if part == 4 and len(made) == 4:
            raise KeyboardInterrupt
        original(self, part)
        made.append(part)

    monkeypatch.setattr(encode.Encoder, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "cache")
    (parts,) = (tmp_path / "cache").glob(".*.parts")
    assert sorted(path.name for path in parts.iterdir()) == [f"part-00000{part}" for part in range(4)]
    (parts / "part-000002" / "source_text.bin").write_bytes(b"x")
    _, notes = run(settings, tmp_path / "cache")
    assert made == [0, 1, 2, 3, 2, 4, 5, 6] and "data: 3 of 7 parts are there already" in notes
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


@pytest.mark.fault("TX24")
@pytest.mark.usefixtures("small_parts")
def test_no_part_of_a_file_that_changed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content comes back, as a file of the same size would: the parts that were read meanwhile must not."""
    files = files_of(tmp_path, some_pairs(40))
    path, original = Path(files.source), Path(files.source).read_bytes()
    encoder = encode.Encoder.__call__

    def meddling(self: encode.Encoder, part: int) -> None:
        if part == 2:
            path.write_bytes(original.replace(b"w", b"W"))
        encoder(self, part)

    monkeypatch.setattr(encode.Encoder, "__call__", meddling)
    with pytest.raises(DataError, match="changed while it was read"):
        run(one(files), tmp_path / "cache")
    path.write_bytes(original)
    monkeypatch.setattr(encode.Encoder, "__call__", encoder)
    prepared, _ = run(one(files), tmp_path / "cache")
    assert all("W" not in prepared.train.text(index)[0] for index in range(len(prepared.train)))


@pytest.mark.usefixtures("small_parts")
def test_links_of_later_parts(tmp_path: Path) -> None:
    pairs = [(f"a{number} b", f"x{number} y z") for number in range(25)]
    links = [f"0-{number % 3} 1-0" for number in range(25)]
    files = files_of(tmp_path, pairs, links=write_lines(tmp_path / "links", links))
    prepared, _ = run(one(files), tmp_path / "cache")
    expected = [[[0, number % 3], [1, 0]] for number in range(25)]
    assert [prepared.train.links(index).tolist() for index in range(25)] == expected
    write_lines(tmp_path / "links", [*links[:-1], "2-0"])
    with pytest.raises(DataError, match=r"links: line 25: the link 2-0 is outside"):
        run(one(files), tmp_path / "cache")


def test_repeats_are_found_in_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{number * number % 30}" for number in range(100)]
    for part in range(4):
        own = [Example(text, "t", [4], [5], line=1) for text in texts[25 * part : 25 * part + 25]]
        shards.write(tmp_path / str(part), own, vocabulary=9)
    expected = [text in texts[:place] for place, text in enumerate(texts)]
    for size in (1 << 21, 7):
        monkeypatch.setattr(shards, "_BUCKET", size)
        assert shards.repeated([tmp_path / str(part) for part in range(4)]).tolist() == expected


def test_two_processes_make_a_corpus_once(tmp_path: Path) -> None:
    import fcntl

    files = files_of(tmp_path, some_pairs(20))
    run(one(files), tmp_path / "cache")
    (folder,) = (tmp_path / "cache").glob("data-*")
    (lock,) = (tmp_path / "cache").glob(".data-*.lock")
    hidden = folder.rename(tmp_path / "elsewhere")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        notes: list[str] = []

        def notify(note: str) -> None:  # the other process finishes while this one waits
            notes.append(note)
            if "waiting" in note:
                hidden.rename(folder)
                fcntl.flock(held, fcntl.LOCK_UN)

        prepare(one(files), WORDS, tmp_path / "cache", notify)
    assert any("waiting for another process" in note for note in notes)
    assert not list((tmp_path / "cache").glob(".*.parts"))


# --- digests ----------------------------------------------------------------------------------------------------------


def test_a_file_is_read_once_as_long_as_it_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"one")
    read: list[Path] = []
    original = digests.describe

    def watched(path: Path) -> dict[str, Any]:
        read.append(path)
        return original(path)

    monkeypatch.setattr(digests, "describe", watched)
    young = Digests(tmp_path / "cache")
    assert young(path)["sha256"] == hashlib.sha256(b"one").hexdigest() and young(path)["bytes"] == 3
    assert len(read) == 2  # it is too young to be trusted
    monkeypatch.setattr(digests, "_is_settled", lambda changed, now: True)
    known = Digests(tmp_path / "cache")
    assert known(path) == known(path) and len(read) == 3
    known.save()
    assert Digests(tmp_path / "cache")(path) == known(path) and len(read) == 3
    facts = path.stat()
    time.sleep(0.02)
    path.write_bytes(b"two")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # the time of change betrays it
    assert Digests(tmp_path / "cache")(path)["sha256"] == hashlib.sha256(b"two").hexdigest() and len(read) == 4


@pytest.mark.parametrize("text", ["", "[]", '{"x": 3}', '{"NAME": {"bytes": 1, "sha256": "x", "signature": [1]}}'])
def test_damaged_digests_are_found_out_again(tmp_path: Path, text: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"one")
    (tmp_path / "digests.json").write_text(text.replace("NAME", str(path)), encoding="utf-8")
    assert Digests(tmp_path)(path)["sha256"] == hashlib.sha256(b"one").hexdigest()


# --- several corpora --------------------------------------------------------------------------------------------------


def test_several_corpora_are_read_as_one(tmp_path: Path) -> None:
    first = [(f"a{number} b", f"c{number}") for number in range(5)]
    second = [(f"d{number}", f"e{number} f") for number in range(3)]
    links = write_lines(tmp_path / "links", ["0-1", "", "0-0"])
    corpora = files_of(tmp_path / "1", first, name="news"), files_of(tmp_path / "2", second, tag="<x>", links=links)
    prepared, notes = run(DataSettings(train=corpora), tmp_path / "cache")
    train = prepared.train
    assert isinstance(train, Corpora) and len(train) == 8 and train.has_links
    texts = first + [(f"<x> {source}", target) for source, target in second]
    assert [train.text(index) for index in range(8)] == texts
    assert [train.line(index) for index in range(8)] == [1, 2, 3, 4, 5, 1, 2, 3]
    assert [train.links(index).tolist() for index in range(4, 8)] == [[], [[1, 1]], [], [[1, 0]]]  # moved by the tag
    for index, (source, target) in enumerate(texts):
        assert prepared.tokenizers.source.decode(train.pair(index)[0].tolist()) == source
        assert prepared.tokenizers.target.decode(train.pair(index)[1].tolist()) == target
    chosen = np.array([7, 0, 5, 4])
    assert train.source_lengths[chosen].tolist() == [3, 3, 3, 3] and train.target_lengths[chosen].tolist() == [
        3,
        2,
        3,
        2,
    ]
    assert [note.split(":")[0] for note in notes] == ["news", "data.train.1"]
    assert set(prepared.fingerprint) == {"train.0", "train.1"} and prepared.mixture is None
    assert collate(train, chosen, prepared.tokenizers).pairs == [7, 0, 5, 4]
    valid = files_of(tmp_path / "3", [("<x> d1", "e1 f"), ("d1", "e1 f"), ("a2 b", "c2")])
    settings = DataSettings(train=corpora, valid=PairFiles(source=valid.source, target=valid.target))
    _, notes = run(settings, tmp_path / "cache")
    assert notes[-1] == "valid: 2 pairs are in the training data too"


@pytest.mark.parametrize("model", ["bpe", "unigram", "char", "word"])
@pytest.mark.parametrize("joint", [True, False])
def test_a_tag_is_one_piece(tmp_path: Path, model: Any, joint: bool) -> None:
    pairs = [(f"the cat number {number}", f"die Katze Nummer {number}") for number in range(40)]
    corpora = files_of(tmp_path / "1", pairs, tag="<to-de>"), files_of(tmp_path / "2", pairs[::-1], tag="<to-nl>")
    tokenizer = SentencePieceSettings(model=model, vocabulary=90, joint=joint)
    if model in ("bpe", "unigram"):
        tokenizer = SentencePieceSettings.model_validate(tokenizer.model_dump() | {"sampling": {"alpha": 0.5}})
    prepared, _ = run(DataSettings(train=corpora), tmp_path / "cache", tokenizer)
    again, _ = run(DataSettings(train=corpora), tmp_path / "cache", tokenizer)  # as it is read from the disk
    for source, _ in (prepared.tokenizers, again.tokenizers):
        for tag in ("<to-de>", "<to-nl>"):
            (own,) = source.encode(tag)
            assert source.encode(f"{tag} the cat")[0] == own and source.pieces([own]) == [f"▁{tag}"]
            assert source.decode(source.encode(f"{tag} the cat")) == f"{tag} the cat"
            assert source.words(source.encode(f"{tag} the"))[:2] == [0, 1]
            if tokenizer.sampling is not None:
                drawn = [
                    source.encode_sampled(f"{tag} the cat", tokenizer.sampling, random.Random(n)) for n in range(20)
                ]
                assert all(ids[0] == own for ids in drawn) and (not joint or len({tuple(ids) for ids in drawn}) > 1)
    train = prepared.train
    assert train.pair(0)[0][0] == prepared.tokenizers.source.encode("<to-de>")[0] != train.pair(40)[0][0]


def test_a_tag_that_the_vocabulary_does_not_know_is_refused(tmp_path: Path) -> None:
    pairs = some_pairs(20)
    learned, _ = run(one(files_of(tmp_path, pairs)), tmp_path / "cache")
    with pytest.raises(DataError, match=r"data\.train\.0: the tag <y> is not a piece of the vocabulary"):
        run(DataSettings(train=(files_of(tmp_path, pairs, tag="<y>"),)), tmp_path / "c", tokenizers=learned.tokenizers)


@pytest.mark.parametrize("tag", ["", "two words", "a\u0301", "▁x", "a\x1bb"])
def test_a_tag_is_a_word(tag: str) -> None:
    with pytest.raises(ValidationError, match="is not one word"):
        TrainFiles(source="s", target="t", tag=tag)


@pytest.mark.parametrize(
    ("corpora", "temperature", "message"),
    [
        ([], None, "the list is empty"),
        ([1.0, None], None, "every corpus a weight, or none"),
        ([1.0, 2.0], 2.0, "there are weights already"),
    ],
)
def test_shares_that_cannot_be(corpora: list[float | None], temperature: float | None, message: str) -> None:
    train = tuple(TrainFiles(source="s", target="t", weight=weight) for weight in corpora)
    with pytest.raises(ValidationError, match=message):
        DataSettings(train=train, temperature=temperature)


def test_shares_follow_weights_or_temperature(tmp_path: Path) -> None:
    pairs = [(f"a{number}", f"b{number}") for number in range(9)]
    weighted = files_of(tmp_path / "1", pairs, weight=3.0), files_of(tmp_path / "2", pairs[:4], weight=1.0)
    mixture = run(DataSettings(train=weighted), tmp_path / "cache")[0].mixture
    assert mixture == Mixture([9, 4], [0.75, 0.25])
    huge = files_of(tmp_path / "1", pairs, weight=1.5e308), files_of(tmp_path / "2", pairs[:4], weight=0.5e308)
    mixture = run(DataSettings(train=huge), tmp_path / "cache")[0].mixture
    assert mixture is not None and mixture.shares == pytest.approx([0.75, 0.25])
    plain = files_of(tmp_path / "1", pairs), files_of(tmp_path / "2", pairs[:4])
    mixture = run(DataSettings(train=plain, temperature=2.0), tmp_path / "cache")[0].mixture
    assert mixture is not None and mixture.shares == pytest.approx([3 / 5, 2 / 5])  # the roots of 9 and 4
    mixture = run(DataSettings(train=plain, temperature=1.0), tmp_path / "cache")[0].mixture
    assert mixture is not None and mixture.shares == pytest.approx([9 / 13, 4 / 13])


def test_a_corpus_that_would_never_be_read_is_refused(tmp_path: Path) -> None:
    pairs = [(f"a{number}", f"b{number}") for number in range(10)]
    for weight in (0.05, 0.03):  # of eleven pairs: 0.52 of one, rounded up, and 0.32
        files = files_of(tmp_path / "1", pairs), files_of(tmp_path / "2", pairs[:1])
        weighted = files[0].model_copy(update={"weight": 1.0}), files[1].model_copy(update={"weight": weight})
        settings = DataSettings(train=weighted)
        if weight == 0.05:
            assert run(settings, tmp_path / "cache")[0].mixture is not None
            continue
        with pytest.raises(DataError, match=r"data\.train\.1: its share is less than one of the 11 pairs of an epoch"):
            run(settings, tmp_path / "cache")


@pytest.mark.parametrize("window", [1_000_000, 8192, 4096])
def test_a_tiny_corpus_of_a_mixture_makes_no_tiny_windows(window: int) -> None:
    """Its turns are blocks of ten pairs, as many as half of the epoch; a window is full when it has enough pairs."""
    lengths = np.full(4010, 20, np.int32)
    settings, mixture = BatchSettings(tokens=2048, window=window), Mixture([10, 4000], [0.5, 0.5])
    plan = plan_epoch(lengths, lengths, settings, seed=1, epoch=0, mixture=mixture)
    assert len(plan) == -(-4010 // (2048 // 20))
    assert [len(batch) for batch in plan].count(102) == 39


@pytest.mark.parametrize("window", [1_000_000, 7])
def test_turns_of_a_mixture_follow_each_other_without_a_gap(window: int) -> None:
    """Over epochs every pair of a corpus is met equally often, to one; and each epoch has the shares, to one pair."""
    sizes, shares = [50, 8, 1], [0.3, 0.6, 0.1]
    lengths = np.full(59, 3, np.int32)
    settings = BatchSettings(tokens=30, window=window)
    met: Counter[int] = Counter()
    for epoch in range(6):
        plan = plan_epoch(lengths, lengths, settings, seed=4, epoch=epoch, mixture=Mixture(sizes, shares))
        pairs = [int(pair) for batch in plan for pair in batch]
        assert pairs == [int(pair) for batch in plan for pair in batch] and len(pairs) == 59
        own = [
            sum(pair < 50 for pair in pairs),
            sum(50 <= pair < 58 for pair in pairs),
            sum(pair == 58 for pair in pairs),
        ]
        assert own == [18, 35, 6]  # of 17.7, 35.4 and 5.9
        met.update(pairs)
        for first, end in ((0, 50), (50, 58), (58, 59)):
            times = [met[pair] for pair in range(first, end)]
            assert max(times) - min(times) <= 1
    orders = [
        list(map(bytes, plan_epoch(lengths, lengths, settings, 4, epoch, Mixture(sizes, shares)))) for epoch in (0, 1)
    ]
    assert orders[0] != orders[1]


def test_counts_of_parts_add_up() -> None:
    one_part = PairCounts(pairs=3, kept=2, source=TextCounts(lines=3, controls=1), target=TextCounts(lines=3, blank=1))
    other = PairCounts(pairs=2, kept=1, copies=1, source=TextCounts(lines=2), target=TextCounts(lines=2, one_tab=2))
    one_part.add(other)
    assert (one_part.pairs, one_part.kept, one_part.copies, one_part.source.lines) == (5, 3, 1, 5)
    assert (one_part.source.controls, one_part.target.blank, one_part.target.one_tab) == (1, 1, 2)


# --- what a kill leaves -----------------------------------------------------------------------------------------------


def test_what_a_killed_removal_left_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is removed file by file, its description perhaps first: what is left of it is no corpus."""
    settings = one(files_of(tmp_path, some_pairs(20)))
    first, _ = run(settings, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").glob("data-*")
    (folder / "meta.json").unlink()
    (folder / "lines.bin").unlink()
    again, notes = run(settings, tmp_path / "cache")
    assert f"{folder}: is damaged: its description is missing; the corpus is encoded again" in notes
    assert again.train.text(3) == first.train.text(3) and len(again.train) == len(first.train)


def test_a_part_that_a_killed_removal_left_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = one(files_of(tmp_path, some_pairs(20)))

    def stopped(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shards, "join", stopped)
        run(settings, tmp_path / "cache")
    (part,) = (tmp_path / "cache").glob(".data-*.parts/part-000000")
    (part / "meta.json").unlink()
    run(settings, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob(".data-*.parts"))


def test_a_damaged_corpus_is_removed_by_one_process_at_a_time(tmp_path: Path) -> None:
    """Another process may have mended it while this one waited: what it made must stay."""
    import fcntl

    settings = one(files_of(tmp_path, some_pairs(20)))
    run(settings, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").glob("data-*")
    (lock,) = (tmp_path / "cache").glob(".data-*.lock")
    whole = tmp_path / "elsewhere"
    shutil.copytree(folder, whole)
    (folder / "source_text.bin").write_bytes(b"x")
    notes: list[str] = []
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def notify(note: str) -> None:
            notes.append(note)
            if "waiting" in note:
                shutil.rmtree(folder)
                whole.rename(folder)
                fcntl.flock(held, fcntl.LOCK_UN)

        prepare(settings, WORDS, tmp_path / "cache", notify)
    assert any("waiting" in note for note in notes) and not any("encoded again" in note for note in notes)


def test_nothing_that_a_kill_left_of_a_corpus_stays(tmp_path: Path) -> None:
    """Of a joining that was not finished, and of a removal of the parts that was not."""
    settings = one(files_of(tmp_path, some_pairs(20)))
    run(settings, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").glob("data-*")
    for again in (False, True):
        for name in (f".{folder.name}-0123456789abcdef", f".{folder.name}.parts", f".data-{'f' * 32}.parts"):
            (tmp_path / "cache" / name).mkdir(exist_ok=True)
            (tmp_path / "cache" / name / "links.bin").write_bytes(b"x")
        if again:
            shutil.rmtree(folder)
        run(settings, tmp_path / "cache")
        left = {path.name for path in (tmp_path / "cache").glob(".data-*") if path.is_dir()}
        assert left == {f".data-{'f' * 32}.parts"}  # another corpus, whose preparation may go on


def test_what_another_process_is_making_is_left_alone(tmp_path: Path) -> None:
    import fcntl

    settings = one(files_of(tmp_path, some_pairs(20)))
    run(settings, tmp_path / "cache")
    (lock,) = (tmp_path / "cache").glob(".data-*.lock")
    parts = lock.with_suffix(".parts")
    parts.mkdir()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run(settings, tmp_path / "cache")
        assert parts.exists()
    run(settings, tmp_path / "cache")
    assert not parts.exists()


# --- what a cache must not be taken for -------------------------------------------------------------------------------


def test_what_valid_shares_follows_the_filters_of_training(tmp_path: Path) -> None:
    pairs = [("short", "one two three four"), *((f"a{number}", f"b{number}") for number in range(9))]
    valid = files_of(tmp_path / "valid", pairs[:2])
    files = files_of(tmp_path / "train", pairs), PairFiles(source=valid.source, target=valid.target)
    for ratio, shared in ((None, 2), (2.0, 1), (None, 2)):
        _, notes = run(one(files[0], valid=files[1], max_ratio=ratio), tmp_path / "cache", tokenizers=None)
        assert notes[-1] == f"valid: {shared} pairs are in the training data too"


def test_vocabularies_of_a_text_that_changed_meanwhile_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(tmp_path, some_pairs(40))
    path, original = Path(files.source), Path(files.source).read_bytes()
    train = tokenizer.train

    def meddling(*arguments: Any) -> Any:
        path.write_bytes(original.replace(b"w", b"W"))
        return train(*arguments)

    with monkeypatch.context() as patched, pytest.raises(DataError, match="changed while it was read"):
        patched.setattr(tokenizer, "train", meddling)
        run(one(files), tmp_path / "cache")
    path.write_bytes(original)
    prepared, _ = run(one(files), tmp_path / "cache")
    assert UNK not in prepared.tokenizers.source.encode("w1 w2 end")


def test_digests_of_files_that_cannot_be_looked_at_any_more_are_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a cache of several users: the folder of another one is closed."""
    monkeypatch.setattr(digests, "_is_settled", lambda changed, now: True)
    entry = {"bytes": 1, "sha256": "x", "signature": [1, 2, 3, 4]}
    (tmp_path / "digests.json").write_text(json.dumps({f"/{'n' * 300}": entry}), encoding="utf-8")  # ENAMETOOLONG
    path = tmp_path / "text"
    path.write_bytes(b"one")
    known = Digests(tmp_path)
    known(path)
    known.save()
    assert list(json.loads((tmp_path / "digests.json").read_bytes())) == [os.path.realpath(path)]


# --- samples and counts -----------------------------------------------------------------------------------------------


def test_a_sample_without_a_usable_pair_is_no_reason_to_refuse_a_corpus(tmp_path: Path) -> None:
    """A small corpus beside a large one gives one line to the sample, which may be blank."""
    large = [(f"a{number}", f"b{number}") for number in range(200)]
    small = [(f"c{number}", f"d{number}") for number in range(5)]
    small[next(sample(5, 1)) - 1] = ("", "")
    corpora = files_of(tmp_path / "large", large), files_of(tmp_path / "small", small)
    settings = SentencePieceSettings(model="char", learn_from=40)
    prepared, _ = run(DataSettings(train=corpora), tmp_path / "cache", settings)
    assert [counts.kept for counts in prepared.counts] == [200, 4]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("tag", [None, "<x>"])
def test_copies_are_counted_without_the_repeats_that_were_left_out(tmp_path: Path, tag: str | None) -> None:
    pairs = [("same", "same")] * 12 + [("own", "own")] + [(f"a{number}", f"b{number}") for number in range(14)] * 2
    files = files_of(tmp_path, pairs, tag=tag)
    for repeats, copies in ((True, 2), (False, 13)):
        prepared, notes = run(DataSettings(train=(files,), drop_repeats=repeats), tmp_path / "cache")
        assert prepared.counts[0].copies == copies
        told = f"data.train.0: the source equals the target in {copies} of the {len(prepared.train)} pairs"
        assert told in notes


def test_shares_of_any_temperature(tmp_path: Path) -> None:
    pairs = [(f"a{number}", f"b{number}") for number in range(90)]
    corpora = files_of(tmp_path / "1", pairs), files_of(tmp_path / "2", pairs[:40])
    mixture = run(DataSettings(train=corpora, temperature=0.25), tmp_path / "cache")[0].mixture
    assert mixture is not None and mixture.shares == pytest.approx([9**4 / (9**4 + 4**4), 4**4 / (9**4 + 4**4)])
    with pytest.raises(DataError, match=r"data\.train\.1: its share is less than one"):  # (4 / 9) ** 1000 of it
        run(DataSettings(train=corpora, temperature=0.001), tmp_path / "cache")


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_file_that_is_gone_when_it_is_encoded_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    files = files_of(tmp_path, some_pairs(40))
    encoding = encode.encode

    def gone(*arguments: Any) -> None:
        Path(files.source).unlink()
        encoding(*arguments)

    monkeypatch.setattr(preparation, "encode", gone)
    with pytest.raises(DataError, match=r"train\.s: no such file"):
        run(one(files), tmp_path / "cache", jobs=jobs)
