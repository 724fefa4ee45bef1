"""The server's state that endpoints share, and the frame around every endpoint: who asks, errors, disconnects.

Law: every request gets exactly one response, in the shape of its API, whatever its endpoint does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from llmaas.api.async_client import AsyncClient
from llmaas.api.model_list import ListedModel
from llmaas.clock import Clock, RealClock
from llmaas.errors import LlmaasError, NotServing, ShuttingDown
from llmaas.http.access import Access
from llmaas.http.call import BodyBytes, HttpCall, Receive, Scope, Send
from llmaas.http.errors import HttpError, from_daemon, openai_error, shape_of
from llmaas.http.facts import ServedModel
from llmaas.http.identity import UNIX, identity_of, refuse_in_url
from llmaas.http.origin import check_origin
from llmaas.http.responses_past import PastResponses
from llmaas.http.served_models import ServedModels

log = logging.getLogger(__name__)

OPEN = Access()
Handler = Callable[["Edge", HttpCall], Awaitable[None]]


class Edge:
    """What endpoints share."""

    def __init__(self, models: ServedModels, access: Access = OPEN, clock: Clock | None = None) -> None:
        self.models, self.access = models, access
        self.clock = clock or RealClock()
        self.stopping = False
        """Set when the server is to end: new requests are refused."""
        self.running: set[asyncio.Task[None]] = set()
        """What works on requests now."""
        self.bodies = BodyBytes()
        self.past = PastResponses()

    @asynccontextmanager
    async def daemon(self, call: HttpCall, model: str | None = None) -> AsyncIterator[tuple[AsyncClient, ServedModel]]:
        """The daemon, as the app that sent ``call``; of several models the one that the request calls ``model``."""
        connections = await self.models.of(model)
        if call.identity.token and connections is not self.models.default:
            await connections.prove(call.identity)
        async with connections.of(call.identity) as client:
            yield client, ServedModel.of(client.server)

    async def listed(self, call: HttpCall) -> list[ListedModel] | None:
        """All models, the default one first, for a caller whose token is one; None if the daemon serves one model. A
        token is shown to a model that is in memory, if there is one. Raises LlmaasError."""
        if not await self.models.several():
            return None
        found = await self.models.listed()
        if call.identity.token:
            nearest = next((each for each in found if each.state == "ready"), found[0])
            await (await self.models.of(nearest.name)).prove(call.identity)
        return found

    def now(self) -> int:
        """Seconds since 1970."""
        return int(self.clock.wall())


class Endpoint:
    """An ASGI application that answers one kind of request."""

    def __init__(self, edge: Edge, handler: Handler, *, is_static: bool = False) -> None:
        """``is_static``: the answer is the same whoever asks, so that no daemon and no token is needed."""
        self._edge, self._handler, self._is_static = edge, handler, is_static

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = HttpCall(scope, receive, send, self._edge.bodies)
        task = asyncio.current_task()
        assert task is not None
        self._edge.running.add(task)
        try:
            await self._handled(call)
        except asyncio.CancelledError:
            if not call.gone:
                raise
        except LlmaasError as error:
            lost = self._edge.stopping and isinstance(error, NotServing | ShuttingDown)
            await _fail(call, _stopping() if lost else from_daemon(error, call.schema_field))
        except HttpError as error:
            await _fail(call, error)
        except RecursionError:  # it was just shallow enough to be read, and is to be written from deeper in the stack
            await _fail(call, HttpError(400, "the body nests too deeply."))
        except Exception:
            log.exception("%s %s failed", call.method, call.path[:200])
            text = "an unexpected fault of llmaas; the log of 'llmaas http' has the details."
            await _fail(call, HttpError(500, text, code="internal"))
        finally:
            self._edge.running.discard(task)

    async def _handled(self, call: HttpCall) -> None:
        if call.twice is not None:
            raise HttpError(400, f"the header {call.twice} is there twice. Send it once.", param=call.twice)
        if not (call.client and call.client[0] == UNIX):
            origin = check_origin(call.headers, self._edge.access)
            if origin is not None:
                call.more_headers += [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin")]
        if call.method == "OPTIONS":
            await _allow(call)
            return
        refuse_in_url(call.query)
        if not self._is_static:
            await self._identify(call)
        await self._handler(self._edge, call)

    async def _identify(self, call: HttpCall) -> None:
        """Find out who asks, before anything is said. Raises HttpError, LlmaasError."""
        call.identity = identity_of(call.client, call.headers, tokens_required=self._edge.access.tokens_required)
        if self._edge.stopping:
            raise _stopping()
        if call.identity.token and not await self._edge.models.several():  # else when the model is known
            await self._edge.models.default.prove(call.identity)


@asynccontextmanager
async def ends_with_client(call: HttpCall) -> AsyncIterator[None]:
    """Cancel the block when the client goes away. For requests whose body was read."""
    task = asyncio.current_task()
    assert task is not None

    async def watch() -> None:
        await call.until_gone()
        if call.gone:
            task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        watcher.cancel()


async def _allow(call: HttpCall) -> None:
    """The answer to a browser that asks whether a page may send a request."""
    await call.reply(
        b"",
        200,
        (b"access-control-allow-methods", b"GET, POST, PUT, DELETE, OPTIONS"),
        (b"access-control-allow-headers", call.headers.get("access-control-request-headers", "*").encode("latin-1")),
        (b"access-control-max-age", b"600"),
    )


def _stopping() -> HttpError:
    return HttpError(503, "the server is stopping. Try again when it is back.", code="shutting_down", retry=True)


async def _fail(call: HttpCall, error: HttpError) -> None:
    """The error, in the shape of the API: as the response, or as the last piece of one that has begun."""
    if call.finished:
        return
    body = shape_of(call.path)(error)
    if not call.started:
        await call.reply(body, error.status, *error.headers())
        return
    if shape_of(call.path) is openai_error:
        await call.write(b"data: %s\n\n" % body)
    else:
        await call.write(body + b"\n")
    await call.end()
