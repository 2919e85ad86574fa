"""`s2s score`, `rescore`, `mbr` and `average --best`: scores are those of search, lines in are lines out."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from harness import Cli, assert_error, done, steps, train_arguments, validations
from safetensors.torch import load_file

from s2s.checkpoint import Checkpoints, load_model
from s2s.cli import app
from s2s.data.nbest import Listed, NBest, read_nbest, written
from s2s.interfaces import EOS
from s2s.models.ensemble import Ensemble
from s2s.models.seq2seq import Seq2Seq
from s2s.run import load_trained
from s2s.search.beam import Hypothesis, SearchSettings, beam_search

CPU = torch.device("cpu")
TESTS = ("scoring", "aligning")
WIRINGS = {
    "without-feeding": ("model.decoder.input_feeding=false",),
    "latent": ("model.decoder.attention.kind=latent",),
    "hard": ("model.decoder.attention.kind=hard", "model.decoder.attention.estimator={kind: enumerate}"),
}


@pytest.fixture(scope="session")
def sources(project: Path) -> list[str]:
    return (project / "train.en").read_text(encoding="utf-8").splitlines()[:25]


@pytest.fixture(scope="session")
def other_kinds(project: Path) -> dict[str, Path]:
    """Short runs of other attentions; they say nothing sensible, but they search."""
    runs = {name: project / f"kind-{name}" for name in WIRINGS}
    for name, settings in WIRINGS.items():
        done(train_arguments(project, runs[name], "training.max_updates=10", *settings))
    return runs


def lines_file(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def searched(runs: list[Path], lines: list[str], settings: SearchSettings) -> list[tuple[str, str, Hypothesis]]:
    """Source, text and hypothesis of everything in the n-best lists whose text is cut into the same pieces again."""
    trained = [load_trained(run, CPU) for run in runs]
    tokenizers = trained[0].tokenizers
    rows = [torch.tensor([*tokenizers.source.encode(line), EOS]) for line in lines]
    model = trained[0].model if len(runs) == 1 else Ensemble([one.model for one in trained])
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    found = beam_search(model, padded, torch.tensor([len(row) for row in rows]), settings, n_best=settings.beam)
    every = [
        (line, tokenizers.target.decode(one.ids), one) for line, kept in zip(lines, found, strict=True) for one in kept
    ]
    same = [case for case in every if tokenizers.target.encode(case[1]) == case[2].ids]
    assert len(same) >= 10
    return same


def scores(outcome_out: bytes) -> list[float]:
    return [float(line.split("\t")[0]) for line in outcome_out.decode().splitlines()]


@pytest.mark.parametrize("kind", ["rnn", "transformer", "ensemble", *WIRINGS])
def test_scores_are_those_of_search(
    kind: str,
    finished: Path,
    finished_transformer: Path,
    other_kinds: dict[str, Path],
    sources: list[str],
    tmp_path: Path,
    cli: Cli,
) -> None:
    runs = {"rnn": [finished], "transformer": [finished_transformer], "ensemble": [finished, finished_transformer]} | {
        name: [run] for name, run in other_kinds.items()
    }
    models = list(itertools.chain.from_iterable(("--model", run) for run in runs[kind]))
    own = load_trained(runs[kind][0], CPU).config.search
    cases = searched(runs[kind], sources, own)
    files = [lines_file(tmp_path / str(side), [case[side] for case in cases]) for side in (0, 1)]
    outcome = cli("score", *models, *files)
    assert outcome.code == 0, outcome.err
    assert scores(outcome.out) == pytest.approx([case[2].score for case in cases], abs=1e-4)
    outcome = cli("score", *models, *files, "--normalise", "none", "--batch-tokens", "30")
    assert scores(outcome.out) == pytest.approx([case[2].log_probability for case in cases], abs=1e-4)
    outcome = cli("score", *models, *files, "--normalise", "gnmt")
    lengths = [len(case[2].ids) + 1 for case in cases]
    expected = [case[2].log_probability / ((5 + n) / 6) for case, n in zip(cases, lengths, strict=True)]
    assert scores(outcome.out) == pytest.approx(expected, abs=1e-4)


def test_tokens_sum_to_the_score(finished: Path, project: Path, tmp_path: Path, cli: Cli) -> None:
    files = (project / "valid.en", project / "valid.de")
    text = cli("score", "--model", finished, *files, "--per-token", "--normalise", "none")
    objects = cli("score", "--model", finished, *files, "--per-token", "--json", "--normalise", "average")
    assert (text.code, objects.code) == (0, 0)
    rows = text.out.decode().splitlines()
    found = [json.loads(line) for line in objects.out.decode().splitlines()]
    assert len(rows) == len(found) == 12
    for number, (row, one, source, target) in enumerate(
        zip(rows, found, *(path.read_text(encoding="utf-8").splitlines() for path in files), strict=True), start=1
    ):
        value, *fields = row.split("\t")
        pieces, parts = zip(*(field.rsplit(" ", 1) for field in fields), strict=True)
        assert list(pieces) == one["tokens"] and pieces[-1] == "</s>"
        assert "".join(pieces[:-1]).replace("\u2581", " ").strip() == target
        assert math.fsum(map(float, parts)) == pytest.approx(float(value), abs=1e-4)
        assert (one["line"], one["source"], one["target"]) == (number, source, target)
        assert one["token_log_probabilities"] == pytest.approx([float(part) for part in parts], abs=1e-4)
        assert one["log_probability"] == pytest.approx(math.fsum(one["token_log_probabilities"]), abs=1e-9)
        assert one["score"] == pytest.approx(one["log_probability"] / len(pieces), abs=1e-9)
    plain = json.loads(cli("score", "--model", finished, *files, "--json").out.split(b"\n")[0])
    assert sorted(plain) == ["line", "log_probability", "score", "source", "target"]
    tokens = sum(len(one["tokens"]) for one in found)
    nll = -math.fsum(one["log_probability"] for one in found) / tokens
    told = re.search(r"12 pairs, (\d+) tokens: (\S+) nats a token, perplexity (\S+)\n", objects.err)
    assert told is not None and int(told[1]) == tokens
    assert [float(told[2]), float(told[3])] == pytest.approx([nll, math.exp(nll)], abs=2e-3)


def test_likelihood_is_that_of_validation(finished: Path, project: Path, cli: Cli) -> None:
    """The best checkpoint's record in the metrics, measured by another part of the program."""
    best = int((finished / "best").read_text()[5:])
    (nll,) = [valid["nll"] for step, valid in validations(finished) if step == best]
    outcome = cli("score", "--model", finished, project / "valid.en", project / "valid.de")
    assert f"tokens: {nll:.4f} nats" in outcome.err


def test_lines_that_are_no_pairs(finished: Path, tmp_path: Path, cli: Cli) -> None:
    """As many lines out as in, whatever stands in them; null stands for what is no number."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(text.replace("max_source_length: 1000", "max_source_length: 30"))
    long = "The old man sees a dog. " * 10
    one = lines_file(tmp_path / "one", ["The man.", "", "", long, "The man.", "The man."])
    other = lines_file(tmp_path / "other", ["", "", "Der Mann.", "Der Mann.", long, "Der Mann."])
    outcome = cli("score", "--model", run, one, other)
    values = scores(outcome.out)
    assert outcome.code == 0 and len(values) == 6
    assert values[1:3] == [0.0, -math.inf] and all(math.isnan(value) for value in values[3:5])
    assert math.isfinite(values[0]) and values[0] < 0 and math.isfinite(values[5])
    assert "2 pairs are longer than search.max_source_length, 30 pieces on a side" in outcome.err
    assert "2 pairs, " in outcome.err
    objects = cli("score", "--model", run, one, other, "--json", "--per-token").out.decode().splitlines()
    found = [json.loads(line) for line in objects]
    assert [one["score"] is None for one in found] == [False, False, True, True, True, False]
    assert [one["tokens"] == [] for one in found] == [False, True, True, True, True, False]
    assert found[0]["tokens"] == ["</s>"]


def test_files_that_do_not_fit(finished: Path, tmp_path: Path, cli: Cli) -> None:
    one, other = lines_file(tmp_path / "one", ["a"] * 3), lines_file(tmp_path / "other", ["b"] * 2)
    output = tmp_path / "out"
    arguments = ("score", "--model", finished, one, other)
    outcome = cli(*arguments, "--output", output)
    assert_error(outcome, 3, "one has 3 lines", "other 2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]
    assert_error(cli("score", "--model", finished, one, tmp_path / "none"), 3, "none: no such file")
    assert_error(cli("score", one, one), 2, "--model")
    assert_error(cli("score", "--model", finished, one, one, "-o", one, "--overwrite"), 2, "is the input too")
    assert_error(cli("score", "--model", tmp_path / "none", one, one), 4, "no such directory")
    one.write_bytes(b"\xff\n")
    assert_error(
        cli("score", "--model", finished, one, one, "--strict"),
        3,
        "line 1, byte 1: 0xff is not UTF-8",
        "or leave out --strict",
    )
    outcome = cli(
        "score", "--model", finished, one, one, "--output", output, "--checkpoint", "latest", "--device", "cpu"
    )
    assert (outcome.code, outcome.out, len(scores(output.read_bytes()))) == (0, b"", 1)
    assert outcome.err.count("1 lines are not UTF-8") == 2


def test_a_signal_keeps_what_there_is(
    finished: Path, project: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pair at a time, in windows of one: the third is interrupted, two are written."""
    original, calls = Seq2Seq.forward, list[int]()

    def interrupted(self: Seq2Seq, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(Seq2Seq, "forward", interrupted)
    output = tmp_path / "out"
    files = (project / "valid.en", project / "valid.de", "--batch-tokens", "1", "--output", output)
    outcome = cli("score", "--model", finished, *files)
    assert_error(outcome, 143, "stopped by SIGTERM after 2 pairs", "out.partial")
    assert not output.exists() and len(scores((tmp_path / "out.partial").read_bytes())) == 2


# --- lists ------------------------------------------------------------------------------------------------------------


def lists_file(path: Path, lists: list[NBest], kind: str) -> Path:
    return lines_file(path, [line for one in lists for line in written(one, kind)])  # type: ignore[arg-type]


LISTS = [
    NBest(1, "The old dog sees a man.", [Listed("Der kleine Hund.", -0.1, {}), Listed("Der alte Hund sieht einen Mann.",
          -0.2, {"tokens": ["x"]}), Listed("", -0.3, {})], {}),
    NBest(2, "", [Listed("", 0.0, {})], {}),
    NBest(3, "The red tree.", [Listed("Der rote Baum.", -math.inf, {}), Listed("Der rote Brief.", -0.4, {})], {}),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_lists_are_ranked_by_the_formula(
    kind: str, finished: Path, finished_transformer: Path, tmp_path: Path, cli: Cli
) -> None:
    """The models' scores as `s2s score` gives them, put together by plain arithmetic."""
    flat = [(found, one) for found in LISTS for one in found.hypotheses]
    one = lines_file(tmp_path / "one", [found.source or "" for found, _ in flat])
    other = lines_file(tmp_path / "other", [hypothesis.text for _, hypothesis in flat])
    by_rnn, by_transformer = (
        scores(cli("score", "--model", run, one, other).out) for run in (finished, finished_transformer)
    )
    totals = [
        (found.line, 0.5 * hypothesis.score + 2 * rnn - 0.25 * transformer, hypothesis.text)
        for (found, hypothesis), rnn, transformer in zip(flat, by_rnn, by_transformer, strict=True)
    ]
    totals.sort(key=lambda row: (row[0], -row[1]))
    nbest = lists_file(tmp_path / "lists", LISTS, kind)
    source = lines_file(tmp_path / "source", [found.source or "" for found in LISTS])
    arguments = ["rescore", nbest, "--model", finished, "--model", finished_transformer, "--given", "0.5"]
    arguments += ["--weight", "2", "--weight", "-0.25"]
    outcome = cli(*arguments, "--source", source)
    assert outcome.code == 0, outcome.err
    rows = outcome.out.decode().splitlines()
    if kind == "tsv":
        found = [row.split("\t") for row in rows]
        assert [row[:2] for row in found] == [["1", "1"], ["1", "2"], ["1", "3"], ["2", "1"], ["3", "1"], ["3", "2"]]
        assert [(int(row[0]), row[3]) for row in found] == [(line, text) for line, _, text in totals]
        assert [float(row[2]) for row in found] == pytest.approx([total for _, total, _ in totals], abs=1e-4)
        assert_error(cli(*arguments), 2, "does not say what was translated", "--source")
    else:
        every = [one for row in rows for one in json.loads(row)["hypotheses"]]
        assert [one["text"] for one in every] == [text for _, _, text in totals]
        values = [-math.inf if one["score"] is None else one["score"] for one in every]
        assert values == pytest.approx([total for _, total, _ in totals], abs=1e-4)
        assert [one["tokens"] for one in every if "tokens" in one] == [["x"]]
        assert all(len(one["model_scores"]) == 2 for one in every)
        assert cli(*arguments).out == outcome.out


def test_lists_and_sources_that_do_not_fit(
    finished: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no runs are that a message could name
    nbest = lists_file(tmp_path / "lists", LISTS, "tsv")
    for count in (2, 4):
        source = lines_file(tmp_path / "source", ["The man."] * count)
        outcome = cli("rescore", nbest, "--model", finished, "--source", source)
        assert_error(outcome, 3, f"source has {count} lines", "lists, counted in lists, 3")
    wrong = cli("rescore", nbest, "--model", finished, "--weight", "1", "--weight", "1", "--source", source)
    assert_error(wrong, 2, "--weight: 2 weights for 1 models")
    for option in ("--weight", "--given"):
        wrong = cli("rescore", nbest, "--model", finished, option, "nan", "--source", source)
        assert_error(wrong, 2, f"{option}: nan is no weight")
    for command in (("rescore", nbest), ("score", source, source), ("align", source, source)):
        assert_error(cli(*command), 2, "--model: none is given", "give the directory of a run")
    source.write_bytes(b"The man.\nThe \xff.\nThe dog.\n")
    outcome = cli("rescore", nbest, "--model", finished, "--source", source)
    assert outcome.code == 0 and "source: 1 lines are not UTF-8" in outcome.err
    outcome = cli("rescore", nbest, "--model", finished, "--source", source, "--strict")
    assert_error(outcome, 3, "source: line 2, byte 5: 0xff is not UTF-8")
    nbest.write_text("a\tb\n")
    assert_error(cli("rescore", nbest, "--model", finished, "--source", source), 3, "lists: line 1: has 2 fields")
    assert_error(cli("mbr", nbest), 3, "lists: line 1: has 2 fields")
    assert_error(cli("mbr", tmp_path / "none"), 3, "none: no such file")


def test_minimum_bayes_risk(tmp_path: Path, cli: Cli) -> None:
    """Three samples of the same text outvote a better scored other one; by scores it wins, for it counts nearly all."""
    samples = [Listed("ganz anders", -1.0, {}), *[Listed("der alte Mann", -9.0, {"n": n}) for n in range(3)]]
    lists = [NBest(1, None, samples, {}), NBest(2, None, [Listed("", 0.0, {})], {})]
    for kind in ("tsv", "jsonl"):
        nbest = lists_file(tmp_path / f"lists.{kind}", lists, kind)
        assert cli("mbr", nbest).out.decode() == "der alte Mann\n\n"
        assert cli("mbr", nbest, "--weights", "softmax", "--utility", "bleu").out.decode() == "ganz anders\n\n"
    rows = cli("mbr", nbest, "--format", "tsv", "--utility", "bleu").out.decode().split("\n")
    assert [row.split("\t")[:3] for row in rows[:4]] == [["1", str(n), f"{v:.6f}"] for n, v in
                                                         ((1, 75), (2, 75), (3, 75), (4, 25))]  # fmt: skip
    found = json.loads(cli("mbr", nbest, "--format", "jsonl").out.split(b"\n")[0])
    assert [one.get("n") for one in found["hypotheses"]] == [0, 1, 2, None]
    output = tmp_path / "out"
    assert cli("mbr", nbest, "--output", output).code == 0
    assert output.read_text() == "der alte Mann\n\n"
    assert_error(cli("mbr", nbest, "--output", output), 2, "exists already")


# --- averages ---------------------------------------------------------------------------------------------------------


def test_the_best_are_kept_and_averaged(project: Path, new_run: Path, tmp_path: Path, cli: Cli) -> None:
    """Validated at 10, 20, 30 and 40, saved every 7: the three best by likelihood are there, and the newest."""
    settings = ("training.keep_best=3", "training.keep_last=1", "training.stop_on=nll")
    assert cli(*train_arguments(project, new_run, *settings)).code == 0
    ranked = [step for step, _ in sorted(validations(new_run), key=lambda record: record[1]["nll"])]
    assert steps(new_run) == sorted({*ranked[:3], 40})
    outcome = cli("average", "--model", new_run, "--best", "3", "--output", tmp_path / "mean")
    assert outcome.code == 0, outcome.err
    chosen = sorted(ranked[:3])
    assert f"averaged updates {', '.join(map(str, chosen))} into" in outcome.err
    parts = [load_file(new_run / "checkpoints" / f"step-{step:08d}" / "model.safetensors") for step in chosen]
    mean = load_file(tmp_path / "mean" / "checkpoints" / f"step-{chosen[-1]:08d}" / "model.safetensors")
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (parts[0][name] + parts[1][name] + parts[2][name]) / 3)
    assert cli("translate", "--model", tmp_path / "mean", stdin=b"The man.\n").code == 0
    too_many = cli("average", "--model", new_run, "--best", "5", "--output", tmp_path / "more")
    assert_error(too_many, 2, "checkpoints that were validated, not 5", "training.keep_best")
    both = cli("average", "--model", new_run, "--best", "2", "--last", "2", "--output", tmp_path / "more")
    assert_error(both, 2, "--last and --best")
    last = cli("average", "--model", new_run, "--last", "2", "--output", tmp_path / "more")
    assert f"averaged updates {', '.join(map(str, steps(new_run)[-2:]))} into" in last.err
    outcome = cli(*train_arguments(project, tmp_path / "more"))
    assert_error(outcome, 4, "has the mean of some checkpoints, and no training to go on with", "init_from")
    assert_error(cli("average", "--model", new_run, "--output", tmp_path / "mean"), 2, "exists")


@pytest.mark.fault("D7")
def test_checkpoints_of_another_run_are_not_averaged(finished: Path, tmp_path: Path, cli: Cli) -> None:
    """One that a copy has brought is told, once, and the run's own are taken."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    own = steps(run)
    Checkpoints(run, "foreign", keep_last=100).save(own[-1] + 1, load_model(run).snapshot)
    outcome = cli("average", "--model", run, "--last", "2", "--output", tmp_path / "mean")
    assert outcome.code == 0, outcome.err
    assert f"averaged updates {', '.join(map(str, own[-2:]))} into" in outcome.err
    assert outcome.err.count("belongs to another run") == 1


# --- what s2s translate writes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
@pytest.mark.parametrize(
    "settings", [("--beam", "4"), ("--search", "beam=1", "--search", "sampling={seed: 3, temperature: 0.7, top_k: 9}")]
)
def test_lists_from_translate(
    kind: str, settings: tuple[str, ...], finished: Path, sources: list[str], tmp_path: Path, cli: Cli
) -> None:
    """Its n-best lists and samples are read, blank lines included; the model alone gives its own scores again."""
    source = lines_file(tmp_path / "source", [*sources[:5], "", *sources[5:9]])
    nbest = tmp_path / "lists"
    arguments = ("translate", "--model", finished, source, "--format", kind, "--n-best", "4", "--output", nbest)
    outcome = cli(*arguments, *settings)
    assert outcome.code == 0, outcome.err
    given = {found.line: found.hypotheses for found in read_nbest(nbest)[1]}
    assert sorted(given) == list(range(1, 11)) and [one.text for one in given[6]] == [""]
    output = tmp_path / "ranked"
    outcome = cli("rescore", nbest, "--model", finished, "--given", "0", "--source", source, "--output", output)
    assert outcome.code == 0, outcome.err
    told, form = 0, read_nbest(output)
    assert form[0] == kind
    pieces = load_trained(finished, CPU).tokenizers.target
    for found in form[1]:
        assert sorted(one.text for one in found.hypotheses) == sorted(one.text for one in given[found.line])
        values = [one.score for one in found.hypotheses]
        assert values == sorted(values, reverse=True)
        for one in found.hypotheses:
            # The score that was given is that of the pieces it was found in, which may spell the text in another way.
            if kind == "jsonl" and one.more["tokens"] == pieces.pieces(pieces.encode(one.text)):
                assert one.score == pytest.approx(one.more["given_score"], abs=1e-4)
                told += 1
    assert kind == "tsv" or told >= 5
    chosen = cli("mbr", nbest).out.decode().splitlines()
    assert len(chosen) == 10 and all(text in {one.text for one in given[n]} for n, text in enumerate(chosen, start=1))


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["score", "align", "rescore", "mbr", "average"])
def test_every_option_is_documented_and_tried(name: str) -> None:
    """It stands on the page of these commands, and in their tests."""
    page = (Path(__file__).parents[2] / "docs" / "score-align.md").read_text(encoding="utf-8")
    tests = "".join((Path(__file__).with_name(f"test_{one}.py")).read_text(encoding="utf-8") for one in TESTS)
    command = typer.main.get_group(app).commands[name]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    assert "--output" in options
    for option in options:
        assert re.search(rf"{option}\b", page), f"{option} is not in the documents"
        assert re.search(rf'"{option}"', tests), f"no test uses {option}"
