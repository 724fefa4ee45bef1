"""A node in a process of its own, to be killed: a whole daemon on the fake engine, which listens for other nodes.

As a program: ``python node_under_test.py ROOT PORT [asks|answers OP before|after]``. It prints "ready" when it serves,
on ROOT/d.sock. It kills itself with SIGKILL when it asks another node for OP, or answers it, before or after that.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from llmaas.api.wire import Frame
from llmaas.nodes.link import NodeClient
from llmaas.nodes.session import ArrivalSession
from tests.support.node_house import Send, node_daemon


def die_at(who: str, op: str, when: str) -> None:
    """Let this process die there."""
    if who == "asks":
        post, reply, posted = NodeClient.post, NodeClient.reply, defaultdict[int, list[str]](list)

        async def deadly_post(self: NodeClient, asked: str, **fields: Any) -> None:
            _die(asked == op and when == "before")
            posted[id(self)].append(asked)
            await post(self, asked, **fields)

        async def deadly_reply(self: NodeClient, *seconds: float) -> Frame:
            found = await reply(self, *seconds)
            asked = posted[id(self)]  # tokens of an answer come without having been asked for each
            _die(bool(asked) and asked.pop(0) == op and when == "after")
            return found

        NodeClient.post, NodeClient.reply = deadly_post, deadly_reply  # type: ignore[method-assign]
    else:
        answer = ArrivalSession.answer

        async def deadly_answer(self: ArrivalSession, request: Frame, send: Send) -> Frame:
            _die(request["op"] == op and when == "before")
            reply = await answer(self, request, send)
            _die(request["op"] == op and when == "after")
            return reply

        ArrivalSession.answer = deadly_answer  # type: ignore[method-assign]


def _die(now: bool) -> None:
    if now:
        os.kill(os.getpid(), signal.SIGKILL)


async def serve_until_told(root: Path, port: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with node_daemon(root, port):
        print("ready", flush=True)
        await stop.wait()


if __name__ == "__main__":
    if len(sys.argv) > 3:
        die_at(*sys.argv[3:])
    asyncio.run(serve_until_told(Path(sys.argv[1]), int(sys.argv[2])))
