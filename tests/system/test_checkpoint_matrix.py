"""Checkpoints that are cut, flipped, forged, foreign or no checkpoints at all: refused by name, and never run."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from harness import (
    COMMAND,
    UPDATES,
    Cli,
    assert_error,
    assert_same_run,
    digests,
    rewrite,
    rewrite_state,
    steps,
    train_arguments,
)
from torch import Tensor

from s2s.checkpoint import load
from s2s.errors import CheckpointError

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")
LAST = f"step-{UPDATES:08d}"


@pytest.fixture
def last(run: Path) -> Path:
    """The newest checkpoint of a run that may be spoilt."""
    return run / "checkpoints" / LAST


def translate(cli: Cli, run: Path) -> Any:
    """Ask the newest checkpoint."""
    return cli("translate", "--model", run, "--checkpoint", "latest", stdin=b"The old dog sees a man.\n")


# --- cut, flipped, missing (C1, C2, C3, C4) ---------------------------------------------------------------------------


@pytest.mark.fault("C1")
@pytest.mark.parametrize("name", FILES)
def test_cut_at_any_length(run: Path, last: Path, cli: Cli, name: str) -> None:
    """The sizes that the catalogue names and some drawn ones; the manifest, which says the sizes, is no JSON then."""
    data = (last / name).read_bytes()
    draw = random.Random(name)
    for length in (0, 1, 8, len(data) // 2, len(data) - 1, *draw.sample(range(9, len(data)), 4)):
        (last / name).write_bytes(data[:length])
        what = f"{length} bytes, manifest says {len(data)}: truncated"
        expected = "not valid JSON" if name == "MANIFEST.json" else what
        assert_error(translate(cli, run), 4, f"{LAST}/{name}: {expected}")


@pytest.mark.fault("C1", "C2", "C3")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "gone", "flipped", "replaced"])
def test_training_goes_on_from_the_one_before(
    project: Path, run: Path, last: Path, finished: Path, cli: Cli, name: str, damage: str
) -> None:
    """The damaged checkpoint is passed over by name, and the run comes to the same end."""
    data = bytearray((last / name).read_bytes())
    if damage == "gone":
        (last / name).unlink()
    else:
        data[len(data) // 2] ^= 16 * (damage == "flipped")
        (last / name).write_bytes({"cut": data[: len(data) // 2], "flipped": data, "replaced": b"not this"}[damage])
    outcome = cli(*train_arguments(project, run, f"data.cache={project / '.cache'}"))
    assert outcome.code == 0, outcome
    assert f"s2s: warning: passing over {LAST}/" in outcome.err
    assert_same_run(run, finished)


@pytest.mark.fault("C2")
def test_two_hundred_flipped_bits(run: Path, last: Path) -> None:
    """Anywhere in any of the four files, one at a time: not one is read."""
    files = {path: path.read_bytes() for path in sorted(last.iterdir())}
    assert {path.name for path in files} == set(FILES)
    bits = [(path, bit) for path, data in files.items() for bit in range(8 * len(data))]
    draw = random.Random(200)
    small = [place for place in bits if place[0].suffix == ".json"]
    for path, bit in draw.sample(bits, 120) + draw.sample(small, 80):  # most of all bits are those of the moments
        forged = bytearray(files[path])
        forged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(forged)
        with pytest.raises(CheckpointError, match=LAST):
            load(last)
        path.write_bytes(files[path])
    assert load(last).step == UPDATES


@pytest.mark.fault("C4")
@pytest.mark.parametrize("content", [None, b"", b"step-00000099", b"\xff\xfe", b"../../x"])
def test_pointers_that_point_nowhere(project: Path, run: Path, finished: Path, cli: Cli, content: bytes | None) -> None:
    for name in ("latest", "best"):
        (run / name).unlink()
        if content is not None:
            (run / name).write_bytes(content)
    outcome = translate(cli, run)
    assert outcome.code == 0 and "names no checkpoint; taking the newest" in outcome.err, outcome
    outcome = cli(*train_arguments(project, run, f"data.cache={project / '.cache'}"))
    assert outcome.code == 0 and "names no checkpoint; taking the newest" in outcome.err, outcome
    assert (run / "latest").read_bytes() == (finished / "latest").read_bytes()
    assert digests(run) == digests(finished)


@pytest.mark.fault("C15")
def test_no_good_checkpoint_is_no_fresh_start(project: Path, run: Path, cli: Cli) -> None:
    there = steps(run)
    for path in (run / "checkpoints").glob("step-*/model.safetensors"):
        path.write_bytes(b"")
    before = (run / "metrics.jsonl").read_bytes()
    outcome = cli(*train_arguments(project, run))
    assert_error(outcome, 4, "no checkpoint can be used", *(f"step-{step:08d}/model.safetensors" for step in there))
    assert (run / "metrics.jsonl").read_bytes() == before


# --- pickles (C5) -----------------------------------------------------------------------------------------------------


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def pickles(marker: Path) -> dict[str, bytes]:
    """The forms in which torch and others write them."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Payload(marker), protocol=2))
        file.writestr("archive/version", "3\n")
    return {
        "text": pickle.dumps(Payload(marker), protocol=0),
        "binary": pickle.dumps(Payload(marker), protocol=4),
        "torch": archive.getvalue(),
    }


@pytest.mark.fault("C5")
@pytest.mark.parametrize("form", ["text", "binary", "torch"])
def test_pickles_run_nothing(
    project: Path, finished: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """In the place of every file of a run, read by every command that reads it; also with torch told to trust."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "marker"
    payload = pickles(marker)[form]
    names = [path.relative_to(finished) for path in sorted(finished.rglob("*")) if path.is_file()]
    assert len(names) > 10
    for name in names:
        if name.parts[0] == "checkpoints" and name.parts[1] != LAST:
            continue
        run = Path(shutil.copytree(finished, tmp_path / "run"))
        (run / name).write_bytes(payload)
        codes = {
            translate(cli, run).code,
            cli("eval", "--model", run, "--checkpoint", "latest").code,
            cli(*train_arguments(project, run, f"data.cache={project / '.cache'}")).code,
        }
        assert codes <= {0, 2, 4}, (name, codes)
        assert codes != {0} or name.name in ("LOCK", "metrics.jsonl", "latest", "best"), name
        assert not marker.exists(), name
        shutil.rmtree(run)
    pickle.loads(pickles(marker)["binary"])  # noqa: S301 - the payload does what the test looks for
    assert marker.exists()


@pytest.mark.fault("C5")
@pytest.mark.parametrize("form", ["binary", "torch"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_pickle_with_the_right_checksum_is_called_one(
    project: Path, run: Path, last: Path, tmp_path: Path, cli: Cli, form: str, name: str
) -> None:
    """The manifest agrees with it, as an attacker would see to."""
    marker = tmp_path / "marker"
    rewrite(last, name, pickles(marker)[form])
    said = f"{LAST}/{name}: not an s2s model (looks like a PyTorch pickle); s2s does not load pickles"
    outcome = cli(*train_arguments(project, run, f"data.cache={project / '.cache'}"))
    assert outcome.code == 0 and f"passing over {said}" in outcome.err
    assert not marker.exists()


# --- other tensors, other states (C7, C9, C11, C12) -------------------------------------------------------------------

Forge = Callable[[dict[str, Tensor], str], None]


def drop(tensors: dict[str, Tensor], name: str) -> None:
    """One is missing."""
    del tensors[name]


def add(tensors: dict[str, Tensor], name: str) -> None:
    """One is too many."""
    tensors[f"{name}.more"] = torch.zeros(2)


def turn(tensors: dict[str, Tensor], name: str) -> None:
    """One has its transpose's shape."""
    tensors[name] = tensors[name].T.contiguous()


def half(tensors: dict[str, Tensor], name: str) -> None:
    """One is of another type."""
    tensors[name] = tensors[name].half()


@pytest.mark.fault("C9")
@pytest.mark.parametrize(
    ("forge", "words"),
    [
        (drop, "{name} is missing (float32 {shape})"),
        (add, "{name}.more is not expected (float32 [2])"),
        (turn, "{name} is float32 {turned}, expected float32 {shape}"),
        (half, "{name} is float16 {shape}, expected float32 {shape}"),
    ],
)
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_other_tensors_are_named(
    project: Path, run: Path, last: Path, cli: Cli, forge: Forge, words: str, file: str
) -> None:
    """With both shapes; the optimizer's by training, which alone reads it."""
    tensors = safetensors.torch.load((last / file).read_bytes())
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 2 and tensor.shape[0] != tensor.shape[1])
    shape = list(tensors[name].shape)
    forge(tensors, name)
    rewrite(last, file, safetensors.torch.save(tensors))
    expected = words.format(name=name, shape=shape, turned=shape[::-1])
    assert_error(cli(*train_arguments(project, run, f"data.cache={project / '.cache'}")), 4, expected)
    outcome = translate(cli, run)
    if file == "model.safetensors":
        assert_error(outcome, 4, expected)
    else:
        assert outcome.code == 0


@pytest.mark.fault("C9")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_numbers(run: Path, last: Path, cli: Cli, bad: float) -> None:
    tensors = safetensors.torch.load((last / "model.safetensors").read_bytes())
    name = sorted(tensors)[3]
    tensors[name].view(-1)[-1] = bad
    rewrite(last, "model.safetensors", safetensors.torch.save(tensors))
    assert_error(translate(cli, run), 4, f"model contains non-finite values in {name}")


@pytest.mark.fault("C7")
def test_a_later_format(project: Path, run: Path, last: Path, cli: Cli) -> None:
    for step in steps(run):
        directory = run / "checkpoints" / f"step-{step:08d}"
        state = json.loads((directory / "state.json").read_text())
        rewrite_state(directory, state | {"format": 4, "s2s": "3.1.0"})
    for outcome in (translate(cli, run), cli(*train_arguments(project, run))):
        assert_error(outcome, 4, "written by s2s 3.1.0 (format 4); this is ", "(format 1): upgrade")


@pytest.mark.fault("C11")
@pytest.mark.parametrize(
    ("field", "value"),
    [("update", -1), ("update", "40"), ("update", 1e308), ("update", True), ("position", None), ("epoch", 2.5),
     ("seconds", "long"), ("best", "good"), ("skipped", [])],
)  # fmt: skip
def test_a_state_that_cannot_be(project: Path, run: Path, last: Path, cli: Cli, field: str, value: object) -> None:
    state = json.loads((last / "state.json").read_text())
    state["training"][field] = value
    rewrite_state(last, state)
    outcome = cli(*train_arguments(project, run, f"data.cache={project / '.cache'}"))
    assert_error(outcome, 4, LAST, f"{field} should be ")


@pytest.mark.fault("C11")
@pytest.mark.parametrize("text", ['{"a":' * 1000 + "1" + "}" * 1000, '{"format": NaN}', '{"step": 1e999}', "[]", "1"])
def test_a_state_that_is_no_state(project: Path, run: Path, last: Path, finished: Path, cli: Cli, text: str) -> None:
    rewrite(last, "state.json", text.encode())
    assert_error(translate(cli, run), 4, f"{LAST}/state.json: not ")
    outcome = cli(*train_arguments(project, run, f"data.cache={project / '.cache'}"))
    assert outcome.code == 0 and f"passing over {LAST}/state.json: not " in outcome.err
    assert digests(run) == digests(finished)


@pytest.mark.fault("C12", "R10")
def test_a_checkpoint_of_another_machine(project: Path, run: Path, last: Path, cli: Cli) -> None:
    """Trained on a GPU in bf16 with other libraries: it goes on here, and everything that differs is named."""
    state = json.loads((last / "state.json").read_text())
    state["torch"], state["numpy"] = "9.9.9+cu999", "9.9.8"
    state["config"]["training"] |= {"device": "cuda", "precision": "bf16"}
    rewrite_state(last, state)
    more = f"training.max_updates={UPDATES + 1}"
    outcome = cli(*train_arguments(project, run, more, f"data.cache={project / '.cache'}"))
    assert outcome.code == 0, outcome
    settings = ("training.device: cuda -> cpu", "training.precision: bf16 -> float32")
    for what in ("torch: 9.9.9+cu999 -> ", "numpy: 9.9.8 -> ", *settings):
        line = next(line for line in outcome.err.splitlines() if f"s2s: warning: {what}" in line)
        assert line.endswith("the run is no longer the same to the bit")
    assert steps(run)[-1] == UPDATES + 1


# --- where it lies (C13) ----------------------------------------------------------------------------------------------


@pytest.mark.fault("C13")
def test_a_model_on_a_disk_that_cannot_be_written(finished: Path, tmp_path: Path) -> None:
    """Mounted read-only from elsewhere, and through a link."""
    (tmp_path / "mounted").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mounted" / finished.name)
    script = 'mount --bind "$1" "$2" && mount -o remount,ro,bind "$2" && shift 2 && exec "$@"'
    inside = ["unshare", "--mount", "sh", "-c", script, "sh", str(finished.parent), str(tmp_path / "mounted")]
    if not shutil.which("unshare") or subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    line = [*inside, *COMMAND, "translate", "--model", str(tmp_path / "link")]
    outcome = subprocess.run(line, input=b"The dog.\n", capture_output=True, timeout=120, check=False)
    assert (outcome.returncode, outcome.stdout.count(b"\n")) == (0, 1), outcome
    again = [*inside, sys.executable, "-c", f"open({str(tmp_path / 'link' / 'x')!r}, 'w')"]
    assert b"Read-only file system" in subprocess.run(again, capture_output=True, check=False).stderr
