"""``Engine.steps`` for an engine that has only single steps.

Law: what is drawn, and what the sequences hold afterwards, is as after so many single steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmaas.engine.base import BatchItem, Engine, Halt


def plain_steps(
    engine: Engine, items: Sequence[BatchItem], most: int, seconds: float, halt: Halt, adapter: str = ""
) -> list[list[int]]:
    """See ``Engine.steps``. No clock is read here, so ``seconds`` is ignored: an engine whose steps are long enough to
    matter should pass 1 as ``most``.
    """
    rows: list[list[int]] = []
    while len(rows) < most:
        try:
            row = [token for token in engine.step(items, adapter) if token is not None]
        except Exception:  # what was drawn before stands; if the fault stays, the next step says so
            if not rows:
                raise
            break
        rows.append(row)
        if halt.is_set or any(map(engine.is_end, row)):
            break
        items = [BatchItem(i.seq, i.pos + 1, (token,), i.sampler) for i, token in zip(items, row, strict=True)]
    return rows
