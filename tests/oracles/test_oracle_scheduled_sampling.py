"""Oracles of scheduled sampling: what is read instead of the right words, how often, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixtures import decoder_of, recurrent_model, redrawn
from torch import Tensor

from s2s.config import AnyDecoder, AnyEncoder
from s2s.interfaces import PAD
from s2s.models.seq2seq import ModelSettings, Seq2Seq
from s2s.training.objective import ObjectiveSettings, Sums, TrainingStep

SOURCE, LENGTHS = torch.tensor([[4, 5, 6, 2], [5, 7, 2, 0]]), torch.tensor([4, 3])
TARGET = torch.tensor([[1, 4, 6, 5, 2], [1, 8, 2, 0, 0]])
WORDS = 9
RECURRENT: list[dict[str, Any]] = [
    {"attention": {"kind": "global"}},
    {"attention": {"kind": "global"}, "input_feeding": False},
    {"attention": {"kind": "hmm", "reach": 1}, "wiring": "bahdanau"},
    {"attention": {"kind": "latent", "k": 2}, "wiring": "cgru"},
    {"attention": {"kind": "posterior"}},
    {"attention": {"kind": "coverage", "inner": {"kind": "global", "score": "additive"}}},
]
STACK = {"kind": "transformer", "layers": 2, "size": 6, "heads": 2, "feedforward": 8}
TRANSFORMERS: list[dict[str, Any]] = [
    {"positions": "sinusoidal"},
    {"positions": "relative"},
    {"sparse": {"kind": "window", "size": 2}},
]


def models() -> list[Any]:
    return [
        *(pytest.param({"size": 6, **options}, id=str(options)) for options in RECURRENT),
        *(pytest.param(STACK | options, id=str(options)) for options in TRANSFORMERS),
    ]


def model_of(decoder: dict[str, Any]) -> Seq2Seq:
    if decoder.get("kind") != "transformer":
        return redrawn(recurrent_model((WORDS, WORDS), {}, decoder), 0.8).train()
    page = {"embedding": 6, "tie": "none", "dropout": 0.0, "encoder": STACK, "decoder": decoder}
    model = ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(WORDS, WORDS)
    return redrawn(model, 0.8).train()


def measured(model: Seq2Seq, probability: float, target: Tensor = TARGET) -> Sums:
    step = TrainingStep(model, ObjectiveSettings(label_smoothing=0.1, scheduled_sampling=probability)).train()
    result: Sums = step(SOURCE, LENGTHS, target)
    return result


class Heard:
    """The words (B, T) that a decoder was given."""

    def __init__(self, model: Seq2Seq) -> None:
        self.columns: list[Tensor] = []
        model.decoder.register_forward_pre_hook(lambda _, given: self.columns.append(given[0]))

    def words(self) -> Tensor:
        return torch.cat(self.columns, 1)


@torch.no_grad()
@pytest.mark.parametrize("decoder", models())
def test_step_by_step_it_is_teacher_forcing_where_no_coin_falls(decoder: dict[str, Any]) -> None:
    model = model_of(decoder)
    found, plain = measured(model, 1e-30), measured(model, 0.0)
    assert float(found.loss) == pytest.approx(float(plain.loss), abs=1e-10)
    assert {name: float(part) for name, part in found.parts.items()} == pytest.approx(
        {name: float(part) for name, part in plain.parts.items()}, abs=1e-10
    )


@torch.no_grad()
@pytest.mark.parametrize("decoder", models())
def test_own_words_are_read_and_right_words_are_asked_for(decoder: dict[str, Any]) -> None:
    """A model that only ever says 7: then 7 is read in the place of every word but BOS and padding."""
    model = model_of(decoder)
    model.decoder.output.bias[7] = 1000.0
    heard = Heard(model)
    found = measured(model, 1.0)
    assert heard.words().tolist() == [[1, 7, 7, 7], [1, 7, 7, PAD]]
    decoded, memory = model(SOURCE, LENGTHS, heard.words()[:, :4])
    expected = TrainingStep(model, ObjectiveSettings(label_smoothing=0.1)).measure(decoded, memory, TARGET[:, 1:])
    assert float(found.loss) == pytest.approx(float(expected.loss), rel=1e-10)


@torch.no_grad()
def test_how_often_and_which() -> None:
    """A coin for every word; own words come from the model's distribution, without padding and BOS."""
    model = model_of({"size": 6, "attention": {"kind": "global"}})
    output = decoder_of(model).output
    output.weight.zero_()
    chances = torch.tensor([0.2, 0.2, 0.1, 0.05, 0.05, 0.1, 0.1, 0.15, 0.05], dtype=torch.float64)
    output.bias.copy_(chances.log())
    torch.manual_seed(2)
    count = 4000
    heard = Heard(model)
    step = TrainingStep(model, ObjectiveSettings(scheduled_sampling=0.3)).train()
    target = torch.tensor([[1, 4, 4, 4, 2]]).expand(count, -1)
    step(SOURCE[:1].expand(count, -1), LENGTHS[:1].expand(count), target)
    words = heard.words()
    assert (words[:, 0] == 1).all()
    read = words[:, 1:].flatten()
    of_words = chances.clone()
    of_words[:2] = 0.0
    expected = 0.3 * of_words / of_words.sum()
    expected[4] += 0.7
    for word, chance in enumerate(expected.tolist()):
        spread = (chance * (1 - chance) / len(read)) ** 0.5
        assert abs(float((read == word).double().mean()) - chance) <= 4 * spread
    changed = (words[:, 1:] != 4).double()
    both = float((changed[:, 0] * changed[:, 1]).mean())
    assert both == pytest.approx(float(changed[:, 0].mean() * changed[:, 1].mean()), abs=0.02), "a coin for each word"


def test_it_follows_its_ramp_and_never_a_validation() -> None:
    model = model_of({"size": 6, "attention": {"kind": "global"}})
    settings = {"label_smoothing": 0.0, "scheduled_sampling": {"start": 0.0, "end": 0.5, "updates": 10, "after": 5}}
    step = TrainingStep(model, ObjectiveSettings.model_validate(settings)).train()
    found = []
    for update in (1, 5, 10, 15, 99):
        step.set_update(update)
        found.append(step.own_words)
    assert found == pytest.approx([0.0, 0.0, 0.25, 0.5, 0.5])
    heard = Heard(model)
    step.eval()(SOURCE, LENGTHS, TARGET)
    assert torch.equal(heard.words(), TARGET[:, :-1])
    with pytest.raises(ValueError, match="must be a probability"):
        ObjectiveSettings(scheduled_sampling=1.5)


def test_its_gradient_is_that_of_finite_differences() -> None:
    """With the same draws; a drawn word is a constant."""
    model = model_of({"size": 6, "attention": {"kind": "global"}})
    weight = decoder_of(model).embedding.weight

    def loss() -> Tensor:
        torch.manual_seed(3)
        return measured(model, 0.5).loss

    (gradient,) = torch.autograd.grad(loss(), weight)
    with torch.no_grad():
        for place in ((4, 0), (7, 2), (1, 1)):
            weight[place] += 1e-6
            up = float(loss())
            weight[place] -= 2e-6
            down = float(loss())
            weight[place] += 1e-6
            assert float(gradient[place]) == pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-7)


@torch.no_grad()
def test_scores_that_are_no_numbers_are_left_to_the_loss() -> None:
    model = model_of({"size": 6, "attention": {"kind": "global"}})
    decoder_of(model).output.bias[4] = torch.nan
    assert measured(model, 0.5).loss.isnan()


def test_two_readings_of_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="r_drop compares two readings"):
        ObjectiveSettings(r_drop=1.0, scheduled_sampling=0.1)
