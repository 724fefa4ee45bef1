"""Profiles: defaults of some settings for kinds of machines, and which of them suits the one at hand.

Law: pure functions of what is known of the machine. A profile gives defaults, so whatever is set wins; and it never
asks for more than the machine has: on one with less RAM or disk than it is made for, it asks for less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmaas.config.boards import Board, BoardKind
from llmaas.errors import assert_never
from llmaas.frozen import frozen

_GIB, _MIB = 1 << 30, 1 << 20
DESKTOP = "desktop"


@frozen
class Profile:
    """Defaults of the settings of the same names. ``ram``: bytes that the machine has; ``threads``: at most."""

    ram: int
    cells: int
    pool_bytes: int
    disk_bytes: int
    threads: int | None
    bits: float
    governor: str
    wear_budget: int | None


PROFILES: dict[str, Profile] = {
    "phone-4g": Profile(4 * _GIB, 2048, 64 * _MIB, _GIB, 4, 3.5, "on", 2 * _GIB),
    "phone-8g": Profile(8 * _GIB, 4096, 128 * _MIB, 4 * _GIB, 4, 4.0, "on", 2 * _GIB),
    "pi-8g": Profile(8 * _GIB, 4096, 256 * _MIB, 4 * _GIB, 4, 4.0, "on", 2 * _GIB),
    "jetson-8g": Profile(8 * _GIB, 4096, 256 * _MIB, 4 * _GIB, 6, 4.0, "on", 2 * _GIB),
    "jetson-16g": Profile(16 * _GIB, 8192, 512 * _MIB, 8 * _GIB, 8, 4.0, "on", 4 * _GIB),
    DESKTOP: Profile(4 * _GIB, 8192, 256 * _MIB, 20 * _GIB, None, 4.0, "off", None),
}
"""Desktop's are the defaults of the settings. Phones have four fast cores or fewer: with the slow ones, too, all wait
for these. A machine whose RAM the CPU shares with a GPU and a screen leaves less for a model than its name says."""
_NEARLY = 0.6
"""Of the RAM that a profile is made for: firmware and kernel keep some. What has less gets half."""
_LEAST_CELLS, _LEAST_POOL = 256, 4 * _MIB
_DISK_SHARE = 2
"""The disk's size over what chunks may take of it at most."""
_NO_BOARD = Board()


@frozen
class Hardware:
    """What is known of a machine: its kind, and in bytes its RAM (the tightest limit of a container counts) and the
    size of the disk that holds a folder. None: it does not say."""

    board: Board = _NO_BOARD
    ram: int | None = None
    disk_of: Callable[[Path], int | None] = lambda folder: None


UNKNOWN = Hardware()

PROFILE_SETTINGS = ("cells", "pool_bytes", "disk_bytes", "threads", "bits", "governor", "wear_budget")
"""Settings whose defaults a profile gives."""


def suitable_profile(machine: Hardware) -> str:
    """The profile's name for a machine of this kind and RAM. Android keeps a tenth of an 8 GB phone's to itself."""
    ram = machine.ram or 0
    match machine.board.kind:
        case BoardKind.PHONE:
            return "phone-8g" if ram >= 6.5 * _GIB else "phone-4g"
        case BoardKind.PI:
            return "pi-8g"
        case BoardKind.JETSON:
            return "jetson-16g" if ram >= 12 * _GIB else "jetson-8g"
        case BoardKind.OTHER:
            return DESKTOP
        case kind:
            assert_never(kind)


def halvings(profile: Profile, ram: int | None) -> int:
    """How often cells and pool are halved for a machine with so much RAM.

    >>> [halvings(PROFILES["pi-8g"], gigabytes << 30) for gigabytes in (16, 8, 4, 2, 1)]
    [0, 0, 1, 2, 3]
    """
    times, made_for = 0, float(profile.ram)
    while ram and ram < made_for * _NEARLY:
        times, made_for = times + 1, made_for / 2
    return times


def defaults(name: str, machine: Hardware, data_dir: Path, n_threads: int) -> Mapping[str, Any]:
    """Values of the settings that the profile gives, by their names. ``n_threads``: as many as may be busy at once."""
    profile = PROFILES[name]
    times = halvings(profile, machine.ram)
    disk = machine.disk_of(data_dir)
    return {
        "cells": max(_LEAST_CELLS, profile.cells >> times),
        "pool_bytes": max(_LEAST_POOL, profile.pool_bytes >> times),
        "disk_bytes": profile.disk_bytes if disk is None else min(profile.disk_bytes, disk // _DISK_SHARE),
        "threads": n_threads if profile.threads is None else min(n_threads, profile.threads),
        "bits": profile.bits,
        "governor": profile.governor,
        "wear_budget": profile.wear_budget,
    }
