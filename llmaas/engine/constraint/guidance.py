"""JSON schemas followed by llguidance, where that is installed.

Law: llguidance is imported here and nowhere else. It panics on some inputs and has no bound on others, so it sees only
schemas in plain form (``schema_reader.py``), whose sizes are bounded.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from llmaas.engine.constraint.limits import refuse
from llmaas.engine.constraint.port import Mask, TooComplex
from llmaas.engine.constraint.schema_reader import PlainSchema
from llmaas.engine.constraint.vocabulary import Vocabulary

_llguidance: Any
try:
    import llguidance as _llguidance
except ImportError:
    _llguidance = None

_SPACE = r"( |\n{1,2}[ \t]{0,20})"
"""White space between two tokens of JSON. Without a bound, models at high temperatures write it without end."""
_ESCAPES = 'nrbtf\\"'
_MAX_LEXER_STATES = 20_000
"""Of 1 to 2 kB. llguidance makes them as it meets them, and then ends the answer."""


def is_installed() -> bool:
    return _llguidance is not None


class Guidance:
    """llguidance for one vocabulary; safe on any thread after ``prepare``, which takes 0.5 s and 20 MB for 49,152
    tokens.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokenizer: Any = None

    def prepare(self) -> None:
        """Make the token table. On one thread."""
        if self._tokenizer is None:
            wrapper = _llguidance.TokenizerWrapper(_Tokens(self._vocabulary))
            self._tokenizer = _llguidance.LLTokenizer(
                wrapper, n_vocab=self._vocabulary.n_vocab, eos_token=self._vocabulary.ends
            )

    def compile(self, schema: PlainSchema) -> Compiled:
        """Raises BadRequest for what llguidance does not support. Without the GIL for the most part."""
        grammar = _llguidance.LLMatcher.grammar_from_json_schema(
            json.dumps(schema.as_json()), overrides={**_OPTIONS, "json_allowed_escapes": _escapes(schema)}
        )
        limits = _llguidance.LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
        matcher = _llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise refuse(f"the json_schema cannot be used: {matcher.get_error().splitlines()[0]:.300}")
        return Compiled(matcher, self._vocabulary)


_OPTIONS = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "whitespace_pattern": _SPACE,
    "coerce_one_of": False,
    "lenient": False,
}


def _escapes(schema: PlainSchema) -> str:
    """Escapes that strings may have. ``\\uXXXX`` only where a text cannot be written without it.

    With it llguidance lets ``{"\\u0061": ...}`` pass for a key other than "a", so keys must then be closed.
    """
    if not any((c < " " and c not in "\n\r\b\t\f") or c == "\x7f" for text in schema.texts for c in text):
        return _ESCAPES
    if schema.has_open_keys:
        raise refuse(
            "control characters in a json_schema's constants can only be used if each object with properties has"
            ' "additionalProperties": false'
        )
    return _ESCAPES + "u"


class _Tokens:
    """What llguidance wants to know of a tokenizer. It is not asked to tokenize: masks take any way to write a text."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.ends[0] if vocabulary.ends else 0
        self.tokens = vocabulary.pieces
        self.special_token_ids = [token for token, piece in enumerate(vocabulary.pieces) if not piece]
        self._by_byte = {piece: token for token, piece in enumerate(vocabulary.pieces) if len(piece) == 1}

    def __call__(self, text: bytes | str) -> list[int]:
        data = text if isinstance(text, bytes) else text.encode()
        return [self._by_byte[data[i : i + 1]] for i in range(len(data)) if data[i : i + 1] in self._by_byte]


class Compiled:
    """A schema made ready; ``begin`` starts an answer by it, in a microsecond."""

    def __init__(self, matcher: Any, vocabulary: Vocabulary) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary

    def begin(self) -> GuidanceConstraint:
        return GuidanceConstraint(self._matcher.deep_copy(), self._vocabulary)


class GuidanceConstraint:
    """A ``Constraint`` by llguidance: some 10 us for a token, 20 to 300 us for a mask."""

    masks_are_cheap = True

    def __init__(self, matcher: Any, vocabulary: Vocabulary) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary

    def accept(self, token: int) -> bool:
        if self._vocabulary.is_end(token):
            return bool(self._matcher.is_accepting())
        return bool(self._vocabulary.pieces[token]) and self._matcher.try_consume_tokens([token]) == 1

    def allowed(self) -> Mask:
        n_vocab = self._vocabulary.n_vocab
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, count=n_vocab, bitorder="little").view(np.bool_)
        mask[self._vocabulary.ends] = self._matcher.is_accepting()
        if self._matcher.is_error() or not mask.any():
            raise TooComplex(f"the answer cannot go on by the json_schema: {self._matcher.get_error():.300}")
        return mask
