"""Authenticated encryption of chunks with data keys, and of data keys and text keys with the master key.

Law: what decrypts is what was encrypted with the same key and bound to the same name; anything else gives None.

    encrypted = nonce (12 bytes, random) + AEAD(key, nonce, data, associated data = the name it is bound to) + tag (16)

A chunk is bound to its chunk key, so bytes that were moved to another chunk's place do not decrypt. Nonces are random,
not counted: a counter that a crash sets back would use one twice, and the same chunk may be written again with other
bytes (fewer bits). 96 random bits allow 2^32 encryptions with one key (NIST SP 800-38D, 8.3), which is 2^38 tokens of
one context.

The ciphers are AES-256-GCM and ChaCha20-Poly1305 (RFC 8439), both by the package ``cryptography`` (OpenSSL). The first
is two to three times as fast where the CPU has AES instructions, and slower where it has none (Raspberry Pi 4), so
``fastest_cipher`` measures. The package (50) gives the GIL away while it works on a chunk, so that several threads
encrypt and decrypt at once; for 2 KB or less it keeps it.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache
from time import perf_counter

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from llmaas.kvchunks.store.chunk_memory import MEMORY, chunk_of

Data = bytes | bytearray | memoryview

KEY_BYTES = 32
_NONCE, _TAG = 12, 16
OVERHEAD = _NONCE + _TAG
"""Bytes that encryption adds."""
AES, CHACHA = "aes-256-gcm", "chacha20-poly1305"
"""Names that the index stores."""
CIPHERS: dict[str, type[AESGCM] | type[ChaCha20Poly1305]] = {AES: AESGCM, CHACHA: ChaCha20Poly1305}


class CipherKey:
    """A key of 32 bytes with its cipher, which is a name of ``CIPHERS``. Raises KeyError for any other name."""

    __slots__ = ("_aead", "cipher")

    def __init__(self, key: bytes, cipher: str) -> None:
        self.cipher = cipher
        self._aead = CIPHERS[cipher](key)

    def encrypt(self, data: Data, name: Data, nonce: bytes | None = None) -> bytes:
        """``data`` encrypted and bound to ``name``; ``OVERHEAD`` bytes longer. ``nonce``: see ``FixedCipher``."""
        nonce = nonce or os.urandom(_NONCE)
        return nonce + self._aead.encrypt(nonce, data, name)

    def encrypt_chunk(self, data: Data, name: Data, memory: memoryview) -> memoryview:
        """As ``encrypt``, to the beginning of ``memory``, which has room for it: nothing is copied behind its nonce."""
        into = getattr(self._aead, "encrypt_into", None)
        if into is None:  # cryptography before 47
            return memoryview(self.encrypt(data, name))
        nonce, made = os.urandom(_NONCE), memory[: len(data) + OVERHEAD]
        made[:_NONCE] = nonce
        into(nonce, data, name, made[_NONCE:])
        return made

    def decrypt(self, encrypted: Data, name: Data) -> bytes | None:
        """The data; None if it was encrypted with another key, bound to another name, or altered since."""
        view = memoryview(encrypted)
        if len(view) < OVERHEAD:
            return None
        try:
            return self._aead.decrypt(bytes(view[:_NONCE]), view[_NONCE:], name)
        except InvalidTag:
            return None

    def decrypt_chunk(self, encrypted: memoryview, name: bytes, *, in_place: bool = False) -> memoryview | bytes | None:
        """As ``decrypt``, for much data. The view is of memory of its own. What was read past the page cache is
        decrypted where it is, so that it can be decrypted once only; with ``in_place`` all is."""
        into = getattr(self._aead, "decrypt_into", None)
        if into is None or len(encrypted) <= OVERHEAD:  # cryptography before 47
            return self.decrypt(encrypted, name)
        # ``decrypt`` writes zeros to its memory first. OpenSSL allows data and result to be at the same place.
        start, stop = _NONCE, len(encrypted) - _TAG
        chunk = encrypted[start:stop] if in_place else chunk_of(encrypted, start, stop)
        chunk = chunk or MEMORY.take(len(encrypted) - OVERHEAD)
        try:
            into(bytes(encrypted[:_NONCE]), encrypted[_NONCE:], name, chunk)
        except InvalidTag:
            return None
        return chunk.toreadonly()


class FixedCipher:
    """Encrypts the same data with the same name to the same bytes, so that what is encrypted can be looked up.

    The nonce is a keyed hash of owner, name and data, so two nonces are the same for the same data only, or by an
    accident of 96 bits. What is the same is seen to be the same, and nothing else is.
    """

    __slots__ = ("_key", "_nonce_key")

    def __init__(self, key: bytes) -> None:
        self._key = CipherKey(derived(key, "fixed.seal"), CHACHA)
        self._nonce_key = derived(key, "fixed.nonce")

    def encrypt(self, data: bytes, name: bytes, owner: bytes = b"") -> bytes:
        """As ``CipherKey.encrypt``. The same data of another ``owner`` gives something else; ``decrypt`` need not know
        whose it is."""
        hashed = hashlib.blake2b(digest_size=_NONCE, key=self._nonce_key)
        for part in (owner, name, data):
            hashed.update(len(part).to_bytes(8, "little") + part)
        nonce = hashed.digest()
        return self._key.encrypt(data, name, nonce)

    def decrypt(self, encrypted: Data, name: Data) -> bytes | None:
        """As ``CipherKey.decrypt``."""
        return self._key.decrypt(encrypted, name)


def derived(key: bytes, purpose: str) -> bytes:
    """A key of its own for ``purpose``, which tells nothing of ``key``."""
    return hashlib.blake2b(f"llmaas.{purpose}.1".encode(), digest_size=KEY_BYTES, key=key).digest()


class MasterKey:
    """The key that data keys and text keys are encrypted ("wrapped") with, and, derived from it, those that names of
    contexts are encrypted and chunks are proved with. It is never stored with them.

    Raises ValueError if ``key`` has not ``KEY_BYTES`` bytes.
    """

    __slots__ = ("_cipher_key", "_proofs", "names")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a master key has {KEY_BYTES} bytes, not {len(key)}")
        # Always this cipher: it is constant-time without any CPU's help.
        self._cipher_key = CipherKey(key, CHACHA)
        self.names = FixedCipher(derived(key, "names"))
        """For the names of contexts."""
        self._proofs = CipherKey(derived(key, "proofs"), CHACHA)

    def prove(self, data: Data) -> bytes:
        """28 bytes by which ``data`` is known again: the tag of an encryption of nothing that it is bound to."""
        return self._proofs.encrypt(b"", data)

    def is_proved(self, data: Data, proof: bytes) -> bool:
        """Whether ``prove`` made the proof, with the same key and of the same data."""
        return self._proofs.decrypt(proof, data) == b""

    def wrap_text_key(self, owner: str, key: bytes) -> bytes:
        """The text key of context ``owner``, wrapped: 60 bytes."""
        return self._cipher_key.encrypt(key, _text_binding(owner))

    def unwrap_text_key(self, owner: str, wrapped: bytes) -> bytes | None:
        """As ``unwrap``, for a text key."""
        return self._cipher_key.decrypt(wrapped, _text_binding(owner))

    def make(self, owner: str) -> tuple[str, bytes, CipherKey]:
        """A new data key for context ``owner``: the cipher's name, the wrapped key (60 bytes), and the key itself."""
        key, cipher = os.urandom(KEY_BYTES), fastest_cipher()
        return cipher, self._cipher_key.encrypt(key, _binding(owner, cipher)), CipherKey(key, cipher)

    def unwrap(self, owner: str, cipher: str, wrapped: bytes) -> CipherKey | None:
        """The data key; None if it was wrapped with another master key, or its row was tampered with."""
        key = self._cipher_key.decrypt(wrapped, _binding(owner, cipher))
        return CipherKey(key, cipher) if key is not None and cipher in CIPHERS else None


def _binding(owner: str, cipher: str) -> bytes:
    return f"llmaas.key.1|{cipher}|{owner}".encode("utf-8", "surrogateescape")


def _text_binding(owner: str) -> bytes:
    return f"llmaas.text-key.1|{owner}".encode("utf-8", "surrogateescape")


@cache
def fastest_cipher() -> str:
    """The cipher that encrypts faster on this CPU. Measured once in a process, which takes a few milliseconds."""
    data = bytes(1 << 17)

    def seconds(cipher: str) -> float:
        key, times = CipherKey(bytes(KEY_BYTES), cipher), []
        for _ in range(4):  # the first warms up
            begin = perf_counter()
            key.encrypt(data, b"")
            times.append(perf_counter() - begin)
        return min(times)

    return min(CIPHERS, key=seconds)
