"""The service: contexts of many apps on one model.

Law: what a reply acknowledges is durable before the reply leaves. Everything here runs on one event loop; the planner
decides what runs when, and ``service/interpreter`` carries it out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import TypeVar

from llmaas.calls import CallSpec, Done, Piece, Turn
from llmaas.clock import Clock, RealClock
from llmaas.engine.thread import EngineThread
from llmaas.errors import (
    BadRequest,
    ContextExists,
    ModelMismatch,
    ShuttingDown,
)
from llmaas.kvchunks.store.store import ContextRow, Store
from llmaas.metrics import Registry
from llmaas.planner.events import ChunksFound, ContextClosed, ContextOpened, Flush, RateChanged
from llmaas.policies import duty
from llmaas.policies.pool_budget import MemoryReading
from llmaas.records import AppId, ContextDetail, ContextInfo, Message, RequestId
from llmaas.service.adapters import AdapterRegistry
from llmaas.service.budgets import Budgets
from llmaas.service.call import Call, turn_spans
from llmaas.service.contexts import Directory, LiveContext, new_id, tell_changed, total_tokens
from llmaas.service.host_share import HostShare
from llmaas.service.interpreter import Interpreter
from llmaas.service.runner import CallRunner, StoreThread, refuse_if_deleted, refuse_if_too_long
from llmaas.service.settings import ServiceSettings, settings_for

log = logging.getLogger(__name__)
T = TypeVar("T")

_DRAIN_SECONDS = 30.0


class Service:
    """Contexts of many apps on one model. Make it, ``await start()``, use it on that event loop, ``await stop()``."""

    def __init__(
        self, engine: EngineThread, store: Store, settings: ServiceSettings, clock: Clock | None = None
    ) -> None:
        self._thread, self._engine, self._store = engine, engine.engine, store
        self._settings = settings
        self._clock = clock or RealClock()
        self._model = self._engine.info
        self.planner_settings = settings_for(engine.engine, settings.planner)
        self._host = HostShare(self._engine, settings.adaptive_threads, self._clock)
        self._metrics = Registry()
        self._rows = StoreThread()
        self._directory = Directory()
        self._calls: dict[RequestId, Call] = {}
        self._rates: dict[AppId | None, float | None] = {None: settings.planner.rate}
        self._closing = False
        self.adapters = AdapterRegistry(engine, store, self._rows.run, settings.planner.adapter_bytes)

    async def start(self) -> None:
        """Take up every stored context. Raises StoreFailed, and what is wrong with an adapter of the settings."""
        await self.adapters.start(self._settings.adapters)
        self._loop = asyncio.get_running_loop()
        self._interpreter = Interpreter(
            self._thread,
            self._store,
            self.planner_settings,
            self._clock,
            self._calls,
            self._directory,
            self._settings.record,
            self._settings.write_rate,
            self._host,
            self.adapters.cache,
        )
        self._planner = self._interpreter.planner
        self._dispatch = self._interpreter.dispatch
        give_back = self._interpreter.pool.trim_memory
        self._budgets = Budgets(self._planner, self._dispatch, give_back, self._clock, self._metrics)
        self._runner = CallRunner(
            self._engine,
            self._store,
            self._rows,
            self._clock,
            self._calls,
            self._dispatch,
            self._planner.stored,
            self._interpreter.release,
            self._metrics,
            self.adapters,
            ctx_limit=self.planner_settings.ctx_limit,
            queue_limit=self._settings.queue_limit,
        )
        found = await self._rows.run(lambda: {chunk.key: chunk for chunk in self._store.chunks()})
        rows = await self._rows.run(self._store.contexts)
        for row in sorted(rows, key=lambda row: row.last_used):  # the disk quota counts contexts as used in this order
            live = self._live(row)
            live.note(await self._rows.run(self._store.spans, row.id), add_tokens=True)
            live.adopt(found.keys())
            self._open(live)
        self._dispatch(ChunksFound(tuple((chunk.key, chunk.nbytes, chunk.meta) for chunk in found.values())))
        log.info("serving %s: %d contexts, %d chunks on disk", self._model.name, len(self._directory), len(found))

    async def stop(self) -> None:
        """Refuse new work, end what runs, finish the swap-out, end the workers (not the engine, not the store)."""
        if self._closing:
            return
        self._closing = True
        self._runner.close()
        try:
            await asyncio.wait_for(self._drain(), _DRAIN_SECONDS)
        except asyncio.TimeoutError:
            log.warning("swap-out did not finish in %.0f s; what is missing will be recomputed", _DRAIN_SECONDS)
        await self._loop.run_in_executor(None, self._interpreter.close)
        self._rows.close()

    async def _drain(self) -> None:
        await self._runner.wait_idle()
        self._dispatch(Flush())
        await self._interpreter.wait_idle()

    async def wait_idle(self) -> None:
        """Return when no call runs and everything has been swapped out.

        Last chunks that are not full go to DISK when their context leaves CELLS.
        """
        await self._runner.wait_idle()
        await self._interpreter.wait_idle()

    # -- contexts

    def hello(self) -> dict[str, object]:
        """Facts that a client should know."""
        return {"model": self._model.name, "context_limit": self.planner_settings.ctx_limit, "note": self._model.note}

    async def create(self, app: AppId, *, name: str | None, system: str | None, adapter: str = "") -> ContextInfo:
        """A new context, empty but for its system message. Raises ContextExists, ContextTooLong, DiskFull,
        UnknownAdapter."""
        self._refuse_if_closing()
        self.adapters.file(adapter)
        row = self._new_row(app, name, adapter)
        live = self._live(row)
        turn = Turn((Message("system", system),) if system else ())
        spans = turn_spans(self._engine, live, turn, answer=False)
        refuse_if_too_long(total_tokens(spans), self.planner_settings.ctx_limit)
        await self._rows.run(self._store.create_context, row, spans)
        live.note(spans, add_tokens=True)
        live.used = self._clock.now()
        self._open(live)
        return self.info(live)

    async def fork(self, app: AppId, context: str, *, name: str | None) -> ContextInfo:
        """A new context with the same tokens; it shares the chunks of the old one."""
        self._refuse_if_closing()
        source = self._usable(app, context)
        async with source.lock:
            refuse_if_deleted(source)
            row = self._new_row(app, name, source.adapter)
            await self._rows.run(self._store.fork, source.id, row)
            live = self._live(row)
            live.root = source.root
            live.tokens, live.marks = source.tokens[:], list(source.marks)
            live.keys, live.n_kv = list(source.keys), source.n_kv
            live.used = self._clock.now()
            self._open(live)
        return self.info(live)

    async def truncate(self, app: AppId, context: str, *, n_tokens: int | None, n_messages: int | None) -> ContextInfo:
        """Keep the first ``n_tokens`` tokens, or the first ``n_messages`` messages."""
        self._refuse_if_closing()
        live = self._usable(app, context)
        async with live.lock:
            refuse_if_deleted(live)
            keep = _cut_point(live, n_tokens, n_messages)
            now = self._clock.wall()
            live.reread(await self._rows.run(self._store.truncate, live.id, keep, now))
            live.last_used, live.used = now, self._clock.now()
            tell_changed(live, min(live.n_kv, keep), self._dispatch)
        return self.info(live)

    async def delete(self, app: AppId | None, context: str) -> None:
        """Forget the context and its chunks. A call that runs on it is cancelled."""
        live = self._directory.find(app, context)
        self._runner.end_calls_of(live)
        async with live.lock:
            refuse_if_deleted(live)
            # Not on the thread of rows: what forks share is sealed anew meanwhile, and turns must not wait for that.
            sealed = await asyncio.to_thread(self._store.encrypted_for, live.id)
            heirs = self._directory.heirs(live, sealed)
            gone = await asyncio.to_thread(self._store.delete_context, live.id, heirs)
            live.deleted = True
            self._directory.remove(live)
            self._dispatch(ContextClosed(live.id, tuple(gone)))

    def contexts(self, app: AppId | None) -> list[ContextInfo]:
        """An app's contexts, or everyone's; most recently used first."""
        found = [live for live in self._directory if app is None or live.row.app == app]
        found.sort(key=lambda live: (live.used, live.last_used), reverse=True)
        return [self.info(live) for live in found]

    def show(self, app: AppId | None, context: str) -> ContextDetail:
        live = self._directory.find(app, context)
        return ContextDetail(self.info(live), tuple(live.messages))

    def info(self, live: LiveContext) -> ContextInfo:
        cells, pool, disk, none = self._planner.tiers(live.id)
        row = live.row
        return ContextInfo(
            id=row.id,
            app=row.app,
            name=row.name,
            n_tokens=len(live.tokens),
            n_messages=len(live.marks),
            created=row.created,
            last_used=live.last_used,
            tiers=(cells, pool, disk, none + max(0, len(live.tokens) - live.n_kv)),
            usable=live.usable,
            adapter=live.adapter,
        )

    # -- calls

    def submit(
        self,
        app: AppId,
        context: str,
        spec: CallSpec,
        emit: Callable[[Piece], None],
    ) -> tuple[RequestId, asyncio.Future[Done]]:
        """Add a turn and, if ``spec`` has a generation, answer it. Calls of one context run one after another.

        The future ends with Done, or with an LlmaasError: Cancelled, Expired, ContextTooLong, BadRequest, DiskFull,
        EngineFailed, UnknownContext (deleted meanwhile), UnknownAdapter, AdapterUnreadable, AdapterMismatch, Busy (its
        adapter is larger than all the room). After an error the context is as it was before the call,
        except after Cancelled or Expired with tokens generated: those were streamed and stay.
        """
        self._refuse_if_closing()
        self.adapters.file(spec.terms.adapter or "")
        return self._runner.submit(self._usable(app, context), spec, emit)

    def prioritize(self, request: RequestId, priority: int) -> None:
        """Change how urgent a call is (0 .. 9, 0 most), while it waits or runs. No effect if it has ended."""
        self._runner.prioritize(request, priority)

    def limit(self, app: AppId | None, rate: float | None) -> dict[str, object]:
        """Set the tokens per second that an app, or without ``app`` all together, may generate; None: no limit."""
        self._rates[app] = rate
        self._dispatch(RateChanged(app, rate))
        return self._limits()

    def _limits(self) -> dict[str, object]:
        apps = {str(app): rate for app, rate in sorted(self._rates.items(), key=str) if app is not None}
        return {"rate": self._rates[None], "app_rate": self._settings.planner.app_rate, "apps": apps}

    def hint(self, app: AppId, context: str) -> None:
        """The context will be used soon: bring it back to CELLS, if nobody else waits. Nothing is promised."""
        self._refuse_if_closing()
        self._runner.hint(self._usable(app, context))

    def cancel(self, request: RequestId) -> None:
        """The request's future ends with Cancelled, soon. One that has ended already is left alone."""
        self._runner.cancel(request)

    def budget(self, pool_bytes: int | None = None, disk_bytes: int | None = None) -> dict[str, object]:
        """Set what POOL or DISK may hold (bytes), and tell what holds now. Shrinking drops chunks at once."""
        self._budgets.set(pool_bytes, disk_bytes)
        return dict(self._budgets.snapshot())

    def on_memory_reading(self, reading: MemoryReading) -> None:
        """Take in what the machine says of its memory: the POOL's budget follows."""
        if not self._closing:
            self._budgets.on_reading(reading)

    def on_thermal_reading(self, reading: duty.ThermalReading) -> None:
        """Take in how hot, throttled or low on battery the machine is: the share of time to compute follows."""
        if not self._closing:
            self._host.on_reading(reading, self._dispatch)

    # -- helpers

    def _live(self, row: ContextRow) -> LiveContext:
        root = self.adapters.root(row.app, row.adapter)
        usable = row.vocab == self._model.vocab
        return LiveContext(row, root, usable=usable, adapter=row.adapter, last_used=row.last_used)

    def _open(self, live: LiveContext) -> None:
        self._directory.add(live)
        idle = max(0.0, self._clock.wall() - live.last_used)
        self._dispatch(ContextOpened(live.id, live.row.app, tuple(live.keys), live.n_kv, idle))

    def _new_row(self, app: AppId, name: str | None, adapter: str) -> ContextRow:
        if name is None:
            name = self._directory.fresh_name(app)
        if self._directory.has_name(app, name):
            raise ContextExists(f"app {app} has a context named {name!r} already")
        now = self._clock.wall()
        return ContextRow(new_id(), app, name, self._model.name, self._model.vocab, now, now, 0, adapter)

    def _usable(self, app: AppId, context: str) -> LiveContext:
        live = self._directory.find(app, context)
        if not live.usable:
            raise ModelMismatch(f"context {live.row.name!r} was made with model {live.row.model!r}")
        return live

    def _refuse_if_closing(self) -> None:
        if self._closing:
            raise ShuttingDown("the service is stopping")

    def stats(self) -> dict[str, object]:
        """Counts and bytes, as plain values."""
        planner, budgets = self._planner, self._budgets.snapshot()
        budgets["disk_bytes"]["files"] = self._store.stats().file_bytes
        return {
            "model": self._model.name,
            "contexts": len(self._directory),
            "requests": {"active": len(self._calls), "waiting": planner.waiting, "total": self._runner.total},
            "cells": {"used": planner.cells_used, "total": self.planner_settings.n_cells},
            **budgets,
            "adapters": self.adapters.stats(),
            "limits": self._limits(),
            "host": self._host.snapshot(),
            "counts": asdict(planner.tally),
            "calls": self._metrics.snapshot(),
        }

    def check(self) -> list[str]:
        """Problems in the books of planner and pool; empty when all is well. Only at rest."""
        problems = self._planner.check()
        held = self._interpreter.pool.nbytes
        if held != self._planner.pool_used:
            problems.append(f"POOL: {held} bytes held, {self._planner.pool_used} on the books")
        return problems


def _cut_point(live: LiveContext, n_tokens: int | None, n_messages: int | None) -> int:
    if (n_tokens is None) == (n_messages is None):
        raise BadRequest("give n_tokens or n_messages, one of them")
    if n_messages is not None:
        if not 0 <= n_messages <= len(live.marks):
            raise BadRequest(f"the context has {len(live.marks)} messages, not {n_messages}")
        return live.marks[n_messages - 1].end if n_messages else 0
    assert n_tokens is not None
    if not 0 <= n_tokens <= len(live.tokens):
        raise BadRequest(f"the context has {len(live.tokens)} tokens, not {n_tokens}")
    return n_tokens
