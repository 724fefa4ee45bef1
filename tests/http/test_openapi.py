"""``/openapi.json`` says what is served."""

from __future__ import annotations

from pathlib import Path

from jsonschema import Draft202012Validator

from llmaas.http.openapi import OPERATIONS
from llmaas.http.routes import TABLE
from tests.support.http_edge import CHAT, http_edge
from tests.support.loop import on_a_loop


@on_a_loop
async def test_the_document_has_every_path_and_its_answers_are_as_it_says(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.http() as http:
        document = (await http.get("/openapi.json")).json()
        served = {path.replace(":path}", "}") for path in TABLE} - {"/openapi.json"}
        assert set(document["paths"]) == served == {each.path for each in OPERATIONS}

        assert "prefixItems" not in str(document), "others read it, too"
        for schema in document["components"]["schemas"].values():
            Draft202012Validator.check_schema(schema)

        def check(name: str, value: object) -> None:
            schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
            Draft202012Validator(schema).validate(value)

        check("ChatRequest", CHAT)
        check("ChatCompletion", (await http.post("/v1/chat/completions", json={**CHAT, "logprobs": True})).json())
        check("ErrorBody", (await http.post("/v1/chat/completions", json={})).json())
        check("OllamaError", (await http.post("/api/chat", json={})).json())
        text = {"model": "default", "prompt": "x", "max_tokens": 3}
        check("Completion", (await http.post("/v1/completions", json={**text, "logprobs": 1})).json())
        check("ResponseObject", (await http.post("/v1/responses", json={"model": "default", "input": "x"})).json())
        check("ContextInfo", (await http.put("/llmaas/contexts/a", json={})).json())
        check("ContextDetail", (await http.get("/llmaas/contexts/a")).json())
        check("State", (await http.get("/llmaas/state")).json())
        for path, name in (("/v1/models", "ModelList"), ("/health", "Health"), ("/api/tags", "OllamaModels")):
            check(name, (await http.get(path)).json())
        embed = {"model": "fake", "input": "x"}
        check("EmbeddingList", (await http.post("/v1/embeddings", json=embed)).json())
        check("OllamaEmbedReply", (await http.post("/api/embed", json=embed)).json())
        check("OllamaEmbeddingReply", (await http.post("/api/embeddings", json={**embed, "prompt": "x"})).json())
        chat = {"model": "fake", "messages": CHAT["messages"], "stream": False, "options": {"num_predict": 3}}
        check("OllamaReply", (await http.post("/api/chat", json=chat)).json())
