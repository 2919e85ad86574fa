"""Lines in, translations out: one for one, in order, whatever stands in the lines.

Lines are taken in windows; within a window sentences of like length are decoded together, and the answers come out in
the order of the lines. A blank line stays blank and the model is not asked. A line longer than the model may read is
cut at spaces and its parts are translated one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from s2s.data.text import printable_output
from s2s.data.tokenizer import Tokenizer, Tokenizers
from s2s.interfaces import EOS, PAD, Searchable
from s2s.search.beam import Hypothesis, SearchSettings, beam_search

_WINDOW = 16
"""Batches that are pooled for sorting by length."""


class Translation(NamedTuple):
    """What became of one line."""

    text: str
    score: float
    """The normalised log-probability, summed over the parts of a line that was cut; 0 for a blank line."""
    source: list[int]
    """Source ids, EOS at the end."""
    target: list[int]
    """Target ids, EOS at the end."""
    attention: Tensor | None
    """(target, source) weights if they were asked for and the model has any; None for a line that was cut."""


class Translator:
    """A model with its vocabularies and settings of search."""

    def __init__(
        self,
        model: Searchable,
        tokenizers: Tokenizers,
        settings: SearchSettings,
        device: torch.device,
        *,
        attention: bool = False,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        """``warn`` is told, once, of lines that had to be cut."""
        self.model, self.tokenizers, self.settings, self.device = model, tokenizers, settings, device
        self.attention, self.warn, self.cut = attention, warn, 0

    def translate(
        self, lines: Iterable[str | None], *, window: int | None = None, check: Callable[[], None] | None = None
    ) -> Iterator[Translation]:
        """A translation for every line; None, a line that could not be read, becomes a blank one.

        ``window``: lines taken before the first answer; by default enough for some batches. ``check`` is called between
        batches and may raise.
        """
        if isinstance(self.model, nn.Module):
            self.model.eval()
        size = window or max(1, _WINDOW * self.settings.batch_tokens // 32)
        rest = iter(lines)
        while taken := list(islice(rest, size)):
            yield from self._window([line or "" for line in taken], check)

    def _window(self, lines: list[str], check: Callable[[], None] | None) -> Iterator[Translation]:
        parts: list[list[int]] = []
        owners: list[list[int]] = []  # of each line, its parts
        for line in lines:
            pieces = self._parts(line)
            owners.append(list(range(len(parts), len(parts) + len(pieces))))
            parts += pieces
        found: list[Hypothesis | None] = [None] * len(parts)
        for batch in self._batches(parts):
            if check is not None:
                check()
            for index, hypothesis in zip(batch, self._search([parts[index] for index in batch]), strict=True):
                found[index] = hypothesis
        for own in owners:
            yield self._joined([(parts[index], found[index]) for index in own])

    def _parts(self, line: str) -> list[list[int]]:
        """The ids of a line with EOS: none for a blank line, several for one that is too long."""
        if not line.strip():
            return []
        ids = self.tokenizers.source.encode(line)
        limit = self.settings.max_source_length - 1
        if len(ids) <= limit:
            return [[*ids, EOS]]
        self.cut += 1
        if self.cut == 1 and self.warn is not None:
            self.warn(
                f"a line is longer than search.max_source_length ({limit + 1} pieces): cut at spaces, joined again"
            )
        return [[*part, EOS] for part in _cut(ids, self.tokenizers.source, limit)]

    def _batches(self, parts: list[list[int]]) -> Iterator[list[int]]:
        """Indices of parts, longest first, as many as fit ``batch_tokens`` padded positions."""
        order = sorted(range(len(parts)), key=lambda index: (-len(parts[index]), index))
        while order:
            count = max(1, self.settings.batch_tokens // len(parts[order[0]]))
            yield order[:count]
            order = order[count:]

    def _search(self, sources: list[list[int]]) -> list[Hypothesis]:
        lengths = torch.tensor([len(ids) for ids in sources])
        padded = torch.full((len(sources), int(lengths.max())), PAD)
        for row, ids in enumerate(sources):
            padded[row, : len(ids)] = torch.tensor(ids)
        found = beam_search(
            self.model, padded.to(self.device), lengths.to(self.device), self.settings, attention=self.attention
        )
        return [best for best, *_ in found]

    def _joined(self, parts: list[tuple[list[int], Hypothesis | None]]) -> Translation:
        texts, score, source, target = [], 0.0, [], []
        for ids, hypothesis in parts:
            assert hypothesis is not None
            texts.append(printable_output(self.tokenizers.target.decode(hypothesis.ids)))
            score += hypothesis.score
            source += ids
            target += [*hypothesis.ids, EOS]
        attention = parts[0][1].attention if len(parts) == 1 and parts[0][1] is not None else None
        return Translation(" ".join(filter(None, texts)), score, source, target, attention)


def _cut(ids: list[int], tokenizer: Tokenizer, limit: int) -> list[list[int]]:
    """Pieces in parts of at most ``limit``, cut between words where a word fits at all."""
    words = tokenizer.words(ids)
    parts: list[list[int]] = []
    first = 0
    while first < len(ids):
        end = min(first + limit, len(ids))
        cut = end
        while end < len(ids) and cut > first and words[cut] == words[cut - 1]:
            cut -= 1
        end = cut if cut > first else end
        parts.append(ids[first:end])
        first = end
    return parts
