"""The figures of a service that the operation ``stats`` tells.

Law: plain values, of one moment; making them changes nothing.
"""

from __future__ import annotations

from dataclasses import asdict

from llmaas.planner.planner import Planner
from llmaas.service.budgets import Budgets
from llmaas.service.parts import ServiceParts
from llmaas.service.runner import CallRunner
from llmaas.service.written_bytes import written_bytes


def figures(
    parts: ServiceParts, planner: Planner, budgets: Budgets, runner: CallRunner, *, seconds: float, wear_budget: int
) -> dict[str, object]:
    """Counts and bytes. ``seconds`` since the start; ``wear_budget``: bytes that may be written in a day."""
    found, stored = budgets.snapshot(), parts.store.stats()
    found["disk_bytes"]["files"] = stored.file_bytes
    return {
        "model": parts.engine.info.title,
        "contexts": len(parts.directory),
        "text_bytes": parts.quotas.nbytes,
        "requests": {
            "active": len(parts.calls),
            "waiting": planner.waiting,
            "total": runner.total,
            "waiting_by_priority": runner.waiting_by_priority(),
        },
        "cells": {"used": planner.cells_used, "total": parts.engine.n_cells},
        **found,
        "written_bytes": written_bytes(stored.bytes_written, seconds, wear_budget),
        "adapters": parts.adapters.stats(),
        "weights": parts.weights.stats(),
        "host": parts.host.snapshot(),
        "counts": asdict(planner.tally),
        "calls": parts.metrics.snapshot(),
    }
