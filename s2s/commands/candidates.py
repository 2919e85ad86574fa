"""Candidates of minimum risk training: translations by the model as it stands, and what each of them costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from s2s.data.batches import padded
from s2s.data.tokenizer import Tokenizer
from s2s.interfaces import BOS, EOS, Before
from s2s.search.beam import SearchSettings, Wishes, beam_search
from s2s.search.mbr import sentence_utility
from s2s.search.sampling import SamplingSettings
from s2s.training.objective import Candidates, MinimumRiskSettings


class Proposer:
    """Searches or draws, and scores text against text. See `s2s.training.objective.Propose`.

    A call depends on nothing but its arguments, not on the settings of `search`, which may change when a run goes on.
    """

    def __init__(self, settings: MinimumRiskSettings, target: Tokenizer) -> None:
        self.settings, self.tokenizer = settings, target
        self.utility = sentence_utility(settings.metric)

    def __call__(
        self, model: nn.Module, source: Tensor, lengths: Tensor, target: Tensor, before: Before | None, seed: int
    ) -> Candidates:
        """Raises CheckpointError if the model gives NaN."""
        right = [_without_ends(row) for row in target.tolist()]
        with _evaluating(model):
            found = beam_search(
                model, source, lengths, self._search(seed),  # type: ignore[arg-type]
                before=before, n_best=self.settings.samples, wishes=[Wishes(number) for number in range(len(right))],
            )  # fmt: skip
        rows = []
        for own, hypotheses in zip(right, found, strict=True):
            ids = [tuple(one.ids) for one in hypotheses]
            rows.append(list(dict.fromkeys([own, *ids] if self.settings.reference else ids)))
        return candidates_of(rows, [self._costs(own, row) for own, row in zip(right, rows, strict=True)], source.device)

    def _search(self, seed: int) -> SearchSettings:
        if self.settings.by == "beam":
            return SearchSettings(beam=self.settings.samples)
        return SearchSettings(beam=1, sampling=SamplingSettings(seed=seed))

    def _costs(self, right: Sequence[int], row: Sequence[Sequence[int]]) -> list[float]:
        """1 less the utility of each translation beside the right one, as texts."""
        reference = self.tokenizer.decode(right)
        return [1 - self.utility(self.tokenizer.decode(ids), reference) / 100 for ids in row]


def candidates_of(
    rows: Sequence[Sequence[Sequence[int]]], costs: Sequence[Sequence[float]], device: torch.device
) -> Candidates:
    """Lists of translations, without BOS and EOS, one list a sentence, each with at least one, and their costs."""
    target = torch.from_numpy(padded([[BOS, *ids, EOS] for row in rows for ids in row])[0])
    counts = torch.tensor([len(row) for row in rows])
    there = torch.arange(int(counts.max())) < counts.unsqueeze(1)  # (B, K)
    flat = torch.tensor([cost for row in costs for cost in row], dtype=torch.float32)
    cost = torch.zeros(there.shape).masked_scatter(there, flat)
    return Candidates(target.to(device), there.to(device), cost.to(device))


def _without_ends(row: Sequence[int]) -> tuple[int, ...]:
    """The words of a target, between BOS and the EOS that ends it."""
    return tuple(row[1 : row.index(EOS)])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout is off inside this context."""
    model.eval()
    try:
        yield
    finally:
        model.train()
