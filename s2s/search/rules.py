"""What may follow a prefix, and how repetition and neglect are counted against it.

Shapes: n beams of K places, R = n K rows, V words, S source positions, t words said so far.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from s2s.errors import UsageError
from s2s.interfaces import BOS, EOS, PAD
from s2s.search.wishes import Required, Table

COVERAGE_FLOOR = 1e-4
"""Attention that a source token is counted to have had at least: its cost is 9.2 times the weight, not infinite."""


class Notes(NamedTuple):
    """What the rules remember of each row; a tree that is reordered with the state. None is what no rule asks for."""

    said: Tensor | None
    """(R, t) words said, without BOS."""
    progress: Tensor | None
    """(R, P) words said of each required phrase, see `Required`."""
    coverage: Tensor | None
    """(R, S) attention that each source token has had, float32 or wider."""

    def after(self, token: Tensor, first: Tensor, required: Required | None, weights: Tensor | None) -> Notes:
        """The notes once ``token`` (n, K) was read, BOS where it is the ``first`` (n,), with ``weights`` (R, S).

        Raises UsageError if coverage is noted and the model has no weights.
        """
        said, progress, coverage = self
        if said is not None and not first.all():
            said = torch.cat((said, token.view(-1, 1)), 1)
        if progress is not None and required is not None:
            before = progress.view(*token.shape, -1)
            progress = torch.where(first.view(-1, 1, 1), before, required.after(before, token)).flatten(0, 1)
        if coverage is not None:
            if weights is None:
                raise UsageError("search.coverage_penalty", "the model has no attention to count", "set it to 0")
            coverage = coverage + weights
        return Notes(said, progress, coverage)


class Limits(NamedTuple):
    """What holds for each of n beams; a tree of which search takes the rows of those that go on."""

    longest: Tensor
    """(n,) tokens of the translation, EOS counted."""
    source: Tensor
    """(n,) source tokens, EOS counted."""
    wishes: Table
    uniforms: Tensor | None
    """(n, most tokens) the draws of sampling, see `s2s.search.sampling`."""


def repetition_penalised(words: Tensor, said: Tensor, penalty: float) -> Tensor:
    """``words`` (R, V), log-probabilities, those of words in ``said`` times ``penalty``, made to sum to one again.

    Keskar et al. 2019, section 4.1, with the temperature left to sampling. A log-probability is never positive, so the
    product always makes a word less likely, as dividing a positive score does there.
    """
    words = words if words.dtype == torch.float64 else words.float()
    words = words.scatter(1, said, words.gather(1, said) * penalty)
    total = words.logsumexp(1, keepdim=True)
    return words - total.masked_fill(total == -torch.inf, 0.0)  # where nothing can follow nothing is shared out


def coverage_penalty(coverage: Tensor, source: Tensor, weight: float) -> Tensor:
    """weight x sum over the source of log min(attention, 1): (R,) of ``coverage`` (R, S), ``source`` (n,) lengths.

    Wu et al. 2016, equation 14. Attention that may be exactly zero (sparse, local, hard) would give -inf there; here no
    token counts as read less than `COVERAGE_FLOOR`.
    """
    real = torch.arange(coverage.size(1), device=source.device) < source.unsqueeze(1)  # (n, S)
    logs = coverage.view(len(source), -1, coverage.size(1)).clamp(COVERAGE_FLOOR, 1.0).log()  # (n, K, S)
    return weight * (logs * real.unsqueeze(1)).sum(2).flatten()


def allow(totals: Tensor, age: Tensor, limits: Limits, notes: Notes, min_length: int, no_repeat_ngram: int) -> None:
    """Overwrite with -inf what may not follow as token ``age`` (n,), from 0, in ``totals`` (n, K, V).

    The later rule wins: no PAD and BOS; the required phrases, which no other word may crowd out and which come before
    EOS; minimum length; n-grams; forbidden phrases; the prefix, and EOS where the translation is as long as it may be.
    """
    n, places, _ = totals.shape
    totals[..., PAD] = totals[..., BOS] = -torch.inf
    given = _of_prefix(age, limits.wishes.forced)
    if limits.wishes.required is not None and notes.progress is not None:
        # What the prefix leaves room for was seen before search began.
        room = (limits.longest - age - 2).masked_fill(given != PAD, torch.iinfo(torch.long).max)
        _leave_room(totals, room, limits.wishes.required, notes.progress.view(n, places, -1))
    forced = given.masked_fill(limits.longest == age + 1, EOS)
    must = forced != PAD
    value = totals[must, :, forced[must]] if must.any() else None  # (beams that have no choice, K)
    if min_length:
        totals[..., EOS].masked_fill_((age < min_length).unsqueeze(1), -torch.inf)
    if no_repeat_ngram and notes.said is not None:
        _forbid(totals, _repeating(notes.said, no_repeat_ngram))
    if limits.wishes.forbidden is not None and notes.said is not None:
        _forbid(totals, _completing(notes.said.view(n, places, -1), limits.wishes.forbidden))
    if value is not None:
        totals[must] = -torch.inf
        totals[must, :, forced[must]] = value


def _of_prefix(age: Tensor, prefix: Tensor | None) -> Tensor:
    """(n,) the word of ``prefix`` (n, words) that is due, or PAD where it is over."""
    if prefix is None:
        return torch.full_like(age, PAD)
    return pad(prefix, (0, 1), value=PAD).gather(1, age.clamp(max=prefix.size(1)).unsqueeze(1)).squeeze(1)


def _forbid(totals: Tensor, words: Tensor) -> None:
    """Overwrite ``words`` (R, m) in ``totals`` (n, K, V); PAD, which is forbidden anyway, is nothing."""
    totals.view(-1, totals.size(2)).scatter_(1, words, -torch.inf)


def _repeating(said: Tensor, size: int) -> Tensor:
    """(R, m) the words that would make the last of ``said`` (R, t) an n-gram that stood there before, else PAD."""
    if said.size(1) < size:
        return said[:, :0]
    grams = said.unfold(1, size, 1)  # (R, t - size + 1, size)
    last = said[:, said.size(1) - size + 1 :].unsqueeze(1)
    return grams[..., -1].masked_fill(~(grams[..., :-1] == last).all(2), PAD)


def _completing(said: Tensor, phrases: Tensor) -> Tensor:
    """(R, m) the last words of ``phrases`` (n, m, L) of which all others end ``said`` (n, K, t), else PAD."""
    others = phrases[:, None, :, :-1]  # (n, 1, m, L - 1)
    padded = pad(said, (others.size(3), 0))  # PAD is no word of a phrase
    last = padded[:, :, padded.size(2) - others.size(3) :].unsqueeze(2)  # (n, K, 1, L - 1)
    begun = ((others == last) | (others == PAD)).all(3)  # (n, K, m)
    return phrases[:, None, :, -1].masked_fill(~begun, PAD).flatten(0, 1)


def _leave_room(totals: Tensor, room: Tensor, required: Required, progress: Tensor) -> None:
    """Forbid EOS before all required phrases are said, and words after which ``room`` (n,) words would not suffice."""
    places = progress.size(1)
    enough = required.missing(required.ahead(progress)) <= room.view(-1, 1, 1)  # (n, K, W + 1)
    named = required.words.unsqueeze(1).expand(-1, places, -1)  # (n, K, W)
    value = totals.gather(2, named).masked_fill(~enough[..., :-1], -torch.inf)
    eos = totals[..., EOS].masked_fill(required.missing(progress) > 0, -torch.inf)
    totals.masked_fill_(~enough[..., -1:], -torch.inf).scatter_(2, named, value)
    totals[..., EOS] = eos
