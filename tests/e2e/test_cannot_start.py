"""``llmaas serve`` where it cannot start: it exits with 1 and one clear message, and changes nothing."""

from __future__ import annotations

import asyncio
import os
import socket as sockets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmaas.cli.runtime import open_store
from llmaas.config.sources import load
from llmaas.kvchunks.store.store import Store
from tests.support.daemon import LONG, ask, busy_daemon, serving, told
from tests.support.loop import on_a_loop

SERVE = [sys.executable, "-m", "llmaas", "serve"]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user may enter, with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="llmaas-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def refused(place: Path, *flags: str) -> str:
    """Run ``llmaas serve``, which must fail at once: exit code 1, no traceback. Returns its one message with a hint."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("LLMAAS_", "XDG_"))}
    given = {"--socket": place / "s", "--data-dir": place / "data"}
    for name, value in zip(flags[::2], flags[1::2], strict=True):
        given[name] = Path(value)
    command = [
        *SERVE,
        *[str(word) for flag in given.items() for word in flag],
        "--log-level",
        "error",
        "--cells",
        "512",
    ]
    done = subprocess.run(command, env=environ | {"HOME": str(place)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    lines = done.stderr.splitlines()
    assert 1 < len(lines) <= 3 and lines[0].startswith("llmaas: "), f"one message and a hint, not:\n{done.stderr}"
    return done.stderr


def bad_models(place: Path, model: Path) -> dict[str, Path]:
    paths = {kind: place / f"{kind}.gguf" for kind in ("absent", "folder", "text", "empty", "magic", "cut", "loop")}
    paths["folder"].mkdir()
    paths["text"].write_text("this is no model")
    paths["empty"].touch()
    paths["magic"].write_bytes(b"GGUF" + bytes(1000))
    with model.open("rb") as file:
        paths["cut"].write_bytes(file.read(5_000_000))
    paths["loop"].symlink_to(paths["loop"])
    return paths


@pytest.mark.parametrize("kind", ["absent", "folder", "text", "empty", "magic", "cut", "loop"])
def test_a_model_file_that_is_none_ends_serve_with_one_clear_message(place: Path, model_path: Path, kind: str) -> None:
    path = bad_models(place, model_path)[kind]
    message = refused(place, "--model", str(path))
    assert str(path) in message
    assert "--model" in message


def test_a_model_file_that_may_not_be_read_ends_serve_with_one_clear_message(place: Path, model_path: Path) -> None:
    path = place / "secret.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0o000)
    try:
        with path.open("rb"):
            pytest.skip("this user may read every file")
    except PermissionError:
        assert "Permission denied" in refused(place, "--model", str(path))


@on_a_loop
async def test_a_socket_in_use_is_left_to_its_daemon(place: Path, model_path: Path) -> None:
    async with busy_daemon(place) as daemon:
        elsewhere = place / "elsewhere"
        message = await asyncio.to_thread(refused, place, "--socket", str(daemon.socket), "--data-dir", str(elsewhere))
        assert str(daemon.socket) in message and "--socket" in message
        async with daemon.connect("a") as client:
            await client.ping()


@on_a_loop
async def test_a_socket_that_a_dead_daemon_left_is_replaced(place: Path) -> None:
    with sockets.socket(sockets.AF_UNIX) as left:
        left.bind(str(place / "d.sock"))
    async with busy_daemon(place) as daemon, daemon.connect("a") as client:
        await client.ping()
    assert not (place / "d.sock").exists()


@on_a_loop
async def test_a_file_in_the_sockets_place_is_not_touched(place: Path) -> None:
    (place / "d.sock").write_text("precious")
    with told("bad_config", "not a socket"):
        async with serving(place):
            pass
    assert (place / "d.sock").read_text() == "precious"


@on_a_loop
async def test_a_store_that_another_daemon_has_open_is_refused(place: Path, model_path: Path) -> None:
    async with busy_daemon(place) as daemon:
        message = await asyncio.to_thread(refused, place)
        assert str(place / "data") in message and str(os.getpid()) in message
        async with daemon.connect("a") as client:
            await client.ping()


async def filled_index(place: Path) -> Path:
    async with serving(place) as daemon, daemon.connect("a") as client:
        for name in "abcdefgh":
            await client.create(name=name)
            await ask(client, name, LONG * 4, 64)
    return place / "data" / "index.sqlite"


@pytest.mark.parametrize("damage", ["page", "no database"])
@on_a_loop
async def test_a_corrupt_index_ends_serve_with_what_to_do_and_nothing_is_touched(
    place: Path, model_path: Path, damage: str
) -> None:
    index = await filled_index(place)
    data = bytearray(index.read_bytes())
    if damage == "page":
        for at in range(4096, len(data)):
            data[at] ^= 0x5A
    else:
        data[:] = b"not a database at all" * 500
    index.write_bytes(data)
    message = refused(place)
    assert str(index) in message and "doctor --repair" in message
    assert index.read_bytes() == bytes(data)
    assert not list(index.parent.glob("index.sqlite.*"))


@on_a_loop
async def test_an_index_of_which_everything_can_be_read_is_repaired_at_the_start(
    place: Path, model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def opened(root: Path) -> Store:
        return open_store(load({"data_dir": str(root), "encrypt": "false"}, {"HOME": str(place)}).config, {})

    index = await filled_index(place)
    async with serving(place) as daemon, daemon.connect("a") as client:
        before = {name: await client.show(name) for name in "abcdefgh"}
    data = bytearray(index.read_bytes())
    data[:64] = bytes(64)
    index.write_bytes(data)
    async with serving(place, store=opened) as daemon, daemon.connect("a") as client:
        after = {name: await client.show(name) for name in "abcdefgh"}
    assert {name: shown.messages for name, shown in after.items()} == {
        name: shown.messages for name, shown in before.items()
    }
    assert (place / "data" / "index.sqlite.corrupt-1").read_bytes()[64:] == bytes(data[64:])
    assert "8 of them whole" in caplog.text


@on_a_loop
async def test_conversations_without_their_key_end_serve_and_no_key_is_made(place: Path, model_path: Path) -> None:
    def opened(root: Path) -> Store:
        return open_store(load({"data_dir": str(root)}, {"HOME": str(place)}).config, {})

    async with serving(place, store=opened) as daemon, daemon.connect("a") as client:
        await client.create(name="x")
        await ask(client, "x", LONG, 16)
        before = (await client.show("x")).messages
    key, index = place / "data.key", place / "data" / "index.sqlite"
    kept, elsewhere = index.read_bytes(), key.rename(place / "elsewhere")
    for text in (None, "", "1" * 64):
        if text is not None:
            key.write_text(text)
            key.chmod(0o600)
        message = refused(place)
        assert "encrypted" in message and "Put the key back" in message
        assert (key.read_text() if key.exists() else None) == text and index.read_bytes() == kept
    elsewhere.rename(key)
    async with serving(place, store=opened) as daemon, daemon.connect("a") as client:
        assert (await client.show("x")).messages == before
