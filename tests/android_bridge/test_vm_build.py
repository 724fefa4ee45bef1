"""scripts/test-vm and android_bridge/vm/build say what is missing. What they do themselves takes minutes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("bash", "dirname", "basename", "cat", "sed", "grep", "uname", "mkdir", "env", "ldd", "readlink")


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH on which only what every system has is found."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in NEEDED:
        found = shutil.which(name)
        if found and name != "uname":
            (folder / name).symlink_to(found)
    (folder / "uname").write_text("#!/bin/sh\necho ${MACHINE:-x86_64}\n")
    (folder / "uname").chmod(0o755)
    return folder


def run(script: str, tools: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    checkout = tools.parent / "checkout"
    for name in ("scripts/test-vm", "android_bridge/vm/build"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        # What a package may have put into these folders is not looked for.
        text = (ROOT / name).read_text("utf-8").replace("$PATH:/usr/sbin:/sbin", "$PATH")
        (checkout / name).write_text(text.replace("/bin/busybox", "/nowhere/busybox"))
    command = ["bash", str(checkout / script), *words]
    return subprocess.run(
        command,
        env={"PATH": str(tools), "HOME": str(tools.parent)} | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_tests_of_a_guest_are_skipped_where_tools_are_missing_and_nothing_is_made(tools: Path) -> None:
    done = run("scripts/test-vm", tools)
    assert done.returncode == 0, done.stderr
    for package in ("qemu-system-x86", "mmdebstrap", "cpio", "kmod", "e2fsprogs", "busybox-static", "cryptsetup-bin"):
        assert package in done.stdout
    assert sorted(path.name for path in (tools.parent / "checkout").iterdir()) == ["android_bridge", "scripts"]
    assert "x86-64 only" in run("scripts/test-vm", tools, MACHINE="aarch64").stdout


def test_the_build_names_the_packages_that_are_missing(tools: Path) -> None:
    done = run("android_bridge/vm/build", tools, str(tools.parent / "guest"))
    assert done.returncode == 1 and not (tools.parent / "guest").exists()
    assert "hint: apt install mmdebstrap e2fsprogs cpio kmod" in done.stderr and "busybox-static" in done.stderr
    assert "cryptsetup-bin" not in done.stderr
    assert "cryptsetup-bin" in run("android_bridge/vm/build", tools, VERITY="1").stderr
    done = run("android_bridge/vm/build", tools, MACHINE="aarch64")
    assert done.returncode == 1 and "x86-64 only" in done.stderr
