"""Bad texts and bad settings through the command line: one line that says where, what, and what to do; no traceback.

What exactly is refused is tested where it is read, in tests/unit/test_text.py and test_configfile.py.
"""

from __future__ import annotations

import gzip
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Cli, assert_error, digests, steps, train_arguments, write_project

ONE_UPDATE = "training.max_updates=1"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A project that a test may spoil."""
    return write_project(tmp_path / "own")


# --- texts (5.8) ------------------------------------------------------------------------------------------------------

Spoil = Callable[[bytes], bytes]


@pytest.mark.fault("TX1", "TX2", "TX8", "TX9", "TX19", "TX21")
@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda text: b"", ("train.en has 288 lines", "train.de 0")),
        (lambda text: text + b"mehr\n", ("has 288 lines", "289", "line N of one file must translate")),
        (lambda text: text + b"\n", ("289", "one file ends with an extra blank line")),
        (
            lambda text: b"\n" * 288,
            ("no pair is left of /", "train.en and /", "train.de: 288 pairs read, 288 blank", "give other files"),
        ),
        (lambda text: text.replace(b"Hund", b"H\xfcnd", 1), ("train.de: line ", "0xfc is not UTF-8", "iconv")),
        (lambda text: text.replace(b"Hund", b"\xed\xa0\x80", 1), ("train.de: line ", "0xed is not UTF-8")),
        (lambda text: text.decode().encode("utf-16"), ("train.de: is UTF-16, not UTF-8; convert it",)),
        (lambda text: gzip.compress(text)[:-20], ("train.de: broken gzip data after line ",)),
    ],
)
def test_texts_that_cannot_be_trained_on(own: Path, cli: Cli, spoil: Spoil, parts: tuple[str, ...]) -> None:
    path = own / "train.de"
    path.write_bytes(spoil(path.read_bytes()))
    assert_error(cli(*train_arguments(own, own / "run", ONE_UPDATE)), 3, *parts)
    assert not (own / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (("model.tie=all", "tokenizer.joint=false"), "tie: all needs one vocabulary for both sides"),
        (("model.document={heads: 3}",), "document.heads 3 does not divide the encoder's size 32"),
        (("training.frozen=[nothing]",), "training.frozen: the model has no part nothing"),
    ],
)
def test_parts_that_do_not_fit_are_known_before_texts_are_read(
    own: Path, cli: Cli, settings: tuple[str, ...], part: str
) -> None:
    (own / "train.en").unlink()
    assert_error(cli("config", "check", "--config", own / "rnn.yaml", *settings), 2, part)
    assert_error(cli(*train_arguments(own, own / "run", *settings)), 2, part)


@pytest.mark.fault("TX25")
@pytest.mark.parametrize("section", ["train", "valid", "test"])
def test_missing_files_are_known_before_training(own: Path, cli: Cli, section: str) -> None:
    outcome = cli(*train_arguments(own, own / "run", ONE_UPDATE, f"data.{section}.source={own}/missing.en"))
    assert_error(outcome, 3, f"{own}/missing.en: no such file")
    outcome = cli(*train_arguments(own, own / "run", ONE_UPDATE, f"data.{section}.source={own}"))
    assert_error(outcome, 3, f"{own}: is a directory")


@pytest.mark.fault("TX25")
def test_what_cannot_be_read_twice_is_not_trained_on(own: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody waits for its writer."""
    os.mkfifo(own / "pipe")
    monkeypatch.chdir(own)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name, what in (("pipe", "is a pipe or a device"), ("socket", "is a device or a socket")):
            outcome = cli(*train_arguments(own, own / "run", ONE_UPDATE, f"data.train.source={name}"))
            assert_error(outcome, 3, f"{own}/{name}: {what}")


@pytest.mark.fault("TX23")
def test_one_file_for_both_sides(own: Path, cli: Cli) -> None:
    outcome = cli(*train_arguments(own, own / "run", ONE_UPDATE, f"data.train.target={own}/train.en"))
    assert_error(outcome, 2, "the same file")


@pytest.mark.fault("N10", "TX5", "TX7", "TX11", "TX18", "TX20")
@pytest.mark.parametrize(
    "same",
    [
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.removesuffix(b"\n"),
        lambda text: text.replace(b" ", "\u00a0\u2028 ".encode()),
        gzip.compress,
    ],
)
def test_the_same_text_in_other_bytes_trains_the_same(
    project: Path, own: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory, same: Spoil
) -> None:
    for name in ("train.en", "train.de"):
        (own / name).write_bytes(same((own / name).read_bytes()))
    reference = project / "three-updates"
    for folder, run in ((project, reference), (own, own / "run")):
        assert cli(*train_arguments(folder, run, "training.max_updates=3")).code == 0
    assert digests(own / "run") == digests(reference)


@pytest.mark.fault("TX3", "TX4", "TX10", "TX12")
def test_pairs_that_are_left_out_are_counted(own: Path, cli: Cli) -> None:
    """A blank line on either side, a long one, and a control character, which is no reason to leave a pair out."""
    english, german = own / "train.en", own / "train.de"
    english.write_text(english.read_text() + "\n" + "long " * 300 + "\n\u3000\nA \x1b[31mdog.\n")
    german.write_text(german.read_text() + "Ohne.\nZu lang.\nOhne.\nEin Hund.\n")
    outcome = cli(*train_arguments(own, own / "run", ONE_UPDATE))
    assert outcome.code == 0, outcome
    counts = "292 pairs read, 2 blank, 1 too long (> 256), 1 control characters replaced, 289 kept"
    assert f"data: {counts}" in outcome.err
    assert steps(own / "run") == [1]


@pytest.mark.fault("TX22", "TX26", "TX27")
def test_what_looks_wrong_is_warned_of(own: Path, cli: Cli) -> None:
    """Repeated and untranslated pairs, tables, JSON, and pairs shared with the validation set end nothing."""
    english, german = (own / "valid.en").read_text(), (own / "valid.de").read_text()
    (own / "train.en").write_text(english + "A\n" * 20 + "C\nD\nE\nF\n")
    (own / "train.de").write_text(german + "B\n" * 20 + "C\nD\nE\nF\n")
    (own / "valid.en").write_text("".join(line.replace(" ", "\t", 1) for line in english.splitlines(keepends=True)))
    outcome = cli(*train_arguments(own, own / "run", ONE_UPDATE))
    assert outcome.code == 0, outcome
    for warning in (
        "data: 53% of the 36 pairs repeat an earlier pair\n",  # 17 are different
        "data: the source equals the target in 4 of the 36 pairs\n",
        f"{own}/valid.en: every line has one tab; is it a table, not plain text?\n",
        "valid: 12 pairs are in the training data too\n",
    ):
        assert warning in outcome.err
    (own / "valid.de").write_text("".join(f"{{{line}" for line in german.splitlines(keepends=True)))
    outcome = cli(*train_arguments(own, own / "again", ONE_UPDATE))
    assert outcome.code == 0, outcome
    assert f"{own}/valid.de: every line starts with {{; is it JSON, not plain text?\n" in outcome.err
    assert "are in the training data too" not in outcome.err


@pytest.mark.fault("M5")
def test_a_vocabulary_larger_than_the_text_supports(own: Path, cli: Cli) -> None:
    outcome = cli(*train_arguments(own, own / "run", ONE_UPDATE, "tokenizer.vocabulary=30000"))
    assert outcome.code == 0
    assert [line for line in outcome.err.splitlines() if "30000" in line]


def test_links_outside_their_pair(own: Path, cli: Cli) -> None:
    (own / "train.align").write_text("0-0\n" * 287 + "0-99\n")
    outcome = cli(*train_arguments(own, own / "run", ONE_UPDATE, f"data.train.links={own}/train.align"))
    assert_error(outcome, 3, "train.align: line 288: the link 0-99 is outside a pair", "write source-target")


# --- settings (5.9) ---------------------------------------------------------------------------------------------------


@pytest.mark.fault("YM1", "YM2", "YM6", "YM7", "YM8", "YM9", "YM10", "YM12", "YM13", "YM18")
@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ("model: {droput: 0.1}", 2, ("model.droput is not a setting; did you mean model.dropout?",)),
        ("dropout: 0.1", 2, ("dropout is not a setting; it belongs in model",)),
        ("seed: 1\nseed: 2", 3, ("seed: given twice, on lines 2 and 3",)),
        ("seed: 010", 2, ("seed",)),
        ("training: {max_updates: 1.5}", 2, ("training.max_updates",)),
        ("training: {max_updates: true}", 2, ("training.max_updates",)),
        ("model: {dropout: '0.1'}", 2, ("model.dropout",)),
        ("model: {dropout: 1.0}", 2, ("model.dropout",)),
        ("batches: {tokens: 0}", 2, ("batches.tokens",)),
        ("optimizer: {lr: -1e-3}", 2, ("optimizer.lr",)),
        ("optimizer: {lr: .nan}", 2, ("optimizer.lr",)),
        ("optimizer: {lr: !!python/object/apply:os.system ['touch marker']}", 2, ("tag",)),
        ("model: {decoder: {attention: bahdanau}}", 2, ("wiring: bahdanau", "score: additive")),
        (
            "model: {decoder: {attention: {kind: bahdanau}}}",
            2,
            ("kind: bahdanau is not one of the kinds; write wiring",),
        ),
        ("model: {encoder: {kind: lstm}}", 2, ("lstm is a value of model.encoder.cell",)),
        ("training: {stop_on: blue}", 2, ("training.stop_on",)),
        ("data: {valid: null}\ntraining: {patience: 3}", 1, ("training.stop_on: bleu needs data.valid",)),
        ("data: {valid: null}\ntraining: {patience: null, keep_best: 2}", 1, ("training.keep_best", "set it, or 1")),
        (
            "data: {valid: null}\ntraining: {patience: null}\noptimizer: {kind: sgd, schedule: {kind: plateau}}",
            1,
            ("optimizer.schedule: plateau", "set data.valid"),
        ),
        ("objective: {guided: {}}", 1, ("objective.guided", "set data.train.links")),
        ("model: {encoder: {kind: transformer, size: 30, heads: 4}}", 2, ("heads 4 does not divide size 30",)),
        ("model: {dropout: -0.1}", 2, ("model.dropout",)),
        ("optimizer: {lr: 1e400}", 2, ("optimizer.lr", "too large")),
        (f"seed: {10**30}", 2, ("seed", "too large")),
        ("objective: &a {}\nsearch: *a", 2, ("anchors",)),
        ("1: x", 2, ("the key 1", "put it in quotes")),
        ("seed: [1", 3, ()),
        ("\tseed: 1", 2, ()),
    ],
)
def test_settings_that_are_refused(own: Path, cli: Cli, text: str, line: int, parts: tuple[str, ...]) -> None:
    (own / "bad.yaml").write_text(f"extends: rnn.yaml\n{text}\n")
    outcome = cli(*train_arguments(own, own / "run", config="bad.yaml"))
    assert outcome.code == 2
    first = outcome.err.splitlines()[0]
    assert first.startswith(f"s2s: error: {own}/bad.yaml:{line}")
    assert all(part in first for part in parts), first
    assert "Traceback" not in outcome.err
    assert not (own / "run").exists() and not Path("marker").exists()


@pytest.mark.fault("YM16")
@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("model.droput=0.1", "model.droput is not a setting; did you mean model.dropout?"),
        ("model.dropout=often", "model.dropout"),
        ("model.dropout", "KEY=VALUE"),
    ],
)
def test_overrides_are_checked_like_the_file(own: Path, cli: Cli, override: str, part: str) -> None:
    assert_error(cli(*train_arguments(own, own / "run", override)), 2, part)


@pytest.mark.fault("YM1")
def test_all_mistakes_at_once(own: Path, cli: Cli) -> None:
    (own / "bad.yaml").write_text("extends: rnn.yaml\nseed: x\nbatches: {token: 1}\nmodel: {dropout: 2}\n")
    outcome = cli(*train_arguments(own, own / "run", config="bad.yaml"))
    assert outcome.code == 2
    places = [text.split(": ")[2].removeprefix(f"{own}/") for text in outcome.err.splitlines()]
    assert places == ["bad.yaml:2", "bad.yaml:3", "bad.yaml:4"]


@pytest.mark.fault("YM5")
def test_the_norwegian_problem(own: Path, cli: Cli) -> None:
    """Files may be called no.no; nothing becomes false."""
    for name, suffix in (("train", "de"), ("valid", "de")):
        (own / f"{name}.{suffix}").rename(own / f"{name}.no")
    (own / "rnn.yaml").write_text((own / "rnn.yaml").read_text().replace(".de}", ".no}"))
    (own / "no").write_bytes((own / "train.no").read_bytes())
    outcome = cli(*train_arguments(own, own / "run", ONE_UPDATE, f"data.train.target={own}/no"))
    assert outcome.code == 0, outcome


@pytest.mark.fault("YM11", "YM15")
def test_what_cannot_be_a_settings_file(own: Path, cli: Cli) -> None:
    for path in (own / "missing.yaml", own):
        assert_error(cli("train", "--config", path), 2, str(path))
    for text in ("", "# nothing\n", "- a\n", "text\n", "a: 1\n---\nb: 2\n"):
        (own / "bad.yaml").write_text(text)
        assert_error(cli("train", "--config", own / "bad.yaml"), 2, f"{own}/bad.yaml")


@pytest.mark.fault("YM17")
def test_the_saved_settings_are_the_settings(finished: Path, project: Path, cli: Cli) -> None:
    """What a run keeps is read back to the same, and trains the same."""
    shown, original = (
        cli("config", "show", "-c", finished / "config.yaml"),
        cli("config", "show", "-c", project / "rnn.yaml"),
    )
    assert shown.code == original.code == 0
    resolved = original.out.replace(b"device: auto", b"device: cpu")
    assert [line for line in shown.out.splitlines() if b"device:" not in line] == [
        line for line in resolved.splitlines() if b"device:" not in line
    ]
    outcome = cli("train", "--config", finished / "config.yaml", "--run-dir", finished)
    assert (outcome.code, "already complete" in outcome.err) == (0, True)
