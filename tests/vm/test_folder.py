"""The folder of a virtual machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmaas.vm.folder import VmError, VmFolder, default_vm_folder, hold, image_size, make_image, runner


def test_an_image_is_sparse_for_its_owner_only_and_made_once(tmp_path: Path) -> None:
    image = tmp_path / "store.img"
    make_image(image, 1 << 30)
    stat = image.stat()
    assert (stat.st_size, stat.st_mode & 0o777) == (1 << 30, 0o600) and stat.st_blocks * 512 < 1 << 20
    image.write_bytes(b"kept")
    with pytest.raises(FileExistsError):
        make_image(image, 1 << 20)
    VmFolder(tmp_path).require_store(1 << 20)
    assert image.read_bytes() == b"kept"
    with pytest.raises(VmError, match="cannot make"):
        make_image(tmp_path / "nowhere" / "x.img", 1)


@pytest.mark.parametrize("content", [0, 1, 150 << 20, 8 << 30])
def test_an_image_has_room_for_the_header_the_file_system_and_the_file(content: int) -> None:
    assert image_size(content) >= content * 1.03 + (32 << 20) - (1 << 20) and image_size(content) % (1 << 20) == 0


def test_one_process_runs_a_machine(tmp_path: Path) -> None:
    folder = VmFolder(tmp_path)
    assert runner(folder) is None
    lock = hold(folder)
    assert runner(folder) == os.getpid()
    with pytest.raises(VmError, match=f"runs already .process {os.getpid()}"):
        hold(folder)
    os.close(lock)
    assert runner(folder) is None
    os.close(hold(folder))


def test_a_guest_that_is_not_built_is_named_and_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(VmError) as error:
        VmFolder(tmp_path).require_guest()
    assert "vmlinuz" in error.value.message and f"android_bridge/vm/build {tmp_path}" in error.value.hint


def test_where_it_is() -> None:
    assert default_vm_folder({"LLMAAS_VM": "/x", "HOME": "/h"}).path == Path("/x")
    assert default_vm_folder({"HOME": "/h"}).path == Path("/h/.local/share/llmaas-vm")
