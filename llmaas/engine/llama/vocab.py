"""A model's vocabulary: its tokens and their text, and the facts of it that reading text needs.

Law: everything here is safe on any thread, and valid as long as the ``llama_model`` that the vocabulary belongs to.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from llmaas.engine.llama.lib import C, known_token
from llmaas.engine.llama.vocab_table import VocabTable, read_table
from llmaas.errors import ModelUnreadable

_CONTROL, _UNKNOWN, _USER_DEFINED = 1 << 3, 1 << 0, 1 << 4
"""llama.h: enum llama_token_attr. Tokens of these kinds have a name rather than text."""
_NAMED = _CONTROL | _UNKNOWN | _USER_DEFINED
_CONTROL_CHARACTERS = b"\x01\x02\x03\x04\x05\x06\x0e\x0f"
_LETTER_SPACE = [re.compile(rb"%b(?<=[A-Za-z]%b)" % (space, space)) for space in (b" ", b"\xc4\xa0", b"\xe2\x96\x81")]
_NEWLINE_TEXT = [
    re.compile(rb"%b(?!\x00|[\n\r\t ]|\xc4[\x89\x8a\x8d\xa0]|\xe2\x96\x81)" % newline)
    for newline in (b"\n", b"\xc4\x8a")
]
"""In the texts of all tokens, with a zero byte after each. White space stands there as itself, in the alphabet of
byte-level BPE (its space is U+0120, its newline U+010A), or as U+2581. Each pattern begins with the bytes that it looks
for: 0.3 MB of texts are then searched in 4 ms, else in 40."""


class VocabType(enum.IntEnum):
    """llama.h: enum llama_vocab_type."""

    NONE = 0
    SPM = 1
    BPE = 2
    WPM = 3
    UGM = 4
    RWKV = 5
    PLAMO2 = 6
    TEST = 7


class Vocab:
    """The vocabulary of a ``llama_model *``. ``handle`` is the ``llama_vocab *``, ``pre`` the name of the pre-tokenizer
    in the metadata. Raises ModelUnreadable if there is none, or if llama.cpp would end the process over some texts.
    """

    def __init__(self, model: Any, pre: str = "") -> None:
        self.handle = C.llama_model_get_vocab(model)
        self.type = VocabType(C.llama_vocab_type(self.handle))
        if self.type is VocabType.NONE:
            raise ModelUnreadable("it has no vocabulary, so it cannot read text")
        self.pre = pre
        self.n_tokens = int(C.llama_vocab_n_tokens(self.handle))
        self.bos = known_token(C.llama_vocab_bos(self.handle))
        self.eos = known_token(C.llama_vocab_eos(self.handle))
        self.start = self.bos if C.llama_vocab_get_add_bos(self.handle) else None
        """The token that the model wants at the start of a text, if it wants one."""
        self._pieces: dict[int, bytes] = {}
        table = read_table(self.handle, self.n_tokens)
        self._refuse_deadly(table)
        self.most_bytes = self._most_bytes(table.lengths())
        """Bytes of text that one token stands for at most."""
        joined = table.texts
        self.parts_words = not any(pattern.search(joined) for pattern in _LETTER_SPACE)
        """No token has a letter with a space behind it."""
        self.parts_lines = not any(pattern.search(joined) for pattern in _NEWLINE_TEXT)
        """No token has anything but white space behind a newline."""
        self.controls = frozenset(np.flatnonzero(table.attributes & (_CONTROL | _UNKNOWN)).tolist())
        """The control tokens, and the one for what is unknown."""
        self.control_names = tuple(filter(None, (self.text(token) for token in sorted(self.controls))))
        self.own_character = next((chr(c) for c in _CONTROL_CHARACTERS if c not in joined), None)
        """A character that no token holds but its own byte token."""
        kind = int(self.type)
        ends = (C.llama_vocab_bos(self.handle), self.start is not None, C.llama_vocab_eos(self.handle))
        self.fingerprint, self.former_fingerprint = (_hash(facts, joined[:-1]) for facts in ((kind,), (kind, *ends)))
        """See ``LlamaModel``; made here, where the texts are at hand: reading all from llama.cpp takes a while."""

    def piece(self, token: int) -> bytes:
        """The bytes of a token; b"" for special tokens. Raises ValueError for a number that is no token's."""
        known = self._pieces.get(token)
        if known is None:
            self._check(token)
            known = self._pieces[token] = piece_of(self.handle, token)
        return known

    def is_end(self, token: int) -> bool:
        """True if the token ends an answer."""
        self._check(token)
        return bool(C.llama_vocab_is_eog(self.handle, token))

    def is_named(self, token: int) -> bool:
        """True if llama.cpp looks for the token by its name, and goes on behind it as at the start of a text."""
        return bool(C.llama_vocab_get_attr(self.handle, token) & _NAMED)

    def text(self, token: int | None) -> str:
        """A special token's name; "" if there is none."""
        return "" if token is None else str(C.llama_vocab_get_text(self.handle, token).decode("utf-8", "replace"))

    def _check(self, token: int) -> None:
        if not 0 <= token < self.n_tokens:
            raise ValueError(f"token {token} is not in the vocabulary of {self.n_tokens}")

    # -- facts, found once

    def _refuse_deadly(self, table: VocabTable) -> None:
        """Raise ModelUnreadable for a vocabulary with which some texts end the process, whoever sends them."""
        if self.type is VocabType.SPM:  # llama_vocab::byte_to_token throws where nothing catches
            known = set(table.split())
            missing = [b for b in range(256) if b"<0x%02X>" % b not in known and bytes([b]) not in known]
            if missing:
                raise ModelUnreadable(
                    f"its vocabulary has no token for the byte 0x{missing[0]:02X} (and {len(missing) - 1} others): "
                    "llama.cpp would end over text that has it"
                )
        if self.type is VocabType.BPE and self.pre == "whitespace":  # find_bpe_rank asserts that words have no space
            raise ModelUnreadable("its pre-tokenizer 'whitespace' is for embeddings: two spaces would end llama.cpp")

    def _most_bytes(self, lengths: npt.NDArray[np.int64]) -> int:
        """A stored text has at least as many bytes as what it stands for: so only the longest need be looked at."""
        most = 1
        for token in np.argsort(-lengths, kind="stable").tolist():
            length = int(lengths[token])
            if length <= most:
                break
            most = max(most, length if self.is_named(token) else len(piece_of(self.handle, token)))
        return most


def _hash(facts: tuple[int, ...], texts: bytes) -> str:
    hasher = hashlib.blake2b(repr(facts).encode(), digest_size=16)
    hasher.update(texts)
    return hasher.hexdigest()


def piece_of(vocab: Any, token: int, room: int = 64) -> bytes:
    """The bytes of a token of a ``llama_vocab *``; b"" for special tokens. It keeps nothing, unlike ``Vocab.piece``."""
    buffer = ctypes.create_string_buffer(room)
    n = int(C.llama_token_to_piece(vocab, token, buffer, room, 0, False))
    return buffer.raw[:n] if n >= 0 else piece_of(vocab, token, -n)
