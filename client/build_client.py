"""Builds the wheel of llmaas-client: the modules of llmaas that its public names import, found by reading the sources.

A build backend (PEP 517) that needs no other package. setuptools was rejected: it builds from one folder, and these
files belong to llmaas, which is the folder above.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parent
NAME = "llmaas_client"
PYTHON = ">=3.10"
REQUIRES = ("msgpack>=1.0.5", "tomli>=2.0; python_version < '3.11'")
_STAMP = (1980, 1, 1, 0, 0, 0)
"""Of all files, so that the same sources make the same bytes."""


def build_wheel(wheel_directory: str, config_settings: object = None, metadata_directory: object = None) -> str:
    info = f"{NAME}-{version()}.dist-info"
    files = {str(path.relative_to(SOURCES)): path.read_bytes() for path in client_files()}
    files[f"{info}/METADATA"] = metadata().encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: llmaas\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/licenses/LICENSE"] = (SOURCES / "LICENSE").read_bytes()
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    wheel = f"{NAME}-{version()}-py3-none-any.whl"
    with zipfile.ZipFile(Path(wheel_directory, wheel), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _STAMP)
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return wheel


def build_sdist(sdist_directory: str, config_settings: object = None) -> str:
    raise NotImplementedError("the sources of llmaas-client are those of llmaas: build the wheel from its checkout")


def version() -> str:
    found = re.search(r'^__version__ = "(.+)"', (SOURCES / "llmaas" / "version.py").read_text("utf-8"), re.MULTILINE)
    assert found, "llmaas/version.py has no version"
    return found[1]


def metadata() -> str:
    fields = [
        "Metadata-Version: 2.4",
        "Name: llmaas-client",
        f"Version: {version()}",
        "Summary: The Python client of llmaas, which serves one language model to every app on a device",
        "License-Expression: Apache-2.0",
        "License-File: LICENSE",
        "Project-URL: Paper, https://arxiv.org/abs/2403.11805",
        f"Requires-Python: {PYTHON}",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIRES),
        "Description-Content-Type: text/markdown",
    ]
    return "\n".join(fields) + "\n\n" + (HERE / "README.md").read_text("utf-8")


def client_files() -> list[Path]:
    """The files of the package that a client needs: those of ``llmaas.__all__``, and all that they import."""
    todo = ["llmaas", *public_homes()]
    found: dict[str, Path] = {}
    while todo:
        module = todo.pop()
        path = _path(module)
        if path is None or module in found:
            continue
        found[module] = path
        parents = module.split(".")[:-1]
        todo += [".".join(parents[: n + 1]) for n in range(len(parents))]
        todo += _imports(ast.parse(path.read_text("utf-8")))
    return [*sorted(found.values()), SOURCES / "llmaas" / "py.typed"]


def public_homes() -> list[str]:
    """The modules that ``llmaas/__init__.py`` takes its public names from when they are used."""
    tree = ast.parse((SOURCES / "llmaas" / "__init__.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_HOMES":
            return list(ast.literal_eval(node.value))
    raise AssertionError("llmaas/__init__.py has no _HOMES")


def _imports(tree: ast.AST) -> Iterator[str]:
    """Modules of llmaas that are imported, in functions too; names that are no modules do no harm."""
    children = list(ast.iter_child_nodes(tree))
    if isinstance(tree, ast.If) and isinstance(tree.test, ast.Name) and tree.test.id == "TYPE_CHECKING":
        children = list(tree.orelse)
    elif isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names if alias.name.startswith("llmaas."))
    elif isinstance(tree, ast.ImportFrom) and (tree.module or "").split(".")[0] == "llmaas":
        yield tree.module or ""
        yield from (f"{tree.module}.{alias.name}" for alias in tree.names)
    for child in children:
        yield from _imports(child)


def _path(module: str) -> Path | None:
    base = SOURCES.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
