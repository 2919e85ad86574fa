"""Oracles of self-attention beyond the plain one, in plain loops: positions of every kind, grouped heads, windows."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import random, redrawn
from formulas import Array, array, softmax
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from s2s.config import AnyDecoder, AnyEncoder
from s2s.interfaces import Memory
from s2s.models.heads import Look, SelfAttention
from s2s.models.positions import Alibi, Relative, Rotary
from s2s.models.reach import Reach
from s2s.models.seq2seq import ModelSettings, Seq2Seq
from s2s.models.transformer import StackSettings
from s2s.tree import leaves

SIZE, HEADS = 12, 3
WIDTH = SIZE // HEADS
WINDOW = {"kind": "window", "size": 2}
STRIDED = {"kind": "strided", "size": 2, "stride": 3}


def attention(ahead: bool, **settings: Any) -> SelfAttention:
    """The self-attention of a layer with these settings, redrawn."""
    page = {"size": SIZE, "heads": HEADS, "max_distance": 2, **settings}
    stack = StackSettings.model_validate(page)
    reaches, relation = stack.reaches(ahead), stack.relation(ahead)
    return redrawn(SelfAttention(SIZE, HEADS, stack.shared, 0.0, relation, reaches))


def run(own: SelfAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """All of x (B, T, d) in one call."""
    views = tuple(reach.view(0, x.size(1), mask, x.device) for reach in own.reaches)
    return own(x, [None] * len(views), Look(0, 0, views))[0]


def by_steps(own: SelfAttention, x: Tensor, widths: list[int]) -> tuple[Tensor, list[int]]:
    """The same in calls of these widths, and how many places are held after each."""
    memory = Memory(x[:, :1], torch.ones(len(x), 1, dtype=torch.bool), torch.ones(len(x), dtype=torch.int64))
    held, passed, found, counts = own.nothing(memory), 0, [], []
    for part in x.split(widths, 1):
        views = tuple(reach.view(passed, part.size(1), None, x.device) for reach in own.reaches)
        y, held, _ = own(part, held, Look(passed, passed, views))
        passed += part.size(1)
        found.append(y)
        counts.append(sum(one.keys.size(2) for one in held))
    return torch.cat(found, 1), counts


def turned(vector: Array, place: int) -> Array:
    """R_place of Su et al. 2021: each pair of entries as a complex number, times e^(i place rate)."""
    found = np.empty_like(vector)
    for n in range(len(vector) // 2):
        z = complex(vector[2 * n], vector[2 * n + 1]) * cmath.exp(1j * place * 10000 ** (-2 * n / len(vector)))
        found[2 * n], found[2 * n + 1] = z.real, z.imag
    return found


def in_loops(own: SelfAttention, x: Array, seen: Callable[[int, int], bool]) -> Array:
    """What each of x (T, d) reads of those it sees: one head, one query, one key after the other."""
    relation, shared = own.relation, own.groups * WIDTH
    key_rows, value_rows = array(own.key_value)[:shared], array(own.key_value)[shared:]
    key_bias, value_bias = np.split(array(own.key_value_bias), 2)
    results = []
    for i in range(len(x)):
        heads = []
        for head in range(HEADS):
            rows = slice(head * WIDTH, (head + 1) * WIDTH)
            group = head // (HEADS // own.groups)
            shared_rows = slice(group * WIDTH, (group + 1) * WIDTH)
            query = array(own.query)[rows] @ x[i] + array(own.query_bias)[rows]
            scores, values = [], []
            for j in filter(lambda j: seen(i, j), range(len(x))):
                key = key_rows[shared_rows] @ x[j] + key_bias[shared_rows]
                value = value_rows[shared_rows] @ x[j] + value_bias[shared_rows]
                if isinstance(relation, Relative):
                    row = min(max(j - i, -2), 2) + 2
                    key, value = key + array(relation.of_keys)[row], value + array(relation.of_values)[row]
                if isinstance(relation, Rotary):
                    score = turned(query, i) @ turned(key, j) / math.sqrt(WIDTH)
                else:
                    score = query @ key / math.sqrt(WIDTH)
                if isinstance(relation, Alibi):
                    score -= 2 ** (-8 * (head + 1) / HEADS) * abs(i - j)
                scores.append(score)
                values.append(value)
            heads.append(softmax(np.array(scores)) @ np.stack(values))
        results.append(array(own.output.weight) @ np.concatenate(heads) + array(own.output.bias))
    return np.stack(results)


def everything(i: int, j: int) -> bool:
    return True


def window(i: int, j: int) -> bool:
    return abs(i - j) <= 2


def strided(i: int, j: int) -> bool:
    return abs(i - j) <= 2 or j % 3 == 2


SPARSE = {"full": (None, everything), "window": (WINDOW, window), "strided": (STRIDED, strided)}
each_position = pytest.mark.parametrize("positions", ["sinusoidal", "relative", "rotary", "alibi"])
each_sparsity = pytest.mark.parametrize("sparse", SPARSE)
each_side = pytest.mark.parametrize("ahead", [True, False], ids=["encoder", "decoder"])


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 3, 4, 9])
@each_side
@each_sparsity
@each_position
def test_self_attention_is_the_papers_formula(positions: str, sparse: str, ahead: bool, length: int) -> None:
    """Windowed attention among them: it is full attention where only what is seen takes part."""
    settings, sees = SPARSE[sparse]
    own, x = attention(ahead, positions=positions, sparse=settings), random(2, length, SIZE)
    found = run(own, x, torch.ones(2, length, dtype=torch.bool) if ahead else None)
    for row in range(2):
        expected = in_loops(own, array(x[row]), lambda i, j: sees(i, j) and (ahead or j <= i))
        np.testing.assert_allclose(array(found[row]), expected, atol=1e-12)


@torch.no_grad()
@each_sparsity
@each_position
def test_padding_is_not_seen(positions: str, sparse: str) -> None:
    """In an encoder; and what a window finds there, where it finds nothing else, is finite."""
    settings, sees = SPARSE[sparse]
    own, x = attention(True, positions=positions, sparse=settings), random(2, 11, SIZE)
    mask = torch.arange(11) < torch.tensor([[11], [4]])
    found = run(own, x, mask)
    assert found.isfinite().all()
    expected = in_loops(own, array(x[1]), lambda i, j: j < 4 and sees(i, j)) if sparse == "full" else None
    short = in_loops(own, array(x[1, :4]), sees)
    np.testing.assert_allclose(array(found[1, :4]), short, atol=1e-12)
    assert expected is None or np.allclose(expected[:4], short)


@torch.no_grad()
@pytest.mark.parametrize("widths", [[1] * 13, [5, 8], [1, 6, 2, 4]], ids=str)
@each_sparsity
@each_position
def test_a_decoder_holds_what_can_still_be_seen(positions: str, sparse: str, widths: list[int]) -> None:
    """And with that it reads the same as all at once."""
    own, x = attention(False, positions=positions, sparse=SPARSE[sparse][0]), random(2, 13, SIZE)
    found, counts = by_steps(own, x, widths)
    torch.testing.assert_close(found, run(own, x))
    for count, passed in zip(counts, np.cumsum(widths).tolist(), strict=True):
        near = passed if sparse == "full" else min(passed, 2)
        assert count == near + (passed // 3 if sparse == "strided" else 0)


# --- positions --------------------------------------------------------------------------------------------------------


@torch.no_grad()
@each_side
@pytest.mark.parametrize("positions", ["relative", "rotary", "alibi"])
def test_only_the_difference_of_places_counts(positions: str, ahead: bool) -> None:
    """The same words forty places later read the same."""
    own, x = attention(ahead, positions=positions), random(1, 6, SIZE)
    (reach,) = own.reaches
    mask = torch.ones(1, 6, dtype=torch.bool) if ahead else None
    later = own(x, [None], Look(40, 0, (reach.view(0, 6, mask, x.device),)))[0]
    torch.testing.assert_close(later, run(own, x, mask), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["relative", "rotary", "alibi"])
def test_the_order_of_the_words_counts(positions: str) -> None:
    own, x, order = attention(True, positions=positions), random(1, 6, SIZE), torch.tensor([3, 0, 5, 1, 4, 2])
    mask = torch.ones(1, 6, dtype=torch.bool)
    assert not torch.allclose(run(own, x[:, order], mask), run(own, x, mask)[:, order], atol=1e-3)


@torch.no_grad()
def test_a_rotation_is_the_papers_matrix() -> None:
    """Equation 13 of Su et al. 2021 with m = 3 and d = 4, the angles 3 and 3/100, written out."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).view(1, 1, 1, 4)
    found, same = Rotary().turn(x, x, 3)
    c, s, d, t = math.cos(3), math.sin(3), math.cos(0.03), math.sin(0.03)
    expected = torch.tensor([c - 2 * s, s + 2 * c, 3 * d - 4 * t, 3 * t + 4 * d], dtype=torch.float64)
    torch.testing.assert_close(found.flatten(), expected)
    torch.testing.assert_close(same, found)
    torch.testing.assert_close(found.norm(), x.norm())


def test_the_slopes_of_alibi_are_the_papers() -> None:
    """Section 3: 1/2, 1/4, ..., 1/256 for 8 heads; 2^-0.5, 2^-1, ..., 2^-8 for 16."""
    assert Alibi(8).slopes == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert Alibi(16).slopes == pytest.approx([2 ** (-n / 2) for n in range(1, 17)])


def test_only_distances_that_occur_are_learned() -> None:
    """2 k + 1 of Shaw et al. 2018 in an encoder; the k + 1 that are not ahead in a decoder."""
    encoder, decoder = (attention(ahead, positions="relative").relation for ahead in (True, False))
    assert isinstance(encoder, Relative) and isinstance(decoder, Relative)
    assert encoder.of_keys.shape == encoder.of_values.shape == (5, WIDTH)
    assert decoder.of_keys.shape == decoder.of_values.shape == (3, WIDTH)


def test_positions_that_do_not_join_the_words_leave_them_alone() -> None:
    for positions in ("relative", "rotary", "alibi"):
        model = model_of(positions=positions)
        words = torch.tensor([[4, 4, 4, 4]])
        embedded = model.encoder.input(words, 0)  # type: ignore[operator]
        assert torch.equal(embedded, embedded[:, :1].expand_as(embedded))


# --- groups -----------------------------------------------------------------------------------------------------------


def model_of(**stack: Any) -> Seq2Seq:
    """A redrawn Transformer whose stacks are the same."""
    both = {"kind": "transformer", "size": SIZE, "layers": 2, "heads": HEADS, "feedforward": 10, **stack}
    page = {"embedding": SIZE, "tie": "none", "dropout": 0.0, "encoder": both, "decoder": both}
    return redrawn(ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(9, 8))


SOURCE, LENGTHS = torch.tensor([[5, 3, 7, 2], [6, 4, 2, 0]]), torch.tensor([4, 3])
WORDS = torch.tensor([[1, 4, 6, 3, 4], [1, 7, 7, 3, 5]])


@torch.no_grad()
@each_side
@each_sparsity
@each_position
def test_heads_of_a_group_read_the_same_keys(positions: str, sparse: str, ahead: bool) -> None:
    settings, sees = SPARSE[sparse]
    own, x = attention(ahead, positions=positions, sparse=settings, groups=1), random(1, 7, SIZE)
    assert own.key_value.shape == (2 * WIDTH, SIZE)
    found = run(own, x, torch.ones(1, 7, dtype=torch.bool) if ahead else None)
    expected = in_loops(own, array(x[0]), lambda i, j: sees(i, j) and (ahead or j <= i))
    np.testing.assert_allclose(array(found[0]), expected, atol=1e-12)


@torch.no_grad()
def test_as_many_groups_as_heads_are_ordinary_heads() -> None:
    ordinary, grouped = model_of(), model_of(groups=HEADS)
    grouped.load_state_dict(ordinary.state_dict())
    one, other = (model(SOURCE, LENGTHS, WORDS)[0].features for model in (ordinary, grouped))
    assert torch.equal(one, other)


@torch.no_grad()
def test_a_group_is_heads_with_equal_keys_and_values() -> None:
    """In self-attention and towards the source: ordinary heads with copies of the shared rows give the same."""
    grouped, ordinary = model_of(groups=1), model_of()
    page = {
        name: value.view(2, 1, WIDTH, -1).expand(-1, HEADS, -1, -1).reshape(2 * SIZE, *value.shape[1:])
        if "key_value" in name
        else value
        for name, value in grouped.state_dict().items()
    }
    ordinary.load_state_dict(page)
    one, other = (model(SOURCE, LENGTHS, WORDS)[0].features for model in (grouped, ordinary))
    torch.testing.assert_close(one, other)


@torch.no_grad()
def test_a_decoder_of_grouped_heads_remembers_less() -> None:
    held = []
    for groups in (1, HEADS):
        model = model_of(groups=groups)
        memory, state = model.start(SOURCE, LENGTHS)
        _, state = model.decoder(WORDS, memory, state)
        held.append(sum(leaf.numel() for leaf in leaves(state)))
    rows = len(WORDS)  # of each how many words it has read; keys and values, two layers
    assert held == [rows + 2 * 2 * WORDS.numel() * WIDTH, rows + 2 * 2 * WORDS.numel() * SIZE]


# --- cost -------------------------------------------------------------------------------------------------------------


def products(length: int, ahead: bool, **settings: Any) -> int:
    """Multiplications of scores and of reading, those of the projections left out."""
    own, x = attention(ahead, **settings), random(1, length, SIZE)
    mask = torch.ones(1, length, dtype=torch.bool) if ahead else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(own, x, mask)
    return int(counter.get_total_flops()) // 2 - 4 * length * SIZE * SIZE


@each_side
def test_the_cost_falls_with_the_window(ahead: bool) -> None:
    """Two products of width d for each pair: T^2 of them, or T times two or three windows, and T / l when strided."""
    length, sides = 96, 3 if ahead else 2
    assert products(length, ahead) == 2 * SIZE * length**2
    for size in (4, 8, 16):
        near = 2 * SIZE * length * sides * size
        assert products(length, ahead, sparse={"kind": "window", "size": size}) == near
        far = 2 * SIZE * length * (length // 12)
        assert products(length, ahead, sparse={"kind": "strided", "size": size, "stride": 12}) == near + far


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"heads": 4, "groups": 3}, "groups 3 does not divide heads 4"),
        ({"size": 12, "heads": 4, "positions": "rotary"}, "3 wide"),
        ({"positions": "relative", "max_distance": 9, "sparse": {"kind": "window", "size": 8}}, "8 or less"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        StackSettings.model_validate(settings)


def test_a_window_as_wide_as_the_sentence_is_full_attention() -> None:
    wide: list[Reach] = [*StackSettings.model_validate({"sparse": {"kind": "window", "size": 50}}).reaches(False)]
    assert wide[0].view(0, 20, None, torch.device("cpu")).blocked is not None
    plain, windowed = model_of(), model_of(sparse={"kind": "window", "size": 50})
    windowed.load_state_dict(plain.state_dict())
    with torch.no_grad():
        one, other = (model(SOURCE, LENGTHS, WORDS)[0].features for model in (plain, windowed))
    assert torch.equal(one, other)
