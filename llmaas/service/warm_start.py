"""After a start: the contexts that were used last come back before anybody asks, to CELLS and then to the POOL.

Law: a call goes before it, and nothing leaves CELLS or the POOL for it. It computes nothing but the end of a context's
last chunk, which every call of that context would have to compute.

There they are as if the daemon had not ended: the next turn of a conversation waits for no disk. It is a guess, and
guesses while the daemon runs are not worth it (docs/policies.md): they push out what would have been used. Right after
a start there is nothing to push out. Half of the cells stay free for others, since cells in use slow decoding down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from llmaas.planner.events import ContextsExpected
from llmaas.planner.planner import Planner
from llmaas.records import CHUNK_TOKENS
from llmaas.service.live_context import LiveContext
from llmaas.service.parts import ServiceParts
from llmaas.service.runner import CallRunner

log = logging.getLogger(__name__)

PAUSE_S = 0.05
"""Before it begins: calls that waited for the start come first."""
_MOST = 1000
"""Contexts of which chunks may come back to the POOL, at most."""


class WarmStart:
    """Brings contexts back from now on, if that is ``wanted``, by hints; ``close`` ends it. For one event loop."""

    def __init__(
        self,
        parts: ServiceParts,
        runner: CallRunner,
        planner: Planner,
        dispatch: Callable[[ContextsExpected], None],
        *,
        wanted: bool,
    ) -> None:
        self._runner, self._planner, self._dispatch = runner, planner, dispatch
        self._n_cells = parts.engine.n_cells
        self._task: asyncio.Task[None] | None = None
        comes_back = parts.engine.info.chunkable or parts.engine.info.state is not None
        able = by_use(parts.directory) if wanted and comes_back else []
        if able:
            self._task = asyncio.get_running_loop().create_task(self._bring_back(able))

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def done(self) -> None:
        """Return when it has ended."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _bring_back(self, able: Sequence[LiveContext]) -> None:
        await asyncio.sleep(PAUSE_S)
        n = 0
        for live in last_used(able, self._n_cells // 2):
            if live.deleted or live.damage or self._planner.cells_used + live.n_tokens > self._n_cells:
                continue
            if (begun := self._runner.hint(live)) is not None:
                await asyncio.wait([begun[1]])
                n += 1
        log.info("contexts that were used last are back in cells: %d", n)
        self._dispatch(ContextsExpected(tuple(live.id for live in able[:_MOST])))


def by_use(contexts: Iterable[LiveContext]) -> list[LiveContext]:
    """The contexts that can come back, the one that was used last first: not those whose chunks are lost, or that need
    an adapter."""
    able = [live for live in contexts if live.usable and not (live.damage or live.adapter) and _is_stored(live)]
    return sorted(able, key=lambda live: live.last_used, reverse=True)


def last_used(able: Iterable[LiveContext], n_cells: int) -> list[LiveContext]:
    """The first of these contexts, as many as fit into ``n_cells``, the first one last: what is brought back last
    leaves CELLS last."""
    chosen, left = list[LiveContext](), n_cells
    for live in able:
        left -= live.n_tokens
        if left < 0:
            break
        chosen.append(live)
    return chosen[::-1]


def _is_stored(live: LiveContext) -> bool:
    """Whether there are tokens, and all chunks are stored that are full."""
    return live.n_tokens > 0 and live.n_kv // CHUNK_TOKENS == live.n_tokens // CHUNK_TOKENS
