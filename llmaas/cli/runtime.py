"""The daemon: its parts made by the configuration, wired together, and closed.

Law: the one place that knows every concrete class. Parts are closed in the reverse order of their making, whatever
fails: the socket early, so that no client calls a part that is closed already; the store last.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llmaas.api.server import Limits, Server, serve, serve_handed
from llmaas.calls import Loading
from llmaas.cli.doctor.damage import explain_salvage
from llmaas.cli.engine_choices import context_settings, measure_repack, placement, repack_memo, rope_memo
from llmaas.cli.interpreter import short_pauses
from llmaas.cli.load_ahead import WeightReads
from llmaas.cli.node_listener import begin_moves, listen_for_nodes
from llmaas.cli.planner_choices import costs_path, planner_choices
from llmaas.clock import RealClock
from llmaas.config import models
from llmaas.config.model_kinds import ModelKind
from llmaas.config.settings import Config
from llmaas.engine.llama import tiles
from llmaas.engine.llama.embedding_engine import LlamaEmbeddingEngine
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.model import LlamaModel
from llmaas.engine.llama.repack import RepackChoice, choose
from llmaas.engine.thread import EngineThread
from llmaas.errors import StoreFailed
from llmaas.fair_thread import FairThread
from llmaas.frozen import frozen
from llmaas.host import priority, thermal
from llmaas.host.file_limit import raise_file_limit
from llmaas.host.pressure import PressureWatcher
from llmaas.host.time_slice import shorten_slices
from llmaas.kvchunks.store import master_key
from llmaas.kvchunks.store.store import ContextSummary, Store
from llmaas.kvchunks.store.syscalls import Files, IndexDamaged
from llmaas.policies.model_cells import cells_needed
from llmaas.records import ModelInfo
from llmaas.service.service import Service
from llmaas.service.settings import ServiceSettings
from llmaas.slots.grants import SlotSettings

log = logging.getLogger(__name__)

_M_ARENA_MAX = -8
_M_MMAP_THRESHOLD = -3
"""malloc.h"""


@frozen
class Runtime:
    """A daemon that serves."""

    model: ModelInfo
    service: Service
    server: Server
    cells: int


def service_settings(
    config: Config, *, served_as: str = "", choices: Mapping[str, Any] = MappingProxyType({})
) -> ServiceSettings:
    return ServiceSettings(
        planner=replace(planner_choices(config), **choices),
        served_as=served_as,
        write_rate=config.write_rate,
        queue_limit=config.queue_limit,
        keep_thoughts=config.keep_thoughts,
        app_contexts=config.app_contexts,
        anonymous_contexts=config.anonymous_contexts,
        app_text_bytes=_app_text_bytes(config),
        adaptive_threads=config.threads if config.adaptive_threads else None,
        record=config.record,
        costs=costs_path(config),
        adapters=config.adapters or (),
        keep_alive=config.keep_alive,
        warm_start=config.warm_start,
    )


def with_fewer_cells(config: Config, cells: int, summaries: list[ContextSummary]) -> Config:
    """The configuration with ``cells``, or as many as its longest context needs; no more than it names. What apps may
    keep is as before."""
    needed = cells_needed(max((summary.row.n_tokens for summary in summaries), default=0), config.cells)
    given = min(config.cells, max(cells, needed))
    log.info("cells: %d of %d, as other models take the rest of the memory", given, config.cells)
    slice_ = min(config.prefill_slice, given)
    return replace(config, cells=given, prefill_slice=slice_, app_text_bytes=_app_text_bytes(config))


def _app_text_bytes(config: Config) -> int:
    return config.app_text_bytes or max(8 << 20, 64 * config.cells)


def load_engine(
    config: Config, model: Path, kind: type[LlamaEngine] = LlamaEngine, repack: bool = False
) -> LlamaEngine | LlamaEmbeddingEngine:
    """Load the model, with a second copy of weights or without (``engine.llama.repack``). On the engine's thread: the
    threads of llama.cpp inherit its CPUs. ``kind``: of the engine. One that is not llama.cpp's need not read the model;
    else that says whether it writes text.
    """
    if config.cpus and priority.can_bind():
        priority.bind(config.cpus)
    if not config.tiles:
        tiles.use(0)
    read = functools.partial(LlamaModel, repack=repack, placement=placement(config), held=config.held)
    if kind is not LlamaEngine:
        return _writing_engine(config, model, kind, read)
    loaded = read(model)
    if loaded.kind is ModelKind.EMBEDDER:
        return LlamaEmbeddingEngine(loaded, n_threads=config.threads, embedding_tokens=config.embedding_tokens)
    return _writing_engine(config, model, kind, lambda _: loaded)


def _writing_engine(
    config: Config, model: Path, kind: type[LlamaEngine], open_model: Callable[[Path], LlamaModel]
) -> LlamaEngine:
    shape = context_settings(config)
    return kind(
        model,
        n_cells=shape.n_cells,
        n_seqs=shape.n_seqs,
        n_threads=shape.n_threads,
        n_batch=shape.n_batch,
        n_ubatch=shape.n_ubatch,
        full_windows=shape.full_windows,
        embedding_tokens=config.embedding_tokens,
        rope_memo=rope_memo(config),
        open_model=open_model,
    )


def open_store(config: Config, environ: Mapping[str, str], files: Files | None = None) -> Store:
    """Open the store, encrypted or not as the settings say. A damaged index is repaired if nothing is lost by it; what
    a repair would cost, a person decides (``llmaas doctor --repair``). ``files``: its system calls, if others are
    wanted. Raises ConfigError, StoreFailed.
    """
    try:
        return _open_store(config, environ, files)
    except IndexDamaged as damage:
        try:
            key = master_key.find(config.data_dir, config.key_source, environ, make=False) if config.encrypt else None
            found = Store.repair_index(config.data_dir, only_whole=True, master=key.key if key else None)
        except StoreFailed:
            raise damage from None
        if found is None:
            raise
        for line in [damage.message, *explain_salvage(found)]:
            log.error("%s", line)
        return _open_store(config, environ, files)


def _open_store(config: Config, environ: Mapping[str, str], files: Files | None) -> Store:
    if not config.encrypt:
        return Store(config.data_dir, files=files)
    found = master_key.find(config.data_dir, config.key_source, environ, make=False)
    if found is None:
        if config.data_dir.exists():
            Store(config.data_dir).close()  # no new key for conversations that have one: this refuses them
        found = master_key.find(config.data_dir, config.key_source, environ, make=True)
    assert found is not None
    store = Store(config.data_dir, master=found.key, files=files)
    if dropped := store.drop_plain():
        log.warning("%d chunks were on disk in clear; they are deleted, and recomputed when needed", dropped)
    return store


@asynccontextmanager
async def running(
    config: Config,
    kind: type[LlamaEngine] = LlamaEngine,
    *,
    choices: Mapping[str, Any] | None = None,
    reads: WeightReads | None = None,
    sockets: bool = True,
    served_as: str = "",
    cells: int | None = None,
    files: Files | None = None,
) -> AsyncIterator[Runtime]:
    """A daemon that serves during the block. Benches give it an engine class, ``files`` for its store, and ``choices``:
    fields of PlannerChoices that no setting chooses. ``reads``: those of the model's file, if they have begun. Without
    ``sockets`` it serves the connections that another process gives it, and its process ends with the block.
    ``served_as``: the model's registered name. ``cells``: see ``with_fewer_cells``. Raises LlmaasError."""
    bound_malloc()
    priority.lower_priority(config.nice)
    shorten_slices()  # before other threads are started, which inherit it
    if config.cpus and not priority.can_bind():
        log.warning("cpus has no effect: this system does not bind threads to CPUs")
    model, reads = models.find(config.model), reads or WeightReads(config)
    async with AsyncExitStack() as parts:
        # The store before the model: it is quick, and a second daemon on the same data must fail at once.
        store = parts.enter_context(open_store(config, os.environ, files))
        loader, lister = FairThread("load-model"), FairThread("list-contexts")  # off the loop, which handles signals
        try:
            listing = lister.submit("", store.summaries)  # meanwhile
            if cells is not None:  # how many the longest context needs is known when all are listed
                config = with_fewer_cells(config, cells, await asyncio.wrap_future(listing))
            choice = await loader.run("", _choose_repack, config, model)
            load = functools.partial(load_engine, config, model, kind, choice.copied)
            engine = await loader.run("", EngineThread, load)
            parts.callback(engine.close if sockets else engine.leave)
            await loader.run("", reads.loaded, model)
            summaries = await asyncio.wrap_future(listing)
        finally:
            loader.close(wait=False)  # it has ended, or is not wanted any more
            lister.close()  # before the store is closed, whatever came of the model; it takes a fraction of a second
        settings = service_settings(config, served_as=served_as, choices=choices or {})
        service = Service(engine, store, settings, RealClock(), weights=reads)
        await service.start(summaries)
        parts.push_async_callback(service.stop)
        loading = functools.partial(reads.loading, served_as or engine.engine.info.title)
        server = await _server(config, service, sockets, loading, parts)
        parts.callback(service.stop_text)  # before the server waits for what runs
        _watch_host(config, service, parts)
        if choice.open and engine.engine.info.writes and (measurement := measure_repack(config, model)) is not None:
            parts.callback(measurement.close)
        parts.enter_context(short_pauses())
        yield Runtime(engine.engine.info, service, server, config.cells)


def _choose_repack(config: Config, model: Path) -> RepackChoice:
    choice = choose(model, config.repack, repack_memo(config))
    log.info("second copy of weights: %s (%s)", "made" if choice.copied else "none", choice.reason)
    return choice


async def _server(
    config: Config, service: Service, sockets: bool, loading: Callable[[], Loading | None], parts: AsyncExitStack
) -> Server:
    """Serve apps, and nodes if the settings say so, until ``parts`` are closed."""
    server = await _server_of_apps(config, service, sockets, loading)
    parts.push_async_callback(server.close)
    if sockets:
        mover = await begin_moves(config, service)
        parts.push_async_callback(mover.close)
    if config.nodes is not None and sockets:
        listener = listen_for_nodes(config, service)
        parts.push_async_callback(listener.close)
        log.info("nodes are heard on %s", listener.address)
    return server


async def _server_of_apps(
    config: Config, service: Service, sockets: bool, loading: Callable[[], Loading | None]
) -> Server:
    limits = _fitting(Limits(priority_floor=config.priority_floor, urgent_apps=frozenset(config.urgent_apps or ())))
    slots = SlotSettings(config.slots, config.slot_bytes, config.slot_folder)
    if not sockets:
        return serve_handed(service, limits=limits, slots=slots, loading=loading)
    return await serve(service, config.socket, limits=limits, slots=slots, loading=loading)


def _fitting(limits: Limits) -> Limits:
    """The limits, with no more connections than the process can have files open."""
    n_files = raise_file_limit()
    fitting = limits.within(n_files)
    if fitting != limits:
        log.warning("%d files may be open: %d connections at most", n_files, fitting.max_connections)
    return fitting


def _watch_host(config: Config, service: Service, parts: AsyncExitStack) -> None:
    """Give the service readings of the machine, as the settings say, until ``parts`` are closed."""
    loop = asyncio.get_running_loop()
    if config.pressure == "on":
        memory = PressureWatcher(lambda reading: loop.call_soon_threadsafe(service.on_memory_reading, reading))
        parts.callback(memory.close)
    if config.governor == "on":
        heat = thermal.ThermalWatcher(lambda reading: loop.call_soon_threadsafe(service.on_thermal_reading, reading))
        parts.callback(heat.close)


def bound_malloc() -> None:
    """Let all threads share two malloc arenas, and return large arrays to the system as soon as they are freed (glibc).

    Else each thread keeps freed chunks to itself, 17 MB in all, and heaps keep what measuring chunks took, 18 MB more.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_MMAP_THRESHOLD, 1 << 20)
