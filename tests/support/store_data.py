"""Contexts and chunks for tests of the store."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from llmaas.kvchunks.store.store import ContextRow, Span
from llmaas.records import AppId, ChunkKey, ContextId

NOISE = random.Random(1).randbytes(700_000)
A, B = ContextId("a"), ContextId("b")


def key(name: object) -> ChunkKey:
    return ChunkKey(hashlib.blake2b(repr(name).encode(), digest_size=16).digest())


def data(seed: int, size: int) -> bytes:
    return NOISE[seed : seed + size]


def items(name: str, n: int, size: int) -> list[tuple[ChunkKey, int, bytes]]:
    """What a put takes."""
    return [(key((name, i)), 64, data(i, size)) for i in range(n)]


BIG, SMALL = items("big", 4, 400_000), items("small", 3, 5_000)


def row(ctx: str, name: str | None = None, app: str = "1000/notes") -> ContextRow:
    return ContextRow(ContextId(ctx), AppId(app), name or f"name of {ctx}", "tiny", "vocab-1", 10.0, 10.0, 0)


def glue(*tokens: int) -> Span:
    return Span(tuple(tokens))


def payload_files(root: Path) -> list[Path]:
    return sorted((root / "payload").iterdir())
