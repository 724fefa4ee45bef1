"""A context of a replay: how many tokens it has, and what waits for it.

Law: a replay has no tokens, so that a chunk is named by its context, its place and its length.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field

from llmaas.records import CHUNK_TOKENS, ChunkKey, ContextId, RequestId
from llmaas.replay.report import CallReport
from llmaas.traces.call import TraceCall


@dataclass(slots=True, eq=False)
class ReplayContext:
    id: ContextId
    number: int
    n_tokens: int = 0
    n_kv: int = 0
    waiting: deque[CallReport] = field(default_factory=deque)
    running: CallReport | None = None
    hint: RequestId | None = None
    """The hint that runs on it."""

    def keys(self, n_kv: int, first: int) -> tuple[ChunkKey, ...]:
        """The keys of the chunks of the first ``n_kv`` tokens, from chunk ``first`` on."""
        ends = (min(start + CHUNK_TOKENS, n_kv) for start in range(first * CHUNK_TOKENS, n_kv, CHUNK_TOKENS))
        return tuple(ChunkKey(struct.pack("<QII", self.number, i, end)) for i, end in enumerate(ends, start=first))


def context_id(call: TraceCall) -> ContextId:
    return ContextId(f"0/{call.app}/{call.context}")
