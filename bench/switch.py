"""How long it takes to switch to a context, against computing it anew.

Contexts of 512 .. 8128 tokens (8192 is the model's limit, less one chunk for what follows) are brought back into CELLS
by the real service, out of the POOL and from DISK with the payload files out of the page cache, and are timed against

* re-prefill: the bare llama.cpp loop over the same tokens in full batches, nothing else running;
* copy: numpy copies of the same f16 bytes, chunk by chunk, between warm buffers;
* load: the engine's own import of ready f16 slabs, which no coding can undercut;
* file: llama.cpp's own restore of the whole f16 state (llama_state_seq_load_file), its file out of the page cache.

Before each switch as many others are used as can be in CELLS. The breakdown says where the time goes: read (store),
decode (codec, summed over its threads), load (engine), and hand-over (what is left of the switch outside all of them).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.engine import Bare, engine
from bench.lib.probes import Stopwatch, resident_fraction, storage_bytes_read
from bench.lib.stats import sig, summary
from bench.lib.texts import prose
from llmaas.calls import CallSpec, Done, Generation, Turn
from llmaas.engine.base import Engine
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.lib import C
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.store.store import Store
from llmaas.planner.settings import PlannerChoices, bit_settings
from llmaas.records import CHUNK_TOKENS, AppId, ContextId, KvSlab, Precision, Tier
from llmaas.service.service import Service
from llmaas.service.settings import ServiceSettings

APP = AppId("0/bench")
POOL_BYTES = 512 << 20
_SPARE = 8
"""Tokens prefilled beyond the context and cut off again: text put through a tokenizer twice may shrink a little."""


@dataclass(frozen=True, slots=True)
class Floor:
    """What the same tokens cost without the service."""

    reprefill_ms: float
    copy_ms: float
    load_ms: float
    file_ms: float
    f16_bytes: int


# -- without the service --------------------------------------------------------------------------


def floors(engine: LlamaEngine, lengths: list[int], repeats: int, folder: Path) -> dict[int, tuple[float, ...]]:
    """Milliseconds to copy, to load, and to restore from a cold file, f16 KV of each length.

    On the engine's thread, with empty cells.
    """
    rng = np.random.default_rng(0)
    slabs = [engine.blank(CHUNK_TOKENS) for _ in range(0, lengths[-1], CHUNK_TOKENS)]
    for slab in slabs:
        slab.k[...], slab.v[...] = rng.random(slab.k.shape), rng.random(slab.v.shape)
    room = [KvSlab(slab.k.copy(), slab.v.copy()) for slab in slabs]
    found = {}
    for n in lengths:
        mine, into = slabs[: n // CHUNK_TOKENS], room[: n // CHUNK_TOKENS]
        copies = [_copy_ms(mine, into) for _ in range(repeats)]
        loads = [_load_ms(engine, mine) for _ in range(repeats)]
        files = [_cold_file_ms(engine, folder / "state", n) for _ in range(max(3, repeats // 3))]
        found[n] = median(copies), median(loads), median(files)
    engine.drop(0, 0)
    return found


def _copy_ms(slabs: list[KvSlab], into: list[KvSlab]) -> float:
    begin = perf_counter()
    for src, dst in zip(slabs, into, strict=True):
        np.copyto(dst.k, src.k)
        np.copyto(dst.v, src.v)
    return (perf_counter() - begin) * 1e3


def _load_ms(engine: Engine, slabs: list[KvSlab]) -> float:
    engine.drop(0, 0)
    begin = perf_counter()
    for i, slab in enumerate(slabs):
        engine.load(0, i * CHUNK_TOKENS, slab)
    return (perf_counter() - begin) * 1e3


def _cold_file_ms(engine: LlamaEngine, path: Path, n: int) -> float:
    """Sequence 0, which holds ``n`` tokens, out to a file and back."""
    context, tokens, count = engine.decoder.context, (ctypes.c_int32 * n)(), ctypes.c_size_t()
    C.llama_state_seq_save_file(context, str(path).encode(), 0, tokens, n)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    begin = perf_counter()
    if not C.llama_state_seq_load_file(context, str(path).encode(), 0, tokens, n, ctypes.byref(count)):
        raise RuntimeError("llama.cpp could not restore the state")
    spent = (perf_counter() - begin) * 1e3
    path.unlink()
    return spent


# -- through the service --------------------------------------------------------------------------


class Stage:
    """A service with one context per length, all of the same text, and others that push these out of CELLS."""

    def __init__(self, service: Service, store: Store) -> None:
        self._service, self._store = service, store
        self.contexts: dict[int, ContextId] = {}

    async def set_up(self, text: str, lengths: list[int]) -> tuple[int, float]:
        """Compute the longest context, fork the shorter ones off it; (tokens, milliseconds) of that prefill."""
        longest = (await self._service.create(APP, name="longest", system=None)).id
        begin = perf_counter()
        done = await self.call(longest, Turn(prompt=text), None)
        spent = (perf_counter() - begin) * 1e3
        await self._service.wait_idle()
        for n in lengths:
            self.contexts[n] = (await self._service.fork(APP, longest, name=f"{n} tokens")).id
            await self._service.truncate(APP, self.contexts[n], n_tokens=n, n_messages=None)
        await self._service.delete(APP, longest)
        await self.add_pushers()
        return done.n_tokens, spent

    async def take_up(self, lengths: list[int]) -> None:
        """Use the contexts that an earlier stage set up in the same store."""
        self._pushers = [self._service.show(APP, name).info.id for name in self._names()]
        self.contexts = {n: self._service.show(APP, f"{n} tokens").info.id for n in lengths}

    async def add_pushers(self) -> None:
        """Contexts of a token each, as many as can be in CELLS."""
        self._pushers = [(await self._service.create(APP, name=name, system=None)).id for name in self._names()]
        for pusher in self._pushers:
            await self.call(pusher, Turn(prompt="The"), None)

    def _names(self) -> list[str]:
        return [f"pusher {i}" for i in range(self._service.planner_settings.n_seqs)]

    async def call(self, context: ContextId, turn: Turn, generation: Generation | None) -> Done:
        _, reply = self._service.submit(APP, context, CallSpec(turn, generation), lambda piece: None)
        return await reply

    async def push_out(self) -> None:
        """Use so many others since that no sequence is left for the context that was used last."""
        await self._service.wait_idle()
        for pusher in self._pushers:
            await self.call(pusher, Turn(), None)
        await self._service.wait_idle()

    async def leave_pool(self) -> None:
        self._service.budget(pool_bytes=0)
        self._service.budget(pool_bytes=POOL_BYTES)

    async def switch(self, n: int) -> Done:
        return await self.switch_to(self.contexts[n], n)

    async def switch_to(self, context: ContextId, n: int) -> Done:
        """One call that wants all of the context and one new token; the context ends as it began."""
        done = await self.call(context, Turn(), Generation(max_tokens=1))
        await self._service.truncate(APP, context, n_tokens=n, n_messages=None)
        return done

    async def measure(self, n: int, tier: Tier, *, cold: bool, repeats: int, payload: Path) -> dict[str, Any]:
        """The figures of ``repeats`` switches of the context of ``n`` tokens."""
        switches, firsts, parts, reads, resident = [], [], [], [], []
        for i in range(repeats + 1):
            await self.push_out()
            if tier is Tier.DISK:
                await self.leave_pool()
                if cold:
                    self._store.evict_page_cache()
                resident.append(resident_fraction(payload))
            before = storage_bytes_read()
            with Stopwatch(read=(Store, "get"), decode=(Codec, "decode"), load=(LlamaEngine, "load")) as watch:
                done = await self.switch(n)
            read = storage_bytes_read() - before
            if i == 0:  # it faults buffers in, and for the POOL it fetches what is not there
                continue
            _expect(done, n, tier)
            reads.append(read)
            switches.append(done.switch.switch_ms)
            firsts.append(done.ttft_ms)
            parts.append(_parts(watch, done.switch.switch_ms))
        figures: dict[str, Any] = {"switch_ms": summary(switches), "ttft_ms": summary(firsts)}
        figures["parts_ms"] = {name: sig(median(part[name] for part in parts)) for name in parts[0]}
        if tier is Tier.DISK:
            figures["cold"] = cold
            figures["bytes_from_storage"] = int(median(reads))
            figures["resident_before"] = sig(max(resident[1:]))
        return figures


def _expect(done: Done, n: int, tier: Tier) -> None:
    moved = done.switch.pool if tier is Tier.POOL else done.switch.disk
    if moved != n:
        raise RuntimeError(f"{n} tokens should have come from {tier.name}: {done.switch}")


def _parts(watch: Stopwatch, switch_ms: float) -> dict[str, float]:
    """Where a switch spent its time. ``decode`` is a sum over threads, so the parts overlap."""
    spans = [span for part in watch.spans.values() for span in part]
    busy = (max(end for _, end in spans) - min(begin for begin, _ in spans)) * 1e3
    load = watch.wall("load")
    return {
        "read": watch.total("read"),
        "decode_sum": watch.total("decode"),
        "decode_wall": watch.wall("decode"),
        "load_sum": watch.total("load"),
        "load_waits": load - watch.total("load"),
        "hand_over": switch_ms - busy,
    }


async def through_service(
    thread: EngineThread, folder: Path, text: str, lengths: list[int], precision: Precision, plan: dict[str, int]
) -> dict[str, Any]:
    rows = []
    with Store(folder) as store:
        service = Service(
            thread, store, ServiceSettings(planner=PlannerChoices(pool_bytes=POOL_BYTES, **bit_settings(precision)))
        )
        await service.start()
        try:
            stage = Stage(service, store)
            n_prefilled, prefill_ms = await stage.set_up(text, lengths)
            await stage.push_out()
            for n in lengths:
                for tier, cold in ((Tier.POOL, False), (Tier.DISK, True), (Tier.DISK, False)):
                    repeats = plan[tier.name] if cold or tier is Tier.POOL else 3
                    row = await stage.measure(n, tier, cold=cold, repeats=repeats, payload=folder / "payload")
                    rows.append({"tokens": n, "tier": tier.name, "coded_bytes": _coded(thread, n, precision), **row})
                    say(
                        f"{precision.k:2} bits {n:5} tokens {tier.name} {'cold' if cold else '    '} {row['switch_ms']}"
                    )
            problems = service.check()
            if problems:
                raise RuntimeError(f"the books do not balance: {problems}")
        finally:
            await service.stop()
    prefill = {"tokens": n_prefilled, "ms": sig(prefill_ms)}
    return {"bits": precision.k, "prefill_through_service": prefill, "switches": rows}


def _coded(thread: EngineThread, n: int, precision: Precision) -> int:
    return n // CHUNK_TOKENS * Codec(thread.engine.info.geometry).encoded_size(CHUNK_TOKENS, precision)


# -- the whole ------------------------------------------------------------------------------------


def measure(options: Options) -> Result:
    lengths = [512, 4096] if options.quick else [512, 1024, 2048, 4096, 8128]
    plan = {"POOL": 9, "DISK": 5} if options.quick else {"POOL": 21, "DISK": 11}
    with engine(options) as thread:
        text = prose(thread.engine, lengths[-1] + _SPARE, options.seed)
        tokens = thread.engine.tokenize(text, special=False, bos=False)
        say(f"bare prefill of {lengths[-1]} tokens")
        with Bare(options) as bare:
            passed, _ = bare.run(tokens[: lengths[-1]], marks=lengths)
        assert isinstance(thread.engine, LlamaEngine)
        ready = thread.submit(floors, thread.engine, lengths, plan["POOL"], options.folder).result()
        token_bytes = thread.engine.info.geometry.token_bytes
        floor = {n: Floor(t * 1e3, *ready[n], n * token_bytes) for n, t in zip(lengths, passed, strict=True)}
        runs = []
        for bits in (4,) if options.quick else (4, 8, 16):
            say(f"prefill of {lengths[-1]} tokens through the service, coded at {bits} bits")
            folder = options.folder / str(bits)
            runs.append(asyncio.run(through_service(thread, folder, text, lengths, Precision(bits, bits), plan)))
        for run in runs:
            for row in run["switches"]:
                _compare(row, floor[row["tokens"]])
        model = thread.engine.info.name
    figures = {
        "floors": [
            {
                "tokens": n,
                "reprefill_ms": sig(f.reprefill_ms),
                "copy_ms": sig(f.copy_ms),
                "load_ms": sig(f.load_ms),
                "file_ms": sig(f.file_ms),
                "f16_bytes": f.f16_bytes,
            }
            for n, f in floor.items()
        ],
        "runs": runs,
    }
    return Result(model, figures, _bars(figures))


def _compare(row: dict[str, Any], floor: Floor) -> None:
    switch_ms = row["switch_ms"]["median"]
    row["reprefill_over_switch"] = sig(floor.reprefill_ms / switch_ms)
    row["switch_over_copy"] = sig(switch_ms / floor.copy_ms)
    row["switch_over_load"] = sig(switch_ms / floor.load_ms)
    row["file_over_switch"] = sig(floor.file_ms / switch_ms)


def _bars(figures: dict[str, Any]) -> list[Bar]:
    rows = {
        (row["tier"], row.get("cold", False)): row for row in figures["runs"][0]["switches"] if row["tokens"] == 4096
    }
    pool, disk = rows["POOL", False], rows["DISK", True]
    return [
        Bar("4096 tokens, 4 bits, POOL -> CELLS: times faster than re-prefill", pool["reprefill_over_switch"], 300),
        Bar(
            "4096 tokens, 4 bits, DISK -> CELLS, cold: times faster than re-prefill", disk["reprefill_over_switch"], 200
        ),
        Bar("the same, times faster than the whole f16 state from a cold file", disk["file_over_switch"], 3),
        Bar("payload pages in the page cache before a cold switch (fraction)", disk["resident_before"], 0.01, True),
    ]


if __name__ == "__main__":
    sys.exit(main("switch", __doc__ or "", measure))
