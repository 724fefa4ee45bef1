"""How far reading a prompt has come: told to those who ask, before the answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmaas.calls import Piece, Progress
from llmaas.cli.answer import without_progress
from llmaas.records import Message
from tests.support.daemon import serving
from tests.support.http_edge import CHAT, events, http_edge
from tests.support.loop import on_a_loop

LONG = [Message("user", "Read this. " * 250)]


@on_a_loop
async def test_reading_a_long_prompt_is_told_step_by_step(tmp_path: Path) -> None:
    async with serving(tmp_path, n_cells=8192) as daemon, daemon.connect("app") as client:
        context = await client.create(name="long")
        async with client.generate(context.id, LONG, max_tokens=5, progress=True) as stream:
            pieces = [piece async for piece in stream]
            done = await stream.done()
        told = [piece.progress for piece in pieces if piece.progress]
        assert len(told) > 2 and [piece.progress is not None for piece in pieces[: len(told)]] == [True] * len(told)
        assert all(not piece.text and not piece.tokens for piece in pieces if piece.progress)
        assert [each.done for each in told] == sorted({each.done for each in told})
        assert {each.total for each in told} == {done.n_tokens - done.n_kept} and told[-1].done < told[-1].total
        assert stream.text and "".join(piece.text for piece in pieces) == stream.text


@on_a_loop
async def test_nobody_is_told_who_has_not_asked(tmp_path: Path) -> None:
    async with serving(tmp_path, n_cells=8192) as daemon, daemon.connect("app") as client:
        await client.create(name="long")
        async with client.generate("long", LONG, max_tokens=5) as stream:
            assert [piece.progress async for piece in stream if piece.progress] == []
        async with client.generate("long", "short", max_tokens=5, progress=True) as stream:
            assert [piece.progress async for piece in stream if piece.progress] == [], "one step is enough"


@on_a_loop
async def test_progress_is_no_part_of_what_a_key_stands_for(tmp_path: Path) -> None:
    async with serving(tmp_path, n_cells=8192) as daemon, daemon.connect("app") as client:
        await client.create(name="long")
        texts = []
        for progress in (True, False):
            async with client.generate("long", LONG, max_tokens=5, idempotency_key="k", progress=progress) as stream:
                await stream.done()
                texts.append(stream.text)
        assert texts[0] == texts[1] and (await client.show("long")).info.n_messages == 2


@on_a_loop
async def test_a_stream_over_http_has_chunks_of_progress(tmp_path: Path) -> None:
    request = {**CHAT, "messages": [{"role": "user", "content": LONG[0].content}], "stream": True}
    async with http_edge(tmp_path, n_cells=8192) as edge, edge.http() as http:
        chunks = events((await http.post("/v1/chat/completions", json=request)).text)
        assert not any("progress" in str(chunk) for chunk in chunks)
        request["messages"][0]["content"] = "Other. " + LONG[0].content
        request["llmaas"] = {"progress": True}
        chunks = events((await http.post("/v1/chat/completions", json=request)).text)
        told = [chunk["llmaas"]["progress"] for chunk in chunks[:-1] if "llmaas" in chunk]
        assert told and all(0 < each["done"] < each["total"] for each in told)
        assert all(chunk["choices"] == [] for chunk in chunks[: len(told)]) and chunks[len(told)]["choices"]
        whole = await http.post("/v1/chat/completions", json={**request, "stream": False})
        assert whole.json()["choices"][0]["message"]["content"]


def test_chat_shows_progress_in_a_line_that_goes(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Piece("Hi", (1,))
    pieces = [Piece("", (), progress=Progress(10, 30)), Piece("", (), progress=Progress(20, 30)), answer]
    assert list(without_progress(pieces)) == [answer]
    assert capsys.readouterr().err.endswith("reading: 20 of 30 tokens\r\x1b[K")
    for _ in without_progress(pieces[:1]):
        raise AssertionError
    assert capsys.readouterr().err.endswith("\r\x1b[K"), "also where no answer comes"
