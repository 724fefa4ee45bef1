"""A module of a package is imported without the package's ``__init__``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmaas.engine.llama.bare_package import without_init


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "heavy_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("whole = True\n")
    (folder / "part.py").write_text("from . import sibling\n")
    (folder / "sibling.py").write_text("value = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("heavy_package", "heavy_package.part", "heavy_package.sibling"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "heavy_package"


def test_the_part_is_there_and_the_whole_can_still_be_imported(package: str) -> None:
    with without_init(package):
        import heavy_package.part as part  # type: ignore[import-not-found]
    assert part.sibling.value == 7
    assert package not in sys.modules
    import heavy_package

    assert heavy_package.whole
    assert sys.modules["heavy_package.part"] is part


def test_a_package_imported_before_stays(package: str) -> None:
    import heavy_package

    with without_init(package):
        import heavy_package.part
    assert sys.modules[package] is heavy_package


def test_one_that_cannot_be_found_is_missed_as_ever() -> None:
    with pytest.raises(ModuleNotFoundError), without_init("no_such_package"):
        import no_such_package.part  # type: ignore[import-not-found]  # noqa: F401


def test_the_engine_imports_no_more_of_llama_cpp_than_its_functions() -> None:
    code = "import sys, llmaas.engine.llama.lib; print([m for m in sys.modules if m.startswith('llama_cpp')])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "llama_cpp.llama_cpp" in run.stdout
    assert "llama_cpp.llama'" not in run.stdout and "chat_format" not in run.stdout
