"""Tokens over HTTP: which app a request is, and what is refused."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.api.app_token import is_token
from llmaas.errors import ConfigError
from llmaas.http import connections
from llmaas.http.access import Access
from llmaas.http.errors import HttpError
from llmaas.http.identity import Identity, identity_of
from llmaas.records import AppQuota
from tests.support.daemon import SOON, answer_to
from tests.support.http_edge import CHAT, HttpEdge, events, http_edge, until
from tests.support.loop import on_a_loop

REQUIRED = Access(tokens_required=True)
UNKNOWN = "llmaas_" + "0" * 64
ASK = {**CHAT, "llmaas": {"context": "inbox"}}
PATHS = [
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/embeddings"),
    ("GET", "/nothing/here"),
    ("GET", "/api/version"),
    ("GET", "/api/tags"),
    ("POST", "/api/chat"),
    ("DELETE", "/v1/models"),
]


async def token_for(edge: HttpEdge, app: str = "mail") -> str:
    async with edge.daemon.connect("cli", admin=True) as operator:
        return str((await operator.app_add(app)).token)


def refused(reply: httpx.Response, path: str = "/v1/") -> None:
    assert reply.status_code == 401, reply.text
    assert reply.headers["www-authenticate"] == "Bearer" and reply.headers["x-should-retry"] == "false"
    error = reply.json()["error"]
    if path.startswith("/api/"):
        assert isinstance(error, str) and "token" in error
    else:
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert "token" in error["message"]
    assert "llmaas_0" not in reply.text


@asynccontextmanager
async def ollamas(base: str, token: str) -> AsyncIterator[Any]:
    """Ollama's own client, which has nothing that closes it."""
    client = pytest.importorskip("ollama").AsyncClient(host=base, headers={"Authorization": f"Bearer {token}"})
    try:
        yield client
    finally:
        await client.close()


async def raw(edge: HttpEdge, head: bytes) -> tuple[int, dict[str, Any]]:
    reader, writer = await edge.raw()
    writer.write(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n" + head + b"\r\n")
    answer, _, body = (await asyncio.wait_for(reader.read(), SOON)).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return int(answer.split()[1]), json.loads(body)


@pytest.mark.parametrize("unix", [False, True])
@on_a_loop
async def test_a_token_makes_a_request_its_apps(tmp_path: Path, unix: bool) -> None:
    async with http_edge(tmp_path) as edge:
        token = await token_for(edge)
        async with edge.http(token=token, unix=unix) as mail, edge.http(unix=unix) as other:
            for http in (mail, other, mail):
                reply = await http.post("/v1/chat/completions", json=ASK)
                assert reply.status_code == 200, reply.text
            assert (await mail.post("/api/chat", json={**CHAT, "stream": False})).status_code == 200
        async with edge.daemon.connect("x", admin=True) as operator:
            found = {info.app.partition("/")[2]: info.n_messages for info in await operator.contexts(everyone=True)}
        assert found == {"mail": 4, "http": 2} or len(found) == 2
        async with (
            edge.http(token=token, app="mail", unix=unix) as named,
            edge.http(token=token, app="notes", unix=unix) as misnamed,
        ):
            assert (await named.get("/v1/models")).status_code == 200
            refused(await misnamed.get("/v1/models"))


@pytest.mark.parametrize("path", [path for _, path in PATHS])
@on_a_loop
async def test_what_looks_like_a_token_and_is_none_is_401_everywhere(tmp_path: Path, path: str) -> None:
    async with http_edge(tmp_path) as edge, edge.http() as http:
        method = next(method for method, each in PATHS if each == path)
        for value in (
            f"Bearer {UNKNOWN}",
            "Bearer llmaas_",
            "Bearer LLMAAS_" + "0" * 64,
            UNKNOWN,
            f"Basic {UNKNOWN}",
            f"Bearer {UNKNOWN} {UNKNOWN}",
            f"Bearer  x{UNKNOWN}",
            "Bearer llmaas_" + "0" * 20_000,
            f"Bearer {UNKNOWN}\u00e9",
        ):
            header = {"authorization": value.encode("latin-1")}
            refused(await http.request(method, path, headers=header, json=CHAT), path)


@given(
    st.lists(
        st.sampled_from(["Bearer", "llmaas_", "LLMAAS_", " ", "\t", "0" * 64, "a" * 64, ",", "é", "\0"]) | st.text()
    )
)
def test_what_holds_a_token_is_one_or_refused_and_nothing_else_is(parts: list[str]) -> None:
    header = "".join(parts).encode("utf-8").decode("latin-1")
    for client in (("unix", 7), ("127.0.0.1", 80), None):
        try:
            found = identity_of(client, {"authorization": header}, tokens_required=False)
        except HttpError as error:
            assert error.status == 401 and "llmaas_" in header.lower()
        else:
            assert ("llmaas_" in header.lower()) == bool(found.token)
            assert found.token in header and (not found.token or is_token(found.token))
            assert (found.app is None) == bool(found.token)


@on_a_loop
async def test_the_keys_that_clients_must_send_are_none(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.http() as http:
        for value in (
            "Bearer ollama",
            "Bearer sk-no-key",
            "Bearer EMPTY",
            "Bearer",
            "",
            "Basic YTpi",
            "Bearer \xe9",
        ):
            header = {"authorization": value.encode("latin-1")}
            assert (await http.get("/v1/models", headers=header)).status_code == 200, value


@on_a_loop
async def test_an_app_with_a_token_is_not_had_by_its_name(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge:
        await token_for(edge)
        async with edge.http(unix=True, app="mail") as http:
            refused(await http.get("/v1/models"))
        async with edge.http(unix=True, app="notes") as http:
            assert (await http.get("/v1/models")).status_code == 200
        await token_for(edge, "http")  # what all requests without a token are
        async with edge.http() as http:
            refused(await http.get("/v1/models"))


@on_a_loop
async def test_where_tokens_are_required_nothing_is_told_without_one(tmp_path: Path) -> None:
    async with http_edge(tmp_path, access=REQUIRED) as edge:
        token = await token_for(edge)
        for unix in (False, True):
            async with edge.http(unix=unix) as http, edge.http(unix=unix, token="EMPTY") as empty:
                for method, path in PATHS:
                    for client in (http, empty):
                        reply = await client.request(method, path, json=CHAT)
                        refused(reply, path)
                        assert "fake" not in reply.text
                assert (await http.options("/v1/models")).status_code == 200  # browsers ask it without a token
                page = await http.get("/", headers={"accept": "text/html"})  # it asks for a token by itself
                assert page.status_code == 200 and "fake" not in page.text
            async with edge.http(unix=unix, token=token) as http:
                assert (await http.get("/health")).json()["status"] == "ok"


@on_a_loop
async def test_headers_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge:
        token = (await token_for(edge)).encode()
        good = b"authorization: Bearer %s\r\n" % token
        assert (await raw(edge, good))[0] == 200
        assert (await raw(edge, b"AUTHORIZATION:\tbearer   %s  \r\n" % token))[0] == 200
        for head in (
            good + b"Authorization: Bearer ollama\r\n",
            b"authorization: Bearer ollama\r\n" + good,
            good + good,
            b"host: localhost\r\n",
            b"x-llmaas-app: http\r\nx-llmaas-app: http\r\n",
            b"origin: http://localhost\r\norigin: http://localhost\r\n",
        ):
            assert (await raw(edge, head))[0] == 400, head
        for smuggled in (b"x: y\nauthorization: Bearer %s\r\n" % token, b"authorization : Bearer %s\r\n" % token):
            status, _ = await raw(edge, smuggled)  # if it is taken for the header, then as the app's
            assert status in (200, 400, 401)
            assert (await raw(edge, smuggled.replace(token, UNKNOWN.encode())))[0] in (200, 400, 401)


@on_a_loop
async def test_a_token_in_a_url_is_refused_and_not_used(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.http() as http:
        token = await token_for(edge)
        for query in (f"api_key={token}", f"x={token.upper()}", f"{token}"):
            reply = await http.get(f"/v1/models?{query}")
            refused(reply)
            assert token not in reply.text


@on_a_loop
async def test_tokens_are_in_no_log_and_no_repr(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with http_edge(tmp_path) as edge:
        token = await token_for(edge)
        async with edge.http(token=token) as http:
            assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
            await http.get(f"/v1/models?key={token}")
            async with edge.daemon.connect("cli", admin=True) as operator:
                await operator.app_rotate("mail")
            refused(await http.get("/v1/models"))
    own = [record for record in caplog.records if record.name.startswith("llmaas")]
    assert token not in "".join(record.getMessage() for record in own)
    assert "secret" not in repr(Identity("mail", token="secret"))


@on_a_loop
async def test_a_token_that_was_rotated_is_refused_at_once_and_ends_what_streams(tmp_path: Path) -> None:
    async with http_edge(tmp_path, n_cells=8192) as edge:
        token = await token_for(edge)
        async with edge.http(token=token) as http, edge.daemon.connect("cli", admin=True) as operator:
            long = {**CHAT, "max_tokens": 8000, "stream": True}
            async with http.stream("POST", "/v1/chat/completions", json=long) as reply:
                lines = reply.aiter_lines()
                await anext(lines)
                new = (await asyncio.wait_for(operator.app_rotate("mail"), 1)).token
                rest = [line async for line in lines]
            assert events("\n".join(rest))[-1]["error"]["code"] == "invalid_api_key"
            for _ in range(3):
                refused(await http.get("/v1/models"))
            async with edge.http(token=new) as fresh:
                assert (await fresh.post("/v1/chat/completions", json=CHAT)).status_code == 200
            await operator.app_remove("mail", contexts="delete")
            async with edge.http(token=new) as fresh:
                refused(await fresh.get("/v1/models"))


@on_a_loop
async def test_who_sends_wrong_tokens_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_APPS", 2)
    async with http_edge(tmp_path) as edge:
        token = await token_for(edge)
        async with edge.http() as wrong, edge.http(token=token) as right, edge.http() as other:

            async def guess(i: int) -> None:
                header = {"authorization": f"Bearer llmaas_{i:064x}"}
                refused(await wrong.get("/v1/models", headers=header))

            guesses = [asyncio.ensure_future(guess(i)) for i in range(60)]
            for _ in range(10):
                assert (await right.post("/v1/chat/completions", json=CHAT)).status_code == 200
                assert (await other.get("/v1/models")).status_code == 200
            await asyncio.gather(*guesses)
        await until(lambda: edge.daemon.service.apps.infos() != [])


@on_a_loop
async def test_an_address_that_others_reach_is_served_with_tokens_and_for_names_that_are_known(tmp_path: Path) -> None:
    access = Access(tokens_required=True, hosts=frozenset({"box.lan"}))
    async with http_edge(tmp_path, access=access, host="0.0.0.0") as edge:
        port = edge.address.rpartition(":")[2]
        token = await token_for(edge)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=SOON) as http:
            auth = {"authorization": f"Bearer {token}"}
            refused(await http.get("/v1/models"))
            for host in ("box.lan", f"BOX.lan.:{port}", "127.0.0.1", "192.168.7.7:1", "[fe80::1]", "localhost"):
                assert (await http.get("/v1/models", headers={**auth, "host": host})).status_code == 200, host
            for host in ("evil.example", "box.lan.evil.example", "xbox.lan", "box", ""):
                status = (await http.get("/v1/models", headers={**auth, "host": host})).status_code
                assert status == (200 if not host else 403), host
            for origin, status in (
                ("http://box.lan:3000", 200),
                (f"http://127.0.0.1:{port}", 200),
                ("http://192.168.7.7", 403),
                ("http://evil.example", 403),
            ):
                reply = await http.get("/v1/models", headers={**auth, "origin": origin})
                assert reply.status_code == status, origin
            own = {**auth, "origin": f"http://192.168.7.7:{port}", "host": f"192.168.7.7:{port}"}
            assert (await http.get("/v1/models", headers=own)).status_code == 200
            reply = await http.post("/v1/chat/completions", json=CHAT, headers=auth)
            assert reply.json()["choices"][0]["message"]["content"] == answer_to("hello")


@on_a_loop
async def test_an_address_that_others_reach_is_not_served_without_tokens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="other machines") as error:
        async with http_edge(tmp_path, host="0.0.0.0"):
            pass
    assert "http_tokens" in error.value.hint


@on_a_loop
async def test_openais_client_and_ollamas(tmp_path: Path) -> None:
    openai, ollama = pytest.importorskip("openai"), pytest.importorskip("ollama")
    async with http_edge(tmp_path, access=REQUIRED) as edge:
        token = await token_for(edge)
        base = f"http://{edge.address}"
        async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key=token) as client:
            assert (await client.chat.completions.create(**CHAT)).choices[0].message.content == answer_to("hello")
        for wrong in (UNKNOWN, "none"):
            async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key=wrong) as client:
                with pytest.raises(openai.AuthenticationError):
                    await client.models.list()
            async with ollamas(base, wrong) as client:
                with pytest.raises(ollama.ResponseError) as error:
                    await client.list()
            assert error.value.status_code == 401 and "token" in error.value.error
        async with ollamas(base, token) as client:
            assert (await client.list()).models


@on_a_loop
async def test_an_apps_quotas_are_told_as_clients_expect(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.daemon.connect("cli", admin=True) as operator:
        token = (await operator.app_add("mail", quota=AppQuota(contexts=0))).token
        async with edge.http(token=token) as http:
            for path in ("/v1/chat/completions", "/api/chat"):
                reply = await http.post(path, json=CHAT)
                assert reply.status_code == 429 and reply.headers["x-should-retry"] == "false"
                assert "llmaas app quota" in reply.text
            assert (await http.post("/v1/chat/completions", json=CHAT)).json()["error"]["code"] == "insufficient_quota"
            await operator.app_quota("mail", AppQuota(requests=0))
            reply = await http.post("/v1/chat/completions", json=CHAT)
            assert reply.status_code == 429 and reply.headers["retry-after"] == "1"
            assert reply.json()["error"]["code"] == "rate_limit_exceeded"
            await operator.app_quota("mail", AppQuota())
            assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
