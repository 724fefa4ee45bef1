"""HTTP before a daemon that serves several models: the field ``model`` says which, and listing loads none."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from llmaas.http.access import Access
from llmaas.http.edge import OPEN
from llmaas.http.server import serve_http
from tests.support.front_house import SOON, FrontHouse, front_house, timeout
from tests.support.loop import on_a_loop

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0}


@asynccontextmanager
async def edge(
    root: Path, access: Access = OPEN, **options: Any
) -> AsyncIterator[tuple[FrontHouse, httpx.AsyncClient]]:
    async with front_house(root, **options) as house:
        stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()
        ended = asyncio.ensure_future(
            serve_http(house.socket, stop, address="127.0.0.1:0", access=access, on_ready=address.set_result)
        )
        base = f"http://{await address}"
        async with httpx.AsyncClient(base_url=base, timeout=SOON) as client:
            yield house, client
        stop.set()
        await ended


@on_a_loop
async def test_all_models_are_listed_and_none_is_loaded_for_it(tmp_path: Path) -> None:
    async with edge(tmp_path, names="ba") as (house, http):
        listed = (await http.get("/v1/models")).json()["data"]
        assert [each["id"] for each in listed] == ["b", "a"], "the default one first"
        assert (await http.get("/v1/models/a")).json()["id"] == "a"
        assert (await http.get("/v1/models/c")).status_code == 404
        tags = (await http.get("/api/tags")).json()["models"]
        assert [each["name"] for each in tags] == ["b:latest", "a:latest"] and tags[0]["size"] > 0
        assert (await http.get("/api/ps")).json()["models"] == []
        assert (await http.get("/health")).json() == {"status": "ok", "model": "b"}
        assert (await http.get("/metrics")).status_code == 503
        assert house.there == set()


@on_a_loop
async def test_a_request_is_answered_by_the_model_that_it_names(tmp_path: Path) -> None:
    async with edge(tmp_path) as (house, http):
        second = await http.post("/v1/chat/completions", json={**ASK, "model": "b"})
        assert second.status_code == 200 and second.json()["model"] == "b"
        assert house.there == {"b"}
        first = await http.post("/v1/chat/completions", json={**ASK, "model": "default"})
        assert first.status_code == 200 and house.there == {"a", "b"}
        for name in ("b:latest", "b.gguf"):
            same = await http.post("/v1/chat/completions", json={**ASK, "model": name})
            assert same.json()["choices"] == second.json()["choices"], name
        unknown = await http.post("/v1/chat/completions", json={**ASK, "model": "c"})
        assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"
        assert "a, b" in unknown.json()["error"]["message"]
        ps = (await http.get("/api/ps")).json()["models"]
        assert [each["model"] for each in ps] == ["a:latest", "b:latest"]
        assert (await http.get("/metrics")).status_code == 200


@on_a_loop
async def test_every_api_names_the_model(tmp_path: Path) -> None:
    async with edge(tmp_path) as (house, http):
        for path, body in (
            ("/v1/completions", {"prompt": "hello", "max_tokens": 2}),
            ("/v1/responses", {"input": "hello", "max_output_tokens": 16}),
            ("/v1/embeddings", {"input": "hello"}),
            ("/api/chat", {"messages": ASK["messages"], "stream": False, "options": {"num_predict": 2}}),
            ("/api/generate", {"prompt": "hello", "stream": False, "options": {"num_predict": 2}}),
            ("/api/embed", {"input": "hello"}),
            ("/api/embeddings", {"prompt": "hello"}),
            ("/api/show", {}),
        ):
            reply = await http.post(path, json={**body, "model": "b"})
            assert reply.status_code == 200, (path, reply.text)
            assert (await http.post(path, json={**body, "model": "c"})).status_code == 404, path
        assert house.there == {"b"}


@on_a_loop
async def test_requests_wait_while_their_model_is_brought_back(tmp_path: Path) -> None:
    async with edge(tmp_path, budget=100) as (house, http):
        for _ in range(2):
            for name in "ab":
                assert (await http.post("/v1/chat/completions", json={**ASK, "model": name})).status_code == 200
                await house.until_there(name)


@on_a_loop
async def test_a_wrong_token_is_shown_to_a_model_and_refused(tmp_path: Path) -> None:
    wrong = {"authorization": f"Bearer llmaas_{'0' * 64}"}
    async with edge(tmp_path, Access(tokens_required=True)) as (_, http):
        assert (await http.get("/v1/models")).status_code == 401
        for path in ("/v1/models", "/api/tags", "/health", "/v1/models/a"):
            assert (await http.get(path, headers=wrong)).status_code == 401, path
        asked = await http.post("/v1/chat/completions", json={**ASK, "model": "b"}, headers=wrong)
        assert asked.status_code == 401


@on_a_loop
async def test_a_request_whose_process_is_killed_says_so_and_the_next_is_answered(tmp_path: Path) -> None:
    async with edge(tmp_path, behaviour={"a": "slow"}) as (house, http):
        long = {**ASK, "model": "a", "max_tokens": 400}
        async with http.stream("POST", "/v1/chat/completions", json={**long, "stream": True}) as reply:
            lines = [line async for line in killed_after(house, "a", reply.aiter_lines()) if line.startswith("data: {")]
        assert reply.status_code == 200
        last = json.loads(lines[-1].removeprefix("data: "))
        assert last["error"]["code"] == "engine_failed" and "signal 9" in last["error"]["message"]
        whole = asyncio.ensure_future(http.post("/v1/chat/completions", json=long))
        async with timeout(SOON):
            while not house.front.processes["a"].active:
                await asyncio.sleep(0.01)
        os.kill(house.front.processes["a"].pid or 0, signal.SIGKILL)
        failed = await whole
        assert failed.status_code == 503 and failed.json()["error"]["code"] == "engine_failed"
        assert (await http.post("/v1/chat/completions", json={**ASK, "model": "a"})).status_code == 200


async def killed_after(house: FrontHouse, model: str, lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """The lines; a model's process is killed when the fifth has come."""
    n = 0
    async for line in lines:
        n += 1
        if n == 5:
            os.kill(house.front.processes[model].pid or 0, signal.SIGKILL)
        yield line


@on_a_loop
async def test_a_stream_of_a_known_context_tells_how_long_its_model_takes_to_load(tmp_path: Path) -> None:
    async with edge(tmp_path, budget=100, behaviour={"a": "late"}) as (house, http):
        for name in "ab":
            reply = await http.post("/v1/chat/completions", json={**ASK, "model": name})
            assert reply.status_code == 200
            if name == "a":
                context = reply.json()["llmaas"]["context"]
        await house.until_there("b")
        asked = {**ASK, "model": "a", "stream": True, "llmaas": {"progress": True, "context": context}}
        async with http.stream("POST", "/v1/chat/completions", json=asked) as streamed:
            lines = [line.removeprefix("data: ") async for line in streamed.aiter_lines() if line.startswith("data: {")]
        told = [chunk["llmaas"]["loading"] for chunk in map(json.loads, lines) if "loading" in chunk.get("llmaas", {})]
        assert told and all(each["model"] == "a" for each in told), lines
        assert any(each["expected_s"] is not None for each in told)
