"""Coded chunks that go from one daemon to another: taken where they are proved or vouched for, else refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmaas import errors
from llmaas.api.transfer_messages import ExportChunks, ImportChunks
from llmaas.api.transfer_records import ChunkPiece, ExportedChunks, ImportedChunks
from llmaas.kv_arrays import KvSlab
from llmaas.kvchunks.codec.codec import Codec, read_header
from llmaas.kvchunks.keys import chunk_keys
from llmaas.kvchunks.store.store import MasterKey, Store
from llmaas.records import LOSSLESS, AppId, AppQuota, ExportedContext
from tests.service.test_transfers import LargerEngine
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house

OTHER_APP = AppId("1000/other")
OTHER_MASTER = MasterKey(bytes(range(32)))
Moved = tuple[ExportedContext, ExportedChunks]


async def moved(h: House, context: str = "x", n_words: int = 60) -> Moved:
    """A context of some chunks, exported."""
    await h.service.create(APP, name=context, system="Be brief.")
    await h.say(context, "one two " * n_words, n=9)
    await h.service.wait_idle()
    exported = await h.service.transfers.export_context(APP, context)
    about = await h.service.transfers.export_chunks(APP, ExportChunks(context))
    return exported, await all_chunks(h, context, range(-(-about.n_kv // 64)))


async def all_chunks(h: House, context: str, indices: Sequence[int], n_bytes: int = 1 << 20) -> ExportedChunks:
    pieces, offset = list[ChunkPiece](), 0
    while True:
        request = ExportChunks(context, tuple(indices), offset, n_bytes)
        page = await h.service.transfers.export_chunks(APP, request)
        assert sum(len(piece.data) for piece in page.pieces) <= n_bytes
        assert not indices or page.n_done or page.pieces, "each page goes on"
        pieces += page.pieces
        indices, offset = indices[page.n_done :], page.offset
        if not indices:
            return replace(page, pieces=tuple(pieces))


async def put(
    h: House, chunks: ExportedChunks, context: str = "x", *, app: AppId = APP, trusted: bool = False
) -> ImportedChunks:
    request = ImportChunks(context, chunks.root, chunks.kv, chunks.pieces, trusted)
    return await h.service.transfers.import_chunks(app, request)


def other_house(root: Path, **options: Any) -> Any:
    return house(root, store=Store(root, master=OTHER_MASTER), **options)


@on_a_loop
async def test_what_this_daemon_has_coded_it_takes_back_and_computes_nothing(tmp_path: Path) -> None:
    async with house(tmp_path / "a") as h:
        exported, chunks = await moved(h)
        n_tokens = len(h.tokens("x"))
        assert len(chunks.pieces) == -(-chunks.n_kv // 64) > 2, "the last one, which is not full, too"
        more = await h.say("x", "and?", n=12)
    async with house(tmp_path / "b") as h:
        await h.service.transfers.import_context(APP, exported)
        before = await put(h, replace(chunks, pieces=()))
        assert before.missing == tuple(range(n_tokens // 64)) and before.usable
        assert await put(h, chunks) == ImportedChunks(len(chunks.pieces), 0, 0)
        assert h.service.info(APP, "x").tiers == (0, 0, chunks.n_kv, n_tokens - chunks.n_kv)
        assert (await put(h, replace(chunks, pieces=()))).missing == ()
        assert await put(h, chunks) == ImportedChunks(0, len(chunks.pieces), 0)
        text, done = await h.say("x", "and?", n=12)
        assert text == more[0]
        assert (done.switch.disk, done.switch.recomputed) == (chunks.n_kv, 0)
        assert n_tokens - chunks.n_kv <= 1, "the last token that was drawn has no KV yet"
    async with house(tmp_path / "b") as h:
        await h.service.wait_idle()
        assert h.service.info(APP, "x").tiers[3] < 64, "they are still there after a start"


@on_a_loop
async def test_what_is_of_no_use_to_one_context_stays_where_another_has_it(tmp_path: Path) -> None:
    async with house(tmp_path / "a") as h:
        short, of_short = await moved(h, n_words=52)
        await h.say("x", "?", n=2)
        await h.service.wait_idle()
        long = await h.service.transfers.export_context(APP, "x")
        of_long = await all_chunks(h, "x", range(len(of_short.pieces)))
    assert len(of_long.pieces) == len(of_short.pieces), "both end in the same chunk"
    async with house(tmp_path / "b") as h:
        await h.service.transfers.import_context(APP, replace(long, name="long"))
        await h.service.transfers.import_context(APP, replace(short, name="short"))
        await put(h, of_long, "long")
        assert (await put(h, replace(of_short, pieces=()), "short")).missing == (), "as long has them"
        last = replace(of_short, pieces=of_short.pieces[-1:])
        useless, useful = await asyncio.gather(put(h, last, "long"), put(h, last, "short"))
        assert (useless.taken, useless.refused, useful.taken) == (0, 1, 1) and "no use" in useless.why
        _, done = await h.say("short", "and?", n=12)
        assert (done.switch.disk, done.switch.recomputed) == (of_short.n_kv, 0)


@on_a_loop
async def test_another_daemon_takes_only_what_the_app_vouches_for(tmp_path: Path) -> None:
    async with house(tmp_path / "a") as h:
        exported, chunks = await moved(h)
    async with other_house(tmp_path / "b") as h:
        await h.service.transfers.import_context(APP, exported)
        refused = await put(h, chunks)
        assert (refused.taken, refused.refused) == (0, len(chunks.pieces)) and "vouches" in refused.why
        assert h.service.info(APP, "x").tiers[2] == 0
        assert (await put(h, chunks, trusted=True)).taken == len(chunks.pieces)
        assert h.service.info(APP, "x").tiers[2] == chunks.n_kv


@on_a_loop
async def test_of_another_app_they_get_new_names_and_nobody_else_finds_them(tmp_path: Path) -> None:
    async with house(tmp_path / "a") as h:
        exported, chunks = await moved(h)
        await h.service.transfers.import_context(OTHER_APP, exported)
        assert (await put(h, chunks, app=OTHER_APP)).taken == 0, "proved, but not to be this app's"
        with pytest.raises(errors.UnknownContext):
            await put(h, chunks, context=h.service.info(APP, "x").id, app=OTHER_APP)
        whole = replace(chunks, pieces=chunks.pieces[: chunks.n_kv // 64])
        assert (await put(h, whole, app=OTHER_APP, trusted=True)).taken == len(whole.pieces)
        keys = chunk_keys(chunks.root, h.tokens("x"))
        stored = {chunk.key for chunk in h.store.chunks()}
        assert len(stored) == 2 * len(whole.pieces) and set(keys[: len(whole.pieces)]) < stored
        text, _ = await h.say("x", "and?", n=12)
        assert (await h.say("x", "and?", n=12, app=OTHER_APP))[0] == text


@on_a_loop
async def test_chunks_that_are_damaged_lie_or_hold_nan_are_refused(tmp_path: Path) -> None:
    async with house(tmp_path / "a") as h:
        exported, chunks = await moved(h)
        geometry, tokens = h.thread.engine.info.geometry, h.tokens("x")
    keys = chunk_keys(chunks.root, tokens)
    first, second = chunks.pieces[:2]
    data = bytearray(first.data)
    data[100] ^= 4
    flipped = replace(first, data=bytes(data))
    exchanged = replace(first, data=second.data, n_bytes=second.n_bytes)
    nan = KvSlab(
        *(np.full((geometry.n_layer, 64, dim), np.nan, np.float16) for dim in (geometry.k_dim, geometry.v_dim))
    )
    header = read_header(first.data)
    assert header.n_tokens == 64
    poison = bytes(Codec(geometry).encode(nan, LOSSLESS, keys[0], header.sinks))
    short = replace(first, data=first.data[:-1], n_bytes=first.n_bytes - 1)
    async with other_house(tmp_path / "b") as h:
        await h.service.transfers.import_context(APP, exported)
        for bad, why in (
            (flipped, "checksum"),
            (exchanged, "is"),
            (replace(first, data=poison, n_bytes=len(poison)), "NaN"),
            (short, "body bytes"),
            (replace(first, index=4000), "no such tokens"),
            (replace(first, data=b"x" * 99, n_bytes=99), "no such tokens"),
            (replace(first, offset=7, n_bytes=first.n_bytes + 7), "no such tokens"),
            (replace(first, n_bytes=1 << 40), "no such tokens"),
        ):
            result = await put(h, replace(chunks, pieces=(bad,)), trusted=True)
            assert (result.taken, result.known, result.refused) == (0, 0, 1) and why in result.why, bad
        assert list(h.store.chunks()) == []
        wrong_root = await put(h, replace(chunks, root=bytes(16)), trusted=True)
        assert wrong_root.taken == 0, "they are not of the tokens that the root says"


@on_a_loop
async def test_of_another_model_none_is_taken(tmp_path: Path) -> None:
    async with house(tmp_path / "a") as h:
        exported, chunks = await moved(h)
    async with house(tmp_path / "b", engine_type=LargerEngine) as h:
        await h.service.transfers.import_context(APP, exported)
        result = await put(h, chunks, trusted=True)
        assert (result.taken, result.usable) == (0, False)
        await h.say("x", "and?")


@on_a_loop
async def test_large_chunks_come_and_go_in_parts(tmp_path: Path) -> None:
    async with house(tmp_path / "a") as h:
        exported, chunks = await moved(h)
        n_bytes = chunks.pieces[0].n_bytes // 3
        parts = await all_chunks(h, "x", range(len(chunks.pieces)), n_bytes)
        assert len(parts.pieces) > 2 * len(chunks.pieces)
    async with house(tmp_path / "b") as h:
        await h.service.transfers.import_context(APP, exported)
        taken = 0
        for piece in parts.pieces:
            taken += (await put(h, replace(parts, pieces=(piece,)))).taken
        assert taken == len(chunks.pieces)
    async with house(tmp_path / "c") as h:
        await h.service.transfers.import_context(APP, exported)
        result = await put(h, replace(parts, pieces=parts.pieces[1:]))
        assert (result.taken, result.refused > 0) == (taken - 1, True), "of the first chunk a part is missing"


@on_a_loop
async def test_there_must_be_room_and_nobody_elses_chunks_go(tmp_path: Path) -> None:
    async with house(tmp_path / "a") as h:
        exported, chunks = await moved(h)
    one = chunks.pieces[0].n_bytes
    async with house(tmp_path / "b") as h:
        h.service.set_quota(APP, AppQuota(disk_bytes=one + one // 2))
        await h.service.transfers.import_context(APP, exported)
        result = await put(h, chunks)
        assert (result.taken, result.refused) == (1, len(chunks.pieces) - 1) and "no room" in result.why
        await h.say("x", "and?")


@on_a_loop
async def test_a_context_that_goes_on_meanwhile_takes_what_it_still_needs(tmp_path: Path) -> None:
    async with house(tmp_path / "a") as h:
        exported, chunks = await moved(h)
    async with house(tmp_path / "b") as h:
        await h.service.transfers.import_context(APP, exported)
        await h.say("x", "and?", n=80)
        await h.service.wait_idle()
        result = await put(h, chunks)
        n_whole = chunks.n_kv // 64
        assert (result.taken, result.known) == (0, n_whole), "its last one has grown meanwhile"
        await h.service.truncate(APP, "x", n_tokens=70, n_messages=None)
        result = await put(h, chunks)
        assert result.refused and "no such tokens" in result.why
        await h.say("x", "and?")


@on_a_loop
async def test_whole_states_of_recurrent_models_go_nowhere(tmp_path: Path) -> None:
    recurrent = {"n_cells": 1024, "recurrent": True}
    async with house(tmp_path / "a", engine=recurrent) as h:
        exported, chunks = await moved(h)
        assert (chunks.n_kv, chunks.pieces) == (0, ())
        asked = ExportChunks("x", tuple(range(20)))
        assert (await h.service.transfers.export_chunks(APP, asked)).pieces == ()
    async with house(tmp_path / "b", engine=recurrent) as h:
        await h.service.transfers.import_context(APP, exported)
        piece = ChunkPiece(0, 200, bytes(200))
        assert not (await put(h, replace(chunks, pieces=(piece,)), trusted=True)).usable
        await h.say("x", "and?")
