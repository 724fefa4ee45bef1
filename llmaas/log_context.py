"""Which call the daemon works on, for its log.

Law: values only. It is set where a call's own task begins, and seen by all that this task does.
"""

from __future__ import annotations

from contextvars import ContextVar

current_call: ContextVar[int | None] = ContextVar("current_call", default=None)
"""The call's number, as the operation ``requests`` gives it; None: the work is not for one call."""
