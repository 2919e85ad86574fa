"""What a model looks at while it says a given translation: weights, heads, windows; and the same from word to word.

Positions of pieces become places on the words, counted from the left edge of the first: the pieces of a word share its
width equally, and the end of sentence is the right edge of the last.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2s.analysis.alignment import merge_words
from s2s.analysis.heatmap import HeatMap, Span, Weights
from s2s.data.batches import sentences_of
from s2s.data.tokenizer import Tokenizer, Tokenizers
from s2s.interfaces import BOS, EOS
from s2s.search.score import Teachable
from s2s.tree import map_tree

_WANT = frozenset({"weights", "heads", "trace"})
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""Scripts that put no blanks between words, as the names of their characters begin."""

Places = NDArray[np.floating[Any]]


class Looked(NamedTuple):
    """S source and T target pieces, the end of sentence counted on both sides."""

    weights: Weights
    """(T, S)."""
    heads: Weights | None
    """(layers, heads, T, S) of a Transformer."""
    centres: Places | None
    """(T,) source positions, counted from 1, that the windows of local attention are put round."""
    reach: Places | None
    """(T,) pieces that a window has on either side of its centre."""
    chosen: Places | None = None
    """(T,) source positions, counted from 1, that hard attention read."""


@torch.no_grad()
def look(
    model: Teachable,
    source: Sequence[int],
    target: Sequence[int],
    device: torch.device,
    before: Sequence[Sequence[int]] = (),
) -> Looked | None:
    """Make the model say ``target`` for ``source``, ids with EOS last; None where it has no weights to show.

    ``before``: the sentences before, the nearest first. The model is in evaluation mode.
    """
    given, length = torch.tensor([source], device=device), torch.tensor([len(source)], device=device)
    context = map_tree(lambda tensor: tensor.to(device), sentences_of([before], len(before)))
    decoded, _ = model.forward(given, length, torch.tensor([[BOS, *target[:-1]]], device=device), _WANT, context)
    if decoded.weights is None:
        return None
    trace = {} if decoded.attended is None else decoded.attended.trace
    heads = None if decoded.heads is None else decoded.heads[0].permute(1, 2, 0, 3)  # (layers, heads, T, S)
    return Looked(
        weights=_plain(decoded.weights[0]),
        heads=None if heads is None else _plain(heads),
        centres=_plain(trace["centre"][0]) if "window" in trace else None,
        reach=_plain(trace["window"][0]) if "window" in trace else None,
        chosen=_plain(trace["choice"][0] + 1) if "choice" in trace else None,
    )


def _plain(values: Tensor) -> Weights:
    plain: Weights = values.double().cpu().numpy()
    return plain


class Units(NamedTuple):
    """What one side of a picture is labelled with: words, or pieces where the script puts no blanks between words."""

    texts: list[str]
    numbers: list[int]
    """For each id the number of its text, -1 for none (the end of sentence)."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, ids: Sequence[int]) -> Units:
        """Of a sentence's ids, EOS last."""
        text = tokenizer.decode(list(ids))
        if not _unspaced(text):
            return cls(text.split(), tokenizer.words(list(ids)))
        inner = [index for index in ids if index != EOS]
        return cls(tokenizer.pieces(inner), [*range(len(inner)), *[-1] * (len(ids) - len(inner))])

    def edges(self) -> tuple[Places, Places]:
        """Where each piece begins and ends, (S,) each."""
        sizes = np.bincount([number for number in self.numbers if number >= 0], minlength=len(self.texts))
        begins, ends, done = [], [], np.zeros(len(self.texts))
        for number in self.numbers:
            if number < 0:
                begins.append(float(len(self.texts)))
                ends.append(float(len(self.texts)))
                continue
            begins.append(number + done[number] / sizes[number])
            done[number] += 1
            ends.append(number + done[number] / sizes[number])
        return np.array(begins), np.array(ends)


def heat_map(
    weights: Weights, source: Sequence[int], target: Sequence[int], tokenizers: Tokenizers, title: str = ""
) -> HeatMap:
    """Weights between pieces (T, S), EOS last on both sides, as a picture from word to word; see `merge_words`."""
    across, down = Units.of(tokenizers.source, source), Units.of(tokenizers.target, target)
    merged = merge_words(weights, across.numbers, down.numbers)
    return HeatMap(merged, across.texts, down.texts, title)


def marked(given: HeatMap, looked: Looked, source: Sequence[int], target: Sequence[int], by: Tokenizers) -> HeatMap:
    """The same picture with the windows of local attention, or the positions that hard attention read.

    Of a word's pieces it is the mean centre or position, and all that their windows cover.
    """
    dots = looked.centres if looked.chosen is None else looked.chosen
    if dots is None:
        return given
    begins, ends = Units.of(by.source, source).edges()
    numbers, count = np.array(Units.of(by.target, target).numbers), len(source)
    members = [numbers == row for row in range(len(given.target))]
    places = np.interp(dots, np.arange(1, count + 1), (begins + ends) / 2)  # (T,)
    given = given._replace(centres=[float(places[own].mean()) for own in members], note="dot: the position read")
    if looked.centres is None or looked.reach is None:
        return given
    inside = np.clip(np.floor(looked.centres), 1, count)
    first = begins[(np.maximum(inside - looked.reach, 1) - 1).astype(int)]  # (T,)
    last = ends[(np.minimum(inside + looked.reach, count) - 1).astype(int)]  # (T,)
    windows: list[Span] = [(float(first[own].min()), float(last[own].max())) for own in members]
    return given._replace(windows=windows, note="dot: predicted centre · frame: window")


def head_maps(looked: Looked, source: Sequence[int], target: Sequence[int], tokenizers: Tokenizers) -> list[HeatMap]:
    """A picture of every head, layer by layer; none of a model that has no heads."""
    if looked.heads is None:
        return []
    return [
        heat_map(weights, source, target, tokenizers, f"layer {layer}, head {head}")
        for layer, heads in enumerate(looked.heads, start=1)
        for head, weights in enumerate(heads, start=1)
    ]


def _unspaced(text: str) -> bool:
    """Whether most of the letters are of scripts without blanks between words."""
    letters = [character for character in text if character.isalpha()]
    return 2 * sum(unicodedata.name(letter, "").startswith(_UNSPACED) for letter in letters) > len(letters)
