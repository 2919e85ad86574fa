"""Tables that scripts put into pages: means and spreads by hand, and the pages have those of the result files."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from s2s.training import objective

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("readme_table")


def system(name: str, bleu: tuple[float, float, float] | None, parameters: int) -> dict[str, Any]:
    def of(low: float, mean: float, high: float) -> dict[str, float]:
        return {"mean": mean, "low": low, "high": high}

    summary: dict[str, Any] = dict.fromkeys(("bleu", "exact", "aer-0", "entropy", "parameters"))
    if bleu is not None:
        summary |= {"bleu": of(*bleu), "exact": of(90, 93.26, 96)}
    summary["parameters"] = of(parameters, parameters, parameters)
    return {"name": name, "rows": [{}] if bleu else [], "summary": summary}


def test_best_first_with_lowest_highest_and_gaps(script: ModuleType) -> None:
    found = {
        "systems": [system("a", (30.0, 31.02, 33.0), 12), system("b", (98.0, 99.0, 99.5), 1234), system("c", None, 1)]
    }
    lines = script.table(found).splitlines()
    assert len(lines) == 4  # nothing of what was not run
    found["systems"][1]["rows"].append({})
    assert script.table(found).splitlines()[3].startswith("| `a` (1 of 2 seeds) | ")
    assert lines[2] == "| `b` | 99.0 (98.0-99.5) | 93.3 | - | - | 1,234 |"
    assert lines[3] == "| `a` | 31.0 (30.0-33.0) | 93.3 | - | - | 12 |"


def test_only_what_stands_between_the_lines_changes(script: ModuleType) -> None:
    begin, end = "<!-- table: x -->\n", "<!-- end of x -->\n"
    page = f"above\n{begin}old\n{end}below\n"
    assert script.with_table(page, "x", "new") == f"above\n{begin}new\n{end}below\n"
    for wrong in ("nothing", f"{end}{begin}", page + page, page.replace(" x ", " y ")):
        with pytest.raises(ValueError, match="once each"):
            script.with_table(wrong, "x", "new")


def test_the_readme_has_the_table_of_the_result_file(script: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "docs" / "results-mechanisms.json").read_text(encoding="utf-8"))
    assert script.with_table(text, "mechanisms", script.table(found)) == text


def test_the_pages_have_the_tables_of_their_result_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table has its place in one of them."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    page = importlib.import_module("page")
    texts = [path.read_text(encoding="utf-8") for path in page.PAGES]
    assert [page.page(text) for text in texts] == texts
    assert all(sum(f"<!-- table: {name} -->" in text for text in texts) == 1 for name in page.TABLES)


def test_the_cost_model_finds_what_made_its_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine with known rates; a term that would be negative is left out."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    scale = importlib.import_module("scale")
    cells = []
    for width, batch, processes in [(2, 50, 1), (2, 90, 1), (4, 50, 1), (8, 70, 2), (4, 90, 2), (8, 20, 2), (8, 90, 2)]:
        parameters, tokens = 1000 * width * width, batch * processes
        sent = 2 * (processes - 1) / processes * 4 * parameters
        seconds = 700 * width * batch / 2e6 + batch * 2e-3 + parameters * 3e-9 + 0.25 + sent / 4e5
        memory = 300 * 2**20 + 19 * parameters + batch * scale.LAYERS * width * 40
        cells.append({
            "round": 0, "width": width, "batch": batch, "processes": processes, "parameters": parameters,
            "multiplied": 700 * width, "tokens_per_update": tokens, "seconds_per_update": seconds,
            "tokens_per_second": tokens / seconds, "peak_mib": memory / 2**20, "sent_per_update": sent, "waited": 0.0,
        })  # fmt: skip
    fit = scale.Fit.of(cells)
    assert fit.time == pytest.approx([1 / 2e6, 2e-3, 3e-9, 0.25, 1 / 4e5], rel=1e-3)
    assert fit.memory == pytest.approx([300 * 2**20, 19, 40], rel=1e-6)
    table = scale.model_table({"cells": cells})
    assert "seconds: mean error 0%, largest 0%; memory: mean error 0%, largest 0%" in table
    alone = 700 * 4 * 50 / 2e6 + 50 * 2e-3 + 16000 * 3e-9 + 0.25  # the largest width of a process alone is 4
    with_four = alone + 2 * 3 / 4 * 4 * 16000 / 0.125e9
    assert f"| 4 | {4 * 50 / with_four:,.0f} ({alone / with_four:.0%}) |" in table
    assert scale.fitted([[1.0, 1.0], [2.0, 1.0]], [1.0, 2.1]) == pytest.approx([1.0238, 0.0], abs=1e-3)


def test_the_share_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 ms an update, 10 of them waiting: built in the update 30 ms would be a quarter of 120."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    scale = importlib.import_module("scale")
    cell = {"corpus": "toy", "sampling": "on", "seconds_per_update": 0.1, "building": 0.03, "waited": 0.1}
    assert scale.waiting_table({"cells": [cell]}).splitlines()[2] == "| toy | on | 100 | 30.0 | 25.0% | 10.00% |"


def test_a_table_of_cost_has_the_median_of_each_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    cost = importlib.import_module("cost")
    rows: dict[str, Any] = {}
    for axis, values in cost.AXES.items():
        for value in values:
            speeds = (value, 2 * value, 9 * value)
            found = [{"tokens_per_second": speed, "peak_mib": 100 + speed} for speed in speeds]
            rows.setdefault(cost.key_of(cost.USUAL | {axis: value}), dict.fromkeys(cost.ATTENTION, found))
    for count, seconds in ((1000, 8.0), (10000, 80.0)):
        rows[f"lines={count}"] = {"beam 5": [{"seconds": seconds, "sentences": count, "peak_mib": 512}]}
    lines = list(cost.tables({"rows": rows}))
    assert "| 40 | 80 (40-360) | 80 (40-360) | 460 |" in lines
    assert "| 10,000 | 80.0 | 125 | 512 |" in lines


def test_a_gain_is_the_ratio_of_neighbours_and_memory_the_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    gains = importlib.import_module("gains")

    def pair(speed: float, plain: float) -> list[dict[str, float]]:
        return [{"tokens_per_second": speed, "peak_mib": 900}, {"tokens_per_second": plain, "peak_mib": 1000}]

    rows = {"r1": {"bf16": [pair(300, 100), pair(200, 100), pair(450, 100)]}, "t": {"rows": [pair(100, 125)]}}
    head, _, *lines = gains.table({"rows": rows}).splitlines()
    assert head == "| step | r1 | MiB | t | MiB |" and len(lines) == 2  # nothing of what was not measured
    assert lines[0] == "| products in bf16 | 3.00 (2.00-4.50) | -100 |  |  |"
    assert "| a round number of rows |  |  | 0.80 | -100 |" in lines


def test_the_share_of_the_peak_is_of_the_same_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """54 MFLOP a token: 1,000 tokens/s are 54 GFLOP/s."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    speed = importlib.import_module("speed")
    peer, own = ([{"tokens_per_second": rate, "peak_mib": 1000}] for rate in (1000, 3000))
    kept = {
        "machine": {"instructions": ["amx_bf16"]},
        "peak_gflops": {"float32": [300], "bfloat16": [1500]},
        "auto": "bf16",
        "square": 2048,
        "mflop_per_token": {"r1": 54.0},
        "rows": {"r1": {"s2s float32": own, "s2s auto": own, "opennmt": peer}},
    }
    path = tmp_path / "speed-training.json"
    path.write_text(json.dumps(kept))
    lines = speed.table(path).splitlines()
    assert [line.split("|")[-2].strip() for line in lines[2:5]] == ["54 %", "11 %", "18 %"]
    path.write_text(json.dumps(kept | {"auto": "float32"}))
    assert speed.table(path).splitlines()[3].endswith("| 54 % |")


def test_the_products_of_a_target_token_are_those_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Base size: 6 + 6 layers of 512, inside 2,048; a layer of the decoder attends twice; 8,000 words in the end."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    speed = importlib.import_module("speed")
    projections, inner = 4 * 512 * 512, 2 * 512 * 2048
    entries = 6 * (projections + inner) + 6 * (2 * projections + inner) + 8000 * 512
    assert speed.work_of(speed.CONFIGS / "t-base.yaml") == pytest.approx(6e-6 * entries)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_what_stands_in_for_the_loss_computes_the_same(monkeypatch: pytest.MonkeyPatch, smoothing: float) -> None:
    """And stands where training calls it."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    gains = importlib.import_module("gains")
    generator = torch.Generator().manual_seed(1)
    features, weight, bias = (torch.randn(shape, generator=generator) for shape in ((7, 5), (11, 5), (11,)))
    words = torch.randint(0, 11, (7,), generator=generator)
    expected = objective.smoothed_loss(features, weight, bias, words, smoothing)
    monkeypatch.setattr(objective, "smoothed_loss", objective.smoothed_loss)  # put back after the test
    gains.STEPS["loss"].take_out()
    found = objective.smoothed_loss(features, weight, bias, words, smoothing)
    assert objective.smoothed_loss is gains._plain_loss
    torch.testing.assert_close(found, expected)
