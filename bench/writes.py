"""Bytes written to disk per byte of coded chunks: over a day of short turns, and over a conversation of 200 turns.

**The day.** Eight apps, 400 turns of 30 tokens in a random order, in virtual time (``lib/day.py``): the service, the
codec and the store are the product's own, the engine is the fake one with SmolLM2-135M's KV. The same day is lived
through three times: as the daemon writes (``sparing``), as first versions did (``eager``, which wrote the last chunk of
a context whenever it left CELLS), and with a disk quota of 2 MB. The kernel counts the bytes that go to files
(/proc/self/io, wchar): ``chunks`` to payload files, ``index`` to the index and its log. ``first`` are the bytes of full
chunks when they were first coded, ``kept`` those of chunks on disk at the end.

**The conversation** (not with ``--quick``). A real model answers short turns in eight chats, in a random order. CELLS
and POOL hold only some of the chats, so that chunks are coded, written, evicted, and read again. Three ways to count
what is written:

* ``written_bytes``: all that the store says it writes, payload and index (of the index an upper bound). Tokens and text
  count as index.
* ``given_to_disk_bytes``: what the kernel says this process gave to the disk.
* ``live_bytes``: what is on disk in the end.

They stand against the bytes of the chunks that were coded, with those that were coded again with fewer bits and
without. The service records its events in a file, which says how large each coded chunk was.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.clients import InProcessClient, serving
from bench.lib.day import Day, live
from bench.lib.engine import engine
from bench.lib.stats import sig
from bench.lib.texts import prose
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.store.cipher import MasterKey
from llmaas.kvchunks.store.store import Store
from llmaas.planner.events import Lowered, Saved, Stored
from llmaas.records import AppId
from llmaas.service.recorder import read
from llmaas.service.service import Service

APP = AppId("0/bench")
TURNS, CONTEXTS = 200, 8
QUOTA = 2 << 20
_ANSWER = 16


def io_written() -> int:
    """Bytes that this process has given to the disk so far (proc(5), /proc/pid/io, write_bytes)."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text("ascii").splitlines())
    return int(fields["write_bytes"])


def coded_bytes(recording: Path) -> tuple[int, int]:
    """Bytes of the chunks that were coded for the first time, and of those coded again, in a recorded run."""
    first = again = 0
    for event, _ in read(recording)[1]:
        if isinstance(event, Saved | Lowered):
            nbytes = sum(outcome.nbytes for outcome in event.outcomes if isinstance(outcome, Stored))
            first += nbytes if isinstance(event, Saved) else 0
            again += nbytes if isinstance(event, Lowered) else 0
    return first, again


async def converse(service: Service, store: Store, text: list[str], turns: int, rng: random.Random) -> None:
    """Turns of 10 to 49 words, each in a chat chosen at random."""
    client = InProcessClient(service, str(APP))
    chats = [
        (await service.create(APP, name=f"chat {i}", system="You are helpful and brief.")).id for i in range(CONTEXTS)
    ]
    for turn in range(turns):
        chat = rng.choice(chats)
        words, text = text[: rng.randrange(10, 50)], text[50:] or text
        await client.generate(chat, " ".join(words), _ANSWER).done()
        await service.wait_idle()
        if turn % 20 == 19:
            say(f"turn {turn + 1}: {store.stats().bytes_written / 1e6:.1f} MB written")


async def count(thread: EngineThread, store: Store, recording: Path, turns: int, seed: int) -> dict[str, Any]:
    """All bytes of one conversation."""
    async with serving(thread, store, record=recording, pool_bytes=24 << 20) as service:
        begun = io_written()
        await converse(service, store, prose(thread.engine, 60 * turns, seed).split(), turns, random.Random(seed))
        counts: Any = service.stats()["counts"]
    stats = store.stats()
    first, again = coded_bytes(recording)
    return {
        "turns": turns,
        "coded_bytes": first,
        "coded_again_bytes": again,
        "written_bytes": stats.bytes_written,
        "given_to_disk_bytes": io_written() - begun - recording.stat().st_size,
        "live_bytes": stats.live_bytes,
        "counts": counts,
    }


def conversation(options: Options) -> tuple[str, dict[str, Any]]:
    """The model's name, and the figures of the conversation with it."""
    with engine(options) as thread:
        with Store(options.folder / "store", master=MasterKey(bytes(32))) as store:
            figures = asyncio.run(count(thread, store, options.folder / "recording", TURNS, options.seed))
        model = thread.engine.info.name
    coded = figures["coded_bytes"] + figures["coded_again_bytes"]
    figures["written_over_coded"] = sig(figures["written_bytes"] / coded)
    figures["written_over_first_codings"] = sig(figures["written_bytes"] / figures["coded_bytes"])
    figures["written_over_live"] = sig(figures["written_bytes"] / figures["live_bytes"])
    return model, figures


def days(options: Options) -> dict[str, Day]:
    """The same day, lived through in three ways."""
    found = {}
    ways: dict[str, dict[str, Any]] = {"sparing": {}, "eager": {"wear": "eager"}, "quota": {"disk_bytes": QUOTA}}
    for name, choices in ways.items():
        folder = options.folder / name
        folder.mkdir()
        found[name] = live(folder, options.seed, **choices)
        say(f"{name}: {found[name].written / 1e6:.1f} MB written")
    return found


def day_bars(found: dict[str, Day]) -> list[Bar]:
    ours, before, quota = found["sparing"], found["eager"], found["quota"]
    return [
        Bar("a day: bytes written for each byte of new full chunks", ours.written / ours.first, 1.5, True),
        Bar("a day: times less written than by first versions", before.written / ours.written, 5.0),
        Bar("a day: p99 of switches, against first versions", ours.switch_ms_p99 / before.switch_ms_p99, 1.3, True),
        Bar("a day under a quota of 2 MB: chunks written over those kept", quota.chunks / quota.kept, 3.0, True),
    ]


def measure(options: Options) -> Result:
    found = days(options)
    bars = day_bars(found)
    figures: dict[str, Any] = {"day": {name: day.figures() for name, day in found.items()}}
    model = "none: the fake engine with the geometry of SmolLM2-135M"
    if not options.quick:
        model, figures["conversation"] = conversation(options)
        over = figures["conversation"]["written_over_coded"]
        bars.append(Bar("bytes written over bytes of coded chunks", over, 1.1, True))
    return Result(model, figures, bars)


if __name__ == "__main__":
    sys.exit(main("writes", __doc__ or "", measure))
