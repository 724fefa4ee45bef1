"""What a client goes by: its socket, or a slot.

Law: pure. What slots need is imported by those only who use them: a client may run where there is no shared memory.
"""

from __future__ import annotations

import reprlib

from llmaas.errors import BadRequest


def by_slots(transport: str) -> bool:
    """Whether a client of this ``transport`` asks for a slot. Raises BadRequest.

    >>> by_slots("socket"), by_slots("slots")
    (False, True)
    """
    if transport not in ("socket", "slots"):
        raise BadRequest(f"transport must be 'socket' or 'slots', not {reprlib.repr(transport)}")
    return transport == "slots"
