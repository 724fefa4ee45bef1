"""The import contracts refuse what they are there to refuse: wrong imports planted in a copy of the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINTER = Path(sys.executable).with_name("lint-imports")

PLANTED = {
    # Five imports that contracts over lists of modules once accepted.
    "edge, the planner": ("api", "import llmaas.planner.planner", "layers"),
    "pure, a clock": ("planner", "import time", "pure"),
    "engines, by the service": ("service", "import llmaas.engine.llama.lib", "engines"),
    "engines, by the pool": ("kvchunks/tiering", "import llmaas.engine.llama.lib", "engines"),
    "worlds": ("service", "import llmaas.replay.prices", "layers"),
    # One for each contract, as it may be hidden.
    "upward": ("policies", "import llmaas.planner.settings", "layers"),
    "upward, for types": (
        "config",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import llmaas.service.service",
        "layers",
    ),
    "upward, in a function": ("engine", "def later() -> None:\n    import llmaas.service.service", "layers"),
    "strangers": ("host", "import llmaas.planner.settings", "layers"),
    "an unlisted package": ("new_room", "", "layers"),
    "chunks, upward": ("kvchunks/codec", "import llmaas.kvchunks.ledger", "kvchunks"),
    "chunks, an unlisted room": ("kvchunks/new_room", "", "kvchunks"),
    "pure, the system": ("policies/eviction", "import os", "pure"),
    "store, formats": ("kvchunks/store", "import llmaas.kvchunks.codec.header", "store"),
    "edge, chunk keys": ("api", "import llmaas.kvchunks.keys", "edge"),
    "http, the engine": ("http", "import llmaas.engine.base", "http"),
    "the web, by the daemon": ("api", "import msgspec", "web"),
    "llama.cpp": ("engine", "import llama_cpp", "llama"),
    "Ray, by the nodes": ("nodes", "def later() -> None:\n    import ray", "ray"),
    "a cycle": ("replay", "def later() -> None:\n    import llmaas.replay.planted_too", "cycles"),
}
BESIDE = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import llmaas.{room}.planted\n"
"""A second module beside the planted one, which closes the cycle."""


def refused(tree: Path) -> str:
    """What the linter says of the tree; "" if it finds nothing wrong."""
    env = os.environ | {"PYTHONPATH": str(tree)}
    command = [str(LINTER), "--no-logo", "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    found = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=120)
    assert found.returncode in (0, 1), found.stderr
    return "" if found.returncode == 0 else found.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "llmaas", copy / "llmaas", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return copy


@pytest.fixture(scope="module")
def names() -> dict[str, str]:
    """The contracts' names by their ids."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return {contract["id"]: contract["name"] for contract in project["tool"]["importlinter"]["contracts"]}


def test_the_tree_as_it_is_keeps_all_contracts(tree: Path) -> None:
    assert refused(tree) == ""


def test_every_contract_has_a_planted_import(names: dict[str, str]) -> None:
    assert {contract for _, _, contract in PLANTED.values()} == names.keys()


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_import_is_refused(case: str, tree: Path, names: dict[str, str]) -> None:
    room, text, contract = PLANTED[case]
    folder = tree / "llmaas" / room
    made = not folder.exists()
    if made:
        folder.mkdir()
        (folder / "__init__.py").write_text("", "utf-8")
    planted, too = folder / "planted.py", folder / "planted_too.py"  # files that no list can know
    planted.write_text(text + "\n", "utf-8")
    too.write_text(BESIDE.format(room=room.replace("/", ".")) if contract == "cycles" else "", "utf-8")
    try:
        told = refused(tree)
    finally:
        planted.unlink()
        too.unlink()
        if made:
            shutil.rmtree(folder)
    assert f"{names[contract]} BROKEN" in " ".join(told.split()), told or "nothing was refused"
