"""One mechanism starts from the weights of another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from harness import Cli, assert_error, losses, train_arguments

from s2s.checkpoint import load_model
from s2s.run import load_trained

LATENT = "model.decoder.attention={kind: latent, score: general}"
HARD = "model.decoder.attention={kind: hard, score: general, estimator: {kind: reinforce, baseline: moving}}"


def test_a_latent_attention_goes_on_where_a_soft_one_ended(
    project: Path, new_run: Path, finished: Path, cli: Cli
) -> None:
    """All tensors have the same names: after one update with a rate of nearly zero they are those of the soft run."""
    found = cli(*train_arguments(project, new_run, f"init_from={finished}", LATENT, "training.max_updates=1",
                                 "optimizer.lr=1e-12"))  # fmt: skip
    assert found.code == 0, found.err
    assert "afresh: nothing; left behind: nothing" in found.err
    before, after = load_model(finished, "best").snapshot.model, load_model(new_run, "latest").snapshot.model
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6)
    cold, warm = float.fromhex(losses(finished)[0][1]), float.fromhex(losses(new_run)[0][1])
    assert warm < cold - 0.5  # nats a word; the soft run was short
    soft, latent = (load_trained(run, torch.device("cpu")).tokenizers.fingerprint for run in (finished, new_run))
    assert soft == latent


def test_what_the_other_run_lacks_starts_afresh_and_is_named(
    project: Path, new_run: Path, finished: Path, cli: Cli
) -> None:
    found = cli(*train_arguments(project, new_run, f"init_from={finished}", HARD, "training.max_updates=2"))
    assert found.code == 0, found.err
    assert "afresh: decoder.wiring.attention.estimator.mean; left behind: nothing" in found.err
    assert cli(*train_arguments(project, new_run, f"init_from={finished}", HARD, "training.max_updates=4")).code == 0


def test_the_run_that_another_began_from_may_move(
    project: Path, new_run: Path, finished: Path, tmp_path: Path, cli: Cli
) -> None:
    """A training that goes on does not read it; a setting that names another one would do nothing, and is refused."""
    first, moved, other = tmp_path / "first", tmp_path / "moved", tmp_path / "other"
    shutil.copytree(finished, first)
    assert cli(*train_arguments(project, new_run, f"init_from={first}", LATENT, "training.max_updates=1")).code == 0
    first.rename(moved)
    found = cli(*train_arguments(project, new_run, f"init_from={moved}", LATENT, "training.max_updates=2"))
    assert found.code == 0 and "changed since the checkpoint: init_from" in found.err

    assert cli(*train_arguments(project, other, "seed=7", "training.max_updates=1")).code == 0
    found = cli(*train_arguments(project, new_run, f"init_from={other}", LATENT, "training.max_updates=3"))
    assert_error(found, 2, "init_from", "differ from the checkpoint's")
    shutil.rmtree(moved)
    found = cli(*train_arguments(project, new_run, f"init_from={moved}", LATENT, "training.max_updates=3"))
    assert found.code == 0, found.err


@pytest.mark.parametrize("where", ["nowhere", "train.en"])
def test_a_start_that_is_no_run_is_refused(project: Path, new_run: Path, cli: Cli, where: str) -> None:
    found = cli(*train_arguments(project, new_run, f"init_from={project / where}"))
    assert_error(found, 4, where, "no config.yaml here; give the directory of a run")


def test_what_is_frozen_stays_and_the_rest_learns(project: Path, new_run: Path, finished: Path, cli: Cli) -> None:
    """To the last bit, over two parts of a training, with weight decay."""
    still = "training.frozen=[encoder, decoder.embedding]"
    settings = (f"init_from={finished}", LATENT, still, "training.save_every=2", "optimizer.weight_decay=0.1")
    for updates in (2, 4):
        found = cli(*train_arguments(project, new_run, *settings, f"training.max_updates={updates}"))
        assert found.code == 0, found.err
    before, after = load_model(finished, "best").snapshot.model, load_model(new_run, "latest").snapshot.model
    unchanged = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    assert unchanged == {name for name in before if name.startswith(("encoder.", "decoder.embedding."))}
    assert 3 <= len(unchanged) < len(before)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ("[encode]", "the model has no part encode; its parts begin with encoder, decoder"),
        ("[encoder, decoder]", "nothing is left to learn; leave a part out"),
    ],
)
def test_parts_that_cannot_be_frozen(project: Path, new_run: Path, cli: Cli, parts: str, why: str) -> None:
    found = cli(*train_arguments(project, new_run, f"training.frozen={parts}"))
    assert_error(found, 2, f"training.frozen: {why}")
