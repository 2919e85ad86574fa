"""Oracles of the recurrent layers, the encoder (O-E1 to O-E5) and the first states of a decoder."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fixtures import random, redrawn
from formulas import Array, array, read, step
from torch import Tensor, nn

from s2s.interfaces import Final, Leaves, Memory
from s2s.models.layers import embedding
from s2s.models.recurrence import CellKind, LayerState, Recurrence, RecurrentLayer
from s2s.models.rnn_encoder import RNNEncoder, RNNEncoderSettings
from s2s.models.start import Start, StartKind

each_cell = pytest.mark.parametrize("cell", ["lstm", "gru"])


def near(found: Tensor, expected: Array) -> None:
    """Fails unless both are the same up to rounding."""
    np.testing.assert_allclose(array(found), expected, rtol=1e-9, atol=1e-11)


# --- one layer --------------------------------------------------------------------------------------------------------


def first_state(cell: CellKind, batch: int, size: int) -> LayerState:
    """A random state."""
    return LayerState(random(batch, size, seed=7), random(batch, size, seed=8) if cell == "lstm" else None)


@torch.no_grad()
@each_cell
def test_a_run_is_the_formula_at_every_step(cell: CellKind) -> None:
    layer, x, start = redrawn(RecurrentLayer(cell, 3, 4)), random(2, 5, 3), first_state(cell, 2, 4)
    y, last = layer.run(x, start)
    for row in range(2):
        h, c = array(start.hidden[row]), None if start.cell is None else array(start.cell[row])
        for time in range(5):
            h, c = step(layer, array(x[row, time]), h, c)
            near(y[row, time], h)
        near(last.hidden[row], h)
        assert (c is None) == (last.cell is None)
        if c is not None and last.cell is not None:
            near(last.cell[row], c)


@torch.no_grad()
@each_cell
def test_a_stepper_is_the_formula_with_feedback_and_mask(cell: CellKind) -> None:
    """The mask is on what the layer reads of its own past, not on what the GRU keeps of it."""
    layer, x, fed = redrawn(RecurrentLayer(cell, 3, 4, feedback_size=2)), random(2, 3, 3), random(2, 3, 2, seed=3)
    mask = torch.tensor([[0.0, 2.0, 2.0, 0.0], [2.0, 2.0, 0.0, 2.0]], dtype=torch.float64)
    for drop in (None, mask):
        state, take_step = first_state(cell, 2, 4)._replace(mask=drop), layer.stepper()
        expected = [
            (array(state.hidden[row]), None if state.cell is None else array(state.cell[row])) for row in (0, 1)
        ]
        for time in range(3):
            state = take_step(layer.gates(x)[:, time], fed[:, time], state)
            for row in (0, 1):
                h, c = expected[row]
                seen = h if drop is None else h * array(drop[row])
                new, c = step(layer, array(x[row, time]), seen, c, array(fed[row, time]))
                if cell == "gru":  # (1 - z) n + z h has the undropped h: add back what the mask took
                    z = update_gate(layer, array(x[row, time]), seen, array(fed[row, time]))
                    new = new + z * (h - seen)
                expected[row] = new, c
                near(state.hidden[row], new)


def update_gate(layer: RecurrentLayer, x: Array, h: Array, fed: Array) -> Array:
    """z = sigma(W x + U h + F fed + b) of a GRU."""
    rows = slice(layer.size, 2 * layer.size)
    past = np.concatenate([h, fed])
    inside = array(layer.weight_input)[rows] @ x + array(layer.weight_recurrent)[rows] @ past + array(layer.bias)[rows]
    gate: Array = 1 / (1 + np.exp(-inside))
    return gate


@each_cell
def test_steps_and_runs_have_the_same_gradients(cell: CellKind) -> None:
    """Those of the step are written by hand, those of the run are torch's."""
    layer, x, want = redrawn(RecurrentLayer(cell, 3, 4)), random(2, 5, 3).requires_grad_(), random(2, 5, 4, seed=5)
    start = first_state(cell, 2, 4)
    inputs = [x, *layer.parameters(), *(part.requires_grad_() for part in start if part is not None)]
    y, _ = layer.run(x, start)
    expected = torch.autograd.grad((y * want).sum(), inputs)
    state, total, take_step = start, torch.zeros((), dtype=torch.float64), layer.stepper()
    for time, gates in enumerate(layer.gates(x).unbind(1)):
        state = take_step(gates, None, state)
        total = total + (state.hidden * want[:, time]).sum()
    for found, one in zip(torch.autograd.grad(total, inputs), expected, strict=True):
        torch.testing.assert_close(found, one)


@each_cell
def test_the_gradient_of_a_step_is_that_of_finite_differences(cell: CellKind) -> None:
    layer = redrawn(RecurrentLayer(cell, 2, 2, feedback_size=2))

    def last(x: Tensor, fed: Tensor, hidden: Tensor, memory: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            layer.weight_input.copy_(weight)
        state = LayerState(hidden, memory if cell == "lstm" else None)
        take_step, gates = layer.stepper(), nn.functional.linear(x, weight, layer.bias)
        for time in range(2):
            state = take_step(gates[:, time], fed, state)
        return tuple(part for part in state if part is not None)

    inputs = (random(2, 2, 2), random(2, 2), random(2, 2, seed=1), random(2, 2, seed=2), layer.weight_input.detach())
    used = [part.clone().requires_grad_(n != 3 or cell == "lstm") for n, part in enumerate(inputs)]
    assert torch.autograd.gradcheck(last, used)


@pytest.mark.parametrize("bias, expected", [(1.0, 0.731059), (2.0, 0.880797)])
def test_oe5_there_is_one_forget_bias(bias: float, expected: float) -> None:
    layer = RecurrentLayer("lstm", 3, 4)
    assert layer.bias.tolist() == [0] * 4 + [1] * 4 + [0] * 8, "a new layer begins by remembering"
    with torch.no_grad():
        layer.weight_input.zero_()
        layer.weight_recurrent.zero_()
        layer.bias[4:8] = bias
    cell = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    _, last = layer.run(torch.ones(1, 1, 3), LayerState(torch.ones(1, 4), cell))
    torch.testing.assert_close(last.cell, cell * expected, rtol=0, atol=1e-5)
    stepped = layer.stepper()(layer.gates(torch.ones(1, 3)), None, LayerState(torch.ones(1, 4), cell))
    torch.testing.assert_close(stepped.cell, cell * expected, rtol=0, atol=1e-5)


@each_cell
def test_first_weights(cell: CellKind) -> None:
    """Recurrent blocks orthogonal; the others within the Xavier bound of their own gate."""
    torch.manual_seed(0)
    layer = RecurrentLayer(cell, 50, 30, feedback_size=20)
    for gate in range(4 if cell == "lstm" else 3):
        rows = slice(30 * gate, 30 * (gate + 1))
        own = layer.weight_recurrent[rows, :30].detach()
        torch.testing.assert_close(own @ own.T, torch.eye(30), rtol=0, atol=1e-5)
        for block, width in ((layer.weight_input.detach()[rows], 50), (layer.weight_recurrent.detach()[rows, 30:], 20)):
            bound = math.sqrt(6 / (30 + width))
            assert 0.9 * bound < float(block.abs().max()) <= bound


@torch.no_grad()
@each_cell
@pytest.mark.parametrize("residual", [False, True])
def test_a_stack_is_layer_upon_layer(cell: CellKind, residual: bool) -> None:
    stack, x = redrawn(Recurrence(cell, 4, 4, 3, residual=residual)), random(1, 5, 4)
    zeros = [layer.zeros(1, x) for layer in stack.layers]  # type: ignore[operator]
    expected = array(x[0])
    for n, layer in enumerate(stack.layers):
        assert isinstance(layer, RecurrentLayer)
        output = read(layer, expected)[0]
        expected = expected + output if residual and n else output
    near(stack.run(x, tuple(zeros))[0][0], expected)
    states, take_step = tuple(zeros), stack.stepper()
    for time, gates in enumerate(stack.gates(x).unbind(1)):
        top, states = take_step(gates, None, states)
        near(top[0], expected[time])


@each_cell
def test_recurrent_dropout_is_one_draw_for_the_sentence(cell: CellKind) -> None:
    torch.manual_seed(0)
    stack = Recurrence(cell, 4, 64, 2, recurrent_dropout=0.25).train()
    zeros = [layer.zeros(3, torch.zeros(1)) for layer in stack.layers]  # type: ignore[operator]
    begun = stack.begin(zeros)
    _, after = stack.run(torch.randn(3, 5, 4), begun)
    for state, last in zip(begun, after, strict=True):
        assert state.mask is not None and last.mask is state.mask
        assert sorted(set(state.mask.flatten().tolist())) == pytest.approx([0.0, 4 / 3])
    assert not torch.equal(begun[0].mask, begun[1].mask)  # type: ignore[arg-type]
    assert all(state.mask is None for state in stack.eval().begin(zeros))


# --- the encoder ------------------------------------------------------------------------------------------------------

LENGTHS = torch.tensor([5, 2, 4, 1])
SOURCE = torch.randint(3, 9, (4, 5), generator=torch.Generator().manual_seed(4)).masked_fill(
    torch.arange(5) >= LENGTHS.unsqueeze(1), 0
)


def encoder(cells: bool = False, **options: object) -> RNNEncoder:
    """A redrawn encoder of width 6 over embeddings of width 3."""
    settings = RNNEncoderSettings.model_validate({"kind": "rnn", "size": 6, **options})
    return redrawn(settings.build(embedding(9, 3), 0.0, cells))


def sentence_by_sentence(model: RNNEncoder, row: int, reverse: bool) -> tuple[Array, list[Array], list[Array]]:
    """Memory (S, M) of one unpadded sentence, and every layer's last states and cells, in plain loops."""
    words = SOURCE[row, : LENGTHS[row]]
    x = array(model.embedding(words.flip(0) if reverse else words))
    hiddens, cells = [], []
    for n, directions in enumerate(model.layers):
        assert isinstance(directions, nn.ModuleList)
        outputs = [read(one, x, backwards=bool(way)) for way, one in enumerate(directions)]  # type: ignore[arg-type]
        y = np.concatenate([output for output, _, _ in outputs], 1)
        hiddens.append(np.concatenate([h for _, h, _ in outputs]))
        cells.append(np.concatenate([c for _, _, c in outputs if c is not None] or [np.zeros(0)]))
        x = x + y if model.residual and n else y
    if model.norm is not None:
        centred = x - x.mean(1, keepdims=True)
        spread = np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
        x = centred / spread * array(model.norm.weight) + array(model.norm.bias)
    return (x[::-1] if reverse else x), hiddens, cells


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"cell": "lstm"},
        {"cell": "gru", "layers": 2},
        {"cell": "gru", "bidirectional": False},
        {"cell": "lstm", "layers": 3, "residual": True},
        {"cell": "gru", "layer_norm": True},
        {"cell": "lstm", "reverse": True, "bidirectional": False},
        {"cell": "gru", "reverse": True, "bidirectional": False, "layers": 2},
    ],
)
@pytest.mark.parametrize("cells", [False, True])
def test_oe1_a_batch_is_its_sentences_one_by_one(options: dict[str, object], cells: bool) -> None:
    model = encoder(cells, **options)
    memory = model(SOURCE, LENGTHS)
    assert memory.final is not None and (memory.final.cell is not None) == (cells and options["cell"] == "lstm")
    for row in range(4):
        values, hiddens, ends = sentence_by_sentence(model, row, reverse=model.reverse)
        near(memory.values[row, : LENGTHS[row]], values)
        near(memory.final.hidden[row], np.stack(hiddens))
        if memory.final.cell is not None:
            near(memory.final.cell[row], np.stack(ends))


@torch.no_grad()
@each_cell
def test_oe2_reversing_the_input_and_swapping_the_directions(cell: CellKind) -> None:
    model = encoder(cell=cell)
    plain = model(SOURCE, LENGTHS).values
    turned = SOURCE.clone()
    for row, length in enumerate(LENGTHS):
        turned[row, :length] = SOURCE[row, :length].flip(0)
    (pair,) = model.layers
    assert isinstance(pair, nn.ModuleList)
    model.layers[0] = nn.ModuleList([pair[1], pair[0]])
    swapped = model(turned, LENGTHS).values
    for row, length in enumerate(LENGTHS):
        found = swapped[row, :length].flip(0)
        torch.testing.assert_close(torch.cat([found[:, 3:], found[:, :3]], 1), plain[row, :length])


@torch.no_grad()
@each_cell
def test_oe3_sorting_the_batch_is_a_no_op(cell: CellKind) -> None:
    model, order = encoder(cell=cell, layers=2), LENGTHS.argsort(descending=True)
    memory, sorted_memory = model(SOURCE, LENGTHS), model(SOURCE[order], LENGTHS[order])
    torch.testing.assert_close(sorted_memory.values, memory.values[order])
    torch.testing.assert_close(sorted_memory.final.hidden, memory.final.hidden[order])


@torch.no_grad()
@each_cell
@pytest.mark.parametrize("layer_norm", [False, True])
def test_oe4_padding_is_exactly_zero(cell: CellKind, layer_norm: bool) -> None:
    memory = encoder(cell=cell, layer_norm=layer_norm)(SOURCE, LENGTHS)
    assert (memory.values[~memory.mask] == 0).all() and (memory.values[memory.mask] != 0).all()
    assert memory.mask.sum(1).tolist() == LENGTHS.tolist() == memory.lengths.tolist()


# --- first states -----------------------------------------------------------------------------------------------------


def memory_of(layers: int, width: int, cells: bool) -> Memory:
    """A random memory of two sentences."""
    mask = torch.arange(4) < torch.tensor([[4], [2]])
    final = Final(random(2, layers, width, seed=1), random(2, layers, width, seed=2) if cells else None)
    return Memory(random(2, 4, width).masked_fill(~mask.unsqueeze(-1), 0.0), mask, torch.tensor([4, 2]), final)


@torch.no_grad()
@each_cell
@pytest.mark.parametrize("kind", ["zero", "last", "bridge", "bahdanau", "mean"])
def test_first_states_by_formula(kind: StartKind, cell: CellKind) -> None:
    """Two decoder layers over a two-layer encoder of the same width 6 (forward 3, backward 3)."""
    memory = memory_of(2, 6, cells=cell == "lstm")
    start = redrawn(Start(kind, cell, 2, 6, 6, Leaves(2, 2, cell == "lstm")))
    assert memory.final is not None
    states = start(memory)
    assert len(states) == 2
    for layer, state in enumerate(states):
        assert (state.cell is None) == (cell == "gru")
        for row, length in enumerate((4, 2)):
            last, values = array(memory.final.hidden[row, layer]), array(memory.values[row])
            mean = sum(values[place] for place in range(length)) / length
            summary = {"bridge": last, "bahdanau": last[3:], "mean": mean}.get(kind)
            if kind == "zero":
                hidden = carried = np.zeros(6)
            elif kind == "last":
                hidden = last
                carried = last if memory.final.cell is None else array(memory.final.cell[row, layer])
            else:
                hidden, carried = (
                    np.tanh(array(maps[layer].weight) @ summary + array(maps[layer].bias)) if len(maps) else np.zeros(0)  # type: ignore[arg-type, operator]
                    for maps in (start.hidden, start.of_cell)
                )
            near(state.hidden[row], hidden)
            if state.cell is not None:
                near(state.cell[row], carried)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bridge", "bahdanau"])
def test_layers_above_the_encoder_start_from_its_top_one(kind: StartKind) -> None:
    memory, start = memory_of(2, 6, cells=False), redrawn(Start(kind, "gru", 3, 5, 6, Leaves(2, 2, False)))
    assert memory.final is not None
    top = memory.final.hidden[:, 1, 3:] if kind == "bahdanau" else memory.final.hidden[:, 1]
    torch.testing.assert_close(start(memory)[2].hidden, torch.tanh(start.hidden[2](top)))
