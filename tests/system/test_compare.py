"""`s2s compare` from grid to page: what is missing is trained, kills are survived, nothing half done is in a table."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness import Cli, assert_error, assert_same_run, finish, records, start, steps, train_arguments, wait_until

import s2s.commands.compare
from s2s import config as configuration
from s2s.analysis.alignment import aer, read_links
from s2s.commands.compare import Comparison
from s2s.commands.comparison_settings import _digest, _weights
from s2s.commands.comparison_work import Task, _done, visible_devices, work
from s2s.run import best_weights, load_trained

GRID = """\
title: A grid
recipes: [rnn.yaml, none.yaml]
seeds: [1, 2]
overrides: [training.max_updates=6, training.validate_every=6, training.save_every=3]
test: {source: valid.en, target: valid.de, links: valid.align}
metrics: [chrf, bleu]
columns: [chrf, difference, p, better, aer-0, tokens, sentences, memory, parameters]
length_bands: [6, 7]
shown: [2, 5]
"""
LINKS = "0-0 1-1 2-2 3-3 4-4 5-5\n"


@pytest.fixture(scope="module")
def grids(project: Path) -> Path:
    """The project with a second recipe, gold links and grid.yaml."""
    (project / "none.yaml").write_text("extends: rnn.yaml\nmodel: {decoder: {attention: {kind: none}}}\n")
    (project / "valid.align").write_text(LINKS * 12)
    (project / "grid.yaml").write_text(GRID)
    return project


@pytest.fixture(autouse=True)
def _texts_are_read_again() -> None:
    """A process of a user compares once."""
    _digest.cache_clear()
    _weights.cache_clear()


@pytest.fixture(scope="module")
def compared(grids: Path) -> Path:
    """What the grid gave, two trainings at a time. Read it, copy it, never change it."""
    output = grids / "compared"
    found = finish(start(["compare", str(grids / "grid.yaml"), "-o", str(output), "--jobs", "2"]), timeout=300)
    assert found.code == 0, found.err
    assert "4 of 4 to do, 2 at a time" in found.err
    return output


@pytest.fixture
def copy(compared: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(compared, tmp_path / "compared"))


def rows(output: Path) -> dict[str, Any]:
    """Every row by the name of its file."""
    return {path.stem: json.loads(path.read_text()) for path in (output / "rows").glob("*.json")}


def repeatable(output: Path) -> dict[str, Any]:
    """The same without what the clock and the machine decide."""
    timed = {"tokens_per_second", "sentences_per_second", "seconds", "peak_memory_bytes"}
    return {name: {key: one for key, one in row.items() if key not in timed} for name, row in rows(output).items()}


def test_a_row_says_what_eval_align_and_the_record_say(compared: Path, grids: Path, cli: Cli) -> None:
    run, row = compared / "runs" / "rnn-1", rows(compared)["rnn-1"]
    texts = ["--source", grids / "valid.en", "--reference", grids / "valid.de"]
    found = json.loads(cli("eval", "--model", run, *texts, "--json", "--by", "length", "--length-bands", "6,7",
                           "--metric", "chrf", "--metric", "bleu").out)["systems"][0]  # fmt: skip
    assert row["hypotheses_sha256"] == found["hypotheses_sha256"]
    for own, other in zip(row["scores"], found["scores"], strict=True):
        assert own == {key: other[key] for key in ("name", "value", "signature", "by_length")}
    last = [record for record in records(run) if "loss" in record][-1]
    assert (row["updates"], row["seconds"]) == (6, last["seconds"])
    assert row["tokens_per_second"] == last["target_tokens"] / last["seconds"]
    trained = load_trained(run, torch.device("cpu"))
    assert row["parameters"] == sum(value.numel() for value in trained.model.parameters())
    for shift in (0, 1):
        links = cli("align", "-m", run, grids / "valid.en", grids / "valid.de", "--shift", str(shift)).out.decode()
        (grids / "found.align").write_text(links)
        gold, predicted = (read_links(grids / name) for name in ("valid.align", "found.align"))
        sure = [one.sure for one in gold]
        assert row["aer"][str(shift)] == pytest.approx(aer(sure, sure, [one.sure for one in predicted]).aer)
    assert 50e6 < row["peak_memory_bytes"] < 5e9 and row["sentences_per_second"] > 0
    without = rows(compared)["none-1"]
    assert "aer" not in without and "entropy" not in without


def test_table_result_and_page_are_of_all_trainings(compared: Path) -> None:
    found = json.loads((compared / "comparison.json").read_text())
    own = rows(compared)
    assert [one["name"] for one in found["systems"]] == ["rnn", "none"] and not found["unfinished"]
    for system in found["systems"]:
        assert system["seeds"] == [1, 2]
        values = [own[f"{system['name']}-{seed}"]["scores"][0]["value"] for seed in (1, 2)]
        assert system["summary"]["chrf"]["mean"] == pytest.approx(sum(values) / 2)
    beside = found["systems"][1]["against_baseline"]
    gains = [own[f"none-{seed}"]["scores"][0]["value"] - own[f"rnn-{seed}"]["scores"][0]["value"] for seed in (1, 2)]
    assert beside["difference"] == pytest.approx(sum(gains) / 2) and beside["better"] == sum(one > 0 for one in gains)
    table = (compared / "comparison.md").read_text()
    assert "| `rnn` | 2 |" in table and "| `none` | 2 |" in table
    page = (compared / "comparison.html").read_text()
    assert page.count('class="heat"') == 2 and page.count("No attention to show.") == 2
    assert "not yet run" not in page


def test_results_that_are_committed_have_places_of_their_own(copy: Path, grids: Path, cli: Cli) -> None:
    """Keys of the file say where rows, table, page and result go; paths are relative to the file."""
    shutil.copytree(copy / "rows", grids / "kept")
    shutil.move(copy / "details", grids / "said")
    places = "rows: kept\ndetails: said\ntable: kept.md\npage: docs/kept.html\nresult: docs/kept.json\n"
    (grids / "kept.yaml").write_text(f"extends: grid.yaml\n{places}")
    for name in ("md", "html", "json"):
        (copy / f"comparison.{name}").unlink()
    found = cli("compare", grids / "kept.yaml", "-o", copy, "--no-train")
    assert found.code == 0 and str(grids / "docs" / "kept.html") in found.err
    assert not list(copy.glob("comparison.*"))
    assert len(json.loads((grids / "docs" / "kept.json").read_text())["systems"]) == 2
    assert "| `rnn` | 2 |" in (grids / "kept.md").read_text()
    page = (grids / "docs" / "kept.html").read_text()
    assert page.startswith("<!doctype html>") and page.count('class="heat"') == 2


def test_data_order_and_shared_matrices_are_equal(compared: Path) -> None:
    """The same sentences in the same updates, and 6 updates from the same start."""
    tokens = [
        [record["target_tokens"] for record in records(compared / "runs" / f"{name}-1") if "loss" in record]
        for name in ("rnn", "none")
    ]
    assert tokens[0] == tokens[1]
    settings = configuration.load(compared / "runs" / "none-1" / "config.yaml")
    assert settings.init_like is not None and Path(settings.init_like).parent == compared / "first"
    assert "starting like" in (compared / "logs" / "none-1.txt").read_text()
    assert configuration.load(compared / "runs" / "rnn-1" / "config.yaml").init_like is None


def test_what_is_finished_is_left_alone(copy: Path, grids: Path, cli: Cli) -> None:
    """A row that is missing is made again from its run, which is not trained again, and says the same."""
    before, kept = repeatable(copy), (copy / "rows" / "rnn-1.json").stat().st_mtime_ns
    (copy / "rows" / "none-2.json").unlink()
    weights = (copy / "runs" / "none-2" / "latest").stat().st_mtime_ns
    found = cli("compare", grids / "grid.yaml", "-o", copy)
    assert found.code == 0 and "1 of 4 to do" in found.err
    assert repeatable(copy) == before
    assert (copy / "rows" / "rnn-1.json").stat().st_mtime_ns == kept
    assert (copy / "runs" / "none-2" / "latest").stat().st_mtime_ns == weights
    assert rows(copy)["none-2"]["peak_memory_bytes"] is not None  # noted while it was trained


def test_a_table_has_every_row_as_soon_as_it_is_there(
    copy: Path, grids: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rnn-2", "none-2"):
        (copy / "rows" / f"{name}.json").unlink()
    (copy / "comparison.md").unlink()
    tables = []

    def watched(tasks: Any, jobs: int, devices: Any, on_end: Any) -> None:
        def after(ended: Any) -> None:
            on_end(ended)
            tables.append((copy / "comparison.md").read_text())

        work(tasks, jobs, devices, after)

    monkeypatch.setattr(s2s.commands.compare, "work", watched)
    found = cli("compare", grids / "grid.yaml", "-o", copy)
    assert found.code == 0 and found.err.count("wrote ") == 1
    assert [("| `rnn` | 2 |" in one, "| `none` | 1 |" in one) for one in tables] == [(True, True), (True, False)]


def test_trainings_go_on_where_a_table_cannot_be_written(copy: Path, grids: Path, cli: Cli) -> None:
    """A folder has its name: every row is made, and the command ends with what was wrong."""
    for name in ("rnn-2", "none-2"):
        (copy / "rows" / f"{name}.json").unlink()
    (grids / "blocked.md").mkdir()
    (grids / "blocked.yaml").write_text("extends: grid.yaml\ntable: blocked.md\n")
    found = cli("compare", grids / "blocked.yaml", "-o", copy)
    assert_error(found, 6, "blocked.md")
    assert found.err.count("s2s: warning: ") == 2 and {"rnn-2", "none-2"} <= set(rows(copy))


def test_a_signal_while_the_table_is_written_is_heard(
    copy: Path, grids: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rnn-2", "none-2"):
        (copy / "rows" / f"{name}.json").unlink()
    signals = iter([signal.SIGTERM])
    monkeypatch.setattr(Comparison, "write", lambda *_: [signal.raise_signal(one) for one in signals])
    found = cli("compare", grids / "grid.yaml", "-o", copy)
    assert_error(found, 128 + signal.SIGTERM, "stopped by SIGTERM after 1 of 2; the same command goes on")
    assert "none-2" not in rows(copy)


def test_without_training_the_page_is_of_what_is_there(copy: Path, grids: Path, cli: Cli) -> None:
    (copy / "rows" / "none-2.json").unlink()
    shutil.rmtree(copy / "runs" / "none-1")
    (copy / "rows" / "none-1.json").unlink()
    found = cli("compare", grids / "grid.yaml", "-o", copy, "--no-train")
    assert found.code == 0
    unfinished = json.loads((copy / "comparison.json").read_text())["unfinished"]
    assert unfinished == [{"name": "none-1", "why": "not yet run"}, {"name": "none-2", "why": "not finished"}]
    assert "| `none` | not yet run |" in (copy / "comparison.md").read_text()
    assert "warning: none-2: not finished" in found.err


def test_another_baseline_makes_no_training_another(copy: Path, grids: Path, cli: Cli) -> None:
    """Systems go on starting like the one that the file names."""
    found = cli("compare", grids / "grid.yaml", "-o", copy, "--no-train", "--baseline", "none")
    assert found.code == 0 and "not yet run" not in (copy / "comparison.md").read_text()
    result = json.loads((copy / "comparison.json").read_text())
    assert result["baseline"] == "none" and result["unfinished"] == []


def test_a_row_is_stale_where_the_first_stage_was_trained_anew(
    compared: Path, grids: Path, tmp_path: Path, cli: Cli
) -> None:
    first, runs = tmp_path / "first", compared / "runs"
    shutil.copytree(runs / "none-1", first)
    (grids / "stages.yaml").write_text(f"extends: none.yaml\ninit_from: {first}\n")
    (grids / "staged.yaml").write_text(
        GRID.replace("recipes: [rnn.yaml, none.yaml]", "recipes: [stages.yaml]").replace("[1, 2]", "[1]")
    )
    arguments = ("compare", grids / "staged.yaml", "-o", tmp_path / "out")
    assert cli(*arguments).code == 0
    assert rows(tmp_path / "out")["stages-1"]["began_from"] == {"init_from": best_weights(first)[1]}
    assert "warning" not in cli(*arguments, "--no-train").err
    shutil.rmtree(first)
    assert "warning" not in cli(*arguments, "--no-train").err  # where it is gone, it is as it was
    shutil.copytree(runs / "none-2", first)
    _weights.cache_clear()
    assert f"stages-1: has a row from before {first} was trained anew" in cli(*arguments, "--no-train").err


def test_rows_of_other_settings_are_not_mixed_in(copy: Path, grids: Path, cli: Cli) -> None:
    """Another limit of training is another training: refused, named, and in no table; the others stay."""
    (grids / "longer.yaml").write_text(GRID.replace("max_updates=6", "max_updates=7"))
    found = cli("compare", grids / "longer.yaml", "-o", copy, "--no-train")
    assert found.code == 0 and found.err.count("has a row of other settings or texts") == 4
    found = cli("compare", grids / "longer.yaml", "-o", copy)
    assert_error(found, 2, "4 of 4 have no result", "rnn-1", "none-2")
    assert found.err.count("was trained under other settings: training.max_updates: 6 -> 7") == 4
    assert "not yet run" in (copy / "comparison.md").read_text()


def test_a_training_that_fails_is_named_and_the_others_go_on(grids: Path, tmp_path: Path, cli: Cli) -> None:
    """One recipe starts from a run that is not there; the exit code is its own."""
    (grids / "wild.yaml").write_text("extends: none.yaml\ninit_from: nowhere\n")
    (grids / "failing.yaml").write_text(
        GRID.replace("[rnn.yaml, none.yaml]", "[wild.yaml, none.yaml]").replace("seeds: [1, 2]", "seeds: [1]")
    )
    found = cli("compare", grids / "failing.yaml", "-o", tmp_path / "out", "--baseline", "none")
    assert_error(found, 4, "1 of 2 have no result: wild-1", "the same command")
    assert "wild-1: failed: " in found.err and "none-1: chrf " in found.err
    assert set(rows(tmp_path / "out")) == {"none-1"}
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [one["name"] for one in result["unfinished"]] == ["wild-1"]
    assert "| `wild` | not yet run |" in (tmp_path / "out" / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ("test: {source: valid.en, target: short.de}", 3, "short.de"),
        ("shown: [2, 500]", 3, "line 500 is to be shown"),
        ("test: {source: valid.en, target: valid.de, links: short.align}", 3, "short.align"),
    ],
)
def test_what_cannot_be_measured_is_told_before_training(
    grids: Path, tmp_path: Path, cli: Cli, change: str, code: int, said: str
) -> None:
    (grids / "short.de").write_text("Der Mann.\n")
    (grids / "short.align").write_text("0-0\n")
    (grids / "unfit.yaml").write_text(f"extends: grid.yaml\n{change}\n")
    assert_error(cli("compare", grids / "unfit.yaml", "-o", tmp_path / "out"), code, said)
    assert not (tmp_path / "out" / "runs").exists()


def test_a_test_set_of_two_lines(finished: Path, project: Path, tmp_path: Path, cli: Cli) -> None:
    """Nobody asked for a third line; the page shows what there is."""
    texts = []
    for option, name in (("--source", "valid.en"), ("--reference", "valid.de")):
        short = "".join((project / name).read_text().splitlines(keepends=True)[:2])
        (tmp_path / name).write_text(short)
        texts += [option, tmp_path / name]
    found = cli("compare", finished, "-o", tmp_path / "out", *texts)
    assert found.code == 0, found.err
    details = json.loads((tmp_path / "out" / "details" / "rnn-1.json").read_text())
    assert [one["line"] for one in details["shown"]] == [1, 2]
    assert (tmp_path / "out" / "comparison.html").read_text().count("<h3>Line ") == 2


def test_a_log_on_a_full_disk_hides_no_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(task: Task) -> None:
        raise error

    monkeypatch.setattr("s2s.commands.comparison_work.do", fail)
    task: Any = SimpleNamespace(log=tmp_path / "log")
    for error, code in ((OSError(errno.ENOSPC, "No space left on device"), 6), (ValueError("odd"), 1)):
        with Path("/dev/full").open("wb", buffering=0) as device, io.TextIOWrapper(device, write_through=True) as full:
            monkeypatch.setattr(sys, "stderr", full)
            found, why = _done(task)
        assert found == code and str(error) in why


def free(run: Path) -> bool:
    """Whether nobody trains in this directory."""
    with (run / "LOCK").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@pytest.mark.slow
def test_killed_workers_and_a_killed_parent_change_nothing(grids: Path, finished: Path, tmp_path: Path) -> None:
    """KILL to the training after a save, then to `s2s compare` itself; in the end the run is that of `s2s train`."""
    (grids / "one.yaml").write_text("recipes: [rnn.yaml]\nseeds: [1]\nlength_bands: [6]\n")
    run, arguments = grids / "one" / "runs" / "rnn-1", ["compare", str(grids / "one.yaml"), "-o", str(grids / "one")]
    killed = finish(start(arguments, extra={"S2S_FAILPOINT": "checkpoint.saved:kill9@1"}), timeout=300)
    assert_error(killed, 6, "1 of 1 have no result: rnn-1")
    assert "rnn-1: failed: ended by SIGKILL; see" in killed.err and not rows(grids / "one")
    assert json.loads((grids / "one" / "comparison.json").read_text())["unfinished"][0]["name"] == "rnn-1"
    reached = steps(run)[-1]

    process = start(arguments, extra={"S2S_FAILPOINT": "batch:sleep0.2@9+"})
    wait_until(lambda: steps(run)[-1] > reached, process)
    os.kill(process.pid, signal.SIGKILL)
    assert finish(process).code == -signal.SIGKILL
    assert not rows(grids / "one")

    last = finish(start(arguments), timeout=300)  # at once: it waits until the orphan has saved and gone
    assert last.code == 0, last.err
    assert_same_run(run, finished)
    assert rows(grids / "one")["rnn-1"]["updates"] == 40 and free(run)
    assert "Traceback" not in (grids / "one" / "logs" / "rnn-1.txt").read_text()


def test_a_signal_stops_all_and_saves(grids: Path) -> None:
    (grids / "stop.yaml").write_text("recipes: [rnn.yaml]\nseeds: [1, 2]\nlength_bands: [6]\n")
    output = grids / "stop"
    arguments = ["compare", str(grids / "stop.yaml"), "-o", str(output), "--jobs", "2"]
    process = start(arguments, extra={"S2S_FAILPOINT": "batch:sleep0.1@2+"})
    runs = [output / "runs" / f"rnn-{seed}" for seed in (1, 2)]
    wait_until(lambda: all((run / "metrics.jsonl").is_file() for run in runs), process)
    process.terminate()
    found = finish(process)
    assert_error(found, 143, "stopped by SIGTERM after 0 of 2; the same command goes on")
    assert all(steps(run) and free(run) for run in runs) and not rows(output)


def test_existing_runs_are_compared_and_named_by_their_directories(compared: Path, tmp_path: Path, cli: Cli) -> None:
    runs = [compared / "runs" / name for name in ("none-1", "none-2", "rnn-1")]
    found = cli("compare", *runs, "-o", tmp_path / "out", "--baseline", "rnn")
    assert found.code == 0, found.err
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [(one["name"], one["seeds"]) for one in result["systems"]] == [("none", [1, 2]), ("rnn", [1])]
    assert result["systems"][0]["against_baseline"]["seeds"] == [1]
    again, before = rows(tmp_path / "out")["none-1"], rows(compared)["none-1"]
    assert again["hypotheses_sha256"] == before["hypotheses_sha256"] and again["seconds"] == before["seconds"]


def test_runs_are_measured_by_the_rules_of_their_language(compared: Path, tmp_path: Path, cli: Cli) -> None:
    found = cli("compare", compared / "runs" / "rnn-1", "-o", tmp_path / "out", "--language", "zh")
    assert found.code == 0, found.err
    assert "tok:zh" in rows(tmp_path / "out")["rnn-1"]["scores"][0]["signature"]


def test_a_half_trained_run_is_refused(grids: Path, compared: Path, tmp_path: Path, cli: Cli) -> None:
    half = grids / "half-1"
    process = start(
        train_arguments(grids, half, "training.save_every=1"), extra={"S2S_FAILPOINT": "checkpoint.saved:kill9@3"}
    )
    assert finish(process).code == -signal.SIGKILL
    found = cli("compare", half, compared / "runs" / "rnn-1", "-o", tmp_path / "out")
    assert_error(found, 4, "1 of 2 have no result: half-1")
    assert "its training stands at update 3 and is not finished" in found.err
    assert set(rows(tmp_path / "out")) == {"rnn-1"}


def test_mistakes_on_the_command_line(grids: Path, compared: Path, tmp_path: Path, cli: Cli) -> None:
    run = compared / "runs" / "rnn-1"
    assert_error(cli("compare", grids / "no.yaml"), 2, "no.yaml: there is no such file")
    assert_error(cli("compare", grids / "rnn.yaml"), 2, "rnn.yaml: these are the settings of one training, not of a")
    assert_error(cli("compare", run, grids / "grid.yaml"), 2, "grid.yaml: is not a directory")
    assert_error(cli("compare", grids / "grid.yaml", "--source", run), 2, "--source: goes with runs")
    assert_error(cli("compare", grids / "grid.yaml", "--language", "zh"), 2, "write language: zh into", "grid.yaml")
    assert_error(cli("compare", run, "--language", "Chinese"), 2, "'Chinese' is no language")
    assert_error(cli("compare", run, "--links", run), 2, "--links: goes with --source and --reference")
    assert_error(cli("compare", run, "--source", run), 2, "--source and --reference go together")
    assert_error(cli("compare", run, "--baseline", "rnm"), 2, "there is no system rnm; did you mean rnn?")
    assert_error(cli("compare", run, run), 2, "has seed 1 of rnn, as", "give one of them")
    assert_error(cli("compare", grids), 4, "no config.yaml here")
    (tmp_path / "file").touch()
    assert_error(cli("compare", run, "-o", tmp_path / "file"), 2, "is a file; give another --output")


def test_gpus_are_those_that_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_devices(3) == ["0", "1", "2"] and visible_devices(0) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-7")
    assert visible_devices(2) == ["2", "GPU-7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_devices(0) == []
