"""``resolve`` and ``fork`` over the wire."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from llmaas.api.async_client import AsyncClient
from llmaas.api.client import Client
from llmaas.errors import BadRequest
from llmaas.records import Message
from tests.support.loop import on_a_loop
from tests.support.scripted import serving, serving_in_a_thread, with_context

HISTORY = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]


@on_a_loop
async def test_a_conversation_goes_over_the_wire_and_its_context_comes_back(path: Path) -> None:
    async with serving(path):
        peer = await with_context(path)
        reply = await peer.ask(1, "resolve", messages=HISTORY)
        assert reply["result"]["n_messages"] == 1
        assert reply["result"]["context"]["anonymous"] is True
        assert (await peer.ask(2, "fork", context="inbox", n_messages=1))["result"]["n_messages"] == 1
        await peer.close()
        async with await AsyncClient.connect(path, app="notes") as client:
            found = await client.resolve([Message("user", "Hello?"), HISTORY[1]])
            assert found.n_messages == 1 and found.context.anonymous and found.context.app.endswith("/notes")


def test_the_blocking_client_resolves_too(path: Path) -> None:
    with serving_in_a_thread(path), Client(path, app="notes") as client:
        found = client.resolve(HISTORY, adapter="terse")
        assert found.n_messages == 1 and found.context.adapter == "terse"
        assert client.fork(found.context.id, n_messages=0).n_messages == 0
        with pytest.raises(BadRequest, match="n_messages"):
            client.fork(found.context.id, n_messages=-1)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "messages"),
        ({"messages": "Hello?"}, "messages"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content"),
        ({"messages": [], "context": "inbox"}, "context"),
        ({"messages": [], "adapter": 1}, "adapter"),
        ({"messages": [{"role": "x" * 65, "content": ""}]}, "role"),
        ({"messages": [{"role": "user", "content": ""}] * 4097}, "4096"),
    ],
)
@on_a_loop
async def test_what_is_wrong_with_a_resolve_is_told(path: Path, fields: dict[str, Any], says: str) -> None:
    async with serving(path):
        peer = await with_context(path)
        reply = await peer.ask(1, "resolve", **fields)
        assert reply["code"] == "bad_request"
        assert re.search(says, reply["message"])
        await peer.close()
