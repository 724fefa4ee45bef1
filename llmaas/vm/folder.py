"""The folder of a virtual machine: what the build and the first start put into it.

Law: nothing in it is secret in clear: the model and the store are encrypted, and the key is elsewhere.

    vmlinuz, initrd, root.img   the guest, made by android_bridge/vm/build; read-only
    model.img                   the model, on a LUKS volume; written once by 'llmaas vm import'
    store.img                   conversations and chunks, on a LUKS volume; the guest formats it when it is new
    console.log                 what the guest's kernel, llmaas there and the daemon say
    run.lock                    held while it runs, with the process id of 'llmaas vm run' in it
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from llmaas.config_file import xdg
from llmaas.errors import MachineError
from llmaas.frozen import frozen

_LUKS_HEADER = 16 << 20
_SPARE = 1.03
"""What a file system takes for itself."""
_LEAST_IMAGE = 64 << 20


class VmError(MachineError):
    code = "vm"
    hint = "docs/vm.md tells how a virtual machine is made and run."


@frozen
class VmFolder:
    path: Path

    @property
    def kernel(self) -> Path:
        return self.path / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.path / "initrd"

    @property
    def root(self) -> Path:
        return self.path / "root.img"

    @property
    def model(self) -> Path:
        return self.path / "model.img"

    @property
    def store(self) -> Path:
        return self.path / "store.img"

    @property
    def console(self) -> Path:
        return self.path / "console.log"

    @property
    def lock(self) -> Path:
        return self.path / "run.lock"

    def require_guest(self) -> None:
        """Raises VmError if there is no guest to run."""
        for file in (self.kernel, self.initrd, self.root):
            if not file.is_file():
                raise VmError(
                    f"{file} is missing: there is no guest in {self.path}",
                    hint=f"Build one: android_bridge/vm/build {self.path} (in a checkout of llmaas).",
                )

    def require_store(self, nbytes: int) -> None:
        """Make the store's image if there is none, sparse. Raises VmError if it cannot be."""
        with suppress(FileExistsError):
            make_image(self.store, nbytes)


def default_vm_folder(environ: Mapping[str, str]) -> VmFolder:
    """By LLMAAS_VM, else in the folder of the user's data. Raises ConfigError."""
    given = environ.get("LLMAAS_VM", "")
    return VmFolder(Path(given) if given else xdg(environ, "XDG_DATA_HOME", ".local/share") / "llmaas-vm")


def image_size(content: int) -> int:
    """Bytes of an image whose LUKS volume has room for a file of ``content`` bytes; whole MiB."""
    return max(_LEAST_IMAGE, int(content * _SPARE) + _LUKS_HEADER + (16 << 20)) >> 20 << 20


def make_image(path: Path, nbytes: int) -> None:
    """A new file of zeros that takes no room yet, for this user only. Raises FileExistsError, VmError."""
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise
    except OSError as error:
        raise VmError(f"cannot make {path}: {error.strerror}") from error
    try:
        os.ftruncate(fd, nbytes)
    except OSError as error:
        path.unlink()
        raise VmError(f"cannot make {path} of {nbytes} bytes: {error.strerror}") from error
    finally:
        os.close(fd)


def hold(folder: VmFolder) -> int:
    """The folder's lock, held until the descriptor is closed; this process's id is in it. Raises VmError if it runs."""
    try:
        fd = os.open(folder.lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise VmError(f"cannot use {folder.lock}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise VmError(
            f"the virtual machine in {folder.path} runs already (process {runner(folder)})",
            hint="'llmaas vm status' tells more, 'llmaas vm stop' ends it.",
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def runner(folder: VmFolder) -> int | None:
    """The process that runs the machine of this folder; None if none does."""
    try:
        fd = os.open(folder.lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        said = os.pread(fd, 32, 0).strip()
        return int(said) if said.isdigit() else None
    finally:
        os.close(fd)
    return None
