"""Free text, in which JSON by a schema stands between two marks: what keeps calls of tools to their schemas.

Law: outside the marks every token is allowed, but one that would write more than the first mark and white space behind
it; between them only what the schema allows, white space around it, and then the second mark. An answer may end outside
of them only.
"""

from __future__ import annotations

import enum
from collections.abc import Generator

import numpy as np

from llmaas.engine.constraint.port import Constraint, Mask, ReadyConstraint, TooComplex
from llmaas.engine.constraint.vocabulary import Vocabulary

_SPACE = b" \t\r\n"
_MOST_SPACE = 8
"""Bytes of white space on each side of the JSON: models at high temperatures write it without end."""


class _Where(enum.Enum):
    FREE = "outside of the marks"
    JSON = "behind the first mark"
    CLOSING = "behind the JSON"


class Marks:
    """The two marks, for one vocabulary. ``end`` may be empty. Shared by all answers that have them; on one thread."""

    def __init__(self, begin: str, end: str, vocabulary: Vocabulary) -> None:
        self.begin, self.end = begin.encode(), end.encode()
        self.vocabulary = vocabulary
        self.spaces = [token for token, piece in enumerate(vocabulary.pieces) if piece and not piece.strip(_SPACE)]
        last = self.begin[-1:]
        self._completing = [token for token, piece in enumerate(vocabulary.pieces) if last in piece]
        """The tokens that can complete the first mark."""
        self._free: dict[bytes, Mask] = {}
        self._closing: dict[bytes, Mask] = {}

    def tail(self, text: bytes) -> bytes:
        """The longest end of the text that may become the first mark."""
        longest = min(len(text), len(self.begin) - 1)
        return next((text[-n:] for n in range(longest, 0, -1) if self.begin.startswith(text[-n:])), b"")

    def behind(self, text: bytes) -> bytes | None:
        """What stands behind the first mark in the text; None if that is not in it."""
        _, found, rest = text.partition(self.begin)
        return rest if found else None

    def free(self, tail: bytes) -> Mask:
        """The tokens that may follow outside of the marks, where ``tail`` may become the first one."""
        if tail not in self._free:
            mask = np.ones(self.vocabulary.n_vocab, np.bool_)
            for token in self._completing:
                rest = self.behind(tail + self.vocabulary.pieces[token])
                mask[token] = rest is None or not rest.strip(_SPACE)
            self._free[tail] = mask
        return self._free[tail]

    def closing(self, written: bytes, n_space: int) -> Mask:
        """The tokens that go on behind the JSON: the rest of the second mark, or white space before it."""
        if written not in self._closing:
            left, mask = self.end[len(written) :], np.zeros(self.vocabulary.n_vocab, np.bool_)
            mask[[token for token, piece in enumerate(self.vocabulary.pieces) if piece and left.startswith(piece)]] = (
                True
            )
            self._closing[written] = mask
        mask = self._closing[written].copy()
        if not written:
            mask[[token for token in self.spaces if len(self.vocabulary.pieces[token]) <= _MOST_SPACE - n_space]] = True
        return mask


class MarkedSchema:
    """A schema made ready, and the marks that it stands between."""

    def __init__(self, schema: ReadyConstraint, begin: str, end: str, vocabulary: Vocabulary) -> None:
        self._schema, self._marks = schema, Marks(begin, end, vocabulary)
        self.n_bytes = schema.n_bytes + (len(begin) + len(end)) * vocabulary.n_vocab

    def begin(self) -> MarkedConstraint:
        return MarkedConstraint(self._marks, self._schema)


class MarkedConstraint:
    """A ``Constraint``: one answer's way through free text and JSON by ``schema``."""

    def __init__(self, marks: Marks, schema: ReadyConstraint) -> None:
        self._marks, self._schema = marks, schema
        self._where, self._text = _Where.FREE, b""
        """The text is what counts of the answer: the possible beginning of a mark."""
        self._inner: Constraint | None = None
        self._begun = False
        """Whether the JSON has a first token."""
        self._n_space = 0

    @property
    def masks_are_cheap(self) -> bool:
        return self._inner is None or self._inner.masks_are_cheap

    def accept(self, token: int) -> bool:
        vocabulary = self._marks.vocabulary
        if vocabulary.is_end(token):
            return self._where is _Where.FREE
        match self._where:
            case _Where.FREE:
                return self._accept_free(vocabulary.pieces[token])
            case _Where.JSON:
                return self._accept_json(token, vocabulary.pieces[token])
            case _Where.CLOSING:
                return self._accept_closing(vocabulary.pieces[token])

    def _accept_free(self, piece: bytes) -> bool:
        text = self._text + piece
        rest = self._marks.behind(text)
        if rest is None:
            self._text = self._marks.tail(text)
            return True
        if rest.strip(_SPACE):
            return False
        self._where, self._text, self._n_space = _Where.JSON, b"", min(len(rest), _MOST_SPACE)
        self._inner, self._begun = self._schema.begin(), False
        return True

    def _accept_json(self, token: int, piece: bytes) -> bool:
        assert self._inner is not None
        if not self._begun and self._accept_space(piece):
            return True
        if not self._inner.accept(token):
            return False
        self._begun = True
        if any(self._inner.accept(end) for end in self._marks.vocabulary.ends[:1]):  # the JSON is complete
            self._inner, self._n_space = None, 0
            self._where = _Where.CLOSING if self._marks.end else _Where.FREE
        return True

    def _accept_closing(self, piece: bytes) -> bool:
        if not self._text and self._accept_space(piece):
            return True
        text = self._text + piece
        if not piece or not self._marks.end.startswith(text):
            return False
        self._text = text
        if text == self._marks.end:
            self._where, self._text = _Where.FREE, b""
        return True

    def _accept_space(self, piece: bytes) -> bool:
        if not piece or piece.strip(_SPACE) or self._n_space + len(piece) > _MOST_SPACE:
            return False
        self._n_space += len(piece)
        return True

    @property
    def worked(self) -> int:
        return self._inner.worked if self._inner is not None else 0

    def allowed(self) -> Generator[None, None, Mask]:
        match self._where:
            case _Where.FREE:
                return self._marks.free(self._text)
            case _Where.JSON:
                return (yield from self._allowed_json())
            case _Where.CLOSING:
                mask = self._marks.closing(self._text, self._n_space)
                if not mask.any():
                    raise TooComplex("the model has no token with which the mark behind the JSON could go on")
                return mask

    def _allowed_json(self) -> Generator[None, None, Mask]:
        assert self._inner is not None
        mask = (yield from self._inner.allowed()).copy()
        mask[self._marks.vocabulary.ends] = False
        if not self._begun:
            pieces = self._marks.vocabulary.pieces
            mask[[token for token in self._marks.spaces if len(pieces[token]) <= _MOST_SPACE - self._n_space]] = True
        return mask
