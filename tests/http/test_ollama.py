"""Ollama's API, by Ollama's own client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.http.test_completions import raw_answer
from tests.support.daemon import answer_to
from tests.support.http_edge import HttpEdge, SlowEngine, http_edge
from tests.support.loop import on_a_loop

ollama = pytest.importorskip("ollama")
HELLO: Any = [{"role": "user", "content": "hello"}]
GREEDY: Any = {"temperature": 0, "num_predict": 8}
TOOL: Any = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
}


@asynccontextmanager
async def client_of(edge: HttpEdge) -> AsyncIterator[Any]:
    client = ollama.AsyncClient(host=f"http://{edge.address}")
    try:
        yield client
    finally:
        await client.close()


@on_a_loop
async def test_a_chat_is_answered_whole_and_in_lines(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, client_of(edge) as client:
        whole = await client.chat(model="fake", messages=HELLO, options=GREEDY, keep_alive="5m")
        assert (whole.message.role, whole.message.content) == ("assistant", answer_to("hello"))
        assert (whole.done, whole.done_reason, whole.eval_count) == (True, "length", 8)
        assert whole.total_duration > 0 and whole.prompt_eval_count > 5 and whole.eval_duration > 0
        lines = [line async for line in await client.chat(model="fake", messages=HELLO, options=GREEDY, stream=True)]
        assert "".join(line.message.content for line in lines) == answer_to("hello")
        assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]


@on_a_loop
async def test_a_prompt_is_answered_with_and_without_the_template(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, client_of(edge) as client:
        assert (await client.generate("fake", "hello", options=GREEDY)).response == answer_to("hello")
        assert (await client.generate("fake", "hello", raw=True, options=GREEDY)).response == raw_answer("hello")
        told = await client.generate("fake", "hello", system="Be.", options=GREEDY)
        assert told.response != answer_to("hello")
        lines = [line async for line in await client.generate("fake", "hello", options=GREEDY, stream=True)]
        assert "".join(line.response for line in lines) == answer_to("hello") and lines[-1].done


@on_a_loop
async def test_options_are_kept_to(tmp_path: Path) -> None:
    async with http_edge(tmp_path, end_rate=0.05) as edge, client_of(edge) as client:
        whole = (await client.chat(model="fake", messages=HELLO, options={"temperature": 0})).message.content
        stop = whole[2:4]
        for stops in (stop, [stop, ""]):
            found = await client.chat(model="fake", messages=HELLO, options={"temperature": 0, "stop": stops})
            assert (found.message.content, found.done_reason) == (whole.split(stop)[0], "stop")
        drawn = {"temperature": 2.0, "num_predict": 20, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_last_n": -1}
        texts = [
            (await client.chat(model="fake", messages=HELLO, options={**drawn, "seed": seed})).message.content
            for seed in (1, 1, 2)
        ]
        assert texts[0] == texts[1] != texts[2]


@on_a_loop
async def test_an_answer_keeps_to_a_format(tmp_path: Path) -> None:
    async with http_edge(tmp_path, end_rate=0.2) as edge, client_of(edge) as client:
        options = {"temperature": 0, "num_predict": 400, "seed": 3}
        for wanted, kind in (("json", dict), ({"enum": [["a"]]}, list)):
            found = await client.chat(model="fake", messages=HELLO, format=wanted, options=options)
            assert isinstance(json.loads(found.message.content), kind)
        assert (await client.chat(model="fake", messages=HELLO, format="", options=GREEDY)).done


@on_a_loop
async def test_models_are_listed_and_shown(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.http() as http, client_of(edge) as client:
        assert [each.model for each in (await client.list()).models] == ["fake:latest", "fake:blue", "fake:red"]
        assert [each.model for each in (await client.ps()).models] == ["fake:latest"]
        shown = await client.show("fake:latest")
        assert shown.modelinfo["llama.context_length"] == 1024 and "completion" in shown.capabilities
        assert (await http.get("/api/version")).json()["version"].count(".") == 2
        red = await client.chat(model="fake:red", messages=HELLO, options=GREEDY)
        assert red.message.content != answer_to("hello")


@on_a_loop
async def test_a_model_is_loaded_by_an_empty_request(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, client_of(edge) as client:
        loaded = await client.generate("fake")
        assert (loaded.done, loaded.done_reason, loaded.response) == (True, "load", "")
        assert (await client.chat(model="fake", messages=[], keep_alive=0)).done_reason == "unload"


@on_a_loop
async def test_a_tools_call_and_result_go_through_the_history(tmp_path: Path) -> None:
    history = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]},
        {"role": "tool", "tool_name": "add", "content": "3"},
    ]
    async with http_edge(tmp_path) as edge, edge.daemon.connect("http") as app, client_of(edge) as client:
        await client.chat(model="fake", messages=history, tools=[TOOL], options=GREEDY)
        (context,) = await app.contexts()
        said = (await app.show(context.id)).messages
        assert [m.role for m in said] == ["tools", "user", "assistant", "tool", "assistant"]
        assert said[2].content == '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
        assert said[3].content == "3" and json.loads(said[0].content)[0]["function"]["name"] == "add"


@on_a_loop
async def test_errors_have_ollamas_shape(tmp_path: Path) -> None:
    wrong: list[tuple[str, dict[str, Any], int]] = [
        ("chat", {"model": "nope", "messages": HELLO}, 404),
        ("chat", {"messages": HELLO}, 400),
        ("chat", {"model": "fake", "messages": [{"role": "user", "content": "x", "images": ["eA=="]}]}, 400),
        ("chat", {"model": "fake", "messages": [{"role": "pope", "content": "x"}]}, 400),
        ("chat", {"model": "fake", "messages": HELLO, "format": "xml"}, 400),
        ("chat", {"model": "fake", "messages": HELLO, "format": {"type": "nonsense"}}, 400),
        ("chat", {"model": "fake", "messages": HELLO, "options": {"temperature": -1}}, 400),
        ("chat", {"model": "fake", "messages": HELLO, "options": {"temperature": "hot"}}, 400),
        ("chat", {"model": "fake", "messages": HELLO, "tools": [{"type": "function"}]}, 400),
        ("generate", {"model": "fake", "prompt": "x", "suffix": "y"}, 400),
        ("generate", {"model": "fake", "prompt": "x", "images": ["eA=="]}, 400),
        ("show", {"model": "nope"}, 404),
        ("embed", {"model": "fake", "input": [1, 2]}, 400),
        ("embed", {"model": "fake", "input": ["x", ""]}, 400),
        ("embed", {"model": "fake", "input": "x" * 600, "truncate": False}, 400),
        ("embeddings", {"model": "nope", "prompt": "x"}, 404),
        ("pull", {"model": "fake"}, 404),
    ]
    async with http_edge(tmp_path) as edge, edge.http() as http, client_of(edge) as client:
        for path, body, status in wrong:
            reply = await http.post(f"/api/{path}", json=body)
            assert (reply.status_code, list(reply.json())) == (status, ["error"]), (path, body)
            assert isinstance(reply.json()["error"], str) and len(reply.json()["error"]) > 8
        for tool, where in (([], "tools[1]"), ({"function": {}}, "tools[1].function")):
            reply = await http.post("/api/chat", json={"model": "fake", "messages": HELLO, "tools": [TOOL, tool]})
            assert reply.status_code == 400 and f"field '{where}'" in reply.json()["error"], reply.text
        with pytest.raises(ollama.ResponseError) as missing:
            await client.chat(model="nope", messages=HELLO)
        assert missing.value.status_code == 404


@on_a_loop
async def test_a_stream_that_fails_says_so_in_its_last_line(tmp_path: Path) -> None:
    async with http_edge(tmp_path, engine=SlowEngine) as edge, edge.http() as http:
        ask = {"model": "fake", "messages": HELLO, "llmaas": {"deadline": 0.4}}
        lines = (await http.post("/api/chat", json=ask)).text.splitlines()
        assert len(lines) > 1 and "deadline" in json.loads(lines[-1])["error"]


@on_a_loop
async def test_what_nests_as_deeply_as_can_be_read_is_no_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with http_edge(tmp_path, n_cells=4096) as edge, edge.http() as http:
        found = set()
        for depth in range(400, 1000, 4):
            nested = "[" * depth + "]" * depth
            call = '{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":{"a":NESTED}}}]}'
            chat = '{"model":"fake","stream":false,"options":{"num_predict":1},"messages":[' + call + "]}"
            text = '{"model":"fake","input":"x","max_output_tokens":1,"metadata":{"a":NESTED}}'
            for path, body in (("/api/chat", chat), ("/v1/responses", text)):
                found.add((await http.post(path, content=body.replace("NESTED", nested))).status_code)
        assert found <= {200, 400}, found
    assert not [record for record in caplog.records if record.levelname == "ERROR"], caplog.text
