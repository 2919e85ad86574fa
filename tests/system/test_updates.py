"""What updates do to the weights, told again from the checkpoints of a run by plain arithmetic."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness import Cli, losses, records, train_arguments, validations
from torch import Tensor

from s2s import config as configuration
from s2s.checkpoint import Loaded, load, load_model
from s2s.commands.train import likelihood
from s2s.data.batches import valid_batches
from s2s.data.prepare import prepare
from s2s.run import Run, build_model, load_trained
from s2s.training.trainer import own_tensors

EVERY = ("training.save_every=1", "training.keep_last=99", "training.validate_every=3")


def checkpoints(run: Path) -> list[Loaded]:
    """All of them, the oldest first."""
    return [load(path) for path in sorted((run / "checkpoints").iterdir())]


def beginning(run: Path) -> dict[str, Tensor]:
    """The weights before the first update."""
    tokenizers = load_trained(run, torch.device("cpu")).tokenizers
    model = build_model(configuration.load(Run(run).config), tokenizers)
    return {name: tensor.detach().clone() for name, tensor in own_tensors(model).items()}


def length(after: dict[str, Tensor], before: dict[str, Tensor]) -> float:
    """Of the step from one to the other, over all parameters."""
    return math.sqrt(sum(float((after[name].double() - before[name].double()).square().sum()) for name in after))


def test_a_step_is_as_long_as_rate_and_clipping_let_it_be(project: Path, new_run: Path, cli: Cli) -> None:
    """Plain gradient descent: the rate, risen to so far, times the gradient's norm or what that is cut down to."""
    clip, rate, warmup = 0.35, 0.8, 4
    rule = f"optimizer={{kind: sgd, lr: {rate}, clip: {clip}, schedule: {{kind: constant, warmup: {warmup}}}}}"
    found = cli(*train_arguments(project, new_run, *EVERY, rule, "training.max_updates=12", "model.dropout=0"))
    assert found.code == 0, found
    norms = [record["grad_norm"] for record in records(new_run) if "grad_norm" in record]
    assert min(norms) < clip < max(norms), norms  # some are cut, some are not
    weights = [beginning(new_run), *(one.snapshot.model for one in checkpoints(new_run))]
    for update, norm in enumerate(norms, start=1):
        expected = rate * min(1.0, update / warmup) * min(norm, clip)
        assert length(weights[update], weights[update - 1]) == pytest.approx(expected, rel=1e-3), update


def test_the_average_is_the_formula_and_is_what_validation_sees(project: Path, new_run: Path, cli: Cli) -> None:
    decay = 0.5  # reached when (1 + n) / (10 + n) is as large, after eight updates
    found = cli(*train_arguments(project, new_run, *EVERY, f"training.ema={decay}", "training.max_updates=12"))
    assert found.code == 0, found
    expected = {name: tensor.double() for name, tensor in beginning(new_run).items()}
    for n, one in enumerate(checkpoints(new_run), start=1):
        share = min(decay, (1 + n) / (10 + n))
        for name, tensor in one.snapshot.model.items():
            expected[name] = share * expected[name] + (1 - share) * tensor.double()
        assert one.snapshot.average is not None
        for name, tensor in one.snapshot.average.items():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
    last = load_model(new_run, "latest").snapshot.model
    assert all(torch.equal(last[name], tensor) for name, tensor in one.snapshot.average.items())
    assert any(not torch.equal(last[name], tensor) for name, tensor in one.snapshot.model.items())
    trained = load_trained(new_run, torch.device("cpu"), "latest")
    prepared = prepare(trained.config.data, trained.config.tokenizer, new_run / "again", lambda *_: None, None)
    assert prepared.valid is not None
    batches = valid_batches(prepared.valid.source_lengths, prepared.valid.target_lengths, trained.config.batches)
    nll, _ = likelihood(trained.model, prepared.valid, batches, prepared, torch.device("cpu"), lambda: None)
    step, scores = validations(new_run)[-1]
    assert (step, scores["nll"]) == (12, pytest.approx(nll, rel=1e-6))


def test_the_rate_falls_after_validations_that_bring_nothing(
    project: Path, new_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A better score and a reduction both begin the count anew."""
    series = iter([5.0, 4.0, 6.0, 5.0, 5.5, 6.0, 1.0, 7.0, 6.9, 6.8])
    #              best  -   best  -   down  -   down best  -  down

    def scored(found: object, references: object, metrics: tuple[str, ...], language: str) -> list[Any]:
        value = next(series)
        return [SimpleNamespace(name=name, value=value) for name in metrics]

    monkeypatch.setattr("s2s.commands.train.score_all", scored)
    rule = "optimizer={kind: adam, lr: 0.01, schedule: {kind: plateau, patience: 2, decay: 0.5}}"
    arguments = train_arguments(project, new_run, rule, "training.max_updates=10", "training.validate_every=1")
    assert cli(*arguments).code == 0
    rates = [record["lr"] for record in records(new_run) if "lr" in record]
    assert rates == [0.01] * 5 + [0.005] * 2 + [0.0025] * 3
    assert len(losses(new_run)) == 10


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        ("rnn.yaml", "model.encoder.embedding_dropout"),
        ("rnn.yaml", "model.decoder.embedding_dropout"),
        ("rnn.yaml", "model.decoder.output_dropout"),
        ("transformer.yaml", "model.encoder.attention_dropout"),
        ("transformer.yaml", "model.decoder.attention_dropout"),
        ("transformer.yaml", "model.encoder.activation_dropout"),
        ("transformer.yaml", "model.decoder.activation_dropout"),
    ],
)
def test_every_dropout_drops(project: Path, config: str, setting: str) -> None:
    """It alone makes training differ from evaluation, and one draw from another."""
    given = configuration.load(project / config, ["model.dropout=0", "objective.label_smoothing=0"])
    prepared = prepare(given.data, given.tokenizer, project / "cache", lambda *_: None, None)
    source, lengths = torch.tensor([[5, 6, 7, 8, 3]]), torch.tensor([5])
    target = torch.tensor([[2, 5, 6, 7]])

    def read(settings: list[str], training: bool, seed: int) -> Tensor:
        config_of = configuration.load(project / config, ["model.dropout=0", *settings])
        model: Any = build_model(config_of, prepared.tokenizers).train(training)
        torch.manual_seed(seed)
        decoded, memory = model(source, lengths, target)
        return model.decoder.logits(decoded, memory, torch.ones_like(target, dtype=torch.bool)).detach()

    without = read([], True, 1)
    assert torch.equal(without, read([], False, 2))
    torch.testing.assert_close(read([f"{setting}=0.5"], False, 1), without)
    first, second = (read([f"{setting}=0.5"], True, seed) for seed in (1, 2))
    assert not torch.allclose(first, without, atol=1e-4) and not torch.allclose(first, second, atol=1e-4)
