"""What a chunk is worth: time saved against bytes, by learned costs; and who is written last under a budget."""

from __future__ import annotations

from llmaas.kvchunks.ledger import Ledger
from llmaas.planner.actions import RunStep, StepItem
from llmaas.planner.chunk_worth import ChunkWorth
from llmaas.planner.cost_model import SwitchCosts
from llmaas.policies.wear import Eager, Sparing, WearPolicy
from llmaas.records import NO_QUOTA, ChunkKey, ContextId, RequestId

NBYTES = 400_000
CALLS = {ContextId("often"): 50, ContextId("once"): 1}
KEYS = {name: ChunkKey(name.encode().ljust(16)) for name in ("plain", "often", "shared", "far", "orphan")}
USERS = {
    KEYS["plain"]: (ContextId("once"), 0),
    KEYS["often"]: (ContextId("often"), 0),
    KEYS["shared"]: (ContextId("often"), 0),
    KEYS["far"]: (ContextId("once"), 1000),
    KEYS["orphan"]: (ContextId("closed"), 0),
}


def worth(wear: WearPolicy, costs: SwitchCosts | None = None, *, always_read: bool = False) -> ChunkWorth:
    ledger = Ledger(1 << 30)
    for name, key in KEYS.items():
        for _ in range(6 if name == "shared" else 1):
            ledger.ref(key)
        ledger.begin_pool(key, NBYTES)
        ledger.arrive_pool(key, NBYTES)
    calls = lambda context: CALLS.get(context, 0)  # noqa: E731
    return ChunkWorth(ledger, costs or SwitchCosts(), wear, USERS, calls, always_read=always_read)


def computing_takes(seconds_of_a_token: float) -> SwitchCosts:
    costs = SwitchCosts()
    step = RunStep(1, (StepItem(RequestId(1), ContextId("x"), 0, 0, 256, False),))
    for _ in range(5):
        costs.observe_step(step, 1, 256 * seconds_of_a_token)
    return costs


def test_what_is_computed_faster_than_read_is_not_worth_its_bytes() -> None:
    wear = Sparing(NO_QUOTA, NO_QUOTA)
    slow, fast = computing_takes(5e-3), computing_takes(1e-5)
    assert all(worth(wear, slow).is_worth(key) for key in KEYS.values())
    assert not worth(wear, fast).is_worth(KEYS["plain"])
    assert worth(wear, fast, always_read=True).is_worth(KEYS["plain"])
    assert worth(Eager(0, 0), fast).is_worth(KEYS["plain"])


def test_as_a_budget_goes_what_saves_most_time_is_written_last() -> None:
    wear = Sparing(1_000_000, NO_QUOTA)
    wear.advance(0.0)
    given_up: list[str] = []
    found = worth(wear)
    for _ in range(1000):
        given_up += [name for name, key in KEYS.items() if name not in given_up and not found.is_worth(key)]
        wear.wrote(1000)
    assert given_up == ["plain", "orphan", "often", "shared", "far"], "the last one looks back at 64,000 tokens"
    assert not worth(wear, always_read=True).is_worth(KEYS["far"]), "not even where everything is read"
