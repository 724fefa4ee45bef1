"""What the machine says of its memory, from files as kernels write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmaas.host.memory import MemoryGauge
from llmaas.policies.pool_budget import MemoryReading

MIB = 1 << 20


def put(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", "ascii")


def psi(root: Path, total_us: int) -> None:
    some = f"some avg10=0.00 avg60=1.25 avg300=0.51 total={total_us}"
    put(root / "proc/pressure/memory", f"{some}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=99")


def machine(root: Path) -> Path:
    """8 GiB of RAM, of which 6 GiB are available."""
    put(root / "proc/meminfo", f"MemTotal: {8192 * 1024} kB\nMemFree: 77 kB\nMemAvailable: {6144 * 1024} kB")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return machine(tmp_path)


def test_stalls_are_those_since_the_last_reading(root: Path) -> None:
    psi(root, 5_000_000)
    gauge = MemoryGauge(root)
    assert gauge.read(100.0) == MemoryReading(None, 8192 * MIB, 6144 * MIB, "machine")
    psi(root, 5_500_000)
    assert gauge.read(102.0).stalled == pytest.approx(0.25)
    assert gauge.read(104.0).stalled == 0.0


def test_a_version_2_group_is_as_tight_as_its_lowest_limit_at_any_level_and_cache_counts_as_free(root: Path) -> None:
    put(root / "proc/self/cgroup", "0::/user.slice/llmaas.service")
    group = root / "sys/fs/cgroup/user.slice/llmaas.service"
    put(group / "memory.max", "max")
    put(group / "memory.high", 400 * MIB)
    put(group / "memory.current", 390 * MIB)
    put(group / "memory.stat", f"anon {200 * MIB}\ninactive_file {60 * MIB}\nactive_file {130 * MIB}")
    put(group.parent / "memory.max", 1024 * MIB)
    put(group.parent / "memory.current", 500 * MIB)
    assert MemoryGauge(root).read(0.0) == MemoryReading(None, 400 * MIB, 70 * MIB, "cgroup")
    put(group.parent / "memory.current", 1000 * MIB)
    assert MemoryGauge(root).read(0.0) == MemoryReading(None, 1024 * MIB, 24 * MIB, "cgroup")


def test_a_version_1_group_is_read_too_and_no_limit_is_none(root: Path) -> None:
    put(root / "proc/self/cgroup", "4:memory:/box\n3:cpu:/\n0::/")
    group = root / "sys/fs/cgroup/memory/box"
    put(group / "memory.limit_in_bytes", 9223372036854771712)
    put(group / "memory.usage_in_bytes", 300 * MIB)
    assert MemoryGauge(root).read(0.0).whose == "machine"
    put(group / "memory.limit_in_bytes", 512 * MIB)
    put(group / "memory.stat", f"cache 5\ninactive_file 7\ntotal_inactive_file {10 * MIB}")
    assert MemoryGauge(root).read(0.0) == MemoryReading(None, 512 * MIB, 222 * MIB, "cgroup")


@pytest.mark.parametrize("text", ["", "some avg10=0.00\n", "nonsense"])
def test_a_machine_that_says_nothing_is_not_guessed_at(tmp_path: Path, text: str) -> None:
    put(tmp_path / "proc/pressure/memory", text)
    put(tmp_path / "proc/self/cgroup", "0::/x")
    gauge = MemoryGauge(tmp_path)
    gauge.read(0.0)
    assert gauge.read(1.0) == MemoryReading()
