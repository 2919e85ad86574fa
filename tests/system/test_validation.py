"""Every validation tells what the attention does, and the training never notices."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from harness import Cli, assert_error, digests, losses, records, train_arguments, validations
from sacrebleu.metrics.bleu import BLEU

import s2s.commands.train
from s2s import config as configuration
from s2s.commands.train import Validator
from s2s.data.batches import collate
from s2s.data.prepare import prepare
from s2s.run import build_model
from s2s.training.objective import TrainingStep

EVERY = {"entropy", "sharpness", "mass", "monotonicity", "coverage", "coverage_error"}
SPREAD = {"gradient_variance", "gradient_square"}
SHORT = ("training.max_updates=6", "training.validate_every=3", "training.save_every=2")
REINFORCE = "{kind: hard, estimator: {kind: reinforce, baseline: moving}}"
LOCAL = "{kind: local-p, window: {start: 6, end: 1, updates: 5}, score: dot}"


def settings(attention: str) -> tuple[str, ...]:
    """A short training with another attention."""
    return (*SHORT, f"model.decoder.attention={attention}")


def strict(word: str) -> float:
    """For JSON that knows no NaN."""
    raise ValueError(word)


def test_every_validation_tells_of_the_attention(finished: Path, finished_transformer: Path) -> None:
    for run in (finished, finished_transformer):
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found = [one["valid"] for line in lines if "valid" in (one := json.loads(line, parse_constant=strict))]
        assert len(found) == 4
        for scores in found:
            told = scores["attention"]
            assert set(told) == EVERY and all(type(value) is float for value in told.values())
            assert 0 < told["entropy"] < math.log(20) and 0 < told["sharpness"] <= 1
            assert told["mass"] == pytest.approx(1.0, abs=1e-5)
            assert {"nll", "ppl", "bleu"} < set(scores)
        assert found[0]["attention"] != found[-1]["attention"]


@pytest.mark.parametrize(
    ("attention", "more"),
    [("{kind: none}", None), (LOCAL, {"in_window", "centre", "centre_step"}), (REINFORCE, {"chosen", *SPREAD})],
)
def test_a_mechanism_adds_its_own(
    project: Path, new_run: Path, cli: Cli, attention: str, more: set[str] | None
) -> None:
    outcome = cli(*train_arguments(project, new_run, *settings(attention)))
    assert outcome.code == 0, outcome
    assert "entropy" not in outcome.err and "gradient_variance" not in outcome.err  # the terminal has what is short
    for _, scores in validations(new_run):
        assert scores.get("attention", {}).keys() == (set() if more is None else EVERY | more)


# --- no influence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", [REINFORCE, LOCAL])
def test_a_stopped_training_goes_on_to_the_same_bits(project: Path, tmp_path: Path, cli: Cli, attention: str) -> None:
    """With draws for the variance of a gradient, and with a window that is a function of the update."""
    for run, stops in (("whole", (6,)), ("parts", (1, 3, 4, 6))):
        for stop in stops:
            change = (*settings(attention), f"training.max_updates={stop}")
            assert cli(*train_arguments(project, tmp_path / run, *change)).code == 0
    whole, parts = (dict(validations(tmp_path / run)) for run in ("whole", "parts"))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    assert {step: parts[step] for step in whole} == whole  # a stop validates too, so there are more


def test_measuring_the_variance_changes_nothing_else(
    project: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, weights, scores and the rest of the diagnostics; also where evaluation draws its positions."""
    change = settings("{kind: hard, estimator: {kind: reinforce, baseline: moving}, evaluate: sample}")
    assert cli(*train_arguments(project, tmp_path / "with", *change)).code == 0
    monkeypatch.setattr(Validator, "_scatter", lambda *_: {})
    assert cli(*train_arguments(project, tmp_path / "without", *change)).code == 0
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert digests(tmp_path / "with") == digests(tmp_path / "without")
    seen, unseen = validations(tmp_path / "with"), validations(tmp_path / "without")
    for _, scores in seen:
        assert all(scores["attention"].pop(name) is not None for name in SPREAD)
    assert seen == unseen and len(seen) == 2


# --- the variance -----------------------------------------------------------------------------------------------------


class Measured:
    """A validator and a model of the project that has learned nothing yet."""

    def __init__(self, project: Path, folder: Path, attention: str) -> None:
        self.config = configuration.load(project / "rnn.yaml", settings(attention))
        self.prepared = prepare(self.config.data, self.config.tokenizer, folder, lambda *_: None, None)
        self.model = build_model(self.config, self.prepared.tokenizers)
        self.validator = Validator(self.config, self.prepared)

    def spread(self) -> dict[str, float]:
        """Variance and square of the gradient."""
        return self.validator._scatter(self.model, torch.device("cpu"), lambda: None)


def test_a_gradient_without_draws_has_no_variance_and_its_own_square(project: Path, tmp_path: Path) -> None:
    """Soft mixing of one reads the soft context in every draw: the gradient is that of the loss, taken once."""
    found = Measured(project, tmp_path, "{kind: hard, estimator: {kind: reinforce, soft_mixing: 1.0}}")
    assert found.validator.corpus is not None and len(found.validator.corpus) == 12  # all of them are used
    batch = collate(found.validator.corpus, np.arange(12), found.prepared.tokenizers)
    model = found.model.eval()
    model.decoder.attention.train()  # type: ignore[union-attr]
    sums = TrainingStep(model, found.config.objective)(batch.source, batch.source_lengths, batch.target)
    (sums.loss / sums.tokens).backward()
    square = sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None)
    assert found.spread() == pytest.approx({"gradient_variance": 0.0, "gradient_square": square}, rel=1e-5)


def test_nothing_that_training_reads_is_touched(project: Path, tmp_path: Path) -> None:
    found = Measured(project, tmp_path, REINFORCE)
    model: Any = found.model.train()
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.random.get_rng_state()
    first = found.spread()
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    assert all((parameter.grad == 1).all() for parameter in model.parameters())
    assert not any(part.training for part in model.modules())  # as a validation leaves it
    assert found.spread() == first and first["gradient_variance"] > 0


def test_a_signal_is_heard_between_draws(project: Path, tmp_path: Path) -> None:
    found = Measured(project, tmp_path, REINFORCE)

    def leave() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        found.validator._scatter(found.model, torch.device("cpu"), leave)
    assert not any(part.training for part in found.model.modules())


def test_every_update_says_how_long_it_waited(finished: Path) -> None:
    """For its batches, in seconds; less than it took."""
    updates = [record for record in records(finished) if "loss" in record]
    for before, after in zip([{"seconds": 0.0}, *updates], updates, strict=False):
        assert 0 <= after["waited"] <= after["seconds"] - before["seconds"] + 0.002
    assert any(record["waited"] > 0 for record in updates)


def test_a_language_without_blanks_is_cut_as_sacrebleu_cuts_it(
    project: Path, new_run: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one word a line nearly right translations have a BLEU of zero, and the first checkpoint stays the best."""
    right, found = ["我们今天去公园玩。", "她喜欢吃苹果和香蕉。"], ["我们今天去公园。", "她喜欢吃苹果。"]
    files = {"source": ["The man.", "The old dog."], "target": right}
    for side, lines in files.items():
        (tmp_path / side).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    both = f"{{source: {tmp_path}/source, target: {tmp_path}/target}}"
    arguments = ("training.max_updates=1", f"data.valid={both}", f"data.test={both}", "data.language=zh")
    with monkeypatch.context() as patch:
        said = [SimpleNamespace(text=line) for line in found]
        patch.setattr(s2s.commands.train.Translator, "translate", lambda *_, **__: iter(said))
        assert cli(*train_arguments(project, new_run, *arguments, "training.validate_every=1")).code == 0
    expected = BLEU(trg_lang="zh").corpus_score(found, [right]).score
    assert expected > 50 > 10 > BLEU().corpus_score(found, [right]).score
    assert validations(new_run)[-1][1]["bleu"] == pytest.approx(expected)
    evaluated = cli("eval", "--model", new_run, "--json", "--significance", "none")
    assert "tok:zh" in json.loads(evaluated.out)["systems"][0]["scores"][0]["signature"]
    assert cli("report", new_run, "--split", "test", "-o", tmp_path / "page.html").code == 0
    assert "tok:zh" in (tmp_path / "page.html").read_text(encoding="utf-8")
    shutil.copytree(new_run, tmp_path / "second")
    settings = (new_run / "config.yaml").read_text()
    (tmp_path / "second" / "config.yaml").write_text(settings.replace("language: zh", "language: null"))
    two = ("eval", "--model", new_run, "--model", tmp_path / "second", "--json", "--significance", "none")
    assert "tok:zh" in json.loads(cli(*two).out)["systems"][1]["scores"][0]["signature"]
    (tmp_path / "second" / "config.yaml").write_text(settings.replace("language: zh", "language: de"))
    assert_error(cli(*two), 2, "different target languages, de, zh", "--language-pair")
    refused = cli(*train_arguments(project, tmp_path / "other", "data.language=zh_CN"))
    assert refused.code == 2 and "data.language" in refused.err
