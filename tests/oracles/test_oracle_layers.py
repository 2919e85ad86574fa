"""Oracles of the small parts: dropout by its statistics, first weights, masks."""

from __future__ import annotations

import math

import pytest
import torch
from fixtures import random
from torch import nn

from s2s.config import AnyDecoder, AnyEncoder
from s2s.interfaces import PAD
from s2s.models.layers import Dropout, dropout_mask, embedding, lengths_to_mask
from s2s.models.seq2seq import ModelSettings

# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_dropout_drops_at_its_rate_and_scales_the_rest(rate: float) -> None:
    torch.manual_seed(0)
    mask = dropout_mask((1000, 999), rate, torch.zeros(1))
    kept = mask[mask != 0]
    assert (kept == kept[0]).all() and float(kept[0]) == pytest.approx(1 / (1 - rate), rel=1e-3)
    deviation = math.sqrt(rate * (1 - rate) / mask.numel())
    assert abs(float((mask == 0).double().mean()) - rate) < 4 * deviation + 1 / 65536
    assert abs(float(mask.double().mean()) - 1) < 5 * deviation / (1 - rate)


def test_the_entries_of_a_dropout_mask_are_independent() -> None:
    """Neighbours at any short distance, since masks are drawn several entries to a word."""
    torch.manual_seed(1)
    dropped = (dropout_mask((400_000,), 0.5, torch.zeros(1)) == 0).double() - 0.5
    for distance in range(1, 17):
        correlation = 4 * (dropped[:-distance] * dropped[distance:]).mean()
        assert abs(float(correlation)) < 4.5 / math.sqrt(400_000), distance


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 7), (0, 4)])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_a_dropout_mask_has_the_shape_and_type_asked_for(shape: tuple[int, ...], kind: torch.dtype) -> None:
    mask = dropout_mask(shape, 0.2, torch.zeros(1, dtype=kind))
    assert mask.shape == shape and mask.dtype == kind


def test_a_dropout_mask_is_a_function_of_the_seed() -> None:
    masks = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        masks.append(dropout_mask((9, 9), 0.5, torch.zeros(1)))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_dropout_is_the_identity_in_evaluation_and_at_rate_zero() -> None:
    x = random(3, 4)
    assert Dropout(0.5).eval()(x) is x and Dropout(0.0).train()(x) is x
    torch.manual_seed(0)
    dropped = Dropout(0.5).train()(x)
    assert ((dropped == 0) | torch.isclose(dropped, 2 * x)).all() and (dropped == 0).any() and (dropped != 0).any()


# --- embeddings -------------------------------------------------------------------------------------------------------


def test_embeddings_have_rows_of_length_one_and_none_for_padding() -> None:
    torch.manual_seed(0)
    table = embedding(5000, 64)
    assert (table.weight[PAD] == 0).all()
    assert float(table.weight.detach()[1:].square().sum(1).mean()) == pytest.approx(1.0, rel=0.02)
    table(torch.tensor([[PAD, 4]])).sum().backward()
    assert table.weight.grad is not None
    assert (table.weight.grad[PAD] == 0).all() and (table.weight.grad[4] == 1).all()


@pytest.mark.parametrize("uniform", [None, 0.1])
@pytest.mark.parametrize("tie", ["none", "output", "all"])
def test_first_weights_of_a_model(uniform: float | None, tie: str) -> None:
    """Matrices from U(-x, x) where asked for (Luong 2015: 0.1); biases and the rows of PAD are zero either way."""
    torch.manual_seed(0)
    reads = {"kind": "rnn", "size": 16, "cell": "gru"}
    writes = {**reads, "attention": {"kind": "global"}}
    page = {"embedding": 16, "tie": tie, "uniform_init": uniform, "encoder": reads, "decoder": writes}
    model = ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(40, 40)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert not parameter.any(), name
        elif uniform is not None:
            assert 0.08 < float(parameter.detach().abs().max()) <= uniform, name
    for module in model.modules():
        assert not isinstance(module, nn.Embedding) or not module.weight[PAD].any()


@pytest.mark.parametrize("tie", ["none", "output", "all"])
@pytest.mark.parametrize(
    ("kind", "width", "deviation"), [("rnn", 32, 32**-0.5), ("rnn", 256, 1 / 8), ("transformer", 256, 1 / 16)]
)
def test_the_output_matrix_begins_alike_however_many_words(tie: str, kind: str, width: int, deviation: float) -> None:
    """Tied or not, so with the embeddings that it is tied to; others have rows of length one."""
    side = {"kind": kind, "size": width, **({} if kind == "rnn" else {"layers": 1, "heads": 2, "feedforward": 8})}
    page = {
        "embedding": width,
        "tie": tie,
        "encoder": side,
        "decoder": side | ({"attention": {"kind": "global"}} if kind == "rnn" else {}),
    }
    for words in (200, 3000):
        torch.manual_seed(0)
        model = ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(words, words)
        output = model.decoder.output.weight
        embeddings = {id(part.weight): part.weight for part in model.modules() if isinstance(part, nn.Embedding)}
        assert len({*embeddings, id(output)}) == {"none": 3, "output": 2, "all": 1}[tie]
        for matrix in (output, *embeddings.values()):
            expected = deviation if matrix is output else width**-0.5
            assert float(matrix[PAD + 1 :].detach().std()) == pytest.approx(expected, rel=0.03)
        assert (id(output) in embeddings) == (not output[PAD].any())


def test_lengths_become_a_mask() -> None:
    assert lengths_to_mask(torch.tensor([2, 0, 3]), 3).tolist() == [[True, True, False], [False] * 3, [True] * 3]
