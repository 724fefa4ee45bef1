"""A front process's part on this event loop, with processes of models on the fake engine behind it."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from llmaas.api.async_client import AsyncClient
from llmaas.cli.serve_several import stored_bytes
from llmaas.front.front import Front
from llmaas.front.model import FrontModel
from llmaas.front.process import ProcessState

SOON = 20.0
NBYTES = 100


class FrontHouse:
    def __init__(self, front: Front, socket: Path) -> None:
        self.front, self.socket = front, socket

    async def connect(self, model: str | None = None, app: str = "test", **options: Any) -> AsyncClient:
        return await AsyncClient.connect(self.socket, app=app, model=model, **options)

    @property
    def there(self) -> set[str]:
        """The models that are in memory."""
        return {name for name, process in self.front.processes.items() if process.state is ProcessState.READY}

    async def until_there(self, *names: str) -> None:
        """Return when these models, and no others, are ready."""
        async with timeout(SOON):
            while self.there != set(names) or any(
                process.state is not ProcessState.AWAY and name not in names
                for name, process in self.front.processes.items()
            ):
                await asyncio.sleep(0.01)


@asynccontextmanager
async def timeout(seconds: float) -> AsyncIterator[None]:
    """``asyncio.timeout``, which Python 3.10 lacks."""
    task = asyncio.current_task()
    assert task is not None
    handle = asyncio.get_running_loop().call_later(seconds, task.cancel, "too late")
    try:
        yield
    finally:
        handle.cancel()


async def put_away(house: FrontHouse, name: str) -> None:
    async with timeout(SOON):
        while name in house.there:
            house.front.processes[name].retire()  # it stays while a connection is not known to be at rest
            await asyncio.sleep(0.2)


@asynccontextmanager
async def front_house(
    root: Path,
    names: str = "ab",
    *,
    behaviour: Mapping[str, str] | None = None,
    nbytes: Mapping[str, int] | None = None,
    pinned: str = "",
    pool_most: int = 0,
    disk_most: int = 0,
    cells: int = 0,
    least_cells: int = 0,
    cell_bytes: int = 0,
    **options: Any,
) -> AsyncIterator[FrontHouse]:
    """``behaviour``: see ``fake_model_process``; ``options`` are those of Front."""
    command = (sys.executable, "-m", "tests.support.fake_model_process")
    models = [
        FrontModel(
            name,
            (f"{name}-file",),
            f"{name}.gguf",
            NBYTES,
            (*command, str(root / name), name, (behaviour or {}).get(name, ""), "--from-front"),
            (nbytes or {}).get(name, NBYTES),
            name in pinned,
            pool_most,
            disk_bytes=disk_most,
            shares_bits=True,
            cells=cells,
            least_cells=least_cells or cells,
            cell_bytes=cell_bytes,
            stored=functools.partial(stored_bytes, root / name),
        )
        for name in names
    ]
    for name in names:
        (root / name).mkdir(mode=0o700, exist_ok=True)
    front = Front(root / "d.sock", models, names[0], **{"budget": None, **options})
    front.start()
    try:
        yield FrontHouse(front, root / "d.sock")
    finally:
        await front.close()
