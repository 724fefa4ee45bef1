"""A guest that QEMU runs, with the fake engine: scripts/test-vm builds it and runs this file.

The tests are one story, and run in order: a model is imported, the guest serves, is killed, serves again, is given
another key, and its root image is changed; and what the host's files hold is searched.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import mmap
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import llmaas
from llmaas.api.async_client import AsyncClient
from llmaas.api.client import Client
from llmaas.errors import Busy, Cancelled, LlmaasError, UnknownContext
from llmaas.records import Message

GUEST = Path(os.environ.get("LLMAAS_VM_GUEST", "/nonexistent"))
ACCEL = os.environ.get("LLMAAS_VM_ACCEL", "tcg")
COMMAND = [sys.executable, "-m", "llmaas", "vm"]
BOOT_S = 240.0
SLOTS = 12
WAYS = ("socket", "slots")
"""The wire over virtio-serial, and slots over ivshmem."""
APP = {"socket": "mail", "slots": "shared"}
PROMPT = "the prompt marked " + os.urandom(8).hex()
MODEL = os.urandom(8) + b"a model marked " + os.urandom(16).hex().encode() + os.urandom(4 << 20)
pytestmark = pytest.mark.skipif(not GUEST.is_dir(), reason="scripts/test-vm builds the guest")


class Vm:
    """A machine that is started and ended several times."""

    def __init__(self, root: Path, memory: str = "768M") -> None:
        self.root, self.socket, self.key = root, root / "run" / "d.sock", root / "key"
        self.process: subprocess.Popen[bytes] | None = None
        self.environ = os.environ | {"LLMAAS_VM": str(GUEST), "LLMAAS_SOCKET": str(self.socket), "TMPDIR": str(root)}
        self.common = ["--key-file", str(self.key), "--accel", ACCEL, "--memory", memory]

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*COMMAND, *words], env=self.environ, capture_output=True, text=True, timeout=BOOT_S, input=""
        )
        print(f"\nllmaas vm {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def start(self, module: str = "tests.support.fake_serve", flags: Sequence[str] = ()) -> float:
        """Seconds until it serves."""
        begun, log = time.monotonic(), self.root / "run.log"
        daemon = ["--daemon-module", module, "--store-size", "256M", "--slots", str(SLOTS), "--", *flags]
        with log.open("wb") as said:
            self.process = subprocess.Popen([*COMMAND, "run", *self.common, *daemon], env=self.environ, stderr=said)
        while "ready: " not in log.read_text():
            assert self.process.poll() is None and time.monotonic() < begun + BOOT_S, log.read_text()
            time.sleep(0.1)
        return time.monotonic() - begun

    @property
    def qemu(self) -> int:
        assert self.process is not None
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def client(self, app: str = "mail", **options: Any) -> Client:
        return Client(self.socket, app=app, **options)


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    made = Vm(tmp_path_factory.mktemp("vm"))
    try:
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.process.kill()
            made.process.wait()


def test_a_model_goes_to_its_encrypted_volume(vm: Vm) -> None:
    assert vm.command("key", str(vm.key)).returncode == 0
    model = vm.root / "marked.gguf"
    model.write_bytes(MODEL)
    begun = time.monotonic()
    done = vm.command("import", str(model), *vm.common)
    assert done.returncode == 0 and hashlib.sha256(MODEL).hexdigest() in done.stdout
    print(f"import of {len(MODEL) >> 20} MiB, with the start: {time.monotonic() - begun:.1f} s")
    assert found_in(MODEL[:64], [model, GUEST / "model.img"]) == [model]  # it is found where it is in clear
    model.unlink()


def test_the_guest_serves_what_is_on_the_volume(vm: Vm) -> None:
    print(f"\nstart until it serves: {vm.start():.1f} s")
    with vm.client() as client:
        assert client.stats()["model"] == f"{len(MODEL)}-{hashlib.sha256(MODEL).hexdigest()[-12:]}"
        assert vm.command("status").returncode == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_conversation(vm: Vm, way: str) -> None:
    with vm.client(APP[way], transport=way) as client:
        context = client.context("notes")
        for text in (PROMPT, "and once more"):
            stream = client.generate(context.id, [Message("user", text)], max_tokens=12)
            assert "".join(piece.text for piece in stream) == stream.text != ""
        assert [each.content for each in client.show("notes").messages][::2] == [PROMPT, "and once more"]


@pytest.mark.parametrize("way", WAYS)
def test_a_cancellation(vm: Vm, way: str) -> None:
    with vm.client(APP[way], transport=way) as client:
        stream = client.generate(client.context("long").id, [Message("user", "go on")], max_tokens=500)
        next(iter(stream))
        stream.cancel()
        with pytest.raises(Cancelled) as error:
            _ = stream.done
            for _ in stream:
                pass
        assert error.value.n_generated > 0 and len(client.show("long").messages) >= 1


@pytest.mark.parametrize("way", WAYS)
def test_errors(vm: Vm, way: str) -> None:
    with vm.client(APP[way], transport=way) as client:
        with pytest.raises(UnknownContext):
            client.show("nobody's")
        with pytest.raises(LlmaasError, match="tokens"):
            list(client.generate(client.context("full").id, [Message("user", "x " * 90000)], max_tokens=1))
        client.ping()


def test_many_clients_each_with_its_own(vm: Vm) -> None:
    def talk(i: int) -> list[str]:
        with vm.client(f"app-{i}") as client:
            list(client.generate(client.context("c").id, [Message("user", f"I am {i}")], max_tokens=4))
            return [each.content for each in client.show("c").messages][:1]

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(talk, range(24))) == [[f"I am {i}"] for i in range(24)]
    with vm.client("cli", admin=True) as operator:
        apps = {each.app for each in operator.contexts(everyone=True)}
        assert {f"{os.geteuid()}/app-{i}" for i in range(24)} < apps


def test_slots_go_round_and_an_apps_memory_stays_its_own(vm: Vm) -> None:
    """Connections that come and go; asynchronous ones, and such that leave without a word."""
    for i in range(6):
        with vm.client(f"guest-{i % 3}", transport="slots") as client:
            client.context("c")
            assert [each.app for each in client.contexts()] == [f"{os.geteuid()}/guest-{i % 3}"]
    with pytest.raises(Busy, match="another app's"):
        for i in range(SLOTS):
            vm.client(f"new-{i}", transport="slots").close()

    async def talk() -> str:
        async with await AsyncClient.connect(vm.socket, app=APP["slots"], transport="slots") as client:
            stream = client.generate((await client.create(name="async")).id, [Message("user", "hi")], max_tokens=4)
            await stream.done()
            return stream.text

    assert asyncio.run(asyncio.wait_for(talk(), BOOT_S))


def test_the_time_of_a_round_trip(vm: Vm) -> None:
    """The two ways in turns, in blocks of 100."""
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    clients = {way: vm.client(APP[way], transport=way) for way in WAYS}
    for _ in range(4):
        for way, client in clients.items():
            for _ in range(100):
                begun = time.perf_counter()
                client.ping()
                took[way].append(time.perf_counter() - begun)
    for way, client in clients.items():
        client.close()
        ordered = sorted(took[way])
        print(f"\nping by {way}: p50 {1e3 * statistics.median(ordered):.2f} ms, p99 {1e3 * ordered[395]:.2f} ms")


def test_no_file_of_the_host_holds_the_prompt_or_the_model(vm: Vm) -> None:
    """While it runs: what it has open or mapped, what is in its folder, in /dev/shm, among temporary files, and the
    memories that host and guest share: those hold what their own client has said and was told, while it is connected,
    and nothing of the model."""
    os.sync()
    planted = vm.root / "planted"
    planted.write_bytes(b"\0" * 5000 + PROMPT.encode() + MODEL[:64])
    assert vm.process is not None
    pids = (vm.qemu, vm.process.pid)
    files, memories = set(host_files(vm, pids)), shared_memories(pids)
    assert {GUEST / "store.img", GUEST / "model.img", GUEST / "console.log"} <= files
    assert len(memories) == SLOTS
    searched = [*files, *memories.values()]
    print(f"\n{len(files)} files and {len(memories)} memories are searched")
    for mark in (PROMPT.encode(), MODEL[:64], MODEL[-64:], vm.key.read_bytes()):
        expected = {vm.key} if mark == vm.key.read_bytes() else {planted} if mark != MODEL[-64:] else set()
        assert set(found_in(mark, searched)) == expected
    planted.unlink()
    with vm.client(APP["slots"], transport="slots") as client:
        assert client.show("notes").messages[0].content == PROMPT
        assert len(found_in(PROMPT.encode(), memories.values())) == 1, "the client's own"
        assert found_in(MODEL[:64], memories.values()) == found_in(MODEL[-64:], memories.values()) == []
    late = time.monotonic() + 60
    while found_in(PROMPT.encode(), memories.values()):
        assert time.monotonic() < late, "what was said outlasts the connection"
        time.sleep(0.2)


def test_the_guests_memory_is_not_hidden_from_who_may_look_into_qemu(vm: Vm) -> None:
    """Said honestly: plain QEMU does not hide it. docs/security.md says what would."""
    assert in_memory(vm.qemu, PROMPT.encode())


def test_a_kill_loses_no_turn_that_was_acknowledged(vm: Vm) -> None:
    assert vm.process is not None
    with vm.client() as client:
        list(client.generate(client.context("notes").id, [Message("user", "the last")], max_tokens=4))
    os.kill(vm.qemu, signal.SIGKILL)
    assert vm.process.wait(BOOT_S) == 1
    print(f"\nstart after a kill: {vm.start():.1f} s")
    with vm.client() as client:
        assert [each.content for each in client.show("notes").messages][::2] == [PROMPT, "and once more", "the last"]


def test_it_stops_gracefully(vm: Vm) -> None:
    assert vm.process is not None
    begun = time.monotonic()
    assert vm.command("stop").stdout == "stopped\n" and vm.process.wait(BOOT_S) == 0
    print(f"stop: {time.monotonic() - begun:.1f} s")
    assert not vm.socket.exists()


def test_another_key_opens_nothing(vm: Vm) -> None:
    before = (GUEST / "store.img").stat().st_mtime_ns
    other = vm.root / "other"
    other.write_bytes(os.urandom(32))
    other.chmod(0o600)
    done = vm.command("run", "--key-file", str(other), *vm.common[2:])
    assert done.returncode == 1 and "the key does not open the disk 'store'" in done.stderr
    assert (GUEST / "store.img").stat().st_mtime_ns == before


def test_a_root_image_that_was_changed_is_not_run(vm: Vm) -> None:
    """One bit of a file that every start reads: found in the image, whose blocks are in clear."""
    image = GUEST / "root.img"
    mark = (Path(llmaas.__file__).parent / "vm" / "guest_init.py").read_bytes()[:64]
    with image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        place = content.find(mark)
        assert place > 0
        content[place + 3] ^= 1
        try:
            done = vm.command("run", *vm.common)
        finally:
            content[place + 3] ^= 1
    assert done.returncode == 1 and "verity" in (GUEST / "console.log").read_text(errors="replace")


def host_files(vm: Vm, pids: Iterable[int]) -> Iterator[Path]:
    for folder in (GUEST, vm.root, Path("/dev/shm")):
        yield from (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    for pid in pids:
        for link in [*Path(f"/proc/{pid}/fd").iterdir(), *Path(f"/proc/{pid}/map_files").iterdir()]:
            with contextlib.suppress(OSError):
                path = link.readlink()
                if link.stat().st_size and path.is_file():
                    yield path
                else:
                    assert "memfd" not in str(path) or "memfd:llmaas-slot" in str(path), f"{path}: memory as a file"


def shared_memories(pids: Iterable[int]) -> dict[int, Path]:
    """Every memory without a name that these processes have, by which it is, and a way to open it."""
    found: dict[int, Path] = {}
    for pid in pids:
        for link in [*Path(f"/proc/{pid}/fd").iterdir(), *Path(f"/proc/{pid}/map_files").iterdir()]:
            with contextlib.suppress(OSError):
                if "memfd:" in str(link.readlink()):
                    found.setdefault(link.stat().st_ino, link)
    return found


def found_in(mark: bytes, files: Iterable[Path]) -> list[Path]:
    found = []
    for path in files:
        with path.open("rb") as file:
            if path.stat().st_size:
                with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
                    if content.find(mark) >= 0:
                        found.append(path)
    return found


def in_memory(pid: int, mark: bytes) -> bool:
    piece = 16 << 20
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            first, last = (int(word, 16) for word in line.split()[0].split("-"))
            if "rw" not in line.split()[1]:
                continue
            for start in range(first, last, piece):
                with contextlib.suppress(OSError):
                    memory.seek(start)
                    if mark in memory.read(min(piece + len(mark), last - start)):
                        return True
    return False
