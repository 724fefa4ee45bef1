"""Calls of tools: read out of answers, kept to their schemas, written back into histories."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.calls import Sampling
from llmaas.engine.fake import FakeEngine
from llmaas.engine.fake.sampling import FakeSamplers
from llmaas.http.deltas import CallBegin, Delta, TextDelta
from llmaas.http.tool_forms import ToolForm, form_of, new_call_id, written
from llmaas.http.tool_reader import ToolReader
from llmaas.http.toolbox import OfferedTool, Toolbox
from llmaas.records import Message
from tests.support.http_edge import CHAT, http_edge
from tests.support.loop import on_a_loop

NAMES = ("add", "get")
ADD = '{"name": "add", "arguments": {"a": "}<", "b": [1, {}]}}'
GET = '{"name": "get", "arguments": {}}'
A, G = ("add", '{"a": "}<", "b": [1, {}]}'), ("get", "{}")
CASES: dict[str, tuple[str, list[tuple[str, str]]]] = {
    f"hi <tool_call>\n{ADD}\n</tool_call>\n<tool_call>\n{GET}\n</tool_call>": ("hi ", [A, G]),
    f"<tool_call>{GET}</tool_call> so be it": ("so be it", [G]),
    f"<tool_call>{GET}": ("", [G]),
    ADD: ("", [A]),
    '{"name": "add", "parameters": {"x": 1}}': ("", [("add", '{"x": 1}')]),
    '  {"arguments": {"x": 1}, "name": "add"}': ("", [("add", '{"x": 1}')]),
    '{"type": "function", "function": {"name": "get", "arguments": {}}}': ("", [G]),
    f"[{ADD}, {GET}]": ("", [A, G]),
    f"[TOOL_CALLS][{ADD}, {GET}]": ("", [A, G]),
    '<|python_tag|>{"name": "get", "parameters": {}}; {"name": "get", "parameters": {}}': ("", [G, G]),
    '{"a": 1} and more': ('{"a": 1} and more', []),
    "[1, 2]": ("[1, 2]", []),
    "[": ("[", []),
    '<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call>': (
        '<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call>',
        [],
    ),
    "<tool_cal": ("<tool_cal", []),
    "<tool_call> is a mark": ("<tool_call> is a mark", []),
    '{"name": "add"': ('{"name": "add"', []),
    '{"name": "add", "arguments": {"a': ("", [("add", '{"a')]),
    "a < b [TOOL": ("a < b [TOOL", []),
    "": ("", []),
}


def read(pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """Text and calls of an answer that comes in these pieces."""
    reader = ToolReader(NAMES)
    deltas: list[Delta] = [delta for piece in pieces for delta in reader.feed(piece)] + reader.end()
    calls: dict[int, tuple[str, str]] = {}
    for delta in deltas:
        if isinstance(delta, CallBegin):
            assert delta.index == len(calls)
            calls[delta.index] = (delta.name, "")
        elif not isinstance(delta, TextDelta):
            calls[delta.index] = (calls[delta.index][0], calls[delta.index][1] + delta.text)
    assert reader.n_calls == len(calls)
    return "".join(d.text for d in deltas if isinstance(d, TextDelta)), list(calls.values())


@pytest.mark.parametrize("text", CASES)
def test_calls_are_read_in_every_form_however_the_text_is_cut(text: str) -> None:
    for size in (1, 2, 3, 7, len(text) or 1):
        assert read([text[i : i + size] for i in range(0, len(text), size)]) == CASES[text]


PARTS = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    ADD,
    GET,
    "[",
    "]",
    "{",
    "}",
    '"',
    "\\",
    ",",
    "\n",
    " x",
]


@given(st.lists(st.sampled_from([*PARTS, '{"name": "add", "arguments": ', '{"name": "rm"']), max_size=12), st.data())
def test_no_text_breaks_the_reader_and_cuts_change_nothing(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(pieces) == read([text])
    if "name" not in text:
        assert read([text]) == (text, [])


@pytest.mark.parametrize("form", list(ToolForm))
def test_what_is_written_back_is_what_is_read(form: ToolForm) -> None:
    calls = [("add", '{"a": 1}')] if form is ToolForm.PLAIN else [("add", '{"a": 1}'), ("get", "{}")]
    reader = ToolReader(NAMES)
    deltas = reader.feed(written(form, calls)) + reader.end()
    ids = [delta.id for delta in deltas if isinstance(delta, CallBegin)]
    assert read([written(form, calls)]) == ("", calls)
    assert {form_of(id) for id in ids} == {form}
    assert form_of(new_call_id(form)) is form


def test_a_model_without_a_place_for_tools_is_told_in_the_system_message() -> None:
    box = Toolbox.of([OfferedTool("add", "Adds.", '{"type": "object"}')], None)
    asked = [Message("user", "u"), Message("assistant", "c"), Message("tool", "1"), Message("tool", "2")]
    told = box.told([Message("system", "Be."), *asked], takes_tools=False)
    assert [m.role for m in told] == ["system", "user", "assistant", "user"]
    assert told[0].content.startswith("Be.\n\n# Tools") and '"name":"add"' in told[0].content
    assert told[3].content == "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    given = box.told(asked, takes_tools=True)
    assert given[0].role == "tools" and json.loads(given[0].content)[0]["function"]["name"] == "add"
    assert given[1:] == tuple(asked)
    assert Toolbox.of([], None).told(asked[:1], takes_tools=True) == tuple(asked[:1])


def test_references_in_a_tools_schema_lead_to_where_it_is_moved() -> None:
    schema = '{"$defs": {"b": {"enum": [1]}}, "properties": {"x": {"$ref": "#/$defs/b"}, "y": {"$ref": "#"}}}'
    tools = [OfferedTool("add", "", schema), OfferedTool("get", "", "")]
    one = json.loads(Toolbox.of(tools, "add", named=True).constraint() or "")
    assert one["properties"]["arguments"]["properties"]["x"]["$ref"] == "#/properties/arguments/$defs/b"
    both = json.loads(Toolbox.of(tools, "required").constraint() or "")
    found = both["anyOf"][0]["properties"]["arguments"]["properties"]
    assert found["x"]["$ref"] == "#/anyOf/0/properties/arguments/$defs/b"
    assert found["y"]["$ref"] == "#/anyOf/0/properties/arguments"
    assert Toolbox.of(tools, "auto").constraint() is None


FUNCTION: Any = {
    "name": "add",
    "parameters": {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}, "b": {"$ref": "#/$defs/b"}},
        "required": ["a", "b"],
        "additionalProperties": False,
        "$defs": {"b": {"enum": ["x", "y"]}},
    },
}
TOOLS: Any = [{"type": "function", "function": FUNCTION}, {"type": "function", "function": {"name": "get"}}]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
@on_a_loop
async def test_a_call_that_must_come_keeps_to_its_schema_whole_and_streamed(choice: Any, tmp_path: Path) -> None:
    ask: Any = {**CHAT, "tools": TOOLS, "tool_choice": choice, "max_tokens": 400}
    async with http_edge(tmp_path) as edge, edge.openai() as client:
        whole = (await client.chat.completions.create(**ask)).choices[0]
        (call,) = whole.message.tool_calls
        assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
        arguments = json.loads(call.function.arguments)
        if call.function.name == "add":
            assert arguments["a"] in (1, 2) and arguments["b"] in ("x", "y") and len(arguments) == 2
        name, text, reason = "", "", None
        async for chunk in await client.chat.completions.create(**ask, stream=True):
            for part in chunk.choices[0].delta.tool_calls or ():
                assert part.index == 0
                name += part.function.name or ""
                text += part.function.arguments or ""
            reason = chunk.choices[0].finish_reason or reason
        assert (name, text, reason) == (call.function.name, call.function.arguments, "tool_calls")
        history = [*ask["messages"], whole.message.model_dump(exclude_none=True)]
        history.append({"role": "tool", "tool_call_id": call.id, "content": "3"})
        after = await client.chat.completions.create(**{**ask, "messages": history, "tool_choice": "none"})
        assert isinstance(after.choices[0].message.content, str) and not after.choices[0].message.tool_calls


@on_a_loop
async def test_tools_that_cannot_be_are_refused_by_name(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0]"),
        ({"tools": [TOOLS[1], TOOLS[1]]}, "tools[1]"),
        ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}],
                "tool_choice": "required",
            },
            "tools",
        ),
    ]
    async with http_edge(tmp_path) as edge, edge.http() as http:
        for change, param in wrong:
            reply = await http.post("/v1/chat/completions", json={**CHAT, **change})
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), (change, reply.text)


@on_a_loop
async def test_a_body_that_is_not_utf8_somewhere_is_refused_in_words(tmp_path: Path) -> None:
    tool = b'[{"type": "function", "function": {"name": "f", "parameters": {"type": "\x80object"}}}]'
    body = json.dumps(CHAT).encode()[:-1] + b', "tools": ' + tool + b"}"
    async with http_edge(tmp_path) as edge, edge.http() as http:
        for path in ("/v1/chat/completions", "/v1/responses", "/api/chat"):
            reply = await http.post(path, content=body)
            assert reply.status_code == 400 and "not JSON" in reply.text, path


class _Calling(FakeSamplers):
    """Wants to begin each answer with the mark of a call."""

    def __init__(self, end_rate: float) -> None:
        super().__init__(end_rate)
        self._n: dict[int, int] = {}
        self._wish: int | None = None

    def set(self, sampler: int, sampling: Sampling | None, past: Sequence[int], answer: Sequence[int]) -> None:
        self._n[sampler] = len(answer)
        super().set(sampler, sampling, past, answer)

    def draw(self, sampler: int, total: int) -> int:
        n, self._n[sampler] = self._n[sampler], self._n[sampler] + 1
        self._wish = b"<tool_call>"[n] if n < 11 else None
        return super().draw(sampler, total)

    def _greedy(self, total: int) -> int:
        return super()._greedy(total) if self._wish is None else self._wish


class CallingEngine(FakeEngine):
    def __init__(self, n_cells: int, n_seqs: int, end_rate: float) -> None:
        super().__init__(n_cells, n_seqs, end_rate=end_rate)
        self._samplers = _Calling(end_rate)


@pytest.mark.parametrize("api", ["chat", "responses", "ollama"])
@on_a_loop
async def test_a_call_that_the_model_chooses_keeps_to_its_schema(api: str, tmp_path: Path) -> None:
    """Such a model writes noise behind the mark unless it is kept from it."""
    tools = [{"type": "function", "function": FUNCTION}]
    async with http_edge(tmp_path, engine=CallingEngine, n_cells=4096) as edge, edge.http() as http:
        if api == "chat":
            ask: Any = {**CHAT, "tools": tools, "max_tokens": 200}
            reply = (await http.post("/v1/chat/completions", json=ask)).json()
            found = [call["function"] for call in reply["choices"][0]["message"]["tool_calls"]]
        elif api == "responses":
            ask = {"model": "default", "input": "hello", "tools": [{"type": "function", **FUNCTION}]}
            reply = (await http.post("/v1/responses", json={**ask, "max_output_tokens": 200})).json()
            found = [item for item in reply["output"] if item["type"] == "function_call"]
        else:
            ask = {"model": "fake", "messages": CHAT["messages"], "tools": tools, "stream": False}
            reply = (await http.post("/api/chat", json={**ask, "options": {"num_predict": 200}})).json()
            found = [call["function"] for call in reply["message"]["tool_calls"]]
        given = found[0]["arguments"]
        arguments = given if isinstance(given, dict) else json.loads(given)
        assert found[0]["name"] == "add" and arguments["a"] in (1, 2) and arguments["b"] in ("x", "y")


@on_a_loop
async def test_a_schema_that_cannot_be_followed_is_no_reason_to_refuse_an_answer_of_ones_choice(tmp_path: Path) -> None:
    function = {"name": "odd", "parameters": {"type": "object", "not": {"required": ["a"]}}}
    ask: Any = {**CHAT, "tools": [{"type": "function", "function": function}], "max_tokens": 30}
    async with http_edge(tmp_path, engine=CallingEngine, n_cells=4096) as edge, edge.http() as http:
        for stream in (False, True):
            reply = await http.post("/v1/chat/completions", json={**ask, "stream": stream})
            assert reply.status_code == 200 and "tool_call" in reply.text and "error" not in reply.text
        async with edge.daemon.connect("http") as client:
            assert {info.n_messages for info in await client.contexts()} == {3}, "nothing is left of the first try"
