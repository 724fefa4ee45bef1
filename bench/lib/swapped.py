"""Contexts that a bench pushes out of CELLS and brings back, through a service in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

from bench.lib.probes import resident_fraction, storage_bytes_read
from bench.lib.stats import sig, summary
from bench.lib.timed import DECODE, FILE, LOAD, OPEN, READ, Stopwatch
from llmaas.calls import CallSpec, Done, Generation, Turn
from llmaas.kvchunks.store.store import Store
from llmaas.records import AppId, ContextId, Tier
from llmaas.service.service import Service

APP = AppId("0/bench")
POOL_BYTES = 512 << 20
SPARE = 8
"""Tokens to prefill beyond the context and cut off again: text put through a tokenizer twice may shrink a little."""


class SwappedContexts:
    """One context of each length, all of the same text, and pushers: small contexts that push these out of CELLS.

    Before ``switch`` or ``measure``, ``create`` makes the contexts, or ``reopen`` finds them in the store.
    """

    def __init__(self, service: Service, store: Store, watch: Stopwatch | None = None) -> None:
        """``watch``: that of the service's timed parts, if it has such."""
        self._service, self._store, self._watch = service, store, watch
        self._contexts: dict[int, ContextId] = {}
        self._pushers: list[ContextId] = []

    async def create(self, text: str, lengths: Sequence[int]) -> tuple[int, float]:
        """Compute the longest context and fork the shorter ones off it.

        Returns the tokens and milliseconds of that prefill. ``text`` has some tokens more than the longest context.
        """
        longest = (await self._service.create(APP, name="longest", system=None)).id
        begin = perf_counter()
        done = await self.call(longest, Turn(prompt=text), None)
        spent = (perf_counter() - begin) * 1e3
        await self._service.wait_idle()
        for n in lengths:
            self._contexts[n] = (await self._service.fork(APP, longest, name=f"{n} tokens")).id
            await self._service.truncate(APP, self._contexts[n], n_tokens=n, n_messages=None)
        await self._service.delete(APP, longest)
        await self.add_pushers()
        return done.n_tokens, spent

    async def reopen(self, lengths: Sequence[int]) -> None:
        """Use the contexts that ``create`` made, with an earlier service on the same store."""
        self._pushers = [self._service.info(APP, name).id for name in self._names()]
        self._contexts = {n: self._service.info(APP, f"{n} tokens").id for n in lengths}

    async def add_pushers(self) -> None:
        """Create the pushers: contexts of one token, as many as can be in CELLS. ``create`` does it, too."""
        self._pushers = [(await self._service.create(APP, name=name, system=None)).id for name in self._names()]
        for pusher in self._pushers:
            await self.call(pusher, Turn(prompt="The"), None)

    def _names(self) -> list[str]:
        return [f"pusher {i}" for i in range(self._service.planner_settings.n_seqs)]

    async def call(self, context: ContextId, turn: Turn, generation: Generation | None) -> Done:
        """Run one call to its end."""
        _, reply = self._service.submit(APP, context, CallSpec(turn, generation), lambda piece: None)
        return await reply

    async def push_out(self) -> None:
        """Use every pusher once, so that no sequence is left for the context that was used last."""
        await self._service.wait_idle()
        for pusher in self._pushers:
            await self.call(pusher, Turn(), None)
        await self._service.wait_idle()

    async def leave_pool(self) -> None:
        """Drop all chunks from the POOL; they stay on DISK."""
        self._service.budget(pool_bytes=0)
        self._service.budget(pool_bytes=POOL_BYTES)

    async def switch(self, n: int) -> Done:
        """``switch_to`` the context of ``n`` tokens."""
        return await self.switch_to(self._contexts[n], n)

    async def switch_to(self, context: ContextId, n: int) -> Done:
        """One call that needs all ``n`` tokens of the context and draws one; the context is then cut back to ``n``."""
        done = await self.call(context, Turn(), Generation(max_tokens=1))
        await self._service.truncate(APP, context, n_tokens=n, n_messages=None)
        return done

    async def measure(
        self,
        n: int,
        tier: Tier,
        *,
        cold: bool,
        repeats: int,
        payload: Path,
        slowed: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> dict[str, Any]:
        """Figures of ``repeats`` switches to the context of ``n`` tokens, whose chunks come from ``tier``.

        ``payload`` is the store's folder of payload files; ``cold``: they are not in the page cache. ``slowed``
        throttles the disk for the time of a switch. Raises RuntimeError if chunks came from elsewhere.
        """
        switches, firsts, parts, reads, resident = [], [], [], [], []
        for i in range(repeats + 1):
            await self.push_out()
            if tier is Tier.DISK:
                await self.leave_pool()
                if cold:
                    self._store.evict_page_cache()
                else:
                    _read_all(payload)
                resident.append(resident_fraction(payload))
            if self._watch:
                self._watch.clear()
            before, cpu = storage_bytes_read(), process_time()
            with slowed():
                done = await self.switch(n)
            read, cpu = storage_bytes_read() - before, process_time() - cpu
            if i == 0:  # the first switch faults buffers in, and fetches to the POOL what is not there
                continue
            _expect(done, n, tier)
            reads.append(read)
            switches.append(done.switch.switch_ms)
            firsts.append(done.ttft_ms)
            if self._watch:
                parts.append(_parts(self._watch, done.switch.switch_ms) | {"call_cpu": cpu * 1e3})
        figures: dict[str, Any] = {"switch_ms": summary(switches), "ttft_ms": summary(firsts)}
        if parts:
            figures["parts_ms"] = {name: sig(median(part[name] for part in parts)) for name in parts[0]}
        if tier is Tier.DISK:
            figures["cold"] = cold
            figures["bytes_from_storage"] = int(median(reads))
            figures["resident_before"] = sig(max(resident[1:]))
        return figures


def _read_all(folder: Path) -> None:
    """Bring all files into the page cache: what the POOL keeps is read past it."""
    for path in folder.iterdir():
        path.read_bytes()


def _expect(done: Done, n: int, tier: Tier) -> None:
    moved = done.switch.pool if tier is Tier.POOL else done.switch.disk
    if moved != n:
        raise RuntimeError(f"{n} tokens should have come from {tier.name}: {done.switch}")


def _parts(watch: Stopwatch, switch_ms: float) -> dict[str, float]:
    """Milliseconds by part of one switch; they overlap. ``decode_sum`` and ``open_sum`` are summed over threads."""
    return {
        "read": watch.total_ms(READ),
        "read_file": watch.total_ms(FILE),
        "read_cpu": watch.cpu_ms(READ),
        "open_sum": watch.total_ms(OPEN),
        "open_cpu": watch.cpu_ms(OPEN),
        "decode_sum": watch.total_ms(DECODE),
        "decode_cpu": watch.cpu_ms(DECODE),
        "decode_wall": watch.wall_ms(DECODE),
        "load_sum": watch.total_ms(LOAD),
        "load_cpu": watch.cpu_ms(LOAD),
        "load_waits": watch.wall_ms(LOAD) - watch.total_ms(LOAD),
        "hand_over": switch_ms - watch.wall_ms(READ, DECODE, LOAD),
    }
