"""Phrases that a translation must begin with, contain, or not contain: from text to the ids that search works on.

What is asked for holds of the text, whatever pieces spell it:

- *begin, contain*: the phrase is given to search in the pieces that the vocabulary cuts it into, at the beginning of a
  word. Its last word may come out with an ending, "Hund" as "Hunde".
- *not contain*: as whole words, "Hund" in "Hund," but not in "Hunde". One text has many spellings in pieces, far too
  many to list, so `Forbidden` looks at what search found, and search is asked again without the spelling that was used.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from s2s.data.tokenizer import Tokenizer

Ids = tuple[int, ...]


def spelled(phrase: str, tokenizer: Tokenizer) -> Ids | None:
    """The pieces of a phrase; None where the vocabulary cannot write it."""
    ids = tokenizer.encode(phrase)
    return tuple(ids) if tokenizer.decode(ids) == phrase else None


class Forbidden:
    """Phrases that are not to occur as whole words."""

    def __init__(self, phrases: Sequence[str], tokenizer: Tokenizer) -> None:
        """``phrases`` are normalised and not blank."""
        self.tokenizer = tokenizer
        longest_first = sorted(set(phrases), key=lambda phrase: (-len(phrase), phrase))
        self._any = re.compile("|".join(map(re.escape, longest_first))) if phrases else None
        self._each = [re.compile(re.escape(phrase)) for phrase in longest_first]

    def in_text(self, text: str) -> Iterator[tuple[int, int]]:
        """Where forbidden phrases stand in a text: first character, and the one after the last."""
        if self._any is None or not self._any.search(text):
            return
        for pattern in self._each:
            place = 0
            while match := pattern.search(text, place):
                if not _inside_a_word(text, match.start()) and not _inside_a_word(text, match.end()):
                    yield match.span()
                place = match.start() + 1

    def spellings(self, ids: Sequence[int], kept: Sequence[Ids] = ()) -> set[Ids]:
        """The runs of pieces that spell forbidden phrases: where search cannot say these, the phrases are not there.

        A run is all pieces that give a character of the phrase. Where the phrase begins as words do, the piece that
        ends the word before is in it too, for the same pieces may end another word; a sign or a character of a script
        without spaces ends none. If the run stands in a phrase of ``kept``, which must be said, the pieces after it, as
        many as it takes; and where the text ends, those before it.
        """
        text = self.tokenizer.decode(ids)
        places = list(self.in_text(text))
        ends = self._ends(ids, text) if places else []
        begins = [0, *ends]
        runs = set[Ids]()
        for first, last in places:
            run = [place for place in range(len(ids)) if begins[place] < last and ends[place] > first]
            start, stop = run[0], run[-1] + 1
            if begins[start] == first and start > 0 and _in_word(text[first]):
                start -= 1
            while stop - start < len(ids) and any(_occurs(ids[start:stop], phrase) for phrase in kept):
                start, stop = (start, stop + 1) if stop < len(ids) else (start - 1, stop)
            runs.add(tuple(ids[start:stop]))
        return runs

    def _ends(self, ids: Sequence[int], text: str) -> list[int]:
        """Of each piece, where its characters end in the text; a space belongs to the piece that brings it."""
        ends: list[int] = []
        for count in range(1, len(ids) + 1):
            end, before = len(self.tokenizer.decode(ids[:count])), ends[-1] if ends else 0
            ends.append(end if end > before else before + (before == end and text.startswith(" ", end)))
        return ends


def _occurs(run: Sequence[int], phrase: Ids) -> bool:
    return any(phrase[place : place + len(run)] == tuple(run) for place in range(len(phrase) - len(run) + 1))


def _inside_a_word(text: str, place: int) -> bool:
    """Whether the characters before and at ``place`` belong to one word."""
    return 0 < place < len(text) and _in_word(text[place - 1]) and _in_word(text[place])


def _in_word(character: str) -> bool:
    """Letters, digits and the marks on them; not those of scripts that put no spaces, whose characters are wide."""
    letter = character.isalnum() or unicodedata.category(character).startswith("M")
    return letter and unicodedata.east_asian_width(character) not in ("W", "F")
