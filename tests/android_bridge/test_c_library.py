"""The C library as a program finds it: by CMake, by pkg-config, from C++, and its example."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon import SOON, serving
from tests.support.drivers import BRIDGE, WARNINGS, build, needs
from tests.support.http_edge import SlowEngine
from tests.support.loop import on_a_loop

SOURCE = BRIDGE / "c"


def test_it_is_installed_and_found(tmp_path: Path) -> None:
    cmake, prefix = needs("cmake"), tmp_path / "installed"
    build(cmake, "-S", SOURCE, "-B", tmp_path / "b", f"-DCMAKE_INSTALL_PREFIX={prefix}", "-DCMAKE_INSTALL_LIBDIR=lib")
    build(cmake, "--build", tmp_path / "b")
    build(cmake, "--install", tmp_path / "b")
    assert (prefix / "include" / "llmaas.h").is_file() and (prefix / "lib" / "libllmaas_client.a").is_file()
    assert (tmp_path / "b" / "c-chat").is_file()
    found = {**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")}
    flags = subprocess.run(
        [needs("pkg-config"), "--cflags", "--libs", "llmaas-client"],
        env=found,
        capture_output=True,
        text=True,
        check=True,
    )
    example = SOURCE / "examples" / "c-chat.c"
    build(needs("cc"), example, "-o", tmp_path / "c-chat", *flags.stdout.split())


def test_the_program_of_its_page_compiles_and_the_header_is_cpp_too(tmp_path: Path) -> None:
    blocks = re.findall(r"^```c\n(.*?)^```", (SOURCE / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "page.c").write_text(blocks[0])
    build(needs("cc"), *WARNINGS, f"-I{SOURCE}", tmp_path / "page.c", SOURCE / "llmaas.c", "-o", tmp_path / "page")
    (tmp_path / "page.cpp").write_text('#include "llmaas.h"\nint main() { llmaas_close(nullptr); }\n')
    build(needs("c++"), "-Wall", "-Werror", f"-I{SOURCE}", "-c", tmp_path / "page.cpp", "-o", tmp_path / "page.o")


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    program = tmp_path / "c-chat"
    build(needs("cc"), *WARNINGS, f"-I{SOURCE}", SOURCE / "examples" / "c-chat.c", SOURCE / "llmaas.c", "-o", program)
    return program


@on_a_loop
async def test_the_example_chats_and_finds_its_conversation_again(chat: Path, tmp_path: Path) -> None:
    async with serving(tmp_path / "d", n_cells=2048) as daemon:
        for question in ("hello", "and now?"):
            pipe = asyncio.subprocess.PIPE
            environ = {"LLMAAS_SOCKET": str(daemon.socket)}
            process = await asyncio.create_subprocess_exec(
                chat, "diary", stdin=pipe, stdout=pipe, stderr=pipe, env=environ
            )
            out, err = await asyncio.wait_for(process.communicate(f"{question}\n\n".encode()), SOON)
            assert process.returncode == 0 and err.decode() == f"fake, app {os.getuid()}/c-chat\n"
            assert len(out.decode().strip()) > 100
        async with daemon.connect("c-chat") as client:
            assert (await client.show("diary")).info.n_messages == 5


@on_a_loop
async def test_ctrl_c_ends_an_answer_and_not_the_chat(chat: Path, tmp_path: Path) -> None:
    async with serving(tmp_path / "d", engine=SlowEngine) as daemon:
        pipe, environ = asyncio.subprocess.PIPE, {"LLMAAS_SOCKET": str(daemon.socket)}
        process = await asyncio.create_subprocess_exec(chat, stdin=pipe, stdout=pipe, env=environ, stderr=pipe)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"a long story\n")
        said = await asyncio.wait_for(process.stdout.read(1), SOON)
        process.send_signal(signal.SIGINT)
        said += await asyncio.wait_for(process.stdout.readline(), SOON)
        assert said.endswith(b" [cancelled]\n") and len(said) < 200
        process.stdin.write(b"go on\n")
        assert await asyncio.wait_for(process.stdout.read(1), SOON)
        process.send_signal(signal.SIGINT)
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), SOON) == 0
        assert process.stderr is not None and b"error" not in await process.stderr.read()


def test_a_path_that_does_not_fit_is_refused(chat: Path) -> None:
    ran = subprocess.run([chat], env={"LLMAAS_SOCKET": "/" + "x" * 200}, capture_output=True, text=True, timeout=20)
    assert ran.returncode == 1 and "bad_request: the socket's path has 201 bytes; 107 fit" in ran.stderr
