"""The one search: a batched beam over any `Searchable`, an RNN, a Transformer or an ensemble; beam 1 is greedy.

Every beam has K places. One step scores all continuations of its live prefixes and looks at the best 2K, of which at
most K can be EOS, so that K others remain.

- An EOS among the best K finishes its prefix, which leaves the beam; the best K finished ones are kept. The first K of
  the others live on.
- At the length limit of the sentence EOS is the only continuation allowed. PAD and BOS are never allowed.
- **Stop.** A beam ends at its length limit; or when nothing can follow; or when K hypotheses have finished and
  ``early_stopping`` is content. By default it is when the best live prefix, valued like a hypothesis that finished at
  its length, does not beat the worst kept one. With length penalty "none" this is exact: a longer hypothesis only
  loses. With the others a live prefix might still rise by growing; the bound that covers this ("exhaustive"), its
  score over the penalty of the limit, is of little use: nearly every sentence runs to the limit, and beam 1 goes on
  past the EOS it chose.
- **Ties** go to the lowest place, then the lowest token id, whatever the batch.

A sentence has one beam, but for two cases: diverse search gives it one of K / groups places for each group, and these
leave together; sampling gives it one of a single place for each draw, where the continuation is drawn.

A beam that ends leaves the batch. Prefixes are never copied: each step notes the token that every row read and the row
of the step before that it came from, and only the winners are walked back. Where a rule needs the words said so far,
they travel with the state.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from s2s.errors import CheckpointError, UsageError
from s2s.interfaces import BOS, EOS, NOTHING, Before, Searchable
from s2s.search.choice import DiversitySettings, best_columns, best_of_banks, best_of_groups, others
from s2s.search.rules import Limits, Notes, allow, coverage_penalty, repetition_penalised
from s2s.search.sampling import SamplingSettings, drawn, uniforms
from s2s.search.wishes import Wishes as Wishes
from s2s.search.wishes import tabled
from s2s.settings import Settings
from s2s.tree import repeat, take, take_groups


class SearchSettings(Settings):
    """How translations are searched for."""

    beam: int = Field(5, ge=1, le=1000)
    """Hypotheses kept at every step; 1 is greedy search."""
    length_penalty: Literal["average", "gnmt", "none"] = "average"
    """What a hypothesis' log-probability is divided by, L being its tokens with EOS: average: L^length_alpha;
    gnmt: ((5 + L) / 6)^length_alpha (Wu et al. 2016); none: 1."""
    length_alpha: float = Field(1.0, ge=0, le=10)
    """Exponent of the length penalty; larger prefers longer translations."""
    coverage_penalty: float = Field(0.0, ge=0, le=100)
    """Weight of the coverage penalty (Wu et al. 2016): for each source token the logarithm of the attention it had, at
    most 1, is added to the score. Needs a model with attention."""
    max_length_ratio: float = Field(2.0, ge=0, le=100)
    """A translation has at most max_length_ratio * source length + max_length_extra tokens, EOS counted on both sides,
    and at least EOS."""
    max_length_extra: int = Field(10, ge=0, le=10_000)
    """See max_length_ratio."""
    min_length: int = Field(0, ge=0, le=10_000)
    """Fewest tokens before EOS; the maximum length wins over it."""
    no_repeat_ngram: int = Field(0, ge=0, le=1000)
    """No sequence of this many tokens occurs twice in a translation; 0: any may."""
    repetition_penalty: float = Field(1.0, ge=1, le=100)
    """The log-probabilities of tokens said before are multiplied by it (Keskar et al. 2019); 1 changes nothing."""
    early_stopping: Literal["promising", "first", "exhaustive"] = "promising"
    """When the search ends that has found as many hypotheses as there are places. first: at once; promising: when the
    best live prefix, valued as if it ended there, does not beat the worst of them; exhaustive: when it never could."""
    diversity: DiversitySettings | None = None
    """Diverse beam search."""
    sampling: SamplingSettings | None = None
    """Draw translations at random instead of searching for the best; needs beam: 1."""
    batch_tokens: int = Field(4096, ge=1, le=10_000_000)
    """Padded source positions decoded together."""
    max_source_length: int = Field(1000, ge=1, le=100_000)
    """Pieces per source sentence; longer lines are split and their translations joined."""
    precision: Literal["float32", "bf16"] = "float32"
    """Arithmetic of the model while searching; scores are summed in float32 in any case."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.sampling is not None and self.diversity is not None:
            raise ValueError("sampling draws translations one by one, diversity needs a beam; set one of them to null")
        if self.sampling is not None and self.beam > 1:
            raise ValueError("sampling draws translations one by one, without a beam; set beam to 1")
        if self.diversity is not None and self.beam % self.diversity.groups:
            raise ValueError(
                f"beam {self.beam} cannot be divided into {self.diversity.groups} groups; "
                "set beam to a multiple of diversity.groups"
            )
        return self

    @property
    def groups(self) -> int:
        """Beams of a sentence that end together."""
        return 1 if self.diversity is None else self.diversity.groups

    @property
    def needs_said(self) -> bool:
        """Whether a rule asks for the words said so far."""
        return self.no_repeat_ngram > 0 or self.repetition_penalty > 1


class Hypothesis(NamedTuple):
    """One translation."""

    ids: list[int]
    """Tokens, without BOS and EOS; may be empty."""
    score: float
    """What hypotheses are ranked by: ``log_probability``, or with a repetition penalty what that made of it, over the
    length penalty; plus the coverage penalty."""
    log_probability: float
    """The model's own natural logarithm, EOS counted; -inf for a prefix that nothing, not even EOS, could follow."""
    finished: bool
    """Whether the model ended it; False where the length limit or an impossible continuation did."""
    attention: Tensor | None
    """(len(ids) + 1, S) float32 on the CPU, a row per token and one for EOS, S real source positions; None if not
    asked for or if the model has none."""


class _Step(NamedTuple):
    """What one step read, for walking back; R rows are the beams of that step x places."""

    token: Tensor
    """(R,) the token each row read."""
    origin: Tensor
    """(R,) the row of the step before whose prefix it continues."""
    weights: Tensor | None
    """(R, S) attention of each row; None unless asked for."""


class _Prefixes(NamedTuple):
    """Prefixes by the word that was added last, (n, C) each: K that live, or 2K continuations that might."""

    total: Tensor
    """What they are ranked by; -inf is dead."""
    log_probability: Tensor
    """What the model says."""
    origin: Tensor
    """The row that each continues."""
    token: Tensor
    """The word."""


class _Kept(NamedTuple):
    """The best finished hypotheses of each beam, (n, K) each, best first; score -inf where there is none yet."""

    score: Tensor
    log_probability: Tensor
    step: Tensor
    """The step that gave EOS: the number of tokens before it; -1 where there is none yet."""
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
    wishes: Sequence[Wishes] | None = None,
    before: Before | None = None,
) -> list[list[Hypothesis]]:
    """Up to ``n_best`` translations of each sentence of ``source`` (B, S) with ``lengths`` (B,), best first.

    At least one, and fewer than asked for where fewer finished. When sampling, exactly ``n_best`` independent draws, in
    the order of their numbers. ``wishes``: what is asked of the translation of each sentence; without them all are
    number 0. ``before``: the sentences before each. A model is put into evaluation mode by the caller.

    Raises UsageError if ``n_best`` is not in 1..beam, if a wish cannot be met, or if the model lacks the attention that
    a setting needs; CheckpointError if the model gives NaN.
    """
    if n_best < 1 or (n_best > settings.beam and settings.sampling is None):
        raise UsageError("n_best", f"{n_best} is not between 1 and the beam, {settings.beam}", "set search.beam higher")
    if not len(lengths):
        return []
    wishes = [Wishes()] * len(lengths) if wishes is None else wishes
    beams = settings.groups if settings.sampling is None else n_best  # of each sentence
    longest = [_limit(length, settings) for length in lengths.tolist()]
    limits = _limits(wishes, longest, lengths, beams, settings)
    with torch.autocast(source.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        kept, history = _search(model, source, lengths, limits, settings, attention, before)
    kept = _Kept(*(part[:, :n_best] for part in kept))
    found = iter(_winners(kept, history, limits.source.tolist(), limits.longest.tolist()))
    by_sentence = [list(itertools.islice(found, beams)) for _ in longest]
    if settings.diversity is not None:
        return [_merged(groups)[:n_best] for groups in by_sentence]
    return [list(itertools.chain(*results)) for results in by_sentence]


def _limits(
    wishes: Sequence[Wishes], longest: Sequence[int], lengths: Tensor, beams: int, settings: SearchSettings
) -> Limits:
    """What holds for each beam: a row for each sentence, ``beams`` times."""
    if len(wishes) != len(longest):
        raise ValueError(f"{len(longest)} sentences, {len(wishes)} wishes")
    if settings.sampling is not None or settings.diversity is not None:
        for wish in wishes:
            if wish.required:
                what = "required phrases need a beam of their own kind, neither sampling nor diversity"
                raise UsageError(f"line {wish.number + 1}", what, "set search.sampling and search.diversity to null")
    table = tabled(wishes, longest, settings.no_repeat_ngram, lengths.device)
    limits = repeat(Limits(torch.tensor(longest, device=lengths.device), lengths, table, None), beams)
    if settings.sampling is None:
        return limits
    numbers = [wish.number for wish in wishes]
    return limits._replace(uniforms=uniforms(settings.sampling.seed, numbers, beams, max(longest), lengths.device))


def _search(
    model: Searchable,
    source: Tensor,
    lengths: Tensor,
    limits: Limits,
    settings: SearchSettings,
    attention: bool,
    before: Before | None,
) -> tuple[_Kept, list[_Step]]:
    """What every beam (n) keeps, and the steps to walk back through."""
    groups = settings.groups
    places = settings.beam // groups
    beams = torch.arange(len(limits.longest), device=source.device)  # (n,) those still searched
    wanted = attention or settings.coverage_penalty > 0
    want = frozenset({"weights"}) if wanted else NOTHING
    memory, state = repeat(model.start(source, lengths, want, places, before), len(beams) // len(lengths))
    live = _start(len(beams), places, source.device)
    notes = _no_notes(live, source, limits, settings)
    kept = _Kept(*(torch.full_like(live.total, -torch.inf),) * 2, *(torch.full_like(live.token, -1),) * 2)
    history: list[_Step] = []
    ended: list[tuple[Tensor, _Kept]] = []
    while True:
        step = len(history)
        words, weights, state = model.step(live.token.flatten(), memory, state)
        history.append(_Step(live.token.flatten(), live.origin.flatten(), weights if attention else None))
        notes = notes.after(live.token, step == 0, limits.wishes.required, weights)
        new = _continued(live, words, step, limits, notes, settings)  # (n, 2K)
        kept = _keep(kept, step, _Prefixes(*(part[:, :places] for part in new)), limits, notes, settings)
        living = others(new.token, places)
        live = _Prefixes(*(part.gather(1, living) for part in new))
        live = live._replace(total=live.total.masked_fill(live.token == EOS, -torch.inf))
        stop = _ends(live, kept, step, limits.longest, settings)
        if stop.any():
            kept = _closed(kept, step, stop)
            if groups > 1:  # one that ends before the others of its sentence says no more
                live = live._replace(total=live.total.masked_fill(stop.unsqueeze(1), -torch.inf))
                stop = stop.view(-1, groups).all(1).repeat_interleave(groups)
            ended.append(take((beams, kept), stop.nonzero().squeeze(1)))
            going = (~stop).nonzero().squeeze(1)
            if not len(going):
                break
            memory = take_groups(memory, going, len(beams))
            beams, limits, live, kept = take((beams, limits, live, kept), going)
        if not torch.equal(live.origin.flatten(), torch.arange(len(history[-1].token), device=source.device)):
            state, notes = take((state, notes), live.origin.flatten())
    order = torch.cat([part for part, _ in ended]).argsort()
    together = _Kept(*(torch.cat(parts) for parts in zip(*(part for _, part in ended), strict=True)))
    return take(together, order), history


def _start(n: int, places: int, device: torch.device) -> _Prefixes:
    """The empty prefix in every place. The first lives; whatever follows the dead others stays at -inf."""
    total = torch.full((n, places), -torch.inf, device=device)
    total[:, 0] = 0.0
    origin = torch.arange(total.numel(), device=device).view_as(total)
    return _Prefixes(total, total, origin, torch.full_like(origin, BOS))


def _no_notes(live: _Prefixes, source: Tensor, limits: Limits, settings: SearchSettings) -> Notes:
    """The notes before the first step, of what some rule needs."""
    rows, required = live.token.numel(), limits.wishes.required
    said = settings.needs_said or limits.wishes.forbidden is not None
    return Notes(
        live.token.new_zeros(rows, 0) if said else None,
        None if required is None else live.token.new_zeros(rows, required.length.size(1)),
        live.total.new_zeros(rows, source.size(1)) if settings.coverage_penalty > 0 else None,
    )


def _continued(
    live: _Prefixes, words: Tensor, step: int, limits: Limits, notes: Notes, settings: SearchSettings
) -> _Prefixes:
    """The continuations that are looked at, (n, 2K), or the one that is drawn, (n, 1); ``words`` (R, V)."""
    places, vocabulary = live.total.size(1), words.size(1)
    ranked = words
    if settings.repetition_penalty > 1 and notes.said is not None:
        ranked = repetition_penalised(words, notes.said, settings.repetition_penalty)
    totals = ranked.view(-1, places, vocabulary)  # (n, K, V)
    if ranked is words and torch.promote_types(totals.dtype, live.total.dtype) == totals.dtype:
        totals.add_(live.total.unsqueeze(-1))  # nobody needs the words once more, and they are large
    else:
        totals = totals + live.total.unsqueeze(-1)
    allow(totals, step, limits, notes, settings.min_length, settings.no_repeat_ngram)
    total, column = _chosen(totals, step, limits, notes, settings)
    if total.isnan().any():
        raise CheckpointError("model", "gives probabilities that are not numbers", "translate with another checkpoint")
    place, token = column // vocabulary, column % vocabulary
    origin = torch.arange(len(total), device=total.device).unsqueeze(1) * places + place
    log_probability = total
    if ranked is not words:
        log_probability = live.log_probability.gather(1, place) + words[origin, token]
    return _Prefixes(total, log_probability, origin, token)


def _chosen(totals: Tensor, step: int, limits: Limits, notes: Notes, settings: SearchSettings) -> tuple[Tensor, Tensor]:
    """Totals and columns of ``totals`` (n, K, V), which is overwritten, by the settings' way to choose."""
    if settings.sampling is not None and limits.uniforms is not None:
        return drawn(totals.squeeze(1), limits.uniforms[:, step], settings.sampling)
    if settings.diversity is not None:
        return best_of_groups(totals, settings.diversity)
    if limits.wishes.required is not None and notes.progress is not None:
        return best_of_banks(totals, limits.wishes.required, notes.progress.view(*totals.shape[:2], -1))
    return best_columns(totals.flatten(1), 2 * totals.size(1))


def _keep(kept: _Kept, step: int, new: _Prefixes, limits: Limits, notes: Notes, settings: SearchSettings) -> _Kept:
    """The best K of those kept and of the ``new`` (n, K) that are EOS; ties to the earlier."""
    score = new.total.masked_fill(new.token != EOS, -torch.inf) / length_penalty(step + 1, settings)
    if notes.coverage is not None:
        cover = coverage_penalty(notes.coverage, limits.source, settings.coverage_penalty)
        score = score + cover[new.origin]
    fresh = _Kept(score, new.log_probability, torch.full_like(new.origin, step), new.origin)
    both = _Kept(*(torch.cat(pair, 1) for pair in zip(kept, fresh, strict=True)))
    order = both.score.sort(dim=1, descending=True, stable=True).indices[:, : kept.score.size(1)]
    return _Kept(*(part.gather(1, order) for part in both))


def _ends(live: _Prefixes, kept: _Kept, step: int, longest: Tensor, settings: SearchSettings) -> Tensor:
    """(n,) whether each beam ends. The worst kept is -inf until K have finished; then only a beam where nothing lives,
    -inf as well, ends. Coverage is no reason to end: a live prefix may still read all of the source."""
    best, worst = live.total.amax(1), kept.score[:, -1]
    if settings.early_stopping == "first":
        over = (worst > -torch.inf) | (best == -torch.inf)
    else:
        exhaustive = settings.early_stopping == "exhaustive"
        over = best / length_penalty(longest.float() if exhaustive else step + 1, settings) <= worst
    return over | (longest == step + 1)


def _closed(kept: _Kept, step: int, stop: Tensor) -> _Kept:
    """``kept`` when beams end at ``stop`` (n,): those that kept nothing keep the best prefix that ``step`` read."""
    nothing = stop.unsqueeze(1) & (kept.step < 0)
    first = torch.arange(len(nothing), device=nothing.device).unsqueeze(1) * nothing.size(1)
    return kept._replace(step=kept.step.masked_fill(nothing, step), row=torch.where(nothing, first, kept.row))


def _limit(length: int, settings: SearchSettings) -> int:
    """The most tokens of the translation of a source of ``length`` tokens, EOS counted, at least 1."""
    return max(1, int(settings.max_length_ratio * length + settings.max_length_extra))


def length_penalty(length: int | Tensor, settings: SearchSettings) -> float | Tensor:
    """What the log-probability of ``length`` tokens, EOS counted, is divided by."""
    if settings.length_penalty == "none":
        return 1.0
    base = length if settings.length_penalty == "average" else (5 + length) / 6
    penalty: float | Tensor = base**settings.length_alpha
    return penalty


def _winners(kept: _Kept, history: list[_Step], lengths: list[int], limits: list[int]) -> list[list[Hypothesis]]:
    """What is kept (n, n_best), read back; of hypotheses that never finished only the first of a beam."""
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


def _merged(groups: list[list[Hypothesis]]) -> list[Hypothesis]:
    """Different translations of one sentence, best first; one that never finished only where there is nothing else."""
    ranked = sorted(itertools.chain(*groups), key=lambda hypothesis: -hypothesis.score)
    different = dict[tuple[int, ...], Hypothesis]()
    for hypothesis in ranked:
        different.setdefault(tuple(hypothesis.ids), hypothesis)
    return [hypothesis for hypothesis in different.values() if hypothesis.score > -torch.inf] or ranked[:1]


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
