"""Large frames of which the rest is still to come, while other apps ask, too."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llmaas.api import round_robin
from tests.support.loop import on_a_loop
from tests.support.scripted import PATIENCE_S, collect, peer, serving, with_context

LARGE = "x" * 200_000


@on_a_loop
async def test_a_large_frame_that_is_on_its_way_is_none_that_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_robin, "SLICE_S", 1e-9)  # one frame in a turn
    monkeypatch.setattr(round_robin, "REST", 1e9)
    monkeypatch.setattr(round_robin, "MOST_REST_S", 10 * PATIENCE_S)
    async with serving(path):
        other, client = await peer(path, app="other"), await with_context(path)
        assert (await other.ask(1, "ping"))["type"] == "done"
        client.send(*({"id": i, "op": "append", "context": "inbox", "prompt": LARGE} for i in range(10)))
        frames = await asyncio.wait_for(collect(client, 10), PATIENCE_S)
        assert [frame["type"] for frame in frames if frame["type"] != "piece"] == ["done"] * 10
        for each in (other, client):
            await each.close()
