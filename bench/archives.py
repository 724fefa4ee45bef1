"""How fast contexts go into an archive and come out of it, and what memory that takes.

Two daemons in processes of their own serve a fake engine with SmolLM2-135M's KV geometry, so that chunks coded at 4
bits have the sizes that they have with that model. A context with all its chunks on DISK is exported from the one, and
imported by the other: once as proved chunks, which are taken as they are, and once for another app that vouches for
them, when each is decoded first. Stores are encrypted; archives are in clear, and once for a passphrase.

The disk's own speed is measured in the same rounds, in turn with them, with the archive's own bytes: ``disk`` writes
them as an export does, in pieces of a chunk, and syncs them; ``disk_read`` reads them when nothing of them is in the
page cache. An export ends when the archive is synced, as ``disk`` does. An import ends when the context's tokens are
synced and its chunks are the kernel's, which a killed daemon does not lose, and of which a power cut takes what is
computed again then (docs/format.md): ``disk`` does more than an import must, so its speed is not too high a bar.
Each round asks for another app, too (``import_trusted``): for five seconds the loop leaves time to others.

``export_cold`` is an export whose chunks are not there either, ``import_cold`` an import of such an archive. Figures
are the middle ones of the rounds. Memory is the growth of the peak of a process's resident size meanwhile; a passphrase
takes 64 MiB by itself (scrypt). ``_cpu_ms_mb``: processor time, for each MB of the archive.
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
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.daemon import wait_for_socket
from bench.lib.probes import cpu, forget, memory
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
    """``client_mb``, ``daemon_mb``: by how much their peaks grew; ``client_cpu``, ``daemon_cpu``: seconds."""

    seconds: float
    client_mb: float = 0.0
    daemon_mb: float = 0.0
    client_cpu: float = 0.0
    daemon_cpu: float = 0.0


class DaemonProcess:
    def __init__(self, folder: Path, n_cells: int) -> None:
        folder.mkdir()
        self.socket, self.payload = folder / "d.sock", folder / "store" / "payload"
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
    before, start = [(memory(pid)["peak"], cpu(pid)) for pid in pids], time.perf_counter()
    yield found
    seconds = time.perf_counter() - start
    after = [(memory(pid)["peak"], cpu(pid)) for pid in pids]
    grown = [(high - low) / 1e6 for (high, _), (low, _) in zip(after, before, strict=True)]
    spent = [now - then for (_, now), (_, then) in zip(after, before, strict=True)]
    found.append(Timed(seconds, *grown, *spent))


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
    path.unlink(missing_ok=True)  # as ``disk``: else what the page cache holds of the one before goes meanwhile
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


def disk(archive: Path, copy: Path) -> tuple[Timed, Timed]:
    """Writing what is in the archive to the disk, as an export does; reading it from there."""
    pieces = list[bytes]()
    with archive.open("rb") as file:
        while piece := file.read(_LEAST_CHUNK):
            pieces.append(piece)
    start = time.perf_counter()
    with written(copy, None) as sink:
        for piece in pieces:
            sink.write(piece)
    wrote = Timed(time.perf_counter() - start)
    pieces.clear()
    forget(copy)
    start = time.perf_counter()
    with copy.open("rb") as file:
        while file.read(_LEAST_CHUNK):
            pass
    found = Timed(time.perf_counter() - start)
    copy.unlink()
    return wrote, found


def once(options: Options, source: DaemonProcess, target: DaemonProcess) -> dict[str, Timed]:
    """A round: each of them in turn, so that what else the machine does hits all."""
    path, plain, lock, found = options.folder / "x.archive", options.folder / "plain", Passphrase("bench"), {}
    with Client(source.socket, app="bench") as client, Client(target.socket, app="bench") as other:
        found["export"] = export(client, source, path, None)
        found["disk"], found["disk_read"] = disk(path, plain)
        found["import"] = import_(other, target, path, None, trusted=False)
        for file in (path, *source.payload.iterdir()):
            forget(file)
        found["import_cold"] = import_(other, target, path, None, trusted=False)
        found["export_cold"] = export(client, source, path, None)
        with Client(target.socket, app="another") as another:
            found["import_trusted"] = import_(another, target, path, None, trusted=True)
        found["export_encrypted"] = export(client, source, path, lock)
        found["import_encrypted"] = import_(other, target, path, lock, trusted=False)
    for name, timed in found.items():
        say(f"{name}: {timed}")
    return found


def rounds(options: Options, source: DaemonProcess, target: DaemonProcess, n_chunks: int) -> dict[str, Any]:
    with Client(source.socket, app="bench") as client:
        fill(client, n_chunks, options.seed)
    found = [once(options, source, target) for _ in range(2 if options.quick else 5)]
    middle = {
        name: Timed(*(median(column) for column in zip(*(astuple(one[name]) for one in found), strict=True)))
        for name in found[0]
    }
    most = {name: max(max(one[name].client_mb, one[name].daemon_mb) for one in found) for name in found[0]}
    return {"archive_bytes": (options.folder / "x.archive").stat().st_size, "timed": middle, "most_mb": most}


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
    of_daemons = {name: one for name, one in took.items() if not name.startswith("disk")}
    memory = {
        f"{name}_{who}": getattr(one, who) for name, one in of_daemons.items() for who in ("client_mb", "daemon_mb")
    }
    spent = {
        f"{name}_{who}_ms_mb": 1e9 * getattr(one, who) / nbytes
        for name, one in of_daemons.items()
        for who in ("client_cpu", "daemon_cpu")
    }
    wanted = min(BAR_MB_S, speed["disk_mb_s"])
    bars = [
        Bar(f"{name}, against 500 MB/s or the disk's speed", speed[f"{name}_mb_s"] / wanted, 1.0, False)
        for name in ("export", "import")
    ]
    most = max(mb for name, mb in found["most_mb"].items() if "encrypted" not in name)  # scrypt alone takes 64 MiB
    bars.append(Bar("most memory that a process took, in MB", most, MOST_MB, True))
    figures = {"archive_bytes": nbytes, **speed, **memory, **spent}
    return Result("none: the fake engine with the geometry of SmolLM2-135M", figures, bars)


if __name__ == "__main__":
    sys.exit(main("archives", __doc__ or "", measure))
