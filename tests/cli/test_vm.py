"""``llmaas vm`` with a process in QEMU's place that runs the guest's own program (tests/support/fake_qemu.py)."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmaas.api.client import Client
from llmaas.errors import BadRequest, Busy
from llmaas.records import Message
from tests.cli.conftest import COMMAND, clean_environ
from tests.support import fake_qemu

ROOT = Path(__file__).parents[2]
SOON = 90.0


class Machine:
    """A folder with what the build makes, a key, and commands about it."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.key = root, root / "vm", root / "key"
        self.socket = root / "run" / "d.sock"
        self.folder.mkdir()
        for name in ("vmlinuz", "initrd", "root.img"):
            (self.folder / name).touch()
        fake_qemu.install(root / "bin")
        self.environ = clean_environ(root) | {
            "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
            "LLMAAS_VM": str(self.folder),
            "LLMAAS_SOCKET": str(self.socket),
            "PYTHONPATH": str(ROOT),
        }

    def say(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, "vm", *words]
        done = subprocess.run(command, input=stdin, env=self.environ, capture_output=True, timeout=SOON)
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())

    def refused(self, *words: str, stdin: bytes = b"") -> str:
        done = self.say(*words, stdin=stdin)
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr and "hint:" in done.stderr, done.stderr
        return done.stderr

    @contextmanager
    def running(self, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
        """``llmaas vm run``, once it serves; it must have ended when the block has."""
        module = ("--daemon-module", "tests.support.fake_serve")
        command = [
            *COMMAND,
            "vm",
            "run",
            "--key-file",
            str(self.key),
            "--accel",
            "tcg",
            *module,
            *flags,
            "--store-size",
            "2M",
        ]
        with (self.root / "log").open("ab") as log:
            process = subprocess.Popen(command, env=self.environ, stderr=log)
        try:
            late = time.monotonic() + SOON
            while "ready: " not in (self.root / "log").read_text():
                assert process.poll() is None and time.monotonic() < late, (self.root / "log").read_text()
                time.sleep(0.05)
            yield process
            process.wait(SOON)
        finally:
            process.kill()
            process.wait()
            (self.root / "log").unlink()

    def ask(self, text: str) -> str:
        with Client(self.socket, app="mail") as client:
            context = client.context("notes")
            return "".join(piece.text for piece in client.generate(context.id, [Message("user", text)], max_tokens=8))

    @property
    def said(self) -> list[str]:
        with Client(self.socket, app="mail") as client:
            return [each.content for each in client.show("notes").messages]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    found = Machine(tmp_path)
    assert found.say("key", str(found.key)).returncode == 0
    return found


def test_a_key_is_random_for_its_owner_only_and_never_replaced(machine: Machine) -> None:
    first = machine.key.read_bytes()
    assert len(first) == 32 and machine.key.stat().st_mode & 0o777 == 0o600
    assert "never replaced" in machine.refused("key", str(machine.key)) and machine.key.read_bytes() == first
    assert machine.say("key", str(machine.root / "other")).returncode == 0
    assert (machine.root / "other").read_bytes() != first


def test_a_machine_is_run_used_looked_at_and_stopped_and_its_conversations_stay(machine: Machine) -> None:
    assert machine.say("status").returncode == 1
    with machine.running() as process:
        machine.ask("PROMPT one")
        shown = machine.say("status")
        assert shown.returncode == 0 and f"runs (process {process.pid})" in shown.stdout
        assert "runs already" in machine.refused("run", "--key-file", str(machine.key), "--accel", "tcg")
        assert machine.say("stop").stdout == "stopped\n"
    assert process.returncode == 0 and not machine.socket.exists()
    assert machine.say("stop").returncode == 0 and machine.say("status").returncode == 1
    with machine.running() as process:
        machine.ask("PROMPT two")
        assert [text for text in machine.said if text.startswith("PROMPT")] == ["PROMPT one", "PROMPT two"]
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0


def test_the_key_is_on_no_command_line_in_no_variable_and_in_no_file(machine: Machine) -> None:
    key = machine.key.read_bytes().replace(b"\0", b"x")
    machine.key.write_bytes(key)
    with machine.running() as process:
        for pid in (process.pid, *children(process.pid)):
            for place in ("cmdline", "environ"):
                found = Path(f"/proc/{pid}/{place}").read_bytes()
                assert found and key not in found and key.hex().encode() not in found
        process.terminate()
    # The fake machine writes it beside its folders, to compare: in place of LUKS' own check.
    files = [each for each in machine.root.rglob("*") if each.is_file() and each.suffix != ".key"]
    assert [each for each in files if key in each.read_bytes()] == [machine.key]


def children(pid: int) -> list[int]:
    found = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert found
    return found


@pytest.mark.parametrize("whole", [True, False], ids=["the-machine", "what-runs-it"])
def test_a_kill_loses_no_turn_that_was_acknowledged(machine: Machine, whole: bool) -> None:
    with machine.running() as process:
        machine.ask("PROMPT one")
        (qemu,) = children(process.pid)
        os.kill(qemu if whole else process.pid, signal.SIGKILL)
        process.wait(SOON)
        assert whole or ended(qemu), "QEMU outlived the process that ran it"
        if whole:
            assert process.returncode == 1 and "the guest has ended" in (machine.root / "log").read_text()
    with machine.running() as process:
        assert machine.said[0] == "PROMPT one"
        process.terminate()


def ended(pid: int) -> bool:
    late = time.monotonic() + SOON
    while time.monotonic() < late:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_a_model_is_imported_and_served_from_its_volume(machine: Machine) -> None:
    model = machine.root / "small.gguf"
    model.write_bytes(os.urandom(3 << 20) + b"odd")
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    done = machine.say("import", str(model), "--key-file", str(machine.key), "--accel", "tcg")
    assert done.returncode == 0 and digest in done.stdout, done.stderr
    assert (machine.folder / "model.img").stat().st_mode & 0o777 == 0o600
    model.unlink()
    with machine.running() as process, Client(machine.socket, app="mail") as client:
        assert client.stats()["model"] == f"{(3 << 20) + 3}-{digest[-12:]}"
        process.terminate()


def test_another_key_opens_nothing_and_the_error_says_so(machine: Machine) -> None:
    with machine.running() as process:
        machine.ask("PROMPT one")
        process.terminate()
    said = machine.refused("run", "--key-file", "-", "--accel", "tcg", stdin=b"another key of enough bytes")
    assert "the key does not open the disk 'store'" in said
    with machine.running() as process:
        assert machine.said[0] == "PROMPT one"
        process.terminate()


def test_a_socket_that_is_served_is_told_before_the_guest_starts(machine: Machine) -> None:
    with machine.running() as process:
        other = machine.root / "other-vm"
        other.mkdir()
        for name in ("vmlinuz", "initrd", "root.img"):
            (other / name).touch()
        said = machine.refused("run", "--key-file", str(machine.key), "--accel", "tcg", "--vm", str(other))
        assert str(machine.socket) in said and "starts" not in said and not (other / "store.img").exists()
        machine.ask("it still serves")
        process.terminate()


def test_a_daemon_that_does_not_start_ends_the_machine_and_the_error_says_where_to_look(machine: Machine) -> None:
    said = machine.refused(
        "run", "--key-file", str(machine.key), "--accel", "tcg", "--daemon-module", "tests.support.no_such"
    )
    assert "the daemon has ended (1)" in said and "console log" in said


BAD = [
    (["run", "--key-file", "{root}/nothing"], "cannot read the key file"),
    (["run", "--key-file", "{root}"], "cannot read the key file"),
    (["run", "--key-file", "-"], "has 0 bytes"),
    (["run", "--key-file", "{root}/open"], "others may read"),
    (["run", "--key-file", "{key}", "--memory", "1"], "--memory is '1'"),
    (["run", "--key-file", "{key}", "--memory", "100M"], "256 MiB"),
    (["run", "--key-file", "{key}", "--memory", "much"], "--memory is 'much'"),
    (["run", "--key-file", "{key}", "--cpus", "0"], "--cpus is 0"),
    (["run", "--key-file", "{key}", "--slots", "65"], "--slots is 65"),
    (["run", "--key-file", "{key}", "--store-size", "x"], "--store-size is 'x'"),
    (["run", "--key-file", "{key}", "--gpu", "0000:01:00.0,x=y"], "no PCI address"),
    (["run", "--key-file", "{key}", "--vm", "{root}/elsewhere"], "android_bridge/vm/build"),
    (["import", "{root}/nothing.gguf", "--key-file", "{key}"], "cannot read"),
    (["import", "{root}", "--key-file", "{key}"], "cannot read"),
]


@pytest.mark.parametrize(("line", "words"), BAD, ids=[" ".join(line[:3])[-30:] + words for line, words in BAD])
def test_what_is_wrong_is_told_before_anything_is_made(machine: Machine, line: list[str], words: str) -> None:
    (machine.root / "open").write_bytes(bytes(32))
    (machine.root / "open").chmod(0o640)
    places = {"root": str(machine.root), "key": str(machine.key)}
    assert words in machine.refused(*(word.format(**places) for word in line))
    assert not (machine.folder / "store.img").exists() and not (machine.folder / "model.img").exists()


def test_without_qemu_the_error_names_the_package(machine: Machine) -> None:
    (machine.root / "bin" / "qemu-system-x86_64").unlink()
    machine.environ["PATH"] = str(machine.root / "bin")
    assert "apt install qemu-system-x86" in machine.refused("run", "--key-file", str(machine.key))


def test_clients_of_a_machine_with_slots_go_by_shared_memory_or_by_the_socket(machine: Machine) -> None:
    with machine.running("--slots", "4") as process:
        for app in ("one", "two"):
            with Client(machine.socket, app=app, transport="slots") as client:
                context = client.context("notes")
                stream = client.generate(context.id, [Message("user", f"PROMPT of {app}")], max_tokens=8)
                assert "".join(piece.text for piece in stream) == stream.text != ""
                assert client.show("notes").messages[0].content == f"PROMPT of {app}"
        with pytest.raises(Busy, match="another app's"):
            Client(machine.socket, app="three", transport="slots")
        machine.ask("PROMPT by the socket")
        process.terminate()
    assert process.returncode == 0


def test_a_machine_without_slots_says_so(machine: Machine) -> None:
    with machine.running() as process:
        with pytest.raises(BadRequest, match="no slots"):
            Client(machine.socket, app="mail", transport="slots")
        process.terminate()
