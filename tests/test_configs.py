"""Every recipe under configs/ is accepted, builds its model, and takes a training step with a finite loss."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from s2s import config as configuration
from s2s.commands.candidates import candidates_of
from s2s.commands.comparison_settings import baseline_of, cells_of, read_settings
from s2s.interfaces import BOS, EOS, PAD
from s2s.training.objective import Candidates, TrainingStep

ROOT = Path(__file__).resolve().parent.parent
COMPARISONS = sorted((ROOT / "configs" / "compare").glob("*.yaml"))
RECIPES = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path not in COMPARISONS]
VOCABULARY = 12
WITHOUT_LINKS = {"guided", "transformer-guided"}
"""Recipes that learn from word links, of which Multi30k has none."""
GO_ON = {"minimum-risk"}
"""Recipes that are made to begin from a trained run."""


def names(folder: str) -> set[str]:
    """The recipes of one corpus."""
    return {path.stem for path in RECIPES if path.parent.name == folder}


PUBLISHED = {"iwslt14-de-en", "iwslt15-en-vi", "wmt14-en-de"}
"""Corpora whose texts are not here, with settings of papers and toolkits."""


def test_there_are_recipes() -> None:
    assert {path.parent.name for path in RECIPES} >= {"toy", "multi30k", "dates"} | PUBLISHED


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if path.parent.name in PUBLISHED], ids=lambda path: path.stem
)
def test_a_published_recipe_says_what_is_known_of_it(path: Path) -> None:
    """Whose settings, what deviates, that it has not been run here; and the scores that docs/recipes.md has of it."""
    configuration.load(path)
    comment = " ".join(line.removeprefix("# ") for line in path.read_text("utf-8").split("\n") if line.startswith("# "))
    assert re.search(r"\bnot yet run here\b", comment, re.I) and re.search(r"deviat", comment, re.I)
    if path.stem != "base":
        page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
        (row,) = re.findall(rf"^\| `{path.relative_to(ROOT)}` \|.*\|(.*)\|$", page, re.M)
        assert "Published" in comment and set(re.findall(r"\d+\.\d+", row)) <= set(re.findall(r"\d+\.\d+", comment))


def test_a_recipe_has_one_name_on_every_corpus() -> None:
    assert names("multi30k") - {"quick"} == names("toy") - WITHOUT_LINKS
    assert names("dates") < names("toy")


def mechanism(path: Path) -> list[object]:
    """What a recipe's name stands for; sizes, windows, thresholds and starts belong to the corpus."""
    decoder = configuration.load(path).model.decoder
    attention = getattr(decoder, "attention", None)
    plain = [(decoder, "kind"), (decoder, "wiring"), (decoder, "input_feeding")]
    plain += [(attention, part) for part in ("kind", "normaliser", "context")]
    kinds = [(getattr(attention, part, None), "kind") for part in ("score", "estimator", "filter", "inner")]
    return [getattr(holder, part, None) for holder, part in plain + kinds]


@pytest.mark.parametrize("name", sorted((names("multi30k") | names("dates")) - {"base", "quick"}))
def test_a_name_means_one_mechanism_on_every_corpus(name: str) -> None:
    first, *others = (mechanism(path) for path in RECIPES if path.stem == name)
    assert others and all(other == first for other in others)


PEERS = {"encoder": 512, "decoder": 512, "embedding": 256}
"""Widths that scripts/bench/peers give other toolkits for the recurrent workloads."""


@pytest.mark.parametrize("name", ["r1", "r1n", "r2", "cgru"])
def test_a_workload_has_the_sizes_that_peers_are_timed_at(name: str) -> None:
    config = configuration.load(ROOT / "configs" / "bench" / f"{name}.yaml")
    model = config.model
    found = {"encoder": model.encoder.size, "decoder": model.decoder.size, "embedding": model.embedding}  # type: ignore[union-attr]
    assert found == PEERS and config.tokenizer.vocabulary == 8000 and config.batches.tokens == 2048
    assert (model.tie, model.dropout) == ("none", 0.2)


STEPS = [  # the published sizes take seconds each
    pytest.param(
        path,
        marks=[pytest.mark.slow] if path.parent.name in PUBLISHED else [],
        id=str(path.relative_to(ROOT / "configs")),
    )
    for path in RECIPES
]


def one_word_less(model: nn.Module, source: Tensor, lengths: Tensor, target: Tensor, *_: object) -> Candidates:
    """For recipes of minimum risk, without texts: the right translations, and what is left of them without a word."""
    right = [[int(word) for word in row if word > EOS] for row in target]
    return candidates_of([[ids, ids[1:]] for ids in right], [[0.0, 0.5]] * len(right), source.device)


@pytest.mark.parametrize("path", STEPS)
def test_a_recipe_takes_a_training_step(path: Path) -> None:
    config = configuration.load(path)
    torch.manual_seed(config.seed)
    model = config.model.build(VOCABULARY, VOCABULARY)
    step = TrainingStep(model, config.objective, propose=one_word_less)
    optimizer = config.optimizer.build(step)
    source = torch.tensor([[4, 5, 6, EOS], [7, EOS, PAD, PAD]])
    target = torch.tensor([[BOS, 5, 6, 8, EOS], [BOS, 9, EOS, PAD, PAD]])
    before = [parameter.detach().clone() for parameter in step.parameters()]
    model.decoder.set_update(1)
    sums = step(source, torch.tensor([4, 2]), target)
    assert int(sums.tokens) == 6
    (sums.loss / sums.tokens).backward()
    optimizer.step()
    assert 0 < float(sums.nll) / 6 < 4 * math.log(VOCABULARY)
    assert all(parameter.isfinite().all() for parameter in step.parameters())
    assert any(not parameter.equal(old) for parameter, old in zip(step.parameters(), before, strict=True))


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_a_comparison_is_one(path: Path, tmp_path: Path) -> None:
    settings = read_settings(path)
    cells = cells_of(settings, tmp_path)
    ways = math.prod(len(axis) for axis in settings.axes.values())
    assert len(cells) == len(settings.recipes) * ways * len(settings.seeds) and baseline_of(settings, cells)


@pytest.mark.parametrize("name", ["toy", "dates"])
def test_the_comparison_of_a_corpus_has_every_recipe(name: str) -> None:
    """Those that go on from a trained run are compared with others that do."""
    recipes, begun = (
        {Path(recipe).stem for recipe in read_settings(ROOT / "configs" / "compare" / f"{one}.yaml").recipes}
        for one in (name, "warm")
    )
    assert recipes == names(name) - {"base"} - GO_ON and begun >= GO_ON


@pytest.mark.parametrize("path", RECIPES + COMPARISONS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_a_recipe_says_what_it_is_for(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_the_embedded_corpus_is_there() -> None:
    for path in RECIPES:
        if path.parent.name == "toy":
            data = configuration.load(path).data
            for files in (data.train, data.valid, data.test):
                assert files is not None
                assert all(Path(name).is_file() for name in files.model_dump().values() if name is not None)
