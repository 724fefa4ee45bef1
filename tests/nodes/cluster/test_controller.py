"""Where calls go, by what nodes tell: with agents that tell what a test says, on a clock that it moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from llmaas.nodes.cluster.controller import OLD_S, PlacementController
from llmaas.nodes.cluster.mark_book import MarkChange
from llmaas.nodes.cluster.states import (
    CallPlacement,
    ClusterRefusal,
    ContextMove,
    HeldContext,
    Kin,
    NodePlace,
    NodeState,
    PlaceAsked,
    PrefixChain,
    cluster_id,
)
from llmaas.policies.context_marks import kept_marks, packed
from llmaas.policies.node_report import ModelHere, ModelTier, MovableCall, NodeReport, TransferCost
from llmaas.records import ContextId
from tests.support.loop import on_a_loop

ID = ContextId("0123456789abcdef")
FAST, SLOW = TransferCost(1e-3, 1e-9), TransferCost(60.0, 1e-3)


def state(
    name: str,
    *contexts: HeldContext,
    queue_s: float = 0.0,
    rate: float = 100.0,
    link: TransferCost = FAST,
    **more: object,
) -> NodeState:
    report = NodeReport(
        name,
        models={"m": ModelHere(ModelTier.LOADED, rate)},
        loads={},
        read=FAST,
        queue_s=queue_s,
        drain_s=queue_s,
        links={other: link for other in ("attic", "barn") if other != name},
    )
    made = NodeState(
        NodePlace(name, f"/{name}.sock"), "run", 1, serving=True, model="m", report=report, token_bytes=100.0,
        contexts=contexts, n_contexts=len(contexts),
    )  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]


def held(name: str = "x", n_tokens: int = 3000, *, anonymous: bool = False) -> HeldContext:
    return HeldContext("mail", name, ID, anonymous, n_tokens, n_held=n_tokens)


@dataclass
class Told:
    """Agents, and a clock."""

    states: dict[str, NodeState] = field(default_factory=dict)
    time: float = 100.0
    known: dict[str, int] = field(default_factory=dict)
    """The number of the marks that the controller knows of each node."""

    def say(self, *states: NodeState) -> None:
        self.states |= {each.name: each for each in states}

    async def names(self) -> Sequence[str]:
        return list(self.states)

    async def state(self, node: str, run: str, serial: int, marks: int, fresh: bool) -> NodeState | None:
        found = self.states[node]
        self.known[node] = marks
        return None if found.run == "dead" else found

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time


def asked(word: str = "x", n_new: int = 10, **more: object) -> PlaceAsked:
    return replace(PlaceAsked("mail", word, n_new), **more)  # type: ignore[arg-type]


async def where(told: Told, controller: PlacementController, call: PlaceAsked) -> CallPlacement:
    await controller.look()
    answer = await controller.where(call)
    assert isinstance(answer, CallPlacement), answer
    return answer


async def refused(controller: PlacementController, call: PlaceAsked) -> ClusterRefusal:
    answer = await controller.where(call)
    assert isinstance(answer, ClusterRefusal), answer
    return answer


@on_a_loop
async def test_a_call_goes_where_its_context_is_by_any_of_its_names() -> None:
    told = Told()
    told.say(state("attic"), state("barn", held()))
    controller = PlacementController(told, told)
    for word in ("x", ID, cluster_id("mail", "x")):
        placed = await where(told, controller, asked(word))
        assert (placed.node, placed.moves) == ("barn", ())
    assert (await refused(controller, asked("y"))).code == "node_unreachable"
    await controller.close()


@on_a_loop
async def test_a_context_moves_when_its_node_is_busy_and_the_way_is_short_and_stays_when_it_is_long() -> None:
    told = Told()
    told.say(state("attic"), state("barn", held(), queue_s=30.0))
    controller = PlacementController(told, told)
    placed = await where(told, controller, asked())
    assert (placed.node, placed.moves) == ("attic", (ContextMove("mail", "x", "barn", "attic"),))
    # What was said holds before nodes have told of it: the next call goes there, and moves nothing.
    placed = await where(told, controller, asked())
    assert (placed.node, placed.moves) == ("attic", ())
    told.time += 60.0
    told.say(state("attic"), state("barn", held(), queue_s=30.0, link=SLOW))
    placed = await where(told, controller, asked())
    assert (placed.node, placed.moves) == ("barn", ())
    await controller.close()


@on_a_loop
async def test_a_context_does_not_move_for_little() -> None:
    told = Told()
    controller = PlacementController(told, told)
    for queue_s, node in ((0.2, "barn"), (0.6, "attic")):
        told.say(state("attic"), state("barn", held(), queue_s=queue_s))
        assert (await where(told, controller, asked())).node == node
    await controller.close()


@on_a_loop
async def test_an_anonymous_context_and_one_that_cannot_reach_another_node_stay() -> None:
    told = Told()
    controller = PlacementController(told, told)
    for more in (
        state("barn", held("~1", anonymous=True), queue_s=30.0),
        state("barn", held(), queue_s=30.0, peers=()),
        state("barn", held(), queue_s=30.0, barred=("attic",)),
    ):
        told.say(state("attic"), more)
        assert more.contexts is not None
        placed = await where(told, controller, asked(more.contexts[0].public_id))
        assert (placed.node, placed.moves) == ("barn", ())
    await controller.close()


@on_a_loop
async def test_an_answer_makes_room_where_that_is_soonest() -> None:
    told = Told()
    busy = state("barn", held(), queue_s=30.0, link=TransferCost(1e-3, 1e-5))
    assert busy.report is not None
    victim = MovableCall("mail/other", "m", 0, tokens=10, chunk_bytes=100, frees_bytes=0, wait_s=0.0)
    told.say(state("attic"), replace(busy, report=replace(busy.report, movable=(victim,))))
    controller = PlacementController(told, told)
    placed = await where(told, controller, asked())
    assert (placed.node, placed.moves) == ("barn", (ContextMove("mail", "other", "barn", "attic"),))
    await controller.close()


@on_a_loop
async def test_new_contexts_go_to_nodes_that_have_time_and_spread_while_none_reports() -> None:
    told = Told()
    told.say(state("attic", queue_s=5.0), state("barn"))
    controller = PlacementController(told, told)
    assert (await where(told, controller, asked("", 1000))).node == "barn"
    answers = [await controller.where(asked("", 1000, name=f"c{i}")) for i in range(4)]
    assert {each.node for each in answers if isinstance(each, CallPlacement)} == {"attic", "barn"}
    first = answers[0]
    assert isinstance(first, CallPlacement)
    assert [each.node for each in await controller.locate("mail", "c0")] == [first.node]
    assert (await where(told, controller, asked("", 3000, near="attic", n_near=2900))).node == "attic"
    await controller.close()


@on_a_loop
async def test_new_contexts_go_to_the_node_with_least_to_do_and_to_keep_where_all_begin_as_soon() -> None:
    told = Told()
    controller = PlacementController(told, told)
    for attic, barn, node in (
        (state("attic", held()), state("barn"), "barn"),
        (state("attic"), state("barn", held()), "attic"),
        (state("attic", n_active=2), state("barn", held()), "barn"),
        (state("attic", n_active=2), state("barn", held(), queue_s=5.0), "attic"),
    ):
        told.say(attic, barn)
        await controller.look()
        told.time += 1.0  # reports are some seconds old
        answer = await controller.where(asked("", 10))
        assert isinstance(answer, CallPlacement) and answer.node == node
        told.time += 60.0
    await controller.close()


@on_a_loop
async def test_a_node_whose_speed_was_not_seen_yet_is_taken_for_one_of_the_others() -> None:
    told = Told()
    controller = PlacementController(told, told)
    told.say(state("attic", held(), rate=2000.0), state("barn", rate=0.0))
    assert (await where(told, controller, asked("", 1000))).node == "barn", "it has nothing to keep"
    told.time += 60.0
    told.say(state("attic", rate=0.0), state("barn", held(), rate=0.0))
    placed = await where(told, controller, asked("", 1000))
    assert placed.node == "attic" and 5.0 < placed.start_s < 15.0, "a small board's, where nothing was seen"
    await controller.close()


@on_a_loop
async def test_a_node_that_is_silent_keeps_its_contexts_and_gets_no_calls() -> None:
    told = Told()
    told.say(state("attic"), state("barn", held()))
    controller = PlacementController(told, told)
    await where(told, controller, asked())
    told.say(state("barn", run="dead"))
    await controller.look()
    why = await refused(controller, asked())
    assert (why.code, "barn has the context 'x'" in why.message) == ("node_unreachable", True)
    assert why.error().retryable
    assert (await where(told, controller, asked("", 1))).node == "attic"
    told.time += OLD_S + 1
    told.say(state("attic", run="dead"))
    await controller.look()
    assert (await refused(controller, asked("", 1))).code == "busy"
    del told.states["barn"]
    await controller.look()
    assert [node.place.name for node in await controller.nodes()] == ["attic"]
    assert await controller.locate("mail", "x") == []
    await controller.close()


@on_a_loop
async def test_the_model_that_is_named_is_the_one_that_serves() -> None:
    told = Told()
    other = state("attic", model="other.gguf")
    assert other.report is not None
    models = {"other.gguf": ModelHere(ModelTier.MEMORY, 50.0)}
    loads = {ModelTier.MEMORY: TransferCost(1.0, 0.0)}
    told.say(replace(other, report=replace(other.report, models=models, loads=loads)), state("barn"))
    controller = PlacementController(told, told)
    placed = await where(told, controller, asked("", 10, model="other"))
    assert placed.node == "attic" and placed.start_s >= 1.0, "it has left memory, and is read again"
    assert (await where(told, controller, asked("", 10, model="m"))).node == "barn"
    why = await refused(controller, asked("", 10, model="third"))
    assert (why.code, "m, other.gguf" in why.message) == ("unknown_model", True)
    await controller.close()


CHAIN = tuple(range(1, 41))
KIN, OTHERS = Kin("1000", "f"), Kin("1001", "f")


def chain(kin: Kin, marks: Sequence[int] = CHAIN) -> PrefixChain:
    return PrefixChain(kin, packed(marks))


def marked(name: str, kin: Kin, change: MarkChange | None, **more: object) -> NodeState:
    return state(name, user=kin.user, fingerprint=kin.fingerprint, marks=change, **more)


def whole(*marks: int, serial: int = 1) -> MarkChange:
    return MarkChange(serial, None, packed(marks))


@on_a_loop
async def test_a_call_goes_where_the_beginning_of_its_text_is_held_until_another_is_sooner() -> None:
    told = Told()
    controller = PlacementController(told, told)
    call = asked("", 2600, chains=(chain(KIN),))
    told.say(marked("attic", KIN, None), marked("barn", KIN, whole(*kept_marks(CHAIN))))
    assert (await where(told, controller, call)).node == "barn", "of 2,600 tokens 40 must be computed there"
    assert told.known == {"attic": -1, "barn": 1}, "asked again by what is known"
    assert [(node.place.name, node.n_marks) for node in await controller.nodes()] == [("attic", 0), ("barn", 8)]
    told.say(marked("barn", KIN, None, queue_s=20.0))
    assert (await where(told, controller, call)).node == "barn" and told.known["barn"] == 1
    told.say(marked("attic", KIN, None), marked("barn", KIN, None, queue_s=40.0))
    assert (await where(told, controller, call)).node == "attic", "26 s of computing are less than the queue"
    await controller.close()


@on_a_loop
async def test_marks_that_have_gone_and_those_of_another_kin_are_not_counted() -> None:
    told = Told()
    controller = PlacementController(told, told)
    call = asked("", 2600, chains=(chain(KIN),))
    told.say(marked("attic", OTHERS, whole(*CHAIN)), marked("barn", KIN, whole(1, 2)))
    assert (await where(told, controller, call)).node == "barn", "marks of another user's keys mean nothing"
    told.time += 60.0
    both = replace(call, chains=(chain(KIN), chain(OTHERS)))
    assert (await where(told, controller, both)).node == "attic"
    told.time += 60.0
    told.say(marked("attic", OTHERS, MarkChange(2, 1, b"", packed(CHAIN))))
    assert (await where(told, controller, both)).node == "barn"
    told.time += 60.0
    told.say(marked("attic", KIN, MarkChange(9, 8, packed(CHAIN))))  # on what is not known here
    assert (await where(told, controller, call)).node == "barn"
    told.say(state("barn", run="dead"))
    await controller.look()
    told.say(marked("barn", KIN, None))
    assert [node.n_marks for node in await controller.nodes()] == [0, 0], "who is silent tells all again"
    await controller.close()


@on_a_loop
async def test_marks_that_are_none_are_not_believed_and_nothing_else_is_lost() -> None:
    told = Told()
    controller = PlacementController(told, told)
    told.say(marked("attic", KIN, MarkChange(1, None, b"12345")), marked("barn", KIN, whole(1, 2)))
    call = asked("", 2600, chains=(chain(KIN),))
    assert (await where(told, controller, call)).node == "barn"
    assert told.known["attic"] == -1
    assert (await refused(controller, asked("", 9, chains=(PrefixChain(KIN, b"123"),)))).code == "bad_request"
    for make in (lambda: MarkChange(1, None, bytes(8 << 17)), lambda: PrefixChain(KIN, bytes(8 << 17))):
        with pytest.raises(ValueError, match="bytes"):
            make()
    await controller.close()


@on_a_loop
async def test_a_model_that_is_being_loaded_is_waited_for_or_not_as_that_is_soonest() -> None:
    told = Told()
    controller = PlacementController(told, told)
    for ready_s, node in ((30.0, "barn"), (2.0, "attic")):
        loading = state("attic")
        assert loading.report is not None
        models = {"m": ModelHere(ModelTier.LOADED, 100.0, ready_s)}
        told.say(replace(loading, report=replace(loading.report, models=models)), state("barn", queue_s=10.0))
        assert (await where(told, controller, asked("", 10))).node == node
        told.time += 60.0
    assert [node.start_s for node in await controller.nodes()] == [2.0, 0.0]
    await controller.close()
