"""Compares search with other toolkits, option by option, on the same scripted probabilities.

    python -m venv peer && peer/bin/pip install . transformers
    peer/bin/python scripts/compare_search.py

    python -m venv opennmt && opennmt/bin/pip install OpenNMT-py
    python scripts/compare_search.py --opennmt opennmt/bin/python

The first compares with Hugging Face transformers, the second with OpenNMT-py. s2s needs neither; use environments of
their own. All search random tables of probabilities: the next word's depends on all words before it, and after seven
words EOS is certain, so that the forced end plays no part but in the cases that are about it. Of every option the
script says in how many sentences the best translation and the whole list of them are the same, and how far the scores
of equal translations lie apart. Differences are explained in docs/search.md.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import search_opennmt
import torch
from search_tables import BEAM, IMPOSSIBLE, SENTENCES, VOCABULARY, WORDS, Found, Tables, World, agreement, table
from torch import Tensor

from s2s.errors import UsageError
from s2s.interfaces import BOS, EOS, PAD
from s2s.search.beam import SearchSettings, Wishes, beam_search
from s2s.search.sampling import SamplingSettings, drawn

RESULT = Path(__file__).resolve().parent.parent / "docs" / "results" / "search-peer.json"


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


def ours(case: Case) -> list[Found]:
    """What s2s finds."""
    keys = {"beam": BEAM, "max_length_ratio": 0.0, "max_length_extra": WORDS + 1} | case.settings
    settings = SearchSettings(**keys)
    source, lengths = torch.arange(SENTENCES).unsqueeze(1), torch.ones(SENTENCES, dtype=torch.long)
    wishes = [Wishes(number, **case.wishes) for number in range(SENTENCES)]
    found = beam_search(Tables(World(case.ends)), source, lengths, settings, n_best=settings.beam, wishes=wishes)
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
    found = agreement(ours(case), list(theirs(case, model)))
    return {"option": case.name, "sentences": SENTENCES} | found


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


def with_transformers() -> dict[str, Any]:
    """The part of the result file about transformers. Raises UsageError where it is not installed."""
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise UsageError(
            Path(__file__).name, "transformers is not installed", "pip install it into an environment of its own"
        ) from error
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
    return {"versions": versions, "beam": BEAM, "search": rows, "sampling": cuts}


def main() -> int:
    """Run every case of one peer, print what came out and write it beside what is known of the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opennmt", metavar="PYTHON", help="a Python that has OpenNMT-py: compare with that instead")
    python = parser.parse_args().opennmt
    page = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    try:
        page |= with_transformers() if python is None else {"opennmt": search_opennmt.compare(python)}
    except UsageError as error:
        print(error, file=sys.stderr)
        return error.code
    RESULT.write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
