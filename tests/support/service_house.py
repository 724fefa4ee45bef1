"""A whole service on the fake engine, for tests: start it, use it, look into its books at rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from llmaas.calls import DEFAULT_TERMS, CallSpec, Done, Generation, Terms, Turn
from llmaas.clock import Clock
from llmaas.engine.fake import FakeEngine
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.store.store import MasterKey, Store
from llmaas.planner.settings import PlannerChoices, bit_settings
from llmaas.records import AppId, ContextDetail, Message, Precision
from llmaas.service.idle_weights import WeightSource
from llmaas.service.service import Service
from llmaas.service.settings import ServiceSettings

APP = AppId("1000/test")
MASTER = MasterKey(bytes(32))


class House:
    """The parts of one running service."""

    def __init__(self, service: Service, store: Store, thread: EngineThread) -> None:
        self.service, self.store, self.thread = service, store, thread

    async def say(
        self,
        context: str,
        text: str,
        n: int = 8,
        app: AppId = APP,
        terms: Terms = DEFAULT_TERMS,
        **generation: Any,
    ) -> tuple[str, Done]:
        return await self.call(context, Turn((Message("user", text),)), Generation(n, **generation), app, terms)

    async def call(
        self,
        context: str,
        turn: Turn,
        generation: Generation | None,
        app: AppId = APP,
        terms: Terms = DEFAULT_TERMS,
    ) -> tuple[str, Done]:
        pieces: list[str] = []
        _, future = self.service.submit(
            app, context, CallSpec(turn, generation, terms), lambda p: pieces.append(p.text)
        )
        done = await future
        return "".join(pieces), done

    def tokens(self, context: str, app: AppId = APP) -> list[int]:
        return list(self.store.tokens(self.service.info(app, context).id))

    async def shown(self, context: str, app: AppId = APP) -> ContextDetail:
        """The context as a client sees it, whether it has been used since the start or not."""
        if (load := self.service.load(app, context)) is not None:
            await load()
        return self.service.show(app, context)


def service_settings(*, bits: float | Precision | None = None, **settings: Any) -> ServiceSettings:
    """Settings of the service and choices of its planner, all in one list of keywords."""
    ours = {name: settings.pop(name) for name in [f.name for f in fields(ServiceSettings)] if name in settings}
    chosen = {} if bits is None else bit_settings(bits)
    return ServiceSettings(planner=PlannerChoices(**chosen, **settings), **ours)


@asynccontextmanager
async def house(
    root: Path,
    *,
    engine: dict[str, Any] | None = None,
    engine_type: type[FakeEngine] = FakeEngine,
    store: Store | None = None,
    clock: Clock | None = None,
    weights: WeightSource | None = None,
    **settings: Any,
) -> AsyncIterator[House]:
    """A service on ``root``; at the end it must become idle with clean books.

    ``engine``: arguments of the engine; ``settings``: of ``service_settings``.
    """
    options = {"n_cells": 1024, "n_seqs": 8, **(engine or {})}
    thread = EngineThread(lambda: engine_type(**options))
    own = store or Store(root, master=MASTER)
    base = {"pool_bytes": 1 << 20, "bits": Precision(4, 4), "split": "load_first"}
    service = Service(thread, own, service_settings(**{**base, **settings}), clock, weights=weights)
    try:
        await service.start()
        yield House(service, own, thread)
        await asyncio.wait_for(service.wait_idle(), 30)
        assert service.check() == []
    finally:
        await service.stop()
        thread.close()
        assert own.check().problems == ()
        own.close()
