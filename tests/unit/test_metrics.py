"""The record of a training: whole lines, strict JSON, cut back to a checkpoint, and never in the way."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from s2s.errors import ConfigError, SystemRefused
from s2s.strictjson import DEEPEST, strict_json
from s2s.training.metrics import MetricsLog, TensorBoard


def strict(line: str) -> Any:
    def refuse(word: str) -> float:
        raise ValueError(word)

    return json.loads(line, parse_constant=refuse)


def test_json_is_read_to_a_certain_depth() -> None:
    """Objects and lists count, and what is in the innermost does not."""
    for inner in ("", "1", '"word"', "null"):
        deepest = "[" * DEEPEST + inner + "]" * DEEPEST
        assert str(strict_json(deepest)).count("[") == DEEPEST
        with pytest.raises(ValueError, match="nested too deeply"):
            strict_json(f"[{deepest}]")
        with pytest.raises(ValueError, match="nested too deeply"):
            strict_json(f'{{"a": {deepest}}}')


def test_records_are_strict_json_lines(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(
        {
            "step": 1,
            "loss": float("nan"),
            "text": "a\nb\u2028",
            "valid": {"ppl": float("inf"), "x": [1.5, -float("inf")]},
        }
    )
    log.append({"step": 2, "loss": 0.1})
    log.close()
    log.append({"step": 3})
    text = (tmp_path / "metrics.jsonl").read_bytes().decode()
    assert text.endswith("\n")
    assert [strict(line) for line in text[:-1].split("\n")] == [
        {"step": 1, "loss": None, "text": "a\nb\u2028", "valid": {"ppl": None, "x": [1.5, None]}},
        {"step": 2, "loss": 0.1},
        {"step": 3},
    ]


def test_a_record_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    write = os.write

    def record(descriptor: int, data: bytes) -> int:
        written.append(data)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", record)
    MetricsLog(tmp_path / "m").append({"step": 1})
    assert written == [b'{"step": 1}\n']


@pytest.mark.fault("R7")
def test_truncation_keeps_complete_records_up_to_the_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    kept = b'{"step": 1}\n{"step": 2, "valid": {"bleu": 3.5}}\n'
    path.write_bytes(kept + b'not json\n{"step": 3}\n{"step": "2"}\n[2]\n{"epoch": 1}\n{"step": 2')
    log = MetricsLog(path)
    log.append({"lost": "continues the partial line"})
    log.truncate_after(2)
    assert path.read_bytes() == kept
    log.append({"step": 3})
    assert path.read_bytes() == kept + b'{"step": 3}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
    log.truncate_after(0)
    assert path.read_bytes() == b""


def test_truncation_of_a_file_that_is_right_or_missing_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).truncate_after(5)
    assert not path.exists()
    path.write_bytes(b'{"step": 1}\n')
    before = path.stat()
    MetricsLog(path).truncate_after(5)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_failed_truncation_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n')

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SystemRefused, match="No space left on device"):
        MetricsLog(path).truncate_after(1)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.fault("D2")
def test_a_full_disk_is_one_warning_and_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, said.append)
    log.append({"step": 1})
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:5]))
    log.append({"step": 2})
    monkeypatch.setattr(os, "write", full)
    log.append({"step": 3})
    monkeypatch.undo()
    log.append({"step": 4})
    assert len(said) == 1
    assert "metrics.jsonl: No space left on device" in said[0]
    assert path.read_bytes() == b'{"step": 1}\n{"step": 4}\n'


@pytest.mark.fault("D2")
def test_a_directory_that_is_gone_is_a_warning(tmp_path: Path) -> None:
    said: list[str] = []
    log = MetricsLog(tmp_path / "gone" / "metrics.jsonl", said.append)
    log.append({"step": 1})
    log.append({"step": 2})
    log.close()
    assert len(said) == 1


@pytest.mark.fault("D2")
def test_a_board_that_cannot_be_written_costs_no_record(tmp_path: Path) -> None:
    """Nor does it end the training, neither at a record nor at the end; it is told once."""

    class Full(TensorBoard):
        def __init__(self, folder: Path) -> None:
            self.folder = folder

        def append(self, record: Mapping[str, Any]) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            self.append({})

    said: list[str] = []
    log = MetricsLog(tmp_path / "metrics.jsonl", said.append, Full(tmp_path / "tensorboard"))
    for step in (1, 2):
        log.append({"step": step})
    log.end()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert said == [f"{tmp_path}/tensorboard: No space left on device; training goes on, records are lost"]


@pytest.mark.fault("R7")
def test_the_board_shows_an_update_once(tmp_path: Path) -> None:
    """What was shown of updates after the checkpoint is hidden when the training goes on from it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step, values in ((0, [1.0, 2.0, 3.0]), (1, [20.0, 30.0])):
        log = MetricsLog(tmp_path / "metrics.jsonl", board=TensorBoard(tmp_path / "tensorboard", step))
        for place, value in enumerate(values, start=step + 1):
            log.append({"step": place, "loss": value})
        log.end()
        time.sleep(1.1)  # the names of event files count seconds
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in shown] == [(1, 1.0), (2, 20.0), (3, 30.0)]


def test_a_board_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"training.tensorboard: TensorBoard is not installed; pip install -e"):
        TensorBoard(tmp_path)
    assert not list(tmp_path.iterdir())
