"""`s2s align`: links and weights of given pairs, and their error rate."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from harness import Cli, assert_error, done, train_arguments

from s2s.analysis.alignment import aer, parse_links, read_links


@pytest.fixture(scope="session")
def pairs(project: Path) -> tuple[Path, Path]:
    return project / "valid.en", project / "valid.de"


@pytest.mark.parametrize("run", ["finished", "finished_transformer"])
def test_links_are_the_largest_weights(
    run: str, request: pytest.FixtureRequest, pairs: tuple[Path, Path], cli: Cli
) -> None:
    """Recomputed in plain loops from the weights that are printed, for words and for pieces."""
    model = request.getfixturevalue(run)
    for level in ("word", "piece"):
        arguments = ("align", "--model", model, *pairs, "--level", level)
        rows = cli(*arguments).out.decode().splitlines()
        found = [json.loads(line) for line in cli(*arguments, "--format", "json").out.decode().splitlines()]
        soft = cli(*arguments, "--format", "soft").out.decode().splitlines()
        assert len(rows) == len(found) == len(soft) == 12
        for number, (row, one, line) in enumerate(zip(rows, found, soft, strict=True)):
            if level == "word":
                sides = [path.read_text(encoding="utf-8").splitlines()[number].split() for path in pairs]
                assert [one["source"], one["target"]] == sides
            assert [len(one["target"]), len(one["source"])] == [len(one["weights"]), len(one["weights"][0])]
            links = [[max(range(len(w)), key=w.__getitem__), target] for target, w in enumerate(one["weights"])]
            assert one["links"] == sorted(links)
            assert row == " ".join(f"{source}-{target}" for source, target in one["links"])
            assert [[float(w) for w in words.split(",")] for words in line.split(" ")] == one["weights"]
            assert all(0 < sum(w) <= 1.0001 for w in one["weights"])


def test_a_shift_moves_rows_and_a_threshold_links_more(finished: Path, pairs: tuple[Path, Path], cli: Cli) -> None:
    arguments = ("align", "--model", finished, *pairs, "--level", "piece", "--format", "json")
    plain, shifted, more = (
        [json.loads(line) for line in cli(*arguments, *extra).out.decode().splitlines()]
        for extra in ((), ("--shift", "1"), ("--threshold", "0.05"))
    )
    for one, other, third in zip(plain, shifted, more, strict=True):
        assert other["weights"][:-1] == one["weights"][1:]
        assert third["links"] == sorted(
            [source, target] for target, w in enumerate(one["weights"]) for source, x in enumerate(w) if x >= 0.05
        )


def test_the_error_rate(finished: Path, pairs: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    """Against gold that is made from the links themselves: all right, then with known mistakes."""
    arguments = ("align", "--model", finished, *pairs)
    found = [parse_links(line).sure for line in cli(*arguments).out.decode().splitlines()]
    gold = tmp_path / "gold"
    gold.write_text("".join(" ".join(f"{s + 1}-{t + 1}" for s, t in links) + "\n" for links in found))
    outcome = cli(*arguments, "--gold", gold, "--gold-first", "1")
    assert (outcome.code, outcome.out) == (0, b"AER 0.0000  precision 1.0000  recall 1.0000\n")
    # The first pair's links become possible only, and in the second a sure one is added that nobody predicted.
    missing = next((s, t) for s in range(3) for t in range(3) if (s, t) not in found[1])
    rows = [" ".join(f"{s}p{t}" for s, t in found[0]), " ".join(f"{s}-{t}" for s, t in {*found[1], missing})]
    gold.write_text("\n".join([*rows, *(" ".join(f"{s}-{t}" for s, t in links) for links in found[2:])]) + "\n")
    output = tmp_path / "links"
    outcome = cli(*arguments, "--gold", gold, "--format", "json", "--output", output)
    all_links, first = sum(map(len, found)), len(found[0])
    sure = all_links - first + 1
    told = json.loads(outcome.out)
    assert told["sentences"] == len(found) == len(output.read_text().splitlines())
    assert told["aer"] == pytest.approx(1 - (all_links - first + all_links) / (all_links + sure))
    assert (told["precision"], told["recall"]) == (1.0, pytest.approx((sure - 1) / sure))


def test_gold_that_does_not_fit(finished: Path, pairs: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    gold = tmp_path / "gold"
    arguments = ("align", "--model", finished, *pairs, "--gold", gold)
    assert_error(cli(*arguments), 3, "gold: cannot be read")
    gold.write_text("0-0\n" * 11)
    output = tmp_path / "links"
    assert_error(cli(*arguments, "--output", output), 3, "valid.en has 12 lines", "gold 11")
    assert not output.exists(), "told before the work"
    gold.write_text("0-0\n" * 4 + "0-99\n" + "0-0\n" * 7)
    assert_error(cli(*arguments), 3, "gold: line 5: the link 0-99, counted from 0, is beyond the", "--gold-first")
    assert_error(cli(*arguments, "--level", "piece"), 2, "--gold: gold links are between words")
    gold.write_text("0-0\n0:0\n")
    assert_error(cli(*arguments), 3, "gold: line 2: '0:0' is not a link")


def test_lines_that_are_no_pairs(finished: Path, tmp_path: Path, cli: Cli) -> None:
    """As many lines out as in."""
    (tmp_path / "one").write_text("The man.\n\n\nThe man.\n")
    (tmp_path / "other").write_text("\n\nDer Mann.\nDer Mann.\n")
    arguments = ("align", "--model", finished, tmp_path / "one", tmp_path / "other")
    rows = cli(*arguments).out.decode().split("\n")
    assert rows[:3] == ["", "", ""] and rows[3] and rows[4:] == [""]
    found = [json.loads(line) for line in cli(*arguments, "--format", "json").out.decode().splitlines()]
    assert [one["links"] == [] for one in found] == [True, True, True, False]
    assert [one["line"] for one in found] == [1, 2, 3, 4]


def test_what_cannot_be_asked(finished: Path, pairs: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    arguments = ("align", "--model", finished, *pairs)
    assert_error(cli(*arguments, "--shift", "2"), 2, "--shift")
    assert_error(cli(*arguments, "--threshold", "0"), 2, "--threshold")
    assert_error(cli("align", *pairs), 2, "--model")
    output = tmp_path / "links"
    assert cli(*arguments, "--output", output).code == 0
    assert_error(cli(*arguments, "--output", output), 2, "exists already")


def test_a_model_without_attention(project: Path, new_run: Path, pairs: tuple[Path, Path], cli: Cli) -> None:
    settings = ("training.max_updates=1", "model.decoder.attention={kind: none}")
    done(train_arguments(project, new_run, *settings))
    outcome = cli("align", "--model", new_run, *pairs)
    assert_error(outcome, 4, f"{new_run}: has no attention", "use a model with attention")
    assert outcome.out == b""


def test_an_ensemble_attends_with_its_mean(
    finished: Path, finished_transformer: Path, pairs: tuple[Path, Path], cli: Cli
) -> None:
    one, other, both = (
        [json.loads(line)["weights"] for line in cli("align", *models, *pairs, "--format", "json").out.splitlines()]
        for models in (
            ("--model", finished),
            ("--model", finished_transformer),
            ("--model", finished, "--model", finished_transformer),
        )
    )
    for left, right, mean in zip(one, other, both, strict=True):
        for rows in zip(left, right, mean, strict=True):
            assert rows[2] == pytest.approx([(a + b) / 2 for a, b in zip(rows[0], rows[1], strict=True)], abs=1e-5)


@pytest.mark.skipif("S2S_DATA" not in os.environ, reason="S2S_DATA does not name the data folder")
def test_the_hansards_as_they_are_kept(finished: Path, tmp_path: Path, cli: Cli) -> None:
    """447 pairs, source and target on a line, links counted from 1: every link finds its words."""
    folder = Path(os.environ["S2S_DATA"]) / "align-gold"
    sides = [line.split("|||") for line in (folder / "enfr.src-tgt").read_text(encoding="utf-8").split("\n")[:-1]]
    files = [tmp_path / "one", tmp_path / "other"]
    for side, path in enumerate(files):
        path.write_text("".join(f"{pair[side].strip()}\n" for pair in sides), encoding="utf-8")
    arguments = ("align", "--model", finished, *files, "--gold", folder / "enfr.gold", "--gold-first", "1")
    output = tmp_path / "links"
    outcome = cli(*arguments, "--output", output, "--format", "pharaoh")
    assert outcome.code == 0, outcome.err
    gold = read_links(folder / "enfr.gold", first=1)
    score = aer([one.sure for one in gold], [one.possible for one in gold], [one.sure for one in read_links(output)])
    assert outcome.out.decode().split()[1] == f"{score.aer:.4f}"
