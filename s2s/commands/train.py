"""`s2s train`: settings, data, model, loop; or, in a run's directory that has checkpoints, going on with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from s2s import config as configuration
from s2s import configfile
from s2s.analysis.diagnostics import Diagnostics, gradient_moments
from s2s.checkpoint import Checkpoints, Loaded, RunLock, load, require
from s2s.commands.candidates import Proposer
from s2s.commands.prepare import cache_of, given_tokenizers
from s2s.config import Config
from s2s.data import tokenizer
from s2s.data.batches import Batch, Indices, Planned, Sampling, collate, group_updates, plan_epoch, valid_batches
from s2s.data.corpora import Corpora
from s2s.data.prepare import Prepared, prepare
from s2s.data.shards import Corpus
from s2s.data.tokenizer import Tokenizers
from s2s.distributed import World
from s2s.errors import CheckpointError, ConfigError, DataError, UsageError
from s2s.evaluation import score_all
from s2s.evaluation.scores import tokenise
from s2s.interfaces import Attention
from s2s.machine import keep_few_kernels, use_huge_pages
from s2s.progress import say, silent, warn
from s2s.run import (
    Run,
    Trained,
    best_weights,
    build_model,
    default_directory,
    hash_of,
    load_trained,
    start_like,
    warm_start,
)
from s2s.search.translate import Line, Translator
from s2s.training.metrics import MetricsLog, TensorBoard
from s2s.training.objective import ObjectiveSettings, Sums, TrainingStep
from s2s.training.optimizer import Plateau
from s2s.training.signals import Signals, stopped
from s2s.training.trainer import (
    Trainer,
    Validation,
    check_compiler,
    limit_met,
    own_tensors,
    resolve_device,
    resolve_precision,
    seed_forward,
)
from s2s.training.view import Kind, Sample, view_of
from s2s.tree import map_tree


def train(
    config_path: Path,
    overrides: Sequence[str] = (),
    run_directory: Path | None = None,
    resume: Literal["auto", "none"] = "auto",
    overwrite: bool = False,
    progress: Kind = "auto",
) -> None:
    """Train, or go on training, and say where the model is; one of several processes where a launcher started them.

    ``progress`` is what is shown meanwhile; quiet shows warnings and errors alone.
    """
    keep_few_kernels()
    use_huge_pages()
    world = World.launched()
    with world.one_voice(), _voice(world, progress):
        config = resolved(configuration.load(config_path, overrides))
        run = Run(run_directory or default_directory(config_path))
        world.begin(torch.device(config.training.device), config.training.wait_minutes)
        with ExitStack() as held:

            def opened() -> str:
                again = world.noted("opened")  # then what was asked for at the start has happened
                how = (resume == "auto" or again, overwrite and not again)
                deletes = run.check(*how) and how[1]
                run.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(RunLock(run.path))
                if deletes:
                    with signals.nothing_to_save("before anything was overwritten"):
                        _require_ready(config, run)
                identity = run.open(*how)
                world.note("opened")
                return identity

            signals = held.enter_context(Signals(config.training.usr1 == "exit"))
            _train(config, run, world.once(opened), signals, world, progress)
        world.end()


def _require_ready(config: Config, run: Run) -> None:
    """Raises what a new training would end with at once: the run in its place is deleted only for one that begins.

    UsageError where it would read what is deleted. What it learns from is prepared here, in the cache beside the run,
    for only then is known whether it can be.
    """
    configuration.check_parts(config)
    for key, file in configfile.files(config):
        if file.resolve().is_relative_to(run.path.resolve()):
            what = f"would delete {file}, which {configfile.dotted(key)} names"
            raise UsageError("--overwrite", what, "use a new --run-dir")
    for key, file in configfile.missing(config):
        raise DataError(file, "no such file", f"nothing was overwritten; {configfile.dotted(key)} names it")
    for path in config.runs_before.values():
        best_weights(path)
    prepare(config.data, config.tokenizer, cache_of(run.path), lambda line: None, given_tokenizers(config))


def _voice(world: World, progress: Kind) -> AbstractContextManager[None]:
    """The first process speaks for all."""
    if not world.first:
        return silent()
    return silent(but_warnings=True) if progress == "quiet" else nullcontext()


def resolved(config: Config) -> Config:
    """The same with ``auto`` replaced by what it means on this machine."""
    device = resolve_device(config.training.device)
    precision = resolve_precision(config.training.precision, device)
    training = config.training.model_copy(update={"device": device.type, "precision": precision})
    return config.model_copy(update={"training": training})


def _train(config: Config, run: Run, identity: str, signals: Signals, world: World, progress: Kind) -> None:
    training = config.training
    configuration.check_parts(config)
    checkpoints = Checkpoints(run.path, identity, training.keep_last, training.keep_best, warn)
    with signals.nothing_to_save():
        loaded = _newest(checkpoints, world)
        if loaded is not None and "averaged" in loaded.snapshot.state:
            what = "has the mean of some checkpoints, and no training to go on with"
            raise CheckpointError(run.path, what, "begin from it: init_from in the settings, and another --run-dir")
        changed = loaded is not None and _compare_settings(loaded.snapshot.state, config)
        prepared = world.first_then_all(lambda: _data(config, run, loaded, world))
        data = EpochData(config, prepared, world)
    if config.model.document is not None:
        _warn_of_whole_texts(prepared)
    model = build_model(config, prepared.tokenizers)
    if training.checkpoint_activations:
        model.encoder.recompute()
        model.decoder.recompute()
    if training.compile:
        check_compiler(resolve_device(training.device))
        model.encoder.compile_parts()
        model.decoder.compile_parts()
    if loaded is None and config.init_like is not None:
        shared = start_like(model, Path(config.init_like), config, prepared.tokenizers)
        say(f"starting like {config.init_like}: {len(shared)} matrices")
    began_from = None if loaded is None else loaded.snapshot.state.get("init_from")
    if loaded is None and config.init_from is not None:
        start = warm_start(model, Path(config.init_from))
        began_from = start.sha256
        say(f"starting from {config.init_from}; afresh: {', '.join(start.fresh) or 'nothing'}; "
            f"left behind: {', '.join(start.left) or 'nothing'}")  # fmt: skip
    count = sum(parameter.numel() for parameter in model.parameters())
    say(f"model: {count:,} parameters, {prepared.tokenizers.source.size} source and "
        f"{prepared.tokenizers.target.size} target pieces; {training.precision} on {training.device}, "
        f"{torch.get_num_threads()} threads{f', {world.size} processes' if world.size > 1 else ''}")  # fmt: skip
    teacher = _teacher(config, prepared.tokenizers)
    propose = None
    if config.objective.minimum_risk is not None:
        propose = Proposer(config.objective.minimum_risk, prepared.tokenizers.target)
    step = TrainingStep(model, config.objective, None if teacher is None else teacher.model, propose)
    facts: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "tokenizer": prepared.tokenizers.fingerprint,
        "fingerprint": prepared.fingerprint,
        "threads": torch.get_num_threads(),
        "numpy": np.__version__,
        "processes": world.size,
        "init_from": began_from,
        "teacher": None if teacher is None else {
            "update": teacher.update, "sha256": hash_of(own_tensors(teacher.model))
        },
    }  # fmt: skip
    _require_same(facts, world)
    board = None
    if training.tensorboard and world.first:
        board = TensorBoard(run.path / "tensorboard", 0 if loaded is None else loaded.step)
    metrics = MetricsLog(run.metrics, warn, board)
    validation = None if prepared.valid is None else Validator(config, prepared)
    view = view_of(progress if world.first else "plain", training.max_updates, training.log_every)
    trainer = Trainer(
        step, data, config.optimizer, training, seed=config.seed, run=run.path, checkpoints=checkpoints,
        metrics=metrics, validate=validation, signals=signals, facts=facts, world=world, view=view,
    )  # fmt: skip
    if loaded is not None:
        _check_machine(loaded, world)
        _check_teacher(loaded, config, facts["teacher"])
        trainer.load(loaded.snapshot, loaded.path.name)
        if "processes" not in loaded.snapshot.state:  # saved when there was but one, and updates were counted
            trainer.state.position *= config.batches.accumulate
        say(f"continuing from {loaded.path} (update {loaded.step})")
    resumed, loaded = loaded is not None, None  # a training needs no second copy of its weights
    if world.first:
        if not resumed or limit_met(trainer.state, training) is None:  # else all of it was trained by what stands there
            run.write_config(config)
        metrics.truncate_after(trainer.state.update, trainer.state.validated)
    before = trainer.state.update
    try:
        ended = trainer.run()
    finally:
        metrics.end()
    _report(trainer, run, ended, trainer.state.update == before and resumed, resumed, changed)


def _check_teacher(loaded: Loaded, config: Config, now: dict[str, Any] | None) -> None:
    """Raises ConfigError where the teacher is not the one that taught until now, wherever it stands."""
    if now is None or config.objective.teacher is None:
        return
    before = loaded.snapshot.state.get("teacher")
    if not isinstance(before, dict):  # saved when it was known by its update alone
        before = {"update": now["update"] if before is None else before, "sha256": None}
    if before["sha256"] == now["sha256"]:
        return
    old = require(loaded.snapshot.state, "config", dict)["objective"]["teacher"]["run"]
    is_there = old == config.objective.teacher.run
    if is_there and before["update"] != now["update"]:
        what = (
            f"its best checkpoint was of update {before['update']} at step {loaded.step}, and is of {now['update']} now"
        )
        raise ConfigError("objective.teacher.run", what, "name the checkpoint itself, RUN/checkpoints/step-N")
    if not is_there or before["sha256"] is not None:
        what = f"its weights are not those that taught until step {loaded.step}, from {old}"
        raise ConfigError("objective.teacher.run", what, "name the run, or the checkpoint, that this one began with")


def _warn_of_whole_texts(prepared: Prepared) -> None:
    for counts in prepared.counts:
        if not counts.source.blank and counts.kept > 1:
            warn(f"{counts.name}: no blank line ends a document, so its {counts.kept} sentences are one")


def _teacher(config: Config, tokenizers: Tokenizers) -> Trained | None:
    """Raises ConfigError where it reads or writes other pieces than this run."""
    if config.objective.teacher is None:
        return None
    path = Path(config.objective.teacher.run)
    teacher = load_trained(path, resolve_device(config.training.device))
    if teacher.tokenizers.fingerprint != tokenizers.fingerprint:
        todo = "use a new --run-dir, or the teacher that this run began with"
        if config.init_from is not None:
            todo = "leave init_from out, or start from a run that has the teacher's"
        raise ConfigError("objective.teacher.run", f"the vocabularies of {path} are not those of this run", todo)
    say(f"learning from {path} (update {teacher.update})")
    return teacher


def _report(trainer: Trainer, run: Run, ended: str, nothing_done: bool, resumed: bool, changed: bool) -> None:
    """Say how it ended. Raises Stopped after a signal."""
    state = trainer.state
    number = trainer.stop
    if number is not None:
        kept = f"saved {run.path}/checkpoints/step-{state.update:08d}" if state.update else "nothing to save yet"
        raise stopped(number, f"at step {state.update}; {kept}")
    if nothing_done:
        kept = f"; {run.config} keeps the settings of the training" if changed else ""
        say(f"already complete ({ended}){kept}")
        return
    schedule, updates = trainer.rule.schedule, trainer.settings.max_updates
    if schedule.by_the_end and state.update < updates and ended.endswith(("epochs", "minutes")):
        warn(f"schedule {schedule.kind} is stretched to training.max_updates, {updates:,}, and training ended at "
             f"{state.update:,}: the rate was still that of the middle; set max_updates to what fits")  # fmt: skip
    best = "" if state.best is None else (
        f"; best {trainer.settings.stop_on} {state.best:.2f} at update {state.best_update}"
    )  # fmt: skip
    waited = trainer.waited / max(trainer.trained, 1e-9)  # what was waited before the training went on is not known
    span = f"the last {trainer.trained:.0f} s" if resumed else "it"
    say(f"done: {ended}, {state.target_tokens:,} target tokens in {state.seconds:.0f} s of training, "
        f"{waited:.1%} of {span} waiting for batches{best}")  # fmt: skip
    say(f"next: s2s eval --model {run.path}")


def _newest(checkpoints: Checkpoints, world: World) -> Loaded | None:
    """The checkpoint to go on from: the first process chooses it, the others read the same."""
    loaded: list[Loaded | None] = []

    def choose() -> str | None:
        checkpoints.clean()
        loaded.append(checkpoints.load_newest())
        return None if loaded[0] is None else str(loaded[0].path)

    chosen = world.once(choose)
    if world.first:
        return loaded[0]
    return None if chosen is None else load(Path(chosen))


def _require_same(facts: dict[str, Any], world: World) -> None:
    """Raises ConfigError where another process would train something else."""
    told = world.gather({name: facts[name] for name in ("config", "tokenizer", "fingerprint", "numpy", "teacher")})
    for rank, one in enumerate(told):
        if differing := [name for name in one if one[name] != told[0][name]]:
            what = f"processes 0 and {rank} differ in {', '.join(differing)}"
            raise ConfigError("", what, "start all with the same command, files, devices and libraries")


def _data(config: Config, run: Run, loaded: Loaded | None, world: World) -> Prepared:
    """The corpora; with the run's own vocabularies where it has them. Raises DataError if the texts changed since."""
    own = given_tokenizers(config) if loaded is None and world.first else tokenizer.load(run.tokenizer)
    prepared = prepare(config.data, config.tokenizer, cache_of(run.path), say, own)
    if loaded is None:
        if world.first:
            tokenizer.save(prepared.tokenizers, run.tokenizer)
        return prepared
    if require(loaded.snapshot.state, "tokenizer", str) != prepared.tokenizers.fingerprint:
        raise CheckpointError(run.tokenizer, "vocabulary hash differs from the one the model was trained with")
    saved = require(loaded.snapshot.state, "fingerprint", dict)
    for name, files in prepared.fingerprint.items():
        if set(files) != set(saved.get(name, {})):
            what = f"has other files than at step {loaded.step}"
            raise DataError(f"data.{name}", what, "restore the settings, or start anew in another --run-dir")
        for side, facts in files.items():
            if saved[name][side].get("sha256") != facts["sha256"]:
                where = config.data.files(name).paths()[side]
                what = f"changed since step {loaded.step} (sha256 {facts['sha256'][:12]}...)"
                raise DataError(where, what, "restore the file, or start anew in another --run-dir")
    return prepared


def _compare_settings(state: dict[str, Any], config: Config) -> bool:
    """Refuse to go on under other settings than those of a checkpoint's ``state``, except those that may change.

    Gives whether any did. Settings that there were not yet when the checkpoint was saved had their defaults then.
    """
    saved = require(state, "config", dict)
    with suppress(ValidationError):
        saved = Config.model_validate_json(json.dumps(saved)).model_dump(mode="json")
    refused, found = [], configfile.differences(saved, config.model_dump(mode="json"))
    for change in found:
        key, old, new = change
        mark = configuration.may_change(key)
        if key == "training.max_updates" and config.optimizer.schedule.by_the_end:
            kind = config.optimizer.schedule.kind
            warn(f"{change}: schedule {kind} is stretched to the last update, so the rate leaps here")
        elif (
            mark is None
            or (key == "data.train" and _unnamed(old) != _unnamed(new))
            or (key == "init_from" and not _is_of(new, state.get("init_from")))
        ):
            refused.append(str(change))
        elif key in _LIMITS and (extra := _validated_between(state, config)):
            what = f"the validation at its end, update {extra}, counts for training.patience and a plateau schedule"
            warn(f"{change}: {what}: the run may no longer be the same to the bit")
        elif mark.scores:
            warn(f"{change}: scores of validation before and after this cannot be compared")
        elif mark.exact:
            say(f"changed since the checkpoint: {change}")
        else:
            warn(f"{change}: the run is no longer the same to the bit")
    if refused:
        what = "these settings differ from the checkpoint's: " + ", ".join(refused)
        raise ConfigError("", what, "restore them, or use a new --run-dir or --overwrite")
    return bool(found)


_LIMITS = ("training.max_updates", "training.max_epochs", "training.max_minutes")


def _validated_between(state: dict[str, Any], config: Config) -> int:
    """The update at which a training was validated only because it ended there, if it counts later; otherwise 0."""
    settings = config.training
    last = require(require(state, "training", dict), "validated", int)
    counts = settings.patience is not None or isinstance(config.optimizer.schedule, Plateau)
    return last if counts and last % settings.validate_every else 0


def _is_of(run: object, sha256: object) -> bool:
    """Whether the best weights of a run have this hash."""
    if not (isinstance(run, str) and isinstance(sha256, str)):
        return False
    try:
        return best_weights(Path(run))[1] == sha256
    except CheckpointError:
        return False


def _unnamed(corpora: Any) -> Any:
    """What the settings of several corpora say but for names of files, whose content is compared."""
    if not isinstance(corpora, list):
        return corpora
    return [(files.get("tag"), files.get("weight")) for files in corpora]


def _check_machine(loaded: Loaded, world: World) -> None:
    """Warn of what makes the rest of a run differ in its last bits; other processes make other updates altogether.

    So may another numpy, for its permutation is the order of an epoch.
    """
    kept_later = {"processes": 1, "numpy": np.__version__}  # older checkpoints do not say
    state = kept_later | loaded.snapshot.state
    now: dict[str, object] = {"processes": world.size, "threads": torch.get_num_threads()}
    now |= {"torch": str(torch.__version__), "numpy": np.__version__}
    for name, value in now.items():
        if state.get(name) != value:
            warn(f"{name}: {state.get(name)} -> {value}: the run is no longer the same to the bit")


class EpochData:
    """The training corpus as the trainer asks for it."""

    def __init__(self, config: Config, prepared: Prepared, world: World) -> None:
        """Raises DataError for a corpus that would leave a process without work."""
        self.config, self.prepared, self.corpus, self.processes = config, prepared, prepared.train, world.size
        batches = len(self._batches(0)) if world.size > 1 else 1
        if batches < world.size:
            what = f"has {batches} batches an epoch, too few for {world.size} processes"
            raise DataError("data.train", what, "start fewer processes, or lower batches.tokens")

    def plan(self, epoch: int, taken: int) -> Planned[list[Indices]]:
        """See `TrainingData.plan`."""
        return group_updates(self._batches(epoch), self.config.batches, self.processes, taken)

    def _batches(self, epoch: int) -> Planned[Indices]:
        lengths, mixture = (self.corpus.source_lengths, self.corpus.target_lengths), self.prepared.mixture
        return plan_epoch(*lengths, self.config.batches, self.config.seed, epoch, mixture)

    def batch(self, indices: Indices, epoch: int, position: int, sentences_before: int) -> Batch:
        """See `TrainingData.batch`."""
        sampling = self.prepared.sampling
        drawn = None if sampling is None else Sampling(sampling, self.config.seed, epoch, position)
        guided = self.config.objective.guided is not None
        return collate(self.corpus, indices, self.prepared.tokenizers, drawn, sentences_before, guided)

    def lines(self, indices: Indices) -> list[int] | list[str]:
        """See `TrainingData.lines`."""
        corpus = self.corpus
        if not isinstance(corpus, Corpora):
            return [corpus.line(int(index)) for index in indices]
        names = [counts.name for counts in self.prepared.counts]
        return [f"{names[corpus.part(int(index))]}:{corpus.line(int(index))}" for index in indices]


_DRAWS, _DRAWN = 8, 16  # of a gradient, over so many sentences: the work of training on 128 sentences


class Validator:
    """Measures a model on the validation set: likelihood with the right words given, and real translations.

    Nothing that it does has an influence on the training: no buffer, gradient or generator is touched that it reads.
    """

    def __init__(self, config: Config, prepared: Prepared) -> None:
        assert prepared.valid is not None
        self.config, self.prepared, self.corpus = config, prepared, prepared.valid
        self.texts = [self.corpus.text(index) for index in range(len(self.corpus))]
        begins = (not self.corpus.before(index, 1) for index in range(len(self.corpus)))
        self.lines = [Line(source, begins=first) for (source, _), first in zip(self.texts, begins, strict=True)]
        lengths = (self.corpus.source_lengths, self.corpus.target_lengths)
        self.batches = valid_batches(*lengths, config.batches)
        self.metrics = ("bleu", "chrf", "ter") if config.training.stop_on == "ter" else ("bleu", "chrf")
        self.language = config.data.language or ""
        tokenise("", self.language)  # what it needs is not installed: that is heard of now

    def __call__(self, model: nn.Module, check: Callable[[], None]) -> Validation:
        """Scores, what the attention does, and a few samples."""
        seed_forward(self.config.seed, 0, 1)  # whatever a mechanism draws in evaluation is the same every time
        device = next(model.parameters()).device
        nll, attention = likelihood(model, self.corpus, self.batches, self.prepared, device, check)
        attention |= self._scatter(model, device, check)
        scores = {"nll": nll, "ppl": float(torch.tensor(nll, dtype=torch.float64).exp())}
        translator = Translator(model, self.prepared.tokenizers, self.config.search, device)  # type: ignore[arg-type]
        found = [one.text for one in translator.translate(self.lines, check=check)]
        references = [target for _, target in self.texts]
        measured = score_all(found, references, self.metrics, self.language)
        scores |= {score.name: score.value for score in measured}
        samples = [Sample(*texts, text) for texts, text in zip(self.texts, found, strict=True)]
        return Validation(scores, attention, samples[: self.config.training.samples])

    @torch.enable_grad()
    def _scatter(self, model: nn.Module, device: torch.device, check: Callable[[], None]) -> dict[str, float]:
        """How far the gradient scatters where the attention draws to estimate it; empty where it does not.

        ``gradient_variance`` and ``gradient_square`` are `GradientMoments.spread`, over all parameters, of the loss per
        target token of the same few sentences, without dropout, at these weights.
        """
        drawing = [part for part in model.modules() if isinstance(part, Attention) and part.draws]
        if not drawing:
            return {}
        few = np.unique(np.linspace(0, len(self.corpus) - 1, _DRAWN).astype(np.int64))
        step = TrainingStep(model, self.config.objective)
        batch = collate(self.corpus, few, self.prepared.tokenizers, None, step.sentences_before)
        given = batch.source, batch.source_lengths, batch.target, None, batch.before
        given = map_tree(lambda tensor: tensor.to(device), given)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def draw(number: int) -> Sequence[Tensor]:
            check()
            seed_forward(self.config.seed, 0, 2 + number)
            sums: Sums = step(*given)
            return torch.autograd.grad(sums.loss / sums.tokens, parameters, materialize_grads=True)

        step.eval()
        for attention in drawing:
            attention.train()
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                variance, square = gradient_moments(draw, _DRAWS).spread()
        finally:
            step.eval()
        return {"gradient_variance": variance, "gradient_square": square}


@torch.no_grad()
def likelihood(
    model: nn.Module,
    corpus: Corpus,
    batches: Sequence[Indices],
    prepared: Prepared,
    device: torch.device,
    check: Callable[[], None],
) -> tuple[float, dict[str, float]]:
    """Negative log-likelihood per target token (EOS counted), in nats and in float32, without label smoothing.

    With it what the attention does meanwhile, see `s2s.analysis.diagnostics`.
    """
    step, diagnostics = TrainingStep(model, ObjectiveSettings(label_smoothing=0.0)).eval(), Diagnostics()
    nll, tokens = 0.0, 0
    for indices in batches:
        check()
        batch = collate(corpus, indices, prepared.tokenizers, None, step.sentences_before)
        given = batch.source, batch.source_lengths, batch.target, batch.before
        source, lengths, target, before = map_tree(lambda tensor: tensor.to(device), given)
        decoded, memory = model(source, lengths, target[:, :-1], Diagnostics.WANT, before)
        sums = step.measure(decoded, memory, target[:, 1:])
        nll, tokens = nll + float(sums.nll), tokens + int(sums.tokens)
        diagnostics.add(model.decoder, decoded, memory, target[:, 1:])  # type: ignore[arg-type]
    return nll / tokens, diagnostics.means()
