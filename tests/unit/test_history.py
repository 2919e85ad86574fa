"""The record of a training, read for pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from s2s.analysis.history import History, read_history
from s2s.errors import DataError


def update(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "epoch": 1, "loss": 2.0, "loss_hex": "0x1p1", "nll": 1.0, "lr": 0.1, **more}


def validation(step: int, **scores: Any) -> dict[str, Any]:
    return {"step": step, "valid": scores}


def test_records_are_told_apart_and_broken_lines_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [update(1), validation(1, nll=1.0), {"step": 1, "save_failures": 2}]
    good = "".join(f"{json.dumps(row)}\n" for row in rows)
    path.write_text(f'{good}{{"step": "two"}}\n[1]\nnull\n{{"step": 3, "valid": 4}}\n' + json.dumps(update(2))[:20])
    found = read_history(path)
    assert (found.updates, found.validations, found.broken) == ([update(1)], [validation(1, nll=1.0)], 5)


def test_no_file_is_an_empty_history_and_a_folder_an_error(tmp_path: Path) -> None:
    assert read_history(tmp_path / "metrics.jsonl") == History([], [])
    with pytest.raises(DataError, match="cannot be read"):
        read_history(tmp_path)


def test_series_skip_what_is_not_there_and_mark_what_was_not_finite() -> None:
    found = History([update(1, kl=0.5), update(2), update(3, kl=None)], [])
    name, x, y = found.series("kl", "KL")
    assert (name, x, y[0]) == ("KL", [1, 3], 0.5) and math.isnan(y[1])
    assert found.terms() == ["kl"], "what every training has is no term of a mechanism, nor is a text"


def test_diagnostics() -> None:
    rows = [validation(5, nll=2, attention={"entropy": 1.0}), validation(6, nll=1, attention={"mass": 1, "entropy": 0})]
    found = History([], [*rows, validation(7, nll=0.5)])
    assert found.diagnostics() == ["entropy", "mass"]
    assert found.diagnostic("entropy")[1:] == ([5, 6], [1.0, 0.0])
    assert found.validation("nll", "nll")[1:] == ([5, 6, 7], [2.0, 1.0, 0.5])


def test_speed_over_stretches() -> None:
    records = [update(n, target_tokens=100 * n, seconds=n / 2) for n in range(1, 4)]
    assert History(records, []).speed()[1:] == ([2, 3], [200.0, 200.0])
    many = [update(n, target_tokens=10 * n, seconds=float(n)) for n in range(1, 1002)]
    _, x, y = History(many, []).speed()
    assert len(x) <= 100 and set(y) == {10.0} and x[0] == 12, "eleven updates a stretch"
    still = [update(1, target_tokens=1, seconds=1.0), update(2, target_tokens=2, seconds=1.0)]
    assert math.isnan(History(still, []).speed().y[0])
    assert History([update(1)], []).speed().x == []


def test_updates_left_out_are_no_term_of_the_loss() -> None:
    assert History([update(1, skipped=1), update(2, kl=0.5)], []).terms() == ["kl"]


def test_samples_that_are_whole_are_found() -> None:
    whole = {"source": "a", "reference": "b", "translation": "c"}
    rows = [
        validation(1) | {"samples": [whole, {"source": "a"}, 7]},
        validation(2) | {"samples": "none"},
        validation(3),
        validation(4) | {"samples": [whole | {"translation": None, "more": 1}]},
    ]
    assert History([], rows).samples() == [(1, [whole]), (4, [whole | {"translation": "None"}])]
