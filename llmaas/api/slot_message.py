"""The request for a slot: the connection goes on by shared memory (docs/slots.md).

Law: pure.
"""

from __future__ import annotations

from llmaas.frozen import frozen


@frozen
class OpenSlot:
    """``version``: of the slot's layout, that the client knows."""

    version: int = 1


@frozen
class OpenedSlot:
    """The reply, which the slot's descriptor comes with (SCM_RIGHTS, unix(7))."""

    version: int
    nbytes: int
    generation: int
    device: int | None = None
    """Of a daemon in a virtual machine: which of the machine's memories it is. Who runs the machine has its
    descriptor, and passes it with this reply."""
