"""The loop: batches to gradients to updates, validation, checkpoints; in the order in which it happens.

Nothing here has a state that a checkpoint does not hold. Randomness is a function of counters: before every forward
pass the generator is seeded from (seed, update, slot), so there is none to save, and the order of the data is a
function of (seed, epoch), so the position is one integer.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from s2s.checkpoint import Checkpoints, SaveFailed, Snapshot, check_tensors, replace_file, require
from s2s.data.batches import Batch, Indices
from s2s.distributed import World
from s2s.errors import CheckpointError, ConfigError, DivergedError, SystemRefused, is_out_of_memory
from s2s.failpoints import hit
from s2s.progress import warn
from s2s.settings import MayChange, Settings
from s2s.training.metrics import MetricsLog
from s2s.training.objective import Sums, TrainingStep
from s2s.training.optimizer import Optimizer, Plateau, expected_moments, moments, restore, unstepped
from s2s.training.signals import Interrupted, Signals
from s2s.training.supply import Supply, TrainingData
from s2s.training.view import Measured, Sample, Step, View
from s2s.tree import map_tree

Metric = Literal["nll", "ppl", "bleu", "chrf", "ter"]
_LOWER_IS_BETTER = {"nll", "ppl", "ter"}
_SAVE_FAILURES = 3  # in a row, before the training gives up
_PART, _TOTAL, _COUNT = "part ", "total ", "count "  # what comes before a name among the sums of a batch


class TrainingSettings(Settings):
    """The loop."""

    max_updates: Annotated[int, Field(ge=1), MayChange(decides=True)] = 8000
    """Updates after which training ends."""
    max_epochs: Annotated[int | None, Field(ge=1), MayChange(decides=True)] = None
    """Passes over the corpus after which training ends."""
    max_minutes: Annotated[float | None, Field(gt=0), MayChange(decides=True)] = None
    """Minutes of training (validation and saving not counted, over all resumes) after which it ends. A run that time
    ended is not repeatable to the bit."""
    validate_every: Annotated[int, Field(ge=1)] = 250
    """Updates between validations."""
    save_every: Annotated[int, Field(ge=1), MayChange()] = 250
    """Updates between checkpoints."""
    keep_last: Annotated[int, Field(ge=1), MayChange()] = 2
    """Newest checkpoints that are kept; the best one is kept besides."""
    keep_best: Annotated[int, Field(ge=1), MayChange()] = 1
    """Checkpoints that are kept because they are best in ``stop_on``, as `s2s average --best` needs them; with more
    than one every validation is followed by a save."""
    stop_on: Metric = "bleu"
    """What a better checkpoint is better in."""
    patience: Annotated[int | None, Field(ge=1), MayChange(decides=True)] = 10
    """Validations without a better value of ``stop_on`` after which training ends; null: never."""
    precision: Annotated[Literal["auto", "float32", "bf16", "fp16"], MayChange(exact=False, decides=True)] = "auto"
    """Arithmetic of products; weights and sums stay float32. auto: bf16 where the hardware multiplies it natively."""
    device: Annotated[Literal["auto", "cpu", "cuda"], MayChange(exact=False)] = "auto"
    """Where to train; auto: a GPU if there is one."""
    frozen: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Parts of the model that stay as they begin, such as [encoder, decoder] where init_from gives them and what is new
    is to learn alone: all parameters whose names are one of these, or begin with one and a dot. A shared matrix has the
    names of all its places."""
    checkpoint_activations: Annotated[bool, MayChange()] = False
    """Keep only what enters each layer of a Transformer or of convolutions and compute the rest again in the backward
    pass: less memory, more time, the same losses to the bit."""
    compile: Annotated[bool, MayChange(exact=False, decides=True)] = False
    """Compile the feed-forward parts of a Transformer's layers (torch.compile): minutes at the start, and the same
    losses up to rounding. Needs a C++ compiler on a CPU."""
    skip_nonfinite: Annotated[int, Field(ge=0), MayChange(decides=True)] = 0
    """Updates in a row whose loss or gradient is not finite that are left out before training ends with exit code 5."""
    usr1: Annotated[Literal["save", "exit"], MayChange()] = "save"
    """What the signal USR1 does: save and go on, or save and exit with code 138 (SLURM's ``--signal=USR1@120``)."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Validate and translate with an exponential moving average of the weights, of this decay; early updates count as
    min(ema, (1 + n) / (10 + n))."""
    tensorboard: Annotated[bool, MayChange()] = False
    """Write TensorBoard's event files into the run's folder ``tensorboard`` too; needs the extra s2s[tensorboard]."""
    samples: Annotated[int, Field(ge=0), MayChange()] = 2
    """Translations shown at each validation."""
    wait_minutes: Annotated[float, Field(gt=0), MayChange()] = 10.0
    """Minutes that one of several processes waits in an update for the others before it gives them up. Validation and
    saving, which one does alone, may take longer."""
    log_every: Annotated[int, Field(ge=1), MayChange()] = 50
    """Updates between lines on the terminal; metrics.jsonl has every update."""


def resolve_device(device: str) -> torch.device:
    """The device that a setting means here; ConfigError where it is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device", "no CUDA device was found", "use device: cpu or auto")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def check_compiler(device: torch.device) -> None:
    """Raises ConfigError where nothing can be compiled for this device."""
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except Exception as error:  # torch passes on whatever the compiler, or its absence, leads to
        what = f"torch cannot compile here: {str(error).strip().splitlines()[0]}"
        raise ConfigError(
            "training.compile", what, "install a C++ compiler (CPU) or Triton (GPU), or set false"
        ) from None


def resolve_precision(precision: str, device: torch.device) -> str:
    """The arithmetic that a setting means on this device: bf16 only where the hardware multiplies it natively."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "float32"


class Validation(NamedTuple):
    """What was measured."""

    scores: dict[str, float]
    """nll, ppl, bleu, ...; one of them is ``stop_on``."""
    attention: dict[str, float]
    """What the attention does, see `s2s.analysis.diagnostics`; empty where there are no weights."""
    samples: list[Sample]
    """The first sentences, to be looked at."""


@dataclass
class TrainingState:
    """Where a training stands: counters and scores, all of them in every checkpoint."""

    update: int = 0
    epoch: int = 0
    position: int = 0
    """Batches taken in this epoch; so the number that makes an update may change in the middle of one."""
    target_tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_update: int = 0
    fruitless: int = 0
    """Validations since the best."""
    reductions: int = 0
    """Reductions of a plateau schedule."""
    since_reduction: int = 0
    """Fruitless validations since the last of them."""
    validated: int = 0
    """The last update that was validated."""
    skipped: int = 0
    """Updates in a row, up to this one, that were left out because they were not finite."""


def limit_met(state: TrainingState, settings: TrainingSettings) -> str | None:
    """Which of its limits a training has come to; None while it has more to do."""
    if state.update >= settings.max_updates:
        return f"{state.update}/{settings.max_updates} updates"
    if settings.max_epochs is not None and state.epoch >= settings.max_epochs:
        return f"{state.epoch}/{settings.max_epochs} epochs"
    if settings.max_minutes is not None and state.seconds >= 60 * settings.max_minutes:
        return f"{settings.max_minutes:g} minutes"
    if settings.patience is not None and state.fruitless >= settings.patience:
        return f"no better {settings.stop_on} in {state.fruitless} validations"
    return None


def frozen(model: nn.Module, parts: Sequence[str]) -> list[nn.Parameter]:
    """The parameters of these parts. Raises ConfigError for a part that has none, or if none is left to learn."""
    names = dict(model.named_parameters(remove_duplicate=False))  # a tied matrix is in several parts
    chosen: dict[nn.Parameter, None] = {}
    for part in parts:
        own = [parameter for name, parameter in names.items() if f"{name}.".startswith(f"{part}.")]
        if not own:
            known = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise ConfigError("training.frozen", f"the model has no part {part}", f"its parts begin with {known}")
        chosen |= dict.fromkeys(own)
    if len(chosen) == len(set(names.values())):
        raise ConfigError("training.frozen", "nothing is left to learn", "leave a part out")
    return list(chosen)


def seed_forward(seed: int, update: int, slot: int) -> None:
    """Make every draw of one forward pass a function of these three numbers."""
    digest = hashlib.blake2b(f"{seed} {update} {slot}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little", signed=True))


class Average:
    """An exponential moving average of a model's parameters."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = list(model.parameters())
        self.tensors = [parameter.detach().clone() for parameter in self.parameters]

    def update(self, n: int) -> None:
        """Take in the weights after update ``n``."""
        decay = min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(self.tensors, [parameter.detach() for parameter in self.parameters], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights inside this context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for parameter, tensor in zip(self.parameters, self.tensors, strict=True):
            parameter.data, tensor.data = tensor.data, parameter.data


class Trainer:
    """Trains ``step.model``. All its parts are passed in; `run` is the loop.

    Several processes go through the same loop with the same state: they differ only in the batches of an update that
    are theirs, and the first alone measures, records and saves. So every decision must follow from what all know.
    """

    def __init__(
        self,
        step: TrainingStep,
        data: TrainingData,
        optimizer: Optimizer,
        settings: TrainingSettings,
        *,
        seed: int,
        run: Path,
        checkpoints: Checkpoints,
        metrics: MetricsLog,
        validate: Callable[[nn.Module, Callable[[], None]], Validation] | None,
        signals: Signals,
        facts: dict[str, Any],
        world: World,
        view: View,
    ) -> None:
        """``validate(model, check)`` measures, calling ``check`` between batches; only the first process asks it.

        ``signals`` are looked at between updates; the caller has them installed. ``facts`` go into every checkpoint's
        state as they are.
        """
        self.device = resolve_device(settings.device)
        self.precision = resolve_precision(settings.precision, self.device)
        self.step, self.data, self.settings, self.seed = step.to(self.device), data, settings, seed
        self.rule, self.optimizer = optimizer, optimizer.build(step)
        self.model: nn.Module = step.model
        self._frozen = frozen(self.model, settings.frozen)
        self.average = Average(self.model, settings.ema) if settings.ema is not None else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.scaler.scale(torch.zeros((), device=self.device))  # has a scale from now on, even without a batch to come
        self.run_directory, self.checkpoints, self.metrics = run, checkpoints, metrics
        self.validate, self.facts, self.state = validate, facts, TrainingState()
        self.signals, self.world, self.view = signals, world, view
        self.stop: int | None = None
        """The signal that ends this training, once all processes know of it."""
        self._save_asked = False
        self._supply = Supply(data, world.own, self.step.sentences_before)
        self.waited = 0.0
        """Seconds of this process's updates, of `trained`, in which it waited for its batches."""
        self.trained = 0.0
        self._measured: dict[int, float] = {}  # the last validated update and its ``stop_on``, higher being better
        self._saved, self._saved_validation, self._save_failures = -1, 0, 0
        self._best_saved: tuple[float | None, int] = (None, 0)
        """What ``state.best`` and ``state.best_update`` were before the validation that was better."""

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Train until something ends it, and say what that was. Raises DivergedError, SystemRefused."""
        if self.world.first:
            self.checkpoints.check_space(self._checkpoint_size())
        self.world.copy_from_first(own_tensors(self.model).values())
        with self.view, self._supply:
            while True:
                improved = False
                self._agree()
                if self.stop is None and self._is_validation_due():
                    improved = self._validate()
                    self._agree()
                ended = self._ended()
                if improved or ended or self._save_asked or self._is_save_due():
                    self._save(improved, final=ended is not None)
                    self._agree()
                if ended is None and self.stop is not None:  # it came during the save
                    ended = self._ended()
                    self._save(improved=False, final=True)
                if ended:
                    return ended
                self._update()

    def _agree(self) -> None:
        """What one process was asked by a signal, all were; and the longest time is everybody's."""
        asked = self.world.gather([self.signals.stop, self.signals.save, self.state.seconds])
        stops, saves, seconds = zip(*asked, strict=True)
        self.stop = next((stop for stop in stops if stop is not None), None)
        self._save_asked = self._save_asked or any(saves)
        self.signals.save = self.signals.save and not asked[self.world.rank][1]  # another may have come meanwhile
        self.state.seconds = max(seconds)

    def _ended(self) -> str | None:
        """Why training is over; None while it is not."""
        return "signal" if self.stop is not None else limit_met(self.state, self.settings)

    def _update(self) -> None:
        """One update: the gradients of its batches, one step of the optimizer, one record."""
        began, state = time.monotonic(), self.state
        update = state.update + 1
        more = update < self.settings.max_updates
        group, is_last, own = self._supply.take(state.epoch, state.position, more)
        rate = self.rule.lr * self.rule.schedule.factor(update, self.settings.max_updates, state.reductions)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.step.train()
        self.step.set_update(update)
        batches = [batch for _, batch in own]
        tokens = sum(self.world.collect([int(batch.target_lengths.sum()) for batch in batches]))
        with _memory_refused(update, batches):
            sums = [self._gradients(batch, update, slot, tokens) for slot, batch in own]
            self.world.sum_gradients(self.step.parameters())
            self._keep_frozen()
            if self.precision == "fp16":
                self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.step.parameters(), self.rule.clip or math.inf, foreach=True)
            values, norm_value = self._read(sums, norm)
            loss, nll = values["loss"] / tokens, values["nll"] / tokens
            if self._is_usable(loss, norm_value, group):
                self._apply(values, update)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

        epoch = state.epoch + 1  # as people count them
        state.update, state.position = update, state.position + len(group)
        state.target_tokens += tokens
        if is_last:
            state.epoch, state.position = state.epoch + 1, 0
        seconds = time.monotonic() - began
        state.seconds += seconds
        self.trained += seconds
        self.waited += self._supply.waited
        record = {
            "step": update, "epoch": epoch, "loss": loss, "loss_hex": loss.hex(), "nll": nll,
            "target_tokens": state.target_tokens, "seconds": round(state.seconds, 3),
            "waited": round(self._supply.waited, 6), "lr": rate, "grad_norm": norm_value,
        }  # fmt: skip
        record |= {name.removeprefix(_PART): part / tokens for name, part in values.items() if name.startswith(_PART)}
        record |= {"skipped": state.skipped} if state.skipped else {}
        self._record(record)
        self.view.step(Step(update, epoch, loss, nll, tokens / seconds, rate, norm_value))

    def _gradients(self, batch: Batch, update: int, slot: int, tokens: int) -> Sums:
        """Forward and backward of one batch; its share of the update's ``tokens`` is in the gradients."""
        hit("batch")
        seed_forward(self.seed, update, slot)
        kind = torch.float16 if self.precision == "fp16" else torch.bfloat16
        with torch.autocast(self.device.type, kind, enabled=self.precision != "float32"):
            links = batch.links if self.step.guides(update) else None
            given = batch.source, batch.source_lengths, batch.target, links, batch.before
            sums: Sums = self.step(*map_tree(lambda tensor: tensor.to(self.device), given))
        self.scaler.scale(sums.loss / tokens).backward()  # type: ignore[no-untyped-call]
        return sums._replace(loss=sums.loss.detach())

    def _keep_frozen(self) -> None:
        """Take the gradients of frozen parts off. Where nothing else has any, what learns has one of zero.

        So it is where only first sentences of documents are left for a part that reads those before. The norm is then
        on the device too, and the scaler of half precision has something to look at.
        """
        if not self._frozen:
            return
        for parameter in self._frozen:
            parameter.grad = None
        held = {id(parameter) for parameter in self._frozen}
        learning = [parameter for parameter in self.step.parameters() if id(parameter) not in held]
        if all(parameter.grad is None for parameter in learning):
            for parameter in learning:
                parameter.grad = torch.zeros_like(parameter)

    def _read(self, sums: list[Sums], norm: Tensor) -> tuple[dict[str, float], float]:
        """The gradient's norm, and everything that is a sum, added over the batches of all processes in their order.

        The one read from the device.
        """
        named = [_named(one) for one in sums]
        tensors = [norm, *(tensor for row in named for tensor in row.values())]
        norm_value, *values = torch.stack([tensor.detach().double() for tensor in tensors]).tolist()
        left = iter(values)
        rows = [{name: next(left) for name in row} for row in named]
        for row in rows[:1]:
            row["loss"] = float(hit("loss") or row["loss"])
        added: dict[str, float] = {}
        for row in self.world.collect(rows):
            added |= {name: added.get(name, 0.0) + value for name, value in row.items()}
        return added, norm_value

    def _is_usable(self, loss: float, norm: float, group: list[Indices]) -> bool:
        """Whether the optimizer may see these gradients; in fp16 the scaler lowers its scale where they are not finite.

        Below 1 there is nothing left to lower, and what is not finite is not so because of the scale.
        Raises DivergedError after more updates in a row than may be left out.
        """
        scaled = self.precision == "fp16" and self.scaler.get_scale() >= 1.0
        if math.isfinite(loss) and (math.isfinite(norm) or scaled):
            self.state.skipped = 0
            return True
        self.state.skipped += 1
        update, lines = self.state.update + 1, [line for indices in group for line in self.data.lines(indices)]
        what = f"loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        shown = ", ".join(map(str, lines[:5])) + (", ..." if len(lines) > 5 else "")
        what = f"{what} (batch of lines {shown}); weights not updated"
        if self.state.skipped <= self.settings.skip_nonfinite:
            warn(f"update {update}: {what}; {self.state.skipped} in a row, {self.settings.skip_nonfinite} are allowed")
            return False
        if self.world.first:
            self._report_divergence({"update": update, "loss": repr(loss), "grad_norm": repr(norm), "lines": lines})
        todo = "lower optimizer.lr or optimizer.clip, or set training.precision: float32"
        raise DivergedError(f"update {update}", f"{what}; {self._last()}", todo)

    def _report_divergence(self, report: dict[str, Any]) -> None:
        path = self.run_directory / "diverged.json"
        try:
            replace_file(path, json.dumps(report).encode() + b"\n")
        except OSError as error:  # the divergence is what must be told, not that its report does not fit on the disk
            warn(f"{path}: {error.strerror}")

    def _last(self) -> str:
        """Words for the checkpoint to go back to."""
        return f"last good checkpoint step-{self._saved:08d}" if self._saved >= 0 else "no checkpoint was saved yet"

    def _apply(self, values: dict[str, float], update: int) -> None:
        """One step of the optimizer, and of what follows it; ``values`` of the whole update."""
        self.scaler.step(self.optimizer)
        if self.average is not None:
            self.average.update(update)
        names = [name.removeprefix(_TOTAL) for name in values if name.startswith(_TOTAL)]
        totals = {name: (values[_TOTAL + name], values[_COUNT + name]) for name in names}
        self.step.model.decoder.after_update(totals)  # type: ignore[union-attr, operator]

    def _record(self, record: dict[str, Any]) -> None:
        if self.world.first:
            self.metrics.append(record)

    # --- validation ---------------------------------------------------------------------------------------------------

    def _is_validation_due(self) -> bool:
        state = self.state
        if self.validate is None or state.update == 0 or state.validated == state.update:
            return False
        return state.update % self.settings.validate_every == 0 or self._ended() is not None

    def _validate(self) -> bool:
        """Measure with the weights that would be used; True if ``stop_on`` is better than ever."""
        state, metric = self.state, self.settings.stop_on
        began = time.monotonic()
        measured = self.world.once(self._measure)
        if measured is None:
            return False
        scores, attention, samples = measured
        value = scores[metric]
        self._measured = {state.update: -value if metric in _LOWER_IS_BETTER else value}
        better = self._is_better(value)
        if better:
            self._best_saved = (state.best, state.best_update)
            state.best, state.best_update, state.fruitless, state.since_reduction = value, state.update, 0, 0
        elif math.isfinite(value):
            state.fruitless, state.since_reduction = state.fruitless + 1, state.since_reduction + 1
            schedule = self.rule.schedule
            if isinstance(schedule, Plateau) and state.since_reduction >= schedule.patience:
                state.reductions, state.since_reduction = state.reductions + 1, 0
        else:
            warn(f"validation at update {state.update} gave {metric} {value}; it is neither a best nor a failure")
        state.validated = state.update
        shown = [Sample(*one) for one in samples]
        record = {"step": state.update, "valid": scores | ({"attention": attention} if attention else {})}
        self._record(record | ({"samples": [one._asdict() for one in shown]} if shown else {}))
        self.view.measured(Measured(state.update, scores, better, time.monotonic() - began, shown))
        return better

    def _measure(self) -> Validation | None:
        """What was measured; None where a signal ended it."""
        assert self.validate is not None
        self.step.eval()
        try:
            with nullcontext() if self.average is None else self.average.in_place():
                measured = self.validate(self.model, self._check)
        except Interrupted:
            return None
        if hit("valid") == "nan":
            measured = measured._replace(scores=dict.fromkeys(measured.scores, math.nan))
        return measured

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.state.best is None:
            return True
        return value < self.state.best if self.settings.stop_on in _LOWER_IS_BETTER else value > self.state.best

    def _check(self) -> None:
        """Called between the batches of a validation: leave it if a signal asked to stop."""
        if self.signals.stop is not None:
            raise Interrupted

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _is_save_due(self) -> bool:
        return self.state.update > 0 and (self.state.update % self.settings.save_every == 0 or self._is_ranked())

    def _is_ranked(self) -> bool:
        """Whether this update may be among the best that are kept."""
        return self.settings.keep_best > 1 and self.state.update in self._measured

    def _save(self, improved: bool, final: bool) -> None:
        """Save, unless it is saved already or there is nothing yet; a failure is a warning until there are too many, or
        at the end."""
        state = self.state
        self._save_asked = False
        is_saved = (state.update, state.validated) == (self._saved, self._saved_validation)
        if state.update == 0 or (is_saved and not improved and not self._is_ranked()):
            return
        failure = self.world.once(lambda: self._write_checkpoint(improved))
        if failure is not None:
            self._save_failures += 1
            if improved:  # those weights are nowhere, and must not keep lesser ones from being the best there are
                state.best, state.best_update = self._best_saved
            if final or self._save_failures >= _SAVE_FAILURES:
                todo = f"make room in {self.run_directory}, and go on with the same command"
                raise SystemRefused("", f"{failure}; {self._last()}", todo)
            warn(f"{failure}; will retry at the next checkpoint")
            self._record({"step": state.update, "save_failures": self._save_failures})
            return
        self._saved, self._saved_validation, self._save_failures = state.update, state.validated, 0
        hit("checkpoint.saved")

    def _write_checkpoint(self, improved: bool) -> str | None:
        """Why it could not be written; None where it is on the disk."""
        update = self.state.update
        try:
            self.checkpoints.save(update, self.snapshot(), self._measured.get(update), improved)
        except SaveFailed as error:
            return str(error)
        return None

    def _checkpoint_size(self) -> int:
        """Bytes of the tensors in a checkpoint."""
        model, kept = own_tensors(self.model), expected_moments(self.rule, self.optimizer, self.model)
        average = [] if self.average is None else model.values()
        return sum(tensor.nbytes for part in (model.values(), kept.values(), average) for tensor in part)

    def snapshot(self) -> Snapshot:
        """Everything that continues from here to the same weights."""
        model = own_tensors(self.model)
        average = None
        if self.average is not None:
            with self.average.in_place():
                average = {name: tensor.clone() for name, tensor in own_tensors(self.model).items()}
        state = self.facts | {
            "training": asdict(self.state),
            "scaler": self.scaler.state_dict(),
            "unstepped": unstepped(self.optimizer, self.model),
        }
        return Snapshot(model, moments(self.optimizer, self.model), state, average)

    def load(self, snapshot: Snapshot, where: str) -> None:
        """Continue from a checkpoint. Raises CheckpointError, naming the field or tensor, where it does not fit."""
        expected = own_tensors(self.model)
        check_tensors(expected, snapshot.model, where)
        with torch.no_grad():
            for name, tensor in expected.items():
                tensor.copy_(snapshot.model[name])
        without = require(snapshot.state, "unstepped", list, where)
        check_tensors(expected_moments(self.rule, self.optimizer, self.model, without), snapshot.optimizer, where)
        restore(self.optimizer, self.model, snapshot.optimizer)
        if self.average is not None:
            if snapshot.average is None:
                raise CheckpointError(where, "the moving average is missing")
            check_tensors(expected, snapshot.average, where)
            names = [name for name, _ in self.model.named_parameters()]
            for name, tensor in zip(names, self.average.tensors, strict=True):
                tensor.copy_(snapshot.average[name])
        if scale := require(snapshot.state, "scaler", dict, where):  # empty where it was saved in another precision
            self.scaler.load_state_dict(scale)
        self.state = state_of(snapshot, where)
        self._saved, self._saved_validation = self.state.update, self.state.validated
        self.step.set_update(self.state.update)  # a validation that is due reads by the schedules as they stood


@contextmanager
def _memory_refused(update: int, batches: Sequence[Batch]) -> Iterator[None]:
    """Turns what torch says when memory runs out into SystemRefused that names the batch."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        tokens = max((int(batch.target_lengths.sum()) for batch in batches), default=0)
        longest = max((int(batch.source_lengths.max()) for batch in batches), default=0)
        what = f"out of memory (a batch of {tokens} target tokens, longest source {longest})"
        raise SystemRefused(f"update {update}", what, "lower batches.tokens") from error


def _named(sums: Sums) -> dict[str, Tensor]:
    """What is told of one batch, all of it scalars, by name."""
    statistics = sums.statistics.items()
    return {
        "loss": sums.loss,
        "nll": sums.nll,
        **{_PART + name: part for name, part in sums.parts.items()},
        **{_TOTAL + name: total for name, (total, _) in statistics},
        **{_COUNT + name: count for name, (_, count) in statistics},
    }


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each shared one once."""
    return {name: value for source in (model.named_parameters(), model.named_buffers()) for name, value in source}


def state_of(snapshot: Snapshot, where: str) -> TrainingState:
    """Where the training stood that a checkpoint is of. Raises CheckpointError, naming the field that is wrong."""
    values = require(snapshot.state, "training", dict, where)
    kinds: Sequence[tuple[str, Any]] = [(field.name, field.default) for field in fields(TrainingState)]
    found: dict[str, Any] = {}
    for name, default in kinds:
        if name == "best":
            found[name] = None if values.get(name, 0) is None else float(require(values, name, float, where))
        else:
            found[name] = require(values, name, type(default), where, least=0)
    return TrainingState(**found)
