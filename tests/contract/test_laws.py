"""The laws that every encoder, decoder and attention keeps, each tried on every model of the grid."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
from grid import (
    EVERY_STACK,
    QUICK,
    STACK_AXES,
    STACKS,
    WIRINGS,
    Case,
    Pairs,
    attentions,
    build,
    candidates,
    every_case,
    kinds,
    pairs,
    recurrent,
    refusal,
)
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from s2s.attention.normalise import Normaliser
from s2s.attention.scores import AnyScore
from s2s.config import AnyAttention, AnyDecoder, AnyEncoder
from s2s.interfaces import PAD, Decoded, Memory
from s2s.models.seq2seq import ModelSettings, Seq2Seq
from s2s.models.start import StartKind
from s2s.training.objective import ObjectiveSettings, Sums, TrainingStep
from s2s.tree import Tree, join_ages, leaves, repeat, take, take_groups

WEIGHTS = frozenset({"weights"})
PAIRS = pairs((6, 4, 3, 1))


def read_out(model: Seq2Seq, decoded: Decoded, memory: Memory) -> Tensor:
    """Log-probabilities (B, T, V) at all positions."""
    everywhere = torch.ones(decoded.features.shape[:2], dtype=torch.bool)
    logits = model.decoder.logits(decoded, memory, everywhere)
    return logits.view(*everywhere.shape, -1).log_softmax(-1)


def teacher_forced(model: Seq2Seq, some: Pairs = PAIRS) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (B, T, V) and weights (B, T, S) of all target positions in one call."""
    decoded, memory = model(some.source, some.lengths, some.words, WEIGHTS)
    return read_out(model, decoded, memory), decoded.weights


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two results are equal up to rounding of float64, or are both missing."""
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-9, atol=1e-11)


def embeddings(module: nn.Module) -> list[nn.Embedding]:
    """The tables of words in a module."""
    return [one for one in module.modules() if isinstance(one, nn.Embedding) and one.padding_idx == PAD]


# --- state ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@every_case
def test_state_is_a_batch_first_tree(case: Case) -> None:
    model = build(case)
    memory, state = model.start(PAIRS.source, PAIRS.lengths, WEIGHTS)
    for width in (1, 2):
        assert all(leaf.size(0) == len(PAIRS.lengths) for leaf in leaves((memory, state)))
        _, state = model.decoder(PAIRS.words[:, :width], memory, state)
    assert all(leaf.size(0) == len(PAIRS.lengths) for leaf in leaves(state))


@torch.no_grad()
@every_case
def test_any_split_of_the_target_gives_the_same(case: Case) -> None:
    model, length = build(case), PAIRS.words.size(1)
    words, weights = teacher_forced(model)
    for widths in ([1] * length, [2, length - 2], [length - 3, 1, 2]):
        memory, state = model.start(PAIRS.source, PAIRS.lengths, WEIGHTS)
        read, shown = [], []
        for part in torch.split(PAIRS.words, widths, 1):
            decoded, state = model.decoder(part, memory, state)
            read.append(read_out(model, decoded, memory))
            shown.append(decoded.weights)
        assert same(torch.cat(read, 1), words), f"split {widths}"
        if weights is not None:
            assert same(torch.cat(shown, 1), weights), f"weights of split {widths}"


@torch.no_grad()
@every_case
def test_reordering_rows_commutes_with_stepping(case: Case) -> None:
    model, rows = build(case), torch.tensor([2, 0, 0, 3, 1, 2])
    memory, state = model.start(PAIRS.source, PAIRS.lengths, WEIGHTS)
    _, state = model.decoder(PAIRS.words[:, :2], memory, state)
    here: tuple[Tree, Tree] = memory, state
    there = take(here, rows)
    for position in (2, 3):
        token = PAIRS.words[:, position]
        expected, shown, state = model.step(token, *here)
        here = memory, state
        found, taken, state = model.step(token[rows], *there)
        there = there[0], state
        assert same(found, expected[rows])
        assert same(taken, None if shown is None else shown[rows])


@torch.no_grad()
@every_case
def test_steps_are_normalised_and_equal_teacher_forcing(case: Case) -> None:
    model = build(case)
    expected, weights = teacher_forced(model)
    memory, state = model.start(PAIRS.source, PAIRS.lengths, WEIGHTS)
    for position, token in enumerate(PAIRS.words.unbind(1)):
        words, shown, state = model.step(token, memory, state)
        assert same(words.exp().sum(-1), torch.ones(len(token), dtype=torch.float64))
        assert same(words, expected[:, position])
        assert same(shown, None if weights is None else weights[:, position])


@torch.no_grad()
@every_case
def test_a_sentence_can_begin_beside_others_and_outstay_them(case: Case) -> None:
    """Rows 1 and 3 begin two steps after rows 0 and 2, in one batch with them, and go on when those have left."""
    model, words = build(case), PAIRS.words
    assert model.same_age == ((case.decoder.get("sparse") or {}).get("kind") == "strided")
    if model.same_age:
        return
    memory, new = model.start(PAIRS.source, PAIRS.lengths, WEIGHTS)
    steps = []
    state = new
    for token in words.unbind(1):
        steps.append((state, *model.step(token, memory, state)))
        state = steps[-1][-1]
    sizes = [[leaf.shape for leaf in leaves(one)] for one in (new, steps[2][0])]
    assert model.grows == (sizes[0] != sizes[1])
    old, young = torch.tensor([0, 2]), torch.tensor([1, 3])
    both = torch.cat((old, young))
    here, read = join_ages([take(steps[2][0], old), take(new, young)]), take(memory, both)
    ages = torch.tensor([2, 2, 0, 0])
    for _ in range(words.size(1)):
        if ages[0] == words.size(1):
            stay = torch.tensor([2, 3])
            here, read, both, ages = take(here, stay), take(read, stay), both[stay], ages[stay]
        found, shown, here = model.step(words[both, ages], read, here)
        for row, age in enumerate(ages.tolist()):
            _, expected, seen, _ = steps[age]
            assert same(found[row], expected[both[row]])
            assert same(None if shown is None else shown[row], None if seen is None else seen[both[row]])
        ages += 1


@torch.no_grad()
@every_case
def test_places_of_a_sentence_are_as_if_each_had_a_memory_of_its_own(case: Case) -> None:
    """And a sentence that leaves takes all its places along."""
    model, places = build(case), 3
    torch.manual_seed(4)
    memory, state = model.start(PAIRS.source, PAIRS.lengths, WEIGHTS, places)
    torch.manual_seed(4)
    apart = repeat(model.start(PAIRS.source, PAIRS.lengths, WEIGHTS), places)
    assert all(leaf.size(0) == places * len(PAIRS.lengths) for leaf in leaves(state))
    tokens = PAIRS.words.repeat_interleave(places, 0).roll(1, 0)  # other words in every place
    for position in range(3):
        if position == 2:
            going = torch.tensor([0, 2, 3])
            rows = torch.arange(len(tokens)).view(-1, places)[going].flatten()
            memory, state = take_groups(memory, going, len(PAIRS.lengths)), take(state, rows)
            apart, tokens = take(apart, rows), tokens[rows]
        words, shown, state = model.step(tokens[:, position], memory, state)
        expected, weights, own = model.step(tokens[:, position], *apart)
        apart = apart[0], own
        assert same(words, expected) and same(shown, weights)


# --- padding ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@every_case
def test_padding_of_the_source_changes_nothing(case: Case) -> None:
    model = build(case)
    words, weights = teacher_forced(model)
    garbage = torch.cat([PAIRS.source, torch.full((len(PAIRS.source), 3), 5)], 1)
    behind = torch.arange(garbage.size(1)) >= PAIRS.lengths.unsqueeze(1)
    garbage = torch.where(behind, torch.full_like(garbage, 7), garbage)
    padded, wider = teacher_forced(model, Pairs(garbage, PAIRS.lengths, PAIRS.target))
    assert same(padded, words)
    if weights is not None and wider is not None:
        assert same(wider[..., : weights.size(-1)], weights) and (wider[..., weights.size(-1) :] == 0).all()
    for row in range(len(PAIRS.lengths)):
        alone = PAIRS.rows(slice(row, row + 1))
        found, _ = teacher_forced(model, alone)
        assert same(found[0], words[row, : found.size(1)]), f"sentence {row} alone"


@torch.no_grad()
@every_case
def test_nan_in_the_padding_of_the_source_stays_there(case: Case) -> None:
    model = build(case)
    expected = teacher_forced(model)
    if case.model["tie"] == "all":
        pytest.skip("the same row is part of the output matrix")
    (table,) = embeddings(model.encoder)
    table.weight[PAD] = torch.nan
    found = teacher_forced(model)
    assert same(found[0], expected[0]) and same(found[1], expected[1])


@torch.no_grad()
@every_case
def test_nan_in_the_padding_of_the_target_stays_there(case: Case) -> None:
    model, real = build(case), PAIRS.words != PAD
    expected = teacher_forced(model)
    if case.model["tie"] != "none":
        pytest.skip("the same row is part of the output matrix")
    (table,) = embeddings(model.decoder)
    table.weight[PAD] = torch.nan
    found = teacher_forced(model)
    assert same(found[0][real], expected[0][real])
    if expected[1] is not None and found[1] is not None:
        assert same(found[1][real], expected[1][real])


@torch.no_grad()
@every_case
def test_weights_are_a_distribution_over_the_source(case: Case) -> None:
    model = build(case)
    _, weights = teacher_forced(model)
    if weights is None:
        assert case.decoder["attention"]["kind"] == "none"
        return
    behind = torch.arange(weights.size(-1)) >= PAIRS.lengths.unsqueeze(1)
    assert (weights.masked_select(behind.unsqueeze(1)) == 0).all() and (weights >= 0).all()
    total = weights.sum(-1)
    assert (total <= 1 + 1e-6).all()
    if case.decoder["kind"] == "decoder-only":  # the rest is on the words so far
        assert (total < 1).all()
    elif (case.decoder.get("attention") or {"kind": "global"})["kind"] == "global":
        assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


# --- learning ---------------------------------------------------------------------------------------------------------


def gradients(model: Seq2Seq, *parts: Pairs) -> tuple[list[Sums], dict[str, Tensor]]:
    """What `TrainingStep` gives for each part, and the gradients of all parameters added over the parts."""
    model.zero_grad()
    step = TrainingStep(model, ObjectiveSettings(label_smoothing=0.1))
    sums: list[Sums] = [step(part.source, part.lengths, part.target) for part in parts]
    for one in sums:
        one.loss.backward()  # type: ignore[no-untyped-call]
    return sums, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@every_case
def test_every_parameter_learns(case: Case) -> None:
    model = build(case, dropout=0.1).train()
    torch.manual_seed(1)
    _, found = gradients(model, PAIRS)
    without = [name for name, _ in model.named_parameters() if name not in found or not found[name].any()]
    assert not without and all(gradient.isfinite().all() for gradient in found.values())


@every_case
def test_eight_sentences_are_four_and_four(case: Case) -> None:
    model, whole = build(case), pairs((6, 2, 5, 3, 4, 1, 2, 2))
    (together,), expected = gradients(model, whole)
    apart, found = gradients(model, whole.rows(slice(0, 4)), whole.rows(slice(4, 8)))
    assert int(together.tokens) == int((whole.gold != PAD).sum()) == sum(int(one.tokens) for one in apart)
    for field in ("loss", "nll"):
        assert same(getattr(together, field), sum(getattr(one, field) for one in apart))
    for name, part in together.parts.items():
        assert same(part, apart[0].parts[name] + apart[1].parts[name]), name
    for name, totals in together.statistics.items():
        for whole_sum, *halves in zip(totals, *(one.statistics[name] for one in apart), strict=True):
            assert same(whole_sum, halves[0] + halves[1]), name
    assert found.keys() == expected.keys()
    assert all(same(found[name], expected[name]) for name in expected)


@torch.no_grad()
@every_case
def test_the_loss_is_the_likelihood_that_search_sees(case: Case) -> None:
    model = build(case)
    words, _ = teacher_forced(model)
    sums = TrainingStep(model, ObjectiveSettings())(PAIRS.source, PAIRS.lengths, PAIRS.target)
    real = PAIRS.gold != PAD
    expected = -words.gather(-1, PAIRS.gold.unsqueeze(-1)).squeeze(-1)[real].sum()
    assert same(sums.nll, expected)


LEARNERS = [
    "luong/global(score=general,normaliser=softmax)",
    "cgru/global(score=additive,normaliser=entmax15)",
    "luong-feeding/none",
    "pre-sinusoidal",
    "conv",
    "decoder-only-bidirectional-sinusoidal",
]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[] if case.name in LEARNERS else [pytest.mark.slow])
        for case in QUICK
        if case.name in LEARNERS or "/" in case.name
    ],
)
def test_a_tiny_set_is_learned(case: Case) -> None:
    """Four sentences are known by heart after 150 updates, from the model's own first weights."""
    torch.manual_seed(2)
    settings: dict[str, Any] = {**case.model, "embedding": 32, "dropout": 0.0}
    for side in ("encoder", "decoder"):
        if "size" in settings[side]:  # bare embeddings have no other
            settings[side] = {**settings[side], "size": 32}
    same = case.model["tie"] == "all"
    model = ModelSettings[AnyEncoder, AnyDecoder].model_validate(settings).build(11, 11 if same else 9)
    step, some = TrainingStep(model.train(), ObjectiveSettings(label_smoothing=0.0)), pairs((4, 5, 3, 2), seed=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for update in range(1, 151):
        model.decoder.set_update(update)
        sums: Sums = step(some.source, some.lengths, some.target)
        optimizer.zero_grad()
        (sums.loss / sums.tokens).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert sums.nll / sums.tokens < 0.05


# --- the grid itself --------------------------------------------------------------------------------------------------


def test_every_kind_is_tried() -> None:
    tried = [case.decoder for case in QUICK if case.decoder["kind"] == "rnn"]
    assert set(LEARNERS) <= {case.name for case in QUICK}
    assert {decoder["attention"]["kind"] for decoder in tried} == set(kinds(AnyAttention))
    assert {decoder["start"] for decoder in tried} == set(get_args(StartKind))
    assert {case.decoder["kind"] for case in QUICK} == set(kinds(AnyDecoder))
    assert {case.model["encoder"]["kind"] for case in QUICK} == set(kinds(AnyEncoder))
    for options in attentions().values():
        assert any(decoder["attention"] == options for decoder in tried), f"{options} is refused everywhere"
    for order in WIRINGS.values():
        assert any(order.items() <= decoder.items() for decoder in tried)


def test_the_quick_selection_is_a_pairwise_cover() -> None:
    """Of score, normaliser and wiring, wherever a kind lets them be chosen together, in every example of the kind."""
    seen: dict[str, set[tuple[str, str, str]]] = {}
    for case in QUICK:
        options = case.decoder["attention"] if case.decoder["kind"] == "rnn" else {}
        wiring = case.name.split("/")[0]
        if {"score", "normaliser"} <= {*options} and isinstance(options["score"], dict) and wiring in WIRINGS:
            rest = {key: value for key, value in options.items() if key not in ("score", "normaliser")}
            seen.setdefault(str(rest), set()).add((str(options["score"]), options["normaliser"], wiring))
    assert len(seen) >= 3  # global, local-m, local-p
    for triples in seen.values():
        scores, normalisers, found = ({triple[axis] for triple in triples} for axis in range(3))
        assert len(scores) >= len(kinds(AnyScore)) and normalisers == {*get_args(Normaliser)} and found == {*WIRINGS}
        for one, other in itertools.combinations(range(3), 2):
            pairs_of = {(triple[one], triple[other]) for triple in triples}
            assert len(pairs_of) == len({a for a, _ in pairs_of}) * len({b for _, b in pairs_of})


def test_the_quick_stacks_are_a_pairwise_cover() -> None:
    tried = [case.decoder for case in QUICK if case.name in STACKS]
    keys = ("norm", "positions", "sparse", "groups")
    for (one, here), (other, there) in itertools.combinations(zip(keys, STACK_AXES, strict=True), 2):
        for a, b in itertools.product(here, there):
            assert any(options.get(one) == a and options.get(other) == b for options in tried), (a, b)
    assert len(tried) < len(EVERY_STACK) / 2


def test_what_is_refused_is_refused_with_a_reason() -> None:
    refused = [case for case in candidates() if case.decoder["kind"] == "rnn" and refusal(case.decoder) is not None]
    assert refused, "at least cgru cannot go without a context"
    for case in refused:
        reason = refusal(case.decoder)
        assert reason and len(reason.split()) >= 5, f"{case.name} is refused without a reason"
        with pytest.raises(ValidationError) as caught:
            TypeAdapter(AnyDecoder).validate_python(case.decoder)
        assert reason in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"wiring": "cgru", "cell": "lstm"},
        {"wiring": "gnmt"},
        {"wiring": "gnmt", "layers": 2, "input_feeding": True},
        {"wiring": "cgru", "layers": 2},
        {"wiring": "cgru", "recurrent_dropout": 0.1},
        {"wiring": "cgru", "input_feeding": True},
        {"wiring": "bahdanau", "input_feeding": False},
    ],
)
def test_wirings_refuse_what_they_cannot_do(change: dict[str, Any]) -> None:
    reason = refusal(recurrent("", {}, **change).decoder)
    assert reason and change["wiring"] in reason


ATTENTIVE = {"kind": "transformer", "layers": 1, "size": 6, "heads": 2}


@pytest.mark.parametrize(
    "encoder, decoder",
    [
        (ATTENTIVE, {"start": "bridge"}),
        (ATTENTIVE, {"start": "bahdanau"}),
        (ATTENTIVE, {"attention": {"kind": "none", "context": "summary"}}),
        ({"kind": "rnn", "size": 8, "layers": 2}, {"start": "last"}),
        ({"kind": "rnn", "size": 6}, {"start": "last"}),
        ({"kind": "rnn", "size": 8, "cell": "gru"}, {"start": "last", "cell": "lstm"}),
        ({"kind": "rnn", "size": 8, "bidirectional": False}, {"start": "bahdanau"}),
        ({"kind": "rnn", "size": 8, "reverse": True}, {"start": "bahdanau"}),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused_when_built(encoder: Any, decoder: Any) -> None:
    """Before the first sentence is read: a training must not fail after its data are prepared."""
    page = recurrent("", encoder, **decoder).model
    with pytest.raises(ValueError):
        ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(11, 9)
