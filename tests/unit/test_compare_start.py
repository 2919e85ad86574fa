"""Equal first weights: matrices that two recipes share are those of the one they start like, under the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from s2s import config as configuration
from s2s.data import tokenizer
from s2s.data.tokenizer import Tokenizers, WhitespaceSettings
from s2s.run import build_model, start_like

TOY = Path(__file__).parents[2] / "configs" / "toy"
SMALL = ["model.embedding=6", "model.encoder.size=8", "model.decoder.size=8"]


@pytest.fixture(scope="module")
def tokenizers() -> Tokenizers:
    return tokenizer.train(WhitespaceSettings(kind="whitespace"), [("a b c", "d e")], lambda line: None)


@pytest.mark.parametrize("name", ["none", "luong-dot", "coverage", "monotonic", "hard-reinforce", "sparsemax"])
def test_shared_matrices_are_equal_and_the_rest_is_left_alone(
    name: str, tokenizers: Tokenizers, tmp_path: Path
) -> None:
    like = tmp_path / "first.yaml"
    like.write_text(configuration.save_text(configuration.load(TOY / "luong-general.yaml", SMALL)))
    config = configuration.load(TOY / f"{name}.yaml", [*SMALL, "seed=7"])
    first = dict(build_model(configuration.load(like, ["seed=7"]), tokenizers).named_parameters())
    before = {key: value.detach().clone() for key, value in build_model(config, tokenizers).named_parameters()}
    model = build_model(config, tokenizers)
    taken = start_like(model, like, config, tokenizers)
    shared = [key for key in before if key in first and first[key].shape == before[key].shape and before[key].dim() > 1]
    assert set(taken) == set(shared) and len(taken) >= 5
    for key, value in model.named_parameters():
        assert torch.equal(value, first[key] if key in taken else before[key]), key


def test_without_it_mechanisms_start_differently(tokenizers: Tokenizers) -> None:
    """Else there would be nothing to do: what the attention draws moves all that is drawn after it."""
    both = [
        dict(build_model(configuration.load(TOY / f"{name}.yaml", SMALL), tokenizers).named_parameters())
        for name in ("luong-general", "none")
    ]
    assert any(both[0][key].shape == both[1][key].shape and not torch.equal(both[0][key], both[1][key])
               for key in set(both[0]) & set(both[1]) if both[0][key].dim() > 1)  # fmt: skip


def test_another_way_to_start_is_kept(tokenizers: Tokenizers) -> None:
    config = configuration.load(TOY / "none.yaml", [*SMALL, "model.uniform_init=0.01"])
    model = build_model(config, tokenizers)
    assert start_like(model, TOY / "luong-general.yaml", config, tokenizers) == []
    assert all(value.abs().max() <= 0.01 for value in model.parameters() if value.dim() > 1)
