"""JSON on one line that every parser reads alike and that no terminal or reader of lines stumbles over."""

from __future__ import annotations

import json
import math
import re
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
