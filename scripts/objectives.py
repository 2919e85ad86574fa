"""Does an objective get what it asks for, and at what cost? Minimum risk and distillation.

    python scripts/objectives.py [--seeds 1 2 3] [--threads 1]     train what is not there, measure, write the tables
    python scripts/objectives.py --corpus multi30k --seeds 1       on Multi30k (over an hour) instead
    python scripts/objectives.py --table                           only write the tables of docs/objectives.md

Minimum risk goes on from a trained run of luong-general for the 300 updates of minimum-risk.yaml; beside it stands the
same with the likelihood alone. What it asks for is measured on the development split: the cost (1 - chrF2 / 100) of 8
draws for every sentence, mean over all draws.

Distillation: a student of half the widths learns from the right words alone, from the teacher's distributions
beside them (half and half), or from what the teacher translates of the training text by beam 5. What the second asks
for is the cross entropy of its distributions under the teacher's, after the right words, per token; what the third asks
for is the likelihood of the teacher's translations, per sentence, for the vocabularies differ. Both on the development
split. BLEU is of the test split, by the search of the recipe. Runs are kept in runs/objectives; what the result file
has of other seeds stays.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from shared import ROOT, s2s, with_table
from torch import Tensor

from s2s.commands.translate import translate_lines
from s2s.data.text import read_raw_lines
from s2s.evaluation import bleu
from s2s.interfaces import BOS, EOS, PAD
from s2s.progress import Meter, say
from s2s.run import Trained, load_trained
from s2s.search.mbr import sentence_utility
from s2s.search.sampling import SamplingSettings
from s2s.search.score import Scorer, force_at_once
from s2s.search.translate import Translator

PAGE = ROOT / "docs" / "objectives.md"
DRAWS = 8
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Corpus:
    """A corpus from English to German, and the folders that are named after it."""

    name: str
    dev: str
    test: str
    small: Sequence[str]
    """Settings of a student: half the widths of base.yaml."""

    @property
    def configs(self) -> Path:
        return ROOT / "configs" / self.name

    @property
    def runs(self) -> Path:
        return ROOT / "runs" / "objectives" / self.name

    @property
    def result(self) -> Path:
        return ROOT / "docs" / "results" / f"objectives-{self.name}.json"

    def file(self, split: str, language: str) -> Path:
        return ROOT / "data" / self.name / f"{split}.{language}"

    def lines(self, split: str, language: str) -> list[str]:
        return list(read_raw_lines(self.file(split, language)))

    def learned_from(self, seed: int) -> Path:
        """What the teacher translates of the training text."""
        return self.runs / f"distilled-{seed}.de"


def widths(embedding: int, encoder: int, decoder: int) -> Sequence[str]:
    return [f"model.embedding={embedding}", f"model.encoder.size={encoder}", f"model.decoder.size={decoder}"]


CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus("toy", "dev", "test", widths(32, 64, 64)),
        Corpus("multi30k", "val", "test_2016_flickr", widths(128, 256, 128)),
    )
}


# --- training ---------------------------------------------------------------------------------------------------------


def trained(corpus: Corpus, name: str, seed: int, recipe: str, threads: int, *settings: str) -> Path:
    """The run, trained now where it is not there whole; it goes on where it was interrupted."""
    run = corpus.runs / f"{name}-{seed}"
    say(f"{run.name}:")
    command = s2s("train", "--config", str(corpus.configs / f"{recipe}.yaml"), "--run-dir", str(run), f"seed={seed}")
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run([*command, *settings], check=True, env=environment, cwd=ROOT)
    return run


def distilled(corpus: Corpus, teacher: Path, seed: int) -> Path:
    """What a teacher translates of the training text, made now where it is not there."""
    path = corpus.learned_from(seed)
    if not path.exists():
        output = path.with_suffix(".part")
        files = ["--output", str(output), "--overwrite", str(corpus.file("train", "en"))]
        subprocess.run(s2s("translate", "--model", str(teacher), "--beam", "5", *files), check=True, cwd=ROOT)
        output.rename(path)
    return path


def trainings(corpus: Corpus, seed: int, threads: int) -> dict[str, Path]:
    """All runs of a seed."""

    def here(name: str, recipe: str, *settings: str) -> Path:
        return trained(corpus, name, seed, recipe, threads, *settings)

    begun = here("likelihood", "luong-general")
    after = f"init_from={begun}"
    words, sentences = f"objective.teacher.run={begun}", f"data.train.target={distilled(corpus, begun, seed)}"
    return {
        "likelihood": begun,
        "likelihood, 300 more": here("more-likelihood", "minimum-risk", after, "objective.minimum_risk=null"),
        "minimum risk, 300 more": here("minimum-risk", "minimum-risk", after),
        "student": here("student", "luong-general", *corpus.small),
        "student, word by word": here("student-words", "luong-general", *corpus.small, words),
        "student, sentence by sentence": here(
            "student-sentences", "luong-general", *corpus.small, sentences, "data.train.links=null"
        ),
    }


# --- measuring --------------------------------------------------------------------------------------------------------


def cost_of_draws(corpus: Corpus, run: Trained) -> float:
    """Mean of 1 - chrF2 / 100 over draws for the development split."""
    settings = run.config.search.model_copy(update={"beam": 1, "sampling": SamplingSettings(seed=1)})
    translator = Translator(run.model, run.tokenizers, settings, CPU, n_best=DRAWS)
    utility = sentence_utility("chrf")
    drawn = translator.translate(corpus.lines(corpus.dev, "en"))
    return statistics.fmean(
        1 - utility(one.text, right) / 100
        for found, right in zip(drawn, corpus.lines(corpus.dev, "de"), strict=True)
        for one in found.candidates
    )


def batches(run: Trained, source: Sequence[str], target: Sequence[str], size: int = 50) -> Iterator[tuple[Any, ...]]:
    """Source (B, S), its lengths, and target (B, T + 1) with BOS and EOS, as the run spells them."""
    for first in range(0, len(source), size):
        here = slice(first, first + size)
        asked = [torch.tensor([*run.tokenizers.source.encode(line), EOS]) for line in source[here]]
        right = [torch.tensor([BOS, *run.tokenizers.target.encode(line), EOS]) for line in target[here]]
        padded = (torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD) for rows in (asked, right))
        yield next(padded), torch.tensor([len(row) for row in asked]), next(padded)


def predicted(run: Trained, source: Tensor, lengths: Tensor, words: Tensor, real: Tensor) -> Tensor:
    """Log-probabilities (n, V) of all words where ``real``."""
    decoded, memory = run.model(source, lengths, words)
    scores: Tensor = run.model.decoder.logits(decoded, memory, real).log_softmax(-1)
    return scores


@torch.no_grad()
def cross_entropy(corpus: Corpus, run: Trained, teacher: Trained) -> float:
    """-sum_v T(v) log p(v) after the right words of the development split, nats a token."""
    if run.tokenizers.fingerprint != teacher.tokenizers.fingerprint:
        raise SystemExit("a student has another vocabulary than its teacher")
    total, count = 0.0, 0
    for source, lengths, target in batches(run, corpus.lines(corpus.dev, "en"), corpus.lines(corpus.dev, "de")):
        real = target[:, 1:] != PAD
        own, theirs = (predicted(one, source, lengths, target[:, :-1], real) for one in (run, teacher))
        total -= float((theirs.exp() * own).sum())
        count += int(real.sum())
    return total / count


def of_translations(corpus: Corpus, run: Trained, translations: Sequence[str]) -> float:
    """-log p of translations of the development split, nats a sentence."""
    scorer = Scorer(partial(force_at_once, run.model), run.tokenizers, run.config.search, CPU)
    pairs = zip(corpus.lines(corpus.dev, "en"), translations, strict=True)
    return -statistics.fmean(found.log_probability for found in scorer.score(pairs))


def translations(run: Trained, asked: Sequence[str]) -> list[str]:
    """By the run's own settings of search."""
    with Meter("translating", len(asked)) as meter:
        return translate_lines(run, asked, meter)


def measure(corpus: Corpus, seed: int, threads: int) -> dict[str, Any]:
    """All systems of a seed."""
    runs = {name: load_trained(path, CPU) for name, path in trainings(corpus, seed, threads).items()}
    torch.set_num_threads(threads)
    teacher = runs["likelihood"]
    said = translations(teacher, corpus.lines(corpus.dev, "en"))
    systems: dict[str, Any] = {}
    for name, run in runs.items():
        run.model.eval()
        score = bleu(translations(run, corpus.lines(corpus.test, "en")), corpus.lines(corpus.test, "de"))
        same = run.tokenizers.fingerprint == teacher.tokenizers.fingerprint
        systems[name] = {
            "update": run.update,
            "parameters": sum(part.numel() for part in run.model.parameters()),
            "cost_of_draws": cost_of_draws(corpus, run),
            "cross_entropy": cross_entropy(corpus, run, teacher) if same else None,
            "of_translations": of_translations(corpus, run, said),
            "bleu": score.value,
            "signature": score.signature,
        }
    learned_from, right = list(read_raw_lines(corpus.learned_from(seed))), corpus.lines("train", "de")
    share = sum(one == other for one, other in zip(learned_from, right, strict=True)) / len(right)
    return {"seed": seed, "threads": threads, "distilled_right": share, "systems": systems}


# --- tables -----------------------------------------------------------------------------------------------------------

TABLES: dict[str, tuple[Sequence[str], dict[str, tuple[str, str]]]] = {
    "minimum-risk": (
        ("likelihood", "likelihood, 300 more", "minimum risk, 300 more"),
        {"cost_of_draws": ("cost of draws, dev", ".4f"), "bleu": ("BLEU, test", ".2f")},
    ),
    "distillation": (
        ("likelihood", "student", "student, word by word", "student, sentence by sentence"),
        {
            "parameters": ("parameters", ",.0f"),
            "cross_entropy": ("cross entropy under the teacher, dev", ".4f"),
            "of_translations": ("-log p of the teacher's translations, dev", ".3f"),
            "bleu": ("BLEU, test", ".2f"),
        },
    ),
}
"""The systems and columns of each table of the page."""


def results(corpus: Corpus) -> list[dict[str, Any]]:
    """What has been measured, seed by seed."""
    if not corpus.result.exists():
        return []
    runs: list[dict[str, Any]] = json.loads(corpus.result.read_text(encoding="utf-8"))["runs"]
    return runs


def table(runs: Sequence[dict[str, Any]], name: str) -> str:
    """The mean over seeds, with the lowest and highest."""
    if not runs:
        return "Not yet run."
    systems, columns = TABLES[name]
    rows = [f"| system | {' | '.join(title for title, _ in columns.values())} |", f"|---|{'--:|' * len(columns)}"]
    for system in systems:
        cells = []
        for key, (_, form) in columns.items():
            values = [run["systems"][system][key] for run in runs]
            if None in values:
                cells.append("-")
            elif min(values) == max(values):
                cells.append(f"{values[0]:{form}}")
            else:
                cells.append(f"{statistics.fmean(values):{form}} ({min(values):{form}}-{max(values):{form}})")
        rows.append(f"| {system} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> int:
    """Train and measure unless only the tables are asked for, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", choices=tuple(CORPORA), default="toy")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="train and measure nothing")
    options = parser.parse_args()
    if not options.table:
        corpus = CORPORA[options.corpus]
        runs = {run["seed"]: run for run in results(corpus)}
        for seed in options.seeds:
            runs[seed] = {"torch": torch.__version__} | measure(corpus, seed, options.threads)
            found = {"runs": [runs[one] for one in sorted(runs)]}
            corpus.result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    for corpus in CORPORA.values():
        runs_of_corpus = results(corpus)
        for name in TABLES:
            page = with_table(page, f"{name}, {corpus.name}", table(runs_of_corpus, name))
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
