"""A daemon whose model makes embeddings only, over its socket and over HTTP: a small random BERT, computed for real."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from llmaas.engine.llama.embedding_engine import LlamaEmbeddingEngine
from llmaas.engine.llama.model import LlamaModel
from llmaas.errors import ContextTooLong, WritesNoText
from llmaas.records import ExportedContext, Message
from tests.support.encoder_models import CLS, LONGEST, SEP, WIDTH, bert_tensors, bert_vector, write_bert
from tests.support.http_edge import HttpEdge, http_edge
from tests.support.loop import on_a_loop

TEXTS = ["The miller saw the sea.", "A cat walked"]


def bert_engine(path: Path, n_cells: int, n_seqs: int, end_rate: float) -> LlamaEmbeddingEngine:
    return LlamaEmbeddingEngine(LlamaModel(path), n_threads=1)


@asynccontextmanager
async def bert_edge(root: Path) -> AsyncIterator[HttpEdge]:
    path = write_bert(root / "bert.gguf")
    async with http_edge(root, engine=partial(bert_engine, path), adapters=()) as edge:
        yield edge


def wanted(edge: HttpEdge, text: str) -> list[float]:
    tokens = edge.daemon.thread.engine.tokenize(text, special=False, bos=True)
    assert tokens[0] == CLS
    found: list[float] = bert_vector(bert_tensors(2), [*tokens, SEP]).tolist()
    return found


@on_a_loop
async def test_its_clients_get_the_vectors_that_the_model_computes(tmp_path: Path) -> None:
    async with bert_edge(tmp_path) as edge, edge.daemon.connect("mail") as client, edge.http() as http:
        assert client.server["embedding_limit"] == LONGEST and client.server["writes"] is False
        found = await client.embed(TEXTS)
        for text, vector in zip(TEXTS, found.vectors, strict=True):
            assert vector == pytest.approx(wanted(edge, text), abs=2e-3)
        reply = (await http.post("/v1/embeddings", json={"model": "bert", "input": TEXTS})).json()
        assert [each["embedding"] for each in reply["data"]] == pytest.approx(np.array(found.vectors), abs=1e-6)
        reply = (await http.post("/api/embed", json={"model": "bert", "input": TEXTS})).json()
        assert np.array(reply["embeddings"]).shape == (2, WIDTH)
        reply = (await http.post("/api/embeddings", json={"model": "bert", "prompt": TEXTS[0]})).json()
        assert reply["embedding"] == pytest.approx(found.vectors[0], abs=1e-6)


@on_a_loop
async def test_a_text_is_cut_or_refused_where_the_model_ends(tmp_path: Path) -> None:
    async with bert_edge(tmp_path) as edge, edge.daemon.connect("mail") as client:
        with pytest.raises(ContextTooLong):
            await client.embed("cat " * LONGEST)
        cut = await client.embed("cat " * LONGEST, truncate=True)
        assert cut.n_tokens == (LONGEST,)
        assert cut.vectors == (await client.embed("cat " * (LONGEST - 2))).vectors


@on_a_loop
async def test_contexts_and_answers_are_refused_with_what_to_do(tmp_path: Path) -> None:
    exported = ExportedContext("x", "m", "v", ())
    async with bert_edge(tmp_path) as edge, edge.daemon.connect("mail") as client:
        for call in (
            client.create(name="x"),
            client.resolve([Message("user", "hi")]),
            client.append("x", [Message("user", "hi")]),
            client.import_context(exported),
        ):
            with pytest.raises(WritesNoText, match="makes embeddings only") as refused:
                await call
            assert "embed" in refused.value.hint and "--model" in refused.value.hint
        with pytest.raises(WritesNoText):
            _ = [piece async for piece in client.generate("x", [Message("user", "hi")])]
        assert await client.contexts() == []


@on_a_loop
async def test_endpoints_for_text_refuse_it_and_say_what_it_can(tmp_path: Path) -> None:
    chat = {"model": "bert", "messages": [{"role": "user", "content": "hi"}]}
    async with bert_edge(tmp_path) as edge, edge.http() as http:
        for path, body in (
            ("/v1/chat/completions", chat),
            ("/v1/completions", {"model": "bert", "prompt": "hi"}),
            ("/v1/responses", {"model": "bert", "input": "hi"}),
            ("/api/chat", chat),
            ("/api/generate", {"model": "bert", "prompt": "hi"}),
        ):
            reply = await http.post(path, json={**body, "stream": False})
            assert reply.status_code == 400, (path, reply.text)
            assert "makes embeddings only" in reply.text and "/v1/embeddings" in reply.text
        shown = (await http.post("/api/show", json={"model": "bert"})).json()
        assert shown["capabilities"] == ["embedding"]
