"""Which sentences come before which: blank lines in texts, encoded corpora, batches, translating and scoring."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scripted import Copier
from torch import Tensor

from s2s import config as configuration
from s2s.data import prepare as preparation
from s2s.data import shards
from s2s.data.batches import collate, sentences_of
from s2s.data.corpora import Corpora
from s2s.data.prepare import DataSettings, PairFiles, Prepared, TrainFiles, prepare
from s2s.data.text import PairCounts, usable_pairs
from s2s.data.tokenizer import Tokenizers, WhitespaceSettings, WhitespaceTokenizer
from s2s.errors import ConfigError
from s2s.interfaces import EOS, NOTHING, PAD, Before
from s2s.models.ensemble import Ensemble
from s2s.search.beam import SearchSettings
from s2s.search.documents import first_before
from s2s.search.sampling import SamplingSettings
from s2s.search.score import Forced, Scorer
from s2s.search.translate import Line, LongLines, Translator
from s2s.serve.desk import Desk, Job, Way
from s2s.tree import Tree

WORDS = WhitespaceTokenizer(b"a\nb\nc\nd\ne\nf")
A, B, C, D, E, F = range(4, 10)
BOTH = Tokenizers(WORDS, WORDS)
CPU = torch.device("cpu")


# --- texts ------------------------------------------------------------------------------------------------------------


def test_a_blank_source_line_ends_a_document() -> None:
    """And nothing else does: not a blank target, not a line that is too long or could not be read."""
    sides: list[Any] = [
        ("", ""), ("one", "x"), ("two", ""), ("three", "x"), ("", "x"), ("", ""), ("w " * 9, "x"), (None, "x"),
        ("four", "x"), ("five", "x"), ("", ""),
    ]  # fmt: skip
    pairs = list(usable_pairs(sides, range(1, 99), PairCounts(max_length=5)))
    assert [(pair.source, pair.document) for pair in pairs] == [("one", 1), ("three", 1), ("four", 3), ("five", 3)]


def documents(number: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of lines: documents of all sizes, with copies, repeats, uneven and one-sided pairs among them."""
    draw = random.Random(seed)
    lines = [(f"s{index} w{index % 5}", f"t{index} v{index % 5}") for index in range(number)]
    for index in range(number):
        chance = draw.random()
        if chance < 0.25:
            lines[index] = ("", "")
        elif chance < 0.30:
            lines[index] = ("source alone", "")
        elif chance < 0.35:
            lines[index] = ("the same", "the same")
        elif chance < 0.40:
            lines[index] = ("again", "wieder")
        elif chance < 0.45:
            lines[index] = ("short", "a very long one for so short a line")
    return lines


def prepared(folder: Path, *corpora: Sequence[tuple[str, str]], **more: Any) -> Prepared:
    files = []
    for number, pairs in enumerate(corpora):
        (folder / str(number)).mkdir(parents=True)
        paths = [folder / str(number) / side for side in "st"]
        for side, path in enumerate(paths):
            path.write_text("".join(f"{pair[side]}\n" for pair in pairs), encoding="utf-8")
        files.append(TrainFiles(source=str(paths[0]), target=str(paths[1])))
    train: Any = tuple(files) if len(files) > 1 else PairFiles(source=files[0].source, target=files[0].target)
    settings = DataSettings(train=train, max_ratio=3.0, drop_copies=True, drop_repeats=True, **more)
    return prepare(settings, WhitespaceSettings(), folder / "cache", lambda _: None)


def by_a_plain_loop(pairs: Sequence[tuple[str, str]], count: int) -> list[tuple[str, list[str]]]:
    """Every source that is kept, with those before it in its document, the nearest first."""
    found: list[tuple[str, list[str]]] = []
    seen, document = set(), list[str]()
    for source, target in pairs:
        if not source:
            document = []
        dropped = not source or not target or source == target or len(target.split()) > 3 * len(source.split())
        if dropped or (source, target) in seen:
            continue
        seen.add((source, target))
        found.append((source, document[::-1][:count]))
        document.append(source)
    return found


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("part", [7, 1000])
def test_an_encoded_corpus_knows_its_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, count: int
) -> None:
    """Whatever was left out, and in however many parts it was encoded."""
    monkeypatch.setattr(preparation, "_PART", part)
    pairs = documents(60, seed=part)
    corpus = prepared(tmp_path, pairs).train
    found = [
        (corpus.text(index)[0], [corpus.text(other)[0] for other in corpus.before(index, count)])
        for index in range(len(corpus))
    ]
    assert found == by_a_plain_loop(pairs, count)
    assert any(len(before) == count for _, before in found) and any(not before for _, before in found)


def test_a_document_lies_in_one_corpus(tmp_path: Path) -> None:
    several = [*documents(30, seed=1)[:-1], ("last", "one")], [("first", "one"), ("second", "one")]
    corpus = prepared(tmp_path, *several).train
    assert isinstance(corpus, Corpora)
    expected = [entry for pairs in several for entry in by_a_plain_loop(pairs, 2)]
    places = range(len(corpus))
    assert [[corpus.text(other)[0] for other in corpus.before(index, 2)] for index in places] == [
        before for _, before in expected
    ]


def test_joining_needs_to_know_how_many_documents_ended(tmp_path: Path) -> None:
    """A part whose last line is blank ends a document for the next part."""
    for name in "ab":
        examples = [shards.Example(f"{name}{n}", "x", [A], [B], n, document=n // 2) for n in range(4)]
        shards.write(tmp_path / name, examples, vocabulary=10)
    parts = [tmp_path / "a", tmp_path / "b"]
    for ended, before in ((1, [3, 2]), (2, [])):
        folder = tmp_path / f"joined-{ended}"
        shards.join(folder, parts, vocabulary=10, ended=[ended, 1], facts={})
        assert shards.open_corpus(folder).before(4, 3) == before


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_has_the_sentences_before(tmp_path: Path) -> None:
    data = prepared(tmp_path, [("a b c", "x"), ("d", "x y"), ("e f", "y"), ("", ""), ("g", "z")])
    ids = {word: data.tokenizers.source.encode(word)[0] for word in "abcdefg"}
    batch = collate(data.train, np.array([2, 3, 1]), data.tokenizers, None, 2)
    first, second = [ids["a"], ids["b"], ids["c"], EOS], [ids["d"], EOS, PAD, PAD]
    none = [PAD] * 4
    assert batch.before is not None and batch.before.source.tolist() == [[second, first], [none, none], [first, none]]
    assert batch.before.lengths.tolist() == [[2, 4], [0, 0], [4, 0]]
    assert batch.before.source.dtype == batch.before.lengths.dtype == torch.int64
    assert collate(data.train, np.array([2]), data.tokenizers).before is None


def test_sentences_without_any_before_them() -> None:
    assert sentences_of([[], []], 0) is None
    before = sentences_of([[], []], 2)
    assert before is not None and before.source.tolist() == [[[PAD], [PAD]]] * 2
    assert before.lengths.tolist() == [[0, 0]] * 2


# --- translating and scoring ------------------------------------------------------------------------------------------


def texts(before: Before | None, row: int) -> list[str]:
    """The sentences before that a model was given, as text."""
    if before is None:
        return []
    ids = [sentence[:length] for sentence, length in zip(before.source[row], before.lengths[row].tolist(), strict=True)]
    assert all(one[-1] == EOS for one in ids if len(one))
    return [WORDS.decode(one[:-1].tolist()) for one in ids if len(one)]


class Listener(Copier):
    """Notes for every source what was before it."""

    def __init__(self, sentences_before: int) -> None:
        super().__init__(WORDS.size, sentences_before)
        self.told: list[tuple[str, list[str]]] = []

    def start(
        self,
        source: Tensor,
        lengths: Tensor,
        want: frozenset[str] = NOTHING,
        places: int = 1,
        before: Before | None = None,
    ) -> tuple[Tree, Tree]:
        assert (before is None) == (self.sentences_before == 0)
        for row, length in enumerate(lengths.tolist()):
            self.told.append((WORDS.decode(source[row, : length - 1].tolist()), texts(before, row)))
        return super().start(source, lengths, want, places, before)


def told(model: Listener, *lines: Line | str | None, longest: int = 99, long_lines: LongLines = "split") -> list[Any]:
    settings = SearchSettings(beam=1, max_source_length=longest, batch_tokens=8)
    translator = Translator(model, BOTH, settings, CPU, long_lines=long_lines)
    assert len(list(translator.translate(lines, window=2))) == len(lines)
    return sorted(model.told)


def test_a_line_is_translated_after_those_before_it() -> None:
    found = told(Listener(2), "a", "b", "c", "d", " ", "e", "f", "", "", "a b")
    assert found == [
        ("a", []), ("a b", []), ("b", ["a"]), ("c", ["b", "a"]), ("d", ["c", "b"]), ("e", []), ("f", ["e"]),
    ]  # fmt: skip
    assert told(Listener(0), "a", "b") == [("a", []), ("b", [])]
    assert told(Listener(2), "a", "b", None, "c") == [("a", []), ("b", ["a"]), ("c", [])]


def test_the_sentences_before_are_counted_in_a_batch() -> None:
    """Of short lines behind a long one, each of which would be read padded to the long one."""
    read: list[int] = []

    class Reader(Copier):
        def start(self, source: Tensor, *more: Any) -> tuple[Tree, Tree]:
            before: Before = more[-1]
            read.append(int((before.lengths > 0).sum()) * before.source.size(2))
            return super().start(source, *more)

    lines = ["a", "a b c d e f a b c d e f", *["a"] * 12]
    translator = Translator(Reader(WORDS.size, 3), BOTH, SearchSettings(beam=1, batch_tokens=16), CPU)
    assert [one.text for one in translator.translate(lines)] == lines
    assert max(read) <= 4 * 16 and len(read) > 2


def test_a_document_may_begin_without_a_blank_line() -> None:
    assert told(Listener(3), "a", Line("b", begins=True), "c") == [("a", []), ("b", []), ("c", ["b"])]


def test_two_texts_have_nothing_to_do_with_each_other() -> None:
    model = Listener(3)
    for text in ("a", "b"):
        told(model, text)
    assert model.told == [("a", []), ("b", [])]


def test_the_parts_of_a_long_line_have_the_same_sentences_before() -> None:
    """And it stands before the next one as far as the model may read."""
    found = told(Listener(1), "f", "a b c d", "e", longest=3)
    assert found == [("a b", ["f"]), ("c d", ["f"]), ("e", ["a b"]), ("f", [])]


def test_an_ensemble_reads_what_any_of_its_models_reads() -> None:
    ensemble = Ensemble([Listener(1), Listener(3)])
    assert ensemble.sentences_before == 3
    models: list[Any] = ensemble.models
    list(Translator(ensemble, BOTH, SearchSettings(beam=1), CPU).translate(["a", "b", "c"]))
    assert sorted(models[0].told) == sorted(models[1].told) == [("a", []), ("b", ["a"]), ("c", ["b", "a"])]


def test_requests_that_go_together_have_nothing_to_do_with_each_other() -> None:
    """Each is a text of its own, whose lines are read one after the other."""
    model, desk = Listener(2), Desk()
    trained: Any = SimpleNamespace(model=model, tokenizers=BOTH)
    offered: Any = SimpleNamespace(trained=trained, device=CPU)
    way = Way(offered, SearchSettings(beam=1), 1, False)
    jobs = [Job(way, ["a", "b"]), Job(way, ["c"]), Job(way, ["d", "", "e"])]
    desk._translate(jobs)
    assert [len(job.answer.result(0)) for job in jobs] == [2, 1, 3]
    assert sorted(model.told) == [("a", []), ("b", ["a"]), ("c", []), ("d", []), ("e", [])]


def test_lines_that_are_chosen_keep_their_place() -> None:
    """Each is translated as in the whole text, in the order in which they are asked for."""
    lines, model = ["a", "b", "", "c", "d", "e"], Listener(1)
    found = list(Translator(model, BOTH, SearchSettings(beam=1), CPU).translate_at(lines, [5, 1, 3, 2]))
    assert [(one.number, one.text) for one in found] == [(6, "e"), (2, "b"), (4, "c"), (3, "")]
    assert all(one in model.told for one in (("e", ["d"]), ("b", ["a"]), ("c", [])))
    assert [first_before(lines, 5, count) for count in range(5)] == [5, 4, 3, 3, 3]
    assert sorted(text for text, _ in model.told) == ["b", "c", "e"]  # those before are read, not translated


class Guesser(Copier):
    """Every word is as likely as any other."""

    def step(self, token: Tensor, memory: Tree, state: Tree) -> tuple[Tensor, Tensor | None, Tree]:
        return torch.zeros(len(token), self.size).log_softmax(-1), None, state


def test_lines_that_are_chosen_are_drawn_as_in_the_whole_text() -> None:
    """Draws depend on the number of the line; the same words at another place are drawn anew."""
    settings = SearchSettings(beam=1, sampling=SamplingSettings(seed=3), max_length_ratio=0, max_length_extra=20)
    lines = ["a", "a", "a b", "a", "a"]
    translator = Translator(Guesser(WORDS.size, 1), BOTH, settings, CPU)
    whole = {one.number: one.text for one in translator.translate(lines)}
    assert len(set(whole.values())) == 5
    assert {one.number: one.text for one in translator.translate_at(lines, [4, 1])} == {5: whole[5], 2: whole[2]}


def test_parts_of_a_line_are_drawn_each_for_itself() -> None:
    settings = SearchSettings(
        beam=1, sampling=SamplingSettings(seed=3), max_length_ratio=0, max_length_extra=20, max_source_length=3
    )
    (found,) = Translator(Guesser(WORDS.size), BOTH, settings, CPU).translate(["a b a b"])
    first, second = (part.hypothesis.ids for part in found.candidates[0].parts)
    assert first != second


def test_pairs_are_scored_after_those_before_them() -> None:
    asked: list[tuple[str, list[str]]] = []

    def force(source: Tensor, lengths: Tensor, target: Tensor, want: frozenset[str], before: Before | None) -> Forced:
        for row, length in enumerate(lengths.tolist()):
            asked.append((WORDS.decode(source[row, : length - 1].tolist()), texts(before, row)))
        return Forced(torch.zeros(target[:, 1:].shape), None)

    scorer = Scorer(force, BOTH, SearchSettings(max_source_length=4, batch_tokens=4), CPU, sentences_before=2)
    pairs = [("a", "b"), ("b", ""), (None, "b"), ("a b c d", "a"), ("c", "b"), ("", "f"), ("d", "a"), ("e", "b")]
    assert len(list(scorer.score(pairs))) == len(pairs)
    assert sorted(asked) == [("a", []), ("b", ["a"]), ("c", ["a b c"]), ("d", []), ("e", ["d"])]


@pytest.mark.parametrize("recipe", ["none", "none-context"])
def test_who_reads_the_last_states_alone_cannot_read_documents(recipe: str) -> None:
    """What the sentences before change is the memory, and a first state made of its mean is told of that."""
    path = Path(__file__).resolve().parents[2] / "configs" / "toy" / f"{recipe}.yaml"
    with pytest.raises(ConfigError, match=r"model.document: attention of kind: none never reads what"):
        configuration.load(path, ["model.document={heads: 2}"])
    configuration.load(path, ["model.document={heads: 2}", "model.decoder.start=mean"])
