"""What a constraint may take: sizes, counts, work and time, in one place.

Law: each bound is checked before the work that it bounds begins, and its refusal says the bound.
"""

from __future__ import annotations

from llmaas.errors import BadRequest

HINT = "docs/protocol.md tells what grammars and schemas may hold."

MAX_SYMBOLS = 200_000
"""Symbols of a grammar's rules, with all repetitions written out. 100 bytes each at most, and 2 us."""
MAX_DEPTH = 200
"""Parentheses in one another, in GBNF."""
MAX_SCHEMA_DEPTH = 50
"""Schemas in one another, and JSON values in a schema."""
MAX_SCHEMAS = 1_000
"""Subschemas that a schema reaches, each counted once however often it is named."""
MAX_VALUES = 5_000
"""Values of all ``enum`` together."""
MAX_COUNT = 1_000_000
"""Most that ``minItems``, ``maxLength`` and the like may say."""
MAX_PATTERN = 2_000
"""Characters of a ``pattern``."""
MAX_PATTERN_COUNT = 1_000
"""Repetitions that a ``pattern`` may count, nested ones multiplied."""
MAX_MULTIPLE = 1_000
"""Of ``multipleOf``, all different ones of a schema multiplied: an automaton has a state for each remainder."""

MAX_STACKS = 4_096
"""Ways in which the machine may read what was said so far. A grammar beyond that is ambiguous without end."""
MAX_WORK = 20_000
"""Steps of the machine for one token, of 0.7 us each. Everyday grammars take some ten."""
MASK_WORK, MAX_MASK_WORK = 10_000, 120_000
"""Steps of the machine for all tokens of the vocabulary at one place: as many at least, and at most. Everyday grammars
take up to 50,000 for the first mask, and a choice of 4,000 words 95,000."""
ANSWER_WORK, TOKEN_WORK = 300_000, 12_000
"""Steps of the machine that an answer may take in all, and more for each of its tokens: no longer than a small model
computes. Everyday grammars keep to it though each token needs a new mask."""
MASK_PART = 1_000
"""Steps of the machine after which a mask can be left and taken up again."""
STEP_S = 0.7e-6
"""Seconds that a step of the machine takes, about."""
MAX_NODES = 100_000
"""Entries of what all machines of a model have found out. About 100 bytes each."""

STATE_BYTES = 700
"""Of a state of llguidance's automata, about."""
LEXER_STATES, MOST_LEXER_STATES, MAX_LEXER_STATES = 500, 16_000, 24_000
"""States that an answer's automata begin with, what they may grow to, and of all that had to be made anew together."""
RENEW_TOKENS = 64
"""Tokens of an answer that automata must be good for; else they become larger. To make them anew costs 0.3 ms, and 0.2
s for the largest schemas."""

COMPILE_S = 2.0
"""Seconds that making a constraint ready may take."""
MAX_COMPILING = 2
"""Constraints that are made ready at once."""
MAX_KEPT_BYTES = 8 << 20
"""Memory of the constraints that are kept ready for requests to come."""
MAX_HELD_BYTES = 32 << 20
"""Memory of all constraints that are ready, those that requests wait with among them."""


def refuse(what: str) -> BadRequest:
    """The error for a constraint that cannot be used: ``what`` is wrong with it."""
    return BadRequest(what, hint=HINT)
