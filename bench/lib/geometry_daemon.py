"""A daemon whose engine is fake, but with KV of a real model's size.

``python -m bench.lib.geometry_daemon SOCKET STORE CELLS`` serves until SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

from bench.lib.clients import serving
from llmaas.api.server import serve
from llmaas.cli.runtime import bound_malloc
from llmaas.engine.fake import FakeEngine
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.store.store import MasterKey, Store
from llmaas.planner.settings import bit_settings
from llmaas.records import Geometry, Precision

SMOLLM2 = Geometry(n_layer=30, k_dim=192, v_dim=192, head_dim_k=64, head_dim_v=64)
MASTER = MasterKey(bytes(32))


async def run(socket: Path, root: Path, n_cells: int) -> None:
    bound_malloc()  # as a daemon does
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    thread = EngineThread(lambda: FakeEngine(n_cells, geometry=SMOLLM2))
    try:
        with Store(root, master=MASTER) as store:
            # Everything is written at once: this engine computes so fast that no chunk would be worth it.
            choices: dict[str, Any] = {"pool_bytes": 64 << 20, "wear": "eager", **bit_settings(Precision(4, 4))}
            async with serving(thread, store, **choices) as service:
                server = await serve(service, socket)
                await stop.wait()
                await server.close()
    finally:
        thread.close()


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
