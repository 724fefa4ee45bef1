"""The kinds of values that settings have: how each is read from text or TOML, and what is allowed.

Law: pure functions of what they are given; they know no setting by name.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmaas.config_file import read_path
from llmaas.frozen import frozen
from llmaas.records import NO_QUOTA, SHORT_NAME


@frozen
class Kind:
    """How a raw value is read. ``read(raw, base)`` raises ValueError; ``base`` is where relative paths start."""

    allowed: str
    metavar: str
    read: Callable[[object, Path], Any]
    alone: str = ""
    """What the flag means without a value; "" if it needs one."""


def whole(low: int, high: int) -> Kind:
    def read(raw: object, base: Path) -> int:
        value = int(raw) if isinstance(raw, str) and re.fullmatch(r"\s*[0-9]{1,18}\s*", raw) else raw
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    return Kind(f"a whole number from {low} to {high}", "N", read)


def number(low: float, high: float, *, or_none: bool = False) -> Kind:
    """A number; with ``or_none`` the word "none" is None."""

    def read(raw: object, base: Path) -> float | None:
        text = str(raw).strip().lower()
        if or_none and isinstance(raw, str) and text == "none":
            return None
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text) or not low <= float(text) <= high:
            raise ValueError
        return float(text)

    return Kind(f"a number from {low:g} to {high:g}{', or none' if or_none else ''}", "X", read)


def choice(*choices: int | str) -> Kind:
    def read(raw: object, base: Path) -> int | str:
        for each in choices:
            if str(raw).strip().lower() == str(each):
                return each
        raise ValueError

    return Kind("one of " + ", ".join(map(str, choices)), "{" + ",".join(map(str, choices)) + "}", read)


def yes_no() -> Kind:
    def read(raw: object, base: Path) -> bool:
        if (word := str(raw).strip().lower()) not in ("true", "false"):
            raise ValueError
        return word == "true"

    return Kind("true or false", "BOOL", read)


def cpu_list() -> Kind:
    """CPUs as the kernel lists them: "0-3,6". A tuple of numbers, ascending, each once."""

    def read(raw: object, base: Path) -> tuple[int, ...]:
        found: set[int] = set()
        for part in str(raw).split(","):
            match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", part)
            if isinstance(raw, bool) or not match:
                raise ValueError
            first, last = int(match[1]), int(match[2] or match[1])
            if first > last:
                raise ValueError
            found.update(range(first, last + 1))
        return tuple(sorted(found))

    return Kind("a list of CPUs such as 0-3,6", "CPUS", read)


def show_cpus(cpus: tuple[int, ...]) -> str:
    """``cpus`` in the form that the setting takes: 0-3,6."""
    parts: list[list[int]] = []
    for cpu in cpus:
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1][1:] = [cpu]
        else:
            parts.append([cpu])
    return ",".join("-".join(map(str, part)) for part in parts)


def mean_bits(low: float, high: float, choices: tuple[int, ...]) -> Kind:
    """A mean, as a float, or the same for every chunk: "K/V", as a pair."""

    def read(raw: object, base: Path) -> float | tuple[int, int]:
        text = str(raw).strip()
        if match := re.fullmatch(r"([0-9]{1,2})/([0-9]{1,2})", text):
            k, v = int(match[1]), int(match[2])
            if k in choices and v in choices:
                return k, v
        elif re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,6})?", text) and low <= float(text) <= high:
            return float(text)
        raise ValueError

    each = ", ".join(map(str, choices))
    return Kind(f"a mean from {low:g} to {high:g}, or K/V with two of {each}, such as 4/4", "BITS", read)


_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def size(low: int, *, or_none: bool = False) -> Kind:
    """Bytes; with ``or_none`` the word "none" is no limit."""

    def read(raw: object, base: Path) -> int:
        if or_none and str(raw).strip().lower() == "none":
            return NO_QUOTA
        match = re.fullmatch(r"([0-9]{1,16}(?:\.[0-9]{1,6})?)\s*([kmgt]?)(?:i?b)?", str(raw).strip().lower())
        if not match:
            raise ValueError
        value = int(float(match[1]) * _UNITS[match[2]])
        if not low <= value <= 1 << 50:
            raise ValueError
        return value

    least = f"a size of at least {show_bytes(low)}" if low else "a size"
    return Kind(f"{least}, such as 64M, 1.5G, 512MiB or plain bytes{', or none' if or_none else ''}", "SIZE", read)


def doubled_size(low: int, high: int) -> Kind:
    """Bytes: ``low``, or so many times doubled."""

    def read(raw: object, base: Path) -> int:
        value: int = size(low).read(raw, base)
        if value > high or value & (value - 1):
            raise ValueError
        return value

    allowed = f"a power of two from {show_bytes(low)} to {show_bytes(high)}, such as 1M or plain bytes"
    return Kind(allowed, "SIZE", read)


def path(limit: int | None = None) -> Kind:
    """``limit`` is the greatest length in bytes, made absolute."""

    def read(raw: object, base: Path) -> Path:
        found = read_path(raw, base)
        if limit is not None and len(os.fsencode(found)) > limit:
            raise ValueError
        return found

    return Kind("a path" if limit is None else f"a path of at most {limit} bytes", "PATH", read)


def named_paths() -> Kind:
    """Pairs (name, path) in the order given: from text, or from a TOML table."""
    one = path()

    def read(raw: object, base: Path) -> tuple[tuple[str, Path], ...]:
        if isinstance(raw, str):
            pairs: list[tuple[object, ...]] = [tuple(part.strip().split("=", 1)) for part in raw.split(",") if part]
        elif isinstance(raw, dict):
            pairs = list(raw.items())
        else:
            raise ValueError
        found: dict[str, Path] = {}
        for pair in pairs:
            if len(pair) != 2 or not re.fullmatch(SHORT_NAME, str(pair[0])) or pair[0] in found:
                raise ValueError
            found[str(pair[0])] = one.read(pair[1], base)
        return tuple(found.items())

    return Kind("NAME=PATH, several with commas between them; in the file a table", "NAME=PATH,...", read)


def http_address() -> Kind:
    """Where HTTP is served: "none" is None; "unix" is the Unix socket alone, HOST:PORT that and TCP."""

    def read(raw: object, base: Path) -> str | None:
        text = str(raw).strip().lower()
        if not isinstance(raw, str) or text in ("none", "unix"):
            return None if text == "none" else str(choice("unix").read(raw, base))
        match = re.fullmatch(r"(localhost|[0-9.]+|\[[0-9a-f:.]+\]):([0-9]{1,5})", text)
        if not match or not 1 <= int(match[2]) <= 65535:
            raise ValueError
        if match[1] != "localhost":
            ipaddress.ip_address(match[1].strip("[]"))
        return text

    allowed = "none, unix, or HOST:PORT where HOST is localhost or an address (127.0.0.1, [::1])"
    return Kind(allowed, "ADDRESS", read, alone="unix")


def node_address() -> Kind:
    """Where other nodes are listened for; "none" is None."""

    def read(raw: object, base: Path) -> str | None:
        text = str(raw).strip().lower()
        if not isinstance(raw, str) or text == "none":
            if text != "none":
                raise ValueError
            return None
        match = re.fullmatch(r"([0-9.]+|\[[0-9a-f:.]+\]):([0-9]{1,5})", text)
        if not match or not 1 <= int(match[2]) <= 65535:
            raise ValueError
        ipaddress.ip_address(match[1].strip("[]"))
        return text

    return Kind("none, or HOST:PORT where HOST is an address of this machine (0.0.0.0 or [::]: all)", "ADDRESS", read)


def _names(raw: object, pattern: str, *, once: bool = False) -> tuple[str, ...]:
    """From text with commas or a TOML list; with ``once`` at least one, and each once. Raises ValueError."""
    names = [part.strip() for part in raw.split(",") if part] if isinstance(raw, str) else raw
    if not isinstance(names, list):
        raise ValueError
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(pattern, name):
            raise ValueError
    if once and not 0 < len(names) == len(set(names)):
        raise ValueError
    return tuple(names)


def host_names() -> Kind:
    """Names of hosts, without ports, in small letters."""

    def read(raw: object, base: Path) -> tuple[str, ...]:
        return tuple(name.lower() for name in _names(raw, r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"))

    return Kind("HOST without a port, several with commas between them; in the file a list", "HOST,...", read)


def app_names() -> Kind:
    def read(raw: object, base: Path) -> tuple[str, ...]:
        return _names(raw, rf"([0-9]{{1,10}}/)?{SHORT_NAME}")

    return Kind("APP of any user or UID/APP, several with commas between them; in the file a list", "APP,...", read)


def model_names() -> Kind:
    """Names of registered models, each once; "none" is None, "all" is that one word."""

    def read(raw: object, base: Path) -> tuple[str, ...] | None:
        names = _names(raw, SHORT_NAME, once=True)
        return None if names == ("none",) else names

    return Kind("all, or MODEL, several with commas between them; in the file a list", "MODEL,...", read)


def device_names() -> Kind:
    """Names that ggml gives to devices, each once; "none" is the empty tuple."""

    def read(raw: object, base: Path) -> tuple[str, ...]:
        names = _names(raw, r"[A-Za-z0-9_.:-]{1,64}", once=True)
        if "none" in names and len(names) > 1:
            raise ValueError
        return () if names == ("none",) else names

    return Kind("none, or DEVICE, several with commas between them; in the file a list", "DEVICE,...", read)


def show_bytes(n: int) -> str:
    """``n`` bytes in the form that settings take: 64M, 1.5G, 1000."""
    if n >= NO_QUOTA:
        return "none"
    for unit in "tgmk":
        quarters, rest = divmod(n * 4, _UNITS[unit])
        if n >= _UNITS[unit] and not rest:
            return f"{quarters // 4}{('', '.25', '.5', '.75')[quarters % 4]}{unit.upper()}"
    return str(n)
