"""HTTP in front of a cluster: it is a client of the entry as it is of a daemon."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette")

from llmaas.http.server import serve_http
from llmaas.socket_place import http_socket
from tests.support.cluster_house import cluster
from tests.support.daemon import SOON, answer_to
from tests.support.http_edge import events
from tests.support.loop import on_a_loop


def chat(*said: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * len(said)
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
    return {"model": "default", "messages": messages, "max_tokens": 8, "temperature": 0, **more}


@on_a_loop
async def test_a_chat_goes_on_at_the_node_where_it_began_streamed_or_not(tmp_path: Path) -> None:
    async with cluster(tmp_path) as house:
        stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
        ended = asyncio.ensure_future(
            serve_http(house.socket, stop, address="127.0.0.1:0", grace_s=5.0, on_ready=ready.set_result)
        )
        await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED, timeout=SOON)
        transport = httpx.AsyncHTTPTransport(uds=str(http_socket(house.socket)))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=4 * SOON) as client:
            house.fleet.sent = ["cellar"]
            first = (await client.post("/v1/chat/completions", json=chat("hello"))).json()
            answer = first["choices"][0]["message"]["content"]
            assert answer == answer_to("hello")
            told = await client.post("/v1/chat/completions", json=chat("hello", answer, "and?", stream=True))
            deltas = [each["choices"][0]["delta"].get("content", "") for each in events(told.text)[:-1]]
            assert "".join(deltas) == answer_to("hello", "and?")
            models = (await client.get("/v1/models")).json()
            assert [model["id"] for model in models["data"]]
            assert (await client.get("/metrics")).status_code == 200
            missing = await client.post("/v1/chat/completions", json={**chat("hello"), "model": "another"})
            assert missing.status_code == 404
        async with house.houses["cellar"].daemon.connect("http") as beside:
            (info,) = await beside.contexts()
            assert (info.anonymous, info.n_messages) == (True, 4)
        for node in ("attic", "barn"):
            async with house.houses[node].daemon.connect("http") as beside:
                assert await beside.contexts() == []
        stop.set()
        await asyncio.wait_for(ended, SOON)
