"""JSON that every parser reads alike: written on one line that no terminal stumbles over, and read as strictly."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

DEEPEST = 32
"""Objects and lists inside each other that are read."""
_TOO_DEEP = "nested too deeply"
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

    a name that is there twice, NaN and infinities, numbers too large for a float, and nesting deeper than `DEEPEST`.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if _depth(value) > DEEPEST:
        raise ValueError(_TOO_DEEP)
    return value


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
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice[:80]!r} is there twice")
    return result


def _finite(text: str) -> float:
    """A number that a float can hold: what is kept of an object must be JSON when it is written again."""
    if not math.isfinite(value := float(text)):  # NaN, Infinity and 1e999 are read by the json module
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def _depth(value: Any) -> int:
    """Objects and lists inside each other."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (dict, list))]:
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
        depth += 1
    return depth
