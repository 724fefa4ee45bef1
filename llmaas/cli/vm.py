"""``llmaas vm``: the daemon in a virtual machine of its own, served on this machine's ordinary sockets.

Law: the key is read from a file or from stdin, and is on no command line and in no variable. ``run`` stays in the
foreground, as ``serve`` does, and ends the machine gracefully on SIGTERM and SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import signal
import stat
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from llmaas.cli.log_format import log_to_stderr
from llmaas.cli.manager import notify_manager
from llmaas.cli.options import add_actions, add_settings, loaded, socket_of
from llmaas.config.kinds import Kind, size
from llmaas.errors import ConfigError
from llmaas.regular_file import open_regular
from llmaas.vm.boot_message import MOST_KEY, BootMessage, check_key
from llmaas.vm.folder import VmError, VmFolder, default_vm_folder, hold, image_size, make_image, runner
from llmaas.vm.host_side import require_sockets
from llmaas.vm.machine_process import has_kvm, require_qemu, start_machine
from llmaas.vm.qemu import VmChoices, VmDisk
from llmaas.vm.running import VmSession
from llmaas.vm.slot_memories import require_count

log = logging.getLogger(__name__)

_EPILOG = """\
examples:
  llmaas vm key vm.key                               make a key; keep it on another disk than the machine's folder
  llmaas vm import model.gguf --key-file vm.key      write the model to its encrypted volume, once
  llmaas vm run --key-file vm.key --memory 4G        start it; every command of llmaas finds it
  llmaas vm run --key-file vm.key --slots 16         clients may go by shared memory: Client(transport="slots")
  llmaas vm run --key-file vm.key -- --cells 4096    what is after -- are arguments of 'llmaas serve' in the guest
  llmaas vm status                                   does it run, does the daemon in it answer?
  llmaas vm stop                                     end it gracefully

android_bridge/vm/build makes the guest; docs/vm.md tells the rest. KVM is used where this user may use it.
"""
_FOLDER = "of the machine (default: LLMAAS_VM, else llmaas-vm in the user's data)"
_SIZE: Kind = size(1 << 20)
_STOP_S = 150.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    action = add_actions(parser, of_client=False)
    run_it = action("run", _run, "start the virtual machine and serve it, until it is told to stop")
    add_settings(run_it, ["socket", "log_level"])
    run_it.add_argument("--store-size", metavar="SIZE", default="8G", help="of the store's volume, when it is new")
    run_it.add_argument("--gpu", metavar="ADDRESS", action="append", default=[], help="give the guest this PCI device")
    run_it.add_argument(
        "--slots", metavar="N", type=int, default=0, help="memories that clients may share with the guest (default: 0)"
    )
    run_it.add_argument("--daemon-module", default="llmaas", help=argparse.SUPPRESS)  # tests: a fake engine
    run_it.add_argument("serve_flags", nargs="*", metavar="-- FLAGS", help="arguments of 'llmaas serve' in the guest")
    model = action("import", _import, "write a model to the machine's encrypted volume; the machine must not run")
    model.add_argument("model", type=Path, help="a GGUF file")
    for sub in (run_it, model):
        sub.add_argument(
            "--key-file", metavar="FILE", required=True, help="the key of the volumes; - reads it from stdin"
        )
        sub.add_argument("--memory", metavar="SIZE", default="1G", help="of the guest (default: 1G)")
        sub.add_argument("--cpus", metavar="N", type=int, default=1, help="of the guest (default: 1)")
        sub.add_argument("--accel", choices=["auto", "kvm", "tcg"], default="auto", help="tcg: emulate, slowly")
        sub.add_argument("--lock-memory", action="store_true", help="keep the guest's memory out of the host's swap")
    stop = action("stop", _stop, "end the virtual machine gracefully, and wait until it has ended")
    status = action("status", _status, "say whether it runs and answers; exit code 1 if not")
    add_settings(status, ["socket"])
    key = action("key", _key, "make a file with a random key, for this user only")
    key.add_argument("file", type=Path)
    for sub in (run_it, model, stop, status):
        sub.add_argument(
            "--vm",
            metavar="FOLDER",
            type=Path,
            help=_FOLDER,
        )


def run(args: argparse.Namespace) -> int:
    code: int = args.do(args)
    return code


def _run(args: argparse.Namespace) -> int:
    found, folder = loaded(args), _folder(args)
    log_to_stderr(found.config.log_level, "text")
    folder.require_guest()
    require_count(args.slots)
    choices, key = _choices(args), _read_key(args.key_file)
    lock = hold(folder)
    try:
        require_sockets(found.config.socket)
        folder.require_store(_bytes("--store-size", args.store_size))
        disks = [VmDisk("root", folder.root), VmDisk("store", folder.store, read_only=False)]
        if has_model := folder.model.exists():
            disks.append(VmDisk("model", folder.model))
        boot = BootMessage(
            key,
            uid=os.geteuid(),
            daemon=(args.daemon_module, "serve"),
            flags=tuple(args.serve_flags),
            has_model=has_model,
            slots=args.slots,
        )
        return asyncio.run(_served(folder, disks, choices, boot, found.config.socket))
    finally:
        os.close(lock)


def _import(args: argparse.Namespace) -> int:
    folder = _folder(args)
    log_to_stderr("info", "text")
    folder.require_guest()
    try:
        with open_regular(args.model) as file:
            nbytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ConfigError(f"cannot read {args.model}: {error.strerror}", hint="Give a GGUF file.") from error
    choices, key = _choices(args), _read_key(args.key_file)
    boot = BootMessage(key, import_bytes=nbytes, model=args.model.name)
    lock = hold(folder)
    try:
        image = folder.model.with_suffix(".new")
        image.unlink(missing_ok=True)
        make_image(image, image_size(nbytes))
        disks = [VmDisk("root", folder.root), VmDisk("model", image, read_only=False), VmDisk("import", args.model)]
        return asyncio.run(_imported(folder, disks, choices, boot, image))
    finally:
        os.close(lock)


async def _served(folder: VmFolder, disks: list[VmDisk], choices: VmChoices, boot: BootMessage, socket: Path) -> int:
    stop = _stop_signal()
    session = _started(folder, disks, choices, boot)

    def ready() -> None:
        log.info("ready: the virtual machine in %s on %s", folder.path, socket)
        notify_manager("READY=1")

    await session.serve(socket, stop, ready)
    return 0


async def _imported(folder: VmFolder, disks: list[VmDisk], choices: VmChoices, boot: BootMessage, image: Path) -> int:
    digest = await _started(folder, disks, choices, boot).import_model(_stop_signal())
    if digest is None:
        image.unlink()
        return 130
    image.replace(folder.model)
    print(f"{boot.model} is in {folder.model}; SHA-256 {digest}")
    return 0


def _started(folder: VmFolder, disks: list[VmDisk], choices: VmChoices, boot: BootMessage) -> VmSession:
    machine = start_machine(folder, disks, choices, boot, folder.path / "qemu.log")
    log.info("the virtual machine starts (process %d, %s)", machine.pid, "KVM" if choices.kvm else "emulated")
    return VmSession(machine, folder.console)


def _stop_signal() -> asyncio.Event:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    return stop


def _stop(args: argparse.Namespace) -> int:
    folder = _folder(args)
    pid = runner(folder)
    if pid is None:
        print(f"the virtual machine in {folder.path} does not run")
        return 0
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        _wait(_ended(pidfd))
    finally:
        os.close(pidfd)
    print("stopped")
    return 0


def _status(args: argparse.Namespace) -> int:
    from llmaas.cli.doctor.daemon import answers

    folder, socket = _folder(args), socket_of(loaded(args))
    pid = runner(folder)
    well = pid is not None and socket.is_socket() and answers(socket)
    print(f"folder  {folder.path}")
    print(f"guest   {'built' if folder.root.exists() else 'not built: android_bridge/vm/build makes it'}")
    print(f"model   {'on its volume' if folder.model.exists() else 'none: llmaas vm import'}")
    print(f"state   {'off' if pid is None else f'runs (process {pid})'}")
    print(f"socket  {socket}: {'a daemon answers' if well else 'no daemon answers'}")
    return 0 if well else 1


def _key(args: argparse.Namespace) -> int:
    try:
        fd = os.open(args.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"cannot make {args.file}: {error.strerror}", hint="A key that is there is never replaced; name a new file."
        ) from error
    with os.fdopen(fd, "wb") as file:
        file.write(secrets.token_bytes(32))
        file.flush()
        os.fsync(fd)
    print(f"{args.file}: without it nobody reads what the volumes hold. Keep a copy, and keep it off their disk.")
    return 0


def _read_key(name: str) -> bytes:
    if name == "-":
        return check_key(sys.stdin.buffer.read(MOST_KEY + 1), "stdin")
    try:
        with open_regular(Path(name)) as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(f"others may read or write the key file {name}", hint=f"chmod 600 {name}")
            return check_key(file.read(MOST_KEY + 1), name)
    except OSError as error:
        raise ConfigError(
            f"cannot read the key file {name}: {error.strerror}", hint="'llmaas vm key' makes one."
        ) from error


def _choices(args: argparse.Namespace) -> VmChoices:
    require_qemu()
    if args.accel == "kvm" and not has_kvm():
        raise VmError(
            "this user cannot use /dev/kvm",
            hint="Add the user to the group kvm, or enable virtualization in the firmware.",
        )
    kvm = args.accel != "tcg" and has_kvm()
    if not 1 <= args.cpus <= (os.cpu_count() or 1):
        raise ConfigError(f"--cpus is {args.cpus}; this machine has {os.cpu_count()}")
    return VmChoices(kvm, _bytes("--memory", args.memory), args.cpus, args.lock_memory, tuple(getattr(args, "gpu", ())))


def _bytes(flag: str, text: str) -> int:
    try:
        return int(_SIZE.read(text, Path()))
    except ValueError:
        raise ConfigError(f"{flag} is {text!r}; it must be {_SIZE.allowed}") from None


def _folder(args: argparse.Namespace) -> VmFolder:
    return VmFolder(args.vm.absolute()) if args.vm else default_vm_folder(os.environ)


async def _ended(pidfd: int) -> bool:
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, done.set)
    try:
        await asyncio.wait_for(done.wait(), _STOP_S)
    except asyncio.TimeoutError:
        return False
    finally:
        loop.remove_reader(pidfd)
    return True


def _wait(ending: Coroutine[Any, Any, bool]) -> None:
    if not asyncio.run(ending):
        raise VmError(f"the virtual machine has not ended within {_STOP_S:g} s", hint="Its console log says why.")
