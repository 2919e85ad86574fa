"""Searches tables of probabilities with OpenNMT-py's own beam search, for its Python; a line of JSON each way.

It says which versions it has, reads one search per line, asks for the tables of the prefixes it has come to, and tells
what it found: {"versions"}; then of every search {"read": [[sentence, words], ...]} at each step, answered by
{"log_probabilities", "attention"}, and at last {"found"}: of each sentence [words, score] of its hypotheses.
"""

from __future__ import annotations

import json
import sys
import warnings
from importlib.metadata import version

import torch

answers, sys.stdout = sys.stdout, sys.stderr  # the peer may print
warnings.filterwarnings("ignore")


def tell(what: dict[str, object]) -> None:
    """One line."""
    print(json.dumps(what), file=answers, flush=True)


def search(case: dict) -> list[list[tuple[list[int], float]]]:  # type: ignore[type-arg]
    """Drive the peer as its translator does, with tables in place of a model."""
    from onmt.translate.beam_search import BeamSearch, GNMTGlobalScorer

    sentences, lengths, width = case["sentences"], torch.tensor(case["lengths"]), max(case["lengths"])
    strategy = BeamSearch(
        batch_size=len(sentences), global_scorer=GNMTGlobalScorer(**case["scorer"]), start=case["search"]["bos"],
        return_attention=False, exclusion_tokens=set(), stepwise_penalty=False, ratio=0.0, ban_unk_token=False,
        **case["search"],
    )  # fmt: skip
    strategy.initialize(torch.zeros(len(sentences), width, 1), lengths)
    for _ in range(strategy.max_length):
        rows = [sentences[which] for which in strategy.batch_offset.tolist() for _ in range(strategy.beam_size)]
        tell({"read": [(row, said[1:]) for row, said in zip(rows, strategy.alive_seq.tolist(), strict=True)]})
        tables = json.loads(sys.stdin.readline())
        attention = [row + [0.0] * (width - len(row)) for row in tables["attention"]]
        strategy.advance(torch.tensor(tables["log_probabilities"]), torch.tensor(attention).unsqueeze(1))
        if any(map(any, strategy.is_finished_list)):
            strategy.update_finished()
            if strategy.done:
                break
    return [
        [(words.tolist(), score) for words, score in zip(one, scores, strict=True)]
        for one, scores in zip(strategy.predictions, strategy.scores, strict=True)
    ]


def main() -> None:
    """Search until there is nothing more to read."""
    tell({"versions": {"OpenNMT-py": version("OpenNMT-py"), "torch": torch.__version__}})
    while line := sys.stdin.readline():
        tell({"found": search(json.loads(line))})


if __name__ == "__main__":
    main()
