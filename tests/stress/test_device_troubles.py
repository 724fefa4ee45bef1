"""What phones and boards do to a daemon: it goes on, or says in plain words what is wrong, and loses no turn.

A real ``llmaas serve`` is put into the trouble by the kernel itself, or, where the engine has no part in it, the daemon
with the fake engine. docs/operations.md has the table of what is tried here and what happens.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgpack
import pytest

from llmaas.api.client import Client
from llmaas.api.limits import DEFAULT_LIMITS
from llmaas.cli.doctor.store import check_disk
from llmaas.errors import LlmaasError, NotServing
from llmaas.kvchunks.store import master_key
from llmaas.kvchunks.store.store import Store
from tests.cli.conftest import COMMAND, Daemon, clean_environ
from tests.stress.daemon_under_test import CELLS, END_RATE, MASTER, Victim, start
from tests.support import devices
from tests.support.checked_app import App
from tests.support.daemon import Peer
from tests.support.oracle import Oracle

MIB = 1 << 20
POEM = "The sea is calm to-night, the tide is full, the moon lies fair upon the straits. "

slow = pytest.mark.slow
DIES_FIRST = ("sh", "-c", 'echo 1000 >/proc/self/oom_score_adj && exec "$@"', "sh")
"""What comes before a command that the kernel ends first, as Android does with apps in the background."""


class Talks:
    """Conversations with a daemon, and all that was acknowledged of them."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.said: dict[str, list[tuple[str, str]]] = {}

    def turn(self, name: str, text: str, n: int = 4) -> None:
        """Raises LlmaasError; then nothing was acknowledged."""
        with Client(self.daemon.socket, app="a") as client:
            if name not in self.said:
                client.create(name=name)
                self.said[name] = []
            stream = client.generate(name, [{"role": "user", "content": text}], max_tokens=n)
            assert stream.done.n_generated
            self.said[name] += [("user", text), ("assistant", stream.text)]

    def create(self, name: str, system: str) -> None:
        """Raises LlmaasError."""
        with Client(self.daemon.socket, app="a") as client:
            client.create(name=name, system=system)
            self.said[name] = [("system", system)]

    def turns(self, names: Iterable[str], repeat: int, n: int = 4) -> None:
        for name in names:
            self.turn(name, f"{name}{len(self.said.get(name, ()))}: {POEM * repeat}", n)

    def compare(self) -> None:
        """All is there that was acknowledged, and nothing else."""
        with Client(self.daemon.socket, app="a") as client:
            for name, said in self.said.items():
                assert [(message.role, message.content) for message in client.show(name).messages] == said

    def stats(self) -> dict[str, object]:
        with Client(self.daemon.socket, app="a") as client:
            return dict(client.stats())


@contextlib.contextmanager
def serving(
    root: Path, *flags: str, prefix: tuple[str, ...] = (), place: Path | None = None, is_killed: bool = False
) -> Iterator[Talks]:
    """``llmaas serve`` in its trouble; at the end it must end well and its store be sound, unless it is killed."""
    daemon = Daemon(place or root, prefix=prefix, more=("--threads", "1", "--log-level", "warning", *flags))
    daemon.start()
    try:
        yield Talks(daemon)
        assert is_killed or daemon.stop() == 0, daemon.log
    finally:
        daemon.stop(signal.SIGKILL)
    assert "Traceback" not in daemon.log, daemon.log
    if not is_killed:
        sound(daemon.data_dir)


def sound(data_dir: Path) -> None:
    key = master_key.find(data_dir, master_key.FILE, {}, make=False)
    assert key is not None
    with Store(data_dir, master=key.key) as store:
        assert store.check(deep=True).problems == ()


def afterwards(talks: Talks) -> None:
    """The trouble is over: a daemon without it has all that was said, and every conversation goes on."""
    talks.daemon.prefix = ()
    talks.daemon.socket.unlink(missing_ok=True)  # what a kill has left
    talks.daemon.start()
    try:
        talks.compare()
        talks.turns(list(talks.said)[:4], 1)
        talks.compare()
        assert talks.daemon.stop() == 0
    finally:
        talks.daemon.stop(signal.SIGKILL)
    sound(talks.daemon.data_dir)


def run(root: Path, *args: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, *COMMAND, *args]
    return subprocess.run(command, env=clean_environ(root), capture_output=True, text=True, timeout=120, check=False)


# -- memory


@pytest.fixture(scope="module")
def half_gigabyte(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model with weights of 32 bits: 540 MB."""
    import llama_cpp.llama_cpp as llama_cpp

    path = tmp_path_factory.mktemp("large") / "half-gigabyte.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = llama_cpp.LLAMA_FTYPE_ALL_F32, True, 2
    assert llama_cpp.llama_model_quantize(str(model_path).encode(), str(path).encode(), params) == 0
    assert path.stat().st_size > 500 * MIB
    return path


def out_of_the_cache(path: Path) -> None:
    """Else another group pays for its pages."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@slow
@pytest.mark.timeout(600)
def test_a_model_of_half_a_gigabyte_is_served_in_one_gigabyte(tmp_path: Path, half_gigabyte: Path) -> None:
    with devices.control_group("memory") as group:
        group.limit_memory(1 << 30)
        out_of_the_cache(half_gigabyte)
        told = run(tmp_path, "serve", "--show-config", prefix=group.enter).stdout
        assert "cells = 2048    # profile desktop" in told and "pool_bytes = 64M    # profile desktop" in told
        doctor = run(tmp_path, "doctor", "--model", str(half_gigabyte), prefix=group.enter)
        memory = next(line for line in doctor.stdout.splitlines() if "  memory " in line)
        assert doctor.returncode == 0 and "of 1.0 GiB RAM" in memory and not memory.startswith("fail"), doctor.stdout
        flags = ("--model", str(half_gigabyte), "--pool-bytes", "64M")
        with serving(tmp_path, *flags, prefix=group.enter) as talks:
            for _ in range(2):
                talks.turns("abcd", 40)  # together they do not fit into the cells
            talks.compare()
            assert group.memory_used() <= 1 << 30
        afterwards(talks)


@slow
@pytest.mark.timeout(600)
def test_under_a_limit_that_the_model_does_not_fit_into_the_daemon_goes_on(tmp_path: Path, half_gigabyte: Path) -> None:
    """Pages of the model come and go, as on a phone whose memory others want. With version 2 it is memory.high, which
    slows a group down; version 1 has a hard limit only.
    """
    with devices.control_group("memory") as group:
        flags = ("--model", str(half_gigabyte), "--pool-bytes", "64M", "--embedding-tokens", "0")
        with serving(tmp_path, *flags, prefix=group.enter) as talks:
            talks.turns("abc", 8)
            group.set("memory.high", "memory.limit_in_bytes", 480 * MIB)
            talks.turns("abc", 2, n=2)
            late = time.monotonic() + 30
            while talks.stats()["pool_bytes"]["why"] == "configured" and time.monotonic() < late:  # type: ignore[index]
                time.sleep(0.5)
            talks.compare()
            group.set("memory.high", "memory.limit_in_bytes", "max" if group.v2 else -1)
            talks.turns("abc", 1)
        afterwards(talks)


HOG = """
held = []
while True:
    held.append(bytearray(b"x" * (4 << 20)))
"""


@slow
@pytest.mark.timeout(300)
def test_a_daemon_that_the_kernel_kills_for_memory_loses_no_turn(tmp_path: Path) -> None:
    """In the middle of a call, by the out-of-memory killer: another program of its group takes all there is."""
    with devices.control_group("memory") as group:
        group.limit_memory(600 * MIB)
        with serving(tmp_path, "--pool-bytes", "32M", prefix=(*group.enter, *DIES_FIRST), is_killed=True) as talks:
            talks.turns("abc", 6)
            with Client(talks.daemon.socket, app="a") as client:
                stream = client.generate("a", [{"role": "user", "content": "Go on and on."}], max_tokens=1500)
                next(stream)
                hog = subprocess.Popen([*group.enter, sys.executable, "-c", HOG], stderr=subprocess.DEVNULL)
                try:
                    with pytest.raises(NotServing):
                        _ = stream.done
                    assert hog.poll() is None, "the other program was not the one that went"
                finally:
                    hog.kill()
                    hog.wait()
            assert talks.daemon.process is not None
            assert talks.daemon.process.wait(60) == -signal.SIGKILL
        afterwards(talks)


# -- disks


@slow
@pytest.mark.timeout(600)
def test_a_disk_of_100_megabytes_is_half_used_and_a_full_one_is_told(tmp_path: Path) -> None:
    with devices.small_disk(tmp_path / "small", "100m") as disk:
        with serving(tmp_path, "--pool-bytes", "4M", place=disk) as talks:
            talks.turns("abcdef", 20)
            stats = talks.stats()["disk_bytes"]
            assert stats["quota"] == 50 * MIB and 0 < stats["chunks"] <= 50 * MIB  # type: ignore[index, call-overload]
            ballast = disk / "ballast"
            with pytest.raises(LlmaasError) as caught:
                for n in range(10_000):  # the index's log has some room left
                    fill(ballast)
                    talks.create(f"more-{n}", POEM * 20)
            assert caught.value.code == "disk_full" and "space" in caught.value.hint, caught.value
            with pytest.raises(LlmaasError) as caught:
                for n in range(20):
                    fill(ballast)
                    talks.turn("a", f"{n} {POEM}")
            assert caught.value.code == "disk_full", caught.value
            talks.compare()
            ballast.unlink()
            talks.turns("abc", 1)
        afterwards(talks)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_data_directory_on_a_read_only_disk_is_told_at_the_start(tmp_path: Path) -> None:
    for made in (False, True):
        place = tmp_path / f"place-{made}"
        place.mkdir()
        data = place / "data"
        if made:
            data.mkdir(mode=0o700)
            Store(data).close()
        with devices.read_only(place):
            done = run(tmp_path, "serve", "--data-dir", str(data), "--socket", str(tmp_path / "s"))
            assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
            first, *rest = done.stderr.splitlines()
            assert str(place) in first and "ead-only file system" in first, done.stderr
            assert any("hint: " in line for line in rest), "what to do is said"
            (finding,) = check_disk(data)
            assert finding.level == "fail" and "read-only" in finding.text


@slow
@pytest.mark.timeout(300)
def test_a_card_that_becomes_read_only_costs_no_acknowledged_turn(tmp_path: Path) -> None:
    with devices.card(tmp_path, 64) as card:
        with serving(tmp_path, "--pool-bytes", "4M", place=card.place, is_killed=True) as talks:
            talks.turns("abc", 10)
            card.fail()
            for name in "abc":
                with pytest.raises(LlmaasError) as caught:
                    talks.turn(name, "And now?")
                assert caught.value.code == "store_failed", caught.value
                assert "disk" in f"{caught.value.message} {caught.value.hint}"
            talks.compare()  # what is there can be read
        card.change()
        afterwards(talks)


# -- time and CPU


@slow
@pytest.mark.timeout(300)
def test_a_daemon_that_is_frozen_longer_than_every_time_limit_goes_on(tmp_path: Path) -> None:
    """Doze, or SIGSTOP: peers that have sent their part meanwhile are not blamed for the time."""
    victim = start(tmp_path / "data", tmp_path / "s")
    apps = [App(f"app{i}", i, partial(Oracle, CELLS, end_rate=END_RATE)) for i in range(3)]
    stop = threading.Event()
    try:
        with ThreadPoolExecutor(4) as pool:
            work = [pool.submit(work_until, stop, app, victim) for app in apps]
            time.sleep(1.0)
            silent, half = Peer(tmp_path / "s"), Peer(tmp_path / "s")
            half.hello("half")
            frame = framed({"id": 1, "op": "ping"})
            half.sock.sendall(frame[:7])
            time.sleep(0.3)
            victim.process.send_signal(signal.SIGSTOP)
            silent.send({"op": "hello", "version": 1, "app": "silent"})
            half.sock.sendall(frame[7:])
            late = Peer(tmp_path / "s")  # the kernel takes it
            time.sleep(max(DEFAULT_LIMITS.hello_s, DEFAULT_LIMITS.frame_s, DEFAULT_LIMITS.write_s) + 2)
            victim.process.send_signal(signal.SIGCONT)
            assert silent.receive()["type"] == "hello", "what came meanwhile is looked at first"
            assert half.receive()["type"] == "done"
            assert late.hello("late")["type"] == "hello"
            for peer in (silent, half, late):
                peer.sock.close()
            before = [app.acknowledged for app in apps]
            time.sleep(1.0)
            stop.set()
            for future in work:
                future.result(30)
            assert all(app.acknowledged > n for app, n in zip(apps, before, strict=True))
    finally:
        victim.process.send_signal(signal.SIGCONT)
        stop.set()
        code = victim.end(signal.SIGTERM)
    assert (code, victim.said) == (0, []), "its books and its store are in order"
    with Store(tmp_path / "data", master=MASTER) as store:
        assert store.check(deep=True).problems == ()


def work_until(stop: threading.Event, app: App, victim: Victim) -> None:
    with Client(victim.socket, app=app.name) as client:
        app.run(client, lambda: not stop.is_set())
        app.say_everywhere(client)
        for id, book in app.books.items():
            app.compare(client, id, book)


def framed(request: dict[str, object]) -> bytes:
    body = msgpack.packb(request)
    return struct.pack(">I", len(body)) + body


@slow
@pytest.mark.timeout(300)
def test_with_half_a_core_all_is_slower_and_nothing_else(tmp_path: Path) -> None:
    with devices.control_group("cpu") as group:
        if not group.v2:
            group.set("cpu.max", "cpu.cfs_period_us", 100_000)
        group.set("cpu.max", "cpu.cfs_quota_us", "50000 100000" if group.v2 else 50_000)
        told = run(tmp_path, "serve", "--show-config", prefix=group.enter).stdout
        assert "threads = 1    # default" in told
        with serving(tmp_path, prefix=group.enter) as talks:
            for _ in range(2):
                talks.turns("abc", 3)
            with ThreadPoolExecutor(3) as pool:
                for future in [pool.submit(talks.turns, name, 2) for name in "abc"]:
                    future.result(120)
            talks.compare()
        afterwards(talks)


# -- what is not there


@slow
@pytest.mark.timeout(300)
def test_without_proc_the_daemon_serves_and_the_doctor_says_what_is_not_known(tmp_path: Path) -> None:
    prefix = devices.without_proc()
    with serving(tmp_path, "--governor", "on", "--nice", "5", prefix=prefix) as talks:
        for _ in range(2):
            talks.turns("abc", 6)
        talks.compare()
    doctor = run(tmp_path, "doctor", "--data-dir", str(talks.daemon.data_dir), prefix=prefix)
    assert "Traceback" not in doctor.stdout + doctor.stderr
    memory = next(line for line in doctor.stdout.splitlines() if "  memory " in line)
    assert memory.startswith("warn") and "does not say how much RAM" in memory
    assert doctor.returncode == 0, doctor.stdout
    afterwards(talks)
