"""How fast the service gives RAM back to the system: 1,000 clean chunks leave the POOL, with no I/O.

The service runs on the fake engine, but with SmolLM2-135M's KV geometry, so that chunks coded at 4 bits have the sizes
that they have with that model. When all chunks are on DISK too, the POOL's budget is set to nothing. Measured are:

* ``reclaim_ms``: the event loop's time (planner, ledger, pool); ``cpu_ms`` is the same without waits for a core, so
  this is the one that is checked;
* ``returned_ms``: the time until the memory is back at the system, by the resident size;
* ``loop_stall_ms``: the longest that anything else on the event loop waits until then;
* ``io``: the process's reads and writes meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.clients import serving
from bench.lib.stats import summary
from llmaas.calls import CallSpec, Turn
from llmaas.cli.runtime import bound_malloc
from llmaas.engine.fake import FakeEngine
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.store.store import Store
from llmaas.planner.settings import bit_settings
from llmaas.records import CHUNK_TOKENS, AppId, Geometry, Precision
from llmaas.service.service import Service

GEOMETRY = Geometry(n_layer=30, k_dim=192, v_dim=192, head_dim_k=64, head_dim_v=64)
APP = AppId("0/bench")
CHUNKS_EACH = 50
CONTEXTS = 20
BAR_MS = 5.0
_POOL = 2 << 30
_PATIENCE_S = 10.0
"""No longer is waited for the memory to return."""
_RETURNED = 0.9
"""The memory counts as returned when the process is smaller by this part of the chunks' bytes."""


@dataclass(frozen=True)
class Reclaim:
    """What one emptying of the POOL took. ``io``: calls and bytes, by their names in /proc/self/io."""

    chunks: int
    nbytes: int
    reclaim_ms: float
    cpu_ms: float
    returned_ms: float
    loop_stall_ms: float
    io: dict[str, int]


def io_counts() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text("ascii").splitlines()
    return {name: int(n) for name, _, n in (line.partition(":") for line in lines)}


async def fill(service: Service, texts: dict[str, str]) -> None:
    """Use every context, so that its chunks come to the POOL; return when they are all on DISK, too."""
    for name, text in texts.items():
        _, future = service.submit(APP, name, CallSpec(Turn(prompt=text)), lambda piece: None)
        await future
    await service.wait_idle()
    await asyncio.sleep(0.5)  # files of chunks that were replaced are deleted later, at low priority


async def reclaim(service: Service) -> Reclaim:
    """Empty the POOL at once."""
    before: Any = service.stats()
    evicted, held = before["counts"]["chunks_evicted"], before["pool_bytes"]["used"]
    resident = resident_bytes()
    io = [io_counts(), io_counts()]  # the difference of the two is what io_counts itself reads
    start, cpu = time.perf_counter(), time.thread_time()
    service.budget(pool_bytes=0)
    done = last = time.perf_counter()
    cpu = time.thread_time() - cpu
    io.append(io_counts())
    stall = 0.0
    while resident - resident_bytes() < _RETURNED * held and last - start < _PATIENCE_S:
        await asyncio.sleep(0)
        now = time.perf_counter()
        stall, last = max(stall, now - last), now
    storage = io_counts()
    calls = {name: io[2][name] - 2 * io[1][name] + io[0][name] for name in ("syscr", "syscw")}
    moved = {name: storage[name] - io[1][name] for name in ("read_bytes", "write_bytes")}
    after: Any = service.stats()
    assert after["pool_bytes"]["used"] == 0
    chunks = after["counts"]["chunks_evicted"] - evicted
    return Reclaim(chunks, held, (done - start) * 1e3, cpu * 1e3, (last - start) * 1e3, stall * 1e3, calls | moved)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def rounds(options: Options, service: Service) -> list[Reclaim]:
    names = [(await service.create(APP, name=f"context {i}", system=None)).id for i in range(CONTEXTS)]
    rng = random.Random(options.seed)
    length = CHUNKS_EACH * CHUNK_TOKENS - 1  # bytes, which are this engine's tokens
    await fill(service, {name: "".join(rng.choices("abcdefgh", k=length)) for name in names})
    found = []
    for i in range(3 if options.quick else 10):
        found.append(await reclaim(service))
        say(f"{i}: {found[-1]}")
        service.budget(pool_bytes=_POOL)
        await fill(service, dict.fromkeys(names, "x"))
    return found


async def reclaims(options: Options) -> list[Reclaim]:
    """Several reclaims of one service."""
    thread = EngineThread(lambda: FakeEngine(4 * CHUNKS_EACH * CHUNK_TOKENS, geometry=GEOMETRY))
    choices: dict[str, Any] = {"split": "load_first", "pool_bytes": _POOL, **bit_settings(Precision(4, 4))}
    try:
        with Store(options.folder / "store") as store:
            async with serving(thread, store, **choices) as service:
                return await rounds(options, service)
    finally:
        thread.close()


def measure(options: Options) -> Result:
    bound_malloc()
    found = asyncio.run(reclaims(options))
    figures: dict[str, Any] = {
        "chunks": found[0].chunks,
        "pool_bytes": found[0].nbytes,
        "reclaim_ms_per_1000": summary([1000 * r.reclaim_ms / r.chunks for r in found]),
        "cpu_ms_per_1000": summary([1000 * r.cpu_ms / r.chunks for r in found]),
        "returned_ms": summary([r.returned_ms for r in found]),
        "loop_stall_ms": summary([r.loop_stall_ms for r in found]),
        "io": {name: max(r.io[name] for r in found) for name in found[0].io},
    }
    bars = [
        Bar("dropping 1,000 chunks, in ms of the event loop's CPU", figures["cpu_ms_per_1000"]["median"], BAR_MS, True),
        Bar("reads and writes meanwhile, calls and bytes", sum(figures["io"].values()), 0, True),
        Bar("the memory is back at the system, in ms", max(r.returned_ms for r in found), 1000, True),
        Bar("longest wait on the event loop, in ms", figures["loop_stall_ms"]["median"], 2 * BAR_MS, True),
    ]
    return Result("none: the fake engine with the geometry of SmolLM2-135M", figures, bars)


if __name__ == "__main__":
    sys.exit(main("reclaim", __doc__ or "", measure))
