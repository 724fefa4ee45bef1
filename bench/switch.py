"""How long it takes to switch to a context, against computing it anew.

The service brings contexts of 512 .. 8128 tokens (8192 is the model's limit, less one chunk for what follows) back into
CELLS: from the POOL, and from DISK with the payload files out of the page cache and in it. The switches are timed
against

* re-prefill: the bare llama.cpp loop over the same tokens in full batches, with nothing else running;
* copy: numpy copies of the same f16 bytes, chunk by chunk, between warm buffers, by as many threads as the engine has;
* load: the engine's own import of ready f16 slabs, which copies them on one thread;
* file: llama.cpp's own restore of the whole f16 state (llama_state_seq_load_file), its file out of the page cache,
  with the disk as it is; at 300 MB/s it takes at least its bytes by that rate.

The store encrypts. For 300 MB/s it sleeps within its own reads: what the kernel throttles may read the first tens of
megabytes at once. With several models there is a row of bars for each.

Before each switch as many other contexts are used as can be in CELLS. The breakdown says where the time goes: read
(store), decode (codec, summed over its threads), load (engine), and hand-over (the rest of the switch).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.clients import serving
from bench.lib.engine import Bare, engine
from bench.lib.probes import forget
from bench.lib.stats import sig
from bench.lib.swapped import POOL_BYTES, SPARE, SwappedContexts
from bench.lib.texts import prose
from bench.lib.throttle import SlowFiles
from bench.lib.timed import Stopwatch, TimedCodec, TimedEngine, TimedFiles, TimedStore
from llmaas.engine.base import Engine
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.lib import C
from llmaas.engine.thread import EngineThread
from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.store.cipher import KEY_BYTES, MasterKey
from llmaas.planner.settings import bit_settings
from llmaas.records import CHUNK_TOKENS, Precision, Tier

SLOW_DISK = 300e6
"""Bytes a second of the throttled disk."""


@dataclass(frozen=True, slots=True)
class Floor:
    """What the same tokens cost without the service: milliseconds, and bytes of their f16 KV."""

    reprefill_ms: float
    copy_ms: float
    load_ms: float
    file_ms: float
    slow_file_ms: float
    f16_bytes: int

    def figures(self) -> dict[str, float]:
        return {name: sig(value) if name.endswith("_ms") else value for name, value in asdict(self).items()}


# -- without the service --------------------------------------------------------------------------


def floors(options: Options, thread: EngineThread, text: str, lengths: list[int], repeats: int) -> dict[int, Floor]:
    """The floor of each length. Copies and loads are measured ``repeats`` times, with empty cells."""
    tokens = thread.engine.tokenize(text, special=False, bos=False)
    say(f"bare prefill of {lengths[-1]} tokens")
    with Bare(options) as bare:
        reached, _ = bare.run(tokens[: lengths[-1]], marks=lengths)
    assert isinstance(thread.engine, LlamaEngine)
    ready = thread.submit(_ready_ms, thread.engine, options, lengths, repeats).result()
    token_bytes = thread.engine.info.geometry.token_bytes
    return {n: Floor(t * 1e3, *ready[n], n * token_bytes) for n, t in zip(lengths, reached, strict=True)}


def _ready_ms(
    engine: LlamaEngine, options: Options, lengths: list[int], repeats: int
) -> dict[int, tuple[float, float, float, float]]:
    """Milliseconds to copy, to load, and to restore from a cold file, on the disk as it is and throttled, f16 KV of
    each length. On the engine's thread.
    """
    rng = np.random.default_rng(0)
    slabs = [engine.blank(CHUNK_TOKENS) for _ in range(0, lengths[-1], CHUNK_TOKENS)]
    for slab in slabs:
        slab.k[...], slab.v[...] = rng.random(slab.k.shape), rng.random(slab.v.shape)
    room = [KvSlab(slab.k.copy(), slab.v.copy()) for slab in slabs]
    found = {}
    with ThreadPoolExecutor(options.threads) as pool:
        for n in lengths:
            mine, into = slabs[: n // CHUNK_TOKENS], room[: n // CHUNK_TOKENS]
            copies = [_copy_ms(pool, options.threads, mine, into) for _ in range(repeats)]
            loads = [_load_ms(engine, mine) for _ in range(repeats)]
            files = [_cold_file_ms(engine, options.folder / "state", n) for _ in range(max(3, repeats // 3))]
            slow = max(median(files), n * engine.info.geometry.token_bytes / SLOW_DISK * 1e3)
            found[n] = median(copies), median(loads), median(files), slow
    engine.drop(0, 0)
    return found


def _copy_ms(pool: Executor, threads: int, slabs: list[KvSlab], into: list[KvSlab]) -> float:
    def copy(first: int) -> None:
        for src, dst in zip(slabs[first::threads], into[first::threads], strict=True):
            np.copyto(dst.k, src.k)
            np.copyto(dst.v, src.v)

    begin = perf_counter()
    list(pool.map(copy, range(threads)))
    return (perf_counter() - begin) * 1e3


def _load_ms(engine: Engine, slabs: list[KvSlab]) -> float:
    engine.drop(0, 0)
    begin = perf_counter()
    for i, slab in enumerate(slabs):
        engine.load(0, i * CHUNK_TOKENS, slab)
    return (perf_counter() - begin) * 1e3


def _cold_file_ms(engine: LlamaEngine, path: Path, n: int) -> float:
    """Milliseconds to restore sequence 0, of ``n`` tokens, from a file that it was just saved to.

    Raises RuntimeError if llama.cpp cannot.
    """
    context, tokens, count = engine.decoder.context, (ctypes.c_int32 * n)(), ctypes.c_size_t()
    C.llama_state_seq_save_file(context, str(path).encode(), 0, tokens, n)
    forget(path)
    begin = perf_counter()
    if not C.llama_state_seq_load_file(context, str(path).encode(), 0, tokens, n, ctypes.byref(count)):
        raise RuntimeError("llama.cpp could not restore the state")
    spent = (perf_counter() - begin) * 1e3
    path.unlink()
    return spent


# -- through the service --------------------------------------------------------------------------


async def through_service(
    thread: EngineThread,
    watch: Stopwatch,
    folder: Path,
    text: str,
    lengths: list[int],
    bits: int,
    plan: dict[Tier, int],
) -> dict[str, Any]:
    """Figures of switches from each place, at ``bits`` for K and V; ``plan`` says how often from each tier.

    ``watch`` is that of the engine.
    """
    rows, precision = [], Precision(bits, bits)
    choices: dict[str, Any] = {"pool_bytes": POOL_BYTES, **bit_settings(precision)}
    codec = TimedCodec(watch, thread.engine.info.geometry, thread.engine.rope)
    master, disk = MasterKey(os.urandom(KEY_BYTES)), SlowFiles()
    with TimedStore(watch, folder, master=master, files=TimedFiles(watch, disk)) as store:
        async with serving(thread, store, codec=codec, **choices) as service:
            contexts = SwappedContexts(service, store, watch)
            n_prefilled, prefill_ms = await contexts.create(text, lengths)
            await contexts.push_out()
            for n in lengths:
                for tier, cold, rate, repeats in (
                    (Tier.POOL, False, 0.0, plan[Tier.POOL]),
                    (Tier.DISK, True, 0.0, plan[Tier.DISK]),
                    (Tier.DISK, True, SLOW_DISK, 3),
                    (Tier.DISK, False, 0.0, 3),
                ):
                    row = await contexts.measure(
                        n,
                        tier,
                        cold=cold,
                        repeats=repeats,
                        payload=folder / "payload",
                        slowed=partial(disk.at, rate),
                    )
                    known = {"tokens": n, "tier": tier.name, "bytes_per_s": int(rate)}
                    rows.append({**known, "coded_bytes": _coded(thread, n, precision), **row})
                    how = f"{'cold' if cold else '    '} {'slow' if rate else '    '}"
                    say(f"{bits:2} bits {n:5} tokens {tier.name} {how} {row['switch_ms']} {row['parts_ms']}")
    prefill = {"tokens": n_prefilled, "ms": sig(prefill_ms)}
    return {"bits": bits, "prefill_through_service": prefill, "switches": rows}


def _coded(thread: EngineThread, n: int, precision: Precision) -> int:
    return n // CHUNK_TOKENS * Codec(thread.engine.info.geometry).encoded_size(CHUNK_TOKENS, precision)


# -- the whole ------------------------------------------------------------------------------------


def measure(options: Options) -> Result:
    """The figures of each model, and their bars."""
    results = [_of_model(one) for one in options.each()]
    if len(results) == 1:
        return results[0]
    figures = {"models": [{"model": one.model, **one.figures} for one in results]}
    bars = [replace(bar, what=f"{one.model}: {bar.what}") for one in results for bar in one.bars]
    return Result(" and ".join(one.model for one in results), figures, bars)


def _of_model(options: Options) -> Result:
    lengths = [512, 4096] if options.quick else [512, 1024, 2048, 4096, 8128]
    plan = {Tier.POOL: 9, Tier.DISK: 5} if options.quick else {Tier.POOL: 21, Tier.DISK: 11}
    watch = Stopwatch()
    with engine(options, kind=partial(TimedEngine, watch)) as thread:
        text = prose(thread.engine, lengths[-1] + SPARE, options.seed)
        bits_tried = (4,) if options.quick else (4, 8, 16)
        options.kept.expect(1 + len(bits_tried))
        measured = options.step("floors", partial(_floor_rows, options, thread, text, lengths, plan[Tier.POOL]))
        found = {row.pop("tokens"): Floor(**row) for row in measured}
        runs = []
        for bits in bits_tried:
            say(f"prefill of {lengths[-1]} tokens through the service, coded at {bits} bits")
            folder = options.folder / str(bits)
            make = partial(through_service, thread, watch, folder, text, lengths, bits, plan)
            run = options.step(f"{bits} bits", lambda make=make: asyncio.run(make()))  # type: ignore[misc]
            for row in run["switches"]:
                _compare(row, found[row["tokens"]])
            runs.append(run)
        model = thread.engine.info.name
    figures = {
        "floors": [{"tokens": n, **floor.figures()} for n, floor in found.items()],
        "runs": runs,
    }
    return Result(model, figures, _bars(figures))


def _floor_rows(
    options: Options, thread: EngineThread, text: str, lengths: list[int], repeats: int
) -> list[dict[str, Any]]:
    return [{"tokens": n, **asdict(floor)} for n, floor in floors(options, thread, text, lengths, repeats).items()]


def _compare(row: dict[str, Any], floor: Floor) -> None:
    switch_ms = row["switch_ms"]["median"]
    row["reprefill_over_switch"] = sig(floor.reprefill_ms / switch_ms)
    row["switch_over_copy"] = sig(switch_ms / floor.copy_ms)
    row["switch_over_load"] = sig(switch_ms / floor.load_ms)
    row["file_over_switch"] = sig((floor.slow_file_ms if row["bytes_per_s"] else floor.file_ms) / switch_ms)


def _bars(figures: dict[str, Any]) -> list[Bar]:
    rows = {
        (row["tier"], row.get("cold", False), bool(row["bytes_per_s"])): row
        for row in figures["runs"][0]["switches"]
        if row["tokens"] == 4096
    }
    pool, disk, slow = rows["POOL", False, False], rows["DISK", True, False], rows["DISK", True, True]
    to_pool, to_disk = (f"4096 tokens, 4 bits, {where}" for where in ("POOL -> CELLS", "DISK -> CELLS, cold"))
    return [
        Bar(f"{to_pool}: times faster than re-prefill", pool["reprefill_over_switch"], 300),
        Bar(f"{to_pool}: times as long as copying the f16 bytes on all cores", pool["switch_over_copy"], 3, True),
        Bar(f"{to_pool}: times as long as importing ready f16 slabs", pool["switch_over_load"], 1.3, True),
        Bar(f"{to_disk}: times faster than re-prefill", disk["reprefill_over_switch"], 200),
        Bar(f"{to_disk}: times faster than the whole f16 state from a cold file", disk["file_over_switch"], 1),
        Bar(f"{to_disk}, at 300 MB/s: times faster than that file", slow["file_over_switch"], 3),
        Bar("payload pages in the page cache before a cold switch (fraction)", disk["resident_before"], 0.01, True),
    ]


if __name__ == "__main__":
    sys.exit(main("switch", __doc__ or "", measure))
