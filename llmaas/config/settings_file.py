"""Writing settings into the settings file, which people write, too.

Law: every line that is not of a changed setting stays as it is, comments included. The file is replaced as a whole or
not at all, and never by one that says anything else than was asked for: what cannot be edited surely is refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from llmaas.config_file import Environ, xdg
from llmaas.errors import ConfigError
from llmaas.regular_file import replace_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TABLE = re.compile(r"\s*\[")
_LINE = (
    r"(?P<key>\s*(?:{name}|\"{name}\"|'{name}')\s*=\s*)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|[^\s#\"']+)(?P<rest>\s*(?:#.*)?)"
)


def default_file(environ: Environ) -> Path:
    """The settings file that is read if no other is named. Raises ConfigError without a home directory."""
    return xdg(environ, "XDG_CONFIG_HOME", ".config") / "llmaas" / "config.toml"


def save(file: Path, values: Mapping[str, str | float]) -> None:
    """Set ``values`` in ``file``, which is made if it is not there. Raises ConfigError."""
    file = file.resolve()  # a link stays a link
    try:
        old = file.read_text("utf-8") if file.exists() else ""
        new = edited(old, values)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(file, new.encode(), file.stat().st_mode & 0o777 if file.exists() else 0o600)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot save the settings in {file}: {error}",
            hint=f"Write them yourself: {', '.join(f'{name} = {_literal(value)}' for name, value in values.items())}.",
        ) from None


def edited(text: str, values: Mapping[str, str | float]) -> str:
    """The TOML ``text`` with ``values`` set. Raises ValueError if the text is no TOML, or says it in an odd way.

    >>> print(edited("cells = 4096  # for the reader\\n", {"cells": 8192, "rate": "none"}))
    cells = 8192  # for the reader
    rate = "none"
    <BLANKLINE>
    """
    wanted = {**tomllib.loads(text), **values}
    lines = text.splitlines()
    for name, value in values.items():
        top = next((i for i, line in enumerate(lines) if _TABLE.match(line)), len(lines))
        pattern = re.compile(_LINE.format(name=name))
        for i, match in enumerate(map(pattern.fullmatch, lines[:top])):
            if match:
                lines[i] = f"{match['key']}{_literal(value)}{match['rest']}"
                break
        else:
            while (
                top and top < len(lines) and not lines[top - 1].strip()
            ):  # behind the last setting, before blank lines
                top -= 1
            lines.insert(top, f"{name} = {_literal(value)}")
    new = "\n".join(lines) + "\n"
    if tomllib.loads(new) != wanted:
        raise ValueError("the file is written in a way that cannot be changed without harm")
    return new


def _literal(value: str | float) -> str:
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if value < 1e6 else str(value)
