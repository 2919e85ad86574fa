"""`s2s eval`: what sacreBLEU gives for the same bytes, of models and of files; comparisons, bands and reports."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import Cli, Outcome, assert_error, finish, refuse_constant, start, wait_until
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest

REFERENCE = "Der alte Hund\u0085sieht einen Mann.\nNichts davon\u2028stimmt.\n\nEin Baum \x0b steht hier.\n"
GOOD = "Der alte Hund\u0085sieht einen Mann .\nNichts davon\u2028stimmt.\nWas?\nEin Baum steht nicht hier.  \n"


def whole(outcome: Outcome) -> dict[str, Any]:
    """What ``--json`` printed, read strictly."""
    assert outcome.code == 0, outcome
    found: dict[str, Any] = json.loads(outcome.out, parse_constant=refuse_constant)
    return found


def results(outcome: Outcome) -> list[dict[str, Any]]:
    """The systems of it."""
    systems: list[dict[str, Any]] = whole(outcome)["systems"]
    return systems


def sacrebleu(*arguments: str | Path, **environment: str) -> Any:
    """What the program of that name prints for these arguments, unrounded."""
    line = [sys.executable, "-m", "sacrebleu", *map(str, arguments), "-w", "10", "-f", "json"]
    output = subprocess.run(line, env=os.environ | environment, capture_output=True, check=True).stdout
    return json.loads(output)


def sacrebleu_scores(reference: Path, hypothesis: Path) -> list[float]:
    """BLEU, chrF and TER."""
    return [score["score"] for score in sacrebleu(reference, "-i", hypothesis, "-m", "bleu", "chrf", "ter")]


def write(path: Path, lines: list[str]) -> Path:
    """A file with these lines."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> dict[str, Path]:
    """A reference of 60 lines and four systems: good, worse, bad, and a copy of good."""
    draw = random.Random(7)
    words = ["der", "die", "ein", "Hund", "Mann", "König,", "sieht", "kennt", "alte", "Haus."]
    right = [" ".join(draw.choices(words, k=draw.randint(3, 12))) for _ in range(60)]

    def spoiled(rate: float) -> list[str]:
        return [
            " ".join(draw.choice(words) if draw.random() < rate else word for word in line.split()) for line in right
        ]

    good = spoiled(0.15)
    texts = {"right": right, "good": good, "worse": spoiled(0.2), "bad": spoiled(0.5), "same": good}
    return {name: write(tmp_path / f"{name}.de", lines) for name, lines in texts.items()}


@pytest.mark.fault("V2", "V3")
@pytest.mark.parametrize(
    ("reference", "hypothesis"),
    [
        (REFERENCE, GOOD),
        (REFERENCE, "\n\n\n\n"),
        ("\n \n\n\x85\n", GOOD),
        ("\n\n\n\n", "\n\n\n\n"),
        (REFERENCE, REFERENCE.rstrip("\n")),
        (REFERENCE.replace("\n", "\r\n"), GOOD),
        ("\ufeff" + REFERENCE, GOOD),
    ],
)
def test_scores_are_sacrebleus(tmp_path: Path, cli: Cli, reference: str, hypothesis: str) -> None:
    right, found = tmp_path / "right.de", tmp_path / "found.de"
    right.write_bytes(reference.encode())
    found.write_bytes(hypothesis.encode())
    outcome = cli("eval", "--hypotheses", found, "--reference", right, "--json")
    (result,) = results(outcome)
    scores = result["scores"]
    assert [score["name"] for score in scores] == ["bleu", "chrf", "ter"]
    assert [score["value"] for score in scores] == pytest.approx(sacrebleu_scores(right, found), abs=1e-9)
    assert all("version:" in score["signature"] for score in scores)
    assert whole(outcome)["sentences"] == 4


@pytest.mark.fault("V2")
def test_a_whole_test_set_with_odd_line_ends(tmp_path: Path, cli: Cli) -> None:
    """As newstest2009.de is: next-line characters inside lines, which end lines for str.splitlines() only."""
    draw = random.Random(1)
    marks = [" ", " ", " ", "\x85", "\u2028", "\x0b", "\x1c", "\xa0", "\r"]
    lines = ["".join(f"Wort{draw.randint(0, 30)}{draw.choice(marks)}" for _ in range(12)) for _ in range(80)]
    right = tmp_path / "right.de"
    right.write_bytes("".join(f"{line}\n" for line in lines).encode())
    found = tmp_path / "found.de"
    found.write_bytes("".join(f"{draw.choice(['', line, line[::-1], line[:40]])}\n" for line in lines).encode())
    (result,) = results(cli("eval", "--hypotheses", found, "--reference", right, "--json"))
    expected = sacrebleu_scores(right, found)
    assert [score["value"] for score in result["scores"]] == pytest.approx(expected, abs=1e-9)
    assert 0 < expected[0] < 100


# --- several systems --------------------------------------------------------------------------------------------------


def test_intervals_and_p_values_are_sacrebleus(corpus: dict[str, Path], cli: Cli) -> None:
    """Of systems that differ: the same draws, the same counts. (Its intervals are of single precision.)"""
    names = ["good", "worse", "bad"]
    files = [argument for name in names for argument in ("--hypotheses", corpus[name])]
    arguments = ["--samples", "500", "--trials", "1000", "--significance", "both", "--json"]
    found = results(cli("eval", *files, "--reference", corpus["right"], *arguments))
    lines = {name: path.read_text().splitlines() for name, path in corpus.items()}

    def tested(kind: str, samples: int) -> dict[str, Any]:
        systems = [(name, lines[name]) for name in names]
        metrics = {metric.__name__: metric(references=[lines["right"]]) for metric in (BLEU, CHRF, TER)}
        scores: dict[str, Any] = PairedTest(systems, metrics, None, kind, samples)()[1]
        return scores

    drawn, swapped = tested("bs", 500), tested("ar", 1000)
    for place, system in enumerate(found):
        for score, name in zip(system["scores"], ("BLEU", "chrF2", "TER"), strict=True):
            by_draws, by_swaps = drawn[name][place], swapped[name][place]
            assert score["value"] == pytest.approx(by_draws.score, abs=1e-9)
            assert (score["interval"]["high"] - score["interval"]["low"]) / 2 == pytest.approx(by_draws.ci, abs=1e-4)
            against = score["against_baseline"]
            assert (against is None) == (place == 0)
            if against is not None:
                assert against["bootstrap"]["p"] == by_draws.p_value
                p = against["randomisation"]["p"]
                # Edits are whole, so swaps often give just the observed difference of TER, which counts here only.
                assert p > by_swaps.p_value if (name, place) == ("TER", 1) else p == by_swaps.p_value
    values = [system["scores"][0]["against_baseline"]["randomisation"]["p"] for system in found[1:]]
    assert values[1] < 0.01 < values[0] < 1  # the test has seen both a small and a large one


def test_a_baseline_and_a_copy_of_it(corpus: dict[str, Path], cli: Cli) -> None:
    names = ["bad", "good", "same"]
    files = [argument for name in names for argument in ("--hypotheses", corpus[name])]
    arguments = ["--reference", corpus["right"], "--baseline", corpus["good"], "--significance", "both"]
    outcome = cli("eval", *files, *arguments, "--samples", "200", "--trials", "300", "--seed", "4", "--json")
    found = whole(outcome)
    assert found["significance"] == {
        "baseline": str(corpus["good"]),
        "bootstrap": {"samples": 200, "seed": 4},
        "randomisation": {"trials": 300, "seed": 4},
    }
    bad, good, same = found["systems"]
    for place, name in enumerate(("bleu", "chrf", "ter")):
        assert good["scores"][place]["against_baseline"] is None
        nothing = same["scores"][place]["against_baseline"]
        assert nothing["difference"] == 0
        assert nothing["bootstrap"] == {"p": 1, "wins": 0, "losses": 0, "difference": {"low": 0, "high": 0}}
        assert nothing["randomisation"] == {"p": 1}
        far = bad["scores"][place]["against_baseline"]
        sign = -1 if name == "ter" else 1
        assert far["difference"] == bad["scores"][place]["value"] - good["scores"][place]["value"]
        assert sign * far["bootstrap"]["difference"]["high" if sign > 0 else "low"] < 0
        assert (far["bootstrap"]["wins"], far["bootstrap"]["losses"]) == (0, 1)
        assert far["bootstrap"]["p"] == 1 / 201
        assert far["randomisation"]["p"] == 1 / 301
    other = whole(cli("eval", *files, *arguments, "--samples", "200", "--trials", "300", "--seed", "5", "--json"))
    assert other["systems"][0]["scores"][0]["interval"] != bad["scores"][0]["interval"]


def test_the_tables(corpus: dict[str, Path], cli: Cli) -> None:
    files = ["--hypotheses", corpus["good"], "--hypotheses", corpus["same"], "--reference", corpus["right"]]
    arguments = ["--metric", "bleu", "--metric", "exact", "--significance", "both", "--by", "length"]
    outcome = cli("eval", *files, *arguments, "--source", corpus["right"], "--length-bands", "6,9")
    assert outcome.code == 0
    lines = outcome.out.decode().splitlines()
    assert lines[:2] == [
        f"60 sentences against {corpus['right']}",
        "95 % intervals by bootstrap: 1000 samples, seed 12345; randomisation: 10000 trials, seed 12345",
    ]
    heads = [place for place, line in enumerate(lines) if "|" in line]
    assert [lines[place].split("|")[0] for place in heads] == ["bleu  BLEU", "exact  exact"]
    for place in heads:
        assert len({len(line) for line in (lines[place + 1], lines[place + 3])}) == 1  # aligned to the last column
        assert "baseline" in lines[place + 2] and "1.0000" in lines[place + 3]
    assert lines[-4].split() == ["words", "of", "the", "source", "0-5", "6-8", "9+"]


def test_a_signal_leaves_no_half_of_a_report(corpus: dict[str, Path], tmp_path: Path) -> None:
    files = [f"--hypotheses={corpus['good']}", f"--hypotheses={corpus['bad']}", f"--reference={corpus['right']}"]
    folder = tmp_path / "reports"
    folder.mkdir()
    process = start(["eval", *files, "--samples", "1000000", "--report", str(folder / "report.txt")])
    wait_until(lambda: any(folder.iterdir()), process)
    process.terminate()
    assert_error(finish(process), 143, "stopped by SIGTERM before the results were written")
    assert not list(folder.iterdir())


def test_metrics_to_choose(corpus: dict[str, Path], cli: Cli) -> None:
    files = ["--hypotheses", corpus["good"], "--reference", corpus["right"]]
    arguments = ["--metric", "exact", "--metric", "tok-lc", "--metric", "exact", "--significance", "none"]
    (result,) = results(cli("eval", *files, *arguments, "--json"))
    assert [score["name"] for score in result["scores"]] == ["exact", "tok-lc"]
    right, good = (corpus[name].read_text().splitlines() for name in ("right", "good"))
    assert result["scores"][0]["value"] == pytest.approx(100 * sum(map(str.__eq__, right, good)) / 60)
    assert result["scores"][0]["interval"] is None
    assert_error(cli("eval", *files, "--metric", "blue"), 2, "no metric is called blue")
    unread = corpus["good"].with_name("no-such-run")  # it is told before any model is loaded
    assert_error(cli("eval", "--model", unread, "--metric", "blue"), 2, "no metric is called blue")
    # Given an official reference, the score joins the others.
    (result,) = results(cli("eval", *files, "--tok-lc", corpus["bad"], "--language", "en", "--json"))
    assert [score["name"] for score in result["scores"]] == ["bleu", "chrf", "ter", "tok-lc"]
    short = write(corpus["right"].with_name("short"), ["eine"])
    assert_error(cli("eval", *files, "--tok-lc", short), 3, "short has 1 lines", "60")


def test_several_references(corpus: dict[str, Path], cli: Cli) -> None:
    right = [corpus["right"], corpus["worse"]]
    (result,) = results(cli("eval", "--hypotheses", corpus["bad"], "--reference", right[0], "--reference", right[1],
                            "--json"))  # fmt: skip
    expected = sacrebleu(*right, "-i", corpus["bad"], "-m", "bleu", "chrf", "ter")
    assert [score["value"] for score in result["scores"]] == pytest.approx([one["score"] for one in expected])
    short = write(corpus["right"].with_name("short"), ["eine"])
    assert_error(
        cli("eval", "--hypotheses", corpus["bad"], "--reference", right[0], "--reference", short),
        3, "right.de has 60 lines", "short 1",
    )  # fmt: skip


# --- bands ------------------------------------------------------------------------------------------------------------


def test_bands_of_length_are_sacrebleus_of_these_lines(tmp_path: Path, corpus: dict[str, Path], cli: Cli) -> None:
    draw = random.Random(3)
    source = [" ".join("w" * draw.randint(0, 14)) for _ in range(60)]
    files = ["--hypotheses", corpus["good"], "--hypotheses", corpus["bad"], "--reference", corpus["right"]]
    arguments = ["--source", write(tmp_path / "source.en", source), "--by", "length", "--length-bands", "5,10,20"]
    found = whole(cli("eval", *files, *arguments, "--json"))
    assert found["length_bands"] == ["0-4", "5-9", "10-19", "20+"]
    for system, name in zip(found["systems"], ("good", "bad"), strict=True):
        for place, (low, high) in enumerate([(0, 5), (5, 10), (10, 20)]):
            chosen = [n for n, line in enumerate(source) if low <= len(line.split()) < high]
            right, hypotheses = (
                write(tmp_path / f"{text}.part", [corpus[text].read_text().splitlines()[n] for n in chosen])
                for text in ("right", name)
            )
            bands = [score["by_length"][place] for score in system["scores"]]
            assert [band["sentences"] for band in bands] == [len(chosen)] * 3
            expected = sacrebleu_scores(right, hypotheses)
            assert [band["value"] for band in bands] == pytest.approx(expected, abs=1e-9)
        assert all(
            score["by_length"][3] == {"band": "20+", "sentences": 0, "value": None} for score in system["scores"]
        )


def test_bands_of_frequency(tmp_path: Path, cli: Cli) -> None:
    train = write(tmp_path / "train.de", ["Der Hund, der Hund.", "Der Mann.", "Cafe\u0301"])
    right = write(tmp_path / "right.de", ["Der Hund sieht den Mann.", "Ein Café."])
    found = write(tmp_path / "found.de", ["Der Hund sieht Mann Mann.", "Das Cafe\u0301."])
    arguments = ["--by", "frequency", "--frequency-from", train, "--frequency-bands", "1,2,3"]
    result = whole(cli("eval", "--hypotheses", found, "--reference", right, *arguments, "--json"))
    assert result["frequency"] == {"text": str(train), "bands": ["0", "1", "2", "3+"]}
    counts = [[band[name] for name in ("matched", "hypothesis", "reference")] for band in result["systems"][0]["words"]]
    # Never seen: sieht, den, Ein; Das. Once: Mann (and one too many), Café. Twice: Der, Hund, and the full stop.
    assert counts == [[1, 2, 3], [2, 3, 2], [4, 4, 4], [0, 0, 0]]
    once, never = result["systems"][0]["words"][1], result["systems"][0]["words"][3]
    assert (once["precision"], once["recall"], once["f"]) == (2 / 3, 1, 4 / 5)
    assert (never["precision"], never["recall"], never["f"]) == (None, None, None)
    outcome = cli("eval", "--hypotheses", found, "--reference", right, "--reference", right, *arguments)
    assert_error(outcome, 2, "one reference")


# --- reports ----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("V4")
def test_a_report(tmp_path: Path, corpus: dict[str, Path], cli: Cli) -> None:
    report = tmp_path / "report.json"
    arguments = ["eval", "--hypotheses", corpus["good"], "--reference", corpus["right"], "--json"]
    outcome = cli(*arguments, "--report", report)
    assert (outcome.code, outcome.out) == (0, b"")
    assert json.loads(report.read_bytes()) == whole(cli(*arguments))
    report.write_text("mine")
    assert_error(cli(*arguments, "--report", report), 2, "exists already", "--overwrite")
    assert report.read_text() == "mine"
    assert cli(*arguments, "--report", report, "--overwrite").code == 0
    assert json.loads(report.read_bytes())["sentences"] == 60
    for own in (corpus["good"], corpus["right"]):
        before = own.read_bytes()
        assert_error(cli(*arguments, "--report", own, "--overwrite"), 2, "is the input too")
        assert own.read_bytes() == before
    assert_error(cli(*arguments, "--report", tmp_path / "nowhere" / "report"), 2, "folder does not exist")
    assert_error(cli(*arguments, "--report", tmp_path), 2, "is a directory")


@pytest.mark.fault("V4")
def test_a_full_disk(corpus: dict[str, Path], cli: Cli) -> None:
    arguments = ["eval", "--hypotheses", corpus["good"], "--reference", corpus["right"]]
    assert_error(cli(*arguments, "--report", "/dev/full"), 6, "/dev/full", "No space left")


# --- test sets that sacreBLEU knows -----------------------------------------------------------------------------------


def test_a_named_test_set(tmp_path: Path) -> None:
    """From sacreBLEU's own folder, with its scores; for Chinese its tokeniser for Chinese. No socket is opened."""
    raw = tmp_path / "cache" / "wmt17" / "raw"
    (raw / "test").mkdir(parents=True)
    (raw / "wmt17.test.tgz").write_text("unpacked already")
    texts = {"src.en": ["A dog.", "He is there."], "ref.zh": ["一只狗。", "他在那里。"]}
    for name, lines in texts.items():
        segments = "".join(f'<seg id="{n}">{line}</seg>\n' for n, line in enumerate(lines, start=1))
        (raw / "test" / f"newstest2017-enzh-{name}.sgm").write_text(segments, encoding="utf-8")
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text("import os, socket\nsocket.socket.connect = lambda *_: os._exit(99)\n")
    extra = {"SACREBLEU": str(tmp_path / "cache"), "PYTHONPATH": str(guard)}
    found = write(tmp_path / "found.zh", ["一只狗。", "他在这里。"])
    arguments = ["eval", "--hypotheses", str(found), "--testset", "wmt17", "--language-pair"]
    result = whole(finish(start([*arguments, "en-zh", "--by", "length", "--json"], extra=extra)))
    expected = sacrebleu("-t", "wmt17", "-l", "en-zh", "-i", found, "-m", "bleu", "chrf", "ter", **extra)
    (system,) = result["systems"]
    assert [score["value"] for score in system["scores"]] == pytest.approx([one["score"] for one in expected])
    assert f"BLEU|{expected[0]['signature']}" == system["scores"][0]["signature"]
    assert "|tok:zh|" in expected[0]["signature"]
    assert system["scores"][0]["by_length"][0]["sentences"] == 2
    missing = finish(start([*arguments[:3], "--testset", "wmt15", "--language-pair", "en-de"], extra=extra))
    assert_error(missing, 3, "wmt15", "sacrebleu --download wmt15 --language-pair en-de")


# --- models -----------------------------------------------------------------------------------------------------------


def test_several_hypotheses_as_text(tmp_path: Path, cli: Cli) -> None:
    right = tmp_path / "right.de"
    right.write_text("Ein Hund sieht einen Mann.\n")
    names = [tmp_path / name for name in ("a.de", "b\x1b[31m.de")]
    for name in names:
        name.write_text("Ein Hund sieht einen Mann.\n")
    outcome = cli("eval", "--hypotheses", names[0], "--hypotheses", names[1], "--reference", right)
    assert outcome.code == 0
    assert outcome.out.count(b"  100.00  ") == 4  # BLEU and chrF of both
    assert outcome.out.count(b"nrefs:1|") == 3
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


def test_models_beside_files(finished: Path, project: Path, tmp_path: Path, cli: Cli) -> None:
    """On the run's test set, in bands of the run's training text; a copy of a run translates as the run does."""
    other = Path(shutil.copytree(finished, tmp_path / "run"))
    right = project / "valid.de"
    arguments = ["--model", finished, "--model", other, "--hypotheses", right, "--by", "length", "--by", "frequency"]
    found = whole(cli("eval", *arguments, "--metric", "bleu", "--json"))
    first, second, file = found["systems"]
    assert [system["name"] for system in found["systems"]] == [str(finished), str(other), str(right)]
    assert first["hypotheses_sha256"] == second["hypotheses_sha256"]
    assert first["update"] == second["update"] != file["update"]
    assert second["scores"][0]["against_baseline"]["bootstrap"]["p"] == 1
    assert file["scores"][0]["value"] == pytest.approx(100)
    assert found["frequency"]["text"] == str(project / "train.de")
    assert found["source"] == str(project / "valid.en")
    # Every reference word is matched by itself, and all words of the small corpus were seen in training.
    assert all(band["matched"] == band["hypothesis"] == band["reference"] for band in file["words"])
    assert sum(band["reference"] for band in file["words"]) == 12 * 7  # with the full stop, a word of its own
    assert file["scores"][0]["by_length"][0] == {"band": "0-9", "sentences": 12, "value": pytest.approx(100)}
    assert_error(cli("eval", *arguments[:6], "--output", tmp_path / "out"), 2, "of one model")


def test_an_output_that_cannot_be(finished: Path, project: Path, tmp_path: Path, cli: Cli) -> None:
    """Heard of before anything is translated."""
    mine = write(tmp_path / "mine", ["mine"])
    outcome = cli("eval", "--model", finished, "--output", mine)
    assert_error(outcome, 2, "exists already")
    assert_error(cli("eval", "--model", finished, "--output", project / "valid.en", "--overwrite"), 2, "the input too")
    assert_error(
        cli("eval", "--model", finished, "--output", mine, "--report", mine, "--overwrite"),
        2,
        "is the file of --output too",
    )
    assert mine.read_text() == "mine\n"


@pytest.mark.fault("V1")
def test_counts_that_differ(finished: Path, project: Path, tmp_path: Path, cli: Cli) -> None:
    short, source, right = write(tmp_path / "short.de", ["Eine Zeile."]), project / "valid.en", project / "valid.de"
    assert_error(cli("eval", "--hypotheses", short, "--reference", right), 3, "short.de has 1 lines", "valid.de 12")
    outcome = cli("eval", "--hypotheses", right, "--hypotheses", short, "--reference", right)
    assert_error(outcome, 3, "short.de has 1 lines", "valid.de 12")
    outcome = cli("eval", "--model", finished, "--source", source, "--reference", short)
    assert_error(outcome, 3, "valid.en has 12 lines", "short.de 1")


def test_files_are_scored_without_torch(tmp_path: Path) -> None:
    """Importing it takes longer than the scores of a thousand lines."""
    text = write(tmp_path / "text", ["a b c d", "e f g h"])
    code = "import sys; from s2s.cli import run; code = run(); sys.exit(code or 'torch' in sys.modules)"
    line = [
        sys.executable,
        "-c",
        code,
        "eval",
        "--hypotheses",
        str(text),
        "--reference",
        str(text),
        "--by",
        "frequency",
    ]
    line += ["--frequency-from", str(text), "--json", "--report", str(tmp_path / "report.json")]
    process = subprocess.run(line, capture_output=True, timeout=60, check=False)
    assert (process.returncode, process.stderr) == (0, b"")
    assert json.loads((tmp_path / "report.json").read_text())["systems"][0]["scores"][0]["value"] == pytest.approx(100)


@pytest.mark.fault("V2")
def test_nothing_to_score(tmp_path: Path, cli: Cli) -> None:
    """sacreBLEU refuses it too."""
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    assert_error(cli("eval", "--hypotheses", empty, "--reference", empty), 3, "nothing to score")
    line = [sys.executable, "-m", "sacrebleu", str(empty), "-i", str(empty)]
    assert subprocess.run(line, capture_output=True, check=False).returncode == 1


def test_bytes_that_are_no_text(tmp_path: Path, cli: Cli) -> None:
    broken, right = tmp_path / "broken", write(tmp_path / "right", ["a", "b"])
    broken.write_bytes(b"a\nb\xff\n")
    assert_error(cli("eval", "--hypotheses", broken, "--reference", right), 3, "line 2, byte 2: 0xff is not UTF-8")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "nothing to score"),
        (["FILE"], "--reference or --testset"),
        (["FILE", "REFERENCE", "--source", "TEXT"], "--source and --by length"),
        (["FILE", "REFERENCE", "--by", "length"], "--source and --by length"),
        (["FILE", "REFERENCE", "--output", "out"], "--output: keeps"),
        (["FILE", "FILE", "REFERENCE"], "is given twice"),
        (["RUN", "--source", "TEXT"], "--source and --reference go together"),
        (["RUN", "REFERENCE"], "--source and --reference go together"),
        (["FILE", "--testset", "wmt14"], "needs --language-pair"),
        (["FILE", "--testset", "wmt14", "--language-pair", "ende"], "is no pair"),
        (["FILE", "--testset", "wmt14", "--language-pair", "-en-zh"], "is no pair"),
        (["FILE", "REFERENCE", "--testset", "wmt14", "--language-pair", "en-de"], "brings its own"),
        (["FILE", "REFERENCE", "--baseline", "TEXT"], "--baseline: compares"),
        (["FILE", "OTHER", "REFERENCE", "--baseline", "elsewhere"], "none of the systems"),
        (["FILE", "OTHER", "REFERENCE", "--baseline", "TEXT", "--significance", "none"], "--baseline: compares"),
        (["FILE", "REFERENCE", "--significance", "randomisation"], "randomisation compares"),
        (["FILE", "REFERENCE", "--significance", "both"], "randomisation compares"),
        (["FILE", "REFERENCE", "--trials", "1000"], "--trials: does nothing"),
        (["FILE", "REFERENCE", "--samples", "1000", "--significance", "none"], "--samples: does nothing"),
        (["FILE", "REFERENCE", "--seed", "1", "--significance", "none"], "--seed: does nothing"),
        (["FILE", "REFERENCE", "--samples", "10"], "--samples"),
        (["FILE", "REFERENCE", "--length-bands", "5"], "--length-bands: does nothing"),
        (["FILE", "REFERENCE", "--frequency-bands", "5"], "--frequency-bands: does nothing"),
        (["FILE", "REFERENCE", "--frequency-from", "TEXT"], "--frequency-from: does nothing"),
        (["FILE", "REFERENCE", "--language", "de"], "--language: does nothing"),
        (["FILE", "REFERENCE", "--checkpoint", "latest"], "--checkpoint: does nothing here; it needs --model"),
        (["FILE", "REFERENCE", "--device", "cpu"], "--device: does nothing here; it needs --model"),
        (["FILE", "REFERENCE", "--by", "frequency"], "needs a training text"),
        (["FILE", "REFERENCE", "--by", "weight"], "no bands of weight"),
        (["FILE", "REFERENCE", "--by", "length", "--source", "TEXT", "--length-bands", "9,5"], "no limits"),
    ],
)
def test_options_that_do_not_go_together(
    finished: Path, project: Path, cli: Cli, options: list[str], words: str
) -> None:
    text, other = project / "valid.de", project / "valid.en"
    names: dict[str, list[str | Path]] = {
        "RUN": ["--model", finished],
        "FILE": ["--hypotheses", text],
        "OTHER": ["--hypotheses", other],
        "REFERENCE": ["--reference", text],
        "TEXT": [text],
    }
    arguments = [word for option in options for word in names.get(option, [option])]
    assert_error(cli("eval", *arguments), 2, words)


def test_runs_with_other_texts(finished: Path, project: Path, tmp_path: Path, cli: Cli) -> None:
    """What is asked for must be said where two runs would answer differently."""
    other = Path(shutil.copytree(finished, tmp_path / "run"))
    config = other / "config.yaml"
    before = config.read_text()
    models = ["--model", finished, "--model", other]
    config.write_text(before.replace(str(project / "valid.de"), str(tmp_path / "else.de")))
    assert_error(cli("eval", *models), 2, "different test sets", "--source and --reference")
    config.write_text(before.replace(str(project / "train.de"), str(tmp_path / "else.de")))
    assert_error(cli("eval", *models, "--by", "frequency"), 2, "different texts", "--frequency-from")
