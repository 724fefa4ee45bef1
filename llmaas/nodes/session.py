"""What a connection of a paired node is answered: contexts that come are taken, whole or not at all.

Law: a node can add contexts, and chunks to those that it has added; it learns and changes nothing else. A move that it
was said of that it is not here will never be here. What is held of moves that were not taken is bounded: one of each
connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from llmaas.api.caller import app_named
from llmaas.api.messages import Generate
from llmaas.api.record_maps import to_map
from llmaas.api.transfer_messages import Import
from llmaas.api.wire import Frame
from llmaas.calls import Piece, Priority
from llmaas.errors import BadRequest, ContextTooLong, LlmaasError, UnknownContext, assert_never
from llmaas.kvchunks.store.move_rows import MoveRow, MoveState
from llmaas.nodes.node_messages import (
    GoOn,
    Grow,
    MoveAsked,
    MovedChunks,
    MoveSettled,
    Offer,
    Spans,
    StageContext,
    Take,
    node_request,
)
from llmaas.nodes.pinned import PinnedNode
from llmaas.nodes.ports import Arrivals
from llmaas.records import TOKEN_BYTES, AppId, ContextId, ContextInfo, ContextSpan, ExportedContext

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class ArrivingContext:
    """A context that comes, and was not taken yet."""

    node: str
    app: AppId
    offer: Offer
    spans: list[ContextSpan] = field(default_factory=list)
    n_tokens: int = 0
    n_text: int = 0
    grown: bytearray = field(default_factory=bytearray)
    """Tokens behind those of the spans, by which what waits of it has grown."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it is taken, and while somebody asks whether it was."""


class ArrivalHall:
    """What comes by all connections, by the names of moves. For one event loop."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._coming: dict[str, ArrivingContext] = {}

    def session(self, node: PinnedNode) -> ArrivalSession:
        return ArrivalSession(node, self._arrivals, self._coming)


class ArrivalSession:
    """Answers one connection."""

    def __init__(self, node: PinnedNode, arrivals: Arrivals, coming: dict[str, ArrivingContext]) -> None:
        self._node, self._arrivals, self._coming = node, arrivals, coming
        self._mine: ArrivingContext | None = None
        self._staged: tuple[str, ContextId] | None = None
        """The move that was announced by this connection, and what waits for it."""
        self._row: MoveRow | None = None
        """The move that was asked for last, as the store has it."""

    async def answer(self, request: Frame, send: Callable[[Frame], Awaitable[None]]) -> Frame:
        """Raises LlmaasError."""
        asked = node_request(request)
        match asked:
            case Offer():
                return {"usable": await self._offered(asked)}
            case Spans():
                self._more(asked)
                return {}
            case Take():
                return await self._take(asked)
            case StageContext(move):
                return await self._stage(move)
            case Grow(move, tokens):
                return await self._grow(move, tokens)
            case MovedChunks(move, root, kv, pieces, computes) if self._staged is not None and self._staged[0] == move:
                context = self._staged[1]
                taken = await self._arrivals.take_staged(context, root, kv, pieces, computes=computes)
                return {**to_map(taken), "n_cells": self._arrivals.n_begun(context)}
            case MovedChunks(move, root, kv, pieces):
                row = await self._found(move)
                if row is None or row.state is not MoveState.ARRIVED:
                    raise UnknownContext("no context of this move is here")
                return to_map(await self._arrivals.take_chunks(row, root, kv, pieces))
            case MoveAsked(move):
                return {"taken": await self._is_taken(move)}
            case MoveSettled(move):
                if (row := await self._found(move)) is not None:
                    await self._arrivals.settle(row)
                return {}
            case GoOn(move, answer, n_answered):
                row = await self._found(move)
                if row is None:
                    raise UnknownContext("no context of this move is here")
                return await self._go_on(row, answer, n_answered, send)
            case _:
                assert_never(asked)

    async def _go_on(
        self, row: MoveRow, answer: Generate, n_answered: int, send: Callable[[Frame], Awaitable[None]]
    ) -> Frame:
        """Send tokens as they are drawn. If they cannot be sent, nobody wants them any more: the answer ends."""
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        terms = replace(answer.terms, priority=max(answer.terms.priority, Priority.NORMAL))
        spec = replace(answer.spec, terms=terms, n_answered=n_answered)
        request, reply = self._arrivals.answer(row, spec, pieces.put_nowait)
        reply.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                frame: Frame = {"tokens": list(piece.tokens)}
                if piece.logprobs is not None:
                    frame["logprobs"] = [to_map(each) for each in piece.logprobs]
                await send(frame)
        except BaseException:
            self._arrivals.cancel(request)
            await asyncio.wait([reply])
            reply.cancelled() or reply.exception()
            raise
        return {"done": to_map(await reply)}

    async def _stage(self, move: str) -> Frame:
        mine = self._offer_of(move)
        _refuse_incomplete(mine)
        await self._unstage()
        info = await self._arrivals.stage(move, mine.node, mine.app, _import(mine.offer, tuple(mine.spans)))
        self._staged = move, info.id
        return {"compute_s": self._arrivals.compute_s(info.n_tokens)}

    async def _grow(self, move: str, tokens: bytes) -> Frame:
        mine = self._offer_of(move)
        if self._staged is None or self._staged[0] != move:
            raise BadRequest("nothing waits of this move")
        self._count(mine, len(tokens) // TOKEN_BYTES, 0)
        n_cells = await self._arrivals.bring(self._staged[1], tokens)
        mine.grown += tokens
        return {"n_cells": n_cells}

    async def _unstage(self) -> None:
        if self._staged is not None:
            (_, context), self._staged = self._staged, None
            await self._arrivals.unstage(context)

    async def close(self) -> None:
        self._drop()
        with suppress(LlmaasError):
            await self._unstage()

    def _drop(self) -> None:
        if self._mine is not None:
            self._coming.pop(self._mine.offer.move, None)
            self._mine = None

    async def _offered(self, offer: Offer) -> bool:
        """Whether its chunks can be used."""
        self._drop()
        app, is_known = app_named(offer.app), await self._arrivals.find(offer.move) is not None
        if is_known or offer.move in self._coming:
            raise BadRequest("this move is not a new one")
        usable = self._arrivals.refuse(app, _import(offer, ()), offer.kv)
        self._mine = self._coming[offer.move] = ArrivingContext(self._node.fingerprint, app, offer)
        return usable

    def _more(self, more: Spans) -> None:
        mine = self._offer_of(more.move)
        self._count(mine, *_size(more.spans))
        mine.spans.extend(more.spans)
        if len(mine.spans) > mine.offer.n_spans:
            self._drop()
            raise BadRequest(f"more than the {mine.offer.n_spans} spans came that were announced")

    def _count(self, mine: ArrivingContext, n_tokens: int, n_text: int) -> None:
        """Raises ContextTooLong."""
        mine.n_tokens += n_tokens
        mine.n_text += n_text
        if mine.n_tokens > self._arrivals.most_tokens or mine.n_text > self._arrivals.most_text:
            self._drop()
            raise ContextTooLong(f"a context has at most {self._arrivals.most_tokens} tokens here")

    async def _take(self, take: Take) -> Frame:
        mine = self._offer_of(take.move)
        async with mine.lock:
            mine = self._offer_of(take.move)  # somebody may have asked meanwhile: then it is not to be taken
            _refuse_incomplete(mine)
            if self._staged is not None and self._staged[0] == take.move:
                info = await self._take_staged(mine, take, self._staged[1])
            elif take.spans:
                raise BadRequest("nothing waits of this move")
            else:
                asked = _import(mine.offer, tuple(mine.spans))
                info = await self._arrivals.arrive(take.move, mine.node, mine.app, asked, take.turns)
            self._drop()
        log.info("context %s of %s, %d tokens, is here from %s", info.id, info.app, info.n_tokens, self._node.name)
        return {"name": info.name, "n_tokens": info.n_tokens}

    async def _take_staged(self, mine: ArrivingContext, take: Take, context: ContextId) -> ContextInfo:
        known = bytes(mine.grown[: TOKEN_BYTES * take.n_known])
        if len(known) != TOKEN_BYTES * take.n_known:
            raise BadRequest(f"field 'n_known': only {len(mine.grown) // TOKEN_BYTES} tokens have come")
        n_tokens, n_text = _size(take.spans)
        self._count(mine, max(0, n_tokens + take.n_known - len(mine.grown) // TOKEN_BYTES), n_text)
        spans = [*mine.spans, *take.spans]
        if take.spans:
            spans[len(mine.spans)] = replace(take.spans[0], tokens=known + take.spans[0].tokens)
        asked = _import(mine.offer, tuple(spans))
        info = await self._arrivals.arrive_staged(take.move, mine.node, mine.app, asked, context, take.turns)
        self._staged = None
        return info

    def _offer_of(self, move: str) -> ArrivingContext:
        if self._mine is None or self._mine.offer.move != move or self._coming.get(move) is not self._mine:
            raise BadRequest("this move was not offered on this connection, or was given up")
        return self._mine

    async def _is_taken(self, move: str) -> bool:
        coming = self._coming.get(move)
        if coming is None or coming.node != self._node.fingerprint:
            return await self._found(move) is not None
        async with coming.lock:
            if await self._found(move) is not None:
                return True
            if self._coming.get(move) is coming:
                del self._coming[move]  # whoever offered it must not have it taken now
            return False

    async def _found(self, move: str) -> MoveRow | None:
        """The move of this node that the store knows."""
        if self._row is None or self._row.move != move:
            self._row = await self._arrivals.find(move)
        row = self._row
        has_come = row is not None and row.node == self._node.fingerprint and row.state is not MoveState.LEAVING
        return row if has_come else None


def _size(spans: Sequence[ContextSpan]) -> tuple[int, int]:
    """Their tokens, and the characters of their text."""
    n_tokens = sum(len(span.tokens) // TOKEN_BYTES for span in spans)
    return n_tokens, sum(len(span.text or "") + len(span.role or "") for span in spans)


def _refuse_incomplete(mine: ArrivingContext) -> None:
    """Raises BadRequest."""
    if len(mine.spans) != mine.offer.n_spans:
        raise BadRequest(f"{len(mine.spans)} of {mine.offer.n_spans} spans have come")


def _import(offer: Offer, spans: tuple[ContextSpan, ...]) -> Import:
    """Raises BadRequest."""
    exported = ExportedContext(offer.name, offer.model, offer.vocab, spans)
    try:
        return Import(exported, None, offer.adapter, offer.ttl)
    except ValueError as error:
        raise BadRequest(str(error)) from error
