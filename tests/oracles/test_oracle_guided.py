"""Oracles of guided alignment: the cross entropy between word links and attention, for every kind of decoder."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s2s import config as configuration
from s2s.config import AnyDecoder, AnyEncoder
from s2s.data.batches import Batch
from s2s.errors import ConfigError
from s2s.interfaces import BOS, EOS, PAD
from s2s.models.seq2seq import ModelSettings, Seq2Seq
from s2s.training.objective import GuidedSettings, ObjectiveSettings, TrainingStep, guided_loss
from s2s.training.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
SOURCE, LENGTHS = torch.tensor([[5, 3, 7, EOS], [6, 4, EOS, PAD]]), torch.tensor([4, 3])
TARGET = torch.tensor([[BOS, 4, 6, 3, 7, EOS], [BOS, 5, 4, EOS, PAD, PAD]])
REAL = TARGET[:, 1:] != PAD


def links() -> Tensor:
    """(B, T, S): one link, two, none, one to the end; in the second sentence two and two, and rubbish in padding."""
    found = torch.zeros(2, 5, 4)
    found[0, 0, 1] = found[0, 3, 3] = found[1, 0, 0] = 1.0
    found[0, 1, 0] = found[0, 1, 2] = found[1, 1, 0] = found[1, 1, 1] = 0.5
    return found


def by_loops(weights: Tensor, linked: Tensor) -> float:
    """-sum of A_ts log a_ts over the real positions that have a link."""
    total = 0.0
    for row, count in enumerate([5, 3]):
        for t in range(count):
            for s in range(linked.size(-1)):
                if linked[row, t, s]:
                    total -= float(linked[row, t, s]) * math.log(float(weights[row, t, s]))
    return total


def attention() -> Tensor:
    """Some weights (B, T, S)."""
    scores = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return scores.softmax(-1)


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy_of_linked_positions() -> None:
    weights = attention()
    assert float(guided_loss(weights, links(), REAL)) == pytest.approx(by_loops(weights, links()), abs=1e-12)


def test_fixture() -> None:
    """One link at weight 1/2 and two at 1/4 each, a row of no links between them: log 2 + log 4."""
    weights = torch.tensor([[[0.5, 0.25, 0.25], [0.0, 0.0, 1.0], [0.5, 0.25, 0.25]]], dtype=torch.float64)
    linked = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.5, 0.5]]])
    real = torch.ones(1, 3, dtype=torch.bool)
    assert float(guided_loss(weights, linked, real)) == pytest.approx(math.log(2) + math.log(4))
    assert float(guided_loss(weights, linked[:, 1:2].expand(1, 3, 3), real)) == 0.0


def test_what_stands_in_padding_and_in_rows_without_links_has_no_influence() -> None:
    weights, linked = attention(), links()
    expected = guided_loss(weights, linked, REAL)
    spoiled = weights.masked_fill(~(REAL & linked.any(-1)).unsqueeze(-1), torch.nan).requires_grad_()
    linked[1, 3:] = 0.25
    found = guided_loss(spoiled, linked, REAL)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, spoiled)
    assert gradient.isfinite().all() and not gradient[1, 3:].any() and not gradient[0, 2].any()


def test_the_gradient_is_minus_links_over_weights() -> None:
    weights = attention().requires_grad_()
    (gradient,) = torch.autograd.grad(guided_loss(weights, links(), REAL), weights)
    torch.testing.assert_close(gradient, -(links() * REAL.unsqueeze(-1)) / weights.detach())


def test_weights_of_exactly_zero_are_dear_but_finite() -> None:
    weights = torch.tensor([[[0.0, 1.0]]], dtype=torch.float32, requires_grad=True)
    found = guided_loss(weights, torch.tensor([[[0.5, 0.5]]]), torch.ones(1, 1, dtype=torch.bool))
    assert float(found.detach()) == pytest.approx(0.5 * 20 * math.log(10), rel=1e-5)
    (gradient,) = torch.autograd.grad(found, weights)
    assert gradient[0, 0].tolist() == [0.0, -0.5]


def test_low_precision_weights_give_a_float32_loss() -> None:
    found = guided_loss(attention().to(torch.bfloat16), links(), REAL)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(by_loops(attention(), links()), rel=0.02)


# --- in training ------------------------------------------------------------------------------------------------------

RNN: dict[str, Any] = {"kind": "rnn", "size": 6, "cell": "gru"}
STACK: dict[str, Any] = {"kind": "transformer", "size": 6, "layers": 2, "heads": 2, "feedforward": 8}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "luong": (RNN, {**RNN, "attention": {"kind": "global"}}),
    "at-once": (RNN, {**RNN, "input_feeding": False, "attention": {"kind": "global"}}),
    "bahdanau": (RNN, {**RNN, "wiring": "bahdanau", "attention": {"kind": "global", "score": "additive"}}),
    "transformer": (STACK, STACK),
}
each_model = pytest.mark.parametrize("name", MODELS)


def model_of(name: str, dropout: float = 0.0) -> Seq2Seq:
    """A model in float64."""
    encoder, decoder = MODELS[name]
    page = {"embedding": 6, "tie": "none", "dropout": dropout, "encoder": encoder, "decoder": decoder}
    torch.manual_seed(3)
    return ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(9, 9).double()


def guided(model: nn.Module, **options: Any) -> TrainingStep:
    """A step whose objective is guided."""
    return TrainingStep(model, ObjectiveSettings(label_smoothing=0.1, guided=GuidedSettings(**options)))


@torch.no_grad()
@each_model
def test_links_add_their_share_to_the_loss_and_nothing_else(name: str) -> None:
    model = model_of(name)
    weights = model(SOURCE, LENGTHS, TARGET[:, :-1], frozenset({"weights"}))[0].weights
    plain = TrainingStep(model, ObjectiveSettings())(SOURCE, LENGTHS, TARGET)
    found = guided(model, weight=0.3)(SOURCE, LENGTHS, TARGET, links())
    share = 0.3 * by_loops(weights, links())
    assert {name: float(part) for name, part in found.parts.items()} == {"guided": pytest.approx(share, abs=1e-10)}
    assert float(found.loss) == pytest.approx(float(plain.loss) + share, abs=1e-10)
    assert float(found.nll) == pytest.approx(float(plain.nll), abs=1e-12) and found.tokens == plain.tokens
    unguided = guided(model)(SOURCE, LENGTHS, TARGET)
    assert not unguided.parts and float(unguided.loss) == pytest.approx(float(plain.loss), abs=1e-12)


@torch.no_grad()
@each_model
def test_two_sentences_are_one_and_one(name: str) -> None:
    step = guided(model_of(name))
    whole = step(SOURCE, LENGTHS, TARGET, links())
    one = step(SOURCE[:1], LENGTHS[:1], TARGET[:1], links()[:1])
    other = step(SOURCE[1:, :3], LENGTHS[1:], TARGET[1:, :4], links()[1:, :3, :3])
    torch.testing.assert_close(whole.loss, one.loss + other.loss)
    torch.testing.assert_close(whole.parts["guided"], one.parts["guided"] + other.parts["guided"])


@each_model
def test_attention_learns_to_point_where_the_links_do(name: str) -> None:
    step = guided(model_of(name), weight=2.0)
    optimizer = torch.optim.Adam(step.parameters(), lr=0.03)
    before = after = 0.0
    for update in range(40):
        sums = step(SOURCE, LENGTHS, TARGET, links())
        optimizer.zero_grad()
        sums.loss.backward()
        optimizer.step()
        before, after = (float(sums.parts["guided"]) if update == 0 else before), float(sums.parts["guided"])
    least = 2.0 * 2 * math.log(2)  # two rows have two links: their entropy cannot be undercut
    assert least - 1e-6 <= after < least + 0.3 * (before - least)


def test_without_links_weights_are_not_asked_for() -> None:
    """A Transformer adds its heads up only where somebody wants to see them."""
    model, wanted = model_of("transformer"), list[frozenset[str]]()

    class Listener(nn.Module):
        decoder = model.decoder

        def forward(self, *arguments: Any) -> Any:
            wanted.append(arguments[3])
            return model(*arguments)

    step = guided(Listener())
    step(SOURCE, LENGTHS, TARGET)
    step(SOURCE, LENGTHS, TARGET, links())
    assert wanted == [frozenset(), frozenset({"weights"})]


def test_guiding_may_end() -> None:
    model = model_of("luong")
    assert not TrainingStep(model, ObjectiveSettings()).guides(1)
    assert guided(model).guides(10**9)
    assert [guided(model, until=3).guides(update) for update in (1, 3, 4)] == [True, True, False]


def test_the_trainer_hands_the_links_of_a_batch_on_while_updates_are_guided() -> None:
    step = guided(model_of("luong"), until=3)
    lengths = (TARGET != PAD).sum(1) - 1
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    trainer: Any = SimpleNamespace(
        seed=1, precision="float32", device=torch.device("cpu"), step=step.double(), scaler=scaler
    )
    with_links = Batch(SOURCE, LENGTHS, TARGET, lengths, [0, 1], links())
    names = [list(Trainer._gradients(trainer, with_links, update, 0, 8).parts) for update in (3, 4)]
    without = Batch(SOURCE, LENGTHS, TARGET, lengths, [0, 1], None)
    assert names == [["guided"], []] and not Trainer._gradients(trainer, without, 1, 0, 8).parts


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["guided", "transformer-guided"])
def test_its_configs_are_guided(name: str) -> None:
    config = configuration.load(CONFIGS / "toy" / f"{name}.yaml")
    assert config.objective.guided is not None and config.data.train.links is not None
    assert config.model.decoder.kind == ("rnn" if name == "guided" else "transformer")


def test_without_word_links_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective\.guided: there are no word links .* data\.train\.links"):
        configuration.load(CONFIGS / "toy" / "guided.yaml", ["data.train.links=null"])
    with pytest.raises(ConfigError, match="no word links"):
        configuration.load(CONFIGS / "multi30k" / "luong-general.yaml", ["objective.guided.weight=0.5"])


def test_without_attention_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no weights"):
        configuration.load(CONFIGS / "toy" / "none.yaml", ["objective.guided.weight=0.5"])


@pytest.mark.parametrize("change", ["weight=0", "weight=-1", "until=0"])
def test_its_limits(change: str) -> None:
    with pytest.raises(ConfigError):
        configuration.load(CONFIGS / "toy" / "guided.yaml", [f"objective.guided.{change}"])
