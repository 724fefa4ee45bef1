"""The two proofs that keep planner, service and replay one thing (design: one decision loop, two worlds)."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest

from llmaas.calls import CallSpec, Done, Generation, Terms, Turn
from llmaas.errors import BadRequest, Expired
from llmaas.planner.actions import Action
from llmaas.planner.events import Event
from llmaas.planner.planner import Planner
from llmaas.policies.duty import ThermalReading
from llmaas.records import AppId, Message
from llmaas.replay.simulator import Replay
from llmaas.service.recorder import read
from llmaas.service.service import Service
from llmaas.traces.call import TraceCall
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, house


@pytest.mark.parametrize("recurrent", [False, True])
@on_a_loop
async def test_a_recorded_run_fed_to_a_fresh_planner_gives_the_same_actions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recurrent: bool
) -> None:
    live: list[tuple[Event, list[Action]]] = []
    handle = Planner.handle

    def spy(self: Planner, event: Event, now: float) -> list[Action]:
        actions = handle(self, event, now)
        live.append((event, list(actions)))
        return actions

    async def run() -> None:
        rng = random.Random(5)
        async with house(
            tmp_path / "s",
            engine={"n_cells": 700, "end_rate": 0.02, "recurrent": recurrent},
            pool_bytes=90_000,
            record=tmp_path / "log",
            max_running=2,
            quantum=3,
        ) as h:
            for i in range(5):
                await h.service.create(APP, name=f"c{i}", system="system")
            for _ in range(14):
                jobs: list[Any] = []
                for i in rng.sample(range(5), 3):
                    n = rng.choice([0, 5, 20])
                    text = "word " * rng.randrange(1, 8)
                    jobs.append(h.call(f"c{i}", Turn((Message("user", text),)), Generation(n) if n else None))
                await asyncio.gather(*jobs)
            await h.service.truncate(APP, "c1", n_tokens=50, n_messages=None)
            await h.service.fork(APP, "c2", name="f")
            await h.service.delete(APP, "c3")
            h.service.budget(pool_bytes=30_000)
            await contend(h.service, rng)

    with monkeypatch.context() as m:
        m.setattr(Planner, "handle", spy)
        await run()
    settings, events = read(tmp_path / "log")
    planner = Planner(settings)
    replayed = [(event, planner.handle(event, now)) for event, now in events]
    assert len(replayed) > 200
    assert replayed == live
    assert planner.tally.pauses > 10


async def contend(service: Service, rng: random.Random) -> None:
    """Everything that the scheduler decides on: places, priorities, deadlines, limits, a duty."""
    service.limit(APP, 3000.0)
    replies: list[asyncio.Future[Done]] = []
    for i in range(24):
        terms = Terms(rng.randrange(10), rng.choice([None, None, 0.004]), rng.choice([None, 500.0]))
        turn = Turn((Message("user", "word " * rng.randrange(1, 8)),))
        request, reply = service.submit(
            APP, f"c{i % 3}", CallSpec(turn, Generation(20, on_full="shift"), terms), lambda piece: None
        )
        replies.append(reply)
        if i % 5 == 0:
            service.prioritize(request, rng.randrange(10))
        if i == 12:
            service.on_thermal_reading(ThermalReading(temperature=99.0, limit=90.0))
        await asyncio.sleep(0.002)
    done = await asyncio.gather(*replies, return_exceptions=True)
    assert all(isinstance(one, (Done, Expired)) for one in done), done
    service.limit(APP, None)


def test_a_file_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"\xc1", b"\x01\x02", b"\x80"):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(BadRequest):
            read(tmp_path / "x")


@pytest.mark.parametrize("wear", ["sparing", "eager"])
@pytest.mark.parametrize("pool_bytes", [80_000, 150_000, 1_000_000])
@on_a_loop
async def test_replay_and_service_count_the_same_hits_misses_and_evictions(
    tmp_path: Path, pool_bytes: int, wear: str
) -> None:
    rng = random.Random(11)
    trace = [
        TraceCall(
            t=60.0 * i,
            app="mail",
            context=f"c{rng.randrange(6)}",
            prompt=rng.randrange(1, 90),
            generate=rng.randrange(0, 30),
        )
        for i in range(60)
    ]

    async def live() -> tuple[dict[str, int], list[tuple[int, int, int, int]], Any]:
        sources = []
        async with house(tmp_path, engine={"n_cells": 1000, "n_seqs": 4}, pool_bytes=pool_bytes, wear=wear) as h:
            app = AppId("0/mail")
            for call in trace:
                if not any(info.name == call.context for info in h.service.contexts(app)):
                    await h.service.create(app, name=call.context, system=None)
                    prompt = call.prompt - 1  # the first one gets a start token
                else:
                    prompt = call.prompt
                turn = Turn(prompt=call.context[-1] * prompt)  # other text per context: nothing is shared
                generation = Generation(call.generate) if call.generate else None
                _, done = await h.call(call.context, turn, generation, app)
                s = done.switch
                sources.append((s.cells, s.pool, s.disk, s.recomputed))
                await h.service.wait_idle()
            counts = h.service.stats()["counts"]
            assert isinstance(counts, dict)
            return counts, sources, h.service.planner_settings

    counts, sources, settings = await live()
    report = Replay(settings).run(trace)
    assert report.problems == ()
    assert [r.sources for r in report.calls] == sources
    replayed = dataclasses.asdict(report.tally)
    # A chunk that is just being written cannot leave, so which ones leave depends on how long writes take.
    assert abs(replayed.pop("chunks_evicted") - counts.pop("chunks_evicted")) <= 3
    assert replayed == counts
    assert counts["contexts_left_cells"] > 0
    if pool_bytes < 1_000_000:
        assert report.tally.chunks_evicted > 0


@on_a_loop
async def test_a_disk_that_cannot_hold_the_recording_ends_the_recording_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with house(tmp_path, record=Path("/dev/full")) as h:
        for name in "abcdefgh":
            await h.service.create(APP, name=name, system=None)
            for i in range(6):
                text, _ = await h.say(name, f"{i}" * 30, 20)
                assert len(text) == 20
    assert "the recording ends here" in caplog.text
