"""Keys of conversations: a hash for each beginning of a list of messages, each chained to the one before.

Law: pure. Two beginnings have the same key exactly when app, adapter and every message are the same; an answer counts
without the white space around it, which clients strip.

    root = H(app, adapter)    key[0] = root    key[k] = H(key[k-1], role, content) for the first k messages

H is BLAKE2b of 16 bytes, personalised. The previous key has a fixed length and the role is hashed with its length, so
the encoding is unambiguous. Unlike the keys of chunks (``kvchunks.keys``) these know nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple, NewType

from llmaas.records import AppId, Message

HistoryKey = NewType("HistoryKey", bytes)

_KEY_BYTES = 16
_ROOT = b"llmaas.history.1"
_MESSAGE = b"llmaas.message.1"
"""Personalisation strings (at most 16 bytes); the digit is the version of the key scheme."""


class PackedHistory(NamedTuple):
    """The keys of a conversation in a few hundred bytes. ``whole``: the context holds these messages and no more."""

    keys: bytes
    """The root first."""
    whole: bool

    def unpacked(self) -> tuple[HistoryKey, ...]:
        """
        >>> root = history_root(AppId("1000/mail"), "")
        >>> PackedHistory(root * 2, True).unpacked() == (root, root)
        True
        """
        starts = range(0, len(self.keys), _KEY_BYTES)
        return tuple(HistoryKey(self.keys[start : start + _KEY_BYTES]) for start in starts)


def history_root(app: AppId, adapter: str) -> HistoryKey:
    """The key of no messages, in an app's contexts with that adapter ("": none)."""
    return _hash(b"", app, adapter, _ROOT)


def history_keys(before: HistoryKey, messages: Sequence[Message]) -> list[HistoryKey]:
    """One key for each message. ``before`` is the key of what stands before the first.

    >>> root = history_root(AppId("1000/mail"), "")
    >>> short = history_keys(root, [Message("user", "Hello"), Message("assistant", "Hi!")])
    >>> long = history_keys(root, [Message("user", "Hello"), Message("assistant", " Hi!"), Message("user", "Bye")])
    >>> short == long[:2]
    True
    """
    keys = list[HistoryKey]()
    for message in messages:
        content = message.content.strip() if message.role == "assistant" else message.content
        before = _hash(before, message.role, content, _MESSAGE)
        keys.append(before)
    return keys


def _hash(before: bytes, first: str, rest: str, person: bytes) -> HistoryKey:
    hasher = blake2b(before, digest_size=_KEY_BYTES, person=person)
    raw = first.encode("utf-8", "surrogatepass")
    hasher.update(len(raw).to_bytes(8, "little"))
    hasher.update(raw)
    hasher.update(rest.encode("utf-8", "surrogatepass"))
    return HistoryKey(hasher.digest())
