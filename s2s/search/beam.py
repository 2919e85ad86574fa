"""The one search: a batched beam over any `Searchable`, an RNN, a Transformer or an ensemble; beam 1 is greedy.

Every sentence has K places. One step scores all continuations of its live prefixes and looks at the best 2K, of
which at most K can be EOS, so that K others remain.

- An EOS among the best K finishes its prefix, which leaves the beam; the best K finished ones are kept. The first K of
  the others live on.
- At the length limit of the sentence EOS is the only continuation allowed. PAD and BOS are never allowed.
- **Stop.** A sentence ends when K hypotheses have finished and the best live prefix, valued like a hypothesis that
  finished at its length, does not beat the worst kept one; or at its length limit; or when nothing can follow. With
  length penalty "none" this is exact: a longer hypothesis only loses. With the others a live prefix might still rise
  by growing; the bound that covers this, its score over the penalty of the limit, is of no use: nearly every sentence
  would run to the limit, and beam 1 would go on past the EOS it chose.
- **Ties** go to the lowest place, then the lowest token id, whatever the batch.

A sentence that ends leaves the batch. Prefixes are never copied: each step notes the token that every row read and the
row of the step before that it came from, and only the winners are walked back.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from s2s.errors import CheckpointError, UsageError
from s2s.interfaces import BOS, EOS, NOTHING, PAD, Searchable
from s2s.settings import Settings
from s2s.tree import repeat, take

_BLOCK = 32
"""Columns per block in `_best`; measured on batches of 64, beams of 5 and vocabularies of 8000."""


class SearchSettings(Settings):
    """How translations are searched for."""

    beam: int = Field(5, ge=1, le=1000)
    """Hypotheses kept at every step; 1 is greedy search."""
    length_penalty: Literal["average", "gnmt", "none"] = "average"
    """What a hypothesis' log-probability is divided by, L being its tokens with EOS: average: L^length_alpha;
    gnmt: ((5 + L) / 6)^length_alpha (Wu et al. 2016); none: 1."""
    length_alpha: float = Field(1.0, ge=0, le=10)
    """Exponent of the length penalty; larger prefers longer translations."""
    max_length_ratio: float = Field(2.0, ge=0, le=100)
    """A translation has at most max_length_ratio * source length + max_length_extra tokens, EOS counted on both sides,
    and at least EOS."""
    max_length_extra: int = Field(10, ge=0, le=10_000)
    """See max_length_ratio."""
    min_length: int = Field(0, ge=0, le=10_000)
    """Fewest tokens before EOS; the maximum length wins over it."""
    batch_tokens: int = Field(4096, ge=1, le=10_000_000)
    """Padded source positions decoded together."""
    max_source_length: int = Field(1000, ge=1, le=100_000)
    """Pieces per source sentence; longer lines are split and their translations joined."""
    precision: Literal["float32", "bf16"] = "float32"
    """Arithmetic of the model while searching; scores are summed in float32 in any case."""


class Hypothesis(NamedTuple):
    """One translation."""

    ids: list[int]
    """Tokens, without BOS and EOS; may be empty."""
    score: float
    """``log_probability`` over the length penalty; what hypotheses are ranked by."""
    log_probability: float
    """Natural logarithm, EOS counted; -inf for a prefix that nothing, not even EOS, could follow."""
    finished: bool
    """Whether the model ended it; False where the length limit or an impossible continuation did."""
    attention: Tensor | None
    """(len(ids) + 1, S) float32 on the CPU, a row per token and one for EOS, S real source positions; None if not
    asked for or if the model has none."""


class _Step(NamedTuple):
    """What one step read, for walking back; R rows are the sentences of that step x beam."""

    token: Tensor
    """(R,) the token each row read."""
    origin: Tensor
    """(R,) the row of the step before whose prefix it continues."""
    weights: Tensor | None
    """(R, S) attention of each row; None unless asked for."""


class _Kept(NamedTuple):
    """The best finished hypotheses of each sentence, (n, K) each, best first; score -inf where there is none yet."""

    score: Tensor
    log_probability: Tensor
    step: Tensor
    """The step that gave EOS: the number of tokens before it."""
    row: Tensor
    """The row of that step."""


@torch.no_grad()
def beam_search(
    model: Searchable,
    source: Tensor,
    lengths: Tensor,
    settings: SearchSettings,
    *,
    attention: bool = False,
    n_best: int = 1,
) -> list[list[Hypothesis]]:
    """Up to ``n_best`` translations of each sentence of ``source`` (B, S) with ``lengths`` (B,), best first.

    At least one, and fewer than asked for where fewer finished. A model is put into evaluation mode by the caller.
    Raises UsageError if ``n_best`` is not in 1..beam, CheckpointError if the model gives NaN.
    """
    beam = settings.beam
    if not 1 <= n_best <= beam:
        raise UsageError("n_best", f"{n_best} is not between 1 and the beam, {beam}", "set search.beam higher")
    if not len(lengths):
        return []
    limits = [_limit(length, settings) for length in lengths.tolist()]
    with torch.autocast(source.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        kept, history = _search(model, source, lengths, torch.tensor(limits, device=source.device), settings, attention)
    return _winners(_Kept(*(part[:, :n_best] for part in kept)), history, lengths.tolist(), limits)


def _search(
    model: Searchable, source: Tensor, lengths: Tensor, limit: Tensor, settings: SearchSettings, attention: bool
) -> tuple[_Kept, list[_Step]]:
    """What every sentence (B) keeps, and the steps to walk back through."""
    beam = settings.beam
    started = model.start(source, lengths, frozenset({"weights"}) if attention else NOTHING)
    memory, state = repeat(started, beam)
    sentences = torch.arange(len(limit), device=source.device)  # (n,) those still searched
    live = torch.full((len(limit), beam), -torch.inf, device=source.device)
    live[:, 0] = 0.0  # all places hold the same empty prefix: one lives; whatever follows a dead one stays at -inf
    token = torch.full((len(limit), beam), BOS, device=source.device)
    origin = torch.arange(live.numel(), device=source.device).view_as(token)
    kept = _Kept(*(live.new_full(live.shape, -torch.inf),) * 2, *(torch.zeros_like(token),) * 2)
    history: list[_Step] = []
    ended: list[tuple[Tensor, _Kept]] = []
    while True:
        step = len(history)
        log_probabilities, weights, state = model.step(token.flatten(), memory, state)
        history.append(_Step(token.flatten(), origin.flatten(), weights if attention else None))
        totals = live.unsqueeze(-1) + log_probabilities.reshape(-1, beam, log_probabilities.size(-1))  # (n, K, V)
        total, row, token = _continuations(totals, step, limit, settings)  # (n, 2K)
        kept = _keep(kept, step, total[:, :beam], row[:, :beam], token[:, :beam], settings)
        others = (token == EOS).byte().sort(dim=1, stable=True).indices[:, :beam]
        live, origin, token = (part.gather(1, others) for part in (total, row, token))  # (n, K)
        # The worst kept is -inf until K have finished; then only a beam where nothing lives, -inf as well, stops.
        stop = (limit == step + 1) | (live[:, 0] / _penalty(step + 1, settings) <= kept.score[:, -1])
        if stop.any():
            ended.append(take((sentences, _closed(kept, step)), stop.nonzero().squeeze(1)))
            going = (~stop).nonzero().squeeze(1)
            if not len(going):
                break
            memory = take(memory, (going.unsqueeze(1) * beam + torch.arange(beam, device=going.device)).flatten())
            sentences, limit, live, origin, token, kept = take((sentences, limit, live, origin, token, kept), going)
        if not torch.equal(origin.flatten(), torch.arange(len(history[-1].token), device=origin.device)):
            state = take(state, origin.flatten())
    order = torch.cat([part for part, _ in ended]).argsort()
    together = _Kept(*(torch.cat(parts) for parts in zip(*(part for _, part in ended), strict=True)))
    return take(together, order), history


def _continuations(totals: Tensor, step: int, limit: Tensor, settings: SearchSettings) -> tuple[Tensor, Tensor, Tensor]:
    """The best 2K of ``totals`` (n, K, V), which is overwritten: totals, rows continued and tokens, (n, 2K) each."""
    n, beam, vocabulary = totals.shape
    forced = limit == step + 1
    eos = totals[..., EOS].clone()
    totals[..., PAD] = totals[..., BOS] = -torch.inf
    if step < settings.min_length:
        totals[..., EOS] = -torch.inf
    if forced.any():
        totals[forced] = -torch.inf
        totals[forced, :, EOS] = eos[forced]
    total, column = _best(totals.flatten(1), 2 * beam)
    if total[:, 0].isnan().any():  # where there is one, it is sorted first
        raise CheckpointError("model", "gives probabilities that are not numbers", "translate with another checkpoint")
    row = torch.arange(n, device=totals.device).unsqueeze(1) * beam + column // vocabulary
    return total, row, column % vocabulary


def _best(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of each row of (n, W), largest first, ties to the lowest column: values and columns.

    `torch.topk` promises nothing about ties, and sorting everything is slow. The largest lie in the ``count`` blocks
    of columns with the largest maxima, and so do, by lowest column, those that tie with the last of them.
    """
    width = values.size(1)
    columns = torch.arange(width, device=values.device)
    if width > _BLOCK * count:
        whole = width - width % _BLOCK
        _, blocks = _best(values[:, :whole].view(len(values), -1, _BLOCK).amax(2), count)  # (n, count)
        inside = blocks.sort(dim=1).values.unsqueeze(-1) * _BLOCK + columns[:_BLOCK]  # (n, count, _BLOCK)
        columns = torch.cat((inside.flatten(1), columns[whole:].expand(len(values), -1)), 1)
        values = values.gather(1, columns)
    value, place = values.sort(dim=1, descending=True, stable=True)
    value, place = value[:, :count], place[:, :count]
    return value, columns.expand(len(values), -1).gather(1, place)


def _keep(kept: _Kept, step: int, total: Tensor, row: Tensor, token: Tensor, settings: SearchSettings) -> _Kept:
    """The best K of those kept and those of the continuations (n, K) that are EOS; ties to the earlier."""
    total = total.masked_fill(token != EOS, -torch.inf)
    new = _Kept(total / _penalty(step + 1, settings), total, torch.full_like(row, step), row)
    both = _Kept(*(torch.cat(pair, 1) for pair in zip(kept, new, strict=True)))
    order = both.score.sort(dim=1, descending=True, stable=True).indices[:, : total.size(1)]
    return _Kept(*(part.gather(1, order) for part in both))


def _closed(kept: _Kept, step: int) -> _Kept:
    """``kept`` at the end of its sentences: where nothing finished, the best prefix that ``step`` read, score -inf."""
    nothing = kept.score == -torch.inf
    first = torch.arange(len(nothing), device=nothing.device).unsqueeze(1) * nothing.size(1)
    return kept._replace(step=kept.step.masked_fill(nothing, step), row=torch.where(nothing, first, kept.row))


def _limit(length: int, settings: SearchSettings) -> int:
    """The most tokens of the translation of a source of ``length`` tokens, EOS counted, at least 1."""
    return max(1, int(settings.max_length_ratio * length + settings.max_length_extra))


def _penalty(length: int, settings: SearchSettings) -> float:
    """What the log-probability of ``length`` tokens, EOS counted, is divided by."""
    if settings.length_penalty == "none":
        return 1.0
    base = float(length) if settings.length_penalty == "average" else (5 + length) / 6
    penalty: float = base**settings.length_alpha
    return penalty


def _winners(kept: _Kept, history: list[_Step], lengths: list[int], limits: list[int]) -> list[list[Hypothesis]]:
    """What is kept (B, n_best), read back; of hypotheses that never finished only the first of a sentence."""
    tokens, weights = _walk_back(kept.step.flatten(), kept.row.flatten(), history)
    scores, log_probabilities, steps = kept.score.tolist(), kept.log_probability.tolist(), kept.step.tolist()
    results: list[list[Hypothesis]] = []
    for sentence, (length, limit) in enumerate(zip(lengths, limits, strict=True)):
        results.append([])
        for place, (score, step) in enumerate(zip(scores[sentence], steps[sentence], strict=True)):
            if place > 0 and score == -torch.inf:
                break
            index = sentence * len(scores[sentence]) + place
            ids = tokens[index, 1 : step + 1].tolist()
            attention = None if weights is None else weights[index, : step + 1, :length].clone()
            finished = score > -torch.inf and step + 1 < limit
            results[-1].append(Hypothesis(ids, score, log_probabilities[sentence][place], finished, attention))
    return results


def _walk_back(step: Tensor, row: Tensor, history: list[_Step]) -> tuple[Tensor, Tensor | None]:
    """The tokens (M, T) that M hypotheses read, BOS first, and their attention (M, T, S), on the CPU.

    Hypothesis m ends in row ``row[m]`` of step ``step[m]``; what lies after its end is zero.
    """
    longest = int(step.max())
    tokens = step.new_zeros(len(step), longest + 1)
    last = history[0].weights
    weights = None if last is None else last.new_zeros(len(step), longest + 1, last.size(1), dtype=torch.float32)
    row = row.clone()
    for time in range(longest, -1, -1):
        begun = (step >= time).nonzero().squeeze(1)
        read, here = history[time], row[begun]
        tokens[begun, time] = read.token[here]
        if weights is not None and read.weights is not None:
            weights[begun, time] = read.weights[here].float()
        row[begun] = read.origin[here]
    return tokens.cpu(), None if weights is None else weights.cpu()
