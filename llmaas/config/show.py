"""The value of a setting as text, as the settings file and flags take it.

Law: pure; what it returns is read as the same value.
"""

from __future__ import annotations

from llmaas.config.kinds import show_bytes, show_cpus
from llmaas.config.settings import Setting


def show_setting(row: Setting, value: object) -> object:
    """``value`` of the setting ``row``; where it is None, the text of its default."""
    match row.kind.metavar, value:
        case _, None | ():
            return row.default_text
        case _, bool():
            return str(value).lower()
        case "SIZE", int():
            return show_bytes(value)
        case "CPUS", tuple():
            return show_cpus(value)
        case "NAME=PATH,...", tuple():
            return ",".join(f"{adapter}={path}" for adapter, path in value)
        case "APP,..." | "HOST,..." | "MODEL,...", tuple():
            return ",".join(value)
        case _, tuple():
            return "/".join(map(str, value))
        case _:
            return value
