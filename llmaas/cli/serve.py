"""``llmaas serve``: runs the daemon until it is told to stop.

Law: SIGTERM or one SIGINT ends it gracefully and with success: it takes no new request, running ones get their terminal
reply, chunks are written; while it starts, it does not wait for the model. A second SIGINT ends it at once; even then
nothing acknowledged is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

from llmaas.api.activation import handed_over
from llmaas.cli.http_process import http_beside, require_packages
from llmaas.cli.log_format import log_to_stderr
from llmaas.cli.options import add_settings, loaded
from llmaas.cli.out import print_note, printable
from llmaas.config.kinds import show_bytes, show_cpus
from llmaas.config.settings import SETTINGS, Setting
from llmaas.config.sources import LoadedConfig

if TYPE_CHECKING:
    from llmaas.errors import LlmaasError
    from llmaas.service.service import Service

log = logging.getLogger(__name__)

_READERS = ("constraint", "constraints", "text", "long-text", "deep-stack", "requests")
"""Names of threads that are not waited for at the end."""

_EPILOG = """\
examples:
  llmaas serve                                      the packaged model, default memory
  llmaas serve --model m.gguf --cells 16384 --pool-bytes 1G
  llmaas serve --bits 3.2                           more contexts in the same memory; 16/16 is exact
  llmaas serve --no-encrypt                         chunks on disk in clear
  llmaas serve --http 127.0.0.1:11434               OpenAI's and Ollama's APIs, too
  LLMAAS_LOG_LEVEL=debug llmaas serve --config /etc/llmaas.toml

The daemon logs to stderr and runs in the foreground; "llmaas service install" runs it at login.
Ctrl-C or SIGTERM ends it gracefully, exit code 0.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add_settings(parser, [name for name in SETTINGS if name not in ("max_tokens", "daemon_uid")])
    parser.add_argument("--show-config", action="store_true", help="print every setting and its source, and end")


def run(args: argparse.Namespace) -> int:
    found = loaded(args)
    if args.show_config:
        _show_config(found)
        return 0
    if found.config.http is not None:
        require_packages()  # said at once, not when the model is loaded
    log_to_stderr(found.config.log_level, found.config.log_format)
    asyncio.run(_serve(found))
    return 0


async def _serve(found: LoadedConfig) -> None:
    # Chunks' sensitivity is measured with numpy beside the engine: more threads would only take its cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from llmaas.cli.runtime import running  # after that variable is set; and --help does not wait for it

    stop, ready = asyncio.Event(), False
    loop, start = asyncio.get_running_loop(), asyncio.current_task()
    assert start is not None

    def on_signal(signum: int) -> None:
        if stop.is_set() and signum == signal.SIGINT:
            print_note("stopped at once")
            os._exit(130)
        log.info("%s: stopping", signal.Signals(signum).name)
        stop.set()
        if not ready:
            start.cancel()

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, on_signal, signum)
    try:
        async with running(found.config) as runtime, http_beside(found):
            ready = True
            log.info("ready: %s on %s", runtime.model.title, found.config.socket)
            for name in handed_over().left():
                log.warning("the service manager's socket %s is no socket of the daemon's (setting 'socket')", name)
            notify_manager("READY=1")
            fault = await _stopped_or_failed(stop, runtime.service)
            notify_manager("STOPPING=1")
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        log.info("stopped before it was ready")
        os._exit(0)  # a thread may be loading the model yet, which can take as long as the disk likes
    if fault is not None:
        raise fault
    log.info("stopped")
    _leave_readers()


def _leave_readers() -> None:
    """End the process at once if a thread still reads a grammar or a text. It cannot be ended, takes seconds perhaps,
    and calls libraries that the interpreter's own end would take away under it: that is a SIGSEGV."""
    if any(thread.name in _READERS for thread in threading.enumerate()):
        logging.shutdown()
        os._exit(0)


async def _stopped_or_failed(stop: asyncio.Event, service: Service) -> LlmaasError | None:
    """Return when the daemon is told to stop (None), or cannot serve any more: a service manager starts it again."""
    stopped, failed = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(service.failed())
    await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    failed.cancel()
    return failed.result() if failed.done() else None


def _show_config(found: LoadedConfig) -> None:
    for name, row in SETTINGS.items():
        print(printable(f"{name} = {_shown(row, getattr(found.config, name))}    # {found.origins[name]}"))


def _shown(row: Setting, value: object) -> object:
    """A value as the settings file and the flags take it."""
    match row.kind.metavar, value:
        case _, None | ():
            return row.default_text
        case _, bool():
            return str(value).lower()
        case "SIZE", int():
            return show_bytes(value)
        case "CPUS", tuple():
            return show_cpus(value)
        case "NAME=PATH,...", tuple():
            return ",".join(f"{adapter}={path}" for adapter, path in value)
        case "APP,..." | "HOST,...", tuple():
            return ",".join(value)
        case _, tuple():
            return "/".join(map(str, value))
        case _:
            return value


def notify_manager(state: str) -> None:
    """Send ``state`` to systemd (sd_notify(3)): one datagram to the socket that NOTIFY_SOCKET names, if any."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            sock.send(state.encode())
    except OSError as error:
        log.warning("cannot notify the service manager at %r: %s", address, error)
