"""The preparation that published corpora have had from the scripts of Moses, by sacremoses, which s2s needs anyway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fetching import EXIT_USAGE, Failure

LONGEST_WORD = 1000
"""Characters; a pair with a longer word is left out, as clean-corpus-n.perl does."""


def tokenise(lines: Iterable[str], language: str) -> Iterator[str]:
    """What tokenizer.perl makes of every line, with its default options: quotes and ``&`` become entities."""
    try:
        from sacremoses import MosesTokenizer
    except ImportError as error:
        raise Failure(EXIT_USAGE, "sacremoses: is not installed; run this with the environment of s2s") from error
    tokeniser = MosesTokenizer(lang=language)
    for line in lines:
        yield tokeniser.tokenize(line, return_str=True)


def is_clean(pair: tuple[str, str], longest: int, ratio: float) -> bool:
    """Whether clean-corpus-n.perl keeps a tokenised pair: 1 to ``longest`` words a side, at most ``ratio`` to 1."""
    first, second = (line.split() for line in pair)
    fewer, more = sorted((len(first), len(second)))
    return fewer > 0 and more <= longest and more / fewer <= ratio and max(map(len, first + second)) <= LONGEST_WORD
