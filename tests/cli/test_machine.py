"""How much RAM there is, also under the limits of containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmaas.cli.machine import Ram, ram

GIB = 1 << 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path / "proc/meminfo", f"MemTotal: {8 * GIB // 1024} kB\nMemAvailable: {6 * GIB // 1024} kB\n")
    return tmp_path


def put(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", "ascii")


def test_without_control_groups_it_is_the_machines(root: Path) -> None:
    assert ram(root) == Ram(8 * GIB, 6 * GIB)


def test_a_limit_of_a_group_above_holds_too(root: Path) -> None:
    put(root / "proc/self/cgroup", "0::/user/app")
    put(root / "sys/fs/cgroup/user/app/memory.max", "max")
    put(root / "sys/fs/cgroup/user/memory.max", 2 * GIB)
    put(root / "sys/fs/cgroup/user/memory.current", GIB // 2)
    assert ram(root) == Ram(2 * GIB, 3 * GIB // 2)


def test_a_version_1_group_holds_too(root: Path) -> None:
    put(root / "proc/self/cgroup", "5:cpu:/x\n4:memory:/box")
    put(root / "sys/fs/cgroup/memory/box/memory.limit_in_bytes", GIB)
    put(root / "sys/fs/cgroup/memory/box/memory.usage_in_bytes", 2 * GIB)
    assert ram(root) == Ram(GIB, 0)


def test_a_limit_above_the_machine_means_none(root: Path) -> None:
    put(root / "proc/self/cgroup", "4:memory:/")
    put(root / "sys/fs/cgroup/memory/memory.limit_in_bytes", 1 << 62)
    put(root / "sys/fs/cgroup/memory/memory.usage_in_bytes", GIB)
    assert ram(root) == Ram(8 * GIB, 6 * GIB)


@pytest.mark.parametrize("text", ["", "MemTotal: much\n", "nonsense\n"])
def test_a_machine_that_does_not_say_is_not_guessed_at(root: Path, text: str) -> None:
    put(root / "proc/meminfo", text)
    assert ram(root) is None


def test_this_machine_says() -> None:
    found = ram()
    assert found is not None
    assert 0 < found.available <= found.total
