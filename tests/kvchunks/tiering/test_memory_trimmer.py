"""Freed chunks are memory that others can have, however few of them go at once."""

from __future__ import annotations

import ctypes

import pytest

from llmaas.kvchunks.codec.codec import CodedChunk
from llmaas.kvchunks.tiering.memory_trimmer import MemoryTrimmer
from tests.support.own_memory import anonymous, needs_rollup

SIZE = 100_000
"""Bytes of a chunk: malloc has no mapping of its own for so few."""


@needs_rollup
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="other systems' malloc is another")
@pytest.mark.parametrize("at_once", [1, 8, 64])
def test_what_was_freed_between_chunks_that_stay_goes_back(at_once: int) -> None:
    trimmer, chunks = MemoryTrimmer(), [bytearray(b"x" * SIZE) for _ in range(400)]
    staying, going = chunks[::4], list[CodedChunk | None](chunks[1::4] + chunks[2::4] + chunks[3::4])
    del chunks
    before = anonymous()
    while going:
        some, going[-at_once:] = going[-at_once:], []
        trimmer.free(some)
        del some
    trimmer.close()
    assert before - anonymous() >= 300 * SIZE - 6_000_000, "at most some MB wait for more"
    assert len(staying) == 100
