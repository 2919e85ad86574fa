"""Which continuations of a beam are looked at: the best of all, of every group, or of every bank.

A beam has K places and V words may follow each, so a continuation is a column of K x V: place x V + word. Every choice
gives 2K of them, in the order in which they take places; at most K are EOS, so that K others remain. Ties go to the
lowest column.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from s2s.interfaces import EOS
from s2s.search.wishes import Required
from s2s.settings import Settings

_BLOCK = 64
"""Columns per block in `best_columns`; measured on batches of 64, beams of 5 and vocabularies of 8000."""


class DiversitySettings(Settings):
    """Diverse beam search (Vijayakumar et al. 2016): groups of places that keep away from each other's words."""

    groups: int = Field(..., ge=1, le=1000)
    """Groups that search.beam is divided into."""
    strength: float = Field(0.5, gt=0, le=1000)
    """Taken from the log-probability of a word for each place of the groups before that says it at the same step."""


def best_columns(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of each row of (n, W), largest first, ties to the lowest column: values and columns.

    NaN counts as largest. The largest lie in the ``count`` blocks of columns with the largest maxima, and so do, by
    lowest column, those that tie with the last.
    """
    width = values.size(1)
    columns = torch.arange(width, device=values.device)
    if width > _BLOCK * count:
        whole = width - width % _BLOCK
        _, blocks = best_columns(values[:, :whole].view(len(values), -1, _BLOCK).amax(2), count)  # (n, count)
        inside = blocks.sort(dim=1).values.unsqueeze(-1) * _BLOCK + columns[:_BLOCK]  # (n, count, _BLOCK)
        columns = torch.cat((inside.flatten(1), columns[whole:].expand(len(values), -1)), 1)
        values = values.gather(1, columns)
    place = _first(values, count)
    return values.gather(1, place), columns.expand(len(values), -1).gather(1, place)


def _first(values: Tensor, count: int) -> Tensor:
    """Where in each row of (n, W) the ``count`` largest stand, largest first, ties to the lowest; NaN is largest.

    `torch.topk` promises nothing about ties, and sorting all is several times slower. So it is asked for the largest of
    whole numbers of which no two are equal: the bits of a float32, which as a whole number keep its order once those of
    a negative one are turned round, and below them the column.
    """
    if values.dtype != torch.float32:
        return values.sort(dim=1, descending=True, stable=True).indices[:, :count]
    bits = (values + 0.0).view(torch.int32)  # -0 becomes 0
    order = (bits ^ (bits >> 31 & 0x7FFFFFFF)).masked_fill(values.isnan(), 0x7FFFFFFF)
    columns = torch.arange(values.size(1) - 1, -1, -1, device=values.device)
    return ((order.long() << 32) + columns).topk(min(count, values.size(1)), dim=1).indices


def others(token: Tensor, places: int) -> Tensor:
    """(n, K) where in ``token`` (n, C) the first K stand that are not EOS."""
    return (token == EOS).byte().sort(dim=1, stable=True).indices[:, :places]


def best_of_groups(totals: Tensor, settings: DiversitySettings) -> tuple[Tensor, Tensor]:
    """The 2K best of each beam, where the beams of a sentence are groups: totals and columns, (n, 2K) each.

    ``totals`` (n, K, V), groups of a sentence side by side. A group chooses by its totals less ``strength`` for every
    place of an earlier group that lives on with that word (Hamming diversity); the totals given back are its own.
    """
    places, vocabulary = totals.shape[1:]
    by_sentence = totals.view(-1, settings.groups, places, vocabulary)
    said = totals.new_zeros(len(by_sentence), vocabulary)
    chosen: list[tuple[Tensor, Tensor]] = []
    for group in by_sentence.unbind(1):
        _, column = best_columns((group - settings.strength * said.unsqueeze(1)).flatten(1), 2 * places)
        total = group.flatten(1).gather(1, column)
        chosen.append((total, column))
        living = others(column % vocabulary, places)
        word, alive = (column % vocabulary).gather(1, living), total.gather(1, living) > -torch.inf
        said = said.scatter_add(1, word, alive.to(said.dtype))
    total, column = (torch.stack(parts, 1).flatten(0, 1) for parts in zip(*chosen, strict=True))
    return total, column


def best_of_banks(totals: Tensor, required: Required, progress: Tensor) -> tuple[Tensor, Tensor]:
    """The 2K best of ``totals`` (n, K, V), which is overwritten, shared out over banks: totals and columns (n, 2K).

    Dynamic beam allocation (Post & Vilar 2018): a bank is all continuations with the same number of words of required
    phrases, by ``progress`` (n, K, P). The best of every bank come first, the fullest bank's before the others', then
    the second best of every bank, and so on: what a bank has no use for goes to the others. Without required phrases
    there is one bank.
    """
    n, places, vocabulary = totals.shape
    missing = required.missing(required.ahead(progress))  # (n, K, W + 1)
    named = required.words.unsqueeze(1).expand(-1, places, -1)  # (n, K, W)
    value = totals.gather(2, named)
    totals.scatter_(2, named, -torch.inf)
    # No bank can give more than 2K of a row.
    rest, word = (part.view(n, places, -1) for part in best_columns(totals.flatten(0, 1), 2 * places))
    bank = torch.cat((missing[..., :-1], missing[..., -1:].expand_as(word)), 2).flatten(1)  # (n, C)
    total = torch.cat((value, rest), 2).flatten(1)
    row = torch.arange(places, device=totals.device).view(-1, 1)
    column = (row * vocabulary + torch.cat((named, word), 2)).flatten(1)
    column, bank, total = _sorted(column, column, bank, total)
    column, bank, total = _sorted(total, column, bank, total, descending=True)
    column, bank, total = _sorted(bank, column, bank, total)
    rank = _ranks(bank).masked_fill(total == -torch.inf, bank.size(1)).masked_fill(total.isnan(), -1)
    column, total = _sorted(rank, column, total)
    return total[:, : 2 * places], column[:, : 2 * places]


def _sorted(key: Tensor, *parts: Tensor, descending: bool = False) -> tuple[Tensor, ...]:
    """``parts`` (n, C) in the order of ``key``, equals as they were."""
    order = key.sort(dim=1, descending=descending, stable=True).indices
    return tuple(part.gather(1, order) for part in parts)


def _ranks(bank: Tensor) -> Tensor:
    """How many stand before each in its own bank, for sorted banks (n, C)."""
    place = torch.arange(bank.size(1), device=bank.device).expand_as(bank)
    starts = torch.cat((torch.ones_like(bank[:, :1], dtype=torch.bool), bank[:, 1:] != bank[:, :-1]), 1)
    return place - (place * starts).cummax(1).values
