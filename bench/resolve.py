"""How long the daemon takes to find the context of a conversation that a client sends as a whole.

The service runs on the fake engine, and keeps 10,000 conversations of one app, all with one system prompt. Measured
are:

* ``first_ms``: the first look-up after a start, which hashes what all contexts hold;
* ``found_ms``: a look-up whose context goes on as it is, for conversations of 21 messages, with the thread's hashing;
* ``large_ms``: the same for one whose messages have 256 KiB of text, which are hashed on a thread;
* ``hashing_ms``: what is the hashing of the 21 messages in that;
* ``copied_ms``: a conversation that has the system prompt alone in common with all others: with the new context's row
  on disk.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.stats import summary
from llmaas.engine.fake import FakeEngine
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.store.store import ContextRow, Span, Store
from llmaas.planner.settings import PlannerChoices
from llmaas.records import NO_QUOTA, AppId, ContextId, Message
from llmaas.service.history_keys import history_keys, history_root
from llmaas.service.live_context import anonymous_name
from llmaas.service.service import Service
from llmaas.service.settings import ServiceSettings

APP = AppId("0/bench")
CONTEXTS = 10_000
TURNS = 10
LARGE = 1 << 18
BAR_MS = 1.0
SYSTEM = Message("system", "You are brief, and you never guess. " * 10)


def conversation(i: int, *, size: int = 60) -> list[Message]:
    made = [SYSTEM]
    for turn in range(TURNS):
        text = f"{i}, {turn}: what of it? "
        made += [Message("user", text * max(1, size // len(text))), Message("assistant", f"{i}, {turn}: nothing.")]
    return made


def fill(store: Store, engine: FakeEngine, conversations: Sequence[list[Message]]) -> None:
    """Write contexts to the store, as many turns would. Their tokens do not matter: a few for each message."""
    info = engine.info
    for i, messages in enumerate(conversations):
        context = ContextId(f"{i:016x}")
        row = ContextRow(context, APP, anonymous_name(context), info.name, info.vocab, 0.0, float(i), 0)
        store.create_context(row, [Span((65 + i % 26, 66), m.role, m.content, False) for m in messages])
        if i % 1000 == 999:
            say(f"{i + 1} contexts are on disk")


async def timed(service: Service, messages: Sequence[Message]) -> tuple[float, int]:
    """Milliseconds of a look-up, and how many messages were found."""
    start = time.perf_counter()
    found = await service.resolve(APP, messages)
    return (time.perf_counter() - start) * 1e3, found.n_messages


async def look_ups(service: Service, conversations: Sequence[list[Message]], options: Options) -> dict[str, Any]:
    rng = random.Random(options.seed)
    question = Message("user", "And now?")
    n = 300 if options.quick else 2000
    first, _ = await timed(service, [*conversations[0], question])
    *small, large = range(1, len(conversations))
    found = [await timed(service, [*conversations[i], question]) for i in rng.sample(small, n)]
    assert {n_messages for _, n_messages in found} == {2 * TURNS + 1}
    large_ms, n_large = await timed(service, [*conversations[large], question])
    assert n_large == 2 * TURNS + 1
    hashing = []
    for i in rng.sample(small, n):
        start = time.perf_counter()
        history_keys(history_root(APP, ""), conversations[i])
        hashing.append((time.perf_counter() - start) * 1e3)
    copied = [await timed(service, [SYSTEM, Message("user", f"New {i}?")]) for i in range(n // 10)]
    assert {n_messages for _, n_messages in copied} == {1}
    return {
        "contexts": len(conversations),
        "messages": 2 * TURNS + 1,
        "first_ms": first,
        "found_ms": summary([ms for ms, _ in found]),
        "large_ms": large_ms,
        "hashing_ms": summary(hashing),
        "copied_ms": summary([ms for ms, _ in copied]),
    }


async def serve(options: Options) -> dict[str, Any]:
    conversations = [conversation(i) for i in range(CONTEXTS - 1)]
    conversations.append(conversation(CONTEXTS, size=LARGE // TURNS))
    thread = EngineThread(lambda: FakeEngine(4096))
    settings = ServiceSettings(
        planner=PlannerChoices(), app_contexts=2 * CONTEXTS, anonymous_contexts=2 * CONTEXTS, app_text_bytes=NO_QUOTA
    )
    try:
        with Store(options.folder / "store") as store:
            fill(store, FakeEngine(64), conversations)
            service = Service(thread, store, settings)
            try:
                await service.start()
                return await look_ups(service, conversations, options)
            finally:
                await service.stop()
    finally:
        thread.close()


def measure(options: Options) -> Result:
    figures = asyncio.run(serve(options))
    bars = [Bar(f"a look-up among {CONTEXTS} contexts, in ms", figures["found_ms"]["median"], BAR_MS, True)]
    bars += [Bar("the same for nine of ten, in ms", figures["found_ms"]["p90"], BAR_MS, True)]
    return Result("none: the fake engine", figures, bars)


if __name__ == "__main__":
    sys.exit(main("resolve", __doc__ or "", measure))
