"""``/v1/completions``, by OpenAI's own client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llmaas.calls import Generation
from tests.support.books import Book
from tests.support.daemon import CELLS
from tests.support.http_edge import events, http_edge
from tests.support.loop import on_a_loop
from tests.support.oracle import Oracle

openai = pytest.importorskip("openai")
ASK: Any = {"model": "default", "prompt": "hello", "max_tokens": 8, "temperature": 0}


def raw_answer(prompt: str, n: int = 8) -> str:
    expected = Oracle(CELLS).generate(Book(""), [], prompt, Generation(n))
    assert expected is not None
    return expected.text


@on_a_loop
async def test_the_model_goes_on_with_the_prompt_whole_and_streamed(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.openai() as client:
        whole = await client.completions.create(**ASK)
        assert whole.choices[0].text == raw_answer("hello")
        assert (whole.usage.completion_tokens, whole.choices[0].finish_reason) == (8, "length")
        stream = await client.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
        *chunks, last = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].text for chunk in chunks) == raw_answer("hello")
        assert last.usage == whole.usage and chunks[-1].choices[0].finish_reason == "length"
        async with edge.daemon.connect("http") as app:
            while await app.contexts():  # it goes when the answer is complete
                await asyncio.sleep(0.01)


@on_a_loop
async def test_several_prompts_and_answers_echo_and_log_probabilities(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.openai() as client:
        found = await client.completions.create(**{**ASK, "prompt": ["one", "two"]}, n=2, echo=True, logprobs=1)
        texts = [choice.text for choice in found.choices]
        assert texts == [prompt + raw_answer(prompt) for prompt in ("one", "one", "two", "two")]
        logprobs = found.choices[0].logprobs
        assert logprobs.text_offset == list(range(3, 11)) and "".join(logprobs.tokens) == raw_answer("one")
        assert all(len(top) == 1 for top in logprobs.top_logprobs)
        streamed = {0: "", 1: ""}
        async for chunk in await client.completions.create(**{**ASK, "prompt": ["one", "two"]}, echo=True, stream=True):
            streamed[chunk.choices[0].index] += chunk.choices[0].text
        assert streamed == {0: "one" + raw_answer("one"), 1: "two" + raw_answer("two")}


@on_a_loop
async def test_what_is_wrong_is_refused_by_the_fields_name(tmp_path: Path) -> None:
    wrong: dict[str, Any] = {
        "prompt": [None, "", [], [1, 2], ["a", ""], ["a"] * 17, [[1]]],
        "suffix": ["x"],
        "logit_bias": [{"x": 1}, {"": 1}, {"1": 101}, {str(i): 1 for i in range(301)}, {"-1": 1}],
        "best_of": [2],
        "logprobs": [-1, 21],
        "max_tokens": [0],
        "n": [17],
    }
    async with http_edge(tmp_path) as edge, edge.http() as http:
        for field, values in wrong.items():
            for value in values:
                reply = await http.post("/v1/completions", json={**ASK, field: value})
                assert (reply.status_code, reply.json()["error"]["param"]) == (400, field), (field, value)
        late = await http.post("/v1/completions", json={**ASK, "stream": True, "llmaas": {"deadline": 1e-6}})
        assert late.status_code == 408 or events(late.text)[-1]["error"]["code"] == "expired"
