"""Whole states as coded chunks: for models whose state is not rows of KV, which cannot be cut.

Law: pure; what ``encode_state`` makes, ``decode_state`` returns bit by bit, or refuses with ChunkDamaged. A coded state
is the 64-byte header of every chunk (``header``), then the bytes of the state as they are, so that whatever checks,
encrypts, copies or repairs chunks does the same with states. The header's codings are ``STATE`` and 0.

The bytes are not compressed: docs/decisions/045-whole-states.md has what was measured.
"""

from __future__ import annotations

import numpy as np

from llmaas.errors import ChunkDamaged
from llmaas.kv_arrays import Bytes
from llmaas.kvchunks.codec.header import HEADER_BYTES, CodedChunk, check, write_header
from llmaas.records import LOSSLESS, ChunkKey, Geometry

STATE = 255
"""In place of the bits of K: this is a state."""


def coded_state_size(nbytes: int) -> int:
    """Bytes of a coded state of ``nbytes``."""
    return HEADER_BYTES + nbytes


def encode_state(state: Bytes, key: ChunkKey, n_tokens: int, geometry: Geometry) -> bytearray:
    """Code the state of a sequence of ``n_tokens``, whose last token ends the chunk ``key``.

    >>> geometry, key = Geometry(1, 64, 64, 64, 64), ChunkKey(bytes(16))
    >>> coded = encode_state(np.arange(10, dtype=np.uint8), key, 3, geometry)
    >>> len(coded), decode_state(coded, key, 3).tolist()
    (74, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    payload = bytearray(coded_state_size(state.size))
    np.frombuffer(payload, np.uint8, offset=HEADER_BYTES)[:] = state
    write_header(
        payload,
        precision=LOSSLESS,
        codings=(STATE, 0),
        sinks=0,
        rope_id=0,
        key=key,
        n_tokens=n_tokens,
        geometry=geometry,
    )
    return payload


def decode_state(payload: CodedChunk, key: ChunkKey, n_tokens: int) -> Bytes:
    """The state of the sequence of ``n_tokens`` that ends with the chunk ``key``: a view of ``payload``. Raises
    ChunkDamaged."""
    found = check(payload, key)
    if (found.k_coding, found.v_coding) != (STATE, 0):
        raise ChunkDamaged(f"chunk is no state: it is coded as K {found.k_coding}, V {found.v_coding}")
    if found.n_tokens != n_tokens:
        raise ChunkDamaged(f"state of {found.n_tokens} tokens, {n_tokens} were expected")
    return np.frombuffer(payload, np.uint8, offset=HEADER_BYTES)
