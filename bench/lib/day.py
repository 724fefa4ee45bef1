"""A day of short turns: eight apps, each with a context of its own, are talked to in a random order.

Law: deterministic by its seed but for the order in which threads get to the disk. Bytes are counted by the kernel.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.lib.cli import say
from bench.lib.priced import PricedEngine, PricedStore, SharedClock
from bench.lib.stats import sig
from llmaas.calls import CallSpec, Generation, Turn
from llmaas.engine.thread import EngineThread
from llmaas.planner.actions import SaveChunks
from llmaas.planner.events import ChunkOutcome, Lowered, Saved, Stored
from llmaas.planner.planner import Planner
from llmaas.planner.settings import PlannerChoices
from llmaas.records import CHUNK_TOKENS, AppId, Geometry
from llmaas.replay.prices import DEVICES, Costs
from llmaas.service.recorder import read
from llmaas.service.service import Service
from llmaas.service.settings import ServiceSettings

GEOMETRY = Geometry(n_layer=30, k_dim=192, v_dim=192, head_dim_k=64, head_dim_v=64)
"""SmolLM2-135M's."""
_EMMC = DEVICES["emmc"]
COSTS = Costs(disk_latency=_EMMC.latency, disk_read_byte=1 / _EMMC.read, disk_write_byte=1 / _EMMC.write)
"""SmolLM2-135M on two x86 cores, with an eMMC disk."""
APPS, TURNS = 8, 400
CELLS, POOL_BYTES = 2048, 32 << 20
_DAY_S = 86_400.0
_SYSTEM = (100, 200)
"""Tokens of an app's system prompt, at least and at most."""
_PROMPT, _ANSWER = (10, 28), (4, 16)
"""The same of what is said in a turn, the chat template's tokens included, and of what is answered."""


@dataclass(frozen=True, slots=True)
class Day:
    """Bytes written in a day, and how long switches took. ``first``: of full chunks, when they were coded first;
    ``again``: when they were coded again with fewer bits; ``last``: of the last chunks of contexts, which are not full.
    ``kept``: of chunks, at the end.
    """

    turns: int
    tokens: int
    first: int
    again: int
    last: int
    chunks: int
    index: int
    kept: int
    switch_ms_p50: float
    switch_ms_p99: float
    counts: dict[str, int]

    @property
    def written(self) -> int:
        return self.chunks + self.index

    def figures(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "written": self.written,
            "written_over_first": sig(self.written / self.first),
            "chunks_over_first": sig(self.chunks / self.first),
            "written_over_tokens": sig(self.written / self.tokens),
            "chunks_over_kept": sig(self.chunks / max(1, self.kept)),
        }


def live(folder: Path, seed: int, turns: int = TURNS, **choices: Any) -> Day:
    """Live through a day. ``choices`` are of PlannerChoices."""
    clock = SharedClock()
    thread = EngineThread(lambda: PricedEngine(clock, COSTS, CELLS, 32, geometry=GEOMETRY))
    try:
        return asyncio.run(_live(thread, clock, folder, random.Random(seed), turns, choices))
    finally:
        thread.close()


async def _live(
    thread: EngineThread, clock: SharedClock, folder: Path, rng: random.Random, turns: int, choices: dict[str, Any]
) -> Day:
    recording = folder / "recording"
    begun = _handed_to_files()
    store = PricedStore(folder / "store", clock, COSTS)
    settings = ServiceSettings(planner=PlannerChoices(**{"pool_bytes": POOL_BYTES, **choices}), record=recording)
    service = Service(thread, store, settings, clock)
    await service.start()
    tokens, switches = await _talk(service, clock, rng, turns)
    counts: Any = service.stats()["counts"]
    await service.stop()
    kept, payload = store.stats().live_bytes, store.files.written
    store.close()
    index = _handed_to_files() - begun - recording.stat().st_size - payload
    first, again, last = _coded(recording)
    p50, p99 = (sig(float(np.percentile(switches, p))) for p in (50, 99))
    return Day(turns, tokens, first, again, last, payload, index, kept, p50, p99, counts)


async def _talk(service: Service, clock: SharedClock, rng: random.Random, turns: int) -> tuple[int, list[float]]:
    """All turns of the day: how many tokens they had, and the milliseconds of their switches."""
    apps = [AppId(f"0/app {i}") for i in range(APPS)]
    for app in apps:
        await service.create(app, name="chat", system=_words(rng, _SYSTEM))
    tokens, switches = 0, []
    for turn in range(turns):
        app = rng.choice(apps)
        spec = CallSpec(Turn(prompt=_words(rng, _PROMPT)), Generation(max_tokens=rng.randint(*_ANSWER)))
        _, reply = service.submit(app, "chat", spec, lambda piece: None)
        done = await reply
        await service.wait_idle()
        tokens += done.n_prompt + done.n_generated
        switches.append(done.switch.switch_ms)
        clock.advance(rng.expovariate(turns / _DAY_S))
        if turn % 100 == 99:
            say(f"  turn {turn + 1}")
    return tokens, switches


def _words(rng: random.Random, span: tuple[int, int]) -> str:
    """Text of so many tokens: this engine has one for each byte."""
    return "".join(rng.choices("abcdefgh ", k=rng.randint(*span)))


def _handed_to_files() -> int:
    """Bytes that this process has handed to the kernel for files so far (proc(5), /proc/pid/io, wchar)."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text("ascii").splitlines())
    return int(fields["wchar"])


def _coded(recording: Path) -> tuple[int, int, int]:
    """Bytes of full chunks that were coded for the first time and again, and of last chunks, in a recorded run.

    A recording says how large each chunk became, and the planner, given the same events, which chunk it was.
    """
    settings, events = read(recording)
    planner, saves = Planner(settings), dict[int, SaveChunks]()
    first = again = last = 0
    for event, now in events:
        if isinstance(event, Lowered):
            again += sum(_nbytes(outcome) for outcome in event.outcomes)
        if isinstance(event, Saved):
            for target, outcome in zip(saves.pop(event.save).chunks, event.outcomes, strict=True):
                full = target.stop - target.start == CHUNK_TOKENS
                first, last = first + full * _nbytes(outcome), last + (not full) * _nbytes(outcome)
        saves.update((action.save, action) for action in planner.handle(event, now) if isinstance(action, SaveChunks))
    return first, again, last


def _nbytes(outcome: ChunkOutcome) -> int:
    return outcome.nbytes if isinstance(outcome, Stored) else 0
