"""Joining the rows of states of different ages."""

from __future__ import annotations

import pytest
import torch

from s2s.tree import join_ages, join_rows


def test_what_is_smaller_stands_at_the_end() -> None:
    old = {"passed": torch.tensor([2]), "held": torch.tensor([[[[1.0], [2.0]]]])}
    young = {"passed": torch.tensor([0, 0]), "held": torch.ones(2, 1, 0, 1)}
    middle = {"passed": torch.tensor([1]), "held": torch.tensor([[[[3.0]]]])}
    joined = join_ages([old, young, middle])
    assert joined["passed"].tolist() == [2, 0, 0, 1]
    assert joined["held"].squeeze().tolist() == [[1, 2], [0, 0], [0, 0], [0, 3]]
    narrow = join_ages([{"held": old["held"].bfloat16()}, {"held": young["held"]}])
    assert narrow["held"].dtype == torch.bfloat16


def test_rows_of_one_shape_are_below_one_another() -> None:
    assert join_rows([(torch.zeros(1, 2),), (torch.ones(2, 2),)])[0].tolist() == [[0, 0], [1, 1], [1, 1]]
    with pytest.raises(RuntimeError, match="Sizes of tensors"):
        join_rows([torch.zeros(1, 2), torch.zeros(1, 3)])
