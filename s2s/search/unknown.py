"""Unknown words of a translation, replaced through attention.

The word of the source that was attended most where the model wrote UNK, or its entry in a dictionary, takes the place
of the word that holds the UNK (Jean et al. 2015, On Using Very Large Target Vocabulary for Neural Machine Translation,
section 4.1; the idea, with word positions in place of attention, is of Luong et al. 2015, Addressing the Rare Word
Problem in Neural Machine Translation).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from s2s.data.tokenizer import UNKNOWN, Tokenizer
from s2s.interfaces import UNK

_SIGNS = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)


class UnknownWords:
    """Puts words in the place of UNK. ``tokenizer`` is the target's; ``dictionary`` maps words of the source."""

    def __init__(self, tokenizer: Tokenizer, dictionary: Mapping[str, str]) -> None:
        self.tokenizer, self.dictionary = tokenizer, dictionary

    def words(
        self, ids: Sequence[int], weights: Tensor, source: Sequence[str], source_words: Sequence[int]
    ) -> list[str]:
        """The words of a translation, each UNK replaced; an entry of the dictionary may be several words.

        ``ids`` (T) are without EOS, ``weights`` (T or more, S) what was attended at each, ``source`` the words of the
        line and ``source_words`` (S) the number of the word that each source position is part of, -1 for none. An UNK
        that attended to no word stays as it is.
        """
        words, numbers = self.tokenizer.decode(ids).split(), self.tokenizer.words(ids)
        for number in {numbers[place] for place, index in enumerate(ids) if index == UNK}:
            steps = [place for place, index in enumerate(ids) if index == UNK and numbers[place] == number]
            attended = [0.0] * len(source)
            for word, weight in zip(source_words, weights[steps].sum(0).tolist(), strict=True):
                if word >= 0:
                    attended[word] += weight
            best = max(range(len(source)), key=lambda word: attended[word], default=-1)
            if best >= 0 and attended[best] > 0:
                words[number] = self._replacement(words[number], source[best])
        return words

    def _replacement(self, word: str, source: str) -> str:
        """What takes the place of ``word``: a word keeps its own signs on either side, such as the stop of "⁇."."""
        before, _, after = _apart(word.replace(UNKNOWN, "x"))
        if source in self.dictionary:
            return f"{before}{self.dictionary[source]}{after}"
        left, core, right = _apart(source)
        return f"{before or left}{self.dictionary.get(core, core)}{after or right}"


def _apart(word: str) -> tuple[str, str, str]:
    """The signs before, the rest, and the signs after; what is nothing but signs is all before."""
    match = _SIGNS.fullmatch(word)
    assert match is not None
    return match[1], match[2], match[3]
