"""Any damage to a checkpoint or a vocabulary is found; what was forged to fit its manifest is still harmless."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import fuzzed
from hypothesis import strategies as st

from s2s.checkpoint import Checkpoints, Snapshot, load, load_model
from s2s.data import tokenizer
from s2s.data.tokenizer import SentencePieceSettings, WhitespaceSettings
from s2s.errors import CheckpointError, printable

CHECKPOINT = ("model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json", "MANIFEST.json")
SNIPPETS = [
    b"", b"\0", b"\xff" * 8, b"\x80\x04\x95", b"PK\x03\x04", b"cos\nsystem\n", b"{", b"}", b"[" * 100, b'"', b",",
    b"null", b"true", b"NaN", b"1e999", b"-1", b"9" * 30, b"9" * 5000, b'"step": 7,', b'"../../x"', b"/etc/hostname",
    b"\\u0000", b"\\ud800", b"F16", b"F64", b"[0,4]", b"[4,0]", b"[18446744073709551615]", b"data_offsets", b"\x1b[31m",
    b"\n",
]  # fmt: skip
EDITS = st.lists(
    st.tuples(st.integers(0, 4000), st.integers(0, 40), st.sampled_from(SNIPPETS) | st.binary(max_size=4)),
    min_size=1,
    max_size=3,
)
"""(place, bytes taken out, bytes put in)"""


def edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """The bytes after these edits, one after the other."""
    for place, length, snippet in edits:
        start = place % (len(data) + 1)
        data = data[:start] + snippet + data[start + length :]
    return data


def flipped(data: bytes, bit: int) -> bytes:
    """The bytes with one bit the other way round."""
    place, mask = bit // 8 % len(data), 1 << bit % 8
    return data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]


Damage = Callable[[bytes], bytes]
DAMAGE: st.SearchStrategy[Damage] = st.one_of(
    EDITS.map(lambda edits: lambda data: edited(data, edits)),
    st.integers(0, 4000).map(lambda end: lambda data: data[: end % len(data)]),
    st.integers(0, 32000).map(lambda bit: lambda data: flipped(data, bit)),
    st.binary(max_size=40).map(lambda other: lambda data: other),
)


# --- checkpoints ------------------------------------------------------------------------------------------------------


@cache
def saved(folder: Path) -> dict[str, bytes]:
    """The files of a small checkpoint with everything that one can have, saved in this folder."""
    model = {"encoder.weight": torch.arange(12.0).view(3, 4), "decoder.bias": torch.ones(2), "count": torch.tensor(3)}
    state = {
        "training": {"update": 7, "best": 0.5},
        "config": {"seed": 1, "names": ["no", None]},
        "tokenizer": "0" * 64,
    }
    snapshot = Snapshot(model, {"adam.exp_avg": torch.ones(2)}, state, average=model)
    path = Checkpoints(folder, "mine", 1).save(7, snapshot)
    return {file.name: file.read_bytes() for file in path.iterdir()}


def sealed(files: dict[str, bytes], name: str) -> bytes:
    """A manifest that vouches for the file of this name as it is now."""
    manifest = json.loads(files["MANIFEST.json"])
    data = files[name]
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return json.dumps(manifest).encode()


def put(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "checkpoints" / "step-00000007"
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def assert_refusal(error: CheckpointError) -> None:
    """One line, fit for a terminal, that does not tell anyone to load a pickle."""
    assert error.code == 4
    assert str(error) == printable(error)
    assert "weights_only" not in str(error)


@pytest.mark.fault("C1", "C2", "C5")
@fuzzed(st.sampled_from(CHECKPOINT), DAMAGE)
def test_no_damage_passes(folder: Path, name: str, damage: Damage) -> None:
    """Whatever differs from what was saved is refused, by the name of the file that differs."""
    original = saved(folder)
    damaged = damage(original[name])
    path = put(folder, original | {name: damaged})
    try:
        assert load(path).step == 7
    except CheckpointError as error:
        assert damaged != original[name]
        assert_refusal(error)
        assert error.where == f"step-00000007/{name}" or name == "MANIFEST.json"
    else:
        assert damaged == original[name] or (
            name == "MANIFEST.json" and json.loads(damaged)["files"] == json.loads(original[name])["files"]
        )


@pytest.mark.fault("C3", "C9", "C10", "C11", "X1")
@fuzzed(st.sampled_from(CHECKPOINT[:-1]), DAMAGE)
def test_forgeries_are_harmless(folder: Path, name: str, damage: Damage) -> None:
    """Under a manifest that fits them, damaged files reach the parsers: tensors and a checked state, or a refusal."""
    original = saved(folder)
    files = original | {name: damage(original[name])}
    path = put(folder, files | {"MANIFEST.json": sealed(files, name)})
    try:
        loaded = load(path)
        model = load_model(path)
    except CheckpointError as error:
        assert_refusal(error)
        return
    assert model.step == loaded.step == loaded.snapshot.state["step"] == 7
    assert all(isinstance(tensor, torch.Tensor) for tensor in loaded.snapshot.model.values())
    assert all(tensor.isfinite().all() for tensor in model.snapshot.model.values())
    json.dumps(loaded.snapshot.state, allow_nan=False)


@pytest.mark.fault("C4")
@fuzzed(st.sampled_from(["latest", "best"]), st.binary(max_size=30) | EDITS.map(lambda edits: edited(b"step-7", edits)))
def test_any_pointer(folder: Path, name: str, data: bytes) -> None:
    """The checkpoint is found whatever `latest` and `best` say."""
    put(folder, saved(folder))
    (folder / name).write_bytes(data)
    said: list[str] = []
    assert load_model(folder, name, said.append).step == 7
    assert len(said) <= 1


# --- vocabularies -----------------------------------------------------------------------------------------------------

PAIRS = [("The old dog sees a man .", "Der alte Hund sieht einen Mann .")]


@cache
def vocabulary(folder: Path, kind: str) -> dict[str, bytes]:
    """The files of a vocabulary, saved in this folder."""
    settings = WhitespaceSettings() if kind == "vocab" else SentencePieceSettings(vocabulary=40)
    tokenizer.save(tokenizer.train(settings, PAIRS, lambda _: None), folder / kind)
    return {file.name: file.read_bytes() for file in (folder / kind).iterdir()}


@pytest.mark.fault("C8", "X1")
@fuzzed(st.sampled_from(["vocab", "model"]), st.sampled_from(["tokenizer.json", "", "forged"]), DAMAGE)
def test_vocabularies(folder: Path, kind: str, which: str, damage: Damage) -> None:
    """A damaged file is refused; one forged with its hash gives a vocabulary that works, or a refusal."""
    original = vocabulary(folder, kind)
    name = "tokenizer.json" if which == "tokenizer.json" else f"joint.{kind}"
    files = original | {name: damage(original[name])}
    if which == "forged":
        description: dict[str, Any] = json.loads(files["tokenizer.json"])
        description["sha256"]["joint"] = hashlib.sha256(files[name]).hexdigest()
        files["tokenizer.json"] = json.dumps(description).encode()
    for each, data in files.items():
        (folder / kind / each).write_bytes(data)
    try:
        both = tokenizer.load(folder / kind)
    except CheckpointError as error:
        assert_refusal(error)
        return
    assert which == "forged" or files[f"joint.{kind}"] == original[f"joint.{kind}"]
    ids = both.source.encode("The old dog \u05d0 .")
    assert all(0 <= index < both.source.size for index in ids)
    both.target.decode(range(both.target.size))
