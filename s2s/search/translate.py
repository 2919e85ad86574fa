"""Lines in, translations out: one for one, in order, whatever stands in the lines.

Lines are taken in windows; within a window sentences of like length are decoded together, and the answers come out in
the order of the lines. A blank line stays blank and the model is not asked. A line longer than the model may read is
cut at spaces and its parts are translated one by one.

A model of documents is given the source lines before each, up to the last one that is blank or could not be read. They
do not depend on what is translated, so its lines are batched like any others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn

from s2s.analysis.alignment import Link, links_from_weights, merge_words
from s2s.data.batches import padded, sentences_of
from s2s.data.text import printable_output
from s2s.data.tokenizer import Tokenizer, Tokenizers
from s2s.errors import DataError
from s2s.interfaces import BOS, EOS, Searchable
from s2s.search.beam import Hypothesis, SearchSettings, Wishes, beam_search, can_enter
from s2s.search.documents import Document, first_before
from s2s.search.phrases import Forbidden, Ids, spelled
from s2s.search.unknown import UnknownWords
from s2s.tree import map_tree

LongLines = Literal["split", "truncate", "error"]

_WINDOW = 16
"""Batches that are pooled for sorting by length; the first windows are smaller, so that the first answers come soon."""
_QUEUE = 4
"""Batches that are searched as one where sentences may enter while others are searched; all their memory is there."""
_HYPOTHESES = 8
"""Of a sentence, that find room in its share of a batch."""


class Line(NamedTuple):
    """What is asked: a line, and what its translation must begin with and contain; all of it normalised text."""

    text: str
    prefix: str = ""
    required: tuple[str, ...] = ()
    begins: bool = False
    """Whether a document begins here, with no blank line before."""


class Part(NamedTuple):
    """A line, or a piece of one that was cut, and one translation of it."""

    source: list[int]
    """Source ids (S), EOS at the end."""
    source_words: list[int]
    """(S) the number of the word of the line that each is part of, -1 for EOS."""
    hypothesis: Hypothesis
    before: tuple[list[int], ...] = ()
    """The ids of the sentences before the line that the model read, the nearest first, EOS at the end of each."""


class Candidate(NamedTuple):
    """One translation of a line."""

    text: str
    score: float
    """The normalised log-probability, summed over the parts of a line that was cut."""
    log_probability: float
    tokens: list[str]
    """Pieces as they are shown, without EOS."""
    parts: list[Part]
    links: set[Link] | None
    """Which words of the line its words come from; None if that was not asked for."""


class Translation(NamedTuple):
    """What became of one line."""

    number: int
    """Of the line, from 1."""
    line: str
    candidates: list[Candidate]
    """Best first, at least one, or drawn one after the other; of a blank line one that is blank."""

    @property
    def text(self) -> str:
        """The best translation."""
        return self.candidates[0].text


class _Asked(NamedTuple):
    """What search is asked: the source of a part, and what is wished for its translation."""

    source: list[int]
    source_words: list[int]
    wishes: Wishes
    before: tuple[list[int], ...]
    """The sentences before the line, the nearest first."""


class Taken(NamedTuple):
    """A line that is understood: its parts are none of a blank one, several of one that is too long."""

    number: int
    """Of the line, from 1."""
    line: Line
    parts: list[_Asked]
    is_long: bool = False
    """Whether it is longer than the model may read."""

    @property
    def before(self) -> tuple[list[int], ...]:
        """The ids of the sentences of its document before it that the model reads, the nearest first."""
        return self.parts[0].before if self.parts else ()


class Translator:
    """A model with its vocabularies and settings of search."""

    def __init__(
        self,
        model: Searchable,
        tokenizers: Tokenizers,
        settings: SearchSettings,
        device: torch.device,
        *,
        n_best: int = 1,
        attention: bool = False,
        alignment: bool = False,
        long_lines: LongLines = "split",
        forbidden: Sequence[str] = (),
        dictionary: Mapping[str, str] | None = None,
        where: str = "input",
    ) -> None:
        """``attention``: keep the weights of every hypothesis; ``alignment``: give links between words.

        ``dictionary``: replace unknown words, with these entries where there is one; None leaves them.
        ``forbidden``: phrases, normalised and not blank, that no translation may contain, each part of a line that is
        cut for itself. ``where``: what to call the input in messages.
        """
        self.model, self.tokenizers, self.settings, self.device = model, tokenizers, settings, device
        self.n_best, self.alignment, self.long_lines, self.where = n_best, alignment, long_lines, where
        self.attention = attention or alignment or dictionary is not None
        self.forbidden = Forbidden(forbidden, tokenizers.target)
        self.unknown = None if dictionary is None else UnknownWords(tokenizers.target, dictionary)
        self.long = 0
        """Lines met that were too long."""

    def translate(
        self, lines: Iterable[Line | str | None], *, window: int | None = None, check: Callable[[], None] | None = None
    ) -> Iterator[Translation]:
        """A translation for every line; None, a line that could not be read, becomes a blank one.

        ``window``: the most lines taken before the first answer. ``check`` is called between batches and may raise.
        Raises DataError for a line that is too long where that is an error, and for wishes that cannot be met.
        """
        for taken in self.windows(lines, window):
            yield from self.answers(taken, check)

    def windows(self, lines: Iterable[Line | str | None], window: int | None = None) -> Iterator[list[Taken]]:
        """The lines in the parts in which `translate` answers them."""
        document = Document(self.model.sentences_before, self.settings.max_source_length)
        rest = (
            self._next(number, line if isinstance(line, Line) else Line(line or ""), document)
            for number, line in enumerate(lines, start=1)
        )
        batches = 1
        while taken := list(_until(rest, batches * self.settings.batch_tokens, window)):
            yield taken
            batches = min(2 * batches, _WINDOW)

    def answers(self, lines: Sequence[Taken], check: Callable[[], None] | None = None) -> Iterator[Translation]:
        """A translation for every line of a window, which is searched as a whole."""
        if isinstance(self.model, nn.Module):
            self.model.eval()
        parts = [part for line in lines for part in line.parts]
        found: dict[int, list[Hypothesis]] = {}
        for batch, together in self._batches(parts):
            if check is not None:
                check()
            found |= dict(zip(batch, self._search([parts[index] for index in batch], together), strict=True))
        first = 0
        for line in lines:
            own = range(first, first + len(line.parts))
            first = own.stop
            yield self._joined(line, [found.pop(index) for index in own])

    def translate_at(self, lines: Sequence[str], places: Sequence[int]) -> Iterator[Translation]:
        """Translations of the lines at these places, counted from 0: each the one that it has in the whole text."""
        count = self.model.sentences_before
        asked = []
        for place in places:
            document = Document(count, self.settings.max_source_length)
            for at in range(first_before(lines, place, count), place + 1):
                taken = self._next(at + 1, Line(lines[at]), document)
            asked.append(taken)
        yield from self.answers(asked)

    def warnings(self) -> list[str]:
        """What a reader of the output should know, one line each."""
        if not self.long:
            return []
        limit = f"search.max_source_length ({self.settings.max_source_length} pieces)"
        done = "the rest was left out" if self.long_lines == "truncate" else "cut at spaces, their translations joined"
        return [f"{self.where}: {self.long} lines are longer than {limit}: {done}"]

    # --- what is asked ------------------------------------------------------------------------------------------------

    def _next(self, number: int, line: Line, document: Document) -> Taken:
        """The next line of a text, with the sentences of its document before it."""
        if line.begins or not line.text.strip():
            document.end()
        taken = self.take(number, line, document.before)
        self.long += taken.is_long  # here, since a line may be taken once more by who answers it
        if taken.parts:
            document.add([index for part in taken.parts for index in part.source[:-1]])
        return taken

    def take(self, number: int, line: Line, before: tuple[list[int], ...] = ()) -> Taken:
        """The line in pieces, cut if it is too long. Raises DataError as `translate` does.

        ``before``: see `Taken.before`.
        """
        if not line.text.strip():
            return Taken(number, line, [])
        tokenizer, wishes = self.tokenizers.source, self._wishes(number, line)
        ids = tokenizer.encode(line.text)
        words, limit = tokenizer.words(ids), self.settings.max_source_length - 1
        is_long = len(ids) > limit
        pieces = self._cut(number, line, ids, limit) if is_long else [(0, len(ids))]
        parts = []
        for part, (start, end) in enumerate(pieces):
            own = wishes._replace(part=part, prefix=() if part else wishes.prefix)
            parts.append(_Asked([*ids[start:end], EOS], [*words[start:end], -1], own, before))
        return Taken(number, line, parts, is_long)

    def _wishes(self, number: int, line: Line) -> Wishes:
        """What is wished for a line, in pieces. Raises DataError where the vocabulary or another wish is against it."""
        found = []
        for phrase in filter(None, (line.prefix, *line.required)):
            ids = spelled(phrase, self.tokenizers.target)
            if ids is None:
                raise self._error(number, f"the model's vocabulary cannot write {phrase!r}", "ask for other words")
            if any(True for _ in self.forbidden.in_text(phrase)):
                raise self._error(number, f"{phrase!r} contains a phrase that is forbidden", "ask for one of them only")
            found.append(ids)
        prefix = found.pop(0) if line.prefix else ()
        return Wishes(number=number - 1, prefix=prefix, required=tuple(found))

    def _cut(self, number: int, line: Line, ids: list[int], limit: int) -> list[tuple[int, int]]:
        """The parts of a line that is too long, as ``long_lines`` says."""
        too_long = f"{len(ids) + 1} pieces, search.max_source_length is {limit + 1}"
        if self.long_lines == "error":
            raise self._error(number, too_long, "set it higher, or give --long-lines split")
        parts = _cut(ids, self.tokenizers.source, limit)
        if self.long_lines == "truncate":
            return parts[:1]
        if line.required:
            what = f"{too_long}: nobody can say in which part of it the required phrases belong"
            raise self._error(number, what, "set it higher, or require nothing of this line")
        return parts

    def _error(self, number: int, what: str, todo: str) -> DataError:
        return DataError(f"{self.where}: line {number}", what, todo)

    # --- searching ----------------------------------------------------------------------------------------------------

    def _batches(self, parts: list[_Asked]) -> Iterator[tuple[list[int], int]]:
        """Indices of parts, longest first, and how many of them fit ``batch_tokens`` padded positions together.

        More are given only where sentences enter while others are searched, and none that has less than half of the
        positions of the longest, to which all are padded. The encoder never reads more than `_QUEUE` times as many
        positions at once, those of the sentences before among them, unless one part alone needs them.
        """
        queue = _QUEUE if can_enter(self.model, self.settings) else 1
        order = sorted(range(len(parts)), key=lambda index: (-len(parts[index].source), index))
        while order:
            longest = len(parts[order[0]].source)
            room = self._room_before([parts[index].before for index in order])
            together = min(max(1, self.settings.batch_tokens // (longest * self._places)), room)
            size = min(together * queue, len(order), room)
            while size > together and 2 * len(parts[order[size - 1]].source) < longest:
                size -= 1
            yield order[:size], together
            order = order[size:]

    @property
    def _places(self) -> int:
        """As how many sentences one counts in a batch: many hypotheses of it, or draws, need the memory of several."""
        return math.ceil((self.settings.beam if self.settings.sampling is None else self.n_best) / _HYPOTHESES)

    def _room_before(self, before: list[tuple[list[int], ...]]) -> int:
        """How many of the first parts may be read at once, by the sentences ``before`` each; at least 1."""
        if not self.model.sentences_before:
            return max(1, len(before))
        sentences = longest = 0
        for part, one in enumerate(before):
            sentences, longest = sentences + len(one), max(longest, 0, *map(len, one))
            if part and sentences * longest > _QUEUE * self.settings.batch_tokens:
                return part
        return max(1, len(before))

    def _search(self, parts: list[_Asked], together: int) -> list[list[Hypothesis]]:
        """Search, and again wherever a forbidden phrase came out, now without the spelling that was used.

        None enters in a search that is told what not to say, so these are done ``together`` at a time.
        """
        found, asked = dict(enumerate(self._beam(parts, together))), dict(enumerate(parts))
        while asked := {index: more for index, part in asked.items() if (more := self._refused(part, found[index]))}:
            again = list(asked)
            for some in (again[first : first + together] for first in range(0, len(again), together)):
                found |= zip(some, self._beam([asked[index] for index in some], together), strict=True)
        return [found[index] for index in range(len(parts))]

    def _refused(self, part: _Asked, found: list[Hypothesis]) -> _Asked | None:
        """What to ask instead where a hypothesis has a forbidden phrase; None where none has."""
        wishes = part.wishes
        kept = (wishes.prefix, *wishes.required)
        spellings = set[Ids]().union(*(self.forbidden.spellings(one.ids, kept) for one in found))
        if not spellings:
            return None
        assert not spellings <= {*wishes.forbidden}, "search says what it was asked not to say"
        return part._replace(wishes=wishes._replace(forbidden=(*wishes.forbidden, *sorted(spellings))))

    def _beam(self, parts: list[_Asked], together: int) -> list[list[Hypothesis]]:
        source, lengths = map(torch.from_numpy, padded([part.source for part in parts]))
        before = sentences_of([part.before for part in parts], self.model.sentences_before)
        return beam_search(
            self.model, source.to(self.device), lengths.to(self.device), self.settings,
            attention=self.attention, n_best=self.n_best, wishes=[part.wishes for part in parts],
            before=map_tree(lambda tensor: tensor.to(self.device), before), together=together,
        )  # fmt: skip

    # --- what is answered ---------------------------------------------------------------------------------------------

    def _joined(self, line: Taken, found: list[list[Hypothesis]]) -> Translation:
        """The best ways to translate the parts of a line, one after the other; when sampling, draw by draw."""
        options = [
            [Part(asked.source, asked.source_words, one, asked.before) for one in hypotheses]
            for asked, hypotheses in zip(line.parts, found, strict=True)
        ]
        ways: list[list[Part]] = [[]]
        if self.settings.sampling is not None and options:
            ways = [list(way) for way in zip(*options, strict=True)]
        else:
            for parts in options:
                ways = [[*way, part] for way in ways for part in parts]
                ways = sorted(ways, key=lambda way: -sum(part.hypothesis.score for part in way))[: self.n_best]
        text = line.line.text
        return Translation(line.number, text, [self._candidate(text.split(), way) for way in ways])

    def _candidate(self, source: list[str], parts: list[Part]) -> Candidate:
        texts = [self._words(source, part) for part in parts]
        ids = [index for part in parts for index in part.hypothesis.ids]
        return Candidate(
            text=" ".join(word for words in texts for word in words if word),
            score=sum(part.hypothesis.score for part in parts),
            log_probability=sum(part.hypothesis.log_probability for part in parts),
            tokens=self.tokenizers.target.pieces(ids),
            parts=parts,
            links=self._links(texts, parts) if self.alignment else None,
        )

    def _words(self, source: list[str], part: Part) -> list[str]:
        """The words of one part, each as it is printed; what stands for an unknown one may be several."""
        ids, weights = part.hypothesis.ids, part.hypothesis.attention
        words = self.tokenizers.target.decode(ids).split()
        if self.unknown is not None and weights is not None:
            replaced = self.unknown.words(ids, weights, source, part.source_words)
            if not any(True for _ in self.forbidden.in_text(" ".join(replaced))):
                words = replaced
        return [printable_output(word) for word in words]

    def _links(self, texts: list[list[str]], parts: list[Part]) -> set[Link]:
        """Each word of the text with the word of the line that was attended to most, counted over all parts."""
        found, before = set[Link](), 0
        for words, part in zip(texts, parts, strict=True):
            starts = [before]
            for word in words:
                starts.append(starts[-1] + len(word.split()))
            for source, target in word_links(part, self.tokenizers.target):
                found |= {(source, place) for place in range(starts[target], starts[target + 1])}
            before = starts[-1]
        return found


def word_links(part: Part, target: Tokenizer) -> set[Link]:
    """(word of the line, word of the part's translation) for every word of the translation that attended to one."""
    weights = part.hypothesis.attention
    if weights is None:
        return set()
    first = min((word for word in part.source_words if word >= 0), default=0)
    own = [word - first if word >= 0 else -1 for word in part.source_words]
    ids = part.hypothesis.ids
    merged = merge_words(weights[: len(ids)].numpy(), own, target.words(ids))
    return {(first + source, word) for source, word in links_from_weights(merged)}


@torch.no_grad()
def gives_attention(model: Searchable, device: torch.device) -> bool:
    """Whether a model or an ensemble has attention weights to show: it is asked for one word after nothing."""
    source, length = torch.tensor([[EOS]], device=device), torch.tensor([1], device=device)
    memory, state = model.start(source, length, frozenset({"weights"}))
    return model.step(torch.tensor([BOS], device=device), memory, state)[1] is not None


def _until(lines: Iterator[Taken], pieces: int, window: int | None) -> Iterator[Taken]:
    """The next lines, until they have so many pieces or are so many; a blank line counts as one piece."""
    for taken, line in enumerate(lines, start=1):
        yield line
        pieces -= max(1, sum(len(part.source) for part in line.parts))
        if pieces <= 0 or taken == window:
            return


def _cut(ids: list[int], tokenizer: Tokenizer, limit: int) -> list[tuple[int, int]]:
    """Parts of at most ``limit`` pieces, as first and one past the last, cut between words where a word fits at all."""
    words = tokenizer.words(ids)
    parts: list[tuple[int, int]] = []
    first = 0
    while first < len(ids):
        end = min(first + limit, len(ids))
        cut = end
        while end < len(ids) and cut > first and words[cut] == words[cut - 1]:
            cut -= 1
        end = cut if cut > first else end
        parts.append((first, end))
        first = end
    return parts
