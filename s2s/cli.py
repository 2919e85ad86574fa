"""The command line: parses, calls, prints errors; the only place that exits. Commands are imported when called.

Exit codes: 0 done, 1 a bug in s2s, 2 usage or settings, 3 input data, 4 checkpoint or model, 5 training diverged,
6 the system refused, 7 run directory in use, 128 + n stopped by signal n.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from s2s import __version__
from s2s.errors import ConfigError, S2SError, UsageError, is_out_of_memory, out_of_memory, refusal
from s2s.machine import keep_freed_memory
from s2s.progress import say

app = typer.Typer(
    name="s2s",
    help="Train translation models with selectable attention, from raw text to BLEU.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # a third of the time that help takes goes into boxes
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Look at settings: show, check, describe, schema, new.", rich_markup_mode=None)
app.add_typer(config_app, name="config")

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings over the file's.")]
ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="YAML file with the settings.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the model computes.")]
Checkpoint = Annotated[str, typer.Option(help="Which checkpoint of a run: best, latest or step-N.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Models = Annotated[list[Path] | None, typer.Option("--model", "-m", help="A run; several are an ensemble.")]
SourceFile = Annotated[Path, typer.Argument(metavar="SOURCE", help="Text file of source lines.")]
TargetFile = Annotated[Path, typer.Argument(metavar="TARGET", help="Their translations, line for line.")]
NBestFile = Annotated[Path, typer.Argument(metavar="NBEST", help="What s2s translate --n-best wrote: tsv or jsonl.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="File to write; default: stdout.")]
BatchTokens = Annotated[int | None, typer.Option(min=1, max=10_000_000, help="Padded positions run together.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse input that is not UTF-8.")]
Devices = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Work with so many processes: one a GPU, or cores shared.")
]
MaxRestarts = Annotated[
    int, typer.Option(min=0, max=1000, help="With --devices: go on after so many failures of a process.")
]
Normalise = Annotated[
    Literal["search", "none", "average", "gnmt"],
    typer.Option(help="Length penalty of the scores; search: the one of the run's settings."),
]


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where the run is kept; default: runs/FOLDER-NAME.")] = None,
    resume: Annotated[Literal["auto", "none"], typer.Option(help="auto: go on where the run stopped.")] = "auto",
    overwrite: Overwrite = False,
    devices: Devices = None,
    max_restarts: MaxRestarts = 0,
    progress: Annotated[
        Literal["auto", "live", "plain", "quiet"],
        typer.Option(help="live: a panel on a terminal; plain: lines; quiet: warnings and errors alone."),
    ] = "auto",
) -> None:
    """Train a model. The same command again continues where it stopped."""
    _check_restarts(devices, max_restarts)
    if devices is not None:
        from s2s.commands.launch import launch_training

        options = ["--config", str(config), *(overrides or ()), "--resume", resume]
        options += ["--run-dir", str(run_dir)] if run_dir is not None else []
        options += ["--overwrite"] if overwrite else []
        options += ["--progress", progress]
        return launch_training(config, overrides or (), options, devices, max_restarts)
    from s2s.commands.train import train as command

    return command(config, overrides or (), run_dir, resume, overwrite, progress)


@app.command()
def prepare(
    config: ConfigFile,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="The run that it is for; the cache is beside it. Default: runs/FOLDER-NAME.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Processes that encode.")] = 1,
) -> None:
    """Learn vocabularies and encode corpora. The same command again goes on where it stopped; train starts at once."""
    from s2s.commands.prepare import prepare as command

    command(config, overrides or (), run_dir, jobs)


@app.command()
def translate(
    source: Annotated[
        Path | None, typer.Argument(metavar="[INPUT]", help="Text file; default: standard input.")
    ] = None,
    model: Models = None,
    output: OutputOption = None,
    overwrite: Overwrite = False,
    form: Annotated[
        Literal["text", "tsv", "jsonl"], typer.Option("--format", help="What a translation is written as.")
    ] = "text",
    n_best: Annotated[int, typer.Option(min=1, max=1000, help="Translations of each line, best first.")] = 1,
    alignment: Annotated[bool, typer.Option("--alignment", help="Add word links, with --format jsonl.")] = False,
    attention: Annotated[Path | None, typer.Option(help="Draw the first line's attention into this SVG file.")] = None,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    search: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A search setting over the run's own; repeatable.")
    ] = None,
    beam: Annotated[int | None, typer.Option(min=1, max=1000, help="Short for --search beam=N.")] = None,
    batch_tokens: BatchTokens = None,
    ensemble: Annotated[
        Literal["probability", "log"] | None,
        typer.Option(help="Mean of several models; default: probability."),
    ] = None,
    long_lines: Annotated[
        Literal["split", "truncate", "error"], typer.Option(help="A line over search.max_source_length.")
    ] = "split",
    strict: Strict = False,
    stream: Annotated[bool, typer.Option("--stream", help="Answer each line before reading the next.")] = False,
    prefix: Annotated[Path | None, typer.Option(help="Beginnings of the translations, line by line.")] = None,
    require: Annotated[
        Path | None, typer.Option(help="Phrases that must occur, line by line, tabs between them.")
    ] = None,
    forbid: Annotated[Path | None, typer.Option(help="Phrases that must not occur, one a line, for all lines.")] = None,
    replace_unknown: Annotated[
        bool, typer.Option("--replace-unknown", help="Put the most attended source word for an unknown one.")
    ] = False,
    dictionary: Annotated[
        Path | None, typer.Option(help="WORD, tab, TRANSLATION a line: what to put instead, with --replace-unknown.")
    ] = None,
    devices: Devices = None,
    max_restarts: MaxRestarts = 0,
) -> None:
    """Translate a text file or standard input, line for line."""
    from s2s.commands.translate import Options
    from s2s.commands.translate import translate as command

    shortcuts = {"beam": beam, "batch_tokens": batch_tokens}
    changes = [*(search or ()), *(f"{key}={value}" for key, value in shortcuts.items() if value is not None)]
    options = Options(
        output=output, overwrite=overwrite, form=form, n_best=n_best, alignment=alignment, attention=attention,
        checkpoint=checkpoint, device=device, search=changes, ensemble=ensemble, long_lines=long_lines, strict=strict,
        stream=stream, prefix=prefix, require=require, forbid=forbid, replace_unknown=replace_unknown,
        dictionary=dictionary,
    )  # fmt: skip
    _check_restarts(devices, max_restarts)
    if devices is not None:
        from s2s.commands.launch import launch_translation
        from s2s.commands.translate import arguments

        options.check(model or [])
        again = arguments(model or [], source, options)
        return launch_translation(again, devices, max_restarts, device)
    return command(model or [], source, options)


@app.command("eval")
def evaluate(
    model: Annotated[list[Path] | None, typer.Option("--model", "-m", help="A run to translate with.")] = None,
    hypotheses: Annotated[list[Path] | None, typer.Option(help="Translations to score.")] = None,
    source: Annotated[Path | None, typer.Option(help="Text to translate; default: the run's test set.")] = None,
    reference: Annotated[list[Path] | None, typer.Option(help="The right translations.")] = None,
    testset: Annotated[str | None, typer.Option(metavar="NAME", help="A test set that sacreBLEU has fetched.")] = None,
    language_pair: Annotated[str | None, typer.Option(metavar="xx-yy", help="For --testset; picks tokenisers.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[bleu|chrf|ter|exact|tok-lc|tokenised]", help="What to compute; default: bleu, chrf and ter."
        ),
    ] = None,
    tok_lc: Annotated[
        Path | None, typer.Option(help="A tokenised lower-cased reference: score in that form too, as published.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="Target language, for tok-lc; default: de.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="The system to compare with; default: the first.")] = None,
    significance: Annotated[
        Literal["bootstrap", "randomisation", "both", "none"], typer.Option(help="Intervals and p-values.")
    ] = "bootstrap",
    samples: Annotated[
        int | None, typer.Option(min=100, max=1_000_000, help="Of the bootstrap; default: 1000.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=100, max=1_000_000, help="Of randomisation; default: 10000.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of both; default: 12345.")] = None,
    by: Annotated[
        list[str] | None, typer.Option(metavar="[length|frequency]", help="Take the scores apart by bands.")
    ] = None,
    length_bands: Annotated[str | None, typer.Option(metavar="N,N,...", help="Words of the source.")] = None,
    frequency_bands: Annotated[str | None, typer.Option(metavar="N,N,...", help="Times seen in training.")] = None,
    frequency_from: Annotated[Path | None, typer.Option(help="Training text; default: that of the runs.")] = None,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Keep the translations here.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the results here; default: stdout.")] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score translations: BLEU, chrF, TER. With signatures, intervals and p-values, of models and of files."""
    from s2s.commands.evaluate import Options
    from s2s.commands.evaluate import evaluate as command

    command(
        Options(
            models=model or (), hypotheses=hypotheses or (), source=source, references=reference or (),
            test_set=testset, language_pair=language_pair, metrics=metric or (), tok_lc=tok_lc, language=language,
            baseline=baseline, significance=significance, samples=samples, trials=trials, seed=seed, by=by or (),
            length_bands=length_bands, frequency_bands=frequency_bands, frequency_from=frequency_from,
            checkpoint=checkpoint, device=device, output=output, report=report, overwrite=overwrite, as_json=as_json,
        )
    )  # fmt: skip


@app.command()
def score(
    source: SourceFile,
    target: TargetFile,
    model: Models = None,
    normalise: Normalise = "search",
    per_token: Annotated[bool, typer.Option("--per-token", help="Every piece with its log-probability too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
    output: OutputOption = None,
    overwrite: Overwrite = False,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    batch_tokens: BatchTokens = None,
    strict: Strict = False,
) -> None:
    """Print the log-probability of each pair of lines."""
    from s2s.commands.score import score as command

    command(
        model or [], source, target, output, normalise=normalise, per_token=per_token, as_json=as_json,
        overwrite=overwrite, checkpoint=checkpoint, device=device, batch_tokens=batch_tokens, strict=strict,
    )  # fmt: skip


@app.command()
def align(
    source: SourceFile,
    target: TargetFile,
    model: Models = None,
    level: Annotated[Literal["word", "piece"], typer.Option(help="What is linked.")] = "word",
    shift: Annotated[
        int, typer.Option(min=0, max=1, help="1: attention belongs to the word before the one it was asked for.")
    ] = 0,
    threshold: Annotated[
        float | None, typer.Option(min=1e-6, max=1, help="Link all with so much weight; default: the largest.")
    ] = None,
    form: Annotated[
        Literal["pharaoh", "json", "soft"], typer.Option("--format", help="Links, all of it, or weights.")
    ] = "pharaoh",
    gold: Annotated[Path | None, typer.Option(help="Right links, Pharaoh: print AER, precision, recall.")] = None,
    gold_first: Annotated[int, typer.Option(min=0, max=1, help="The number of the first word in --gold.")] = 0,
    output: OutputOption = None,
    overwrite: Overwrite = False,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    batch_tokens: BatchTokens = None,
    strict: Strict = False,
) -> None:
    """Link the words of given pairs through attention."""
    from s2s.commands.align import align as command

    command(
        model or [], source, target, output, level=level, shift=shift, threshold=threshold, form=form, gold=gold,
        gold_first=gold_first, overwrite=overwrite, checkpoint=checkpoint, device=device, batch_tokens=batch_tokens,
        strict=strict,
    )  # fmt: skip


@app.command()
def rescore(
    nbest: NBestFile,
    model: Annotated[list[Path] | None, typer.Option("--model", "-m", help="A run; several are judges apart.")] = None,
    source: Annotated[Path | None, typer.Option(help="The translated lines; JSON lists may say their own.")] = None,
    weight: Annotated[list[float] | None, typer.Option(help="Of each model's score, in order; default: 1.")] = None,
    given: Annotated[float, typer.Option(help="Weight of the scores in the lists.")] = 1.0,
    normalise: Normalise = "search",
    output: OutputOption = None,
    overwrite: Overwrite = False,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    batch_tokens: BatchTokens = None,
    strict: Strict = False,
) -> None:
    """Rank n-best lists again by the scores of models."""
    from s2s.commands.rescore import rescore as command

    command(
        model or [], nbest, source, output, weights=weight or (), given=given, normalise=normalise,
        overwrite=overwrite, checkpoint=checkpoint, device=device, batch_tokens=batch_tokens, strict=strict,
    )  # fmt: skip


@app.command()
def mbr(
    nbest: NBestFile,
    utility: Annotated[Literal["chrf", "bleu"], typer.Option(help="How like two translations are.")] = "chrf",
    weights: Annotated[
        Literal["uniform", "softmax"], typer.Option(help="uniform for samples; softmax of the scores for n-best.")
    ] = "uniform",
    form: Annotated[
        Literal["text", "tsv", "jsonl"], typer.Option("--format", help="The best, or the lists ranked again.")
    ] = "text",
    output: OutputOption = None,
    overwrite: Overwrite = False,
) -> None:
    """Choose from samples or n-best lists by minimum Bayes risk."""
    from s2s.commands.mbr import mbr as command

    command(nbest, output, utility=utility, weights=weights, form=form, overwrite=overwrite)


@app.command()
def average(
    model: Annotated[Path, typer.Option("--model", "-m", help="The run to take checkpoints from.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new run to write.")],
    last: Annotated[
        int | None, typer.Option(min=1, help="How many of the newest, by default 5; see training.keep_last.")
    ] = None,
    best: Annotated[
        int | None, typer.Option(min=1, help="How many of the best in validation; see training.keep_best.")
    ] = None,
) -> None:
    """Average the last or best checkpoints of a run."""
    from s2s.commands.average import average_checkpoints

    average_checkpoints(model, output, last, best)


@app.command()
def attention(
    source: Annotated[
        Path | None, typer.Argument(metavar="[INPUT]", help="Text file; default: standard input.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The picture: a name that ends in .svg, .png or .pdf.")
    ] = None,
    model: Annotated[list[Path] | None, typer.Option("--model", "-m", help="A run; several are side by side.")] = None,
    overwrite: Overwrite = False,
    target: Annotated[
        Path | None, typer.Option(help="Translations, line for line, that are drawn instead of the models' own.")
    ] = None,
    line: Annotated[int, typer.Option(min=1, help="Which line is drawn.")] = 1,
    heads: Annotated[bool, typer.Option("--heads", help="Every head of every layer of a Transformer too.")] = False,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    strict: Strict = False,
) -> None:
    """Draw what models attend to: SVG, PNG or PDF."""
    if output is None:
        raise UsageError("--output", "is not given", "say where the picture goes: a name with .svg, .png or .pdf")
    from s2s.commands.attention import Options
    from s2s.commands.attention import attention as command

    command(
        model or [],
        source,
        Options(
            output=output, overwrite=overwrite, target=target, line=line, heads=heads, checkpoint=checkpoint,
            device=device, strict=strict,
        ),
    )  # fmt: skip


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run, or one of its checkpoints.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page to write; default: RUN/report.html.")
    ] = None,
    overwrite: Overwrite = False,
    split: Annotated[
        Literal["valid", "test"] | None, typer.Option(help="What is translated and scored; default: valid.")
    ] = None,
    sentences: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Lines whose attention is drawn; default: by their scores.")
    ] = None,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
) -> None:
    """Write a page about a run. Curves, scores, sentences, attention, settings."""
    from s2s.commands.report import Options
    from s2s.commands.report import report as command

    command(
        run,
        Options(
            output=output, overwrite=overwrite, split=split, sentences=sentences, checkpoint=checkpoint, device=device
        ),
    )


@app.command()
def serve(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Runs, each a model of its own.")],
    host: Annotated[str, typer.Option(help="The address to listen at; by default this machine reaches it only.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A name that clients may call the server; repeatable.")
    ] = None,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    search: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A search setting over the runs' own; repeatable.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds that a request may wait.")] = 60.0,
    queue: Annotated[int, typer.Option(min=1, max=512, help="Requests that may wait.")] = 256,
) -> None:
    """Serve models on this machine. A page to type sentences into, and a JSON API."""
    from s2s.commands.serve import Options
    from s2s.commands.serve import serve as command

    options = Options(
        host=host, port=port, allow_host=allow_host or (), checkpoint=checkpoint, device=device, search=search or (),
        timeout=timeout, queue=queue,
    )  # fmt: skip
    command(models, options)


@app.command()
def compare(
    what: Annotated[list[Path], typer.Argument(metavar="GRID.yaml | RUN...", help="A comparison, or finished runs.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to write; default: runs/compare-NAME.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Trainings at a time, each on a GPU if there are any.")] = 1,
    no_train: Annotated[bool, typer.Option("--no-train", help="Only write table and page from what is there.")] = False,
    baseline: Annotated[str | None, typer.Option(help="The system to compare with; default: the first.")] = None,
    source: Annotated[Path | None, typer.Option(help="Text to translate; default: the runs' test set.")] = None,
    reference: Annotated[Path | None, typer.Option(help="The right translations.")] = None,
    links: Annotated[Path | None, typer.Option(help="Right word links of these, Pharaoh.")] = None,
    language: Annotated[str | None, typer.Option(help="Target language of the runs: zh, ja, ...; default: de.")] = None,
    device: Device = "auto",
) -> None:
    """Compare mechanisms: a table and a page. Trains a grid of them, or takes runs that are there."""
    from s2s.commands.compare import Options
    from s2s.commands.compare import compare as command

    options = Options(
        output=output, baseline=baseline, source=source, reference=reference, links=links, language=language,
        jobs=jobs, train=not no_train, device=device,
    )  # fmt: skip
    command(what, options)


@config_app.command("show")
def config_show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print every setting of a file. With its parents, and the defaults filled in."""
    from s2s.commands.config import show

    show(config, overrides or ())


@config_app.command("check")
def config_check(config: ConfigFile, overrides: Overrides = None) -> None:
    """Check a file and train nothing."""
    from s2s.commands.config import check

    check(config, overrides or ())


@config_app.command("describe")
def config_describe(
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="For instance optimizer.lr.")] = None,
) -> None:
    """Explain a setting or a section."""
    from s2s.commands.config import describe

    describe(key)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the settings, for editors."""
    from s2s.commands.config import schema

    schema()


@config_app.command("new")
def config_new(
    source: Annotated[Path, typer.Argument(help="Text to translate from.")],
    target: Annotated[Path, typer.Argument(help="Its translation, line for line.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("config.yaml"),
    overwrite: Overwrite = False,
) -> None:
    """Write a commented config for two files. Sets validation and test sentences aside."""
    from s2s.commands.config import new

    new(source, target, output, overwrite)


def _check_restarts(devices: int | None, max_restarts: int) -> None:
    if max_restarts and devices is None:
        raise UsageError("--max-restarts", "belongs to --devices", "add --devices N")


def _fail(error: S2SError) -> int:
    """Say what went wrong, of an exception that is being handled; gives the exit code."""
    if os.environ.get("S2S_TRACEBACK"):
        traceback.print_exc()
    if error.told:
        return error.code
    for problem in error.problems if isinstance(error, ConfigError) else (str(error),):
        say(f"s2s: error: {problem}")
    return error.code


def _usage(context: typer.Context | None) -> str:
    """How the command is used that was meant, where one was."""
    if context is None or hasattr(context.command, "commands"):
        return ""
    return " ".join(context.get_usage().split()).replace("Usage:", "; usage:", 1)


def run(arguments: list[str] | None = None) -> int:
    """Run a command and give its exit code."""
    try:
        result = app(arguments, standalone_mode=False, prog_name="s2s")
        return result if isinstance(result, int) else 0
    except S2SError as error:
        return _fail(error)
    except typer.Exit as error:
        return int(error.exit_code)
    except SystemExit as error:
        broken = error.__context__
        if not isinstance(broken, BrokenPipeError):
            raise
        from s2s.commands.output import nobody_reads

        if nobody_reads(1):  # so the parser ends where its help finds no reader
            _end_silently()
        return _fail(refusal(broken))  # a pipe to somebody else, of which the parser knows nothing
    except (KeyboardInterrupt, typer.Abort):
        say("s2s: stopped")
        return 128 + signal.SIGINT
    except OSError as error:
        return _fail(refusal(error))
    except Exception as error:
        if hasattr(error, "format_message"):  # what the command line parser raises for a wrong command
            say(f"s2s: error: {error.format_message().removesuffix('.')}{_usage(getattr(error, 'ctx', None))}")
            return 2
        if is_out_of_memory(error):
            return _fail(out_of_memory())
        traceback.print_exc()
        say("s2s: this is a bug in s2s; please report it with the lines above")
        return 1


def main() -> NoReturn:
    """The console command."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # the same bytes under every locale; what cannot be one is spelled out
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    keep_freed_memory()
    code = run()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _end_silently()
    except OSError:
        code = code or 6
        os._exit(code)  # the interpreter would try to flush again, and complain
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:  # nobody reads what was said; the interpreter would make a fault of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.exit(code)


def _end_silently() -> NoReturn:
    from s2s.commands.output import end_silently

    end_silently()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def _help_without_command(context: typer.Context) -> None:
    """Nothing was asked for: what there is to ask for, as an answer to a wrong command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


@config_app.callback(invoke_without_command=True)
def _config_options(context: typer.Context) -> None:
    _help_without_command(context)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    _help_without_command(context)
