"""The operations of a client, each once: its arguments, the request that they make, and how the result is read.

Law: pure. Both clients make their methods of these functions: these signatures and docstrings are the methods' own.
All of them raise BadRequest for arguments that are out of range, before anything is sent.

>>> fork("inbox", name="copy").request
Fork(context='inbox', name='copy', n_messages=None)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmaas.api import app_operations, replies, transfer_operations
from llmaas.api import messages as msg
from llmaas.api.adapter_messages import AdapterAdd, AdapterRemove, ListAdapters
from llmaas.api.embed_message import Embed
from llmaas.api.given_messages import Messages, as_messages
from llmaas.api.operation import (
    AsyncAsker,
    BlockingAsker,
    Operation,
    awaitable,
    blocking,
    changed,
    checked,
    nothing,
    record,
    records,
)
from llmaas.api.record_maps import to_map
from llmaas.calls import DEFAULT_TERMS, Done, Sampling, Terms
from llmaas.records import (
    AdapterInfo,
    ContextDetail,
    ContextInfo,
    Embeddings,
    RequestInfo,
    Resolved,
)

GREEDY = Sampling()


# -- calls --------------------------------------------------------------------------------------


def append(
    context: str,
    messages: Messages = (),
    prompt: str | None = None,
    *,
    special: bool = True,
    priority: int | None = None,
    terms: Terms = DEFAULT_TERMS,
    idempotency_key: str | None = None,
    if_n_tokens: int | None = None,
) -> Operation[Done]:
    """Add chat messages, or raw ``prompt`` text, to a context without an answer.

    ``priority`` goes before that of ``terms``.

    With ``special`` names of control tokens in the prompt become these tokens: set it to False if the prompt holds text
    from elsewhere. The content of messages never becomes control tokens.

    A request that is made again with its ``idempotency_key`` (1 to 128 characters that no other request in this context
    had) is carried out once, and answered as the first time; with other text it raises KeyReused. With ``if_n_tokens``
    it raises Conflict unless the context has so many tokens.
    """
    terms, once = changed(terms, priority=priority), {"idempotency_key": idempotency_key, "if_n_tokens": if_n_tokens}
    request = checked(msg.Append, context, as_messages(messages), prompt, special=special, **to_map(terms), **once)
    return Operation(request, record(Done))


def generate(
    context: str,
    messages: Messages = (),
    *,
    prompt: str | None = None,
    special: bool = True,
    max_tokens: int = 256,
    temperature: float | None = None,
    sampling: Sampling = GREEDY,
    stop: Iterable[str] = (),
    priority: int | None = None,
    terms: Terms = DEFAULT_TERMS,
    logprobs: int | None = None,
    on_full: str = "error",
    idempotency_key: str | None = None,
    if_n_tokens: int | None = None,
    progress: bool = False,
) -> msg.Generate:
    """Add to a context, and stream the model's answer. The request is on its way when this returns.

    The answer is greedy unless ``temperature`` or ``sampling`` says otherwise: nothing is left to chance, as programs
    want it. For answers to people, ``Sampling(**client.server["sampling"])`` is what the model's makers suggest.
    ``temperature`` goes before that of ``sampling``, ``priority`` before that of ``terms``.

    The answer ends after ``max_tokens`` tokens, before any of the strings ``stop``, or where the model ends it. With
    ``logprobs`` each piece has log probabilities, and so many alternatives for each token. ``on_full`` "shift" drops
    the oldest messages when the context is full, where "error" refuses the call. ``special``, ``idempotency_key`` and
    ``if_n_tokens``: see ``append``. An answer that is asked for again with its key is told from its beginning, as it is
    stored; one that was interrupted goes on from where it was.

    With ``progress`` pieces without text come first, each with a ``progress``: how many of the context's tokens are in
    the engine, of how many. There are none where that takes a single step. While the call waits for its turn they have
    ``queued`` instead, and while the model is loaded ``loading``, if the client has named a ``model``.
    """
    terms, sampling = changed(terms, priority=priority), changed(sampling, temperature=temperature)
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    limits = {"max_tokens": max_tokens, "stop": stops, "logprobs": logprobs, "on_full": on_full, "special": special}
    once = {"idempotency_key": idempotency_key, "if_n_tokens": if_n_tokens, "progress": progress}
    asked = {**limits, **to_map(terms), **to_map(sampling), **once}
    return checked(msg.Generate, context, as_messages(messages), prompt, **asked)


# -- contexts -----------------------------------------------------------------------------------


def create(
    *, name: str | None = None, system: str | None = None, adapter: str = "", ttl: float | None = None
) -> Operation[ContextInfo]:
    """Make an empty context, which may begin with a ``system`` message and use a LoRA ``adapter``.

    A name is made up if none is given; 16 hexadecimal digits are an id, and no name. With ``ttl`` the daemon deletes
    the context when nobody has added to it or cut it for so many seconds. Raises ContextExists, UnknownAdapter.
    """
    return Operation(checked(msg.Create, name, system, adapter, ttl=ttl), record(ContextInfo))


def context(
    name: str, *, system: str | None = None, adapter: str = "", ttl: float | None = None
) -> Operation[ContextInfo]:
    """The context of that name; it is made if there is none. An object whose methods are the operations on it.

    ``system``, ``adapter`` and ``ttl`` are those of ``create``, and only for a context that is made: one that is there
    stays as it is.
    """
    return Operation(checked(msg.Create, name, system, adapter, exist_ok=True, ttl=ttl), record(ContextInfo))


def fork(context: str, *, name: str | None = None, n_messages: int | None = None) -> Operation[ContextInfo]:
    """Make a new context with the same conversation, or with its first ``n_messages`` messages; it shares the chunks of
    the old one."""
    return Operation(checked(msg.Fork, context, name, n_messages), record(ContextInfo))


def resolve(messages: Messages, *, adapter: str = "") -> Operation[Resolved]:
    """Find the context in which a conversation goes on, for programs that send the whole of it each time.

    The result names a context and says how many of the messages it holds: send ``generate`` the others. Until then,
    for 30 s at most, nobody else is given it. It is an anonymous one, made if there is none: the daemon deletes old
    ones when the app has many. Raises Busy, QuotaExceeded, UnknownAdapter.
    """
    return Operation(checked(msg.Resolve, as_messages(messages), adapter), record(Resolved))


def truncate(context: str, *, n_tokens: int | None = None, n_messages: int | None = None) -> Operation[ContextInfo]:
    """Keep the first ``n_tokens`` tokens, or the first ``n_messages`` messages, of a context."""
    return Operation(checked(msg.Truncate, context, n_tokens, n_messages), record(ContextInfo))


def migrate(context: str, *, everyone: bool = False) -> Operation[ContextInfo]:
    """Take a conversation of another model over to the one that is served: it is tokenized anew, by this model's chat
    template. A context that is usable stays as it is.

    Raises ModelMismatch if a part of it is not stored as text, and ContextTooLong; then it is as it was.
    """
    return Operation(msg.Migrate(context, everyone), record(ContextInfo))


def contexts(everyone: bool = False) -> Operation[list[ContextInfo]]:
    """List the app's contexts, last used first; with ``everyone`` those of every app, for the operator (``admin``)."""

    def read(result: object) -> list[ContextInfo]:
        return sorted(records(ContextInfo)(result), key=lambda info: -info.last_used)

    return Operation(msg.ListContexts(everyone), read, join=lambda first, second: [*first, *second])


def show(context: str, *, everyone: bool = False) -> Operation[ContextDetail]:
    """Show a context with its conversation."""
    return Operation(checked(msg.Show, context, everyone), record(ContextDetail), join=_join_messages)


def hint(context: str) -> Operation[None]:
    """Say that the context will be used soon (its app comes to the foreground), so that it is back by then.

    Returns at once. The daemon takes it as a wish: calls come first.
    """
    return Operation(checked(msg.Hint, context), nothing)


def delete(context: str, *, everyone: bool = False) -> Operation[None]:
    """Delete a context with all its chunks, in RAM and on disk, for good."""
    return Operation(checked(msg.Delete, context, everyone), nothing)


def _join_messages(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two pages of a conversation; what the context is otherwise, the last one says."""
    messages, more = first["messages"], second["messages"]
    if second.get("continues"):
        rest, *more = more
        messages[-1]["content"] += rest["content"]
    return {**second, "messages": messages + more}


# -- embeddings -----------------------------------------------------------------------------------


def embed(texts: str | Iterable[str], *, truncate: bool = False) -> Operation[Embeddings]:
    """Make a vector of each text, or of the one text, so that texts which mean the like have vectors near each other.

    The result's ``vectors`` are in the order of the texts, of which there may be 128, each of as many tokens as the
    ``embedding_limit`` of ``client.server`` says; with ``truncate`` the beginning of a longer one counts. Nothing is
    kept of them. Calls come first. Raises ContextTooLong, Busy, and BadRequest if the daemon computes no embeddings.
    """
    given = (texts,) if isinstance(texts, str) else tuple(texts)
    return Operation(checked(Embed, given, truncate), record(Embeddings))


# -- the daemon ---------------------------------------------------------------------------------


def stats(*, octaves: bool = False) -> Operation[dict[str, Any]]:
    """Figures of the daemon; which ones may change with every release. ``octaves``: also, for each histogram, how many
    values were below each power of two."""
    return Operation(msg.Stats(octaves), replies.result_map)


def budget(*, pool_bytes: int | None = None, disk_bytes: int | None = None) -> Operation[dict[str, Any]]:
    """Set the bytes that the daemon's POOL and DISK may hold, and return what holds now. None changes nothing.

    For the operator, a client with ``admin``; others get Forbidden.
    """
    return Operation(checked(msg.Budget, pool_bytes, disk_bytes), replies.result_map)


def limit(app: str | None = None, rate: float | None = None) -> Operation[dict[str, Any]]:
    """Set how many tokens per second an app (``uid/name``), or without ``app`` all together, may generate.

    ``rate`` None: no limit. For the operator, a client with ``admin``; others get Forbidden.
    """
    return Operation(checked(msg.Limit, app, rate), replies.result_map)


def adapters() -> Operation[list[AdapterInfo]]:
    """List the LoRA adapters that ``create`` and ``terms`` may name."""
    return Operation(ListAdapters(), records(AdapterInfo))


def adapter_add(name: str, path: Path | str) -> Operation[AdapterInfo]:
    """Register an adapter's file, also for later starts of the daemon; for the operator (``admin``)."""
    return Operation(AdapterAdd(name, str(path)), record(AdapterInfo))


def adapter_remove(name: str) -> Operation[None]:
    """Forget an adapter; for the operator, a client with ``admin``.

    Contexts that use it stay; their calls raise UnknownAdapter until one names another adapter.
    """
    return Operation(AdapterRemove(name), nothing)


def requests(everyone: bool = False, *, after: int = 0, last: int | None = None) -> Operation[list[RequestInfo]]:
    """List the app's calls that wait or run and the last 256 of all apps that have ended, in the order in which they
    came: who asked, how urgently, and where the time went. ``after``: only those with higher numbers; ``last``: of
    these the last so many.

    With ``everyone`` those of every app, for the operator (``admin``).
    """
    request = checked(msg.ListRequests, everyone, after=str(after) if after else None, last=last)
    return Operation(request, records(RequestInfo), join=lambda first, second: [*first, *second])


def cancel_call(call: int, *, everyone: bool = False) -> Operation[None]:
    """End a call by its number, as ``requests`` gives it; with ``everyone`` any app's, for the operator (``admin``).
    Raises UnknownRequest if it has ended."""
    return Operation(msg.Cancel(call=call, everyone=everyone), nothing)


def prioritize_call(call: int, priority: int, *, everyone: bool = False) -> Operation[None]:
    """Change how urgent a call is, by its number: 0 (most urgent) .. 9; with ``everyone`` any app's, for the operator.
    Raises UnknownRequest if it has ended."""
    return Operation(checked(msg.Prioritize, priority, call=call, everyone=everyone), nothing)


def ping() -> Operation[None]:
    """Return when the daemon has answered: it is there, and serves this connection."""
    return Operation(msg.Ping(), nothing)


# -- running calls, for the clients' streams ------------------------------------------------------


def cancel(request: int) -> Operation[None]:
    """End an append or generate of this connection. Raises UnknownRequest if it has ended."""
    return Operation(msg.Cancel(request), nothing)


def prioritize(request: int, priority: int) -> Operation[None]:
    """Change how urgent an append or generate is: 0 (most urgent) .. 9. Raises UnknownRequest if it has ended."""
    return Operation(checked(msg.Prioritize, priority, request), nothing)


# -- the clients' methods -------------------------------------------------------------------------


class BlockingOperations(BlockingAsker):
    """What Client derives from."""

    create = blocking(create)
    append = blocking(append)
    fork = blocking(fork)
    resolve = blocking(resolve)
    truncate = blocking(truncate)
    migrate = blocking(migrate)
    export_context = blocking(transfer_operations.export_context)
    import_context = blocking(transfer_operations.import_context)
    export_chunks = blocking(transfer_operations.export_chunks)
    import_chunks = blocking(transfer_operations.import_chunks)
    move = blocking(transfer_operations.move)
    list_marks = blocking(transfer_operations.list_marks)
    marks_of = blocking(transfer_operations.marks_of)
    contexts = blocking(contexts)
    show = blocking(show)
    hint = blocking(hint)
    delete = blocking(delete)
    stats = blocking(stats)
    budget = blocking(budget)
    limit = blocking(limit)
    adapters = blocking(adapters)
    adapter_add = blocking(adapter_add)
    adapter_remove = blocking(adapter_remove)
    embed = blocking(embed)
    apps = blocking(app_operations.apps)
    app_add = blocking(app_operations.app_add)
    app_remove = blocking(app_operations.app_remove)
    app_rotate = blocking(app_operations.app_rotate)
    app_quota = blocking(app_operations.app_quota)
    requests = blocking(requests)
    cancel_call = blocking(cancel_call)
    prioritize_call = blocking(prioritize_call)
    ping = blocking(ping)


class AsyncOperations(AsyncAsker):
    """What AsyncClient derives from."""

    create = awaitable(create)
    append = awaitable(append)
    fork = awaitable(fork)
    resolve = awaitable(resolve)
    truncate = awaitable(truncate)
    migrate = awaitable(migrate)
    export_context = awaitable(transfer_operations.export_context)
    import_context = awaitable(transfer_operations.import_context)
    export_chunks = awaitable(transfer_operations.export_chunks)
    import_chunks = awaitable(transfer_operations.import_chunks)
    move = awaitable(transfer_operations.move)
    list_marks = awaitable(transfer_operations.list_marks)
    marks_of = awaitable(transfer_operations.marks_of)
    contexts = awaitable(contexts)
    show = awaitable(show)
    hint = awaitable(hint)
    delete = awaitable(delete)
    stats = awaitable(stats)
    budget = awaitable(budget)
    limit = awaitable(limit)
    adapters = awaitable(adapters)
    adapter_add = awaitable(adapter_add)
    adapter_remove = awaitable(adapter_remove)
    embed = awaitable(embed)
    apps = awaitable(app_operations.apps)
    app_add = awaitable(app_operations.app_add)
    app_remove = awaitable(app_operations.app_remove)
    app_rotate = awaitable(app_operations.app_rotate)
    app_quota = awaitable(app_operations.app_quota)
    requests = awaitable(requests)
    cancel_call = awaitable(cancel_call)
    prioritize_call = awaitable(prioritize_call)
    ping = awaitable(ping)
