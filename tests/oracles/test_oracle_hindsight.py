"""Oracles of the network that reads the right words in both directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures import random, redrawn
from formulas import array, read

from s2s.models.hindsight import Hindsight
from s2s.models.recurrence import CellKind

LENGTHS = (4, 1, 3)


@torch.no_grad()
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_each_word_is_read_from_both_ends_of_its_own_sentence(cell: CellKind) -> None:
    network = redrawn(Hindsight(cell, 3, 10))
    words = random(3, 4, 3)
    found = network(words, torch.tensor(LENGTHS))
    assert found.shape == (3, 4, 10)
    for b, length in enumerate(LENGTHS):
        xs = array(words[b, :length])
        there, back = (
            read(layer, xs, turned)[0] for layer, turned in zip(network.children(), (False, True), strict=True)
        )
        np.testing.assert_allclose(array(found[b, :length]), np.concatenate([there, back], 1), atol=1e-12)
        assert (found[b, length:] == 0).all()


def test_padding_has_no_part_in_it() -> None:
    network, words = redrawn(Hindsight("lstm", 3, 4)), random(3, 4, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(network(words, torch.tensor(LENGTHS)).square().sum(), words)
    for b, length in enumerate(LENGTHS):
        assert (gradient[b, :length] != 0).all() and (gradient[b, length:] == 0).all()
