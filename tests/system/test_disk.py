"""Disks that are full, slow to forgive or in the way: the training goes on, and what was saved before stays good."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import (
    UPDATES,
    Cli,
    Warm,
    assert_error,
    assert_same_run,
    digests,
    finish,
    losses,
    records,
    start,
    steps,
    train_arguments,
)

from s2s.checkpoint import Checkpoints, SaveFailed
from s2s.run import Run
from s2s.training.trainer import Trainer, Validation

# --- a real full file system ------------------------------------------------------------------------------------------

_ON_A_SMALL_DISK = """
import json, shutil, subprocess, sys
from pathlib import Path

disk, kept, arguments, (first, end) = Path(sys.argv[1]), Path(sys.argv[2]), *map(json.loads, sys.argv[3:5])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=True)

import torch
from s2s import cli
from s2s.checkpoint import Checkpoints

torch.set_num_threads(1)
save, filler = Checkpoints.save, disk / "filler"

def watched(self, step, *rest):
    if step >= end:
        filler.unlink(missing_ok=True)
    elif step >= first:
        with filler.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 10))
            except OSError as error:
                print("filled:", error.strerror, file=sys.stderr)
    return save(self, step, *rest)

Checkpoints.save = watched
code = cli.run(arguments)
there = sorted(path.name for path in (disk / "run" / "checkpoints").iterdir())
print("===", json.dumps({"code": code, "checkpoints": there}), file=sys.stderr)
filler.unlink(missing_ok=True)
shutil.copytree(disk / "run", kept)
"""


class Ended(NamedTuple):
    """A training on a disk of its own: how it ended, what it said, and the checkpoints while the disk was full."""

    code: int
    err: str
    checkpoints: list[str]


@pytest.fixture
def on_a_small_disk(project: Path, tmp_path: Path) -> Callable[..., Ended]:
    """``on_a_small_disk(kept, (14, 21))``: trains on 3 MB that are full from the save of step 14 until that of step 21.

    The run is in ``kept`` afterwards. Skips where no file system can be mounted.
    """
    (tmp_path / "disk").mkdir()
    for options in ([], ["--map-root-user"]):
        inside = ["unshare", *options, "--mount"]
        test = [*inside, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path / "disk")]
        if shutil.which("unshare") and subprocess.run(test, capture_output=True, check=False).returncode == 0:
            break
    else:
        pytest.skip("mounting a file system needs root or user namespaces")

    def train(kept: Path, full: tuple[int, int]) -> Ended:
        arguments = train_arguments(project, tmp_path / "disk" / "run", f"data.cache={project / '.cache'}")
        texts = [str(tmp_path / "disk"), str(kept), json.dumps(arguments), json.dumps(full)]
        line = [*inside, sys.executable, "-c", _ON_A_SMALL_DISK, *texts]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        ended = subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment, check=False)
        assert ended.returncode == 0, ended.stderr
        said, _, report = ended.stderr.partition("=== ")
        return Ended(**json.loads(report.splitlines()[0]), err=said)

    return train


@pytest.mark.fault("D1", "D2")
def test_a_full_disk_in_the_middle(
    project: Path, finished: Path, tmp_path: Path, on_a_small_disk: Callable[..., Ended]
) -> None:
    """Saves fail, a later one finds room; records are lost meanwhile, the training is not."""
    ended = on_a_small_disk(tmp_path / "kept", (14, 21))
    assert ended.code == 0, ended
    assert "filled: No space left on device" in ended.err
    assert "s2s: warning: could not save step 14: no space left on device (need 0.3 MB, 0.0 MB free in " in ended.err
    assert "could not save step 21" not in ended.err
    assert ended.err.count("metrics.jsonl: No space left on device; training goes on") == 1
    assert digests(tmp_path / "kept") == digests(finished)
    known = losses(tmp_path / "kept")
    assert 14 <= len(known) < UPDATES and set(known) < set(losses(finished))


@pytest.mark.fault("D1")
def test_a_full_disk_at_the_end(
    project: Path, finished: Path, tmp_path: Path, cli: Cli, on_a_small_disk: Callable[..., Ended]
) -> None:
    """Exit code 6; the checkpoint before is whole, and the same command with room goes on from it to the same end."""
    kept = tmp_path / "kept"
    ended = on_a_small_disk(kept, (35, UPDATES + 1))
    assert ended.code == 6, ended
    assert all(name.startswith("step-") for name in ended.checkpoints)
    last = ended.checkpoints[-1]
    assert "step-00000028" <= last < "step-00000035"
    error = [line for line in ended.err.splitlines() if line.startswith("s2s: error: ")]
    assert len(error) == 1, ended.err
    assert f"could not save step {UPDATES}: no space left on device" in error[0]
    assert f"last good checkpoint {last}; make room in " in error[0]
    assert cli("translate", "--model", kept, "--checkpoint", "latest", stdin=b"The old dog sees a man.\n").code == 0
    assert cli(*train_arguments(project, kept, f"data.cache={project / '.cache'}")).code == 0
    assert_same_run(kept, finished)


# --- the same everywhere: a limit on the size of files ----------------------------------------------------------------


@pytest.mark.fault("D1")
def test_three_failures_in_a_row(project: Path, new_run: Path, finished: Path, cli: Cli) -> None:
    """No file may grow beyond 50 kB: the weights never fit, and no half of them is left."""
    limit = 50_000
    outcome = finish(
        start(
            train_arguments(project, new_run, "training.save_every=2"),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
    )
    assert_error(outcome, 6, "could not save step 6: file too large", "no checkpoint was saved yet; make room in ")
    assert outcome.err.count("; will retry at the next checkpoint") == 2
    assert list((new_run / "checkpoints").iterdir()) == []
    assert [record["save_failures"] for record in records(new_run) if "save_failures" in record] == [1, 2]
    assert cli(*train_arguments(project, new_run)).code == 0
    assert_same_run(new_run, finished)


@pytest.mark.fault("D1")
def test_a_best_that_could_not_be_saved_is_none(
    project: Path, new_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next best of what is on the disk is the best, though the lost one was better."""
    scores, measure, save = iter([20.0, 30.0, 28.0, 29.0]), Trainer._measure, Checkpoints.save

    def scripted(trainer: Trainer) -> Validation | None:
        found = measure(trainer)
        assert found is not None
        return found._replace(scores=found.scores | {"bleu": next(scores)})

    def failing(checkpoints: Checkpoints, step: int, *more: Any) -> Path:
        if step == 10:
            raise SaveFailed(step, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, new_run)
        return save(checkpoints, step, *more)

    monkeypatch.setattr(Trainer, "_measure", scripted)
    monkeypatch.setattr(Checkpoints, "save", failing)
    settings = ("training.max_updates=20", "training.validate_every=5", "training.save_every=5")
    found = cli(*train_arguments(project, new_run, *settings))
    assert found.code == 0 and "could not save step 10" in found.err and "best bleu 29.00 at update 20" in found.err
    assert (new_run / "best").read_text().strip() == "step-00000020"


@pytest.mark.fault("D3")
@pytest.mark.parametrize(("free", "warned"), [(500_000, True), (800_000, False)])
def test_little_space_at_the_start(
    project: Path, new_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, free: int, warned: bool
) -> None:
    """29,072 parameters of four bytes and their two moments: 0.35 MB a checkpoint, of which two must fit.

    What counts is the file system of the run, not that of the current folder.
    """
    asked: list[Path] = []

    def usage(path: Path) -> object:
        asked.append(path)
        return shutil._ntuple_diskusage(1 << 40, 0, free)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", usage)
    outcome = cli(*train_arguments(project, new_run, "training.max_updates=1"))
    assert outcome.code == 0
    assert set(asked) == {new_run}
    said = f"s2s: warning: {new_run}: 0.5 MB are free, a checkpoint takes 0.3 MB and two must fit; make room"
    assert (said in outcome.err) == warned, outcome.err


# --- what stands in the way -------------------------------------------------------------------------------------------


@pytest.mark.fault("D4")
def test_directories_that_cannot_be_a_run(project: Path, tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    assert_error(cli(*train_arguments(project, file)), 2, "is a file", str(file))
    assert_error(cli(*train_arguments(project, file / "below")), 6, str(file), "Not a directory")
    assert_error(cli(*train_arguments(project, Path("/proc/none/run"))), 6, "/proc/none")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    for more in ((), ("--overwrite",)):
        assert_error(cli(*train_arguments(project, foreign, *more)), 2, "not a run of s2s")
    assert [path.name for path in foreign.iterdir() if path.name != "LOCK"] == ["thesis.tex"]


@pytest.mark.fault("D4")
def test_a_run_that_was_killed_as_it_began(project: Path, new_run: Path, cli: Cli) -> None:
    """All it has left is half of its first file."""
    new_run.mkdir()
    (new_run / ".tmp-run.json-4711").write_text('{"id":')
    assert cli(*train_arguments(project, new_run, "training.max_updates=2")).code == 0


@pytest.mark.fault("D4")
def test_what_says_that_it_is_a_run_is_overwritten_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed while it is overwritten can still be overwritten."""
    for name in ("config.yaml", "latest", "metrics.jsonl", "run.json", "zoo"):
        (tmp_path / name).write_text("{}")
    gone, unlink = [], Path.unlink

    def noted(path: Path, missing_ok: bool = False) -> None:
        gone.append(path.name)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", noted)
    Run(tmp_path).open(resume=False, overwrite=True)
    kept = [name for name in gone if not name.startswith(".tmp-")]
    assert len(kept) == 5 and kept[-1] == "run.json"


@pytest.fixture
def umask() -> Iterator[Callable[[int], None]]:
    """Sets the mask of new files for one test."""
    before = os.umask(0o022)
    yield lambda mask: (os.umask(mask), None)[1]
    os.umask(before)


@pytest.mark.fault("D6")
@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0, 0o666, 0o777)])
def test_others_may_read_what_the_mask_lets_them(
    project: Path, new_run: Path, cli: Cli, umask: Callable[[int], None], mask: int, file: int, folder: int
) -> None:
    """Of every file and folder of a run, the vocabularies and the record too."""
    umask(mask)
    assert cli(*train_arguments(project, new_run, "training.max_updates=1")).code == 0
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in [new_run, *new_run.rglob("*")]}
    assert len(found) > 10
    assert {path: mode for path, mode in found.items() if mode != (folder if path.is_dir() else file)} == {}


@pytest.mark.fault("D9")
@pytest.mark.parametrize(
    "name", ["not there yet/a \x1b[31mred\nname", b"not-\xff-utf8", "[brackets]*?", "-dash", "'quotes\" $(x)"]
)
def test_strange_names(project: Path, tmp_path: Path, cli: Cli, name: str | bytes) -> None:
    """Trained in, gone on with, translated from; and no control character reaches the terminal."""
    run = tmp_path / os.fsdecode(name)
    arguments = train_arguments(project, run, f"data.cache={project / '.cache'}")
    for updates in (1, 2):
        outcome = cli(*arguments, f"training.max_updates={updates}")
        assert outcome.code == 0, outcome
        assert "\x1b" not in outcome.err
    assert steps(run) == [1, 2]
    assert cli("translate", "--model", run, stdin=b"The dog.\n").code == 0


@pytest.mark.fault("D9", "C13")
def test_links_and_relative_names(
    project: Path, tmp_path: Path, finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    arguments = train_arguments(project, Path("link"), f"data.cache={project / '.cache'}")
    assert cli(*arguments, "training.max_updates=10").code == 0
    assert cli(*arguments).code == 0
    assert_same_run(tmp_path / "elsewhere", finished)
    assert (tmp_path / "link").is_symlink()
    assert cli("translate", "--model", "link", stdin=b"The dog.\n").code == 0


@pytest.mark.fault("D10")
@pytest.mark.parametrize("point", ["checkpoint.after_model:sigterm@1", "checkpoint.before_rename:sigterm@1"])
def test_a_signal_during_a_save(project: Path, new_run: Path, finished: Path, warm: Warm, cli: Cli, point: str) -> None:
    """The save in progress is finished, and it is the one that the message names."""
    outcome = finish(warm.start(train_arguments(project, new_run), point))
    assert outcome.code == 143, outcome
    assert f"stopped by SIGTERM at step 7; saved {new_run}/checkpoints/step-00000007" in outcome.err
    assert steps(new_run) == [7]
    assert cli(*train_arguments(project, new_run)).code == 0
    assert_same_run(new_run, finished)
