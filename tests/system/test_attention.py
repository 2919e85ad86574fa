"""`s2s attention`: one sentence through one model or several, searched or given, as a picture of any kind."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path
from xml.etree import ElementTree

import pytest
from harness import Cli, assert_error, done, train_arguments

from s2s.analysis.svg import shorten

SVG = "{http://www.w3.org/2000/svg}"


def drawn(path: Path) -> list[tuple[list[str], list[str], list[str]]]:
    """For each panel its title, its words and the tooltips of its cells."""
    panels = []
    for panel in ElementTree.parse(path).getroot().findall(f"{SVG}g"):
        texts = [(one.get("class"), one.text or "") for one in panel.iter(f"{SVG}text")]
        tips = [re.sub("[\u2068\u2069]", "", one.text or "") for one in panel.iter(f"{SVG}title")]
        panels.append(([t for c, t in texts if c == "title"], [t for c, t in texts if c == "word"], tips))
    return panels


def test_a_given_translation_has_the_weights_of_align(finished: Path, project: Path, tmp_path: Path, cli: Cli) -> None:
    pairs = project / "valid.en", project / "valid.de"
    picture = tmp_path / "a.svg"
    outcome = cli("attention", pairs[0], "--target", pairs[1], "--line", "3", "-m", finished, "-o", picture)
    assert (outcome.code, outcome.out) == (0, b""), outcome.err
    found = json.loads(cli("align", "--model", finished, *pairs, "--format", "json").out.decode().splitlines()[2])
    expected = [
        f"{source} → {target}: {weight:.3g}"
        for target, row in zip(found["target"], found["weights"], strict=True)
        for source, weight in zip(found["source"], row, strict=True)
    ]
    ((title, words, tips),) = drawn(picture)
    assert title == [finished.name] and words == [*found["source"], *found["target"]]
    for tip, wanted in zip(tips, expected, strict=True):
        assert tip.rpartition(": ")[0] == wanted.rpartition(": ")[0]
        assert float(tip.rpartition(": ")[2]) == pytest.approx(float(wanted.rpartition(": ")[2]), rel=0.02, abs=2e-6)


def test_several_models_and_heads(finished: Path, finished_transformer: Path, tmp_path: Path, cli: Cli) -> None:
    """Each says what `s2s translate` says; the Transformer's heads stand behind their mean."""
    picture, line = tmp_path / "a.svg", b"\nThe old dog sees a man.\n"
    models = ("-m", finished, "-m", finished_transformer)
    assert cli("attention", *models, "--line", "2", "-o", picture, stdin=line).code == 0
    panels = drawn(picture)
    assert [title for title, _, _ in panels] == [[finished.name], [finished_transformer.name]]
    for model, (_, words, _) in zip((finished, finished_transformer), panels, strict=True):
        found = cli("translate", "--model", model, stdin=line).out.decode().splitlines()[1]
        assert words == ["The", "old", "dog", "sees", "a", "man.", *map(shorten, found.split())]
    arguments = ("attention", "-m", finished_transformer, "--line", "2", "--heads", "--overwrite", "-o", picture)
    assert cli(*arguments, stdin=line).code == 0
    whole, *heads = drawn(picture)
    assert len(heads) > 1 and heads[0][0] == ["layer 1, head 1"]
    mean = [sum(float(tips[cell].rpartition(": ")[2]) for _, _, tips in heads) / len(heads) for cell in range(6)]
    assert [float(tip.rpartition(": ")[2]) for tip in whole[2][:6]] == pytest.approx(mean, abs=2e-3)


def test_png_and_pdf(finished: Path, project: Path, tmp_path: Path, cli: Cli) -> None:
    pytest.importorskip("matplotlib", reason="the extra s2s[pictures] is not installed")
    for form, beginning in (("png", b"\x89PNG"), ("PDF", b"%PDF-")):
        picture = tmp_path / f"a.{form}"
        assert cli("attention", project / "valid.en", "-m", finished, "-o", picture).code == 0
        assert picture.read_bytes().startswith(beginning)
        pipe = tmp_path / f"pipe.{form}"
        os.mkfifo(pipe)
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)  # noqa: B023
        reader.start()
        assert cli("attention", project / "valid.en", "-m", finished, "-o", pipe).code == 0
        assert pipe.is_fifo(), "written to, not replaced by a file"
        reader.join(60)
        assert read[0].startswith(beginning)


def test_refusals(finished: Path, project: Path, tmp_path: Path, cli: Cli) -> None:
    picture, source = tmp_path / "a.svg", project / "valid.en"
    arguments = ("attention", source, "-m", finished, "-o", picture)
    assert_error(cli("attention", source, "-m", finished), 2, "--output", "is not given")
    assert_error(cli("attention", source, "-o", picture), 2, "--model: none is given")
    assert_error(cli("attention", source, "-m", finished, "-o", tmp_path / "a.gif"), 2, "is no picture", ".svg, .png")
    assert_error(cli(*arguments, "--line", "13"), 3, "has no line 13")
    assert_error(cli("attention", "-m", finished, "-o", picture, stdin=b" \n"), 3, "line 1: is blank")
    assert_error(cli(*arguments, "--heads"), 2, "--heads", "has no heads")
    assert_error(cli("attention", source, "-m", finished, "-o", source, "--overwrite"), 2, "valid.en", "is no picture")
    assert not picture.exists()
    picture.touch()
    assert_error(cli(*arguments), 2, "exists already")
    long = " ".join(["dog"] * 1200).encode()
    assert_error(cli(*arguments[:1], *arguments[2:], "--overwrite", stdin=long), 2, "--line", "max_source_length")


def test_bytes_that_were_replaced_are_told(finished: Path, tmp_path: Path, cli: Cli) -> None:
    source, target = tmp_path / "in", tmp_path / "said"
    source.write_bytes(b"The \xffdog.\n")
    target.write_bytes(b"Der \xffHund.\n")
    arguments = ("attention", source, "-m", finished, "-o", tmp_path / "a.svg", "--overwrite")
    assert cli(*arguments).err.count("warning: ") == 1
    both = cli(*arguments, "--target", target)
    assert both.code == 0 and f"warning: {source}: " in both.err and f"warning: {target}: " in both.err


def test_a_model_without_attention(project: Path, tmp_path: Path, cli: Cli) -> None:
    run = project / "without-attention"
    if not run.exists():
        done(train_arguments(project, run, "model.decoder.attention={kind: none}", "training.max_updates=1"))
    outcome = cli("attention", project / "valid.en", "-m", run, "-o", tmp_path / "a.svg")
    assert_error(outcome, 4, "without-attention: has no attention")
