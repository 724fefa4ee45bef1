"""The rest of an answer whose context has moved: asked for at the node that has it now.

Law: it goes over the connection of the move, which is the answer's alone then; where that has been closed, over a new
one. Either ends with the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from llmaas.api.messages import Generate
from llmaas.api.record_maps import from_map, to_map
from llmaas.api.wire import Frame
from llmaas.calls import CallSpec, Done, Logprobs, Piece
from llmaas.errors import BadRequest, MachineError
from llmaas.nodes.chunk_sender import post_to
from llmaas.nodes.link import NodeClient
from llmaas.nodes.node_messages import GoOn

_ANSWER_S = 600.0
"""Between two tokens of an answer that goes on: the context may have to be computed there."""


class RemoteAnswer:
    """``client``: of the move; ``connect``: makes another one."""

    def __init__(self, client: NodeClient, connect: Callable[[], Awaitable[NodeClient]]) -> None:
        self._client: NodeClient | None = client
        self._connect = connect
        self._told = asyncio.Event()

    async def first(self, seconds: float) -> None:
        """Return when the first token of the rest has come, or the answer has ended, or after that time."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._told.wait(), seconds)

    async def client(self) -> tuple[NodeClient, bool]:
        """A connection for whatever is left of the move, and whether it is whoever asks that must close it."""
        if self._client is not None:
            return self._client, False
        return await self._connect(), True

    async def close(self) -> None:
        """The move is over. If the answer goes on by its connection, that stays."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def go_on(self, move: str, rest: CallSpec, tell: Callable[[Piece], None]) -> Done:
        """Have the other node go on with the answer. ``tell`` gets pieces without text. Raises what it says,
        NodeUnreachable, and MachineError if it says it in other words."""
        assert rest.generation is not None
        generation, terms = rest.generation, rest.terms
        asked = {"max_tokens": generation.max_tokens, "priority": terms.priority, "rate": terms.rate}
        asked["logprobs"] = generation.logprobs
        answer = from_map(Generate, {"context": move, **asked, **to_map(generation.sampling)})
        client, self._client = self._client, None
        client = client or await self._connect()
        try:
            await post_to(client, GoOn(move, answer, rest.n_answered))
            while "tokens" in (frame := await client.reply(_ANSWER_S)):
                tell(told(client.name, frame, generation.logprobs))
                self._told.set()
            return from_map(Done, frame.get("done"))
        finally:
            self._told.set()
            await client.close()


def told(node: str, frame: Frame, n_logprobs: int | None) -> Piece:
    """What a frame tells of an answer. Raises MachineError.

    >>> told("desk", {"tokens": [5, 6]}, None).tokens
    (5, 6)
    """
    try:
        tokens = tuple(map(int, frame["tokens"]))
        found = None if n_logprobs is None else tuple(from_map(Logprobs, each) for each in frame.get("logprobs") or ())
    except (BadRequest, TypeError, ValueError) as error:
        raise MachineError(f"the node {node} speaks another language: {error}") from None
    if found is not None and n_logprobs is not None:
        wrong = [each.token for each in found] != [*tokens] or any(len(each.top) > n_logprobs for each in found)
        if wrong:
            raise MachineError(f"the node {node} does not give the log probabilities of the tokens that it tells")
    return Piece("", tokens, found)
