"""Word alignments: read and write them, take them from attention weights, and measure them (AER, entropy).

A link is ``(source word, target word)``, counted from 0. Weights are numpy arrays (T, S): one row per target
position, one column per source position.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2s.errors import DataError

Link = tuple[int, int]
Weights = NDArray[np.floating[Any]]

_LINK = re.compile(r"([0-9]{1,9})([-p])([0-9]{1,9})")


@dataclass(frozen=True)
class GoldLinks:
    """The links people drew for one sentence pair; every sure link is also a possible one."""

    sure: frozenset[Link]
    possible: frozenset[Link]


@dataclass(frozen=True)
class AlignmentScore:
    """Corpus scores between 0 and 1; precision is 0 when nothing was predicted, recall when nothing is sure."""

    aer: float
    precision: float
    recall: float


def parse_links(line: str, where: object = "links", first: int = 0) -> GoldLinks:
    """Read one line of Pharaoh links: ``i-j`` is sure, ``ipj`` only possible; ``first`` is the number of word one.

    Raises DataError that names ``where`` for anything else.
    """
    sure: set[Link] = set()
    possible: set[Link] = set()
    for token in line.split():
        match = _LINK.fullmatch(token)
        if match is None:
            raise DataError(where, f"{token[:40]!r} is not a link", "write links as 0-0 (sure) or 0p0 (possible)")
        link = int(match[1]) - first, int(match[3]) - first
        if min(link) < 0:
            raise DataError(where, f"the link {token} is below the first word", f"count words from {first}")
        possible.add(link)
        if match[2] == "-":
            sure.add(link)
    return GoldLinks(frozenset(sure), frozenset(possible))


def read_links(path: Path, first: int = 0) -> list[GoldLinks]:
    """Read a file of Pharaoh links, a line per sentence pair; an empty line is a pair without links.

    Raises DataError with file and line for what cannot be read.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")  # in text mode a lone CR would end a line
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read: {error}") from error
    lines = text.removesuffix("\n").split("\n") if data else []
    return [parse_links(line, f"{path}: line {number}", first) for number, line in enumerate(lines, start=1)]


def format_links(links: Iterable[Link]) -> str:
    """Write links in Pharaoh form, sorted: ``0-0 1-2``."""
    return " ".join(f"{source}-{target}" for source, target in sorted(links))


def aer(
    sure: Sequence[AbstractSet[Link]], possible: Sequence[AbstractSet[Link]], predicted: Sequence[AbstractSet[Link]]
) -> AlignmentScore:
    """Alignment error rate of a corpus (Och & Ney 2003), one set of links per sentence pair in each argument.

    AER = 1 - (|A & S| + |A & P|) / (|A| + |S|), precision = |A & P| / |A|, recall = |A & S| / |S|, where A are the
    predicted links and each count is summed over the corpus before dividing. Sure links count as possible.
    Raises DataError for different numbers of sentences, or when there is neither a predicted nor a sure link.
    """
    if not len(sure) == len(possible) == len(predicted):
        counts = f"{len(sure)} sure, {len(possible)} possible and {len(predicted)} predicted lines"
        raise DataError("alignment", counts, "each needs one line per sentence pair")
    all_predicted = sum(map(len, predicted))
    all_sure = sum(map(len, sure))
    if all_predicted + all_sure == 0:
        raise DataError("alignment", "no predicted and no sure link", "the error rate is not defined")
    found_sure = sum(len(a & s) for a, s in zip(predicted, sure, strict=True))
    found_possible = sum(len(a & (p | s)) for a, p, s in zip(predicted, possible, sure, strict=True))
    return AlignmentScore(
        aer=1 - (found_sure + found_possible) / (all_predicted + all_sure),
        precision=found_possible / all_predicted if all_predicted else 0.0,
        recall=found_sure / all_sure if all_sure else 0.0,
    )


def links_from_weights(weights: Weights, shift: int = 0) -> set[Link]:
    """Link every target word to the source position with the largest weight in its row of ``weights`` (T, S).

    ``shift`` 0: row t belongs to the word predicted at step t, so T words are linked. ``shift`` 1: row t belongs to
    the word fed in at step t, so row 0 (the start sign) is left out and row t links word t - 1 (Luong et al. 2015,
    footnote 14). Ties go to the lowest position; a row without any weight gives no link.
    """
    if shift not in (0, 1):
        raise ValueError(f"shift is 0 or 1, not {shift}")
    rows = weights[shift:]
    if rows.size == 0:
        return set()
    best = rows.argmax(axis=1)
    return {(int(source), target) for target, source in enumerate(best) if rows[target, source] > 0}


def links_above(weights: Weights, threshold: float) -> set[Link]:
    """Link every target word to all source positions whose weight in its row of ``weights`` (T, S) is at least this.

    Raises ValueError for a threshold that is not above 0: it would link what has no weight.
    """
    if threshold <= 0:
        raise ValueError(f"a threshold is above 0, not {threshold}")
    return {(int(source), int(target)) for target, source in np.argwhere(weights >= threshold)}


def given_weights(
    weights: Weights, source_words: Sequence[int], target_words: Sequence[int], shift: int = 0
) -> Weights:
    """Weights of a given translation, pieces with the end sign last (T, S), to weights between its words (T', S').

    ``shift`` is that of `links_from_weights`; the words are numbered as in `merge_words`, the end sign is part of none.
    Of the T rows, T - 1 belong to the pieces: the first of them or, with ``shift`` 1, the last.
    """
    if shift not in (0, 1):
        raise ValueError(f"shift is 0 or 1, not {shift}")
    count = len(target_words) - 1
    return merge_words(weights[shift : shift + count], source_words, target_words[:count])


def merge_words(weights: Weights, source_words: Sequence[int], target_words: Sequence[int]) -> Weights:
    """Carry weights between pieces (T, S) to weights between words (T', S').

    ``source_words[s]`` is the number of the word that piece s is part of, or -1 for a piece outside all words (a start
    or end sign), which is dropped; ``target_words`` likewise. Weight is summed over the source pieces of a word and
    averaged over the target pieces. A shift of rows comes first: it is one of pieces, not of words.
    Raises ValueError when the numbers do not fit the shape, or a word has no piece.
    """
    if weights.shape != (len(target_words), len(source_words)):
        raise ValueError(
            f"weights {weights.shape} for {len(target_words)} target and {len(source_words)} source pieces"
        )
    member_of_source = _membership(source_words)  # (S', S)
    member_of_target = _membership(target_words)  # (T', T)
    average = member_of_target / member_of_target.sum(axis=1, keepdims=True)
    merged: Weights = average @ weights @ member_of_source.T  # (T', S')
    return merged


def entropy(weights: Weights) -> Weights:
    """Entropy in nats of each row of ``weights`` (..., S) -> (...); 0 where all weight is on one position."""
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    # abs, because a sum of exact zeros would come out as -0.0
    result: Weights = np.abs((weights * logs).sum(axis=-1))
    return result


def _membership(words: Sequence[int]) -> Weights:
    """1 where piece p is part of word w (words, pieces)."""
    numbers = np.asarray(words, dtype=np.int64)
    member: NDArray[np.float64] = (numbers == np.arange(numbers.max(initial=-1) + 1)[:, None]).astype(np.float64)
    if not member.any(axis=1).all():
        raise ValueError("every word up to the highest number needs a piece")
    return member
