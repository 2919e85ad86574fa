"""Phrases in a text and in the pieces that spell it, against plain loops over characters and over pieces."""

from __future__ import annotations

import random
import unicodedata

import pytest

from s2s.data import tokenizer
from s2s.data.tokenizer import SentencePieceSettings, Tokenizer, WhitespaceTokenizer
from s2s.interfaces import UNK
from s2s.search.phrases import Forbidden, spelled

PAIRS = [
    ("the cat sat on the mat", "die Katze saß auf der Matte"),
    ("(a dog), two dogs!", "(ein Hund), zwei Hunde!"),
] * 4
WORDS = WhitespaceTokenizer(b"der\nHund\nsieht\n.\nHunde")


def learned(model: str, vocabulary: int = 60) -> Tokenizer:
    settings = SentencePieceSettings.model_validate({"model": model, "vocabulary": vocabulary})
    return tokenizer.train(settings, PAIRS, lambda warning: None).target


@pytest.mark.parametrize(
    ("phrase", "text", "places"),
    [
        ("Hund", "Hund", [(0, 4)]),
        ("Hund", "der Hund.", [(4, 8)]),
        ("Hund", "(Hund) Hund", [(1, 5), (7, 11)]),
        ("Hund", "Hunde Schäferhund SchäferHund Hund9 Hund_x", [(36, 40)]),  # _ is a sign, not a letter
        ("Hund", "hund", []),
        ("der Hund", "der Hunde der Hund", [(10, 18)]),
        ("der Hund", "der  Hund", []),  # texts are single-spaced
        ("a a", "a a a", [(0, 3), (2, 5)]),
        ("!", "ja!nein", [(2, 3)]),
        ("...", "was....", [(3, 6), (4, 7)]),
        ("क", "कि क", [(3, 4)]),  # the vowel sign belongs to the letter before it
        ("猫", "黑猫坐", [(1, 2)]),  # no spaces in this script
        ("ab", "", []),
    ],
)
def test_where_a_phrase_stands(phrase: str, text: str, places: list[tuple[int, int]]) -> None:
    assert list(Forbidden([phrase], WORDS).in_text(text)) == places


def test_of_several_phrases_each_is_found() -> None:
    forbidden = Forbidden(["Hund", "der", "der Hund", "der"], WORDS)
    assert set(forbidden.in_text("der Hund")) == {(0, 3), (4, 8), (0, 8)}
    assert list(Forbidden([], WORDS).in_text("der Hund")) == []


@pytest.mark.parametrize(
    ("pieces", "runs"),
    [
        (["der", "Hund", "sieht"], {("Hund",)}),
        (["Hund", "der", "Hund"], {("Hund",)}),
        (["der", "Hunde"], set()),
        ([], set()),
    ],
)
def test_spellings_in_words(pieces: list[str], runs: set[tuple[str, ...]]) -> None:
    ids = {word: 4 + place for place, word in enumerate(["der", "Hund", "sieht", ".", "Hunde"])}
    found = Forbidden(["Hund"], WORDS).spellings([ids[piece] for piece in pieces])
    assert found == {tuple(ids[piece] for piece in run) for run in runs}


def test_spellings_in_characters_have_the_sign_before_the_word() -> None:
    """Without it "er" could never again be part of a word."""
    characters = learned("char", 300)
    ids = characters.encode("der er")
    (run,) = Forbidden(["er"], characters).spellings(ids)
    assert characters.pieces(run) == ["▁", "e", "r"]
    assert characters.pieces(ids)[4:] == ["▁", "e", "r"]


@pytest.mark.parametrize("text", ["der!", "Hunde! der!"])
def test_a_sign_is_forbidden_after_whatever_word(text: str) -> None:
    """With the piece before it search would be asked again for every word that it can stand behind."""
    words = learned("bpe")
    (run,) = Forbidden(["!"], words).spellings(words.encode(text))
    assert words.pieces(run) == ["!"]


def test_a_spelling_inside_of_what_must_be_said_has_the_pieces_round_it() -> None:
    """ "Hund" alone would forbid a required "Hund sieht" as well; where the text ends in it, those before it tell."""
    der, hund, sieht, stop, _ = range(4, 9)
    forbidden = Forbidden(["Hund"], WORDS)
    assert forbidden.spellings([der, hund, stop, der], [(der, hund, sieht)]) == {(hund, stop)}
    assert forbidden.spellings([der, hund, sieht, stop], [(der, hund, sieht)]) == {(hund, sieht, stop)}
    assert forbidden.spellings([der, hund, stop], [(der,), (stop, sieht), ()]) == {(hund,)}
    assert forbidden.spellings([stop, der, hund], [(der, hund, sieht)]) == {(stop, der, hund)}
    assert forbidden.spellings([hund, sieht, stop, hund], [(hund, sieht)]) == {(hund, sieht, stop), (stop, hund)}


@pytest.mark.parametrize("model", ["bpe", "unigram", "char", "word"])
def test_spellings_of_whatever_a_model_may_say(model: str) -> None:
    """They are found exactly where a phrase is in the text, and are runs of the pieces said."""
    pieces, draw = learned(model), random.Random(model)
    alphabet = range(UNK, pieces.size)
    phrases = ["Hund", "die Katze", "ein", "s", "!"]
    forbidden, seen = Forbidden(phrases, pieces), 0
    for _ in range(3000):
        ids = [draw.choice(alphabet) for _ in range(draw.randrange(12))]
        if draw.random() < 0.7:
            place = draw.randrange(len(ids) + 1)
            ids[place:place] = pieces.encode(draw.choice(phrases))
        runs = forbidden.spellings(ids)
        assert bool(runs) == any(holds(pieces.decode(ids), phrase) for phrase in phrases)
        for run in runs:
            assert any(tuple(ids[place : place + len(run)]) == run for place in range(len(ids)))
        seen += bool(runs)
    assert seen > 300


def holds(text: str, phrase: str) -> bool:
    """By the definition, character by character."""

    def in_word(character: str) -> bool:
        return unicodedata.category(character)[0] in "LNM"

    def border(place: int) -> bool:
        return place in (0, len(text)) or not (in_word(text[place - 1]) and in_word(text[place]))

    return any(
        text[first : first + len(phrase)] == phrase and border(first) and border(first + len(phrase))
        for first in range(len(text))
    )


@pytest.mark.parametrize("model", ["bpe", "unigram", "char", "word"])
def test_phrases_that_can_be_written(model: str) -> None:
    pieces = learned(model, 300)
    for phrase in ("Hunde!", "saß auf der", "(ein"):
        ids = spelled(phrase, pieces)
        assert ids is not None and pieces.decode(ids) == phrase
    assert spelled("Жук", pieces) is None
    assert spelled("a▁b", pieces) is None  # the library's own sign for a space


def test_words_that_can_be_written() -> None:
    assert spelled("der Hund .", WORDS) == (4, 5, 7)
    assert spelled("der Hund.", WORDS) is None
