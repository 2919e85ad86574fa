"""The run directory: what a training leaves, and how a model is taken from it.

run/
  run.json         the run's own id          LOCK        who is training here
  config.yaml      every setting, resolved   tokenizer/  the vocabularies
  metrics.jsonl    a record per update       checkpoints/  latest  best
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from s2s import config as configuration
from s2s.checkpoint import IDENTITY, check_tensors, load_model, replace_file, require
from s2s.config import Config
from s2s.data import tokenizer
from s2s.data.tokenizer import Tokenizers
from s2s.errors import CheckpointError, ConfigError, UsageError
from s2s.machine import start_vector_mathematics
from s2s.models.seq2seq import Seq2Seq
from s2s.progress import warn
from s2s.training.trainer import own_tensors, seed_forward

_CONFIG, _TOKENIZER = "config.yaml", "tokenizer"


def default_directory(config: Path) -> Path:
    """``runs/<the config's folder>-<its stem>`` under the current folder."""
    return Path("runs") / f"{config.resolve().parent.name}-{config.stem}"


class Run:
    """A run's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.tokenizer = path / _TOKENIZER
        self.config = path / _CONFIG

    def check(self, resume: bool, overwrite: bool) -> bool:
        """Whether there is a run in the directory already.

        Raises UsageError for a directory that is not a run's, or that is one where neither ``resume`` nor
        ``overwrite`` was asked for.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(self.path, "is a file", "give another --run-dir")
        # Half a file is what a killed process leaves that came no further than to begin a run.
        used = self.path.is_dir() and any(
            child.name != "LOCK" and not child.name.startswith(".tmp-") for child in self.path.iterdir()
        )
        if used and not (self.path / IDENTITY).is_file():
            raise UsageError(self.path, "is not empty and not a run of s2s", "use a new --run-dir")
        if used and not resume and not overwrite:
            raise UsageError(self.path, "holds a run already", "use a new --run-dir or --overwrite")
        return used

    def open(self, resume: bool, overwrite: bool) -> str:
        """Make or reopen the run in its directory, which exists and is locked, and give its id. Raises as `check`."""
        used = self.check(resume, overwrite)
        if used and overwrite:
            for child in sorted(self.path.iterdir(), key=lambda child: child.name == IDENTITY):  # it goes last
                if child.name != "LOCK":
                    shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
        if not used or overwrite:
            replace_file(self.path / IDENTITY, json.dumps({"id": uuid.uuid4().hex}).encode() + b"\n")
        return self.identity()

    def identity(self) -> str:
        """The run's id. Raises CheckpointError where it cannot be read."""
        try:
            found = json.loads((self.path / IDENTITY).read_bytes())
        except (OSError, ValueError) as error:
            raise CheckpointError(self.path / IDENTITY, f"cannot be read: {error}", "use a new --run-dir") from None
        if not isinstance(found, dict):
            raise CheckpointError(self.path / IDENTITY, "is not a run's identity", "use a new --run-dir")
        return require(found, "id", str, str(self.path / IDENTITY))

    def write_config(self, config: Config) -> None:
        """Keep the resolved settings; a file that says the same already is left alone."""
        text = f"# Every setting of this run, as it was used.\n{configuration.save_text(config)}".encode()
        if not self.config.is_file() or self.config.read_bytes() != text:
            replace_file(self.config, text)


def build_model(config: Config, tokenizers: Tokenizers) -> Seq2Seq:
    """The network with its first weights, a function of ``config.seed``. Raises ConfigError where parts do not fit."""
    start_vector_mathematics()
    seed_forward(config.seed, 0, 0)
    try:
        return config.model.build(tokenizers.source.size, tokenizers.target.size)
    except ValueError as error:
        raise ConfigError("model", error) from error


def run_of(path: Path) -> Run:
    """The run that this directory, or one of its checkpoints, is. Raises CheckpointError where it is none."""
    for folder in (path, path.resolve().parent.parent):  # a run, or run/checkpoints/step-N
        if (folder / _CONFIG).is_file():
            return Run(folder)
    raise CheckpointError(path, f"no {_CONFIG} here", "give the directory of a run")


class WarmStart(NamedTuple):
    """What a model took from another run."""

    fresh: list[str]
    """Names of the tensors that start afresh here."""
    left: list[str]
    """Names of those that were left behind there."""
    sha256: str
    """See `best_weights`."""


def best_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """The best weights of a run, and by what they are known again: the hash of all of them.

    Raises CheckpointError where the run is damaged or there is none.
    """
    given = load_model(path, "best", warn).snapshot.model
    return given, hash_of(given)


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, in the order of the names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def warm_start(model: nn.Module, path: Path) -> WarmStart:
    """Begin from the best weights of another run: every tensor of the same name and shape is taken.

    Raises CheckpointError where nothing fits or the other run is damaged.
    """
    (given, sha256), own = best_weights(path), own_tensors(model)
    taken = [name for name, tensor in own.items() if name in given and given[name].shape == tensor.shape]
    if not taken:
        raise CheckpointError(path, "no tensor fits this model", "start from a run of the same sizes, or without it")
    with torch.no_grad():
        for name in taken:
            own[name].copy_(given[name])
    fresh, left = [name for name in own if name not in taken], [name for name in given if name not in taken]
    return WarmStart(fresh, left, sha256)


def start_like(model: Seq2Seq, path: Path, config: Config, tokenizers: Tokenizers) -> list[str]:
    """Give the model the matrices that the settings at ``path`` would begin with under the seed of ``config``.

    Taken are those of the same name and shape that belong to modules of the same class, and their names are given back.
    Vectors and scalars begin with constants, which may be settings of a recipe; where `uniform_init` differs, all of
    the start is. Raises ConfigError for settings that cannot be read or built.
    """
    other = configuration.load(path, [f"seed={config.seed}"])
    if other.model.uniform_init != config.model.uniform_init:
        return []
    given, taken = _matrices(build_model(other, tokenizers)), []
    with torch.no_grad():
        for name, (kind, matrix) in _matrices(model).items():
            if name in given and given[name][0] is kind and given[name][1].shape == matrix.shape:
                matrix.copy_(given[name][1])
                taken.append(name)
    return taken


def _matrices(model: nn.Module) -> dict[str, tuple[type[nn.Module], Tensor]]:
    """Parameters with rows and columns by name, each shared one once, with the class of the module they are in."""
    return {
        name: (type(model.get_submodule(name.rpartition(".")[0])), parameter)
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1
    }


class Trained(NamedTuple):
    """A model ready to translate."""

    model: Seq2Seq
    tokenizers: Tokenizers
    config: Config
    update: int
    """The update its weights are from."""


def load_trained(path: Path, device: torch.device, which: str = "best") -> Trained:
    """The model of a run's directory (its best checkpoint, or ``latest``, or ``step-N``), or of one checkpoint in it.

    Raises CheckpointError where anything is missing, damaged or does not belong together.
    """
    loaded = load_model(path, which, warn)
    run = run_of(path)
    try:
        config = configuration.load(run.config)
    except ConfigError as error:
        raise CheckpointError(run.config, f"cannot be used: {error}") from error
    tokenizers = tokenizer.load(run.tokenizer)
    if require(loaded.snapshot.state, "tokenizer", str) != tokenizers.fingerprint:
        raise CheckpointError(run.tokenizer, "vocabulary hash differs from the one the model was trained with")
    model = build_model(config, tokenizers)
    expected = own_tensors(model)
    check_tensors(expected, loaded.snapshot.model, loaded.path)
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(loaded.snapshot.model[name])
    return Trained(model.to(device).eval(), tokenizers, config, loaded.step)
