"""What the documentation tells a reader to type exists: commands, options, make targets; and its links lead on."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from s2s import config as configuration
from s2s.cli import app
from s2s.search.beam import SearchSettings

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "config.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted({*(ROOT / "docs").glob("*.md")} - {REFERENCE})]


def blocks(path: Path, *languages: str) -> Iterator[str]:
    """The contents of the fenced blocks in one of these languages."""
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S):
        if language in languages:
            yield text


def shell_commands(path: Path) -> list[list[str]]:
    """Every command line in the shell blocks and in the spans of code of a page, in words."""
    lines = [
        line for text in blocks(path, "sh", "bash", "console", "") for line in text.replace("\\\n", " ").split("\n")
    ]
    prose = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    lines += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    words = [
        shlex.split(line.removeprefix("$ "), comments=True)
        for line in lines
        if re.match(r"(\$ )?(s2s|make|python) ", line)
    ]
    return [command for command in words if len(command) > 1]


COMMANDS = [
    pytest.param(path, command, id=f"{path.name}: {shlex.join(command)}")
    for path in PAGES
    for command in shell_commands(path)
]


def of(name: str) -> list[Any]:
    """The parameters of the test cases whose command starts with this program."""
    return [case for case in COMMANDS if case.values[1][0] == name]  # type: ignore[index]


def parse(arguments: list[str]) -> None:
    """Parse a command of s2s to its end without running it; the parser raises for what it does not know."""
    group = typer.main.get_command(app)
    context = group.make_context("s2s", arguments)
    while True:
        name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])  # type: ignore[attr-defined]
        assert command is not None, name
        context = command.make_context(name, rest, parent=context)
        if not hasattr(context.command, "resolve_command"):
            return


COMMAND_NAMES = set(typer.main.get_group(app).commands)


def test_nothing_of_a_merge_is_left() -> None:
    marks = re.compile(r"^(<{7} |={7}$|>{7} )", re.M)
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
    assert [path.name for path in pages if marks.search(path.read_text(encoding="utf-8"))] == []


def test_there_is_a_readme_with_commands() -> None:
    assert len(of("s2s")) >= 4
    assert len(of("make")) >= 2


@pytest.mark.parametrize(("path", "command"), of("s2s"))
def test_commands_are_understood(path: Path, command: list[str]) -> None:
    """Every option exists, and every file of this repository that is named is there; a name alone is a mention."""
    if len(command) == 2:
        assert command[1] in COMMAND_NAMES
        return
    parse(command[1:])
    names = [word for word in command if word.startswith(("configs/", "scripts/", "data/toy/"))]
    assert all((ROOT / name).is_file() for name in names)


def test_the_parser_of_this_test_refuses() -> None:
    for wrong in (["train", "--confg", "x"], ["trian"], ["config", "describe", "--key", "x"]):
        with pytest.raises(Exception, match="No such"):
            parse(wrong)


@pytest.mark.parametrize(("path", "command"), of("make"))
def test_targets_exist(path: Path, command: list[str]) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert {word for word in command[1:] if "=" not in word} <= set(targets)


@pytest.mark.parametrize(("path", "command"), of("python"))
def test_scripts_exist(path: Path, command: list[str]) -> None:
    script = next((word for word in command[1:] if not word.startswith("-")), "")
    assert command[1].startswith("-") or (ROOT / script).is_file()


def yaml_files(path: Path) -> Iterator[str]:
    """The YAML of a page as whole files over a base: what begins as one, and every entry of the other blocks."""
    base = f"extends: {ROOT}/configs/toy/base.yaml"
    for text in blocks(path, "yaml"):
        if text.startswith("extends: "):
            yield text.replace("extends: base.yaml", base)
            continue
        for entry in re.findall(r"^\S.*\n(?:\s.*\n)*", text, re.M):
            above = ABOVE.get(entry.split(":")[0], [])
            nested = "".join(f"{'  ' * depth}{key}:\n" for depth, key in enumerate(above))
            yield f"{base}\n{nested}{textwrap.indent(entry, '  ' * len(above))}"


ABOVE = {"attention": ["model", "decoder"], "encoder": ["model"], "decoder": ["model"]}
"""Where an entry belongs that a page shows alone; others are sections of a file."""
FILES = [pytest.param(text, id=f"{path.name}: {text}") for path in PAGES for text in yaml_files(path)]


def test_there_are_settings_on_the_pages() -> None:
    assert len(FILES) >= 20


@pytest.mark.parametrize("text", FILES)
def test_settings_on_the_page_are_settings(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.yaml").write_text(text, encoding="utf-8")
    configuration.load(tmp_path / "page.yaml")


def test_search_settings_on_the_pages_are_settings() -> None:
    """Those of commands and those that stand alone in the text."""
    found = [
        match
        for path in PAGES
        for match in re.findall(
            r"--search\s+(?:'([^'`]+=[^'`]+)'|([^\s'`]+=[^\s'`]+))", path.read_text(encoding="utf-8")
        )
    ]
    changes = [quoted or plain for quoted, plain in found]
    assert len(changes) >= 10
    for change in changes:  # sampling goes without a beam, and groups divide one
        given = ["beam=1"] if change.startswith("sampling") else ["beam=6"] if change.startswith("diversity") else []
        overrides = [f"search.{one}" for one in dict.fromkeys([*given, change])]
        configuration.load(ROOT / "configs" / "toy" / "base.yaml", overrides)


def test_the_page_on_search_has_every_setting() -> None:
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    missing = {name for name in SearchSettings.model_fields if not re.search(rf"`[^`]*\b{name}\b", page)}
    assert not missing


def test_options_in_the_text_are_options() -> None:
    """A span of code that starts with an option names one of some command."""
    group = typer.main.get_group(app)
    commands = [*group.commands.values(), *group.commands["config"].commands.values()]  # type: ignore[attr-defined]
    known = {option for command in commands for parameter in command.params for option in parameter.opts}
    named = {option for path in PAGES for option in re.findall(r"`(--[a-z-]+)", path.read_text(encoding="utf-8"))}
    assert len(named) >= 40
    assert named <= known | {"--signal"}  # SLURM's


def test_the_readme_names_every_command() -> None:
    named = re.findall(r"^\| `s2s (\w+)`", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert sorted(named) == sorted(COMMAND_NAMES)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
    missing = {target for target in targets if "://" not in target and not (path.parent / target).exists()}
    assert not missing


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_into_pages_lead_to_a_heading(path: Path) -> None:
    """By the rule of GitHub: small letters, digits, hyphens for spaces, other signs left out."""
    for page, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", path.read_text(encoding="utf-8")):
        text = (path.parent / page if page else path).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, anchor


@pytest.mark.skipif(
    not REFERENCE.is_file(), reason="docs/config.md is not written yet: python scripts/config_reference.py"
)
def test_the_reference_is_up_to_date() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "config_reference.py"), "--check"]
    assert subprocess.run(script, capture_output=True, timeout=60, check=False).returncode == 0
