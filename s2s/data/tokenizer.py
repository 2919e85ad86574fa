"""Text to pieces and back: SentencePiece models or plain words, learned from the training corpus, kept with the run.

Ids 0 to 3 are PAD, BOS, EOS and UNK (`s2s.interfaces`) in every vocabulary, and no text, whatever it says, is ever
given one of the first three. Text is expected as `s2s.data.text` gives it: NFC, single spaces, no control characters.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import random
from abc import ABC, abstractmethod
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import sentencepiece
from pydantic import Field, model_validator

from s2s.checkpoint import replace_file
from s2s.errors import CheckpointError, DataError
from s2s.interfaces import BOS, EOS, PAD, UNK
from s2s.settings import Settings, TokenizerSettings

RESERVED = ("<pad>", "<s>", "</s>", "<unk>")
"""How the ids PAD, BOS, EOS and UNK are shown."""

UNKNOWN = "⁇"
"""How an unknown piece reads in decoded text."""

_SPACE = "▁"  # U+2581, how SentencePiece writes the space before a word
_CONTROL = (PAD, BOS, EOS)
_UNKNOWN_PENALTY = 10.0  # how much less likely than the rarest piece an unknown character is, as in SentencePiece

_LONG_WORD = 20  # characters, beyond which a word's lattice is not kept

Model = Literal["bpe", "unigram", "char", "word"]


class SamplingSettings(Settings):
    """Subword regularisation: training batches see varying segmentations of both sides."""

    alpha: float = Field(default=0.1, gt=0.0, le=1.0)
    """With bpe the probability of leaving out a merge (Provilkov et al. 2020); with unigram the exponent on the
    probabilities of segmentations (Kudo 2018), flatter where it is smaller."""


class SentencePieceSettings(TokenizerSettings):
    """Subwords learned by SentencePiece."""

    kind: Literal["sentencepiece"] = "sentencepiece"
    model: Model = "bpe"
    """How text is cut: merged character pairs, a unigram language model, characters, or whole words."""
    vocabulary: int = Field(default=8000, gt=0)
    """The most pieces, the four reserved ones counted; a corpus that supports fewer gets fewer, with a warning."""
    joint: bool = True
    """One vocabulary for both languages, learned from both sides."""
    character_coverage: float = Field(default=1.0, ge=0.98, le=1.0)
    """The share of all characters that get a piece, the others are unknown; below 1 for Chinese or Japanese."""
    learn_from: int = Field(default=1_000_000, gt=0)
    """Pairs, at most, that the pieces are learned from. Of more than that, one is drawn from each of so many equal
    stretches of the text, always the same ones."""
    sampling: SamplingSettings | None = None
    """Vary the segmentation of training pairs; null always takes the best one."""

    @model_validator(mode="after")
    def _can_sample(self) -> SentencePieceSettings:
        if self.sampling is not None and self.model not in ("bpe", "unigram"):
            raise ValueError(f"sampling needs model bpe or unigram: a {self.model} model has only one segmentation")
        return self


class WhitespaceSettings(TokenizerSettings):
    """Words between spaces, for text that is tokenized already."""

    kind: Literal["whitespace"] = "whitespace"
    vocabulary: int | None = Field(default=None, gt=0)
    """The most words, the four reserved ones counted: the most frequent stay, of equals the first in code point order;
    null keeps all."""
    min_count: int = Field(default=1, ge=1)
    """Words that are seen less often are unknown."""
    joint: bool = True
    """One vocabulary for both languages, learned from both sides."""


class Tokenizer(ABC):
    """The vocabulary of one side. ``data`` is all there is to it, the content of its file."""

    kind: str
    """What to call the class and its variant in ``tokenizer.json``."""
    suffix: str

    def __init__(self, data: bytes, size: int) -> None:
        self.data = data
        self.size = size
        """How many ids there are."""
        self.fingerprint = hashlib.sha256(data).hexdigest()
        """Equal only for equal vocabularies."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The best segmentation, without BOS and EOS; what the vocabulary does not have is UNK."""

    @abstractmethod
    def encode_sampled(self, text: str, sampling: SamplingSettings, generator: random.Random) -> list[int]:
        """A drawn segmentation, without BOS and EOS; all chance comes from ``generator``."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, single-spaced; PAD, BOS and EOS are left out, UNK reads `UNKNOWN`."""

    @abstractmethod
    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each id as it is shown, the reserved ones as in `RESERVED`."""

    @abstractmethod
    def words(self, ids: Sequence[int]) -> list[int]:
        """For each id the number of the word of ``decode(ids).split()`` that it is part of; -1 if of none."""


class SentencePieceTokenizer(Tokenizer):
    """Pieces of a SentencePiece model; ``data`` is the library's own file format. ``tags`` are words that are always
    one piece."""

    suffix = "model"

    def __init__(self, data: bytes, kind: Model, tags: Sequence[str] = ()) -> None:
        self._model = sentencepiece.SentencePieceProcessor()
        self._model.load_from_serialized_proto(data)
        super().__init__(data, self._model.get_piece_size())
        self.kind = kind
        self.tags = frozenset(tags)
        learned = range(len(RESERVED), self.size)
        self._pieces = [*RESERVED, *(self._model.id_to_piece(index) for index in learned)]
        self._ids = {self._pieces[index]: index for index in learned}
        scores = {self._pieces[index]: self._model.get_score(index) for index in learned}
        self._lattice = _remembered(_lattices(scores))

    def __reduce__(self) -> tuple[Any, ...]:  # so that one process can hand it to another
        return SentencePieceTokenizer, (self.data, self.kind, sorted(self.tags))

    def encode(self, text: str) -> list[int]:
        text = _without_space_sign(text)
        # A word model joins unknown words that follow each other, so it is shown one word at a time.
        parts = text.split() if self.kind == "word" else [text]
        return [piece for part in parts for piece in self._model.encode(part)]

    def encode_sampled(self, text: str, sampling: SamplingSettings, generator: random.Random) -> list[int]:
        # Not the library's sampling: its generator cannot be seeded alike in all versions and processes. No piece spans
        # two words, so each word is drawn alone.
        if self.kind not in ("bpe", "unigram"):
            return self.encode(text)  # there is only one segmentation
        ids: list[int] = []
        for word in _without_space_sign(text).split():
            if word in self.tags:
                pieces = [_SPACE + word]
            elif self.kind == "unigram":
                pieces = _draw_path(_SPACE + word, self._lattice(_SPACE + word, sampling.alpha), generator.random)
            else:
                pieces = _drop_merges(_SPACE + word, self._ids, sampling.alpha, generator.random)
            for piece in pieces:
                index = self._ids.get(piece, UNK)
                if index != UNK or ids[-1:] != [UNK]:  # as the best segmentation, one UNK for unknown neighbours
                    ids.append(index)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self._model.decode([index for index in ids if index not in _CONTROL]).split())

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._pieces[index] for index in ids]

    def words(self, ids: Sequence[int]) -> list[int]:
        words: list[int] = []
        word, begins = -1, True
        for index in ids:
            piece = self._pieces[index]
            if index in _CONTROL:
                words.append(-1)
                continue
            begins = begins or piece.startswith(_SPACE) or self.kind == "word"
            words.append(word + begins)
            if piece.strip(_SPACE):  # a space alone belongs to the word that it begins
                word, begins = word + begins, False
        return [min(each, word) for each in words]  # spaces after the last word belong to it


class WhitespaceTokenizer(Tokenizer):
    """Whole words; ``data`` is UTF-8 text, a word a line, the first of them with the id 4."""

    kind = "whitespace"
    suffix = "vocab"

    def __init__(self, data: bytes) -> None:
        self._words = [*RESERVED, *data.decode().split("\n")] if data else [*RESERVED]
        super().__init__(data, len(self._words))
        self._ids = {word: index for index, word in enumerate(self._words) if index >= len(RESERVED)}

    def __reduce__(self) -> tuple[Any, ...]:  # so that one process can hand it to another
        return WhitespaceTokenizer, (self.data,)

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(word, UNK) for word in text.split()]

    def encode_sampled(self, text: str, sampling: SamplingSettings, generator: random.Random) -> list[int]:
        return self.encode(text)  # there is only one segmentation

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(UNKNOWN if index == UNK else self._words[index] for index in ids if index not in _CONTROL)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._words[index] for index in ids]

    def words(self, ids: Sequence[int]) -> list[int]:
        count = itertools.count()
        return [-1 if index in _CONTROL else next(count) for index in ids]


class Tokenizers(NamedTuple):
    """The vocabularies of both sides, one and the same object if they are joint."""

    source: Tokenizer
    target: Tokenizer

    @property
    def joint(self) -> bool:
        """Whether both sides have one vocabulary."""
        return self.source is self.target

    @property
    def fingerprint(self) -> str:
        """SHA-256 over both sides, for a model to name the vocabularies that it was trained with."""
        return hashlib.sha256(f"{self.source.fingerprint} {self.target.fingerprint}".encode()).hexdigest()


# --- sampling ---------------------------------------------------------------------------------------------------------

Draw = Callable[[], float]
Lattice = list[tuple[list[int], list[float]]]


def _drop_merges(word: str, ids: Mapping[str, int], drop: float, draw: Draw) -> list[str]:
    """BPE-dropout: of the possible merges, less those dropped in this round, make the one that was learned first.

    The end is a round in which no merge is left (Provilkov et al. 2020, algorithm 1).
    """
    pieces = list(word)
    while True:
        chosen, first = -1, len(ids) + len(RESERVED)
        for place in range(len(pieces) - 1):
            learned = ids.get(pieces[place] + pieces[place + 1], first)  # bpe ids follow the order of learning
            if learned < first and draw() >= drop:
                chosen, first = place, learned
        if chosen < 0:
            return pieces
        pieces[chosen : chosen + 2] = [pieces[chosen] + pieces[chosen + 1]]


def _lattices(scores: Mapping[str, float]) -> Callable[[str, float], Lattice]:
    """A unigram model, as a function of a word: the possible starts for each end of a piece, with running sums of their
    probabilities; the ends are 1 to len(word).

    p(segmentation) is proportional to exp(alpha x sum of the scores of its pieces); given the end of a piece, the
    probability of its start is what the forward sums leave (Kudo 2018, section 3.2, with all segmentations).
    """
    unknown = min(scores.values(), default=0.0) - _UNKNOWN_PENALTY
    longest = max(map(len, scores), default=1)

    def lattice(word: str, alpha: float) -> Lattice:
        forward = [0.0]  # log of the sum over all segmentations of the first so many characters
        result: Lattice = []
        for end in range(1, len(word) + 1):
            possible = range(max(0, end - longest), end)
            starts = [start for start in possible if start == end - 1 or word[start:end] in scores]
            values = [forward[start] + alpha * scores.get(word[start:end], unknown) for start in starts]
            largest = max(values)
            sums = list(itertools.accumulate(math.exp(value - largest) for value in values))
            forward.append(largest + math.log(sums[-1]))
            result.append((starts, [each / sums[-1] for each in sums]))
        return result

    return lattice


def _remembered(lattice: Callable[[str, float], Lattice]) -> Callable[[str, float], Lattice]:
    """The same function, which does not work out again what it found for a word, since words come again and again.

    What it holds is bounded: a long word, such as a sentence without spaces, takes as much as many others, and hardly
    comes again.
    """
    known = lru_cache(maxsize=1 << 16)(lattice)
    return lambda word, alpha: (known if len(word) <= _LONG_WORD else lattice)(word, alpha)


def _draw_path(word: str, lattice: Lattice, draw: Draw) -> list[str]:
    """A segmentation of the word, drawn from its end to its start."""
    pieces: list[str] = []
    end = len(word)
    while end:
        starts, sums = lattice[end - 1]
        start = starts[bisect(sums, draw())]  # the last sum is 1, and a draw is below
        pieces.append(word[start:end])
        end = start
    return pieces[::-1]


# --- learning ---------------------------------------------------------------------------------------------------------

Warn = Callable[[str], None]
Texts = Callable[[], Iterator[str]]


def train(
    settings: SentencePieceSettings | WhitespaceSettings,
    pairs: Iterable[tuple[str, str]],
    warn: Warn,
    tags: Sequence[str] = (),
) -> Tokenizers:
    """Learn the vocabularies of a corpus of (source, target); the same corpus and settings give the same result.

    ``pairs`` are gone through once for each vocabulary. ``tags`` are words of the source that become one piece each,
    whether or not they are in ``pairs``. ``warn`` is told where a vocabulary is not what was asked for. Raises
    DataError if there is no text or no room for a word.
    """
    reserved = len(RESERVED) + len(tags)
    if settings.vocabulary is not None and settings.vocabulary <= reserved:
        what = f"{settings.vocabulary} leaves no room for words beside the {reserved} reserved pieces"
        raise DataError("tokenizer.vocabulary", what, f"set it to {reserved + 1} or more")
    again: Iterable[tuple[str, str]] = list(pairs) if iter(pairs) is pairs else pairs
    if settings.joint:
        both = _learn(settings, lambda: (text for pair in again for text in pair), "tokenizer", warn, tags)
        return Tokenizers(both, both)
    return Tokenizers(
        _learn(settings, lambda: (source for source, _ in again), "source tokenizer", warn, tags),
        _learn(settings, lambda: (target for _, target in again), "target tokenizer", warn),
    )


def _learn(
    settings: SentencePieceSettings | WhitespaceSettings, texts: Texts, name: str, warn: Warn, tags: Sequence[str] = ()
) -> Tokenizer:
    tokenizer: Tokenizer
    if isinstance(settings, SentencePieceSettings):
        tokenizer = _learn_pieces(settings, texts, name, warn, tags)
    else:
        tokenizer = _learn_words(settings, texts, tags)
    if tokenizer.size <= len(RESERVED) + len(tags):
        raise DataError(name, "the corpus gives no piece to learn", "lower tokenizer.min_count or give more text")
    if settings.vocabulary is not None and tokenizer.size < settings.vocabulary:
        pieces = "words" if settings.kind == "whitespace" else "pieces"
        warn(
            f"{name}: the corpus supports {tokenizer.size} {pieces}, tokenizer.vocabulary allows {settings.vocabulary}"
        )
    return tokenizer


def _learn_words(settings: WhitespaceSettings, texts: Texts, tags: Sequence[str]) -> WhitespaceTokenizer:
    counts = Counter(word for text in texts() for word in text.split())
    by_frequency = sorted(counts.keys() - set(tags), key=lambda word: (-counts[word], word))
    frequent = [*tags, *(word for word in by_frequency if counts[word] >= settings.min_count)]
    room = None if settings.vocabulary is None else settings.vocabulary - len(RESERVED)
    return WhitespaceTokenizer("\n".join(frequent[:room]).encode())


def _learn_pieces(
    settings: SentencePieceSettings, texts: Texts, name: str, warn: Warn, tags: Sequence[str]
) -> SentencePieceTokenizer:
    try:
        return _run_sentencepiece(settings, settings.model, texts, tags)
    except RuntimeError as error:
        if "sentences_.empty()" in str(error):
            raise DataError(name, "there is no text to learn a vocabulary from") from None
        if "smaller than required_chars" not in str(error):
            raise DataError(name, f"SentencePiece failed: {error}") from error
    # There is no room for a merge, nor for every character: the most frequent characters are all that can be had.
    tokenizer = _run_sentencepiece(settings, "char", texts, tags)
    warn(
        f"{name}: the corpus has more characters than tokenizer.vocabulary {settings.vocabulary} leaves room for; "
        "the rarest become unknown"
    )
    return tokenizer


def _run_sentencepiece(
    settings: SentencePieceSettings, model: str, texts: Texts, tags: Sequence[str]
) -> SentencePieceTokenizer:
    """Raises RuntimeError where the library refuses, and whatever ``texts`` raise."""
    failures: list[BaseException] = []

    def watched() -> Iterator[str]:  # the library ends with an error of its own, or in some versions quietly
        try:
            for text in texts():
                yield _without_space_sign(text)
        except BaseException as error:
            failures.append(error)
            raise

    result = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=watched(),
            model_writer=result,
            model_type=model,
            vocab_size=settings.vocabulary,
            hard_vocab_limit=False,
            character_coverage=settings.character_coverage,
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 24,
            num_threads=1,  # sums of several threads would depend on their number
            minloglevel=2,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            unk_id=UNK,
            # The library leaves out text that spells these names; normalised text cannot spell a name with a space.
            pad_piece="<pad >",
            bos_piece="<s >",
            eos_piece="</s >",
            unk_piece="<unk >",
            unk_surface=f" {UNKNOWN}" if model == "word" else UNKNOWN,
            user_defined_symbols=[_SPACE + tag for tag in tags],
        )
    except RuntimeError:
        if not failures:
            raise
    if failures:
        raise failures[0]
    return SentencePieceTokenizer(result.getvalue(), settings.model, tags)


def _without_space_sign(text: str) -> str:
    """SentencePiece would read its own sign for a space as a space, which would change the number of words."""
    return text.replace(_SPACE, "_")


# --- files ------------------------------------------------------------------------------------------------------------

_DESCRIPTION = "tokenizer.json"

# How a file is read, and how it is called.
_KINDS: dict[str, tuple[Callable[..., Tokenizer], str]] = {
    WhitespaceTokenizer.kind: (WhitespaceTokenizer, WhitespaceTokenizer.suffix),
    **{
        model: (partial(SentencePieceTokenizer, kind=model), SentencePieceTokenizer.suffix) for model in get_args(Model)
    },
}


def save(tokenizers: Tokenizers, folder: Path) -> None:
    """Write ``joint.model``, or ``source.model`` and ``target.model`` (``.vocab`` for words), and ``tokenizer.json``.

    The last file makes the others valid, and is written last. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sides = {"joint": tokenizers.source} if tokenizers.joint else tokenizers._asdict()
    for side, tokenizer in sides.items():
        replace_file(folder / f"{side}.{tokenizer.suffix}", tokenizer.data)
    description = {
        "format": 1,
        "kind": tokenizers.source.kind,
        "sha256": {side: tokenizer.fingerprint for side, tokenizer in sides.items()},
    }
    if isinstance(tokenizers.source, SentencePieceTokenizer) and tokenizers.source.tags:
        description["tags"] = sorted(tokenizers.source.tags)
    replace_file(folder / _DESCRIPTION, (json.dumps(description, indent=1) + "\n").encode())


def load(folder: Path) -> Tokenizers:
    """What `save` wrote. Raises CheckpointError if a file is missing, broken or another one."""
    path = folder / _DESCRIPTION
    try:
        description = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, "is not JSON") from error
    tags = description.get("tags", []) if isinstance(description, dict) else []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise CheckpointError(path, "the tags are not a list of words")
    match description:
        case {"format": 1, "kind": str(kind), "sha256": {"joint": str(expected)}} if kind in _KINDS:
            both = _load_side(folder, "joint", kind, expected, tags)
            return Tokenizers(both, both)
        case {"format": 1, "kind": str(kind), "sha256": {"source": str(first), "target": str(second)}} if (
            kind in _KINDS
        ):
            source = _load_side(folder, "source", kind, first, tags)
            return Tokenizers(source, _load_side(folder, "target", kind, second, []))
    raise CheckpointError(path, "does not describe a tokenizer that this version of s2s can read")


def _load_side(folder: Path, side: str, kind: str, expected: str, tags: Sequence[str]) -> Tokenizer:
    make, suffix = _KINDS[kind]
    path = folder / f"{side}.{suffix}"
    data = _read(path)
    if hashlib.sha256(data).hexdigest() != expected:
        raise CheckpointError(path, "vocabulary hash differs from the one the model was trained with")
    try:
        return make(data, tags=tags) if tags else make(data)
    except (RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(path, f"is not a vocabulary: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
