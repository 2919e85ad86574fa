"""Unknown words replaced through attention, with weights made by hand."""

from __future__ import annotations

import pytest
import torch

from s2s.data import tokenizer
from s2s.data.tokenizer import UNKNOWN, SentencePieceSettings, WhitespaceTokenizer
from s2s.interfaces import UNK
from s2s.search.unknown import UnknownWords

WORDS = WhitespaceTokenizer(b"the\nsees\n.")
THE, SEES, STOP = 4, 5, 6


def replaced(ids: list[int], rows: list[list[float]], source: str, **dictionary: str) -> list[str]:
    """One source position for each word, and EOS."""
    words = source.split()
    return UnknownWords(WORDS, dictionary).words(ids, torch.tensor(rows), words, [*range(len(words)), -1])


def test_the_most_attended_word_or_its_translation() -> None:
    rows = [[0.9, 0.1, 0.0, 0.0], [0.0, 0.7, 0.3, 0.0], [0.3, 0.3, 0.4, 0.0]]
    assert replaced([THE, UNK, SEES], rows, "der Petz sieht") == ["the", "Petz", "sees"]
    assert replaced([THE, UNK, SEES], rows, "der Petz sieht", Petz="bear") == ["the", "bear", "sees"]
    assert replaced([UNK, UNK, UNK], rows, "der Petz sieht", Petz="brown bear") == ["der", "brown bear", "sieht"]
    assert replaced([THE, SEES], rows, "der Petz sieht") == ["the", "sees"]


def test_ties_and_nothing() -> None:
    """The first of equals; EOS is no word; without weight on a word UNK stays."""
    assert replaced([UNK], [[0.4, 0.4, 0.2]], "a b") == ["a"]
    assert replaced([UNK], [[0.1, 0.0, 0.9]], "a b") == ["a"]
    assert replaced([UNK], [[0.0, 0.0, 1.0]], "a b") == [UNKNOWN]


def test_weight_is_summed_over_the_pieces_of_a_word() -> None:
    """0.3 + 0.3 on the two pieces of b against 0.4 on a; and a cut line: this part has only the last two words."""
    unknown = UnknownWords(WORDS, {})
    assert unknown.words([UNK], torch.tensor([[0.4, 0.3, 0.3, 0.0]]), ["a", "b"], [0, 1, 1, -1]) == ["b"]
    assert unknown.words([UNK], torch.tensor([[0.4, 0.3, 0.3, 0.0]]), ["x", "a", "b"], [1, 2, 2, -1]) == ["b"]


@pytest.mark.parametrize(
    ("said", "source", "dictionary", "expected"),
    [
        ("{}", "Žižek,", {}, "Žižek,"),  # nothing but UNK: the word as it is
        ("{}.", "Žižek,", {}, "Žižek."),  # the signs that the model wrote, where it wrote some
        ("({}", "Žižek,", {}, "(Žižek,"),
        ("({}!", "„Žižek“", {}, "(Žižek!"),
        ("d{}d.", "Žižek", {}, "Žižek."),  # UNK within a word: the word
        ("{}{}", "Žižek", {}, "Žižek"),
        ("{}.", "Bär,", {"Bär": "bear"}, "bear."),
        ("{}", "Bär,", {"Bär": "bear"}, "bear,"),
        ("{}", "Bär,", {"Bär": "bear", "Bär,": "grizzly"}, "grizzly"),
        ("{}", "…", {}, "…"),
    ],
)
def test_signs_round_a_word(said: str, source: str, dictionary: dict[str, str], expected: str) -> None:
    """In subwords an unknown character is one piece of a word, whose punctuation may be other pieces."""
    settings = SentencePieceSettings(model="char", vocabulary=40)
    pieces = tokenizer.train(settings, [("a d.", "(d a.!)")] * 3, lambda warning: None).target
    ids = pieces.encode(f"a {said.format('Ж', 'Ж')} a")
    assert UNKNOWN in pieces.decode(ids).split()[1]
    weights = torch.zeros(len(ids) + 1, 2)
    weights[[place for place, index in enumerate(ids) if index == UNK], 0] = 1.0
    assert UnknownWords(pieces, dictionary).words(ids, weights, [source], [0, -1]) == ["a", expected, "a"]
