"""One app, in a process of its own: it makes calls through a program's own interface and says when tokens came.

``python -m bench.replaying.app KIND ADDRESS NAME``: KIND is ``llmaas`` (ADDRESS is a Unix socket), ``llama_server``,
``llama_cpp_server`` or ``hearth`` (ADDRESS is a URL). It reads one JSON request a line on stdin, {context, text,
tokens, history, history_text, messages, n_new, begins, restore, save, stream}, and writes one reply a line on stdout:
{began_us, ttft_ms, total_ms, between_ms, tokens, text} and, where the program tells them, ``switch_ms``, ``queue_ms``,
``prefill_ms``, ``sources`` and ``n_computed``; with ``stream`` when each token came, ``arrivals_us``. Microseconds are
of the machine's monotonic clock, which all processes share.

Law: what is timed is what a user of this app would wait for; nothing else happens in that time. The time to the first
token includes what the app itself must do before, such as to have a slot restored.
"""

from __future__ import annotations

import http.client
import json
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from time import perf_counter
from typing import Any, Protocol
from urllib.parse import urlsplit

Request = dict[str, Any]
Reply = dict[str, Any]
_TIMEOUT_S = 600.0
_NOT_IN_NAMES = re.compile("[^A-Za-z0-9._-]")
"""What the service takes in no app's name."""


class AppClient(Protocol):
    def call(self, request: Request) -> Reply: ...


class LlmaasApp:
    """Over the daemon's Unix socket."""

    def __init__(self, address: str, name: str) -> None:
        from llmaas.api.client import Client

        self._client = Client(address, app=_NOT_IN_NAMES.sub("-", name)[:64])

    def call(self, request: Request) -> Reply:
        if request["begins"]:
            self._client.create(name=request["context"])
        tokens: list[int] = []
        arrivals: list[float] = []
        begin = perf_counter()
        if not request["n_new"]:
            done = self._client.append(request["context"], prompt=request["text"], special=False)
        else:
            stream = self._client.generate(
                request["context"], prompt=request["text"], special=False, max_tokens=request["n_new"]
            )
            for piece in stream:
                arrivals += [perf_counter() - begin] * len(piece.tokens)
                tokens += piece.tokens
            done = stream.done
        total = perf_counter() - begin
        first = arrivals[0] if arrivals else total
        switch = done.switch
        sources = {"cells": switch.cells, "pool": switch.pool, "disk": switch.disk, "recomputed": switch.recomputed}
        return _reply(begin, first, total, arrivals, tokens) | {
            "switch_ms": switch.switch_ms,
            "queue_ms": done.queue_ms,
            "prefill_ms": max(0.0, done.ttft_ms - switch.switch_ms - done.queue_ms),
            "sources": sources,
            "n_computed": done.n_prompt + switch.recomputed,
        }


class HttpApp:
    """A client with a connection for each request: servers close those that are idle for seconds, and a new one over
    the loopback costs a fraction of a millisecond."""

    def __init__(self, address: str, name: str) -> None:
        place = urlsplit(address)
        self._place = place.hostname or "", place.port

    def post(self, path: str, body: dict[str, Any]) -> None:
        """Raises RuntimeError if the server refuses."""
        with closing(self._connection()) as connection:
            self._response(connection, path, body).read()

    def events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The server-sent events of a streamed answer."""
        with closing(self._connection()) as connection:
            for line in self._response(connection, path, body):
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    yield json.loads(line[6:])

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self._place, timeout=_TIMEOUT_S)

    def _response(
        self, connection: http.client.HTTPConnection, path: str, body: dict[str, Any]
    ) -> http.client.HTTPResponse:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {response.read().decode('utf-8', 'replace')[:300]}")
        return response


class LlamaServerApp(HttpApp):
    """llama-server: the whole prompt as tokens with each call, of which it computes what its caches lack."""

    def call(self, request: Request) -> Reply:
        tokens: list[int] = []
        arrivals: list[float] = []
        text = ""
        timings: dict[str, Any] = {}
        begin = perf_counter()
        if request["restore"]:
            self.post("/slots/0?action=restore", {"filename": request["restore"]})
        restored = perf_counter() - begin
        body = {
            "prompt": [*request["history"], *request["tokens"]],
            "n_predict": max(1, request["n_new"]),  # it computes nothing for 0
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": True,
            "return_tokens": True,
            "stream": True,
        }
        for event in self.events("/completion", body | ({"id_slot": 0} if request["save"] else {})):
            if found := event.get("tokens"):
                arrivals += [perf_counter() - begin] * len(found)
                tokens += found
            text += event.get("content", "")
            timings = event.get("timings", timings)
        total = perf_counter() - begin
        if request["save"]:
            self.post("/slots/0?action=save", {"filename": request["save"]})
        first = arrivals[0] if arrivals else total
        if not request["n_new"]:
            tokens, text = [], ""
        return _reply(begin, first, total, arrivals, tokens) | {
            "text": text,
            "switch_ms": restored * 1e3 if request["restore"] else None,
            "prefill_ms": timings.get("prompt_ms"),
            "n_computed": timings.get("prompt_n"),
        }


class LlamaCppServerApp(HttpApp):
    """llama_cpp.server: OpenAI's completions; it takes text only, and tells no tokens."""

    def call(self, request: Request) -> Reply:
        arrivals: list[float] = []
        text = ""
        body = {
            "prompt": request["history_text"] + request["text"],
            "max_tokens": max(1, request["n_new"]),
            "temperature": 0,
            "stream": True,
        }
        begin = perf_counter()
        for event in self.events("/v1/completions", body):
            piece = event["choices"][0]["text"]
            if piece:
                arrivals.append(perf_counter() - begin)
            text += piece
        total = perf_counter() - begin
        first = arrivals[0] if arrivals else total
        return _reply(begin, first, total, arrivals, []) | {"text": text if request["n_new"] else ""}


class HearthApp(HttpApp):
    """hearth in front of llama-server: OpenAI's chat completions. Not streamed, since it holds 8 KiB of a stream back;
    so the first token comes with the last."""

    def call(self, request: Request) -> Reply:
        messages = [*request["messages"], {"role": "user", "content": request["text"]}]
        body = {"messages": messages, "max_tokens": max(1, request["n_new"]), "temperature": 0, "ignore_eos": True}
        begin = perf_counter()
        with closing(self._connection()) as connection:
            found = json.loads(self._response(connection, "/v1/chat/completions", body).read())
        total = perf_counter() - begin
        timings = found.get("timings", {})
        return _reply(begin, total, total, [], []) | {
            "text": found["choices"][0]["message"]["content"] or "",
            "prefill_ms": timings.get("prompt_ms"),
            "n_computed": timings.get("prompt_n"),
        }


KINDS: dict[str, type[LlmaasApp] | type[HttpApp]] = {
    "llmaas": LlmaasApp,
    "llama_server": LlamaServerApp,
    "llama_cpp_server": LlamaCppServerApp,
    "hearth": HearthApp,
}


def _reply(begin: float, first: float, total: float, arrivals: list[float], tokens: list[int]) -> Reply:
    gaps = [b - a for a, b in pairwise(arrivals)]
    return {
        "began_us": int(begin * 1e6),
        "arrivals_us": [int((begin + at) * 1e6) for at in arrivals],
        "ttft_ms": first * 1e3,
        "total_ms": total * 1e3,
        "between_ms": 1e3 * sum(gaps) / len(gaps) if gaps else None,
        "tokens": tokens,
        "text": "",
    }


def main() -> None:
    kind, address, name = sys.argv[1:]
    client: Any = KINDS[kind](address, name)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        try:
            request = json.loads(line)
            reply = client.call(request)
            if not request["stream"]:
                del reply["arrivals_us"]
        except Exception as error:  # whatever it is, the bench records that this program failed here
            reply = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
