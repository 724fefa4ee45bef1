"""Frames that come byte by byte."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llmaas.api.connection import Connection
from llmaas.api.wire import encode
from tests.support.loop import on_a_loop
from tests.support.scripted import peer, serving


@on_a_loop
async def test_a_frame_that_drips_takes_few_turns_of_the_loop_and_is_read_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(path):
        client = await peer(path)
        received: list[int] = []
        take_in = Connection.buffer_updated
        monkeypatch.setattr(Connection, "buffer_updated", lambda c, n: (received.append(n), take_in(c, n)))
        for byte in encode({"id": 1, "op": "ping", "x": "y" * 40}):
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0.002)
        assert (await client.frame() or {}).get("type") == "failed"
        assert len(received) <= 12
        assert (await client.ask(2, "ping"))["type"] == "done"
        await client.close()
