"""The process of one of several models, on the fake engine: what ``llmaas serve`` is for the front process.

python -m tests.support.fake_model_process ROOT NAME BEHAVIOUR [--cells-now=N] --from-front DESCRIPTOR
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from llmaas.api.server import serve_handed
from llmaas.cli.model_process import FrontLink, tell_end, tell_failure
from llmaas.engine.fake import FakeEngine
from llmaas.engine.thread import EngineThread
from llmaas.errors import ModelUnreadable
from llmaas.kvchunks.store.store import Store
from llmaas.policies.model_cells import cells_needed
from llmaas.service.service import Service
from tests.support.service_house import service_settings

CELLS = 1024


async def main(root: Path, name: str, behaviour: str, cells: int, fd: int) -> None:
    if behaviour == "unreadable":
        tell_failure(fd, ModelUnreadable(f"the file of {name} is cut"))
        sys.exit(1)
    if behaviour == "dies" or (behaviour == "dies-once" and not (root / "died").exists()):
        (root / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "late":
        await asyncio.sleep(1.5)
    store = Store(root)
    slow = 0.02 if behaviour == "slow" else 0.0
    longest = max((summary.row.n_tokens for summary in store.summaries()), default=0)
    cells = max(cells, cells_needed(longest, CELLS))
    thread = EngineThread(lambda: FakeEngine(cells, 8, name=name, fingerprint=name, step_time=lambda n: slow))
    settings = service_settings(served_as=name, pool_bytes=1 << 20, prefill_slice=64)
    service = Service(thread, store, settings)
    await service.start()
    server, stop = serve_handed(service), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    last_words = os.dup(fd)
    link = FrontLink(fd, server, service, stop.set, cells)
    await stop.wait()
    await link.close()
    await server.close()
    await service.stop()
    thread.close()
    store.close()
    tell_end(last_words)
    if behaviour == "ends-late":
        await asyncio.sleep(3)


if __name__ == "__main__":
    given = [int(each.partition("=")[2]) for each in sys.argv if each.startswith("--cells-now=")]
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], given[0] if given else CELLS, int(sys.argv[-1])))
