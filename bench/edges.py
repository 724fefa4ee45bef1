"""What HTTP costs beyond the daemon's own protocol, and what it gives to programs that send their whole history.

* history: a conversation of about 3,000 tokens that is sent as a whole each time. Time to the first token when all of
  it is new, of its next turns, and of turns after the daemon was started again, for each of them anew.
* single: one client, the same work over HTTP and over the Unix socket (``resolve`` and ``generate``), by turns. Time to
  the first token from many short answers, decode from a few long ones.
* many: 64 connections and 10,000 small requests against the fake engine (2,000 with ``--quick``), over HTTP and over
  as many Unix sockets. They come at a steady rate: half of what the machine answers over HTTP when each connection asks
  again at once. A request's time is counted from when it was due.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from http.client import HTTPConnection
from operator import sub, truediv
from statistics import median
from typing import Any

import numpy as np
import psutil

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.daemon import daemon
from bench.lib.engine import engine
from bench.lib.http_clients import CHAT, RawHttp, Streamed, free_port, http_server, stream_chat, wait_for
from bench.lib.stats import sig
from bench.lib.texts import Texts
from llmaas.api.async_client import AsyncClient
from llmaas.api.client import Client

_HISTORY, _PROMPT = 3000, 16
_CONNECTIONS = 64
_MIB = 1 << 20

Message = dict[str, str]
Post = Callable[[int], Awaitable[None]]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def rss(pid: int) -> float:
    """Resident memory of a process, in MB."""
    return float(psutil.Process(pid).memory_info().rss / 1e6)


# -- a long history -----------------------------------------------------------------------------------


def history(options: Options, text: str, n_turns: int) -> dict[str, Any]:
    """Times to the first token in ms, and cached tokens: medians of ``n_turns`` turns each."""
    port = free_port()
    flags = ("--http", f"127.0.0.1:{port}")
    messages = [user(text)]

    def turn() -> Streamed:
        connection = HTTPConnection("127.0.0.1", port)
        said = stream_chat(connection, messages, 16)
        connection.close()
        messages.extend([{"role": "assistant", "content": said.text}, user("Go on.")])
        return said

    after_restart = []
    with daemon(options, "history", *flags):
        wait_for(port)
        cold, *warm = [turn() for _ in range(n_turns + 1)]
    for _ in range(n_turns):
        with daemon(options, "history", *flags):
            wait_for(port)
            after_restart.append(turn())
    first = {"cold": [cold], "next": warm, "after_restart": after_restart}
    first_ms = {
        way: median(1e3 * (each.arrivals[0] - each.begin) for each in answers) for way, answers in first.items()
    }
    later = [*warm, *after_restart]
    return {
        "prompt_tokens": [each.usage["prompt_tokens"] for each in (cold, *later)],
        "cached_tokens": [each.usage["prompt_tokens_details"]["cached_tokens"] for each in (cold, *later)],
        "first_token_ms": {way: sig(each) for way, each in first_ms.items()},
        "next_turn_sooner": sig(first_ms["cold"] / first_ms["next"]),
        "after_restart_sooner": sig(first_ms["cold"] / first_ms["after_restart"]),
    }


# -- one client ---------------------------------------------------------------------------------------


def over_http(connection: HTTPConnection, text: str, n_new: int) -> tuple[float, float]:
    """Time to the first token in ms, and tokens per second after it."""
    found = stream_chat(connection, [user(text)], n_new)
    n = found.usage["completion_tokens"]
    return 1e3 * (found.arrivals[0] - found.begin), (n - 1) / (found.arrivals[-1] - found.arrivals[0])


def over_socket(client: Client, text: str, n_new: int) -> tuple[float, float]:
    begin = time.perf_counter()
    found = client.resolve([user(text)])
    stream = client.generate(found.context.id, [user(text)][found.n_messages :], max_tokens=n_new)
    arrivals = [time.perf_counter() for piece in stream if piece.text]
    return 1e3 * (arrivals[0] - begin), (stream.done.n_generated - 1) / (arrivals[-1] - arrivals[0])


def single(options: Options, prompts: Sequence[str], rounds: int, n_new: int) -> dict[str, Any]:
    """``rounds`` answers of ``n_new`` tokens, and short ones to the rest of ``prompts``; two of them make a round."""
    found: dict[str, list[tuple[float, float]]] = {"http": [], "socket": []}
    lengths = [n_new] * (rounds + 1) + [2] * (len(prompts) // 2 - rounds - 1)
    texts = iter(prompts)
    with (
        daemon(options, "single", endless=True) as (socket, _),
        http_server(socket) as (port, pid),
        Client(socket, app="bench") as client,
    ):
        connection = HTTPConnection("127.0.0.1", port)
        for i, length in enumerate(lengths):
            for way in (("http", "socket"), ("socket", "http"))[i % 2]:
                text = next(texts)
                taken = over_http(connection, text, length) if way == "http" else over_socket(client, text, length)
                if i:  # the first round warms up
                    found[way].append(taken)
        memory = rss(pid)
        connection.close()
    first = {way: [each for each, _ in taken[rounds:]] for way, taken in found.items()}
    decode = {way: [each for _, each in taken[:rounds]] for way, taken in found.items()}
    return {
        "first_token_ms": {way: sig(median(each)) for way, each in first.items()},
        "decode_tps": {way: sig(median(each)) for way, each in decode.items()},
        "more_ms": sig(median(map(sub, first["http"], first["socket"]))),
        "decode_http_over_socket": sig(median(map(truediv, decode["http"], decode["socket"]))),
        "rss_mb": sig(memory),
    }


# -- many connections ---------------------------------------------------------------------------------


async def paced(post: Post, n: int, rate: float, each: Callable[[int], None] = lambda i: None) -> list[float]:
    """The times of ``n`` requests in ms, from when each was due; ``_CONNECTIONS`` take turns."""
    begin, taken = time.perf_counter() + 0.1, [0.0] * n

    async def worker(number: int) -> None:
        for i in range(number, n, _CONNECTIONS):
            due = begin + i / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await post(i)
            taken[i] = 1e3 * (time.perf_counter() - due)
            each(i)

    await asyncio.gather(*(worker(number) for number in range(_CONNECTIONS)))
    return taken


async def many(socket: Any, port: int, pid: int, n: int) -> dict[str, Any]:
    memory: dict[int, float] = {}

    def watch(i: int) -> None:
        if i in (n // 5, n - 1):
            memory[i] = rss(pid)

    def text(i: int) -> Message:
        return user(f"question {i}")

    async with AsyncExitStack() as stack:
        https = [await stack.enter_async_context(RawHttp(port)) for _ in range(_CONNECTIONS)]
        errors = 0

        async def by_http(i: int) -> None:
            nonlocal errors
            body = {"model": "default", "messages": [text(i)], "max_tokens": 4, "temperature": 0}
            errors += await https[i % _CONNECTIONS].post(CHAT, json.dumps(body).encode()) != 200

        begin, n_at_once = time.perf_counter(), 10 * _CONNECTIONS
        await paced(lambda i: by_http(-1 - i), n_at_once, math.inf)  # texts of its own
        rate = n_at_once / (time.perf_counter() - begin) / 2
        http = await paced(by_http, n, rate, watch)
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(await AsyncClient.connect(socket, app="bench"))
            for _ in range(_CONNECTIONS - 1)
        ]
        clients.append(clients[0])  # the HTTP server has a connection, too

        async def by_socket(i: int) -> None:
            client = clients[i % _CONNECTIONS]
            found = await client.resolve([text(i)])
            await client.generate(found.context.id, [text(i)][found.n_messages :], max_tokens=4).done()

        plain = await paced(by_socket, n, rate)
    p99 = {"http": float(np.percentile(http, 99)), "socket": float(np.percentile(plain, 99))}
    first, last = memory[n // 5], memory[n - 1]
    return {
        "requests": n,
        "rate": sig(rate),
        "errors": errors,
        "p50_ms": {"http": sig(median(http)), "socket": sig(median(plain))},
        "p99_ms": {way: sig(each) for way, each in p99.items()},
        "p99_more_ms": sig(p99["http"] - p99["socket"]),
        "rss_mb": [sig(first), sig(last)],
        "rss_growth_mb": sig(last - first),
    }


# -- the whole ----------------------------------------------------------------------------------------


def measure(options: Options) -> Result:
    rounds, n_new, n_short = (9, 48, 40) if options.quick else (15, 96, 120)
    n_turns, n_requests = (1, 2_000) if options.quick else (5, 10_000)
    with engine(options) as thread:
        model = thread.engine.info.name
        texts = Texts(thread.engine, _HISTORY + 2 * _PROMPT * (rounds + n_short + 2), options.seed)
        long_text = texts.take(_HISTORY)
        prompts = [texts.take(_PROMPT) for _ in range(2 * (rounds + n_short + 1))]
    figures: dict[str, Any] = {"history": history(options, long_text, n_turns)}
    say(f"history: {figures['history']}")
    figures["single"] = single(options, prompts, rounds, n_new)
    say(f"single: {figures['single']}")
    with daemon(options, "many", fake=True) as (socket, _), http_server(socket) as (port, pid):
        figures["many"] = asyncio.run(many(socket, port, pid, n_requests))
    say(f"many: {figures['many']}")
    long, one, crowd = figures["history"], figures["single"], figures["many"]
    bars = [
        Bar("a next turn's first token sooner than a cold one's", long["next_turn_sooner"], 50),
        Bar("the same after a restart", long["after_restart_sooner"], 50),
        Bar("cached tokens of a next turn", min(long["cached_tokens"][1:]), 2900),
        Bar("ms more to the first token over HTTP", one["more_ms"], 3, at_most=True),
        Bar("decode over HTTP over the Unix socket", one["decode_http_over_socket"], 0.97),
        Bar("MB that the process takes", max(one["rss_mb"], *crowd["rss_mb"]), 50, at_most=True),
        Bar("requests with an error", crowd["errors"], 0, at_most=True),
        Bar("ms more at p99 with 64 connections", crowd["p99_more_ms"], 5, at_most=True),
        Bar("MB that the process grows by", crowd["rss_growth_mb"], 2, at_most=True),
    ]
    return Result(model, figures, bars)


if __name__ == "__main__":
    sys.exit(main("edges", __doc__ or "", measure))
