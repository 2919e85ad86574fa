"""The house as designed: imports go down only, nothing runs what it reads, light modules stay light."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "s2s"
FLOORS = {
    1: "interfaces settings schedules tree products likelihood progress distributed failpoints machine errors draws "
    "strictjson analysis evaluation",
    2: "attention models data configfile checkpoint",
    3: "search training",
    4: "config",
    5: "run",
    6: "commands serve",
    7: "cli __main__",
}
FLOOR = {part: floor for floor, parts in FLOORS.items() for part in parts.split()}
STRANGERS = {"attention", "models", "search", "training"}
"""Parts that never import each other, on whatever floor they stand."""
LIGHT = [
    "s2s", "s2s.cli", "s2s.errors", "s2s.configfile", "s2s.data.text", "s2s.commands.output", "s2s.commands.evaluate",
    "s2s.commands.mbr",
]  # fmt: skip
"""Modules that must be importable without waiting for torch."""
TREES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
    for path in sorted(ROOT.rglob("*.py"))
}


def imported(statements: list[ast.AST]) -> Iterator[str]:
    """The modules that these statements name, as full dotted names."""
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (name.name for name in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0 and statement.module, "imports are absolute"
            for name in statement.names:
                inner = f"{statement.module}.{name.name}"
                yield inner if inner in TREES else statement.module


def at_once(statements: list[ast.stmt]) -> list[ast.AST]:
    """The statements that run when a module is imported, those inside `try` and `if` included."""
    found: list[ast.AST] = []
    for statement in statements:
        typing_only = isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test)
        if not typing_only and not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = [part for part in ast.iter_child_nodes(statement) if isinstance(part, ast.stmt)]
            found += [statement, *at_once(inner)]
    return found


def part_of(module: str) -> str:
    """The file or folder of `s2s` that a module is, or is in; the package itself is no part."""
    return module.split(".")[1] if "." in module else ""


GRAPH = {
    module: {name for name in imported(list(ast.walk(tree))) if name in TREES and part_of(name)}
    for module, tree in TREES.items()
}


def test_every_part_has_a_floor() -> None:
    assert {part_of(module) for module in TREES} - {""} == set(FLOOR)


@pytest.mark.parametrize("module", [module for module in TREES if part_of(module)])
def test_imports_go_down_only(module: str) -> None:
    own = part_of(module)
    for name in GRAPH[module]:
        part = part_of(name)
        assert FLOOR[part] <= FLOOR[own], f"{module} imports {name}, which is above it"
        assert part == own or not {part, own} <= STRANGERS, f"{module} imports {name}; the two never know each other"


def test_there_is_no_circle() -> None:
    left = {module: set(names) - {module} for module, names in GRAPH.items()}
    while free := [module for module, names in left.items() if not names & set(left)]:
        for module in free:
            del left[module]
    assert not left, "modules that import each other, or something that does"


@pytest.mark.parametrize("module", [module for module in LIGHT if module in TREES])
def test_light_modules_do_not_import_torch(module: str) -> None:
    waiting, seen = [module], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in TREES:
            continue
        seen.add(name)
        names = set(imported(at_once(TREES[name].body)))
        assert not {one.split(".")[0] for one in names} & {"torch", "safetensors"}, f"{module} gets torch from {name}"
        waiting += [".".join(one.split(".")[: n + 1]) for one in names for n in range(one.count(".") + 1)]


@pytest.mark.fault("C6")
@pytest.mark.parametrize("module", TREES)
def test_nothing_runs_what_it_reads(module: str) -> None:
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert not {name.split(".")[0] for name in imported(list(ast.walk(TREES[module])))} & forbidden
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "torch.load", "os.system", "os.popen"}, f"{called} in {module}"
            loads_yaml = called.startswith("yaml.") and called.split(".")[-1].endswith(("load", "load_all"))
            assert not loads_yaml, f"{called} in {module}: only our own reader builds values from YAML"
            assert all(keyword.arg != "shell" for keyword in node.keywords), f"a shell in {module}"


@pytest.mark.parametrize("module", TREES)
def test_every_module_says_what_it_is_for(module: str) -> None:
    words = ast.get_docstring(TREES[module])
    assert words and words.splitlines()[0].strip()
