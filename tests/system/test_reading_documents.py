"""A model of documents from the command line: two stages, blank lines, going on, two processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import Cli, Warm, assert_error, finish, losses, records, start_ranks, train_arguments

from s2s.checkpoint import load_model
from s2s.search.translate import Line, Translation, Translator

DOCUMENT = "model.document={sentences: 2, heads: 2}"
SHORT = ("training.max_updates=6", "training.save_every=3", "training.validate_every=6")


@pytest.fixture(scope="module")
def texts(project: Path) -> tuple[str, ...]:
    """The project's texts with a blank line after every third pair, as settings."""
    found = []
    for side, ending in (("source", "en"), ("target", "de")):
        lines = (project / f"train.{ending}").read_text(encoding="utf-8").splitlines()
        text = "".join(f"{line}\n" + "\n" * (number % 3 == 0) for number, line in enumerate(lines, start=1))
        (project / f"documents.{ending}").write_text(text, encoding="utf-8")
        found.append(f"data.train.{side}={project / f'documents.{ending}'}")
    return tuple(found)


def test_the_second_stage_begins_with_the_first(
    project: Path, new_run: Path, finished: Path, cli: Cli, texts: tuple[str, ...]
) -> None:
    """All that the first has is taken, to the bit, and what is new is named; what it has learned is not lost."""
    found = cli(*train_arguments(project, new_run, *texts, DOCUMENT, f"init_from={finished}", "training.max_updates=1",
                                 "optimizer.lr=1e-12"))  # fmt: skip
    assert found.code == 0, found.err
    (said,) = (line for line in found.err.splitlines() if line.startswith("starting from"))
    fresh, left = said.partition("afresh: ")[2].split("; left behind: ")
    assert left == "nothing" and all(name.startswith("document.") for name in fresh.split(", "))
    before, after = load_model(finished, "best").snapshot.model, load_model(new_run, "latest").snapshot.model
    assert set(after) - set(before) == set(fresh.split(", "))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6)
    assert float.fromhex(losses(new_run)[0][1]) < float.fromhex(losses(finished)[0][1]) - 0.3


def test_a_blank_line_is_all_that_tells(
    project: Path, new_run: Path, finished: Path, cli: Cli, texts: tuple[str, ...]
) -> None:
    """Translating and scoring: after others a sentence is not what it is after a blank line."""
    settings = (*texts, DOCUMENT, *SHORT, f"init_from={finished}", "optimizer.lr=0.02")
    assert cli(*train_arguments(project, new_run, *settings)).code == 0
    lines = (project / "train.en").read_bytes().splitlines()[:6]
    whole = cli("translate", "--model", new_run, "--format", "tsv", stdin=b"\n".join(lines) + b"\n")
    apart = cli("translate", "--model", new_run, "--format", "tsv", stdin=b"\n\n".join(lines) + b"\n")
    assert whole.code == apart.code == 0
    scores = [[line.split(b"\t")[1:] for line in found.out.splitlines()] for found in (whole, apart)]
    assert len(scores[0]) == 6 and len(scores[1]) == 11
    assert scores[1][0] == scores[0][0] and all(
        one != other for one, other in zip(scores[0][1:], scores[1][2::2], strict=True)
    )
    sides = [project / f"one.{ending}" for ending in ("en", "de")]
    for side, path in zip(("en", "de"), sides, strict=True):
        path.write_bytes(b"\n".join((project / f"train.{side}").read_bytes().splitlines()[:2]) + b"\n")
    together = cli("score", "--model", new_run, *sides)
    for path in sides:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\n\n", 1))
    parted = cli("score", "--model", new_run, *sides)
    assert together.code == parted.code == 0
    first, second = together.out.split()
    alone, _, other = parted.out.split()
    assert alone == first and other != second
    (project / "lists.jsonl").write_bytes(cli("translate", "--model", new_run, "--format", "jsonl", stdin=lines[0]).out)
    refused = cli("rescore", "--model", new_run, project / "lists.jsonl")
    assert_error(refused, 2, "reads the sentences before each", "rescore with models that read sentence by sentence")


def test_validation_knows_where_documents_begin(
    project: Path, new_run: Path, cli: Cli, texts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blank lines are not in the encoded corpus; what is translated begins documents where they were."""
    sides = []
    for side, ending in (("source", "en"), ("target", "de")):
        lines = (project / f"valid.{ending}").read_text(encoding="utf-8").splitlines()
        path = project / f"documents-valid.{ending}"
        path.write_text("".join(f"{line}\n" + "\n" * (number % 4 == 0) for number, line in enumerate(lines, start=1)))
        sides.append(f"data.valid.{side}={path}")
    given: list[Line] = []

    def translate(self: Translator, lines: Iterable[Line], **more: Any) -> Iterator[Translation]:
        given.extend(lines)
        return plain(self, given, **more)

    plain = Translator.translate
    monkeypatch.setattr(Translator, "translate", translate)
    assert cli(*train_arguments(project, new_run, *texts, *sides, DOCUMENT, *SHORT)).code == 0
    assert [line.begins for line in given] == [True, False, False, False] * 3


def test_a_corpus_without_documents_is_told_of(project: Path, new_run: Path, cli: Cli, texts: tuple[str, ...]) -> None:
    """Of each that has none, and only where a model reads them."""
    words = "valid: no blank line ends a document, so its 12 sentences are one"
    found = cli(*train_arguments(project, new_run, *texts, DOCUMENT, *SHORT))
    assert found.code == 0 and words in found.err and found.err.count("no blank line") == 1
    found = cli(*train_arguments(project, new_run.with_name("documents-unread"), *texts, *SHORT))
    assert found.code == 0 and "no blank line" not in found.err


def test_stopping_and_going_on_is_not_noticed(project: Path, cli: Cli, texts: tuple[str, ...]) -> None:
    runs = [project / f"documents-{name}" for name in ("whole", "parted")]
    assert cli(*train_arguments(project, runs[0], *texts, DOCUMENT, *SHORT)).code == 0
    for updates in (3, 6):
        more = ("training.max_updates=3",) if updates == 3 else ()
        assert cli(*train_arguments(project, runs[1], *texts, DOCUMENT, *SHORT, *more)).code == 0
    assert losses(runs[1]) == losses(runs[0])


def test_two_processes_train_as_one(project: Path, warm: Warm, cli: Cli, texts: tuple[str, ...]) -> None:
    """One of the two may have a batch of first sentences alone, whose new parameters have no gradient then."""
    runs = [project / f"documents-{name}" for name in ("alone", "two")]
    alone, each = "batches.accumulate=2", "batches.accumulate=1"
    assert cli(*train_arguments(project, runs[0], *texts, DOCUMENT, *SHORT, alone)).code == 0
    ended = [
        finish(one) for one in start_ranks(warm, train_arguments(project, runs[1], *texts, DOCUMENT, *SHORT, each), 2)
    ]
    assert [one.code for one in ended] == [0, 0], ended
    for (update, one), (other, two) in zip(losses(runs[0]), losses(runs[1]), strict=True):
        assert update == other and float.fromhex(one) == pytest.approx(float.fromhex(two), rel=1e-5)


def test_an_update_of_first_sentences_alone_has_nothing_to_teach(
    project: Path, new_run: Path, finished_transformer: Path, cli: Cli
) -> None:
    """Where all but the new part is frozen no gradient is left, which half precision takes as it is."""
    sides = []
    for side, ending in (("source", "en"), ("target", "de")):
        lines = (project / f"train.{ending}").read_text(encoding="utf-8").splitlines()
        path = project / f"alone.{ending}"
        path.write_text("".join(f"{line}\n\n" for line in lines), encoding="utf-8")
        sides.append(f"data.train.{side}={path}")
    settings = (*sides, DOCUMENT, f"init_from={finished_transformer}", "training.frozen=[encoder,decoder]",
                "data.valid=null", "training.stop_on=nll", "training.precision=fp16",
                "training.max_updates=2")  # fmt: skip
    found = cli(*train_arguments(project, new_run, *settings, config="transformer.yaml"))
    assert found.code == 0, found.err
    assert [record["grad_norm"] for record in records(new_run)] == [0.0, 0.0]
