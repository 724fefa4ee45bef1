"""Values that cross borders: frozen dataclasses and enums, and nothing that acts.

Law: this module imports no other module of llmaas. What is here may be compared, hashed (where
frozen) and logged; it never opens, locks or waits for anything.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, NamedTuple, NewType

import numpy as np
import numpy.typing as npt

AppId = NewType("AppId", str)
"""Verified identity of an app, ``"<uid>/<name>"``; the uid comes from the kernel."""
ContextId = NewType("ContextId", str)
"""Opaque id of a context: 16 hex digits."""
ChunkKey = NewType("ChunkKey", bytes)
"""16 bytes that name a chunk by (app, model, adapter, every token up to its end)."""
RequestId = NewType("RequestId", int)

CHUNK_TOKENS = 64
"""Tokens in a full chunk. The last chunk of a context may be shorter."""
NO_QUOTA = 1 << 62
"""Bytes of a budget that nothing reaches."""

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]


class Tier(enum.IntEnum):
    """Where a chunk is, best first (docs/glossary.md)."""

    CELLS = 0
    POOL = 1
    DISK = 2
    NONE = 3


@dataclass(frozen=True, slots=True)
class Precision:
    """Nominal bits per value of a coded chunk, for K and V apart. 16 is lossless."""

    k: int = 16
    v: int = 16

    def __post_init__(self) -> None:
        if not (2 <= self.k <= 16 and 2 <= self.v <= 16):
            raise ValueError(f"precision out of range: k={self.k} v={self.v}")

    @property
    def lossless(self) -> bool:
        return self.k == 16 and self.v == 16


LOSSLESS = Precision(16, 16)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Shape of the KV of one token: the same for every layer.

    ``k_dim`` and ``v_dim`` are values per token and layer (KV heads x head dimension).
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


@dataclass(slots=True, eq=False)
class KvSlab:
    """The f16 KV of ``n_tokens`` consecutive tokens, all layers.

    ``k`` has shape (n_layer, n_tokens, k_dim), ``v`` (n_layer, n_tokens, v_dim). Both may be strided
    views of a larger buffer, contiguous along the last axis only; ``owner`` keeps that buffer alive.
    """

    k: F16
    v: F16
    owner: Any = None

    @property
    def n_tokens(self) -> int:
        return int(self.k.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class Rope:
    """How a model turns the keys of a token by its position (RoPE, arXiv 2104.09864, eq. 15).

    ``angles`` (n_layer, n_pairs) float32: radians per position. Pair i of a head is its channels (2i, 2i+1), or with
    ``halves`` (i, i + n_pairs); channels from 2 n_pairs on are not turned.
    """

    angles: F32
    halves: bool


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """Queries of some tokens of one sequence, after RoPE.

    ``positions`` (n) int32, ascending; ``values`` (n, n_layer, n_head, head_dim_k) float16.
    """

    positions: npt.NDArray[np.int32]
    values: F16


class ChunkSensitivity(NamedTuple):
    """What coding a chunk does to attention: the smaller ``k`` and ``v``, the fewer bits it needs.

    ``k``, ``v``: relative squared change of the attention output with K or V alone at a reference precision, mean over
    layers and power mean over (weighted) queries. ``density``: D_i of LLMS (arXiv 2403.11805, eq. 1). ``weight``: sum
    of the weights of the queries asked, as of token ``at``. ``kvchunks.codec.sensitivity`` measures it.
    """

    k: float
    v: float
    density: float
    weight: float
    at: int


class ChunkMeta(NamedTuple):
    """What is known of a stored chunk besides its bytes; ``sensitivity`` None: it was not measured yet."""

    precision: Precision
    sensitivity: ChunkSensitivity | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the service must know about a loaded model.

    ``fingerprint`` names the weights (a chunk is valid for these only); ``vocab`` names the
    tokenizer (token ids are valid for these only).
    """

    name: str
    fingerprint: str
    vocab: str
    geometry: Geometry
    n_ctx_train: int
    n_vocab: int
    size_bytes: int
    chunkable: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation, as chat templates know it."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
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
    """Tokens whose best copy is in CELLS, POOL, DISK, NONE."""
    usable: bool = True
    """False while the service runs a model with another tokenizer."""
    adapter: str = ""
    """Name of the LoRA adapter that it uses; "": the bare model."""


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A LoRA adapter that calls may name. ``path`` is for the operator only: "" for others."""

    name: str
    path: str
    fingerprint: str
    size_bytes: int
    loaded: bool
    """It is in memory now; others are loaded when a call needs them."""


@dataclass(frozen=True, slots=True)
class ContextDetail:
    """A context with its conversation."""

    info: ContextInfo
    messages: tuple[Message, ...]
