"""What waits for a context that is answered elsewhere, and becomes an app's with all that is in CELLS of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmaas.api.transfer_messages import Import
from llmaas.calls import Generation, Turn
from llmaas.errors import BadRequest, ContextExists, ContextTooLong, QuotaExceeded, UnknownContext
from llmaas.kvchunks.store.move_rows import MoveRow, MoveState
from llmaas.kvchunks.store.tokens import pack
from llmaas.planner.cost_model import SwitchCosts
from llmaas.records import AppId, AppQuota, ContextId, ContextSpan, ExportedContext
from llmaas.service import arrivals
from tests.service.test_migration import talk
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house

MOVE, NODE = "ab" * 16, "node"


class Waiting:
    """A conversation of another daemon, the end of whose answer has not come yet."""

    def __init__(self, h: House, exported: ExportedContext, n_left: int = 4) -> None:
        self.h, self.whole = h, exported
        self.arrivals = h.service.transfers.arrivals
        self.arrivals.calls = h.service
        self.begin, self.last = exported.spans[:-1], exported.spans[-1]
        self.n_left = n_left

    async def stage(self) -> ContextId:
        asked = Import(replace(self.whole, spans=self.begin))
        return (await self.arrivals.stage(MOVE, NODE, APP, asked)).id

    @property
    def grown(self) -> bytes:
        return self.last.tokens[: -4 * self.n_left]

    async def arrive(self, context: ContextId, name: str = "came", *more: ContextSpan) -> None:
        whole = replace(self.whole, spans=(*self.whole.spans, *more))
        await self.arrivals.arrive_staged(MOVE, NODE, APP, Import(whole, name, ttl=3600.0), context)


async def exported(root: Path) -> ExportedContext:
    async with house(root) as h:
        await talk(h)
        return await h.service.transfers.export_context(APP, "x")


@on_a_loop
async def test_it_is_the_apps_with_what_is_in_cells_and_only_its_last_tokens_are_computed(tmp_path: Path) -> None:
    found = await exported(tmp_path / "a")
    async with house(tmp_path / "a") as h:
        answer, _ = await h.call("x", Turn(), Generation(6))
    async with house(tmp_path / "b") as h:
        waiting = Waiting(h, found)
        staged = await waiting.stage()
        assert await waiting.arrivals.bring(staged, waiting.grown) == found.n_tokens - 4, "all of it is there"
        assert h.service.contexts(APP) == []
        await waiting.arrive(staged)
        (info,) = h.service.contexts(APP)
        assert (info.id, info.name, info.n_tokens, info.ttl) == (staged, "came", found.n_tokens, 3600.0)
        assert info.tiers[0] == found.n_tokens - 4, "it has stayed where it was"
        assert list((await h.shown("came")).messages)[-1].content == found.spans[-1].text
        text, done = await h.call("came", Turn(), Generation(6))
        assert text == answer and done.switch.recomputed == 0 and done.switch.cells == found.n_tokens - 4
        assert h.service.used(APP).contexts == 1 and h.service.used(AppId(f"{APP}\nfrom {NODE}")).contexts == 0
        assert h.store.moves.all() == [MoveRow(MOVE, NODE, staged, MoveState.ARRIVED)]
    async with house(tmp_path / "b") as h:
        assert h.service.info(APP, "came").ttl == 3600.0
        text, done = await h.call("came", Turn(), Generation(3))
        assert done.n_generated == 3


@on_a_loop
async def test_a_step_that_takes_longer_than_its_request_may_is_not_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await exported(tmp_path / "a")
    monkeypatch.setattr(arrivals, "BRING_S", 0.1)
    async with house(tmp_path / "b", engine={"step_time": lambda n_tokens: 0.4}) as h:
        waiting = Waiting(h, found)
        staged = await waiting.stage()
        assert await waiting.arrivals.bring(staged, waiting.grown) > 0


@on_a_loop
async def test_tokens_that_were_taken_back_leave_cells(tmp_path: Path) -> None:
    found = await exported(tmp_path / "a")
    async with house(tmp_path / "b") as h:
        waiting = Waiting(h, found)
        staged = await waiting.stage()
        await waiting.arrivals.bring(staged, waiting.grown + pack([5, 6, 7]))
        await waiting.arrive(staged)
        assert h.service.info(APP, "came").tiers[0] == found.n_tokens - 4
        assert h.tokens("came")[-4:] != [5, 6, 7]


@on_a_loop
async def test_what_is_refused_changes_nothing(tmp_path: Path) -> None:
    found = await exported(tmp_path / "a")
    async with house(tmp_path / "b") as h:
        waiting = Waiting(h, found)
        staged = await waiting.stage()
        with pytest.raises(BadRequest, match="vocabulary"):
            await waiting.arrivals.bring(staged, pack([1 << 30]))
        with pytest.raises(ContextTooLong):
            await waiting.arrivals.bring(staged, bytes(4 * h.service.planner_settings.ctx_limit))
        await h.service.create(APP, name="taken", system=None)
        with pytest.raises(ContextExists):
            await waiting.arrive(staged, "taken")
        with pytest.raises(BadRequest, match="vocabulary"):
            await waiting.arrive(staged, "came", ContextSpan(pack([1 << 30])))
        h.service.set_quota(APP, AppQuota(contexts=1))
        with pytest.raises(QuotaExceeded):
            await waiting.arrive(staged)
        assert [info.name for info in h.service.contexts(APP)] == ["taken"] and h.store.moves.all() == []
        h.service.set_quota(APP, AppQuota())
        await waiting.arrive(staged)
        with pytest.raises(ContextExists):
            await waiting.arrive(staged)
        await waiting.arrivals.unstage(ContextId("nothing"))


@on_a_loop
async def test_what_did_not_come_goes_also_while_it_is_brought(tmp_path: Path) -> None:
    found = await exported(tmp_path / "a")
    async with house(tmp_path / "b") as h:
        waiting = Waiting(h, found)
        staged = await waiting.stage()
        h.service.hint(AppId(f"{APP}\nfrom {NODE}"), staged)
        await waiting.arrivals.unstage(staged)
        assert h.service.contexts(None) == []
        with pytest.raises(UnknownContext):
            await waiting.arrive(staged)


@on_a_loop
async def test_what_computing_takes_is_said_with_care_until_something_was_computed(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        compute_s = h.service.transfers.arrivals.compute_s
        assert compute_s(1000) == pytest.approx(4 * SwitchCosts().compute(0, 1000))
        await h.service.create(APP, name="x", system=None)
        await h.call("x", Turn(prompt="the tide comes in and goes out " * 8), None)
        assert 0 < compute_s(1000) < SwitchCosts().compute(0, 1000), "now it is what was seen"
