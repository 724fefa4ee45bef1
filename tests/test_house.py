"""The house itself: floors, laws, sizes, and one version."""

from __future__ import annotations

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

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
MOST_LINES = 400


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


@pytest.mark.parametrize("module", [name for name in sorted(MODULES) if not name.startswith("llmaas.cli")])
def test_only_the_command_line_prints(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    assert [call.lineno for call in calls if getattr(call.func, "id", "") in ("print", "input", "breakpoint")] == []


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


@pytest.mark.parametrize("script", ["scripts/setup", "scripts/demo", "scripts/test", "scripts/check", ".ci/run"])
def test_the_doors_are_executable_and_strict(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    text = path.read_text("utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
