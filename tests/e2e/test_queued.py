"""How many go before a call that waits: told to those who ask, over the socket, over HTTP and by ``llmaas chat``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmaas.calls import Piece, Queued
from llmaas.cli.answer import without_progress
from llmaas.engine.fake import FakeEngine
from tests.support.http_edge import CHAT, events, http_edge
from tests.support.loop import on_a_loop

TURNS: dict[str, Any] = {"max_running": 1, "quantum": 1000}


def slow_engine(n_cells: int, n_seqs: int, end_rate: float) -> FakeEngine:
    """One whose answers others wait for."""
    return FakeEngine(n_cells, n_seqs, end_rate=end_rate, step_time=lambda n: 0.005)


@on_a_loop
async def test_who_waits_is_told_over_the_socket_and_over_http(tmp_path: Path) -> None:
    async with http_edge(tmp_path, engine=slow_engine, **TURNS) as edge, edge.daemon.connect("app") as client:
        for name in "abc":
            await client.create(name=name)
        runs = client.generate("a", prompt="a", max_tokens=400)
        waits = client.generate("b", prompt="b", max_tokens=2, progress=True)
        silent = client.generate("c", prompt="c", max_tokens=2)
        async with edge.http() as http:
            asked = {**CHAT, "stream": True, "llmaas": {"progress": True}}
            chunks = events((await http.post("/v1/chat/completions", json=asked)).text)
        told = [chunk["llmaas"]["queued"] for chunk in chunks[:-1] if "queued" in chunk.get("llmaas", {})]
        assert told and told[0]["ahead"] == 2 and "expected_s" in told[0]
        pieces = [piece async for piece in waits]
        assert pieces[0].queued == Queued(0, None) and pieces[-1].of_answer
        assert [piece.queued async for piece in silent if piece.queued] == []
        await runs.done()


def test_chat_shows_in_a_line_that_goes_what_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    queued = [Queued(2, None), Queued(1, 2.5), Queued(0, 0.4)]
    answer = Piece("Hi", (1,))
    assert list(without_progress([*(Piece("", (), queued=each) for each in queued), answer])) == [answer]
    shown = capsys.readouterr().err.split("\r\x1b[K")
    assert shown == [
        "",
        "waiting: 2 others go before",
        "waiting: 1 other goes before, about 3 s more",
        "waiting: next in line, about 1 s more",
        "",
    ]
