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

Beams that have ended leave the batch, and the next sentences may enter in their place. Prefixes are never copied: each
step notes the token that every row read and the row of the step before that it came from, and only the winners are
walked back. Where a rule needs the words said so far, they travel with the state.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple, Self, TypeVar

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
from s2s.tree import Tree, join_ages, join_rows, repeat, take, take_groups

T = TypeVar("T")
_FEW = 8
"""Beams that have ended stay until they are one in so many: taking rows out costs more than computing them."""


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
    """Padded source positions decoded together; the encoder reads up to four times as many at once. A sentence counts
    once for every eight hypotheses or draws."""
    max_source_length: int = Field(1000, ge=2, le=100_000)
    """Pieces per source sentence, EOS counted; longer lines are split and their translations joined."""
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

    def check_required(self, where: str) -> None:
        """Raises UsageError, naming what asked for it, where no required phrases can be searched for."""
        if self.sampling is not None or self.diversity is not None:
            what = "required phrases need a beam of their own kind, neither sampling nor diversity"
            raise UsageError(where, what, "set search.sampling and search.diversity to null")

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
    """Whether it ended by its own EOS, before the length limit and not because nothing could follow."""
    attention: Tensor | None
    """(len(ids) + 1, S) float32 on the CPU, a row per token and one for EOS, S real source positions; None if not
    asked for or if the model has none."""


def can_enter(model: Searchable, settings: SearchSettings) -> bool:
    """Whether sentences may enter while others are searched: then rows of a state have read more words or fewer.

    Not where states grow and a beam reorders them at every step, for that costs more than is gained (docs/speed.md).
    Nor may they where a wish forbids phrases, for then the words said are kept, of all as many.
    """
    return not model.same_age and not settings.needs_said and (settings.beam == 1 or not model.grows)


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
    """The step that gave EOS; -1 where there is none yet."""
    row: Tensor
    """The row of that step."""


class _Beams(NamedTuple):
    """Beams, n of them: a tree of which the rows of those that go on are taken."""

    number: Tensor
    """(n,) which of all beams it is, in the order of the sentences."""
    born: Tensor
    """(n,) the step at which it read BOS."""
    limits: Limits
    live: _Prefixes
    kept: _Kept


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
    together: int | None = None,
) -> list[list[Hypothesis]]:
    """Up to ``n_best`` translations of each sentence of ``source`` (B, S) with ``lengths`` (B,), best first.

    At least one, and fewer than asked for where fewer finished. When sampling, exactly ``n_best`` independent draws, in
    the order of their numbers. ``wishes``: what is asked of the translation of each sentence; without them all are
    number 0. ``before``: the sentences before each. ``together``: the most that are searched at once, by default all;
    the next enter when some end, which needs `can_enter`. A model is put into evaluation mode by the caller.

    Raises UsageError if ``n_best`` is not in 1..beam, if a wish cannot be met, or if the model lacks the attention that
    a setting needs; CheckpointError if the model gives NaN.
    """
    if n_best < 1 or (n_best > settings.beam and settings.sampling is None):
        raise UsageError("n_best", f"{n_best} is not between 1 and the beam, {settings.beam}", "set search.beam higher")
    if not len(lengths):
        return []
    wishes = [Wishes()] * len(lengths) if wishes is None else wishes
    together = len(lengths) if together is None else together
    if together < len(lengths) and (not can_enter(model, settings) or any(wish.forbidden for wish in wishes)):
        raise ValueError("sentences cannot enter while others are searched")
    beams = settings.groups if settings.sampling is None else n_best  # of each sentence
    longest = [_limit(length, settings) for length in lengths.tolist()]
    limits = _limits(wishes, longest, lengths, beams, settings)
    with torch.autocast(source.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        ended, history = _search(model, source, lengths, limits, settings, attention, before, beams * together)
    found = iter(_winners(ended, history, n_best))
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
    for wish in wishes:
        if wish.required:
            settings.check_required(f"line {wish.number + 1}")
    table = tabled(wishes, longest, settings.no_repeat_ngram, lengths.device)
    limits = repeat(Limits(torch.tensor(longest, device=lengths.device), lengths, table, None), beams)
    if settings.sampling is None:
        return limits
    asked = [(wish.number, wish.part) for wish in wishes]
    return limits._replace(uniforms=uniforms(settings.sampling.seed, asked, beams, max(longest), lengths.device))


def _search(
    model: Searchable,
    source: Tensor,
    lengths: Tensor,
    limits: Limits,
    settings: SearchSettings,
    attention: bool,
    before: Before | None,
    room: int,
) -> tuple[_Beams, list[_Step]]:
    """All beams as they ended, and the steps to walk back through; at most ``room`` of them are searched at once."""
    places, count = settings.beam // settings.groups, len(limits.longest)
    wanted = attention or settings.coverage_penalty > 0
    want = frozenset({"weights"}) if wanted else NOTHING
    memory, state = repeat(model.start(source, lengths, want, places, before), count // len(lengths))
    beams = _begun(limits, places)
    pool = _Pool(memory, beams, state, _no_notes(beams.live, source.size(1), limits, settings), room)
    beams, state, notes = pool.begin(pool.admit(0), 0)
    memory = pool.memory_of(beams.number)
    history: list[_Step] = []
    ended: list[_Beams] = []
    while len(beams.number):
        step, token = len(history), beams.live.token
        words, weights, state = model.step(token.flatten(), memory, state)
        history.append(_Step(token.flatten(), beams.live.origin.flatten(), weights if attention else None))
        notes = notes.after(token, beams.born == step, beams.limits.wishes.required, weights)
        beams, stop = _advanced(beams, words, notes, step, settings)
        leave = _leaving(stop, settings.groups)
        if leave is not None:
            ended.append(take(beams, leave.nonzero().squeeze(1)))
            beams = take(beams, (~leave).nonzero().squeeze(1))
        origin = beams.live.origin.flatten()
        if not torch.equal(origin, torch.arange(token.numel(), device=origin.device)):
            state, notes = take((state, notes), origin)
        if leave is not None:
            fresh = pool.admit(len(beams.number))
            if len(fresh):
                new_beams, new_state, new_notes = pool.begin(fresh, step + 1)
                beams, notes = join_rows([(beams, notes), (new_beams, new_notes)])
                state = join_ages([state, new_state])
            memory = pool.memory_of(beams.number)
    together = join_rows(ended)
    return take(together, together.number.argsort()), history


def _advanced(beams: _Beams, words: Tensor, notes: Notes, step: int, settings: SearchSettings) -> tuple[_Beams, Tensor]:
    """The beams after a step that gave the log-probabilities ``words`` (R, V), and which of them (n,) have ended."""
    places, age = beams.live.token.size(1), step - beams.born
    new = _continued(beams.live, words, age, beams.limits, notes, settings)  # (n, 2K)
    first = _Prefixes(*(part[:, :places] for part in new))
    kept = _keep(beams.kept, step, age, first, beams.limits, notes, settings)
    living = others(new.token, places)
    live = _Prefixes(*(part.gather(1, living) for part in new))
    live = live._replace(total=live.total.masked_fill(live.token == EOS, -torch.inf))
    stop = _ends(live, kept, age, beams.limits.longest, settings)
    live = live._replace(total=live.total.masked_fill(stop.unsqueeze(1), -torch.inf))
    return beams._replace(live=live, kept=_closed(kept, step, stop)), stop


def _leaving(stop: Tensor, groups: int) -> Tensor | None:
    """Which beams (n,) leave: those that have ended with all groups of their sentence; None while these are few."""
    leave = stop.view(-1, groups).all(1).repeat_interleave(groups) if groups > 1 else stop
    leaving = int(leave.sum())
    return leave if leaving > 0 and leaving * _FEW >= len(leave) else None


class _Pool:
    """All beams before they begin, and what search takes along with them; they enter in their order."""

    def __init__(self, memory: Tree, beams: _Beams, state: Tree, notes: Notes, room: int) -> None:
        """``room``: the most beams that are searched at once."""
        self.memory, self.beams, self.state, self.notes, self.room = memory, beams, state, notes, room
        self.entered = 0

    def admit(self, searched: int) -> Tensor:
        """The numbers (n,) of the next beams, as many as have room beside those ``searched``."""
        first, self.entered = self.entered, min(self.entered + self.room - searched, len(self.beams.number))
        return torch.arange(first, self.entered, device=self.beams.number.device)

    def begin(self, number: Tensor, step: int) -> tuple[_Beams, Tree, Notes]:
        """Beams ``number`` (n,) that read BOS at this step, with their state and notes."""
        beams, state, notes = self._of((self.beams, self.state, self.notes), number)
        return beams._replace(born=torch.full_like(number, step)), state, notes

    def memory_of(self, number: Tensor) -> Tree:
        """The memory of beams ``number`` (n,), ascending."""
        return self._of(self.memory, number)

    def _of(self, tree: T, number: Tensor) -> T:
        count = len(self.beams.number)
        return tree if len(number) == count else take_groups(tree, number, count)  # all are there in their order


def _begun(limits: Limits, places: int) -> _Beams:
    """The empty prefix in every place of a beam. The first lives; whatever follows the others stays at -inf."""
    number = torch.arange(len(limits.longest), device=limits.longest.device)
    dead = torch.full((len(number), places), -torch.inf, device=number.device)
    total = dead.clone()
    total[:, 0] = 0.0
    origin = torch.arange(total.numel(), device=number.device).view_as(total)
    none = torch.full_like(origin, -1)
    live = _Prefixes(total, total, origin, torch.full_like(origin, BOS))
    return _Beams(number, torch.zeros_like(number), limits, live, _Kept(dead, dead, none, none))


def _no_notes(live: _Prefixes, positions: int, limits: Limits, settings: SearchSettings) -> Notes:
    """The notes before the first step, of what some rule needs, over ``positions`` of the source."""
    rows, required = live.token.numel(), limits.wishes.required
    said = settings.needs_said or limits.wishes.forbidden is not None
    return Notes(
        live.token.new_zeros(rows, 0) if said else None,
        None if required is None else live.token.new_zeros(rows, required.length.size(1)),
        live.total.new_zeros(rows, positions) if settings.coverage_penalty > 0 else None,
    )


def _continued(
    live: _Prefixes, words: Tensor, age: Tensor, limits: Limits, notes: Notes, settings: SearchSettings
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
    allow(totals, age, limits, notes, settings.min_length, settings.no_repeat_ngram)
    total, column = _chosen(totals, age, limits, notes, settings)
    if total.isnan().any():
        raise CheckpointError("model", "gives probabilities that are not numbers", "translate with another checkpoint")
    place, token = column // vocabulary, column % vocabulary
    origin = torch.arange(len(total), device=total.device).unsqueeze(1) * places + place
    log_probability = total
    if ranked is not words:
        log_probability = live.log_probability.gather(1, place) + words[origin, token]
    return _Prefixes(total, log_probability, origin, token)


def _chosen(
    totals: Tensor, age: Tensor, limits: Limits, notes: Notes, settings: SearchSettings
) -> tuple[Tensor, Tensor]:
    """Totals and columns of ``totals`` (n, K, V), which is overwritten, by the settings' way to choose."""
    if settings.sampling is not None and limits.uniforms is not None:
        now = age.clamp(max=limits.uniforms.size(1) - 1).unsqueeze(1)  # one that has ended may be older
        return drawn(totals.squeeze(1), limits.uniforms.gather(1, now).squeeze(1), settings.sampling)
    if settings.diversity is not None:
        return best_of_groups(totals, settings.diversity)
    if limits.wishes.required is not None and notes.progress is not None:
        return best_of_banks(totals, limits.wishes.required, notes.progress.view(*totals.shape[:2], -1))
    return best_columns(totals.flatten(1), 2 * totals.size(1))


def _keep(
    kept: _Kept, step: int, age: Tensor, new: _Prefixes, limits: Limits, notes: Notes, settings: SearchSettings
) -> _Kept:
    """The best K of those kept and of the ``new`` (n, K) that are EOS; ties to the earlier."""
    score = _valued(new.total.masked_fill(new.token != EOS, -torch.inf), age + 1, settings)
    if notes.coverage is not None:
        cover = coverage_penalty(notes.coverage, limits.source, settings.coverage_penalty)
        score = score + cover[new.origin]
    fresh = _Kept(score, new.log_probability, torch.full_like(new.origin, step), new.origin)
    both = _Kept(*(torch.cat(pair, 1) for pair in zip(kept, fresh, strict=True)))
    order = both.score.sort(dim=1, descending=True, stable=True).indices[:, : kept.score.size(1)]
    return _Kept(*(part.gather(1, order) for part in both))


def _valued(total: Tensor, length: Tensor, settings: SearchSettings) -> Tensor:
    """Totals (n, K) of prefixes of ``length`` (n,) tokens, over the length penalty."""
    return (total.double() / length_penalty(length, settings).unsqueeze(1)).to(total.dtype)


def _ends(live: _Prefixes, kept: _Kept, age: Tensor, longest: Tensor, settings: SearchSettings) -> Tensor:
    """(n,) whether each beam ends. The worst kept is -inf until K have finished; then only a beam where nothing lives,
    -inf as well, ends. Coverage is no reason to end: a live prefix may still read all of the source."""
    best, worst = live.total.amax(1, keepdim=True), kept.score[:, -1:]
    if settings.early_stopping == "first":
        over = (worst > -torch.inf) | (best == -torch.inf)
    else:
        over = _valued(best, longest if settings.early_stopping == "exhaustive" else age + 1, settings) <= worst
    return over.squeeze(1) | (longest <= age + 1)


def _closed(kept: _Kept, step: int, stop: Tensor) -> _Kept:
    """``kept`` when beams end at ``stop`` (n,): those that kept nothing keep the best prefix that ``step`` read."""
    nothing = stop.unsqueeze(1) & (kept.step < 0)
    first = torch.arange(len(nothing), device=nothing.device).unsqueeze(1) * nothing.size(1)
    return kept._replace(step=kept.step.masked_fill(nothing, step), row=torch.where(nothing, first, kept.row))


def _limit(length: int, settings: SearchSettings) -> int:
    """The most tokens of the translation of a source of ``length`` tokens, EOS counted, at least 1."""
    return max(1, int(settings.max_length_ratio * length + settings.max_length_extra))


def length_penalty(length: Tensor, settings: SearchSettings) -> Tensor:
    """What the log-probability of ``length`` tokens, EOS counted, is divided by: float64."""
    if settings.length_penalty == "none":
        return torch.ones_like(length, dtype=torch.float64)
    base = length.double() if settings.length_penalty == "average" else (5 + length.double()) / 6
    return base**settings.length_alpha


def _winners(ended: _Beams, history: list[_Step], n_best: int) -> list[list[Hypothesis]]:
    """What is kept of each beam, at most ``n_best``, read back; of hypotheses that never finished only the first."""
    kept = _Kept(*(part[:, :n_best] for part in ended.kept))
    born = ended.born.unsqueeze(1).expand_as(kept.step)
    tokens, weights = _walk_back(born.flatten(), kept.step.flatten(), kept.row.flatten(), history)
    scores, log_probabilities, words = kept.score.tolist(), kept.log_probability.tolist(), (kept.step - born).tolist()
    lengths, limits = ended.limits.source.tolist(), ended.limits.longest.tolist()
    results: list[list[Hypothesis]] = []
    for beam, (length, limit) in enumerate(zip(lengths, limits, strict=True)):
        results.append([])
        for place, (score, count) in enumerate(zip(scores[beam], words[beam], strict=True)):
            if place > 0 and score == -torch.inf:
                break
            index = beam * len(scores[beam]) + place
            ids = tokens[index, 1 : count + 1].tolist()
            attention = None if weights is None else weights[index, : count + 1, :length].clone()
            finished = score > -torch.inf and count + 1 < limit
            results[-1].append(Hypothesis(ids, score, log_probabilities[beam][place], finished, attention))
    return results


def _merged(groups: list[list[Hypothesis]]) -> list[Hypothesis]:
    """Different translations of one sentence, best first; one that never finished only where there is nothing else."""
    ranked = sorted(itertools.chain(*groups), key=lambda hypothesis: -hypothesis.score)
    different = dict[tuple[int, ...], Hypothesis]()
    for hypothesis in ranked:
        different.setdefault(tuple(hypothesis.ids), hypothesis)
    return [hypothesis for hypothesis in different.values() if hypothesis.score > -torch.inf] or ranked[:1]


def _walk_back(born: Tensor, step: Tensor, row: Tensor, history: list[_Step]) -> tuple[Tensor, Tensor | None]:
    """The tokens (M, T) that M hypotheses read, BOS first, and their attention (M, T, S), on the CPU.

    Hypothesis m was ``born[m]`` and ends in row ``row[m]`` of step ``step[m]``; what lies after its end is zero. Where
    there is none its step is before its birth.
    """
    longest = int((step - born).max())
    tokens = step.new_zeros(len(step), longest + 1)
    last = history[0].weights
    weights = None if last is None else last.new_zeros(len(step), longest + 1, last.size(1), dtype=torch.float32)
    row = row.clone()
    for time in range(int(step.max()), -1, -1):
        there = ((born <= time) & (time <= step)).nonzero().squeeze(1)
        read, here, age = history[time], row[there], time - born[there]
        tokens[there, age] = read.token[here]
        if weights is not None and read.weights is not None:
            weights[there, age] = read.weights[here].float()
        row[there] = read.origin[here]
    return tokens.cpu(), None if weights is None else weights.cpu()
