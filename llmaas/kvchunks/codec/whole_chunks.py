"""Decoding K and V of whole chunks, and numpy's way to do it.

Law: pure. A chunk's body is its K section, then its V section; in each, the first tokens may be plain f16 (sinks), and
all are where the tensor has no coding. ``kernels_native`` does the same for many chunks by one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from llmaas.frozen import frozen
from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec.kernels_channels import BadWords, RopeRotation, channels_bytes, decode_channels
from llmaas.kvchunks.codec.kernels_numpy import BITS, F16, U8, decode_rotated, rotated_bytes

RAW = 0
"""Id of the coding as plain f16, which is bit-exact. Every other id is a number of bits."""
CODINGS = frozenset((RAW, *BITS))


class SoundChunk(NamedTuple):
    """A chunk that has passed all checks but that of its channels' bits."""

    body: U8
    n_tokens: int
    k_coding: int
    v_coding: int
    sinks: int
    k_bytes: int
    """Of the K section."""


Placed = tuple[SoundChunk, int]
"""A chunk, and the number of its first token in a slab."""


@frozen(eq=False)
class ChunkForm:
    """What all chunks of a model have in common besides the shape of a slab: how K and V were rotated."""

    rope: RopeRotation | None
    block: int


def n_plain(n_tokens: int, coding: int, sinks: int) -> int:
    """Tokens at the beginning of a section that are plain f16."""
    return n_tokens if coding == RAW else min(sinks, n_tokens)


def section_bytes(
    shape: tuple[int, int, int], coding: int, sinks: int, coded: Callable[[tuple[int, int, int], int], int]
) -> int:
    """Bytes of a section. ``shape``: layers, tokens, channels; ``coded``: those of what is not plain, by its shape."""
    layers, n_tokens, dim = shape
    plain = n_plain(n_tokens, coding, sinks)
    rest = coded((layers, n_tokens - plain, dim), coding) if n_tokens > plain else 0
    return 2 * layers * plain * dim + rest


@lru_cache(maxsize=64)
def body_bytes(shape: tuple[int, int, int], n_tokens: int, k_coding: int, v_coding: int, sinks: int) -> tuple[int, int]:
    """Bytes of the K and of the V section. ``shape``: layers, channels of K, channels of V."""
    layers, k_dim, v_dim = shape
    return (
        section_bytes((layers, n_tokens, k_dim), k_coding, sinks, channels_bytes),
        section_bytes((layers, n_tokens, v_dim), v_coding, sinks, rotated_bytes),
    )


def check_placed(chunk: SoundChunk, first: int, slab: KvSlab) -> None:
    """Raises ValueError if the chunk is not what it says, or has no room there."""
    (layers, n_tokens, k_dim), body = slab.k.shape, chunk.body
    if not 0 <= first < first + chunk.n_tokens <= n_tokens:
        raise ValueError(f"tokens {first} .. {first + chunk.n_tokens - 1} are not in a slab of {n_tokens}")
    if chunk.k_coding not in CODINGS or chunk.v_coding not in CODINGS or chunk.sinks < 0:
        raise ValueError(f"there is no coding {chunk.k_coding}, {chunk.v_coding} with {chunk.sinks} sinks")
    sizes = body_bytes((layers, k_dim, slab.v.shape[2]), chunk.n_tokens, chunk.k_coding, chunk.v_coding, chunk.sinks)
    if chunk.k_bytes != sizes[0] or body.shape != (sum(sizes),) or body.dtype != np.uint8 or body.strides != (1,):
        raise ValueError(f"a chunk of this form has {sizes} dense bytes, not {chunk.k_bytes} of {body.shape}")


def decode_chunks(form: ChunkForm, chunks: Sequence[Placed], slab: KvSlab) -> list[int]:
    """Decode each chunk into its tokens of ``slab``. Returns which of them no encoder wrote: these write nothing."""
    bad = []
    for number, (chunk, first) in enumerate(chunks):
        check_placed(chunk, first, slab)
        rows, sinks = slice(first, first + chunk.n_tokens), chunk.sinks
        keys, values = chunk.body[: chunk.k_bytes], chunk.body[chunk.k_bytes :]
        try:
            _decode(
                keys, slab.k[:, rows], chunk.k_coding, sinks, lambda d, bits, x: decode_channels(d, bits, form.rope, x)
            )
        except BadWords:
            bad.append(number)
            continue
        _decode(
            values, slab.v[:, rows], chunk.v_coding, sinks, lambda d, bits, x: decode_rotated(d, bits, form.block, x)
        )
    return bad


def _decode(section: U8, x: F16, coding: int, sinks: int, coded: Callable[[U8, int, F16], None]) -> None:
    layers, n_tokens, dim = x.shape
    n = n_plain(n_tokens, coding, sinks)
    plain, rest = x[:, :n], section[2 * layers * n * dim :]
    if n < n_tokens:
        coded(rest, coding, x[:, n:])
    np.copyto(plain.view(np.uint16), section[: plain.nbytes].view(np.uint16).reshape(plain.shape))
