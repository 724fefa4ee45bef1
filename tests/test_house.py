"""The house itself: laws, sizes, names that exist once, and one version."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from statistics import median

import pytest

import llmaas

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FILES = sorted((ROOT / "llmaas").rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
PLAIN = [name for name, path in MODULES.items() if path.name != "__init__.py"]
BENCHES = sorted((ROOT / "bench").rglob("*.py"))
MOST_LINES = 400
MEDIAN_LINES = 120
MOST_LINES_OF_A_FUNCTION = 50


def docstring(module: str) -> str:
    return ast.get_docstring(ast.parse(MODULES[module].read_text("utf-8"))) or ""


def test_there_is_a_house() -> None:
    assert len(PLAIN) > 20


@pytest.mark.parametrize("module", PLAIN)
def test_every_module_says_its_law(module: str) -> None:
    text = docstring(module)
    assert "Law: " in text, f"{module} must state its law"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_file_is_longer_than_anyone_reads(module: str) -> None:
    lines = MODULES[module].read_text("utf-8").count("\n")
    assert lines <= MOST_LINES, f"{module} has {lines} lines: is there a second room in it?"


def test_most_files_can_be_seen_at_a_glance() -> None:
    assert median(MODULES[module].read_text("utf-8").count("\n") for module in PLAIN) <= MEDIAN_LINES


@pytest.mark.parametrize("path", [*FILES, *BENCHES], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_function_does_one_thing(path: Path) -> None:
    """Its length; ruff checks the complexity (pyproject.toml)."""
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {f"{node.name}, line {node.lineno}": (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES_OF_A_FUNCTION} == {}


def test_a_class_name_stands_for_one_class() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


@pytest.mark.parametrize("module", [name for name in sorted(MODULES) if not name.startswith("llmaas.cli")])
def test_only_the_command_line_prints(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    assert [call.lineno for call in calls if getattr(call.func, "id", "") in ("print", "input", "breakpoint")] == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_waits_for_threads_that_all_share(module: str) -> None:
    """asyncio's default executor has a few threads for all: one app's slow work would fill them for everybody."""
    names = {node.attr for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))) if hasattr(node, "attr")}
    assert not names & {"to_thread", "run_in_executor", "set_default_executor"}


def test_the_version_is_the_same_everywhere() -> None:
    assert metadata.version("llmaas") == llmaas.__version__
    assert "version" in PROJECT["project"]["dynamic"]
    heads = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert heads[0] in ("Unreleased", llmaas.__version__)


def test_the_package_says_that_it_is_typed_and_under_which_licence() -> None:
    assert (ROOT / "llmaas" / "py.typed").is_file()
    assert PROJECT["project"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize(
    "script", [*(f"scripts/{door.name}" for door in sorted((ROOT / "scripts").iterdir()) if not door.suffix), ".ci/run"]
)
def test_the_doors_are_executable_and_strict(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    text = path.read_text("utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
