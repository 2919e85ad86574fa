"""Oracles of the window of logistics: the equations in plain loops, and what follows from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fixtures import memory_of, random, redrawn
from formulas import array, sigma, softmax

from s2s.attention.logistics import Logistics, window


def test_weights_are_those_of_the_equations() -> None:
    mechanism = redrawn(Logistics(3, 4, 2))
    memory, query = memory_of(random(2, 5, 4), (5, 3)), random(2, 4, 3, seed=1)
    attended, last = mechanism(query, memory, mechanism.start(memory))
    weight, bias = array(mechanism.window.weight), array(mechanism.window.bias)
    for sentence, length in enumerate((5, 3)):
        kappa = [0.0, 0.0]
        for step in range(4):
            raw = weight @ array(query[sentence, step]) + bias
            shares, expected = softmax(raw[:2]), np.zeros(5)
            for k in range(2):
                scale = math.exp(raw[2 + k])
                kappa[k] += math.exp(raw[4 + k])
                for j in range(1, length + 1):
                    above, below = (j + 0.5 - kappa[k]) / scale, (j - 0.5 - kappa[k]) / scale
                    expected[j - 1] += shares[k] * (sigma(above) - sigma(below))
            context = expected @ array(memory.values[sentence])
            np.testing.assert_allclose(array(attended.weights[sentence, step]), expected, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(array(attended.context[sentence, step]), context, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(array(last[sentence]), kappa, rtol=1e-12)


def test_a_window_worked_out_by_hand() -> None:
    """Scale 1 and kappa 2 over three positions: F(1/2) - F(-1/2) = 0.24492 in the middle, F(3/2) - F(1/2) beside it."""
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    found = window(one, one, 2 * one, torch.ones(1, 3, dtype=torch.bool))
    assert found[0, 0].tolist() == pytest.approx([0.195115, 0.244919, 0.195115], abs=1e-6)


def test_nothing_is_lost_in_the_middle_of_a_long_source() -> None:
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    found = window(one, one, 50 * one, torch.ones(1, 100, dtype=torch.bool))
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-12)


def test_the_window_never_moves_back() -> None:
    mechanism, memory = redrawn(Logistics(3, 4, 5), width=3.0), memory_of(random(2, 5, 4))
    state = mechanism.start(memory)
    for step in range(6):
        _, after = mechanism(random(2, 1, 3, seed=step), memory, state)
        assert (after > state).all()
        state = after
