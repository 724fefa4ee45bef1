"""The requests that clients send: the fields of each, the operation's name on the wire, and how frames hold them.

Law: pure. A request with an unknown field, without a required one, or with a value of a wrong type is refused
(BadRequest that names the field).
"""

from __future__ import annotations

import reprlib
from dataclasses import fields

from llmaas.api.adapter_messages import ADAPTER_OPERATIONS, AdapterRequest, ListAdapters
from llmaas.api.app_messages import APP_OPERATIONS, AppRequest, ListApps
from llmaas.api.embed_message import Embed
from llmaas.api.mark_messages import MARK_OPERATIONS, MarkRequest
from llmaas.api.names import (
    check_context,
    check_limit,
    check_messages,
    check_name,
    check_one_target,
    check_stops,
    check_ttl,
)
from llmaas.api.record_maps import from_map, to_map
from llmaas.api.slot_message import OpenSlot
from llmaas.api.transfer_messages import TRANSFER_OPERATIONS, TransferRequest
from llmaas.api.wire import Frame
from llmaas.calls import DEFAULT_TERMS, CallSpec, Generation, Sampling, Terms, Turn
from llmaas.errors import BadRequest
from llmaas.frozen import frozen
from llmaas.records import NO_QUOTA, Message

_U31 = 2**31
_U32 = 2**32


@frozen
class Create:
    """A new context, empty but for a system message. Without ``name`` it is given one. With ``exist_ok`` the context of
    that name is returned if there is one. It is deleted when nobody has used it for ``ttl`` seconds."""

    name: str | None = None
    system: str | None = None
    adapter: str = ""
    exist_ok: bool = False
    ttl: float | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        check_ttl(self.ttl)
        if self.exist_ok and self.name is None:
            raise ValueError("with exist_ok a name must be given")


@frozen
class Append:
    """Add to a context without an answer; its KV is computed now. The fields from ``priority`` on are its terms."""

    context: str
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    priority: int = DEFAULT_TERMS.priority
    deadline_s: float | None = None
    rate: float | None = None
    adapter: str | None = None
    special: bool = True
    idempotency_key: str | None = None
    if_n_tokens: int | None = None

    def __post_init__(self) -> None:
        check_context(self.context)
        check_messages(self.messages)
        if not self.messages and self.prompt is None:
            raise ValueError("give messages or a prompt: there is nothing to append")
        _ = self.spec  # this checks the rest

    @property
    def terms(self) -> Terms:
        return Terms(self.priority, self.deadline_s, self.rate, self.adapter)

    @property
    def turn(self) -> Turn:
        return Turn(self.messages, self.prompt, self.special)

    @property
    def spec(self) -> CallSpec:
        return CallSpec(self.turn, None, self.terms, self.idempotency_key, self.if_n_tokens)


@frozen
class Generate:
    """Add to a context, if there is something to add, and answer. Fields of Turn, Generation, Sampling and Terms."""

    context: str
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    max_tokens: int = Generation().max_tokens
    temperature: float = Sampling().temperature
    top_k: int = Sampling().top_k
    top_p: float = Sampling().top_p
    min_p: float = Sampling().min_p
    seed: int | None = None
    stop: tuple[str, ...] = ()
    priority: int = DEFAULT_TERMS.priority
    deadline_s: float | None = None
    rate: float | None = None
    adapter: str | None = None
    repeat_penalty: float = Sampling().repeat_penalty
    presence_penalty: float = Sampling().presence_penalty
    frequency_penalty: float = Sampling().frequency_penalty
    penalty_last_n: int = Sampling().penalty_last_n
    grammar: str | None = None
    json_schema: str | None = None
    schema_marks: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    on_full: str = Generation().on_full
    special: bool = True
    idempotency_key: str | None = None
    if_n_tokens: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens >= _U31:
            raise ValueError(f"max_tokens must be below 2**31, not {self.max_tokens}")
        if self.seed is not None and not 0 <= self.seed < _U32:
            raise ValueError(f"seed must be in [0, 2**32), not {self.seed}")
        check_context(self.context)
        check_messages(self.messages)
        check_stops(self.stop)
        _ = self.spec  # this checks the rest

    @property
    def turn(self) -> Turn:
        return Turn(self.messages, self.prompt, self.special)

    @property
    def terms(self) -> Terms:
        return Terms(self.priority, self.deadline_s, self.rate, self.adapter)

    @property
    def generation(self) -> Generation:
        sampling = Sampling(**{f.name: getattr(self, f.name) for f in fields(Sampling)})
        return Generation(self.max_tokens, sampling, self.stop, self.logprobs, self.on_full)

    @property
    def spec(self) -> CallSpec:
        return CallSpec(self.turn, self.generation, self.terms, self.idempotency_key, self.if_n_tokens, self.progress)


@frozen
class Fork:
    """A new context with the conversation of another, or with its first ``n_messages`` messages."""

    context: str
    name: str | None = None
    n_messages: int | None = None

    def __post_init__(self) -> None:
        check_context(self.context)
        check_name(self.name)
        if (self.n_messages or 0) < 0:
            raise ValueError("n_messages must be 0 or more")


@frozen
class Resolve:
    """Find the context in which a conversation goes on, which is sent as a whole."""

    messages: tuple[Message, ...]
    adapter: str = ""

    def __post_init__(self) -> None:
        check_messages(self.messages)


@frozen
class Truncate:
    """Keep the beginning of a context: so many tokens, or so many messages."""

    context: str
    n_tokens: int | None = None
    n_messages: int | None = None

    def __post_init__(self) -> None:
        check_context(self.context)
        if (self.n_tokens is None) == (self.n_messages is None):
            raise ValueError("give n_tokens or n_messages, one of them")
        if (self.n_tokens or 0) < 0 or (self.n_messages or 0) < 0:
            raise ValueError("n_tokens and n_messages must be 0 or more")


@frozen
class ListContexts:
    """A page of the contexts of the app, or of every app: ``limit`` at most, from the place ``after`` on."""

    everyone: bool = False
    limit: int | None = None
    after: str | None = None

    def __post_init__(self) -> None:
        check_limit(self.limit)


@frozen
class Show:
    """A context with a page of its conversation: ``limit`` messages at most, from the place ``after`` on."""

    context: str
    everyone: bool = False
    limit: int | None = None
    after: str | None = None

    def __post_init__(self) -> None:
        check_context(self.context)
        check_limit(self.limit)


@frozen
class ListRequests:
    """A page of the calls that wait or run and the last ones that have ended, of the app or of every app; of these
    the ``last`` so many that came."""

    everyone: bool = False
    limit: int | None = None
    after: str | None = None
    last: int | None = None

    def __post_init__(self) -> None:
        check_limit(self.limit)
        check_limit(self.last, "last")


@frozen
class Hint:
    """The context will be used soon."""

    context: str

    def __post_init__(self) -> None:
        check_context(self.context)


@frozen
class Delete:
    """Delete a context with its chunks."""

    context: str
    everyone: bool = False

    def __post_init__(self) -> None:
        check_context(self.context)


@frozen
class Migrate:
    """Tokenize a context of another model anew, for the one that is served."""

    context: str
    everyone: bool = False

    def __post_init__(self) -> None:
        check_context(self.context)


@frozen
class Cancel:
    """End a request of this connection, whose id is ``request``, or a ``call`` by the daemon's number of it."""

    request: int | None = None
    call: int | None = None
    everyone: bool = False

    def __post_init__(self) -> None:
        check_one_target(self.request, self.call)


@frozen
class Prioritize:
    """Change how urgent a request is while it waits or runs: one of this connection, or a ``call`` by its number."""

    priority: int
    request: int | None = None
    call: int | None = None
    everyone: bool = False

    def __post_init__(self) -> None:
        check_one_target(self.request, self.call)
        _ = Terms(self.priority)


@frozen
class Limit:
    """Tokens per second that an app (``uid/name``), or without ``app`` all together, may generate; None: no limit."""

    app: str | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        _ = Terms(rate=self.rate)


@frozen
class Stats:
    """Figures of the daemon. ``octaves``: with the counts of histograms, for monitors."""

    octaves: bool = False


@frozen
class Budget:
    """Set what POOL and DISK may hold, in bytes; None leaves a budget as it is."""

    pool_bytes: int | None = None
    disk_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, nbytes in (("pool_bytes", self.pool_bytes), ("disk_bytes", self.disk_bytes)):
            if nbytes is not None and not 0 <= nbytes <= NO_QUOTA:
                raise ValueError(f"{name} must be in [0, 2**62], not {nbytes}")


@frozen
class Ping:
    """Answer, and do nothing else."""


CallRequest = Append | Generate
"""What runs on the model, and may be cancelled."""
ControlRequest = Cancel | Prioritize
"""About a running CallRequest of the same connection."""
ContextRequest = Create | Fork | Resolve | Truncate | Migrate | Delete | TransferRequest
TaskRequest = ContextRequest | Embed | MarkRequest | AdapterRequest | AppRequest
"""What takes time, and ends by itself."""
QuickRequest = ListContexts | ListRequests | Show | Limit | Stats | Budget | ListAdapters | ListApps | Ping
"""What is answered at once."""
Request = CallRequest | ControlRequest | TaskRequest | QuickRequest | Hint | OpenSlot

OPERATIONS: dict[str, type[Request]] = {
    "create": Create,
    "append": Append,
    "generate": Generate,
    "fork": Fork,
    "resolve": Resolve,
    "truncate": Truncate,
    "list": ListContexts,
    "show": Show,
    "requests": ListRequests,
    "hint": Hint,
    "migrate": Migrate,
    "delete": Delete,
    "cancel": Cancel,
    "prioritize": Prioritize,
    "limit": Limit,
    "stats": Stats,
    "budget": Budget,
    "embed": Embed,
    **TRANSFER_OPERATIONS,
    **MARK_OPERATIONS,
    **ADAPTER_OPERATIONS,
    **APP_OPERATIONS,
    "ping": Ping,
    "slot": OpenSlot,
}
_NAMES = {cls: op for op, cls in OPERATIONS.items()}


def op_of(request: Request) -> str:
    return _NAMES[type(request)]


def request_frame(request_id: int, request: Request) -> Frame:
    set_fields = {name: value for name, value in to_map(request).items() if value is not None}
    return {"id": request_id, "op": op_of(request), **set_fields}


def request_id(frame: Frame) -> int:
    """The id of a request. Raises BadRequest if replies could not carry it."""
    value = frame.get("id")
    if type(value) is not int or not 0 <= value < 2**63:
        raise BadRequest("field 'id' must be an integer in [0, 2**63)")
    return value


def request(frame: Frame) -> Request:
    """The request that a frame with an id holds. Raises BadRequest that names the field at fault."""
    op = frame.get("op")
    cls = OPERATIONS.get(op) if type(op) is str else None
    if cls is None:
        raise BadRequest(f"field 'op': no operation {reprlib.repr(op)}; there are {', '.join(OPERATIONS)}")
    return from_map(cls, {name: value for name, value in frame.items() if name not in ("id", "op")}, strict=True)
