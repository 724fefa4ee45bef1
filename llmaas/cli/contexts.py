"""Finds the context that a user means by a word.

Law: a whole id wins over a name, as in the daemon, and a name over a part of an id. An ambiguous word is refused,
never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmaas.errors import BadRequest, UnknownContext

if TYPE_CHECKING:
    from llmaas.records import ContextInfo

MIN_ID_PART = 4
"""Fewest digits of an id that are taken for one."""


def matching(word: str, contexts: Sequence[ContextInfo]) -> ContextInfo | None:
    """The context whose id is ``word``, or that is named so, or whose id alone begins with it (4 digits or more).

    None if there is none. Raises BadRequest if several fit.
    """
    for fits in (
        [c for c in contexts if c.id == word],
        [c for c in contexts if c.name == word],
        [c for c in contexts if len(word) >= MIN_ID_PART and c.id.startswith(word)],
    ):
        if len(fits) > 1:
            ids = ", ".join(f"{c.id} of {c.app}" for c in fits)
            raise BadRequest(f"{word!r} fits several contexts: {ids}", hint="Give the whole id of the one you mean.")
        if fits:
            return fits[0]
    return None


def meant(word: str, contexts: Sequence[ContextInfo]) -> ContextInfo:
    """As ``matching``, but raises UnknownContext if there is none."""
    found = matching(word, contexts)
    if found is None:
        raise UnknownContext(f"there is no context {word!r}", hint="'llmaas ctx ls' lists them; --app chooses the app.")
    return found
