"""The command line: parses, calls, prints errors; the only place that exits. Commands are imported when called.

Exit codes: 0 done, 1 a bug in s2s, 2 usage or settings, 3 input data, 4 checkpoint or model, 5 training diverged,
6 the system refused, 7 run directory in use, 128 + n stopped by signal n.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from s2s import __version__
from s2s.errors import ConfigError, S2SError, SystemRefused
from s2s.progress import say

app = typer.Typer(
    name="s2s",
    help="Train translation models with selectable attention, from raw text to BLEU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Look at settings: show, check, describe, schema, new.", no_args_is_help=True)
app.add_typer(config_app, name="config")

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings over the file's.")]
ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="YAML file with the settings.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Checkpoint = Annotated[str, typer.Option(help="Which checkpoint of a run: best, latest or step-N.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where the run is kept; default: runs/FOLDER-NAME.")] = None,
    resume: Annotated[Literal["auto", "none"], typer.Option(help="auto: go on where the run stopped.")] = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Train a model; the same command again continues where it stopped."""
    from s2s.commands.train import train as command

    command(config, overrides or (), run_dir, resume, overwrite)


@app.command()
def translate(
    source: Annotated[
        Path | None, typer.Argument(metavar="[INPUT]", help="Text file; default: standard input.")
    ] = None,
    model: Annotated[list[Path] | None, typer.Option("--model", "-m", help="A run; several are an ensemble.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; default: stdout.")] = None,
    overwrite: Overwrite = False,
    checkpoint: Checkpoint = "best",
    beam: Annotated[int | None, typer.Option(min=1, max=1000, help="Beam size; default: the run's own.")] = None,
    device: Device = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Refuse input that is not UTF-8.")] = False,
    attention: Annotated[Path | None, typer.Option(help="Draw the first line's attention into this SVG file.")] = None,
) -> None:
    """Translate a text file or standard input, line for line."""
    _die_with_a_closed_pipe()
    from s2s.commands.translate import translate as command

    if not model:
        raise typer.BadParameter("give at least one --model RUN")
    command(
        model, source, output, overwrite=overwrite, checkpoint=checkpoint, beam=beam, device=device, strict=strict,
        attention=attention,
    )  # fmt: skip


@app.command("eval")
def evaluate(
    model: Annotated[Path | None, typer.Option("--model", "-m", help="A run to translate with.")] = None,
    hypotheses: Annotated[list[Path] | None, typer.Option(help="Translations to score.")] = None,
    source: Annotated[Path | None, typer.Option(help="Text to translate; default: the run's test set.")] = None,
    reference: Annotated[Path | None, typer.Option(help="The right translations.")] = None,
    tok_lc: Annotated[
        Path | None, typer.Option(help="A tokenised lower-cased reference: score in that form too, as published.")
    ] = None,
    language: Annotated[str, typer.Option(help="Target language, for --tok-lc.")] = "de",
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Keep the translations here.")] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a model or files of translations: BLEU, chrF and TER with signatures."""
    _die_with_a_closed_pipe()
    from s2s.commands.evaluate import evaluate as command

    command(
        model, hypotheses or [], source, reference, tok_lc=tok_lc, language=language, checkpoint=checkpoint,
        device=device, output=output, overwrite=overwrite, as_json=as_json,
    )  # fmt: skip


@app.command()
def average(
    model: Annotated[Path, typer.Option("--model", "-m", help="The run to take checkpoints from.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new run to write.")],
    last: Annotated[int, typer.Option(min=1, help="How many of the newest; see training.keep_last.")] = 5,
) -> None:
    """Average the last checkpoints of a run into one model."""
    from s2s.commands.average import average_checkpoints

    average_checkpoints(model, output, last)


@config_app.command("show")
def config_show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print every setting of a file, with its parents and the defaults filled in."""
    _die_with_a_closed_pipe()
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
    _die_with_a_closed_pipe()
    from s2s.commands.config import describe

    describe(key)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the settings, for editors."""
    _die_with_a_closed_pipe()
    from s2s.commands.config import schema

    schema()


@config_app.command("new")
def config_new(
    source: Annotated[Path, typer.Argument(help="Text to translate from.")],
    target: Annotated[Path, typer.Argument(help="Its translation, line for line.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("config.yaml"),
) -> None:
    """Write a commented config for two files, and set validation and test sentences aside."""
    from s2s.commands.config import new

    new(source, target, output)


def _die_with_a_closed_pipe() -> None:
    """A reader that stops reading (``| head``) ends this program silently, as it ends others."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def _fail(error: S2SError) -> int:
    for problem in error.problems if isinstance(error, ConfigError) else (str(error),):
        say(f"s2s: error: {problem}")
    return error.code


def run(arguments: list[str] | None = None) -> int:
    """Run a command and give its exit code."""
    try:
        result = app(arguments, standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except S2SError as error:
        if os.environ.get("S2S_TRACEBACK"):
            traceback.print_exc()
        return _fail(error)
    except typer.Exit as error:
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        say("s2s: stopped")
        return 128 + signal.SIGINT
    except OSError as error:
        if os.environ.get("S2S_TRACEBACK"):
            traceback.print_exc()
        return _fail(SystemRefused(error.filename or "", error.strerror or str(error)))
    except Exception as error:
        if hasattr(error, "format_message"):  # what the command line parser raises for a wrong command
            say(f"s2s: error: {error.format_message()}")
            return 2
        traceback.print_exc()
        say("s2s: this is a bug in s2s; please report it with the lines above")
        return 1


def main() -> NoReturn:
    """The console command."""
    code = run()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        code = code or 6
        os._exit(code)  # the interpreter would try to flush again, and complain
    sys.exit(code)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass
