"""How many CPUs there are for the engine, from files as kernels write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmaas.config.cpus import cpu_quota, default_threads

V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu"


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", "ascii")


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/a/b", f"{V2}/a/b/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b", f"{V2}/a/b/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/a/b", f"{V2}/a/b/cpu.max": "max 100000", f"{V2}/a/cpu.max": "400000 100000"}, 4.0),
        ({"proc/self/cgroup": "0::/a/b", f"{V2}/a/b/cpu.max": "300000 100000", f"{V2}/a/cpu.max": "50000 100000"}, 0.5),
        ({"proc/self/cgroup": "0::/", f"{V2}/cpu.max": "200000 100000"}, 2.0),
        ({"proc/self/cgroup": "0::/../../on/the/host", f"{V2}/cpu.max": "200000 100000"}, 2.0),
        ({"proc/self/cgroup": "3:cpu,cpuacct:/x", f"{V1}/x/cpu.cfs_quota_us": "250000"}, None),
        (
            {
                "proc/self/cgroup": "4:memory:/y\n3:cpu,cpuacct:/x\n0::/",
                f"{V1}/x/cpu.cfs_quota_us": "250000",
                f"{V1}/x/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/x",
                f"{V1}/x/cpu.cfs_quota_us": "-1",
                f"{V1}/x/cpu.cfs_period_us": "100000",
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/a", f"{V2}/a/cpu.max": "what is this"}, None),
        ({"proc/self/cgroup": "0::/a", f"{V2}/a/cpu.max": "100000 0"}, None),
        ({"proc/self/cgroup": "nonsense"}, None),
        ({}, None),
    ],
)
def test_the_quota_is_that_of_the_tightest_group(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    for name, text in files.items():
        put(tmp_path / name, text)
    assert cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(("quota", "threads"), [("350000", 3), ("150000", 1), ("20000", 1), ("9900000", 8), ("max", 8)])
def test_threads_are_no_more_than_cpus_and_quota(tmp_path: Path, quota: str, threads: int) -> None:
    put(tmp_path / "proc/self/cgroup", "0::/box")
    put(tmp_path / V2 / "box/cpu.max", f"{quota} 100000")
    assert default_threads(8, tmp_path) == threads


def test_threads_follow_the_affinity_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmaas.config.cpus.allowed_cpus", lambda: (1, 4, 5))
    assert default_threads(root=tmp_path) == 3
