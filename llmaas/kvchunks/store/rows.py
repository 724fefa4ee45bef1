"""What the store keeps, as values: contexts, spans, adapters, and where chunks are.

Law: nothing here knows SQLite, files or the format of a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

from llmaas.frozen import frozen
from llmaas.records import AppId, ChunkKey, ChunkMeta, ContextId


class ModelName(NamedTuple):
    """A model as contexts name it."""

    model: str
    vocab: str


@frozen
class ContextRow:
    """A stored context. Times are seconds of the service's wall clock."""

    id: ContextId
    app: AppId
    name: str
    model: str
    """Name of the model that made it; informative."""
    vocab: str
    """Fingerprint of the tokenizer that its token ids belong to."""
    created: float
    last_used: float
    n_tokens: int
    adapter: str = ""
    """Name of the LoRA adapter that it uses; "" for none."""
    ttl: float | None = None
    """Seconds after its last use after which it may be deleted; None: it stays."""
    origin: str = ""
    """Fingerprint of the node that it came from; "" if it was made here."""


class ContextSummary(NamedTuple):
    """A stored context, as far as it is known without its spans having been compared with their checksums."""

    row: ContextRow
    n_messages: int
    text_bytes: int
    """Of its messages' contents, in UTF-8."""
    damage: str = ""
    """What is wrong with its row, so that it cannot be used; "" if nothing is."""


@frozen
class AdapterRow:
    """A LoRA adapter that was registered while the service ran."""

    name: str
    path: str
    fingerprint: str
    """Hash of what the file held when it was registered."""


@frozen
class Span:
    """A run of tokens that belong together: a message, or the chat template's tokens between messages ("glue").

    ``role`` is None for glue and raw text, ``text`` for glue, and for raw text of version 0.1. ``open`` marks a
    generated message whose closing tokens are not in the context yet; it has a meaning only while the span is the last
    one. Of raw text it says that names of control tokens in it are text.
    """

    tokens: tuple[int, ...]
    role: str | None = None
    text: str | None = None
    open: bool = False


@frozen
class KeyedTurn:
    """A turn that was asked for with an idempotency key, stored beside its spans."""

    key: str
    request: bytes
    """Digest of what was asked."""
    n_spans: int | None
    """How many of the context's last spans it is; None if the context went on behind it, or was written anew."""
    n_tokens: int
    """Tokens of the context at its end."""
    result: bytes | None
    """What the caller was told, which only the service reads; None: the answer was interrupted."""


@frozen
class Place:
    """Where a chunk's bytes are: ``nbytes`` from ``offset`` on in payload file ``file``."""

    key: ChunkKey
    file: int
    offset: int
    nbytes: int
    data_key: int | None = None
    """Number of the data key that they are encrypted with; None if they are in clear."""

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


class SealedChunk(NamedTuple):
    """A chunk as it was read from disk, where it may be encrypted. ``Store.open`` makes of it what was put."""

    place: Place
    data: memoryview | None
    """None if there was nothing to read."""


class StoredChunk(NamedTuple):
    """A chunk that the store holds. ``meta`` is None if it was put without any."""

    key: ChunkKey
    n_tokens: int
    nbytes: int
    """Bytes of the coded chunk, without what encryption adds."""
    meta: ChunkMeta | None = None
