"""The tiny-set law for every shipped recipe: four sentences are known by heart, by its own attention and objective."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from grid import Pairs, pairs
from torch import Tensor, nn

from s2s import config as configuration
from s2s.commands.candidates import candidates_of
from s2s.config import AnyDecoder, AnyEncoder, Config
from s2s.interfaces import EOS, PAD
from s2s.models.seq2seq import ModelSettings
from s2s.training.objective import Candidates, TrainingStep

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "compare")
VOCABULARY, SIZE = 9, 32
UPDATES, WARMUP, LOOK_EVERY = 800, 50, 25
RATES = {"rnn": 0.01, "transformer": 0.002, "conv": 0.005, "embedding": 0.01, "decoder-only": 0.002}
"""Learning rates: six layers of a Transformer do not stand what a recurrent layer does."""
TINY = pairs((4, 5, 3, 2), seed=8)
SLACK = 0.05
"""Nats per word that the likelihood may be short of what label smoothing asks for."""


@dataclass(frozen=True)
class Learned:
    """What came of it, measured as in validation."""

    nll: float
    """Per word, dropout off."""
    right: bool
    """Whether every word is the likeliest one after its prefix."""


def shrunk(config: Config) -> ModelSettings[AnyEncoder, AnyDecoder]:
    """The recipe's model, small; everything but widths is its own."""
    page: dict[str, Any] = config.model.model_dump()
    page["embedding"] = SIZE
    for side in ("encoder", "decoder"):
        for width, small in (("size", SIZE), ("feedforward", 2 * SIZE)):
            if width in page[side]:
                page[side][width] = small
    return ModelSettings[AnyEncoder, AnyDecoder].model_validate(page)


def diagonal(some: Pairs) -> Tensor:
    """Word links (B, T, S): the n-th word to the n-th, or to the last there is."""
    steps = torch.arange(some.gold.size(1))
    places = torch.minimum(steps.unsqueeze(0), some.lengths.unsqueeze(1) - 1)  # (B, T)
    links = nn.functional.one_hot(places, some.source.size(1)).float()
    return links * (some.gold != PAD).unsqueeze(-1)


def least(smoothing: float) -> float:
    """The likelihood loss per word of the distribution that label smoothing asks for."""
    return -math.log(1 - smoothing + smoothing / VOCABULARY)


def one_word_less(model: nn.Module, source: Tensor, lengths: Tensor, target: Tensor, *_: object) -> Candidates:
    """For recipes of minimum risk, without texts: the right translations, and what is left of them without a word."""
    right = [[int(word) for word in row if word > EOS] for row in target]
    return candidates_of([[ids, ids[1:]] for ids in right], [[0.0, 0.5]] * len(right), source.device)


def learn(config: Config) -> tuple[Learned, float]:
    """Train on the tiny set until the NLL is low enough, or for `UPDATES`; what came of it, and what is low enough."""
    torch.manual_seed(2)
    enough = least(config.objective.label_smoothing) + SLACK
    step = TrainingStep(shrunk(config).build(VOCABULARY, VOCABULARY), config.objective, propose=one_word_less)
    rate = min(RATES[side.kind] for side in (config.model.encoder, config.model.decoder))
    optimizer = torch.optim.Adam(step.parameters(), lr=rate)
    found = Learned(math.inf, False)
    for update in range(1, UPDATES + 1):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, update / WARMUP)
        step.train()
        step.set_update(update)
        links = diagonal(TINY) if step.guides(update) else None
        sums = step(TINY.source, TINY.lengths, TINY.target, links)
        optimizer.zero_grad()
        (sums.loss / sums.tokens).backward()
        nn.utils.clip_grad_norm_(step.parameters(), 1.0)
        optimizer.step()
        totals = {name: (float(total), float(count)) for name, (total, count) in sums.statistics.items()}
        step.model.decoder.after_update(totals)
        if update % LOOK_EVERY == 0:
            found = measured(step)
            if found.nll < enough and found.right:
                break
    return found, enough


@torch.no_grad()
def measured(step: TrainingStep) -> Learned:
    """The tiny set by a model in evaluation mode."""
    step.eval()
    sums = step(TINY.source, TINY.lengths, TINY.target)
    decoded, memory = step.model(TINY.source, TINY.lengths, TINY.words)
    real = TINY.gold != PAD
    words = step.model.decoder.logits(decoded, memory, real)
    return Learned(float(sums.nll / sums.tokens), bool((words.argmax(-1) == TINY.gold[real]).all()))


def case(path: Path) -> Any:
    """A recipe as a parameter, in the slow tests unless it is one of the embedded corpus."""
    marks = () if path.parent.name == "toy" else pytest.mark.slow
    return pytest.param(path, id=f"{path.parent.name}/{path.stem}", marks=marks)


@pytest.mark.parametrize("path", [case(path) for path in RECIPES])
def test_a_recipe_learns_a_tiny_set(path: Path) -> None:
    """Those of the embedded corpus always, the others, which are the same at other sizes, with the slow tests."""
    found, enough = learn(configuration.load(path))
    assert found.right and found.nll < enough, f"{found.nll:.3f} nats per word, {enough:.3f} allowed"


def test_the_law_can_be_broken() -> None:
    """A decoder that sees nothing of the source cannot tell the sentences apart."""
    blind = ["model.decoder.attention={kind: none}", "model.decoder.start=zero"]
    found, enough = learn(configuration.load(CONFIGS / "toy" / "base.yaml", blind))
    assert not found.right and found.nll > 2 * enough
