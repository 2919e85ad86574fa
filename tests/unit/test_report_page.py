"""What a report decides by itself: which settings differ, which lines are shown, why a training is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from s2s.analysis.history import History
from s2s.commands.report import Measurement, Options, Text, _by_rule, _missing, _numbers, _spread, changes
from s2s.config import Config, load
from s2s.errors import UsageError

PAGE = """\
data: {train: {source: a, target: b}}
model:
  encoder: {kind: rnn, layers: 2}
  decoder: {kind: rnn, attention: {kind: global, score: {kind: general, scaled: true}}}
optimizer: {kind: adam, lr: 0.5}
training: {max_updates: 7, patience: null}
"""


def settings(tmp_path: Path, page: str = PAGE) -> Config:
    (tmp_path / "c.yaml").write_text(page, encoding="utf-8")
    return load(tmp_path / "c.yaml")


def test_changes_are_what_differs_from_the_defaults(tmp_path: Path) -> None:
    found = {key: (before, value) for key, before, value in changes(settings(tmp_path))}
    assert found["training.max_updates"] == ("8000", "7")
    assert found["training.patience"] == ("10", "null")
    assert found["model.encoder.layers"] == ("1", "2")
    assert found["model.decoder.attention.score.scaled"] == ("false", "true")
    assert found["model.decoder.attention.kind"] == ("must be given", "global")
    assert found["optimizer.lr"][1] == "0.5"
    unchanged = ("seed", "training.validate_every", "search.beam", "batches.tokens", "model.encoder.cell", "tokenizer")
    assert not [key for key in found if key.startswith(unchanged)]


def test_a_section_that_says_its_default_has_not_changed(tmp_path: Path) -> None:
    plain = dict.fromkeys(key for key, _, _ in changes(settings(tmp_path)))
    spelled = PAGE.replace("patience: null", "patience: null, validate_every: 250")
    assert dict.fromkeys(key for key, _, _ in changes(settings(tmp_path, spelled))) == plain


@pytest.mark.parametrize(("text", "lines"), [("1", [1]), (" 3, 1,3 ", [3, 1]), ("999999999", [999_999_999])])
def test_numbers(text: str, lines: list[int]) -> None:
    assert _numbers(text) == lines


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "1;2", "a", "1,", "٣", "1234567890"])
def test_what_are_no_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="are no lines"):
        _numbers(text)


def test_checkpoints_are_spread_evenly() -> None:
    assert _spread([1, 2, 3], 3) == [1, 2, 3]
    assert _spread(list(range(0, 101, 10)), 3) == [0, 50, 100]
    many = _spread(list(range(1000)), 8)
    assert len(many) == len(set(many)) == 8 and (many[0], many[-1]) == (0, 999)


def measured(scores: list[float], source: list[str]) -> Measurement:
    return Measurement(Text("valid", source, source), source, [], scores)


def test_sentences_are_ranked_without_blank_ones_and_ties_go_to_the_earlier() -> None:
    found = measured([50, 0, 90, 90, 10], ["a", " ", "b c", "d", "e f g"])
    assert found.ranked == [4, 0, 2, 3]
    assert found.best(3) == [2, 3, 0]
    assert _by_rule(found) == [5, 1, 3], "worst, second, median and best, longest; each once"
    assert _by_rule(measured([10, 20, 30, 40, 50, 60], ["a", "b", "c", "d", "e", "f g h"])) == [1, 2, 4, 6]
    assert _by_rule(measured([0], [""])) == []


def record(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": 1.0, "epoch": 1, "seconds": 10.0 * step, **more}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    config = settings(tmp_path)
    told = list(_missing(config, History([record(3)], [], 1), None, None, None))
    assert ["3 of at most 7" in told[0], "1 lines" in told[1], "no validation set" in told[2]] == [True] * 3
    assert "No checkpoint" in told[3] and len(told) == 4
    assert Options().split is None
