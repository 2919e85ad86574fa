"""`s2s eval`: the scores that sacreBLEU gives for the same bytes, of a model or of files."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from harness import Cli, Outcome, assert_error, refuse_constant

REFERENCE = "Der alte Hund\u0085sieht einen Mann.\nNichts davon\u2028stimmt.\n\nEin Baum \x0b steht hier.\n"
GOOD = "Der alte Hund\u0085sieht einen Mann .\nNichts davon\u2028stimmt.\nWas?\nEin Baum steht nicht hier.  \n"


def results(outcome: Outcome) -> list[dict[str, object]]:
    """What ``--json`` printed, read strictly."""
    assert outcome.code == 0, outcome
    found: list[dict[str, object]] = json.loads(outcome.out, parse_constant=refuse_constant)
    return found


def sacrebleu(reference: Path, hypothesis: Path) -> list[float]:
    """BLEU, chrF and TER as the program of that name computes them."""
    line = [sys.executable, "-m", "sacrebleu", str(reference), "-i", str(hypothesis), "-m", "bleu", "chrf", "ter"]
    output = subprocess.run([*line, "-w", "10"], capture_output=True, check=True).stdout
    return [score["score"] for score in json.loads(output)]


@pytest.mark.parametrize(
    ("reference", "hypothesis"),
    [
        (REFERENCE, GOOD),
        (REFERENCE, "\n\n\n\n"),
        (REFERENCE, REFERENCE.rstrip("\n")),
        (REFERENCE.replace("\n", "\r\n"), GOOD),
    ],
)
def test_scores_are_sacrebleus(tmp_path: Path, cli: Cli, reference: str, hypothesis: str) -> None:
    right, found = tmp_path / "right.de", tmp_path / "found.de"
    right.write_bytes(reference.encode())
    found.write_bytes(hypothesis.encode())
    outcome = cli("eval", "--hypotheses", found, "--reference", right, "--json")
    (result,) = results(outcome)
    scores = result["scores"]
    assert isinstance(scores, list)
    assert [score["name"] for score in scores] == ["bleu", "chrf", "ter"]
    assert [score["value"] for score in scores] == pytest.approx(sacrebleu(right, found), abs=1e-9)
    assert all("version:" in score["signature"] for score in scores)
    assert result["sentences"] == 4


def test_several_hypotheses_as_text(tmp_path: Path, cli: Cli) -> None:
    right = tmp_path / "right.de"
    right.write_text("Ein Hund sieht einen Mann.\n")
    names = [tmp_path / name for name in ("a.de", "b\x1b[31m.de")]
    for name in names:
        name.write_text("Ein Hund sieht einen Mann.\n")
    outcome = cli("eval", "--hypotheses", names[0], "--hypotheses", names[1], "--reference", right)
    assert outcome.code == 0
    assert outcome.out.count(b"100.00") == 4  # BLEU and chrF of both
    assert outcome.out.count(b"nrefs:1|") == 6
    assert b"\x1b" not in outcome.out


def test_a_model(finished: Path, project: Path, tmp_path: Path, cli: Cli) -> None:
    """Its own test set by default; the translations are those of `s2s translate`."""
    output, source, reference = tmp_path / "out.de", project / "valid.en", project / "valid.de"
    outcome = cli("eval", "--model", finished, "--json", "--output", output)
    (result,) = results(outcome)
    assert output.read_bytes() == cli("translate", "--model", finished, source).out
    assert result["hypotheses_sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert result["update"] == int((finished / "best").read_text()[5:])
    given = cli("eval", "--model", finished, "--json", "--source", source, "--reference", reference)
    assert results(given) == results(outcome)
    (of_file,) = results(cli("eval", "--hypotheses", output, "--reference", reference, "--json"))
    assert of_file["scores"] == result["scores"]
    assert_error(cli("eval", "--model", finished, "--output", output), 2, "exists already")


def test_counts_that_differ(finished: Path, project: Path, tmp_path: Path, cli: Cli) -> None:
    short = tmp_path / "short.de"
    short.write_text("Eine Zeile.\n")
    outcome = cli("eval", "--hypotheses", short, "--reference", project / "valid.de")
    assert_error(outcome, 3, "1 hypothesis lines but 12 reference lines")
    outcome = cli("eval", "--model", finished, "--source", project / "valid.en", "--reference", short)
    assert_error(outcome, 3, "12 hypothesis lines but 1 reference lines")


def test_nothing_to_score(tmp_path: Path, cli: Cli) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    assert_error(cli("eval", "--hypotheses", empty, "--reference", empty), 3, "nothing to score")


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--model", "RUN", "--hypotheses", "FILE", "--reference", "FILE"],
        ["--hypotheses", "FILE"],
        ["--hypotheses", "FILE", "--reference", "FILE", "--source", "FILE"],
        ["--hypotheses", "FILE", "--reference", "FILE", "--output", "out"],
        ["--model", "RUN", "--source", "FILE"],
        ["--model", "RUN", "--reference", "FILE"],
    ],
)
def test_options_that_do_not_go_together(finished: Path, project: Path, cli: Cli, options: list[str]) -> None:
    names = {"RUN": str(finished), "FILE": str(project / "valid.de")}
    assert_error(cli("eval", *(names.get(option, option) for option in options)), 2, "eval: ")
