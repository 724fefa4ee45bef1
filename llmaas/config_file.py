"""The settings file: where it is, how it is read, and paths in it. Daemon, commands and clients use the same.

Law: knows no setting. What cannot be read is a ConfigError that names the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmaas.errors import ConfigError

Environ = Mapping[str, str]
PREFIX = "LLMAAS_"
"""Of the variables that hold settings."""


def xdg(environ: Environ, variable: str, fallback: str) -> Path:
    """The directory that an XDG variable names; else ``fallback`` in the home directory. Raises ConfigError."""
    given = environ.get(variable, "")
    if given.startswith("/"):  # the XDG specification says that a relative path in these variables is to be ignored
        return Path(given)
    return _home(environ) / fallback


def _home(environ: Environ) -> Path:
    if home := environ.get("HOME"):
        return Path(home)
    try:
        return Path.home()
    except RuntimeError:
        raise ConfigError(
            f"user {os.getuid()} has no home directory: HOME is not set, and the system does not know the user",
            hint="Set HOME, or XDG_DATA_HOME, or data_dir by LLMAAS_DATA_DIR.",
        ) from None


def config_file(environ: Environ, given: Path | None = None) -> Path | None:
    """``given``, else the file that LLMAAS_CONFIG names, else the default one, if it exists; None if it does not."""
    if given is None and environ.get("LLMAAS_CONFIG"):
        given = expanded(Path(environ["LLMAAS_CONFIG"]))
    if given is not None:
        return given.absolute()
    try:
        default = xdg(environ, "XDG_CONFIG_HOME", ".config") / "llmaas" / "config.toml"
    except ConfigError:  # without a home directory there is no default file
        return None
    return default if default.is_file() else None


def read_toml(path: Path) -> dict[str, Any]:
    """Raises ConfigError."""
    try:
        import tomllib  # here: most clients have no settings file, and need not wait for it
    except ImportError:  # Python 3.10
        import tomli as tomllib  # type: ignore[no-redef,unused-ignore]
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration file {path}: {error.strerror}",
            hint="Give a readable file with --config or LLMAAS_CONFIG, or neither.",
        ) from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError both are
        raise ConfigError(f"{path} is not valid TOML: {error}", hint="See docs/operations.md for an example.") from None


def expanded(given: Path) -> Path:
    """``given`` with the home directory in place of "~". Without one, "~" is a name like any other."""
    try:
        return given.expanduser()
    except RuntimeError:
        return given


def read_path(raw: object, base: Path) -> Path:
    """The path that a setting holds; a relative one begins at ``base``. Raises ValueError."""
    if not isinstance(raw, str) or not raw or "\0" in raw:
        raise ValueError
    try:
        return base / Path(raw).expanduser()
    except RuntimeError:  # no home directory
        raise ValueError from None
