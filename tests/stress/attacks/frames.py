"""Attacks by what is in a frame, or by how it comes."""

from __future__ import annotations

import asyncio
import struct

from tests.stress.attacks.peer import MANY, Attacker, Peer, context, frame, framed

EMPTY = {"role": "user", "content": ""}


async def _send_again_and_again(attacker: Attacker, data: bytes) -> None:
    """Where the daemon hangs up because of it, on a new connection."""
    peer = await attacker.connect()
    while True:
        await peer.send(data)
        await peer.receive()


async def empty_messages_1500(attacker: Attacker) -> None:
    """Calls of 1,500 empty messages (30 KB)."""
    peer = await attacker.connect()
    made = await context(peer)
    while True:
        await peer.ask("generate", context=made, messages=[EMPTY] * 1500, max_tokens=1)
        await peer.ask("truncate", context=made, n_tokens=0)


async def empty_messages_4096(attacker: Attacker) -> None:
    """Appends of 4,096 messages of one letter, the most that a request may have, and forty roles."""
    peer = await attacker.connect()
    made = await context(peer)
    while True:
        messages = [{"role": f"r{i % 40}", "content": "a"} for i in range(4096)]
        await peer.ask("append", context=made, messages=messages)
        await peer.ask("truncate", context=made, n_tokens=0)


async def empty_messages_100000(attacker: Attacker) -> None:
    """Calls of 100,000 empty messages."""
    call = {"id": 1, "op": "generate", "context": "none", "messages": [EMPTY] * 100_000}
    await _send_again_and_again(attacker, frame(call))


async def endless_prompt(attacker: Attacker) -> None:
    """Prompts of 4 MB, which are refused: as text, as a message, as a system message."""
    peer = await attacker.connect()
    made = await context(peer)
    for letter in "a- \n\u6f22\U0001f600":
        text = letter * ((MANY - 200) // len(letter.encode()))
        await peer.ask("generate", context=made, prompt=text)
        await peer.ask("generate", context=made, messages=[{"role": "user", "content": text}])
        await peer.ask("create", system=text)


async def prompts_at_the_limit(attacker: Attacker) -> None:
    """Prompts of 8,000 tokens, which just fit; and as many of 9,000, which do not."""
    peer = await attacker.connect()
    made = await context(peer)
    while True:
        await peer.ask("append", context=made, prompt="x" * 8000)
        await peer.ask("append", context=made, prompt="x" * 9000)
        await peer.ask("truncate", context=made, n_tokens=0)


async def empty_maps(attacker: Attacker) -> None:
    """Frames of 4 MiB that are a list of empty maps."""
    count = MANY - 100
    body = b"\x83\xa2id\x01\xa2op\xa4ping\xa1x\xdd" + struct.pack(">I", count) + b"\x80" * count
    await _send_again_and_again(attacker, framed(body[:MANY]))


async def wide_and_legal(attacker: Attacker) -> None:
    """Frames of 4 MiB with as many values as a request may have."""
    call = {"id": 1, "op": "ping", "x": ["y" * 120] * 32_000}
    await _send_again_and_again(attacker, frame(call))


async def deep_nesting(attacker: Attacker) -> None:
    """Frames of 4 MiB of lists in lists."""
    head = b"\x83\xa2id\x01\xa2op\xa4ping\xa1x"
    await _send_again_and_again(attacker, framed(head + b"\x91" * (MANY - len(head))))


async def begun_frames(attacker: Attacker) -> None:
    """200 frames of 4 MiB that are all there but for the last byte."""
    peers = await attacker.connect_many(200, apps=4)

    async def begin(peer: Peer) -> None:
        await peer.send(struct.pack(">I", MANY) + bytes(MANY - 1))
        await peer.receive()

    await asyncio.gather(*map(begin, peers), return_exceptions=True)
    attacker.drop_all()


async def dripped_frames(attacker: Attacker) -> None:
    """200 frames of 4 MiB that come byte by byte."""
    peers = await attacker.connect_many(200, apps=4)
    for peer in peers:
        peer.writer.write(struct.pack(">I", MANY))
    while any(not peer.writer.is_closing() for peer in peers):
        for peer in peers:
            if not peer.writer.is_closing():
                peer.writer.write(b"\xa1")
        await asyncio.sleep(0.001)


async def broken_frames(attacker: Attacker) -> None:
    """Frames of 4 MiB whose sender goes when half of it is there."""
    peers = await attacker.connect_many(8)

    async def break_off(peer: Peer) -> None:
        peer.writer.write(struct.pack(">I", MANY) + bytes(MANY // 2))
        await asyncio.sleep(0.02)
        peer.close()

    await asyncio.gather(*map(break_off, peers))


async def pipelined(attacker: Attacker) -> None:
    """Requests one after another, whose replies nobody reads."""
    peers = await attacker.connect_many(8)
    asks = b"".join(frame({"id": i, "op": op}) for i, op in enumerate(("ping", "list", "stats", "adapters") * 50))

    async def flood(peer: Peer) -> None:
        peer.deafen()
        while True:
            await peer.send(asks)

    await asyncio.gather(*map(flood, peers))


async def pings(attacker: Attacker) -> None:
    """Pings as fast as they go, on eight connections that read the replies."""
    peers = await attacker.connect_many(8)
    asks = b"".join(frame({"id": i, "op": "ping"}) for i in range(1000))

    async def flood(peer: Peer) -> None:
        while True:
            await peer.send(asks)
            await peer.reader.read(1 << 16)

    await asyncio.gather(*map(flood, peers))


async def bad_requests(attacker: Attacker) -> None:
    """Requests that are wrong, each in its own way, as fast as they go."""
    peer = await attacker.connect()
    wrong = [
        {"id": 1, "op": "x" * 10_000},
        {"id": 1, "op": "generate", "context": "c" * 10_000},
        {"id": -1, "op": "ping"},
        {"id": 1, "op": "create", "name": "n" * 10_000},
        {"id": 1, "op": "append", "context": "c", "messages": [{"role": "r" * 5000, "content": ""}]},
        {"id": 1, "op": "generate", "context": "c", "temperature": float("nan")},
        {"id": 1, "op": "truncate", "context": "c", "n_tokens": -(1 << 62)},
        {"id": 1, "op": "show", "context": "\0\x1b[2J\n" * 20},
        {"y" * 10_000: 1, "id": 1, "op": "ping"},
    ]
    while True:
        for request in wrong:
            await peer.send(frame(request))
            await peer.receive()


async def long_names(attacker: Attacker) -> None:
    """Names of 4 MB: of contexts, adapters, roles, stop strings, apps and clients."""
    long = "n" * (MANY - 300)
    for fields in (
        {"op": "create", "name": long},
        {"op": "create", "adapter": long},
        {"op": "hint", "context": long},
        {"op": "append", "context": "c", "messages": [{"role": long, "content": ""}]},
        {"op": "generate", "context": "c", "stop": [long]},
        {"op": "generate", "context": "c", "adapter": long},
        {"op": "limit", "app": long},
        {"op": "adapter_add", "name": long, "path": "/"},
    ):
        peer = await attacker.connect()
        await peer.send(frame({"id": 1, **fields}))
        await peer.receive()
    peer = await attacker.connect(None)
    await peer.send(frame({"op": "hello", "version": 1, "app": long, "client": long[:10]}))
    await peer.receive()
