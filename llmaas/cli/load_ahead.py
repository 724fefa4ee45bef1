"""Reads the model's files into the page cache beside the start of the daemon, and again when a parked model is wanted.

Law: imported before the heavy packages, so that the disk works while Python loads them. It never fails a start.
"""

from __future__ import annotations

import logging
from pathlib import Path

from llmaas.calls import Loading
from llmaas.cli.machine import ram
from llmaas.clock import Clock, RealClock
from llmaas.config import models
from llmaas.config.settings import Config
from llmaas.data_folder import beside
from llmaas.errors import LlmaasError
from llmaas.host.io_priority import lower_io_priority
from llmaas.model_files.load_memo import LoadMemo
from llmaas.model_files.page_cache import missing_bytes
from llmaas.model_files.reads import FileReads

log = logging.getLogger(__name__)

_LEFT = 0.1
"""Share of the memory that is free which reading ahead leaves alone."""
_LEAST_FIXED_S = 0.02


def load_memo(config: Config) -> LoadMemo:
    """Where what is learned of loading is kept: beside the data folder."""
    return LoadMemo(beside(config.data_dir, ".loads.json"))


class WeightReads:
    """The reads of the model that this configuration serves. For one thread at a time."""

    def __init__(self, config: Config, clock: Clock | None = None) -> None:
        self._config, self._clock = config, clock or RealClock()
        self._memo = load_memo(config)
        self._reads: FileReads | None = None
        self._began = self._clock.now()

    def start(self) -> None:
        """Begin to read what is not in memory; returns at once. Nothing happens while a read still runs."""
        if self._reads is not None and self._reads.running:
            return
        try:
            path = models.find(self._config.model)
        except LlmaasError:
            return  # whoever loads it says why
        found = ram()
        limit = None if found is None else int(found.available * (1 - _LEFT))
        self._reads = FileReads(models.parts_of(path), self._memo, limit=limit, prepare=lower_io_priority)
        self._reads.start()

    def loading(self, name: str) -> Loading | None:
        """How long it takes until the model of this name is in memory; None if nothing is being read."""
        if self._reads is None or not self._reads.running:
            return None
        return Loading(name, self._reads.left_s)

    def left_s(self) -> float | None:
        """Seconds until the model's files are in memory, as they are being read; None if they are not, or if that
        cannot be told."""
        return self._reads.left_s if self._reads is not None and self._reads.running else None

    def back_s(self) -> float | None:
        """The same if reading began now; 0.0: they are there."""
        try:
            path = models.find(self._config.model)
            missing = sum(_missing(part) for part in models.parts_of(path))
            disk = self._memo.disk(path.stat().st_dev)
        except (LlmaasError, OSError):
            return None
        return 0.0 if not missing else missing / disk.rate if disk is not None else None

    def close(self) -> None:
        if self._reads is not None:
            self._reads.close()

    def loaded(self, path: Path) -> None:
        """The model has been loaded since this object was made: learn how long it took beside the reads, and say so."""
        seconds = self._clock.now() - self._began
        missing = (self._reads.missing if self._reads is not None else None) or 0
        disk = self._memo.disk(path.stat().st_dev)
        reading = missing / disk.rate if disk is not None else 0.0
        expected = self._memo.expected_s(str(path), path.stat().st_dev, missing)
        text = "" if expected is None else f"; {expected:.1f} s were expected"
        log.info("loaded %s in %.1f s, of which %d MB were not in memory%s", path.name, seconds, missing >> 20, text)
        if missing == 0 or disk is not None:
            self._memo.keep_fixed(str(path), max(_LEAST_FIXED_S, seconds - reading))


def _missing(part: Path) -> int:
    """Bytes to be read of one of the model's files: all, where the system does not tell."""
    missing = missing_bytes(part)
    return part.stat().st_size if missing is None else missing
