"""``from llmaas import ...``: what users get, where it comes from, and that it is imported only when it is used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import llmaas
import llmaas.errors

HEAVY = ("numpy", "msgpack", "asyncio", "llmaas.api", "llmaas.records")


def in_a_new_interpreter(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_importing_the_package_alone_imports_nothing_heavy() -> None:
    found = in_a_new_interpreter(f"import sys, llmaas; print([name for name in {HEAVY} if name in sys.modules])")
    assert found == "[]"


def test_a_name_is_imported_when_it_is_used() -> None:
    code = (
        "import sys; from llmaas import LlmaasError, Client; print('msgpack' in sys.modules, 'asyncio' in sys.modules)"
    )
    assert in_a_new_interpreter(code) == "True False"


@pytest.mark.parametrize("name", llmaas.__all__)
def test_every_name_is_there_and_listed(name: str) -> None:
    assert getattr(llmaas, name) is not None
    assert name in dir(llmaas)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'llmaas' has no attribute 'Cleint'"):
        _ = llmaas.Cleint


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    assert llmaas.__file__ is not None
    tree = ast.parse(Path(llmaas.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert sorted([*seen, "__version__"]) == sorted(llmaas.__all__)
    for name, module in seen.items():
        assert getattr(llmaas, name) is getattr(sys.modules[str(module)], name)


def test_a_client_loads_msgpack_and_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); from llmaas import AsyncClient, Client; "
        "print({name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    loaded = ast.literal_eval(in_a_new_interpreter(code))
    assert {name for name in loaded if "cython" not in name} == {"llmaas", "msgpack"}


def test_every_error_is_there_to_be_caught() -> None:
    classes = [value for value in vars(llmaas.errors).values() if inspect.isclass(value)]
    errors = {cls.__name__ for cls in classes if cls.__module__ == llmaas.errors.__name__}
    assert errors - set(llmaas.__all__) == set()
