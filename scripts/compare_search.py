"""Compares search with Hugging Face transformers, option by option, on the same scripted probabilities.

    python -m venv peer && peer/bin/pip install . transformers
    peer/bin/python scripts/compare_search.py

s2s does not need transformers; use an environment of its own. Both search random tables of probabilities: the next
word's depends on all words before it, and after seven words EOS is certain, so that the forced end plays no part but in
the last case. Of every option the script says in how many sentences the best translation and the whole list of them are
the same, and how far the scores of equal translations lie apart. Differences are explained in docs/search.md.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s2s.interfaces import BOS, EOS, NOTHING, PAD
from s2s.search.beam import SearchSettings, Wishes, beam_search
from s2s.search.sampling import SamplingSettings, drawn
from s2s.tree import Tree, repeat

RESULT = Path(__file__).resolve().parent.parent / "docs" / "results" / "search-peer.json"
SENTENCES, VOCABULARY, WORDS, BEAM = 100, 10, 7, 4
IMPOSSIBLE = -1e9
"""A logarithm that both take for none; the peer cannot reckon with infinity."""

Found = list[tuple[list[int], float]]
"""Words and score of each hypothesis, best first."""


class Case(NamedTuple):
    """One option in both programs' terms."""

    name: str
    settings: dict[str, Any]
    peer: dict[str, Any]
    wishes: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple default that nobody writes to
    ends: bool = True
    """Whether the tables end by themselves before the limit."""


def prefixed(prefix: tuple[int, ...]) -> Callable[[int, Tensor], list[int]]:
    """The peer's way to say how a translation begins."""

    def allowed(_: int, ids: Tensor) -> list[int]:
        said = len(ids) - 1
        return [prefix[said]] if said < len(prefix) else list(range(VOCABULARY))

    return allowed


CASES = [
    Case("greedy", {"beam": 1}, {"num_beams": 1}),
    Case("beam, no length penalty", {"length_penalty": "none"}, {"length_penalty": 0.0}),
    Case("average length penalty, alpha 1", {}, {"length_penalty": 1.0}),
    Case("average length penalty, alpha 0.6", {"length_alpha": 0.6}, {"length_penalty": 0.6}),
    Case("early stopping first", {"early_stopping": "first"}, {"early_stopping": True}),
    Case("early stopping exhaustive", {"early_stopping": "exhaustive"}, {"early_stopping": "never"}),
    Case("no word twice", {"no_repeat_ngram": 1}, {"no_repeat_ngram_size": 1}),
    Case("no pair of words twice", {"no_repeat_ngram": 2}, {"no_repeat_ngram_size": 2}),
    Case("repetition penalty, greedy", {"beam": 1, "repetition_penalty": 1.5},
         {"num_beams": 1, "repetition_penalty": 1.5}),
    Case("repetition penalty, renormalised", {"repetition_penalty": 1.5},
         {"repetition_penalty": 1.5, "renormalize_logits": True}),
    Case("repetition penalty", {"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
    Case("minimum length 4", {"min_length": 4}, {"min_new_tokens": 4}),
    Case("forbidden word", {}, {"bad_words_ids": [[5]]}, {"forbidden": ((5,),)}),
    Case("forbidden phrases", {}, {"bad_words_ids": [[5, 6], [4, 4]]}, {"forbidden": ((5, 6), (4, 4))}),
    Case("prefix", {}, {"prefix_allowed_tokens_fn": prefixed((6, 3))}, {"prefix": (6, 3)}),
    Case("all of these", {"no_repeat_ngram": 2, "min_length": 3, "length_alpha": 0.6},
         {"no_repeat_ngram_size": 2, "min_new_tokens": 3, "length_penalty": 0.6, "bad_words_ids": [[5, 6]]},
         {"forbidden": ((5, 6),)}),
    Case("length limit of four tokens", {"max_length_extra": 4}, {"max_new_tokens": 4}, ends=False),
]  # fmt: skip
CUTS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"top_k": 3},
    {"top_p": 0.7},
    {"temperature": 1.4, "top_k": 5, "top_p": 0.8},
]


@cache
def table(sentence: int, ends: bool, said: tuple[int, ...]) -> list[float]:
    """Log-probabilities of the word after ``said``: random, PAD and BOS impossible, EOS likelier as it grows."""
    draw = random.Random(f"{sentence} {said}")
    scores = [draw.gauss(0, 1.5) for _ in range(VOCABULARY)]
    if ends:
        scores[EOS] += 0.3 * len(said)
    if ends and len(said) == WORDS:
        return [0.0 if word == EOS else IMPOSSIBLE for word in range(VOCABULARY)]
    possible = [word for word in range(VOCABULARY) if word not in (PAD, BOS)]
    total = math.log(math.fsum(math.exp(scores[word]) for word in possible))
    return [scores[word] - total if word in possible else IMPOSSIBLE for word in range(VOCABULARY)]


class Tables:
    """The tables as a model that s2s searches; the source is the number of the sentence."""

    def __init__(self, ends: bool) -> None:
        self.ends = ends

    def start(
        self, source: Tensor, lengths: Tensor, want: frozenset[str] = NOTHING, places: int = 1
    ) -> tuple[Tree, Tree]:
        """See `s2s.interfaces.Searchable`."""
        return repeat((source, source.new_zeros(len(source), 0)), places)

    def step(self, token: Tensor, memory: Tree, state: Tree) -> tuple[Tensor, Tensor | None, Tree]:
        """See `s2s.interfaces.Searchable`."""
        said = torch.cat((state, token.unsqueeze(1)), 1)
        rows = zip(memory[:, 0].tolist(), said.tolist(), strict=True)
        scores = [table(sentence, self.ends, tuple(read[1:])) for sentence, read in rows]
        return torch.tensor(scores, dtype=torch.float64), None, said


def ours(case: Case) -> list[Found]:
    """What s2s finds."""
    keys = {"beam": BEAM, "max_length_ratio": 0.0, "max_length_extra": WORDS + 1} | case.settings
    settings = SearchSettings(**keys)
    source, lengths = torch.arange(SENTENCES).unsqueeze(1), torch.ones(SENTENCES, dtype=torch.long)
    wishes = [Wishes(number, **case.wishes) for number in range(SENTENCES)]
    found = beam_search(Tables(case.ends), source, lengths, settings, n_best=settings.beam, wishes=wishes)
    return [[(one.ids, one.score) for one in hypotheses] for hypotheses in found]


def peer_model(transformers: Any) -> Any:
    """The tables as a decoder of the peer; ``sentence`` and ``ends`` say which."""

    class PeerTables(transformers.PreTrainedModel, transformers.GenerationMixin):  # type: ignore[misc]
        config_class = transformers.PretrainedConfig
        main_input_name = "input_ids"
        sentence, ends = 0, True

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.unused = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))  # tells the device and the type

        def prepare_inputs_for_generation(self, input_ids: Tensor, **_: Any) -> dict[str, Any]:
            return {"input_ids": input_ids}

        def forward(self, input_ids: Tensor, **_: Any) -> Any:
            scores = [table(self.sentence, self.ends, tuple(row[1:])) for row in input_ids.tolist()]
            logits = torch.tensor(scores, dtype=torch.float64).unsqueeze(1)
            return transformers.modeling_outputs.CausalLMOutput(logits=logits)

    config = transformers.PretrainedConfig(
        vocab_size=VOCABULARY, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, num_hidden_layers=1
    )
    return PeerTables(config).eval()


def theirs(case: Case, model: Any) -> Iterator[Found]:
    """What the peer finds, sentence by sentence."""
    beams = case.peer.get("num_beams", BEAM)
    keys = {"num_beams": beams, "num_return_sequences": beams, "max_new_tokens": WORDS + 1} | case.peer
    keys |= {"do_sample": False, "use_cache": False, "return_dict_in_generate": True, "output_scores": True}
    model.ends = case.ends
    for model.sentence in range(SENTENCES):
        out = model.generate(torch.tensor([[BOS]]), **keys)
        scores = [math.nan] if beams == 1 else out.sequences_scores.tolist()
        rows = [list(itertools.takewhile(lambda word: word != EOS, row[1:])) for row in out.sequences.tolist()]
        yield [(row, score) for row, score in zip(rows, scores, strict=True) if not score < IMPOSSIBLE / 100]


def compare(case: Case, model: Any) -> dict[str, Any]:
    """In how many sentences the two agree."""
    both = list(zip(ours(case), theirs(case, model), strict=True))
    differences = [
        abs(score - other[tuple(words)])
        for one, many in both
        for other in [{tuple(words): score for words, score in many}]
        for words, score in one
        if not math.isnan(other.get(tuple(words), math.nan))
    ]
    return {
        "option": case.name,
        "sentences": SENTENCES,
        "same_best": sum(one[0][0] == other[0][0] for one, other in both),
        "same_list": sum([words for words, _ in one] == [words for words, _ in other] for one, other in both),
        "largest_difference_of_score": max(differences) if differences else None,
    }


def sampling_distance(transformers: Any, cut: dict[str, Any]) -> float:
    """The largest difference between the peer's probabilities and the frequencies of draws over an even grid."""
    grid = (torch.arange(100_000) + 0.5) / 100_000
    worst = 0.0
    for sentence in range(SENTENCES):
        scores = torch.tensor([table(sentence, True, ())], dtype=torch.float64)
        processors = [
            transformers.TemperatureLogitsWarper(cut.get("temperature", 1.0)),
            *([transformers.TopKLogitsWarper(cut["top_k"])] if "top_k" in cut else []),
            *([transformers.TopPLogitsWarper(cut["top_p"])] if "top_p" in cut else []),
        ]
        expected = transformers.LogitsProcessorList(processors)(torch.tensor([[BOS]]), scores).softmax(1)[0]
        _, words = drawn(scores.expand(len(grid), -1), grid, SamplingSettings(**cut))
        seen = Counter(words.flatten().tolist())
        worst = max(worst, *(abs(seen[word] / len(grid) - float(expected[word])) for word in range(VOCABULARY)))
    return worst


def main() -> int:
    """Run every case, print and write what came out."""
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        print(
            f"{Path(__file__).name} needs transformers; pip install it into an environment of its own", file=sys.stderr
        )
        return 2
    transformers.logging.set_verbosity_error()
    model = peer_model(transformers)
    rows = []
    for case in CASES:
        rows.append(compare(case, model))
        print(json.dumps(rows[-1]), flush=True)
    cuts = [
        {"sampling": cut, "largest_difference_of_probability": sampling_distance(transformers, cut)} for cut in CUTS
    ]
    print(*map(json.dumps, cuts), sep="\n")
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    page = {"versions": versions, "beam": BEAM, "search": rows, "sampling": cuts}
    RESULT.write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
