"""``/v1/responses``, by OpenAI's own client."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmaas.engine.fake import FakeEngine
from llmaas.records import ModelInfo
from tests.support.daemon import LONG, answer_to
from tests.support.http_edge import SlowEngine, events, http_edge
from tests.support.loop import on_a_loop

openai = pytest.importorskip("openai")
ASK: Any = {"model": "default", "input": "hello", "max_output_tokens": 8, "temperature": 0}
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
ADD: Any = {"type": "function", "name": "add", "description": "Adds.", "parameters": SCHEMA}


@on_a_loop
async def test_a_response_is_the_daemons_answer_whole_and_as_events(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.openai() as client:
        whole = await client.responses.create(**ASK)
        assert whole.output_text == answer_to("hello")
        assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert whole.usage.output_tokens == 8 and whole.usage.total_tokens == whole.usage.input_tokens + 8
        found = [event async for event in await client.responses.create(**ASK, stream=True)]
        assert [event.sequence_number for event in found] == list(range(len(found)))
        kinds = [event.type.removeprefix("response.") for event in found]
        assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
        assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
        deltas = [event.delta for event in found if event.type == "response.output_text.delta"]
        assert "".join(deltas) == found[-1].response.output_text == answer_to("hello")
        assert found[0].response.id == found[-1].response.id


@on_a_loop
async def test_a_response_goes_on_with_an_earlier_one_and_reuses_what_it_computed(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.openai() as client:
        first = await client.responses.create(**{**ASK, "input": LONG})
        second = await client.responses.create(**{**ASK, "input": "two"}, previous_response_id=first.id)
        assert second.output_text == answer_to(LONG, "two")
        branch = await client.responses.create(**{**ASK, "input": "zwei"}, previous_response_id=first.id)
        assert branch.output_text == answer_to(LONG, "zwei")
        third = await client.responses.create(**{**ASK, "input": "three"}, previous_response_id=second.id)
        assert third.output_text == answer_to(LONG, "two", "three")
        assert third.usage.input_tokens_details.cached_tokens > len(LONG)
        told = await client.responses.create(**ASK, instructions="Be brief.")
        after = await client.responses.create(**{**ASK, "input": "two"}, previous_response_id=told.id)
        async with edge.daemon.connect("http") as app:
            shown = await app.show(after.llmaas["context"])
            assert [m.role for m in shown.messages] == ["user", "assistant", "user", "assistant"]


class ToollessEngine(FakeEngine):
    """Its model has no place for tools: they are told of in the system message."""

    def __init__(self, n_cells: int, n_seqs: int, end_rate: float) -> None:
        super().__init__(n_cells, n_seqs, end_rate=end_rate)

    @property
    def info(self) -> ModelInfo:
        return replace(super().info, tools=False, tool_mark="")


@pytest.mark.parametrize("engine", [ToollessEngine, None])
@on_a_loop
async def test_what_the_input_says_as_the_system_lasts_and_tools_and_instructions_do_not(
    engine: type[FakeEngine] | None, tmp_path: Path
) -> None:
    said: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    cases: list[tuple[Any, list[str]]] = [
        ({"input": said, "tools": [ADD]}, ["Be brief."]),
        ({"input": said}, ["Be brief."]),
        ({"tools": [ADD]}, []),
        ({"instructions": "Rhyme.", "tools": [ADD]}, []),
        ({"instructions": "Rhyme.", "input": said[1:]}, []),
    ]
    options: dict[str, Any] = {"engine": engine} if engine else {}
    async with (
        http_edge(tmp_path, n_cells=4096, **options) as edge,
        edge.openai() as client,
        edge.daemon.connect("http") as app,
    ):
        for asked, kept in cases:
            first = await client.responses.create(**{**ASK, **asked})
            after = await client.responses.create(**{**ASK, "input": "two"}, previous_response_id=first.id)
            shown = (await app.show(after.llmaas["context"])).messages
            assert [m.content for m in shown if m.role == "system"] == kept, asked


@on_a_loop
async def test_a_response_that_is_gone_is_404(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.openai() as client, edge.daemon.connect("http") as app:
        first = await client.responses.create(**ASK)
        for id in ("resp_x", f"resp_{'0' * 37}0", first.id[:25] + "0" * 16 + first.id[-8:]):
            with pytest.raises(openai.NotFoundError) as gone:
                await client.responses.create(**ASK, previous_response_id=id)
            assert gone.value.code == "previous_response_not_found"
        await app.delete(first.llmaas["context"])
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(**ASK, previous_response_id=first.id)


@on_a_loop
async def test_functions_are_called_and_their_output_is_read(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.openai() as client:
        ask: Any = {**ASK, "tools": [ADD], "tool_choice": "required", "max_output_tokens": 300}
        whole = await client.responses.create(**ask)
        (call,) = whole.output
        assert (call.type, call.name, json.loads(call.arguments)["a"] in (1, 2)) == ("function_call", "add", True)
        found = [event async for event in await client.responses.create(**ask, stream=True)]
        deltas = [e.delta for e in found if e.type == "response.function_call_arguments.delta"]
        assert "".join(deltas) == found[-1].response.output[0].arguments == call.arguments
        output = [{"type": "function_call_output", "call_id": call.call_id, "output": "3"}]
        after = await client.responses.create(**{**ASK, "input": output, "tools": [ADD]}, previous_response_id=whole.id)
        assert after.usage.input_tokens - after.usage.input_tokens_details.cached_tokens < 100
        history = [{"role": "user", "content": "hello"}, call.model_dump(exclude_none=True), *output]
        again = await client.responses.create(**{**ASK, "input": history, "tools": [ADD]})
        async with edge.daemon.connect("http") as app:
            said = (await app.show(again.llmaas["context"])).messages
        assert [m.role for m in said] == ["tools", "user", "assistant", "tool", "assistant"]
        assert said[2].content == f'{{"name": "add", "arguments": {call.arguments}}}'


@on_a_loop
async def test_text_keeps_to_a_schema(tmp_path: Path) -> None:
    async with http_edge(tmp_path, end_rate=0.2) as edge, edge.openai() as client:
        text: Any = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
        whole = await client.responses.create(**{**ASK, "max_output_tokens": 300}, text=text)
        assert whole.status == "completed" and json.loads(whole.output_text)["a"] in (1, 2)


@on_a_loop
async def test_what_is_wrong_is_refused_by_the_fields_name(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"role": "pope", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"type": "function_call"}]}, "input[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [ADD, ADD]}, "tools[1]"),
        ({"tools": [{**ADD, "name": "a b"}]}, "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "name": "sub"}}, "tool_choice"),
        ({"background": True}, "background"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": "nonsense"}}}}, "text.format.schema"),
        ({"tools": [{**ADD, "parameters": {"not": {}}}], "tool_choice": "required"}, "tools"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ]
    async with http_edge(tmp_path) as edge, edge.http() as http:
        for change, param in wrong:
            for stream in (False, True):
                reply = await http.post("/v1/responses", json={**ASK, **change, "stream": stream})
                assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), change


@on_a_loop
async def test_a_stream_that_fails_says_so_in_its_last_event(tmp_path: Path) -> None:
    async with http_edge(tmp_path, engine=SlowEngine) as edge, edge.http() as http:
        ask = {**ASK, "max_output_tokens": 500, "stream": True, "llmaas": {"deadline": 0.4}}
        last = events((await http.post("/v1/responses", json=ask)).text)[-1]
        assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
        assert last["response"]["error"]["code"] == "expired"
