"""Checkpoints under every fault: truncation, flipped bits, forged files, full disks, crashes at every system call."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import pickle
import random
import re
import shutil
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from s2s import checkpoint
from s2s.checkpoint import Checkpoints, RunLock, SaveFailed, Snapshot, average, check_tensors, load, load_model, require
from s2s.errors import CheckpointError, RunInUse, SystemRefused

FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"]


def snapshot(step: int = 7) -> Snapshot:
    """Small tensors whose values tell the step."""
    model = {
        "encoder.weight": torch.arange(12.0).reshape(3, 4) + step,
        "decoder.out.weight": torch.full((2, 5), step * 1.0),
    }
    return Snapshot(model, {"encoder.weight.mean": torch.full((3, 4), step / 2)}, {"epoch": 2, "position": step * 10})


def saved(run: Path, *steps: int, run_id: str = "mine", keep_last: int = 100) -> Checkpoints:
    run.mkdir(exist_ok=True)
    checkpoints = Checkpoints(run, run_id, keep_last)
    for step in steps:
        checkpoints.save(step, snapshot(step))
    return checkpoints


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def newest(run: Path) -> tuple[int | None, list[str]]:
    """What a new process would resume from, and what it says about it."""
    said: list[str] = []
    loaded = Checkpoints(run, "mine", 1).load_newest(said.append)
    return (loaded.step if loaded else None), said


def rewrite(directory: Path, name: str, data: bytes) -> None:
    """Put a forged file there together with a manifest that agrees with it."""
    (directory / name).write_bytes(data)
    manifest = json.loads((directory / "MANIFEST.json").read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (directory / "MANIFEST.json").write_text(json.dumps(manifest))


def edit_state(directory: Path, **fields: Any) -> None:
    state = json.loads((directory / "state.json").read_text())
    rewrite(directory, "state.json", json.dumps({**state, **fields}).encode())


def safetensors_bytes(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("original") / "run"
    saved(run, 7, 14)
    return run


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A run of its own with steps 7 and 14."""
    return shutil.copytree(original, tmp_path / "run")


@pytest.fixture
def umask() -> Iterator[Callable[[int], None]]:
    before = os.umask(0o022)
    yield lambda mask: (os.umask(mask), None)[1]
    os.umask(before)


# ---------------------------------------------------------------------------------------------- saving and loading


def test_round_trip_keeps_types_shapes_and_values(tmp_path: Path) -> None:
    whole = torch.randn(6, 4)
    model = {
        "view": whole[:3],
        "transposed": whole.t(),
        "same": whole,
        "half": torch.randn(3).bfloat16(),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
        "gradient": torch.nn.Parameter(torch.ones(2)),
    }
    state = {"epoch": 3, "nested": {"list": [1, 2.5, None, "ü\u2028"]}}
    path = Checkpoints(tmp_path, "r", 1).save(5, Snapshot(model, {}, state, average={"view": whole[3:]}))
    loaded = load(path)
    assert loaded.step == 5
    assert loaded.snapshot.optimizer == {}
    assert loaded.snapshot.model.keys() == model.keys()
    for name, tensor in model.items():
        assert loaded.snapshot.model[name].dtype == tensor.dtype
        assert torch.equal(loaded.snapshot.model[name], tensor), name
    assert loaded.snapshot.average is not None
    assert torch.equal(loaded.snapshot.average["view"], whole[3:])
    assert {name: loaded.snapshot.state[name] for name in state} == state
    assert loaded.snapshot.state["run_id"] == "r"


def test_layout_and_manifest(run: Path) -> None:
    directory = run / "checkpoints" / "step-00000014"
    assert names(run) == ["step-00000007", "step-00000014"]
    assert sorted(path.name for path in directory.iterdir()) == sorted(FILES)
    assert (run / "latest").read_text() == "step-00000014"
    assert not (run / "best").exists()
    listed = json.loads((directory / "MANIFEST.json").read_text())["files"]
    assert sorted(listed) == sorted(FILES[:3])
    for name, entry in listed.items():
        data = (directory / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.fault("D6")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_usual_permissions(tmp_path: Path, umask: Callable[[int], None], mask: int) -> None:
    umask(mask)
    path = Checkpoints(tmp_path, "r", 1).save(1, snapshot(), is_best=True)
    for file in [*path.iterdir(), tmp_path / "latest", tmp_path / "best"]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask
    for directory in (path, path.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o777 & ~mask


@pytest.mark.fault("R12")
def test_order_of_writes_syncs_and_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def short(path: object) -> str:
        path = str(path).removeprefix(str(tmp_path)).replace(f"-{os.getpid()}", "-PID")
        return re.sub("-[0-9a-f]{16}$", "-DRAWN", path)

    def record_fsync(descriptor: int) -> None:
        calls.append("fsync " + short(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def record_rename(source: object, target: object) -> None:
        calls.append(f"rename {short(source)} {Path(str(target)).name}")
        rename(str(source), str(target))

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    Checkpoints(tmp_path, "r", 1).save(3, snapshot(), is_best=True)
    temporary = "/checkpoints/.tmp-step-00000003-PID"
    assert calls == [
        *[f"fsync {temporary}/{name}" for name in FILES],
        f"fsync {temporary}",
        f"rename {temporary} step-00000003",
        "fsync /checkpoints",
        "fsync /.tmp-latest-DRAWN",
        "rename /.tmp-latest-DRAWN latest",
        "fsync ",
        "fsync /.tmp-best-DRAWN",
        "rename /.tmp-best-DRAWN best",
        "fsync ",
    ]


def test_two_containers_with_one_process_number_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, seen = os.rename, list[str]()

    def written_by_another_too(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        checkpoint.replace_file(target, b"theirs")
        seen.append(target.read_text())
        rename(source, target)

    monkeypatch.setattr(os, "rename", written_by_another_too)
    checkpoint.replace_file(tmp_path / "shared", b"ours")
    assert seen == ["theirs"]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"shared": "ours"}


@pytest.mark.fault("D9")
@pytest.mark.parametrize("name", ["with space", "new\nline", b"not-\xff-utf8", "[brackets]*"])
def test_strange_directory_names(tmp_path: Path, name: str | bytes) -> None:
    run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + os.fsencode(name)))
    saved(run, 7, keep_last=1).save(14, snapshot(14))
    assert newest(run) == (14, [])
    with pytest.raises(CheckpointError, match="no checkpoint 'step-99'") as caught:
        load_model(run, "step-99")
    assert "\n" not in str(caught.value)


@pytest.mark.fault("D9", "C13")
def test_symbolic_links_and_relative_names(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    assert newest(Path("link")) == (14, [])
    Checkpoints(Path("link"), "mine", 5).save(21, snapshot(21))
    assert load_model(Path("link"), "latest").step == 21
    (tmp_path / "model").symlink_to(run / "checkpoints" / "step-00000007")
    assert load_model(Path("model")).step == 7
    monkeypatch.chdir(run / "checkpoints" / "step-00000014")
    assert load_model(Path()).step == 14


# ---------------------------------------------------------------------------------------------- broken files


@pytest.mark.fault("C1")
@pytest.mark.parametrize("name", FILES)
def test_truncated_file(run: Path, name: str) -> None:
    file = run / "checkpoints" / "step-00000014" / name
    data = file.read_bytes()
    for length in (0, 1, 8, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:length])
        expected = (
            f"step-00000014/{name}: not valid JSON"
            if name == "MANIFEST.json"
            else f"step-00000014/{name}: {length} bytes, manifest says {len(data)}: truncated"
        )
        step, said = newest(run)
        assert step == 7
        assert len(said) == 1 and expected in said[0]
        (run / "latest").write_text("step-00000014")
        with pytest.raises(CheckpointError, match=re.escape(expected)):
            load_model(run, "latest")


@pytest.mark.fault("C2")
@pytest.mark.parametrize("name", FILES)
def test_flipped_bit(run: Path, name: str) -> None:
    file = run / "checkpoints" / "step-00000014" / name
    data = file.read_bytes()
    draw = random.Random(name)
    for _ in range(20):
        forged = bytearray(data)
        forged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(forged)
        expected = "step-00000014" if name == "MANIFEST.json" else f"step-00000014/{name}: checksum mismatch"
        with pytest.raises(CheckpointError, match=expected):
            load(file.parent)
        with pytest.raises(CheckpointError, match=expected):
            load_model(run, "step-14")
    assert newest(run)[0] == 7


@pytest.mark.fault("C1", "C3")
def test_longer_and_missing_files(run: Path) -> None:
    directory = run / "checkpoints" / "step-00000014"
    with (directory / "state.json").open("ab") as file:
        file.write(b" ")
    with pytest.raises(CheckpointError, match=r"state.json: \d+ bytes, manifest says \d+: not the file that was saved"):
        load(directory)
    (directory / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000014/state.json: missing: incomplete checkpoint"):
        load(directory)
    (directory / "MANIFEST.json").unlink()
    step, said = newest(run)
    assert step == 7
    assert "step-00000014/MANIFEST.json: missing: incomplete checkpoint" in said[0]


def test_a_pipe_does_not_make_the_reader_wait(run: Path) -> None:
    file = run / "checkpoints" / "step-00000014" / "state.json"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CheckpointError, match="not a regular file"):
        load(file.parent)


@pytest.mark.fault("C3", "X3")
@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "..", ".", "", "a\\b", "a/b", "nul\0"])
def test_manifest_names_stay_inside(run: Path, name: str) -> None:
    file = run / "checkpoints" / "step-00000014" / "MANIFEST.json"
    manifest = json.loads(file.read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": ""}
    file.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="is not the name of a file in this directory"):
        load(file.parent)


@pytest.mark.fault("C3")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not json", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "files is missing"),
        ('{"files": []}', "files should be a map, not \\[\\]"),
        ('{"files": {}}', "does not list model.safetensors: incomplete"),
        ('{"files": {"a": 3}}', "'?a'? should have bytes"),
        ('{"files": {"a": {"bytes": -1, "sha256": ""}}}', "bytes should be at least 0"),
        ('{"files": {"a": {"bytes": true, "sha256": ""}}}', "bytes should be an integer, not True"),
        ('{"files": {}, "files": {}}', "'files' is there twice"),
        ('{"files": NaN}', "NaN is not a finite number"),
        ('{"files": 1e999}', "1e999 is not a finite number"),
        ('{"files": ' + "[" * 40 + "]" * 40 + "}", "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"files": ' + "9" * 5000 + "}", "not valid JSON"),
        (" " * (9 << 20), "more than 8388608 bytes"),
    ],
)
def test_malformed_manifest(run: Path, text: str, reason: str) -> None:
    file = run / "checkpoints" / "step-00000014" / "MANIFEST.json"
    file.write_text(text)
    with pytest.raises(CheckpointError, match=reason):
        load(file.parent)
    assert newest(run)[0] == 7


@pytest.mark.fault("C7", "C11")
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"format": 4, "s2s": "3.1"}, r"written by s2s 3\.1 \(format 4\); this is [\d.]+ \(format 1\): upgrade"),
        ({"format": 0}, "format should be at least 1, not 0"),
        ({"step": -1}, "step should be at least 0, not -1"),
        ({"step": 1e308}, r"step should be an integer, not 1e\+308"),
        ({"step": "14"}, "step should be an integer, not '14'"),
        ({"step": True}, "step should be an integer, not True"),
        ({"step": 7}, "step is 7, in a directory named step-00000014"),
        ({"run_id": None}, "run_id should be a string, not None"),
        ({"torch": 3}, "torch should be a string, not 3"),
        ({"loss": float("nan")}, "NaN is not a finite number"),
    ],
)
def test_state_is_checked(run: Path, fields: dict[str, Any], reason: str) -> None:
    directory = run / "checkpoints" / "step-00000014"
    edit_state(directory, **fields)
    with pytest.raises(CheckpointError, match=f"^step-00000014/state.json: .*{reason}"):
        load(directory)


@pytest.mark.fault("C11")
def test_deeply_nested_state_is_refused(run: Path) -> None:
    directory = run / "checkpoints" / "step-00000014"
    rewrite(directory, "state.json", b'{"step":' + b"[" * 1000 + b"]" * 1000 + b"}")
    with pytest.raises(CheckpointError, match="nested too deeply"):
        load(directory)


@pytest.mark.parametrize("name", ["format", "s2s", "torch", "python", "run_id", "step"])
def test_state_without_a_field(run: Path, name: str) -> None:
    directory = run / "checkpoints" / "step-00000014"
    state = json.loads((directory / "state.json").read_text())
    del state[name]
    rewrite(directory, "state.json", json.dumps(state).encode())
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load(directory)


def test_require() -> None:
    state = {"epoch": 3, "loss": 2, "word": "x"}
    assert require(state, "epoch", int) == 3
    assert isinstance(require(state, "loss", float), float)
    with pytest.raises(CheckpointError, match=r"state.json: position is missing") as caught:
        require(state, "position", int)
    assert caught.value.code == 4
    with pytest.raises(CheckpointError, match="word should be a number, not 'x'"):
        require(state, "word", float)
    with pytest.raises(CheckpointError, match="epoch should be at least 4, not 3"):
        require(state, "epoch", int, least=4)


ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@pytest.mark.fault("C10")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (struct.pack("<Q", 1 << 40) + b"{}", "its header would have 1099511627776 bytes"),
        (b"", "not a safetensors file"),
        (safetensors_bytes(f'{{"a":{ENTRY},"a":{ENTRY}}}'.encode(), bytes(4)), "'a' is there twice"),
        (safetensors_bytes(f'{{"a":{ENTRY},"b":{ENTRY}}}'.encode(), bytes(4)), "not a safetensors file"),
        (
            safetensors_bytes(
                b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,4]}}', bytes(4)
            ),
            "",
        ),
        (safetensors_bytes(f'{{"a":{ENTRY}}}'.encode(), bytes(5)), "not a safetensors file"),
        (safetensors_bytes(f'{{"a":{ENTRY.replace("F32", "F31")}}}'.encode(), bytes(4)), "not a safetensors file"),
        (safetensors_bytes(b"[" * 5000), "nested too deeply"),
        (safetensors_bytes(b"[]"), "not a JSON object"),
        (safetensors_bytes(b"{" + b'"a":' + b" " * (64 << 20) + b"}"), "its header would have 67108870 bytes"),
    ],
    ids=["huge", "empty", "twice", "overlap", "overflow", "trailing", "dtype", "deep", "list", "long"],
)
def test_forged_tensor_file(run: Path, data: bytes, reason: str) -> None:
    directory = run / "checkpoints" / "step-00000014"
    rewrite(directory, "model.safetensors", data)
    start = time.process_time()
    with pytest.raises(CheckpointError, match=f"^step-00000014/model.safetensors: .*{reason}"):
        load(directory)
    assert time.process_time() - start < 1


class Payload:
    """Touches a marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def pickled(marker: Path, path: Path, form: str) -> bytes:
    if form == "pickle":
        path.write_bytes(pickle.dumps(Payload(marker)))
    else:
        torch.save({"payload": Payload(marker)}, path, _use_new_zipfile_serialization=form == "zip")
    return path.read_bytes()


PICKLE = "not an s2s model (looks like a PyTorch pickle); s2s does not load pickles"


@pytest.mark.fault("C5")
@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_pickles_are_refused_unread(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "marker"
    data = pickled(marker, tmp_path / "model.pt", form)
    (tmp_path / "model").write_bytes(data)
    directory = run / "checkpoints" / "step-00000014"
    for path in (tmp_path / "model.pt", tmp_path / "model"):
        with pytest.raises(CheckpointError, match=re.escape(PICKLE)):
            load_model(path)
    for name in ("model.safetensors", "optimizer.safetensors"):
        before = (directory / name).read_bytes()
        (directory / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=re.escape(f"step-00000014/{name}: {PICKLE}")):
            load(directory)
        rewrite(directory, name, data)
        with pytest.raises(CheckpointError, match=re.escape(PICKLE)):
            load(directory)
        rewrite(directory, name, before)
    rewrite(directory, "state.json", data)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        load(directory)
    assert not marker.exists()


def test_the_payload_would_have_worked(tmp_path: Path) -> None:
    pickle.loads(pickled(tmp_path / "marker", tmp_path / "p", "pickle"))  # noqa: S301
    assert (tmp_path / "marker").exists()


@pytest.mark.fault("C5")
def test_other_files_are_not_models(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"notes\.txt: not an s2s model; give the directory of a run"):
        load_model(tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match="no such directory"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no checkpoints here"):
        load_model(tmp_path)


@pytest.mark.fault("C14")
def test_deleted_while_being_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = run / "checkpoints" / "step-00000014"
    digest = hashlib.file_digest

    def delete_first(file: Any, name: str) -> Any:
        shutil.rmtree(directory, ignore_errors=True)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", delete_first)
    assert torch.equal(load(directory).snapshot.model["decoder.out.weight"], torch.full((2, 5), 14.0))


# ---------------------------------------------------------------------------------------------- tensors


@pytest.mark.fault("C9")
def test_check_tensors_names_what_differs() -> None:
    expected = {"a": torch.zeros(5, 4), "b": torch.zeros(2), "c": torch.zeros(3)}
    check_tensors(expected, {name: tensor + 1 for name, tensor in expected.items()}, "here")
    loaded = {"a": torch.zeros(3, 4), "b": torch.zeros(2, dtype=torch.float16), "d": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        check_tensors(expected, loaded, "step-00000014")
    text = str(caught.value)
    assert text.startswith("step-00000014: ")
    for part in (
        "a is float32 [3, 4], expected float32 [5, 4]",
        "b is float16 [2], expected float32 [2]",
        "c is missing (float32 [3])",
        "d is not expected (float32 [1])",
    ):
        assert part in text
    with pytest.raises(CheckpointError, match=", and 95 more"):
        check_tensors({str(n): torch.zeros(1) for n in range(100)}, {}, "")


@pytest.mark.fault("C9")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_model_that_is_not_finite_is_not_translated_with(tmp_path: Path, bad: float) -> None:
    broken = snapshot()
    broken.model["decoder.out.weight"][1, 2] = bad
    path = Checkpoints(tmp_path, "r", 1).save(7, broken)
    with pytest.raises(CheckpointError, match=r"model contains non-finite values in decoder\.out\.weight"):
        load_model(tmp_path)
    assert load(path).step == 7  # training looks at its own numbers


def test_average() -> None:
    models: list[dict[str, Tensor]] = [
        {"w": torch.tensor([1.0, 2.0]), "h": torch.tensor([1.0]).bfloat16(), "n": torch.tensor(1)},
        {"w": torch.tensor([3.0, 6.0]), "h": torch.tensor([2.0]).bfloat16(), "n": torch.tensor(2)},
        {"w": torch.tensor([5.0, 10.0]), "h": torch.tensor([6.0]).bfloat16(), "n": torch.tensor(5)},
    ]
    mean = average(models)
    assert mean["w"].tolist() == [3.0, 6.0]
    assert mean["h"].dtype == torch.bfloat16 and mean["h"].tolist() == [3.0]
    assert mean["n"].item() == 5
    assert models[0]["w"].tolist() == [1.0, 2.0]
    # 1e8 + 1 - 1e8 is 0 in float32, where 1e8 + 1 is 1e8
    tiny = average({"w": torch.tensor([value])} for value in (1e8, 1.0, -1e8))
    assert tiny["w"].item() == pytest.approx(1 / 3)
    with pytest.raises(CheckpointError, match=r"model 2: .*w is float32 \[3\], expected float32 \[2\]"):
        average([{"w": torch.zeros(2)}, {"w": torch.zeros(3)}])
    with pytest.raises(CheckpointError):
        average([])


def test_average_has_one_model_at_a_time() -> None:
    alive = 0

    class Held(dict[str, Tensor]):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def models() -> Iterator[Held]:
        nonlocal alive
        for number in range(4):
            assert alive == 0
            alive += 1
            yield Held(w=torch.tensor([float(number)]))

    assert average(models())["w"].item() == 1.5


# ---------------------------------------------------------------------------------------------- choosing


@pytest.mark.fault("C4")
@pytest.mark.parametrize("content", [None, b"", b"step-00000099", b"\xff\xfe", b"../../x", b"x" * 1000])
def test_a_wrong_pointer_is_a_warning(run: Path, content: bytes | None) -> None:
    (run / "latest").unlink()
    if content is not None:
        (run / "latest").write_bytes(content)
        (run / "best").write_bytes(content)
    said: list[str] = []
    assert load_model(run, "latest", said.append).step == 14
    assert load_model(run, "best", said.append).step == 14
    assert len(said) == (1 if content is None else 2)  # a run without a best one is nothing to warn of
    step, said = newest(run)
    assert step == 14
    assert len(said) == 1 and "latest: names no checkpoint" in said[0]
    assert (run / "latest").read_text() == "step-00000014"


def test_best_latest_and_by_number(run: Path) -> None:
    checkpoints = Checkpoints(run, "mine", 100)
    checkpoints.save(21, snapshot(21), score=30.0, is_best=True)
    checkpoints.save(28, snapshot(28), score=20.0)
    assert load_model(run).step == 21
    assert load_model(run, "latest").step == 28
    assert load_model(run, "step-7").step == load_model(run / "checkpoints" / "step-00000007").step == 7
    assert load_model(run).snapshot.optimizer == {}
    with pytest.raises(CheckpointError, match=r"there are best, latest, step-00000007, .*, step-00000028"):
        load_model(run, "step-8")
    with pytest.raises(CheckpointError):
        load_model(run, "../x")


def test_translation_prefers_averaged_weights(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "r", 1).save(1, Snapshot({"w": torch.zeros(1)}, {}, {}, {"w": torch.ones(1)}))
    assert load_model(tmp_path).snapshot.model["w"].item() == 1


@pytest.mark.fault("C15")
def test_nothing_and_nothing_valid(tmp_path: Path, run: Path) -> None:
    assert Checkpoints(tmp_path / "new", "mine", 1).load_newest() is None
    for step in (7, 14):
        (run / "checkpoints" / f"step-{step:08d}" / "model.safetensors").write_bytes(b"")
    said: list[str] = []
    with pytest.raises(CheckpointError, match=r"step-00000014/model.*truncated.*step-00000007/model") as caught:
        Checkpoints(run, "mine", 1).load_newest(said.append)
    assert caught.value.code == 4
    assert len(said) == 2


@pytest.mark.fault("D7")
def test_only_checkpoints_of_another_run(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"step-00000014: belongs to another run \(mine, this is other\)"):
        Checkpoints(run, "other", 1).load_newest(lambda _: None)


@pytest.mark.fault("D7")
def test_checkpoints_of_another_run_are_not_translated_with(run: Path) -> None:
    (run / "run.json").write_text('{"id": "mine"}')
    saved(run, 99_999, run_id="foreign")
    (run / "best").unlink(missing_ok=True)
    for which in ("best", "latest"):
        said: list[str] = []
        assert load_model(run, which, said.append).step == 14
        assert "step-00099999: belongs to another run (foreign, this is mine)" in said[0]
    with pytest.raises(CheckpointError, match=r"no checkpoint 'step-99999'"):
        load_model(run, "step-99999", said.append)
    (run / "run.json").write_text("[]")  # then nobody knows whose these are
    assert load_model(run, "step-99999", said.append).step == 99_999


def test_one_checkpoint_is_no_other(run: Path) -> None:
    path = run / "checkpoints" / "step-00000007"
    assert load_model(path).step == load_model(path, "step-7").step == load_model(path, "step-00000007").step == 7
    for which in ("latest", "step-14", "nonsense"):
        with pytest.raises(CheckpointError, match=f"is one checkpoint, and not '{which}'; give the directory of its"):
            load_model(path, which)


# ---------------------------------------------------------------------------------------------- retention


@pytest.mark.fault("D7")
def test_retention_counts_in_numbers_and_spares_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "mine", keep_last=1)
    for step, score in [(900, 10.0), (1000, 30.0), (1100, 20.0), (99_999_900, 5.0), (100_000_100, 6.0)]:
        checkpoints.save(step, snapshot(step), score, is_best=step == 1000)
    assert names(tmp_path) == ["step-00001000", "step-100000100"]
    assert newest(tmp_path)[0] == 100_000_100
    assert (tmp_path / "best").read_text() == "step-00001000"


@pytest.mark.fault("D7")
def test_retention_keeps_several_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "mine", keep_last=1, keep_best=2)
    for step, score in [(1, 10.0), (2, 30.0), (3, 20.0), (4, float("nan")), (5, None), (6, 5.0)]:
        checkpoints.save(step, snapshot(step), score)
    assert names(tmp_path) == ["step-00000002", "step-00000003", "step-00000006"]


@pytest.mark.fault("D7")
def test_retention_spares_another_run_the_resumed_one_and_the_future(run: Path) -> None:
    saved(run, 99_999, run_id="foreign")
    (run / "checkpoints" / "step-00000014" / "model.safetensors").write_bytes(b"")
    said: list[str] = []
    checkpoints = Checkpoints(run, "mine", keep_last=1, warn=said.append)
    loaded = checkpoints.load_newest()
    assert loaded is not None and loaded.step == 7
    assert "belongs to another run (foreign, this is mine)" in said[0]
    assert (run / "latest").read_text() == "step-00000007"
    for step in (8, 9, 10):
        checkpoints.save(step, snapshot(step))
    assert names(run) == ["step-00000007", "step-00000010", "step-00000014", "step-00099999"]
    checkpoints.save(14, snapshot(14))
    checkpoints.save(15, snapshot(15))
    assert names(run) == ["step-00000007", "step-00000015", "step-00099999"]
    with pytest.raises(SaveFailed, match="step-00099999 belongs to another run"):
        checkpoints.save(99_999, snapshot())
    with pytest.raises(CheckpointError):
        load_model(run, "step-14")


@pytest.mark.fault("D7")
def test_broken_checkpoints_do_not_count(run: Path) -> None:
    (run / "checkpoints" / "step-00000014" / "model.safetensors").write_bytes(b"")
    checkpoints = Checkpoints(run, "mine", keep_last=2, warn=lambda _: None)
    checkpoints.load_newest()
    for step in (8, 10, 15):
        checkpoints.save(step, snapshot(step))
    assert names(run) == [f"step-{step:08d}" for step in (7, 10, 14, 15)]


@pytest.mark.fault("D7")
def test_what_was_just_saved_is_kept_whatever_its_number(tmp_path: Path) -> None:
    saved(tmp_path, 20)
    saved(tmp_path, 5, keep_last=1)
    assert names(tmp_path) == ["step-00000005", "step-00000020"]


def test_the_best_is_remembered_across_processes(tmp_path: Path) -> None:
    saved(tmp_path, 1).save(2, snapshot(2), is_best=True)
    Checkpoints(tmp_path, "mine", 100).load_newest()
    (tmp_path / "best").write_text("step-00000001")  # as if killed before the pointer was written
    again = Checkpoints(tmp_path, "mine", 1, keep_best=0)
    again.load_newest()
    assert again.best == 2
    assert (tmp_path / "best").read_text() == "step-00000002"
    again.save(3, snapshot(3))
    third = Checkpoints(tmp_path, "mine", 1, keep_best=0)
    third.load_newest()
    third.save(4, snapshot(4))
    third.save(5, snapshot(5))
    assert names(tmp_path) == ["step-00000002", "step-00000003", "step-00000005"]


@pytest.mark.fault("D8")
def test_failing_deletion_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, "mine", 1, warn=said.append)
    checkpoints.save(1, snapshot(1))
    rmtree = shutil.rmtree

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.EBUSY, "Device or resource busy", str(path / ".nfs0001"))
        rmtree(path, ignore_errors=True)

    monkeypatch.setattr(shutil, "rmtree", busy)
    checkpoints.save(2, snapshot(2))
    assert len(said) == 1 and said[0].endswith(".nfs0001: Device or resource busy")
    monkeypatch.undo()
    assert newest(tmp_path)[0] == 2  # what could not be deleted does not count as a checkpoint
    checkpoints.clean()
    assert names(tmp_path) == ["step-00000002"]


# ---------------------------------------------------------------------------------------------- failing saves


def fail_after(monkeypatch: pytest.MonkeyPatch, code: int, budget: int, times: int = 1_000_000) -> None:
    """Let ``os.write`` fail with this error once ``budget`` bytes are written, at most ``times`` times."""
    write, left = os.write, [budget, times]

    def limited(descriptor: int, data: bytes) -> int:
        if left[0] == 0 and left[1]:
            left[1] -= 1
            raise OSError(code, os.strerror(code))
        if left[1] == 0:
            return write(descriptor, data)
        count = write(descriptor, data[: left[0]])
        left[0] -= count
        return count

    monkeypatch.setattr(os, "write", limited)


@pytest.mark.fault("D1")
@pytest.mark.parametrize("budget", [0, 1, 100, 400, 800, 1200])
def test_full_disk(run: Path, monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    checkpoints = Checkpoints(run, "mine", 1)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    big = snapshot(14)
    big.optimizer["m"] = torch.zeros(775_000)
    for step in (14, 21):
        fail_after(monkeypatch, errno.ENOSPC, budget)
        with pytest.raises(SaveFailed) as caught:
            checkpoints.save(step, big)
        monkeypatch.undo()
        pattern = rf"could not save step {step}: no space left on device \(need 3\.1 MB, [\d.]+ MB free in {run}\)"
        assert re.fullmatch(pattern, str(caught.value))
        assert isinstance(caught.value, SystemRefused)
        assert (caught.value.code, caught.value.errno, caught.value.step) == (6, errno.ENOSPC, step)
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    checkpoints.save(21, big)
    assert newest(run)[0] == 21


@pytest.mark.fault("D1")
def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    path = Checkpoints(tmp_path, "mine", 1).save(7, snapshot(7))
    assert torch.equal(load(path).snapshot.model["encoder.weight"], snapshot(7).model["encoder.weight"])


@pytest.mark.fault("D5")
def test_one_device_error_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, "mine", 1)
    fail_after(monkeypatch, errno.EIO, 300, times=1)
    checkpoints.save(7, snapshot(7))
    monkeypatch.undo()
    assert newest(tmp_path) == (7, [])
    fail_after(monkeypatch, errno.EIO, 300, times=2)
    with pytest.raises(SaveFailed, match="could not save step 14: input/output error"):
        checkpoints.save(14, snapshot(14))
    monkeypatch.undo()
    assert names(tmp_path) == ["step-00000007"]


@pytest.mark.fault("D5")
def test_what_reads_back_differently_is_not_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def corrupt(descriptor: int, data: bytes) -> int:
        return write(descriptor, bytes(data).replace(b"encoder", b"encodes"))

    monkeypatch.setattr(os, "write", corrupt)
    with pytest.raises(SaveFailed, match=r"reads back differently: .*model\.safetensors: checksum mismatch"):
        Checkpoints(run, "mine", 1).save(21, snapshot(21))
    assert names(run) == ["step-00000007", "step-00000014"]


@pytest.mark.fault("D1")
def test_a_failed_replacement_puts_the_old_one_back(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def refuse(source: Any, target: Any) -> None:
        if Path(source).name.startswith(".tmp-step"):
            raise OSError(errno.EACCES, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(SaveFailed, match="permission denied"):
        Checkpoints(run, "mine", 1).save(14, snapshot(99))
    monkeypatch.undo()
    assert names(run) == ["step-00000007", "step-00000014"]
    assert load_model(run, "step-14").snapshot.model["decoder.out.weight"][0, 0] == 14


@pytest.mark.fault("R2")
def test_a_checkpoint_being_replaced_is_found(run: Path) -> None:
    directory = run / "checkpoints"
    (directory / "step-00000014").rename(directory / ".old-step-00000014")
    assert newest(run)[0] == 14
    assert load_model(run, "latest").step == 14
    shutil.copytree(directory / ".old-step-00000014", directory / "step-00000014")
    (directory / "step-00000014" / "model.safetensors").write_bytes(b"")
    step, said = newest(run)
    assert step == 14 and len(said) == 1
    checkpoints = Checkpoints(run, "mine", 100)
    checkpoints.clean()
    assert ".old-step-00000014" in names(run)  # still the only good one
    shutil.rmtree(directory / "step-00000014")
    checkpoints.clean()
    assert names(run) == ["step-00000007", "step-00000014"]
    assert newest(run) == (14, [])


@pytest.mark.fault("X8")
def test_temporaries_do_not_follow_links(run: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (run / ".tmp-latest-1").symlink_to(victim)
    (run / "checkpoints" / ".tmp-x").symlink_to(tmp_path)
    checkpoints = Checkpoints(run, "mine", 100)
    checkpoints.save(21, snapshot(21))
    assert (run / "latest").read_text() == "step-00000021"
    checkpoints.clean()
    assert victim.read_text() == "precious"
    (run / "checkpoints" / f".tmp-step-00000028-{os.getpid()}").symlink_to(tmp_path)
    with pytest.raises(SaveFailed):
        checkpoints.save(28, snapshot(28))
    assert victim.read_text() == "precious"
    assert not (tmp_path / "model.safetensors").exists()
    (tmp_path / "link").symlink_to(tmp_path / "new")
    for path in (victim, tmp_path / "link"):
        with pytest.raises(FileExistsError):
            checkpoint._write_file(path, b"worse")
    assert victim.read_text() == "precious"


# ---------------------------------------------------------------------------------------------- crashes

CRASHES = '''
"""Forks a child for every crash; the parent then looks at what is left, as a new process would."""
import json, os, resource, signal, sys
from pathlib import Path
import torch
from s2s import checkpoint, failpoints
from s2s.checkpoint import Checkpoints, SaveFailed, Snapshot

torch.set_num_threads(1)
base, report = Path(sys.argv[1]), {}

def snapshot(value):
    return Snapshot({"w": torch.full((8,), float(value))}, {"m": torch.full((8,), float(value))}, {})

def child(action):
    """Run it in a fork; True if it was killed, False if it came to its end."""
    process = os.fork()
    if not process:
        status = 3
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, status
    return False

def prepare(run):
    run.mkdir()
    Checkpoints(run, "r", 2).save(7, snapshot(7))
    Checkpoints(run, "r", 2).save(14, snapshot(14), score=1.0, is_best=True)

def look(run, step, case):
    """At least one valid checkpoint, a clean directory after clean(), and the same save succeeds."""
    said = []
    checkpoints = Checkpoints(run, "r", 1, warn=said.append)
    if case.startswith("clean"):
        checkpoints.clean()
    loaded = checkpoints.load_newest()
    value = loaded.snapshot.model["w"][0].item()
    assert loaded.snapshot.optimizer["m"][0].item() == value
    assert (loaded.step, value) in ((14, 14.0), (step, 100.0 + step)), (case, loaded.step, value)
    assert not said, (case, said)
    checkpoints.clean()
    checkpoints.save(step, snapshot(100 + step), score=2.0, is_best=True)
    assert all(path.name.startswith("step-") for path in (run / "checkpoints").iterdir()), case
    assert {path.name for path in run.iterdir()} == {"checkpoints", "latest", "best"}, case
    assert (run / "latest").read_text() == (run / "best").read_text() == f"step-{step:08d}", case
    again = Checkpoints(run, "r", 1, warn=said.append).load_newest()
    assert (again.step, again.snapshot.model["w"][0].item()) == (step, 100.0 + step), case
    assert not said, (case, said)

def at_point(point, step, count):
    def save():
        failpoints._POINTS.update(failpoints._parse(f"{point}:kill9@{count}"))
        Checkpoints(run, "r", 1).save(step, snapshot(100 + step), score=2.0, is_best=True)
    run = base / f"{point}-{step}-{count}"
    prepare(run)
    assert child(save), f"{point} is never passed"
    look(run, step, str(run.name))

def at_call(number, step, first):
    """Die before the number-th system call that changes something."""
    def save():
        left = [number]
        def wrap(name):
            function = getattr(os, name)
            def counted(*arguments, **options):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)
            setattr(os, name, counted)
        for name in ("open", "write", "fsync", "rename", "mkdir", "rmdir", "unlink", "close"):
            wrap(name)
        Checkpoints(run, "r", 1).save(step, snapshot(100 + step), score=2.0, is_best=True)
    run = base / f"call-{number}-{step}-{first}"
    prepare(run)
    killed = child(save)
    look(run, step, f"{first}-{run.name}")
    return killed

points = ["after_mkdir", "after_model", "after_optimizer", "after_state", "after_manifest", "before_rename",
          "after_rename", "after_latest", "in_retention"]
for step in (14, 21):
    for point in points:
        at_point(f"checkpoint.{point}", step, 1)
    for count in range(1, 7):  # four files, latest, best
        at_point("checkpoint.write", step, count)
    for first in ("load", "clean"):
        number = 1
        while at_call(number, step, first):
            number += 1 if first == "load" else 3
        report[f"{step} {first}"] = number

def limited():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    big = snapshot(21)
    big.optimizer["m"] = torch.zeros(10_000)
    try:
        Checkpoints(run, "r", 1).save(21, big)
    except SaveFailed as error:
        (base / "message").write_text(str(error))
run = base / "limited"
prepare(run)
assert not child(limited)
report["message"] = (base / "message").read_text()
report["left"] = sorted(path.name for path in (run / "checkpoints").iterdir())
print(json.dumps(report))
'''


@pytest.mark.fault("R2", "D1")
def test_killed_at_every_point_and_every_system_call(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(checkpoint.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report.pop("left") == ["step-00000007", "step-00000014"]
    assert report.pop("message").startswith("could not save step 21: file too large (need 0.0 MB, ")
    assert all(calls > 20 for calls in report.values()), report


# ---------------------------------------------------------------------------------------------- the lock


@pytest.mark.fault("R11")
def test_the_lock_names_its_holder(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        with pytest.raises(RunInUse, match=rf"in use by pid {os.getpid()} on host \S+ since 2\d\d\d-") as caught:
            RunLock(tmp_path).__enter__()
        assert caught.value.code == 7
    with RunLock(tmp_path):
        pass


@pytest.mark.fault("R11")
def test_a_dead_holder_is_followed(tmp_path: Path) -> None:
    program = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); f.write('pid 1\\x1b[2J'); f.flush(); print(flush=True); time.sleep(60)"  # noqa: E501
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "LOCK")], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            with pytest.raises(RunInUse, match=re.escape(r"in use by pid 1\x1b[2J")):
                RunLock(tmp_path).__enter__()
        finally:
            holder.kill()
    with RunLock(tmp_path):
        assert (tmp_path / "LOCK").read_text().startswith(f"pid {os.getpid()} on host ")
        with (tmp_path / "LOCK").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_run_that_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemRefused, match="Not a directory"):
        RunLock(tmp_path / "file").__enter__()
