"""Attacks by contexts: thousands of them, shown, listed, forked, cut, deleted; and by files for the operator."""

from __future__ import annotations

import asyncio
import itertools
import os

from tests.stress.attacks.peer import Attacker, Peer, context

TEXT = "It was the best of times, it was the worst of times. " * 20


async def thousands(attacker: Attacker) -> None:
    """Contexts with long names as fast as they are made, and lists of them meanwhile."""
    peers = await attacker.connect_many(9, apps=1)

    async def make(peer: Peer, who: int) -> None:
        for n in itertools.count():
            await peer.ask("create", name=f"{who}-{n}-" + "n" * 100)

    async def look(peer: Peer) -> None:
        while True:
            await peer.ask("list")

    makers = (make(peer, who) for who, peer in enumerate(peers[1:]))
    await asyncio.gather(look(peers[0]), *makers)


async def lists(attacker: Attacker) -> None:
    """480 contexts, then lists of them on eight connections."""
    peers = await attacker.connect_many(8)

    async def make(peer: Peer, who: int) -> None:
        for n in range(60):
            await peer.ask("create", name=f"{who}-{n}-" + "n" * 100)

    async def look(peer: Peer) -> None:
        while True:
            await peer.ask("list")

    await asyncio.gather(*(make(peer, who) for who, peer in enumerate(peers)))
    attacker.begin()
    await asyncio.gather(*map(look, peers))


async def shows(attacker: Attacker) -> None:
    """A conversation of a thousand messages, shown on eight connections as fast as it goes."""
    peers = await attacker.connect_many(8)
    made = await context(peers[0])
    messages = [{"role": "user", "content": ""}] * 250
    await peers[0].ask("append", context=made, messages=messages)
    attacker.begin()

    async def look(peer: Peer) -> None:
        while True:
            await peer.ask("show", context=made)

    await asyncio.gather(*map(look, peers))


async def forks(attacker: Attacker) -> None:
    """Forks of a long context, and forks of these."""
    peers = await attacker.connect_many(8)
    made = await context(peers[0], TEXT * 7)

    async def fork(peer: Peer) -> None:
        source = made
        while True:
            reply = await peer.ask("fork", context=source)
            if reply["type"] == "failed":
                await asyncio.sleep(0.01)
            else:
                source = reply["result"]["id"]

    await asyncio.gather(*map(fork, peers))


async def deletes(attacker: Attacker) -> None:
    """Contexts that are made, filled and deleted at once, while calls of theirs run."""
    peers = await attacker.connect_many(16)

    async def make_and_delete(peer: Peer) -> None:
        while True:
            made = await context(peer)
            await peer.request("generate", context=made, prompt=TEXT, max_tokens=100)
            gone = await peer.request("delete", context=made)
            await peer.ended(gone)

    await asyncio.gather(*map(make_and_delete, peers))


async def truncates(attacker: Attacker) -> None:
    """Contexts that are filled and cut, again and again."""
    peers = await attacker.connect_many(16)

    async def fill_and_cut(peer: Peer) -> None:
        made = await context(peer, TEXT)
        while True:
            await peer.ask("append", context=made, prompt=TEXT)
            for n in (900, 500, 100):
                await peer.ask("truncate", context=made, n_tokens=n)

    await asyncio.gather(*map(fill_and_cut, peers))


async def thrashing(attacker: Attacker) -> None:
    """Contexts that fill the cells many times over, used in turn: each comes back from RAM or disk."""
    peers = await attacker.connect_many(8)

    async def use(peer: Peer) -> None:
        made = [await context(peer, TEXT) for _ in range(5)]
        for each in itertools.cycle(made):
            await peer.ask("generate", context=each, prompt="x", max_tokens=1)
            await peer.ask("truncate", context=each, n_tokens=len(TEXT))

    await asyncio.gather(*map(use, peers))


async def bad_adapters(attacker: Attacker) -> None:
    """Adapters that are a FIFO, /dev/zero, /dev/stdin, a directory, a sparse file of 1 TB. (An operator's mistake.)"""
    fifo, sparse = attacker.scratch / "fifo", attacker.scratch / "sparse"
    if not fifo.exists():
        os.mkfifo(fifo)
        with sparse.open("wb") as file:
            file.truncate(1 << 40)
    peer = await attacker.connect(admin=True)
    paths = [fifo, sparse, attacker.scratch, "/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/kmsg"]
    for path in map(str, paths):
        await peer.request("adapter_add", name="bad", path=path)
    for _ in paths:
        await peer.ended()
