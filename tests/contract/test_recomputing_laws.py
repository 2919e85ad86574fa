"""What is computed again in the backward pass is what was computed: the same loss and gradients to the bit, kept less.

Tried on every model of the grid that has layers of a Transformer or of convolutions in it, with dropout everywhere.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grid import QUICK, SIZE, STACK, Case, build, pairs
from torch import Tensor

from s2s.models.transformer import TransformerDecoder, TransformerEncoder
from s2s.training.objective import GuidedSettings, ObjectiveSettings, Sums, TrainingStep

STACKED = {"transformer", "decoder-only", "conv"}
CASES = [case for case in QUICK if STACKED & {case.decoder["kind"], case.model["encoder"]["kind"]}]
PAIRS = pairs((6, 4, 3, 1))


def stack(layers: int) -> Case:
    options = {**STACK, "layers": layers}
    return Case(f"{layers} layers", {"embedding": SIZE, "tie": "none", "encoder": options, "decoder": options})


def trained(case: Case, again: bool, links: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor | None], list[int]]:
    """The loss of some pairs, every gradient, and the sizes of the tensors that were kept for the backward pass."""
    model = build(case, dropout=0.3)
    if again:
        model.encoder.recompute()
        model.decoder.recompute()
    guided = None if links is None else GuidedSettings()
    step = TrainingStep(model, ObjectiveSettings(label_smoothing=0.1, guided=guided)).train()
    step.set_update(1)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    torch.manual_seed(7)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sums: Sums = step(PAIRS.source, PAIRS.lengths, PAIRS.target, links)
    sums.loss.backward()  # type: ignore[no-untyped-call]
    return sums.loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}, kept


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_the_same_to_the_bit(case: Case) -> None:
    loss, gradients, kept = trained(case, again=False)
    found, others, fewer = trained(case, again=True)
    assert torch.equal(found, loss)
    assert sum(fewer) < sum(kept)
    for name, gradient in gradients.items():
        other = others[name]
        assert (gradient is None) == (other is None), name
        assert gradient is None or (other is not None and torch.equal(gradient, other)), name


def test_guided_attention_comes_out_of_it() -> None:
    links = torch.zeros(len(PAIRS.lengths), PAIRS.words.size(1), PAIRS.source.size(1), dtype=torch.float64)
    links[:, 0, 0] = 1
    loss, gradients, _ = trained(stack(2), False, links)
    found, others, _ = trained(stack(2), True, links)
    assert torch.equal(found, loss) and loss != trained(stack(2), True)[0]
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items() if gradient is not None)


def test_what_is_kept_does_not_grow_with_what_a_layer_computes() -> None:
    """A layer more keeps only its keys and values of the source, as `Across.read` makes them, outside of itself."""

    def kept(layers: int, again: bool) -> int:
        return sum(trained(stack(layers), again)[2])

    assert kept(3, False) - kept(2, False) > 5 * (kept(3, True) - kept(2, True)) > 0


def test_nothing_changes_where_there_is_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any, **options: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("s2s.models.layers.checkpoint", refused)
    model = build(stack(2))
    assert isinstance(model.encoder, TransformerEncoder) and isinstance(model.decoder, TransformerDecoder)
    model.encoder.recompute()
    model.decoder.recompute()
    with torch.no_grad():
        model(PAIRS.source, PAIRS.lengths, PAIRS.words)
    with pytest.raises(AssertionError):
        model(PAIRS.source, PAIRS.lengths, PAIRS.words)
