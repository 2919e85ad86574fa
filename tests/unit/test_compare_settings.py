"""The grid of a comparison: which trainings it means, what they start like, and what makes a row another one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from s2s import config as configuration
from s2s.commands import comparison_settings
from s2s.commands.comparison_settings import (
    ComparisonSettings,
    _digest,
    baseline_of,
    began_elsewhere,
    cells_of,
    contents,
    fingerprint,
    measured_on,
    read_settings,
    require_same_training,
    with_language,
)
from s2s.commands.train import resolved
from s2s.data.prepare import PairFiles
from s2s.errors import ConfigError, UsageError
from s2s.run import Run

RECIPE = """\
data:
  train: {source: train.en, target: train.de}
  test: {source: test.en, target: test.de}
model:
  embedding: 4
  encoder: {kind: rnn, size: 8}
  decoder: {kind: rnn, size: 8, attention: {kind: global, score: general}}
training: {stop_on: nll}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two recipes, `a` and `b`, and their texts."""
    _digest.cache_clear()
    for name in ("train", "test"):
        for side in ("en", "de"):
            (tmp_path / f"{name}.{side}").write_text(f"{name} {side}\n")
    (tmp_path / "a.yaml").write_text(RECIPE)
    (tmp_path / "b.yaml").write_text("extends: a.yaml\nmodel: {decoder: {attention: {kind: none}}}\n")
    return tmp_path


def grid(folder: Path, **settings: object) -> ComparisonSettings:
    """The settings in grid.yaml, read from there."""
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"recipes": ["a.yaml", "b.yaml"]} | settings, sort_keys=False))
    return read_settings(path)


AXES = {"size": {"small": ["model.encoder.size=2"], "large": ["model.encoder.size=16"]}, "drop": {"wet": [], "dry": [
    "model.dropout=0"]}}  # fmt: skip


def test_every_recipe_meets_every_choice_and_every_seed(folder: Path) -> None:
    settings = grid(folder, axes=AXES, seeds=[5, 3], overrides=["model.dropout=0.5", "model.embedding=6"])
    cells = cells_of(settings, folder / "out")
    names = [f"{recipe} {size} {drop}" for recipe in "ab" for size in ("small", "large") for drop in ("wet", "dry")]
    assert [(cell.seed, cell.system) for cell in cells] == [(seed, name) for seed in (5, 3) for name in names]
    last = cells[-1]
    assert last.run == folder / "out" / "runs" / "b-large-dry-3" and last.name == "b-large-dry-3"
    assert (last.config.seed, last.config.model.encoder.size, last.config.model.embedding) == (3, 16, 6)
    assert last.config.model.dropout == 0.0  # a choice comes after what all have
    assert cells[-2].config.model.dropout == 0.5


def test_overrides_may_name_the_seed(folder: Path) -> None:
    """So that each training of a second stage begins from that of its own seed."""
    axes = {"by": {"soft": [], "taught": ["objective.teacher={run: big-{seed}}"]}}
    settings = grid(folder, axes=axes, seeds=[2, 11], overrides=["init_from=runs/first-{seed}"], alike=False)
    (_, taught, *_, last) = cells_of(settings, folder / "out")
    assert {setting: run.name for setting, run in taught.config.runs_before.items()} == {
        "init_from": "first-2",
        "teacher": "big-2",
    }
    assert [run.name for run in last.config.runs_before.values()] == ["first-11", "big-11"]
    assert last.overrides[:2] == ("init_from=runs/first-11", "objective.teacher={run: big-11}")
    with pytest.raises(ConfigError, match=r"overrides and axes: .*droput"):
        cells_of(grid(folder, overrides=["model.droput={seed}"]), folder / "out")


def run_called(folder: Path, name: str, *changes: str) -> str:
    """A run of recipe `a` under these changes, as far as a comparison reads its settings."""
    (folder / name).mkdir()
    text = configuration.save_text(resolved(configuration.load(folder / "a.yaml", changes)))
    (folder / name / "config.yaml").write_text(text)
    return name


@pytest.mark.parametrize(
    "change",
    [
        "model.encoder.size=4",
        "data.max_length=5",
        "data.drop_copies=true",
        "data.invalid_utf8=drop",
        "data.language=fr",
    ],
)
def test_seeds_of_one_system_are_one_system(folder: Path, change: str) -> None:
    """Those that are given, among themselves and beside those to be trained."""
    one, other = run_called(folder, "x-1"), run_called(folder, "x-2", "seed=2", change)
    seed = run_called(folder, "a-9", "seed=9", change)
    key = change.partition("=")[0]
    for settings in ({"recipes": [], "runs": [one, other]}, {"recipes": ["a.yaml"], "runs": [seed]}):
        with pytest.raises(UsageError, match=rf"is called [xa] as .* is, but {key} is .*rename"):
            cells_of(grid(folder, **settings), folder / "out")
    fits = run_called(folder, "a-8", "seed=8"), run_called(folder, "x-3", "seed=3")
    assert len(cells_of(grid(folder, recipes=["a.yaml"], runs=[one, *fits], seeds=[1, 2]), folder / "out")) == 5


def test_systems_start_like_the_baseline_of_their_size(folder: Path) -> None:
    settings = grid(folder, axes=AXES, seeds=[1], baseline="b large wet")
    for cell in cells_of(settings, folder / "out"):
        if cell.system.startswith("b "):
            assert cell.first is None and cell.config.init_like is None
            continue
        assert cell.first is not None and cell.config.init_like == str(cell.first.path)
        cell.first.write()
        like = configuration.load(cell.first.path)
        assert like.model.encoder.size == cell.config.model.encoder.size
        assert like.model.decoder.attention.kind == "none"
    assert all(cell.first is None for cell in cells_of(grid(folder, alike=False), folder / "out"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipes": []}, "nothing to compare"),
        ({"recipes": ["a.yaml", "other/a.yaml"]}, "two files are called a"),
        ({"seeds": [1, 1]}, "seeds: something is named twice"),
        ({"seeds": []}, "seeds"),
        ({"axes": {"size": {}}}, "axes.size: has no choices"),
        ({"axes": {"size": {"../up": []}}}, "axes.size"),
        ({"length_bands": [10, 5]}, "must rise"),
        ({"metrics": ["chrf"]}, "columns: bleu is not among the metrics"),
        ({"columns": ["blue"]}, "columns"),
        ({"recipe": ["a.yaml"]}, "recipe is not a setting; did you mean recipes?"),
    ],
)
def test_what_makes_no_sense_is_refused(folder: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grid(folder, **settings)
    assert "grid.yaml:" in str(caught.value) and message in str(caught.value)


def test_a_wrong_override_names_the_system(folder: Path) -> None:
    settings = grid(folder, axes={"size": {"odd": ["model.encoder.sise=3"]}})
    with pytest.raises(
        ConfigError, match=r"a odd: overrides and axes: model\.encoder\.sise is not a setting; did you mean"
    ):
        cells_of(settings, folder / "out")


def test_the_baseline_is_one_of_the_systems(folder: Path) -> None:
    settings = grid(folder)
    cells = cells_of(settings, folder / "out")
    assert baseline_of(settings, cells) == "a"
    with pytest.raises(ConfigError, match="there is no system bb; did you mean b\\?; they are a, b"):
        baseline_of(settings.model_copy(update={"baseline": "bb"}), cells)
    assert baseline_of(settings, cells, "b") == "b"
    with pytest.raises(ConfigError, match="there is no system c; they are a, b"):
        baseline_of(settings, cells, "c")


def test_systems_whose_files_would_have_one_name_are_refused(folder: Path) -> None:
    axes = {"one": {"x": [], "x-y": []}, "other": {"y-z": [], "z": []}}
    with pytest.raises(
        ConfigError, match="axes: a x y-z and a x-y z have files of one name, a-x-y-z-1; rename a choice"
    ):
        cells_of(grid(folder, recipes=["a.yaml"], axes=axes), folder / "out")


def test_the_test_set_is_one(folder: Path) -> None:
    settings = grid(folder)
    cells = cells_of(settings, folder / "out")
    assert measured_on(settings, cells).target == str(folder / "test.de")
    (folder / "b.yaml").write_text("extends: a.yaml\ndata: {test: {source: test.en, target: train.de}}\n")
    other = cells_of(settings, folder / "out")
    with pytest.raises(ConfigError, match="different test sets"):
        measured_on(settings, other)
    own = grid(folder, test={"source": "train.en", "target": "train.de"})
    assert measured_on(own, other).source == str(folder / "train.en")


def test_what_a_row_is_made_from(folder: Path) -> None:
    """Every change that could change a number changes it; names of files and settings at their default do not."""

    def made(**changes: object) -> str:
        _digest.cache_clear()
        settings = grid(folder, **changes)
        cells = cells_of(settings, folder / "out")
        return fingerprint(cells[1], settings, contents(measured_on(settings, cells)))

    first = made()
    assert made() == first
    assert made(overrides=["model.dropout=0.1"]) == first  # the default
    assert made(title="Another", columns=["bleu"], samples=500) == first
    seen = {
        first,
        made(overrides=["model.dropout=0.2"]),
        made(overrides=["search.beam=1"]),
        made(seeds=[2]),
        made(metrics=["bleu", "chrf"]),
        made(length_bands=[5]),
        made(shown=[1]),
        made(language="en"),
        made(alike=False),
        made(baseline="b"),
    }
    assert len(seen) == 9  # as the baseline, b starts like itself: as without alike
    (folder / "train.de").write_text("another\n")
    assert made() not in seen
    (folder / "train.de").write_text("train de\n")
    (folder / "test.de").write_text("another\n")
    assert made() not in seen
    (folder / "test.de").write_text("test de\n")
    assert made() == first


def test_the_language_is_that_of_the_recipes(folder: Path) -> None:
    def found(**settings: object) -> ComparisonSettings:
        grown = grid(folder, seeds=[1], **settings)
        return with_language(grown, cells_of(grown, folder / "out"))

    assert found().target == "de"
    assert found(overrides=["data.language=zh"]).target == "zh"
    assert found(overrides=["data.language=zh"], language="ja").target == "ja"
    assert found(axes={"to": {"one": ["data.language=zh"], "other": []}}).target == "zh"
    mixed = {"to": {"one": ["data.language=zh"], "other": ["data.language=de"]}}
    with pytest.raises(ConfigError, match="language: the systems have different ones: de, zh; name that of the"):
        found(axes=mixed)
    assert found(axes=mixed, language="en").target == "en"


STAGES = ["init_from=runs/first-1", "objective.teacher={run: runs/large-1}"]


def test_a_row_is_of_other_runs_where_those_were_trained_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where they stand, but what is in them, and a run that is gone is as it was."""
    weights = {"first-1": "aa", "large-1": "bb"}
    monkeypatch.setattr(comparison_settings, "_weights", lambda run: weights.get(run.name))
    settings = grid(folder, overrides=STAGES)
    cell = cells_of(settings, folder / "out")[1]
    moved = grid(folder, overrides=[change.replace("runs/", "elsewhere/") for change in STAGES])
    made = [
        fingerprint(cells_of(one, folder / "out")[1], one, contents(measured_on(one, [cell])))
        for one in (settings, moved)
    ]
    assert made[0] == made[1]
    row = {"init_from": "aa", "teacher": "bb"}
    assert began_elsewhere(cell, row) is None and began_elsewhere(cell, {}) is None
    for setting, run in (("init_from", "first-1"), ("teacher", "large-1")):
        changed = began_elsewhere(cell, row | {setting: "cc"})
        assert changed is not None and changed.name == run
    weights.clear()
    assert began_elsewhere(cell, row | {"teacher": "cc"}) is None


@pytest.mark.parametrize(
    "change",
    [
        "training.precision=bf16", "search.beam=3", "model.embedding=6", "training.max_updates=7",
        "training.max_epochs=9", "model.dropout=0.3", "objective.label_smoothing=0.2", "batches.tokens=77",
    ],
)  # fmt: skip
def test_a_run_that_was_begun_under_other_settings_is_not_taken_for_these(folder: Path, change: str) -> None:
    """Also where training would let them pass: then a row would tell of what was never trained."""
    settings = grid(folder, overrides=["training.precision=float32"])
    (cell, _) = cells_of(settings.model_copy(update={"seeds": (1,)}), folder / "out")
    cell.run.mkdir(parents=True)
    Run(cell.run).write_config(resolved(cell.config))
    require_same_training(cell)
    (changed, _) = cells_of(grid(folder, overrides=["training.precision=float32", change], seeds=[1]), folder / "out")
    with pytest.raises(ConfigError, match=rf"was trained under other settings: {change.split('=')[0]}: .* --output"):
        require_same_training(changed)
    (quiet, _) = cells_of(
        grid(folder, overrides=["training.precision=float32", "training.log_every=7"], seeds=[1]), folder / "out"
    )
    require_same_training(quiet)


def test_seeds_of_a_system_may_have_first_stages_of_their_own(folder: Path) -> None:
    runs = []
    for seed in (1, 2):
        stages = [change.replace("-1", f"-{seed}") for change in STAGES]
        runs.append(folder / f"two-{seed}")
        runs[-1].mkdir()
        Run(runs[-1]).write_config(configuration.load(folder / "a.yaml", [*stages, f"seed={seed}"]))
    settings = ComparisonSettings(runs=tuple(map(str, runs)))
    assert [(cell.system, cell.seed) for cell in cells_of(settings, folder / "out")] == [("two", 1), ("two", 2)]


def test_a_file_that_is_missing_is_named(folder: Path) -> None:
    missing = PairFiles(source=str(folder / "none.en"), target=str(folder / "none.de"))
    with pytest.raises(ConfigError, match=r"none\.en: cannot be read: No such file"):
        contents(missing)
