"""What training minimises: the smoothed negative log-likelihood of the target, plus the mechanism's own terms.

Everything is a sum with its count; the trainer divides once, by the real target tokens of the whole update, so that
micro-batches and ranks of any size weigh every token the same.

Label smoothing e moves the mass e from the right word to the uniform distribution over all V words (Szegedy 2016;
Vaswani 2017):

    loss = (1 - e) (-log p(y)) + e / V  sum_v (-log p(v))

Its minimum is not zero, so perplexity is always reported from the unsmoothed likelihood.

Guided alignment (Chen et al. 2016) adds the cross entropy between given word links A, whose rows sum to 1, and the
attention a, at the target positions that have a link:

    loss += weight x sum_ts (-A_ts log a_ts)

R-Drop (Liang et al. 2021) reads a batch twice, under two draws of dropout, and lets the two distributions P and Q of
each word come together; here it is half of the paper's sum, so that a token weighs what it weighs without it:

    loss = 1/2 (loss_P + loss_Q) + weight x 1/4 (KL(P || Q) + KL(Q || P))

Distillation word by word (Kim & Rush 2016, section 3.1) puts what a teacher predicts, T, beside the right words:

    loss = (1 - weight) loss + weight x sum_v (-T(v) log p(v))

Scheduled sampling (Bengio et al. 2015, section 2.4) reads the sentence word by word: each word but the first is, with a
probability that the update decides, one drawn from the model's own distribution; what is to be said stays what it was.

Minimum risk training (Shen et al. 2016, section 3) weighs translations y of a sentence x against each other, a few
candidates S that were drawn from the model, by what they cost beside the right one, y*:

    risk = sum_{y in S} Q(y) cost(y, y*),    Q(y) = p(y | x)^sharpness / sum_{y' in S} p(y' | x)^sharpness
    loss = likelihood x loss + (1 - likelihood) x sum over sentences of |y*| risk

A sentence counts as often as its right translation has tokens, so that what is divided by their number is a mean cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from s2s.configfile import FilePath
from s2s.draws import gumbel
from s2s.interfaces import BOS, NOTHING, PAD, Before, Decoded, Decoder, Memory, Totals
from s2s.products import more_rows
from s2s.schedules import Ramp, is_probability, value_at
from s2s.settings import MayChange, Settings
from s2s.tree import join_time, take

_BLOCK = 2**24
"""Scores (rows x V) that stand in memory at once, in the type of the products: 2048 tokens of 8000 words each."""
_ROWS = 500_000
"""Scores that go through the softmax at once, in float32, through buffers that are used again and stay in the cache."""


class Sums(NamedTuple):
    """Sums over the real target positions of one batch."""

    loss: Tensor
    """Scalar with gradient: what is minimised."""
    nll: Tensor
    """Scalar: unsmoothed negative log-likelihood, in nats."""
    tokens: Tensor
    """Scalar: real target tokens, EOS counted."""
    parts: dict[str, Tensor]
    """The mechanism's terms, ``guided``, ``teacher``, ``r_drop`` and ``risk`` by name, scalars, all in ``loss``
    already."""
    statistics: Totals
    """See `s2s.interfaces.Attention.statistics`."""


class _SmoothedLoss(torch.autograd.Function):
    """Output matrix, softmax and loss in one: the gradient is formed beside the loss, a chunk of rows at a time."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, target: Tensor, smoothing: float, learn: bool
    ) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if features.dtype == torch.float64 else torch.float32
        vocabulary, count = weight.size(0), features.size(0)
        features = more_rows(features)
        loss, nll = features.new_zeros((), dtype=wide), features.new_zeros((), dtype=wide)
        matrix = weight.to(features.dtype)
        block, rows = max(1, _BLOCK // vocabulary), max(1, _ROWS // vocabulary)
        buffers = torch.empty((2, min(rows, count), vocabulary), dtype=wide, device=features.device)
        if learn:
            by_features = torch.empty_like(features)
            by_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device)
            by_bias = torch.zeros_like(bias, dtype=wide)
        for first in range(0, features.size(0), block):
            part = features[first : first + block]
            narrow = part @ matrix.t()
            for top in range(0, min(part.size(0), count - first), rows):  # rows of zeros give scores of zero: no loss
                gold = target[first + top : first + min(top + rows, block)].unsqueeze(1)
                scores, chances = buffers[0, : gold.size(0)], buffers[1, : gold.size(0)]
                own = narrow[top : top + len(gold)]
                scores.copy_(own).add_(bias)  # one mixed addition would take several times as long
                torch.softmax(scores, 1, out=chances)
                # Log-sum-exp: the highest chance never underflows, and is that of the highest score.
                total = scores.amax(1, keepdim=True) - chances.amax(1, keepdim=True).log()
                of_gold = (total - scores.gather(1, gold)).sum()
                nll += of_gold
                loss += (1 - smoothing) * of_gold
                if smoothing:
                    loss += smoothing * (total.sum() - scores.sum() / vocabulary)
                if learn:
                    if smoothing:
                        chances.sub_(smoothing / vocabulary)
                    chances.scatter_add_(1, gold, chances.new_full(gold.shape, smoothing - 1))
                    by_bias += chances.sum(0)
                    own.copy_(chances)
            if learn:
                torch.mm(narrow, matrix, out=by_features[first : first + block])
                by_weight += narrow.t() @ part
        if learn:
            ctx.save_for_backward(by_features[:count], by_weight, by_bias)
            ctx.kind = weight.dtype
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor, by_nll: Tensor) -> tuple[Tensor | None, ...]:
        by_features, by_weight, by_bias = ctx.saved_tensors
        scale = by_loss
        return (
            by_features * scale,  # a number with more digits than they have; they keep their type
            (by_weight * scale).to(ctx.kind),
            (by_bias * scale).to(ctx.kind),
            None,
            None,
            None,
        )


def smoothed_loss(
    features: Tensor, weight: Tensor, bias: Tensor, target: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Sums of smoothed loss and plain NLL of ``target`` (n,) under softmax(features weight^T + bias).

    Features (n, D), weight (V, D), bias (V,). Products run in the type of ``features``, or autocast's; softmax and sums
    in float32 or wider. Never holds (n, V) at once.
    """
    device = features.device.type
    if torch.is_autocast_enabled(device) and features.dtype != torch.float64:
        features = features.to(torch.get_autocast_dtype(device))
    learn = torch.is_grad_enabled() and any(x.requires_grad for x in (features, weight, bias))
    with torch.autocast(device, enabled=False):
        sums: tuple[Tensor, Tensor] = _SmoothedLoss.apply(features, weight, bias, target, smoothing, learn)  # type: ignore[no-untyped-call]
    return sums


def guided_loss(weights: Tensor, links: Tensor, real: Tensor) -> Tensor:
    """Sum over real linked positions of the cross entropy between links (B, T, S) and attention (B, T, S), in nats.

    A row of ``links`` sums to 1, or is zero and asks for nothing; ``real`` (B, T) bool. Weights that are exactly zero
    cost as much as 1e-20 and have no gradient.
    """
    linked = real & links.any(-1)
    chosen = weights[linked]  # (n, S)
    chosen = chosen if chosen.dtype == torch.float64 else chosen.float()
    return -(links[linked].to(chosen.dtype) * chosen.clamp(min=1e-20).log()).sum()


class Rows(NamedTuple):
    """Rows (n, ...) from which scores are read."""

    features: Tensor
    output: nn.Linear | None
    """None where they are scores already."""

    def scores(self, part: Tensor) -> Tensor:
        """Of some of the rows, log-probabilities (m, V) in float32 or wider."""
        scores = part if self.output is None else nn.functional.linear(part, self.output.weight, self.output.bias)
        return (scores if scores.dtype == torch.float64 else scores.float()).log_softmax(-1)


def _over_rows(measure: Callable[[Tensor, Tensor], Tensor], first: Rows, second: Rows, vocabulary: int) -> Tensor:
    """What ``measure`` makes of the log-probabilities of both, a chunk of rows at a time: never (n, V) at once."""

    def of_part(one: Tensor, other: Tensor) -> Tensor:
        return measure(first.scores(one), second.scores(other)).sum()

    size = max(1, _BLOCK // vocabulary)
    pairs = zip(torch.split(first.features, size), torch.split(second.features, size), strict=True)
    parts = [checkpoint(of_part, *pair, use_reentrant=False, preserve_rng_state=False) for pair in pairs]
    return torch.stack(parts).sum()


def divergence(first: Rows, second: Rows, vocabulary: int) -> Tensor:
    """Sum over rows of KL(P || Q) + KL(Q || P) = sum_v (p_v - q_v) (log p_v - log q_v), in nats, with gradient."""
    return _over_rows(lambda p, q: (p.exp() - q.exp()) * (p - q), first, second, vocabulary)


def cross_entropy(theirs: Rows, own: Rows, vocabulary: int) -> Tensor:
    """Sum over rows of -sum_v p_v log q_v, p being ``theirs``, in nats, with gradient for both."""
    return _over_rows(lambda p, q: -p.exp() * q, theirs, own, vocabulary)


class Candidates(NamedTuple):
    """Different translations of the sentences of a batch, at most K of each."""

    target: Tensor
    """(N, T + 1) all of them, sentence by sentence, BOS first and PAD last."""
    there: Tensor
    """(B, K) bool, True where a sentence has one; N in all."""
    cost: Tensor
    """(B, K) float32, what each costs, 0 to 1."""


Propose = Callable[[nn.Module, Tensor, Tensor, Tensor, Before | None, int], Candidates]
"""Candidates of a batch by the model as it stands: given source (B, S), lengths (B,), the right translations
(B, T + 1), the sentences before and a seed. The same seed gives the same."""


def expected_cost(log_likelihoods: Tensor, candidates: Candidates, sharpness: float) -> Tensor:
    """The risk (B,) of each sentence, given log p (N,) of the candidates, with gradient; see the top of the file."""
    scores = log_likelihoods.new_full(candidates.there.shape, -torch.inf)
    scores = scores.masked_scatter(candidates.there, sharpness * log_likelihoods)  # (B, K)
    return (scores.softmax(1) * candidates.cost).sum(1)


class GuidedSettings(Settings):
    """Guided alignment: attention learns to point where given word links point (Chen et al. 2016)."""

    weight: Annotated[float, Field(gt=0.0)] = 0.5
    """What the cross entropy between links and attention counts, beside the likelihood."""
    until: Annotated[int, Field(ge=1)] | None = None
    """The last update that is guided; null: all are."""


class TeacherSettings(Settings):
    """Distillation word by word: learn what another run predicts after the same words, too (Kim & Rush 2016)."""

    run: Annotated[FilePath, MayChange(contents=True)]
    """A run with a model of any kind, best checkpoint; its vocabularies are taken over."""
    weight: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """The teacher's share of the loss; the right words have the rest."""


class MinimumRiskSettings(Settings):
    """Minimum risk: what translations cost is weighed with how likely the model finds them (Shen 2016; Edunov 2018)."""

    samples: Annotated[int, Field(ge=1, le=1000)] = 8
    """Candidates of each sentence, before equal ones become one."""
    by: Literal["sampling", "beam"] = "sampling"
    """How they are found, without dropout: drawn from the model's distribution, or the best by a beam of that width."""
    reference: bool = True
    """Let the right translation be a candidate too."""
    metric: Literal["chrf", "bleu"] = "chrf"
    """What a candidate costs: 1 - chrF2 / 100 of the detokenised sentence, or 1 - BLEU / 100, smoothed."""
    sharpness: Annotated[float, Field(gt=0.0)] = 0.1
    """Exponent of the candidates' likelihoods, the paper's alpha: the lower, the more alike all of them count."""
    likelihood: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Share of the loss that the likelihood keeps, with all that belongs to it; the risk has the rest."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.samples == 1 and not self.reference:
            raise ValueError("one candidate has nothing to be weighed against; set samples higher, or reference: true")
        return self


class ObjectiveSettings(Settings):
    """What training minimises."""

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Probability moved from the right word to the uniform distribution over the whole vocabulary."""
    guided: GuidedSettings | None = None
    """Teach the attention by the word links of data.train.links; null leaves it to itself."""
    teacher: TeacherSettings | None = None
    """Learn from what another run predicts, beside the right words; null has no teacher."""
    r_drop: Annotated[float, Field(ge=0.0)] = 0.0
    """What it counts that two draws of dropout predict different words (Liang 2021); above 0 every batch is read twice.
    It is the paper's alpha."""
    scheduled_sampling: Annotated[float | Ramp, AfterValidator(is_probability)] = 0.0
    """Probability that a word read is the model's own instead of the right one (Bengio 2015); a number, or a ramp.
    Above 0 every decoder goes step by step."""
    minimum_risk: MinimumRiskSettings | None = None
    """Learn from what the model's own translations cost, too; null does not. Best begun from a trained run, by
    init_from."""

    @property
    def over_words(self) -> str | None:
        """The setting that needs the distribution over all words as training reads it; None where none does."""
        if self.teacher is not None:
            return "teacher"
        if self.r_drop:
            return "r_drop"
        return "scheduled_sampling" if self.scheduled_sampling != 0.0 else None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.teacher is not None and self.scheduled_sampling != 0.0:
            raise ValueError(
                "a teacher predicts what comes after the right words, and scheduled_sampling reads others; choose one"
            )
        if self.r_drop and self.scheduled_sampling != 0.0:
            raise ValueError(
                "r_drop compares two readings of the same words, and scheduled_sampling draws others; choose one"
            )
        return self


def _rows(model: nn.Module, decoded: Decoded, memory: Memory, real: Tensor) -> Rows:
    decoder: Decoder = model.decoder  # type: ignore[assignment]
    if decoded.mixture is not None:
        return Rows(decoder.logits(decoded, memory, real), None)
    return Rows(decoder.features(decoded, memory, real), decoder.output)


def _log_likelihoods(decoder: Decoder, decoded: Decoded, memory: Memory, gold: Tensor) -> Tensor:
    """log p (N,) of whole translations ``gold`` (N, T), PAD last, with gradient."""
    found = decoder.likelihood(decoded, memory, gold)
    return found.new_zeros(gold.shape).masked_scatter(gold != PAD, found).sum(1)


def _mean(first: Sums, second: Sums, apart: Tensor) -> Sums:
    """Of two readings of a batch, with what it costs that they differ; statistics of both are counted."""
    parts = {name: (part + second.parts[name]) / 2 for name, part in first.parts.items()}
    return Sums(
        (first.loss + second.loss) / 2 + apart,
        (first.nll + second.nll) / 2,
        first.tokens,
        parts | {"r_drop": apart.detach()},
        {
            name: (total + second.statistics[name][0], count + second.statistics[name][1])
            for name, (total, count) in first.statistics.items()
        },
    )


class TrainingStep(nn.Module):
    """Model and objective in one module: one thing to wrap for several devices, to compile, or to take gradients of."""

    def __init__(
        self,
        model: nn.Module,
        settings: ObjectiveSettings,
        teacher: nn.Module | None = None,
        propose: Propose | None = None,
    ) -> None:
        """``teacher`` reads the same ids and predicts the same words; it stays as it is.

        ``propose`` finds the candidates of minimum risk, whose training needs it.
        """
        super().__init__()
        self._teachers: list[nn.Module] = []  # a list, so that they are no part of what is trained
        if teacher is not None:
            self._teachers.append(teacher.eval().requires_grad_(False))
        self.taught = 0.0 if settings.teacher is None else settings.teacher.weight
        self.model, self.smoothing, self.guided = model, settings.label_smoothing, settings.guided
        self.r_drop, self.schedule = settings.r_drop, settings.scheduled_sampling
        self.risk, self.propose = settings.minimum_risk, propose
        self.own_words = value_at(self.schedule, 0)

    def set_update(self, update: int) -> None:
        """Called before each update: schedules are functions of the update number alone."""
        self.own_words = value_at(self.schedule, update)
        self.model.decoder.set_update(update)  # type: ignore[union-attr, operator]

    def guides(self, update: int) -> bool:
        """Whether word links are part of this update's loss."""
        return self.guided is not None and (self.guided.until is None or update <= self.guided.until)

    @property
    def sentences_before(self) -> int:
        """The most sentences before the one to translate that the model, or its teacher, reads."""
        counts: list[int] = [model.sentences_before for model in (self.model, *self._teachers)]  # type: ignore[misc]
        return max(counts)

    def forward(
        self,
        source: Tensor,
        lengths: Tensor,
        target: Tensor,
        links: Tensor | None = None,
        before: Before | None = None,
    ) -> Sums:
        """Source (B, S) with lengths (B,) and target (B, T + 1), BOS first and PAD last, to sums.

        ``links`` (B, T, S), only where updates are guided: see `guided_loss`. ``before``: the sentences before.
        """
        measured = self._likelihood(source, lengths, target, links, before)
        if self.risk is None or not self.training:
            return measured
        share, risk = self.risk.likelihood, self._risk(self.risk, source, lengths, target, before)
        parts = {name: share * part for name, part in measured.parts.items()}
        risk = (1 - share) * risk
        return measured._replace(loss=share * measured.loss + risk, parts=parts | {"risk": risk.detach()})

    def _risk(
        self, settings: MinimumRiskSettings, source: Tensor, lengths: Tensor, target: Tensor, before: Before | None
    ) -> Tensor:
        """The sum over sentences of their risk, each as often as it has tokens (B, T + 1), BOS not counted."""
        assert self.propose is not None, "handed in by who trains"
        candidates = self.propose(self.model, source, lengths, target, before, int(torch.randint(2**62, ())))
        decoder: Decoder = self.model.decoder  # type: ignore[assignment]
        memory: Memory = self.model.read(source, lengths, before)  # type: ignore[operator]
        sentence = candidates.there.nonzero()[:, 0]  # (N,): those of a sentence share its dropout of the source
        memory, state = decoder.start(take(memory, sentence))
        decoded, _ = decoder(candidates.target[:, :-1], memory, state)
        likelihoods = _log_likelihoods(decoder, decoded, memory, candidates.target[:, 1:])
        risk = expected_cost(likelihoods, candidates, settings.sharpness)
        return (risk * (target[:, 1:] != PAD).sum(1)).sum()

    def _likelihood(
        self, source: Tensor, lengths: Tensor, target: Tensor, links: Tensor | None, before: Before | None
    ) -> Sums:
        """All but the risk."""
        words, gold = target[:, :-1], target[:, 1:]
        want = NOTHING if links is None else frozenset({"weights"})
        theirs = None
        for teacher in self._teachers if self.training else []:
            predicted: tuple[Decoded, Memory] = teacher(source, lengths, words, NOTHING, before)
            theirs = _rows(teacher, *predicted, gold != PAD)
        first = self._decoded(source, lengths, words, want, before)
        measured = self.measure(*first, gold, links, theirs)
        if not (self.r_drop and self.training):
            return measured
        second = self._decoded(source, lengths, words, want, before)
        one, other = (_rows(self.model, *decoded, gold != PAD) for decoded in (first, second))
        apart = divergence(one, other, self._vocabulary) * self.r_drop / 4
        return _mean(measured, self.measure(*second, gold, links, theirs), apart)

    def _decoded(
        self, source: Tensor, lengths: Tensor, words: Tensor, want: frozenset[str], before: Before | None
    ) -> tuple[Decoded, Memory]:
        """Teacher forcing, or now and then with the model's own words."""
        if not (self.own_words and self.training):
            whole: tuple[Decoded, Memory] = self.model(source, lengths, words, want, before)
            return whole
        memory, state = self.model.start(source, lengths, want, before=before)  # type: ignore[operator]
        token, *rest = words.split(1, 1)  # type: ignore[no-untyped-call]
        decoded, state = self.model.decoder(token, memory, state)  # type: ignore[operator]
        steps: list[Decoded] = [decoded]
        for right in rest:
            token = self._own_or_right(right, steps[-1], memory)
            decoded, state = self.model.decoder(token, memory, state)  # type: ignore[operator]
            steps.append(decoded)
        return join_time(steps), memory

    @torch.no_grad()
    def _own_or_right(self, right: Tensor, decoded: Decoded, memory: Memory) -> Tensor:
        """The word (B, 1) that is read next, drawn where the coin says so; padding stays."""
        decoder: Decoder = self.model.decoder  # type: ignore[assignment]
        scores = decoder.logits(decoded, memory, torch.ones_like(right, dtype=torch.bool)).float()
        scores[:, [PAD, BOS]] = -torch.inf  # a translation has neither
        own = (scores + gumbel(scores)).argmax(-1, keepdim=True)  # a draw from the softmax, whatever the scores are
        replaced = (torch.rand(right.shape, device=right.device) < self.own_words) & (right != PAD)
        return torch.where(replaced, own, right)

    @property
    def _vocabulary(self) -> int:
        decoder: Decoder = self.model.decoder  # type: ignore[assignment]
        return decoder.output.out_features

    def measure(
        self, decoded: Decoded, memory: Memory, gold: Tensor, links: Tensor | None = None, theirs: Rows | None = None
    ) -> Sums:
        """The sums of what was decoded already, given the right words (B, T), PAD last.

        ``theirs`` is what a teacher predicts at the real positions.
        """
        real = gold != PAD
        decoder: Decoder = self.model.decoder  # type: ignore[assignment]
        if decoded.mixture is None:
            features = decoder.features(decoded, memory, real)
            loss, nll = smoothed_loss(features, decoder.output.weight, decoder.output.bias, gold[real], self.smoothing)
        elif self.smoothing == 0:
            nll = -decoder.likelihood(decoded, memory, gold).sum()
            loss = nll
        else:
            words_log = decoder.logits(decoded, memory, real)
            nll = -words_log.gather(1, gold[real].unsqueeze(1)).sum()
            loss = (1 - self.smoothing) * nll - self.smoothing * words_log.mean(1).sum()
        parts = {}
        share = 1.0 if theirs is None else 1 - self.taught  # a mechanism's terms may be pieces of the likelihood
        loss = share * loss
        for name, term in decoder.penalties(decoded, memory, gold).items():
            parts[name] = share * (term * real if term.dim() == 2 else term).sum()
            loss = loss + parts[name]
        if theirs is not None:
            own = _rows(self.model, decoded, memory, real)
            parts["teacher"] = self.taught * cross_entropy(theirs, own, self._vocabulary)
            loss = loss + parts["teacher"]
        if links is not None:
            assert self.guided is not None and decoded.weights is not None, "checked with the settings"
            parts["guided"] = self.guided.weight * guided_loss(decoded.weights, links, real)
            loss = loss + parts["guided"]
        statistics = decoder.statistics(decoded, memory, gold)
        detached = {name: part.detach() for name, part in parts.items()}
        return Sums(loss, nll.detach(), real.sum(), detached, statistics)
