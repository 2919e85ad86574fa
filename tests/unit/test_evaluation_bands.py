"""Bands: edges, corpus scores of the sentences in each, and words counted one by one."""

from __future__ import annotations

import random

import pytest
import sacrebleu

from s2s.errors import UsageError
from s2s.evaluation import judge
from s2s.evaluation.bands import Bands, LengthBand, WordBand, by_frequency, by_length, count_words


def test_every_number_is_in_the_band_that_says_so() -> None:
    bands = Bands.parse(" 1, 2,5 ,10")
    assert bands.labels == ["0", "1", "2-4", "5-9", "10+"]
    assert [bands.labels[bands.index(value)] for value in (0, 1, 2, 4, 5, 9, 10, 99)] == [
        "0", "1", "2-4", "2-4", "5-9", "5-9", "10+", "10+",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "0,1", "5,5", "5,4", "a", "1,,2", "-1", "1.5", "²", "٣", "9" * 5000])
def test_what_are_no_bands(text: str) -> None:
    with pytest.raises(UsageError, match="rising whole numbers"):
        Bands.parse(text)


def test_scores_by_length_are_those_of_the_sentences_alone() -> None:
    draw = random.Random(2)
    lengths = [draw.choice([0, 3, 7, 8, 12]) for _ in range(30)]
    right = [" ".join(draw.choices("abcd", k=draw.randint(1, 9))) for _ in lengths]
    found = [" ".join(draw.choices("abcd", k=draw.randint(1, 9))) for _ in lengths]
    expected = []
    for low, high in ((0, 4), (4, 8), (8, 10), (10, 11), (11, 99)):
        places = [place for place, length in enumerate(lengths) if low <= length < high]
        lines = [found[place] for place in places], [[right[place] for place in places]]
        value = sacrebleu.corpus_bleu(*lines).score if places else None
        expected.append(LengthBand(len(places), value))
    assert by_length(judge("bleu", [right])(found), lengths, Bands([4, 8, 10, 11])) == expected
    assert expected[3] == (0, None)


def test_words_by_hand() -> None:
    frequency = count_words([["the", "cat"], ["the", "mat", "the"], []])
    assert frequency == {"the": 3, "cat": 1, "mat": 1}
    right = [["the", "cat", "the", "dog"], ["mat"], []]
    found = [["the", "the", "the", "dog", "cat"], ["cow"], ["cat"]]
    never, once, often = by_frequency(found, right, frequency, Bands([1, 2]))
    assert never == WordBand(matched=1, hypothesis=2, reference=1)  # dog is found; cow is wrong
    assert once == WordBand(matched=1, hypothesis=2, reference=2)  # cat once of twice; mat is missed
    assert often == WordBand(matched=2, hypothesis=3, reference=2)  # the: a third one has no partner
    assert (often.precision, often.recall, often.f) == (2 / 3, 1, pytest.approx(2 * (2 / 3) / (5 / 3)))


def test_a_band_without_words() -> None:
    band = WordBand(0, 0, 0)
    assert (band.precision, band.recall, band.f) == (None, None, None)
    assert (WordBand(0, 2, 0).precision, WordBand(0, 2, 0).recall, WordBand(0, 2, 0).f) == (0, None, 0)


def test_words_one_by_one() -> None:
    """Each word of a hypothesis crosses out one of the same in its reference."""
    draw = random.Random(3)
    frequency = {letter: draw.randint(0, 12) for letter in "abcdef"}
    right = [draw.choices("abcdefg", k=draw.randint(0, 9)) for _ in range(40)]
    found = [draw.choices("abcdefg", k=draw.randint(0, 9)) for _ in range(40)]
    counts = {name: [0, 0, 0] for name in ("rare", "some", "many")}

    def band(word: str) -> list[int]:
        times = frequency.get(word, 0)
        return counts["rare" if times < 3 else "some" if times < 8 else "many"]

    for hypothesis, reference in zip(found, right, strict=True):
        left = list(reference)
        for word in hypothesis:
            band(word)[1] += 1
            if word in left:
                left.remove(word)
                band(word)[0] += 1
        for word in reference:
            band(word)[2] += 1
    assert by_frequency(found, right, frequency, Bands([3, 8])) == [tuple(one) for one in counts.values()]
