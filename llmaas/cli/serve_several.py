"""``llmaas serve`` of several models: the front process, which starts a process for each model that is in use.

Law: it imports no engine and opens no store: it stays small, and nothing of a model can take it down.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from llmaas.api.activation import handed_over
from llmaas.cli.http_process import http_beside, require_packages
from llmaas.cli.load_ahead import load_memo
from llmaas.cli.log_format import log_to_stderr
from llmaas.cli.machine import ram
from llmaas.cli.manager import notify_manager
from llmaas.cli.out import print_note, printable
from llmaas.cli.served_model import with_entry
from llmaas.config.model_kinds import ModelKind
from llmaas.config.models import parts_of
from llmaas.config.settings import SETTINGS, Config, flag
from llmaas.config.show import show_setting
from llmaas.config.sources import LoadedConfig
from llmaas.errors import ConfigError, LlmaasError
from llmaas.front.front import Front
from llmaas.front.model import FrontModel
from llmaas.front.process import python_command
from llmaas.host.file_limit import raise_file_limit
from llmaas.host.priority import lower_priority
from llmaas.model_files.entry import ModelEntry
from llmaas.model_files.gguf import GgufFacts, examine_files
from llmaas.model_files.page_cache import missing_bytes
from llmaas.model_files.registry import ModelRegistry
from llmaas.model_files.tier import tier_of
from llmaas.records import NO_QUOTA

log = logging.getLogger(__name__)

_OF_FRONT = [
    "model",
    "models",
    "models_bytes",
    "models_pool_bytes",
    "models_disk_bytes",
    "models_bits",
    "keep_alive",
    "socket",
    "data_dir",
    "record",
    "cells",
    "least_cells",
]
"""Settings that the front process sees to, or that each model's process is given by itself; those of HTTP, too."""
_LEAST_RAM = 2 << 30
"""Of the machine, for a process that makes those of models."""
_STARTER = 50 << 20
"""Bytes that it takes, as long as its copies share nothing with it."""
_PROGRAM = 150 << 20
"""Bytes that a process takes beside weights, cells and POOL, before it was seen."""


def serve_several(found: LoadedConfig, entries: Sequence[ModelEntry], *, show: bool) -> int:
    """Serve until a signal says stop; with ``show`` print what would be served. Raises LlmaasError."""
    registry = ModelRegistry(found.config.data_dir)
    models = [_model(found, registry, entry) for entry in entries]
    names = [entry.name for entry in entries]
    default = registry.read().default
    default = default if default in names else names[0]
    _check_pool(found.config)
    if show:
        for model in models:
            print(printable(f"{model.name}: {' '.join(model.command)}"))
        return 0
    if found.config.http is not None:
        require_packages()
    log_to_stderr(found.config.log_level, found.config.log_format)
    lower_priority(found.config.nice)
    raise_file_limit()
    asyncio.run(_serve(found, models, default))
    return 0


async def _serve(found: LoadedConfig, models: Sequence[FrontModel], default: str) -> None:
    stop, loop, config = asyncio.Event(), asyncio.get_running_loop(), found.config
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, _stop, stop, signum)
    starter, budget = _starter(), _budget(config)
    front = Front(
        config.socket,
        models,
        default,
        budget=budget if budget is None or starter is None else max(0, budget - _STARTER),
        pool_bytes=_common(config.models_pool_bytes),
        disk_bytes=_common(config.models_disk_bytes),
        bits=config.models_bits,
        keep_alive=config.keep_alive,
        memory_of=memory_of,
        starter=starter,
    )
    try:
        front.start()
        async with http_beside(found):
            names = ", ".join(f"{model.name}{' (default)' if model.name == default else ''}" for model in models)
            log.info("ready: %s on %s", names, config.socket)
            for name in handed_over().left():
                log.warning("the service manager's socket %s is no socket of the daemon's (setting 'socket')", name)
            notify_manager("READY=1")
            await stop.wait()
            notify_manager("STOPPING=1")
    finally:
        await front.close()
    log.info("stopped")


def _stop(stop: asyncio.Event, signum: int) -> None:
    if stop.is_set() and signum == signal.SIGINT:
        print_note("stopped at once")
        os._exit(130)  # the processes of models end when this one is gone
    stop.set()


def _starter() -> list[str] | None:
    """A small machine keeps its memory for models."""
    found = ram()
    return python_command("serve") if found is None or found.total >= _LEAST_RAM else None


def _budget(config: Config) -> int | None:
    if config.models_bytes is not None:
        return config.models_bytes
    found = ram()
    return None if found is None else found.total * 3 // 4


def _common(nbytes: int | None) -> int | None:
    """What models have together; None: each has its own."""
    return None if nbytes is None or nbytes >= NO_QUOTA else nbytes


def _check_pool(config: Config) -> None:
    """Raises ConfigError if the POOLs would leave no room for models."""
    budget, pool = _budget(config), _common(config.models_pool_bytes)
    if pool is not None and budget is not None and pool >= budget:
        raise ConfigError(
            f"models_pool_bytes ({pool}) is no part of what models may take together ({budget})",
            hint="Lower models_pool_bytes, or raise models_bytes.",
        )


def _model(found: LoadedConfig, registry: ModelRegistry, entry: ModelEntry) -> FrontModel:
    """Raises ConfigError for a setting of the model that is wrong, ModelUnreadable for a file that is."""
    own = with_entry(found, registry, entry)
    facts, size = examine_files(entry.file)
    memo, device = load_memo(found.config), entry.file.stat().st_dev
    writes = facts.kind[0] is ModelKind.WRITER

    def expected_s() -> float | None:
        return memo.expected_s(str(entry.file), device, _missing(entry.file))

    made = FrontModel(
        name=entry.name,
        aliases=(entry.file.name, entry.file.stem, facts.title),
        file=entry.file.name,
        size_bytes=size,
        command=tuple(python_command("serve", *_flags(found, own, entry), "--from-front")),
        nbytes=size + _PROGRAM,
        pinned=entry.pinned,
        expected_s=expected_s,
        tier=functools.partial(tier_of, entry.file),
    )
    return _that_writes(made, own.config, cell_bytes(facts)) if writes else made


def _that_writes(model: FrontModel, config: Config, cell_bytes: int) -> FrontModel:
    """The model with what one that has contexts takes beside its weights."""
    return replace(
        model,
        nbytes=model.nbytes + config.pool_bytes + config.cells * cell_bytes,
        pool_bytes=config.pool_bytes,
        disk_bytes=config.disk_bytes,
        stored=functools.partial(stored_bytes, config.data_dir),
        cells=config.cells,
        least_cells=config.least_cells or config.cells,
        cell_bytes=cell_bytes,
        shares_bits=not isinstance(config.bits, tuple),
    )


def _flags(found: LoadedConfig, own: LoadedConfig, entry: ModelEntry) -> Iterator[str]:
    """The flags of a model's process: those of this one, and what is the model's own."""
    if found.file is not None:
        yield f"--config={found.file}"
    yield f"--served-as={entry.name}"
    yield from (f"--model={entry.file}", f"--data-dir={own.config.data_dir}", "--models=none", "--http=none")
    yield from ("--keep-alive=none", f"--cells={own.config.cells}")
    if found.config.record is not None:
        yield f"--record={found.config.record}.{entry.name}"
    for name, row in SETTINGS.items():
        value = getattr(own.config, name)
        given = own.origins[name].startswith(("flag ", "model "))
        if given and value is not None and name not in _OF_FRONT and not name.startswith("http"):
            yield f"{flag(name)}={show_setting(row, value)}"


def cell_bytes(facts: GgufFacts) -> int:
    """Bytes of a token's KV in cells, as far as the file tells; 0 if it does not."""

    def number(name: str) -> int:
        value = facts.meta.get(f"{facts.architecture}.{name}")
        return value if isinstance(value, int) else 0

    heads, layers = max(1, number("attention.head_count")), number("block_count")
    per_head = number("embedding_length") // heads
    kv_heads = number("attention.head_count_kv") or heads
    values = kv_heads * ((number("attention.key_length") or per_head) + (number("attention.value_length") or per_head))
    return 2 * layers * values


def stored_bytes(store: Path) -> int:
    """Bytes of a store's payload files, which hold its chunks: an index is opened by the model's process only."""
    try:
        with os.scandir(store / "payload") as files:
            return sum(file.stat(follow_symlinks=False).st_size for file in files)
    except OSError:
        return 0  # there is none yet


def _missing(file: Path) -> int:
    """Bytes of the model's files that are not in the page cache; of files of which that cannot be known, none."""
    missing = 0
    for part in parts_of(file):
        with suppress(OSError, LlmaasError):
            missing += missing_bytes(part) or 0
    return missing


def memory_of(model: FrontModel, pid: int) -> int:
    """Bytes of RAM that a model's process takes: what only it has, and its weights, whoever has brought them in. Never
    less than was expected of it, as its cells and POOL fill up later."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
        kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return model.nbytes
    return max(model.nbytes, model.size_bytes + kib * 1024)
