"""How much RAM there is, also under the limits of containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmaas.cli.machine import Ram, disk_size, ram, this_machine
from llmaas.config.boards import BoardKind

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


def test_a_machine_is_described_for_the_choice_of_a_profile(root: Path) -> None:
    put(root / "proc/device-tree/model", "Raspberry Pi 5\0")
    put(root / "proc/self/cgroup", "0::/")
    put(root / "sys/fs/cgroup/memory.max", GIB)
    put(root / "sys/fs/cgroup/memory.current", 1)
    found = this_machine({}, root)
    assert (found.board.kind, found.ram) == (BoardKind.PI, GIB)
    assert this_machine({}, root / "nothing").ram is None


def test_a_disk_has_a_size_also_for_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    size = disk_size(tmp_path)
    assert size and size == disk_size(tmp_path / "not" / "yet")
    (tmp_path / "file").write_text("x")
    assert disk_size(tmp_path / "file" / "below") == size


def test_this_machine_says() -> None:
    found = ram()
    assert found is not None
    assert 0 < found.available <= found.total
