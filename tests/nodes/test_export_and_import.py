"""Contexts into an archive and out of it, over the socket of a whole daemon with the fake engine."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from llmaas.api.client import Client
from llmaas.api.limits import Limits
from llmaas.api.transfer_messages import ExportChunks
from llmaas.api.transfer_records import ChunkPiece, ExportedChunks
from llmaas.engine.fake import FakeEngine
from llmaas.kvchunks.codec.header import write_header
from llmaas.kvchunks.keys import chunk_keys
from llmaas.kvchunks.store.store import MasterKey, Store
from llmaas.kvchunks.store.tokens import pack
from llmaas.nodes.archive.reader import ArchiveReader, Lost
from llmaas.nodes.archive.records import ChunkRecord
from llmaas.nodes.archive.writer import ArchiveWriter
from llmaas.nodes.export import ON_WAY, Exported, export_context
from llmaas.nodes.importing import ArchiveImport, Imported, NotImported, Outcome
from llmaas.records import (
    CHUNK_TOKENS,
    AppId,
    ContextId,
    ContextInfo,
    ContextSpan,
    ExportedContext,
    Geometry,
    Message,
    Precision,
)
from tests.service.test_migration import OtherEngine
from tests.service.test_transfers import LargerEngine
from tests.support.daemon import Daemon, serving
from tests.support.loop import on_a_loop

T = TypeVar("T")
WORDS = "the tide comes in and the tide goes out " * 4


def keyed(root: Path) -> Store:
    return Store(root, master=MasterKey(bytes(32)))


async def on_thread(do: Callable[[Client], T], daemon: Daemon, app: str = "mail") -> T:
    """``do`` with a client that blocks, which the daemon's loop must not wait for."""

    def run() -> T:
        with Client(daemon.socket, app=app) as client:
            return do(client)

    return await asyncio.to_thread(run)


def talk(client: Client, context: str = "x", n_turns: int = 3) -> None:
    client.create(name=context, system="Be brief.", ttl=3600.0)
    for i in range(n_turns):
        client.ask(context, f"{i}: {WORDS}", max_tokens=9)


def exported(client: Client, *contexts: str, **options: Any) -> tuple[bytes, list[Exported]]:
    sink, done = io.BytesIO(), []
    writer = ArchiveWriter(sink, 0.0)
    infos = {info.name: info for info in client.contexts()}
    for context in contexts or ("x",):
        done.append(export_context(client, infos[context], writer, **options))
    writer.close()
    return sink.getvalue(), done


def imported(client: Client, data: bytes, **options: Any) -> list[Outcome]:
    return list(ArchiveImport(client, **options).run(ArchiveReader(io.BytesIO(data))))


def said(client: Client, context: str = "x") -> list[Message]:
    return list(client.show(context).messages)


async def archive(root: Path, *contexts: str, **options: Any) -> tuple[bytes, list[Exported], list[Message]]:
    async with serving(root, store=keyed) as daemon:
        for context in contexts or ("x",):
            await on_thread(lambda client, name=context: talk(client, name), daemon)  # type: ignore[misc]
        await daemon.until_idle()
        data, done = await on_thread(lambda client: exported(client, *contexts, **options), daemon)
        return data, done, await on_thread(said, daemon) if not contexts else []


@on_a_loop
async def test_a_conversation_goes_on_elsewhere_and_nothing_is_computed(tmp_path: Path) -> None:
    data, done, messages = await archive(tmp_path / "a")
    (one,) = done
    assert one.n_chunks > 3 and one.n_missing == 0
    async with serving(tmp_path / "b", store=keyed) as daemon:
        (made,) = await on_thread(lambda client: imported(client, data), daemon)
        assert isinstance(made, Imported) and (made.taken, made.known, made.refused) == (one.n_chunks, 0, 0)
        assert made.info.n_tokens == one.n_tokens and made.info.ttl == 3600.0
        assert await on_thread(said, daemon) == messages

        def go_on(client: Client) -> Any:
            stream = client.generate("x", "and?", max_tokens=9)
            return stream.done

        assert (await on_thread(go_on, daemon)).switch.recomputed == 0
        again = await on_thread(lambda client: imported(client, data, name="y"), daemon)
        assert isinstance(again[0], Imported)
        assert again[0].known + again[0].taken == one.n_chunks and again[0].taken <= 1


@on_a_loop
async def test_two_contexts_one_of_which_is_there_already(tmp_path: Path) -> None:
    data, done, _ = await archive(tmp_path / "a", "x", "y")
    async with serving(tmp_path / "b", store=keyed) as daemon:
        await on_thread(lambda client: client.create(name="x"), daemon)
        first, second = await on_thread(lambda client: imported(client, data), daemon)
        assert isinstance(first, NotImported) and first.error.code == "context_exists"
        assert isinstance(second, Imported) and second.info.name == "y"
        assert second.taken == done[1].n_chunks, "what both begin with is not written twice, but each is whole"


@on_a_loop
async def test_another_model_computes_and_another_vocabulary_reads_the_text(tmp_path: Path) -> None:
    data, done, messages = await archive(tmp_path / "a")
    engines: list[tuple[type[FakeEngine], bool]] = [(LargerEngine, True), (OtherEngine, False)]
    for i, (engine, same_tokens) in enumerate(engines):
        async with serving(tmp_path / f"b{i}", engine=engine, store=keyed, adapters=()) as daemon:
            (made,) = await on_thread(lambda client: imported(client, data, trusted=True), daemon)
            assert isinstance(made, Imported) and (made.taken, made.refused) == (0, done[0].n_chunks)
            assert "another model" in made.why
            assert (made.info.n_tokens == done[0].n_tokens) == same_tokens
            assert await on_thread(said, daemon) == messages
            await on_thread(lambda client: client.ask("x", "and?", max_tokens=4), daemon)


@on_a_loop
async def test_without_chunks_there_is_less_and_it_is_computed(tmp_path: Path) -> None:
    whole, _, _ = await archive(tmp_path / "a")
    data, done, messages = await archive(tmp_path / "b", chunks=False)
    assert len(data) < len(whole) / 3 and done[0].n_chunks == 0
    async with serving(tmp_path / "c") as daemon:
        (made,) = await on_thread(lambda client: imported(client, data), daemon)
        assert isinstance(made, Imported) and made.refused == 0
        assert await on_thread(said, daemon) == messages


@on_a_loop
async def test_of_a_damaged_archive_all_that_is_whole_is_there(tmp_path: Path) -> None:
    data, done, messages = await archive(tmp_path / "a")
    hurt = bytearray(data)
    hurt[data.rindex(b"LBLK", 0, len(data) * 2 // 3) + 400] ^= 1
    async with serving(tmp_path / "b", store=keyed) as daemon:
        outcomes = await on_thread(lambda client: imported(client, bytes(hurt)), daemon)
        assert [type(outcome) for outcome in outcomes] == [Lost, Imported]
        lost, made = outcomes
        assert isinstance(lost, Lost) and isinstance(made, Imported) and lost.only_kv
        assert made.taken == done[0].n_chunks - 1
        assert await on_thread(said, daemon) == messages
        cut = await on_thread(lambda client: imported(client, data[: len(data) // 2], name="cut"), daemon)
        assert any(isinstance(outcome, Lost) for outcome in cut)
        assert [o.info.name for o in cut if isinstance(o, Imported)] == ["cut"]
        assert await on_thread(lambda client: said(client, "cut"), daemon) == messages


@on_a_loop
async def test_an_app_is_given_its_own_contexts_only(tmp_path: Path) -> None:
    async with serving(tmp_path, store=keyed) as daemon:
        await on_thread(talk, daemon)
        info = (await on_thread(lambda client: client.contexts(), daemon))[0]

        def steal(client: Client) -> None:
            for ask in (client.export_context, client.export_chunks):
                with pytest.raises(Exception, match="no context"):
                    ask(info.id)
            with pytest.raises(Exception, match="no context"):
                client.import_chunks(info.id, bytes(16), bytes(16))

        await on_thread(steal, daemon, "other")


@on_a_loop
async def test_small_frames_carry_the_chunks_in_parts(tmp_path: Path) -> None:
    limits = Limits(max_frame=1 << 16, write_buffer=1 << 20)
    async with serving(tmp_path / "a", store=keyed, limits=limits) as daemon:
        await on_thread(talk, daemon)
        await daemon.until_idle()
        data, done = await on_thread(exported, daemon)
    async with serving(tmp_path / "b", store=keyed, limits=limits) as daemon:
        (made,) = await on_thread(lambda client: imported(client, data), daemon)
        assert isinstance(made, Imported) and made.taken == done[0].n_chunks > 3


@on_a_loop
async def test_chunks_that_are_not_wanted_are_not_written(tmp_path: Path) -> None:
    data, done, _ = await archive(tmp_path, wanted=lambda key: key[0] % 2 == 0)
    assert done[0].n_skipped > 0 and done[0].n_missing == 0
    assert sum("ChunkRecord" in type(item).__name__ for item in ArchiveReader(io.BytesIO(data))) == done[0].n_chunks


class Scripted:
    """A daemon's chunks of ``sizes`` bytes, in pages of at most ``page`` bytes; ``most``: that were on the way."""

    def __init__(self, sizes: list[int], page: int) -> None:
        self.server = {"limits": {"max_frame": 2 * page}}
        self._sizes, self._n_on_way, self.most, self.n_asked = sizes, 0, 0, 0

    def export_context(self, context: str) -> ExportedContext:
        return ExportedContext("x", "m", "v", (ContextSpan(pack(range(CHUNK_TOKENS * len(self._sizes)))),))

    def begin(self, operation: Any) -> Any:
        self._n_on_way, self.n_asked = self._n_on_way + 1, self.n_asked + 1
        self.most = max(self.most, self._n_on_way)
        return SimpleNamespace(result=lambda: self._answer(operation.request))

    def _answer(self, request: ExportChunks) -> ExportedChunks:
        self._n_on_way -= 1
        pieces, room, offset, n_done = list[ChunkPiece](), request.n_bytes, request.offset, 0
        for index in request.indices:
            data = coded_chunk(self._sizes[index], index)[offset:]
            if pieces and len(data) > room:
                break
            pieces.append(ChunkPiece(index, self._sizes[index], data[:room], offset))
            if len(data) > room:
                return self._page(pieces, n_done, offset + room)
            room, offset, n_done = room - len(data), 0, n_done + 1
        return self._page(pieces, n_done, 0)

    def _page(self, pieces: list[ChunkPiece], n_done: int, offset: int) -> ExportedChunks:
        return ExportedChunks(ROOT, bytes(16), CHUNK_TOKENS * len(self._sizes), tuple(pieces), n_done, offset)


ROOT = bytes(16)
INFO = ContextInfo(ContextId("1"), AppId("1000/mail"), "x", 0, 0, 0.0, 0.0)


def coded_chunk(n_bytes: int, index: int) -> bytes:
    made = bytearray(random.Random(index).randbytes(n_bytes))
    key = chunk_keys(ROOT, range(CHUNK_TOKENS * (index + 1)))[index]
    shape = Geometry(n_layer=1, k_dim=64, v_dim=64, head_dim_k=64, head_dim_v=64)
    how = {"precision": Precision(4, 4), "codings": (4, 4), "sinks": 0, "rope_id": 0}
    write_header(made, key=key, n_tokens=CHUNK_TOKENS, geometry=shape, **how)  # type: ignore[arg-type]
    return bytes(made)


@pytest.mark.parametrize(
    ("sizes", "page"),
    [
        ([400_000] * 12, 2 << 20),  # all alike: pages are asked for ahead
        ([400_000, 400_000, 1_600_000, 900_000] * 3, 2 << 20),  # some need more room than those before them
        ([300_000] * 5, 70_000),  # each is larger than a frame
        ([400_000], 2 << 20),
    ],
)
def test_chunks_of_any_size_come_once_and_in_order(sizes: list[int], page: int) -> None:
    client, sink, taken = Scripted(sizes, page), io.BytesIO(), list[tuple[int, bytes]]()
    writer = ArchiveWriter(sink, 0.0)
    done = export_context(client, INFO, writer)
    writer.close()
    for item in ArchiveReader(io.BytesIO(sink.getvalue())):
        if isinstance(item, ChunkRecord):
            taken.append((item.index, item.data))
    assert taken == [(i, coded_chunk(size, i)) for i, size in enumerate(sizes)]
    assert (done.n_chunks, done.n_missing) == (len(sizes), 0)
    assert client.most <= ON_WAY
    if len(set(sizes)) == 1 and len(sizes) > 5 and page > 1 << 20:
        assert client.most == ON_WAY
