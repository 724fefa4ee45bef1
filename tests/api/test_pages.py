"""Lists and conversations come in pages that fit into frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.api.async_client import AsyncClient
from llmaas.api.client import Client
from llmaas.api.pages import MAX_CONTEXTS, MAX_MESSAGES, MAX_PAGE, context_page, message_page, number_after, page_bytes
from llmaas.api.record_maps import to_map
from llmaas.api.server import Limits
from llmaas.api.wire import MAX_FRAME, encode
from llmaas.errors import BadRequest
from llmaas.records import AppId, ContextDetail, ContextId, ContextInfo, Message
from tests.support.loop import on_a_loop
from tests.support.scripted import ScriptedBackend, peer, serving, serving_in_a_thread

INFO = ContextInfo(ContextId("f" * 16), AppId("1000/" + "a" * 64), "\U0001f600" * 128, 1 << 40, 1 << 40, 1e10, 1e10)
TEXTS = st.text(st.sampled_from("aü€\U0001f600"), max_size=3000) | st.text("a", max_size=9000)


def pages_of(detail: ContextDetail, limit: int | None, nbytes: int) -> list[dict[str, Any]]:
    found, after = [], None
    while not found or after is not None:
        page = message_page(detail, after, limit, nbytes)
        assert isinstance(page.result, dict)
        assert len(encode(page.result)) <= nbytes + 512
        found.append(page.result)
        after = page.next
    return found


@given(st.lists(TEXTS, max_size=8), st.none() | st.integers(1, 5), st.integers(2048, 20_000))
def test_the_pages_of_a_conversation_are_the_conversation(texts: list[str], limit: int | None, nbytes: int) -> None:
    detail = ContextDetail(replace(INFO, name="x"), tuple(Message(f"r{i}", text) for i, text in enumerate(texts)))
    said: list[list[str]] = []
    for page in pages_of(detail, limit, nbytes):
        assert page["info"] == to_map(detail.info)
        messages = [[m["role"], m["content"]] for m in page["messages"]]
        assert len(messages) <= (limit or MAX_MESSAGES)
        if page.get("continues"):
            assert messages[0][0] == said[-1][0]
            said[-1][1] += messages.pop(0)[1]
        said += messages
    assert said == [[m.role, m.content] for m in detail.messages]


def test_a_conversation_that_fits_is_one_page() -> None:
    detail = ContextDetail(INFO, (Message("user", "x" * 1000),) * 500)
    assert len(pages_of(detail, None, MAX_PAGE)) == 1
    assert "continues" not in pages_of(detail, None, MAX_PAGE)[0]


@pytest.mark.parametrize("max_frame", [16384, MAX_FRAME])
def test_pages_of_the_longest_texts_fit_into_frames(max_frame: int) -> None:
    room = page_bytes(max_frame)
    detail = ContextDetail(INFO, tuple(Message("r" * 64, "\U0001f600" * n) for n in (300_000, 0, 700, 3)))
    assert all(len(encode(page)) < max_frame - 100 for page in pages_of(detail, None, room))
    page = context_page(iter([(n, INFO) for n in range(1, 5000)]), None, room)
    assert len(encode({"result": page.result})) < max_frame - 100
    assert page.next == str(min(MAX_CONTEXTS, room // 1024))


def test_a_list_goes_on_after_the_last_number_of_its_page() -> None:
    numbers = [2, 3, 5, 8, 13, 21]
    found, after = [], None
    for expected in ("3", "8", None):
        given = ((n, replace(INFO, name=str(n))) for n in numbers if n > number_after(after))
        page = context_page(given, 2, MAX_PAGE)
        assert isinstance(page.result, list) and page.next == expected
        found += [int(info["name"]) for info in page.result]
        after = page.next
    assert found == numbers
    assert context_page(iter([]), 2, MAX_PAGE).next is None


@pytest.mark.parametrize("after", ["", "x", "-1", "1.", "1.2.3", "9" * 16, "٣"])
def test_a_place_that_no_reply_has_given_is_refused(after: str) -> None:
    with pytest.raises(BadRequest, match="'after'"):
        number_after(after)


def test_a_place_beyond_the_end_is_an_empty_page() -> None:
    page = message_page(ContextDetail(INFO, (Message("user", "x"),)), "7.3", None, MAX_PAGE)
    assert isinstance(page.result, dict) and page.result["messages"] == [] and page.next is None


def fill(backend: ScriptedBackend, n: int, app: AppId) -> None:
    """Contexts of the app, and a conversation in the first that no frame of 16 KiB holds."""
    for i in range(n):
        info = ContextInfo(ContextId(f"{i:016x}"), app, f"c{i}", 1, 0, 1.0, float(i))
        backend.known[info.id] = ContextDetail(info, ())
    first = next(iter(backend.known))
    talk = [Message("user", "ü" * 30_000), *(Message("assistant", f"answer {i}") for i in range(100))]
    backend.known[first] = replace(backend.known[first], messages=tuple(talk))


SMALL = Limits(max_frame=16384, write_buffer=65536)


@on_a_loop
async def test_the_async_client_puts_pages_together(path: Path) -> None:
    async with serving(path, limits=SMALL, uid=7) as (backend, _), await AsyncClient.connect(path, app="mail") as mail:
        fill(backend, 100, AppId("7/mail"))
        assert [info.name for info in await mail.contexts()] == [f"c{i}" for i in reversed(range(100))]
        detail = await mail.show("c0")
        assert detail == backend.known[detail.info.id]


def test_the_sync_client_puts_pages_together(path: Path) -> None:
    with serving_in_a_thread(path, limits=SMALL) as there, Client(path, app="mail") as client:

        async def prepare(backend: ScriptedBackend, _: object) -> None:
            info = next(iter(backend.known.values())).info
            backend.known.clear()
            fill(backend, 100, info.app)

        client.create(name="x")
        there(prepare)
        assert [info.name for info in client.contexts()] == [f"c{i}" for i in reversed(range(100))]
        detail = client.show("c0")
        assert len(detail.messages) == 101 and detail.messages[0] == Message("user", "ü" * 30_000)


@on_a_loop
async def test_pages_over_the_wire_are_as_long_as_was_asked_for(path: Path) -> None:
    async with serving(path, uid=7) as (backend, _):
        fill(backend, 5, AppId("7/mail"))
        client = await peer(path)
        reply = await client.ask(1, "list", limit=3)
        assert ([info["name"] for info in reply["result"]], reply["next"]) == (["c0", "c1", "c2"], "3")
        reply = await client.ask(2, "list", limit=3, after=reply["next"])
        assert [info["name"] for info in reply["result"]] == ["c3", "c4"] and "next" not in reply
        reply = await client.ask(3, "show", context="c0", limit=2)
        assert (len(reply["result"]["messages"]), reply["next"]) == (2, "2")
        assert (await client.ask(4, "list", limit=0))["code"] == "bad_request"
        assert (await client.ask(5, "show", context="c0", after="there"))["code"] == "bad_request"
        await client.close()
