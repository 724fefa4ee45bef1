"""The memory of large frames: used again when nobody views it, and given back."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest

from llmaas.api import frame_memory
from llmaas.api.caller import Door
from llmaas.api.frame_memory import LEAST, MOST_IDLE, FrameMemory
from tests.support.loop import on_a_loop
from tests.support.scripted import collect, serving, until, with_context

SIZE = 2 * LEAST


@on_a_loop
async def test_memory_is_given_again_when_the_last_view_of_it_is_gone() -> None:
    memory = FrameMemory()
    first = memory.take(SIZE)
    first[:5] = b"first"
    view = first[2:5].toreadonly()
    del first
    second = memory.take(SIZE)
    second[:] = bytes(SIZE)
    assert bytes(view) == b"rst" and memory.idle_bytes == 0
    del view
    assert memory.idle_bytes == SIZE
    third = memory.take(SIZE - 1000)
    assert (len(third), bytes(third[:5]), memory.idle_bytes) == (SIZE - 1000, b"first", 0)
    memory.close()


@on_a_loop
async def test_what_is_much_too_large_is_not_given() -> None:
    memory = FrameMemory()
    memory.take(4 * SIZE)
    small = memory.take(SIZE)
    assert memory.idle_bytes == 4 * SIZE and len(small) == SIZE
    memory.close()


@on_a_loop
async def test_many_small_bodies_take_no_more_than_they_have() -> None:
    memory = FrameMemory()
    small = memory.take(LEAST - 1)
    assert small.obj is not None and len(memoryview(small.obj)) == LEAST - 1
    large = memory.take(LEAST + 1)
    assert large.obj is not None and len(memoryview(large.obj)) <= LEAST * 5 // 4
    del small, large
    assert memory.idle_bytes == LEAST * 5 // 4
    memory.close()


@on_a_loop
async def test_what_lies_idle_is_bounded_and_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_memory, "IDLE_S", 0.05)
    memory = FrameMemory()
    views = [memory.take(SIZE) for _ in range(3 * MOST_IDLE // SIZE)]
    end = threading.Thread(target=views.clear)
    end.start()
    end.join()
    assert 0 < memory.idle_bytes <= MOST_IDLE
    late = memory.take(SIZE)
    await until(lambda: memory.idle_bytes == 0)
    del late
    assert memory.idle_bytes == 0, "nobody would give it back"
    memory.take(SIZE)
    assert memory.idle_bytes == SIZE
    memory.close()
    assert memory.idle_bytes == 0


@on_a_loop
async def test_large_requests_one_after_the_other_take_the_same_memory(path: Path) -> None:
    async with serving(path) as (_, server):
        memory = server.shares[Door.APPS].memory
        client = await with_context(path)
        for i in range(5):
            client.send({"id": i, "op": "append", "context": "inbox", "prompt": "x" * LEAST})
            assert (await collect(client, 1))[-1]["type"] == "done"
            gc.collect()
            await until(lambda: 0 < memory.idle_bytes < 2 * LEAST)
        await client.close()
