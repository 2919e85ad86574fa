"""The comparison of search with OpenNMT-py: its cases, the talk with its Python, and which difference does what.

The peer's search runs in a process of its own and asks for tables as it comes to them. Where it finds something else
than s2s, a search in plain loops shows why: with all `DIFFERENCES` it has to find what the peer finds, and of each
difference the result says how many lists are still the peer's without it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from plain_search import DIFFERENCES, PlainSearch
from search_tables import BEAM, SENTENCES, WORDS, Found, Tables, World, agreement

from s2s.errors import UsageError
from s2s.interfaces import BOS, EOS, PAD, UNK
from s2s.search.beam import SearchSettings, beam_search

CHILD = Path(__file__).resolve().parent / "bench" / "peers" / "opennmt_search.py"


class Case(NamedTuple):
    """One option, which both have."""

    name: str
    changed: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple default that nobody writes to
    """Settings of s2s other than beam 4 without a length penalty."""
    n_best: int = BEAM
    limit: int = WORDS + 1
    """Tokens, EOS counted."""
    world: World = World()
    together: bool = False
    """Whether the peer has all sentences in one batch, and not each alone; to s2s it is the same."""

    @property
    def settings(self) -> SearchSettings:
        """For s2s."""
        keys: dict[str, Any] = {"beam": BEAM, "length_penalty": "none"}
        return SearchSettings(**(keys | {"max_length_ratio": 0.0, "max_length_extra": self.limit} | self.changed))

    @property
    def batches(self) -> list[list[int]]:
        """The numbers of sentences that the peer searches together."""
        numbers = list(range(SENTENCES))
        return [numbers] if self.together else [[number] for number in numbers]


GNMT = {"length_penalty": "gnmt", "length_alpha": 0.6}
COVERAGE = {"coverage_penalty": 0.2}
CASES = [
    Case("greedy", {"beam": 1}, n_best=1),
    Case("beam 2", {"beam": 2}, n_best=2),
    Case("beam 4"),
    Case("beam 8", {"beam": 8}, n_best=8),
    Case("n_best 1", n_best=1),
    Case("n_best 2", n_best=2),
    Case("average length penalty, alpha 1", {"length_penalty": "average"}),
    Case("average length penalty, alpha 0.6", {"length_penalty": "average", "length_alpha": 0.6}),
    Case("average length penalty, n_best 1", {"length_penalty": "average"}, n_best=1),
    Case("gnmt length penalty, alpha 1", {"length_penalty": "gnmt"}),
    Case("gnmt length penalty, alpha 0.6", GNMT),
    Case("coverage penalty", COVERAGE),
    Case("coverage penalty, gnmt length penalty", GNMT | COVERAGE),
    Case("coverage penalty, hard attention", COVERAGE, world=World(hard=True)),
    Case("coverage penalty, one batch of sources of one length", COVERAGE, together=True),
    Case("coverage penalty, one batch of sources of different lengths", COVERAGE, world=World(uneven=True),
         together=True),
    Case("no word twice", {"no_repeat_ngram": 1}),
    Case("no pair of words twice", {"no_repeat_ngram": 2}),
    Case("no pair of words twice, one batch", {"no_repeat_ngram": 2}, together=True),
    Case("no three words twice", {"no_repeat_ngram": 3}),
    Case("minimum length 4", {"min_length": 4}),
    Case("all of these", GNMT | COVERAGE | {"no_repeat_ngram": 2, "min_length": 3}),
    Case("length limit of four tokens", limit=4, world=World(ends=False)),
]  # fmt: skip


def peer_options(case: Case) -> dict[str, Any]:
    """The case in the peer's terms."""
    settings = case.settings
    lengths = {"none": "none", "average": "avg", "gnmt": "wu"}
    return {
        "scorer": {
            "alpha": settings.length_alpha,
            "beta": settings.coverage_penalty,
            "length_penalty": lengths[settings.length_penalty],
            "coverage_penalty": "wu" if settings.coverage_penalty else "none",
        },
        "search": {
            "beam_size": settings.beam,
            "n_best": case.n_best,
            "min_length": settings.min_length,
            "max_length": case.limit,
            "block_ngram_repeat": settings.no_repeat_ngram,
            "pad": PAD,
            "bos": BOS,
            "eos": EOS,
            "unk": UNK,
        },
    }


class Peer:
    """The peer's search in its own Python; a context, at whose end it has ended."""

    def __init__(self, command: Sequence[str]) -> None:
        """Raises UsageError where it does not start."""
        self.name = command[0]
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        except OSError as error:
            raise UsageError("--opennmt", f"cannot start {self.name}: {error.strerror}", "name a Python") from error

    def __enter__(self) -> Self:
        try:
            self.versions = self.told()["versions"]
        except BaseException:
            self.end(at_once=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end(at_once=kind is not None)

    def end(self, at_once: bool) -> None:
        """Wait until it has ended, which it does when it is told no more."""
        if at_once:
            self.process.kill()
        self.process.communicate()

    def say(self, what: dict[str, Any]) -> None:
        """One line to it. Raises UsageError where it has ended."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(what) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self.gone() from error

    def told(self) -> dict[str, Any]:
        """One line from it. Raises UsageError where it has ended."""
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise self.gone()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def gone(self) -> UsageError:
        """It has ended before its work was done."""
        what = f"{self.name} ended with {self.process.wait()}"
        return UsageError("--opennmt", what, "see its message above; OpenNMT-py has to be installed there")

    def __call__(self, case: Case) -> list[Found]:
        """What it finds in every sentence."""
        return [found for batch in case.batches for found in self.search(case, batch)]

    def search(self, case: Case, sentences: list[int]) -> list[Found]:
        """What it finds in one batch."""
        lengths = [case.world.length(sentence) for sentence in sentences]
        self.say({"sentences": sentences, "lengths": lengths} | peer_options(case))
        while "read" in (told := self.told()):
            read = [(sentence, tuple(said)) for sentence, said in told["read"]]
            scores = [case.world.scores(*row) for row in read]
            self.say({"log_probabilities": scores, "attention": [case.world.attention(*row) for row in read]})
        return [[([word for word in words if word != EOS], score) for words, score in one] for one in told["found"]]


def ours(case: Case) -> list[Found]:
    """What s2s finds, all sentences in one batch."""
    lengths = torch.tensor([case.world.length(sentence) for sentence in range(SENTENCES)])
    source = torch.zeros(SENTENCES, int(lengths.max()), dtype=torch.long)
    source[:, 0] = torch.arange(SENTENCES)
    model = Tables(case.world, attends=case.settings.coverage_penalty > 0)
    found = beam_search(model, source, lengths, case.settings, n_best=case.n_best)
    return [[(one.ids, one.score) for one in hypotheses] for hypotheses in found]


def plain(case: Case, differences: Sequence[str]) -> list[Found]:
    """What plain loops find with these differences from s2s."""
    search = PlainSearch(case.world, case.settings, case.limit, case.n_best, differences)
    return [found for batch in case.batches for found in search(batch)]


def explained(case: Case, theirs: list[Found]) -> dict[str, Any]:
    """How the peer agrees with plain loops that differ from s2s as it does, and what each difference does.

    ``same_list_without``: in how many sentences the lists are the same without a difference, where it does anything.
    """
    names = list(DIFFERENCES)
    everything = agreement(plain(case, names), theirs)
    without = {name: agreement(plain(case, [other for other in names if other != name]), theirs) for name in names}
    lists = {name: found["same_list"] for name, found in without.items() if found != everything}
    return everything | {"same_list_without": lists}


def compare(python: str) -> dict[str, Any]:
    """Run every case, print what came out and return it. Raises UsageError where the peer does not run."""
    rows = []
    with Peer([python, str(CHILD)]) as peer:
        for case in CASES:
            theirs = peer(case)
            found = agreement(ours(case), theirs)
            rows.append({"option": case.name, "sentences": SENTENCES} | found | {"explained": explained(case, theirs)})
            print(json.dumps(rows[-1]), flush=True)
    versions = peer.versions | {"torch here": torch.__version__}
    return {"versions": versions, "differences": DIFFERENCES, "search": rows}
