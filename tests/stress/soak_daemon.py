"""The daemon of the soak: its parts are those of ``llmaas serve``, and its stats say what it holds in memory.

As a program: ``python -m tests.stress.soak_daemon --socket S --data-dir D [--model M] [--adapters A ...] [--trace]``.
It prints "ready" when it serves, and exits with 0 at SIGTERM if all its books balance then. Whenever it is idle, its
stats have an entry ``rest``: problems found, what the store holds, and how many objects of each class of llmaas exist.
Before that it empties caches, collects garbage and calls malloc_trim, so that the process is as large as what it holds.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import functools
import gc
import logging
import signal
import sys
import threading
import tracemalloc
from collections import Counter, deque
from pathlib import Path

from llmaas.cli.runtime import bound_malloc
from llmaas.engine.base import Engine
from llmaas.engine.fake import FakeEngine
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.store.store import MasterKey, Store
from llmaas.service.service import Service
from llmaas.service.settings import ServiceSettings
from tests.stress.daemon_under_test import Asking, until_stopped
from tests.support.service_house import service_settings

CELLS = 1024
END_RATE = 0.01
POOL_BYTES = 2 << 20
QUEUE_LIMIT = 40
AGEING_S = 0.5
ADAPTER_BYTES = 10_000


class Unhurried(Asking):
    """Each step takes half a millisecond, and a hundredth of one for each token."""

    def __init__(self) -> None:
        super().__init__(CELLS, 8, end_rate=END_RATE, step_time=lambda tokens: 0.0005 + 0.00001 * tokens)


def llama(model: Path) -> Engine:
    from llmaas.engine.llama.engine import LlamaEngine  # the fake one needs no llama.cpp

    return LlamaEngine(model, n_cells=CELLS, n_seqs=8, n_threads=1, n_batch=512, n_ubatch=128)


class Watched(Service):
    """A service whose stats say what it holds when it is idle."""

    def __init__(self, thread: EngineThread, store: Store, settings: ServiceSettings) -> None:
        super().__init__(thread, store, settings)
        self._watched_engine, self._watched_store = thread.engine, store

    def stats(self, *, apps: bool = True, octaves: bool = False) -> dict[str, object]:
        found = {
            **super().stats(apps=apps, octaves=octaves),
            "tasks": len(asyncio.all_tasks()),
            "threads": threading.active_count(),
        }
        if self.idle:
            found["rest"] = self._when_idle()
        return found

    def _when_idle(self) -> dict[str, object]:
        _empty_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        engine, store = self._watched_engine, self._watched_store.stats()
        problems = self.check()
        if not self.contexts(None):
            problems += self._watched_store.check().problems
        return {
            "problems": problems,
            "samplers": engine.n_samplers if isinstance(engine, FakeEngine) else 0,  # else see the census
            "census": _census(),
            "store": {
                "contexts": store.contexts,
                "chunks": store.chunks,
                "file_bytes": store.file_bytes,
                "keys": self._watched_store.encryption().keys,
            },
            "memory": _traced(),
        }


_CACHE = type(functools.lru_cache(int))


def _empty_caches() -> None:
    """Empty the caches with a largest size: how full one is depends on which values the last round happened to have."""
    for o in gc.get_objects():
        if not isinstance(o, _CACHE) or not str(o.__module__).startswith("llmaas"):
            continue
        if (o.cache_parameters()["maxsize"] or 1) > 1:  # one: the library that was loaded
            o.cache_clear()


_OF_ENDED_CALLS = "RequestSpan"
"""The last 256 calls that have ended keep theirs, and some calls have more than others."""


def _census() -> Counter[str]:
    """How many objects of each class of llmaas exist, and how many items are in their containers."""
    found: Counter[str] = Counter()
    for o in gc.get_objects():
        if not str(type(o).__module__).startswith("llmaas") or isinstance(o, type):
            continue
        name = type(o).__qualname__
        if name == _OF_ENDED_CALLS:
            continue
        found[name] += 1
        slots = [slot for c in type(o).__mro__ for slot in getattr(c, "__slots__", ())]
        for attribute in {*slots, *getattr(o, "__dict__", ())}:
            held = getattr(o, attribute, None)
            if isinstance(held, dict | set | list | deque):
                found[f"{name}.{attribute}"] += len(held)
    return found


_first: list[tracemalloc.Snapshot] = []


def _traced() -> list[str]:
    """Where memory has grown since the third call (the first two are for warming up)."""
    if not tracemalloc.is_tracing():
        return []
    now = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, tracemalloc.__file__)])
    _first.append(now)
    if len(_first) <= 3:
        return []
    del _first[3:]
    return [str(growth) for growth in now.compare_to(_first[2], "lineno")[:10]]


async def serve(args: argparse.Namespace) -> list[str]:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with Store(args.data_dir, master=MasterKey(bytes(32)), wal_limit=256 * 1024) as store:
        engine = EngineThread((lambda: llama(args.model)) if args.model else Unhurried)
        settings = service_settings(
            pool_bytes=POOL_BYTES if not args.model else 64 << 20,
            bits=6.0,
            prefill_slice=128,
            queue_limit=QUEUE_LIMIT,
            ageing_s=AGEING_S,
            adapters=tuple((path.name, path) for path in args.adapters),
            adapter_bytes=ADAPTER_BYTES,
        )
        return await until_stopped(Watched(engine, store, settings), engine, store, args.socket, stop)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--adapters", type=Path, nargs="*", default=[])
    parser.add_argument("--trace", action="store_true", help="say where memory grows (slow)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    bound_malloc()
    if args.trace:
        tracemalloc.start()
    problems = asyncio.run(serve(args))
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
