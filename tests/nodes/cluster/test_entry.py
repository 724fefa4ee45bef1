"""The entry of a cluster: what one daemon does, several do, and a client notices no difference."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path

import pytest

from llmaas.api.async_client import AsyncClient
from llmaas.api.transfer_records import MovedContext
from llmaas.api.wire import MAX_FRAME, Decoder, encode
from llmaas.calls import Terms
from llmaas.engine.fake import FakeEngine
from llmaas.errors import (
    BadRequest,
    Cancelled,
    ContextExists,
    Forbidden,
    NodeUnreachable,
    UnknownContext,
    UnknownModel,
    UnknownNode,
    UnknownRequest,
)
from llmaas.nodes.cluster.agent import NodeAgent
from llmaas.nodes.cluster.controller import PlacementController
from llmaas.nodes.cluster.routing import Routing
from llmaas.nodes.cluster.states import ClusterRefusal, ContextMove, NodePlace, cluster_id
from llmaas.nodes.link import read_frame
from llmaas.records import Message
from tests.support.cluster_house import Cluster, cluster
from tests.support.daemon import answer_to, ask
from tests.support.loop import on_a_loop

WORDS = "the tide comes in and the tide goes out " * 4
HELLO = [Message("user", "hello")]


async def spread(house: Cluster, client: AsyncClient, *names: str) -> None:
    """Make contexts with these names, each at another node."""
    house.fleet.sent = [*house.houses][: len(names)]
    for name in names:
        await client.create(name=name)
    assert [await house.owners(name) for name in names] == [[node] for node in [*house.houses][: len(names)]]


@on_a_loop
async def test_a_context_is_made_answered_and_shown_wherever_it_is(tmp_path: Path) -> None:
    async with cluster(tmp_path) as house, house.client() as client:
        made = await client.create(name="x")
        assert made.id == cluster_id("mail", "x")
        assert await ask(client, "x") == answer_to("hello")
        assert await ask(client, made.id, "and?") == answer_to("hello", "and?")
        shown = await client.show("x")
        assert (shown.info.id, len(shown.messages)) == (made.id, 4)
        assert [info.id for info in await client.contexts()] == [made.id]
        assert len(await house.owners("x")) == 1
        await client.delete("x")
        assert await house.owners("x") == []
        with pytest.raises(UnknownContext, match="at any node"):
            await client.show("x")


@on_a_loop
async def test_a_call_that_is_placed_elsewhere_takes_its_context_along(tmp_path: Path) -> None:
    async with cluster(tmp_path) as house, house.client() as client:
        house.fleet.sent = ["attic", "attic", "cellar", "barn"]
        made = await client.create(name="x")
        for said in (["one"], ["one", "two"], ["one", "two", "three"]):
            stream = client.generate("x", [Message("user", said[-1])], max_tokens=8)
            done = await stream.done()
            assert (stream.text, done.context) == (answer_to(*said), made.id)
        there, on = ContextMove("mail", "x", "attic", "cellar"), ContextMove("mail", "x", "cellar", "barn")
        assert house.fleet.moves == [there, on]
        assert await house.owners("x") == ["barn"]
        assert (await client.show(made.id)).info.n_messages == 6


@on_a_loop
async def test_an_answer_goes_on_through_the_entry_while_its_context_moves(tmp_path: Path) -> None:
    async with cluster(tmp_path) as house, house.client() as client:
        house.fleet.sent = ["attic", "attic"]
        await client.create(name="x")
        stream = client.generate("x", [Message("user", WORDS)], max_tokens=300)
        pieces = stream.__aiter__()
        text = (await pieces.__anext__()).text
        async with house.client() as other:
            moved = await other.move("x", "barn")
        assert (moved.node, moved.name, moved.n_tokens > 0) == ("barn", "x", True)
        async for piece in pieces:
            text += piece.text
        assert text == answer_to(WORDS, n=300)
        assert await house.owners("x") == ["barn"]


@on_a_loop
async def test_a_client_moves_contexts_and_a_move_that_was_done_already_is_done(tmp_path: Path) -> None:
    async with cluster(tmp_path) as house, house.client() as client:
        await spread(house, client, "a", "b")
        await ask(client, "a", WORDS)
        with pytest.raises(ContextExists, match="at the node barn"):
            await client.move("a", "barn", name="b")
        with pytest.raises(UnknownNode):
            await client.move("a", "moon")
        with pytest.raises(UnknownContext):
            await client.move("nothing", "barn")
        assert (await client.move("a", "barn", name="c")).name == "c"
        assert (await house.owners("a"), await house.owners("c")) == ([], ["barn"])
        assert (await client.show("c")).info.n_messages == 2
        async with house.houses["attic"].daemon.connect("mail") as beside:
            await beside.create(name="d")
        await house.fleet.look()
        async with house.houses["attic"].daemon.connect("mail") as beside:
            await beside.move("d", "barn")  # an agent had begun it, and was lost
        said = await Routing(house.fleet).move(ContextMove("mail", "d", "attic", "barn"))
        assert isinstance(said, MovedContext) and (said.node, said.name) == ("barn", "d")
        said = await Routing(house.fleet).move(ContextMove("mail", "e", "attic", "barn"))
        assert isinstance(said, ClusterRefusal) and said.code == "unknown_context"


@on_a_loop
async def test_a_name_is_there_once_in_all_nodes(tmp_path: Path) -> None:
    async with cluster(tmp_path) as house, house.client() as client:
        await spread(house, client, "a", "b", "c")
        for name in ("a", "b", "c"):
            with pytest.raises(ContextExists, match="at the node"):
                await client.create(name=name)
            with pytest.raises(ContextExists):
                await client.fork("a", name=name)
            assert (await client.context(name)).id == cluster_id("mail", name)
        exported = await client.export_context("b")
        with pytest.raises(ContextExists):
            await client.import_context(exported)
        copy = await client.import_context(exported, name="d")
        assert copy.id == cluster_id("mail", "d")
        fork = await client.fork("c", name="e")
        assert (await house.owners("e"), fork.name) == (["cellar"], "e")


@on_a_loop
async def test_what_was_made_at_a_nodes_own_socket_is_found_at_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as house, house.client() as client:
        await client.ping()
        async with house.houses["cellar"].daemon.connect("mail") as beside:
            own = await beside.create(name="x")
        assert await ask(client, "x") == answer_to("hello")
        assert (await client.show(own.id)).info.name == "x"
        with pytest.raises(ContextExists):
            await client.create(name="x")


@on_a_loop
async def test_contexts_and_calls_of_all_nodes_come_in_pages(tmp_path: Path) -> None:
    async with cluster(tmp_path) as house, house.client() as client:
        house.fleet.sent = [*house.houses] * 7
        wanted = sorted(f"c{i:02}" for i in range(21))
        for name in wanted:
            await client.create(name=name)
        assert sorted(info.name for info in await client.contexts()) == wanted
        for node in house.houses:
            house.fleet.sent = [node]
            async with house.houses[node].daemon.connect("mail") as beside:
                await ask(client, (await beside.contexts())[0].name)
        calls = await client.requests()
        assert len({call.call for call in calls}) == len(calls) == 3
        assert {call.context for call in calls} <= {cluster_id("mail", name) for name in wanted}


@on_a_loop
async def test_a_page_of_a_node_that_has_gone_is_refused(tmp_path: Path) -> None:
    async with cluster(tmp_path) as house, house.client() as client:
        await client.ping()
        reader, writer = await asyncio.open_unix_connection(str(house.socket))
        writer.write(encode({"op": "hello", "version": 1, "app": "mail"}))
        assert (await read_frame(reader, MAX_FRAME))["app"] == f"{os.geteuid()}/mail"
        writer.write(encode({"id": 1, "op": "list", "after": "nowhere:3"}))
        refused = await read_frame(reader, MAX_FRAME)
        assert (refused["id"], refused["code"]) == (1, "bad_request")
        assert "nowhere" in refused["message"]
        writer.close()


@on_a_loop
async def test_a_call_is_cancelled_by_its_client_its_number_or_the_end_of_its_connection(tmp_path: Path) -> None:
    async with cluster(tmp_path) as house, house.client() as client:
        await client.create(name="x")
        slowly = Terms(rate=50.0)
        stream = client.generate("x", HELLO, max_tokens=900, terms=slowly)
        await stream.__aiter__().__anext__()
        await stream.prioritize(2)
        await stream.cancel()
        with pytest.raises(Cancelled) as caught:
            await stream.done()
        assert 0 < caught.value.n_generated < 900
        stream = client.generate("x", HELLO, max_tokens=900, terms=slowly)
        await stream.__aiter__().__anext__()
        running = next(call for call in await client.requests() if call.state == "running")
        await client.cancel_call(running.call)
        with pytest.raises(Cancelled):
            await stream.done()
        with pytest.raises(UnknownRequest):
            await client.cancel_call(running.call)
        with pytest.raises(UnknownRequest):
            await client.cancel_call(5 * 1024 + 999)
        async with house.client() as other:
            stream = other.generate("x", HELLO, max_tokens=900, terms=slowly)
            await stream.__aiter__().__anext__()
        for one in house.houses.values():
            await one.daemon.until_idle()


@on_a_loop
async def test_what_is_for_one_nodes_operator_is_refused_with_the_way_to_go(tmp_path: Path) -> None:
    async with cluster(tmp_path) as house, house.client(admin=True) as client:
        with pytest.raises(Forbidden, match="operator of one node") as caught:
            await client.limit(None, 5.0)
        assert "--socket" in caught.value.hint
        with pytest.raises(Forbidden):
            await client.contexts(everyone=True)
        with pytest.raises(BadRequest, match="no slots"):
            await AsyncClient.connect(house.socket, app="mail", transport="slots")
        stats = await client.stats()
        assert sorted(stats["nodes"]) == sorted(house.houses)


@on_a_loop
async def test_who_is_not_the_entrys_user_or_has_a_token_is_refused(tmp_path: Path) -> None:
    async with cluster(tmp_path) as house:
        with pytest.raises(Forbidden, match="without tokens"):
            async with house.client(token="llmaas_" + "a" * 64):
                pass
        with pytest.raises(Forbidden, match="user who runs"):
            async with house.client(admin=True, on_behalf_of=os.geteuid() + 12345):
                pass
        async with house.client(admin=True, on_behalf_of=os.geteuid()) as client:
            await client.create(name="x")
        with pytest.raises(UnknownModel, match="there are: fake"):
            async with house.client(model="another"):
                pass
        async with house.client(model="fake") as client:
            assert await ask(client, "x") == answer_to("hello")


@on_a_loop
async def test_a_conversation_without_a_context_goes_on_at_its_node(tmp_path: Path) -> None:
    async with cluster(tmp_path) as house, house.client() as client:
        house.fleet.sent = ["cellar"]
        found = await client.resolve(HELLO)
        assert await house.owners(found.context.name) == ["cellar"]
        answer = await ask(client, found.context.id)
        more = [*HELLO, Message("assistant", answer), Message("user", "and?")]
        again = await client.resolve(more)
        assert (again.context.id, again.n_messages) == (found.context.id, 2)
        assert await ask(client, again.context.id, "and?") == answer_to("hello", "and?")
        with pytest.raises(BadRequest, match="own"):
            await client.move(again.context.id, "barn")


@on_a_loop
async def test_a_context_of_a_node_that_is_away_is_not_said_to_be_unknown_nor_made_twice(tmp_path: Path) -> None:
    async with cluster(tmp_path) as house, house.client() as client:
        await spread(house, client, "a", "b")
        await house.fleet.look()
        house.fleet.agents["attic"] = away = NodeAgent(NodePlace("attic", str(tmp_path / "nothing.sock")))
        house.fleet.deaf.add("attic")
        await house.fleet.look()
        for do in (ask(client, "a"), client.show("a"), client.create(name="a"), client.delete("a")):
            with pytest.raises(NodeUnreachable, match="attic") as caught:
                await do
            assert "cluster status" in caught.value.hint
        with pytest.raises(NodeUnreachable, match="attic may have it"):
            await client.show("unheard of")
        assert await ask(client, "b") == answer_to("hello")
        await client.create(name="new")
        assert await house.owners("new") in (["barn"], ["cellar"])
        house.fleet.deaf.clear()
        await house.fleet.look()
        state = next(node for node in await house.fleet.nodes() if node.place.name == "attic")
        assert not state.serving and "nothing.sock" in state.why
        await away.close()


@on_a_loop
async def test_a_controller_that_is_begun_anew_knows_what_the_nodes_know(tmp_path: Path) -> None:
    async with cluster(tmp_path) as house, house.client() as client:
        await spread(house, client, "a", "b", "c")
        await house.fleet.controller.close()
        house.fleet.controller = PlacementController(house.fleet)
        for name in ("a", "b", "c"):
            assert await ask(client, name) == answer_to("hello")
        assert house.fleet.moves == []
        await house.fleet.look()
        found = [await house.fleet.locate("mail", name) for name in ("a", "b", "c")]
        assert [[each.node for each in at] for at in found] == [[node] for node in house.houses]


@on_a_loop
async def test_two_contexts_of_one_name_are_told(tmp_path: Path) -> None:
    async with cluster(tmp_path) as house, house.client() as client:
        for node in ("attic", "barn"):
            async with house.houses[node].daemon.connect("mail") as beside:
                await beside.create(name="x")
        await client.ping()
        await house.fleet.look()
        assert await house.fleet.controller.twice() == [("mail", "x", ("attic", "barn"))]


@on_a_loop
async def test_what_is_no_frame_too_large_or_too_much_ends_its_own_connection_at_most(tmp_path: Path) -> None:
    async with cluster(tmp_path) as house, house.client() as bystander:
        hello = encode({"op": "hello", "version": 1, "app": "mail"})
        bad = {
            "malformed_frame": hello + b"\0\0\0\1\xff",
            "frame_too_large": hello + b"\xff\xff\xff\xff",
            "bad_request": encode({"op": "generate", "id": 1}),
            "version_mismatch": encode({"op": "hello", "version": 99, "app": "mail"}),
        }
        for code, data in bad.items():
            reader, writer = await asyncio.open_unix_connection(str(house.socket))
            writer.write(data)
            told = [Decoder().feed(await reader.read())][0]
            assert (told[-1]["type"], told[-1]["id"], told[-1]["code"]) == ("failed", None, code)
            writer.close()
        reader, writer = await asyncio.open_unix_connection(str(house.socket))
        writer.write(hello)
        await read_frame(reader, MAX_FRAME)
        for number, frame in (
            (7, {"op": "sing"}),
            (8, {"op": "show"}),
            (9, {"op": "show", "context": "x", "loud": True}),
        ):
            writer.write(encode({"id": number, **frame}))
            refused = await read_frame(reader, MAX_FRAME)
            assert (refused["id"], refused["code"]) == (number, "bad_request")
        writer.write(encode({"op": "ping"}))
        assert (await read_frame(reader, MAX_FRAME))["id"] is None
        await bystander.create(name="x")
        slow = {"op": "generate", "context": "x", "prompt": "hello", "max_tokens": 900, "rate": 20.0}
        writer.write(encode({"id": 1, **slow}) + encode({"id": 1, "op": "ping"}))
        frames = [await read_frame(reader, MAX_FRAME)]
        while frames[-1]["type"] == "piece":
            frames.append(await read_frame(reader, MAX_FRAME))
        assert (frames[-1]["id"], frames[-1]["code"]) == (None, "bad_request"), "the id is in use"
        writer.close()
        assert await ask(bystander, "x", "and?")


@on_a_loop
async def test_what_begins_as_a_conversation_of_a_node_goes_there_also_by_an_entry_that_never_saw_it(
    tmp_path: Path,
) -> None:
    slow = partial(FakeEngine, step_time=lambda n_tokens: n_tokens * 5e-4)  # so that it matters who computes
    async with cluster(tmp_path, engine=slow) as house:
        system = Message("system", WORDS * 4)
        async with house.houses["cellar"].daemon.connect("mail") as beside:
            resolved = await beside.resolve([system, *HELLO])
            await beside.generate(resolved.context.id, [system, *HELLO], max_tokens=8).done()
        await house.houses["cellar"].daemon.until_idle()
        await house.fleet.look()
        assert {node.place.name for node in await house.fleet.nodes() if node.n_marks} == {"cellar"}
        asked = [system, Message("user", "something else")]
        for app, n_held in (("mail", 1), ("notes", 0)):
            async with house.client(app) as client:
                found = await client.resolve(asked)
                assert found.n_messages == n_held, "cellar knows the app's conversation, and no other node does"
                await client.generate(found.context.id, asked[n_held:], max_tokens=2).done()
                assert app != "mail" or await anonymous_at(house, "cellar", app) == 2
        async with house.client() as client:
            await client.create(name="x", system=WORDS * 4)
            assert await house.owners("x") == ["cellar"]


async def anonymous_at(house: Cluster, node: str, app: str) -> int:
    async with house.houses[node].daemon.connect(app) as client:
        return sum(info.anonymous for info in await client.contexts())


@on_a_loop
async def test_a_call_is_placed_also_where_nobody_reads_its_text(tmp_path: Path) -> None:
    async with cluster(tmp_path) as house, house.client() as client:
        with pytest.raises(BadRequest):
            await client.marks_of([Message("user", "x")], [b"short"])
        assert (await client.marks_of([Message("user", WORDS)], [bytes(16)])).n_tokens > 64
        with pytest.raises(Forbidden):
            await client.list_marks()
        resolved = await client.resolve([Message("user", WORDS * 400)])  # more than any context holds
        assert resolved.n_messages == 0
