"""Encrypts an archive while it is written, and decrypts it while it is read.

Law: a segment that decrypts is the one that was written at its place with this key; where one does not, zeros stand,
and that is counted. Memory is one segment. The construction is that of the tool ``age`` (STREAM: Hoang, Reyhanitabar,
Rogaway and Vizar, "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", CRYPTO 2015, section 8):

    segment i = ChaCha20-Poly1305(payload key, nonce = i (11 bytes, big-endian) | last (1 byte), 65,536 bytes)

Only the last segment has ``last`` = 1 and may be shorter, so an archive that is cut off is noticed, also between two
segments. The payload key is HKDF-SHA256 of the file key; its salt is random, and all of the head before the segments is
in its info, so that no bit of that can be changed.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from llmaas.nodes.archive.blocks import Sink, Source

SEGMENT = 1 << 16
TAG = 16
_INFO = b"llmaas.archive.payload.1"


def payload_key(file_key: bytes, salt: bytes, head: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt, _INFO + head).derive(file_key)


class SealingSink:
    """Takes an archive in clear, and writes its segments to ``sink``. ``close`` writes the last one; the sink stays
    open."""

    def __init__(self, sink: Sink, key: bytes) -> None:
        self._sink, self._aead = sink, ChaCha20Poly1305(key)
        self._rest = bytearray()
        self._number = 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self._rest += data
        n = max(0, len(self._rest) - 1) // SEGMENT  # the last segment is never empty, unless the archive is
        for i in range(n):
            self._segment(memoryview(self._rest)[i * SEGMENT : (i + 1) * SEGMENT].tobytes(), last=False)
        del self._rest[: n * SEGMENT]
        return len(data)

    def close(self) -> None:
        self._segment(bytes(self._rest), last=True)

    def _segment(self, data: bytes, *, last: bool) -> None:
        self._sink.write(self._aead.encrypt(_nonce(self._number, last), data, None))
        self._number += 1


class UnsealingSource:
    """Reads segments from ``source``, and gives the archive in clear.

    A segment that does not decrypt is given as zeros, which no block is: what it held is lost, and the rest is not.
    """

    def __init__(self, source: Source, key: bytes) -> None:
        self._source, self._aead = source, ChaCha20Poly1305(key)
        self._ahead = self._fetch()
        self._clear = memoryview(b"")
        self._number = 0
        self.n_damaged = 0
        """Segments that did not decrypt."""
        self.cut = False
        """Whether the last segment is missing."""

    def read(self, n: int, /) -> bytes:
        parts, left = list[memoryview](), n
        while left:
            if not self._clear:
                if not self._ahead:
                    break
                self._clear = memoryview(self._next())
            parts.append(self._clear[:left])
            self._clear = self._clear[left:]
            left -= len(parts[-1])
        return b"".join(parts)

    def _next(self) -> bytes:
        segment, self._ahead = self._ahead, self._fetch()
        number, self._number = self._number, self._number + 1
        last = not self._ahead
        clear = self._decrypted(segment, number, last)
        if clear is None and last and (clear := self._decrypted(segment, number, False)) is not None:
            self.cut = True
        if clear is None:
            self.n_damaged += 1
            return bytes(max(0, len(segment) - TAG))
        return clear

    def _decrypted(self, segment: bytes, number: int, last: bool) -> bytes | None:
        try:
            return self._aead.decrypt(_nonce(number, last), segment, None)
        except InvalidTag:
            return None

    def _fetch(self) -> bytes:
        return self._source.read(SEGMENT + TAG)


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
