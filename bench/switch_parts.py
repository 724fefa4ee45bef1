"""Where the time of a switch goes: its parts, on all cores and on one, with each instruction set of this machine.

A context of 4096 tokens, coded at 4 bits and encrypted, comes back from POOL, and from DISK with its files out of the
page cache. It is computed and coded once; then a service on the same store brings it back, again and again, for each
number of cores and each set of kernels (plain C, AVX2, AVX-512; on ARM there is one). There are no bars: bench.switch
has them.

Of the parts (milliseconds; medians over the switches) several run at once, on threads of their own:

* read: finding and reading payloads, of it read_file in the kernel; open: decrypting;
* decode: checksums, and from codes to f16, straight into the cells;
* load: finding cells, and telling llama.cpp of them; load_waits: until another part was done;
* hand_over: of the switch what is in none of these: the event loop, and threads that wake up.

The names with _cpu are CPU time, those with _sum wall time over all threads. ``--model`` may be given several times.
"""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from bench.lib.cli import Options, Result, main, say
from bench.lib.clients import serving
from bench.lib.engine import engine
from bench.lib.swapped import POOL_BYTES, SPARE, SwappedContexts
from bench.lib.texts import prose
from bench.lib.timed import Stopwatch, TimedCodec, TimedEngine, TimedFiles, TimedStore
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.codec.kernels import NUMPY, Kernels, available
from llmaas.kvchunks.store.cipher import KEY_BYTES, MasterKey
from llmaas.kvchunks.store.syscalls import Files
from llmaas.planner.settings import bit_settings
from llmaas.records import Precision, Tier

N_TOKENS = 4096
_MOST_TRIES = 9
_CHOICES: dict[str, Any] = {"pool_bytes": POOL_BYTES, **bit_settings(Precision(4, 4))}


def measure(options: Options) -> Result:
    found = [_of_model(one) for one in options.each()]
    return Result(" and ".join(each["model"] for each in found), {"models": found}, [])


def _of_model(options: Options) -> dict[str, Any]:
    repeats = {Tier.POOL: 9, Tier.DISK: 5} if options.quick else {Tier.POOL: 21, Tier.DISK: 11}
    watch = Stopwatch()
    with engine(options, kind=partial(TimedEngine, watch)) as thread:
        text = prose(thread.engine, N_TOKENS + SPARE, options.seed)
        parts = Parts(thread, watch, options.folder / "store")
        say(f"{options.model.name}: computing {N_TOKENS} tokens")
        asyncio.run(parts.create(text))
        rows = []
        everywhere = sorted(os.sched_getaffinity(0))
        for cores in (everywhere, everywhere[:1]):
            _keep_to(cores)
            thread.submit(partial(thread.engine.set_threads, min(len(cores), options.threads))).result()
            for kernels in (each for each in available() if each is not NUMPY):
                rows += asyncio.run(parts.measure(kernels, len(cores), repeats))
        _keep_to(everywhere)
        return {"model": thread.engine.info.name, "tokens": N_TOKENS, "bits": 4, "switches": rows}


class Parts:
    """The stored context, and services that bring it back."""

    def __init__(self, thread: EngineThread, watch: Stopwatch, folder: Path) -> None:
        self._thread, self._watch, self._folder = thread, watch, folder
        self._master = MasterKey(os.urandom(KEY_BYTES))

    def _store(self) -> TimedStore:
        return TimedStore(self._watch, self._folder, master=self._master, files=TimedFiles(self._watch, Files()))

    async def create(self, text: str) -> None:
        with self._store() as store:
            async with serving(self._thread, store, **_CHOICES) as service:
                await SwappedContexts(service, store).create(text, [N_TOKENS])

    async def measure(self, kernels: Kernels, cores: int, repeats: dict[Tier, int]) -> list[dict[str, Any]]:
        engine, rows = self._thread.engine, []
        codec = TimedCodec(self._watch, engine.info.geometry, engine.rope, kernels=kernels)
        with self._store() as store:
            async with serving(self._thread, store, codec=codec, **_CHOICES) as service:
                contexts = SwappedContexts(service, store, self._watch)
                await contexts.reopen([N_TOKENS])
                await _fill_pool(contexts)
                for tier, n in repeats.items():
                    payload, cold = self._folder / "payload", tier is Tier.DISK
                    row = await contexts.measure(N_TOKENS, tier, cold=cold, repeats=n, payload=payload)
                    rows.append({"tier": tier.name, "cores": cores, "kernels": kernels.name, **row})
                    say(f"{tier.name} {cores} cores {kernels.name:9} {row['switch_ms']['median']} {row['parts_ms']}")
        return rows


async def _fill_pool(contexts: SwappedContexts) -> None:
    """A service that begins has its chunks on DISK, and keeps those in POOL that it has used. Raises RuntimeError."""
    for _ in range(_MOST_TRIES):
        await contexts.push_out()
        done = await contexts.switch(N_TOKENS)
        if done.switch.pool == N_TOKENS:
            return
    raise RuntimeError(f"{N_TOKENS} tokens should be in POOL by now: {done.switch}")


def _keep_to(cores: list[int]) -> None:
    """All threads of this process, and those that they will start."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


if __name__ == "__main__":
    sys.exit(main("switch_parts", __doc__ or "", measure))
