"""What the documentation tells a reader to type exists: commands, options, make targets; and its links lead on."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from s2s import config as configuration
from s2s.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [path for name in ("README.md", "CONTRIBUTING.md", "docs/attention.md") if (path := ROOT / name).is_file()]
REFERENCE = ROOT / "docs" / "config.md"


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


def test_there_is_a_readme_with_commands() -> None:
    assert len(of("s2s")) >= 4
    assert len(of("make")) >= 2


@pytest.mark.parametrize(("path", "command"), of("s2s"))
def test_commands_are_understood(path: Path, command: list[str]) -> None:
    """Every option exists, every setting is one, and every file of this repository that is named is there."""
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


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_settings_on_the_page_are_settings(path: Path, tmp_path: Path) -> None:
    """Of the YAML blocks, those that are a whole file over a base of configs/."""
    for text in [block for block in blocks(path, "yaml") if block.startswith("extends: ")]:
        (tmp_path / "page.yaml").write_text(
            text.replace("extends: base.yaml", f"extends: {ROOT}/configs/toy/base.yaml")
        )
        configuration.load(tmp_path / "page.yaml")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
    missing = {target for target in targets if "://" not in target and not (path.parent / target).exists()}
    assert not missing


@pytest.mark.skipif(
    not REFERENCE.is_file(), reason="docs/config.md is not written yet: python scripts/config_reference.py"
)
def test_the_reference_is_up_to_date() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "config_reference.py"), "--check"]
    assert subprocess.run(script, capture_output=True, timeout=60, check=False).returncode == 0
