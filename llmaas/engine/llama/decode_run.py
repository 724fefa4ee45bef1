"""Several decode steps of llama.cpp in a row, in C, without Python between them.

Law: what is drawn, and what the sequences hold afterwards, is as after so many single steps.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from llmaas.engine.base import Halt
from llmaas.engine.llama.batch import Batch
from llmaas.engine.llama.lib import C, ggml_function
from llmaas.engine.llama.model_file import ModelFiles
from llmaas.engine.llama.query_probe import SampledSteps
from llmaas.engine.row_pipe import Telling
from llmaas.native import load_library

_log = logging.getLogger(__name__)
_VERSION = 5
"""Of ``Run`` in ``_steps.c``; a library left over from another version is not used."""
MOST = 64
"""Most steps of one run."""
NO_NUMBERS = -1000
"""The code of a step whose logits are no numbers."""
LIKELIEST = 0
"""In place of a sampler chain: the likeliest token is drawn, as llama.cpp's greedy sampler does, and sooner."""


class _Mark(ctypes.Structure):
    """``Mark`` of _steps.c."""

    _fields_ = (
        ("size", ctypes.c_int64),
        ("modified_ns", ctypes.c_int64),
        ("changed_ns", ctypes.c_int64),
        ("fd", ctypes.c_int32),
    )


class _Run(ctypes.Structure):
    """``Run`` of _steps.c."""

    _fields_ = (
        ("context", ctypes.c_void_p),
        ("batch", C.llama_batch),
        ("samplers", ctypes.c_void_p),
        ("drawn", ctypes.c_void_p),
        ("vocab", ctypes.c_void_p),
        ("halt", ctypes.c_void_p),
        ("probe", ctypes.c_void_p),
        ("sampled", ctypes.c_void_p),
        ("marks", ctypes.c_void_p),
        ("faults", ctypes.c_void_p),
        ("known_faults", ctypes.c_int64),
        ("seconds", ctypes.c_double),
        ("first", ctypes.c_double),
        ("every", ctypes.c_double),
        ("since", ctypes.c_double),
        ("pipe", ctypes.c_int32),
        ("number", ctypes.c_int32),
        ("before", ctypes.c_int32),
        ("ahead", ctypes.c_int32),
        ("told", ctypes.c_int32),
        ("n_marks", ctypes.c_int32),
        ("most", ctypes.c_int32),
        ("status", ctypes.c_int32),
        ("last", ctypes.c_int32),
        ("decode", ctypes.c_void_p),
        ("sample", ctypes.c_void_p),
        ("ends", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
    )


class DecodeRun:
    """Runs decode steps of one ``llama_context``. ``built``: whether the C part is there; without it ``run`` fails."""

    def __init__(self, context: Any, vocab: Any, batch: Batch, n_seqs: int, files: ModelFiles) -> None:
        self._library = load_library(__file__, "_steps", _fits)
        if self._library is None:
            _log.info("the C loop of decode steps was not built: answers of small models are some percent slower")
        self._batch, self._files = batch, files
        self._drawn = np.zeros(2 * MOST * n_seqs, np.int32)
        self._samplers = np.zeros(n_seqs, np.uintp)
        self._run = _Run(
            context=ctypes.cast(context, ctypes.c_void_p),
            samplers=self._samplers.ctypes.data,
            drawn=self._drawn.ctypes.data,
            vocab=ctypes.cast(vocab, ctypes.c_void_p),
            decode=ggml_function("llama_decode"),
            sample=ggml_function("llama_sampler_sample"),
            ends=ggml_function("llama_vocab_is_eog"),
            logits=ggml_function("llama_get_logits_ith"),
            last=int(C.llama_vocab_n_tokens(vocab)) - 1,
        )
        functions = self._run.decode, self._run.sample, self._run.ends, self._run.logits
        self.built = self._library is not None and all(functions)

    def run(
        self,
        samplers: Sequence[Any],
        most: int,
        seconds: float,
        halt: Halt,
        probe: SampledSteps | None,
        telling: Telling | None = None,
    ) -> tuple[list[list[int]], int]:
        """Decode the batch, which holds one token per sampler, and go on for at most ``most`` steps, MOST at most.

        Returns the tokens of each step that was done, and the code of ``llama_decode`` with which the next one failed,
        NO_NUMBERS, or 0. ``telling``: see ``Engine.steps``.
        """
        assert self._library is not None
        n, run = len(samplers), self._run
        self._samplers[:n] = [ctypes.cast(sampler, ctypes.c_void_p).value or 0 for sampler in samplers]
        run.batch, run.halt = self._batch.struct, halt.address
        run.probe, run.sampled = (None, None) if probe is None else (probe.flag, probe.steps.ctypes.data)
        run.most, run.seconds, run.status, run.pipe, run.ahead = min(most, MOST), seconds, 0, -1, 0
        if telling is not None:
            self._tell(telling, n)
        steps = int(self._library.steps_run(ctypes.byref(run)))
        if telling is not None:
            telling.told, telling.since_s = run.told, run.since
        rows: list[list[int]] = self._drawn[run.ahead * n : (run.ahead + steps) * n].reshape(steps, n).tolist()
        return rows, int(run.status)

    def _tell(self, telling: Telling, n: int) -> None:
        """Have the next run tell its rows, of ``n`` tokens each."""
        run, ahead = self._run, len(telling.ahead)
        if ahead > MOST:  # there is no room for them: the run ends when they are to be told
            run.seconds = telling.first_s
            return
        self._drawn[: ahead * n] = [token for row in telling.ahead for token in row if token is not None]
        run.pipe, run.number, run.before, run.ahead = telling.pipe, telling.number, telling.before, ahead
        run.first, run.every = telling.first_s, telling.every_s
        marks = [_Mark(size, modified, changed, fd) for fd, size, modified, changed in self._files.marks]
        self._marks = (_Mark * len(marks))(*marks)
        run.marks, run.n_marks = ctypes.addressof(self._marks), len(marks)
        faults = self._files.faults
        run.faults, run.known_faults = (None, 0) if faults is None else faults


def _fits(library: ctypes.CDLL) -> bool:
    return bool(library.steps_version() == _VERSION and library.steps_size() == ctypes.sizeof(_Run))
