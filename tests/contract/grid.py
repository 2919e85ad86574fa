"""The models that the laws are tried on: every kind of attention under every wiring, and every encoder and decoder.

A kind that joins the union in `s2s.config` is picked up unasked. If it has options that must be given, or variants
worth trying, they go into `EXAMPLES`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from s2s.attention.normalise import Normaliser
from s2s.attention.scores import AnyScore
from s2s.config import AnyAttention, AnyDecoder, AnyEncoder
from s2s.interfaces import BOS, EOS, NOTHING, PAD, Before, Decoded, Memory
from s2s.models.positions import PositionKind
from s2s.models.rnn_decoder import RNNDecoder
from s2s.models.seq2seq import ModelSettings, Seq2Seq
from s2s.models.start import StartKind
from s2s.settings import AttentionSettings
from s2s.tree import Tree

Options = dict[str, Any]

EXAMPLES: dict[str, list[Options]] = {
    "none": [{}, {"context": "summary"}],
    "global": [{}, {"score": "general", "normaliser": "softmax", "filter": {"kind": "topk", "k": 2}}],
    "local-m": [
        {"window": 1},
        {"window": {"start": 2, "end": 0, "updates": 30}, "score": "general", "normaliser": "softmax"},
    ],
    "local-p": [
        {"window": 2},
        {"window": {"start": 3, "end": 1, "updates": 30}, "score": "general", "normaliser": "softmax"},
        {"window": 1, "position": "code", "gauss": "pre", "score": "general", "normaliser": "softmax"},
    ],
    "monotonic": [{}, {"evaluate": "expected"}],
    "mocha": [{}, {"window": 2, "evaluate": "expected"}],
    "coverage": [
        {"inner": {"kind": "global", "score": "additive"}},
        {"inner": {"kind": "local-m", "window": 2, "score": "additive"}, "record": "fertility", "weight": 0.0},
        {"inner": {"kind": "global", "score": "additive"}, "record": {"kind": "neural", "size": 3}},
    ],
    "hard": [
        {"estimator": {"kind": "reinforce"}},
        {"estimator": {"kind": "reinforce", "baseline": "moving", "reward": "rest"}, "score": "dot", "entropy": 0.1},
        {"estimator": {"kind": "gumbel"}, "score": "additive", "evaluate": "sample"},
        {"estimator": {"kind": "enumerate"}, "score": "general"},
        {"estimator": {"kind": "enumerate"}, "score": "dot", "evaluate": "marginal"},
    ],
    "latent": [{}, {"k": 2, "score": "general"}, {"k": 2, "renormalise": True, "score": "additive"}],
    "posterior": [{}, {"k": 2, "score": "additive"}, {"k": 2, "renormalise": True, "share": 0.5, "score": "dot"}],
    "variational": [
        {},
        {"estimator": "reinforce", "size": 3, "score": "additive"},
        {"k": 2, "score": {"kind": "location", "max_length": 4}},
    ],
    "hmm": [
        {"reach": 2, "score": "additive"},
        {"monotone": True, "reach": None, "score": {"kind": "location", "max_length": 4}},
        {"k": 2, "score": "general"},
        {"k": 3, "renormalise": True, "monotone": True, "reach": 1, "score": "dot"},
    ],
}
"""Options to try for a kind of attention, `kind` left out; a kind that is not named here is built with none."""

SCORES: dict[str, list[Options]] = {
    "dot": [{}, {"scaled": True}],
    "general": [{}, {"scaled": True}],
    "additive": [{}, {"normed": True, "size": 5}, {"identity_source": True}],
    "location": [{"max_length": 4}],  # less than the longest source
}
"""The same for a kind of score."""

SOURCE_WORDS, TARGET_WORDS, SIZE = 11, 9, 8
WIRINGS: dict[str, Options] = {
    "luong-feeding": {"wiring": "luong", "input_feeding": True},
    "luong": {"wiring": "luong", "input_feeding": False},
    "bahdanau": {"wiring": "bahdanau"},
    "cgru": {"wiring": "cgru", "cell": "gru", "layers": 1},
    "gnmt": {"wiring": "gnmt", "layers": 2},
}
BOTH_WAYS: Options = {"kind": "rnn", "size": SIZE, "cell": "gru"}
ENCODERS: dict[str, Options] = {
    "both-ways": BOTH_WAYS,
    "lstm": {**BOTH_WAYS, "cell": "lstm"},
    "forwards": {**BOTH_WAYS, "bidirectional": False},
    "wider": {**BOTH_WAYS, "size": SIZE + 2},
    "deep": {**BOTH_WAYS, "layers": 2},
    "residual": {**BOTH_WAYS, "cell": "lstm", "layers": 3, "residual": True},
    "normed": {**BOTH_WAYS, "layer_norm": True},
    "reversed": {**BOTH_WAYS, "cell": "lstm", "bidirectional": False, "reverse": True},
    "variational": {**BOTH_WAYS, "cell": "lstm", "recurrent_dropout": 0.3},
}
STACK: Options = {"kind": "transformer", "size": SIZE, "layers": 2, "heads": 2, "feedforward": 12}
STACK_AXES: tuple[tuple[Any, ...], ...] = (
    ("pre", "post"),
    get_args(PositionKind),
    (None, {"kind": "window", "size": 2}, {"kind": "strided", "size": 1, "stride": 2}),
    (None, 1),
)
"""Norm, positions, what self-attention leaves out (less is seen than the longest sentence is long), and groups."""


def stack_of(*places: int) -> tuple[str, Options]:
    """Name and settings of a Transformer's stack at these places of `STACK_AXES`."""
    norm, positions, sparse, groups = (axis[place] for axis, place in zip(STACK_AXES, places, strict=True))
    name = "-".join([norm, positions, *([sparse["kind"]] if sparse else []), *(["grouped"] if groups else [])])
    options = {"norm": norm, "positions": positions, "sparse": sparse, "groups": groups, "max_distance": 2}
    return name, {**STACK, **options}


def pairwise(*counts: int) -> Iterator[tuple[int, ...]]:
    """Places on axes of these lengths, few of them, so that every two places on different axes meet in one."""

    def meetings(places: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
        return set(itertools.combinations(enumerate(places), 2))

    everything = list(itertools.product(*map(range, counts)))
    left = set[tuple[tuple[int, int], ...]]().union(*map(meetings, everything))
    while left:
        best = max(everything, key=lambda places: len(meetings(places) & left))
        left -= meetings(best)
        yield best


EVERY_STACK = dict(stack_of(*places) for places in itertools.product(*(range(len(axis)) for axis in STACK_AXES)))
STACKS = {name: EVERY_STACK[name] for name in ("pre-sinusoidal", "pre-learned", "post-sinusoidal", "post-learned")} | {
    name: EVERY_STACK[name] for name, _ in (stack_of(*places) for places in pairwise(*map(len, STACK_AXES)))
}

CONV: Options = {"kind": "conv", "size": SIZE + 1, "layers": 2}
CONVOLUTIONS: dict[str, tuple[int, Options, Options]] = {
    "conv": (SIZE, CONV, CONV),
    "conv/kernels": (6, {**CONV, "kernel": 5, "layers": 1}, {**CONV, "kernel": 2, "max_positions": 3}),
    "conv/single": (6, {**CONV, "kernel": 1}, {**CONV, "kernel": 1, "layers": 1}),
    "conv/from-rnn": (SIZE, BOTH_WAYS, CONV),
    "conv/from-transformer": (SIZE, STACK, CONV),
    "transformer/from-conv": (SIZE, {**CONV, "max_positions": 3}, STACK),
}
"""Width of embeddings, encoder and decoder, of which one is ConvS2S: kernels longer and shorter than a sentence, and
fewer positions than it has."""

EMBEDDING: Options = {"kind": "embedding"}
ONE: Options = {**STACK, "kind": "decoder-only", "max_positions": 3, "max_distance": 2}
ONE_STACK: dict[str, tuple[Options, Options]] = {
    **{
        "-".join(["decoder-only", source, positions]): (EMBEDDING, {**ONE, "source": source, "positions": positions})
        for source in ("bidirectional", "causal")
        for positions in get_args(PositionKind)
    },
    "decoder-only-post": (EMBEDDING, {**ONE, "norm": "post"}),
    "decoder-only-grouped": (EMBEDDING, {**ONE, "groups": 1, "source": "causal", "positions": "relative"}),
    "decoder-only/from-rnn": (BOTH_WAYS, ONE),
}
"""Encoder and a decoder that is the only stack."""


@dataclass(frozen=True)
class Case:
    """One model, as the `model` section of a configuration."""

    name: str
    model: Options

    @property
    def decoder(self) -> Options:
        """The decoder's settings."""
        settings: Options = self.model["decoder"]
        return settings


def kinds(union: Any) -> dict[str, Any]:
    """The settings class of every kind of a union that is told apart by ``kind``."""
    members = get_args(get_args(union)[0])
    return {kind: settings for settings in members for kind in get_args(settings.model_fields["kind"].annotation)}


def attentions() -> dict[str, Options]:
    """Every kind of attention with its examples, by name; where it has a score and a normaliser, every pair of them."""
    return {_name(options): options for options, _ in _variants()}


def _variants() -> Iterator[tuple[Options, int | None]]:
    """The options of every attention; those with a pair of score and normaliser also have the sum of their places."""
    for kind, settings in kinds(AnyAttention).items():
        for example in EXAMPLES.get(kind, [{}]):
            free = {*settings.model_fields} - {*example}
            scores: list[Any] = [{"kind": name, **one} for name in kinds(AnyScore) for one in SCORES.get(name, [{}])]
            normalisers = get_args(Normaliser)
            axes = {"score": scores, "normaliser": normalisers}
            open_axes = {axis: list(enumerate(values)) for axis, values in axes.items() if axis in free}
            for chosen in itertools.product(*open_axes.values()):
                change = {axis: value for axis, (_, value) in zip(open_axes, chosen, strict=True)}
                places = sum(place for place, _ in chosen) if len(chosen) == 2 else None
                yield {"kind": kind, **example, **change}, places


def _name(options: Options) -> str:
    """Short, and the same in every process: ``global(score=dot)``."""
    inside = ",".join(f"{key}={_name(v) if isinstance(v, dict) else v}" for key, v in options.items() if key != "kind")
    kind = options.get("kind", "ramp")  # the one section that has no kinds
    return f"{kind}({inside})" if inside else str(kind)


def refusal(decoder: Options) -> str | None:
    """Why these settings of a recurrent decoder are refused; None where they are not.

    Fails where the attention cannot even be told from its example.
    """
    attention = decoder["attention"]
    try:
        settings: AttentionSettings = TypeAdapter(AnyAttention).validate_python(attention)
    except ValidationError as error:
        pytest.fail(f"add what attention {attention['kind']} needs to EXAMPLES in {__file__}: {error}")
    wiring = decoder["wiring"]
    reason = settings.refusal(wiring, wiring == "luong" and decoder.get("input_feeding") is not False)
    if reason is not None:
        return reason
    try:
        TypeAdapter(AnyDecoder).validate_python(decoder)
    except ValidationError as error:
        return "; ".join(detail["msg"] for detail in error.errors())
    return None


def recurrent(name: str, encoder: Options, **decoder: Any) -> Case:
    """A case with a recurrent decoder; what is not said is a small default."""
    default = {"kind": "rnn", "size": SIZE, "cell": "gru", "start": "mean", "attention": {"kind": "global"}}
    return Case(name, {"embedding": 6, "tie": "none", "encoder": encoder, "decoder": default | decoder})


def attending(name: str, attention: Options, **stack: Any) -> Case:
    """A case with a Transformer's decoder whose heads are this attention."""
    decoder = {**STACK, "attention": attention, **stack}
    return Case(name, {"embedding": SIZE, "tie": "none", "encoder": BOTH_WAYS, "decoder": decoder})


def stands_in_heads(attention: Options) -> bool:
    """Whether a Transformer's heads can be this attention."""
    settings: AttentionSettings = TypeAdapter(AnyAttention).validate_python(attention)
    return settings.refusal_as_head() is None


def candidates() -> Iterator[Case]:
    """The quick selection: attention x wiring, and everything else at least once beside it.

    Of a score and a normaliser each pair is there, and each with every wiring, but not all triples: a pairwise cover.
    """
    turns, wirings = len(get_args(Normaliser)), enumerate(WIRINGS.items())
    for (options, places), (place, (wiring, order)) in itertools.product(_variants(), wirings):
        if places is not None and (places + place) % turns:
            continue
        name = f"{wiring}/{_name(options)}"
        draw = random.Random(name)  # a new kind leaves the draws of the others alone
        rest = {"cell": draw.choice(["lstm", "gru"]), "layers": draw.choice([1, 2])} | order
        yield recurrent(name, BOTH_WAYS, attention=options, **rest)
    for (encoder, options), wiring in itertools.product(ENCODERS.items(), ("luong-feeding", "luong")):
        yield recurrent(f"{wiring}/from-{encoder}", options, **WIRINGS[wiring], start="bridge", cell="lstm", layers=2)
    for start, cell in itertools.product(get_args(StartKind), ("lstm", "gru")):
        deep = {**BOTH_WAYS, "cell": cell, "layers": 2}
        yield recurrent(f"{cell}/start-{start}", deep, wiring="bahdanau", cell=cell, layers=2, start=start)
    yield recurrent("residual", BOTH_WAYS, wiring="luong", layers=3, residual=True)
    yield recurrent("variational", BOTH_WAYS, wiring="bahdanau", cell="lstm", layers=2, recurrent_dropout=0.3)
    for wiring in ("luong", "luong-feeding", "gnmt"):
        kind = "local-p" if wiring == "luong" else "global"
        yield recurrent(f"{wiring}/heads", BOTH_WAYS, heads=2, attention={"kind": kind}, **WIRINGS[wiring])
    hybrid = recurrent("hybrid", STACKS["pre-sinusoidal"], wiring="luong", cell="lstm")
    yield Case(hybrid.name, {**hybrid.model, "embedding": SIZE})
    for options, places in _variants():
        if stands_in_heads(options) and (places is None or not (places + len(WIRINGS)) % turns):
            yield attending(f"heads/{_name(options)}", options)
    for stack, options in STACKS.items():
        yield Case(stack, {"embedding": SIZE, "tie": "none", "encoder": options, "decoder": options})
    mixed = {"embedding": SIZE, "tie": "none", "encoder": ENCODERS["wider"], "decoder": STACKS["post-learned"]}
    yield Case("hybrid-transformer", mixed)
    for name, (size, reads, writes) in CONVOLUTIONS.items():
        yield Case(name, {"embedding": size, "tie": "none", "encoder": reads, "decoder": writes})
    for name, (reads, writes) in ONE_STACK.items():
        yield Case(name, {"embedding": SIZE, "tie": "none", "encoder": reads, "decoder": writes})
    yield Case("tied-conv", {"embedding": 6, "tie": "all", "encoder": CONV, "decoder": CONV})
    yield Case("tied-decoder-only", {"embedding": SIZE, "tie": "all", "encoder": EMBEDDING, "decoder": ONE})
    yield recurrent("rnn/from-conv", CONV, wiring="luong", cell="lstm")
    yield recurrent("rnn/from-embedding", EMBEDDING, wiring="bahdanau")
    for case in (
        recurrent("recurrent", ENCODERS["lstm"], wiring="luong", start="bridge", cell="lstm"),
        Case("transformer", {"embedding": SIZE, "tie": "none", "encoder": STACK, "decoder": STACK}),
        Case("tied", {"embedding": SIZE, "tie": "all", "encoder": STACKS["post-learned"], "decoder": STACK}),
    ):
        yield Case(f"document/{case.name}", {**case.model, "document": {"sentences": 2, "heads": 2}})
    for tie, size in (("output", SIZE), ("output", 6), ("all", SIZE)):
        case = recurrent(f"tied-{tie}-{size}", BOTH_WAYS, wiring="cgru")
        yield Case(case.name, {**case.model, "tie": tie, "embedding": size})
    yield Case("tied-transformer", {"embedding": SIZE, "tie": "all", "encoder": STACK, "decoder": STACK})


def grid() -> Iterator[Case]:
    """Every attention x wiring x cell x layers, with encoders and starts by turns; and every Transformer's stack."""
    turns = zip(itertools.cycle(ENCODERS.items()), itertools.cycle(("zero", "bridge", "mean", "mean")), strict=False)
    axes = (attentions().items(), WIRINGS.items(), ("lstm", "gru"), (1, 2))
    for (attention, options), (wiring, order), cell, layers in itertools.product(*axes):
        (encoder, reads), start = next(turns)
        if options["kind"] == "none":
            start = "mean"  # the one start through which all of an encoder can learn when nothing is attended to
        if {"cgru": (cell, layers) == ("gru", 1), "gnmt": layers == 2}.get(wiring, True):
            rest = {"cell": cell, "layers": layers, "start": start} | order
            name = f"{wiring}/{attention}/{cell}-{layers}/{encoder}/{start}"
            yield recurrent(name, reads, attention=options, **rest)

    for attention, options in attentions().items():
        if stands_in_heads(options):
            yield attending(f"heads/{attention}/grouped", options, groups=1)
    for stack, options in EVERY_STACK.items():
        yield Case(f"full/{stack}", {"embedding": SIZE, "tie": "none", "encoder": options, "decoder": options})


def _accepted(case: Case) -> bool:
    """Whether there is such a model; a kind whose example is wrong counts, so that its tests can say so."""
    try:
        return case.decoder["kind"] != "rnn" or refusal(case.decoder) is None
    except pytest.fail.Exception:
        return True


QUICK = [case for case in candidates() if _accepted(case)]
every_case = pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name) for case in QUICK]
    + [pytest.param(case, id=case.name, marks=pytest.mark.slow) for case in grid() if _accepted(case)],
)
"""Runs a test on every case, those of the full grid only when slow tests are asked for."""


def build(case: Case, dropout: float = 0.0) -> Seq2Seq:
    """The model in float64 and evaluation mode, its parameters redrawn from U(-0.5, 0.5)."""
    if case.decoder["kind"] == "rnn":
        reason = refusal(case.decoder)
        assert reason is None, f"{case.name}: {reason}"
    settings = ModelSettings[AnyEncoder, AnyDecoder].model_validate({**case.model, "dropout": dropout})
    same = case.model["tie"] == "all"
    model = settings.build(TARGET_WORDS if same else SOURCE_WORDS, TARGET_WORDS)
    if model.document is not None:
        model = Recalling(model.encoder, model.decoder, model.document)
    redraw(model.double().eval())
    return model


class Recalling(Seq2Seq):
    """A model of documents that is given sentences before each of its own, which follow from that one alone.

    So the laws hold of it as they do of any model.
    """

    def forward(
        self,
        source: Tensor,
        lengths: Tensor,
        words: Tensor,
        want: frozenset[str] = NOTHING,
        before: Before | None = None,
    ) -> tuple[Decoded, Memory]:
        """See `Seq2Seq.forward`."""
        return super().forward(source, lengths, words, want, recalled(source, lengths))

    def start(
        self,
        source: Tensor,
        lengths: Tensor,
        want: frozenset[str] = NOTHING,
        places: int = 1,
        before: Before | None = None,
    ) -> tuple[Tree, Tree]:
        """See `Seq2Seq.start`."""
        return super().start(source, lengths, want, places, recalled(source, lengths))


def recalled(source: Tensor, lengths: Tensor) -> Before:
    """None to three sentences before each: its own backwards, what is left of that, and so on."""
    found = torch.full((len(source), 3, source.size(1)), PAD)
    counts = torch.zeros(len(source), 3, dtype=torch.int64)
    for row, length in enumerate(lengths.tolist()):
        for place in range(length % 4):
            ids = [*source[row, : max(0, length - 1 - place)].flip(0).tolist(), EOS]
            found[row, place, : len(ids)], counts[row, place] = torch.tensor(ids), len(ids)
    return Before(found, counts)


def redraw(model: nn.Module) -> None:
    """New parameters, away from every special start."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs as tensors: padded source (B, S) with lengths (B,), and target (B, T + 1), BOS first."""

    source: Tensor
    lengths: Tensor
    target: Tensor

    @property
    def words(self) -> Tensor:
        """What the decoder reads, (B, T)."""
        return self.target[:, :-1]

    @property
    def gold(self) -> Tensor:
        """What it is to say, (B, T)."""
        return self.target[:, 1:]

    def rows(self, rows: slice) -> Pairs:
        """Some of the pairs, padded no more than they need."""
        source, lengths, target = self.source[rows], self.lengths[rows], self.target[rows]
        return Pairs(source[:, : int(lengths.max())], lengths, target[:, : int((target != PAD).sum(1).max())])


def pairs(lengths: tuple[int, ...], seed: int = 3) -> Pairs:
    """Random pairs whose sources have these lengths, EOS counted, and whose targets are up to one word off."""
    draw = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [draw.randrange(EOS + 1, TARGET_WORDS) for _ in range(count - 1)] + [EOS]

    sources = [ids(length) for length in lengths]
    targets = [[BOS, *ids(max(1, length + draw.choice([-1, 0, 1])))] for length in lengths]
    return Pairs(_padded(sources), torch.tensor(lengths), _padded(targets))


def _padded(rows: list[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def only(decoder: nn.Module) -> RNNDecoder:
    """The decoder, known to be a recurrent one."""
    assert isinstance(decoder, RNNDecoder)
    return decoder
