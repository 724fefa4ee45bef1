"""What the configuration chooses of the planner's settings.

Law: the one place where the configuration becomes settings of the planner, for the daemon and for ``llmaas replay``.
"""

from __future__ import annotations

from pathlib import Path

from llmaas.config.settings import Config
from llmaas.planner.settings import PlannerChoices, bit_settings
from llmaas.records import NO_QUOTA, Precision

_BATCH = 512


def batch_tokens(config: Config) -> int:
    """Tokens of one batch of the engine at most: a whole slice of a prompt fits."""
    return max(_BATCH, config.prefill_slice)


def costs_path(config: Config) -> Path:
    """Where the daemon leaves what it has learned of the machine: beside the store, which knows no models."""
    return config.data_dir.with_name(config.data_dir.name + ".costs.json")


def planner_choices(config: Config) -> PlannerChoices:
    return PlannerChoices(
        pool_bytes=config.pool_bytes,
        disk_bytes=config.disk_bytes,
        wear_budget=NO_QUOTA if config.wear_budget is None else config.wear_budget,
        **bit_settings(Precision(*config.bits) if isinstance(config.bits, tuple) else config.bits),
        prefill_slice=config.prefill_slice,
        step_target=config.step_ms / 1e3,
        max_running=config.max_running,
        quantum=config.quantum,
        ageing_s=config.ageing,
        rate=config.rate,
        app_rate=config.app_rate,
        adapter_bytes=config.adapter_bytes,
    )
