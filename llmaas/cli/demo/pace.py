"""How fast this machine reads text, roughly: the only thing about the machine that a demo's sizes depend on.

Law: a power of two, so that runs stay comparable.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from llmaas.clock import RealClock
from llmaas.engine.base import BatchItem
from llmaas.engine.llama.engine import LlamaEngine

_USUAL_SPEED = 350.0
"""Tokens per second of prefill on two cores of a laptop: pace 1."""
_FASTEST = 4.0
"""Times the usual speed beyond which contexts do not grow: the conversations are only so long."""
_PROBE_TOKENS = 128
_PROBES = 4


def measured_pace(model: Path) -> float:
    """How fast this machine can read text, in times the usual speed: a power of two, so that runs stay comparable."""
    engine = LlamaEngine(model, n_cells=512, n_seqs=2, n_threads=len(os.sched_getaffinity(0)))
    clock, tokens, times = RealClock(), list(range(1000, 1000 + _PROBE_TOKENS)), []
    try:
        for _ in range(_PROBES):
            began = clock.now()
            engine.step([BatchItem(0, 0, tokens)])
            times.append(clock.now() - began)
            engine.drop(0, 0)
    finally:
        engine.close()
    # The best: the first pages the weights in, and others may have been disturbed.
    speed = _PROBE_TOKENS / min(times)
    return float(min(_FASTEST, 2.0 ** round(math.log2(speed / _USUAL_SPEED))))
