"""What the system tests share: a tiny project, and the command line in this or in another process."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from s2s import cli

UPDATES = 40
COMMAND = (sys.executable, "-m", "s2s")

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
HARD_ATTENTION = "{kind: hard, score: general, estimator: {kind: reinforce, baseline: moving}}"
"""The one whose training draws most and that has a buffer of its own."""
_HARD = f"""\
extends: rnn.yaml
model:
  decoder: {{attention: {HARD_ATTENTION}}}
"""


def write_project(folder: Path) -> Path:
    """A corpus of 288 training and 12 validation pairs, and over it rnn.yaml, hard.yaml and transformer.yaml."""
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
    (folder / "hard.yaml").write_text(_HARD, encoding="utf-8")
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


def done(arguments: Sequence[str]) -> None:
    """Run a command in this process that must succeed."""
    assert cli.run(list(arguments)) == 0


def start(
    arguments: Sequence[str],
    *,
    cwd: Path | None = None,
    extra: Mapping[str, str] | None = None,
    command: Sequence[str] = COMMAND,
    **options: Any,
) -> subprocess.Popen[bytes]:
    """A command in a process and a session of its own, with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | dict(extra or {})
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process: subprocess.Popen[bytes] = subprocess.Popen(
        [*command, *arguments], cwd=cwd, env=environment, start_new_session=True, **(pipes | options)
    )
    return process


def finish(process: subprocess.Popen[bytes] | Forked, timeout: float = 120) -> Outcome:
    """Wait for its end; a process that does not end is killed, and the test fails."""
    if isinstance(process, Forked):
        return process.wait(timeout)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Outcome(process.returncode, out or b"", (err or b"").decode())


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes] | Forked, seconds: float = 120) -> None:
    """Poll until ``condition()``; fails when the process ends before, or time runs out."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, finish(process).err
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


_WARM = """
import json, os, sys, traceback
import torch
from s2s import cli, failpoints
import s2s.commands.train

torch.set_num_threads(1)
for line in sys.stdin:
    request = json.loads(line)
    if "start" in request:
        process = os.fork()
        if not process:
            os.setsid()
            os.dup2(os.open(request["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(0, 1)
            failpoints._POINTS = failpoints._parse(request["points"])
            os.environ.update(request["extra"])
            code = 1
            try:
                exec(request["first"], {})
                code = cli.run(request["start"])
                sys.stderr.flush()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        answer = process
    else:
        ended, status = os.waitpid(request["poll"], os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if ended else None
    print(json.dumps(answer), flush=True)
"""


class Warm:
    """A process that has imported everything and forks one for each command: tests that start many save the import.

    ``with Warm(folder) as warm: finish(warm.start(arguments))``. The processes are separate, each with a session and a
    process number of its own, and end as if they had been started one by one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._started = folder, 0

    def __enter__(self) -> Self:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen([sys.executable, "-c", _WARM], env=environment, text=True, **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # the end of its input is the end of it

    def ask(self, **request: Any) -> Any:
        """One request, one answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(request)}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self, arguments: Sequence[str], points: str = "", extra: Mapping[str, str] | None = None, first: str = ""
    ) -> Forked:
        """A command in a process of its own, with these fail points and variables, after the code ``first``."""
        self._started += 1
        errors = self._folder / f"errors-{self._started}"
        request = {"start": list(arguments), "points": points, "extra": dict(extra or {}), "first": first}
        return Forked(self, self.ask(**request, errors=str(errors)), errors)


class Forked:
    """A command that `Warm` started."""

    def __init__(self, warm: Warm, pid: int, errors: Path) -> None:
        self.pid, self._warm, self._errors = pid, warm, errors
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative after a signal; None while it runs."""
        if self._code is None:
            self._code = self._warm.ask(poll=self.pid)
        return self._code

    def wait(self, seconds: float = 120) -> Outcome:
        """Its end, which must come."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
                raise AssertionError(f"did not end: {self._errors.read_text(errors='replace')}")
            time.sleep(0.005)
        assert self._code is not None
        return Outcome(self._code, b"", self._errors.read_text(errors="replace") if self._errors.exists() else "")


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def start_ranks(
    warm: Warm,
    arguments: Sequence[str],
    size: int = 2,
    points: Mapping[int, str] | None = None,
    first: Mapping[int, str] | None = None,
) -> list[Forked]:
    """The same command as all the processes of one training, as a launcher starts them.

    ``points`` and ``first`` are fail points and code of single ranks.
    """
    launched = {"WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    return [
        warm.start(
            arguments, (points or {}).get(rank, ""), launched | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            (first or {}).get(rank, ""),
        )
        for rank in range(size)
    ]  # fmt: skip


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


def repeatable(run: Path) -> list[dict[str, Any]]:
    """Every record without the time it took; floats are read as they were written, to the last bit."""
    times = {"seconds", "waited"}
    return [{name: value for name, value in record.items() if name not in times} for record in records(run)]


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


def rewrite(directory: Path, name: str, data: bytes) -> None:
    """Put a forged file into a checkpoint, together with a manifest that agrees with it."""
    (directory / name).write_bytes(data)
    manifest = json.loads((directory / "MANIFEST.json").read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (directory / "MANIFEST.json").write_text(json.dumps(manifest))


def rewrite_state(directory: Path, state: Mapping[str, Any]) -> None:
    """The same for the state."""
    rewrite(directory, "state.json", json.dumps(state).encode())


def assert_same_run(run: Path, reference: Path) -> None:
    """The run came to the same weights, optimizer, losses and scores, to the bit, and left nothing lying about."""
    assert [step for step, _ in losses(run)] == list(range(1, len(losses(run)) + 1))
    assert repeatable(run) == repeatable(reference)
    assert digests(run) == digests(reference)
    assert not [path for pattern in (".tmp-*", ".trash-*", ".old-*") for path in run.rglob(pattern)]


def assert_error(outcome: Outcome, code: int, *parts: str) -> None:
    """The command ended with ``code`` and said so in one line that has ``parts``, without a traceback."""
    lines = [line for line in outcome.err.splitlines() if line.startswith("s2s: error: ")]
    assert outcome.code == code, outcome
    assert len(lines) == 1, outcome
    assert all(part in lines[0] for part in parts), (parts, lines)
    assert "Traceback" not in outcome.err
