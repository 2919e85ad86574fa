"""Scripted models for the tests of search: small trees of probabilities, worked out by hand or enumerated."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from s2s.interfaces import BOS, EOS, NOTHING, PAD, UNK, Before
from s2s.search.beam import Hypothesis, SearchSettings, beam_search
from s2s.tree import Tree, repeat

A, B, C, D = 4, 5, 6, 7
VOCABULARY = 8
Words = tuple[int, ...]
Script = Callable[[Words], dict[int, float]]
"""Words said so far to the probability of each next one; those not named are impossible."""
Attention = Callable[[Words], Sequence[float]]


class Scripted:
    """A model that obeys one script per sentence; the first source token is the number of the script.

    The words said so far live in the state, so a state that is not reordered with the beam gives wrong answers. Its
    attention is (the tokens read so far as decimal digits, BOS first; the script's number; zeros).
    """

    sentences_before = 0
    same_age = True
    grows = True

    def __init__(
        self, *scripts: Script, dtype: torch.dtype = torch.float32, attention: Attention | None = None
    ) -> None:
        """``attention`` gives other weights for the words said so far, as many as the source is long."""
        self.scripts, self.dtype, self.attention = scripts, dtype, attention
        self.seen: list[list[int]] = []
        """Of each step, the script of every row."""
        self.read: list[list[Words]] = []
        """Of each step, what every row has said."""

    def start(
        self,
        source: Tensor,
        lengths: Tensor,
        want: frozenset[str] = NOTHING,
        places: int = 1,
        before: Before | None = None,
    ) -> tuple[Tree, Tree]:
        self.want = want
        return repeat(((source,), {"said": source.new_zeros(len(source), 0)}), places)

    def step(self, token: Tensor, memory: Tree, state: Tree) -> tuple[Tensor, Tensor | None, Tree]:
        source, said = memory[0], torch.cat((state["said"], token.unsqueeze(1)), 1)
        self.seen.append(source[:, 0].tolist())
        self.read.append([tuple(read[1:]) for read in said.tolist()])
        log_probabilities = torch.full((len(token), VOCABULARY), -torch.inf, dtype=self.dtype)
        weights = torch.zeros(source.shape)
        for row, (script, read) in enumerate(zip(source[:, 0].tolist(), said.tolist(), strict=True)):
            assert read[0] == BOS
            for word, probability in self.scripts[script](tuple(read[1:])).items():
                log_probabilities[row, word] = math.log(probability) if probability else -math.inf
            if self.attention is None:
                weights[row, 0], weights[row, 1] = float("".join(map(str, read))), script
            else:
                shown = self.attention(tuple(read[1:]))
                weights[row, : len(shown)] = torch.tensor(shown)
        return log_probabilities, weights, {"said": said}


class Copier:
    """Says its source again; all it remembers is how far it is. Ids are below ``size``."""

    same_age = False
    grows = False

    def __init__(self, size: int, sentences_before: int = 0) -> None:
        self.size, self.sentences_before = size, sentences_before

    def start(
        self,
        source: Tensor,
        lengths: Tensor,
        want: frozenset[str] = NOTHING,
        places: int = 1,
        before: Before | None = None,
    ) -> tuple[Tree, Tree]:
        return repeat(((source,), lengths.new_zeros(len(source))), places)

    def step(self, token: Tensor, memory: Tree, state: Tree) -> tuple[Tensor, Tensor | None, Tree]:
        source, rows = memory[0], torch.arange(len(token))
        scores = torch.full((len(token), self.size), -10.0)
        scores[rows, source[rows, state]] = 0.0
        return scores.log_softmax(-1), None, (state + 1).clamp(max=source.size(1) - 1)


def tree(branches: dict[Words, dict[int, float]]) -> Script:
    """The script with these branches; EOS is certain everywhere else."""
    return lambda said: branches.get(said, {EOS: 1.0})


def always(words: dict[int, float]) -> Script:
    return lambda said: words


def noise(seed: int) -> Script:
    """Random probabilities that depend on everything said so far, PAD and BOS among them."""

    def script(said: Words) -> dict[int, float]:
        draw = random.Random(f"{seed} {said}")
        weights = {word: draw.random() for word in (PAD, BOS, EOS, UNK, A, B)}
        return {word: weight / sum(weights.values()) for word, weight in weights.items()}

    return script


def search(
    model: Scripted, sentences: Sequence[int] = (0,), length: int | Sequence[int] = 3, padding: int = 0, **keys: Any
) -> list[list[Hypothesis]]:
    """Search the scripts ``sentences``; keys of `beam_search` and of `SearchSettings` together."""
    lengths = [length] * len(sentences) if isinstance(length, int) else list(length)
    source = torch.zeros(len(sentences), max(lengths) + padding, dtype=torch.long)
    source[:, 0] = torch.tensor(sentences)
    wanted = {key: keys.pop(key) for key in ("attention", "n_best", "wishes") if key in keys}
    return beam_search(model, source, torch.tensor(lengths), SearchSettings(**keys), **wanted)


def best(script: Script, **keys: Any) -> Hypothesis:
    return search(Scripted(script), **keys)[0][0]


GARDEN_PATH = tree({(): {A: 0.6, B: 0.4}, (A,): {EOS: 0.4, C: 0.3, D: 0.3}, (B,): {EOS: 0.9, C: 0.1}})
"""A looks better at first; A ends at 0.6 * 0.4 = 0.24, B at 0.4 * 0.9 = 0.36."""


def numbers(found: Sequence[Sequence[Hypothesis]]) -> list[list[tuple[list[int], float, float, bool]]]:
    """All of the hypotheses but their attention, to be compared."""
    return [[hypothesis[:4] for hypothesis in hypotheses] for hypotheses in found]
