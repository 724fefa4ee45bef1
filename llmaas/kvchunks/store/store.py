"""The store: tokens and coded chunks on disk. docs/format.md draws the layout.

Law: the store knows no chunk formats (a coded chunk is bytes) and no policies (what to keep is the planner's business).
It is synchronous; every method may be called from any thread. What a method acknowledged survives ``kill -9`` at any
instant, and what it acknowledged about tokens survives a power cut. All failures are LlmaasErrors: DiskFull when the
disk has no room (nothing was changed; the same call works when there is room again), and StoreFailed for every other
fault of the machine, with the path in the message.

The parts: ``contexts`` (contexts and spans), ``text_seal`` (how they are encrypted), ``chunks`` (put, get, discard),
``data_keys`` (what chunks are encrypted with), ``index`` (SQLite), ``payload_files``, ``check``, ``repair`` (of a
damaged index), ``adapters`` (LoRA adapters), ``lock`` (folder and lock), ``syscalls``.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType

from llmaas.kvchunks.store import check as store_check
from llmaas.kvchunks.store import repair as store_repair
from llmaas.kvchunks.store.adapters import AdapterTable
from llmaas.kvchunks.store.chunks import Blob, Chunks
from llmaas.kvchunks.store.cipher import MasterKey
from llmaas.kvchunks.store.contexts import ContextTables
from llmaas.kvchunks.store.data_keys import DataKeys
from llmaas.kvchunks.store.index import Index
from llmaas.kvchunks.store.lock import RootLock
from llmaas.kvchunks.store.master_check import MasterKeyMissing, check_master
from llmaas.kvchunks.store.move_rows import MoveRow
from llmaas.kvchunks.store.move_table import MoveTable
from llmaas.kvchunks.store.payload_files import PayloadFiles
from llmaas.kvchunks.store.reports import CheckReport, Encryption, Salvage, StoreStats
from llmaas.kvchunks.store.rows import (
    AdapterRow,
    ContextRow,
    ContextSummary,
    KeyedTurn,
    ModelName,
    Place,
    SealedChunk,
    Span,
    StoredChunk,
)
from llmaas.kvchunks.store.schema import INDEX
from llmaas.kvchunks.store.seal_contexts import seal_contexts
from llmaas.kvchunks.store.syscalls import Files, failures
from llmaas.kvchunks.store.text_seal import Sealing
from llmaas.records import ChunkKey, ChunkMeta, ChunkSensitivity, ContextId

__all__ = [
    "INDEX",
    "AdapterRow",
    "CheckReport",
    "ContextRow",
    "ContextSummary",
    "Encryption",
    "Files",
    "KeyedTurn",
    "MasterKey",
    "MasterKeyMissing",
    "ModelName",
    "Span",
    "Store",
    "StoreStats",
]


class Store:
    """The store in folder ``root``, which is created if need be.

    Raises StoreFailed if another process has it open, or if the index is damaged (see ``repair_index``) or of a newer
    version. With ``master``, each context's text and chunks are encrypted with keys of its own (``text_seal``,
    ``cipher``), and contexts that are in clear are encrypted now; without, all is written in clear. Raises
    MasterKeyMissing if contexts are encrypted and ``master`` is not their key. Chunks whose key it does not open count
    as missing until they are written again.
    ``files`` is for fault injection; ``wal_limit`` is the length in bytes at which the index's log is copied into the
    database, ``reserve`` the free bytes of the disk that chunks leave to tokens.
    """

    def __init__(
        self,
        root: Path,
        *,
        master: MasterKey | None = None,
        files: Files | None = None,
        wal_limit: int = 4 << 20,
        reserve: int = 16 << 20,
    ) -> None:
        files = files or Files()
        self._root, self._master = root, master
        self._lock = RootLock(root, files)
        try:
            with failures(root):
                store_repair.finish(root / INDEX, files)
            self._index = Index(root / INDEX, files, wal_limit=wal_limit)
            try:
                self._payload = PayloadFiles(root / "payload", files, reserve=reserve)
                self._sealing = Sealing(master)
                check_master(self._index, self._sealing)
                self._contexts = ContextTables(self._index, self._sealing)
                self._adapters = AdapterTable(self._index)
                self._keys = DataKeys(self._index, master)
                self._chunks = Chunks(self._index, self._payload, self._keys)
                self._keys.tidy()
                self._chunks.damaged += store_check.sweep(self._index, self._payload)
                seal_contexts(self._index, self._sealing)
            except BaseException:
                self._index.close()
                raise
        except BaseException:
            self._lock.close()
            raise
        self.moves = MoveTable(self._index)
        self._closed = False

    @property
    def root(self) -> Path:
        """The store's folder, which only its owner may access."""
        return self._root

    def close(self) -> None:
        """Idempotent. Calls that come later raise StoreFailed."""
        if not self._closed:
            self._closed = True
            self._index.close()
            self._lock.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @classmethod
    def repair_index(cls, root: Path, *, only_whole: bool = False, master: MasterKey | None = None) -> Salvage | None:
        """Replace a damaged index, so that the store opens, with all conversations that can still be read. The damaged
        one is moved aside (``index.sqlite.corrupt-N``, log included).

        None if the index is sound: a healthy one is never moved. With ``only_whole`` it is replaced only if nothing is
        lost by it; else StoreFailed. ``master`` shows the names of encrypted conversations; without it they are
        kept, too. Raises StoreFailed if the store is open, or has no index.
        """
        return store_repair.repair(root, Sealing(master), only_whole=only_whole)

    # -- contexts

    def create_context(
        self,
        row: ContextRow,
        spans: Sequence[Span] = (),
        move: MoveRow | None = None,
        turns: Sequence[KeyedTurn] = (),
    ) -> None:
        """``row.n_tokens`` is ignored: tokens are counted. ``move``: by which it came, and ``turns``: what it remembers
        by idempotency keys, oldest first, in the same transaction. Raises ContextExists if the app has one of that
        name."""
        self._contexts.create(row, spans, move, turns)

    def adopt_context(
        self, row: ContextRow, spans: Sequence[Span], move: MoveRow, turns: Sequence[KeyedTurn] = ()
    ) -> None:
        """Let the context with the id of ``row`` be this one from now on, whatever it was, with these spans, the move
        that it came by and these turns, in one durable transaction. Its keys stay, and so do its chunks. Raises
        UnknownContext, ContextExists."""
        self._contexts.adopt(row, spans, move, turns)

    def contexts(self) -> list[ContextRow]:
        """All contexts, oldest first."""
        return self._contexts.contexts()

    def summaries(self) -> list[ContextSummary]:
        """All contexts, oldest first, with what can be known of them without reading their spans one by one."""
        return self._contexts.summaries()

    def spans(self, ctx: ContextId) -> list[Span]:
        """All spans in order. Raises UnknownContext."""
        return self._contexts.spans(ctx)

    def tokens(self, ctx: ContextId) -> array[int]:
        """All tokens in order, typecode 'i'. Raises UnknownContext."""
        return self._contexts.tokens(ctx)

    def append(
        self,
        ctx: ContextId,
        spans: Sequence[Span],
        *,
        expect: int,
        now: float,
        adapter: str | None = None,
        turn: KeyedTurn | None = None,
    ) -> int:
        """Add spans and set the adapter that the context uses from now on (None: the same), in one durable transaction.
        Returns the new number of tokens.

        ``expect`` is the number of tokens before. ``turn``: what the spans are, if they were asked for with an
        idempotency key; it replaces one with the same key. Raises StoreFailed if there are other tokens (another writer
        changed the context meanwhile), and UnknownContext.
        """
        return self._contexts.append(ctx, spans, expect=expect, now=now, adapter=adapter, turn=turn)

    def turn(self, ctx: ContextId, key: str) -> KeyedTurn | None:
        """The turn that was stored with this idempotency key; None if it is none of the last turns that had one.

        A fork has none of its source's keys, and truncating forgets those of turns that are cut. Raises
        UnknownContext.
        """
        return self._contexts.turn(ctx, key)

    def turns(self, ctx: ContextId) -> list[KeyedTurn]:
        """All that the context remembers, oldest first. Raises UnknownContext."""
        return self._contexts.turns(ctx)

    def truncate(self, ctx: ContextId, n_tokens: int, now: float) -> list[Span]:
        """Keep the first ``n_tokens``. Returns the spans that are left.

        A span that is cut in two becomes glue; one that is cut at its end stays as it is. Raises UnknownContext, and
        BadRequest if there are fewer tokens.
        """
        return self._contexts.truncate(ctx, n_tokens, now)

    def rewrite(
        self,
        ctx: ContextId,
        spans: Sequence[Span],
        *,
        expect: int,
        now: float,
        adapter: str | None = None,
        model: ModelName | None = None,
        turn: KeyedTurn | None = None,
    ) -> None:
        """Replace all spans of the context in one durable transaction. ``model``: whose tokens they are from now on
        (then idempotency keys are forgotten); None: the same. All else is as in ``append``."""
        self._contexts.append(ctx, spans, expect=expect, now=now, adapter=adapter, model=model, replace=True, turn=turn)

    def rename_vocab(self, old: str, new: str) -> int:
        """Let all contexts of the tokenizer ``old`` be of ``new``, which must mean the same by every token id, in one
        durable transaction. Returns how many there were."""
        return self._contexts.rename_vocab(old, new)

    def fork(self, src: ContextId, row: ContextRow) -> None:
        """Create context ``row`` with a copy of ``src``'s spans. Raises UnknownContext, ContextExists."""
        self._contexts.fork(src, row)

    def encrypted_for(self, ctx: ContextId) -> set[ChunkKey]:
        """Chunks that are encrypted with the context's key, whether it or only others use them now."""
        return self._chunks.encrypted_for(ctx)

    def delete_context(self, ctx: ContextId, heirs: Mapping[ChunkKey, ContextId] | None = None) -> list[ChunkKey]:
        """Delete the tokens and the context's data key: what was encrypted with it can never be decrypted again.

        ``heirs`` names, for each chunk that other contexts need too, one of them: such chunks are encrypted again with
        its key. The other encrypted ones are lost: these are returned. Chunks in clear stay: discard those that nobody
        needs. May take as long as it takes to read and write what is shared. Raises UnknownContext.
        """
        return self._chunks.delete_context(ctx, heirs or {}, partial(self._contexts.delete, ctx))

    # -- LoRA adapters that were registered at run time

    @property
    def adapters(self) -> AdapterTable:
        return self._adapters

    # -- chunks

    def put(
        self,
        ctx: ContextId,
        items: Sequence[tuple[ChunkKey, int, Blob]],
        meta: Mapping[ChunkKey, ChunkMeta] = MappingProxyType({}),
    ) -> int:
        """Store chunks (key, number of tokens, bytes) side by side in a file of ``ctx``, all or none.

        Keys that are stored already are skipped. Returns the bytes that this wrote, those of the index (an upper
        bound) included. ``ctx`` need not exist: it decides which chunks are neighbours, not who owns them.
        """
        return self._chunks.put(ctx, items, meta)

    def persist_sensitivity(self, sensitivities: Mapping[ChunkKey, ChunkSensitivity]) -> None:
        """Store what was measured of chunks after they were put. Keys that are not stored are ignored."""
        self._chunks.persist_sensitivity(sensitivities)

    def get(self, keys: Sequence[ChunkKey], *, in_place: bool = False) -> list[memoryview | bytes | None]:
        """The bytes of each key, as they were put; None if it is not stored, or its bytes cannot be had.

        Chunks whose file is missing, short or unreadable, and encrypted ones that were altered, are forgotten and
        counted as damaged; altered ones in clear are not noticed here. Neighbours in clear share one buffer, which
        stays in memory as long as any of their views; encrypted ones are bytes of their own. ``in_place``, for chunks
        that only pass through: neighbours share their buffer in any case, which is memory that was used before.
        """
        return self._chunks.get(keys, in_place=in_place)

    def places(self, keys: Sequence[ChunkKey]) -> list[Place]:
        """Where the bytes of those keys that are stored are now, in the order in which they lie on disk."""
        return self._chunks.places(keys)

    def read(self, places: Sequence[Place], *, once: bool = False) -> list[SealedChunk]:
        """The chunks at ``places`` as they are on disk, for ``open``. It is what takes time of the disk in ``get``.

        ``once``: the kernel need not keep what it reads, since the caller does.
        """
        return self._chunks.read(places, once=once)

    def open(self, sealed: SealedChunk) -> memoryview | bytes | None:
        """A chunk that was read, decrypted: what ``get`` gives for its key. It is what takes time of the CPU in
        ``get``."""
        return self._chunks.open(sealed)

    def discard(self, keys: Sequence[ChunkKey]) -> int:
        """Forget chunks. Returns the bytes freed on disk.

        A file without chunks is deleted; one that is mostly dead is rewritten; in others the bytes stay until then.
        """
        return self._chunks.discard(keys)

    def prove(self, data: Blob) -> bytes:
        """By which the store knows a chunk again that leaves it: nothing without a master key."""
        return self._master.prove(data) if self._master is not None else b""

    def is_proved(self, data: Blob, proof: bytes) -> bool:
        """Whether a chunk left this store, or one with the same master key, with this proof."""
        return self._master is not None and self._master.is_proved(data, proof)

    def chunks(self) -> Iterator[StoredChunk]:
        """Every chunk that can be decrypted or is in clear."""
        return self._chunks.all()

    # -- privacy

    def drop_plain(self) -> int:
        """Forget every chunk in clear, for a store that was used without encryption before. Returns how many."""
        return self._chunks.drop_plain()

    def encryption(self) -> Encryption:
        """What is encrypted, how, and whether the master key fits."""
        with self._index.read() as con:
            sealed, total = con.execute("SELECT count(text_key), count(*) FROM contexts").fetchone()
        return replace(self._keys.report(), sealed=sealed, open=total - sealed)

    # -- maintenance

    def evict_page_cache(self) -> None:
        """Drop the payload files from the kernel's page cache, so that the next ``get`` reads the disk."""
        with self._chunks.frozen():
            self._payload.evict_page_cache()

    def stats(self) -> StoreStats:
        """Sizes, read from the index and the file system."""
        with self._index.read() as con:
            contexts = con.execute("SELECT count(*) FROM contexts").fetchone()[0]
            chunks, live = con.execute("SELECT count(*), coalesce(sum(nbytes), 0) FROM chunks").fetchone()
        file_bytes = sum(self._payload.sizes().values())
        return StoreStats(
            contexts=contexts,
            chunks=chunks,
            live_bytes=live,
            dead_bytes=max(file_bytes - live, 0),
            file_bytes=file_bytes,
            index_bytes=self._index.size(),
            bytes_written=self._payload.written + self._index.written,
            damaged=self._chunks.damaged,
        )

    def check(self, *, deep: bool = True, repair: bool = False) -> CheckReport:
        """Check the whole store, and with ``repair`` mend what is wrong; tokens are never dropped.

        Checked are SQLite's integrity, references and counts; that every chunk is inside its file and apart from the
        others; that no payload files are stray; file modes; and with ``deep``, every payload byte against its checksum,
        and that encrypted chunks whose key can be had decrypt. The report says what was found before the repair. Puts
        and discards wait meanwhile; tokens can be appended.
        """
        return store_check.check(
            self._root,
            self._index,
            self._payload,
            self._chunks,
            self._keys,
            self._sealing,
            deep=deep,
            repair=repair,
        )
