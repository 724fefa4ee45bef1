"""``/v1/chat/completions``, by OpenAI's own client where it has a way to ask."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from llmaas.records import AppId, AppQuota
from tests.support.daemon import answer_to
from tests.support.http_edge import CHAT, SlowEngine, events, http_edge, running, until
from tests.support.loop import on_a_loop

openai = pytest.importorskip("openai")

HELLO: Any = [{"role": "user", "content": "hello"}]


async def said(client: Any, messages: Any = HELLO, n: int = 8, **more: Any) -> str:
    done = await client.chat.completions.create(
        model="fake", messages=messages, max_tokens=n, temperature=0, stream=False, **more
    )
    assert isinstance(done.choices[0].message.content, str)
    return done.choices[0].message.content


@on_a_loop
async def test_an_answer_is_the_daemons_whole_and_streamed(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.openai() as client:
        assert await said(client) == answer_to("hello")
        stream = await client.chat.completions.create(
            model="default", messages=HELLO, max_completion_tokens=8, temperature=0, stream=True
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == answer_to("hello")
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [c.choices[0].finish_reason for c in chunks][-1] == "length"
        assert {c.id for c in chunks} == {chunks[0].id} and all(c.usage is None for c in chunks)


@on_a_loop
async def test_usage_counts_tokens_and_comes_last_in_a_stream_that_wants_it(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.openai() as client:
        whole = await client.chat.completions.create(**CHAT)  # type: ignore[call-overload]
        stream = await client.chat.completions.create(  # type: ignore[call-overload]
            **CHAT, stream=True, stream_options={"include_usage": True}
        )
        *chunks, last = [chunk async for chunk in stream]
        assert last.choices == [] and all(chunk.usage is None for chunk in chunks)
        for usage in (whole.usage, last.usage):
            assert usage.completion_tokens == 8
            assert usage.prompt_tokens > len("hello")
            assert usage.total_tokens == usage.prompt_tokens + 8
            assert 0 <= usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens
        assert whole.llmaas["ttft_ms"] > 0


@on_a_loop
async def test_an_answer_ends_before_its_stop_string_and_at_the_models_own_end(tmp_path: Path) -> None:
    async with http_edge(tmp_path, end_rate=0.05) as edge, edge.openai() as client:
        whole = await said(client, n=200)
        for stop in (whole[3:5], [whole[3:5], "never"]):
            found = await client.chat.completions.create(
                model="fake", messages=HELLO, max_tokens=200, temperature=0, stop=stop
            )
            assert found.choices[0].message.content == whole.split(whole[3:5])[0]
            assert found.choices[0].finish_reason == "stop"


@on_a_loop
async def test_the_same_seed_gives_the_same_answer(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.openai() as client:
        ask: Any = {"model": "fake", "messages": HELLO, "max_tokens": 20, "temperature": 2}
        answers = [await client.chat.completions.create(**ask, seed=seed) for seed in (7, 7, -1, 1 << 40)]
        texts = [answer.choices[0].message.content for answer in answers]
        assert texts[0] == texts[1] and len(set(texts)) == 3


@on_a_loop
async def test_a_bias_decides_what_is_said(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.openai() as client:
        assert await said(client, logit_bias={str(ord("x")): 100}) == "xxxxxxxx"
        found = await client.completions.create(
            model="fake", prompt="p", max_tokens=4, temperature=0, logit_bias={str(ord("y")): 100}
        )
        assert found.choices[0].text == "yyyy"


@on_a_loop
async def test_log_probabilities_are_one_for_each_token(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.openai() as client:
        ask: Any = {**CHAT, "logprobs": True, "top_logprobs": 2}
        whole = (await client.chat.completions.create(**ask)).choices[0]
        assert whole.logprobs and whole.logprobs.content and len(whole.logprobs.content) == 8
        best = whole.logprobs.content[0].top_logprobs
        assert len(best) == 2 and best[0].logprob >= best[1].logprob
        assert bytes(whole.logprobs.content[0].bytes or []).decode() == whole.logprobs.content[0].token
        found: list[Any] = []
        async for chunk in await client.chat.completions.create(**ask, stream=True):
            if chunk.choices[0].logprobs:
                found += chunk.choices[0].logprobs.content
        assert [each.logprob for each in found] == [each.logprob for each in whole.logprobs.content]
        ask["logprobs"], ask["top_logprobs"] = True, None
        plain = (await client.chat.completions.create(**ask)).choices[0].logprobs
        assert plain and plain.content and plain.content[0].top_logprobs == []


@on_a_loop
async def test_several_answers_come_side_by_side(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.openai() as client:
        ask: Any = {**CHAT, "n": 3, "temperature": 2}
        whole = await client.chat.completions.create(**ask)
        texts = [choice.message.content for choice in whole.choices]
        assert [choice.index for choice in whole.choices] == [0, 1, 2] and len(set(texts)) == 3
        assert whole.usage and whole.usage.completion_tokens == 24
        streamed = {0: "", 1: "", 2: ""}
        ends = []
        async for chunk in await client.chat.completions.create(**ask, stream=True):
            (choice,) = chunk.choices
            streamed[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason else []
        assert sorted(ends) == [0, 1, 2] and all(streamed.values())


@on_a_loop
async def test_an_answer_keeps_to_a_schema(tmp_path: Path) -> None:
    formats: list[tuple[Any, type]] = [
        ({"type": "json_object"}, dict),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [["a"]]}, "strict": True}}, list),
    ]
    async with http_edge(tmp_path, end_rate=0.2) as edge, edge.openai() as client:
        for wanted, kind in formats:
            text = await said(client, n=400, response_format=wanted, seed=3)
            assert isinstance(json.loads(text), kind)
        assert json.loads(text) == ["a"]
        assert await said(client, response_format={"type": "text"}) == await said(client)


@on_a_loop
async def test_content_may_be_parts_of_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    async with http_edge(tmp_path) as edge, edge.openai() as client:
        assert await said(client, [{"role": "user", "content": parts}]) == await said(client)
        assert await said(client, [{"role": "developer", "content": "s"}, *HELLO]) == await said(
            client, [{"role": "system", "content": "s"}, *HELLO]
        )


@on_a_loop
async def test_fields_of_no_effect_are_accepted(tmp_path: Path) -> None:
    more: Any = {"user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "reasoning_effort": "low"}
    async with http_edge(tmp_path) as edge, edge.openai() as client:
        assert await said(client, **more) == answer_to("hello")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": []}, "messages"),
    "a strange role": ({"messages": [{"role": "pope", "content": "x"}]}, "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "a picture": (
        {"messages": [*HELLO, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[1].content[0].type",
    ),
    "content of a wrong type": ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    "temperature": ({"temperature": 3}, "temperature"),
    "top_p": ({"top_p": -1}, "top_p"),
    "max_tokens": ({"max_tokens": 0}, "max_tokens"),
    "max_completion_tokens": ({"max_completion_tokens": -5}, "max_completion_tokens"),
    "n": ({"n": 100}, "n"),
    "stop": ({"stop": ["x"] * 17}, "stop"),
    "an empty stop": ({"stop": ""}, "stop"),
    "top_logprobs alone": ({"top_logprobs": 2}, "top_logprobs"),
    "too many alternatives": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "a bias that is too large": ({"logit_bias": {"5": 1000}}, "logit_bias"),
    "a bias of no token": ({"logit_bias": {"the": 1}}, "logit_bias"),
    "a bias of nothing": ({"logit_bias": {"": 1}}, "logit_bias"),
    "a format": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "no schema": ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
    "a bad schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}},
        "response_format",
    ),
    "an unknown extension": ({"llmaas": {"speed": 3}}, "llmaas"),
    "a priority": ({"llmaas": {"priority": "urgent"}}, "llmaas.priority"),
    "a deadline": ({"llmaas": {"deadline": -1}}, "llmaas.deadline"),
    "on_full": ({"llmaas": {"on_full": "explode"}}, "llmaas.on_full"),
    "a priority in other digits": ({"llmaas": {"priority": "\N{SUPERSCRIPT TWO}"}}, "llmaas.priority"),
    "min_p": ({"llmaas": {"min_p": 2}}, "llmaas.min_p"),
    "repeat_penalty": ({"llmaas": {"repeat_penalty": 1e-40}}, "llmaas.repeat_penalty"),
    "top_k": ({"llmaas": {"top_k": 1 << 31}}, "llmaas.top_k"),
    "top_k beyond all numbers": ({"llmaas": {"top_k": 1 << 70}}, "llmaas.top_k"),
    "a stream as a word": ({"stream": "yes"}, "stream"),
    "no model": ({"model": None}, "model"),
}


@on_a_loop
async def test_what_is_wrong_is_refused_by_the_fields_name(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.http() as http:
        for what, (change, param) in WRONG.items():
            for stream in (False, True):
                reply = await http.post("/v1/chat/completions", json={**CHAT, "stream": stream, **change})
                error = reply.json()["error"]
                assert (reply.status_code, error["param"]) == (400, param), (what, error)
                assert error["type"] == "invalid_request_error" and len(error["message"]) > 8
        assert edge.daemon.service.stats()["requests"]["active"] == 0


@on_a_loop
async def test_an_unknown_model_is_404_and_a_history_that_does_not_fit_400(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.openai() as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert unknown.value.code == "model_not_found" and "default" in str(unknown.value)
        with pytest.raises(openai.BadRequestError) as too_long:
            await said(client, [{"role": "user", "content": "x" * 2000}])
        assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "messages")


@on_a_loop
async def test_a_context_by_name_lasts_and_terms_reach_the_daemon(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.openai() as client, edge.daemon.connect("http") as app:
        for _ in range(2):
            await said(client, extra_body={"llmaas": {"context": "inbox", "priority": "background", "rate": 1e5}})
        detail = await app.show("inbox")
        assert [m.role for m in detail.messages] == ["user", "assistant"] * 2
        await said(client, extra_headers={"x-llmaas-context": "inbox", "x-llmaas-priority": "7"})
        assert (await app.show("inbox")).info.n_messages == 6
        with pytest.raises(openai.APIStatusError) as late:
            await said(client, n=900, extra_body={"llmaas": {"deadline": 1e-3}})
        assert late.value.status_code == 408 and late.value.code == "expired"
        red = await client.chat.completions.create(model="fake:red", messages=HELLO, max_tokens=8, temperature=0)
        assert red.choices[0].message.content != answer_to("hello")
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="fake:green", messages=HELLO)


@on_a_loop
async def test_a_context_by_name_is_used_where_no_other_can_be_made(tmp_path: Path) -> None:
    named: Any = {"extra_body": {"llmaas": {"context": "inbox"}}}
    async with http_edge(tmp_path) as edge, edge.openai() as client:
        await said(client, **named)
        await said(client)
        apps = edge.daemon.service.apps
        await apps.set_quota(AppId(f"{os.geteuid()}/http"), AppQuota(contexts=2))
        await said(client, **named)
        async with edge.daemon.connect("http") as app:
            assert [info.name == "inbox" for info in await app.contexts()] == [True, False], "none had to go for it"
            assert (await app.show("inbox")).info.n_messages == 4


@pytest.mark.parametrize("stream", [False, True])
@on_a_loop
async def test_a_client_that_goes_away_ends_its_call(stream: bool, tmp_path: Path) -> None:
    async with http_edge(tmp_path, engine=SlowEngine) as edge:
        body = json.dumps({**CHAT, "max_tokens": 900, "stream": stream, "n": 2}).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
        reader, writer = await edge.raw()
        writer.write(head + body)
        await until(lambda: running(edge) == 2)
        if stream:
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        before = asyncio.get_running_loop().time()
        writer.transport.abort()
        await until(lambda: running(edge) == 0)
        assert asyncio.get_running_loop().time() - before < 1.0


@on_a_loop
async def test_a_silent_stream_says_that_it_lives_and_then_how_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmaas.http.sse.KEEP_ALIVE_S", 0.05)
    async with http_edge(tmp_path, engine=SlowEngine, prefill_slice=16) as edge, edge.http() as http:
        long = {**CHAT, "messages": [{"role": "user", "content": "x" * 500}], "stream": True}
        reply = await http.post("/v1/chat/completions", json=long)
        assert reply.status_code == 200 and reply.text.startswith(": keep-alive\n\n")
        assert events(reply.text)[-1] == "[DONE]"
        late = {**long, "llmaas": {"deadline": 0.3}, "max_tokens": 400}
        reply = await http.post("/v1/chat/completions", json=late)
        assert events(reply.text)[-1]["error"]["code"] == "expired"
