"""The JavaScript client in a real browser, on a page of this machine that another server has."""

from __future__ import annotations

import functools
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.daemon import answer_to
from tests.support.drivers import BRIDGE
from tests.support.http_edge import SlowEngine, http_edge, running, until
from tests.support.loop import on_a_loop

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHAT = """async (url) => {
    const { Client, LlmaasError } = await import("/index.js");
    const client = new Client({ url });
    await client.context("a/b", { system: "Grüße 😀" });
    await client.context("page");
    const pieces = [];
    const answer = client.generate("page", "hello", { max_tokens: 8, temperature: 0 });
    for await (const text of answer) pieces.push(text);
    const shown = await client.show("a/b");
    await client.hint("page");
    await client.delete("a/b");
    let code = "";
    await client.show("a/b").catch((error) => { if (error instanceof LlmaasError) code = error.code; });
    const long = client.generate("page", "a long story", { max_tokens: 600 });
    let ended = "";
    try { for await (const text of long) long.cancel(); } catch (error) { ended = error.code; }
    const system = shown.messages[0].content;
    return { ...(await answer.done), text: pieces.join(""), n: pieces.length, system, code, ended };
}"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves the package's files, and says nothing."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path != "/":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>a page</title>")


@pytest.fixture
def page() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(BRIDGE / "js"))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()
        thread.join(10)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt install chromium)")
@on_a_loop
async def test_a_page_chats_and_stops_an_answer(page: str, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    async with http_edge(tmp_path, engine=SlowEngine) as edge, playwright.async_playwright() as started:
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await started.chromium.launch(executable_path=CHROMIUM, args=[*root, "--disable-gpu"])
        view = await browser.new_page()
        await view.goto(page)
        found = await view.evaluate(CHAT, f"http://{edge.address}")
        assert (found["text"], found["reason"], found["system"]) == (answer_to("hello"), "length", "Grüße 😀")
        assert found["nTokens"] > 8 and found["n"] > 1
        assert (found["code"], found["ended"]) == ("unknown_context", "cancelled")
        await until(lambda: running(edge) == 0)
        await browser.close()
