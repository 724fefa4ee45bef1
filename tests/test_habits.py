"""What tests and benches keep to: they use what llmaas offers to all, and tests lie where their packages do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for room in ("tests", "bench", "traces") for path in sorted((ROOT / room).rglob("*.py"))]
OTHER_ROOMS = {"android_bridge", "bench", "contract", "data", "e2e", "fuzz", "stress", "support"}
"""Rooms of tests that belong to no package of llmaas."""
NOT_OURS = {"_asdict", "_exit", "_fields", "_make", "_replace"}
"""Names that Python offers to all although they begin with an underscore."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in NOT_OURS


def private_uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of each use of a private name that the file does not define itself.

    A class may use what it inherits: ``self._x``, ``cls._x`` and ``super()._x``.
    """
    defined = set(names_defined(tree))
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls") | ast.Call(func=ast.Name(id="super"))):
                continue
            case ast.Attribute(attr=name):
                names = [name]
            case ast.ImportFrom(module=str(module), names=aliases) if module.startswith("llmaas"):
                names = [*module.split("."), *(alias.name for alias in aliases)]
            case ast.Call(func=ast.Name(id="getattr" | "setattr") | ast.Attribute(attr="setattr"), args=args):
                named = [arg.value for arg in args[:2] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
                names = [value.rpartition(".")[2] for value in named]
            case _:
                continue
        if any(is_private(name) and name not in defined for name in names):
            yield node.lineno, ast.unparse(node)


def names_defined(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


@pytest.mark.parametrize("file", [str(path.relative_to(ROOT)) for path in FILES])
def test_tests_and_benches_use_no_private_names(file: str) -> None:
    assert list(private_uses(ast.parse((ROOT / file).read_text("utf-8")))) == []


def test_private_names_are_found() -> None:
    code = """
from llmaas.engine._probe import x
from llmaas.engine.fake import FakeEngine, _MIX
class Mine(FakeEngine):
    def step(self): return self._kv + super()._kv + self.thread._kv
    def other(self): self._mine = 1
def use(service, mine): return service._planner, mine._mine, mine._replace(), setattr(service, "_planner", 1)
monkeypatch.setattr("llmaas.engine.base._LIMIT", 1)
monkeypatch.setattr(service, "_limit", 1)
"""
    lines = [line for line, _ in private_uses(ast.parse(code))]
    assert sorted(lines) == [2, 3, 5, 7, 7, 8, 9]


def test_each_room_of_tests_is_that_of_a_package() -> None:
    for folder in sorted({path.parent for path in FILES if path.is_relative_to(ROOT / "tests")}):
        room = folder.relative_to(ROOT / "tests")
        if room.parts and room.parts[0] not in OTHER_ROOMS:
            assert (ROOT / "llmaas" / room / "__init__.py").is_file(), f"tests/{room} tests no package of llmaas"
