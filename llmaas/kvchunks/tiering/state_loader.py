"""Loads whole states into the engine: those of models that cannot be cut into chunks.

Law: it decides nothing. A state that cannot be read is reported as damaged, never raised, and then the engine was not
given anything.
"""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import closing

from llmaas.engine.thread import EngineThread
from llmaas.errors import ChunkDamaged
from llmaas.kvchunks.codec.codec import CodedChunk
from llmaas.kvchunks.codec.states import decode_state
from llmaas.kvchunks.tiering.disk_reader import to_be_kept
from llmaas.kvchunks.tiering.payload_reader import Held, PayloadReader
from llmaas.planner.actions import LoadChunks


def load_state(
    engine: EngineThread, reading: PayloadReader, action: LoadChunks, held: Held, stop: Future[None]
) -> CodedChunk | None:
    """Bring back the one state that ``action`` names, into its empty sequence. ``held`` has its bytes if it is in the
    POOL.

    Returns the bytes that the POOL is to keep, if it is. Raises ChunkDamaged if they are not what they should be,
    Stopped if ``stop`` was set before the engine was given them, and what ``Engine.load_state`` raises.
    """
    (source,) = action.chunks
    with closing(reading.payloads(action.chunks, held, stop)) as payloads:
        _, payload = next(payloads)
    if payload is None:
        raise ChunkDamaged("its bytes are missing")
    state = decode_state(payload, source.key, source.stop)
    loaded = engine.submit_urgent(engine.engine.load_state, action.seq, source.stop, state)
    loaded.result()
    return to_be_kept(payload) if source.keep else None
