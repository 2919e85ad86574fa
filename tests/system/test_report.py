"""`s2s report`: a page of every run, finished, under way, killed or spoiled; with any text in it."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from harness import Cli, assert_error, digests, done, records, rewrite, train_arguments

import s2s.commands.report
from s2s.errors import UsageError
from s2s.evaluation import bleu


class Page(HTMLParser):
    """Elements, the text under each id, and all text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.text += data


def written(run: Path, output: Path, cli: Cli, *more: str | Path) -> Page:
    found = cli("report", run, "-o", output, *more)
    assert found.code == 0, found.err
    assert found.out == b"" and f"wrote {output}" in found.err
    return Page(output)


def with_data(run: Path, **splits: dict[str, str] | None) -> None:
    """Let the run's settings name other texts."""
    config = run / "config.yaml"
    page = yaml.safe_load(config.read_text(encoding="utf-8"))
    page["data"] |= splits
    config.write_text(yaml.safe_dump(page), encoding="utf-8")


@pytest.mark.parametrize("run", ["finished", "finished_transformer"])
def test_a_finished_run(run: str, request: pytest.FixtureRequest, project: Path, tmp_path: Path, cli: Cli) -> None:
    model = request.getfixturevalue(run)
    before = digests(model)
    page = written(model, tmp_path / "page.html", cli)
    assert digests(model) == before
    assert {"training", "mechanism", "scores", "sentences", "samples", "attention", "settings", "environment"} <= set(
        page.ids
    )
    hypotheses = cli("translate", "--model", model, project / "valid.en").out.decode().splitlines()
    score = bleu(hypotheses, (project / "valid.de").read_text(encoding="utf-8").splitlines())
    assert f"{score.value:.2f}" in page.text and score.signature in page.text
    assert "12 sentences" in page.text
    for line in hypotheses[:2]:
        assert line in page.text
    assert 'class="note"' not in page.source, "nothing is missing"
    heads = len(re.findall("layer [0-9]+, head [0-9]+", page.text))
    assert (heads > 0) is (run == "finished_transformer")
    assert 'class="heat"' in page.source and page.source.count('class="chart"') >= 8
    assert "training.max_updates" in page.text and "must be given" in page.text


def test_a_run_is_over_whichever_checkpoint_translates(project: Path, new_run: Path, tmp_path: Path, cli: Cli) -> None:
    """Its best one may stand before the end, where the epochs have not run out yet."""
    settings = ("training.max_updates=5000", "training.max_epochs=2", "training.keep_last=9")
    assert cli(*train_arguments(project, new_run, *settings)).code == 0
    for number, path in enumerate((new_run, min((new_run / "checkpoints").glob("step-*")))):
        page = written(path, tmp_path / f"{number}.html", cli)
        assert "2/2 epochs" in page.text and "under way" not in page.text


def test_a_run_that_was_stopped_is_not_over(tmp_path: Path, run: Path, cli: Cli) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("max_updates: 40", "max_updates: 41"))
    assert "under way or was stopped: 40 of at most 41 updates" in written(run, tmp_path / "page.html", cli).text


def test_the_curves_are_those_of_the_metrics(finished: Path, tmp_path: Path, cli: Cli) -> None:
    page = written(finished, tmp_path / "page.html", cli)
    for record in records(finished):
        if "valid" in record:
            assert f"update {record['step']}: {record['valid']['bleu']:.4g}" in page.text
        else:
            assert f"update {record['step']}: {record['lr']:.4g}" in page.text


def test_chosen_sentences_and_the_default_place(run: Path, cli: Cli) -> None:
    assert cli("report", run, "--sentences", "3,1").code == 0
    page = Page(run / "report.html")
    assert re.findall(r"Line (\d+), chrF", page.text) == ["3", "1"]
    assert_error(cli("report", run), 2, "report.html", "exists already", "--overwrite")
    assert cli("report", run / "checkpoints" / (run / "best").read_text(), "--overwrite").code == 0
    assert cli("translate", "--model", run, stdin=b"The old dog sees a man.\n").code == 0, "it is still a run"


def test_refusals(run: Path, project: Path, tmp_path: Path, cli: Cli) -> None:
    page = tmp_path / "page.html"
    assert_error(cli("report", run, "-o", page, "--sentences", "13"), 2, "there is no line 13", "has 12")
    for wrong in ("0", "1,x", "", "1-3"):
        assert_error(cli("report", run, "-o", page, "--sentences", wrong), 2, "--sentences", "are no lines")
    assert_error(cli("report", tmp_path / "nowhere", "-o", page), 4, "no config.yaml here")
    assert_error(cli("report", run, "-o", page, "--checkpoint", "step-7"), 4)
    assert_error(cli("report", run, "-o", project / "valid.en", "--overwrite"), 2, "is the input too")
    assert_error(cli("report", run, "-o", run / "metrics.jsonl", "--overwrite"), 2, "is the input too")
    (newest, *_) = sorted((run / "checkpoints").iterdir())
    rewrite(newest, "model.safetensors", b"spoiled")
    assert_error(cli("report", run, "-o", page, "--checkpoint", newest.name), 4)
    with_data(run, test=None)
    assert_error(cli("report", run, "-o", page, "--split", "test"), 2, "--split", "no data.test")
    assert not page.exists()


def test_a_metric_that_cannot_be_had_is_told_before_translating(
    finished: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As BLEU of Japanese, where MeCab is not installed."""

    def refuse(*_: object, **__: object) -> None:
        raise UsageError("metrics", "no MeCab", "install it")

    monkeypatch.setattr(s2s.commands.report, "judge", refuse)
    monkeypatch.setattr(s2s.commands.report.Translator, "translate", None)
    assert_error(cli("report", finished, "-o", tmp_path / "page.html"), 2, "no MeCab")


def test_a_run_that_was_killed_before_it_saved(run: Path, tmp_path: Path, cli: Cli) -> None:
    shutil.rmtree(run / "checkpoints")
    for name in ("best", "latest"):
        (run / name).unlink()
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    updates = [line for line in lines if b'"loss"' in line]
    (run / "metrics.jsonl").write_bytes(b"".join(updates[:7]) + updates[7][:40])
    page = written(run, tmp_path / "page.html", cli)
    for part in ("7 of at most", "1 lines of metrics.jsonl", "no validation yet", "No checkpoint is saved yet"):
        assert part in page.text
    assert "training" in page.ids and not {"scores", "attention", "samples"} & set(page.ids)


def test_a_run_that_has_recorded_nothing(run: Path, tmp_path: Path, cli: Cli) -> None:
    (run / "metrics.jsonl").unlink()
    page = written(run, tmp_path / "page.html", cli)
    assert "No update is recorded, so" in page.text
    assert "training" not in page.ids and "scores" in page.ids


def test_texts_that_are_gone(run: Path, tmp_path: Path, cli: Cli) -> None:
    with_data(run, valid={"source": str(tmp_path / "gone.en"), "target": str(tmp_path / "gone.de")})
    found = cli("report", run, "-o", tmp_path / "page.html")
    assert found.code == 0 and "gone.en" in found.err and "no translations" in found.err
    assert "could not be read" in Page(tmp_path / "page.html").text
    assert_error(cli("report", run, "-o", tmp_path / "other.html", "--split", "valid"), 3, "gone.en")


def test_hostile_text_creates_no_element(run: Path, project: Path, tmp_path: Path, cli: Cli) -> None:
    """In a source, a reference, a record and a setting: the same elements as with plain text."""
    pages = {}
    for name, word in {"plain": "dog", "hostile": "<script>alert('1')</script>\"><img/src=x>&amp;\u202e"}.items():
        source, target = tmp_path / f"{name}.en", tmp_path / f"{name}.de"
        source.write_text(f"The old {word} sees.\n\n", encoding="utf-8")
        target.write_text(f"Der alte {word} sieht.\n\n", encoding="utf-8")
        with_data(run, valid={"source": str(source), "target": str(target)})
        pages[name] = written(run, tmp_path / f"{name}.html", cli, "--sentences", "1,2")
    assert set(pages["hostile"].tags) == set(pages["plain"].tags)
    assert pages["hostile"].tags.count("script") == 1 and "img" not in pages["hostile"].tags
    assert "\u202e" not in pages["hostile"].source
    assert "alert('1')" in pages["hostile"].text
    assert "A blank line is not translated." in pages["plain"].text


def test_a_record_that_json_could_not_hold(run: Path, tmp_path: Path, cli: Cli) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if "loss" in line]
    updates[3]["grad_norm"] = updates[4]["nll"] = None
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert "nan" not in written(run, tmp_path / "page.html", cli).source.split("</style>")[1].split("<script>")[0]


def test_a_model_without_attention(project: Path, tmp_path: Path, cli: Cli) -> None:
    run = project / "without-attention"
    if not run.exists():
        done(train_arguments(project, run, "model.decoder.attention={kind: none}", "training.max_updates=1"))
    page = written(run, tmp_path / "page.html", cli)
    assert "This model has no attention." in page.text and 'class="heat"' not in page.source
