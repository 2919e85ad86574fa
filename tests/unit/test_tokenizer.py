"""Tokenizers: round trips, reserved names in text, limits, words, sampling as a function of its seed, files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sentencepiece as sentencepiece_library
from hypothesis import given, strategies
from hypothesis import settings as hypothesis_settings
from pydantic import ValidationError

from s2s.data import tokenizer
from s2s.data.tokenizer import SamplingSettings, SentencePieceSettings, Tokenizer, Tokenizers, WhitespaceSettings
from s2s.errors import CheckpointError, DataError
from s2s.interfaces import BOS, EOS, PAD, UNK

PAIRS = [
    ("the cat sat on the mat", "die Katze saß auf der Matte"),
    ("the dogs ran over the meadow", "die Hunde liefen über die Wiese"),
    ("a cat and a dog , “ two ” ﬁne friends …", "eine Katze und ein Hund , zwei Freunde"),
    ("<unk> </s> <pad> <s> are words", "<unk> </s> <pad> <s> sind Wörter"),
] * 4

MODELS = ("bpe", "unigram", "char", "word")


def learn(settings: SentencePieceSettings | WhitespaceSettings) -> tuple[Tokenizers, list[str]]:
    warnings: list[str] = []
    return tokenizer.train(settings, PAIRS, warnings.append), warnings


def sentencepiece(model: str = "bpe", **changes: object) -> Tokenizers:
    return learn(SentencePieceSettings.model_validate({"model": model, "vocabulary": 90} | changes))[0]


EVERY = [*MODELS, "whitespace"]


def any_kind(name: str) -> Tokenizer:
    return (learn(WhitespaceSettings())[0] if name == "whitespace" else sentencepiece(name)).source


@pytest.mark.parametrize("name", EVERY)
def test_round_trip(name: str) -> None:
    """Known words come back as they were, also those that the library would normalise, and with no reserved id."""
    learned = sentencepiece(name, vocabulary=300).source if name != "whitespace" else any_kind(name)
    for text in (text for pair in PAIRS for text in pair):
        ids = learned.encode(text)
        assert learned.decode(ids) == text
        assert min(ids) > UNK and max(ids) < learned.size


@pytest.mark.fault("TX17")
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "text", ["<unk> </s> <pad>", "<s>", "</s></s>", "<pad >", "<s >", "▁</s>▁", "\u0001 x </s", "⁇"]
)
def test_text_is_never_given_a_control_id(name: str, text: str) -> None:
    learned = any_kind(name)
    assert not {PAD, BOS, EOS} & set(learned.encode(text))


@pytest.mark.parametrize("name", EVERY)
def test_empty_text(name: str) -> None:
    learned = any_kind(name)
    assert learned.encode("") == [] and learned.decode([]) == "" and learned.words([]) == []


@pytest.mark.parametrize("name", EVERY)
def test_reserved_ids(name: str) -> None:
    learned = any_kind(name)
    assert learned.pieces([PAD, BOS, EOS, UNK]) == ["<pad>", "<s>", "</s>", "<unk>"]
    ids = learned.encode("the cat")
    assert learned.decode([BOS, *ids, EOS, PAD]) == "the cat"
    assert learned.words([BOS, *ids, EOS, PAD]) == [-1, *learned.words(ids), -1, -1]


def test_unknown_words_keep_their_number() -> None:
    for name in EVERY:
        learned = any_kind(name)
        ids = learned.encode("ΩΩ cat ΨΨ ΞΞ")
        assert learned.decode(ids) == "⁇ cat ⁇ ⁇", name
        assert max(learned.words(ids)) == 3, name


def test_space_sign_in_text_begins_no_word() -> None:
    learned = sentencepiece().source
    assert max(learned.words(learned.encode("the▁cat sat"))) == 1


def test_words_of_pieces() -> None:
    learned = sentencepiece("char").source
    assert learned.pieces(learned.encode("a cat")) == ["▁", "a", "▁", "c", "a", "t"]
    assert learned.words(learned.encode("a cat")) == [0, 0, 1, 1, 1, 1]
    space, letter = learned.encode("a")
    assert learned.words([letter, letter, space, space, letter, space]) == [0, 0, 1, 1, 1, 1]
    assert learned.words([space, space]) == [-1, -1]
    words = any_kind("whitespace")
    assert words.words([EOS, 4, UNK, 5]) == [-1, 0, 1, 2]


@hypothesis_settings(max_examples=60, deadline=None)
@given(strategies.lists(strategies.integers(0, 10**6), max_size=12), strategies.sampled_from(EVERY))
def test_words_agree_with_decoded_text(numbers: list[int], name: str) -> None:
    """For any ids a model may produce, the words are those of the decoded text, and none is without a piece."""
    learned = CACHED.setdefault(name, any_kind(name))
    ids = [number % learned.size for number in numbers]
    words = {word for word in learned.words(ids) if word >= 0}
    assert words == set(range(len(learned.decode(ids).split())))


CACHED: dict[str, Tokenizer] = {}


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("M5")
@pytest.mark.parametrize("model", MODELS)
def test_vocabulary_is_an_upper_limit(model: str) -> None:
    learned, warnings = learn(SentencePieceSettings.model_validate({"model": model, "vocabulary": 7000}))
    assert 4 < learned.source.size < 7000
    count = learned.source.size
    assert warnings == [f"tokenizer: the corpus supports {count} pieces, tokenizer.vocabulary allows 7000"]


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_room_for_merges_is_used(model: str) -> None:
    learned, warnings = learn(SentencePieceSettings.model_validate({"model": model, "vocabulary": 70}))
    assert learned.source.size == 70 and not warnings


@pytest.mark.parametrize("model", MODELS)
def test_fewer_pieces_than_characters(model: str) -> None:
    learned, warnings = learn(SentencePieceSettings.model_validate({"model": model, "vocabulary": 12}))
    assert learned.source.size == 12
    assert len(warnings) == (model in ("bpe", "unigram"))
    assert all("vocabulary 12" in warning for warning in warnings)
    assert UNK in learned.source.encode("the quick ﬁne friends")


@pytest.mark.fault("M5")
@pytest.mark.parametrize("limit", [1, 4])
@pytest.mark.parametrize("kind", [SentencePieceSettings, WhitespaceSettings])
def test_no_room_for_a_word(limit: int, kind: type[SentencePieceSettings | WhitespaceSettings]) -> None:
    with pytest.raises(DataError, match=rf"tokenizer\.vocabulary: {limit} leaves no room"):
        learn(kind(vocabulary=limit))


@pytest.mark.fault("TX2", "M5")
@pytest.mark.parametrize("settings", [SentencePieceSettings(), WhitespaceSettings()])
def test_no_text(settings: SentencePieceSettings | WhitespaceSettings) -> None:
    with pytest.raises(DataError, match="tokenizer"):
        tokenizer.train(settings, [], print)


@pytest.mark.fault("M5")
def test_corpus_of_one_pair() -> None:
    learned = tokenizer.train(SentencePieceSettings(), [("a", "b")], lambda _: None).source
    assert learned.decode(learned.encode("a b")) == "a b"


def test_words_by_frequency() -> None:
    corpus = [("b a c", "ä b"), ("b", "a z")]  # b 3, a 2, c 1, z 1, ä 1
    learned = tokenizer.train(WhitespaceSettings(), corpus, print).source
    assert learned.pieces(range(4, learned.size)) == ["b", "a", "c", "z", "ä"]
    limited = tokenizer.train(WhitespaceSettings(vocabulary=7), corpus, print).source
    assert limited.pieces(range(4, limited.size)) == ["b", "a", "c"]
    frequent = tokenizer.train(WhitespaceSettings(min_count=2), corpus, print).source
    assert frequent.encode("a b c") == [5, 4, UNK]


def test_words_that_are_too_many_for_the_limit_are_no_reason_to_warn() -> None:
    warnings: list[str] = []
    tokenizer.train(WhitespaceSettings(vocabulary=6), [("a b", "c")], warnings.append)
    assert warnings == []
    tokenizer.train(WhitespaceSettings(vocabulary=9), [("a b", "c")], warnings.append)
    assert warnings == ["tokenizer: the corpus supports 7 words, tokenizer.vocabulary allows 9"]


def test_separate_vocabularies() -> None:
    for settings in (WhitespaceSettings(joint=False), SentencePieceSettings(vocabulary=60, joint=False)):
        source, target = learned = tokenizer.train(settings, iter(PAIRS), lambda _: None)  # an iterator, taken once
        assert not learned.joint and source.fingerprint != target.fingerprint
        assert UNK not in source.encode("the cat") and UNK in source.encode("saß")
        assert UNK not in target.encode("saß")
    assert sentencepiece().joint


class Failing:
    """Texts that break off."""

    def __iter__(self) -> Iterator[tuple[str, str]]:
        yield from PAIRS
        raise DataError("train.en", "is broken")


def test_failing_text_is_not_taken_for_its_end() -> None:
    for settings in (SentencePieceSettings(vocabulary=60), WhitespaceSettings()):
        with pytest.raises(DataError, match=r"train\.en: is broken"):
            tokenizer.train(settings, Failing(), print)


def test_the_library_is_told_that_its_text_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would learn for minutes from what came before."""
    told = list[BaseException]()

    def learn(sentence_iterator: Iterator[str], **more: object) -> None:
        try:
            list(sentence_iterator)
        except BaseException as error:
            told.append(error)

    monkeypatch.setattr(sentencepiece_library.SentencePieceTrainer, "train", learn)
    with pytest.raises(DataError, match=r"train\.en: is broken"):
        tokenizer.train(SentencePieceSettings(vocabulary=60), Failing(), print)
    assert len(told) == 1


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    sentencepiece()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "settings",
    [
        {"sampling": {}, "model": "char"},
        {"sampling": {"alpha": 0.0}},
        {"vocabulary": 0},
        {"character_coverage": 0.5},
        {"model": "bpf"},
    ],
)
def test_settings_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SentencePieceSettings.model_validate(settings)


# --- sampling ---------------------------------------------------------------------------------------------------------

TEXTS = [source for source, _ in PAIRS[:3]]
SAMPLING = SamplingSettings(alpha=0.5)


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_sampling_is_a_function_of_the_seed(model: str) -> None:
    learned = sentencepiece(model).source

    def draw(seed: int) -> list[list[int]]:
        generator = random.Random(seed)
        return [learned.encode_sampled(text, SAMPLING, generator) for text in TEXTS]

    assert draw(7) == draw(7)
    assert any(draw(7) != draw(seed) for seed in (8, 9))
    assert [learned.decode(ids) for ids in draw(7)] == TEXTS


@pytest.mark.parametrize(("model", "alpha"), [("bpe", 1e-12), ("unigram", 1e6)])
def test_sampling_tends_to_the_best_segmentation(model: str, alpha: float) -> None:
    """No dropped merge, or a distribution that is a peak: what the library finds best. The mode is not limited to 1."""
    learned = sentencepiece(model, vocabulary=80).source
    settings = SamplingSettings.model_construct(alpha=alpha)
    for text in [*TEXTS, "ΩΩb the ΩcΨΨt", "<unk> ▁ the"]:
        assert learned.encode_sampled(text, settings, random.Random(0)) == learned.encode(text)


def test_leaving_out_every_merge_gives_characters() -> None:
    learned = sentencepiece().source
    ids = learned.encode_sampled("the cat", SamplingSettings(alpha=1.0), random.Random(3))
    assert learned.pieces(ids) == list("▁the▁cat")
    assert len(learned.encode("the cat")) < len(ids)


def frequencies(draw: Callable[[], list[str]], count: int = 4000) -> dict[str, float]:
    return {pieces: n / count for pieces, n in Counter(" ".join(draw()) for _ in range(count)).items()}


def test_bpe_dropout_has_the_probabilities_of_the_algorithm() -> None:
    """Worked by hand for "xab" with the merges ab, xa, xab (in this order), each dropped with probability 0.4.

    Round 1 offers ab and xa: ab is made with 0.6, xa (ab dropped) with 0.4 x 0.6, none with 0.16. Round 2, after
    either, offers only xab (x + ab, or xa + b), made with 0.6.
    """
    merges = {"ab": 4, "xa": 5, "xab": 6}
    generator = random.Random(1)
    found = frequencies(lambda: tokenizer._drop_merges("xab", merges, 0.4, generator.random))
    expected = {"x a b": 0.16, "x ab": 0.6 * 0.4, "xa b": 0.24 * 0.4, "xab": 0.84 * 0.6}
    assert found == {pieces: pytest.approx(share, abs=0.03) for pieces, share in expected.items()}


def test_unigram_sampling_has_the_probabilities_of_the_model() -> None:
    """Every segmentation of "abc" written down; p is proportional to exp(alpha x the sum of its scores)."""
    scores = {"a": -1.0, "b": -2.0, "c": -1.5, "ab": -1.2, "bc": -3.0, "z": -5.0}
    sums = {"a b c": -4.5, "ab c": -2.7, "a bc": -4.0}
    generator = random.Random(1)
    for alpha in (1.0, 0.3):
        lattice = tokenizer._lattices(scores)("abc", alpha)
        found = frequencies(lambda lattice=lattice: tokenizer._draw_path("abc", lattice, generator.random))  # type: ignore[misc]
        total = sum(math.exp(alpha * each) for each in sums.values())
        assert found == {
            pieces: pytest.approx(math.exp(alpha * each) / total, abs=0.03) for pieces, each in sums.items()
        }


def test_sampling_sentences_without_spaces_holds_none_of_them() -> None:
    """As in Chinese, where each is one long word and hardly comes twice."""
    learned = sentencepiece("unigram").source
    characters = "".join({character for pair in PAIRS for text in pair for character in text if character.isalpha()})
    generator = random.Random(1)
    tracemalloc.start()
    for _ in range(100):
        learned.encode_sampled("".join(generator.choices(characters, k=200)), SamplingSettings(), generator)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 500_000  # bytes; all lattices together have some millions


def test_the_same_in_every_process() -> None:
    program = (
        "from tests.unit import test_tokenizer as test\n"
        "for model in ('bpe', 'unigram'):\n"
        "    learned = test.sentencepiece(model)\n"
        "    print(learned.fingerprint)\n"
        "    print(learned.source.encode_sampled(test.TEXTS[0], test.SAMPLING, test.random.Random('5 x')))\n"
        "print(test.learn(test.WhitespaceSettings())[0].fingerprint)\n"
    )
    root = Path(__file__).parents[2]
    results = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(results) == 1
    assert sentencepiece("bpe").fingerprint in results.pop()


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("kind", ["sentencepiece", "whitespace"])
def test_save_and_load(tmp_path: Path, joint: bool, kind: str) -> None:
    learned = sentencepiece(joint=joint) if kind == "sentencepiece" else learn(WhitespaceSettings(joint=joint))[0]
    tokenizer.save(learned, tmp_path / "tokenizer")
    suffix = "model" if kind == "sentencepiece" else "vocab"
    names = ["joint"] if joint else ["source", "target"]
    files = {path.name for path in (tmp_path / "tokenizer").iterdir()}
    assert files == {*(f"{name}.{suffix}" for name in names), "tokenizer.json"}
    loaded = tokenizer.load(tmp_path / "tokenizer")
    assert loaded.joint == joint and loaded.fingerprint == learned.fingerprint
    for side, text in zip(range(2), PAIRS[2], strict=True):
        assert loaded[side].encode(text) == learned[side].encode(text)
        assert loaded[side].decode(loaded[side].encode(text)) == text


def test_vocabulary_file_is_one_word_a_line(tmp_path: Path) -> None:
    learned = tokenizer.train(WhitespaceSettings(), [("b \u00e4", "b")], print)
    tokenizer.save(learned, tmp_path)
    assert (tmp_path / "joint.vocab").read_bytes() == "b\nä".encode()
    assert learned.source.fingerprint == hashlib.sha256("b\nä".encode()).hexdigest()


@pytest.mark.fault("C8")
def test_exchanged_vocabulary(tmp_path: Path) -> None:
    for name, order in (("one", "a b"), ("two", "b a")):  # equal sizes, other content
        corpus = [(order, order), (order[0], order[0])]
        tokenizer.save(tokenizer.train(WhitespaceSettings(), corpus, print), tmp_path / name)
    (tmp_path / "one" / "joint.vocab").write_bytes((tmp_path / "two" / "joint.vocab").read_bytes())
    with pytest.raises(
        CheckpointError,
        match=r"joint\.vocab: vocabulary hash differs from the one the model was trained with",
    ):
        tokenizer.load(tmp_path / "one")


def _description(**changes: object) -> str:
    data = b"no model"
    base = {"format": 1, "kind": "bpe", "sha256": {"joint": hashlib.sha256(data).hexdigest()}}
    return json.dumps(base | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "does not describe"),
        (_description(format=2), "does not describe"),
        (_description(kind="pickle"), "does not describe"),
        (_description(sha256={"../joint": "0"}), "does not describe"),
        (_description(sha256={"joint": 5}), "does not describe"),
        (_description(sha256={"source": "0", "target": "0"}), r"source\.model: cannot be read"),
        (_description(), r"joint\.model: is not a vocabulary"),
    ],
)
def test_broken_files(tmp_path: Path, text: str | None, message: str) -> None:
    (tmp_path / "joint.model").write_bytes(b"no model")
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        tokenizer.load(tmp_path)
