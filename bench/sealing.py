"""What encryption costs: a switch from disk and the commit of a turn, encrypted and in clear, in one run.

Two contexts of 4096 tokens, one written without a master key and one with, are brought back from DISK alternately, with
the payload files in the page cache (where the cost shows most) and out of it. The order of the two changes each time.

Turns of 400 tokens with their text and an idempotency key are appended to a context in a store without a master key and
to one in a store with it, alternately: how long a commit takes with the disk's sync, and how long it computes.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.clients import serving
from bench.lib.engine import engine
from bench.lib.probes import resident_fraction
from bench.lib.stats import sig, summary
from bench.lib.swapped import APP, POOL_BYTES, SPARE, SwappedContexts
from bench.lib.texts import prose
from llmaas.calls import Turn
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.store.cipher import fastest_cipher
from llmaas.kvchunks.store.rows import ContextRow, KeyedTurn, Span
from llmaas.kvchunks.store.store import MasterKey, Store
from llmaas.planner.settings import bit_settings
from llmaas.records import CHUNK_TOKENS, ContextId, Precision

N = 4096
CLEAR, SEALED = "clear", "sealed"
TURN_TOKENS, TURN_TEXT = 200, "A sentence of forty characters, or such. " * 25
"""Of a question, and of its answer."""
CHOICES: dict[str, Any] = {"pool_bytes": POOL_BYTES, **bit_settings(Precision(4, 4))}


async def fill(thread: EngineThread, folder: Path, master: MasterKey | None, name: str, text: str) -> None:
    """Compute a context and leave it on disk."""
    with Store(folder, master=master) as store:
        async with serving(thread, store, **CHOICES) as service:
            context = (await service.create(APP, name=name, system=None)).id
            await SwappedContexts(service, store).call(context, Turn(prompt=text), None)
            await service.truncate(APP, context, n_tokens=N, n_messages=None)


async def switches(thread: EngineThread, folder: Path, master: MasterKey, repeats: int) -> dict[str, Any]:
    """Figures with the payload files out of the page cache ("cold") and in it ("cached")."""
    with Store(folder, master=master) as store:
        found = store.encryption()
        if (found.plain, found.locked) != (N // CHUNK_TOKENS, 0):
            raise RuntimeError(f"half of the chunks should be in clear: {found}")
        async with serving(thread, store, **CHOICES) as service:
            swapped = SwappedContexts(service, store)
            await swapped.add_pushers()
            contexts = {name: service.info(APP, name).id for name in (CLEAR, SEALED)}
            payload = folder / "payload"
            cached = await _compare(swapped, contexts, store, False, repeats, payload)
            return {"cached": cached, "cold": await _compare(swapped, contexts, store, True, repeats, payload)}


async def _compare(
    swapped: SwappedContexts, contexts: dict[str, ContextId], store: Store, cold: bool, repeats: int, payload: Path
) -> dict[str, Any]:
    times: dict[str, list[float]] = {CLEAR: [], SEALED: []}
    resident = []
    for i in range(repeats + 1):
        for name in (CLEAR, SEALED) if i % 2 else (SEALED, CLEAR):
            await swapped.push_out()
            await swapped.leave_pool()
            if cold:
                store.evict_page_cache()
            resident.append(resident_fraction(payload))
            done = await swapped.switch_to(contexts[name], N)
            if done.switch.disk != N:
                raise RuntimeError(f"{N} tokens should have come from DISK: {done.switch}")
            if i:  # the first switch faults buffers in
                times[name].append(done.switch.switch_ms)
    ratio = median(times[SEALED]) / median(times[CLEAR])
    say(f"{'cold' if cold else 'cached'}: {ratio:.3f} ({ {name: sig(median(t)) for name, t in times.items()} } ms)")
    return {name: summary(t) for name, t in times.items()} | {
        "ratio": sig(ratio),
        "resident_before": sig(max(resident)),
    }


def commits(folder: Path, master: MasterKey, repeats: int) -> dict[str, Any]:
    """Milliseconds of the commits of turns: by the clock, and of the CPU."""
    wall: dict[str, list[float]] = {CLEAR: [], SEALED: []}
    cpu: dict[str, list[float]] = {CLEAR: [], SEALED: []}
    with Store(folder / CLEAR) as clear, Store(folder / SEALED, master=master) as sealed:
        stores, row = {CLEAR: clear, SEALED: sealed}, ContextRow(ContextId("0" * 16), APP, "a", "m", "v", 1.0, 1.0, 0)
        for store in stores.values():
            store.create_context(row, [])
        for i in range(repeats):
            tokens = tuple(range(i, i + TURN_TOKENS))
            spans = [Span(tokens, role, TURN_TEXT) for role in ("user", "assistant")]
            n = 2 * TURN_TOKENS * (i + 1)
            turn = KeyedTurn(f"key {i}", bytes(32), 2, n, b"what the app was told" * 20)
            for name in (CLEAR, SEALED) if i % 2 else (SEALED, CLEAR):
                begin, worked = time.perf_counter(), time.thread_time()
                stores[name].append(row.id, spans, expect=n - 2 * TURN_TOKENS, now=1.0 + i, turn=turn)
                cpu[name].append((time.thread_time() - worked) * 1e3)
                wall[name].append((time.perf_counter() - begin) * 1e3)
    figures: dict[str, Any] = {}
    for what, times in (("wall_ms", wall), ("cpu_ms", cpu)):
        more = sig(median(times[SEALED]) - median(times[CLEAR]))
        say(f"commit of a turn, {what}: {more:+.3f} ms ({ {name: sig(median(t)) for name, t in times.items()} })")
        figures[what] = {name: summary(t) for name, t in times.items()} | {"more": more}
    return figures


def measure(options: Options) -> Result:
    master = MasterKey(bytes(32))
    of_turns = commits(options.folder, master, 100 if options.quick else 400)
    with engine(options) as thread:
        for i, (name, key) in enumerate(((CLEAR, None), (SEALED, master))):
            how = "in clear" if key is None else f"encrypted with {fastest_cipher()}"
            say(f"prefill of {N} tokens, to be written {how}")
            text = prose(thread.engine, N + SPARE, options.seed + i)
            asyncio.run(fill(thread, options.folder / "store", key, name, text))
        figures = asyncio.run(switches(thread, options.folder / "store", master, 9 if options.quick else 31))
        model = thread.engine.info.name
    bars = [
        Bar(
            f"{N} tokens, 4 bits, DISK -> CELLS, {where}: sealed / clear (medians)", figures[where]["ratio"], 1.10, True
        )
        for where in ("cached", "cold")
    ]
    bars += [
        Bar(f"commit of a turn: what sealing adds, {what}", of_turns[what]["more"], 1.0, True) for what in of_turns
    ]
    return Result(model, {"cipher": fastest_cipher(), **figures, "commits": of_turns}, bars)


if __name__ == "__main__":
    sys.exit(main("sealing", __doc__ or "", measure))
