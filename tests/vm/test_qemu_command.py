"""QEMU's command line: what the guest gets, and what it does not."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from llmaas.errors import ConfigError
from llmaas.vm.folder import VmFolder
from llmaas.vm.qemu import VmChoices, VmDisk, qemu_command

FOLDER = VmFolder(Path("/srv/a,b"))
DISKS = [VmDisk("root", FOLDER.root), VmDisk("store", FOLDER.store, read_only=False)]


def command(**choices: object) -> list[str]:
    return qemu_command(FOLDER, DISKS, VmChoices(**{"kvm": False, **choices}), 11, 12)  # type: ignore[arg-type]


def values(words: list[str], flag: str) -> list[str]:
    return [value for name, value in pairwise(words) if name == flag]


def test_only_the_store_can_be_written_to() -> None:
    disks = [json.loads(value) for value in values(command(), "-blockdev")]
    assert {disk["node-name"]: disk["read-only"] for disk in disks} == {"root": True, "store": False}
    assert {disk["file"]["filename"] for disk in disks} == {"/srv/a,b/root.img", "/srv/a,b/store.img"}


def test_a_comma_in_a_path_is_no_option() -> None:
    (console,) = [value for value in values(command(), "-chardev") if "console" in value]
    assert console == "file,id=console,path=/srv/a,,b/console.log"


def test_the_guest_has_no_network_no_monitor_and_a_sandbox_around_it() -> None:
    words = command()
    assert values(words, "-nic") == ["none"] and "-nodefaults" in words and "-no-user-config" in words
    assert values(words, "-sandbox") == ["on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    assert not {"-monitor", "-qmp", "-vnc", "-netdev", "-fsdev", "-virtfs", "-gdb"} & set(words)
    assert "mem-merge=off" in values(words, "-machine")[0] and "dump-guest-core=off" in values(words, "-machine")[0]


def test_its_ports_are_sockets_that_only_its_parent_has() -> None:
    sockets = [value for value in values(command(), "-chardev") if value.startswith("socket")]
    assert sockets == ["socket,id=llmaas-wire,fd=11", "socket,id=llmaas-key,fd=12"]


@pytest.mark.parametrize(("kvm", "cpu"), [(True, "host"), (False, "max")])
def test_the_cpu_is_the_machines_own_or_all_that_can_be_emulated(kvm: bool, cpu: str) -> None:
    assert values(command(kvm=kvm), "-cpu") == [cpu]
    assert values(command(kvm=kvm), "-accel") == ["kvm" if kvm else "tcg"]


def test_memory_cpus_and_devices() -> None:
    words = command(memory=3 << 30, cpus=4, lock_memory=True, gpus=("0000:01:00.0", "02:00.1"))
    assert values(words, "-m") == ["3072M"] and values(words, "-smp") == ["4"]
    assert values(words, "-overcommit") == ["mem-lock=on"]
    assert values(words, "-device")[-2:] == ["vfio-pci,host=0000:01:00.0", "vfio-pci,host=02:00.1"]
    assert "-overcommit" not in command() and not any("vfio" in word for word in command())


@pytest.mark.parametrize("gpu", ["", "gpu0", "0000:01:00.0,rombar=0", "01:00.0 -monitor stdio", "0000:01:00.8"])
def test_what_is_no_pci_address_is_refused(gpu: str) -> None:
    with pytest.raises(ConfigError, match="PCI"):
        VmChoices(kvm=True, gpus=(gpu,))
