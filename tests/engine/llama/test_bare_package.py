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


def test_the_part_is_there_and_the_whole_is_never_run(package: str) -> None:
    with without_init(package):
        import heavy_package.part as part  # type: ignore[import-not-found]
    assert part.sibling.value == 7
    import heavy_package
    import heavy_package.sibling as sibling  # type: ignore[import-not-found]

    assert sibling is part.sibling
    assert not hasattr(heavy_package, "whole")


def test_a_part_that_fails_leaves_nothing(package: str) -> None:
    with pytest.raises(ModuleNotFoundError), without_init(package):
        import heavy_package.missing  # type: ignore[import-not-found]  # noqa: F401
    assert package not in sys.modules


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


def test_what_imports_the_package_later_leaves_the_log_to_the_engine(tmp_path: Path) -> None:
    """Its ``__init__`` would take llama.cpp's log for itself: no reason of a failure would be known any more."""
    code = """
from pathlib import Path
from llmaas.engine.llama.lib import load_model
from llmaas.errors import ModelUnreadable
import llama_cpp.llama_cpp
path = Path("broken.gguf")
path.write_bytes(b"GGUF" + bytes(60))
try:
    load_model(path)
except ModelUnreadable as error:
    assert "no reason" not in str(error), error
    print("known")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert "known" in run.stdout, run.stderr
