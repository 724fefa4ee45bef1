"""The Backend that the server serves, and which of its methods answers which request.

Law: holds no state. Rights are checked here, before the backend is called.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol

from llmaas.api import messages as msg
from llmaas.api.adapter_messages import AdapterAdd, AdapterRemove, ListAdapters
from llmaas.api.app_messages import AppAdd, AppRemove, AppRotate, ListApps, SetAppQuota
from llmaas.api.caller import Caller, Tokens, app_named
from llmaas.api.embed_message import Embed
from llmaas.api.mark_messages import FoundMarks, ListedMarks, ListMarks, MarkRequest, MarksOf
from llmaas.api.pages import context_page, message_page, number_after, request_page
from llmaas.api.record_maps import to_map
from llmaas.api.transfer_messages import Export, ExportChunks, Import, ImportChunks, MoveToNode, TransferRequest
from llmaas.api.transfer_records import ExportedChunks, ImportedChunks, MovedContext
from llmaas.calls import CallSpec, Done, Piece
from llmaas.errors import LlmaasError, assert_never
from llmaas.records import (
    AdapterInfo,
    AppId,
    AppInfo,
    AppQuota,
    ContextDetail,
    ContextInfo,
    Embeddings,
    ExportedContext,
    Message,
    NewToken,
    RequestId,
    RequestInfo,
    Resolved,
)


class AdapterBackend(Protocol):
    """The LoRA adapters of a Backend."""

    def infos(self, *, paths: bool) -> list[AdapterInfo]:
        """All adapters; without ``paths`` the field of that name is empty."""

    async def add(self, name: str, path: str) -> AdapterInfo: ...

    async def remove(self, name: str) -> None: ...


class EmbeddingBackend(Protocol):
    """The embeddings of a Backend."""

    async def embed(self, app: AppId, texts: Sequence[str], *, truncate: bool = False) -> Embeddings: ...


class MarkBackend(Protocol):
    """Where conversations are held in a Backend."""

    async def listed(self, uid: int) -> ListedMarks: ...

    async def of(self, app: AppId, request: MarksOf) -> FoundMarks: ...


class TransferBackend(Protocol):
    """Contexts of a Backend that go to another model or daemon, or come from one."""

    @property
    def marks(self) -> MarkBackend: ...

    async def export_context(self, app: AppId, context: str) -> ExportedContext: ...

    async def import_context(
        self,
        app: AppId,
        exported: ExportedContext,
        *,
        name: str | None = None,
        adapter: str = "",
        ttl: float | None = None,
    ) -> ContextInfo: ...

    async def export_chunks(self, app: AppId, request: ExportChunks) -> ExportedChunks: ...

    async def import_chunks(self, app: AppId, request: ImportChunks) -> ImportedChunks: ...

    async def move(
        self, app: AppId, context: str, node: str, name: str | None = None, *, way: str = "both"
    ) -> MovedContext: ...


class AppBackend(Tokens, Protocol):
    """The apps of a Backend that have tokens."""

    def infos(self) -> list[AppInfo]:
        """All of them, by name."""

    def most_urgent(self, app: AppId) -> int | None:
        """The most urgent priority that the app's own quota allows; None: it does not say."""

    async def add(self, app: AppId, *, contexts: str, quota: AppQuota | None = None) -> NewToken: ...

    async def remove(self, app: AppId, *, contexts: str) -> None: ...

    async def rotate(self, app: AppId) -> NewToken: ...

    async def set_quota(self, app: AppId, quota: AppQuota) -> AppInfo: ...

    def on_evict(self, evict: Evict) -> None:
        """``evict`` ends what an app has running, because what it connected with counts no more."""


class Evict(Protocol):
    """Ends the connections of an app, and returns when nothing of it runs any more; False if that takes too long."""

    async def __call__(self, app: AppId, error: LlmaasError) -> bool: ...


class Backend(Protocol):
    """What the server serves. Every method runs on the event loop's thread and may raise LlmaasError.

    ``app`` None, in contexts_after, show and delete, means every app's contexts.
    """

    def hello(self) -> dict[str, object]:
        """Facts for the hello reply: plain msgpack values."""

    @property
    def adapters(self) -> AdapterBackend: ...

    @property
    def apps(self) -> AppBackend: ...

    @property
    def transfers(self) -> TransferBackend: ...

    @property
    def embeddings(self) -> EmbeddingBackend: ...

    async def create(
        self,
        app: AppId,
        *,
        name: str | None,
        system: str | None,
        adapter: str = "",
        exist_ok: bool = False,
        ttl: float | None = None,
    ) -> ContextInfo: ...

    async def fork(
        self, app: AppId, context: str, *, name: str | None, n_messages: int | None = None
    ) -> ContextInfo: ...

    async def resolve(self, app: AppId, messages: Sequence[Message], *, adapter: str = "") -> Resolved: ...

    async def truncate(
        self, app: AppId, context: str, *, n_tokens: int | None, n_messages: int | None
    ) -> ContextInfo: ...

    async def migrate(self, app: AppId | None, context: str) -> ContextInfo: ...

    def hint(self, app: AppId, context: str) -> tuple[RequestId, asyncio.Future[Done]] | None:
        """The context will be used soon: it may be brought back now. Returns at once; None if nothing is begun."""

    async def delete(self, app: AppId | None, context: str) -> None: ...

    def contexts_after(self, app: AppId | None, number: int) -> Iterator[tuple[int, ContextInfo]]:
        """Contexts with numbers above ``number``, in their order, each with its number. To be used at once."""

    def load(self, app: AppId | None, context: str) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """What must be called and awaited before ``show``; None if nothing must."""

    def show(self, app: AppId | None, context: str) -> ContextDetail: ...

    def submit(
        self, app: AppId, context: str, spec: CallSpec, emit: Callable[[Piece], None], *, operator: bool = False
    ) -> tuple[RequestId, asyncio.Future[Done]]:
        """Start a call. ``emit`` is called on the loop's thread, per piece. ``operator``: places are kept for it."""

    def requests_after(
        self, app: AppId | None, number: int, last: int | None = None
    ) -> Iterator[tuple[int, RequestInfo]]:
        """Calls that wait, run or have ended, with numbers above ``number``, in their order; of these the ``last`` so
        many. To be used at once."""

    def find_call(self, app: AppId | None, call: int) -> RequestId:
        """A call that waits or runs, by its number, of an app or of any. Raises UnknownRequest."""

    def cancel(self, request: RequestId) -> None:
        """End a call: its future then raises Cancelled, unless it was done before."""

    def prioritize(self, request: RequestId, priority: int) -> None:
        """Change how urgent a call is; one that has ended already is left alone."""

    def limit(self, app: AppId | None, rate: float | None) -> dict[str, object]:
        """Set the tokens per second of an app, or of all together; return what holds now."""

    def stats(self, *, apps: bool, octaves: bool = False) -> dict[str, object]:
        """Figures of the daemon; without ``apps`` none that names an app; ``octaves``: with histograms' counts."""

    def budget(self, pool_bytes: int | None, disk_bytes: int | None) -> dict[str, object]:
        """Set the budgets that are given; return what holds now."""


def task_of(backend: Backend, caller: Caller, request: msg.TaskRequest) -> Callable[[], Coroutine[Any, Any, object]]:
    """The function that begins a request whose result takes time. Raises Forbidden."""
    match request:
        case msg.Create():
            return functools.partial(backend.create, caller.app, **to_map(request))
        case msg.Fork(context, name, n_messages):
            return functools.partial(backend.fork, caller.app, context, name=name, n_messages=n_messages)
        case msg.Resolve(messages, adapter):
            return functools.partial(backend.resolve, caller.app, messages, adapter=adapter)
        case msg.Truncate(context, n_tokens, n_messages):
            return functools.partial(backend.truncate, caller.app, context, n_tokens=n_tokens, n_messages=n_messages)
        case msg.Delete(context, everyone):
            return functools.partial(backend.delete, caller.owner(everyone), context)
        case msg.Migrate(context, everyone):
            return functools.partial(backend.migrate, caller.owner(everyone), context)
        case Export() | Import() | ExportChunks() | ImportChunks() | MoveToNode() | ListMarks() | MarksOf():
            return _transfer(backend.transfers, caller, request)
        case Embed(texts, truncate):
            return functools.partial(backend.embeddings.embed, caller.app, texts, truncate=truncate)
        case AdapterAdd(new, path):
            caller.require_operator("adapters are")
            return functools.partial(backend.adapters.add, new, path)
        case AdapterRemove(old):
            caller.require_operator("adapters are")
            return functools.partial(backend.adapters.remove, old)
        case AppAdd(name, contexts, quota):
            caller.require_operator("tokens of apps are")
            return functools.partial(backend.apps.add, app_named(name), contexts=contexts, quota=quota)
        case SetAppQuota(name, quota):
            caller.require_operator("quotas of apps are")
            return functools.partial(backend.apps.set_quota, app_named(name), quota)
        case AppRemove(name, contexts):
            caller.require_operator("tokens of apps are")
            return functools.partial(backend.apps.remove, app_named(name), contexts=contexts)
        case AppRotate(name):
            caller.require_operator("tokens of apps are")
            return functools.partial(backend.apps.rotate, app_named(name))
        case _:
            assert_never(request)


def _transfer(
    transfers: TransferBackend, caller: Caller, request: TransferRequest | MarkRequest
) -> Callable[[], Coroutine[Any, Any, object]]:
    app = caller.app
    match request:
        case Export(context):
            return functools.partial(transfers.export_context, app, context)
        case Import(exported, name, adapter, ttl):
            return functools.partial(transfers.import_context, app, exported, name=name, adapter=adapter, ttl=ttl)
        case ExportChunks():
            return functools.partial(transfers.export_chunks, app, request)
        case ImportChunks():
            return functools.partial(transfers.import_chunks, app, request)
        case MoveToNode(context, node, name, way):
            return functools.partial(transfers.move, app, context, node, name, way=way)
        case ListMarks():
            caller.require_operator("marks of what the daemon holds are")
            return functools.partial(transfers.marks.listed, caller.uid)
        case MarksOf():
            return functools.partial(transfers.marks.of, app, request)
        case _:
            assert_never(request)


def before(
    backend: Backend, caller: Caller, request: msg.QuickRequest
) -> Callable[[], Coroutine[Any, Any, object]] | None:
    """What must end before ``answer`` can answer the request; None if nothing must. Raises LlmaasError."""
    match request:
        case msg.Show(context, everyone):
            return backend.load(caller.owner(everyone), context)
        case _:
            return None


def answer(backend: Backend, caller: Caller, request: msg.QuickRequest, page: int) -> object:
    """The result of a request that is answered at once, in plain msgpack values, or a Page of it, of at most ``page``
    bytes. Raises LlmaasError."""
    match request:
        case msg.ListContexts(everyone, limit, after):
            contexts = backend.contexts_after(caller.owner(everyone), number_after(after))
            return context_page(contexts, limit, page)
        case msg.ListRequests(everyone, limit, after, last):
            return request_page(backend.requests_after(caller.owner(everyone), number_after(after), last), limit)
        case msg.Show(context, everyone, limit, after):
            return message_page(backend.show(caller.owner(everyone), context), after, limit, page)
        case msg.Limit(app, rate):
            caller.require_operator("limits are")
            return backend.limit(AppId(app) if app is not None else None, rate)
        case msg.Stats(octaves):
            return backend.stats(apps=caller.is_operator, octaves=octaves)
        case msg.Budget(pool_bytes, disk_bytes):
            caller.require_operator("the daemon's budgets are")
            return backend.budget(pool_bytes, disk_bytes)
        case ListAdapters():
            return [to_map(info) for info in backend.adapters.infos(paths=caller.is_operator)]
        case ListApps():
            caller.require_operator("tokens of apps are")
            return [to_map(info) for info in backend.apps.infos()]
        case msg.Ping():
            return None
        case _:
            assert_never(request)
