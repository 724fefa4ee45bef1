"""Whether what a step computed is numbers, and what is done if it is not.

Law: no NaN and no infinity stays in a cell, and no sampler sees one.

All sequences share the cells. llama.cpp computes with those that a mask leaves out, too, so a NaN in the cells of one
context, or in cells that it has left, makes NaN of what others compute beside it. It comes from weights that are
damaged, or from a value that f16 cannot hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llmaas.engine.base import BatchItem
from llmaas.engine.llama.batch import Batch
from llmaas.engine.llama.cells import SequenceCells
from llmaas.engine.llama.lib import C
from llmaas.engine.llama.slabs import Slabs
from llmaas.errors import NoNumbers


class Numbers:
    """Looks at what steps of one ``llama_context`` left."""

    def __init__(self, context: Any, cells: SequenceCells, batch: Batch, n_vocab: int) -> None:
        self._context, self._cells, self._batch, self._n_vocab = context, cells, batch, n_vocab
        self.slabs: Slabs | None = None
        """Set when the model's layout is known; None: its cells cannot be read."""

    def bad_items(self, items: Sequence[BatchItem], last: Sequence[int]) -> list[int]:
        """The items for which the last decode computed NaN or infinity. ``last``: batch index of each one's last
        token."""
        return [i for i, item in enumerate(items) if self._is_bad(item, last[i])]

    def _is_bad(self, item: BatchItem, last: int) -> bool:
        if item.sampler is not None:
            # A NaN anywhere in what the last token saw makes all its logits NaN. As in _steps.c.
            logits = C.llama_get_logits_ith(self._context, last)
            if math.isnan(logits[0]) or math.isnan(logits[self._n_vocab - 1]):
                return True
        n = len(item.tokens)
        return (
            (n > 1 or item.sampler is None)
            and self.slabs is not None
            and not self.slabs.is_finite(item.seq, item.pos, item.pos + n)
        )

    def take_back(self, items: Sequence[BatchItem], bad: Sequence[int]) -> NoNumbers:
        """Remove all that the step left. Returns its failure, with those of its ``bad`` items that caused it.

        Where the state cannot be written, all sequences are emptied.
        """
        self._clean(items)
        if len(bad) > 1:  # some of them may be so only because others are
            bad = [i for i in bad if self._is_bad_alone(items[i])] or bad
        return NoNumbers("the model computed NaN or infinity for this context", items=tuple(bad))

    def _is_bad_alone(self, item: BatchItem) -> bool:
        last = self._batch.fill([item])
        bad = not C.llama_decode(self._context, self._batch.struct) and self._is_bad(item, last[0])
        self._clean([item])
        return bad

    def _clean(self, items: Sequence[BatchItem]) -> None:
        if self.slabs is None:
            self._cells.clear()
            return
        for item in items:
            self._cells.take_back(item.seq, item.pos)
        self.slabs.scrub(items[0].seq)
