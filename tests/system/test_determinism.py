"""The same seed gives the same run, whatever the process, the locale, the clock or the folder; and so does decoding."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from harness import Cli, assert_same_run, digests, finish, start, train_arguments, write_project

from s2s.run import load_trained
from s2s.search.translate import Translator


@pytest.mark.fault("N7", "N8")
@pytest.mark.parametrize(
    "extra",
    [
        {"PYTHONHASHSEED": "0", "LC_ALL": "C"},
        {"PYTHONHASHSEED": "77", "LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Tokyo", "PYTHONUTF8": "0"},
    ],
)
def test_the_same_seed_anywhere(tmp_path: Path, finished: Path, extra: dict[str, str]) -> None:
    """In another folder with other hashes and another locale, the vocabulary learned anew."""
    project = write_project(tmp_path / "anywhere")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    outcome = finish(start(train_arguments(project, Path("run")), cwd=elsewhere, extra=extra))
    assert outcome.code == 0, outcome.err
    assert_same_run(elsewhere / "run", finished)


@pytest.mark.fault("N7")
def test_the_same_seed_in_one_process_and_another_seed(project: Path, new_run: Path, finished: Path, cli: Cli) -> None:
    assert cli(*train_arguments(project, new_run)).code == 0
    assert_same_run(new_run, finished)
    assert cli(*train_arguments(project, new_run, "seed=2", "--overwrite")).code == 0
    assert digests(new_run) != digests(finished)


@pytest.mark.fault("R13")
def test_a_clock_that_jumps(
    project: Path, new_run: Path, finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back by a day at every look, and two saves in the same second: names and order come from the update alone."""

    def backwards() -> Iterator[float]:
        now = 1.7e9
        while True:
            now -= 86_400
            yield now

    clock = backwards()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: next(clock))
        patch.setattr(time, "time_ns", lambda: int(next(clock) * 1e9))
        for stop in (10, 40):
            assert cli(*train_arguments(project, new_run, f"training.max_updates={stop}")).code == 0
    assert_same_run(new_run, finished)


@pytest.mark.fault("N9")
def test_no_worker_process_draws_or_orders(project: Path, new_run: Path, finished: Path, cli: Cli) -> None:
    """What a batch holds is a function of (seed, epoch, position); the state of every global generator is ignored."""
    random.seed(999)
    torch.manual_seed(999)
    assert cli(*train_arguments(project, new_run)).code == 0
    assert_same_run(new_run, finished)


@pytest.mark.slow
@pytest.mark.fault("N7")
def test_the_same_seed_in_two_threads_of_many_processes(project: Path, tmp_path: Path) -> None:
    """Wide layers, so that elementwise work is shared; threads that start a library together race only now and then."""
    wide = ["model.encoder.size=512", "model.decoder.size=512", "batches.tokens=1200", "batches.accumulate=1"]
    short = ["training.precision=auto", "training.max_updates=2", "training.validate_every=2"]
    found = set()
    for number in range(10):
        run = tmp_path / f"run-{number}"
        outcome = finish(start(train_arguments(project, run, *wide, *short), extra={"OMP_NUM_THREADS": "2"}))
        assert outcome.code == 0, outcome.err
        found.add(digests(run)["model.safetensors"])
    assert len(found) == 1


@pytest.mark.slow
@pytest.mark.fault("N11")
@pytest.mark.parametrize("architecture", ["finished", "finished_transformer"])
def test_company_does_not_change_a_translation(
    project: Path, architecture: str, request: pytest.FixtureRequest
) -> None:
    """2,000 sentences alone, together, and in another order: the same texts, and scores within 1e-5."""
    trained = load_trained(request.getfixturevalue(architecture), torch.device("cpu"))
    words = (project / "train.en").read_text().split()
    draw = random.Random(5)
    lines = [" ".join(draw.choices(words, k=draw.randint(1, 25))) for _ in range(2000)]

    def translated(lines: list[str], positions: int) -> list[tuple[str, float]]:
        settings = trained.config.search.model_copy(update={"batch_tokens": positions})
        translator = Translator(trained.model, trained.tokenizers, settings, torch.device("cpu"))
        return [(one.text, one.candidates[0].score) for one in translator.translate(lines)]

    together = translated(lines, 2000)
    alone = translated(lines, 1)
    order = draw.sample(range(len(lines)), len(lines))
    shuffled = translated([lines[index] for index in order], 300)
    differ = [index for index in range(len(lines)) if together[index][0] != alone[index][0]]
    differ += [index for place, index in enumerate(order) if together[index][0] != shuffled[place][0]]
    print(f"{len(differ)} of {2 * len(lines)} translations differ")
    assert differ == []
    for index, (_, score) in enumerate(together):
        assert abs(score - alone[index][1]) < 1e-5
