"""docs/security.md names a test for each defence, and the tests are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
NAMED = [
    (file, name)
    for file, names in re.findall(r"`(tests/[\w/]+\.py)`:((?:\s+`test_\w+`,?)+)", PAGE)
    for name in re.findall(r"\w+", names)
]


def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_the_tests_that_the_page_names_are_there() -> None:
    assert len(NAMED) > 30
    assert [(file, name) for file, name in NAMED if name not in functions_of(file)] == []


def test_each_defence_has_a_test() -> None:
    section = re.search(r"^## What is defended\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    assert section
    points = re.split(r"^\* ", section[1], flags=re.MULTILINE)[1:]
    assert len(points) > 15
    assert [point for point in points if "`test_" not in point] == []
