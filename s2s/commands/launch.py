"""``--devices N``: PyTorch's own launcher on this machine, over N processes of `s2s train` or `s2s translate`.

What torchrun does for a cluster, with the settings that suit one machine: a free port, a fair share of the cores, and
the exit code of the work instead of a launcher's own.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from s2s import config as configuration
from s2s.commands.output import end_silently
from s2s.commands.train import resolved
from s2s.distributed import LAUNCHED
from s2s.errors import ConfigError, S2SError, Stopped, SystemRefused, UsageError
from s2s.progress import warn


def launch_training(
    config: Path, overrides: Sequence[str], arguments: Sequence[str], processes: int, restarts: int
) -> None:
    """Train with several processes: ``s2s train *arguments``, whose settings are those of ``config`` and ``overrides``.

    After a failure all are started again, up to ``restarts`` times. Raises what the training ended with.
    """
    training = resolved(configuration.load(config, overrides)).training
    ends = ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"]
    if training.usr1 == "exit":
        ends.append("SIGUSR1")
    else:
        signal.signal(signal.SIGUSR1, _not_here)
    _launch(["train", *arguments], processes, restarts, training.device, ends, _TRAINING)


def launch_translation(arguments: Sequence[str], processes: int, restarts: int, device: str) -> None:
    """Translate with several processes: ``s2s translate *arguments``. Otherwise as `launch_training`."""
    ends = ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"]
    _launch(["translate", *arguments], processes, restarts, device, ends, _TRANSLATION)


class _Words(NamedTuple):
    """What is said of processes that ended without a word."""

    quit: tuple[str, str]
    todo: str


_TRAINING = _Words(
    ("stopped by SIGQUIT, without saving", "continue with the same command"),
    "see whether memory ran out; the same command goes on from the last checkpoint",
)
_TRANSLATION = _Words(("stopped by SIGQUIT", ""), "see whether memory ran out; with --max-restarts it is done again")


def _launch(
    command: Sequence[str], processes: int, restarts: int, device: str, ends: Sequence[str], words: _Words
) -> None:
    if LAUNCHED in os.environ:
        raise UsageError("--devices", f"a launcher started this process already: {LAUNCHED} is set", "leave it out")
    if device == "cuda" and processes > (found := torch.cuda.device_count()):
        raise ConfigError("--devices", f"{processes} asked for, {found} GPUs found", f"use --devices {found}")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    handled = [name for name in ends if signal.getsignal(signal.Signals[name]) != signal.SIG_IGN]  # as under nohup
    with tempfile.TemporaryDirectory(prefix="s2s-launch-") as folder:
        failed = _run([sys.executable, "-m", "s2s", *command], processes, restarts, handled, folder, words)
    if failed is not None:
        raise _ending(*failed, words.todo)


def _run(
    command: Sequence[str], processes: int, restarts: int, signals: Sequence[str], folder: str, words: _Words
) -> tuple[int, int] | None:
    """The process that failed first and what it ended with, if one did. Raises Stopped."""
    # What went wrong the processes say themselves: these are read at the imports below, and when they start.
    os.environ.setdefault("LOGLEVEL", "CRITICAL")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.getLogger("torch.distributed.elastic").setLevel(os.environ["LOGLEVEL"])  # some of it does not look there
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=restarts,
        signals_to_handle=",".join(signals),
        logs_specs=DefaultLogsSpecs(log_dir=folder),
    )
    start: Callable[..., Any] = launch_agent
    try:
        start(settings, command[0], list(command[1:]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return rank, failure.exitcode
    except SignalException as error:
        if error.sigval == signal.SIGQUIT:  # a process that gets it is gone at once, and says nothing
            raise Stopped(error.sigval, *words.quit) from None
        return 0, 128 + error.sigval
    return None


def _ending(rank: int, code: int, todo: str) -> S2SError:
    """What a process that ended with ``code``, negative after a signal, makes of the whole work."""
    if code == -signal.SIGPIPE:
        end_silently()  # as the process did that found no reader of its results
    if code < 0:
        return SystemRefused("", f"process {rank} was killed by {signal.Signals(-code).name}", todo)
    error = S2SError("", f"process {rank} ended with {code}")
    error.code, error.told = code, True
    return error


def _not_here(number: int, frame: object) -> None:
    """Only what ends a training is passed on; by itself this signal would end the launcher and leave the processes."""
    warn("USR1 does nothing here; send it to the process that the run's file LOCK names")
