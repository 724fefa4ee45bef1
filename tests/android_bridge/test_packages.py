"""What each client is as a package: one version, names that can be imported, pages whose programs are right."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from llmaas.version import __version__
from tests.support.drivers import BRIDGE, needs

VERSIONS = {
    "c/llmaas.h": r'LLMAAS_VERSION "([\d.]+)"',
    "c/CMakeLists.txt": r"project\(llmaas_client VERSION ([\d.]+)",
    "js/package.json": r'"version": "([\d.]+)"',
    "java/src/llmaas/client/FrameClient.java": r"llmaas-java/([\d.]+)",
    "android-app/app/build.gradle": r"versionName '([\d.]+)'",
}


@pytest.mark.parametrize("file", sorted(VERSIONS))
def test_all_have_the_version_of_llmaas(file: str) -> None:
    assert re.findall(VERSIONS[file], (BRIDGE / file).read_text("utf-8")) == [__version__]


def test_events_are_the_same_however_their_bytes_are_cut() -> None:
    done = subprocess.run([needs("node"), BRIDGE / "js" / "tests" / "events.mjs"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_javascript_package_is_imported_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "llmaas-client").symlink_to(BRIDGE / "js")
    program = """
import { Client, LlmaasError } from "llmaas-client";
import { defaultSocket, unixFetch } from "llmaas-client/node";
const client = new Client({ app: "notes", fetch: unixFetch(defaultSocket({ LLMAAS_SOCKET: "/nowhere/d.sock" })) });
const error = await client.hello().catch((error) => error);
const wrong = ["a b", "x".repeat(65)].map((app) => { try { new Client({ app }) } catch (error) { return error.code } });
console.log(error instanceof LlmaasError, error.code, defaultSocket({ LLMAAS_SOCKET: "/a.b/d" }), wrong.join());
"""
    (tmp_path / "p.mjs").write_text(program)
    done = subprocess.run([needs("node"), "p.mjs"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "true not_serving /a.b/d-http bad_request,bad_request\n", done.stderr
    files = json.loads((BRIDGE / "js" / "package.json").read_text())["files"]
    assert {path.name for path in (BRIDGE / "js").glob("*.*s")} <= set(files)


@pytest.mark.parametrize("mode", [0o777, 0o720])
def test_a_socket_in_a_folder_that_others_can_change_is_not_used(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    client = [BRIDGE / "sh" / "llmaas-client", "hello"]
    needs("curl")
    done = subprocess.run(client, env={"LLMAAS_HTTP": f"{folder}/x.sock", "PATH": "/usr/bin:/bin"}, capture_output=True)
    assert done.returncode == 1 and b"not_trusted" in done.stderr, done.stderr
    program = f"""
import {{ Client }} from {json.dumps(str(BRIDGE / "js" / "index.js"))};
import {{ unixFetch }} from {json.dumps(str(BRIDGE / "js" / "node.js"))};
await new Client({{ fetch: unixFetch("{folder}/x.sock") }}).hello().catch((error) => console.log(error.code));
"""
    (tmp_path / "p.mjs").write_text(program)
    ran = subprocess.run([needs("node"), tmp_path / "p.mjs"], capture_output=True, text=True)
    assert ran.stdout == "not_trusted\n", ran.stderr
