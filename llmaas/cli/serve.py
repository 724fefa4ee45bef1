"""``llmaas serve``: runs the daemon until it is told to stop.

Law: SIGTERM or one SIGINT ends it gracefully and with success: it takes no new request, running ones get their terminal
reply, chunks are written; while it starts, it does not wait for the model. A second SIGINT ends it at once; even then
nothing acknowledged is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import os
import signal
import threading
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from llmaas.api.activation import handed_over
from llmaas.cli.http_process import http_beside, require_packages
from llmaas.cli.log_format import log_to_stderr
from llmaas.cli.manager import notify_manager
from llmaas.cli.node_listener import refuse_nodes
from llmaas.cli.options import add_settings, loaded
from llmaas.cli.out import print_note, printable
from llmaas.cli.served_model import one_model, several
from llmaas.config.settings import SETTINGS
from llmaas.config.show import show_setting
from llmaas.config.sources import LoadedConfig
from llmaas.errors import LlmaasError
from llmaas.host.process_name import set_process_name

if TYPE_CHECKING:
    from llmaas.cli.load_ahead import WeightReads
    from llmaas.cli.runtime import Runtime
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
    parser.add_argument("--served-as", default="", help=argparse.SUPPRESS)
    parser.add_argument("--from-front", type=int, help=argparse.SUPPRESS)  # a descriptor: see cli/model_process
    parser.add_argument("--cells-now", type=int, help=argparse.SUPPRESS)  # fewer than cells: see policies/model_cells
    parser.add_argument("--starter", type=int, help=argparse.SUPPRESS)  # the same, of front.starter
    parser.add_argument("--gently", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    if args.starter is not None:
        return _start_models(args.starter, gently=args.gently)
    found = loaded(args)
    if args.from_front is not None:
        return _serve_for_front(dataclasses.replace(found, served_as=args.served_as), args.from_front, args.cells_now)
    if entries := several(found):
        from llmaas.cli.serve_several import serve_several  # one model needs none of it

        refuse_nodes(found.config)
        return serve_several(found, entries, show=args.show_config)
    found = one_model(found)
    if args.show_config:
        _show_config(found)
        return 0
    if found.config.http is not None:
        require_packages()  # said at once, not when the model is loaded
    log_to_stderr(found.config.log_level, found.config.log_format)
    asyncio.run(_serve(found))
    return 0


def _start_models(fd: int, *, gently: bool) -> int:
    """Load packages, and make processes as the front process says; in each, serve its model."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # see _serve
    from llmaas.cli.starter import copies, load_packages

    load_packages(gently=gently)
    asked = copies(fd)
    if asked is None:
        return 0
    arguments, channel = asked
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    return run(parser.parse_args([*arguments, f"--from-front={channel}"]))


def _serve_for_front(found: LoadedConfig, fd: int, cells: int | None) -> int:
    """Serve one of several models, for the front process at the other end of the channel ``fd``."""
    from llmaas.cli.model_process import tell_end, tell_failure

    last_words = os.dup(fd)
    set_process_name(f"llmaas {found.served_as}")
    log_to_stderr(found.config.log_level, found.config.log_format)
    try:
        asyncio.run(_serve(found, fd, cells))
    except LlmaasError as error:
        tell_failure(last_words, error)
        raise
    tell_end(last_words)
    logging.shutdown()
    os._exit(0)  # all is closed; another model may wait for the memory while Python takes itself apart


async def _serve(found: LoadedConfig, front_fd: int | None = None, cells: int | None = None) -> None:
    # Chunks' sensitivity is measured with numpy beside the engine: more threads would only take its cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    reads = _begin_reads(found)  # meanwhile Python loads its packages
    from llmaas.cli.runtime import running  # after that variable is set

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
        alone = front_fd is None
        async with (
            running(found.config, reads=reads, sockets=alone, served_as=found.served_as, cells=cells) as runtime,
            http_beside(found),
            AsyncExitStack() as last,
        ):
            ready = True
            if front_fd is not None:
                _link(front_fd, runtime, stop, last)
            log.info("ready: %s on %s", runtime.model.title, found.config.socket)
            for name in handed_over().left() if alone else ():
                log.warning("the service manager's socket %s is no socket of the daemon's (setting 'socket')", name)
            if alone:
                notify_manager("READY=1")
            fault = await _stopped_or_failed(stop, runtime.service)
            if alone:
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


def _begin_reads(found: LoadedConfig) -> WeightReads:
    from llmaas.cli.load_ahead import WeightReads  # --help does not wait for it

    reads = WeightReads(found.config)
    reads.start()
    return reads


def _link(fd: int, runtime: Runtime, stop: asyncio.Event, last: AsyncExitStack) -> None:
    """Serve the front process, until ``last`` is closed."""
    from llmaas.cli.model_process import FrontLink  # one model needs none of it

    link = FrontLink(fd, runtime.server, runtime.service, stop.set, runtime.cells)
    last.push_async_callback(link.close)


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
        print(printable(f"{name} = {show_setting(row, getattr(found.config, name))}    # {found.origins[name]}"))
