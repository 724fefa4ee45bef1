"""The header of a coded chunk: its layout, how it is read and written, and how damage is found.

Law: pure; bytes in, a ChunkHeader or ChunkDamaged out, whatever the bytes are. Little-endian, 64 bytes:

     0        4      6    7    8    9    10    12              28
    +--------+------+----+----+----+----+-----+---------------+----------+
    | "LKVC" | vers | kb | vb | kc | vc | s,r | key, 16 bytes | n_tokens |
    +--------+------+----+----+----+----+-----+---------------+----------+
     32        36      40      44       46       48             56           64
    +---------+-------+-------+--------+--------+--------------+------------+
    | n_layer | k_dim | v_dim | k_head | v_head | body bytes   | checksum   |  body: K section, V section
    +---------+-------+-------+--------+--------+--------------+------------+

kb, vb: the nominal bits that were asked for. kc, vc: how K and V are really coded: 0 for raw f16, otherwise the bits of
a code (a chunk that is short or cannot be quantised is stored raw, whatever was asked for); kc 255, vc 0: the body is
the state of a whole sequence of n_tokens (``states``). s, one byte: number of
tokens at the beginning that are raw f16 in any case. r, one byte: id of the RoPE table that the keys were un-rotated
with; 0 for none. The checksum is xxh3_64 over bytes 0..55 and the body, that is, over everything except itself.
Version 1 had groups of 32; version 2 had keys with the same bits in every channel.
"""

from __future__ import annotations

import struct
from functools import lru_cache

import xxhash

from llmaas.errors import ChunkDamaged
from llmaas.frozen import frozen
from llmaas.records import ChunkKey, Geometry, Precision

MAGIC = b"LKVC"
VERSION = 3
HEADER_BYTES = 64
_FIELDS = struct.Struct("<4sHBBBBBB16sIIIIHHQ")
_KEY_AT = 12
_CHECKSUM = struct.Struct("<Q")
_HASHED = 1 << 16
"""Bytes that are hashed in one call. With more, xxhash gives the GIL away for what takes microseconds, and waits many
times as long for it where other threads work on the same load."""

_precision, _geometry = lru_cache(64)(Precision), lru_cache(64)(Geometry)
"""All chunks of a load have the same."""

CodedChunk = bytes | bytearray | memoryview


@frozen
class ChunkHeader:
    """The fields of a header. ``precision`` is what was asked for, ``k_coding`` and ``v_coding`` what was done."""

    version: int
    precision: Precision
    k_coding: int
    v_coding: int
    sinks: int
    rope_id: int
    key: ChunkKey
    n_tokens: int
    geometry: Geometry
    body_bytes: int
    checksum: int


def read_header(payload: CodedChunk) -> ChunkHeader:
    """Read the header without verifying the checksum (``check`` does). Raises ChunkDamaged if it makes no sense."""
    if len(payload) < HEADER_BYTES:
        raise ChunkDamaged(f"chunk has {len(payload)} bytes, its header alone needs {HEADER_BYTES}")
    magic, version, kb, vb, kc, vc, sinks, rope_id, key, n_tokens, *shape, body = _FIELDS.unpack_from(payload)
    if magic != MAGIC:
        raise ChunkDamaged(f"not a coded chunk: it begins with {magic!r}")
    if version != VERSION:
        raise ChunkDamaged(f"chunk format version {version}, this codec reads version {VERSION}")
    try:
        precision = _precision(kb, vb)
        geometry = _geometry(*shape)
    except (ValueError, ZeroDivisionError) as error:
        raise ChunkDamaged(f"chunk header is impossible: {error}") from error
    (checksum,) = _CHECKSUM.unpack_from(payload, _FIELDS.size)
    return ChunkHeader(version, precision, kc, vc, sinks, rope_id, ChunkKey(key), n_tokens, geometry, body, checksum)


def check(payload: CodedChunk, key: ChunkKey) -> ChunkHeader:
    """Read the header, and verify that ``payload`` is complete, intact and the chunk named ``key``.

    Raises ChunkDamaged if it is not. Decodes nothing, so the check of a store can afford it for every chunk.
    """
    found = read_header(payload)
    if found.body_bytes != len(payload) - HEADER_BYTES:
        raise ChunkDamaged(f"chunk has {len(payload) - HEADER_BYTES} body bytes, its header says {found.body_bytes}")
    if found.checksum != _checksum(payload):
        raise ChunkDamaged("chunk fails its checksum")
    if found.key != key:
        raise ChunkDamaged(f"chunk is {found.key.hex()}, not {key.hex()}")
    return found


def stamped(payload: CodedChunk, key: ChunkKey) -> bytearray:
    """The same coded chunk under another name. ``payload`` has been checked; nothing of its body is changed."""
    made = bytearray(payload)
    made[_KEY_AT : _KEY_AT + len(key)] = key
    _CHECKSUM.pack_into(made, _FIELDS.size, _checksum(made))
    return made


def write_header(
    payload: bytearray,
    *,
    precision: Precision,
    codings: tuple[int, int],
    sinks: int,
    rope_id: int,
    key: ChunkKey,
    n_tokens: int,
    geometry: Geometry,
) -> None:
    """Write header and checksum into ``payload``, whose body (from byte 64 on) is complete.

    Raises ValueError for a key that has not 16 bytes.
    """
    if len(key) != 16:
        raise ValueError(f"a chunk key has 16 bytes, not {len(key)}")
    g = geometry
    shape = (n_tokens, g.n_layer, g.k_dim, g.v_dim, g.head_dim_k, g.head_dim_v)
    body = len(payload) - HEADER_BYTES
    _FIELDS.pack_into(payload, 0, MAGIC, VERSION, precision.k, precision.v, *codings, sinks, rope_id, key, *shape, body)
    _CHECKSUM.pack_into(payload, _FIELDS.size, _checksum(payload))


def _checksum(payload: CodedChunk) -> int:
    view = memoryview(payload)
    hasher = xxhash.xxh3_64(view[: _FIELDS.size])
    for start in range(HEADER_BYTES, len(view), _HASHED):
        hasher.update(view[start : start + _HASHED])
    return hasher.intdigest()
