"""The wall clock jumps by a year while the service works, as on a board without a clock of its own: nothing notices.

What lasts is measured by the monotonic clock: deadlines, ageing, rates, the wear budget, and times to live of contexts
that are in use.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llmaas.calls import Terms
from llmaas.clock import RealClock
from llmaas.records import Message
from tests.support.daemon import LONG, answer_to, ask, company, serving
from tests.support.loop import on_a_loop

YEAR = 365 * 86_400.0


class JumpingClock(RealClock):
    """The machine's clocks, with a wall clock that is off."""

    def __init__(self) -> None:
        self.off = 0.0

    def wall(self) -> float:
        return super().wall() + self.off


@pytest.mark.parametrize("jump", [YEAR, -YEAR, 60 * YEAR, -50 * YEAR])
@on_a_loop
async def test_a_jump_of_the_wall_clock_disturbs_nobody(tmp_path: Path, jump: float) -> None:
    clock = JumpingClock()
    settings = {"clock": clock, "app_rate": 500.0, "wear_budget": 10 << 20, "pool_bytes": 200_000}
    async with serving(tmp_path, **settings) as daemon, company(daemon), daemon.connect("a") as client:
        await client.create(name="mortal", ttl=3600.0)
        await client.create(name="x")
        assert await ask(client, "mortal", LONG) == answer_to(LONG)
        stream = client.generate("x", [Message("user", "hello")], max_tokens=200, terms=Terms(deadline_s=60.0))
        first = await stream.__anext__()
        clock.off = jump
        done = await stream.done()
        assert first and done.n_generated == 200, "its deadline was not passed"
        assert await ask(client, "mortal", "two") == answer_to(LONG, "two")
        await asyncio.sleep(0.05)
        assert {info.name for info in await client.contexts()} == {"mortal", "x"}
        async with daemon.connect("a", admin=True) as operator:
            spans = [span for call in await operator.requests(True) for span in call.spans]
            times = [ms for span in spans for ms in (span.start_ms, span.end_ms) if ms is not None]
            assert times and max(map(abs, times)) < 60_000
        clock.off = -jump
        assert await ask(client, "mortal", "three") == answer_to(LONG, "two", "three")
    async with serving(tmp_path, **settings) as daemon, daemon.connect("a") as client:
        clock.off = 0.0
        assert await ask(client, "mortal", "four") == answer_to(LONG, "two", "three", "four")
