"""The blocks of an archive: bytes with a kind, a number and checksums, one behind the other.

Law: whatever the bytes are, reading gives blocks that are as they were written, and says where others were; it needs
no more memory than the largest block. Little-endian:

     0        4      5      6    8         12       16       20        28        32
    +--------+------+------+----+---------+--------+--------+---------+---------+- - - -+
    | "LBLK" | kind | code | 0  | n_bytes | n_full | number | body    | header  | body  |
    +--------+------+------+----+---------+--------+--------+---------+---------+- - - -+

``code``: 0 the body is as it is, 1 one zstd frame, 2 zlib. ``n_bytes``: of the body as it lies here; ``n_full``: once
it is decompressed. ``number``: how many blocks stand before it, so that one which is missing is noticed. ``body`` is
xxh3_64 of the body as it lies here, ``header`` is xxh32 of bytes 0 to 27.

The header has a checksum of its own: a length that is wrong is noticed before it is believed, so a damaged body costs
its own block only. Behind a damaged header the next block is found by its magic number and its header's checksum.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from types import ModuleType
from typing import Protocol

import xxhash

from llmaas.api.bulk import Parts
from llmaas.errors import BadRequest
from llmaas.frozen import frozen

zstandard: ModuleType | None
try:
    import zstandard
except ImportError:  # it is optional: Termux has no wheel of it
    zstandard = None

MAGIC = b"LBLK"
_HEADER = struct.Struct("<4sBBHIIIQI")
HEADER_BYTES = _HEADER.size
MOST_BYTES = 64 << 20
"""Of a body: a reader takes no more into memory, whatever a header says."""
_RAW, _ZSTD, _ZLIB = 0, 1, 2
_SMALL = 128
"""Bodies of fewer bytes are not compressed."""
_SEARCH = 1 << 16
"""Bytes that are read at once to find the next block."""


class Source(Protocol):
    """What an archive is read from: a binary file, or what decrypts one."""

    def read(self, n: int, /) -> bytes:
        """The next ``n`` bytes; fewer at the end only."""


class Sink(Protocol):
    """What an archive is written to."""

    def write(self, data: bytes | bytearray | memoryview, /) -> object: ...


@frozen
class Block:
    """``number``: how many blocks stand before it in the archive as it was written."""

    kind: int
    number: int
    body: bytes


@frozen
class Gap:
    """A place where nothing could be read. ``at``: bytes from the first block's beginning; ``kind``: of the block that
    was there, 0 if that is not known."""

    at: int
    why: str
    kind: int = 0


class BlockWriter:
    """Writes blocks to ``sink``."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.written = 0
        """Blocks."""
        self.nbytes = 0
        """Bytes of all blocks."""

    def write(self, kind: int, body: bytes) -> None:
        """Compressed, if that makes it smaller. Raises as ``write_raw``."""
        if len(body) < _SMALL or len(body) > MOST_BYTES:
            self.write_raw(kind, (body,))
        else:
            code, packed = _packed(body)
            self._write(kind, code, (packed,), len(body))

    def write_raw(self, kind: int, body: Parts) -> None:
        """As it is. Raises ValueError for a body that no reader would take, and what the sink raises."""
        n_bytes = sum(map(len, body))
        if n_bytes > MOST_BYTES:
            raise ValueError(f"a block has {MOST_BYTES} bytes at most, not {n_bytes}")
        self._write(kind, _RAW, body, n_bytes)

    def _write(self, kind: int, code: int, packed: Parts, n_full: int) -> None:
        n_bytes, hasher = sum(map(len, packed)), xxhash.xxh3_64()
        for part in packed:
            hasher.update(part)
        head = struct.pack("<4sBBHIIIQ", MAGIC, kind, code, 0, n_bytes, n_full, self.written, hasher.intdigest())
        head += struct.pack("<I", xxhash.xxh32_intdigest(head))
        if len(packed[0]) < _SMALL:
            head, packed = head + packed[0], packed[1:]
        self._sink.write(head)
        for part in packed:
            self._sink.write(part)
        self.written += 1
        self.nbytes += HEADER_BYTES + n_bytes


def read_blocks(source: Source) -> Iterator[Block | Gap]:
    """All that is whole, in order, and where something is not. Raises what the source raises."""
    intake = _Intake(source)
    while True:
        at, head = intake.at, intake.read(HEADER_BYTES)
        if not head:
            return
        fields = _header(head)
        if fields is None:
            short = len(head) < HEADER_BYTES
            yield Gap(at, "the archive ends within a block" if short else "a block's header is damaged")
            if short or not intake.find_block(head):
                return
            continue
        kind, code, n_bytes, n_full, number, checksum = fields
        body = intake.read(n_bytes)
        if len(body) < n_bytes:
            yield Gap(at, "the archive ends within a block", kind)
            if not intake.find_block(head + body):
                return
        elif xxhash.xxh3_64_intdigest(body) != checksum:
            yield Gap(at, "a block fails its checksum", kind)
            if not intake.is_at_block() and not intake.find_block(head + body):
                return
        elif (full := _unpacked(code, body, n_full)) is None:
            yield Gap(at, "a block cannot be decompressed", kind)
        else:
            yield Block(kind, number, full)


class _Intake:
    """Reads a source, and lets what was read be read again."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._again = b""
        self.at = 0

    def read(self, n: int) -> bytes:
        if not self._again:
            data = self._source.read(n)
        else:
            data, self._again = self._again[:n], self._again[n:]
            if len(data) < n:
                data += self._source.read(n - len(data))
        self.at += len(data)
        return data

    def unread(self, data: bytes) -> None:
        self._again = data + self._again
        self.at -= len(data)

    def is_at_block(self) -> bool:
        """Whether a sound header comes next, or the end."""
        head = self.read(HEADER_BYTES)
        self.unread(head)
        return not head or _header(head) is not None

    def find_block(self, seen: bytes) -> bool:
        """Go on at the first sound header behind the first byte of ``seen``, which was read last; False: there is none
        any more."""
        window = seen[1:]
        while True:
            start = window.find(MAGIC)
            while 0 <= start <= len(window) - HEADER_BYTES:
                if _header(window[start : start + HEADER_BYTES]) is not None:
                    self.unread(window[start:])
                    return True
                start = window.find(MAGIC, start + 1)
            more = self.read(_SEARCH)
            if not more:
                return False
            window = window[-HEADER_BYTES:] + more


def _header(head: bytes) -> tuple[int, int, int, int, int, int] | None:
    """kind, code, n_bytes, n_full, number and the body's checksum; None if no writer wrote them."""
    if len(head) < HEADER_BYTES:
        return None
    magic, kind, code, zero, n_bytes, n_full, number, body, header = _HEADER.unpack(head)
    if magic != MAGIC or zero or header != xxhash.xxh32_intdigest(head[: HEADER_BYTES - 4]):
        return None
    return (kind, code, n_bytes, n_full, number, body) if max(n_bytes, n_full) <= MOST_BYTES else None


def _packed(body: bytes) -> tuple[int, bytes]:
    """The body compressed, if that makes it smaller."""
    if zstandard is not None:
        code, packed = _ZSTD, zstandard.ZstdCompressor(level=3).compress(body)
    else:
        code, packed = _ZLIB, zlib.compress(body, 6)
    return (code, packed) if len(packed) < len(body) else (_RAW, body)


def _unpacked(code: int, body: bytes, n_full: int) -> bytes | None:
    """The body as it was; None if no writer wrote it. Raises BadRequest if it needs a package that is missing."""
    if code == _RAW:
        return body if len(body) == n_full else None
    if code == _ZSTD:
        if zstandard is None:
            raise BadRequest("the archive is compressed by zstd", hint="Install the package zstandard.")
        try:
            full: bytes = zstandard.ZstdDecompressor().decompress(body, max_output_size=n_full, allow_extra_data=False)
        except zstandard.ZstdError:
            return None
        return full if len(full) == n_full else None
    if code == _ZLIB:
        return _inflated(body, n_full)
    return None


def _inflated(body: bytes, n_full: int) -> bytes | None:
    inflate = zlib.decompressobj()
    try:
        full = inflate.decompress(body, n_full) if n_full else b""
    except zlib.error:
        return None
    return full if len(full) == n_full and not inflate.unconsumed_tail else None
