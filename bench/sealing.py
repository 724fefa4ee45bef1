"""What encryption costs a switch: chunks on disk sealed, against the same in clear, in one store and one run.

Two contexts of 4096 tokens, one written without a master key and one with, are brought back from DISK in turns, with
the payload files in the page cache (where the cost shows most) and out of it. The order of the two changes each time.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from statistics import median
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.engine import engine
from bench.lib.probes import resident_fraction
from bench.lib.stats import sig, summary
from bench.lib.texts import prose
from bench.switch import APP, POOL_BYTES, Stage
from llmaas.calls import Turn
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.store.cipher import fastest_cipher
from llmaas.kvchunks.store.store import MasterKey, Store
from llmaas.planner.settings import PlannerChoices, bit_settings
from llmaas.records import CHUNK_TOKENS, ContextId, Precision
from llmaas.service.service import Service
from llmaas.service.settings import ServiceSettings

N = 4096
CLEAR, SEALED = "clear", "sealed"
_SPARE = 8
"""See switch.py."""


async def fill(thread: EngineThread, folder: Path, master: MasterKey | None, name: str, text: str) -> None:
    """Compute a context and leave it on disk."""
    with Store(folder, master=master) as store:
        service = Service(thread, store, _settings())
        await service.start()
        try:
            context = (await service.create(APP, name=name, system=None)).id
            await Stage(service, store).call(context, Turn(prompt=text), None)
            await service.truncate(APP, context, n_tokens=N, n_messages=None)
            await service.wait_idle()
        finally:
            await service.stop()
    for seq in range(thread.engine.n_seqs):  # the next service expects an engine without cells
        thread.submit(thread.engine.drop, seq, 0).result()


async def switches(thread: EngineThread, folder: Path, master: MasterKey, repeats: int) -> dict[str, Any]:
    with Store(folder, master=master) as store:
        found = store.encryption()
        if (found.plain, found.locked) != (N // CHUNK_TOKENS, 0):
            raise RuntimeError(f"half of the chunks should be in clear: {found}")
        service = Service(thread, store, _settings())
        await service.start()
        try:
            stage = Stage(service, store)
            await stage.add_pushers()
            contexts = {name: service.show(APP, name).info.id for name in (CLEAR, SEALED)}
            return {
                "cold" if cold else "cached": await _in_turns(stage, contexts, store, cold, repeats, folder / "payload")
                for cold in (False, True)
            }
        finally:
            await service.stop()


async def _in_turns(
    stage: Stage, contexts: dict[str, ContextId], store: Store, cold: bool, repeats: int, payload: Path
) -> dict[str, Any]:
    times: dict[str, list[float]] = {CLEAR: [], SEALED: []}
    resident = []
    for i in range(repeats + 1):
        for name in (CLEAR, SEALED) if i % 2 else (SEALED, CLEAR):
            await stage.push_out()
            await stage.leave_pool()
            if cold:
                store.evict_page_cache()
            resident.append(resident_fraction(payload))
            done = await stage.switch_to(contexts[name], N)
            if done.switch.disk != N:
                raise RuntimeError(f"{N} tokens should have come from DISK: {done.switch}")
            if i:  # the first faults buffers in
                times[name].append(done.switch.switch_ms)
    ratio = median(times[SEALED]) / median(times[CLEAR])
    say(f"{'cold' if cold else 'cached'}: {ratio:.3f} ({ {name: sig(median(t)) for name, t in times.items()} } ms)")
    return {name: summary(t) for name, t in times.items()} | {
        "ratio": sig(ratio),
        "resident_before": sig(max(resident)),
    }


def _settings() -> ServiceSettings:
    return ServiceSettings(planner=PlannerChoices(pool_bytes=POOL_BYTES, **bit_settings(Precision(4, 4))))


def measure(options: Options) -> Result:
    master = MasterKey(bytes(32))
    with engine(options) as thread:
        for i, (name, key) in enumerate(((CLEAR, None), (SEALED, master))):
            how = "in clear" if key is None else f"encrypted with {fastest_cipher()}"
            say(f"prefill of {N} tokens, to be written {how}")
            text = prose(thread.engine, N + _SPARE, options.seed + i)
            asyncio.run(fill(thread, options.folder / "store", key, name, text))
        figures = asyncio.run(switches(thread, options.folder / "store", master, 9 if options.quick else 31))
        model = thread.engine.info.name
    bars = [
        Bar(
            f"{N} tokens, 4 bits, DISK -> CELLS, {where}: sealed / clear (medians)", figures[where]["ratio"], 1.10, True
        )
        for where in ("cached", "cold")
    ]
    return Result(model, {"cipher": fastest_cipher(), **figures}, bars)


if __name__ == "__main__":
    sys.exit(main("sealing", __doc__ or "", measure))
