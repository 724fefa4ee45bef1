"""``Engine.steps`` for an engine that has only single steps.

Law: what is drawn, and what the sequences hold afterwards, is as after so many single steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmaas.engine.base import BatchItem, Engine, Halt, Row
from llmaas.engine.row_pipe import Telling


def plain_steps(
    engine: Engine,
    items: Sequence[BatchItem],
    most: int,
    seconds: float,
    halt: Halt,
    adapter: str = "",
    telling: Telling | None = None,
) -> list[Row]:
    """See ``Engine.steps``. No clock is read here, so ``seconds`` and ``telling`` are ignored: an engine whose steps
    are long enough to matter should pass 1 as ``most``.
    """
    rows: list[Row] = []
    while len(rows) < most:
        try:
            row = engine.step(items, adapter)
        except Exception:  # what was drawn before stands; if the fault stays, the next step says so
            if not rows:
                raise
            break
        rows.append(row)
        tokens = [token for token in row if isinstance(token, int)]
        if halt.is_set or any(map(engine.is_end, tokens)):
            break
        items = [BatchItem(i.seq, i.pos + 1, (token,), i.sampler) for i, token in zip(items, tokens, strict=True)]
    return rows
