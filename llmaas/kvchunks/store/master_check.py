"""Whether the master key is the one that a store's conversations are encrypted with.

Law: a store with encrypted conversations opens with their master key, or not at all: no other key is used for them, and
none is made.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import chain

from llmaas.errors import StoreFailed
from llmaas.kvchunks.store.index import Index
from llmaas.kvchunks.store.key_copies import read_key_copies
from llmaas.kvchunks.store.sums import tolerant_text
from llmaas.kvchunks.store.text_seal import LOST_KEY, Sealing, is_text_key

_ROWS = "SELECT CAST(id AS BLOB), CAST(text_key AS BLOB) FROM contexts WHERE text_key IS NOT NULL"


class MasterKeyMissing(StoreFailed):
    """The store's conversations are encrypted, and the master key is not there, or is another one."""

    hint = (
        "Put the key back where it was: in the variable LLMAAS_MASTER_KEY, in the kernel's keyring, or in the file "
        "beside data_dir, and set 'encrypt = true'. Nobody can read the conversations without it; nothing was changed. "
        "To begin anew, use another data_dir."
    )


def check_master(index: Index, sealing: Sealing) -> None:
    """Raises MasterKeyMissing."""
    found = False
    with index.read() as con:
        # One that opens tells enough: a key that does not may be damaged.
        for ctx, key in chain(con.execute(_ROWS), _copies(con)):
            if isinstance(ctx, bytes) and is_text_key(key) and key != LOST_KEY:
                found = True
                if sealing.key(tolerant_text(ctx), key) is not None:
                    return
    if found:
        why = "is another one than theirs" if sealing.on else "is not there, or encryption is turned off"
        raise MasterKeyMissing(f"the conversations in {index.path.parent} are encrypted, and the master key {why}")


def _copies(con: sqlite3.Connection) -> Iterator[tuple[bytes, bytes]]:
    for _, ctx, key in read_key_copies(con):
        yield ctx, key
