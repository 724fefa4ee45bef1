"""All tokens of a vocabulary at once, by a loop in C where that was built (``_vocab.c``).

Law: without the C part the same is read token by token, which takes 0.3 s for 151,936 of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llmaas.engine.llama.lib import C, ggml_function
from llmaas.native import load_library

_VERSION = 1
"""Of ``_vocab.c``; a library left over from another version is not used."""
BYTES_A_TOKEN = 16
"""Room for texts that is tried first."""


class VocabTable(NamedTuple):
    """``texts`` are those of all tokens, with a zero byte behind each; none has one itself. ``attributes`` (n_tokens):
    llama.h, enum llama_token_attr."""

    texts: bytes
    attributes: npt.NDArray[np.int32]

    def lengths(self) -> npt.NDArray[np.int64]:
        """Bytes of each text."""
        ends = np.flatnonzero(np.frombuffer(self.texts, np.uint8) == 0)
        return np.diff(ends, prepend=-1) - 1

    def split(self) -> Sequence[bytes]:
        return self.texts.split(b"\x00")[:-1]


def read_table(vocab: Any, n_tokens: int) -> VocabTable:
    """Of a ``llama_vocab *``."""
    text_of, attributes_of = map(ggml_function, ("llama_vocab_get_text", "llama_vocab_get_attr"))
    loop = library()
    if loop is None or text_of is None or attributes_of is None:
        return _read_slowly(vocab, n_tokens)
    room = BYTES_A_TOKEN * n_tokens
    while True:
        buffer = np.empty(room, np.uint8)
        used = loop.vocab_texts(text_of, vocab, n_tokens, buffer.ctypes.data, room)
        if used <= room:
            break
        room = used
    attributes = np.empty(n_tokens, np.int32)
    loop.vocab_attributes(attributes_of, vocab, n_tokens, attributes.ctypes.data)
    return VocabTable(buffer[:used].tobytes(), attributes)


def _read_slowly(vocab: Any, n_tokens: int) -> VocabTable:
    texts = [C.llama_vocab_get_text(vocab, token) + b"\x00" for token in range(n_tokens)]
    attributes = [C.llama_vocab_get_attr(vocab, token) for token in range(n_tokens)]
    return VocabTable(b"".join(texts), np.array(attributes, np.int32))


@cache
def library() -> ctypes.CDLL | None:
    """The C part; None where it was not built."""
    found = load_library(__file__, "_vocab", lambda built: bool(built.vocab_version() == _VERSION))
    if found is not None:
        pointer = ctypes.c_void_p
        found.vocab_texts.argtypes = [pointer, pointer, ctypes.c_int32, pointer, ctypes.c_int64]
        found.vocab_texts.restype = ctypes.c_int64
        found.vocab_attributes.argtypes = [pointer, pointer, ctypes.c_int32, pointer]
        found.vocab_attributes.restype = None
    return found
