"""The web page in a real browser, and what it asks of the server."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmaas.http.web.page import OLLAMA_WORDS
from llmaas.records import Message
from tests.support.http_edge import HttpEdge, SlowEngine, http_edge, running, until
from tests.support.loop import on_a_loop

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt install chromium)")


@asynccontextmanager
async def opened(edge: HttpEdge, *, may_fail: bool = False, **options: Any) -> AsyncIterator[Any]:
    """The page in a browser of its own. It may not ask another host or, unless it ``may_fail``, meet an error."""
    playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    async with playwright.async_playwright() as started:
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await started.chromium.launch(executable_path=CHROMIUM, args=[*root, "--disable-gpu"])
        view = await browser.new_page(**options)
        wrong, hosts = list[str](), set[str]()
        view.on("pageerror", lambda error: wrong.append(str(error)))
        view.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        view.on("request", lambda request: hosts.add(request.url.split("/")[2]) if "//" in request.url else None)
        view.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
        view.set_default_timeout(20_000)
        await view.goto(f"http://{edge.address}/")
        yield view
        assert hosts == {edge.address} and (may_fail or wrong == [])
        await browser.close()


async def ask(view: Any, text: str) -> None:
    await view.get_by_label("Message", exact=True).fill(text)
    await view.keyboard.press("Enter")
    await view.get_by_role("button", name="Send").wait_for()


async def messages(view: Any) -> list[str]:
    return list(await view.locator(".message > span").all_inner_texts())


@on_a_loop
async def test_browsers_get_the_page_and_others_what_ollama_says(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.http() as http:
        html = await http.get("/", headers={"accept": "text/html,*/*"})
        assert html.headers["content-type"].startswith("text/html") and "<main>" in html.text
        policy = html.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert "//" not in policy, "no other host"
        assert (await http.get("/")).content == OLLAMA_WORDS
        assert (await http.head("/")).status_code == 200
        assert (await http.post("/")).status_code == 405
        assert (await http.get("/", headers={"host": "evil.example", "accept": "text/html"})).status_code == 403


@on_a_loop
async def test_the_state_is_the_apps_own(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.http() as http, edge.daemon.connect("other") as other:
        secret = await other.create(name="secret")
        async with edge.daemon.connect("http") as client:
            await client.create(name="a/b 100%")
            await client.append("a/b 100%", [Message("user", "hi")])
        state = (await http.get("/llmaas/state")).json()
        assert [context["name"] for context in state["contexts"]] == ["a/b 100%"]
        assert [request["name"] for request in state["requests"]] == ["a/b 100%"]
        assert sum(state["contexts"][0]["tiers"]) == state["contexts"][0]["n_tokens"] > 0
        assert state["memory"]["cells"]["used"] > 0 and "secret" not in str(state)
        path = "/llmaas/contexts/a%2Fb%20100%25"
        shown = (await http.get(path)).json()
        assert shown["messages"] == [{"role": "user", "content": "hi"}]
        for name in (secret.id, "secret", "nothing"):
            for method in ("GET", "DELETE"):
                assert (await http.request(method, f"/llmaas/contexts/{name}")).status_code == 404
        assert (await http.delete(path)).json() == {"id": "a/b 100%", "deleted": True}
        assert (await http.get(path)).status_code == 404
        assert (await http.get("/llmaas/contexts/")).status_code == 404
        assert (await other.show(secret.id)).info.name == "secret"


@on_a_loop
async def test_a_context_is_made_once_by_its_name(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.http() as http:
        path = "/llmaas/contexts/a%2Fb"
        first = await http.put(path, json={"system": "Be brief.", "ttl": 3600})
        assert (first.status_code, first.json()["name"], first.json()["ttl"]) == (200, "a/b", 3600)
        again = await http.put(path, json={"system": "Be long."})
        assert again.json()["id"] == first.json()["id"]
        assert (await http.get(path)).json()["messages"] == [{"role": "system", "content": "Be brief."}]
        for body, field in (({"sytem": "x"}, "sytem"), ({"ttl": -1}, "ttl"), ({"system": 1}, "system")):
            refused = await http.put("/llmaas/contexts/other", json=body)
            assert refused.status_code == 400 and field in refused.text
        assert (await http.put("/llmaas/contexts/~x", json={})).status_code == 400
        assert (await http.put("/llmaas/contexts/", json={})).status_code == 404


@needs_browser
@on_a_loop
async def test_a_person_chats_by_keyboard_and_comes_back(tmp_path: Path) -> None:
    # No answer ends by itself, since the page draws at random: each is as long as the page asks for, and two fit.
    async with http_edge(tmp_path, n_cells=4096) as edge, opened(edge) as view:
        await view.get_by_label("Name of a new context").fill("notes")
        await view.keyboard.press("Enter")
        await ask(view, "hello")
        said = await messages(view)
        assert said[0] == "hello" and said[1]
        await view.get_by_text("first token after").first.wait_for()
        await view.get_by_role("button", name="notes", exact=False).first.wait_for()
        await view.get_by_label("Message", exact=True).fill("two")
        await view.keyboard.press("Shift+Enter")
        await view.keyboard.type("lines")
        await view.keyboard.press("Enter")
        await view.locator(".message.assistant").nth(1).wait_for()
        await view.get_by_role("button", name="Send").wait_for()
        assert (await messages(view))[2] == "two\nlines"
        # A new tab, from the keyboard alone: the context is there with all that was said.
        await view.reload()
        entry = view.locator("li.context button").first
        await entry.wait_for()
        await entry.focus()
        while not await entry.evaluate("entry => entry === document.activeElement"):
            await entry.focus()  # the list was drawn anew between finding the entry and focusing it
        await view.keyboard.press("Enter")
        await view.locator(".message").nth(3).wait_for()
        async with edge.daemon.connect("http") as client:
            kept = [message.content for message in (await client.show("notes")).messages]
        assert [text.strip() for text in await messages(view)] == [text.strip() for text in kept] and len(kept) == 4


@needs_browser
@on_a_loop
async def test_the_page_shows_tiers_switches_and_memory_live(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, opened(edge) as view, edge.daemon.connect("http") as client:
        await client.create(name="inbox", system="Sort mail. " * 40)
        await client.append("inbox", [Message("user", "first mail")])
        entry = view.locator("li.context", has_text="inbox")
        await entry.locator(".bar .cells").wait_for()
        assert "tokens" in await entry.inner_text()
        await view.locator("#switches li", has_text="inbox").wait_for()
        assert "tokens" in await view.locator("#gauges").inner_text()
        await entry.locator("button").first.click()
        await view.get_by_text("first mail").wait_for()
        await client.append("inbox", [Message("user", "second mail")])  # another program goes on
        await view.get_by_text("second mail").wait_for()
        await client.delete("inbox")
        await entry.wait_for(state="detached")


@needs_browser
@on_a_loop
async def test_an_answer_can_be_stopped_and_a_context_deleted(tmp_path: Path) -> None:
    async with http_edge(tmp_path, engine=SlowEngine) as edge, opened(edge, may_fail=True) as view:
        await view.get_by_label("Message", exact=True).fill("tell me a long story")
        await view.keyboard.press("Enter")
        await until(lambda: running(edge) == 1)
        await view.locator(".message.assistant > span", has_text=re.compile(".{5}")).wait_for()
        await view.keyboard.press("Escape")
        await until(lambda: running(edge) == 0)
        await view.get_by_text("stopped").wait_for()
        said = (await messages(view))[1]
        await view.get_by_role("button", name="Delete").click()
        await view.locator("li.context").wait_for(state="detached")
        assert said and await messages(view) == []


@needs_browser
@on_a_loop
async def test_text_of_others_stays_text(tmp_path: Path) -> None:
    bad = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
    async with http_edge(tmp_path) as edge, edge.daemon.connect("http") as client:
        await client.create(name=bad[:100], system=bad)
        await client.append(bad[:100], [Message("user", bad)])
        async with opened(edge) as view:
            await view.locator("li.context button").first.click()
            await view.get_by_text("onerror").nth(1).wait_for()
            assert bad in await messages(view) and await view.title() == "llmaas"
            assert await view.locator("img").count() == 0


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@on_a_loop
async def test_a_phone_shows_all_of_it_in_either_colours(tmp_path: Path, scheme: str) -> None:
    phone = {"viewport": {"width": 360, "height": 640}, "color_scheme": scheme, "has_touch": True}
    async with http_edge(tmp_path, end_rate=0.05) as edge, opened(edge, **phone) as view:
        await ask(view, "hello")
        size = await view.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        assert size[0] <= 360 and size[1] <= 640, "nothing sticks out"
        for label in ("Message", "Name of a new context"):
            box = await view.get_by_label(label, exact=True).bounding_box()
            assert box["y"] + box["height"] <= 640 and box["width"] >= 100
        ink, paper = await view.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        assert (brightness(ink) < brightness(paper)) is (scheme == "light")


def brightness(colour: str) -> int:
    """Of "rgb(R, G, B)"."""
    return sum(int(part) for part in colour.strip("rgb()").split(",")[:3])


@needs_browser
@on_a_loop
async def test_a_server_that_was_away_is_found_again(tmp_path: Path) -> None:
    async with http_edge(tmp_path, end_rate=0.05) as edge, opened(edge, may_fail=True) as view:
        await ask(view, "hello")
        await view.route("**/llmaas/state", lambda route: route.abort())
        await view.get_by_text("does not answer").wait_for()
        await view.unroute("**/llmaas/state")
        await view.get_by_text("does not answer").wait_for(state="detached")
        await ask(view, "again")
        assert len(await messages(view)) == 4
