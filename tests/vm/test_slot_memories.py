"""Memories of slots: how QEMU gets them, how the guest finds them, and whom they reach."""

from __future__ import annotations

import fcntl
import os
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from llmaas.api.client import Client
from llmaas.errors import Busy, ConfigError
from llmaas.vm.folder import VmError
from llmaas.vm.qemu import VmChoices, qemu_command
from llmaas.vm.slot_memories import MOST_MEMORIES, SLOT_MEMORY, guest_memories, make_memories
from tests.slots.support import RawSlot
from tests.slots.test_c_client import SAID, program
from tests.slots.test_service import until_free
from tests.support.far_slots import serving_far_in_a_thread
from tests.vm.test_qemu_command import FOLDER

__all__ = ["program"]  # a fixture
F_GET_SEALS, SEAL_SEAL, SEAL_SHRINK, SEAL_GROW = 1034, 1, 2, 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "llmaas.sock"


def words_of(fds: list[int]) -> list[str]:
    return qemu_command(FOLDER, [], VmChoices(kvm=False), 11, 12, fds)


def test_each_memory_is_a_device_of_its_own_at_a_place_of_its_own() -> None:
    pairs = list(pairwise(words_of(list(range(100, 100 + MOST_MEMORIES)))))
    memories = [value for flag, value in pairs if flag == "-object" and value.startswith("memory-backend")]
    devices = [value for flag, value in pairs if flag == "-device" and value.startswith("ivshmem-plain")]
    assert memories[9] == "memory-backend-file,id=slot9,mem-path=/proc/self/fd/109,share=on,size=1048576,dump=off"
    assert devices[9] == "ivshmem-plain,memdev=slot9,addr=0x11.1"
    assert devices[8] == "ivshmem-plain,memdev=slot8,addr=0x11.0,multifunction=on"
    assert len({device.partition("addr=")[2] for device in devices}) == MOST_MEMORIES == len(memories)
    assert not any("ivshmem" in word for word in words_of([]))


def test_a_memory_has_no_name_and_nobody_can_change_its_size() -> None:
    fds = make_memories(2)
    for fd in fds:
        assert os.fstat(fd).st_nlink == 0 and os.fstat(fd).st_size == SLOT_MEMORY and not os.get_inheritable(fd)
        assert fcntl.fcntl(fd, F_GET_SEALS) & 7 == SEAL_SEAL | SEAL_SHRINK | SEAL_GROW
        os.close(fd)


@pytest.mark.parametrize("count", [-1, MOST_MEMORIES + 1])
def test_more_than_a_machine_can_have_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"--slots is {count}"):
        make_memories(count)


def bus_device(bus: Path, address: str, ids: tuple[str, str], memory: bool = True) -> Path:
    device = bus / address
    device.mkdir()
    (device / "vendor").write_text(f"{ids[0]}\n")
    (device / "device").write_text(f"{ids[1]}\n")
    (device / "enable").write_text("0")
    if memory:
        (device / "resource2").touch()
    return device


def test_the_guest_finds_them_in_the_hosts_order_and_nothing_else(tmp_path: Path) -> None:
    ivshmem = ("0x1af4", "0x1110")
    for address in ("0000:00:11.0", "0000:00:10.1", "0000:00:10.0"):
        bus_device(tmp_path, address, ivshmem)
    for address, ids in (("0000:00:02.0", ("0x1af4", "0x1003")), ("0000:00:1f.0", ("0x8086", "0x1110"))):
        bus_device(tmp_path, address, ids)
    found = guest_memories(tmp_path)
    assert [memory.parent.name for memory in found] == ["0000:00:10.0", "0000:00:10.1", "0000:00:11.0"]
    assert all((memory.parent / "enable").read_text() == "1" for memory in found)
    bus_device(tmp_path, "0000:00:12.0", ivshmem, memory=False)
    with pytest.raises(VmError, match=r"0000:00:12.0 has no memory"):
        guest_memories(tmp_path)


def test_apps_have_memories_of_their_own_and_the_socket_serves_who_has_none(path: Path) -> None:
    with serving_far_in_a_thread(path, count=4) as there:
        inodes = dict[str, int]()
        for app in ("one", "two", "one", "two"):
            raw = RawSlot(path, app)
            assert inodes.setdefault(app, os.fstat(raw.fd).st_ino) == os.fstat(raw.fd).st_ino
            raw.send({"id": 2, "op": "ping"})
            assert raw.frame()["type"] == "done"
            raw.close()
            there(until_free)
        assert inodes["one"] != inodes["two"]
        with pytest.raises(Busy, match="another app's"):
            Client(path, app="three", transport="slots")
        with Client(path, app="three") as by_socket:
            by_socket.ping()


def test_an_app_has_two_connections_by_two_memories(path: Path) -> None:
    with (
        serving_far_in_a_thread(path, count=4) as there,
        Client(path, app="mail", transport="slots") as one,
        Client(path, app="mail", transport="slots") as other,
    ):
        one.create(name="notes", system="x" * 700_000)  # more than a ring holds
        assert other.show("notes").messages[0].content == "x" * 700_000
        one.close()
        other.close()
        there(until_free)


def test_the_c_client_goes_by_them_too(program: Path, path: Path) -> None:
    with serving_far_in_a_thread(path) as there:
        found = subprocess.run([program, path, "slots"], capture_output=True, text=True, check=False, timeout=60)
        assert (found.returncode, found.stdout) == (0, SAID)
        there(until_free)
