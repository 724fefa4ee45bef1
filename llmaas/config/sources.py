"""Where settings come from: defaults, a TOML file, the environment and flags, in rising precedence.

Law: a value that is wrong never reaches the service: it becomes a ConfigError that names the setting, its source, the
value and what is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmaas.config.cpus import default_threads
from llmaas.config.profiles import UNKNOWN, Hardware, defaults, suitable_profile
from llmaas.config.settings import SETTINGS, Config, Setting, check_together, flag, variable
from llmaas.config_file import PREFIX, Environ, config_file, read_toml
from llmaas.errors import ConfigError
from llmaas.frozen import frozen

RESERVED = (
    "LLMAAS_CONFIG",
    "LLMAAS_DEBUG",
    "LLMAAS_MASTER_KEY",
    "LLMAAS_TOKEN",
    "LLMAAS_GPU",
    "LLMAAS_VENV",
    "LLMAAS_WHEELS",
)
"""Variables of ours that are no settings: the last three are those of scripts/setup."""


@frozen
class LoadedConfig:
    """A configuration, the origin of each value in words, the file that was read, if any, and the machine for which
    defaults were chosen."""

    config: Config
    origins: Mapping[str, str]
    file: Path | None
    machine: Hardware = UNKNOWN
    served_as: str = ""
    """The name of the registered model that ``config`` is for, if it is for one."""


def load(
    flags: Mapping[str, str | None], environ: Environ, file: Path | None = None, machine: Hardware = UNKNOWN
) -> LoadedConfig:
    """The configuration from all sources. ``flags`` maps setting names to raw text (None: not given).

    ``file`` is used before LLMAAS_CONFIG, and that before the default file; only the default file may be absent.
    Defaults are those of the profile, which suits ``machine`` if none is set. Raises ConfigError.
    """
    file = config_file(environ, file)
    raws: dict[str, tuple[object, str, Path]] = {}
    for name, raw in (_read_file(file) if file else {}).items():
        raws[name] = (raw, str(file), file.parent if file else Path())
    for name in SETTINGS:
        if variable(name) in environ:
            raws[name] = (environ[variable(name)], f"variable {variable(name)}", Path.cwd())
        if flags.get(name) is not None:
            raws[name] = (flags[name], f"flag {flag(name)}", Path.cwd())
    values: dict[str, Any] = {name: _value(name, row, raws.get(name), environ) for name, row in SETTINGS.items()}
    origins = {name: raws[name][1] if name in raws else "default" for name in SETTINGS}
    if "profile" not in raws:
        values["profile"] = suitable_profile(machine)
    _fill_in(values, origins, machine)
    config = Config(**values)
    check_together(config, origins)
    return LoadedConfig(config, origins, file, machine)


def _fill_in(values: dict[str, Any], origins: dict[str, str], machine: Hardware) -> None:
    """Settings that nothing sets get the profile's values. What differs from the usual default has its origin there."""
    usual = dict(values)
    if values["cpus"] and origins["threads"] == "default":
        usual["threads"] = default_threads(len(values["cpus"]))
    for name, value in defaults(values["profile"], machine, values["data_dir"], usual["threads"]).items():
        if origins[name] == "default":
            values[name] = value
            if value != usual[name]:
                origins[name] = f"profile {values['profile']}"
    if origins["prefill_slice"] == "default":
        values["prefill_slice"] = min(values["prefill_slice"], values["cells"])


def unknown_variables(environ: Environ) -> list[tuple[str, str | None]]:
    """LLMAAS_ variables that are no setting, each with the likely meant one.

    They are no error: container managers set variables of such names by themselves.
    """
    known = [variable(name) for name in SETTINGS]
    strange = [v for v in sorted(environ) if v.startswith(PREFIX) and v not in known and v not in RESERVED]
    return [(v, _nearest(v, known)) for v in strange]


def _value(name: str, row: Setting, raw: tuple[object, str, Path] | None, environ: Environ) -> object:
    if raw is None:
        return row.default(environ)
    value, origin, base = raw
    try:
        return row.kind.read(value, base)
    except ValueError:
        raise ConfigError(f"setting {name} ({origin}) is {value!r}; it must be {row.kind.allowed}") from None


def _read_file(path: Path) -> dict[str, object]:
    found = read_toml(path)
    for key in found:
        if key not in SETTINGS:
            near = _nearest(key, list(SETTINGS))
            raise ConfigError(
                f"{path} has an unknown setting {key!r}",
                hint=f"Did you mean {near!r}?" if near else f"Known settings: {', '.join(SETTINGS)}.",
            )
    return found


def _nearest(word: str, known: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, known, n=1)), None)
