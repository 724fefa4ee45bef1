"""Embeddings over HTTP and the socket, by OpenAI's and Ollama's own clients and llmaas's."""

from __future__ import annotations

import asyncio
import base64
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from llmaas.engine.fake.embedding import FACTS
from llmaas.errors import BadRequest, ContextTooLong
from llmaas.http.embeddings import in_parts
from llmaas.records import AppId
from tests.support.daemon import serving
from tests.support.http_edge import HttpEdge, SlowEngine, http_edge, until
from tests.support.loop import on_a_loop

TEXTS = ["the cat sat", "on the mat", "x"]
N_TOKENS = sum(1 + len(text) for text in TEXTS)


def embedding_requests(edge: HttpEdge) -> int:
    apps = [AppId(f"{os.getuid()}/{name}") for name in ("http", "mail")]
    return sum(edge.daemon.service.used(app).requests for app in apps)


@on_a_loop
async def test_llmaas_own_clients_get_vectors(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.connect("mail") as client:
        assert client.server["embedding_limit"] == FACTS.limit
        found = await client.embed(TEXTS)
        assert len(found.vectors) == 3 and len(found.vectors[0]) == found.dimensions == FACTS.width
        assert (await client.embed(TEXTS[1])).vectors == [found.vectors[1]]
        with pytest.raises(ContextTooLong):
            await client.embed("x" * 600)
        assert (await client.embed("x" * 600, truncate=True)).n_tokens == (FACTS.limit,)
        for wrong in ([], [""], ["x"] * 129, [5]):
            with pytest.raises(BadRequest):
                await client.embed(wrong)


@on_a_loop
async def test_openais_client_gets_the_same_in_both_encodings(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.openai() as client, edge.daemon.connect("http") as own:
        wanted = (await own.embed(TEXTS)).vectors
        found = await client.embeddings.create(model="default", input=TEXTS)  # the client asks for base64
        as_floats = await client.embeddings.create(model="fake", input=TEXTS, encoding_format="float")
        for reply in (found, as_floats):
            assert [each.index for each in reply.data] == [0, 1, 2]
            for each, vector in zip(reply.data, wanted, strict=True):
                assert each.embedding == pytest.approx(vector, abs=1e-7)
            assert reply.usage.prompt_tokens == reply.usage.total_tokens == N_TOKENS
        assert (found.object, found.data[0].object, found.model) == ("list", "embedding", "default")
        one = await client.embeddings.create(model="default", input=TEXTS[1], dimensions=5, encoding_format="float")
        (short,) = one.data
        scale = sum(x * x for x in wanted[1][:5]) ** -0.5
        assert short.embedding == pytest.approx([x * scale for x in wanted[1][:5]], abs=1e-6)


@on_a_loop
async def test_many_texts_are_asked_for_in_parts_and_come_in_their_order(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(300)]
    assert [len(part) for part in in_parts(texts)] == [128, 128, 44]
    assert [len(part) for part in in_parts(["x" * 200_000] * 3)] == [1, 1, 1]
    async with http_edge(tmp_path) as edge, edge.http() as http:
        body: dict[str, Any] = {"model": "default", "input": texts, "encoding_format": "base64"}
        reply = (await http.post("/v1/embeddings", json=body)).json()
        assert len(reply["data"]) == 300
        last = (await http.post("/v1/embeddings", json={**body, "input": texts[-1]})).json()
        assert last["data"][0]["embedding"] == reply["data"][299]["embedding"]
        assert len(struct.unpack(f"<{FACTS.width}f", base64.b64decode(last["data"][0]["embedding"]))) == FACTS.width


@on_a_loop
async def test_ollamas_client_gets_vectors(tmp_path: Path) -> None:
    ollama = pytest.importorskip("ollama")
    async with http_edge(tmp_path) as edge, edge.http() as http, edge.daemon.connect("http") as own:
        wanted = (await own.embed(TEXTS)).vectors
        client = ollama.AsyncClient(host=f"http://{edge.address}")
        try:
            found = await client.embed(model="fake", input=TEXTS, keep_alive="5m")
            assert found.embeddings[2] == pytest.approx(wanted[2], abs=1e-7) and len(found.embeddings) == 3
            assert found.prompt_eval_count == N_TOKENS and found.total_duration > 0
            assert len((await client.embed(model="fake", input="y" * 600)).embeddings) == 1
            assert len((await client.embed(model="fake", input="y", dimensions=4)).embeddings[0]) == 4
            old = await client.embeddings(model="fake", prompt=TEXTS[0])
            assert old.embedding == pytest.approx(wanted[0], abs=1e-7)
            assert "embedding" in (await client.show("fake")).capabilities
        finally:
            await client.close()
        assert (await http.post("/api/embed", json={"model": "fake"})).json()["embeddings"] == []
        assert (await http.post("/api/embeddings", json={"model": "fake", "prompt": ""})).json() == {"embedding": []}


@on_a_loop
async def test_what_is_wrong_is_told_with_the_field(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], int, str]] = [
        ({"input": []}, 400, "input"),
        ({"input": ""}, 400, "input"),
        ({"input": ["x", ""]}, 400, "input"),
        ({"input": [1, 2, 3]}, 400, "input"),
        ({"input": [[1], [2]]}, 400, "input"),
        ({"input": ["x"] * 2049}, 400, "input"),
        ({"input": ["x"] * 130 + ["x" * 600]}, 400, "input"),
        ({"input": "x", "encoding_format": "int8"}, 400, "encoding_format"),
        ({"input": "x", "dimensions": 0}, 400, "dimensions"),
        ({"input": "x", "dimensions": 33}, 400, "dimensions"),
        ({"input": "x", "model": "nope"}, 404, "model"),
        ({"input": "x", "model": "default:red"}, 400, "model"),
    ]
    async with http_edge(tmp_path) as edge, edge.http() as http:
        for body, status, param in wrong:
            reply = await http.post("/v1/embeddings", json={"model": "default", **body})
            assert (reply.status_code, reply.json()["error"]["param"]) == (status, param), (body, reply.text)
        reply = await http.post("/v1/embeddings", json={"model": "default", "input": "x" * 600})
        assert reply.json()["error"]["code"] == "context_length_exceeded" and "512" in reply.text


@on_a_loop
async def test_a_client_that_goes_away_ends_its_request(tmp_path: Path) -> None:
    async with http_edge(tmp_path, engine=SlowEngine) as edge, edge.http() as http:
        body = {"model": "default", "input": ["word " * 90] * 100}
        request = asyncio.ensure_future(http.post("/v1/embeddings", json=body))
        await until(lambda: embedding_requests(edge) == 1)
        request.cancel()
        await until(lambda: embedding_requests(edge) == 0)
        assert (await http.get("/health")).status_code == 200


@on_a_loop
async def test_a_connection_that_is_closed_ends_its_requests(tmp_path: Path) -> None:
    async with http_edge(tmp_path, engine=SlowEngine) as edge:
        async with edge.daemon.connect("mail") as client:
            request = asyncio.ensure_future(client.embed(["word " * 90] * 100))
            await until(lambda: embedding_requests(edge) == 1)
        await until(lambda: embedding_requests(edge) == 0)
        with pytest.raises(Exception, match="closed"):
            await request
