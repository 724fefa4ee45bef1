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
MAX_WORK = 30_000
"""Steps of the machine for one token, of some microseconds each."""
MAX_MASK_WORK = 200_000
"""Steps of the machine for all tokens of the vocabulary at one place. What is not reached then is not allowed."""
ANSWER_WORK, TOKEN_WORK = 1_500_000, 5_000
"""Steps of the machine that an answer may take in all, and more for each of its tokens. Everyday grammars take some
hundred for a token once they are known."""
MAX_NODES = 300_000
"""Stack entries that the machine keeps. About 100 bytes each."""

COMPILE_S = 2.0
"""Seconds that making a constraint ready may take."""
MAX_COMPILING = 2
"""Constraints that are made ready at once."""
MAX_KEPT_BYTES = 1 << 17
"""Text of the constraints that are kept ready. They take about 200 times as much."""


def refuse(what: str) -> BadRequest:
    """The error for a constraint that cannot be used: ``what`` is wrong with it."""
    return BadRequest(what, hint=HINT)
