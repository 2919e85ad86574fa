"""Measures how far the estimators of hard attention are from the exact gradient, and how far they scatter.

    python scripts/estimator_variance.py            measure; write docs/results/estimator-variance.json and the table
    python scripts/estimator_variance.py --table    only write the table in docs/attention.md, from that file

A small model reads short sentences of the embedded corpus, word by word. Its contexts are not fed back, so enumerating
the positions gives the exact gradient of Jensen's bound, which every estimator is an estimate of. It is taken at two
points: the model's first weights, where attention is nearly uniform, and after training by enumeration. All seeds are
fixed and there is one thread. A draw is one pass over the sentences; they stand several times in a batch, which gives
as many draws at once: the variance of one is that of their mean times their number.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from shared import ROOT
from torch import Tensor

from s2s.analysis.diagnostics import Diagnostics, GradientMoments, gradient_moments
from s2s.config import AnyDecoder, AnyEncoder
from s2s.data.text import read_raw_lines
from s2s.interfaces import BOS, EOS, PAD, UNK
from s2s.models.rnn_decoder import RNNDecoder
from s2s.models.seq2seq import ModelSettings, Seq2Seq
from s2s.training.objective import ObjectiveSettings, Sums, TrainingStep

RESULT = ROOT / "docs" / "results" / "estimator-variance.json"
PAGE = ROOT / "docs" / "attention.md"
BEGIN, END = "<!-- estimator-variance: begin -->", "<!-- estimator-variance: end -->"

LONGEST, PAIRS, SENTENCES, SIZE = 8, 400, 8, 16
UPDATES, BATCH, RATE, SEED = 300, 32, 1e-2, 1
AT_ONCE, PASSES = 8, 160
"""Draws of a pass, and passes: 1,280 draws of every estimator."""
WARM = 50
"""Passes from which the moving baseline has its mean, before any draw is counted."""
GROUPS = {"scores": "decoder.wiring.attention.", "encoder": "encoder.", "decoder": ""}
"""Parameters by the first of these that their names begin with."""
MEASURES = ("distance", "standard_error", "variance")
"""What is known of a group."""

Options = dict[str, Any]
ESTIMATORS: dict[str, Options] = {
    "enumerate": {"kind": "enumerate"},
    **{
        f"reinforce, baseline {name}": {"kind": "reinforce", "baseline": name, "soft_mixing": 0.0}
        for name in ("none", "moving", "self")
    },
    **{
        f"gumbel, {name}, temperature {temperature}": {
            "kind": "gumbel", "straight_through": name == "straight through", "temperature": temperature
        }
        for name in ("straight through", "relaxed") for temperature in (1.0, 0.5, 0.1)
    },
}  # fmt: skip


# --- the problem ------------------------------------------------------------------------------------------------------


class Pairs(NamedTuple):
    """Sentences as a training step takes them."""

    source: Tensor
    lengths: Tensor
    target: Tensor

    def rows(self, rows: Tensor) -> Pairs:
        """Some of them."""
        return Pairs(self.source[rows], self.lengths[rows], self.target[rows])


def _numbers(lines: Iterable[str]) -> tuple[list[list[int]], int]:
    """Words as numbers in the order in which they come, EOS at the end; and how many numbers there are."""
    known: dict[str, int] = {}
    numbered = [[known.setdefault(word, UNK + 1 + len(known)) for word in line.split()] + [EOS] for line in lines]
    return numbered, UNK + 1 + len(known)


def _padded(rows: Sequence[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def corpus() -> tuple[Pairs, int, int]:
    """The first short pairs of the embedded corpus, and the sizes of the two vocabularies."""
    sides = [read_raw_lines(ROOT / "data" / "toy" / f"train.{side}") for side in ("en", "de")]
    short = [pair for pair in zip(*sides, strict=True) if max(len(side.split()) for side in pair) <= LONGEST][:PAIRS]
    source, source_words = _numbers(one for one, _ in short)
    target, target_words = _numbers(other for _, other in short)
    lengths = torch.tensor([len(row) for row in source])
    return Pairs(_padded(source), lengths, _padded([[BOS, *row] for row in target])), source_words, target_words


def build(estimator: Options, words: tuple[int, int]) -> Seq2Seq:
    """The model in float64 and training mode; its first weights are the same for every estimator."""
    decoder = {
        "kind": "rnn", "cell": "gru", "size": SIZE, "wiring": "luong", "input_feeding": False,
        "attention": {"kind": "hard", "score": "general", "estimator": estimator},
    }  # fmt: skip
    encoder = {"kind": "rnn", "cell": "gru", "size": SIZE}
    page = {"embedding": SIZE, "tie": "none", "dropout": 0.0, "encoder": encoder, "decoder": decoder}
    torch.manual_seed(SEED)
    return ModelSettings[AnyEncoder, AnyDecoder].model_validate(page).build(*words).double().train()


def forward(model: Seq2Seq, pairs: Pairs) -> Sums:
    """The sums of one pass, without label smoothing."""
    sums: Sums = TrainingStep(model, ObjectiveSettings(label_smoothing=0.0))(*pairs)
    return sums


def train(model: Seq2Seq, pairs: Pairs) -> None:
    """Some updates by the model's own estimator."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(UPDATES):
        sums = forward(model, pairs.rows(torch.randint(len(pairs.source), (BATCH,), generator=generator)))
        optimizer.zero_grad()
        torch.autograd.backward(sums.loss / sums.tokens)
        optimizer.step()


# --- the measurement --------------------------------------------------------------------------------------------------


def measure(model: Seq2Seq, pairs: Pairs, at_once: int, passes: int) -> GradientMoments:
    """Moments of the gradient of the loss per target token, the variance being that of a single draw."""
    repeated = pairs.rows(torch.arange(len(pairs.source)).repeat(at_once))
    torch.manual_seed(SEED)
    _warm(model, repeated)

    def draw(_: int) -> Sequence[Tensor]:
        sums = forward(model, repeated)
        return torch.autograd.grad(sums.loss / sums.tokens, list(model.parameters()), materialize_grads=True)

    found = gradient_moments(draw, passes)
    return GradientMoments(found.mean, [at_once * one for one in found.variance], at_once * passes)


@torch.no_grad()
def _warm(model: Seq2Seq, pairs: Pairs) -> None:
    """Let a moving baseline find its mean at these weights."""
    for _ in range(WARM):
        totals = forward(model, pairs).statistics
        if not totals:
            return
        model.decoder.after_update({name: (float(total), float(count)) for name, (total, count) in totals.items()})


def compared(model: Seq2Seq, found: GradientMoments, exact: Sequence[Tensor]) -> Options:
    """By group of parameters: the mean's distance from the exact gradient, its standard error, and the variance.

    The first two are relative to the length of the group's exact gradient, the variance (the trace of the covariance of
    one draw) to its square. Without a bias the distance is about the standard error.
    """
    sums = {name: [0.0, 0.0, 0.0] for name in ("all", *GROUPS)}
    names = [name for name, _ in model.named_parameters()]
    for name, mean, variance, gradient in zip(names, found.mean, found.variance, exact, strict=True):
        own = next(group for group, prefix in GROUPS.items() if name.startswith(prefix))
        parts = (float((mean - gradient).square().sum()), variance, float(gradient.square().sum()))
        for group in ("all", own):
            sums[group] = [total + part for total, part in zip(sums[group], parts, strict=True)]
    return {
        name: {
            "distance": _short(math.sqrt(distance / square)),
            "standard_error": _short(math.sqrt(variance / found.draws / square)),
            "variance": _short(variance / square),
        }
        for name, (distance, variance, square) in sums.items()
    }


def _short(value: float) -> float:
    """Four digits: more would differ from machine to machine."""
    return float(f"{value:.4g}")


@torch.no_grad()
def attention_of(model: Seq2Seq, pairs: Pairs) -> dict[str, float]:
    """What the attention does at these weights; see `s2s.analysis.diagnostics`."""
    diagnostics = Diagnostics()
    decoded, memory = model.eval()(pairs.source, pairs.lengths, pairs.target[:, :-1], Diagnostics.WANT)
    diagnostics.add(model.decoder, decoded, memory, pairs.target[:, 1:] != PAD)
    model.train()
    return {name: _short(value) for name, value in diagnostics.means().items()}


def at_a_point(reference: Seq2Seq, pairs: Pairs, words: tuple[int, int], at_once: int, passes: int) -> Options:
    """All estimators at the weights of ``reference``, whose own estimator enumerates."""
    sums = forward(reference, pairs)
    exact = torch.autograd.grad(sums.loss / sums.tokens, list(reference.parameters()))
    rows = {}
    for name, estimator in ESTIMATORS.items():
        model = build(estimator, words)
        model.load_state_dict(reference.state_dict(), strict=False)  # a moving baseline is the one's own
        few = (1, 2) if name == "enumerate" else (at_once, passes)  # nothing is drawn: two passes are the same
        rows[name] = compared(model, measure(model, pairs, *few), exact)
    found = sums.nll + sum(sums.parts.values(), torch.zeros(()))
    return {"bound": _short(float(-found / sums.tokens)), "attention": attention_of(reference, pairs), "rows": rows}


def result() -> Options:
    """The whole measurement."""
    torch.set_num_threads(1)
    everything, *words = corpus()
    some = everything.rows(torch.arange(SENTENCES))
    reference = build(ESTIMATORS["enumerate"], (words[0], words[1]))
    assert isinstance(reference.decoder, RNNDecoder)
    points = {"at the first weights": at_a_point(reference, some, (words[0], words[1]), AT_ONCE, PASSES)}
    train(reference, everything)
    points[f"after {UPDATES} updates by enumeration"] = at_a_point(
        reference, some, (words[0], words[1]), AT_ONCE, PASSES
    )
    return {
        "problem": {
            "sentences": SENTENCES, "longest": LONGEST, "target_tokens": int((some.target[:, 1:] != PAD).sum()),
            "source_words": words[0], "target_words": words[1], "size": SIZE, "training_pairs": PAIRS,
            "updates": UPDATES, "batch": BATCH, "rate": RATE, "seed": SEED,
            "parameters": sum(parameter.numel() for parameter in reference.parameters()),
        },
        "draws": AT_ONCE * PASSES,
        "torch": str(torch.__version__),
        "points": points,
    }  # fmt: skip


# --- the table --------------------------------------------------------------------------------------------------------


def table(found: Options) -> str:
    """The tables for the page, one for each point."""
    lines = []
    for name, point in found["points"].items():
        attention = point["attention"]
        lines += [
            f"{name.capitalize()} (entropy of α {attention['entropy']:.2f} nats, largest weight "
            f"{attention['sharpness']:.2f}, bound {point['bound']:.2f} nats a word):",
            "",
            "| estimator | all: distance | standard error | variance | scores: distance | standard error | variance |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]
        for estimator, row in point["rows"].items():
            numbers = [_shown(row[group][name]) for group in ("all", "scores") for name in MEASURES]
            lines.append(f"| {estimator} | {' | '.join(numbers)} |")
        lines.append("")
    return "\n".join(lines[:-1])


def _shown(value: float) -> str:
    return "0" if value < 1e-9 else f"{value:.3f}" if value < 10 else f"{value:,.0f}"


def on_page(page: str, found: Options) -> str:
    """The page with the tables between its markers. Raises ValueError where these are not there."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE}: no {BEGIN} and {END}; write both where the table belongs")
    return f"{before}{BEGIN}\n{table(found)}\n{END}{after}"


def main() -> None:
    """Measure, or only write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table from the result file")
    if not parser.parse_args().table:
        RESULT.write_text(json.dumps(result(), indent=1) + "\n", encoding="utf-8")
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    PAGE.write_text(on_page(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
