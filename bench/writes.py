"""Bytes written to disk per byte of coded chunks, over a conversation of 200 turns.

A real model, several contexts in turns, short turns as in a chat; cells hold some of the contexts, so that chunks are
coded, written, evicted, and read again. Counted are all bytes that the store writes, payload and index (the index as
an upper bound: twice what its log grows by), and what the kernel says this process gave to the disk; against the bytes
of the chunks that were coded (those coded again with fewer bits included, and without), and against those that are on
disk in the end. Tokens and text count as index.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.engine import engine
from bench.lib.stats import sig
from bench.lib.texts import prose
from llmaas.calls import CallSpec, Generation, Turn
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.store.cipher import MasterKey
from llmaas.kvchunks.store.store import Store
from llmaas.kvchunks.tiering.pool import Pool
from llmaas.planner.settings import PlannerChoices
from llmaas.records import AppId
from llmaas.service.service import Service
from llmaas.service.settings import ServiceSettings

APP = AppId("0/bench")
TURNS, CONTEXTS = 200, 8


def io_written() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text("ascii").splitlines())
    return int(fields["write_bytes"])


async def converse(thread: EngineThread, store: Store, turns: int, seed: int) -> dict[str, Any]:
    coded = again = 0
    save, lower = Pool.save, Pool.lower

    def counting(self: Pool, action: Any, done: Any) -> None:
        def counted(event: Any) -> None:
            nonlocal coded
            coded += sum(event.nbytes)
            done(event)

        save(self, action, counted)

    def counting_again(self: Pool, action: Any, done: Any) -> None:
        def counted(event: Any) -> None:
            nonlocal again
            again += sum(event.nbytes)
            done(event)

        lower(self, action, counted)

    Pool.save, Pool.lower = counting, counting_again  # type: ignore[method-assign]
    service = Service(thread, store, ServiceSettings(planner=PlannerChoices(pool_bytes=24 << 20)))
    await service.start()
    begun = io_written()
    rng = random.Random(seed)
    text = prose(thread.engine, 60 * turns, seed).split()
    names = [
        (await service.create(APP, name=f"chat {i}", system="You are helpful and brief.")).id for i in range(CONTEXTS)
    ]
    for turn in range(turns):
        name = rng.choice(names)
        words, text = text[: rng.randrange(10, 50)], text[50:] or text
        _, reply = service.submit(
            APP, name, CallSpec(Turn(prompt=" ".join(words)), Generation(max_tokens=16)), lambda piece: None
        )
        await reply
        await service.wait_idle()
        if turn % 20 == 19:
            say(f"turn {turn + 1}: {coded / 1e6:.1f} MB coded, {store.stats().bytes_written / 1e6:.1f} MB written")
    counts: Any = service.stats()["counts"]
    await service.stop()
    Pool.save, Pool.lower = save, lower  # type: ignore[method-assign]
    stats = store.stats()
    return {
        "turns": turns,
        "coded_bytes": coded,
        "coded_again_bytes": again,
        "written_bytes": stats.bytes_written,
        "given_to_disk_bytes": io_written() - begun,
        "live_bytes": stats.live_bytes,
        "counts": counts,
    }


def measure(options: Options) -> Result:
    turns = TURNS if not options.quick else 60
    with engine(options) as thread:
        with Store(options.folder / "store", master=MasterKey(bytes(32))) as store:
            figures = asyncio.run(converse(thread, store, turns, options.seed))
        model = thread.engine.info.name
    coded = figures["coded_bytes"] + figures["coded_again_bytes"]
    figures["written_over_coded"] = sig(figures["written_bytes"] / coded)
    figures["written_over_first_codings"] = sig(figures["written_bytes"] / figures["coded_bytes"])
    figures["written_over_live"] = sig(figures["written_bytes"] / figures["live_bytes"])
    return Result(
        model, figures, [Bar("bytes written over bytes of coded chunks", figures["written_over_coded"], 1.1, True)]
    )


if __name__ == "__main__":
    sys.exit(main("writes", __doc__ or "", measure))
