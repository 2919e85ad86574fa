"""The record of a training, ``metrics.jsonl``, read for pictures: series over updates, and what is broken in it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from s2s.analysis.charts import Series
from s2s.errors import DataError

MEANINGS = {
    "entropy": "Entropy of the weights in nats: 0 is one position, the logarithm of the length is all alike.",
    "sharpness": "The largest weight.",
    "mass": "The sum of the weights; below 1 where weight is given away.",
    "monotonicity": "How often the most attended position does not go back.",
    "coverage": "How far a source position was read, at most 1.",
    "coverage_error": "How far the attention that a source position had is from 1.",
    "kept": "The mass that a filter left.",
    "in_window": "The mass that the scores give the window.",
    "centre": "Where the window is centred, as a share of the source.",
    "centre_step": "How far the centre moves with a word, in positions.",
    "gradient_variance": "The variance of the estimated gradient.",
    "gradient_square": "The squared length of the expected gradient.",
}
"""What the diagnostics of a validation mean; `s2s.analysis.diagnostics` has the formulas."""

_COMMON = {"step", "epoch", "loss", "nll", "target_tokens", "seconds", "waited", "lr", "grad_norm", "skipped"}
_STRETCHES = 100
"""Points of the curve of speed."""


class History(NamedTuple):
    """What was recorded, in order."""

    updates: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    """With the scores under ``valid``."""
    broken: int = 0
    """Lines that are no records."""

    def series(self, key: str, name: str) -> Series:
        """A number of every update that has it; NaN where it was not finite."""
        having = [record for record in self.updates if key in record]
        return Series(name, [record["step"] for record in having], [_number(record[key]) for record in having])

    def validation(self, key: str, name: str) -> Series:
        """The same of every validation."""
        having = [record for record in self.validations if key in record["valid"]]
        return Series(name, [record["step"] for record in having], [_number(one["valid"][key]) for one in having])

    def samples(self) -> list[tuple[int, list[dict[str, str]]]]:
        """Update and samples of every validation that has some; a sample has source, reference and translation."""
        found = [(record["step"], _samples(record)) for record in self.validations]
        return [(step, samples) for step, samples in found if samples]

    def diagnostics(self) -> list[str]:
        """What validations tell of the attention, in the order of its first mention."""
        return list(dict.fromkeys(name for record in self.validations for name in _attention(record)))

    def diagnostic(self, name: str) -> Series:
        """One of these."""
        having = [record for record in self.validations if name in _attention(record)]
        return Series(name, [record["step"] for record in having], [_number(_attention(one)[name]) for one in having])

    def terms(self) -> list[str]:
        """The numbers that updates have beside those of every training: the terms of a mechanism's loss."""
        names = dict.fromkeys(name for record in self.updates for name in record)
        return [name for name in names if name not in _COMMON and self._is_number(name)]

    def _is_number(self, name: str) -> bool:
        return all(isinstance(record.get(name, 0.0), int | float | None) for record in self.updates)

    def speed(self) -> Series:
        """Target tokens a second over equal stretches of updates, at their last update."""
        having = [one for one in self.updates if {"target_tokens", "seconds"} <= one.keys()]
        stretch = max(1, math.ceil(len(having) / _STRETCHES))
        x, y = [], []
        for first, last in zip(having[:-1:stretch], having[stretch::stretch], strict=False):
            seconds = last["seconds"] - first["seconds"]
            x.append(last["step"])
            y.append((last["target_tokens"] - first["target_tokens"]) / seconds if seconds > 0 else math.nan)
        return Series("target tokens a second", x, y)


def read_history(path: Path) -> History:
    """What the file has; nothing where there is none. Raises DataError where it cannot be read.

    A line that is no record of an update or a validation is counted and left out: the last may be half written, for
    the training may be under way.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return History([], [])
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}") from error
    updates, validations, broken = [], [], 0
    for line in data.splitlines():
        record = _record(line)
        if record is None:
            broken += 1
        elif "valid" in record:
            validations.append(record)
        elif "loss" in record:
            updates.append(record)
    return History(updates, validations, broken)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    return record if isinstance(record.get("valid", {}), dict) else None


def _attention(record: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = record["valid"].get("attention", {})
    return found


def _samples(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Those that are whole."""
    found = record.get("samples")
    whole = {"source", "reference", "translation"}
    fits = [isinstance(one, dict) and whole <= one.keys() for one in found] if isinstance(found, list) else []
    return [{name: str(one[name]) for name in whole} for one, fit in zip(found or (), fits, strict=False) if fit]


def _number(value: object) -> float:
    """A recorded number; None is one that JSON cannot hold."""
    return float(value) if isinstance(value, int | float) else math.nan
