"""Minimum Bayes risk against brute force over all pairs, and by hand."""

from __future__ import annotations

import math
import random

import pytest
from sacrebleu import sentence_bleu, sentence_chrf

from s2s.data.nbest import Listed, NBest
from s2s.search.mbr import Weighting, expected_utilities, probabilities, sentence_utility


def overlap(hypothesis: str, reference: str) -> float:
    """The share of the reference's letters that the hypothesis has: not symmetric."""
    return len(set(hypothesis) & set(reference)) / len(reference)


def test_by_hand() -> None:
    """Weights 1/2, 1/4, 1/4; b of "bc" is half of "ab", c a third of "cde"; nothing of "cde" is in "ab"."""
    texts, weights = ["ab", "bc", "cde"], [0.5, 0.25, 0.25]
    expected = [0.5 + 0.25 / 2 + 0, 0.5 / 2 + 0.25 + 0.25 / 3, 0 + 0.25 / 2 + 0.25]
    assert expected_utilities(texts, weights, overlap) == pytest.approx(expected, abs=1e-15)


def test_equal_texts_count_together() -> None:
    """As often as they were drawn, and the utility of a pair is asked for once."""
    asked: list[tuple[str, str]] = []

    def counted(hypothesis: str, reference: str) -> float:
        asked.append((hypothesis, reference))
        return overlap(hypothesis, reference)

    drawn = ["ab", "bc", "ab", "ab"]
    assert expected_utilities(drawn, [0.25] * 4, counted) == pytest.approx([0.875, 0.625, 0.875, 0.875])
    assert sorted(asked) == [("ab", "ab"), ("ab", "bc"), ("bc", "ab"), ("bc", "bc")]


def test_probabilities() -> None:
    assert probabilities([3.0, -math.inf, 1.0], "uniform") == [1 / 3] * 3
    found = probabilities([math.log(2) - 5000, math.log(6) - 5000, -math.inf], "softmax")
    assert found == pytest.approx([0.25, 0.75, 0.0], abs=1e-12)
    assert probabilities([-math.inf, -math.inf], "softmax") == [0.5, 0.5]


@pytest.mark.parametrize("name", ["chrf", "bleu"])
@pytest.mark.parametrize("weighting", ["uniform", "softmax"])
def test_against_brute_force_with_sacrebleu(name: str, weighting: Weighting) -> None:
    """The functions of sacreBLEU's own front, over all ordered pairs with their repetitions."""
    draw = random.Random(7)
    words = ["der", "alte", "Mann", "sieht", "einen", "kleinen", "Hund", "."]
    for _ in range(5):
        texts = [" ".join(draw.choices(words, k=draw.randrange(1, 8))) for _ in range(6)]
        texts += [texts[0], ""]
        scores = [draw.uniform(-3, 0) for _ in texts]
        masses = [math.exp(score) if weighting == "softmax" else 1.0 for score in scores]
        expected = []
        for hypothesis in texts:
            total = 0.0
            for reference, mass in zip(texts, masses, strict=True):
                measure = sentence_chrf if name == "chrf" else sentence_bleu
                total += mass / sum(masses) * measure(hypothesis, [reference]).score
            expected.append(total)
        found = expected_utilities(texts, probabilities(scores, weighting), sentence_utility(name))  # type: ignore[arg-type]
        assert found == pytest.approx(expected, abs=1e-9)
        ranked = NBest(1, None, [Listed(text, 0.0, {}) for text in texts], {}).ranked(found)
        assert ranked.hypotheses[0].text == texts[expected.index(max(expected))]


def test_ties_go_to_the_lowest_rank() -> None:
    """Two texts have the same utility against each other: the one that was first stays first."""
    for texts in (["ab", "ba"], ["ba", "ab"]):
        expected = expected_utilities(texts, [0.5, 0.5], overlap)
        ranked = NBest(1, None, [Listed(text, 0.0, {}) for text in texts], {}).ranked(expected)
        assert [one.text for one in ranked.hypotheses] == texts
