"""A daemon on the fake engine in a process of its own, without llama.cpp, for tests that start it as ``llmaas serve``.

    python -m tests.support.fake_serve serve --socket PATH --data-dir FOLDER [--model FILE]

It takes the time of a small model, so that an answer can be cancelled while it streams. Its store is not encrypted. The
model may be any file; its size and the end of its SHA-256 are its name, so that a client sees what was read. It ends
with the process that started it, as what runs in a machine ends with the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import hashlib
import signal
from pathlib import Path

from llmaas.api.server import serve
from llmaas.engine.fake import FakeEngine
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.store.store import Store
from llmaas.planner.settings import PlannerChoices
from llmaas.service.service import Service
from llmaas.service.settings import ServiceSettings
from llmaas.slots.grants import SlotSettings

STEP_S = 0.02
_PR_SET_PDEATHSIG = 1


def name_of(model: Path | None) -> str:
    """What a client is told that it talks to."""
    if model is None:
        return "none"
    data = model.read_bytes()
    return f"{len(data)}-{hashlib.sha256(data).hexdigest()[-12:]}"


async def main(args: argparse.Namespace) -> None:
    name = name_of(args.model)
    store = Store(args.data_dir)
    thread = EngineThread(
        lambda: FakeEngine(
            1024, 8, name=name, fingerprint="fake", end_rate=args.end_rate, step_time=lambda n: args.step_s
        )
    )
    service = Service(thread, store, ServiceSettings(planner=PlannerChoices(pool_bytes=1 << 20, prefill_slice=64)))
    await service.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    slots = SlotSettings(args.slots, folder=args.slot_folder)
    server = await serve(service, args.socket, slots=slots)
    await stop.wait()
    await server.close()
    await service.stop()
    thread.close()
    store.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--slots", type=int, default=0)
    parser.add_argument("--slot-folder", type=Path)
    parser.add_argument("--step-s", type=float, default=STEP_S)
    parser.add_argument("--end-rate", type=float, default=0.02)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    asyncio.run(main(parser.parse_args()))
