"""What is asked of one translation: how it begins, what it must say and what it must not; checked and made tensors.

`Wishes` are plain ids, one for each sentence. Before search starts they are held against the longest translation of
their sentence and against each other, and become padded tensors, so that no step looks at sentences one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from s2s.errors import UsageError
from s2s.interfaces import BOS, EOS, PAD

Phrase = tuple[int, ...]


class Wishes(NamedTuple):
    """What is asked of the translation of one sentence, in target ids without PAD, BOS and EOS."""

    number: int = 0
    """The sentence's number in the input, from 0. It seeds the draws of sampling, and messages name line number + 1."""
    part: int = 0
    """Which part of that sentence it is, where one is cut; it seeds the draws too."""
    prefix: Phrase = ()
    """What the translation begins with."""
    required: tuple[Phrase, ...] = ()
    """Phrases that occur in it, each at least once, in any order; they may overlap."""
    forbidden: tuple[Phrase, ...] = ()
    """Phrases that do not occur in it."""


class Required(NamedTuple):
    """The required phrases of n beams: an automaton for each that reads the translation word by word. A tree.

    There are P phrases of at most L words, and W words that occur in any of them. Missing words are PAD, missing
    phrases have no words.
    """

    words: Tensor
    """(n, W) the words of the phrases, each once."""
    length: Tensor
    """(n, P) words of each phrase."""
    moves: Tensor
    """(n, P, L + 1, W + 1): where the last q words said are the first q of a phrase, how many are after the next word;
    the last column is that of all other words. A phrase that was said stays said."""

    def after(self, progress: Tensor, token: Tensor) -> Tensor:
        """What ``token`` (n, K) makes of ``progress`` (n, K, P)."""
        known = token.unsqueeze(-1) == self.words.unsqueeze(1)  # (n, K, W)
        column = torch.where(known.any(-1), known.byte().argmax(-1), self.words.size(1))
        return self.ahead(progress).gather(3, column[..., None, None].expand(*progress.shape, 1)).squeeze(3)

    def ahead(self, progress: Tensor) -> Tensor:
        """What each of the W words, and any other, would make of ``progress`` (n, K, P): (n, K, P, W + 1)."""
        moves = self.moves.unsqueeze(1).expand(-1, progress.size(1), -1, -1, -1)  # (n, K, P, L + 1, W + 1)
        return moves.gather(3, progress[..., None, None].expand(*progress.shape, 1, moves.size(-1))).squeeze(3)

    def missing(self, progress: Tensor) -> Tensor:
        """Words that suffice to say what has not been said at ``progress`` (n, K, P, ...): (n, K, ...).

        The phrase that is furthest is finished, the others follow one after another. Some word always lowers it; a
        translation in which phrases overlap needs fewer.
        """
        length = self.length.view(len(self.length), 1, -1, *[1] * (progress.dim() - 3))
        unsaid = progress < length
        return (length * unsaid).sum(2) - (progress * unsaid).amax(2)


class Table(NamedTuple):
    """The wishes of n beams; a tree. None is what no sentence of the call wishes."""

    forced: Tensor | None
    """(n, words) the prefixes, then PAD."""
    forbidden: Tensor | None
    """(n, phrases, words) flush right, PAD before them."""
    required: Required | None


def tabled(wishes: Sequence[Wishes], limits: Sequence[int], no_repeat_ngram: int, device: torch.device) -> Table:
    """The wishes of sentences whose translations have at most ``limits`` tokens, EOS counted, and repeat no n-gram.

    Raises UsageError, which names the line, where no translation could be what is wished.
    """
    for wish in wishes:
        _check(wish, no_repeat_ngram)
    forced = forbidden = required = None
    if any(wish.prefix for wish in wishes):
        forced = _padded([[wish.prefix] for wish in wishes])[:, 0].to(device)
    if any(wish.forbidden for wish in wishes):
        turned = [[phrase[::-1] for phrase in wish.forbidden] for wish in wishes]
        forbidden = _padded(turned).flip(-1).to(device)
    if any(wish.required for wish in wishes):
        required = _automata([_independent(wish.required) for wish in wishes])
    _check_lengths(wishes, limits, required)
    return Table(forced, forbidden, None if required is None else Required(*(part.to(device) for part in required)))


def _independent(phrases: Sequence[Phrase]) -> list[Phrase]:
    """Each phrase once, without those that stand in others and so are said with them."""
    different = sorted(set(phrases))
    return [
        phrase for phrase in different if not any(phrase != other and _occurs(phrase, other) for other in different)
    ]


def _padded(phrases: list[list[Phrase]]) -> Tensor:
    """(n, most phrases, most words), PAD where there is none."""
    most = max(map(len, phrases))
    longest = max(len(phrase) for some in phrases for phrase in some)
    blank = [PAD] * longest
    rows = [[[*phrase, *blank[len(phrase) :]] for phrase in some] + [blank] * (most - len(some)) for some in phrases]
    return torch.tensor(rows)


def _automata(phrases: list[list[Phrase]]) -> Required:
    words = [sorted({word for phrase in some for word in phrase}) for some in phrases]
    most, longest = max(map(len, phrases)), max(len(phrase) for some in phrases for phrase in some)
    length = torch.zeros(len(phrases), most, dtype=torch.long)
    moves = torch.zeros(len(phrases), most, longest + 1, max(map(len, words)) + 1, dtype=torch.long)
    for beam, (some, alphabet) in enumerate(zip(phrases, words, strict=True)):
        for place, phrase in enumerate(some):
            length[beam, place] = len(phrase)
            moves[beam, place, len(phrase)] = len(phrase)
            for said, following in enumerate(_automaton(phrase)):
                row = [following.get(word, 0) for word in alphabet]
                moves[beam, place, said, : len(row)] = torch.tensor(row)
    return Required(_padded([[tuple(alphabet)] for alphabet in words])[:, 0], length, moves)


def _automaton(phrase: Phrase) -> list[dict[int, int]]:
    """For q = 0 .. of a phrase whose first q words are the last said: how many after the next word, 0 if not named.

    What Knuth, Morris and Pratt (1977) match texts with: a wrong word leads where the longest end of what was said
    that is also a beginning of the phrase would lead.
    """
    rows: list[dict[int, int]] = [{phrase[0]: 1}]
    border = 0
    for said, word in enumerate(phrase[1:], 1):
        rows.append(rows[border] | {word: said + 1})
        border = rows[border].get(word, 0)
    return rows


def _check(wish: Wishes, no_repeat_ngram: int) -> None:
    """Raise UsageError for words that no translation has, and for wishes that exclude each other."""
    where = f"line {wish.number + 1}"
    for phrase in (wish.prefix, *wish.required, *wish.forbidden):
        if {PAD, BOS, EOS} & set(phrase):
            raise UsageError(where, "a phrase has ids of control symbols", "ask for words only")
    if not all((*wish.required, *wish.forbidden)):
        raise UsageError(where, "a required or forbidden phrase has no words", "leave it out")
    for forbidden in wish.forbidden:
        if _occurs(forbidden, wish.prefix):
            raise UsageError(where, "a forbidden phrase stands in the prefix", "give up one of the two")
        if any(_occurs(forbidden, phrase) for phrase in wish.required):
            raise UsageError(where, "a phrase is required and forbidden", "give up one of the two")
    if no_repeat_ngram and any(_repeats(phrase, no_repeat_ngram) for phrase in wish.required):
        what = f"a required phrase repeats {no_repeat_ngram} of its own words, which search.no_repeat_ngram forbids"
        raise UsageError(where, what, "give up one of the two")


def _occurs(phrase: Phrase, text: Phrase) -> bool:
    return any(text[place : place + len(phrase)] == phrase for place in range(len(text) - len(phrase) + 1))


def _repeats(phrase: Phrase, size: int) -> bool:
    grams = [phrase[place : place + size] for place in range(len(phrase) - size + 1)]
    return len(set(grams)) < len(grams)


def _check_lengths(wishes: Sequence[Wishes], limits: Sequence[int], required: Required | None) -> None:
    """Raise UsageError for wishes that the longest translation has no room for."""
    missing = [0] * len(wishes) if required is None else _missing_after_prefix(wishes, required)
    for wish, limit, words in zip(wishes, limits, missing, strict=True):
        if (needed := len(wish.prefix) + words + 1) > limit:
            raise UsageError(
                f"line {wish.number + 1}",
                f"its prefix and required phrases need {needed} tokens with EOS, the translation may have {limit}",
                "ask for less, or set search.max_length_extra higher",
            )


def _missing_after_prefix(wishes: Sequence[Wishes], required: Required) -> list[int]:
    """`Required.missing` of each sentence once its prefix is said."""
    progress = torch.zeros_like(required.length).unsqueeze(1)  # (n, 1, P)
    for place in range(max(len(wish.prefix) for wish in wishes)):
        word = torch.tensor([[wish.prefix[place] if place < len(wish.prefix) else PAD] for wish in wishes])
        progress = torch.where((word == PAD).unsqueeze(-1), progress, required.after(progress, word))
    missing: list[int] = required.missing(progress).squeeze(1).tolist()
    return missing
