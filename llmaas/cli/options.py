"""Arguments that several sub-commands share, and the configuration and the client that they lead to.

Law: flags of settings are made from the settings' table and parsed by it, never by argparse, so that a bad value gets
the same message from every source.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmaas.cli.loading_line import LoadingLine
from llmaas.config.settings import SETTINGS, Config, flag, variable
from llmaas.config.sources import LoadedConfig, load
from llmaas.socket_place import socket_in_use

if TYPE_CHECKING:
    from llmaas.api.client import Client

DEFAULT_APP = "cli"
TOKEN_VARIABLE = "LLMAAS_TOKEN"
"""``api.daemon_address`` says what it holds; ``--help`` does not wait for that."""


def add_settings(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """``--config`` and the flags of the settings ``names``."""
    group = parser.add_argument_group("settings", "each may also stand in the file or the variable named")
    group.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="TOML file (default: LLMAAS_CONFIG, else $XDG_CONFIG_HOME/llmaas/config.toml if it exists)",
    )
    for name in names:
        row = SETTINGS[name]
        text = f"{row.help}; {row.kind.allowed} (default: {row.default_text}) [{variable(name)}]"
        alone: dict[str, Any] = {"nargs": "?", "const": row.kind.alone} if row.kind.alone else {}
        group.add_argument(flag(name), dest=name, metavar=row.kind.metavar, help=text.replace("%", "%%"), **alone)
        if row.kind.metavar == "BOOL":
            off = flag(f"no_{name}")
            group.add_argument(off, dest=name, action="store_const", const="false", help=f"{flag(name)} false")


def add_client(parser: argparse.ArgumentParser, *more: str) -> None:
    """The arguments of every command that talks to the daemon, and the flags of the settings ``more``."""
    add_settings(parser, ["socket", "daemon_uid", *more])
    parser.add_argument("--model", dest="of_model", metavar="NAME", help="of several models that are served, this one")
    parser.add_argument(
        "--app",
        help=f"act as this app: contexts belong to an app (default: that of {TOKEN_VARIABLE}, else {DEFAULT_APP})",
    )


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """For argparse: a number above 0."""

    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError("must be more than 0")
        return value

    number.__name__ = "number"  # argparse names it in its message
    return number


def add_actions(
    parser: argparse.ArgumentParser, *, of_client: bool = True
) -> Callable[[str, Callable[..., int], str], argparse.ArgumentParser]:
    """Let a command have actions, such as 'ls'. Returns a function (name, function, help) that adds one.

    Each action has those examples of the command's epilog that are its own, and the arguments of ``add_client`` if it
    is ``of_client``: if it talks to the daemon.
    """
    actions = parser.add_subparsers(metavar="ACTION", required=True, title="actions")
    examples = (parser.epilog or "").partition("\n\n")[0].splitlines()[1:]

    def action(name: str, do: Callable[..., int], help: str) -> argparse.ArgumentParser:
        own = [line for line in examples if f" {name} " in f"{line} ".partition("   ")[0] + " "]
        sub = actions.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog="\n".join(["examples:", *own]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(do=do)
        if of_client:
            add_client(sub)
        return sub

    return action


def loaded(args: argparse.Namespace) -> LoadedConfig:
    """The configuration of this command line. Raises ConfigError."""
    flags = {name: getattr(args, name, None) for name in SETTINGS}
    if not hasattr(args, "profile"):  # a client: it has no use for one
        return load(flags, os.environ, args.config)
    from llmaas.cli.machine import this_machine  # clients need not wait for it

    return load(flags, os.environ, args.config, this_machine(os.environ))


def configured(args: argparse.Namespace) -> Config:
    return loaded(args).config


def connected(args: argparse.Namespace, *, admin: bool = False, retry_s: float = 0, model: str | None = None) -> Client:
    """A client of the daemon, for a command that has the arguments of ``add_client``; ``admin``: as the operator;
    ``retry_s``: see Client. ``model``: another than the arguments name."""
    from llmaas.api.client import Client  # --help does not wait for numpy and msgpack

    found = loaded(args)
    has_token = not admin and os.environ.get(TOKEN_VARIABLE)
    app = args.app if args.app or has_token else DEFAULT_APP
    uid, model = found.config.daemon_uid, model or args.of_model
    line = LoadingLine() if model is not None and sys.stderr.isatty() else None
    where = socket_of(found)
    client = Client(where, app=app, daemon_uid=uid, admin=admin, retry_s=retry_s, model=model, on_loading=line)
    if line is not None:
        line.clear()
    return client


def socket_of(found: LoadedConfig) -> Path:
    """Where a client finds the daemon."""
    return socket_in_use(os.environ) if found.origins["socket"] == "default" else found.config.socket


def seconds(low: float, high: float) -> Callable[[str], float]:
    """A type of an argument: a number of seconds from ``low`` to ``high``."""

    def seconds(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be from {low:g} to {high:g}")
        return value

    return seconds
