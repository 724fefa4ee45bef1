"""Attacks by connections: many, silent, deaf, short."""

from __future__ import annotations

import asyncio

from tests.stress.attacks.peer import Attacker, Peer, context, frame

CODED_S = 1.0
"""By then the KV of a conversation that was appended has been coded: that takes CPU, whoever asked for it."""
WORDS = "It was the best of times, it was the worst of times. " * 50


async def deaf(attacker: Attacker) -> None:
    """240 connections that ask for whole conversations and lists, and do not read."""
    peers = await attacker.connect_many(240, apps=4)
    made = {i: await context(peers[i]) for i in range(min(4, len(peers)))}
    await asyncio.gather(*(peers[i].ask("append", context=made[i], prompt=WORDS) for i in made))
    await asyncio.sleep(CODED_S)
    attacker.begin()

    async def flood(i: int, peer: Peer) -> None:
        peer.deafen()
        asks = [frame({"id": n, "op": "show", "context": made[i % 4]}) for n in range(100)]
        await peer.send(b"".join(asks))

    await asyncio.gather(*(flood(i, peer) for i, peer in enumerate(peers)), return_exceptions=True)
    await asyncio.sleep(3600)


async def deaf_to_answers(attacker: Attacker) -> None:
    """Connections that ask for long answers with all that can be said of each token, and do not read."""
    peers = await attacker.connect_many(16)

    async def flood(peer: Peer) -> None:
        made = await context(peer)
        peer.deafen()
        for n in range(100, 104):
            await peer.send(frame({"id": n, "op": "generate", "context": made, "max_tokens": 4000, "logprobs": 20}))

    await asyncio.gather(*map(flood, peers), return_exceptions=True)
    await asyncio.sleep(3600)


async def idle(attacker: Attacker) -> None:
    """256 connections that do nothing."""
    await attacker.connect_many(256, apps=8)
    await asyncio.sleep(3600)


async def idle_under_many_names(attacker: Attacker) -> None:
    """300 connections that do nothing, each under another name."""
    await attacker.connect_many(300, apps=300)
    await asyncio.sleep(3600)


async def idle_at_the_admin_socket(attacker: Attacker) -> None:
    """300 connections to the operator's socket that say nothing. (Only a program of the operator's user can.)"""
    await asyncio.gather(*(attacker.connect(None, admin=True) for _ in range(300)), return_exceptions=True)
    await asyncio.sleep(3600)


async def silent(attacker: Attacker) -> None:
    """Connections that never say hello, as fast as they are accepted."""
    await asyncio.gather(*(attacker.connect(None) for _ in range(64)), return_exceptions=True)
    attacker.drop_all()


async def come_and_go(attacker: Attacker) -> None:
    """Connections that say hello and go, as fast as they are accepted."""
    await attacker.connect_many(32)
    attacker.drop_all()


async def wrong_tokens(attacker: Attacker) -> None:
    """Connections that give one wrong token after the other, as fast as they are accepted, and stay to the end."""

    async def guess(i: int) -> None:
        peer = await attacker.connect(None)
        await peer.send(frame({"op": "hello", "version": 1, "token": f"llmaas_{i:064x}"}))
        await peer.receive()

    await asyncio.gather(*map(guess, range(64)), return_exceptions=True)
    attacker.drop_all()


async def accept_flood(attacker: Attacker) -> None:
    """400 connections to a daemon that may open 128 files."""
    await attacker.connect_many(400, apps=50)
    await asyncio.sleep(0.2)
    attacker.drop_all()


async def leave_at_once(attacker: Attacker) -> None:
    """Connections that ask for long answers, and go before they come."""
    peers = await attacker.connect_many(16)

    async def leave(peer: Peer) -> None:
        made = await context(peer)
        for _ in range(8):
            await peer.request("generate", context=made, prompt="x" * 500, max_tokens=500)
        await asyncio.sleep(0.01)
        peer.close()

    await asyncio.gather(*map(leave, peers), return_exceptions=True)
    attacker.drop_all()
