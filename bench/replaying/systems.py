"""The programs that a replay is made on: the service under several policies, and others that people use.

Law: each gets the same model file, the same number of threads, greedy sampling, answers of the same length, and for
contexts the same bytes of RAM, in the arrangement that suits it best.

``CELLS``: how many tokens' f16 KV the engine holds. ``held``: as many as the longest context needs, the other bytes are
for contexts outside; ``all_cells``: all bytes are cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_MIB = 1 << 20
_SEQUENCES = 64
"""Contexts that can be in cells at once, of the service: more than bytes allow."""
_LEAST_POOL, _LEAST_POOL_F16 = 4 * _MIB, 16 * _MIB
"""Of the service: with less, chunks that are saved together could not pass through it on their way to disk."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes of RAM for contexts, and what they can hold. ``longest``, ``total``: tokens of the longest context and of
    all, with room."""

    nbytes: int
    token_bytes: int
    longest: int
    total: int

    @property
    def held_cells(self) -> int:
        return -(-self.longest // 256) * 256

    @property
    def all_cells(self) -> int:
        return max(self.held_cells, self.nbytes // self.token_bytes // 256 * 256)

    @property
    def outside(self) -> int:
        """Bytes that are left beside ``held_cells``."""
        return max(0, self.nbytes - self.held_cells * self.token_bytes)


@dataclass(frozen=True, slots=True)
class System:
    """``kind``: whose interface it has (``bench.replaying.app``)."""

    name: str
    about: str
    kind: str
    all_cells: bool = False
    bits: str = "4.0"
    choices: Mapping[str, Any] = field(default_factory=dict)
    """Fields of PlannerChoices that settings do not offer."""
    disk: bool = True
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of a program that is not the service."""
    slot_files: bool = False
    """The client has the only slot saved after each call, and restored before one of another context."""
    built: bool = False
    """llama-server as it was built here, not as a package brings it."""
    distinct: bool = False
    """Each context begins with its own name, so that no two have a chunk in common."""
    unbounded: bool = False
    """It may take as much RAM as it likes."""
    tiles: bool = True
    """What is computed again is computed as the service does, not by llama.cpp alone."""

    def serve_flags(self, budget: Budget) -> list[str]:
        """Options of ``llmaas serve``."""
        cells = budget.all_cells if self.all_cells else budget.held_cells
        least = _LEAST_POOL_F16 if self.bits == "16/16" else _LEAST_POOL
        if not self.disk:
            least = _MIB  # the least that there can be: no chunk of f16 fits
        pool = least if self.all_cells else max(least, budget.outside)
        if self.unbounded:
            pool = max(least, budget.total * budget.token_bytes)
        found = {"cells": cells, "pool-bytes": pool, "bits": self.bits, "pressure": "off", "sequences": _SEQUENCES}
        if not self.disk:
            found["disk-bytes"] = 0
        if not self.tiles:
            found["tiles"] = "false"
        return [part for name, value in found.items() for part in (f"--{name}", str(value))]

    def server_params(self, budget: Budget, folder: str) -> dict[str, Any]:
        """Parameters of llama-server."""
        cells = budget.all_cells if self.all_cells else budget.held_cells
        found: dict[str, Any] = {"n_ctx": cells, "n_parallel": 1, "cache_ram_mib": budget.outside // _MIB}
        if self.unbounded:
            found["cache_ram_mib"] = -1
        if self.slot_files:
            found |= {"slot_save_path": folder + "/", "cache_ram_mib": 0}
        return found | dict(self.flags)


_LRU = {"eviction": "lru", "wear": "eager", "split": "load_first"}
_RECOMPUTE = {"split": "recompute_first", "eviction": "lru"}
_SYSTEMS = (
    System("llmaas", "as it is shipped", "llmaas"),
    System(
        "kill",
        "contexts leave memory when there is no room, and are computed again, by llama.cpp alone",
        "llmaas",
        all_cells=True,
        bits="16/16",
        choices=_RECOMPUTE,
        disk=False,
        tiles=False,
    ),
    System("kill-tiles", "the same, computed as the service does", "llmaas", True, "16/16", _RECOMPUTE, disk=False),
    System("swap", "whole contexts, f16, to disk; least recently used", "llmaas", True, "16/16", _LRU),
    System("chunk", "chunks, f16, in RAM and on disk; least recently used", "llmaas", False, "16/16", _LRU),
    System("chunk8", "the same with 8 bits", "llmaas", False, "8/8", _LRU),
    System(
        "llms",
        "LLMS' queue, ahead-of-time writing, recomputing beside reading; 8, 4 or 2 bits by attention density",
        "llmaas",
        choices={"eviction": "lctru", "wear": "eager", "split": "balanced", "spending": "llms"},
    ),
    System(
        "llms-4",
        "the same with 4 bits for all chunks",
        "llmaas",
        bits="4/4",
        choices={"eviction": "lctru", "wear": "eager", "split": "balanced"},
    ),
    System("llmaas-f16", "llmaas without compression", "llmaas", bits="16/16"),
    System("llmaas-lru", "llmaas with LRU", "llmaas", choices={"eviction": "lru"}),
    System("llmaas-read", "llmaas that never computes beside reading", "llmaas", choices={"split": "load_first"}),
    System("llmaas-eager", "llmaas that writes everything at once", "llmaas", choices={"wear": "eager"}),
    System("llmaas-late", "llmaas that writes nothing ahead of need", "llmaas", choices={"wear": "late"}),
    System("llmaas-unshared", "llmaas whose contexts have no chunk in common", "llmaas", distinct=True),
    System(
        "exact",
        "f16, RAM for all outside CELLS: answers to compare with",
        "llmaas",
        bits="16/16",
        unbounded=True,
    ),
    System("llama-server", "its RAM cache of prompts, in the same bytes", "llama_server"),
    System(
        "llama-server-slots",
        "as many cells as the bytes hold, shared by 8 slots",
        "llama_server",
        all_cells=True,
        flags={"n_parallel": 8, "kv_unified": True, "cache_ram_mib": 0},
    ),
    System("llama-server-files", "one slot, which the client has saved and restored", "llama_server", slot_files=True),
    System("llama-server-built", "llama-server as built here, its RAM cache", "llama_server", built=True),
    System("llama-server-free", "its RAM cache of prompts, unbounded", "llama_server", unbounded=True),
    System("llama-cpp-ram", "llama_cpp.server, RAM cache in the same bytes", "llama_cpp_server"),
    System("llama-cpp-disk", "llama_cpp.server, disk cache", "llama_cpp_server", slot_files=True),
    System("hearth", "hearth, which saves and restores the only slot of a llama-server", "hearth", slot_files=True),
)
EXACT = "exact"
"""The answers of all others are compared with its. What it does with CELLS is the same, since llama.cpp adds up in the
order of cells (docs/engine.md): with other neighbours, greedy answers differ now and then at the same KV."""
SYSTEMS = {system.name: system for system in _SYSTEMS}
DEFAULT = ("llmaas", "kill", "swap", "llama-server", "llama-server-slots", "llama-server-files")
