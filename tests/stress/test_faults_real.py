"""A real model over a disk that fails at random answers as it does over a disk that does not."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.thread import EngineThread
from llmaas.errors import MachineError
from llmaas.kvchunks.store.store import Store
from llmaas.records import Precision
from llmaas.service.service import Service
from tests.stress.faults import Dice, FaultyFiles, rot
from tests.support.service_house import APP, House, service_settings

NAMES, TURNS = "abc", 3
TOPICS = {"a": "the sea", "b": "a mountain railway", "c": "bread"}
POOL = 3 << 20
"""About two exact chunks of SmolLM2-135M: the other chunks must come from the disk."""


def talk(root: Path, model: Path, dice: Dice) -> tuple[list[str], dict[str, int]]:
    """Three conversations by turns, with cells for one of them; returns the answers and the planner's counters."""

    async def run() -> tuple[list[str], dict[str, int]]:
        thread = EngineThread(lambda: LlamaEngine(model, n_cells=512, n_seqs=4, n_threads=1))
        store = Store(root, files=FaultyFiles(dice))
        service = Service(thread, store, service_settings(pool_bytes=POOL, bits=Precision(16, 16)))
        said = []
        try:
            await service.start()
            h, rng = House(service, store, thread), random.Random(1)
            for name in NAMES:
                await service.create(APP, name=name, system=None)
            for turn in range(TURNS):
                for name in NAMES:
                    dice.on = True
                    said.append(await insist(h, name, f"Part {turn}. Tell me of {TOPICS[name]}. " * 6))
                    await asyncio.wait_for(service.wait_idle(), 60)
                    dice.on = False
                if dice.injected:
                    with suppress(FileNotFoundError):
                        rot(root / "payload", rng, dice.injected)
            counts = service.stats()["counts"]
            assert isinstance(counts, dict)
        finally:
            dice.on = False
            await service.stop()
            problems = service.check()
            await asyncio.to_thread(thread.close)
            problems += [p for p in store.check(repair=True).problems if "context" in p or "index" in p]
            store.close()
        assert problems == []
        return said, counts

    return asyncio.run(run())


async def insist(h: House, name: str, text: str) -> str:
    """The answer, after as many attempts as it takes."""
    while True:
        with suppress(MachineError):
            return (await h.say(name, text, 10))[0]


def test_a_real_model_says_the_same_over_a_disk_that_fails(tmp_path: Path, model_path: Path) -> None:
    calm, _ = talk(tmp_path / "calm", model_path, Dice(0, 0.0))
    dice = Dice(5, 0.06)
    said, counts = talk(tmp_path / "faulty", model_path, dice)
    print(dice.injected, counts)
    assert said == calm
    assert dice.injected.total() > 10
    assert counts["chunks_damaged"] + counts["writes_failed"] > 0
    assert counts["tokens_from_disk"] and counts["tokens_recomputed"]
