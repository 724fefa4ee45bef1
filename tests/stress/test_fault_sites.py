"""One fault at each place where the service can have one, in a run for each place.

Nothing is lost, and every call works when it is repeated.

The places are counted in a run without faults: every system call and every statement of the store that changes
something. By default there is a run for every twenty-third place; with the marker ``slow`` for each.
"""

from __future__ import annotations

import asyncio
import errno
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmaas.engine.fake import FakeEngine
from llmaas.engine.thread import EngineThread
from llmaas.errors import DiskFull, MachineError, StoreFailed
from llmaas.kvchunks.store.store import Store
from llmaas.records import Geometry, Precision
from llmaas.service.service import Service
from tests.support.service_house import APP, House, service_settings
from tests.support.troubled_files import Trouble, TroubledFiles

WIDE = Geometry(n_layer=4, k_dim=256, v_dim=256, head_dim_k=64, head_dim_v=64)
"""So wide that a few dead chunks are reason enough to rewrite a payload file."""
STRIDE = 23


async def life(h: House, told: Callable[[Awaitable[Any]], Awaitable[Any]]) -> list[object]:
    """Everything that a service does to its store, one thing after another; returns all replies."""
    said: list[object] = []

    async def do(what: Callable[[], Awaitable[Any]]) -> None:
        said.append(await told(what))
        await asyncio.wait_for(h.service.wait_idle(), 20)

    for name in "ab":
        await do(lambda name=name: create(h, name))
        await do(lambda name=name: answer(h, name, f"{name} " * 120))
    await do(lambda: answer(h, "a", "again"))
    await do(lambda: fork(h, "a", "c"))
    await do(lambda: answer(h, "b", "b is back"))
    await do(lambda: cut(h, "b", 70))  # most of its payload file is dead then: it is rewritten
    await do(lambda: answer(h, "c", "so is c"))
    await do(lambda: answer(h, "b", "and b"))
    await do(lambda: delete(h, "a"))
    await do(lambda: answer(h, "c", "still?"))
    return said


async def create(h: House, name: str) -> int:
    return (await h.service.create(APP, name=name, system="Be brief.")).n_tokens


async def answer(h: House, name: str, text: str) -> str:
    return (await h.say(name, text, 12))[0]


async def fork(h: House, name: str, to: str) -> int:
    return (await h.service.fork(APP, name, name=to)).n_tokens


async def cut(h: House, name: str, n: int) -> int:
    return (await h.service.truncate(APP, name, n_tokens=n, n_messages=None)).n_tokens


async def delete(h: House, name: str) -> None:
    await h.service.delete(APP, name)


class Once:
    """Runs a call. If it is refused by an error of this kind, it must have changed nothing, and is run again."""

    def __init__(self, h: House, wanted: type[MachineError]) -> None:
        self.h, self.wanted = h, wanted

    async def content(self) -> list[object]:
        shown = [await self.h.shown(info.id) for info in self.h.service.contexts(APP)]
        return sorted((d.info.name, d.info.n_tokens, d.messages, self.h.tokens(d.info.id)) for d in shown)

    async def __call__(self, what: Callable[[], Awaitable[Any]]) -> Any:
        before = await self.content()
        try:
            return await what()
        except MachineError as error:
            assert type(error) is self.wanted, error
            await self.h.service.wait_idle()
            assert await self.content() == before
            return await what()


def run(root: Path, trouble: Trouble, wanted: type[MachineError]) -> list[object]:
    async def whole() -> list[object]:
        thread = EngineThread(lambda: FakeEngine(700, 4, geometry=WIDE))
        store = opened(root, trouble)
        settings = service_settings(pool_bytes=2 << 20, bits=Precision(16, 16), split="load_first")
        service = Service(thread, store, settings)
        try:
            await service.start()
            h = House(service, store, thread)
            said = await life(h, Once(h, wanted))
            assert service.check() == []
            kept = await Once(h, wanted).content()
            stats = service.stats()["counts"]
            assert isinstance(stats, dict)
            assert trouble.fired or (stats["chunks_evicted"] and stats["tokens_from_disk"]), "nothing was swapped"
        finally:
            await service.stop()
            await asyncio.to_thread(thread.close)
            store.close()
        return [said, kept]

    return asyncio.run(whole())


def opened(root: Path, trouble: Trouble) -> Store:
    try:
        return Store(root, files=TroubledFiles(trouble), wal_limit=20_000)
    except MachineError:
        return Store(root, files=TroubledFiles(trouble), wal_limit=20_000)


def every_site(root: Path, code: int, stride: int) -> None:
    wanted = DiskFull if code == errno.ENOSPC else StoreFailed
    calm = Trouble(code, at=1 << 60)
    expected = run(root / "calm", calm, wanted)
    assert calm.sites > 100
    for n in range(1, calm.sites + 1, stride):
        trouble = Trouble(code, n)
        try:
            assert run(root / str(n), trouble, wanted) == expected
            with Store(root / str(n)) as store:
                assert store.check().problems == ()
        except BaseException:
            print(f"the fault was {errno.errorcode[code]} at site {n} of {calm.sites}")
            raise
        assert trouble.fired


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="llmaas-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_fault_at_any_of_the_services_writes_loses_nothing(code: int, memory: Path) -> None:
    every_site(memory, code, STRIDE)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_fault_at_each_of_the_services_writes_loses_nothing(code: int, memory: Path) -> None:
    every_site(memory, code, 1)
