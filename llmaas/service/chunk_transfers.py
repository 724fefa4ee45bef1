"""Coded chunks that leave the daemon with their context, or come with one.

Law: a chunk that comes is stored under the key that its app, this model and the context's own tokens give it, and only
if it is proved to be what this store once held under that key, or if the app vouches for it and it decodes to numbers.
So what an app sends is found by that app alone. What comes takes room on DISK that is free: nobody's chunks go for it.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile

from llmaas.api.transfer_messages import ExportChunks, ImportChunks
from llmaas.api.transfer_records import ChunkPiece, ExportedChunks, ImportedChunks
from llmaas.errors import ChunkDamaged, DiskFull
from llmaas.frozen import frozen
from llmaas.kvchunks.codec.codec import CodedChunk, check
from llmaas.kvchunks.codec.header import stamped
from llmaas.kvchunks.store.store import Store
from llmaas.planner.events import ChunksCame, ContextChanged
from llmaas.records import CHUNK_TOKENS, AppId, ChunkKey, ContextId
from llmaas.service.chunk_pieces import ChunkParts, WholeChunk
from llmaas.service.contexts import Contexts
from llmaas.service.interpreter import Interpreter
from llmaas.service.live_context import KeyChain, LiveContext, app_to_be, cover_all, key_chain
from llmaas.service.parts import ServiceParts
from llmaas.service.refusals import refuse_if_deleted

_CHAINS = 4


@frozen
class Believed:
    """A chunk that may be stored."""

    index: int
    key: ChunkKey
    n_tokens: int
    payload: CodedChunk


class ChunkTransfers:
    """For one event loop."""

    def __init__(self, parts: ServiceParts, interpreter: Interpreter, contexts: Contexts) -> None:
        self._parts, self._interpreter, self._contexts = parts, interpreter, contexts
        self._pieces = ChunkParts(parts.codec)
        self._chains = deque[tuple[bytes, "array[int]", KeyChain]](maxlen=_CHAINS)
        """Of the contexts that chunks came for last, with their roots and tokens."""
        self._whole_states = parts.engine.info.state is not None
        """The model's contexts have no chunks, but whole states, which go nowhere: decision 045."""

    # -- out

    async def export(self, app: AppId, request: ExportChunks) -> ExportedChunks:
        """See ``api.transfer_operations.export_chunks``. Raises UnknownContext, ContextDamaged, ModelMismatch."""
        return await self.export_of(self._contexts.find_usable(app, request.context), request)

    async def export_of(self, live: LiveContext, request: ExportChunks) -> ExportedChunks:
        await self._contexts.stored.read(live)
        keys, n_kv = list(live.keys), live.n_kv
        if n_kv > len(live.tokens):  # they cover a turn that was interrupted
            n_kv = len(live.tokens) // CHUNK_TOKENS * CHUNK_TOKENS
            del keys[n_kv // CHUNK_TOKENS :]
        if self._whole_states:
            keys, n_kv = [], 0
        kv = self._parts.adapters.root(AppId(""), live.adapter)
        page = await self._parts.slow_thread.run(live.row.app, self._page, keys, request)
        return ExportedChunks(live.root, kv, n_kv, *page)

    def _page(self, keys: Sequence[ChunkKey], request: ExportChunks) -> tuple[tuple[ChunkPiece, ...], int, int]:
        """On a thread: what fits, how many chunks are done with it, and where in the next one to go on."""
        pieces, room, offset = list[ChunkPiece](), request.n_bytes, request.offset
        for n_done, index in enumerate(request.indices):
            payload = self._sound(keys[index]) if index < len(keys) else None
            if payload is not None and offset < len(payload):
                rest = len(payload) - offset
                if pieces and rest > room:
                    return tuple(pieces), n_done, 0  # it begins a page of its own: most come in one part then
                data = memoryview(payload)[offset : offset + room]
                proof = b"" if offset else self._parts.store.prove(payload)
                pieces.append(ChunkPiece(index, len(payload), data, offset, proof))
                if rest > room:
                    return tuple(pieces), n_done, offset + room
                room -= rest
            offset = 0
        return tuple(pieces), len(request.indices), 0

    def _sound(self, key: ChunkKey) -> CodedChunk | None:
        """The chunk; None if it is not stored, or damaged."""
        payload = self._interpreter.pool.held(key)
        if payload is None:
            (payload,) = self._parts.store.get([key], in_place=True)
        try:
            if payload is not None:
                check(payload, key)
        except ChunkDamaged:
            return None
        return payload

    # -- in

    async def import_(self, app: AppId, request: ImportChunks) -> ImportedChunks:
        """See ``api.transfer_operations.import_chunks``. Raises UnknownContext, ContextDamaged, ModelMismatch."""
        live = self._contexts.find_usable(app, request.context)
        async with live.lock:
            refuse_if_deleted(live)
            await self._contexts.stored.read(live)
            return await self._import(app, live, request, self._publish)

    async def take(self, live: LiveContext, request: ImportChunks) -> ImportedChunks:
        """As ``import_``, of a context that waits. A hint may bring it into CELLS meanwhile, and is not waited for.
        Whoever sends chunks must have asked before which are missing: its keys name them since."""
        if not request.pieces and not self._whole_states:
            async with live.lock:
                refuse_if_deleted(live)
                cover_all(live, self._interpreter.dispatch)
        return await self._import(live.row.app, live, request, self._publish_covered)

    async def _import(
        self,
        app: AppId,
        live: LiveContext,
        request: ImportChunks,
        publish: Callable[[LiveContext, KeyChain, Sequence[Believed]], list[ChunkKey]],
    ) -> ImportedChunks:
        """``publish`` lets the planner know of chunks that are stored; it returns those that are of no use."""
        usable = request.kv == self._parts.adapters.root(AppId(""), live.adapter) and not self._whole_states
        if not usable:
            return ImportedChunks(0, 0, len(request.pieces), "of another model or adapter", usable=False)
        on_thread = self._parts.slow_thread.run_to_end
        mine = await self._chain(app, live.root, live.tokens)
        if not request.pieces:
            return ImportedChunks(0, 0, 0, missing=self._missing(mine))
        theirs = mine if request.root == live.root else await self._chain(app, request.root, live.tokens)
        whole = self._pieces.whole(app, live.id, request.pieces)
        unknown = [chunk for chunk in whole if not self._is_known(mine, chunk)]
        judge = Judge(self._parts, mine, theirs, trusted=request.trusted)
        room = self._interpreter.planner.disk_room(app_to_be(live.row.app))
        stored = await on_thread(app, judge.stored, live.id, unknown, room)
        # Another context that begins alike may have computed some meanwhile.
        new = [chunk for chunk in stored if not self._interpreter.stored(chunk.key)]
        if useless := publish(live, mine, new) if new else []:
            judge.refuse(len(useless), "it is of no use to the context any more")
            await on_thread(app, self._parts.store.discard, useless)
            # The same chunk may have come to another context before it was discarded, and is believed to be there.
            again = [chunk for chunk in stored if chunk.key in useless and self._interpreter.stored(chunk.key)]
            if again:
                await on_thread(app, judge.put, live.id, again)
        return ImportedChunks(len(stored) - len(useless), len(whole) - len(unknown), judge.refused, judge.why)

    async def cover(self, live: LiveContext) -> None:
        """Let a new context contain the chunks of its tokens that are stored already: they were sent ahead of it."""
        async with live.lock:
            chain = await self._parts.slow_thread.run_to_end(live.row.app, key_chain, live.root, live.tokens)
            if live.n_kv == 0 and not live.deleted and not self._whole_states:
                live.cover_stored(chain, self._interpreter.stored)
                self._interpreter.dispatch(ContextChanged(live.id, 0, tuple(live.keys), live.n_kv))

    async def _chain(self, app: AppId, root: bytes, tokens: array[int]) -> KeyChain:
        """Chunks come page after page: the keys of all of a context's tokens are hashed for the first."""
        for known_root, known_tokens, chain in self._chains:
            if known_root == root and known_tokens == tokens:
                return chain
        copy = tokens[:]
        chain = await self._parts.slow_thread.run_to_end(app, key_chain, root, copy)
        self._chains.append((root, copy, chain))
        return chain

    def _missing(self, chain: KeyChain) -> tuple[int, ...]:
        return tuple(i for i, key in enumerate(chain.full) if not self._interpreter.stored(key))

    def _is_known(self, chain: KeyChain, chunk: WholeChunk) -> bool:
        key = _key(chain, chunk.index, chunk.n_tokens)
        return key is not None and self._interpreter.stored(key)

    def _publish(self, live: LiveContext, chain: KeyChain, chunks: Sequence[Believed]) -> list[ChunkKey]:
        """The context contains these chunks, which are stored now. Returns those that it does not contain any more."""
        unclaimed, before, n_kv = self._interpreter.unclaimed, live.keys, live.n_kv
        unclaimed.add((chunk.key, len(chunk.payload), None) for chunk in chunks)
        live.cover_stored(chain, self._interpreter.stored)
        if live.n_kv < n_kv:  # it covered more, of which nothing is stored
            live.rekey(n_kv)
        first = min(_n_same(before, live.keys), *(chunk.index for chunk in chunks))
        self._interpreter.dispatch(ContextChanged(live.id, first, tuple(live.keys[first:]), live.n_kv))
        useless = [chunk.key for chunk in chunks if chunk.key in unclaimed]
        unclaimed.discard(useless)
        return useless

    def _publish_covered(self, live: LiveContext, chain: KeyChain, chunks: Sequence[Believed]) -> list[ChunkKey]:
        """As ``_publish``, of a context whose keys name what is to come. It may have been deleted meanwhile."""
        named = frozenset(() if live.deleted else live.keys)
        if came := tuple((chunk.key, len(chunk.payload), None) for chunk in chunks if chunk.key in named):
            self._interpreter.dispatch(ChunksCame(live.id, came))
        return [chunk.key for chunk in chunks if chunk.key not in named]


class Judge:
    """Stores the chunks that are believed. On a thread, in one go: from one to the next of them it had to wait for the
    event loop, and the loop for it."""

    def __init__(self, parts: ServiceParts, mine: KeyChain, theirs: KeyChain, *, trusted: bool) -> None:
        self._store: Store = parts.store
        self._codec, self._mine, self._theirs, self._trusted = parts.codec, mine, theirs, trusted
        self.refused, self.why = 0, ""

    def refuse(self, n: int, why: str) -> None:
        if n:
            self.refused, self.why = self.refused + n, why

    def stored(self, context: ContextId, chunks: Sequence[WholeChunk], room: int) -> list[Believed]:
        """Those that are on DISK now, where there was ``room`` for so many bytes."""
        # One that comes twice is one: the planner must not be told of it twice. ``put`` stores the last of them, too.
        found = list({chunk.key: chunk for chunk in self._believed_of(chunks)}.values())
        fit = _that_fit(found, room)
        self.refuse(len(found) - len(fit), "there is no room for it on DISK")
        return self.put(context, fit)

    def put(self, context: ContextId, chunks: list[Believed]) -> list[Believed]:
        """All of them, or none if the disk is full."""
        try:
            self._store.put(context, [(chunk.key, chunk.n_tokens, chunk.payload) for chunk in chunks])
        except DiskFull as error:
            self.refuse(len(chunks), error.message)
            return []
        return chunks

    def _believed_of(self, chunks: Sequence[WholeChunk]) -> list[Believed]:
        found = []
        for chunk in chunks:
            try:
                found.append(self._believed(chunk))
            except ChunkDamaged as error:
                self.refuse(1, error.message)
        return found

    def _believed(self, chunk: WholeChunk) -> Believed:
        """Raises ChunkDamaged."""
        mine = _key(self._mine, chunk.index, chunk.n_tokens)
        theirs = _key(self._theirs, chunk.index, chunk.n_tokens)
        if mine is None or theirs is None:
            raise ChunkDamaged("the context has no such tokens")
        check(chunk.data, theirs)
        if mine == theirs and self._store.is_proved(chunk.data, chunk.proof):
            return Believed(chunk.index, mine, chunk.n_tokens, chunk.data)
        if not self._trusted:
            raise ChunkDamaged("this daemon has not coded it, and nobody vouches for it")
        if not self._codec.is_finite(self._codec.decoded(chunk.data, theirs)):
            raise ChunkDamaged("it holds NaN or infinity")
        payload = chunk.data if mine == theirs else stamped(chunk.data, mine)
        return Believed(chunk.index, mine, chunk.n_tokens, payload)


def _n_same(before: Sequence[ChunkKey], after: Sequence[ChunkKey]) -> int:
    """How many leading keys are the same. Chunks come in order: nearly always all that were there before."""
    if after[: len(before)] == before:
        return len(before)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))


def _that_fit(chunks: Sequence[Believed], room: int) -> list[Believed]:
    fit = list[Believed]()
    for chunk in chunks:
        if len(chunk.payload) <= room:
            room -= len(chunk.payload)
            fit.append(chunk)
    return fit


def _key(chain: KeyChain, index: int, n_tokens: int) -> ChunkKey | None:
    """The key of the chunk that holds ``n_tokens`` from its beginning on; None if the context has no such tokens."""
    if index < len(chain.whole):
        return chain.whole[index] if n_tokens == CHUNK_TOKENS else None
    if index == len(chain.whole) and 1 <= n_tokens <= len(chain.tails):
        return chain.tails[n_tokens - 1]
    return None
