"""What the rooms of one service share.

Law: made once, by ``Service``; the engine's thread touches nothing of it but the engine, ``host`` and what a ``Call``
says that it may.
"""

from __future__ import annotations

from dataclasses import field

from llmaas.clock import Clock
from llmaas.engine.base import Engine
from llmaas.engine.thread import EngineThread
from llmaas.fair_thread import FairThread
from llmaas.frozen import frozen
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.store.store import Store
from llmaas.metrics import Registry
from llmaas.records import AppId, RequestId
from llmaas.service.adapters import AdapterRegistry
from llmaas.service.app_tallies import AppTallies
from llmaas.service.call import Call
from llmaas.service.directory import Directory
from llmaas.service.histories import Histories
from llmaas.service.host_share import HostShare
from llmaas.service.idle_weights import IdleWeights
from llmaas.service.queue_teller import QueueTeller
from llmaas.service.quotas import Quotas
from llmaas.service.text_threads import TextThreads


@frozen
class ServiceParts:
    """The parts that are there before the service starts, and the two tables of what it serves."""

    engine_thread: EngineThread
    store: Store
    store_thread: FairThread
    """Reads and writes the store's index, in turn for the apps."""
    text_threads: TextThreads
    slow_thread: FairThread
    """What may take long and must not wait for others, nor others for it: deleting contexts, tokenizing them anew."""
    codec: Codec
    adapters: AdapterRegistry
    host: HostShare
    weights: IdleWeights
    clock: Clock
    metrics: Registry
    quotas: Quotas
    histories: Histories
    queue: QueueTeller
    app_tallies: AppTallies = field(default_factory=AppTallies)
    app_places: dict[AppId, int] = field(default_factory=dict)
    """How many calls single apps may have, that have a quota of their own."""
    embedding: dict[AppId, int] = field(default_factory=dict)
    """How many requests for embeddings each app has under way."""
    directory: Directory = field(default_factory=Directory)
    calls: dict[RequestId, Call] = field(default_factory=dict)
    """Every call that waits or runs. The runner adds and removes them."""

    @property
    def engine(self) -> Engine:
        """For what is safe on any thread; everything else is submitted to ``engine_thread``."""
        return self.engine_thread.engine
