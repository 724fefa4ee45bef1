"""Messages with descriptors between two processes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from llmaas.front.channel import Channel, pair
from tests.support.loop import on_a_loop


class End:
    def __init__(self, sock: Any) -> None:
        self.found: list[tuple[dict[str, Any], int | None]] = []
        self.ended = 0
        self.channel = Channel(sock, lambda message, fd: self.found.append((message, fd)), self._end)

    def _end(self) -> None:
        self.ended += 1

    async def until(self, n: int) -> None:
        for _ in range(1000):
            if len(self.found) >= n:
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"{len(self.found)} messages of {n}")


def n_open() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@on_a_loop
async def test_descriptors_arrive_with_their_messages_and_in_order() -> None:
    before = n_open()
    one, two = map(End, pair())
    for i in range(300):  # more than the kernel keeps
        read, write = os.pipe()
        os.write(write, b"%d" % i)
        os.close(write)
        one.channel.send({"i": i, "body": b"x" * 2000}, read)
        one.channel.send({"i": i})
        if i % 50 == 49:
            await two.until(2 * i)
    await two.until(600)
    assert [message["i"] for message, _ in two.found] == [i for i in range(300) for _ in range(2)]
    for i, (message, fd) in enumerate(two.found):
        if i % 2:
            assert fd is None
        else:
            assert fd is not None and os.read(fd, 10) == b"%d" % message["i"]
            os.close(fd)
    one.channel.close()
    for _ in range(100):
        await asyncio.sleep(0.005)
        if two.ended:
            break
    assert two.ended == 1
    two.channel.send({"late": 1})
    two.channel.close()
    assert n_open() == before


@on_a_loop
async def test_what_cannot_be_sent_any_more_is_closed() -> None:
    before = n_open()
    one, two = map(End, pair())
    two.channel.close()
    read, write = os.pipe()
    os.close(write)
    one.channel.send({"t": "x"}, read)
    one.channel.close()
    read, write = os.pipe()
    os.close(write)
    one.channel.send({"t": "x"}, read)
    assert n_open() == before


@on_a_loop
async def test_a_message_that_is_none_is_passed_over() -> None:
    ours, theirs = pair()
    end = End(theirs)
    ours.send(b"\xc1")
    ours.send(b"\x81\xa1t\xa1x")
    await end.until(1)
    assert end.found == [({"t": "x"}, None)]
    ours.close()
    end.channel.close()


@on_a_loop
async def test_what_was_sent_before_the_end_is_read_though_the_other_end_has_not_read_all() -> None:
    ours, theirs = pair()
    one = End(ours)
    one.channel.send({"i": 0})  # is never read
    theirs.send(b"\x81\xa1i\x01")
    theirs.send(b"\x81\xa1i\x02")
    theirs.close()
    one.channel.read_rest()
    assert [message["i"] for message, _ in one.found] == [1, 2] and one.ended == 1
