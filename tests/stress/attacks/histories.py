"""Attacks by what is kept of many: conversations sent as a whole, copies of beginnings, names, keys, biases."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from tests.stress.attacks.peer import Attacker, Peer, context

MANY = 4096
"""Messages of a request at most."""
_WORDS = "It was the best of times, it was the worst of times. " * 5


def _messages(n: int, *contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": contents[i % len(contents)]} for i in range(n)]


async def resolves(attacker: Attacker) -> None:
    """Conversations of 4,096 messages, sent as a whole, each another one, on eight connections."""
    peers = await attacker.connect_many(8)

    async def resolve(peer: Peer, who: int) -> None:
        for n in itertools.count():
            await peer.ask("resolve", messages=_messages(MANY, f"{who}", f"{n}"))

    await asyncio.gather(*(resolve(peer, who) for who, peer in enumerate(peers)))


async def stateless(attacker: Attacker) -> None:
    """Sixteen clients that send a whole conversation with each request, the same at first and then each another one."""
    peers = await attacker.connect_many(16)

    async def talk(peer: Peer, who: int) -> None:
        for n in itertools.count():
            messages = _messages(9, f"question {who}", f"answer {n}", _WORDS)
            found = await peer.ask("resolve", messages=messages)
            if found["type"] == "failed":
                await asyncio.sleep(0.01)
                continue
            held, made = found["result"]["n_messages"], found["result"]["context"]["id"]
            await peer.ask("generate", context=made, messages=messages[held:], max_tokens=1)

    await asyncio.gather(*(talk(peer, who) for who, peer in enumerate(peers)))


async def beginnings(attacker: Attacker) -> None:
    """Copies of the first messages of a long conversation, each of another length, made and deleted."""
    peers = await attacker.connect_many(16)
    made = await context(peers[0])
    for _ in range(2):
        await peers[0].ask("append", context=made, messages=_messages(180, ""))
    attacker.begin()

    async def fork(peer: Peer, who: int) -> None:
        for n in itertools.count(who):
            reply = await peer.ask("fork", context=made, n_messages=1 + n % 359)
            if reply["type"] == "failed":
                await asyncio.sleep(0.01)
            else:
                await peer.ask("delete", context=reply["result"]["id"])

    await asyncio.gather(*(fork(peer, who) for who, peer in enumerate(peers)))


async def ever_new_names(attacker: Attacker) -> None:
    """Connections under ever new names of 64 letters, each of which makes a context, asks once and goes."""
    numbers = itertools.count()

    async def come() -> None:
        while True:
            peer = await attacker.connect(f"{next(numbers):x<64}")
            made = await context(peer, name="n" * 100)
            await peer.ask("generate", context=made, prompt="x", max_tokens=1)
            await peer.ask("delete", context=made)
            peer.close()
            attacker.peers.remove(peer)

    await asyncio.gather(*(come() for _ in range(8)))


async def keyed_again(attacker: Attacker) -> None:
    """The same sixteen keyed turns asked for again and again, and keys that never come again."""
    peers = await attacker.connect_many(16)

    async def ask(peer: Peer, who: int) -> None:
        made = await context(peer)
        for n in itertools.count():
            key = f"{who}" if n % 2 else f"{who}-{n}-" + "k" * 100
            reply = await peer.ask("generate", context=made, prompt="x" * 50, max_tokens=8, idempotency_key=key)
            if reply["type"] == "failed":
                await peer.ask("truncate", context=made, n_tokens=0)

    await asyncio.gather(*(ask(peer, who) for who, peer in enumerate(peers)))


async def biases(attacker: Attacker) -> None:
    """Answers with as many biases as are allowed."""
    peers = await attacker.connect_many(16)
    allowed: Any = [[token, 1.0] for token in range(300)]

    async def ask(peer: Peer) -> None:
        made = await context(peer)
        while True:
            reply = await peer.ask("generate", context=made, prompt="x" * 50, max_tokens=16, logit_bias=allowed)
            if reply["type"] == "failed":
                await peer.ask("truncate", context=made, n_tokens=0)

    await asyncio.gather(*map(ask, peers))


async def too_many_biases(attacker: Attacker) -> None:
    """Requests with 10,000 biases, which are refused, on eight connections."""
    peers = await attacker.connect_many(8)
    made = await context(peers[0])
    many: Any = [[token, 1.0] for token in range(10_000)]

    async def ask(peer: Peer) -> None:
        while True:
            await peer.ask("generate", context=made, prompt="x", max_tokens=1, logit_bias=many)

    await asyncio.gather(*map(ask, peers))


async def wait_and_leave(attacker: Attacker) -> None:
    """Connections under four names, with sixty requests each for a context that answers, which all go at once."""
    peers = await attacker.connect_many(32, apps=4)

    async def fill(peer: Peer) -> None:
        made = await context(peer)
        await peer.request("generate", context=made, prompt="x" * 50, max_tokens=1000)
        for n in range(60):
            op = ("truncate", "fork", "append", "hint")[n % 4]
            fields: dict[str, Any] = {"n_tokens": 1} if op == "truncate" else {"prompt": "x"} if op == "append" else {}
            await peer.request(op, context=made, **fields)

    await asyncio.gather(*map(fill, peers), return_exceptions=True)
    await asyncio.sleep(0.1)
    attacker.drop_all()
