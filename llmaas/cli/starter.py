"""The starter at its end: loads Python's packages, then copies itself for each model's process that is wanted.

Law: it has one thread when it copies itself, or does not: a copy has none of the others, and what they held stays held.
A copy is no child of it, but of the process in front, which therefore learns how it ended.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import threading
from pathlib import Path

from llmaas.front.channel import MOST_BYTES
from llmaas.front.starter import READY


def load_packages(*, gently: bool) -> None:
    """All that the process of a model uses; ``gently``: on a thread of low priority, since a process cannot raise its
    own again."""
    if gently:
        thread = threading.Thread(target=_load, args=(True,))
        thread.start()
        thread.join()
    else:
        _load(False)
    gc.collect()
    gc.freeze()  # a collection would write to pages that copies share


def _load(gently: bool) -> None:
    if gently:
        from llmaas.host.thread_priority import lower_cpu_priority, lower_io_priority

        lower_cpu_priority()
        lower_io_priority()
    import llmaas.cli.model_process
    import llmaas.cli.runtime  # noqa: F401


def copies(fd: int) -> tuple[list[str], int] | None:
    """Copy this process whenever the one at the other end of ``fd`` asks. Returns in each copy: its arguments and the
    descriptor of its own channel; and None in the starter itself when nobody is there any more."""
    import msgpack  # type: ignore[import-untyped,unused-ignore]

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front process says what Ctrl-C means
    with socket.socket(fileno=fd) as sock, contextlib.suppress(OSError):
        sock.send(READY)
        while True:
            data, fds, _, _ = socket.recv_fds(sock, MOST_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            if not data:
                break
            pid = _copy()
            if pid is None:
                return [str(argument) for argument in msgpack.unpackb(data)["arguments"]], fds[0]
            for each in fds:
                os.close(each)
            sock.send(msgpack.packb({"pid": pid}))
    return None


def _copy() -> int | None:
    """The number of a copy; 0 if there is none; None in the copy."""
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        return 0
    there, here = os.pipe()
    try:
        middle = os.fork()
    except OSError:
        middle = -1
    if middle == 0:
        os.close(there)
        _copy_again(here)  # this one ends at once, so that the front process becomes the copy's parent
        return None
    os.close(here)
    try:
        if middle < 0:
            return 0
        os.waitpid(middle, 0)
        return int(os.read(there, 20) or 0)
    finally:
        os.close(there)


def _copy_again(here: int) -> None:
    """Returns in the copy only."""
    try:
        if pid := os.fork():
            os.write(here, str(pid).encode())
            os._exit(0)
    except OSError:
        os._exit(1)
    os.close(here)
