"""The container: its definition is built by buildah on a fresh Debian, and what it starts answers to an app's token."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.drivers import ROOT, needs

BASE = "localhost/debian"
REACH = ("/etc/pip.conf", "/etc/apt/apt.conf.d", "/etc/ssl/certs/ca-certificates.crt")
"""How this machine reaches its package registries: the base image is given the same."""
SERVE = """set -e
PORT=$1
shift
"$@" --threads 1 --http "127.0.0.1:$PORT" 2>/tmp/log &
pid=$!
for i in $(seq 200); do [ -S /run/llmaas/llmaas-http.sock ] && break; sleep 0.3; done
export LLMAAS_SOCKET=/run/llmaas/llmaas.sock
[ -S "$LLMAAS_SOCKET" ] || { cat /tmp/log; exit 1; }
id -un
python3 -c "$ASK" "$PORT" none
python3 -c "$ASK" "$PORT" "$(llmaas app add notes)"
kill $pid
wait $pid
echo "ended with $?"
"""
ASK = """
import json, sys, urllib.error, urllib.request
body = json.dumps({"model": "llmaas", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}).encode()
headers = {"content-type": "application/json", "authorization": "Bearer " + sys.argv[2]}
request = urllib.request.Request(f"http://127.0.0.1:{sys.argv[1]}/v1/chat/completions", body, headers)
try:
    print("answered", len(json.load(urllib.request.urlopen(request, timeout=60))["choices"]))
except urllib.error.HTTPError as error:
    print("refused", error.code)
"""


def run(*command: str | Path, timeout: float = 1800) -> str:
    words = list(map(str, command))
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=timeout, cwd=ROOT)
    assert done.returncode == 0, f"{words[:4]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def buildah(tmp_path: Path) -> Callable[..., str]:
    """Runs buildah on storage of its own."""
    command = [
        needs("buildah"),
        "--root",
        tmp_path / "storage",
        "--runroot",
        tmp_path / "run",
        "--storage-driver",
        "vfs",
    ]
    return lambda *words: run(*command, *words)


def base_image(buildah: Callable[..., str], tmp_path: Path) -> None:
    """This Debian release, as small as debian:bookworm-slim is."""
    tree = tmp_path / "base"
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    run(needs("mmdebstrap"), "--variant=minbase", "--include=ca-certificates", release, tree)
    for path in filter(os.path.exists, REACH):
        if Path(path).is_dir():
            shutil.copytree(path, f"{tree}{path}", dirs_exist_ok=True)
        else:
            shutil.copy(path, f"{tree}{path}")
    container = buildah("from", "scratch").strip()
    buildah("add", "-q", container, tree, "/")
    buildah("commit", "-q", container, BASE)
    buildah("rm", container)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make and enter another root")
def test_the_container_is_built_and_serves_an_app_with_a_token(
    tmp_path: Path, gguf: Path, buildah: Callable[..., str]
) -> None:
    if platform.freedesktop_os_release().get("ID") != "debian":
        pytest.skip("this is no Debian")
    base_image(buildah, tmp_path)
    buildah(
        *("bud", "-q", "--isolation", "chroot", "--network", "host", "--build-arg", f"BASE={BASE}"),
        *("-f", ROOT / "android_bridge" / "oci" / "Containerfile", "-t", "llmaas", ROOT),
    )
    config = json.loads(buildah("inspect", "--type", "image", "llmaas"))["OCIv1"]["config"]
    assert config["User"] == "llmaas" and "11434/tcp" in config["ExposedPorts"]
    assert set(config["Volumes"]) == {"/var/lib/llmaas"}
    container = buildah("from", "llmaas").strip()
    command = [*config["Entrypoint"], *config["Cmd"]]
    model = f"{gguf}:/var/lib/llmaas/model.gguf:ro"
    options = ("--isolation", "chroot", "--network", "host", "-v", model, "-e", f"ASK={ASK}")
    said = buildah("run", *options, container, "--", "sh", "-c", SERVE, "sh", str(free_port()), *command)
    assert said == "llmaas\nrefused 401\nanswered 1\nended with 0\n"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
