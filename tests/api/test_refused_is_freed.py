"""A request that is refused is freed when its reply is written, not when the garbage collector comes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmaas.errors import LlmaasError
from tests.support.loop import on_a_loop
from tests.support.scripted import serving, until, with_context


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


REFUSED: list[dict[str, Any]] = [
    {"op": "ping", "unknown": ["x"]},
    {"op": ["x"]},
    {"op": "create", "name": "n" * 1000},
    {"op": "append", "context": "inbox", "messages": [{"role": "user"}]},
    {"op": "generate", "context": "inbox", "top_p": 7},
    {"op": "append", "context": "nobody", "prompt": "x"},
    {"op": "generate", "context": "inbox", "prompt": "too long"},
    {"op": "cancel", "request": 99},
]


@pytest.mark.parametrize("fields", REFUSED, ids=lambda fields: str(fields["op"]))
@pytest.mark.parametrize("padding", [0, 100_000], ids=["small", "large"])
@on_a_loop
async def test_no_error_is_left(path: Path, fields: dict[str, Any], padding: int) -> None:
    async with serving(path):
        client = await with_context(path)
        extra = {"padding": "p" * padding} if padding else {}
        reply = await client.ask(1, **fields, **extra)
        assert reply["type"] == "failed"
        await until(lambda: not any(isinstance(e, LlmaasError) for e in gc.get_objects()))
        await client.close()
