"""The measurement of estimators: its arithmetic on few draws, and that the page says what the result file says."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from s2s.analysis.diagnostics import GradientMoments

ROOT = Path(__file__).resolve().parents[2]
UNBIASED = [f"reinforce, baseline {name}" for name in ("none", "moving", "self")]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/estimator_variance.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        return importlib.import_module("estimator_variance")


@pytest.fixture(scope="module")
def found() -> Any:
    """The result file."""
    return json.loads((ROOT / "docs" / "results" / "estimator-variance.json").read_text(encoding="utf-8"))


# --- arithmetic -------------------------------------------------------------------------------------------------------


class Tiny:
    """Two sentences of the problem, and the exact gradient at the first weights."""

    def __init__(self, script: ModuleType) -> None:
        everything, source, target = script.corpus()
        self.script, self.words, self.pairs = script, (source, target), everything.rows(torch.arange(2))

    def gradient(self, model: Any) -> Sequence[Tensor]:
        """Of the loss per target token, by one pass."""
        sums = self.script.forward(model, self.pairs)
        return torch.autograd.grad(sums.loss / sums.tokens, list(model.parameters()), materialize_grads=True)

    def build(self, name: str) -> Any:
        """The model with one of the estimators."""
        return self.script.build(self.script.ESTIMATORS[name], self.words)


def test_sentences_that_stand_several_times_give_as_many_draws(script: ModuleType) -> None:
    """The variance of one draw is the same, up to chance, measured one by one or in fours."""
    tiny = Tiny(script)
    model = tiny.build("reinforce, baseline self")
    single, fours = script.measure(model, tiny.pairs, 1, 240), script.measure(model, tiny.pairs, 4, 60)
    assert (single.draws, fours.draws) == (240, 240)
    assert sum(fours.variance) == pytest.approx(sum(single.variance), rel=0.4)


def test_enumeration_is_exact(script: ModuleType) -> None:
    tiny = Tiny(script)
    model = tiny.build("enumerate")
    exact = tiny.gradient(model)
    row = script.compared(model, script.measure(model, tiny.pairs, 1, 2), exact)
    assert set(row) == {"all", "scores", "encoder", "decoder"}
    assert all(value == pytest.approx(0.0, abs=1e-12) for group in row.values() for value in group.values())


def test_distances_and_variances_by_group(script: ModuleType) -> None:
    """By hand: the mean is the exact gradient g plus one everywhere, and every parameter's variance is 3."""
    model = Tiny(script).build("reinforce, baseline none")
    exact = [torch.full_like(parameter, 2.0) for parameter in model.parameters()]
    moments = GradientMoments([gradient + 1 for gradient in exact], [3.0] * len(exact), 50)
    row = script.compared(model, moments, exact)
    names = {name: parameter.numel() for name, parameter in model.named_parameters()}
    (scores,) = (size for name, size in names.items() if "attention" in name)
    assert row["scores"]["distance"] == pytest.approx(0.5)
    assert row["scores"]["variance"] == pytest.approx(3 / (4 * scores), rel=1e-3)
    assert row["all"]["variance"] == pytest.approx(3 * len(names) / (4 * sum(names.values())), rel=1e-3)
    assert row["all"]["standard_error"] == pytest.approx(math.sqrt(row["all"]["variance"] / 50), rel=1e-3)
    encoder = [size for name, size in names.items() if name.startswith("encoder.")]
    assert row["encoder"]["variance"] == pytest.approx(3 * len(encoder) / (4 * sum(encoder)), rel=1e-3)


def test_the_moving_baseline_has_found_its_mean(script: ModuleType) -> None:
    """After so many passes what is left of its start, zero, is 0.9 ^ 50; the rest is the mean log-likelihood."""
    tiny = Tiny(script)
    model = tiny.build("reinforce, baseline moving")
    torch.manual_seed(0)
    script._warm(model, tiny.pairs)
    sums = script.forward(tiny.build("enumerate"), tiny.pairs)
    bound = float(-(sums.nll + sums.parts["jensen"]) / sums.tokens)
    assert float(model.decoder.attention.estimator.mean) == pytest.approx(bound, rel=0.03)


# --- what was measured ------------------------------------------------------------------------------------------------


def test_the_page_says_what_the_result_file_says(script: ModuleType, found: Any) -> None:
    page = (ROOT / "docs" / "attention.md").read_text(encoding="utf-8")
    assert script.on_page(page, found) == page
    with pytest.raises(ValueError, match="write both"):
        script.on_page("no table", found)


def test_the_result_is_of_this_script(script: ModuleType, found: Any) -> None:
    assert found["draws"] == script.AT_ONCE * script.PASSES >= 1000
    assert len(found["points"]) == 2
    for point in found["points"].values():
        assert [*point["rows"]] == [*script.ESTIMATORS]


def test_what_the_page_concludes(found: Any) -> None:
    """REINFORCE is within chance of the exact gradient, and Gumbel is not where it is warm; `self` scatters least."""
    for point in found["points"].values():
        rows = {name: row["scores"] for name, row in point["rows"].items()}
        for name in UNBIASED:
            assert rows[name]["distance"] < 2.5 * rows[name]["standard_error"]
        warm = rows["gumbel, straight through, temperature 1.0"]
        assert warm["distance"] > 2.5 * warm["standard_error"]
        assert rows["reinforce, baseline self"]["variance"] == min(rows[name]["variance"] for name in UNBIASED)
    first = {name: row["scores"]["variance"] for name, row in found["points"]["at the first weights"]["rows"].items()}
    assert first["reinforce, baseline none"] > 1e4 * first["reinforce, baseline moving"]
