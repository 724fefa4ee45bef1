"""The doctor's look at the profile: which one gives the defaults, why, and what of it holds on this machine.

Law: values only; it looks at nothing but the configuration that it is given.
"""

from __future__ import annotations

from llmaas.cli.doctor.finding import Finding
from llmaas.cli.out import human_bytes
from llmaas.config.profiles import PROFILE_SETTINGS, PROFILES, halvings
from llmaas.config.sources import LoadedConfig


def profile_finding(found: LoadedConfig) -> Finding:
    name, machine = found.config.profile, found.machine
    parts = [f"{name} ({_why(found)})"]
    if times := halvings(PROFILES[name], machine.ram):
        made_for = human_bytes(PROFILES[name].ram)
        parts.append(f"it is for {made_for} of RAM: 1/{2**times} of its cells and pool_bytes")
    if set_otherwise := [
        each for each in PROFILE_SETTINGS if found.origins[each] not in ("default", f"profile {name}")
    ]:
        parts.append(f"set otherwise: {', '.join(set_otherwise)}")
    return Finding("profile", "ok", "; ".join(parts))


def _why(found: LoadedConfig) -> str:
    """Who chose it: a setting, or what the machine is."""
    board, ram = found.machine.board, found.machine.ram
    if found.origins["profile"] != "default":
        return found.origins["profile"]
    called = f" ({board.name})" if board.name else ""
    size = f"{human_bytes(ram)} of RAM" if ram else "its RAM is not known"
    return f"chosen by itself: {board.kind.value}{called}, {size}"
