"""``llmaas http``: serves OpenAI's and Ollama's APIs over HTTP, for a daemon that runs.

Law: a process of its own, which is a client of the daemon and no more: if it fails, nothing else does. SIGTERM or
SIGINT ends it gracefully; so does the end of its standard input, if it was started to watch that.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal

from llmaas.cli.http_process import require_packages
from llmaas.cli.interpreter import short_pauses
from llmaas.cli.log_format import log_to_stderr
from llmaas.cli.options import add_settings, loaded, socket_of
from llmaas.config.sources import LoadedConfig
from llmaas.host.priority import lower_priority

_EPILOG = """\
examples:
  llmaas http                             on llmaas-http.sock beside the daemon's socket
  llmaas http --http 127.0.0.1:11434      and on TCP, where Ollama's clients look by themselves
  llmaas serve --http 127.0.0.1:11434     the daemon starts it, and ends it

docs/http.md says which calls there are.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add_settings(
        parser,
        ["socket", "daemon_uid", "http", "http_tokens", "http_hosts", "nice", "log_level", "log_format"],
    )
    parser.add_argument("--until-eof", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    found = loaded(args)
    require_packages()
    log_to_stderr(found.config.log_level, found.config.log_format)
    for name in ("uvicorn", "asyncio"):
        logging.getLogger(name).setLevel(logging.ERROR)  # what peers do wrong is no news
    lower_priority(found.config.nice)
    asyncio.run(_serve(found, until_eof=args.until_eof))
    return 0


async def _serve(found: LoadedConfig, *, until_eof: bool) -> None:
    from llmaas.http.access import Access  # --help does not wait for it
    from llmaas.http.server import serve_http

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    if until_eof:
        loop.add_reader(0, _on_input, loop, stop)
    config = found.config
    access = Access(config.http_tokens == "required", frozenset(config.http_hosts or ()))
    with short_pauses():
        await serve_http(
            socket_of(found),
            stop,
            address=None if config.http == "unix" else config.http,
            access=access,
            daemon_uid=config.daemon_uid,
        )


def _on_input(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    if not os.read(0, 4096):
        loop.remove_reader(0)
        stop.set()
