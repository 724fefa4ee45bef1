"""Many apps at once, with few cells and a small pool: each answer is that of its own tokens, and nothing leaks."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmaas.api.client import Client
from llmaas.records import LOSSLESS, Message, Precision
from tests.support.checked_app import App
from tests.support.daemon import Daemon, serving
from tests.support.loop import on_a_loop

APPS = 9
SECONDS = 2.0
ENOUGH, PATIENCE_S = 10, 120.0
"""Each app goes on until more than so many replies have come: a busy machine takes longer for them."""


def work(daemon: Daemon, app: App, until: float) -> None:
    def goes_on() -> bool:
        now = time.monotonic()
        return now < until or (app.acknowledged <= ENOUGH and now < until + PATIENCE_S)

    with Client(daemon.socket, app=app.name) as client:
        app.run(client, goes_on)
        for id, book in app.books.items():
            app.compare(client, id, book)
        app.say_everywhere(client)


def was_hard(daemon: Daemon, apps: list[App]) -> None:
    counts = daemon.service.stats()["counts"]
    assert isinstance(counts, dict)
    assert counts["tokens_from_pool"] and counts["tokens_from_disk"] and counts["chunks_evicted"]
    assert counts["chunks_damaged"] == counts["writes_failed"] == 0
    tokens = sum(len(book.tokens) for app in apps for book in app.books.values())
    assert tokens > 3 * daemon.thread.engine.n_cells, "the cells held nearly all of it: too easy"
    assert min(app.acknowledged for app in apps) > ENOUGH, [app.acknowledged for app in apps]


def held() -> tuple[int, int]:
    """File descriptors and threads of this process."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208


@pytest.mark.parametrize("precision", [Precision(4, 4), Precision(16, 16)])
def test_no_app_ever_sees_anothers_chunks(tmp_path: Path, precision: Precision) -> None:
    async def run(root: Path, seconds: float) -> None:
        pool_bytes = 400_000 if precision == LOSSLESS else 200_000  # about 12 and 20 chunks
        async with serving(root, end_rate=0.02, pool_bytes=pool_bytes, bits=precision) as daemon:
            before = asyncio.all_tasks()
            apps = [daemon.app(f"app-{i}", seed=100 * precision.k + i) for i in range(APPS)]
            until = time.monotonic() + seconds
            with ThreadPoolExecutor(APPS) as threads:
                done = [asyncio.wrap_future(threads.submit(work, daemon, app, until)) for app in apps]
                await asyncio.wait(done)  # all of them: the threads end only while this loop runs
            for future in done:
                future.result()
            await daemon.until_idle()
            assert asyncio.all_tasks() == before
            if seconds == SECONDS:
                was_hard(daemon, apps)

    asyncio.run(run(tmp_path / "warm", 0.1))  # what the interpreter opens once and keeps
    before = held()
    asyncio.run(run(tmp_path / "work", SECONDS))
    assert held() == before


@on_a_loop
async def test_a_waiting_call_does_not_cost_the_chunks_of_the_one_that_has_just_returned(tmp_path: Path) -> None:
    async with serving(tmp_path, pool_bytes=8 << 20) as daemon, daemon.connect("a") as client:
        for name in "ab":  # either takes more than half of the cells
            await client.create(name=name)
            await client.append(name, [Message("user", name * 540)])
        for _ in range(4):
            more = [Message("user", "hello again")]
            await asyncio.gather(*[client.generate(name, more, max_tokens=50).done() for name in "ab"])
        counts = daemon.service.stats()["counts"]
        assert isinstance(counts, dict)
        assert counts["switches"] == 10 and counts["contexts_left_cells"] >= 6
        assert counts["tokens_recomputed"] == 0, "there was room for all of them in the pool"
