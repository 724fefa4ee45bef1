"""Requests that send their whole history: what was computed for it is found again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.support.daemon import LONG, answer_to
from tests.support.http_edge import CHAT, SlowEngine, http_edge, running, until
from tests.support.loop import on_a_loop


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


async def chat(http: Any, messages: list[dict[str, str]], n: int = 8, **more: Any) -> tuple[str, dict[str, Any]]:
    """The answer, and the usage with its cached tokens."""
    ask = {**CHAT, "messages": messages, "max_tokens": n, **more}
    reply = await http.post("/v1/chat/completions", json=ask)
    assert reply.status_code == 200, reply.text
    usage = reply.json()["usage"]
    return reply.json()["choices"][0]["message"]["content"], {
        **usage,
        "cached": usage["prompt_tokens_details"]["cached_tokens"],
    }


@on_a_loop
async def test_a_second_turn_finds_what_the_first_has_computed_after_a_restart_too(tmp_path: Path) -> None:
    first = [{"role": "system", "content": LONG}, user("hello")]
    async with http_edge(tmp_path) as edge, edge.http() as http:
        answer, usage = await chat(http, first)
        assert usage["cached"] == 0
        history = [*first, assistant(answer), user("and now?")]
        second, usage = await chat(http, history)
        assert usage["prompt_tokens"] - usage["cached"] < 50
    async with http_edge(tmp_path) as edge, edge.http() as http:
        third, usage = await chat(http, [*history, assistant(second), user("and then?")])
        assert usage["prompt_tokens"] - usage["cached"] < 120 and usage["cached"] > 0
        assert third


@on_a_loop
async def test_the_answer_is_that_of_a_context_that_lasts(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.http() as http:
        one, _ = await chat(http, [user("one")])
        two, _ = await chat(http, [user("one"), assistant(one), user("two")])
        assert (one, two) == (answer_to("one"), answer_to("one", "two"))


@on_a_loop
async def test_an_answer_may_be_wanted_again_and_a_history_edited(tmp_path: Path) -> None:
    long = [{"role": "system", "content": LONG * 3}]
    async with http_edge(tmp_path) as edge, edge.http() as http:
        answer, _ = await chat(http, [*long, user("hello")])
        again, usage = await chat(http, [*long, user("hello")])
        assert again == answer and usage["prompt_tokens"] - usage["cached"] < 70
        other, usage = await chat(http, [*long, user("goodbye")])
        assert other != answer and usage["prompt_tokens"] - usage["cached"] < 130


@on_a_loop
async def test_the_same_history_may_be_asked_at_once_and_conversations_do_not_mix(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.http() as http:
        same = await asyncio.gather(*(chat(http, [user("hello")]) for _ in range(6)))
        assert {text for text, _ in same} == {answer_to("hello")}
        talks = {name: [user(name)] for name in ("apple", "pear", "plum")}
        for _ in range(3):
            answers = await asyncio.gather(*(chat(http, talk) for talk in talks.values()))
            for (name, talk), (text, _) in zip(talks.items(), answers, strict=True):
                said = [m["content"] for m in talk if m["role"] == "user"]
                assert text == answer_to(*said), name
                talk += [assistant(text), user(f"{name} again")]


@on_a_loop
async def test_several_answers_compute_their_prompt_once(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.http() as http:
        await chat(http, [user(LONG * 2)])
        messages = [user(LONG * 2 + "other")]
        reply = (await http.post("/v1/chat/completions", json={**CHAT, "messages": messages, "n": 4})).json()
        assert {choice["message"]["content"] for choice in reply["choices"]} == {answer_to(messages[0]["content"])}
        assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] > 100


@on_a_loop
async def test_what_a_client_saw_of_an_answer_is_found_again(tmp_path: Path) -> None:
    async with http_edge(tmp_path, engine=SlowEngine) as edge, edge.http() as http:
        seen = ""
        ask = {**CHAT, "messages": [user(LONG)], "max_tokens": 500, "stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=ask) as reply:
            async for line in reply.aiter_lines():
                if '"content":"' in line:
                    seen += line.split('"content":"')[1].split('"')[0]
                if len(seen) > 10:
                    break
        await until(lambda: running(edge) == 0)
        _, usage = await chat(http, [user(LONG), assistant(seen), user("go on")], n=3)
        assert usage["prompt_tokens"] - usage["cached"] < 80
