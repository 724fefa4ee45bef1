"""Values that packages exchange: dataclasses and enums of chunks, models and contexts.

Law: this module imports no other module of llmaas, and nothing outside the standard library: clients import it. Its
values may be compared, hashed (where frozen) and logged; they never open, lock or wait for anything.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from dataclasses import field
from typing import NamedTuple, NewType

from llmaas.frozen import frozen

AppId = NewType("AppId", str)
"""Verified identity of an app, "<uid>/<name>". The uid comes from the kernel."""
ContextId = NewType("ContextId", str)
"""Opaque id of a context: 16 hex digits."""
ChunkKey = NewType("ChunkKey", bytes)
"""16 bytes that name a chunk by its app, model, adapter and every token up to its end (``kvchunks.keys``)."""
RequestId = NewType("RequestId", int)
"""Number of a call, unique in one run of the service."""

SHORT_NAME = r"[A-Za-z0-9._-]{1,64}"
"""What the name of an app or of an adapter is made of, as a regular expression."""
CHUNK_TOKENS = 64
"""Tokens in a full chunk. The last chunk of a context may have fewer."""
NO_QUOTA = 1 << 62
"""Bytes of a budget that is no limit: nothing reaches it."""


class Tier(enum.IntEnum):
    """Where the best copy of a chunk is, fastest first (docs/glossary.md)."""

    CELLS = 0
    """In the engine's own KV buffer, as f16."""
    POOL = 1
    """In RAM, coded."""
    DISK = 2
    """In the store, coded."""
    NONE = 3
    """Nowhere: it must be recomputed from its tokens."""


@frozen
class Precision:
    """Nominal bits per value of a coded chunk, for K and V apart. 16 is lossless.

    Raises ValueError for bits outside 2 .. 16.

    >>> Precision(4, 3)
    Precision(k=4, v=3)
    >>> Precision() == LOSSLESS
    True
    """

    k: int = 16
    v: int = 16

    def __post_init__(self) -> None:
        if not (2 <= self.k <= 16 and 2 <= self.v <= 16):
            raise ValueError(f"precision out of range: k={self.k} v={self.v}")


LOSSLESS = Precision(16, 16)


@frozen
class Geometry:
    """Shape of the KV of one token, which is the same for every layer.

    ``k_dim`` and ``v_dim`` are values per token and layer (KV heads x head dimension). Raises ValueError if a head
    dimension does not divide them.

    >>> Geometry(n_layer=30, k_dim=192, v_dim=192, head_dim_k=64, head_dim_v=64).token_bytes
    23040
    """

    n_layer: int
    k_dim: int
    v_dim: int
    head_dim_k: int
    head_dim_v: int

    def __post_init__(self) -> None:
        if self.k_dim % self.head_dim_k or self.v_dim % self.head_dim_v:
            raise ValueError(f"head dimension does not divide the row: {self}")

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's KV in f16."""
        return 2 * self.n_layer * (self.k_dim + self.v_dim)


class ChunkSensitivity(NamedTuple):
    """How much coding a chunk changes attention: the smaller ``k`` and ``v`` are, the fewer bits it needs.

    ``k`` and ``v``: relative squared change of the attention output with K or V alone at a reference precision; mean
    over layers, power mean over weighted queries. ``density``: D_i of LLMS (arXiv 2403.11805, eq. 1). ``weight``: sum
    of the weights of the queries, as of token ``at``. ``kvchunks.codec.sensitivity`` measures all of this.
    """

    k: float
    v: float
    density: float
    weight: float
    at: int


class ChunkMeta(NamedTuple):
    """What the store keeps of a chunk besides its bytes. ``sensitivity`` is None if it was not measured yet."""

    precision: Precision
    sensitivity: ChunkSensitivity | None = None


@frozen
class StateSize:
    """Bytes of the whole state of a sequence, where that is not rows of KV alone: ``fixed``, ``token`` for each of its
    tokens, and ``window_token`` more for each of the last ``window``.

    >>> StateSize(fixed=1000, token=24).of(100), StateSize(fixed=1000, token=24, window=10, window_token=5).of(100)
    (3400, 3450)
    """

    fixed: int
    token: int
    window: int = 0
    window_token: int = 0

    def of(self, n_tokens: int) -> int:
        return self.fixed + n_tokens * self.token + min(n_tokens, self.window) * self.window_token


@frozen
class ModelInfo:
    """What the service must know about a loaded model.

    ``fingerprint`` names the weights: a chunk is valid for these only. ``vocab`` names the tokenizer: token ids are
    valid for it only. ``chunkable``: whether the state can be cut into chunks; ``note`` says why not, or warns.
    ``state``: where it cannot, the size of the state that goes out and in as a whole; None if it does not do that.
    """

    name: str
    fingerprint: str
    vocab: str
    geometry: Geometry
    n_ctx_train: int
    n_vocab: int
    size_bytes: int
    chunkable: bool = True
    state: StateSize | None = None
    writes: bool = True
    """Whether it writes text. One that does not makes embeddings only, and has no contexts."""
    note: str = ""
    chat_note: str = ""
    """What is wrong with the model's chat template, and what is used in its place; "" if nothing is."""
    former_vocab: str = ""
    """What versions before called this ``vocab``: contexts that have it are of this tokenizer. "" if the same."""
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Fields of ``calls.Sampling`` that the model's makers suggest."""
    file: str = ""
    """Name of the file, without its folder; "" if there is none."""
    tools: bool = False
    """Whether its chat template has a place for tools."""
    tool_mark: str = ""
    """What it has the model write before a call of a tool; "" if that is not known."""

    @property
    def title(self) -> str:
        """The model as people know it: by its file, beside the name that its makers gave it, which may be a riddle.

        >>> ModelInfo("Mix1 Ep2", "", "", Geometry(1, 1, 1, 1, 1), 1, 1, 1, file="SmolLM2.gguf").title
        'SmolLM2.gguf (Mix1 Ep2)'
        """
        return f"{self.file} ({self.name})" if self.file and self.name not in self.file else self.file or self.name


@frozen
class Message:
    """One message of a conversation, as chat templates take it."""

    role: str
    content: str


@frozen
class ContextInfo:
    """A context as its owner sees it."""

    id: ContextId
    app: AppId
    name: str
    n_tokens: int
    n_messages: int
    created: float
    last_used: float
    tiers: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Number of tokens whose best copy is in CELLS, POOL, DISK, NONE."""
    usable: bool = True
    """False while the service runs a model with another tokenizer, or if the context is damaged on disk."""
    adapter: str = ""
    """Name of the LoRA adapter that it uses; "" for the bare model."""
    note: str = ""
    """Of a context just made: that the model's own chat template is not in use, and why; "" if it is."""
    anonymous: bool = False
    """It was made by ``resolve``, has no name that an app chose, and may go when room is needed."""
    ttl: float | None = None
    """It is deleted when nobody has used it for so many seconds; None: it stays."""


TOKEN_BYTES = 4


@frozen
class ContextSpan:
    """A run of tokens of a context: a message, raw text, or the chat template's tokens between messages."""

    tokens: bytes
    """Token ids of ``TOKEN_BYTES`` bytes each, the lowest byte first."""
    role: str | None = None
    """Of a message; else None."""
    text: str | None = None
    open: bool = False
    """Of an answer: it has not been closed, and can go on. Of raw text: names of control tokens in it are text."""


@frozen
class ExportedContext:
    """All that a context consists of, apart from its KV. ``vocab`` names the tokenizer that its tokens belong to."""

    name: str
    model: str
    """That made it."""
    vocab: str
    spans: tuple[ContextSpan, ...]

    @property
    def n_tokens(self) -> int:
        return sum(len(span.tokens) for span in self.spans) // TOKEN_BYTES


@frozen
class Resolved:
    """The context that a conversation goes on in. It holds the first ``n_messages`` of the messages, and no more."""

    context: ContextInfo
    n_messages: int


@frozen
class AdapterInfo:
    """A LoRA adapter that calls may name. ``path`` is shown to the operator only; others get ""."""

    name: str
    path: str
    fingerprint: str
    size_bytes: int
    loaded: bool
    """Whether it is in memory now. An adapter is loaded when a call needs it."""


@frozen
class AppQuota:
    """What one app may have; None: as the daemon's settings say for every app. Raises ValueError."""

    contexts: int | None = None
    """Contexts that it may keep."""
    tokens: int | None = None
    """Tokens of all its contexts together."""
    disk_bytes: int | None = None
    """What its chunks may take on DISK. Of more, the coldest are dropped, and computed again when they are needed."""
    requests: int | None = None
    """Calls of it that may wait or run."""
    rate: float | None = None
    """Tokens per second that it may generate."""
    priority: int | None = None
    """The most urgent priority that its calls can have."""

    def __post_init__(self) -> None:
        for name in ("contexts", "tokens", "disk_bytes", "requests"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= NO_QUOTA:
                raise ValueError(f"field 'quota.{name}' must be in [0, 2**62], not {value}")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise ValueError(f"field 'quota.rate' must be a number above 0, not {self.rate}")
        if self.priority is not None and not 0 <= self.priority <= 9:
            raise ValueError(f"field 'quota.priority' must be in [0, 9], not {self.priority}")


NO_APP_QUOTA = AppQuota()


@frozen
class AppUse:
    """What an app has now, of what ``AppQuota`` bounds."""

    contexts: int = 0
    """Anonymous ones included."""
    tokens: int = 0
    disk_bytes: int = 0
    requests: int = 0


@frozen
class AppInfo:
    """An app that has a token, or quotas of its own."""

    app: AppId
    created: float | None
    """When its token was made, by the wall clock, in seconds since 1970; None: it has none."""
    quota: AppQuota
    used: AppUse


@frozen
class NewToken:
    """An app, and the token that it was given. Nobody is told the token again."""

    app: AppId
    token: str = field(repr=False)


@frozen
class Embeddings:
    """Vectors for texts: the nearer two texts' meanings, the nearer their vectors. Each has the length 1, so the cosine
    of the angle between two of them is their scalar product.

    >>> Embeddings(2, (3,), b"\\0\\0\\0\\0\\0\\0\\x80?").vectors
    [[0.0, 1.0]]
    """

    dimensions: int
    """Values of each vector."""
    n_tokens: tuple[int, ...]
    """Of each text."""
    packed: bytes = field(repr=False)
    """The vectors, one after the other: little-endian floats of 32 bits."""

    def __post_init__(self) -> None:
        wanted = 4 * self.dimensions * len(self.n_tokens)
        if self.dimensions < 1 or len(self.packed) != wanted:
            raise ValueError(f"the vectors have {len(self.packed)} bytes, not {wanted}")

    @property
    def vectors(self) -> list[list[float]]:
        """One for each text, in the order of the texts."""
        return [list(each) for each in struct.iter_unpack(f"<{self.dimensions}f", self.packed)]


@frozen
class RequestSpan:
    """A part of a request's time: ``name`` is queued, pool or disk (loads), recompute, prefill, decode or commit.

    ``start_ms`` and ``end_ms`` are milliseconds since the request was submitted; ``end_ms`` None: it goes on.
    """

    name: str
    start_ms: float
    end_ms: float | None
    tokens: int = 0


@frozen
class RequestInfo:
    """A call that waits, runs or has ended, as ``requests`` reports it."""

    call: int
    """The daemon's number of it: they grow, and none is used twice between two starts."""
    app: AppId
    context: ContextId
    name: str
    """Of the context."""
    op: str
    """append or generate, or hint."""
    priority: int
    state: str
    """waiting, running or ended."""
    submitted: float
    """By the wall clock, in seconds since 1970."""
    spans: tuple[RequestSpan, ...] = ()
    n_prompt: int = 0
    n_generated: int = 0
    n_paused: int = 0
    may_move: bool = False
    """Whether it is an answer that goes on at another node if its context moves now. Others end first."""
    outcome: str = ""
    """Once it has ended: why an answer ended (``stop``, ``length``, ...), ``appended``, or the code of its error."""


@frozen
class ContextDetail:
    """A context with its conversation."""

    info: ContextInfo
    messages: tuple[Message, ...]
