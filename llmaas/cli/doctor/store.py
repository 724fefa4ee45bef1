"""The doctor's look at the data directory: its disk, the store in it, and the store's encryption.

Law: nothing on disk is changed but by ``repair`` (and by what every opening of the store does).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from llmaas.cli.doctor.daemon import answers
from llmaas.cli.doctor.damage import cost, explain, explain_salvage
from llmaas.cli.doctor.finding import Finding
from llmaas.cli.out import human_bytes
from llmaas.config.kinds import show_bytes
from llmaas.config.settings import Config
from llmaas.errors import StoreFailed
from llmaas.host import flash
from llmaas.kvchunks.store import master_key
from llmaas.kvchunks.store.cipher import fastest_cipher
from llmaas.kvchunks.store.store import INDEX, Encryption, MasterKey, MasterKeyMissing, Store
from llmaas.kvchunks.store.syscalls import IndexDamaged
from llmaas.records import NO_QUOTA
from llmaas.service.app_file import FILE as APPS_FILE
from llmaas.service.app_file import read_apps

_LOW_DISK = 1 << 30


def check_flash(data_dir: Path, wear_budget: int | None, root: Path = flash.ROOT) -> Iterator[Finding]:
    """A warning if the disk wears soon and nothing bounds what is written to it. ``wear_budget``: bytes a day."""
    medium = flash.weak_flash(_existing(data_dir), root)
    if not medium:
        return
    if wear_budget is None:
        text = f"{data_dir} is on {medium}, which bears few writes, and wear_budget is not set"
        yield Finding("disk", "warn", text, "Set wear_budget to the bytes that it may take in a day, such as 1G.")
    else:
        yield Finding("disk", "ok", f"on {medium}; wear_budget: {show_bytes(wear_budget)} a day")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above that exists."""
    return next(p for p in (folder, *folder.parents) if p.exists())


def check_disk(data_dir: Path, quota: int = NO_QUOTA) -> Iterator[Finding]:
    """``quota`` is in bytes."""
    place = _existing(data_dir)
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        text = f"{place} is on a read-only file system: nothing can be written there"
        yield Finding("disk", "fail", text, "Mount it for writing, or give another --data-dir.")
        return
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Finding("disk", "fail", f"{place} is no directory that you may write to", "Give another --data-dir.")
        return
    free = shutil.disk_usage(place).free
    hint = "Free space, or give a --data-dir on another file system." if free < _LOW_DISK else ""
    text = f"{data_dir}: {human_bytes(free)} free; quota of chunks: {show_bytes(quota)}"
    yield Finding("disk", "warn" if hint else "ok", text, hint)
    if place == data_dir and data_dir.stat().st_mode & 0o077:
        yield Finding("disk", "warn", f"others may look into {data_dir}", f"chmod 700 {data_dir}")


def check_store(config: Config, environ: Mapping[str, str], *, deep: bool, repair: bool) -> Iterator[Finding]:
    """The store, unless a daemon has it open."""
    if not config.data_dir.is_dir() or not any(config.data_dir.iterdir()):
        yield Finding("store", "ok", "none yet; the daemon makes it")
        return
    yield from check_apps(config.data_dir / APPS_FILE)
    found = master_key.find(config.data_dir, config.key_source, environ, make=False) if config.encrypt else None
    try:
        if repair:
            yield from _repair_index(config.data_dir, found.key if found else None)
        store = Store(config.data_dir, master=found.key if found else None)
    except IndexDamaged as error:
        yield Finding("store", "fail", error.message, error.hint)
        return
    except MasterKeyMissing as error:
        yield Finding("store", "fail", error.message, error.hint)
        return
    except StoreFailed as error:
        if not answers(config.socket):
            raise
        yield Finding("store", "ok", f"not checked: {error.message}", "Stop the daemon to check the store.")
        return
    with store:
        yield from _problems(store, deep=deep, repair=repair)
        yield from encryption_findings(config, store.encryption(), found.origin if found else None)


def check_apps(path: Path) -> Iterator[Finding]:
    """The file of the apps that have tokens."""
    try:
        if rows := read_apps(path):
            yield Finding("apps", "ok", f"{len(rows)} have a token")
    except StoreFailed as error:
        yield Finding("apps", "fail", error.message, error.hint)


def _repair_index(data_dir: Path, master: MasterKey | None) -> Iterator[Finding]:
    """To be done before the store is opened: a damaged index may not let it be opened."""
    if (data_dir / INDEX).exists() and (found := Store.repair_index(data_dir, master=master)) is not None:
        for line in explain_salvage(found):
            yield Finding("store", "warn", line)


def _problems(store: Store, *, deep: bool, repair: bool) -> Iterator[Finding]:
    dropped = store.stats().damaged
    if dropped:
        yield Finding("store", "warn", f"chunks that a crash cut short: {dropped}; dropped, and recomputed when needed")
    report = store.check(deep=deep, repair=repair)
    for _, line in explain(report):
        hint = "" if report.repaired else "Mend it with: llmaas doctor --repair"
        yield Finding("store", "warn" if report.repaired else "fail", line, hint)
    if price := cost(report.found, done=report.repaired):
        yield Finding("store", "warn", price)
    if repair:
        report = store.check(deep=deep)
    left = [line for ours, line in explain(report) if ours]
    if not left:
        yield Finding("store", "ok", f"{report.contexts} contexts, {report.chunks} chunks, no problem found")
    elif repair:
        for line in left:
            yield Finding("store", "fail", f"still there: {line}", "Is the disk failing? Run it once more.")


def encryption_findings(config: Config, found: Encryption, origin: str | None) -> Iterator[Finding]:
    """The cipher, where the master key is (``origin``; None: nowhere), and whether it fits."""
    if not config.encrypt:
        text = "off: text and chunks are written in clear"
        yield Finding("cipher", "warn", text, "Set encrypt = true, unless the disk is.")
    elif origin is None:
        yield Finding("cipher", "ok", "there is no master key yet; the daemon makes it")
    else:
        ciphers = " and ".join(found.ciphers) or fastest_cipher()
        fits = f"it opens {found.keys_that_fit} of the {found.keys} keys of chunks"
        fits += f"; {found.sealed} of {found.sealed + found.open} conversations are encrypted"
        yield Finding("cipher", "ok", f"{ciphers}, master key from {origin}; {fits}")
    if found.locked:
        why = (
            "they were encrypted under another master key"
            if config.encrypt
            else "encryption is off, they are encrypted"
        )
        hint = "Conversations are whole. Give the old key back, or let these chunks be recomputed as they are needed."
        yield Finding("cipher", "warn", f"{found.locked} chunks cannot be opened: {why}", hint)
    if config.encrypt and found.open:
        text = f"{found.open} conversations are on disk in clear"
        yield Finding("cipher", "warn", text, "The daemon encrypts them at its start, damaged ones after a repair.")
    if config.encrypt and found.plain:
        text = f"{found.plain} chunks are on disk in clear"
        yield Finding("cipher", "warn", text, "The daemon deletes them when it starts.")
