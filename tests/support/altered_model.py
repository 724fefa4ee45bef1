"""The packaged model's file with one value of its metadata changed, as repaired files are published."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HEAD = 4 << 20
"""Bytes that hold all metadata of the packaged model."""
FIRST_TOKEN = b"<|endoftext|>"


@contextmanager
def altered(gguf: Path, path: Path, name: str, value: bytes) -> Iterator[Path]:
    """A copy at ``path``, for the block, in which the value of the key ``name`` begins with ``value``."""
    whole = bytearray(gguf.read_bytes())
    at = whole.index(name.encode(), 0, HEAD) + len(name) + 4  # behind the name stands the value's type
    whole[at : at + len(value)] = value
    path.write_bytes(whole)
    del whole
    try:
        yield path
    finally:
        path.unlink()


@contextmanager
def another_tokenizer(gguf: Path, path: Path, n_vocab: int = 49152) -> Iterator[Path]:
    """A copy in which one token has another text."""
    text = FIRST_TOKEN.replace(b"end", b"END")
    first = struct.pack("<IQQ", 8, n_vocab, len(text)) + text  # a list of texts, its length, the first one
    with altered(gguf, path, "tokenizer.ggml.tokens", first) as copy:
        yield copy
