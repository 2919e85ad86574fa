"""Laws of what is measured at a validation, for every attention under every wiring and for the Transformer."""

from __future__ import annotations

import math

import pytest
import torch
from grid import BOTH_WAYS, Case, Pairs, build, every_case, pairs, recurrent

from s2s.analysis.diagnostics import Diagnostics
from s2s.interfaces import PAD, Attention
from s2s.models.seq2seq import Seq2Seq
from s2s.training.objective import ObjectiveSettings, TrainingStep

PAIRS = pairs((6, 4, 3, 1))


def measured(model: Seq2Seq, *batches: Pairs) -> dict[str, float]:
    """Means over all batches under teacher forcing, as a validation takes them."""
    diagnostics = Diagnostics()
    for some in batches:
        decoded, memory = model(some.source, some.lengths, some.words, Diagnostics.WANT)
        diagnostics.add(model.decoder, decoded, memory, some.gold)
    return diagnostics.means()


@torch.no_grad()
@every_case
def test_every_kind_with_weights_is_measured(case: Case) -> None:
    """Entropy and sharpness once more in loops, over the real words; nothing at all without weights."""
    model = build(case)
    found = measured(model, PAIRS)
    decoded, _ = model(PAIRS.source, PAIRS.lengths, PAIRS.words, Diagnostics.WANT)
    if decoded.weights is None:
        assert found == {} and case.decoder["attention"]["kind"] == "none"
        return
    assert {"entropy", "sharpness", "mass", "coverage", "coverage_error"} <= set(found)
    assert all(math.isfinite(value) for value in found.values())
    rows = [decoded.weights[b, t].tolist() for b, t in (PAIRS.gold != PAD).nonzero().tolist()]
    entropies = [-sum(a * math.log(a) for a in row if a > 0) for row in rows]
    assert found["entropy"] == pytest.approx(sum(entropies) / len(rows), abs=1e-9)
    assert found["sharpness"] == pytest.approx(sum(map(max, rows)) / len(rows), abs=1e-9)
    order = found.get("monotonicity", 1.0)  # a scan that passed the end at once has no two neighbours that stopped
    assert 0 <= order <= 1 and 0 <= found["coverage"] <= 1


@torch.no_grad()
@every_case
def test_batches_and_padding_do_not_matter(case: Case) -> None:
    """Sentence by sentence, each without padding, gives what one padded batch gives."""
    model = build(case)
    alone = [PAIRS.rows(slice(row, row + 1)) for row in range(len(PAIRS.lengths))]
    assert measured(model, *alone) == pytest.approx(measured(model, PAIRS), rel=1e-9, abs=1e-11)


@torch.no_grad()
@every_case
def test_being_looked_at_changes_nothing(case: Case) -> None:
    model = build(case)
    step = TrainingStep(model, ObjectiveSettings(label_smoothing=0.0)).eval()
    decoded, memory = model(PAIRS.source, PAIRS.lengths, PAIRS.words, Diagnostics.WANT)
    looked_at = step.measure(decoded, memory, PAIRS.gold)
    assert torch.equal(looked_at.nll, step(PAIRS.source, PAIRS.lengths, PAIRS.target).nll)


@pytest.mark.parametrize(
    ("attention", "draws"),
    [
        ({"kind": "global"}, False),
        ({"kind": "latent"}, False),
        ({"kind": "hard", "estimator": "enumerate"}, False),
        ({"kind": "hard", "estimator": "reinforce"}, True),
        ({"kind": "hard", "estimator": "gumbel"}, True),
        ({"kind": "variational"}, False),
        ({"kind": "variational", "estimator": "reinforce"}, True),
        ({"kind": "coverage", "inner": {"kind": "hard", "estimator": "gumbel", "score": "additive"}}, True),
    ],
)
def test_a_gradient_differs_from_draw_to_draw_where_the_mechanism_says_so(attention: object, draws: bool) -> None:
    model = build(recurrent("", BOTH_WAYS, wiring="luong", attention=attention))
    kinds = [part for part in model.decoder.modules() if isinstance(part, Attention)]
    assert any(part.draws for part in kinds) == draws
    kinds[0].train()
    step, found = TrainingStep(model, ObjectiveSettings(label_smoothing=0.0)), []
    for seed in range(2):
        torch.manual_seed(seed)
        model.zero_grad()
        step(PAIRS.source, PAIRS.lengths, PAIRS.target).loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(*found) != draws
