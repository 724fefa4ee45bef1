"""What it costs that the service is in a virtual machine: requests to a guest, beside the same ones to the host.

The daemon is ``tests.support.fake_serve``, whose engine takes no time, on the host and in the guest, which
``scripts/test-vm`` builds with it. Both have slots and a socket; the host's end of the guest's socket is virtio-serial.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench.lib.cli import Options, say
from bench.lib.machine import ROOT
from bench.lib.stats import sig
from llmaas.api.client import Client
from llmaas.records import Message

_DAEMON = "tests.support.fake_serve"
_INSTANT = ("--step-s", "0", "--end-rate", "0")
WAYS = ("socket", "slots")
_BLOCK = 50
_BOOT_S = 240.0


def through_vm(options: Options, folder: Path, accel: str) -> dict[str, Any]:
    """For host and guest and each way: microseconds of a null request, milliseconds of an answer."""
    blocks, answers = (4, 2) if options.quick else (12, 5)
    rows: dict[str, Any] = {}
    with _on_host(options) as host, _in_guest(options, folder, accel) as (guest, seconds):
        say(f"the guest ({accel}) serves after {seconds:.0f} s")
        for place, socket in (("host", host), ("guest", guest)):
            rows[place] = _measured(socket, blocks, answers)
            say(f"{place}: {rows[place]}")
    over = {way: sig(rows["guest"][way]["null_us_p50"] / rows["host"][way]["null_us_p50"]) for way in WAYS}
    by_slot = sig(rows["guest"]["slots"]["null_us_p50"] / rows["guest"]["socket"]["null_us_p50"])
    return {**rows, "accel": accel, "start_s": sig(seconds), "guest_over_host": over, "slots_over_serial": by_slot}


def _measured(socket: Path, blocks: int, answers: int) -> dict[str, Any]:
    """The two ways in turns."""
    nulls: dict[str, list[float]] = {way: [] for way in WAYS}
    whole: dict[str, list[float]] = {way: [] for way in WAYS}
    with (
        Client(socket, app="by-socket") as by_socket,
        Client(socket, app="by-slots", transport="slots") as by_slots,
    ):
        clients = {"socket": by_socket, "slots": by_slots}
        for i in range(blocks + 1):
            for way in WAYS[:: 1 if i % 2 else -1]:
                nulls[way] += pings(clients[way], _BLOCK)[: None if i else 0]  # the first one warms up
        for i in range(answers):
            for way in WAYS[:: 1 if i % 2 else -1]:
                whole[way].append(_answer(clients[way], f"answer-{i}"))
    return {way: _row(nulls[way], whole[way]) for way in WAYS}


def _row(nulls: list[float], answers: list[float]) -> dict[str, Any]:
    found = {f"null_us_p{p}": sig(float(np.percentile(nulls, p)) * 1e6) for p in (50, 90, 99)}
    return {**found, "answer_of_512_ms": sig(float(np.median(answers)) * 1e3)}


def pings(client: Client, n: int) -> list[float]:
    """Seconds of each of ``n`` null requests."""
    times = []
    for _ in range(n):
        begin = perf_counter()
        client.ping()
        times.append(perf_counter() - begin)
    return times


def _answer(client: Client, name: str) -> float:
    context = client.create(name=name)
    begin = perf_counter()
    done = client.generate(context.id, [Message("user", "Say what comes to your mind.")], max_tokens=512).done
    assert done.n_generated == 512, done
    seconds = perf_counter() - begin
    client.delete(context.id)
    return seconds


@contextmanager
def _on_host(options: Options) -> Iterator[Path]:
    socket, data = options.folder / "host.sock", options.folder / "host"
    words = [sys.executable, "-m", _DAEMON, "serve", "--socket", str(socket), "--data-dir", str(data), "--slots", "8"]
    with subprocess.Popen([*words, *_INSTANT], cwd=ROOT) as process:
        try:
            _until(socket.exists, process, 60)
            yield socket
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def _in_guest(options: Options, folder: Path, accel: str) -> Iterator[tuple[Path, float]]:
    """A machine of its own of the guest in ``folder``; its socket, and the seconds until it served."""
    root, socket, log = options.folder / "vm", options.folder / "guest.sock", options.folder / "vm.log"
    root.mkdir()
    for name in ("vmlinuz", "initrd", "root.img"):
        (root / name).symlink_to(folder / name)
    vm, key = [sys.executable, "-m", "llmaas", "vm"], options.folder / "key"
    subprocess.run([*vm, "key", str(key)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    words = ["run", "--vm", str(root), "--key-file", str(key), "--socket", str(socket), "--accel", accel]
    words += ["--memory", "768M", "--store-size", "256M", "--slots", "8", "--daemon-module", _DAEMON]
    with log.open("wb") as said, subprocess.Popen([*vm, *words, "--", *_INSTANT], cwd=ROOT, stderr=said) as process:
        begin = perf_counter()
        try:
            _until(lambda: "ready: " in log.read_text("utf-8", "replace"), process, _BOOT_S)
            yield socket, perf_counter() - begin
        finally:
            process.terminate()
            process.wait(150)


def _until(done: Any, process: subprocess.Popen[bytes], seconds: float) -> None:
    late = perf_counter() + seconds
    while not done():
        if process.poll() is not None or perf_counter() > late:
            raise RuntimeError(f"a daemon did not start within {seconds:g} s, or has ended")
        time.sleep(0.05)
