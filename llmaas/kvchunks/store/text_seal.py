"""Encrypts what a conversation says: its tokens and texts, its name, and what is stored of its keyed turns.

Law: a context is encrypted as a whole or in clear as a whole, and its row says which: it has a text key (wrapped with
the master key) or none. Checksums are of what is on disk, so damage is found, and put right, without any key.

    column = nonce (12 bytes, random) + ChaCha20-Poly1305(text key, nonce, value, the column's name) + tag (16)

An empty value stays empty. Names of contexts are encrypted with a key of the master's, the same name of the same app
always to the same (``cipher.FixedCipher``), so that the index can find them and keep them unique.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import NamedTuple

from llmaas.kvchunks.store.cipher import CHACHA, KEY_BYTES, OVERHEAD, CipherKey, FixedCipher, MasterKey
from llmaas.kvchunks.store.sums import Value

WRAPPED_BYTES = KEY_BYTES + OVERHEAD
_MARK = "\x01"
"""First character of an encrypted name. What is printed has none."""
_NAME = b"llmaas.name.1"
"""What names are bound to. Not to their app: where that is damaged, the name should still be known."""


class TextUnreadable(ValueError):
    """A value does not open with its context's key."""


class TextKey:
    """The key of one context. ``column`` is what a value is bound to, so that it opens nowhere else."""

    __slots__ = ("_cipher_key", "_key", "_owner")

    def __init__(self, key: bytes, owner: str) -> None:
        self._key, self._cipher_key = key, CipherKey(key, CHACHA)
        self._owner = owner.encode("utf-8", "surrogateescape")

    def seal(self, column: str, value: bytes) -> bytes:
        """``OVERHEAD`` bytes longer than ``value``; empty if that is."""
        return self._cipher_key.encrypt(value, self._name(column)) if value else b""

    def open(self, column: str, sealed: bytes) -> bytes:
        """Raises TextUnreadable."""
        return _opened(self._cipher_key.decrypt(sealed, self._name(column)), column) if sealed else b""

    def seal_fixed(self, column: str, value: bytes) -> bytes:
        """As ``seal``, but the same value always gives the same."""
        return FixedCipher(self._key).encrypt(value, self._name(column))

    def open_fixed(self, column: str, sealed: bytes) -> bytes:
        """Raises TextUnreadable."""
        return _opened(FixedCipher(self._key).decrypt(sealed, self._name(column)), column)

    def _name(self, column: str) -> bytes:
        return b"llmaas.text.1|%s|%s" % (column.encode(), self._owner)


def _opened(value: bytes | None, column: str) -> bytes:
    if value is None:
        raise TextUnreadable(f"{column} does not open with the context's key")
    return value


class RowSeal(NamedTuple):
    """What the row of a context has of its encryption."""

    name: str
    """The name as it is on disk."""
    text_key: bytes | None
    """Wrapped; None if the context is in clear."""


class Sealing:
    """Text keys and names. Without ``master`` new contexts are in clear, and nothing that is encrypted opens."""

    def __init__(self, master: MasterKey | None) -> None:
        self._master = master

    @property
    def on(self) -> bool:
        return self._master is not None

    def new(self, ctx: str, app: str, name: str) -> tuple[RowSeal, TextKey | None]:
        """For a new context: what its row has, and its key; None for no encryption."""
        if self._master is None:
            return RowSeal(name, None), None
        key = os.urandom(KEY_BYTES)
        return RowSeal(self.seal_name(app, name), self._master.wrap_text_key(ctx, key)), TextKey(key, ctx)

    def key(self, ctx: str, wrapped: bytes) -> TextKey | None:
        """The key of context ``ctx``; None if it cannot be had."""
        key = self._master.unwrap_text_key(ctx, wrapped) if self._master else None
        return None if key is None else TextKey(key, ctx)

    def seal_name(self, app: str, name: str) -> str:
        """The name as it is on disk."""
        assert self._master is not None
        return _MARK + base64.b64encode(self._master.names.encrypt(name.encode(), _NAME, app.encode())).decode()

    def open_name(self, stored: str) -> str | None:
        """The name in clear; None if it cannot be had."""
        if not stored.startswith(_MARK):
            return stored
        if self._master is None:
            return None
        try:
            name = self._master.names.decrypt(base64.b64decode(stored[1:], validate=True), _NAME)
            return None if name is None else name.decode()
        except (binascii.Error, ValueError):
            return None


IN_CLEAR = Sealing(None)


LOST_KEY = bytes(WRAPPED_BYTES)
"""Stands in the row of a context that is encrypted with a key that is lost: it opens nothing."""


def is_text_key(value: Value) -> bool:
    """Whether the value can be a wrapped text key."""
    return isinstance(value, bytes) and len(value) == WRAPPED_BYTES
