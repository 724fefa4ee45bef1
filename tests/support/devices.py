"""Machines in trouble, made of this one: control groups, small and read-only disks, a hidden /proc.

Each skips the test, and says why, where this machine does not allow it (it takes root, mounts and control groups).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

CGROUPS = Path("/sys/fs/cgroup")


def checked(*command: str | Path) -> str:
    """Run what this machine may not allow; skip the test if it does not."""
    words = list(map(str, command))
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    except OSError as error:
        pytest.skip(f"cannot run {words[0]}: {error}")
    if done.returncode:
        pytest.skip(f"'{' '.join(words)}' is not possible here: {done.stderr.strip()}")
    return done.stdout


# -- control groups


@dataclass(frozen=True)
class Group:
    """A control group of this test: of version 2, or of one controller of version 1."""

    path: Path
    v2: bool

    def set(self, v2: str, v1: str, value: object) -> None:
        """Write a setting under its name in the version at hand."""
        try:
            (self.path / (v2 if self.v2 else v1)).write_text(f"{value}\n")
        except OSError as error:
            pytest.skip(f"{self.path}: cannot set {v2 if self.v2 else v1}: {error.strerror}")

    def limit_memory(self, nbytes: int) -> None:
        """RAM and swap together."""
        self.set("memory.max", "memory.limit_in_bytes", nbytes)
        swap = self.path / ("memory.swap.max" if self.v2 else "memory.memsw.limit_in_bytes")
        if swap.exists():
            swap.write_text(f"{0 if self.v2 else nbytes}\n")

    def memory_used(self) -> int:
        return int((self.path / ("memory.current" if self.v2 else "memory.usage_in_bytes")).read_text())

    @property
    def enter(self) -> tuple[str, ...]:
        """What comes before a command that is to run in the group, under the same process id."""
        return ("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(self.path))


@contextmanager
def control_group(controller: str) -> Iterator[Group]:
    """A group with the controller "memory" or "cpu"."""
    group = _group(controller)
    try:
        group.path.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a control group: {error.strerror}")
    try:
        if not (group.path / ("memory.max" if group.v2 else "cgroup.procs")).exists() and controller == "memory":
            pytest.skip("the control group has no memory controller")
        yield group
    finally:
        _remove(group.path)


def _group(controller: str) -> Group:
    name = f"llmaas-test-{os.getpid()}-{time.monotonic_ns()}"
    if (CGROUPS / "cgroup.controllers").exists():
        if controller not in (CGROUPS / "cgroup.subtree_control").read_text().split():
            try:
                (CGROUPS / "cgroup.subtree_control").write_text(f"+{controller}\n")
            except OSError as error:
                pytest.skip(f"the controller {controller} cannot be given to a group: {error.strerror}")
        return Group(CGROUPS / name, True)
    if not (CGROUPS / controller / "cgroup.procs").exists():
        pytest.skip(f"this machine has no control groups for {controller}")
    return Group(CGROUPS / controller / name, False)


def _remove(path: Path) -> None:
    late = time.monotonic() + 20
    while True:
        for pid in (path / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        try:
            path.rmdir()
            return
        except OSError:
            assert time.monotonic() < late, f"cannot remove {path}"
            time.sleep(0.1)


# -- disks


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A tmpfs of so many bytes, such as "100m"."""
    place.mkdir()
    checked("mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", place)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@dataclass(frozen=True)
class Card:
    """A file system in a file, as on an SD card, mounted."""

    image: Path
    place: Path

    def fail(self) -> None:
        """Read-only from now on, with files open for writing: what ext4 does after an error of the card."""
        checked("mount", "-o", "remount,abort", self.place)

    def change(self) -> None:
        """Unmounted, checked and mounted again, as after a restart."""
        subprocess.run(["umount", str(self.place)], check=True)
        subprocess.run(["fsck.ext4", "-f", "-y", str(self.image)], capture_output=True, check=False)
        checked("mount", "-o", "loop", self.image, self.place)


@contextmanager
def card(folder: Path, mib: int) -> Iterator[Card]:
    image, place = folder / "card.img", folder / "card"
    with image.open("wb") as file:
        file.truncate(mib << 20)
    checked("mkfs.ext4", "-q", "-F", image)
    place.mkdir()
    checked("mount", "-o", "loop", image, place)
    try:
        yield Card(image, place)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder as it is, on a file system that cannot be written to."""
    checked("mount", "--bind", folder, folder)
    try:
        checked("mount", "-o", "remount,bind,ro", folder)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def without_proc() -> tuple[str, ...]:
    """What comes before a command that is to run with an empty /proc, under the same process id."""
    script = 'mount --make-rprivate / && mount -t tmpfs tmpfs /proc && exec "$@"'
    before = ("unshare", "--mount", "sh", "-c", script, "sh")
    checked(*before, "true")
    return before


def in_turn(*prefixes: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for prefix in prefixes for word in prefix)
