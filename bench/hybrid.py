"""Hybrid and recurrent models: how fast whole states bring contexts back, against computing them, and how exactly.

No registry has such a model of a few megabytes, so the bench writes two with random weights, as the tests do: one with
attention in every third layer (LFM2's kind), one with none (Mamba). What a step takes does not depend on the values.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.clients import serving
from bench.lib.engine import N_BATCH, engine
from bench.lib.stats import sig, summary
from bench.lib.swapped import APP, POOL_BYTES, SwappedContexts
from llmaas.calls import Generation, Sampling, Turn
from llmaas.engine.base import BatchItem
from llmaas.engine.thread import EngineThread
from llmaas.kv_arrays import F32
from llmaas.kvchunks.store.store import Store
from llmaas.records import Tier
from tests.support.random_models import Shape, write_hybrid
from tests.support.recurrent_models import write_mamba

_WIDTH = 768
_AFTER = 8
"""Tokens whose logits are compared."""
_FASTER = 100.0
MODELS: dict[str, Callable[[Path], Path]] = {
    "hybrid": lambda path: write_hybrid(
        path, shape=Shape(_WIDTH, 2048, 12, 64, 4), pattern=[i % 3 == 2 for i in range(12)]
    ),
    "recurrent": lambda path: write_mamba(path, layers=12, width=_WIDTH, state=16),
}


def in_engine(thread: EngineThread, tokens: list[int]) -> dict[str, Any]:
    """On the engine's thread: the prefill, and whether a state comes back to the last bit."""
    own = thread.engine
    begin = perf_counter()
    for at in range(0, len(tokens), N_BATCH):
        own.step([BatchItem(0, at, tokens[at : at + N_BATCH])])
    prefill = perf_counter() - begin
    state = own.export_state(0)
    right = next_logits(thread, 0)
    own.drop(0, 0)
    begin = perf_counter()
    own.load_state(1, len(tokens), state)
    load = perf_counter() - begin
    found = next_logits(thread, 1)
    own.drop(1, 0)
    same = all(np.array_equal(a, b) for a, b in zip(right, found, strict=True))
    return {"prefill_s": sig(prefill), "state_bytes": state.nbytes, "into_cells_ms": sig(load * 1e3), "identical": same}


def next_logits(thread: EngineThread, seq: int) -> list[F32]:
    own, found = thread.engine, []
    own.set_sampler(seq, Sampling(temperature=0.0))
    for i in range(_AFTER):
        own.step([BatchItem(seq, own.length(seq), [i + 3], seq)])
        found.append(own.logits())
    own.set_sampler(seq, None)
    return found


async def switches(thread: EngineThread, folder: Path, text: str, repeats: int) -> dict[str, Any]:
    """Milliseconds until all of a context is in CELLS again, from POOL and from cold files. Each call adds a token or
    two, so that there is a new state each time."""
    times: dict[Tier, list[float]] = {Tier.POOL: [], Tier.DISK: []}
    with Store(folder) as store:
        async with serving(thread, store, pool_bytes=POOL_BYTES) as service:
            contexts = SwappedContexts(service, store)
            context = (await service.create(APP, name="x", system=None)).id
            await contexts.call(context, Turn(prompt=text), None)
            await contexts.add_pushers()
            for i in range(2 * repeats + 2):
                await contexts.push_out()
                tier = Tier.POOL if i % 2 else Tier.DISK
                if tier is Tier.DISK:
                    await contexts.leave_pool()
                    store.evict_page_cache()
                done = await contexts.call(context, Turn(prompt="a"), Generation(max_tokens=1))
                moved = done.switch.pool if tier is Tier.POOL else done.switch.disk
                if moved == 0 or done.switch.recomputed:
                    raise RuntimeError(f"the state should have come from {tier.name}: {done.switch}")
                if i > 1:  # the first faults buffers in
                    times[tier].append(done.switch.switch_ms)
    return {"pool_ms": summary(times[Tier.POOL]), "disk_ms": summary(times[Tier.DISK])}


def words(thread: EngineThread, n_tokens: int, seed: int) -> str:
    """A text of about so many tokens of the models' small vocabulary."""
    rng, text = random.Random(seed), ""
    while len(thread.engine.tokenize(text, special=False, bos=True)) < n_tokens:
        text += "".join(rng.choices("bdfghjklmpqsvwxz", k=64))
    return text


def measure(options: Options) -> Result:
    n_tokens, repeats = (1024, 3) if options.quick else (4096, 9)
    figures: dict[str, Any] = {"tokens": n_tokens}
    for kind, write in MODELS.items():
        own = replace(options, model=write(options.folder / f"{kind}.gguf"))
        with engine(own, cells=2 * n_tokens) as thread:
            text = words(thread, n_tokens, options.seed)
            tokens = thread.engine.tokenize(text, special=False, bos=True)[:n_tokens]
            found = thread.submit(in_engine, thread, tokens).result()
            say(f"{kind}: {found}")
            found |= asyncio.run(switches(thread, options.folder / kind, text, repeats))
        for tier in ("pool", "disk"):
            found[f"{tier}_times_faster"] = sig(found["prefill_s"] * 1e3 / found[f"{tier}_ms"]["median"])
            say(
                f"{kind} from {tier}: {found[f'{tier}_ms']['median']} ms, {found[f'{tier}_times_faster']} times as fast"
            )
        figures[kind] = found
    return Result("random weights", figures, bars(figures))


def bars(figures: dict[str, Any]) -> list[Bar]:
    found = []
    for kind in MODELS:
        for tier in ("pool", "disk"):
            what = f"{kind}: from {tier.upper()} against computing {figures['tokens']} tokens"
            found.append(Bar(what, figures[kind][f"{tier}_times_faster"], _FASTER))
        found.append(Bar(f"{kind}: logits are bit-identical", float(figures[kind]["identical"]), 1.0))
    return found


if __name__ == "__main__":
    sys.exit(main("hybrid", __doc__ or "", measure))
