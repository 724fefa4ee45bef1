"""Chunk keys: hashes of token ids, each chained to the keys of all chunks before it.

Law: pure. Two chunks have the same key exactly when app, model, adapter and every token up to the chunk's end are the
same. So any stored chunk with that key holds the right KV and may be used as it is.

    root = H(app, model, adapter)    key[0] = H(root, tokens[0:64])    key[i] = H(key[i-1], tokens[64i:64i+64])

H is BLAKE2b of 16 bytes, personalised, over the previous key (16 bytes) and the token ids as little-endian int32. The
previous key has a fixed length, so the encoding is unambiguous, and a partial chunk (fewer bytes) never has the key of
the full chunk that begins with the same tokens. Apps never share keys, even for equal tokens: the chain begins at the
app.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from hashlib import blake2b

from llmaas.records import CHUNK_TOKENS, AppId, ChunkKey

KEY_BYTES = 16
_ROOT = b"llmaas.root.1"
_CHUNK = b"llmaas.chunk.1"
"""Personalisation strings (at most 16 bytes); the digit is the version of the key scheme."""


def namespace(app: AppId, model_fingerprint: str, adapter: str = "") -> bytes:
    """The root (16 bytes) of all chains of one app, model and adapter ("": no adapter).

    Each field is hashed with its length, so ("ab", "c") and ("a", "bc") have different roots.
    """
    hasher = blake2b(digest_size=KEY_BYTES, person=_ROOT)
    for field in (app, model_fingerprint, adapter):
        raw = field.encode("utf-8", "surrogatepass")
        hasher.update(len(raw).to_bytes(8, "little"))
        hasher.update(raw)
    return hasher.digest()


def chunk_keys(
    root: bytes,
    tokens: Sequence[int] | array[int] | memoryview,
    *,
    known: Sequence[ChunkKey] = (),
    chunk: int = CHUNK_TOKENS,
) -> list[ChunkKey]:
    """One key for each chunk of ``tokens``; the last chunk may be partial.

    ``known`` are the keys of the first full chunks from an earlier call. They are trusted and not hashed again; the
    chain continues from the last one. Raises ValueError if ``known`` covers more tokens than there are, OverflowError
    if a token is no int32.

    >>> root = namespace(AppId("1000/mail"), "model")
    >>> keys = chunk_keys(root, range(100))  # a chunk of 64 tokens, and one of 36
    >>> len(keys), len(keys[0])
    (2, 16)
    >>> longer = chunk_keys(root, range(200), known=keys[:1])
    >>> longer[0] == keys[0], longer[1] == keys[1]  # the second chunk is full now, so it has another key
    (True, False)
    """
    if chunk < 1:
        raise ValueError(f"a chunk needs at least one token, not {chunk}")
    skip = len(known) * chunk
    if skip > len(tokens):
        raise ValueError(f"{len(known)} known chunks of {chunk} tokens, but only {len(tokens)} tokens")
    raw = _int32_bytes(tokens[skip:] if skip else tokens)
    keys = list(known)
    previous: bytes = known[-1] if known else root
    for start in range(0, len(raw), 4 * chunk):
        hasher = blake2b(previous, digest_size=KEY_BYTES, person=_CHUNK)
        hasher.update(raw[start : start + 4 * chunk])
        previous = hasher.digest()
        keys.append(ChunkKey(previous))
    return keys


def tail_keys(previous: bytes, tokens: array[int]) -> list[ChunkKey]:
    """The keys of a partial chunk behind the key or root ``previous``, if it had the first 1, 2, ... of ``tokens``.

    >>> root = namespace(AppId("1000/mail"), "model")
    >>> tail_keys(root, array("i", range(3)))[1] == chunk_keys(root, range(2))[0]
    True
    """
    raw, hasher, keys = _int32_bytes(tokens), blake2b(previous, digest_size=KEY_BYTES, person=_CHUNK), list[ChunkKey]()
    for start in range(0, len(raw), 4):
        hasher.update(raw[start : start + 4])
        keys.append(ChunkKey(hasher.digest()))
    return keys


def _int32_bytes(tokens: Sequence[int] | array[int] | memoryview) -> memoryview:
    """The tokens as little-endian int32; without a copy if they are stored like that already."""
    if isinstance(tokens, array) and tokens.typecode == "i":
        ids = tokens
    elif isinstance(tokens, memoryview) and tokens.format == "i" and tokens.c_contiguous:
        if sys.byteorder == "little":
            return tokens.cast("B")
        ids = array("i", tokens)
    else:
        ids = array("i", tokens)
    if sys.byteorder == "big":
        ids = ids[:]
        ids.byteswap()
    return memoryview(ids).cast("B")
