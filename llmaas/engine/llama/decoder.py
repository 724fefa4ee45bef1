"""Steps of llama.cpp: one ``llama_context`` with its cells, samplers, adapters and query probe.

Law: the engine's thread only, except ``abort_flag``. A step that fails leaves every sequence as it was, or empty if the
model's state cannot be cut. What a step computed is used only if the model's files are still those that were loaded,
and if it is numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from llmaas.engine.base import BatchItem, Halt, Row, Undrawn
from llmaas.engine.llama.adapters import LlamaAdapters
from llmaas.engine.llama.batch import Batch, decode_failure
from llmaas.engine.llama.cells import SequenceCells, window_of
from llmaas.engine.llama.context import ContextSettings, new_context
from llmaas.engine.llama.decode_run import MOST, NO_NUMBERS, DecodeRun
from llmaas.engine.llama.lib import N_CPUS, AbortFlag, C, ggml_function
from llmaas.engine.llama.model import LlamaModel
from llmaas.engine.llama.numbers import Numbers
from llmaas.engine.llama.openmp import MANY_TOKENS, SpinControl
from llmaas.engine.llama.query_probe import QueryProbe
from llmaas.engine.llama.sampling import Samplers
from llmaas.engine.llama.threads_apart import ThreadsApart
from llmaas.engine.row_pipe import Telling
from llmaas.engine.rules import check_step
from llmaas.errors import ModelChanged
from llmaas.kv_arrays import F32


class LlamaDecoder:
    """The parts of a ``llama_context`` in use. ``context`` is the ``llama_context *``; None after ``close``.

    It does not keep the model alive: its maker must hold ``model`` for longer. Raises what ``new_context`` raises.
    """

    def __init__(self, model: LlamaModel, settings: ContextSettings) -> None:
        n_head = int(C.llama_model_n_head(model.handle))
        self.probe = QueryProbe(model.geometry(), n_head, n_batch=settings.n_batch, n_seqs=settings.n_seqs)
        self.samplers = Samplers(model.constraints, model.n_vocab, model.end)
        self.n_vocab = model.n_vocab
        self._files = model.files
        self.context: Any = new_context(model, settings, self.probe)
        window = window_of(model.handle)
        self.cells = SequenceCells(self.context, settings.n_seqs, window, full=settings.full_windows)
        self.adapters = LlamaAdapters(model.handle, self.context)
        self.abort_flag = AbortFlag(self.context)
        parallel = ggml_function("GOMP_parallel")
        self._spins = SpinControl(parallel, N_CPUS)
        self._threads_apart, self._apart = ThreadsApart(parallel), False
        self.n_threads = settings.n_threads
        """Of the next step. Only ``set_threads`` writes it."""
        self.batch = Batch(settings.n_batch)
        self.numbers = Numbers(self.context, self.cells, self.batch, model.n_vocab)
        self._run = DecodeRun(self.context, model.vocab, self.batch, settings.n_seqs, model.files)
        self.max_batch = int(
            C.llama_n_batch(self.context)
        )  # at most the cells asked for: llama.cpp asserts on a larger batch
        if window and settings.full_windows:  # a longer batch could give away the cells of its own first tokens
            self.max_batch = min(self.max_batch, self.cells.window)
        self._logits_rows: list[int | None] = []
        """For each item of the last step, the batch index of its logits; None if it drew nothing."""

    def step(self, items: Sequence[BatchItem], adapter: str, *, draw_s: float = math.inf) -> Row:
        """See ``Engine.step``."""
        check_step(items, self.cells.lengths, self.samplers, self.n_vocab, self.max_batch)
        self._files.check()
        self.adapters.use(adapter)
        last = self.batch.fill(items)
        self.abort_flag.clear()
        self.probe.watch(items)
        self._logits_rows = []
        self._spins.before_step(self.batch.struct.n_tokens, self.n_threads)
        status = self._compute()
        if (failure := self._failure(status)) is not None:
            for item in items:  # llama.cpp keeps the part-batches that it had finished
                self.cells.take_back(item.seq, item.pos)
            raise failure
        if bad := self.numbers.bad_items(items, last):
            self.probe.watch(())
            raise self.numbers.take_back(items, bad)
        self.probe.collect()
        for item in items:
            self.cells.extend(item.seq, item.pos, item.pos + len(item.tokens))
        self._logits_rows = [None if item.sampler is None else i for item, i in zip(items, last, strict=True)]
        return self.samplers.draws.row(items, self._logits_rows, self._draw, self.drop, draw_s)

    def _compute(self) -> int:
        """What llama_decode says of the batch."""
        apart = self._apart and self.batch.struct.n_tokens >= MANY_TOKENS
        with self._threads_apart.during_step(self.n_threads) if apart else nullcontext():
            return int(C.llama_decode(self.context, self.batch.struct))

    def _draw(self, sampler: int, index: int) -> int | Undrawn:
        return self.samplers.draw(sampler, self.context, index)

    def steps(
        self,
        items: Sequence[BatchItem],
        most: int,
        seconds: float,
        halt: Halt,
        adapter: str,
        telling: Telling | None = None,
    ) -> Sequence[Row]:
        """See ``Engine.steps``. One step at a time where the C part was not built, or a sampler needs Python."""
        check_step(items, self.cells.lengths, self.samplers, self.n_vocab, self.max_batch)
        chains = [self.samplers.chain(item.sampler) for item in items if item.sampler is not None]
        if not self._run.built or None in chains:
            return [self.step(items, adapter)]
        most, probe = self.probe.prepare(items, min(most, MOST))
        self._files.check()
        self.adapters.use(adapter)
        self.batch.fill(items)
        self.abort_flag.clear()
        self._spins.before_step(len(items), self.n_threads)
        rows, status = self._run.run(chains, most, seconds, halt, probe, telling)
        failure = None if status == NO_NUMBERS else self._failure(status)
        if isinstance(failure, ModelChanged):
            rows = rows[: max(0, telling.told - len(telling.ahead))] if telling else []
        else:
            self.probe.collect_steps(items, probe, len(rows), failed=status != 0)
        if status == NO_NUMBERS:
            return self._end_at_no_numbers(items, rows)
        if failure is not None:
            kept = [self.cells.take_back(item.seq, item.pos + len(rows)) for item in items]
            if not rows or not all(kept):
                for item in items:
                    self.cells.take_back(item.seq, item.pos)
                raise failure
        for item in items:
            self.cells.extend(item.seq, item.pos, item.pos + len(rows))
        self._logits_rows = list(range(len(items)))
        return rows

    def _end_at_no_numbers(self, items: Sequence[BatchItem], rows: list[list[int]]) -> list[list[int]]:
        """The step after ``rows`` computed NaN: it is taken back. If there are rows, the next call fails, not this."""
        for item in items:
            self.cells.extend(item.seq, item.pos, item.pos + len(rows))
        tokens = rows[-1] if rows else [item.tokens[0] for item in items]
        failed = [
            BatchItem(item.seq, item.pos + len(rows), [token], item.sampler)
            for item, token in zip(items, tokens, strict=True)
        ]
        self.probe.watch(())
        error = self.numbers.take_back(failed, self.numbers.bad_items(failed, range(len(failed))))
        if not rows or self.numbers.slabs is None:
            raise error
        self._logits_rows = []
        return rows

    def _failure(self, status: int) -> Exception | None:
        """What is wrong with a step for which ``llama_decode`` returned ``status``."""
        if status:
            return decode_failure(status)
        try:
            self._files.check()
        except ModelChanged as error:
            return error
        return None

    def logits(self, item: int) -> F32:
        """See ``Engine.logits``."""
        if not self._logits_rows or (index := self._logits_rows[item]) is None:
            raise ValueError("that item of the last step drew nothing")
        return np.ctypeslib.as_array(C.llama_get_logits_ith(self.context, index), (self.n_vocab,)).copy()

    def decode_alone(self, token: int, position: int) -> None:
        """Compute one token at ``position`` of the empty sequence 0; lengths and queries are not kept."""
        self.batch.fill([BatchItem(0, position, [token])])
        if status := int(C.llama_decode(self.context, self.batch.struct)):
            raise decode_failure(status)

    def drop(self, seq: int, start: int) -> None:
        """See ``Engine.drop``."""
        if start < self.cells.lengths[seq]:
            self.cells.truncate(seq, start)
            self.probe.queries.drop(seq, start)

    def set_threads(self, n: int, *, spin: bool, apart: bool) -> None:
        """See ``Engine.set_threads``."""
        if n != self.n_threads:
            C.llama_set_n_threads(self.context, n, n)
        self.n_threads, self._spins.always_long, self._apart = n, spin, apart

    def close(self) -> None:
        """Free the ``llama_context`` and the samplers. Idempotent."""
        if self.context is not None:
            self._spins.close()
            self.samplers.close()
            C.llama_free(self.context)
            self.context = None
