"""The command ``llmaas``: runs the chosen sub-command, and turns every failure into a message and an exit code.

Law: no heavy import here, and only the chosen sub-command is imported, so that ``llmaas --help`` answers at once. A
user never sees a traceback, unless LLMAAS_DEBUG=1 asks for it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from llmaas.cli.out import print_error
from llmaas.cli.parser import Parser
from llmaas.errors import BadRequest, ConfigError, LlmaasError
from llmaas.version import __version__

OK, FAILED, USAGE, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141

COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("llmaas.cli.serve", "run the daemon that serves the model"),
    "http": ("llmaas.cli.http", "serve OpenAI's and Ollama's APIs over HTTP, for a daemon that runs"),
    "service": (
        "llmaas.cli.user_service",
        "run the daemon at login, by systemd: install, uninstall, status",
    ),
    "vm": ("llmaas.cli.vm", "run the daemon in a virtual machine of its own: import, run, stop, status"),
    "chat": ("llmaas.cli.chat", "talk to the model in a context that lasts"),
    "ctx": ("llmaas.cli.ctx", "list, show, fork, truncate, export, import and remove contexts"),
    "backup": ("llmaas.cli.backup", "all contexts of an app into a folder or a file; again: what is new"),
    "restore": ("llmaas.cli.restore", "the contexts of a backup"),
    "node": ("llmaas.cli.node", "other machines that contexts can go to: pair, list, forget"),
    "cluster": ("llmaas.cli.cluster", "several nodes as one, on Ray: join, serve, status, leave"),
    "top": ("llmaas.cli.top.command", "watch calls and contexts live; cancel a call or change its priority"),
    "timeline": ("llmaas.cli.timeline", "the last calls as a trace for Perfetto or Chrome"),
    "stats": ("llmaas.cli.stats", "what the daemon holds and how fast it is"),
    "model": ("llmaas.cli.model", "models that can be served: list, register, load from the web, forget"),
    "adapter": ("llmaas.cli.adapter", "LoRA adapters that calls may name: list, register, forget"),
    "app": ("llmaas.cli.apps", "apps that have a token: list, add, give another token, forget"),
    "budget": ("llmaas.cli.budget", "what the daemon may use of RAM and disk; change it while it runs"),
    "limit": ("llmaas.cli.limit", "how many tokens per second apps may generate; change it while the daemon runs"),
    "doctor": ("llmaas.cli.doctor.command", "check engine, model, memory, store and socket"),
    "replay": ("llmaas.cli.replay", "run a trace of calls through the planner, in virtual time"),
    "plan": ("llmaas.cli.plan", "what a device would hold, and how fast it would switch, by a replay"),
    "trace": ("llmaas.cli.trace.command", "make, show, draw and import traces of calls, or take one from a recording"),
    "complete": ("llmaas.cli.completion", "print a script with which a shell completes command lines"),
    "man": ("llmaas.cli.man", "print the manual page"),
    "demo": ("llmaas.cli.demo.command", "watch eight apps share one model and little memory"),
}
"""Sub-command -> module with ``add_arguments(parser)`` and ``run(args) -> exit code``, and its one line of help."""

_EPILOG = """\
first steps:
  llmaas doctor                 is everything in place?
  llmaas serve                  start the daemon (another terminal, or systemd)
  llmaas chat notes             talk in the context 'notes'; it is still there tomorrow
  llmaas COMMAND --help         all about one command, with examples

exit codes:
  0 ok   1 failed   2 wrong usage or configuration   130 interrupted   141 output pipe closed

Settings come from a TOML file, LLMAAS_<NAME> variables and flags, in rising precedence.
LLMAAS_DEBUG=1 shows tracebacks.
"""


def full_parser() -> argparse.ArgumentParser:
    """The parser with the arguments of every sub-command."""
    return build_parser(*COMMANDS)


def build_parser(*chosen: str) -> argparse.ArgumentParser:
    """The whole parser; only the ``chosen`` sub-commands get their arguments."""
    parser = Parser(
        prog="llmaas",
        description="One language model, served to every app on this device.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"llmaas {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True, title="commands")
    for name, (module, summary) in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name in chosen:
            importlib.import_module(module).add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    chosen = [arg for arg in argv if not arg.startswith("-")][:1]
    try:
        args = build_parser(*chosen).parse_args(argv)
        code: int = importlib.import_module(COMMANDS[args.command][0]).run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader ('| head') has closed the pipe. What is still buffered must not fail again at exit.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except (ConfigError, BadRequest) as error:
        return _fail(error, USAGE)
    except LlmaasError as error:
        return _fail(error, FAILED)
    except Exception as error:
        if _debugging():
            raise
        print_error(f"{type(error).__name__}: {error}", "LLMAAS_DEBUG=1 shows where this happened.")
        return FAILED


def _fail(error: LlmaasError, code: int) -> int:
    if _debugging():
        raise error
    print_error(error.message, error.hint)
    return code


def _debugging() -> bool:
    return os.environ.get("LLMAAS_DEBUG", "") not in ("", "0")
