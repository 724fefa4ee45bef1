"""What a connection of a paired node is answered.

Law: a node can ask for what is here, and no more.
"""

from __future__ import annotations

import reprlib

from llmaas.api.wire import Frame
from llmaas.errors import BadRequest
from llmaas.nodes.pinned import PinnedNode


class NoSession:
    """Answers nothing but the greeting, which the listener answers itself."""

    def __init__(self, node: PinnedNode) -> None:
        self._node = node

    async def answer(self, request: Frame) -> Frame:
        raise BadRequest(f"this node knows no operation {reprlib.repr(request.get('op'))}")

    async def close(self) -> None:
        return None
