"""Calls by their numbers: listed, cancelled and given a priority, by their app or the operator."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmaas.api.daemon_address import admin_socket
from llmaas.api.messages import Cancel, Prioritize
from llmaas.api.pages import MAX_REQUESTS
from tests.support.loop import on_a_loop
from tests.support.scripted import peer, serving, until, with_context


@pytest.mark.parametrize("given", [{}, {"request": 1, "call": 1}])
def test_exactly_one_of_request_and_call_is_given(given: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="request or call"):
        Cancel(**given)
    with pytest.raises(ValueError, match="request or call"):
        Prioritize(3, **given)


@on_a_loop
async def test_an_app_can_cancel_its_call_from_another_connection(path: Path) -> None:
    async with serving(path) as (backend, _):
        client, other = await with_context(path), await peer(path)
        client.send({"id": 7, "op": "generate", "context": "inbox", "prompt": "wait"})
        await until(lambda: bool(backend.running))
        (call,) = backend.running
        listed = await other.ask(1, "requests")
        assert [each["call"] for each in listed["result"]] == [call] and "next" not in listed
        assert (await other.ask(2, "requests", after=str(call)))["result"] == []
        assert (await other.ask(3, "prioritize", call=call, priority=1))["type"] == "done"
        assert backend.priorities == [(call, 1)]
        assert (await other.ask(4, "cancel", call=call))["type"] == "done"
        assert backend.cancelled == [call]
        await until(lambda: not backend.running)
        assert (await other.ask(5, "cancel", call=call))["code"] == "unknown_request"
        await client.close()
        await other.close()


@on_a_loop
async def test_only_the_operator_reaches_the_calls_of_others(path: Path) -> None:
    async with serving(path) as (backend, _):
        app, operator = await with_context(path), await peer(admin_socket(path), app="operator")
        for i, (op, fields) in enumerate(
            [("requests", {}), ("cancel", {"call": 1}), ("prioritize", {"call": 1, "priority": 0})]
        ):
            assert (await app.ask(10 + i, op, everyone=True, **fields))["code"] == "forbidden"
        app.send({"id": 7, "op": "generate", "context": "inbox", "prompt": "wait"})
        await until(lambda: bool(backend.running))
        (call,) = backend.running
        assert (await operator.ask(1, "cancel", call=call, everyone=True))["type"] == "done"
        assert backend.cancelled == [call]
        await app.close()
        await operator.close()


@on_a_loop
async def test_requests_come_in_pages(path: Path) -> None:
    async with serving(path) as (backend, _):
        client, other = await with_context(path), await peer(path)
        for i in range(MAX_REQUESTS + 3):
            client.send({"id": 100 + i, "op": "generate", "context": "inbox", "prompt": "wait"})
        await until(lambda: len(backend.running) == MAX_REQUESTS + 3)
        first = await other.ask(1, "requests")
        rest = await other.ask(2, "requests", after=first["next"])
        assert [len(first["result"]), len(rest["result"])] == [MAX_REQUESTS, 3] and "next" not in rest
        await client.close()
        await other.close()
