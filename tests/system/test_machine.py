"""The machine and the size of things: memory that runs out, corpora that are large or tiny, another circumstance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import (
    Cli,
    assert_error,
    assert_same_run,
    losses,
    steps,
    train_arguments,
    write_project,
)

from s2s.commands.train import EpochData
from s2s.models.seq2seq import Seq2Seq
from s2s.training.objective import TrainingStep


@pytest.mark.fault("M2")
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_memory_runs_out(
    project: Path, new_run: Path, finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """In update 12 torch is asked for a petabyte, and refuses as it does; the batch is named, step 7 is whole."""
    original = TrainingStep.forward
    calls: list[int] = []

    class Greedy(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient + torch.empty(1 << 50)[0]

    def greedy(step: TrainingStep, *arguments: Any) -> Any:
        calls.append(len(calls))
        sums = original(step, *arguments)
        if not step.training or len(updates) < 12:
            return sums
        if where == "forward":
            torch.empty(1 << 50)
        return sums._replace(loss=Greedy.apply(sums.loss))

    updates: list[int] = []
    plan = TrainingStep.train

    def counted(step: TrainingStep, mode: bool = True) -> Any:
        updates.extend([1] * mode)
        return plan(step, mode)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "forward", greedy)
        patch.setattr(TrainingStep, "train", counted)
        outcome = cli(*train_arguments(project, new_run))
    assert calls
    assert_error(outcome, 6, "update 12: out of memory (a batch of ", "longest source ", "lower batches.tokens")
    assert steps(new_run)[0] == 7 and losses(new_run)[-1][0] == 11
    assert cli(*train_arguments(project, new_run)).code == 0
    assert_same_run(new_run, finished)


@pytest.mark.fault("M2")
@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_no_memory_to_translate_with(
    finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def greedy(*_: object) -> None:
        raise error

    monkeypatch.setattr(Seq2Seq, "step", greedy)
    outcome = cli("translate", "--model", finished, stdin=b"The man.\n")
    assert_error(outcome, 6, "out of memory; lower search.batch_tokens")


@pytest.mark.fault("M2")
def test_other_errors_of_torch_stay_bugs(
    project: Path, new_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not about memory is not called so."""
    monkeypatch.setattr(TrainingStep, "forward", lambda *_: torch.zeros(2) @ torch.zeros(3))
    outcome = cli(*train_arguments(project, new_run))
    assert outcome.code == 1 and "Traceback" in outcome.err and "please report" in outcome.err


@pytest.mark.fault("M3")
def test_a_pair_larger_than_a_batch(project: Path, new_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair is longer than the three tokens of a batch: each is a batch of its own, and none is empty."""
    sizes: list[int] = []
    original = EpochData.batch

    def noted(data: EpochData, indices: Any, *rest: Any) -> Any:
        sizes.append(len(indices))
        return original(data, indices, *rest)

    monkeypatch.setattr(EpochData, "batch", noted)
    settings = ("batches.tokens=3", "training.max_updates=5", "training.validate_every=5")
    assert cli(*train_arguments(project, new_run, *settings)).code == 0
    assert sizes == [1] * 10  # two a update


# --- large (M4) -------------------------------------------------------------------------------------------------------

_PREPARE = """
import json, sys
from pathlib import Path
from s2s import config as configuration
from s2s.data.batches import group_updates, plan_epoch
from s2s.data.prepare import prepare

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

config = configuration.load(Path(sys.argv[1]))
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here, not from the import of torch
before = kilobytes("VmRSS")
prepared = prepare(config.data, config.tokenizer, Path(sys.argv[1]).parent / ".cache", lambda line: None)
corpus = prepared.train
plan = group_updates(plan_epoch(corpus.source_lengths, corpus.target_lengths, config.batches, 1, 0), config.batches)
pairs = sum(len(batch) for update in plan for batch in update)
print(json.dumps({"pairs": pairs, "kilobytes": kilobytes("VmHWM") - before}))
"""


def largest(folder: Path, pairs: int) -> int:
    """Bytes of memory that preparing so many short pairs and planning an epoch takes at most."""
    write_project(folder)
    for suffix in ("en", "de"):
        with (folder / f"train.{suffix}").open("w") as file:
            file.writelines(f"{suffix} {number % 997} {number % 89} x\n" for number in range(pairs))
    text = (folder / "rnn.yaml").read_text(encoding="utf-8")
    words = text.replace("{kind: sentencepiece, vocabulary: 80}", "{kind: whitespace, vocabulary: 2000}")
    (folder / "whitespace.yaml").write_text(words, encoding="utf-8")
    line = [sys.executable, "-c", _PREPARE, str(folder / "whitespace.yaml")]
    done = subprocess.run(line, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=900, check=True)
    report = json.loads(done.stdout)
    assert report["pairs"] == pairs
    return int(report["kilobytes"]) * 1024


@pytest.mark.slow
@pytest.mark.fault("M4")
def test_memory_grows_with_the_pairs_and_little(tmp_path: Path) -> None:
    """Lengths, an order and a plan, but not the texts: at most 200 bytes a pair, as docs/reliability.md says."""
    few, many = 100_000, 500_000
    small, large = largest(tmp_path / "few", few), largest(tmp_path / "many", many)
    print(f"{small} bytes for {few} pairs, {large} for {many}")
    assert 8 < (large - small) / (many - few) < 200


# --- tiny (M5) --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A project whose training data is one pair."""
    project = write_project(tmp_path / "tiny")
    for suffix, text in (("en", "The old dog sees a man.\n"), ("de", "Der alte Hund sieht einen Mann.\n")):
        (project / f"train.{suffix}").write_text(text, encoding="utf-8")
    return project


@pytest.mark.fault("M5")
@pytest.mark.parametrize("kind", ["{kind: sentencepiece, vocabulary: 500}", "{kind: whitespace, vocabulary: 500}"])
def test_a_corpus_of_one_pair(tiny: Path, cli: Cli, kind: str) -> None:
    """It supports few pieces, of which one line says how many; and it is trained on and translated from."""
    text = (tiny / "rnn.yaml").read_text(encoding="utf-8")
    (tiny / "rnn.yaml").write_text(text.replace("{kind: sentencepiece, vocabulary: 80}", kind), encoding="utf-8")
    outcome = cli(*train_arguments(tiny, tiny / "run", "training.max_updates=3"))
    assert outcome.code == 0, outcome
    said = [line for line in outcome.err.splitlines() if "tokenizer.vocabulary allows 500" in line]
    assert said and all("the corpus supports " in line for line in said)
    assert cli("translate", "--model", tiny / "run", stdin=b"The old cat.\n").code == 0


@pytest.mark.fault("M5")
@pytest.mark.parametrize(("size", "code"), [(0, 2), (1, 3), (4, 3), (5, 0), (12, 0)])
def test_vocabularies_of_hardly_any_piece(tiny: Path, cli: Cli, size: int, code: int) -> None:
    """Four pieces are reserved; with a fifth there is something to learn, and a word of what had no room."""
    outcome = cli(*train_arguments(tiny, tiny / "run", f"tokenizer.vocabulary={size}", "training.max_updates=2"))
    assert outcome.code == code, outcome
    if code:
        assert_error(outcome, code, "tokenizer.vocabulary")
    else:
        assert "leaves room for" in outcome.err
