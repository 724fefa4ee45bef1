"""What an agent tells of its daemon, and what it learns."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llmaas.api.mark_messages import ListedMarks
from llmaas.api.transfer_records import MovedContext
from llmaas.calls import Terms
from llmaas.errors import BadRequest, Busy, LlmaasError
from llmaas.front.process import ProcessState
from llmaas.nodes.cluster.agent import NodeAgent
from llmaas.nodes.cluster.states import ClusterRefusal, ContextMove, NodePlace
from llmaas.policies.node_report import ModelTier
from llmaas.records import CHUNK_TOKENS
from tests.support.daemon import ask
from tests.support.front_house import SOON, front_house, put_away, timeout
from tests.support.loop import on_a_loop
from tests.support.node_house import House, node_daemon, phone_and_desk

WORDS = "the tide comes in and the tide goes out " * 8


def agent_of(house: House, name: str) -> NodeAgent:
    return NodeAgent(NodePlace(name, str(house.daemon.socket), data_dir=str(house.data_dir)))


@on_a_loop
async def test_models_contexts_calls_and_speed_are_told_and_contexts_only_when_they_are_others(tmp_path: Path) -> None:
    async with node_daemon(tmp_path) as house, house.daemon.connect("mail") as client:
        agent = agent_of(house, "desk")
        first = await agent.state()
        assert (first.serving, first.model, first.contexts, first.peers) == (True, "fake", (), ())
        await client.create(name="x")
        await ask(client, "x", WORDS)
        await client.resolve([])
        await house.daemon.until_idle()
        state = await agent.state(fresh=True)
        assert state.contexts is not None and state.report is not None
        named = next(held for held in state.contexts if not held.anonymous)
        info = next(info for info in await client.contexts() if info.name == "x")
        assert (named.app, named.name, named.id, named.n_tokens) == ("mail", "x", info.id, info.n_tokens)
        assert (named.n_held, state.n_contexts, len(state.contexts)) == (sum(info.tiers[:3]), 2, 2)
        assert state.report.models["fake"].tier is ModelTier.LOADED
        assert state.report.models["fake"].prefill_rate > 1000, "the fake engine is fast"
        again = await agent.state(state.run, state.serial, fresh=True)
        assert (again.contexts, again.serial, again.n_contexts) == (None, state.serial, 2)
        assert (await agent.state("another run", state.serial)).contexts == state.contexts
        stream = client.generate("x", WORDS, max_tokens=400, terms=Terms(rate=40.0))
        await stream.__aiter__().__anext__()
        busy = await agent.state(fresh=True)
        assert busy.report is not None
        assert (busy.n_active, [call.name for call in busy.report.movable]) == (1, ["mail/x"])
        await stream.aclose()
        await agent.close()


@on_a_loop
async def test_a_daemon_that_ends_is_said_to_and_its_contexts_are_still_its_own(tmp_path: Path) -> None:
    async with node_daemon(tmp_path) as house:
        async with house.daemon.connect("mail") as client:
            await client.create(name="x")
        agent = agent_of(house, "desk")
        assert (await agent.state()).serving
    state = await agent.state(fresh=True)
    assert (state.serving, [held.name for held in state.contexts or ()]) == (False, ["x"])
    assert "d-admin.sock" in state.why
    async with node_daemon(tmp_path) as house:
        again = await agent.state(fresh=True)
        assert (again.serving, [held.name for held in again.contexts or ()]) == (True, ["x"])
        await agent.close()
    never = NodeAgent(NodePlace("desk", str(tmp_path / "nothing.sock")))
    assert (await never.state()).contexts == ()


@on_a_loop
async def test_a_move_teaches_the_link_and_one_that_fails_bars_the_node(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        async with phone.daemon.connect("mail") as client:
            for name in ("x", "y"):
                await client.create(name=name)
                await ask(client, name, WORDS)
        await phone.daemon.until_idle()
        agent = agent_of(phone, "phone")
        before = await agent.state()
        assert before.peers == ("desk",) and before.report is not None and not before.report.links
        moved = await agent.move(ContextMove("mail", "x", "phone", "desk"))
        assert isinstance(moved, MovedContext) and moved.n_chunks > 0
        after = await agent.state()
        assert after.report is not None and after.report.links["desk"](1 << 20) > 0
        assert after.token_bytes == moved.n_bytes / (moved.n_chunks * CHUNK_TOKENS)
        assert [held.name for held in after.contexts or ()] == ["y"], "what has left is not told any more"
        again = await agent.move(ContextMove("mail", "x", "phone", "desk"))
        assert isinstance(again, ClusterRefusal) and again.code == "unknown_context"
        assert (await agent.state(fresh=True)).barred == (), "that was not the node's fault"
        await asyncio.wait_for(desk.listener.close(), 20)
        lost = await agent.move(ContextMove("mail", "y", "phone", "desk"))
        assert isinstance(lost, ClusterRefusal) and lost.code == "node_unreachable"
        assert (await agent.state(fresh=True)).barred == ("desk",)
        nobody = await agent.move(ContextMove("mail", "y", "phone", "moon"))
        assert isinstance(nobody, ClusterRefusal) and nobody.error().code == "unknown_node"
        await agent.close()


@on_a_loop
async def test_marks_are_told_once_and_then_what_has_become_of_them(tmp_path: Path) -> None:
    async with node_daemon(tmp_path) as house, house.daemon.connect("mail") as client:
        agent = agent_of(house, "desk")
        nothing = await agent.state()
        assert nothing.marks is not None and (nothing.marks.since, nothing.marks.new) == (None, ())
        for name in ("x", "y"):
            await client.create(name=name)
            await ask(client, name, f"{name} {WORDS}")
        await house.daemon.until_idle()
        state = await agent.state(fresh=True)
        assert state.marks is not None and len(state.marks.new) > 2
        assert (state.user, bool(state.fingerprint)) == (str(os.geteuid()), True)
        known = state.marks.serial
        assert (await agent.state(state.run, state.serial, known)).marks is None
        whole = await agent.state("another run", state.serial, known)
        assert whole.marks is not None and (whole.marks.since, whole.marks.new) == (None, state.marks.new)
        await client.delete("x")
        after = (await agent.state(state.run, state.serial, known, fresh=True)).marks
        assert after is not None and (after.since, after.new) == (known, ())
        assert after.gone and set(after.gone) < set(state.marks.new)
        late = (await agent.state(state.run, state.serial, 0)).marks
        assert late is not None and late.since is None
        assert set(late.new) == set(state.marks.new) - set(after.gone)
        await agent.close()


@on_a_loop
@pytest.mark.parametrize("error", [Busy, BadRequest])
async def test_a_daemon_that_has_no_time_for_marks_or_knows_none_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[LlmaasError]
) -> None:
    async with node_daemon(tmp_path) as house, house.daemon.connect("mail") as client:
        agent = agent_of(house, "desk")
        await client.create(name="x")
        await ask(client, "x", WORDS)
        await house.daemon.until_idle()
        state = await agent.state()
        assert state.marks is not None and state.marks.new

        async def refused(uid: int) -> ListedMarks:
            raise error("not now")

        monkeypatch.setattr(house.daemon.service.transfers.marks, "listed", refused)
        after = await agent.state(state.run, state.serial, state.marks.serial, fresh=True)
        assert after.serving and bool(after.fingerprint) == (error is Busy)
        assert (after.marks is None) == (error is Busy), "what was known holds on, unless there is no such operation"
        await agent.close()


@on_a_loop
async def test_a_model_that_has_left_memory_is_not_loaded_by_being_looked_at(
    tmp_path: Path,
) -> None:
    async with front_house(tmp_path, behaviour={"a": "late"}) as front:
        agent = NodeAgent(NodePlace("desk", str(front.socket)))
        first = await agent.state()
        assert (first.serving, first.model, front.there) == (True, "a", set())
        assert first.report is not None and first.report.models["a"].tier is ModelTier.DISK
        assert first.report.loads[ModelTier.DISK](0) > 0
        client = asyncio.ensure_future(front.connect(app="mail"))
        await until(lambda: front.front.processes["a"].state is ProcessState.STARTING)
        starting = await agent.state(fresh=True)
        assert starting.report is not None and starting.report.models["a"].tier is ModelTier.LOADED
        assert starting.report.models["a"].ready_s > 0 and starting.report.loading_s > 0
        mail = await client
        await mail.create(name="x")
        ready = await agent.state(fresh=True)
        assert ready.report is not None and ready.report.models["a"].ready_s == 0
        assert [held.name for held in ready.contexts or ()] == ["x"]
        await mail.close()
        await put_away(front, "a")
        away = await agent.state(fresh=True)
        assert away.report is not None and away.report.models["a"].tier is ModelTier.DISK
        assert away.report.loads[ModelTier.DISK](0) > 0
        assert ([held.name for held in away.contexts or ()], front.there) == (["x"], set())
        await agent.close()


async def until(true: Callable[[], bool]) -> None:
    async with timeout(SOON):
        while not true():
            await asyncio.sleep(0.01)
