"""``llmaas cluster`` where there is no cluster: what is said then. With one: tests/nodes/cluster/test_on_ray.py."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.support.node_house import free_port


@pytest.fixture
def without_ray(tmp_path: Path) -> dict[str, str]:
    """An environment in which Ray is not installed."""
    (tmp_path / "path" / "ray").mkdir(parents=True)
    (tmp_path / "path" / "ray" / "__init__.py").write_text("raise ImportError('no module named ray')\n", "utf-8")
    return {"PYTHONPATH": f"{tmp_path / 'path'}:{Path(__file__).parents[2]}"}


@pytest.mark.parametrize(
    "line", ["status", "leave desk", "join desk", "join desk --head", "join desk --own h", "serve"]
)
def test_without_ray_it_is_said_what_to_install(line: str, llmaas: Run, without_ray: dict[str, str]) -> None:
    done = llmaas("cluster", *line.split(), **without_ray)
    assert (done.returncode, done.stdout) == (2, "")
    assert "a cluster needs Ray" in done.stderr and "pip install 'llmaas[cluster]'" in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("join desk --door 10.0.0.1:7412", "--let-in"),
        ("join desk --door 10.0.0.1:7412 --let-in shelf --elsewhere", "--elsewhere"),
        ("join desk --door nonsense --let-in shelf", "no address"),
        ("join desk/2", "no name of a node"),
        ("join desk --let-in shelf", "--door"),
        ("status --ray nonsense", "no address"),
        ("serve --ray 1:2:3", "no address"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_begun(line: str, said: str, llmaas: Run) -> None:
    done = llmaas("cluster", *line.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr, done.stderr


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: the extra cluster")
def test_where_no_cluster_answers_it_is_said_how_to_begin_one(llmaas: Run) -> None:
    done = llmaas("cluster", "status", "--ray", f"127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no Ray cluster answers" in done.stderr and "--head" in done.stderr


@pytest.mark.parametrize("action", ["join", "serve", "status", "leave"])
def test_every_action_has_help_with_examples_of_its_own(action: str, llmaas: Run) -> None:
    shown = llmaas("cluster", action, "--help").stdout
    examples = shown.partition("\nexamples:\n")[2].splitlines()
    assert examples and all(example.startswith(f"  llmaas cluster {action}") for example in examples)
