"""JSON schemas followed by llguidance, where that is installed.

Law: llguidance is imported here and nowhere else. It panics on some inputs and has no bound on others, so it sees only
schemas in plain form (``schema_reader.py``), whose sizes are bounded.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from llmaas.engine.constraint.limits import (
    LEXER_STATES,
    MAX_LEXER_STATES,
    MOST_LEXER_STATES,
    RENEW_TOKENS,
    STATE_BYTES,
    refuse,
)
from llmaas.engine.constraint.port import Mask, TooComplex
from llmaas.engine.constraint.schema_reader import PlainSchema
from llmaas.engine.constraint.vocabulary import Vocabulary
from llmaas.errors import Busy

_llguidance: Any = None
"""Imported by the first ``prepare``: it takes 4 MB, which a daemon without schemas never needs."""

_SPACE = r"( |\n{1,2}[ \t]{0,20})"
"""White space between two tokens of JSON. Without a bound, models at high temperatures write it without end."""
_ESCAPES = 'nrbtf\\"'
_FULL = ("too many states", "too many expressions")
"""What llguidance says when an automaton is full."""


def is_installed() -> bool:
    return importlib.util.find_spec("llguidance") is not None


class Guidance:
    """llguidance for one vocabulary; safe on any thread after ``prepare``, which takes 50 ms and 3 MB for 49,152
    tokens, with the GIL. Without slices, which cost three times that and gain nothing in the median.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokenizer: Any = None
        self._lexers: weakref.WeakSet[Lexer] = weakref.WeakSet()

    def prepare(self) -> None:
        """Make the token table. On one thread. Raises ImportError."""
        global _llguidance
        if self._tokenizer is None:
            _llguidance = importlib.import_module("llguidance")
            wrapper = _llguidance.TokenizerWrapper(_Tokens(self._vocabulary))
            self._tokenizer = _llguidance.LLTokenizer(
                wrapper, n_vocab=self._vocabulary.n_vocab, eos_token=self._vocabulary.ends, slices=[]
            )

    def compile(self, schema: PlainSchema) -> GuidedSchema:
        """Raises BadRequest for what llguidance does not support. Without the GIL for the most part."""
        options = {**_OPTIONS, "json_allowed_escapes": _escapes(schema)}
        with panics_told():
            grammar = _llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema.as_json()), overrides=options)
            return GuidedSchema(self._tokenizer, grammar, self._vocabulary, self._lexers)


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


class Lexer:
    """How many states the automata of an answer may have. llguidance makes states as it meets them."""

    def __init__(self) -> None:
        self.n_states = LEXER_STATES


class GuidedSchema:
    """A schema made ready. ``begin`` starts an answer by it, in some microseconds; all of them share automata."""

    def __init__(self, tokenizer: Any, grammar: str, vocabulary: Vocabulary, lexers: weakref.WeakSet[Lexer]) -> None:
        self._tokenizer, self._grammar, self._vocabulary, self._lexers = tokenizer, grammar, vocabulary, lexers
        self._matcher = self.make(LEXER_STATES)
        self.n_bytes = LEXER_STATES * STATE_BYTES + 10 * len(grammar)

    def make(self, n_states: int) -> Any:
        """A matcher with automata of its own. Typically 0.3 ms."""
        limits = _llguidance.LLParserLimits(max_lexer_states=n_states, verbose_errors=False)
        matcher = _llguidance.LLMatcher(self._tokenizer, self._grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise refuse(f"the json_schema cannot be used: {_error(matcher)}")
        return matcher

    def begin(self) -> GuidanceConstraint:
        return GuidanceConstraint(self, self._matcher.deep_copy(), self._vocabulary)

    def renew(self, lexer: Lexer, n_states: int) -> Any:
        """A matcher of so many states for an answer that has used up its own; answers that begin get new ones, too."""
        if n_states + sum(other.n_states for other in self._lexers if other is not lexer) > MAX_LEXER_STATES:
            raise Busy("answers by complicated schemas take all memory that there is for them")
        self._matcher = self.make(LEXER_STATES)
        lexer.n_states = n_states
        self._lexers.add(lexer)
        return self.make(n_states)


class GuidanceConstraint:
    """A ``Constraint`` by llguidance: some 10 us for a token, 20 to 700 us for a mask.

    Its automata have as many states as everyday schemas need. If those are used up, as by a text with ``maxLength``
    10000, the answer goes on with new ones, in which what it needed before is gone; if that does not take it far, with
    more of them.
    """

    masks_are_cheap = True
    worked = 0

    def __init__(self, schema: GuidedSchema, matcher: Any, vocabulary: Vocabulary) -> None:
        self._schema, self._matcher, self._vocabulary = schema, matcher, vocabulary
        self._said: list[int] = []
        self._lexer = Lexer()
        self._renewed = -RENEW_TOKENS
        """How many tokens there were when the automata were new."""

    def accept(self, token: int) -> bool:
        if self._vocabulary.is_end(token):
            return bool(self._matcher.is_accepting())
        if not self._vocabulary.pieces[token]:
            return False
        with panics_told():
            while self._matcher.try_consume_tokens([token]) != 1:
                if not self._matcher.is_error():
                    return False
                self._renew()
        self._said.append(token)
        return True

    def allowed(self) -> Generator[None, None, Mask]:
        with panics_told():
            mask = self._allowed()
        yield from ()
        return mask

    def _allowed(self) -> Mask:
        bits = self._matcher.compute_bitmask()
        while self._matcher.is_error():
            self._renew()
            bits = self._matcher.compute_bitmask()
        n_vocab = self._vocabulary.n_vocab
        mask = np.unpackbits(np.frombuffer(bits, np.uint8), count=n_vocab, bitorder="little").view(np.bool_)
        mask[self._vocabulary.ends] = self._matcher.is_accepting()
        if not mask.any():
            raise TooComplex("the model has no token with which its answer could go on by the json_schema")
        return mask

    def _renew(self) -> None:
        """Go on with new automata. Raises TooComplex if that is not what is missing, Busy if there is no memory."""
        while self._matcher.is_error():
            n_states = self._lexer.n_states
            if len(self._said) < self._renewed + RENEW_TOKENS:
                n_states *= 2
            is_full = any(said in self._matcher.get_error() for said in _FULL)
            if not is_full or n_states > MOST_LEXER_STATES:
                raise TooComplex(f"the answer cannot go on by the json_schema: {_error(self._matcher)}")
            self._matcher = self._schema.renew(self._lexer, n_states)
            self._renewed = len(self._said)
            self._matcher.try_consume_tokens(self._said)


@contextmanager
def panics_told() -> Iterator[None]:
    """A panic of Rust in the body raises TooComplex. It is no ``Exception``, and would pass all who catch errors."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TooComplex(f"llguidance cannot follow the json_schema: {error!s:.200}") from None


def _error(matcher: Any) -> str:
    """The first line of what llguidance says."""
    first, _, _ = matcher.get_error().partition("\n")
    return f"{first:.300}"
