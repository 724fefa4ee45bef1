"""The demo's report: everything that it has measured, for the JSON file.

Law: every figure on the screen is in the JSON, with the machine, the versions, the model and the seed beside it.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from llmaas.cli.demo.figures import figures
from llmaas.cli.demo.plan import ANSWER_TOKENS, CODED, Plan
from llmaas.cli.demo.records import DemoFindings
from llmaas.cli.machine import ram
from llmaas.config.models import size_bytes
from llmaas.version import __version__


def report(
    findings: DemoFindings, plan: Plan, model: Path, model_name: str, data_dir: Path, memory: dict[str, Any]
) -> dict[str, Any]:
    """Everything, for the JSON file."""
    return {
        "bench": "demo",
        "machine": machine(data_dir),
        "versions": versions(),
        "model": {"name": model_name, "file": model.name, "bytes": size_bytes(model)},
        "seed": plan.seed,
        "seconds_asked": plan.seconds,
        "pace": plan.pace,
        "settings": _settings(plan),
        "figures": figures(findings, plan),
        "memory": memory,
        "daemon_stats": findings.stats,
        "restart": findings.restart,
        "checks": [asdict(check) for check in findings.checks],
        "turns": [asdict(turn) for turn in findings.turns],
        "prefills": [asdict(prefill) for prefill in findings.prefills],
    }


def versions() -> dict[str, str]:
    packages = {name: metadata.version(name) for name in ("llama-cpp-python", "numpy")}
    return {"llmaas": __version__, "python": platform.python_version(), **packages}


def _settings(plan: Plan) -> dict[str, int]:
    return {
        "cells": plan.cells,
        "pool_bytes": plan.pool_bytes,
        "k_bits": CODED.k,
        "v_bits": CODED.v,
        "answer_tokens": ANSWER_TOKENS,
        "f16_bytes_needed": plan.f16_bytes,
        "coded_bytes_needed": plan.coded_bytes,
    }


def machine(data_dir: Path) -> dict[str, Any]:
    found = ram()
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_bytes": found.total if found else None,
        "kernel": f"{platform.system()} {platform.release()}",
        "arch": platform.machine(),
        "load_average": os.getloadavg()[0],
        "store_filesystem": filesystem(data_dir),
    }


def filesystem(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system that ``path`` is on; 'unknown' where the kernel does not tell."""
    try:
        rows = [line.split() for line in mounts.read_text("utf-8").splitlines()]
    except OSError:
        return "unknown"
    path = path.resolve()
    around = [(len(row[1]), row[2]) for row in rows if path == Path(row[1]) or Path(row[1]) in path.parents]
    return max(around, default=(0, "unknown"))[1]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
