"""Named points where a test may make the program fail; without S2S_FAILPOINT each is one dictionary lookup.

``S2S_FAILPOINT="checkpoint.after_model:kill9@2,loss:nan@33"`` fires the action at the n-th pass of the point.
Actions: ``kill9``, ``sigterm``, ``sigint``, ``sighup`` and ``sigusr1`` signal this process, ``enospc`` raises "no space
left on device", ``sleepN`` waits N seconds; any other word is handed back to the caller, which must know what to do
with it. ``@5+`` fires at the fifth pass and at every one after it.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import NamedTuple

_SIGNALS = {
    "kill9": signal.SIGKILL,
    "sigterm": signal.SIGTERM,
    "sigint": signal.SIGINT,
    "sighup": signal.SIGHUP,
    "sigusr1": signal.SIGUSR1,
}


class _Action(NamedTuple):
    """What happens at a pass of a point, or from that pass on."""

    name: str
    turn: int
    again: bool


def _parse(text: str) -> dict[str, list[_Action]]:
    points: dict[str, list[_Action]] = {}
    for item in filter(None, text.split(",")):
        name, _, action = item.partition(":")
        action, _, count = action.partition("@")
        turn = _Action(action, int(count.removesuffix("+") or 1), count.endswith("+"))
        points.setdefault(name, []).append(turn)
    return points


_POINTS = _parse(os.environ.get("S2S_FAILPOINT", ""))
_PASSED: dict[str, int] = {}


def hit(name: str) -> str | None:
    """Pass the point ``name``: perform its action when its turn has come; return an action only the caller knows."""
    if name not in _POINTS:
        return None
    _PASSED[name] = _PASSED.get(name, 0) + 1
    for action, turn, again in _POINTS[name]:
        if turn != _PASSED[name] and not (again and turn < _PASSED[name]):
            continue
        if action in _SIGNALS:
            os.kill(os.getpid(), _SIGNALS[action])
            return None
        if action == "enospc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if action.startswith("sleep"):
            time.sleep(float(action[5:] or 1))
            return None
        return action
    return None
