"""Disks that are full or lose bytes: no acknowledged turn is lost, and the service goes on."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llmaas.errors import LlmaasError
from llmaas.kvchunks.store.store import Files, Store
from tests.support.daemon import HELLO, LONG, answer_to, ask, busy_daemon, company, counts, serving, told
from tests.support.loop import on_a_loop


class FullDisk(Files):
    """A disk without room for chunks while ``full``, nor for tokens' commits while ``full_for_tokens``."""

    def __init__(self) -> None:
        self.full = self.full_for_tokens = False

    def room(self, folder: Path) -> int:
        return 0 if self.full else super().room(folder)

    def connect(self, path: Path) -> sqlite3.Connection:
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                if disk.full_for_tokens and sql.startswith("COMMIT"):
                    raise sqlite3.OperationalError("database or disk is full")
                return super().execute(sql, *args)

        return sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False, factory=Connection)


@on_a_loop
async def test_chunks_that_find_no_room_are_kept_or_recomputed_and_written_later(tmp_path: Path) -> None:
    disk = FullDisk()

    store = partial(Store, files=disk)
    async with busy_daemon(tmp_path, store=store, pool_bytes=150_000) as daemon, daemon.connect("a") as client:
        disk.full = True
        for name in "abcd":
            await client.create(name=name)
        for turn in range(3):
            for name in "abcd":
                said = [f"{name}{i} {LONG}" for i in range(turn + 1)]
                assert await ask(client, name, said[-1]) == answer_to(*said)
        assert counts(daemon)["writes_failed"] > 0 and counts(daemon)["tokens_recomputed"] > 0
        disk.full = False
        written = counts(daemon)["chunks_written"]
        await ask(client, "a", "and now?")
        await daemon.until_idle()
        assert counts(daemon)["chunks_written"] > written


@on_a_loop
async def test_a_turn_that_finds_no_room_is_taken_back_and_works_later(tmp_path: Path) -> None:
    disk = FullDisk()

    # No company: its turns would find no room either. The others here are the contexts that only read.
    async with serving(tmp_path, store=partial(Store, files=disk)) as daemon, daemon.connect("a") as client:
        await client.create(name="c", system=None)
        await ask(client, "c", "one")
        await daemon.until_idle()  # its chunks are on disk: those that the failures replace must go from there
        before = await client.show("c")
        disk.full = disk.full_for_tokens = True
        refused: list[Callable[[], Any]] = [
            lambda: ask(client, "c", "two"),
            lambda: client.append("c", HELLO),
            lambda: client.create(name="d"),
            lambda: client.fork("c"),
            lambda: client.truncate("c", n_messages=1),
            lambda: client.delete("c"),
        ]
        for do in refused:
            with told("disk_full"):
                await do()
        after = await client.show("c")
        assert (after.messages, after.info.n_tokens) == (before.messages, before.info.n_tokens)
        assert [info.name for info in await client.contexts()] == ["c"]
        await daemon.until_idle()
        disk.full = disk.full_for_tokens = False
        assert await ask(client, "c", "two") == answer_to("one", "two")
        await client.create(name="d")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MB. The test is skipped where mounting is not allowed."""
    path = tmp_path / "small"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@on_a_loop
async def test_a_disk_that_is_really_full_costs_no_acknowledged_turn(small_disk: Path) -> None:
    store = partial(Store, reserve=200_000)
    async with serving(small_disk, store=store, pool_bytes=400_000) as daemon, daemon.connect("a") as client:
        said: dict[str, list[str]] = {"a": [], "b": []}
        for name in said:
            await client.create(name=name)
            said[name].append(f"{name} {LONG}")
            assert await ask(client, name, said[name][-1]) == answer_to(*said[name])
        await daemon.until_idle()
        ballast = small_disk / "ballast"
        fill(ballast)
        refused = 0
        for turn in range(200):
            name = "ab"[turn % 2]
            before = await client.show(name)
            try:
                answer = await ask(client, name, f"{turn}")
            except LlmaasError as e:
                assert e.code == "disk_full", e
                assert (await client.show(name)).messages == before.messages
                refused += 1
                if refused == 4:
                    break
            else:
                said[name].append(f"{turn}")
                assert answer == answer_to(*said[name])
            fill(ballast)
        assert refused == 4, "the disk was never full"
        await client.delete("b")  # as the hint says: it must be possible, or nothing could ever be freed
        ballast.unlink()
        said["a"].append("better?")
        assert await ask(client, "a", "better?") == answer_to(*said["a"])
        await daemon.until_idle()
        tiers = (await client.show("a")).info.tiers
        assert tiers[3] <= 1
    async with serving(small_disk, store=store) as daemon, daemon.connect("a") as client:
        said["a"].append("and after a restart?")
        assert await ask(client, "a", "and after a restart?") == answer_to(*said["a"])


@on_a_loop
async def test_payload_files_that_vanish_or_are_damaged_are_recomputed(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.connect("a") as client:
        await client.create(name="c")
        await ask(client, "c", LONG * 5)
    for path in sorted((tmp_path / "data" / "payload").iterdir()):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    reads = serving(tmp_path, split="load_first")  # on a busy machine computing may look better
    async with reads as daemon, company(daemon), daemon.connect("a") as client:
        assert await ask(client, "c", "still?") == answer_to(LONG * 5, "still?")
        assert counts(daemon)["chunks_damaged"] == 1
        await daemon.until_idle()


# -- what a restart finds


@on_a_loop
async def test_a_restart_shows_what_was_shown_before_wherever_a_context_was_cut(tmp_path: Path) -> None:
    async with serving(tmp_path, end_rate=0.0) as daemon, daemon.connect("a") as client:
        await client.create(name="origin", system="Be brief.")
        await ask(client, "origin", "one", 6)
        await client.generate("origin", max_tokens=5).done()  # the answer goes on
        await ask(client, "origin", "two", 3)
        n_tokens = (await client.show("origin")).info.n_tokens
        for n in range(n_tokens + 1):
            await client.fork("origin", name=f"cut-{n}")
            await client.truncate(f"cut-{n}", n_tokens=n)
        before = {info.name: await client.show(info.id) for info in await client.contexts()}
    async with serving(tmp_path, end_rate=0.0) as daemon, daemon.connect("a") as client:
        for name, was in before.items():
            now = await client.show(name)
            assert (name, now.messages) == (name, was.messages)
            assert (now.info.n_tokens, now.info.n_messages) == (was.info.n_tokens, was.info.n_messages)


@on_a_loop
async def test_an_empty_answer_is_a_message_before_and_after_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path, end_rate=1.0) as daemon, daemon.connect("a") as client:
        await client.create(name="c")
        assert await ask(client, "c") == ""
        await ask(client, "c", "again")
        info = await client.truncate("c", n_messages=2)
        assert info.n_messages == 2
        before = await client.show("c")
        assert [m.role for m in before.messages] == ["user", "assistant"]
    async with serving(tmp_path, end_rate=1.0) as daemon, daemon.connect("a") as client:
        assert (await client.show("c")).messages == before.messages
