"""The Debian package: it is built, installed in a fresh root of this release, serves there, and leaves nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest

from tests.support.drivers import ROOT, needs

SERVE = """set -e
cd /
id llmaas >/dev/null
mkdir -p /run/llmaas && chown llmaas /run/llmaas
install -o llmaas -m 0600 /model.gguf /var/lib/llmaas/model.gguf
su llmaas -s /bin/sh -c 'llmaas serve --config /etc/llmaas/config.toml --threads 2 2>/tmp/log & echo $! >/tmp/pid'
for i in $(seq 100); do [ -S /run/llmaas/llmaas.sock ] && break; sleep 0.3; done
LLMAAS_SOCKET=/run/llmaas/llmaas.sock LLMAAS_DAEMON_UID=$(id -u llmaas) llmaas chat notes --once Hello --max-tokens 8 ||
    { cat /tmp/log; exit 1; }
kill "$(cat /tmp/pid)"
"""


def run(*command: str | Path, timeout: float = 900) -> str:
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    words = list(map(str, command))
    done = subprocess.run(words, capture_output=True, text=True, env=environ, cwd=ROOT, check=False, timeout=timeout)
    assert done.returncode == 0, f"{words}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def files(root: Path) -> set[str]:
    """All below the folders that a package may write to, but for what others leave there: copies that tools make of
    /etc/passwd and the like, and what Python has compiled of its own library."""
    found = set[str]()
    for top in ("etc", "opt", "usr", "var/lib"):
        for folder, _, names in os.walk(root / top):
            found |= {folder, *(f"{folder}/{name}" for name in names if not name.endswith("-"))}
    return {path for path in found if "/__pycache__" not in path}


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make and enter another root")
def test_the_package_serves_in_a_fresh_root_and_leaves_nothing(tmp_path: Path, gguf: Path) -> None:
    release = platform.freedesktop_os_release()
    if release.get("ID") != "debian":
        pytest.skip("this is no Debian")
    mmdebstrap, root = needs("mmdebstrap"), tmp_path / "root"
    run(ROOT / "scripts" / "build-deb", tmp_path)
    (package,) = tmp_path.glob("llmaas_*.deb")
    needed = "--include=python3,libgomp1,libstdc++6,adduser"
    run(mmdebstrap, "--variant=minbase", needed, release["VERSION_CODENAME"], root)
    before = files(root)
    (root / "llmaas.deb").write_bytes(package.read_bytes())
    (root / "model.gguf").write_bytes(gguf.read_bytes())
    run("chroot", root, "dpkg", "-i", "/llmaas.deb")
    run("chroot", root, "/bin/sh", "-c", SERVE)
    run("chroot", root, "dpkg", "--purge", "llmaas")
    assert files(root) - before == set()
