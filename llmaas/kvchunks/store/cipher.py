"""Sealing: authenticated encryption of chunks under data keys, and of data keys under the master key.

Law: what opens is what was sealed, under the same key and bound to the same name; anything else opens to None.

    sealed = nonce (12 bytes, random) + AEAD(key, nonce, data, associated data = what it is bound to) + tag (16 bytes)

A chunk is bound to its chunk key, so bytes that were moved to another chunk's place do not open. Nonces are random, not
counted: a counter that a crash sets back would use one twice, and the same chunk may be written again with other bytes
(fewer bits). 96 random bits allow 2^32 seals of one key (NIST SP 800-38D, 8.3): 2^38 tokens of one context.

The ciphers are AES-256-GCM and ChaCha20-Poly1305 (RFC 8439), both by the package ``cryptography`` (OpenSSL). The first
is two to three times as fast where the CPU has AES instructions, and slower where it has not (Raspberry Pi 4), so
``fastest_cipher`` measures. The package holds the GIL while it works: tens of microseconds for a chunk on a desktop
CPU.
"""

from __future__ import annotations

import os
from functools import cache
from time import perf_counter

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

Data = bytes | bytearray | memoryview

KEY_BYTES = 32
_NONCE, _TAG = 12, 16
OVERHEAD = _NONCE + _TAG
"""Bytes that sealing adds."""
AES, CHACHA = "aes-256-gcm", "chacha20-poly1305"
"""Names that the index stores."""
CIPHERS: dict[str, type[AESGCM] | type[ChaCha20Poly1305]] = {AES: AESGCM, CHACHA: ChaCha20Poly1305}


class CipherKey:
    """One key (32 bytes) and what it does. ``cipher`` is a name of ``CIPHERS``; KeyError if it is none."""

    __slots__ = ("_aead", "cipher")

    def __init__(self, key: bytes, cipher: str) -> None:
        self.cipher = cipher
        self._aead = CIPHERS[cipher](key)

    def encrypt(self, data: Data, bound: bytes) -> bytes:
        nonce = os.urandom(_NONCE)
        return nonce + self._aead.encrypt(nonce, data, bound)

    def decrypt(self, sealed: Data, bound: bytes) -> bytes | None:
        """None if it was not sealed so: another key, another binding, or altered bytes."""
        view = memoryview(sealed)
        if len(view) < OVERHEAD:
            return None
        try:
            return self._aead.decrypt(bytes(view[:_NONCE]), view[_NONCE:], bound)
        except InvalidTag:
            return None


class MasterKey:
    """The key that data keys are sealed under. It seals nothing else, and is never stored with them."""

    __slots__ = ("_sealer",)

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a master key has {KEY_BYTES} bytes, not {len(key)}")
        # Always this one: it is constant-time without any CPU's help.
        self._sealer = CipherKey(key, CHACHA)

    def make(self, owner: str) -> tuple[str, bytes, CipherKey]:
        """A new data key for context ``owner``: (cipher, wrapped key of 60 bytes, the key itself)."""
        key, cipher = os.urandom(KEY_BYTES), fastest_cipher()
        return cipher, self._sealer.encrypt(key, _binding(owner, cipher)), CipherKey(key, cipher)

    def unwrap(self, owner: str, cipher: str, wrapped: bytes) -> CipherKey | None:
        """The data key; None if it was wrapped under another master key, or its row was tampered with."""
        key = self._sealer.decrypt(wrapped, _binding(owner, cipher))
        return CipherKey(key, cipher) if key is not None and cipher in CIPHERS else None


def _binding(owner: str, cipher: str) -> bytes:
    return f"llmaas.key.1|{cipher}|{owner}".encode()


@cache
def fastest_cipher() -> str:
    """The cipher that seals faster here: a few milliseconds of measurement, once in a process."""
    data = bytes(1 << 17)

    def seconds(cipher: str) -> float:
        sealer, times = CipherKey(bytes(KEY_BYTES), cipher), []
        for _ in range(4):  # the first warms up
            begin = perf_counter()
            sealer.encrypt(data, b"")
            times.append(perf_counter() - begin)
        return min(times)

    return min(CIPHERS, key=seconds)
