"""What the system tests share: a tiny project, and the command line in this or in another process."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from s2s import cli

UPDATES = 40
COMMAND = (sys.executable, "-c", "from s2s.cli import main; main()")

_NOUNS = {"dog": "Hund", "man": "Mann", "king": "König", "tree": "Baum", "book": "Brief", "bird": "Vogel"}
_VERBS = {"sees": "sieht", "finds": "findet", "buys": "kauft", "loves": "liebt"}
_ADJECTIVES = {"old": "alte", "small": "kleine", "red": "rote"}

_SETTINGS = """\
data:
  train: {source: train.en, target: train.de}
  valid: {source: valid.en, target: valid.de}
  test: {source: valid.en, target: valid.de}
tokenizer: {kind: sentencepiece, vocabulary: 80}
batches: {tokens: 150, accumulate: 2}
model:
  embedding: 32
  dropout: 0.3
  encoder: {kind: rnn, size: 32}
  decoder: {kind: rnn, size: 32, attention: {kind: global, score: general}}
objective: {label_smoothing: 0.1}
optimizer: {kind: adam, lr: 5e-3, schedule: {kind: inverse_sqrt, warmup: 10}}
training: {max_updates: 40, validate_every: 10, save_every: 7, patience: null, precision: float32, samples: 1}
search: {beam: 2, max_length_ratio: 1}
"""
_TRANSFORMER = """\
extends: rnn.yaml
model:
  encoder: {kind: transformer, layers: 1, size: 32, heads: 2, feedforward: 64}
  decoder: {kind: transformer, layers: 1, size: 32, heads: 2, feedforward: 64}
"""


def write_project(folder: Path) -> Path:
    """A corpus of 288 training and 12 validation pairs with the settings rnn.yaml and transformer.yaml over them."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [
        (f"The {adjective} {first} {verb} a {second}.", f"Der {_ADJECTIVES[adjective]} {_NOUNS[first]} "
         f"{_VERBS[verb]} einen {_NOUNS[second]}.")
        for adjective in _ADJECTIVES for first in _NOUNS for verb in _VERBS for second in _NOUNS if first != second
    ]  # fmt: skip
    pairs = pairs[:300]
    for name, part in (("train", pairs[12:]), ("valid", pairs[:12])):
        for side, suffix in enumerate(("en", "de")):
            (folder / f"{name}.{suffix}").write_text("".join(f"{pair[side]}\n" for pair in part), encoding="utf-8")
    (folder / "rnn.yaml").write_text(_SETTINGS, encoding="utf-8")
    (folder / "transformer.yaml").write_text(_TRANSFORMER, encoding="utf-8")
    return folder


def train_arguments(project: Path, run: Path, *more: str, config: str = "rnn.yaml") -> list[str]:
    """The command that trains, or goes on training, in ``run``."""
    return ["train", "--config", str(project / config), "--run-dir", str(run), *more]


# --- running ----------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: bytes
    err: str


Cli = Callable[..., Outcome]
"""``cli(*arguments, stdin=b"")``: a command in this process."""


@contextmanager
def kept_signals() -> Iterator[None]:
    """Commands of the terminal let SIGPIPE end the process; what runs the tests must not end so."""
    before = signal.getsignal(signal.SIGPIPE)
    try:
        yield
    finally:
        signal.signal(signal.SIGPIPE, before)


def done(arguments: Sequence[str]) -> None:
    """Run a command in this process that must succeed."""
    with kept_signals():
        assert cli.run(list(arguments)) == 0


def start(
    arguments: Sequence[str], *, cwd: Path | None = None, extra: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """A command in a process and a session of its own, with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | dict(extra or {})
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process: subprocess.Popen[bytes] = subprocess.Popen(
        [*COMMAND, *arguments], cwd=cwd, env=environment, start_new_session=True, **(pipes | options)
    )
    return process


def finish(process: subprocess.Popen[bytes], timeout: float = 60) -> Outcome:
    """Wait for its end; a process that does not end is killed, and the test fails."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Outcome(process.returncode, out or b"", (err or b"").decode())


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Poll until ``condition()``; fails when the process ends before, or time runs out."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, finish(process).err
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


# --- looking at a run -------------------------------------------------------------------------------------------------


def records(run: Path) -> list[dict[str, Any]]:
    """Every line of the metrics, each of which must be whole."""
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse_constant) for line in text.splitlines()]


def refuse_constant(name: str) -> None:
    """NaN and Infinity are not JSON."""
    raise ValueError(f"{name} is not JSON")


def losses(run: Path) -> list[tuple[int, str]]:
    """Step and loss, to the last bit, of every update."""
    return [(record["step"], record["loss_hex"]) for record in records(run) if "loss_hex" in record]


def validations(run: Path) -> list[tuple[int, dict[str, float]]]:
    """Step and scores of every validation."""
    return [(record["step"], record["valid"]) for record in records(run) if "valid" in record]


def steps(run: Path) -> list[int]:
    """The checkpoints there, ascending."""
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of the weights and of the optimizer in the last checkpoint."""
    last = run / "checkpoints" / f"step-{steps(run)[-1]:08d}"
    names = ("model.safetensors", "optimizer.safetensors")
    return {name: hashlib.sha256((last / name).read_bytes()).hexdigest() for name in names}


def assert_same_run(run: Path, reference: Path) -> None:
    """The run came to the same weights, optimizer, losses and scores, to the bit, and left nothing lying about."""
    assert [step for step, _ in losses(run)] == list(range(1, len(losses(run)) + 1))
    assert losses(run) == losses(reference)
    assert validations(run) == validations(reference)
    assert digests(run) == digests(reference)
    assert not [path for pattern in (".tmp-*", ".trash-*", ".old-*") for path in run.rglob(pattern)]


def assert_error(outcome: Outcome, code: int, *parts: str) -> None:
    """The command ended with ``code`` and said so in one line that has ``parts``, without a traceback."""
    lines = [line for line in outcome.err.splitlines() if line.startswith("s2s: error: ")]
    assert outcome.code == code, outcome
    assert len(lines) == 1, outcome
    assert all(part in lines[0] for part in parts), (parts, lines)
    assert "Traceback" not in outcome.err
