"""Chunks of a context that waits are taken while what is missing in front of them is computed."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmaas.api.transfer_messages import Import
from llmaas.api.transfer_records import ImportedChunks
from llmaas.calls import Done
from llmaas.errors import UnknownContext
from llmaas.records import AppId, ContextId, RequestId
from llmaas.service.service import Service
from tests.service.test_chunk_transfers import Moved, moved, other_house
from tests.support.loop import on_a_loop
from tests.support.scripted import until
from tests.support.service_house import APP, House, house

MOVE, NODE = "ab" * 16, "node"


class RememberedHint:
    """Passes calls on to a service."""

    def __init__(self, service: Service) -> None:
        self._service, self.submit, self.cancel = service, service.submit, service.cancel
        self.last: tuple[RequestId, asyncio.Future[Done]] | None = None

    def hint(self, app: AppId, context: str) -> tuple[RequestId, asyncio.Future[Done]] | None:
        self.last = self._service.hint(app, context)
        return self.last


class Ahead:
    """A context that another daemon has exported, of which all waits here."""

    def __init__(self, h: House, found: Moved) -> None:
        self.h, (self.exported, self.chunks) = h, found
        self.arrivals = h.service.transfers.arrivals
        self.arrivals.calls = self.calls = RememberedHint(h.service)
        self.context = ContextId("")
        self.n_whole = self.chunks.n_kv // 64

    async def stage(self) -> tuple[int, ...]:
        """Which chunks are missing."""
        self.context = (await self.arrivals.stage(MOVE, NODE, APP, Import(self.exported))).id
        return (await self.take()).missing

    async def take(self, *indices: int, computes: bool = False) -> ImportedChunks:
        chunks, pieces = self.chunks, tuple(self.chunks.pieces[i] for i in indices)
        return await self.arrivals.take_staged(self.context, chunks.root, chunks.kv, pieces, computes=computes)

    async def end_hint(self) -> None:
        """As when another call takes its place."""
        assert self.calls.last is not None
        request, reply = self.calls.last
        self.calls.cancel(request)
        await asyncio.wait([reply])
        await self.h.service.wait_idle()

    @property
    def n_begun(self) -> int:
        return self.arrivals.n_begun(self.context)


@asynccontextmanager
async def ahead(root: Path, token_s: float = 0.001) -> Any:
    async with house(root / "a") as h:
        found = await moved(h, n_words=85)
    steps = {"step_time": lambda n: token_s * n}
    async with other_house(root / "b", engine=steps, prefill_slice=64) as h:
        yield Ahead(h, found)


@on_a_loop
async def test_the_last_chunks_are_taken_while_the_first_ones_are_computed_and_nothing_twice(tmp_path: Path) -> None:
    async with ahead(tmp_path) as waits:
        assert await waits.stage() == tuple(range(waits.n_whole))
        behind, seen = waits.n_whole, list[int]()
        while 64 * (behind - 1) >= waits.n_begun:
            behind -= 1
            assert (await waits.take(behind, computes=True)).taken == 1
            seen.append(waits.n_begun)
            await asyncio.sleep(0.06)
        assert 0 < behind < waits.n_whole - 1 and 0 < seen[1] < seen[-1], "both went on at once"
        n_tokens = waits.h.service.info(AppId(f"{APP}\nfrom {NODE}"), waits.context).n_tokens
        assert await waits.arrivals.bring(waits.context, b"") == n_tokens
        counts: Any = waits.h.service.stats()["counts"]
        found = counts["tokens_recomputed"], counts["tokens_from_disk"]
        assert found == (64 * behind, 64 * (waits.n_whole - behind))


@on_a_loop
async def test_another_app_is_served_while_it_is_computed(tmp_path: Path) -> None:
    async with ahead(tmp_path, token_s=0.005) as waits:
        await waits.h.service.create(APP, name="mine", system=None)
        await waits.stage()
        await waits.take(waits.n_whole - 1, computes=True)
        await waits.h.say("mine", "hello", n=4)
        assert waits.n_begun < 64 * (waits.n_whole - 1), "it was not waited for"
        await waits.arrivals.unstage(waits.context)


@on_a_loop
async def test_what_is_computed_again_with_a_part_of_a_chunk_is_computed_in_short_pieces(tmp_path: Path) -> None:
    async with ahead(tmp_path, token_s=0.002) as waits:
        await waits.stage()
        last = waits.n_whole - 1
        await waits.take(last, computes=True)
        await until(lambda: waits.n_begun > 0)
        await waits.end_hint()
        before = waits.n_begun
        piece = waits.chunks.pieces[last - 1]
        part = (replace(piece, data=piece.data[:100]),)
        await waits.arrivals.take_staged(waits.context, waits.chunks.root, waits.chunks.kv, part, computes=True)
        await until(lambda: waits.n_begun > before)
        assert waits.n_begun < 64 * last, "the sender would think that all is computed there"
        await waits.arrivals.unstage(waits.context)


class GoneBefore(RememberedHint):
    """The context is deleted before its hint ends."""

    def hint(self, app: AppId, context: str) -> Any:
        found = super().hint(app, context)
        assert found is not None
        return found[0], asyncio.ensure_future(self._service.delete(None, context))


@on_a_loop
async def test_what_goes_while_it_is_brought_is_no_error_of_the_daemon(tmp_path: Path) -> None:
    async with ahead(tmp_path) as waits:
        await waits.stage()
        waits.arrivals.calls = GoneBefore(waits.h.service)
        assert await waits.arrivals.bring(waits.context, b"") == 0


@on_a_loop
async def test_a_chunk_that_comes_twice_in_one_frame_is_one(tmp_path: Path) -> None:
    async with ahead(tmp_path) as waits:
        await waits.stage()
        last = waits.n_whole - 1
        assert (await waits.take(last, last)).taken == 1
        await waits.h.service.create(APP, name="mine", system=None)
        await waits.h.say("mine", "hello", n=2)


@on_a_loop
async def test_nothing_is_computed_that_nobody_has_asked_for(tmp_path: Path) -> None:
    async with ahead(tmp_path) as waits:
        await waits.stage()
        await waits.take(*range(3, waits.n_whole))
        await waits.h.service.wait_idle()
        assert waits.n_begun == 0


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.003, 0.01])
@on_a_loop
async def test_what_goes_while_chunks_come_and_it_is_computed_leaves_nothing_behind(
    tmp_path: Path, delay: float
) -> None:
    async with ahead(tmp_path) as waits:
        await waits.stage()
        await waits.take(waits.n_whole - 1, computes=True)

        async def take_rest() -> None:
            for i in range(waits.n_whole - 1):
                await waits.take(i, computes=True)

        taking = asyncio.create_task(take_rest())
        await asyncio.sleep(delay)
        await waits.arrivals.unstage(waits.context)
        with suppress(UnknownContext):
            await taking
        await waits.h.service.wait_idle()
        assert list(waits.h.store.chunks()) == [] and waits.h.service.contexts(None) == []


@on_a_loop
async def test_chunks_that_no_key_names_are_not_kept(tmp_path: Path) -> None:
    """As of a node that has not asked which are missing."""
    async with ahead(tmp_path) as waits:
        waits.context = (await waits.arrivals.stage(MOVE, NODE, APP, Import(waits.exported))).id
        await waits.take(2, 1)
        assert list(waits.h.store.chunks()) == []
        await waits.take()
        assert (await waits.take(2, 1)).taken == 2
        assert len(list(waits.h.store.chunks())) == 2
