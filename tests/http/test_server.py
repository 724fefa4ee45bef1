"""The server around the endpoints: who may speak to it, for how long, how much, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import statistics
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmaas.errors import ConfigError
from llmaas.http.listen import tcp_socket
from llmaas.http.server import serve_http
from tests.support.daemon import SOON, answer_to, serving
from tests.support.http_edge import CHAT, HttpEdge, SlowEngine, events, http_edge, running, until
from tests.support.loop import on_a_loop

PARSERS = ["httptools", "h11"]


@pytest.fixture(params=PARSERS)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With httptools, and as if that were not installed."""
    if request.param == "h11":
        monkeypatch.setitem(sys.modules, "uvicorn.protocols.http.httptools_impl", None)
    return str(request.param)


async def answered(edge: HttpEdge, data: bytes) -> tuple[int, dict[str, Any]]:
    """Status and body of what comes back, when the server has closed."""
    reader, writer = await edge.raw()
    writer.write(data)
    head, _, body = (await asyncio.wait_for(reader.read(), SOON)).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(body)


@on_a_loop
async def test_both_parsers_serve_and_stream(parser: str, tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.http() as http:
        assert (await http.get("/health")).json() == {"status": "ok", "model": "fake"}
        for _ in range(3):  # on one connection
            whole = (await http.post("/v1/chat/completions", json=CHAT)).json()
            assert whole["choices"][0]["message"]["content"] == answer_to("hello")
        streamed = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
        assert streamed.headers["content-type"].startswith("text/event-stream")
        chunks = events(streamed.text)[:-1]
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == answer_to("hello")


@on_a_loop
async def test_what_is_no_http_is_told_so(parser: str, tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge:
        for data in (b"\x00\x01\x02\r\n\r\n", b"hello there\r\n\r\n", b"GET / HTTP/9.9\r\nbad\r\n\r\n"):
            status, body = await answered(edge, data)
            assert status == 400 and body["error"]["type"] == "invalid_request_error"


@on_a_loop
async def test_a_head_has_a_bound_in_bytes_and_time(
    parser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmaas.http.guard.HEAD_S", 0.3)
    async with http_edge(tmp_path) as edge:
        many = b"".join(b"x-%d: %s\r\n" % (i, b"y" * 100) for i in range(3000))
        for path, is_ollamas in ((b"/health", False), (b"/api/tags", parser == "httptools")):
            status, body = await answered(edge, b"GET %b HTTP/1.1\r\nhost: localhost\r\n" % path + many)
            assert status in (400, 431) and isinstance(body["error"], str) == is_ollamas
        for beginning in (b"", b"GET /health HTT", b"GET /health HTTP/1.1\r\nhost: loc"):
            assert (await answered(edge, beginning))[0] == 408


@on_a_loop
async def test_a_body_has_a_bound_in_bytes_and_time(
    parser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmaas.http.call.MOST_BODY", 10_000)
    monkeypatch.setattr("llmaas.http.call.BODY_S", 0.3)
    async with http_edge(tmp_path) as edge, edge.http() as http:

        async def parts() -> Any:
            for _ in range(30):
                yield b" " * 1000

        for content in (b" " * 20_000, parts()):
            reply = await http.post("/v1/chat/completions", content=content)
            assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\nconnection: close\r\n"
        assert (await answered(edge, head + b"\r\n{"))[0] == 408
        monkeypatch.setattr("llmaas.http.call.MOST_BODIES", 100)
        reply = await http.post("/v1/chat/completions", content=b" " * 5000)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        monkeypatch.setattr("llmaas.http.call.MOST_BODIES", 10_000)
        for _ in range(5):  # what was read is given back
            assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200


@on_a_loop
async def test_there_are_so_many_connections_and_no_more(
    parser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmaas.http.guard.MOST_CONNECTIONS", 3)
    async with http_edge(tmp_path) as edge:
        opened = [await edge.raw() for _ in range(3)]
        assert (await answered(edge, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"))[0] == 503
        opened[0][1].close()
        await opened[0][1].wait_closed()
        last = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        await asyncio.sleep(0.05)
        assert (await answered(edge, last))[0] == 200
        for _, writer in opened[1:]:
            writer.close()


@on_a_loop
async def test_who_does_not_read_is_dropped_and_its_call_ends(
    parser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmaas.http.guard.SLOW_S", 0.3)
    async with http_edge(tmp_path, n_cells=8192) as edge:
        many = {**CHAT, "max_tokens": 8000, "stream": True, "n": 8, "logprobs": True, "top_logprobs": 20}
        body = json.dumps(many).encode()
        reader, writer = await edge.raw()
        writer.transport.pause_reading()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a.localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
        )
        writer.write(body)
        await until(lambda: running(edge) == 8)
        await until(lambda: running(edge) == 0)
        writer.transport.resume_reading()
        with pytest.raises(ConnectionError):
            if b"[DONE]" not in await reader.read():
                raise ConnectionError
        writer.close()


def streaming(**more: Any) -> bytes:
    """A request whose response goes on and on."""
    body = json.dumps({**CHAT, "max_tokens": 900, "stream": True, **more}).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize("more", [b"\0\0\0\r\n\r\n", b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n\0\0\0\r\n\r\n"])
@on_a_loop
async def test_what_is_no_http_ends_a_response_that_has_begun(
    more: bytes, parser: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with http_edge(tmp_path, engine=SlowEngine) as edge:
        reader, writer = await edge.raw()
        writer.write(streaming())
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        writer.write(more)
        if parser == "h11":  # it looks at what follows when the response has ended
            writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            assert b"HTTP/1.1 400" not in await asyncio.wait_for(reader.read(), SOON)
        await until(lambda: running(edge) == 0)
        writer.close()
    assert not [record for record in caplog.records if record.levelname == "ERROR"], caplog.text


@on_a_loop
async def test_a_body_that_is_no_http_is_told_so_once(
    parser: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chunks = b"HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    async with http_edge(tmp_path) as edge:
        for request in (b"GET /health ", b"GET /v1/models ", b"POST /v1/chat/completions ", b"DELETE /health "):
            status, body = await answered(edge, request + chunks + b"ZZZ\r\n{}\r\n")
            assert status == 400 and "HTTP/1.1" in body["error"]["message"]
        await until(lambda: running(edge) == 0)
    assert not [record for record in caplog.records if record.levelname == "ERROR"], caplog.text


@on_a_loop
async def test_heads_and_trailers_have_a_bound_while_a_request_runs(tmp_path: Path) -> None:
    pytest.importorskip("httptools")  # h11 has bounds of its own
    lines = b"".join(b"x-%d: %s\r\n" % (i, b"y" * 1000) for i in range(2000))
    chunked = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    async with http_edge(tmp_path, engine=SlowEngine) as edge:
        for begin, begun in ((streaming(), True), (chunked + b"2\r\n{}\r\n0\r\n", False)):
            reader, writer = await edge.raw()
            writer.write(begin)
            if begun:
                assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
                writer.write(b"GET / HTTP/1.1\r\n")
            writer.write(lines)
            with contextlib.suppress(ConnectionError):
                assert begun or b" 431 " in await asyncio.wait_for(reader.readline(), SOON)
                await asyncio.wait_for(reader.read(), SOON)
            writer.close()
            await until(lambda: running(edge) == 0)


@on_a_loop
async def test_who_leaves_ends_all_that_was_asked_for_without_waiting(parser: str, tmp_path: Path) -> None:
    async with http_edge(tmp_path, engine=SlowEngine) as edge:
        reader, writer = await edge.raw()
        writer.write(streaming() + streaming(n=2))
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        begin = asyncio.get_running_loop().time()
        writer.transport.abort()
        await until(lambda: running(edge) == 0)
        assert asyncio.get_running_loop().time() - begin < 1.0


@on_a_loop
async def test_other_names_and_pages_of_the_web_are_refused_over_tcp(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.http() as http, edge.http(unix=True) as unix:
        for host in ("evil.example", "127.0.0.1.evil.example", "192.168.0.1:80", "[::ffff:1.2.3.4]", "]["):
            assert (await http.get("/health", headers={"host": host})).status_code == 403, host
            assert (await unix.get("/health", headers={"host": host})).status_code == 200
        for origin in (
            "https://evil.example",
            "null",
            "http://localhost.evil.example",
            "chrome-extension://x",
            "http://[",
        ):
            assert (await http.get("/health", headers={"origin": origin})).status_code == 403, origin
        for origin in ("http://localhost:3000", "http://127.0.0.1", "app://obsidian.md", "http://[::1]:80"):
            reply = await http.get("/health", headers={"origin": origin})
            assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, origin)
            asked = {"origin": origin, "access-control-request-headers": "authorization"}
            reply = await http.options("/v1/chat/completions", headers=asked)
            assert (reply.status_code, reply.headers["access-control-allow-headers"]) == (200, "authorization")
        assert "access-control-allow-origin" not in (await http.get("/health")).headers


@on_a_loop
async def test_apps_are_told_apart_on_the_unix_socket(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge:
        ask = {**CHAT, "llmaas": {"context": "inbox"}}
        async with edge.http(unix=True, app="mail") as mail, edge.http(unix=True) as other, edge.http() as tcp:
            for http in (mail, mail, other, tcp):
                assert (await http.post("/v1/chat/completions", json=ask)).status_code == 200
            for http, status in ((tcp, 403), (mail, 400)):
                reply = await http.post("/v1/chat/completions", json=ask, headers={"x-llmaas-app": "mail" * status})
                assert (reply.status_code, reply.json()["error"]["param"]) == (status, "x-llmaas-app")
        uid = os.geteuid()
        async with edge.daemon.connect("x", admin=True) as operator:
            found = {(i.app, i.name): i.n_messages for i in await operator.contexts(True)}
            assert found == {(f"{uid}/mail", "inbox"): 4, (f"{uid}/http", "inbox"): 4}
        assert edge.unix.stat().st_mode & 0o777 == 0o600


@on_a_loop
async def test_another_user_is_served_as_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel lets root connect, too; here it says that somebody else did."""
    monkeypatch.setattr("llmaas.http.guard.peer_uid", lambda sock: 4711)
    async with http_edge(tmp_path) as edge, edge.http(unix=True, app="mail") as http:
        ask = {**CHAT, "llmaas": {"context": "inbox"}}
        assert (await http.post("/v1/chat/completions", json=ask)).status_code == 200
        async with edge.daemon.connect("x", admin=True) as operator:
            assert [info.app for info in await operator.contexts(True)] == ["4711/mail"]


@on_a_loop
async def test_unknown_paths_and_methods_are_told_in_the_shape_of_their_api(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.http() as http:
        for path in ("/v1", "/v1/nothing", "/v1/models/", "/../etc/passwd", "/%00", "/v1/chat/completions/"):
            reply = await http.get(path)
            assert reply.status_code == 404 and reply.json()["error"]["message"], path
        for method, path in (("GET", "/v1/chat/completions"), ("POST", "/health"), ("DELETE", "/v1/models")):
            reply = await http.request(method, path)
            assert (
                reply.status_code == 405 and reply.headers["allow"] == f"{'POST' if 'chat' in path else 'GET'}, OPTIONS"
            )


@on_a_loop
async def test_models_are_listed_with_their_adapters(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.openai() as client:
        assert [model.id async for model in client.models.list()] == ["fake", "fake:blue", "fake:red"]
        assert (await client.models.retrieve("fake:red")).id == "fake:red"
        assert (await client.models.retrieve("default")).id == "fake"


@on_a_loop
async def test_without_a_daemon_it_is_503_until_there_is_one_again(tmp_path: Path) -> None:
    stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()
    (tmp_path / "d.sock").parent.mkdir(exist_ok=True)
    ended = asyncio.ensure_future(
        serve_http(tmp_path / "d.sock", stop, address="127.0.0.1:0", on_ready=address.set_result)
    )
    async with httpx.AsyncClient(base_url=f"http://{await address}") as http:
        for _ in range(2):
            for path in ("/health", "/v1/models"):
                reply = await http.get(path)
                assert (reply.status_code, reply.json()["error"]["code"]) == (503, "not_serving")
                assert reply.headers["retry-after"] and "llmaas serve" in reply.json()["error"]["message"]
            async with serving(tmp_path):
                assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
            await asyncio.sleep(0.05)
    stop.set()
    await asyncio.wait_for(ended, SOON)


@on_a_loop
async def test_a_server_that_stops_finishes_what_runs_and_ends_what_does_not_end(tmp_path: Path) -> None:
    async with http_edge(tmp_path, engine=SlowEngine, grace_s=0.6) as edge, edge.http() as http, edge.http() as late:
        await late.get("/health")
        asked = [
            asyncio.ensure_future(http.post("/v1/chat/completions", json={**CHAT, "max_tokens": n, "stream": stream}))
            for n, stream in ((10, False), (900, False), (900, True))
        ]
        await until(lambda: running(edge) == 3)
        await asyncio.sleep(0.1)
        edge.stop.set()
        await asyncio.sleep(0.05)
        refused = await late.post("/v1/chat/completions", json=CHAT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        short, whole, stream = await asyncio.gather(*asked)
        assert short.status_code == 200
        assert whole.status_code == 503
        assert events(stream.text)[-1]["error"]["type"] == "server_error"
        await asyncio.wait_for(asyncio.shield(edge.ended), SOON)
        assert not edge.unix.exists() and running(edge) == 0


@on_a_loop
async def test_small_responses_do_not_wait_for_an_acknowledgement(parser: str, tmp_path: Path) -> None:
    """Head and body are two packets; without TCP_NODELAY the second comes 40 ms later on a connection in use."""
    with tcp_socket("127.0.0.1:0") as sock:
        assert sock.proto == socket.IPPROTO_TCP  # asyncio looks at that
    async with http_edge(tmp_path) as edge, edge.http() as http:
        times = []
        for _ in range(40):
            before = asyncio.get_running_loop().time()
            assert (await http.get("/health")).status_code == 200
            times.append(asyncio.get_running_loop().time() - before)
    assert statistics.median(times) < 0.03, times


def test_an_address_that_others_can_reach_is_refused() -> None:
    for address in ("0.0.0.0:0", "192.168.1.1:80", "[::]:80"):
        with pytest.raises(ConfigError, match="other machines"):
            tcp_socket(address)
    with tcp_socket("0.0.0.0:0", tokens_required=True) as sock:
        assert sock.getsockname()[0] == "0.0.0.0"
    with tcp_socket("127.0.0.1:0") as sock, pytest.raises(ConfigError, match="cannot serve HTTP") as taken:
        tcp_socket(f"127.0.0.1:{sock.getsockname()[1]}")
    assert "--http" in taken.value.hint
