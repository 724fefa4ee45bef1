"""How fast contexts go into an archive and come out of it, and what memory that takes.

Two daemons in processes of their own serve a fake engine with SmolLM2-135M's KV geometry, so that chunks coded at 4
bits have the sizes that they have with that model. A context with all its chunks on DISK is exported from the one, and
imported by the other: once as proved chunks, which are taken as they are, and once for another app that vouches for
them, when each is decoded first. Stores are encrypted; archives are in clear, and once for a passphrase.

``disk_mb_s`` is what the same disk takes of as many bytes, written by 1 MiB and synced, in this run. Memory is the
growth of the peak of a process's resident size meanwhile; a passphrase takes 64 MiB by itself (scrypt).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.daemon import wait_for_socket
from bench.lib.probes import memory
from llmaas.api.client import Client
from llmaas.cli.archives import read, written
from llmaas.nodes.archive.locks import Lock, Opener, Passphrase
from llmaas.nodes.archive.reader import ArchiveReader
from llmaas.nodes.archive.writer import ArchiveWriter
from llmaas.nodes.export import export_context
from llmaas.nodes.importing import ArchiveImport, Imported
from llmaas.records import CHUNK_TOKENS

BAR_MB_S = 500.0
MOST_MB = 32.0
_LETTERS = "abcdefgh"
_LEAST_CHUNK = 400_000
"""Bytes of a chunk, a little less than any has."""


@dataclass(frozen=True)
class Timed:
    """``client_mb``, ``daemon_mb``: by how much their peaks grew."""

    seconds: float
    client_mb: float
    daemon_mb: float


class DaemonProcess:
    def __init__(self, folder: Path, n_cells: int) -> None:
        folder.mkdir()
        self.socket = folder / "d.sock"
        command = [sys.executable, "-m", "bench.lib.geometry_daemon", str(self.socket), str(folder / "store")]
        log = folder / "log"
        with log.open("wb") as file:
            self._process = subprocess.Popen([*command, str(n_cells)], stderr=file)
        wait_for_socket(self.socket, self._process, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


@contextmanager
def timed(daemon: DaemonProcess) -> Iterator[list[Timed]]:
    pids, found = (os.getpid(), daemon.pid), list[Timed]()
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins at what is resident now
    before, start = [memory(pid)["peak"] for pid in pids], time.perf_counter()
    yield found
    seconds = time.perf_counter() - start
    grown = [(memory(pid)["peak"] - low) / 1e6 for pid, low in zip(pids, before, strict=True)]
    found.append(Timed(seconds, *grown))


def fill(client: Client, n_chunks: int, seed: int) -> None:
    """A context whose chunks are all on DISK."""
    rng = random.Random(seed)
    client.create(name="x")
    n_tokens = n_chunks * CHUNK_TOKENS
    for _ in range(0, n_tokens, 4096):
        client.append("x", prompt="".join(rng.choices(_LETTERS, k=4096)))
    while client.stats()["disk_bytes"]["chunks"] < (n_chunks - 1) * _LEAST_CHUNK:
        time.sleep(0.1)


def export(client: Client, daemon: DaemonProcess, path: Path, lock: Lock | None) -> Timed:
    info = next(info for info in client.contexts() if info.name == "x")
    with timed(daemon) as found, written(path, lock) as sink:
        writer = ArchiveWriter(sink, 0.0)
        done = export_context(client, info, writer)
        writer.close()
    assert done.n_missing == 0, done
    return found[0]


def import_(client: Client, daemon: DaemonProcess, path: Path, opener: Opener | None, *, trusted: bool) -> Timed:
    with timed(daemon) as found, read(path, opener) as source:
        outcomes = list(ArchiveImport(client, trusted=trusted).run(ArchiveReader(source)))
    (made,) = outcomes
    assert isinstance(made, Imported) and made.taken and not made.refused, made
    client.delete(made.info.id)
    return found[0]


def disk_seconds(path: Path, nbytes: int) -> float:
    block, start = os.urandom(1 << 20), time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(0, nbytes, len(block)):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def rounds(options: Options, source: DaemonProcess, target: DaemonProcess, n_chunks: int) -> dict[str, Any]:
    path, lock = options.folder / "x.archive", Passphrase("bench")
    figures: dict[str, Any] = {}
    with Client(source.socket, app="bench") as client:
        fill(client, n_chunks, options.seed)
        runs = [("export", None), ("export_encrypted", lock)]
        for name, with_lock in runs:
            figures[name] = export(client, source, path, with_lock)
            say(f"{name}: {figures[name]}")
        nbytes = path.stat().st_size
        figures["disk"] = Timed(disk_seconds(options.folder / "plain", nbytes), 0, 0)
        with Client(target.socket, app="bench") as other:
            figures["import_encrypted"] = import_(other, target, path, lock, trusted=False)
            export(client, source, path, None)
            figures["import"] = import_(other, target, path, None, trusted=False)
        with Client(target.socket, app="another") as other:
            figures["import_trusted"] = import_(other, target, path, None, trusted=True)
    return {"archive_bytes": nbytes, "timed": figures}


def measure(options: Options) -> Result:
    n_chunks = 128 if options.quick else 512
    n_cells = (n_chunks + 8) * CHUNK_TOKENS
    source = DaemonProcess(options.folder / "a", n_cells)
    try:
        target = DaemonProcess(options.folder / "b", n_cells)
        try:
            found = rounds(options, source, target, n_chunks)
        finally:
            target.stop()
    finally:
        source.stop()
    nbytes, took = found["archive_bytes"], found["timed"]
    speed = {f"{name}_mb_s": nbytes / 1e6 / one.seconds for name, one in took.items()}
    memory = {f"{name}_{who}": getattr(one, who) for name, one in took.items() for who in ("client_mb", "daemon_mb")}
    wanted = min(BAR_MB_S, speed["disk_mb_s"])
    bars = [
        Bar(f"{name}, against 500 MB/s or the disk's speed", speed[f"{name}_mb_s"] / wanted, 1.0, False)
        for name in ("export", "import")
    ]
    most = max(mb for name, mb in memory.items() if "encrypted" not in name)  # scrypt alone takes 64 MiB
    bars.append(Bar("most memory that a process took, in MB", most, MOST_MB, True))
    figures = {"archive_bytes": nbytes, **speed, **memory}
    return Result("none: the fake engine with the geometry of SmolLM2-135M", figures, bars)


if __name__ == "__main__":
    sys.exit(main("archives", __doc__ or "", measure))
