"""The service: contexts of many apps on one model.

Law: what a reply acknowledges is durable before the reply leaves. Everything here runs on one event loop; the planner
decides what runs when, and ``service/interpreter`` carries it out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from llmaas.calls import CallSpec, Done, Piece
from llmaas.clock import Clock, RealClock
from llmaas.data_folder import main_folder
from llmaas.engine.thread import EngineThread
from llmaas.errors import LlmaasError, ShuttingDown, UnknownRequest
from llmaas.fair_thread import FairThread
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.store.store import ContextSummary, Store
from llmaas.metrics import Registry
from llmaas.planner.events import Flush, RateChanged
from llmaas.policies.duty import ThermalReading
from llmaas.policies.pool_budget import MemoryReading
from llmaas.records import (
    AppId,
    AppQuota,
    AppUse,
    ContextDetail,
    ContextId,
    ContextInfo,
    Message,
    RequestId,
    RequestInfo,
    Resolved,
)
from llmaas.service.adapters import AdapterRegistry
from llmaas.service.app_file import FILE as APPS_FILE
from llmaas.service.app_quotas import AppQuotas, as_plain
from llmaas.service.apps import Apps
from llmaas.service.budgets import Budgets
from llmaas.service.contexts import Contexts
from llmaas.service.embeddings import TextEmbedder
from llmaas.service.figures import figures
from llmaas.service.hello import hello_facts
from llmaas.service.histories import Histories
from llmaas.service.host_share import HostShare
from llmaas.service.idle_weights import IdleWeights, WeightSource
from llmaas.service.interpreter import Interpreter
from llmaas.service.parts import ServiceParts
from llmaas.service.queue_teller import QueueTeller
from llmaas.service.quotas import Quotas
from llmaas.service.refusals import refuse_without_text
from llmaas.service.resolver import Resolver
from llmaas.service.runner import CallRunner
from llmaas.service.settings import ServiceSettings, settings_for
from llmaas.service.text_threads import TextThreads
from llmaas.service.transfers import Transfers
from llmaas.service.warm_start import WarmStart

log = logging.getLogger(__name__)

_DRAIN_SECONDS = 30.0


class Service:
    """Contexts of many apps on one model. Make it, ``await start()``, use it on that event loop, ``await stop()``."""

    def __init__(
        self,
        engine: EngineThread,
        store: Store,
        settings: ServiceSettings,
        clock: Clock | None = None,
        codec: Codec | None = None,
        weights: WeightSource | None = None,
    ) -> None:
        """``codec``: one for the engine's geometry and rope, by default; a bench gives one that it times.
        ``weights``: where they come back from; None: they are in no file."""
        self._settings = settings
        self.planner_settings = settings_for(engine.engine, settings.planner)
        clock, store_thread, text_threads = clock or RealClock(), FairThread("store"), TextThreads()
        self.adapters = AdapterRegistry(engine, store, store_thread, settings.planner.adapter_bytes)
        self.weights = IdleWeights(engine, settings.keep_alive, self._in_use, weights)
        self._parts = ServiceParts(
            engine_thread=engine,
            store=store,
            store_thread=store_thread,
            text_threads=text_threads,
            histories=Histories(text_threads),
            slow_thread=FairThread("slow"),
            codec=codec or Codec(self.planner_settings.geometry, engine.engine.rope),
            adapters=self.adapters,
            host=HostShare(engine.engine, settings.adaptive_threads, clock),
            weights=self.weights,
            clock=clock,
            metrics=Registry(),
            quotas=Quotas(settings.app_contexts, settings.app_text_bytes),
            queue=QueueTeller(clock),
        )
        self.embeddings = TextEmbedder(self._parts, settings.queue_limit)
        self.apps = Apps(main_folder(store.root) / APPS_FILE, store_thread, self, clock)
        self._rates: dict[AppId | None, float | None] = {None: settings.planner.rate}
        self._closing, self._started = False, clock.now()
        self._closer, self._failed = FairThread("close"), asyncio.Event()

    async def start(self, stored: Sequence[ContextSummary] | None = None) -> None:
        """List every stored context; most are looked at later. ``stored``: the store's summaries, if they have been
        read already. Raises StoreFailed (AppsDamaged), and what is wrong with an adapter of the settings."""
        await self.apps.start()
        await self.adapters.start(self._settings.adapters)
        parts, settings, ctx_limit = self._parts, self._settings, self.planner_settings.ctx_limit
        interpreter = self._interpreter = Interpreter(
            parts, self.planner_settings, record=settings.record, costs=settings.costs, write_rate=settings.write_rate
        )
        interpreter.on_fault = self._failed.set
        self._planner, self._dispatch = interpreter.planner, interpreter.dispatch
        self.budgets = Budgets(self._planner, self._dispatch, interpreter.pool.trim_memory, parts.clock, parts.metrics)
        self._contexts = Contexts(
            parts, interpreter, ctx_limit=ctx_limit, anonymous_contexts=settings.anonymous_contexts
        )
        self.transfers = Transfers(parts, interpreter, self._contexts, ctx_limit)
        self._runner = CallRunner(
            parts,
            interpreter,
            self._contexts.anonymous,
            self._contexts.stored,
            ctx_limit=ctx_limit,
            queue_limit=settings.queue_limit,
            keep_thoughts=settings.keep_thoughts,
        )
        self._resolver = Resolver(parts, self._contexts, self._runner.end_hints)
        self._app_quotas = AppQuotas(parts, self._planner, self._dispatch, settings.planner.app_rate)
        self.apps.apply_quotas()
        await self._contexts.open_stored(stored)
        self._warm_start = WarmStart(parts, self._runner, self._planner, self._dispatch, wanted=settings.warm_start)

    async def stop(self) -> None:
        """Refuse new work, end what runs, finish the swap-out, end the workers (not the engine, not the store)."""
        if self._closing:
            return
        self._closing = True
        self.weights.close()
        self._warm_start.close()
        self._runner.close()
        self._contexts.stored.close()
        self.stop_text()
        try:
            await asyncio.wait_for(self._drain(), _DRAIN_SECONDS)
        except asyncio.TimeoutError:
            log.warning("swap-out did not finish in %.0f s; what is missing will be recomputed", _DRAIN_SECONDS)
        await self._closer.run("", self._close_threads)
        self._closer.close()

    def _close_threads(self) -> None:
        """On a thread of its own: each may have something to finish."""
        self._interpreter.close()
        self.adapters.close()
        self._runner.end_threads()
        self._parts.text_threads.close()
        self._parts.slow_thread.close(finish=False)
        self._parts.store_thread.close()

    def stop_text(self) -> None:
        """The first step of ``stop``, which may be taken before: requests whose text has not been read yet fail."""
        self.embeddings.close()
        self._parts.engine.stop_text()
        self._parts.text_threads.close(wait=False)

    async def _drain(self) -> None:
        await self._runner.wait_idle()
        await self._contexts.expiry.close()
        await self._contexts.anonymous.wait_idle()
        await self._interpreter.wait_idle()  # a last chunk that is still being saved would not be written
        self._dispatch(Flush())
        await self._interpreter.wait_idle()

    async def failed(self) -> LlmaasError:
        """Return when no call can be served any more, for the reason that is returned; normally never."""
        await self._failed.wait()
        assert self._interpreter.fault is not None
        return self._interpreter.fault

    @property
    def usage(self) -> tuple[int, int]:
        """How many requests of the model wait or run, and how many there were since the start."""
        return len(self._parts.calls) + sum(self._parts.embedding.values()), self._runner.total

    def _in_use(self) -> bool:
        return bool(self._parts.calls or self._parts.embedding)

    @property
    def idle(self) -> bool:
        """Whether no call waits or runs and everything has been swapped out."""
        return not self._parts.calls and self._planner.idle and self._contexts.stored.idle

    async def wait_idle(self) -> None:
        """Return when no call runs, stored contexts have been looked at, and everything has been swapped out: last
        chunks that are not full to the POOL only."""
        await self._contexts.stored.all_known()
        await self._warm_start.done()
        await self._runner.wait_idle()
        await self._contexts.anonymous.wait_idle()
        await self._interpreter.wait_idle()

    # -- contexts

    def hello(self) -> dict[str, object]:
        """Facts that a client should know."""
        return hello_facts(self._parts.engine.info, self._settings, self.planner_settings, self.embeddings.limit)

    async def create(
        self,
        app: AppId,
        *,
        name: str | None,
        system: str | None,
        adapter: str = "",
        exist_ok: bool = False,
        ttl: float | None = None,
    ) -> ContextInfo:
        """A new context, empty but for its system message; with ``exist_ok`` the one that has the name, if any. It is
        deleted when nobody has used it for ``ttl`` seconds.

        Raises ContextExists, ContextTooLong, DiskFull, UnknownAdapter.
        """
        self._refuse_to_write()
        if exist_ok and name is not None:
            return await self._contexts.get_or_create(app, name, system, adapter, ttl)
        return await self._contexts.create(app, name, system, adapter, ttl)

    async def fork(self, app: AppId, context: str, *, name: str | None, n_messages: int | None = None) -> ContextInfo:
        """A new context with the same tokens, or with those of the first ``n_messages`` messages; it shares the chunks
        of the old one."""
        self._refuse_to_write()
        return await self._contexts.fork(app, context, name, n_messages)

    async def resolve(self, app: AppId, messages: Sequence[Message], *, adapter: str = "") -> Resolved:
        """The context in which a conversation goes on: one that holds the first of these messages, as many as can be
        found; kept for the caller until its next call. Raises Busy, QuotaExceeded, UnknownAdapter, DiskFull."""
        self._refuse_to_write()
        return await self._resolver.resolve(app, messages, adapter)

    async def truncate(self, app: AppId, context: str, *, n_tokens: int | None, n_messages: int | None) -> ContextInfo:
        """Keep the first ``n_tokens`` tokens, or the first ``n_messages`` messages."""
        self._refuse_if_closing()
        return await self._contexts.truncate(app, context, n_tokens, n_messages)

    async def migrate(self, app: AppId | None, context: str) -> ContextInfo:
        """Tokenize a conversation that another model's tokenizer made anew, for this model; one of this tokenizer stays
        as it is. Raises ModelMismatch if a part of it is not stored as text, ContextTooLong."""
        self._refuse_to_write()
        return await self._contexts.migrate(app, context)

    async def delete(self, app: AppId | None, context: str) -> None:
        """Delete the context and its chunks. A call that runs on it is cancelled."""
        live = self._contexts.find(app, context)
        self._runner.cancel_calls_of(live)
        await self._contexts.delete(live)

    def ids(self, app: AppId) -> list[ContextId]:
        """The ids of an app's contexts."""
        return self._parts.directory.ids(app)

    def used(self, app: AppId) -> AppUse:
        """What an app has, of what its quotas bound."""
        return self._app_quotas.used(app)

    def set_quota(self, app: AppId, quota: AppQuota) -> None:
        """An app may have so much from now on."""
        self._app_quotas.set(app, quota)

    def contexts(self, app: AppId | None) -> list[ContextInfo]:
        """An app's contexts, or everyone's; most recently used first."""
        return self._contexts.infos(app)

    def contexts_after(self, app: AppId | None, number: int) -> Iterator[tuple[int, ContextInfo]]:
        """An app's contexts, or everyone's, with numbers above ``number``, each with its number."""
        return self._contexts.infos_after(app, number)

    def info(self, app: AppId | None, context: str) -> ContextInfo:
        """A context without its messages. Raises UnknownContext."""
        return self._contexts.info(self._contexts.find(app, context))

    def load(self, app: AppId | None, context: str) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """What must be called and awaited before ``show``, to read a context that has not been used since the start;
        None if it has been. Raises UnknownContext, ContextDamaged."""
        return self._contexts.load(app, context)

    def show(self, app: AppId | None, context: str) -> ContextDetail:
        """A context with its messages. Raises UnknownContext."""
        return self._contexts.show(app, context)

    # -- calls

    def submit(
        self, app: AppId, context: str, spec: CallSpec, emit: Callable[[Piece], None], *, operator: bool = False
    ) -> tuple[RequestId, asyncio.Future[Done]]:
        """Add a turn and, if ``spec`` has a generation, answer it. Calls of one context run one after another.
        ``operator``: the call comes from the operator, for whom places are kept.

        The future ends with Done, or with an LlmaasError: Cancelled, Expired, ContextTooLong, BadRequest, DiskFull,
        EngineFailed, UnknownContext (deleted meanwhile), UnknownAdapter, AdapterUnreadable, AdapterMismatch, Busy (its
        adapter is too large). The context is as before then, but what Cancelled or Expired let stream stays.
        """
        self._refuse_to_write()
        self.adapters.file(spec.terms.adapter or "")
        return self._runner.submit(self._contexts.find_usable(app, context), spec, emit, operator=operator)

    def prioritize(self, request: RequestId, priority: int) -> None:
        """Change how urgent a call is (0 .. 9, 0 most), while it waits or runs. No effect if it has ended."""
        self._runner.prioritize(request, priority)

    def hint(self, app: AppId, context: str) -> tuple[RequestId, asyncio.Future[Done]] | None:
        """The context will be used soon: bring it back to CELLS, if nobody else waits. Nothing is promised.

        Returns what ``cancel`` takes, and a future that ends with the hint; None if nothing is done.
        """
        self._refuse_to_write()
        return self._runner.hint(self._contexts.find_usable(app, context))

    def cancel(self, request: RequestId) -> None:
        """The request's future ends with Cancelled, soon. One that has ended already is left alone."""
        self._runner.cancel(request)

    def requests_after(
        self, app: AppId | None, number: int, last: int | None = None
    ) -> Iterator[tuple[int, RequestInfo]]:
        """See ``RequestLog.after``."""
        return self._runner.log.after(app, number, last)

    def find_call(self, app: AppId | None, call: int) -> RequestId:
        """A call that waits or runs, by its number; ``app`` None: anyone's. Raises UnknownRequest."""
        found = self._parts.calls.get(RequestId(call))
        if found is None or app not in (None, found.live.row.app):
            raise UnknownRequest(f"no call {call} waits or runs", hint="The operation 'requests' lists those that do.")
        return found.id

    # -- what the owner and the machine allow

    def limit(self, app: AppId | None, rate: float | None) -> dict[str, object]:
        """Set the tokens per second that an app, or without ``app`` all together, may generate; None: no limit."""
        self._rates[app] = rate
        self._dispatch(RateChanged(app, rate))
        return self._limits()

    def _limits(self) -> dict[str, object]:
        apps = {str(app): rate for app, rate in sorted(self._rates.items(), key=str) if app is not None}
        return {"rate": self._rates[None], "app_rate": self._settings.planner.app_rate, "apps": apps}

    def budget(self, pool_bytes: int | None = None, disk_bytes: int | None = None) -> dict[str, object]:
        """Set what POOL or DISK may hold (bytes); return the budgets that hold now. Shrinking drops chunks at once."""
        self.budgets.set(pool_bytes, disk_bytes)
        return dict(self.budgets.snapshot())

    def on_memory_reading(self, reading: MemoryReading) -> None:
        """How much memory the machine has left: the POOL's budget follows."""
        if not self._closing:
            self.budgets.on_reading(reading)
            self.weights.on_memory(self.budgets.is_short)
            if self.budgets.is_short:
                self.embeddings.free()

    def on_thermal_reading(self, reading: ThermalReading) -> None:
        """How hot, throttled or low on battery the machine is: the share of time to compute follows."""
        if not self._closing:
            self._parts.host.on_reading(reading, self._dispatch)

    # -- reports

    def stats(self, *, apps: bool = True, octaves: bool = False) -> dict[str, object]:
        """Counts and bytes as plain values; without ``apps`` none that names an app. See ``Histogram.octaves``."""
        parts = self._parts
        seconds, wear_budget = parts.clock.now() - self._started, self._settings.planner.wear_budget
        return {
            **figures(parts, self._planner, self.budgets, self._runner, seconds=seconds, wear_budget=wear_budget),
            "limits": self._limits() if apps else {**self._limits(), "apps": {}},
            **({"apps": parts.app_tallies.snapshot(), "app_quotas": as_plain(self.apps.infos())} if apps else {}),
            **({"octaves": parts.metrics.octaves()} if octaves else {}),
        }

    def check(self) -> list[str]:
        """Problems in the books of planner and pool; empty when all is well. Only when idle."""
        problems = self._planner.check()
        held = self._interpreter.pool.nbytes
        if self._interpreter.fault is not None:
            problems.append(self._interpreter.fault.message)
        if held != self._planner.pool_used:
            problems.append(f"POOL: {held} bytes held, {self._planner.pool_used} on the books")
        return problems

    def _refuse_if_closing(self) -> None:
        if self._closing:
            raise ShuttingDown("the service is stopping")

    def _refuse_to_write(self) -> None:
        self._refuse_if_closing()
        refuse_without_text(self._parts.engine.info)
