"""What the configuration chooses of the engine: the sizes of its buffers, and whether weights are copied.

Law: the one place where the configuration becomes settings of llama.cpp, for the daemon and for ``llmaas doctor``.
"""

from __future__ import annotations

import logging
from pathlib import Path

from llmaas.cli.machine import ram
from llmaas.cli.planner_choices import batch_tokens
from llmaas.config import models
from llmaas.config.settings import Config
from llmaas.data_folder import beside
from llmaas.engine.llama.context import ContextSettings
from llmaas.engine.llama.devices import Placement
from llmaas.engine.llama.repack import Memo
from llmaas.engine.llama.repack_measure import RepackMeasurement
from llmaas.engine.llama.rope_memo import RopeMemo

log = logging.getLogger(__name__)

_UBATCH = 512
"""Tokens of a batch that llama.cpp computes at once, at most: more need more memory and are hardly quicker."""
_SPARE_BYTES = 64 << 20


def context_settings(config: Config) -> ContextSettings:
    n_ubatch = min(_UBATCH, config.prefill_slice)
    return ContextSettings(
        config.cells, config.sequences, config.threads, batch_tokens(config), n_ubatch, "f16", config.full_windows
    )


def placement(config: Config) -> Placement:
    """What computes the model, beside the CPU."""
    return Placement(config.devices, config.gpu_layers)


def repack_memo(config: Config) -> Memo:
    """Where ``repack = auto`` keeps what it measured: beside the store, which knows no models."""
    return Memo(beside(config.data_dir, ".repack.json"))


def rope_memo(config: Config) -> RopeMemo:
    """Where it is kept how models rotate their keys."""
    return RopeMemo(beside(config.data_dir, ".rope.json"))


def measure_repack(config: Config, model: Path) -> RepackMeasurement | None:
    """Begin to measure whether a copy pays; None if there is no memory for it, which the log says. What is measured
    are answers: not for a model that gives none.

    A copy takes at most as much as the file. Where the system does not tell what is free, it is tried.
    """
    found, need = ram(), models.size_bytes(model) + _SPARE_BYTES
    if found is not None and found.available < need:
        log.warning(
            "not measured if a second copy of weights pays, so none is made: it takes up to %d MB, and %d MB are free",
            need >> 20,
            found.available >> 20,
        )
        return None
    return RepackMeasurement(model, repack_memo(config))
