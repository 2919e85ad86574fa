"""`s2s report`: a run as one page, from its curves to what its attention looks at.

A run that is under way, or was stopped, gets its page too: what is not there yet is named, not left out in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from s2s import __version__
from s2s import config as configuration
from s2s.analysis.charts import bar_chart, line_chart, means
from s2s.analysis.heatmap import heat_maps_svg
from s2s.analysis.history import MEANINGS, History, read_history
from s2s.analysis.pages import render
from s2s.checkpoint import load_model
from s2s.commands.models import load
from s2s.commands.stop import Stop
from s2s.config import Config
from s2s.configfile import inline
from s2s.data.parallel import require_equal_lines
from s2s.data.text import OutputFile, TextCounts, read_lines, read_raw_lines
from s2s.errors import CheckpointError, ConfigError, DataError, UsageError
from s2s.evaluation import Measured, Score, judge
from s2s.evaluation.bands import LENGTHS, Bands, by_length
from s2s.interfaces import EOS
from s2s.progress import Meter, say, warn
from s2s.run import Run, Trained, run_of
from s2s.search.look import head_maps, heat_map, look, marked
from s2s.search.translate import Part, Translation, Translator
from s2s.settings import Settings
from s2s.training.trainer import limit_met, resolve_device, state_of

Split = Literal["valid", "test"]

_METRICS = ("bleu", "chrf", "ter")
_EXTREMES = 5
"""Sentences in each of the tables of the best and the worst."""
T = TypeVar("T")
_SAMPLES, _VALIDATIONS = 3, 8
"""Most lines that are shown as validations translated them, and most validations."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says, beside the run."""

    output: Path | None = None
    """By default ``report.html`` in the run's directory."""
    overwrite: bool = False
    split: Split | None = None
    """What is translated and scored; by default the validation set, if it can be had."""
    sentences: str | None = None
    """Numbers of lines between commas, whose attention is drawn; by default some are chosen by their scores."""
    checkpoint: str = "best"
    device: str = "auto"


def report(path: Path, options: Options) -> None:
    """Write the page of the run at ``path``. Raises CheckpointError where there is no run."""
    run = run_of(path)
    config = _settings(run)
    chosen = None if options.sentences is None else _numbers(options.sentences)
    if options.split is not None and getattr(config.data, options.split) is None:
        raise UsageError("--split", f"the run's settings name no data.{options.split}", "choose the other one")
    output = options.output or run.path / "report.html"
    sink = OutputFile(output, overwrite=options.overwrite, inputs=[run.config, run.metrics, *_texts(config)])
    history = read_history(run.metrics)
    with Stop(lambda: "before the page was written"):
        model = _model(path, run, options)
        text = _text(config, options, model is not None)
        if text is not None:
            _require_lines(chosen or (), text)
        measured = None if model is None or text is None else Measurement.of(model, text)
        looks = [] if model is None or measured is None else list(_looks(model, measured, chosen))
        ended = None if model is None else _ended(run, config)
        page = render(
            "report.html",
            name=run.path.resolve().name,
            made=f"s2s {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            missing=list(_missing(config, history, model, text, ended)),
            tiles=_tiles(history, model, measured, ended),
            curves=list(_curves(history)),
            mechanism=list(_mechanism(history)),
            measured=None if measured is None else _shown(measured),
            samples=_samples(history),
            looks=looks,
            rule=_RULE if chosen is None else "the sentences that were asked for",
            settings=configuration.save_text(config),
            changes=list(changes(config)),
            environment=_environment(config, model),
        )
    with sink as file:
        file.write_line(page.rstrip("\n"))
    say(f"wrote {output}")


# --- what goes in -----------------------------------------------------------------------------------------------------


class Model(NamedTuple):
    """The checkpoint that translates."""

    trained: Trained
    state: dict[str, Any]
    """What its file says of the training."""


class Text(NamedTuple):
    """The sentences that are translated."""

    split: Split
    source: list[str]
    """Normalised."""
    reference: list[str]


def _settings(run: Run) -> Config:
    try:
        return configuration.load(run.config)
    except ConfigError as error:
        raise CheckpointError(run.config, f"cannot be used: {error}") from error


def _numbers(text: str) -> list[int]:
    """Lines from 1, each once. Raises UsageError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 and int(part) for part in parts):
        raise UsageError("--sentences", f"{text!r} are no lines", "give numbers from 1, such as 1,5,9")
    return list(dict.fromkeys(int(part) for part in parts))


def _require_lines(lines: Sequence[int], text: Text) -> None:
    """Raises UsageError for a line that is not there."""
    for line in lines:
        if line > len(text.source):
            what = f"there is no line {line}, the {text.split} set has {len(text.source)}"
            raise UsageError("--sentences", what, "choose others")


def _texts(config: Config) -> list[Path]:
    """Every file of text that the settings name, so that the page replaces none of them."""
    splits = (*config.data.corpora, config.data.valid, config.data.test)
    return [Path(name) for split in splits if split is not None for name in (split.source, split.target)]


def _model(path: Path, run: Run, options: Options) -> Model | None:
    """The model, or None while the run has saved none and none was asked for by name."""
    asked = options.checkpoint != "best" or path.resolve() != run.path.resolve()
    if not asked and not any((run.path / "checkpoints").glob("step-*")):
        return None
    for last in (False, True):
        trained = load(path, resolve_device(options.device), options.checkpoint)
        try:
            return Model(trained, load_model(run.path, f"step-{trained.update:08d}", warn).snapshot.state)
        except CheckpointError:  # a training that is under way may just have replaced it
            if last:
                raise
    raise AssertionError("the second try returns or raises")


def _text(config: Config, options: Options, needed: bool) -> Text | None:
    """The sentences of the split; None where they cannot be had. Raises DataError if just they were asked for."""
    split = options.split or "valid"
    named = getattr(config.data, split)
    if named is None or not needed:
        return None
    source, target = Path(named.source), Path(named.target)
    counts = TextCounts(where=str(source))
    try:
        lines = [line or "" for line in read_lines(source, counts=counts, invalid="replace")]
        reference = list(read_raw_lines(target))
        require_equal_lines((str(source), len(lines)), (str(target), len(reference)))
    except DataError as error:
        if options.split is not None:
            raise
        warn(f"{error}; the page has no translations")
        return None
    for warning in counts.warnings():
        warn(warning)
    return Text(split, lines, reference)


def _missing(
    config: Config, history: History, model: Model | None, text: Text | None, ended: str | None
) -> Iterator[str]:
    """What a reader would look for in vain, and why."""
    if not history.updates:
        yield "No update is recorded, so there are no curves."
    elif ended is None:
        last = history.updates[-1]["step"]
        most = config.training.max_updates
        yield f"Training is under way or was stopped: {last:,} of at most {most:,} updates are recorded."
    if history.broken:
        yield f"{history.broken} lines of metrics.jsonl are no records (the last may be half written); left out."
    if history.updates and not history.validations:
        yield "There was no validation yet." if config.data.valid else "The run has no validation set."
    if model is None:
        yield "No checkpoint is saved yet, so nothing could be translated: scores, sentences and attention are missing."
    elif text is None:
        yield "The validation set could not be read, or there is none: scores, sentences and attention are missing."


def _ended(run: Run, config: Config) -> str | None:
    """Why training is over, by its latest checkpoint; None where it is not."""
    try:
        snapshot = load_model(run.path, "latest", warn).snapshot
    except CheckpointError:  # a training that is under way may just have replaced it
        return None
    if "averaged" in snapshot.state:  # which knows of no training
        return None
    return limit_met(state_of(snapshot, str(run.path)), config.training)


# --- what is measured -------------------------------------------------------------------------------------------------


class Measurement(NamedTuple):
    """A split, translated and scored."""

    text: Text
    found: list[str]
    measured: list[Measured]
    sentences: list[float]
    """chrF of each sentence by itself."""

    @classmethod
    def of(cls, model: Model, text: Text) -> Measurement:
        """Translate with the run's own settings of search."""
        language = model.trained.config.data.language or ""
        judges = [judge(name, [text.reference], target=language) for name in _METRICS]
        translator = _translator(model.trained)
        found: list[str] = []
        with Meter("translating", len(text.source)) as meter:
            for one in translator.translate(text.source):
                found.append(one.text)
                meter.advance()
        for warning in translator.warnings():
            warn(warning)
        measured = [of(found) for of in judges]
        chrf = measured[_METRICS.index("chrf")]
        return cls(text, found, measured, [chrf.value_of(sums) for sums in chrf.sentences])

    def best(self, count: int) -> list[int]:
        """The places of the best sentences, best first; ties to the earlier."""
        return sorted(self.ranked, key=lambda place: (-self.sentences[place], place))[:count]

    @property
    def ranked(self) -> list[int]:
        """The places of the sentences that are not blank, from the worst to the best; ties to the earlier."""
        real = [place for place, line in enumerate(self.text.source) if line.strip()]
        return sorted(real, key=lambda place: (self.sentences[place], place))


def _translator(trained: Trained, attention: bool = False) -> Translator:
    device = next(trained.model.parameters()).device
    return Translator(trained.model, trained.tokenizers, trained.config.search, device, attention=attention)


def _shown(measured: Measurement) -> dict[str, Any]:
    """Scores, bands of length, the best and the worst sentences."""
    lengths = [len(line.split()) for line in measured.text.source]
    bands = Bands(LENGTHS)
    ranked = measured.ranked
    by_metric = {one.name: by_length(one, lengths, bands) for one in measured.measured}
    used = [place for place, band in enumerate(by_metric["bleu"]) if band.sentences]
    chart = bar_chart(
        [bands.labels[place] for place in used],
        {name: [by_metric[name][place].value for place in used] for name in ("bleu", "chrf")},
        title="By words of the source",
        y="score",
    )
    rows = [
        (bands.labels[place], by_metric["bleu"][place].sentences, [by[place].value for by in by_metric.values()])
        for place in used
    ]
    return {
        "split": {"valid": "validation", "test": "test"}[measured.text.split],
        "count": len(measured.found),
        "scores": [_score(one.score) for one in measured.measured],
        "names": list(by_metric),
        "chart": chart,
        "bands": rows,
        "best": [_sentence(measured, place) for place in measured.best(_EXTREMES)],
        "worst": [_sentence(measured, place) for place in ranked[:_EXTREMES]],
    }


def _score(score: Score) -> tuple[str, float, str]:
    return score.name, score.value, score.signature


def _sentence(measured: Measurement, place: int) -> dict[str, Any]:
    return {
        "line": place + 1,
        "chrf": measured.sentences[place],
        "source": measured.text.source[place],
        "reference": measured.text.reference[place],
        "found": measured.found[place],
    }


def _samples(history: History) -> list[dict[str, Any]]:
    """The same few sentences of the validation set at several validations; they tell how the model grew."""
    chosen = _spread(history.samples(), _VALIDATIONS)
    last = chosen[-1][1][:_SAMPLES] if chosen else []
    return [
        {
            "number": place + 1,
            "source": one["source"],
            "reference": one["reference"],
            "found": [
                (step, samples[place]["translation"])
                for step, samples in chosen
                if place < len(samples) and samples[place]["source"] == one["source"]
            ],
        }
        for place, one in enumerate(last)
    ]


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many of them, first and last among them, evenly spread."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


# --- attention --------------------------------------------------------------------------------------------------------

_RULE = "by chrF of the sentence: the two worst, the median and the best; and the longest"


def _by_rule(measured: Measurement) -> list[int]:
    """Lines, from 1, as `_RULE` says, each once."""
    ranked = measured.ranked
    if not ranked:
        return []
    longest = max(ranked, key=lambda place: (len(measured.text.source[place].split()), -place))
    chosen = [*ranked[:2], ranked[len(ranked) // 2], *measured.best(1), longest]
    return [place + 1 for place in dict.fromkeys(chosen)]


def _looks(model: Model, measured: Measurement, chosen: Sequence[int] | None) -> Iterator[dict[str, Any]]:
    """The attention of some sentences while their translations by beam search are said."""
    lines = _by_rule(measured) if chosen is None else list(chosen)
    translator = _translator(model.trained)
    found = translator.translate_at(measured.text.source, [line - 1 for line in lines])
    for place, (line, one) in enumerate(zip(lines, found, strict=True)):
        sentence = _sentence(measured, line - 1) | {"found": one.text, "picture": None, "heads": None, "why": ""}
        yield sentence | _pictures(model.trained, one, line, with_heads=place == 0)


def _pictures(trained: Trained, found: Translation, line: int, with_heads: bool) -> dict[str, Any]:
    """The heat map of one translation, and of the heads of the first; or why there is none."""
    parts: list[Part] = found.candidates[0].parts
    if len(parts) != 1:
        return {"why": "A blank line is not translated." if not parts else "The line was cut into parts."}
    device = next(trained.model.parameters()).device
    source, target = parts[0].source, [*parts[0].hypothesis.ids, EOS]
    looked = look(trained.model, source, target, device, parts[0].before)
    if looked is None:
        return {"why": "This model has no attention."}
    draw = partial(heat_map, source=source, target=target, tokenizers=trained.tokenizers)
    whole = marked(draw(looked.weights), looked, source, target, trained.tokenizers)
    heads = head_maps(looked, source, target, trained.tokenizers) if with_heads else []
    return {
        "picture": heat_maps_svg([whole], f"Attention, line {line}"),
        "heads": heat_maps_svg(heads, "Attention of every head") if heads else None,
    }


# --- curves -----------------------------------------------------------------------------------------------------------

_CURVES = (("lr", "Learning rate", False), ("grad_norm", "Gradient norm", True))


def _curves(history: History) -> Iterator[str]:
    """Charts of what every training has."""
    if history.updates:
        nll = [means(history.series("nll", "training")), history.validation("nll", "validation")]
        yield line_chart([one for one in nll if one.x], title="Negative log-likelihood", x="update", y="nats a token")
    scores = [history.validation(name, name) for name in _METRICS]
    if shown := [one for one in scores if one.x]:
        yield line_chart(shown, title="Scores of the validation set", x="update", y="score")
    for name, title, log in _CURVES:
        if (one := means(history.series(name, title))).x:
            yield line_chart([one], title=title, x="update", y="", log=log)
    if (speed := history.speed()).x:
        yield line_chart([speed], title="Training speed", x="update", y="target tokens a second")


def _mechanism(history: History) -> Iterator[tuple[str, str]]:
    """What the attention tells of itself, chart and meaning: terms of its loss, and its diagnostics at validations."""
    for name in history.terms():
        chart = line_chart([means(history.series(name, name))], title=f"Loss term: {name}", x="update", y="a token")
        yield chart, "A term of the loss."
    for name in history.diagnostics():
        yield line_chart([history.diagnostic(name)], title=name, x="update", y=""), MEANINGS.get(name, "")


def _tiles(
    history: History, model: Model | None, measured: Measurement | None, ended: str | None
) -> list[tuple[str, str]]:
    """The few numbers that a reader wants first."""
    tiles = []
    if measured is not None:
        tiles += [(f"{one.name}, {measured.text.split}", f"{one.score.value:.2f}") for one in measured.measured]
    if model is not None:
        count = sum(parameter.numel() for parameter in model.trained.model.parameters())
        tiles += [("parameters", f"{count:,}"), ("weights of update", f"{model.trained.update:,}")]
    if history.updates:
        last = history.updates[-1]
        tiles += [("updates", f"{last['step']:,}"), ("target tokens", f"{last.get('target_tokens', 0):,}")]
        tiles.append(("minutes of training", f"{last.get('seconds', 0) / 60:.1f}"))
        tiles.append(("ended by", ended or "not known"))
    return tiles


# --- settings and environment -----------------------------------------------------------------------------------------


def changes(settings: Settings, default: object = None, key: str = "") -> Iterator[tuple[str, str, str]]:
    """The keys that differ from their defaults, each with its default and its value as YAML.

    ``default`` is what the section is where the file says nothing of it; kinds are compared with themselves only.
    """
    for name, field in type(settings).model_fields.items():
        value, path = getattr(settings, name), f"{key}.{name}" if key else name
        if type(default) is type(settings):
            usual = getattr(default, name)
        else:
            usual = None if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(value, Settings):
            yield from changes(value, usual, path)
        elif field.is_required() and type(default) is not type(settings):
            yield path, "must be given", _said(value)
        elif value != usual:
            yield path, _said(usual), _said(value)


def _said(value: object) -> str:
    return inline(value.model_dump(mode="json") if isinstance(value, Settings) else value)


def _environment(config: Config, model: Model | None) -> list[tuple[str, str]]:
    """What the checkpoint knows of where it was made."""
    facts = [("device", config.training.device), ("precision", config.training.precision), ("seed", str(config.seed))]
    if model is None:
        return facts
    state = model.state
    facts += [(name, str(state[name])) for name in ("s2s", "torch", "python", "threads", "run_id") if name in state]
    facts.append(("vocabulary", str(state.get("tokenizer", ""))[:16]))
    for split, files in state.get("fingerprint", {}).items():
        for side, file in files.items():
            facts.append((f"{split} {side}", f"{file['lines']:,} lines, SHA-256 {file['sha256'][:16]}"))
    return facts
