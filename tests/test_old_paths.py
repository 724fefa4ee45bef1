"""Import paths of the release before work for one release more, and say what the new path is."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from llmaas.old_paths import MODULES, NAMES


@pytest.mark.parametrize("old", MODULES)
def test_an_old_module_has_the_names_of_the_new_one_and_warns(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"^{old} is now {MODULES[old][0]}") as caught:
        module = importlib.import_module(old)
    assert len(caught) == 1
    for home in MODULES[old]:
        for name, value in vars(importlib.import_module(home)).items():
            assert name.startswith("_") or hasattr(module, name)
            if isinstance(value, type) and value.__module__ == home and not name.startswith("_"):
                assert getattr(module, name) is value


@pytest.mark.parametrize(
    ("old", "home", "name"),
    [(old, home, name) for old, homes in NAMES.items() for home, names in homes.items() for name in names.split()],
)
def test_a_module_that_means_something_else_now_has_its_old_names_and_warns(old: str, home: str, name: str) -> None:
    module = importlib.import_module(old)
    with pytest.warns(DeprecationWarning, match=f"^{old}.{name} is now {home}.{name}"):
        found = getattr(module, name)
    assert found is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("line", ["from llmaas.planner_state import Job", "from llmaas.config import load"])
def test_the_warning_points_at_the_line_that_imports(tmp_path: Path, line: str) -> None:
    script = tmp_path / "app.py"
    script.write_text(f"import llmaas\n\n{line}\n")
    found = subprocess.run([sys.executable, "-W", "default", script], check=True, capture_output=True, text=True)
    assert f"{script}:3: DeprecationWarning" in found.stderr


def test_nothing_in_llmaas_uses_an_old_path() -> None:
    root = Path(__file__).parent.parent
    files = (root / "llmaas").rglob("*.py")
    modules = [".".join(path.relative_to(root).with_suffix("").parts) for path in sorted(files)]
    new = [name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
    code = f"import importlib\nfor name in {new}: importlib.import_module(name)"
    found = subprocess.run([sys.executable, "-W", "error::DeprecationWarning:llmaas", "-c", code], check=False)
    assert found.returncode == 0


def test_a_path_that_never_was_is_not_found() -> None:
    with warnings.catch_warnings(), pytest.raises(ModuleNotFoundError):
        importlib.import_module("llmaas.planner_stake")
