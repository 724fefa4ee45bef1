"""How soon a daemon serves that has 10,000 stored contexts, and how much memory they take until they are used.

The store holds 10,000 conversations of 2,000 tokens each: real text with real tokens, in rows with checksums. The
chunks of one conversation are on disk, too. A real daemon starts on a copy of an empty store, and on this one, in turn.
Measured are, from the start of its process on:

* ``ping_s``: until the socket answers a request;
* ``show_s``: until it has answered with the messages of a stored conversation, too;
* ``token_s``: until the first token of an answer in the conversation whose chunks are on disk;
* ``anonymous``: its memory at ``show_s``, without the pages of files; ``settled``: the most of that and what it is
  when the daemon has looked at all contexts.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from typing import Any

from bench.lib import stored
from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.clients import serving
from bench.lib.daemon import starting
from bench.lib.engine import engine
from bench.lib.probes import memory
from bench.lib.stats import sig, summary
from bench.lib.texts import Texts
from llmaas.api.client import Client
from llmaas.calls import CallSpec, Turn
from llmaas.engine.thread import EngineThread
from llmaas.errors import LlmaasError
from llmaas.kvchunks.store import master_key
from llmaas.kvchunks.store.rows import ContextRow, Span
from llmaas.kvchunks.store.store import Store
from llmaas.records import AppId, Message
from llmaas.service.service import Service

CONTEXTS, TOKENS, MESSAGES = 10_000, 2_000, 16
MOST_SECONDS, MOST_MB = 3.0, 20.0
"""Until a daemon with 10,000 contexts answers; memory of 1,000 contexts that are not used."""
_APP = "bench"
_FIRST = "first"
_PATIENCE_S = 120.0
_SETTLE_S, _LOOK_S = 1.0, 0.002
"""Seconds until an empty daemon's memory is what it stays, and in which one surely looks at a stored context in the
background."""
_TEXT_BYTES = 1 << 30
"""Of text and tokens, that an app may keep here."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a daemon; seconds since its process began, and bytes."""

    ping_s: float
    show_s: float
    token_s: float
    anonymous: int
    settled: int


def converse(engine_thread: EngineThread, seed: int) -> list[Message]:
    """A conversation of about ``TOKENS`` tokens."""
    texts = Texts(engine_thread.engine, 2 * TOKENS, seed)
    overhead = 8  # tokens around a message
    each = TOKENS // MESSAGES - overhead
    return [Message(("user", "assistant")[i % 2], texts.take(each)) for i in range(MESSAGES)]


async def _store_first(thread: EngineThread, store: Store, seed: int) -> None:
    async with serving(thread, store) as service:
        app = AppId(f"{os.getuid()}/{_APP}")
        await service.create(app, name=_FIRST, system="You are a helpful assistant.")
        await _append(service, app, Turn(tuple(converse(thread, seed))))


async def _append(service: Service, app: AppId, turn: Turn) -> None:
    _, done = service.submit(app, _FIRST, CallSpec(turn), lambda piece: None)
    await done
    await service.wait_idle()


def make(options: Options, folder: Path) -> tuple[ContextRow, Sequence[Span]]:
    """Make a store with one conversation, and its chunks; the row and the spans of that conversation."""
    found = master_key.find(folder, master_key.FILE, {}, make=True)
    assert found is not None
    with Store(folder, master=found.key) as store:
        with engine(options) as thread:
            asyncio.run(_store_first(thread, store, options.seed))
        row = store.contexts()[0]
        return row, store.spans(row.id)


def start(options: Options, name: str, settle_s: float) -> Start:
    """Start a daemon on the store ``name``, and end it ``settle_s`` seconds after its first token."""
    began = monotonic()
    with starting(options, name, "--app-text-bytes", str(_TEXT_BYTES)) as (socket, process):
        client = _connected(socket, began)
        client.stats()
        ping = monotonic() - began
        shown = client.show(_FIRST)
        show = monotonic() - began
        found = memory(process.pid)
        with client.generate(shown.info.id, prompt="So", max_tokens=1) as answer:
            next(answer)
            token = monotonic() - began
        sleep(settle_s)
        settled = max(found["anonymous"], memory(process.pid)["anonymous"])
        client.close()
    return Start(ping, show, token, found["anonymous"], settled)


def _connected(socket: Path, began: float) -> Client:
    while True:
        try:
            return Client(socket, app=_APP)
        except (LlmaasError, OSError):
            if monotonic() - began > _PATIENCE_S:
                raise
            sleep(0.01)


def measure(options: Options) -> Result:
    n_contexts, rounds = (CONTEXTS // 5, 2) if options.quick else (CONTEXTS, 3)
    row, pattern = make(options, options.folder / "empty")
    full, key = options.folder / "full", master_key.key_file(options.folder / "empty")
    shutil.copytree(options.folder / "empty", full)
    shutil.copy(key, master_key.key_file(full))
    begin = monotonic()
    master = master_key.find(full, master_key.FILE, {}, make=False)
    assert master is not None
    stored.fill(full, row, pattern, n_contexts, options.seed, master.key)
    say(f"{n_contexts} contexts stored in {monotonic() - begin:.1f} s")
    starts: dict[str, list[Start]] = {"empty": [], "full": []}
    for _ in range(rounds):
        for name, found in starts.items():
            found.append(start(options, name, _SETTLE_S + (n_contexts * _LOOK_S if name == "full" else 0)))
            say(f"{name:6} {found[-1]}")
    return _result(row.model, n_contexts, sum(len(span.tokens) for span in pattern), starts, full)


def _result(model: str, n_contexts: int, n_tokens: int, starts: dict[str, list[Start]], full: Path) -> Result:
    per_1000 = median(
        (a.settled - b.settled) / n_contexts / 1e3 for a, b in zip(starts["full"], starts["empty"], strict=True)
    )
    figures: dict[str, Any] = {
        "contexts": n_contexts,
        "tokens_each": n_tokens,
        "index_mb": sig(sum(path.stat().st_size for path in full.glob("index.sqlite*")) / 1e6),
        "mb_per_1000_contexts": sig(per_1000),
    }
    for name, found in starts.items():
        values = [asdict(one) for one in found]
        figures[name] = {field: summary([one[field] for one in values]) for field in values[0]}
    ready = figures["full"]["show_s"]["median"]
    bars = [
        Bar("seconds until a stored conversation is shown", ready, MOST_SECONDS, at_most=True),
        Bar("MB of memory for each 1,000 stored contexts", per_1000, MOST_MB, at_most=True),
    ]
    return Result(model, figures, bars)


if __name__ == "__main__":
    sys.exit(main("startup", __doc__ or "", measure))
