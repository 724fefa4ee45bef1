"""Clients of the HTTP server that cost little themselves: what is measured is the server."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from bench.lib.machine import ROOT

CHAT = "/v1/chat/completions"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextmanager
def http_server(daemon: Path) -> Iterator[tuple[int, int]]:
    """``llmaas http`` before the daemon at this socket, for the time of the block: its port and process id."""
    port = free_port()
    command = [sys.executable, "-m", "llmaas", "http", "--socket", str(daemon), "--http", f"127.0.0.1:{port}"]
    with subprocess.Popen([*command, "--log-level", "warning"], cwd=ROOT) as process:
        try:
            wait_for(port)
            yield port, process.pid
        finally:
            process.terminate()
            process.wait(30)


def wait_for(port: int) -> None:
    """Return when the server answers. Raises RuntimeError if it does not within a minute."""
    late = time.monotonic() + 60
    while time.monotonic() < late:
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise RuntimeError("the HTTP server did not start")


@dataclass
class Streamed:
    """An answer that came as events; ``arrivals`` are the times of its pieces, in seconds."""

    begin: float
    arrivals: list[float] = field(default_factory=list)
    text: str = ""
    usage: dict[str, Any] = field(default_factory=dict)


def stream_chat(connection: HTTPConnection, messages: list[dict[str, str]], n_new: int) -> Streamed:
    """One greedy answer. Raises RuntimeError if there is none."""
    body = {"model": "default", "messages": messages, "max_tokens": n_new, "temperature": 0, "stream": True}
    data = json.dumps({**body, "stream_options": {"include_usage": True}})
    found = Streamed(time.perf_counter())
    connection.request("POST", CHAT, data, {"content-type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(response.read().decode())
    while line := response.readline():
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        found.usage = event.get("usage") or found.usage
        text = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
        if text:
            found.arrivals.append(time.perf_counter())
            found.text += text
    return found


class RawHttp:
    """One connection that is kept, for requests that are answered whole."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> RawHttp:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def post(self, path: str, body: bytes) -> int:
        """The status."""
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
        await self._reader.readexactly(length)
        return int(lines[0].split()[1])
