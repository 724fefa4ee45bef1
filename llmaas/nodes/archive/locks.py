"""Who can open an encrypted archive: who knows a passphrase, or has a secret key.

Law: the file key is random for each archive; a passphrase or a key only wraps it.

    passphrase   wrapping key = scrypt(passphrase, salt, N = 2^log_n, r = 8, p = 1)                       (RFC 7914)
    recipient    wrapping key = HKDF-SHA256(X25519(ephemeral, recipient), salt = ephemeral | recipient)   (RFC 7748)
    wrapped      = ChaCha20-Poly1305(wrapping key, nonce 0, file key): each wrapping key is used once

A recipient's archive says nothing of who wrote it: only a passphrase says that it was somebody who knows it.
"""

from __future__ import annotations

import base64
import os
from hashlib import blake2b, scrypt

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from llmaas.errors import BadRequest
from llmaas.frozen import frozen

KEY_BYTES = 32
LOG_N = 16
"""Work of a new passphrase: 64 MiB and about 0.2 s."""
MOST_LOG_N = 20
"""Work that is done for an archive that says so: 1 GiB."""
_NO_NONCE = bytes(12)
_INFO = b"llmaas.archive.recipient.1"
_PUBLIC, _SECRET = "llmaas-pub-", "llmaas-key-"
_SUM = 4


@frozen
class Wrapping:
    """What an archive's head says of its file key. ``kind``: "passphrase" or "recipient"."""

    kind: str
    wrapped: bytes
    salt: bytes
    """Of scrypt; for a recipient the ephemeral public key."""
    log_n: int = 0


@frozen(repr=False)
class Passphrase:
    """Opens and locks. It must not be empty."""

    text: str

    def __post_init__(self) -> None:
        if not self.text:
            raise BadRequest("a passphrase has at least one character")

    @property
    def _secret(self) -> bytes:
        return self.text.encode("utf-8", "surrogateescape")

    def wrap(self, file_key: bytes, log_n: int = LOG_N) -> Wrapping:
        salt = os.urandom(16)
        return Wrapping("passphrase", _wrap(_stretched(self._secret, salt, log_n), file_key), salt, log_n)

    def unwrap(self, wrapping: Wrapping) -> bytes:
        """Raises BadRequest."""
        if wrapping.kind != "passphrase":
            raise BadRequest("the archive is for a recipient's key, not for a passphrase", hint="Give the secret key.")
        if not 1 <= wrapping.log_n <= MOST_LOG_N:
            raise BadRequest(f"the archive asks for 2^{wrapping.log_n} rounds of scrypt; 2^{MOST_LOG_N} are the most")
        key = _unwrap(_stretched(self._secret, wrapping.salt, wrapping.log_n), wrapping.wrapped)
        if key is None:
            raise BadRequest("the passphrase does not open the archive", hint="Is it another archive's?")
        return key


@frozen
class Recipient:
    """A public key: locks."""

    public: bytes

    @staticmethod
    def parsed(text: str) -> Recipient:
        """Raises BadRequest."""
        return Recipient(_parsed(text, _PUBLIC, "public key of a recipient"))

    def __str__(self) -> str:
        return _written(self.public, _PUBLIC)

    def wrap(self, file_key: bytes) -> Wrapping:
        ephemeral = X25519PrivateKey.generate()
        mine = ephemeral.public_key().public_bytes_raw()
        shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(self.public))
        return Wrapping("recipient", _wrap(_agreed(shared, mine, self.public), file_key), mine)


@frozen(repr=False)
class SecretKey:
    """Opens what was locked for its ``recipient``."""

    secret: bytes

    @staticmethod
    def new() -> SecretKey:
        return SecretKey(X25519PrivateKey.generate().private_bytes_raw())

    @staticmethod
    def parsed(text: str) -> SecretKey:
        """Raises BadRequest."""
        return SecretKey(_parsed(text, _SECRET, "secret key"))

    def written(self) -> str:
        return _written(self.secret, _SECRET)

    @property
    def recipient(self) -> Recipient:
        return Recipient(X25519PrivateKey.from_private_bytes(self.secret).public_key().public_bytes_raw())

    def unwrap(self, wrapping: Wrapping) -> bytes:
        """Raises BadRequest."""
        if wrapping.kind != "recipient":
            raise BadRequest("the archive is for a passphrase, not for a key", hint="Give the passphrase.")
        try:
            ephemeral = X25519PublicKey.from_public_bytes(wrapping.salt)
            shared = X25519PrivateKey.from_private_bytes(self.secret).exchange(ephemeral)
        except ValueError as error:
            raise BadRequest("the archive's head is damaged: its key is none") from error
        key = _unwrap(_agreed(shared, wrapping.salt, self.recipient.public), wrapping.wrapped)
        if key is None:
            raise BadRequest("the archive was made for another key", hint="Give the secret key of its recipient.")
        return key


Lock = Passphrase | Recipient
Opener = Passphrase | SecretKey


def _stretched(secret: bytes, salt: bytes, log_n: int) -> bytes:
    n = 1 << log_n
    return scrypt(secret, salt=salt, n=n, r=8, p=1, maxmem=n * 1024 + (1 << 21), dklen=KEY_BYTES)


def _agreed(shared: bytes, ephemeral: bytes, recipient: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, ephemeral + recipient, _INFO).derive(shared)


def _wrap(key: bytes, file_key: bytes) -> bytes:
    return ChaCha20Poly1305(key).encrypt(_NO_NONCE, file_key, None)


def _unwrap(key: bytes, wrapped: bytes) -> bytes | None:
    try:
        return ChaCha20Poly1305(key).decrypt(_NO_NONCE, wrapped, None)
    except InvalidTag:
        return None


def _written(key: bytes, prefix: str) -> str:
    """With a checksum, so that a mistyped key is noticed."""
    return prefix + base64.urlsafe_b64encode(key + blake2b(key, digest_size=_SUM).digest()).decode()


def _parsed(text: str, prefix: str, what: str) -> bytes:
    word = text.strip()
    try:
        raw = base64.b64decode(word.removeprefix(prefix), altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    key, checksum = raw[:KEY_BYTES], raw[KEY_BYTES:]
    if not word.startswith(prefix) or len(key) != KEY_BYTES or blake2b(key, digest_size=_SUM).digest() != checksum:
        raise BadRequest(f"this is no {what}: one begins with {prefix!r}", hint="'llmaas ctx keygen' makes a pair.")
    return key
