"""The doctor's checks.

Law: what a check cannot find out is a finding too; nothing ends the examination. Nothing is changed on
disk but by ``repair`` (and by what every opening of the store does: it ends what a crash left half done).
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmaas.cli.machine import ram
from llmaas.cli.options import DEFAULT_APP
from llmaas.cli.out import human_bytes
from llmaas.config import models
from llmaas.config.kinds import show_bytes
from llmaas.config.settings import Config, LoadedConfig, unknown_variables
from llmaas.errors import LlmaasError, StoreFailed

if TYPE_CHECKING:
    from llmaas.kvchunks.store.store import Encryption, Store
    from llmaas.records import ModelInfo

_LOW_DISK = 1 << 30
_OVERHEAD = 150 << 20
"""Python, llama.cpp's compute buffers and what is in flight, besides model, cells and pool."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report."""

    about: str
    level: Literal["ok", "warn", "fail"]
    text: str
    hint: str = ""


def examine(found: LoadedConfig, environ: Mapping[str, str], *, deep: bool, repair: bool) -> Iterator[Finding]:
    """Every finding, in the order in which a daemon would meet the trouble."""
    config = found.config
    yield from _guarded("config", lambda: check_config(found, environ))
    yield from _guarded("engine", check_engine)
    yield from _guarded("model", lambda: check_model(config))
    yield from _guarded("cpu", lambda: _check_host(config))
    yield from _guarded("disk", lambda: check_disk(config.data_dir, show_bytes(config.disk_bytes)))
    yield from _guarded("store", lambda: check_store(config, environ, deep=deep, repair=repair))
    yield from _guarded("socket", lambda: check_socket(config.socket))


def _guarded(about: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except LlmaasError as error:
        yield Finding(about, "fail", error.message, error.hint)
    except Exception as error:
        yield Finding(about, "fail", f"{type(error).__name__}: {error}", "This is a fault of llmaas; please report it.")


def check_config(found: LoadedConfig, environ: Mapping[str, str]) -> Iterator[Finding]:
    changed = [f"{name} ({origin})" for name, origin in found.origins.items() if origin != "default"]
    yield Finding("config", "ok", f"set: {', '.join(changed)}" if changed else "every setting has its default")
    for name, near in unknown_variables(environ):
        yield Finding("config", "warn", f"the variable {name} is no setting", f"Did you mean {near}?" if near else "")


def check_engine() -> Iterator[Finding]:
    try:
        version = metadata.version("llama-cpp-python")
        import llmaas.engine.llama.engine  # noqa: F401  (loads the shared libraries)
    except (ImportError, OSError, RuntimeError) as error:  # what a missing or broken library raises
        yield Finding("engine", "fail", f"llama.cpp cannot be loaded: {error}", "Install llmaas anew: scripts/setup.")
        return
    yield Finding("engine", "ok", f"llama-cpp-python {version}")


def check_model(config: Config) -> Iterator[Finding]:
    """The model file, its KV, and whether model and budgets fit into RAM."""
    from llmaas.engine.llama.engine import LlamaEngine

    engine = LlamaEngine(models.find(config.model), n_cells=256, n_seqs=2, n_threads=config.threads)
    try:
        info = engine.info
    finally:
        engine.close()
    yield Finding(
        "model", "ok", f"{info.name}: {human_bytes(info.size_bytes)}, trained on {info.n_ctx_train} tokens of context"
    )
    yield from kv_findings(config, info)
    yield from memory_findings(config, info)


def _check_host(config: Config) -> Iterator[Finding]:
    from llmaas.cli.doctor.host import check_host

    yield from check_host(config)


def kv_findings(config: Config, info: ModelInfo) -> Iterator[Finding]:
    from llmaas.kvchunks.codec.codec import Codec
    from llmaas.kvchunks.codec.kernels import NUMPY
    from llmaas.records import CHUNK_TOKENS, Precision

    shape = info.geometry
    if isinstance(bits := config.bits, tuple):
        coded = Codec(shape, kernels=NUMPY).encoded_size(CHUNK_TOKENS, Precision(*bits)) // CHUNK_TOKENS
        how = "K{} V{}".format(*bits)
    else:
        coded = int(shape.n_layer * (shape.k_dim + shape.v_dim) * bits / 8)
        how = f"{bits:g} bits a value in the mean"
    yield Finding(
        "kv",
        "ok",
        f"{shape.n_layer} layers, K {shape.k_dim} and V {shape.v_dim} values: {human_bytes(shape.token_bytes)} a token "
        f"in cells, {human_bytes(coded)} coded at {how}",
    )
    if not info.chunkable:
        yield Finding("kv", "warn", f"contexts of this model cannot be chunked: {info.note}", "They are recomputed.")
    elif info.note:
        yield Finding("kv", "warn", info.note)
    longest = min(config.cells, info.n_ctx_train)
    yield Finding("kv", "ok", f"{config.cells} cells; the longest context is {longest} tokens")


def memory_findings(config: Config, info: ModelInfo) -> Iterator[Finding]:
    parts = {
        "model": info.size_bytes,
        "cells": config.cells * info.geometry.token_bytes,
        "pool": config.pool_bytes,
        "overhead": _OVERHEAD,
    }
    if config.adapters:
        parts["adapters"] = config.adapter_bytes
    need = sum(parts.values())
    text = f"{human_bytes(need)} at most: " + ", ".join(f"{name} {human_bytes(n)}" for name, n in parts.items())
    found = ram()
    if found is None:
        yield Finding("memory", "warn", f"{text}; this machine does not say how much RAM it has")
        return
    hint = "Lower --cells or --pool-bytes, or serve a smaller model."
    text += f"; of {human_bytes(found.total)} RAM {human_bytes(found.available)} are free"
    level: Literal["ok", "warn", "fail"] = "fail" if need > found.total else "warn" if need > found.available else "ok"
    yield Finding("memory", level, text, "" if level == "ok" else hint)


def check_disk(data_dir: Path, quota: str = "none") -> Iterator[Finding]:
    place = next(p for p in (data_dir, *data_dir.parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Finding("disk", "fail", f"{place} is no directory that you may write to", "Give another --data-dir.")
        return
    free = shutil.disk_usage(place).free
    hint = "Free space, or give a --data-dir on another file system." if free < _LOW_DISK else ""
    yield Finding(
        "disk", "warn" if hint else "ok", f"{data_dir}: {human_bytes(free)} free; quota of chunks: {quota}", hint
    )
    if place == data_dir and data_dir.stat().st_mode & 0o077:
        yield Finding("disk", "warn", f"others may look into {data_dir}", f"chmod 700 {data_dir}")


def check_store(config: Config, environ: Mapping[str, str], *, deep: bool, repair: bool) -> Iterator[Finding]:
    """The store looked over, if no daemon has it open."""
    from llmaas.kvchunks.store import master_key
    from llmaas.kvchunks.store.store import Store

    if not config.data_dir.is_dir() or not any(config.data_dir.iterdir()):
        yield Finding("store", "ok", "none yet; the daemon makes it")
        return
    found = master_key.find(config.data_dir, config.key_source, environ, make=False) if config.encrypt else None
    master = found.key if found else None
    try:
        if repair:
            yield from _repair_index(config.data_dir)
        store = Store(config.data_dir, master=master)
    except StoreFailed as error:
        if not _answers(config.socket):
            raise
        yield Finding("store", "ok", f"not checked: {error.message}", "Stop the daemon to check the store.")
        return
    with store:
        yield from _look_over(store, deep=deep, repair=repair)
        yield from encryption_findings(config, store.encryption(), found.origin if found else None)


def _repair_index(data_dir: Path) -> Iterator[Finding]:
    """Before the store is opened, which a damaged index may not let happen."""
    from llmaas.cli.doctor.store import explain_salvage
    from llmaas.kvchunks.store.store import INDEX, Store

    if (data_dir / INDEX).exists() and (found := Store.repair_index(data_dir)) is not None:
        for line in explain_salvage(found):
            yield Finding("store", "warn", line)


def _look_over(store: Store, *, deep: bool, repair: bool) -> Iterator[Finding]:
    from llmaas.cli.doctor.store import cost, explain

    swept = store.stats().damaged
    if swept:
        yield Finding("store", "warn", f"chunks that a crash cut short: {swept}; dropped, and recomputed when needed")
    report = store.check(deep=deep, repair=repair)
    price = cost(report.found, done=report.repaired)
    for _, line in explain(report):
        hint = "" if report.repaired else "Mend it with: llmaas doctor --repair"
        yield Finding("store", "warn" if report.repaired else "fail", line, hint)
    if price:
        yield Finding("store", "warn", price)
    if repair:
        report = store.check(deep=deep)
    left = [line for ours, line in explain(report) if ours]
    if not left:
        yield Finding("store", "ok", f"{report.contexts} contexts, {report.chunks} chunks, no problem found")
    elif repair:
        for line in left:
            yield Finding("store", "fail", f"still there: {line}", "Is the disk failing? Run it once more.")


def encryption_findings(config: Config, sealing: Encryption, origin: str | None) -> Iterator[Finding]:
    """The cipher, where the master key is, and whether it fits."""
    if not config.encrypt:
        yield Finding("cipher", "warn", "off: chunks are written in clear", "Set encrypt = true, unless the disk is.")
    elif origin is None:
        yield Finding("cipher", "ok", "there is no master key yet; the daemon makes it")
    else:
        fits = f"it opens {sealing.keys_that_fit} of the {sealing.keys} keys of contexts"
        from llmaas.kvchunks.store.cipher import fastest_cipher

        used = " and ".join(sealing.ciphers) or fastest_cipher()
        yield Finding("cipher", "ok", f"{used}, master key from {origin}; {fits}")
    if sealing.locked:
        yield Finding(
            "cipher",
            "warn",
            f"{sealing.locked} chunks cannot be opened: "
            + (
                "they were sealed under another master key"
                if config.encrypt
                else "they are sealed, and encryption is off"
            ),
            "Conversations are whole. Give the old key back, or let these chunks be recomputed as they are needed.",
        )
    if config.encrypt and sealing.plain:
        yield Finding(
            "cipher", "warn", f"{sealing.plain} chunks are on disk in clear", "The daemon's start deletes them."
        )


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2.0)
        return probe.connect_ex(str(path)) == 0


def check_socket(path: Path) -> Iterator[Finding]:
    try:
        info = path.lstat()
    except FileNotFoundError:
        yield Finding("socket", "ok", f"no daemon on {path}", "'llmaas serve' starts one.")
        return
    except OSError as error:
        yield Finding("socket", "fail", f"cannot look at {path}: {error.strerror}", "Give another path with --socket.")
        return
    if not stat.S_ISSOCK(info.st_mode):
        yield Finding("socket", "fail", f"{path} is no socket", "Remove it, or give another path with --socket.")
        return
    if info.st_uid != os.getuid():
        yield Finding("socket", "warn", f"{path} belongs to user {info.st_uid}", "Trust its answers as you trust them.")
    if not _answers(path):
        yield Finding("socket", "warn", f"{path} is stale: nobody serves it", "'llmaas serve' replaces it.")
        return
    from llmaas.api.client import Client

    with Client(path, app=DEFAULT_APP) as client:
        stats = client.stats()
    yield Finding("socket", "ok", f"a daemon answers on {path}")
    yield budget_finding(stats["pool_bytes"], stats["disk_bytes"])
    from llmaas.cli.doctor.host import running_finding

    if (duty := running_finding(stats["host"])) is not None:
        yield duty


def budget_finding(pool: Mapping[str, Any], disk: Mapping[str, Any]) -> Finding:
    """What a running daemon may hold now, and why."""
    quota = disk["quota"] if isinstance(disk["quota"], str) else human_bytes(disk["quota"])
    text = f"pool {human_bytes(pool['budget'])} ({pool['why']}); disk {human_bytes(disk['chunks'])} of quota {quota}"
    if pool["why"] == "configured":
        return Finding("budgets", "ok", text)
    hint = f"Memory is short; the pool goes back to {human_bytes(pool['configured'])} when it can."
    return Finding("budgets", "warn", text, hint)
