"""Where a call is placed: the best of all candidates, compared with a search that leaves nothing out."""

from __future__ import annotations

import doctest
import itertools
import pickle
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import pytest

from llmaas.policies import context_marks, node_report, placement
from llmaas.policies.context_marks import MOST_MARKS, ContextMarks, chain_marks, kept_marks
from llmaas.policies.linear_cost import LinearCost
from llmaas.policies.node_report import (
    MOST_CHAIN,
    MOST_NAMES,
    CallToPlace,
    ModelHere,
    ModelTier,
    MovableCall,
    NodeReport,
    TransferCost,
)
from llmaas.policies.placement import LOAD_SHARE, Nowhere, PlacedCall, place
from llmaas.records import CHUNK_TOKENS, ChunkKey

T, V = TypeVar("T"), TypeVar("V")
GB = 10**9
SMALL, LARGE = "small", "large"
SIZES = {SMALL: GB, LARGE: 4 * GB}
FAST_LINK = TransferCost(1e-3, 1e-8)
LOADS = {ModelTier.MEMORY: TransferCost(0.1, 1e-10), ModelTier.DISK: TransferCost(0.2, 1e-9)}
CHAIN = tuple(range(1, 47))
"""Of 46 chunks: 2,944 tokens."""


def node(name: str, **changes: object) -> NodeReport:
    """A node with the small model loaded and the large one on disk."""
    models = {SMALL: ModelHere(ModelTier.LOADED, 200.0), LARGE: ModelHere(ModelTier.DISK, 50.0)}
    report = NodeReport(name, models, LOADS, TransferCost(1e-3, 1e-9), free_bytes=8 * GB, total_bytes=8 * GB)
    return replace(report, **changes)  # type: ignore[arg-type]


def linked(*nodes: NodeReport, cost: TransferCost = FAST_LINK) -> list[NodeReport]:
    """All of them, each with a link to each other."""
    return [replace(n, links={m.name: cost for m in nodes if m is not n}) for n in nodes]


def call(model: str = SMALL, **changes: object) -> CallToPlace:
    return replace(CallToPlace(model, SIZES[model], 100, token_bytes=6301.0), **changes)  # type: ignore[arg-type]


def conversation(owner: str, **changes: object) -> CallToPlace:
    return call(tokens=2990, chain=CHAIN, owner=owner, **changes)


def placed(found: PlacedCall | Nowhere) -> PlacedCall:
    assert isinstance(found, PlacedCall)
    return found


# -- what falls out of the sum


def test_a_call_goes_where_its_model_is_loaded() -> None:
    cold = node("a", models={SMALL: ModelHere(ModelTier.DISK, 200.0)})
    found = placed(place(call(), linked(cold, node("b"))))
    assert (found.node, found.tier, found.load_s, found.move) == ("b", ModelTier.LOADED, 0.0, None)


def test_it_goes_where_its_share_of_loading_is_shorter_than_the_queue() -> None:
    """Loading takes 1.2 s; half of that is for later calls."""
    cold = node("a", models={SMALL: ModelHere(ModelTier.DISK, 200.0)})
    found = placed(place(call(), linked(cold, node("b", queue_s=0.7))))
    assert found.node == "a" and found.load_s == pytest.approx(1.2)
    assert found.start_s == pytest.approx(1.7) and found.cost_s == pytest.approx(1.1)
    assert placed(place(call(), linked(cold, node("b", queue_s=0.5)))).node == "b"
    all_of_it = [placed(place(call(), linked(cold, node("b", queue_s=q)), load_share=1.0)).node for q in (1.1, 1.3)]
    assert all_of_it == ["b", "a"]


@pytest.mark.parametrize("owner", ["a", "b", "c"])
def test_a_conversation_stays_where_its_context_is(owner: str) -> None:
    """Session affinity is no rule: reading a context here takes less than bringing it or computing it elsewhere."""
    nodes = [
        replace(n, contexts=ContextMarks.of([CHAIN])) if n.name == owner else n
        for n in linked(node("a"), node("b"), node("c"))
    ]
    found = placed(place(conversation(owner), nodes))
    assert (found.node, found.context.read, found.context.brought) == (owner, 46 * CHUNK_TOKENS, 0)
    assert found.context.recomputed == 2990 - 46 * CHUNK_TOKENS


def test_a_conversation_leaves_its_node_when_the_queue_there_is_longer_than_the_way() -> None:
    here = node("b", contexts=ContextMarks.of([CHAIN]), queue_s=0.1)
    assert placed(place(conversation("b"), linked(node("a"), here))).node == "b"
    found = placed(place(conversation("b"), linked(node("a"), replace(here, queue_s=5.0))))
    assert (found.node, found.context.source, found.context.brought) == ("a", "b", 46 * CHUNK_TOKENS)


def test_what_a_slow_link_would_bring_is_computed() -> None:
    here = node("b", contexts=ContextMarks.of([CHAIN]), queue_s=500.0)
    found = placed(place(conversation("b"), linked(node("a"), here, cost=TransferCost(0.1, 1e-5))))
    assert (found.node, found.context.source, found.context.recomputed) == ("a", "", 2990)


def test_a_part_that_is_here_is_read_and_the_rest_brought() -> None:
    here, part = (
        node("b", contexts=ContextMarks.of([CHAIN]), queue_s=50.0),
        node("a", contexts=ContextMarks.of([CHAIN[:8]])),
    )
    context = placed(place(conversation("b"), linked(part, here))).context
    assert (context.read, context.brought, context.recomputed) == (8 * 64, 38 * 64, 2990 - 46 * 64)


def test_a_slow_disk_is_not_read() -> None:
    slow = node("a", contexts=ContextMarks.of([CHAIN]), read=TransferCost(1.0, 1e-3))
    context = placed(place(conversation("a"), [slow])).context
    assert (context.read, context.recomputed) == (0, 2990)


def test_a_model_that_a_node_has_never_run_is_as_fast_as_its_bytes_say() -> None:
    unknown = node("a", models={SMALL: ModelHere(ModelTier.LOADED)}, compute_rate=100.0 * GB)
    assert placed(place(call(), [unknown])).prefill_s == pytest.approx(1.0)


def test_a_model_that_is_being_loaded_and_a_disk_that_is_busy_are_waited_for() -> None:
    being = node("a", models={SMALL: ModelHere(ModelTier.LOADED, 200.0, ready_s=2.0)}, queue_s=0.5)
    assert placed(place(call(), [being])).wait_s == 2.0
    assert placed(place(call(), [replace(being, at=10.0)], now=11.5)).wait_s == 0.5
    busy = node("b", models={SMALL: ModelHere(ModelTier.DISK, 200.0)}, loading_s=1.0)
    found = placed(place(call(), [busy]))
    assert (found.wait_s, round(found.load_s, 3)) == (1.0, 1.2)
    assert placed(place(call(), linked(being, replace(busy, loading_s=1.5)))).node == "a"


# -- a call that is in the way (ServerlessLLM's case)


def in_the_way(**changes: object) -> list[NodeReport]:
    """The large model is in memory of ``a``, which serves the small one; ``b`` rests, and would read it from disk."""
    victim = MovableCall("v", SMALL, GB, 300, 300 * 6301, GB, wait_s=0.0, pause_s=0.1)
    warm = {SMALL: ModelHere(ModelTier.LOADED, 200.0), LARGE: ModelHere(ModelTier.MEMORY, 50.0)}
    a = node("a", models=warm, free_bytes=3 * GB, total_bytes=4 * GB, drain_s=60.0, queue_s=60.0, movable=(victim,))
    return linked(a, node("b", **changes))


def test_a_call_in_the_way_is_moved_and_the_other_one_served_in_its_place() -> None:
    found = placed(place(call(LARGE), in_the_way()))
    assert found.move is not None
    assert (found.node, found.move.call.name, found.move.to) == ("a", "v", "b")
    assert found.start_s == pytest.approx(found.move.seconds + 0.1 + 0.4 + 2.0)
    assert found.cost_s == pytest.approx(found.start_s - 0.25 + 0.1)


def test_nobody_is_moved_where_loading_elsewhere_is_as_soon() -> None:
    quick = {ModelTier.DISK: TransferCost(0.0, 1e-10)}
    found = placed(place(call(LARGE), in_the_way(loads=quick)))
    assert (found.node, found.move) == ("b", None)


def test_the_pause_of_the_call_that_is_moved_counts() -> None:
    a, b = in_the_way()
    pauses = replace(a, movable=(replace(a.movable[0], pause_s=30.0),))
    assert placed(place(call(LARGE), [pauses, b])).node == "b"


def test_a_call_is_not_moved_to_where_its_model_has_no_room() -> None:
    a, b = in_the_way(models={LARGE: ModelHere(ModelTier.DISK, 50.0), SMALL: ModelHere(ModelTier.DISK, 200.0)})
    full = replace(b, free_bytes=0, total_bytes=GB)
    assert placed(place(call(LARGE), [a, full])).move is None


# -- who cannot


def test_why_a_call_can_be_served_nowhere() -> None:
    assert place(call(), []) is Nowhere.NO_MODEL
    assert place(replace(call(), model="other"), [node("a")]) is Nowhere.NO_MODEL
    assert place(call(LARGE), [node("a", loads={})]) is Nowhere.NO_MODEL
    assert place(call(LARGE), [node("a", total_bytes=GB, free_bytes=0)]) is Nowhere.NO_ROOM
    assert place(conversation("gone"), linked(node("a"), node("b"))) is Nowhere.NO_TOKENS
    assert placed(place(replace(conversation("gone"), owner=""), [node("a")])).context.recomputed == 2990


def test_a_node_without_the_model_serves_it_if_it_can_fetch_it() -> None:
    away = node("a", models={LARGE: ModelHere(ModelTier.AWAY, 50.0)})
    assert place(call(LARGE), [away]) is Nowhere.NO_MODEL
    found = placed(place(call(LARGE), [replace(away, loads={ModelTier.AWAY: TransferCost(1.0, 1e-8)})]))
    assert (found.tier, found.load_s) == (ModelTier.AWAY, pytest.approx(41.0))


def test_over_a_dead_link_nothing_comes() -> None:
    alone = node("a")
    owner = node("b", contexts=ContextMarks.of([CHAIN]), queue_s=100.0)
    assert placed(place(conversation("b"), [alone, owner])).node == "b"
    assert placed(place(conversation("b"), [alone, replace(owner, links={"a": FAST_LINK})])).node == "a"


def test_a_model_without_room_now_waits_until_the_node_is_empty() -> None:
    busy = node("a", free_bytes=GB, queue_s=1.0, drain_s=20.0)
    assert placed(place(call(LARGE), [busy])).wait_s == 20.0
    assert placed(place(call(SMALL), [busy])).wait_s == 1.0


def test_equal_nodes_are_taken_by_name_in_whatever_order_they_come() -> None:
    nodes = linked(node("c"), node("a"), node("b"))
    for order in itertools.permutations(nodes):
        assert placed(place(call(), order)).node == "a"


# -- nothing is left out


def _brute(wanted: CallToPlace, nodes: list[NodeReport]) -> float | None:
    """The least cost over every node, every source, every way and every call that could be moved anywhere."""
    costs: list[float] = []
    for at in nodes:
        here = at.models.get(wanted.model)
        rate = 0.0 if here is None else here.prefill_rate or at.compute_rate / wanted.model_bytes
        if here is None or rate == 0.0 or (here.tier != ModelTier.LOADED and here.tier not in at.loads):
            continue
        loaded = here.tier == ModelTier.LOADED
        begins = here.ready_s if loaded else at.loading_s
        load = 0.0 if loaded else at.loads[here.tier].q + at.loads[here.tier].byte_s * wanted.model_bytes
        contexts = list(_context_seconds(wanted, at, nodes, rate))
        if not contexts:
            continue
        rest = load * LOAD_SHARE + min(contexts) + wanted.new_tokens / rate
        if loaded or wanted.model_bytes <= at.free_bytes:
            costs.append(max(at.queue_s, begins) + rest)
        elif wanted.model_bytes <= at.total_bytes:
            costs.append(max(at.drain_s, begins) + rest)
        for victim, to in itertools.product(at.movable, nodes):
            if to is at or not (loaded or wanted.model_bytes <= at.free_bytes + victim.frees_bytes):
                continue
            costs.extend(victim.pause_s + max(victim.wait_s, begins) + rest + s for s in _moves(victim, at, to))
    return min(costs, default=None)


def _context_seconds(wanted: CallToPlace, at: NodeReport, nodes: list[NodeReport], rate: float):  # type: ignore[no-untyped-def]
    tokens_s = 0.0
    if wanted.owner and wanted.owner != at.name:
        links = [n.links[at.name] for n in nodes if n.name == wanted.owner and at.name in n.links]
        if not links:
            return
        tokens_s = links[0].q + links[0].byte_s * 4 * wanted.tokens
    here = min(at.contexts.held(wanted.chain), wanted.tokens)
    fronts = [here / rate] + ([at.read.q + at.read.byte_s * here * wanted.token_bytes] if here else [])
    rests = [(wanted.tokens - here) / rate]
    for source in nodes:
        there = min(source.contexts.held(wanted.chain), wanted.tokens)
        if source is not at and at.name in source.links and there > here:
            link = source.links[at.name]
            brought = link.q + link.byte_s * (there - here) * wanted.token_bytes
            rests.append(brought + (wanted.tokens - there) / rate)
    for front, rest in itertools.product(fronts, rests):
        yield tokens_s + front + rest


def _moves(victim: MovableCall, at: NodeReport, to: NodeReport):  # type: ignore[no-untyped-def]
    there, link = to.models.get(victim.model), at.links.get(to.name)
    if there is None or link is None:
        return
    rate = there.prefill_rate or to.compute_rate / victim.model_bytes
    load, begins = 0.0, there.ready_s
    if there.tier != ModelTier.LOADED:
        begins = to.loading_s
        if there.tier not in to.loads:
            return
        load = to.loads[there.tier].q + to.loads[there.tier].byte_s * victim.model_bytes
        if to.free_bytes < victim.model_bytes:
            return
    if rate:
        tokens_s = link.q + link.byte_s * 4 * victim.tokens
        for way in (victim.tokens / rate, link.q + link.byte_s * victim.chunk_bytes):
            yield max(to.queue_s, begins) + load + tokens_s + way


NAMES = ("a", "b", "c", "d")


class Drawn:
    """A cluster and a call, drawn so that each kind of candidate is the best in some."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        names = self.r.sample(NAMES, self.r.choice([1, 2, 3, 4, 4, 4]))
        self.nodes = [self.node(name) for name in names]
        n = self.r.choice([0, 500, 3000, 3000])
        chain = self.r.choice([CHAIN, CHAIN[:20], ()])
        owner = self.r.choice(["", "", "", *names, "gone"])
        self.call = call(self.r.choice([SMALL, LARGE]), new_tokens=100, tokens=n, chain=chain, owner=owner)

    def one_of(self, *choices: float) -> float:
        return self.r.choice(choices)

    def transfer(self) -> TransferCost:
        return TransferCost(self.one_of(0.0, 0.1, 1.0, 7.0), self.one_of(0.0, 1e-10, 1e-9, 1e-7, 1e-5))

    def room(self) -> int:
        return self.r.choice([0, GB, 4 * GB, 4 * GB])

    def most(self, names: Sequence[T], value: Callable[[], V]) -> dict[T, V]:
        return {name: value() for name in names if self.r.random() < 0.9}

    def victim(self) -> MovableCall:
        model, tokens = self.r.choice([SMALL, LARGE]), self.r.choice([0, 300, 3000])
        frees, chunk_bytes = self.room(), self.r.choice([0, 10**6, 10**8])
        wait_s, pause_s = self.one_of(0.0, 0.0, 1.0), self.one_of(0.0, 0.1, 7.0)
        return MovableCall(self.r.choice("vw"), model, SIZES[model], tokens, chunk_bytes, frees, wait_s, pause_s)

    def node(self, name: str) -> NodeReport:
        tiers = (ModelTier.MEMORY, ModelTier.DISK, ModelTier.AWAY)
        return NodeReport(
            name,
            self.most(
                (SMALL, LARGE),
                lambda: ModelHere(self.r.choice([*ModelTier]), self.one_of(0.0, 20.0, 200.0), self.one_of(0.0, 4.0)),
            ),
            self.most(tiers, self.transfer),
            self.transfer(),
            self.one_of(0.0, 3.0, 30.0, 300.0),
            self.one_of(0.0, 30.0, 300.0),
            self.one_of(0.0, 0.0, 9.0),
            self.room(),
            self.room(),
            self.one_of(0.0, 100.0 * GB),
            ContextMarks.of([CHAIN[: self.r.choice([0, 8, 20, 46])]]),
            self.most(NAMES, self.transfer),
            tuple(self.victim() for _ in range(self.r.choice([0, 1, 2]))),
        )


def test_no_candidate_is_better_than_the_one_that_is_taken() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(3000):
        drawn = Drawn(seed)
        found, best = place(drawn.call, drawn.nodes), _brute(drawn.call, drawn.nodes)
        assert place(drawn.call, drawn.nodes[::-1]) == found, seed
        if isinstance(found, Nowhere):
            assert best is None, seed
            kinds[found.name] += 1
            continue
        context, move = found.context, found.move
        assert found.cost_s == pytest.approx(best), seed
        assert context.read + context.brought + context.recomputed == drawn.call.tokens
        kinds["moves" if move else "loads" if found.tier else "serves"] += 1
        kinds.update(name for name in ("read", "brought", "recomputed") if getattr(context, name))
        kinds["moves and brings"] += bool(move and context.source)
    assert len(kinds) == 10
    assert min(kinds.values()) >= 10, kinds


# -- values


def test_marks_find_a_context_that_has_grown_and_one_that_parts_early() -> None:
    marks = ContextMarks.of([CHAIN])
    assert marks.held((*CHAIN, 1001, 1002)) == 46 * CHUNK_TOKENS
    assert marks.held(CHAIN[:45]) == 40 * CHUNK_TOKENS
    assert marks.held((*CHAIN[:3], 1001)) == 2 * CHUNK_TOKENS
    assert marks.held((1001, 1002)) == 0
    assert len(marks.marks) == len(set(kept_marks(CHAIN))) == 3 + 5 + 1


def test_marks_go_over_the_wire_in_eight_bytes_each() -> None:
    keys = [ChunkKey(bytes([i]) * 16) for i in range(50)]
    marks = ContextMarks.of([chain_marks(keys)])
    packed = marks.to_bytes()
    assert len(packed) == 8 * len(marks.marks)
    assert ContextMarks.from_bytes(packed) == marks
    with pytest.raises(ValueError, match="marks"):
        ContextMarks.from_bytes(packed[:-1])


def test_marks_are_bounded() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 8 * (MOST_MARKS + 1)

    with pytest.raises(ValueError, match="at most"):
        ContextMarks.from_bytes(Huge())


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(bad: float) -> None:
    for make in (
        lambda: node("a", queue_s=bad),
        lambda: node("a", drain_s=bad),
        lambda: node("a", compute_rate=bad),
        lambda: TransferCost(bad, 0.0),
        lambda: TransferCost(0.0, bad),
        lambda: ModelHere(ModelTier.LOADED, bad),
        lambda: call(token_bytes=bad),
        lambda: MovableCall("v", SMALL, GB, 1, 1, 1, wait_s=bad),
    ):
        with pytest.raises(ValueError, match="field"):
            make()


def test_reports_and_calls_are_bounded() -> None:
    many = {str(i): FAST_LINK for i in range(MOST_NAMES + 1)}
    with pytest.raises(ValueError, match="'links'"):
        node("a", links=many)
    with pytest.raises(ValueError, match="'chain'"):
        call(chain=tuple(range(MOST_CHAIN + 1)))


def test_reports_travel() -> None:
    report = linked(node("a", contexts=ContextMarks.of([CHAIN])), node("b"))[0]
    assert pickle.loads(pickle.dumps(report)) == report


def test_what_a_link_has_been_seen_to_take_is_what_a_report_says() -> None:
    cost = LinearCost(1e-3, 1e-8)
    cost.observe(1.0, 10**8, 3.0)
    assert TransferCost.learnt(cost)(10**8) == pytest.approx(3.0, rel=0.01)


def test_examples() -> None:
    for module in (context_marks, node_report, placement):
        assert doctest.testmod(module).failed == 0
