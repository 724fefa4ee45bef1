"""Drops rows of chunks, their files and their keys that no version wrote: a damaged value must not reach anybody.

Law: what is dropped is recomputed from tokens, which are never touched here.
"""

from __future__ import annotations

import logging

from llmaas.kvchunks.store.context_rows import LARGEST_NUMBER
from llmaas.kvchunks.store.index import Index, Txn

log = logging.getLogger(__name__)

_MOST_TOKENS = 1 << 31
_LAST_FILE = 0xFFFF_FFFE
"""Their names have eight hexadecimal digits, and the next number must be free."""
_CHUNK = (
    f"typeof(file) = 'integer' AND typeof(offset) = 'integer' AND offset BETWEEN 0 AND {LARGEST_NUMBER}"
    f" AND typeof(nbytes) = 'integer' AND nbytes BETWEEN 1 AND {LARGEST_NUMBER}"
    f" AND typeof(n_tokens) = 'integer' AND n_tokens BETWEEN 1 AND {_MOST_TOKENS}"
    " AND typeof(checksum) = 'blob' AND length(checksum) = 8 AND typeof(key) = 'blob' AND length(key) = 16"
)
_FILE = f"id BETWEEN 1 AND {_LAST_FILE} AND typeof(context) = 'text' AND typeof(seal) IN ('integer', 'null')"
_KEY = (
    f"id BETWEEN 1 AND {LARGEST_NUMBER} AND typeof(context) = 'text' AND typeof(cipher) = 'text'"
    " AND typeof(wrapped) = 'blob' AND length(wrapped) = 60"
)
_NUMBER = f"typeof(seq) = 'integer' AND seq BETWEEN 0 AND {LARGEST_NUMBER}"
_BAD_FILES = f"SELECT id FROM files WHERE NOT ({_FILE}) OR seal IN (SELECT id FROM keys WHERE NOT ({_KEY}))"
_BAD_CHUNKS = f"NOT ({_CHUNK}) OR file NOT IN (SELECT id FROM files) OR file IN ({_BAD_FILES})"


def drop_impossible(index: Index) -> int:
    """Returns how many chunks were lost by it. Costs a pass over the tables."""
    with index.read() as con:
        found = con.execute(
            f"SELECT EXISTS (SELECT 1 FROM chunks WHERE {_BAD_CHUNKS}) OR EXISTS ({_BAD_FILES})"
            f" OR EXISTS (SELECT 1 FROM keys WHERE NOT ({_KEY}))"
            f" OR EXISTS (SELECT 1 FROM sqlite_sequence WHERE NOT ({_NUMBER}))"
        ).fetchone()[0]
    if not found:
        return 0
    with index.write(durable=False) as txn:
        lost = _drop(txn)
    log.error("impossible values in the index: %d chunks are dropped with their rows, and will be recomputed", lost)
    return lost


def _drop(txn: Txn) -> int:
    con = txn.con
    for table in ("chunks", "files", "keys"):
        con.execute(f"REINDEX {table}")  # SQLite deletes no row whose index entry differs from it
    lost = con.execute(f"DELETE FROM chunks WHERE {_BAD_CHUNKS}").rowcount
    con.execute(f"DELETE FROM files WHERE id IN ({_BAD_FILES})")
    con.execute(f"DELETE FROM keys WHERE NOT ({_KEY})")
    con.execute(f"UPDATE sqlite_sequence SET seq = (SELECT coalesce(max(id), 0) FROM keys) WHERE NOT ({_NUMBER})")
    return lost
