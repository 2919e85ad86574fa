"""JSON that every parser reads alike: written on one line that no terminal stumbles over, and read as strictly."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What JSON allows in a string, but a terminal, another reader of lines, or UTF-8 does not."""


def json_line(value: Any) -> str:
    """The value on one line, without its end. Raises ValueError for NaN and infinities, which JSON does not have."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def finite(value: float) -> float | None:
    """A number as JSON can hold it: null where it is not finite."""
    return value if math.isfinite(value) else None


def all_finite(value: Any) -> Any:
    """The same value with null for every number in it that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {name: all_finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [all_finite(item) for item in value]
    return finite(value) if isinstance(value, float) else value


def strict_json(text: str) -> Any:
    """The value that ``text`` is. Raises ValueError for anything else, also for what lenient parsers let pass:

    a name that is there twice, NaN and infinities, numbers too large for a float, and nesting without end.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_held)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def whole(text: str) -> str:
    """The same text. Raises ValueError for half of a surrogate pair in it: JSON can spell one, UTF-8 has none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start + 1} is half of a surrogate pair; send whole ones") from None
    return text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name is there twice")
    return result


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _held(text: str) -> float:
    """A number that a float can hold: what is kept of an object must be JSON when it is written again."""
    if math.isinf(value := float(text)):
        raise ValueError(f"{text[:40]} is too large")
    return value
