"""The HTTP server before a daemon on the fake engine, on one event loop, and clients of both of its sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmaas.engine.fake import FakeEngine
from llmaas.http.access import Access
from llmaas.http.edge import OPEN
from llmaas.http.server import serve_http
from llmaas.socket_place import http_socket
from tests.support.daemon import SOON, Daemon, active, serving


@dataclass
class HttpEdge:
    """A server for HTTP, its daemon, and how to stop it."""

    daemon: Daemon
    address: str
    """HOST:PORT."""
    stop: asyncio.Event
    ended: asyncio.Task[None]

    @property
    def unix(self) -> Path:
        return http_socket(self.daemon.socket)

    @asynccontextmanager
    async def openai(self, **options: Any) -> AsyncIterator[Any]:
        """OpenAI's own client; the test is skipped where that is not installed."""
        async with pytest.importorskip("openai").AsyncOpenAI(
            base_url=f"http://{self.address}/v1", api_key="none", max_retries=0, **options
        ) as client:
            yield client

    @asynccontextmanager
    async def http(
        self, *, unix: bool = False, app: str = "", token: str | None = None
    ) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.AsyncHTTPTransport(uds=str(self.unix)) if unix else None
        headers = {"x-llmaas-app": app} if app else {}
        headers |= {} if token is None else {"authorization": f"Bearer {token}"}
        base = "http://localhost" if unix else f"http://{self.address}"
        async with httpx.AsyncClient(transport=transport, base_url=base, headers=headers, timeout=SOON) as client:
            yield client

    async def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection over TCP, to send what no client would send."""
        host, _, port = self.address.rpartition(":")
        return await asyncio.open_connection(host, int(port))


@asynccontextmanager
async def http_edge(
    root: Path, *, grace_s: float = 5.0, access: Access = OPEN, host: str = "127.0.0.1", **options: Any
) -> AsyncIterator[HttpEdge]:
    """``options`` are those of ``serving``."""
    async with serving(root, **options) as daemon:
        stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()
        ended = asyncio.ensure_future(
            serve_http(
                daemon.socket,
                stop,
                address=f"{host}:0",
                access=access,
                grace_s=grace_s,
                on_ready=address.set_result,
            )
        )
        await asyncio.wait((address, ended), return_when=asyncio.FIRST_COMPLETED, timeout=SOON)
        try:
            yield HttpEdge(daemon, address.result(), stop, ended)
        finally:
            stop.set()
            await asyncio.wait_for(ended, SOON)


class SlowEngine(FakeEngine):
    """Takes 20 ms for each step."""

    def __init__(self, n_cells: int, n_seqs: int, end_rate: float) -> None:
        super().__init__(n_cells, n_seqs, end_rate=end_rate, step_time=lambda n: 0.02)


def running(edge: HttpEdge) -> int:
    """Calls that wait or run."""
    return active(edge.daemon.service.stats())


async def until(true: Callable[[], bool]) -> None:
    """Return when ``true()``; it must be soon."""
    late = asyncio.get_running_loop().time() + SOON
    while not true():
        assert asyncio.get_running_loop().time() < late
        await asyncio.sleep(0.005)


def events(text: str) -> list[Any]:
    """The data of server-sent events, read as JSON where they are JSON; comments are left out."""
    found = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [each if each == "[DONE]" else json.loads(each) for each in found]


CHAT = {"model": "default", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
"""A request that is fine."""
