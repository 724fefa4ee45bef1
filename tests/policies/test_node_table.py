"""What the placer knows of all nodes: marks of a million contexts in few bytes, and what it has placed itself."""

from __future__ import annotations

import doctest
import random
from dataclasses import replace

import pytest

from llmaas.policies import mark_index
from llmaas.policies.context_marks import ContextMarks, kept_marks
from llmaas.policies.mark_index import MarkIndex
from llmaas.policies.node_report import CallToPlace, ModelHere, ModelTier, MovableCall, NodeReport, TransferCost
from llmaas.policies.node_table import NodeTable
from llmaas.policies.placement import CallMove, ContextPlan, Nowhere, PlacedCall

GB = 10**9
LOADS = {ModelTier.DISK: TransferCost(0.2, 1e-9)}


def report(name: str, *, loaded: bool = True, links: tuple[str, ...] = ("a", "b", "c")) -> NodeReport:
    models = {"m": ModelHere(ModelTier.LOADED if loaded else ModelTier.DISK, 200.0)}
    others = {other: TransferCost(1e-3, 1e-8) for other in links if other != name}
    return NodeReport(name, models, LOADS, TransferCost(1e-3, 1e-9), free_bytes=GB, total_bytes=2 * GB, links=others)


CALL = CallToPlace("m", GB, 100)


def test_the_index_says_what_the_reports_would_say() -> None:
    """However contexts come and go: compared with each node's own set of marks."""
    r = random.Random(1)
    index, kept, now = MarkIndex(), {f"n{i}": {} for i in range(6)}, {f"n{i}": ContextMarks() for i in range(6)}
    chains: list[list[int]] = []
    for number in range(300):
        parent = r.choice(chains)[: r.randint(0, 40)] if chains else []
        chains.append(parent + [r.getrandbits(64) for _ in range(r.randint(1, 30))])
        name = r.choice(list(kept))
        if r.random() < 0.3 and kept[name]:
            del kept[name][r.choice(list(kept[name]))]
        elif r.random() < 0.03:
            kept[name].clear()
            index.forget(name)
            now[name] = ContextMarks()
        else:
            kept[name][number] = chains[-1]
        after = ContextMarks.of(kept[name].values())
        index.remove(name, now[name].marks - after.marks)
        index.add(name, after.marks - now[name].marks)
        now[name] = after
        asked = r.choice(chains)
        assert index.held(asked) == {name: n for name, marks in now.items() if (n := marks.held(asked))}
    assert len(index) == sum(len(marks.marks) for marks in now.values()) > 300
    assert index.nbytes == 10 * len(index)


def test_what_is_said_twice_counts_once() -> None:
    index = MarkIndex()
    index.add("a", [1, 2])
    index.add("a", [2, 3])
    assert len(index) == 3
    index.remove("a", [2, 2, 9])
    index.remove("stranger", [1])
    assert len(index) == 2
    index.forget("stranger")
    assert index.held([1]) == {"a": 64}


def test_the_number_of_a_node_that_is_gone_is_given_again() -> None:
    index = MarkIndex()
    index.add("a", [1])
    index.add("b", [1])
    index.forget("a")
    index.add("c", [1, 2])
    assert index.held([1, 2]) == {"b": 64, "c": 128}


def test_a_conversation_is_found_by_its_marks() -> None:
    table, chain = NodeTable(), tuple(range(1, 47))
    for name in "abc":
        table.report(report(name), 0.0)
    table.holds("b", kept_marks(chain))
    grown = replace(CALL, tokens=3000, chain=(*chain, 99), token_bytes=6301.0, owner="b")
    found = table.place(grown, 0.0)
    assert isinstance(found, PlacedCall)
    assert (found.node, found.context.read) == ("b", 46 * 64)
    table.forget("b")
    assert table.place(grown, 0.0) is Nowhere.NO_TOKENS
    assert [*table.nodes] == ["a", "c"]


def test_a_burst_between_two_reports_is_spread() -> None:
    table = NodeTable()
    for name in "abc":
        table.report(report(name, loaded=name == "a"), 0.0)
    nodes = []
    for _ in range(4):
        found = table.place(CALL, 0.0)
        assert isinstance(found, PlacedCall)
        nodes.append(found.node)
        table.placed(CALL, found, 0.0, answer_s=5.0)
    assert nodes == ["a", "b", "c", "a"]
    assert (table.nodes["b"].free_bytes, table.nodes["b"].models["m"].tier) == (0, ModelTier.LOADED)
    table.report(report("a"), 0.0)
    assert table.nodes["a"].queue_s == 0.0


def test_waits_become_shorter_between_two_reports() -> None:
    table = NodeTable()
    table.report(replace(report("a"), queue_s=10.0, drain_s=10.0), 100.0)
    for now, wait_s in ((100.0, 10.0), (104.0, 6.0), (120.0, 0.0)):
        found = table.place(CALL, now)
        assert isinstance(found, PlacedCall)
        assert found.wait_s == pytest.approx(wait_s)
    table.placed(CALL, found, 120.0, answer_s=1.0)
    again = table.place(CALL, 121.0)
    assert isinstance(again, PlacedCall)
    assert again.wait_s == pytest.approx(0.5)


def test_a_node_that_is_to_be_emptied_serves_nothing_new_and_still_gives_its_chunks() -> None:
    table, chain = NodeTable(), tuple(range(1, 47))
    for name in "ab":
        table.report(report(name), 0.0)
    table.holds("b", kept_marks(chain))
    call = replace(CALL, tokens=3000, chain=chain, token_bytes=6301.0, owner="b")
    found = table.place(call, 0.0, only={"a"})
    assert isinstance(found, PlacedCall)
    assert (found.node, found.context.source) == ("a", "b")
    assert table.place(call, 0.0, only=set()) is Nowhere.NO_MODEL


def test_a_call_that_is_moved_is_taken_to_be_where_it_goes() -> None:
    table, victim = NodeTable(), MovableCall("v", "m", GB, 300, 1000, GB, 0.0)
    table.report(replace(report("a"), movable=(victim,)), 0.0)
    table.report(report("b", loaded=False), 0.0)
    move = CallMove(victim, "b", 2.0)
    table.placed(CALL, PlacedCall("a", ModelTier.LOADED, 0.0, 0.0, ContextPlan(), 0.5, move), 0.0, answer_s=1.0)
    a, b = table.nodes["a"], table.nodes["b"]
    assert (a.movable, a.free_bytes, a.queue_s) == ((), 2 * GB, 3.5)
    assert (b.models["m"].tier, b.queue_s, b.free_bytes) == (ModelTier.LOADED, 2.0, 0)


def test_a_node_that_died_meanwhile_changes_nothing() -> None:
    table = NodeTable()
    table.placed(CALL, PlacedCall("a", ModelTier.LOADED, 0.0, 0.0, ContextPlan(), 0.5), 0.0)
    assert not len(table)


def test_a_cluster_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mark_index, "MOST_NODES", 2)
    index = MarkIndex()
    index.add("a", [1])
    index.add("b", [1])
    with pytest.raises(ValueError, match="more than 2 nodes"):
        index.add("c", [1])


def test_marks_of_a_node_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mark_index, "MOST_MARKS", 3)
    index = MarkIndex()
    index.add("a", [1, 2, 3, 3, 2])
    with pytest.raises(ValueError, match="node a: more than 3 marks"):
        index.add("a", [4])
    index.remove("a", [1, 1, 77])
    index.add("a", [4])
    index.add("b", [1, 2, 3])
    assert len(index) == 6
    index.forget("a")
    index.add("a", [1, 2, 3])


@pytest.mark.parametrize("mark", [-1, 1 << 64])
def test_what_is_no_mark_is_refused(mark: int) -> None:
    index = MarkIndex()
    with pytest.raises(ValueError, match="is no mark"):
        index.add("a", [5, mark])
    assert index.held([5]) == {"a": 64} and len(index) == 1


def test_examples() -> None:
    assert doctest.testmod(mark_index).failed == 0
